import type { RingBreak } from '../../native.ts'
import { indexDistance, needEvent } from './event-index.ts'

/** Why a queue broke, cannot run, or gave a chain back unserved. */
export type RingFault = keyof typeof RingBreak

/** A piece of driver memory: `bytes` as descriptors see it from `guestAddress` on, the front-end from `userAddress`. */
export interface ReferenceRegion {
  readonly guestAddress: bigint
  readonly userAddress: bigint
  readonly bytes: Uint8Array
}

/** What a {@link ReferenceSplitQueue} is made with; the names are those of the options of a real queue. */
export interface ReferenceSplitOptions {
  readonly headerBytes: number
  readonly statusByte: boolean
  /** Most entries of the available ring that one `take` looks at. */
  readonly batchCountMax: number
  /** So many at most unless more than eight times as many are visible: then an eighth of those. Default `batchCountMax`. */
  readonly batchCountMin?: number
  /** Largest ring. */
  readonly sizeMax: number
  /** Longest chain through an indirect table; the ring's size if that is more. */
  readonly chainCountMax: number
  /** A malformed chain breaks the queue instead of being given back with length 0. */
  readonly strictChains: boolean
}

/** Where a ring lies and what was negotiated for it. */
export interface ReferenceSplitRing {
  readonly size: number
  readonly descriptorAddress: bigint
  readonly availableAddress: bigint
  readonly usedAddress: bigint
  /** True: the three addresses are guest addresses; false: user addresses. */
  readonly guestAddresses: boolean
  /** Next available index to take. */
  readonly availableBase: number
  readonly eventIdx: boolean
  readonly indirect: boolean
}

/** A stretch of one region, by the region's position in the table. */
export interface ReferencePiece {
  readonly region: number
  readonly offsetBytes: number
  readonly lengthBytes: number
}

/** A request without its header and status byte. */
export interface ReferenceRequest {
  readonly head: number
  readonly header: Uint8Array
  readonly readable: readonly ReferencePiece[]
  readonly writable: readonly ReferencePiece[]
}

/** An answer; only the low byte of `status` counts. */
export interface ReferenceAnswer {
  readonly head: number
  readonly bytesWritten: number
  readonly status: number
}

/** What completing did. */
export interface ReferenceCompleted {
  /** Whether the decision was to signal; `undefined` when nothing was published, so that there was none. */
  readonly signal: boolean | undefined
  /** Kicks are asked for, and nothing was visible after that. */
  readonly armed: boolean
}

interface Buffer {
  readonly address: bigint
  readonly lengthBytes: number
  readonly writable: boolean
}

interface Descriptor extends Buffer {
  readonly hasNext: boolean
  readonly isIndirect: boolean
  readonly next: number
}

/** A chain as it was walked: its buffers, and why the walk ended early if it did. */
interface Walk {
  readonly buffers: readonly Buffer[]
  readonly fault?: RingFault | undefined
}

type Byte = (value: number) => void

interface Chain {
  readonly fault?: RingFault | undefined
  /** The chain alone needs more rows than were left; with all of them it may fit. */
  readonly rowsExhausted?: boolean
  readonly readable: ReferencePiece[]
  readonly writable: ReferencePiece[]
  readonly header: Uint8Array
  readonly rowCount: number
  readonly writableBytes: number
  /** Writes the status; `undefined` without one, or when there is no telling where it is. */
  readonly writeStatus: Byte | undefined
}

const NEXT = 1
const WRITE = 2
const INDIRECT = 4
const NO_INTERRUPT = 1
const NO_NOTIFY = 1
const DESCRIPTOR_BYTES = 16
const STATUS_FAILED = 1
const UINT32_MAX = 0xffff_ffff

/**
 * The device's half of a split virtqueue, read off the specification (virtio 1.3, 2.7): slow, sequential and obviously
 * right. It is what the native queue is compared with, and may be compared with yours. It works on bytes, one thread at
 * a time, and has no barriers: it says what must come out, not in which order another processor sees it.
 */
