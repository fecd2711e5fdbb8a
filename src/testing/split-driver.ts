import { type NativeWatch, native } from '../native.ts'
import type { SharedMemory } from './shared-memory.ts'

/** Bits of a descriptor's flags (virtio 1.3, 2.7.5). */
export const DescriptorFlag = { NEXT: 1, WRITE: 2, INDIRECT: 4 } as const

/** One descriptor, as it lies in the table. Any value is accepted, for tests with hostile drivers. */
export interface Descriptor {
  readonly address: bigint
  readonly lengthBytes: number
  readonly flags: number
  readonly next: number
}

/** One buffer of a request. */
export interface Piece {
  /** Guest address of the first byte. */
  readonly address: bigint
  readonly lengthBytes: number
  /** True: the device writes it. Readable pieces come before writable ones. */
  readonly writable: boolean
}

/** Options of {@link SplitDriver}. */
export interface SplitDriverOptions {
  /** Where the ring is laid out; borrowed. */
  readonly memory: SharedMemory
  /** Entries of the ring: a power of two. */
  readonly size: number
  /** How each side asks the other for silence: event indices, or the flags. Default true. */
  readonly eventIdx?: boolean
}

const DESCRIPTOR_BYTES = 16
/** Pieces of a request in an indirect table, at most. */
const INDIRECT_COUNT_MAX = 128
const NO_INTERRUPT = 1
const NO_NOTIFY = 1

/**
 * The driver's half of a split virtqueue in plain TypeScript: slow and obviously right. It is the other side for
 * tests of devices, and it can place anything in the ring, for tests with drivers that break the rules.
 *
 * Indices, flags and events are accessed through Atomics: one access of the word's size, sequentially consistent,
 * so that a store to an index and the load of the other side's event after it stay in this order, and whatever an
 * index covers is written before it and read after it.
 */
export class SplitDriver {
  readonly size: number
  readonly eventIdx: boolean
  /** Where the parts of the ring lie, as the front-end sees them. */
  readonly addresses: { readonly descriptor: bigint; readonly available: bigint; readonly used: bigint }
  /** Eventfds of this queue, owned by the driver. */
  readonly kickFd: number
  readonly callFd: number
  /** Times the kick eventfd was written, times the device had asked for silence, times the call eventfd woke us. */
  readonly counts: { kicks: number; kicksSuppressed: number; signals: number } = {
    kicks: 0,
    kicksSuppressed: 0,
    signals: 0,
  }

  readonly #memory: SharedMemory
  readonly #words: Uint16Array
  readonly #view: DataView
  readonly #descriptorsAt: number
  readonly #availableAt: number
  readonly #usedAt: number
  readonly #freeDescriptors: number[]
  /** By head: what to give back and whom to tell. */
  readonly #waiting = new Map<number, { descriptors: number[]; resolve: (usedBytes: number) => void }>()
  readonly #indirectTables = new Map<number, number>()
  readonly #callWatch: NativeWatch
  #availableIndex = 0
  /** The available index at the last decision to kick. */
  #decidedIndex = 0
  #lastUsed = 0
  #closed = false

