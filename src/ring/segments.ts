import { SegmentRow } from '../segment-row.ts'
import type { DeferredCopies } from './deferred-copies.ts'
import type { StoreMemory } from './store-memory.ts'

/** Moves one piece of a buffer from or to somewhere else: `fileReadAt` or `fileWriteAt` of the addon. */
type PieceTransfer = (
  fd: number,
  buffer: Buffer,
  offsetBytes: number,
  lengthBytes: number,
  fileOffsetBytes: number,
  mayWait: boolean,
) => number

/**
 * Moves the bytes of a list from or to a file, piece by piece, until one of them does not move as a whole. For
 * file-transfers.ts only: it shows `transfer` memory that nobody else may reach.
 *
 * @returns the bytes moved, or minus an errno when none were
 */
export let transferPieces: (
  list: SegmentList,
  transfer: PieceTransfer,
  fd: number,
  fileOffsetBytes: number,
  mayWait: boolean,
) => number

/**
 * Makes `target` a list of all bytes of `source`, over the same memory and the same rows: valid until a ring may write its next
 * requests there, and no longer than `source`. For lent-segments.ts only.
 */
export let lendPieces: (source: SegmentList, target: SegmentList) => void

/**
 * Shows the pieces of a list, in order, as buffers of which only a part is meant. For file-ring.ts only, which gives
 * their places to the kernel: they are memory that nobody else may reach.
 *
 * @returns the buffers, in an array that nobody changes: whoever goes on with the places keeps it, or they may be collected
 */
export let visitPieces: (
  list: SegmentList,
  visit: (buffer: Buffer, offsetBytes: number, lengthBytes: number) => void,
) => readonly Buffer[]

// V8 looks a name of another module up again at each use, and a constant of this one never: each piece is read by these.
const { window: WINDOW, offsetBytes: OFFSET, lengthBytes: LENGTH, words: WORDS } = SegmentRow

/** Of every list that never had a piece, and never written. */
const NO_WINDOWS: readonly Buffer[] = []
const NO_ROWS = new Uint32Array(0)

/** Longest piece of a list that is made here, and a window of driver memory: offset and length must fit into a row. */
const PIECE_BYTES_MAX = 2 ** 30

/**
 * The bytes of one request: an ordered list of pieces of memory shared with the driver.
 *
 * The pieces are borrowed from the moment the request is taken until it is completed. Copying through
 * `copyFrom`, `copyTo` and `fill` allocates nothing; `views()` makes one `Uint8Array` a piece on first use.
 * A list is never resized by its reader.
 */
export class SegmentList {
  #count = 0
  #byteLength = 0
  /** What the rows name by their index. */
  #windows: readonly Buffer[] = NO_WINDOWS
  /** Layout {@link SegmentRow}: of the ring that the list was taken from, until {@link keep}, or {@link #ownRows}. */
  #rows: Uint32Array = NO_ROWS
  /** Index of the first word of the first row. */
  #at = 0
  #ownRows: Uint32Array = NO_ROWS
  #views: Uint8Array[] | undefined
  /** Makes the views; another list for a part of that list. */
  #viewer: SegmentList = this
  /** Times that the list was cleared. */
  #lifeCount = 0
  /** The life of {@link #viewer} that a part of a list belongs to, and ends with. */
  #life = 0
  readonly #copies: DeferredCopies | undefined
  /** The bytes were shown in another way than by a call of this list: from now on somebody may look at any time. */
  #exposed = false

  /** @param copies takes the copies from and to stores that can wait until somebody looks. Default: none can */
  constructor(copies?: DeferredCopies) {
    this.#copies = copies
  }

  static {
    transferPieces = (list, transfer, fd, fileOffsetBytes, mayWait) => {
      list.#settle()
      let doneBytes = 0
      for (let index = 0; index < list.count; index++) {
        const lengthBytes = list.#lengthAt(index)
        const countBytes = transfer(
          fd,
          list.#windowAt(index),
          list.#offsetAt(index),
          lengthBytes,
          fileOffsetBytes + doneBytes,
          mayWait,
        )
        if (countBytes < 0) return doneBytes > 0 ? doneBytes : countBytes
        doneBytes += countBytes
        if (countBytes < lengthBytes) break
      }
      return doneBytes
    }
    lendPieces = (source, target) => {
      target.#becomePartOf(source)
      target.#pointAt(source.#windows, source.#rows, source.#at, source.count, source.byteLength)
    }
    visitPieces = (list, visit) => {
      list.#expose()
      for (let index = 0; index < list.count; index++) {
        visit(list.#windowAt(index), list.#offsetAt(index), list.#lengthAt(index))
      }
      return list.#windows
    }
  }

  /** Makes a list over bytes of this process, for requests that a layer derives and for tests. */
  static of(...pieces: Uint8Array[]): SegmentList {
    const list = new SegmentList()
    for (const piece of pieces) {
      list.append(Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength), 0, piece.byteLength)
    }
    return list
  }