export class ReferenceSplitQueue {
  readonly options: ReferenceSplitOptions
  /** As a real queue counts them ({@link VirtQueue.counts}). */
  readonly counts = {
    requests: 0,
    completions: 0,
    batches: 0,
    suppressed: 0,
    rearms: 0,
    malformedChains: 0,
    skippedHeads: 0,
    ignoredCompletions: 0,
    signalFences: 0,
  }
  /** The latest malformed chain or skipped head. */
  lastFault: RingFault | undefined
  /** Why the queue broke. It then touches nothing until it is started anew. */
  broken: RingFault | undefined
  /** Kicks were asked for and nothing was visible: the driver kicks for the next entry. */
  armed = false
  availableIndex = 0
  usedIndex = 0

  protected ring!: ReferenceSplitRing
  protected regions: readonly ReferenceRegion[] = []
  /** The three parts of the ring, or nothing while the queue is stopped. */
  protected parts: { descriptors: DataView; available: DataView; used: DataView } | undefined
  /** What is remembered of each head that the device owns. */
  protected readonly inFlight = new Map<number, { writableBytes: number; writeStatus: Byte | undefined }>()
  /** Heads of malformed chains, which the next `complete` gives back. */
  protected rejected: number[] = []
  /** Entries published since the last decision. */
  protected undecidedCount = 0
  /** The used index at the last decision; `undefined`: the next decision signals whatever the driver asked for. */
  protected decidedIndex: number | undefined
  protected skipsInARow = 0

  constructor(options: ReferenceSplitOptions) {
    this.options = options
  }

  get isRunning(): boolean {
    return this.parts !== undefined
  }

  get inFlightCount(): number {
    return this.inFlight.size
  }

  /** Whether the device owns a head: it was handed out, or rejected and not given back. */
  owns(head: number): boolean {
    return this.inFlight.has(head)
  }

  /** Entries that the driver published and nobody took. */
  get visibleCount(): number {
    return this.parts === undefined || this.broken !== undefined
      ? 0
      : indexDistance(this.availableIndex, this.driversIndex())
  }

  // ---- Start and stop -------------------------------------------------------------------------------------

  /** Starts the ring anew. Returns why it cannot run; then it stays stopped. */
  start(ring: ReferenceSplitRing, regions: readonly ReferenceRegion[]): RingFault | undefined {
    this.stop()
    const isPowerOfTwo = ring.size > 0 && (ring.size & (ring.size - 1)) === 0
    if (!isPowerOfTwo || ring.size > this.options.sizeMax) return 'ERR_RING_SIZE'
    const parts = this.resolve(ring, regions)
    if (parts === undefined) return 'ERR_RING_ADDRESS'
    this.ring = ring
    this.regions = regions
    this.parts = parts
    this.broken = undefined
    this.availableIndex = ring.availableBase
    // The device's own index counts from now on, whatever the driver does to the word in the ring.
    this.usedIndex = parts.used.getUint16(2, true)
    this.decidedIndex = undefined
    this.skipsInARow = 0
    this.writeUsedFlags(ring.eventIdx ? 0 : NO_NOTIFY)
    return undefined
  }

  /** Forgets what is in flight. Returns the next available index. */
  stop(): number {
    this.settle()
    this.parts = undefined
    this.regions = []
    this.inFlight.clear()
    this.rejected = []
    this.armed = false
    return this.availableIndex
  }

  /** Moves a running ring to other memory. Statuses of requests in flight go where they were when those were taken. */
  setRegions(regions: readonly ReferenceRegion[]): RingFault | undefined {
    if (this.parts === undefined) return undefined
    const parts = this.resolve(this.ring, regions)
    if (parts === undefined) return 'ERR_RING_ADDRESS'
    this.parts = parts
    this.regions = regions
    return undefined
  }

  /** The next decision signals, as after another call eventfd was given. */
  forgetDecision(): void {
    this.decidedIndex = undefined
  }