  constructor(options: SplitDriverOptions) {
    const { memory, size } = options
    this.size = size
    this.eventIdx = options.eventIdx ?? true
    this.#memory = memory
    this.#words = new Uint16Array(memory.bytes.buffer, 0, memory.bytes.length >> 1)
    this.#view = new DataView(memory.bytes.buffer)
    this.#descriptorsAt = memory.allocate(DESCRIPTOR_BYTES * size, 16)
    this.#availableAt = memory.allocate(6 + 2 * size, 2)
    this.#usedAt = memory.allocate(6 + 8 * size, 4)
    this.addresses = {
      descriptor: memory.userAddressOf(this.#descriptorsAt),
      available: memory.userAddressOf(this.#availableAt),
      used: memory.userAddressOf(this.#usedAt),
    }
    this.#freeDescriptors = Array.from({ length: size }, (_, index) => index)
    this.kickFd = native.eventfdCreate()
    this.callFd = native.eventfdCreate()
    this.#callWatch = native.watchReadable(this.callFd, true, () => {
      this.counts.signals++
      this.collect()
    })
  }

  /** Requests made available and not yet answered. */
  get inFlightCount(): number {
    return this.#waiting.size
  }

  /** The next available index: how many requests were made available so far, modulo 65536. */
  get availableIndex(): number {
    return this.#availableIndex
  }

  // ---- well-formed requests -------------------------------------------------------------------------------

  /**
   * Makes one request and tells the device if it wants to be told.
   *
   * @param pieces readable ones first; one descriptor each
   * @param options `indirect`: put the pieces into an indirect table
   * @returns bytes that the device says it wrote
   */
  submit(pieces: readonly Piece[], options: { readonly indirect?: boolean } = {}): Promise<number> {
    const answer = this.add(pieces, options)
    this.publish()
    return answer
  }

  /** As {@link submit}, but the device sees the request only with the next {@link publish}. */
  add(pieces: readonly Piece[], options: { readonly indirect?: boolean } = {}): Promise<number> {
    const needed = options.indirect ? 1 : pieces.length
    if (pieces.length === 0 || this.#freeDescriptors.length < needed) {
      throw new RangeError(`${needed} descriptors are needed, ${this.#freeDescriptors.length} are free`)
    }
    const descriptors = this.#freeDescriptors.splice(0, needed)
    const head = descriptors[0]!
    if (options.indirect) this.#writeIndirect(head, pieces)
    else this.#writeChain(this.#descriptorsAt, descriptors, pieces)
    this.writeAvailable(this.#availableIndex, head)
    this.#availableIndex = (this.#availableIndex + 1) & 0xffff
    return new Promise((resolve) => this.#waiting.set(head, { descriptors, resolve }))
  }

  /** Makes every added request visible and decides once whether to kick. */
  publish(): void {
    this.storeAvailableIndex(this.#availableIndex)
    // Store the index, then load what the device asked for: Atomics keep the two in this order. The other way
    // round, the device could ask for a kick and look at the old index between the two, and sleep on a request.
    // Partner: the device's barrier between avail_event and its last look at the available index.
    if (this.#kickWanted()) this.kick()
    else this.counts.kicksSuppressed++
    this.#decidedIndex = this.#availableIndex
  }

  #kickWanted(): boolean {
    if (!this.eventIdx) return (this.#load(this.#usedAt) & NO_NOTIFY) === 0
    const event = this.#load(this.#usedAt + 4 + 8 * this.size)
    // The device wants to know of the entry `event`: is it among the entries made visible since the last time?
    for (let index = this.#decidedIndex; index !== this.#availableIndex; index = (index + 1) & 0xffff) {
      if (index === event) return true
    }
    return false
  }

  /** Takes every answer that is there, then asks for a signal about the next one. Called for each signal. */
  collect(): void {
    do {
      if (!this.eventIdx) this.#store(this.#availableAt, NO_INTERRUPT)
      while (this.loadUsedIndex() !== this.#lastUsed) this.#takeUsed()
      if (this.eventIdx) this.storeUsedEvent(this.#lastUsed)
      else this.#store(this.#availableAt, 0)
      // The wish is stored, then the index is loaded once more: an answer published in between saw the old wish.
      // Partner: the device's barrier between the used index and used_event (or the flags).
    } while (this.loadUsedIndex() !== this.#lastUsed)
  }

  #takeUsed(): void {
    const element = this.#usedAt + 4 + 8 * (this.#lastUsed & (this.size - 1))
    this.#lastUsed = (this.#lastUsed + 1) & 0xffff
    const head = this.#view.getUint32(element, true)
    const waiting = this.#waiting.get(head)
    // A hostile test placed the head by hand: nobody waits for it.
    if (waiting === undefined) return
    this.#waiting.delete(head)
    this.#freeDescriptors.push(...waiting.descriptors)
    waiting.resolve(this.#view.getUint32(element + 4, true))
  }

  #writeChain(tableAt: number, indices: readonly number[], pieces: readonly Piece[]): void {
    for (const [position, { address, lengthBytes, writable }] of pieces.entries()) {
      const next = indices[position + 1]
      const flags = (writable ? DescriptorFlag.WRITE : 0) | (next === undefined ? 0 : DescriptorFlag.NEXT)
      this.#writeDescriptorAt(tableAt + DESCRIPTOR_BYTES * indices[position]!, {
        address,
        lengthBytes,
        flags,
        next: next ?? 0,
      })
    }
  }

  #writeIndirect(head: number, pieces: readonly Piece[]): void {
    if (pieces.length > INDIRECT_COUNT_MAX) throw new RangeError(`more than ${INDIRECT_COUNT_MAX} pieces`)
    const table =
      this.#indirectTables.get(head) ?? this.#memory.allocate(DESCRIPTOR_BYTES * INDIRECT_COUNT_MAX)
    this.#indirectTables.set(head, table)
    this.#writeChain(table, [...pieces.keys()], pieces)
    this.writeDescriptor(head, {
      address: this.#memory.guestAddressOf(table),
      lengthBytes: DESCRIPTOR_BYTES * pieces.length,
      flags: DescriptorFlag.INDIRECT,
      next: 0,
    })
  }

  // ---- anything at all ------------------------------------------------------------------------------------

  /** Writes a descriptor as it is given. */
  writeDescriptor(index: number, descriptor: Descriptor): void {
    this.#writeDescriptorAt(this.#descriptorsAt + DESCRIPTOR_BYTES * index, descriptor)
  }

  #writeDescriptorAt(offsetBytes: number, { address, lengthBytes, flags, next }: Descriptor): void {
    this.#view.setBigUint64(offsetBytes, address, true)
    this.#view.setUint32(offsetBytes + 8, lengthBytes, true)
    this.#view.setUint16(offsetBytes + 12, flags, true)
    this.#view.setUint16(offsetBytes + 14, next, true)
  }

  /** Writes an entry of the available ring: the head at position `index`, modulo the size. */
  writeAvailable(index: number, head: number): void {
    this.#store(this.#availableAt + 4 + 2 * (index & (this.size - 1)), head)
  }

  /** Stores the available index, without a kick. */
  storeAvailableIndex(index: number): void {
    this.#availableIndex = index & 0xffff
    this.#store(this.#availableAt + 2, this.#availableIndex)
  }

  /** The wish for a signal: the used entry of which the driver asks to be told. Counts with event indices only. */
  loadUsedEvent(): number {
    return this.#load(this.#availableAt + 4 + 2 * this.size)
  }

  /** Stores a wish of any value; see {@link loadUsedEvent}. */
  storeUsedEvent(index: number): void {
    this.#store(this.#availableAt + 4 + 2 * this.size, index)
  }

  /** Loads the device's used index. */
  loadUsedIndex(): number {
    return this.#load(this.#usedAt + 2)
  }

  /** Head that the device gave back with the used element at position `index`, modulo the size. */
  loadUsedHead(index: number): number {
    return this.#view.getUint32(this.#usedAt + 4 + 8 * (index & (this.size - 1)), true)
  }

  /** Length that the device gave with the used element at position `index`, modulo the size. */
  loadUsedLength(index: number): number {
    return this.#view.getUint32(this.#usedAt + 4 + 8 * (index & (this.size - 1)) + 4, true)
  }

  /** Kicks the device, whatever it asked for. Does nothing once closed. */
  kick(): void {
    if (this.#closed) return
    this.counts.kicks++
    native.eventfdSignal(this.kickFd)
  }

  /**
   * Stops listening and closes the eventfds. The promises of unanswered requests stay pending. Calling it again
   * does nothing.
   */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#callWatch.close()
    native.closeFd(this.kickFd)
    native.closeFd(this.callFd)
  }

  #load(offsetBytes: number): number {
    return Atomics.load(this.#words, offsetBytes >> 1)
  }

  #store(offsetBytes: number, value: number): void {
    Atomics.store(this.#words, offsetBytes >> 1, value)
  }
}