  #windowAt(index: number): Buffer {
    return this.#windows[this.#rows[this.#at + index * WORDS]!]!
  }

  #offsetAt(index: number): number {
    return this.#rows[this.#at + index * WORDS + OFFSET]!
  }

  #lengthAt(index: number): number {
    return this.#rows[this.#at + index * WORDS + LENGTH]!
  }

  /** Number of pieces. */
  get count(): number {
    return this.#hasEnded() ? 0 : this.#count
  }

  /** Sum of the lengths of all pieces, in bytes. */
  get byteLength(): number {
    return this.#viewer === this ? this.#byteLength : this.#partBytes()
  }

  /** Apart from its caller, which is so small that V8 compiles it into wherever it is called: a few times a request. */
  #partBytes(): number {
    return this.#hasEnded() ? 0 : this.#byteLength
  }

  /** True for a part of a list that was cleared since. No getter: V8 leaves its compiled code to find a private one. */
  #hasEnded(): boolean {
    return this.#viewer !== this && this.#viewer.#lifeCount !== this.#life
  }

  /**
   * Forgets all pieces, and ends its parts (see {@link first}). What holds the pieces is kept, so that a pooled request
   * allocates nothing when it is reused.
   */
  clear(): void {
    if (this.#count > 0) {
      this.#count = 0
      this.#byteLength = 0
      this.#lifeCount++
    }
    if (this.#exposed || this.#viewer !== this) this.#endExposure()
  }

  /** Apart from its caller, so that V8 compiles that into wherever it is called. */
  #endExposure(): void {
    this.#views = undefined
    this.#exposed = false
    this.#viewer = this
  }

  /**
   * Makes this empty list that of some rows. Only a ring calls this, for each request: rows and windows are borrowed from it
   * until the list is cleared or {@link keep} is called, and nothing is copied.
   *
   * @param windows what the rows name by their index; borrowed until the list is cleared
   * @param rows of layout {@link SegmentRow}, none of 0 bytes
   * @param firstRow index of the first one in `rows`
   * @param byteLength sum of their lengths
   */
  point(
    windows: readonly Buffer[],
    rows: Uint32Array,
    firstRow: number,
    count: number,
    byteLength: number,
  ): void {
    this.#pointAt(windows, rows, firstRow * WORDS, count, byteLength)
  }

  #pointAt(
    windows: readonly Buffer[],
    rows: Uint32Array,
    at: number,
    count: number,
    byteLength: number,
  ): void {
    // A list that is used again mostly has the same there, and the store of an object costs its barrier.
    if (this.#windows !== windows) this.#windows = windows
    if (this.#rows !== rows) this.#rows = rows
    this.#at = at
    this.#count = count
    this.#byteLength = byteLength
  }

  /** Called by a ring before it writes other rows to where this list's may lie. */
  keep(): void {
    if (this.#count === 0 || this.#rows === this.#ownRows) return
    this.#own(this.#count)
  }

  /** Moves the rows to memory of this list, with room for so many. */
  #own(rowCount: number): void {
    const rows = this.#rows
    const at = this.#at
    if (this.#ownRows.length < rowCount * WORDS) this.#ownRows = new Uint32Array(rowCount * WORDS)
    const ownRows = this.#ownRows
    const wordCount = this.#count * WORDS
    for (let word = 0; word < wordCount; word++) ownRows[word] = rows[at + word]!
    this.#rows = ownRows
    this.#at = 0
  }

  /**
   * Adds a piece at the end of a list that is not a ring's. For tests and for lists over bytes of this process.
   *
   * @param buffer the window of shared memory the piece lies in; borrowed
   * @param offsetBytes start within `buffer`
   * @param lengthBytes length of the piece; a piece of 0 bytes is left out
   */
  append(buffer: Buffer, offsetBytes: number, lengthBytes: number): void {
    const end = offsetBytes + lengthBytes
    if (end <= PIECE_BYTES_MAX) {
      if (lengthBytes > 0) this.#add(buffer, offsetBytes, lengthBytes)
      return
    }
    for (let at = offsetBytes; at < end; at += PIECE_BYTES_MAX) {
      const piece = buffer.subarray(at, Math.min(end, at + PIECE_BYTES_MAX))
      this.#add(piece, 0, piece.length)
    }
  }

  #add(window: Buffer, offsetBytes: number, lengthBytes: number): void {
    const count = this.#count
    if (this.#rows !== this.#ownRows || this.#ownRows.length === count * WORDS)
      this.#own(Math.max(1, 2 * count))
    const last = count - 1
    const isOfLast = count > 0 && this.#windowAt(last) === window
    const windowIndex = isOfLast ? this.#rows[last * WORDS]! : this.#addWindow(window)
    this.#count++
    const row = count * WORDS
    this.#rows[row + WINDOW] = windowIndex
    this.#rows[row + OFFSET] = offsetBytes
    this.#rows[row + LENGTH] = lengthBytes
    this.#byteLength += lengthBytes
  }

  #addWindow(window: Buffer): number {
    this.#windows = this.#count === 0 ? [window] : [...this.#windows, window]
    return this.#windows.length - 1
  }

  /**
   * One view a piece, in order, for vectored I/O such as `fs.readv`. The views are made once and borrowed:
   * they go empty when the memory is unmapped.
   */
  views(): readonly Uint8Array[] {
    this.#expose()
    const { count } = this
    if (count === 0) return []
    if (this.#views === undefined) {
      const views: Uint8Array[] = []
      for (let index = 0; index < count; index++) {
        views.push(this.#viewer.viewOf(this.#windowAt(index), this.#offsetAt(index), this.#lengthAt(index)))
      }
      this.#views = views
    }
    return this.#views
  }

  /** Makes the view of one piece. A list over memory that may not be reached in other ways has its own. */
  protected viewOf(buffer: Buffer, offsetBytes: number, lengthBytes: number): Uint8Array {
    return buffer.subarray(offsetBytes, offsetBytes + lengthBytes)
  }

  /**
   * The front of this list as a list of its own, over the same memory and borrowed for as long: it goes empty when this
   * list is cleared.
   *
   * @param lengthBytes length of the new list; of a longer one all there is
   */
  first(lengthBytes: number): SegmentList {
    this.beforeExposure()
    const front = new SegmentList()
    this.#share(lengthBytes, front)
    return front
  }

  /** Forgets all pieces; those that come now end with the list that `source` is, or is a part of. */
  #becomePartOf(source: SegmentList): void {
    this.clear()
    this.#viewer = source.#viewer
    this.#life = source.#viewer.#lifeCount
  }

  #share(lengthBytes: number, front: SegmentList): void {
    front.#becomePartOf(this)
    let count = 0
    let sharedBytes = 0
    while (count < this.count && sharedBytes < lengthBytes) sharedBytes += this.#lengthAt(count++)
    if (count === 0) return
    // The border may lie within the last piece, or beyond the end of the list.
    const cutBytes = Math.max(0, sharedBytes - lengthBytes)
    front.#pointAt(this.#windows, this.#rows, this.#at, count, sharedBytes - cutBytes)
    front.#own(count)
    front.#ownRows[(count - 1) * WORDS + LENGTH]! -= cutBytes
  }

  /**
   * Copies bytes into the pieces, in order, until either side ends.
   *
   * @param source where the bytes come from
   * @param sourceOffsetBytes first byte of `source` to copy; default 0
   * @param offsetBytes first byte of this list to fill; default 0
   * @returns the number of bytes copied
   */
  copyFrom(source: Buffer, sourceOffsetBytes = 0, offsetBytes = 0): number {
    this.#settle()
    const { count } = this
    let skip = offsetBytes
    let position = sourceOffsetBytes
    for (let index = 0; index < count && position < source.length; index++) {
      const length = this.#lengthAt(index)
      if (skip >= length) {
        skip -= length
        continue
      }
      const end = Math.min(position + length - skip, source.length)
      source.copy(this.#windowAt(index), this.#offsetAt(index) + skip, position, end)
      position = end
      skip = 0
    }
    return Math.max(0, position - sourceOffsetBytes)
  }

  /**
   * Copies the bytes of the pieces, in order, out into `target` until either side ends.
   *
   * @param target where the bytes go
   * @param targetOffsetBytes first byte of `target` to write; default 0
   * @param offsetBytes first byte of this list to copy; default 0
   * @returns the number of bytes copied
   */
  copyTo(target: Buffer, targetOffsetBytes = 0, offsetBytes = 0): number {
    this.#settle()
    const { count } = this
    let skip = offsetBytes
    let position = targetOffsetBytes
    for (let index = 0; index < count && position < target.length; index++) {
      const length = this.#lengthAt(index)
      if (skip >= length) {
        skip -= length
        continue
      }
      const copied = Math.min(length - skip, target.length - position)
      const from = this.#offsetAt(index) + skip
      this.#windowAt(index).copy(target, position, from, from + copied)
      position += copied
      skip = 0
    }
    return Math.max(0, position - targetOffsetBytes)
  }

  /**
   * Sets bytes of the list to `value`.
   *
   * @param value 0 to 255
   * @param offsetBytes first byte to set; default 0
   * @param lengthBytes number of bytes to set; default: all that follow
   */
  fill(value: number, offsetBytes = 0, lengthBytes: number = this.byteLength - offsetBytes): void {
    this.#settle()
    const { count } = this
    let skip = offsetBytes
    let left = lengthBytes
    for (let index = 0; index < count && left > 0; index++) {
      const length = this.#lengthAt(index)
      if (skip >= length) {
        skip -= length
        continue
      }
      const filled = Math.min(length - skip, left)
      const from = this.#offsetAt(index) + skip
      this.#windowAt(index).fill(value, from, from + filled)
      left -= filled
      skip = 0
    }
  }

  /**
   * As {@link copyFrom}, from the memory of a store. The copy may wait until somebody can look: at this list, at `source`,
   * or at the answer of the request.
   *
   * @param sourceOffsetBytes first byte of `source` to copy
   * @param offsetBytes first byte of this list to fill
   */
  copyFromStore(source: StoreMemory, sourceOffsetBytes: number, offsetBytes: number): void {
    const copies = this.#deferred()
    if (copies === undefined) this.copyFrom(source.bytes, sourceOffsetBytes, offsetBytes)
    else this.#copyLater(copies, source, sourceOffsetBytes, offsetBytes, false)
  }

  /** As {@link copyTo}, to the memory of a store; otherwise as {@link copyFromStore}. */
  copyToStore(target: StoreMemory, targetOffsetBytes: number, offsetBytes: number): void {
    const copies = this.#deferred()
    if (copies === undefined) this.copyTo(target.bytes, targetOffsetBytes, offsetBytes)
    else this.#copyLater(copies, target, targetOffsetBytes, offsetBytes, true)
  }

  #copyLater(
    copies: DeferredCopies,
    store: StoreMemory,
    storeOffsetBytes: number,
    offsetBytes: number,
    toStore: boolean,
  ): void {
    const { count } = this
    const storeIndex = store.indexIn(copies)
    let skip = offsetBytes
    let position = storeOffsetBytes
    for (let index = 0; index < count && position < store.byteLength; index++) {
      const length = this.#lengthAt(index)
      if (skip >= length) {
        skip -= length
        continue
      }
      const copied = Math.min(length - skip, store.byteLength - position)
      const from = this.#offsetAt(index) + skip
      copies.add(this.#windowAt(index), from, storeIndex, position, copied, toStore)
      position += copied
      skip = 0
    }
  }

  /** What takes the copies that can wait; undefined when none can. */
  #deferred(): DeferredCopies | undefined {
    return this.#viewer.#exposed ? undefined : this.#viewer.#copies
  }

  /** Does the copies that wait: somebody looks at the bytes, or changes them. */
  #settle(): void {
    this.#viewer.#copies?.run()
  }

  /** Shows the bytes to somebody who may look at them, or change them, at any time and not only by a call of this list. */
  #expose(): void {
    this.beforeExposure()
    this.#settle()
    this.#viewer.#exposed = true
  }

  /** Called before the bytes are shown in any way that lasts longer than a call of this list: views, a part. */
  protected beforeExposure(): void {}

  /** A copy of all bytes in memory of this process, which the driver can no longer change. */
  toBuffer(): Buffer {
    const copy = Buffer.alloc(this.byteLength)
    this.copyTo(copy)
    return copy
  }
}