  /** Sizes and alignments: virtio 1.3, 2.7. Each part lies in one region. */
  protected resolve(ring: ReferenceSplitRing, regions: readonly ReferenceRegion[]): typeof this.parts {
    const part = (address: bigint, lengthBytes: number, alignBytes: number): DataView | undefined => {
      for (const { guestAddress, userAddress, bytes } of regions) {
        const offset = address - (ring.guestAddresses ? guestAddress : userAddress)
        if (offset < 0n || offset >= BigInt(bytes.length)) continue
        const at = Number(offset)
        const isAligned = address % BigInt(alignBytes) === 0n && (bytes.byteOffset + at) % alignBytes === 0
        if (!isAligned || at + lengthBytes > bytes.length) return undefined
        return new DataView(bytes.buffer, bytes.byteOffset + at, lengthBytes)
      }
      return undefined
    }
    const descriptors = part(ring.descriptorAddress, 16 * ring.size, 16)
    const available = part(ring.availableAddress, 6 + 2 * ring.size, 2)
    const used = part(ring.usedAddress, 6 + 8 * ring.size, 4)
    if (descriptors === undefined || available === undefined || used === undefined) return undefined
    return { descriptors, available, used }
  }

  // ---- Taking ---------------------------------------------------------------------------------------------

  /** Takes up to `countMax` requests and asks for silence. Returns the fault of a queue that is broken. */
  take(countMax: number): ReferenceRequest[] | RingFault {
    if (this.broken !== undefined) return this.broken
    if (this.parts === undefined || countMax === 0) return []
    const visible = indexDistance(this.availableIndex, this.driversIndex())
    if (visible > this.ring.size) return this.break('ERR_RING_AVAIL_INDEX')
    if (visible === 0) return []
    this.suppressKicks()

    const requests: ReferenceRequest[] = []
    let rowCount = 0
    const { batchCountMax, batchCountMin = batchCountMax } = this.options
    const looks = Math.min(visible, batchCountMax, Math.max(batchCountMin, Math.floor(visible / 8)))
    for (let look = 0; look < looks && requests.length < countMax; look++) {
      const head = this.parts.available.getUint16(4 + 2 * this.slot(this.availableIndex), true)
      const headFault = this.headFault(head)
      if (headFault !== undefined) {
        // The entry names no chain of the driver's: there is nothing to give back.
        this.availableIndex = indexDistance(0, this.availableIndex + 1)
        this.counts.skippedHeads++
        this.lastFault = headFault
        if (++this.skipsInARow > this.ring.size) return this.break(headFault)
        continue
      }
      const chain = this.readChain(head, this.rowCountMax() - rowCount)
      if (chain.rowsExhausted && rowCount > 0) break
      this.availableIndex = indexDistance(0, this.availableIndex + 1)
      this.skipsInARow = 0
      const { header, readable, writable, writableBytes, writeStatus } = chain
      if (chain.fault === undefined) {
        this.inFlight.set(head, { writableBytes, writeStatus })
        requests.push({ head, header, readable, writable })
        rowCount += chain.rowCount
      } else {
        if (this.options.strictChains) return this.break(chain.fault)
        this.inFlight.set(head, { writableBytes: 0, writeStatus })
        this.rejected.push(head)
        this.counts.malformedChains++
        this.lastFault = chain.fault
      }
    }
    this.counts.requests += requests.length
    if (requests.length > 0) this.counts.batches++
    return requests
  }

  protected headFault(head: number): RingFault | undefined {
    if (head >= this.ring.size) return 'ERR_RING_HEAD_RANGE'
    return this.inFlight.has(head) ? 'ERR_RING_HEAD_IN_FLIGHT' : undefined
  }

  /** Pieces that one batch has room for: a limit of the device's own. */
  protected rowCountMax(): number {
    const { sizeMax, chainCountMax, batchCountMax } = this.options
    return Math.max(sizeMax, chainCountMax) + 8 * batchCountMax
  }

  /** Follows the descriptors from `head` on (virtio 1.3, 2.7.5), each read once, no more of them than there may be. */
  protected walk(head: number): Walk {
    const { descriptors } = this.parts!
    const buffers: Buffer[] = []
    let read = (index: number) => descriptorAt(descriptors, index)
    let tableCount = this.ring.size
    let countMax = this.ring.size
    let isInTable = false
    let index = head
    for (let count = 1; ; count++) {
      if (count > countMax) return { buffers, fault: 'ERR_CHAIN_LOOP' }
      const descriptor = read(index)
      if (descriptor.isIndirect) {
        if (!this.mayBeIndirect(descriptor, isInTable)) return { buffers, fault: 'ERR_CHAIN_INDIRECT' }
        const { address, lengthBytes } = descriptor
        const table = this.copyOf(address, lengthBytes)
        if (table === undefined) return { buffers, fault: 'ERR_CHAIN_ADDRESS' }
        read = (entry) => descriptorAt(table, entry)
        tableCount = lengthBytes / DESCRIPTOR_BYTES
        // The descriptor of the table stands for its entries and is none of the buffers.
        countMax = this.indirectCountMax()
        isInTable = true
        index = 0
        continue
      }
      buffers.push(descriptor)
      if (!descriptor.hasNext) return { buffers }
      if (descriptor.next >= tableCount) return { buffers, fault: 'ERR_CHAIN_NEXT_RANGE' }
      index = descriptor.next
    }
  }

  protected indirectCountMax(): number {
    return Math.max(this.ring.size, this.options.chainCountMax) + 1
  }

  /** A table of whole descriptors, at least one, and no table within a table or in the middle (virtio 1.3, 2.7.5.3). */
  protected mayBeIndirect({ hasNext, lengthBytes }: Descriptor, isInTable: boolean): boolean {
    const isWhole = lengthBytes > 0 && lengthBytes % DESCRIPTOR_BYTES === 0
    return this.ring.indirect && !isInTable && !hasNext && isWhole
  }

  /** Reads a chain and judges it. Its first fault counts; the status is found all the same if the walk came to its end. */
  protected readChain(head: number, rowsLeft: number): Chain {
    const { headerBytes, statusByte } = this.options
    const { buffers, fault: walkFault } = this.walk(head)
    const judged = this.judge(buffers, rowsLeft)
    let fault = judged.fault ?? walkFault
    const chain = { ...judged, header: new Uint8Array(0), rowCount: 0, writeStatus: undefined }
    if (walkFault !== undefined) return { ...chain, fault }
    if (judged.readableBytes < headerBytes) fault ??= 'ERR_CHAIN_FRAMING'
    const last = buffers.findLast(({ lengthBytes }) => lengthBytes > 0)
    const hasStatus = statusByte && last?.writable === true && !wraps(last)
    if (statusByte && !hasStatus) fault ??= 'ERR_CHAIN_FRAMING'
    const writeStatus = hasStatus ? this.byteAt(last.address + BigInt(last.lengthBytes - 1)) : undefined
    if (fault !== undefined) return { ...chain, fault, writeStatus }

    const { readable, writable, writableBytes } = judged
    const rows = readable.length + writable.length
    const statusRows = statusByte && writable.at(-1)!.lengthBytes === 1 ? 1 : 0
    return {
      header: this.gather(readable).subarray(0, headerBytes),
      readable: withoutFirst(readable, headerBytes),
      writable: statusByte ? withoutLastByte(writable) : writable,
      writableBytes: statusByte ? writableBytes - 1 : writableBytes,
      rowCount: rows - statusRows,
      writeStatus,
    }
  }

  /** Device-readable before device-writable, all of it in memory, fewer than 2^32 bytes (virtio 1.3, 2.7.4 and 2.7.5). */
  protected judge(buffers: readonly Buffer[], rowsLeft: number) {
    const readable: ReferencePiece[] = []
    const writable: ReferencePiece[] = []
    let readableBytes = 0
    let writableBytes = 0
    let fault: RingFault | undefined
    let rowsExhausted = false
    let wasWritable = false
    for (const buffer of buffers) {
      // An empty buffer is none, wherever it points.
      if (buffer.lengthBytes === 0) continue
      if (wasWritable && !buffer.writable) fault ??= 'ERR_CHAIN_ORDER'
      wasWritable = buffer.writable && !wraps(buffer)
      if (buffer.writable) writableBytes += buffer.lengthBytes
      else readableBytes += buffer.lengthBytes
      if (readableBytes + writableBytes > UINT32_MAX) fault ??= 'ERR_CHAIN_TOO_LONG'
      if (wraps(buffer)) fault ??= 'ERR_CHAIN_ADDRESS'
      if (fault !== undefined) continue
      for (const piece of this.piecesOf(buffer.address, buffer.lengthBytes)) {
        if (piece === undefined) fault = 'ERR_CHAIN_ADDRESS'
        else if (readable.length + writable.length === rowsLeft) {
          fault = 'ERR_CHAIN_TOO_LONG'
          rowsExhausted = true
        }
        if (piece === undefined || fault !== undefined) break
        ;(buffer.writable ? writable : readable).push(piece)
      }
    }
    return { fault, rowsExhausted, readable, writable, readableBytes, writableBytes }
  }

  // ---- Completing -----------------------------------------------------------------------------------------

  /**
   * Gives back every rejected chain and these answers: statuses, used elements, one store of the index, one decision.
   * Then asks for kicks unless something is visible. Returns the fault of a queue that is broken.
   */
  complete(answers: readonly ReferenceAnswer[]): ReferenceCompleted | RingFault {
    const fault = this.publish(answers)
    if (fault !== undefined) return fault
    const signal = this.settle()
    if (this.parts !== undefined && !this.armed) this.askForKicks()
    return { signal, armed: this.armed }
  }

  /** The part of {@link complete} up to the store of the index: whether to signal is left to {@link settle}. */
  publish(answers: readonly ReferenceAnswer[]): RingFault | undefined {
    if (this.broken !== undefined) return this.broken
    const before = this.usedIndex
    for (const head of this.rejected) this.give(head, 0, STATUS_FAILED)
    this.rejected = []
    for (const answer of answers) this.answer(answer)
    if (this.parts === undefined || this.usedIndex === before) return undefined
    this.parts.used.setUint16(2, this.usedIndex, true)
    this.undecidedCount += indexDistance(before, this.usedIndex)
    return undefined
  }

  /** The decision about everything published since the last one; `undefined` when nothing was. */
  settle(): boolean | undefined {
    if (this.undecidedCount === 0) return undefined
    this.undecidedCount = 0
    const signal = this.parts === undefined || this.broken !== undefined || this.decide()
    if (!signal) this.counts.suppressed++
    return signal
  }

  /** Whether a device that is quick may put its decision off: the driver has less than a third of what is visible. */
  get signalCanWait(): boolean {
    if (this.parts === undefined) return false
    return 3 * this.undecidedCount < indexDistance(this.availableIndex, this.driversIndex())
  }

  protected answer({ head, bytesWritten, status }: ReferenceAnswer): void {
    const owned = this.inFlight.get(head)
    if (owned === undefined) {
      this.counts.ignoredCompletions++
      return
    }
    this.give(head, this.usedLength(Math.min(bytesWritten, owned.writableBytes), owned.writableBytes), status)
    this.counts.completions++
  }

  /** `len` counts from the start of the writable part: the status is in it when all before it was written (2.7.8). */
  protected usedLength(written: number, writableBytes: number): number {
    return this.options.statusByte && written === writableBytes ? written + 1 : written
  }

  protected give(head: number, length: number, status: number): void {
    const { used } = this.parts!
    this.inFlight.get(head)!.writeStatus?.(status)
    this.inFlight.delete(head)
    const element = 4 + 8 * this.slot(this.usedIndex)
    used.setUint32(element, head, true)
    used.setUint32(element + 4, length, true)
    this.usedIndex = indexDistance(0, this.usedIndex + 1)
  }

  /** Whether to signal (virtio 1.3, 2.7.7): a decision, from which the next one counts, whatever this one says. */
  protected decide(): boolean {
    const { available } = this.parts!
    const old = this.decidedIndex
    this.decidedIndex = this.usedIndex
    this.counts.signalFences++
    if (old === undefined) return true
    if (!this.ring.eventIdx) return (available.getUint16(0, true) & NO_INTERRUPT) === 0
    return needEvent(available.getUint16(4 + 2 * this.ring.size, true), this.usedIndex, old)
  }

  // ---- Kicks (virtio 1.3, 2.7.10) -------------------------------------------------------------------------

  /** With event indices there is nothing to write: avail_event stays behind. */
  protected suppressKicks(): void {
    if (this.armed && !this.ring.eventIdx) this.writeUsedFlags(NO_NOTIFY)
    this.armed = false
  }

  protected askForKicks(): void {
    if (this.driversIndex() !== this.availableIndex) return
    this.counts.rearms++
    if (this.ring.eventIdx) this.parts!.used.setUint16(4 + 8 * this.ring.size, this.availableIndex, true)
    else this.writeUsedFlags(0)
    this.armed = true
  }

  protected writeUsedFlags(flags: number): void {
    this.parts!.used.setUint16(0, flags, true)
  }

  // ---- Memory ---------------------------------------------------------------------------------------------

  protected driversIndex(): number {
    return this.parts!.available.getUint16(2, true)
  }

  /** Where an index points in a ring whose size is a power of two. */
  protected slot(index: number): number {
    return index % this.ring.size
  }

  /** The pieces of a stretch of guest addresses, each in one region; `undefined` in the place of a hole, which ends it. */
  protected *piecesOf(address: bigint, lengthBytes: number): Generator<ReferencePiece | undefined> {
    for (let left = lengthBytes, at = address; left > 0; ) {
      const region = this.regions.findIndex(
        ({ guestAddress, bytes }) => at >= guestAddress && at - guestAddress < BigInt(bytes.length),
      )
      if (region === -1) {
        yield undefined
        return
      }
      const { guestAddress, bytes } = this.regions[region]!
      const offsetBytes = Number(at - guestAddress)
      const piece = { region, offsetBytes, lengthBytes: Math.min(left, bytes.length - offsetBytes) }
      yield piece
      left -= piece.lengthBytes
      at += BigInt(piece.lengthBytes)
    }
  }

  protected gather(pieces: readonly ReferencePiece[]): Uint8Array {
    const copy = new Uint8Array(pieces.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0))
    let at = 0
    for (const { region, offsetBytes, lengthBytes } of pieces) {
      copy.set(this.regions[region]!.bytes.subarray(offsetBytes, offsetBytes + lengthBytes), at)
      at += lengthBytes
    }
    return copy
  }

  /** A copy of guest memory, or nothing when not all of it is there. */
  protected copyOf(address: bigint, lengthBytes: number): DataView | undefined {
    if (wraps({ address, lengthBytes })) return undefined
    const pieces: ReferencePiece[] = []
    for (const piece of this.piecesOf(address, lengthBytes)) {
      if (piece === undefined) return undefined
      pieces.push(piece)
    }
    return new DataView(this.gather(pieces).buffer)
  }

  /** Writes one byte of guest memory, in the memory there is now. */
  protected byteAt(address: bigint): Byte | undefined {
    const [piece] = this.piecesOf(address, 1)
    if (piece === undefined) return undefined
    const { bytes } = this.regions[piece.region]!
    return (value) => {
      bytes[piece.offsetBytes] = value
    }
  }

  protected break(fault: RingFault): RingFault {
    this.broken = fault
    return fault
  }
}

function descriptorAt(table: DataView, index: number): Descriptor {
  const at = DESCRIPTOR_BYTES * index
  const flags = table.getUint16(at + 12, true)
  return {
    address: table.getBigUint64(at, true),
    lengthBytes: table.getUint32(at + 8, true),
    writable: (flags & WRITE) !== 0,
    hasNext: (flags & NEXT) !== 0,
    isIndirect: (flags & INDIRECT) !== 0,
    next: table.getUint16(at + 14, true),
  }
}

/** Whether a buffer goes on beyond the last address there is. */
function wraps({ address, lengthBytes }: Pick<Buffer, 'address' | 'lengthBytes'>): boolean {
  return address + BigInt(lengthBytes) > 1n << 64n
}

function withoutFirst(pieces: readonly ReferencePiece[], countBytes: number): ReferencePiece[] {
  let left = countBytes
  return pieces.flatMap(({ region, offsetBytes, lengthBytes }) => {
    const skipped = Math.min(left, lengthBytes)
    left -= skipped
    return skipped === lengthBytes
      ? []
      : [{ region, offsetBytes: offsetBytes + skipped, lengthBytes: lengthBytes - skipped }]
  })
}

function withoutLastByte(pieces: readonly ReferencePiece[]): ReferencePiece[] {
  const { lengthBytes, ...last } = pieces.at(-1)!
  const rest = pieces.slice(0, -1)
  return lengthBytes === 1 ? rest : [...rest, { ...last, lengthBytes: lengthBytes - 1 }]
}
