import type { HushringError } from '../errors.ts'
import {
  CompleteBits,
  CompletionRow,
  type NativeInflightPlace,
  type NativeQueue,
  native,
  QueueCounter,
  RequestRow,
} from '../native.ts'
import { DeferredCopies } from './deferred-copies.ts'
import type { DriverMemory } from './memory.ts'
import { type Completion, isWholeOk, type Pinnable, RingRequest } from './request.ts'
import { ringError } from './ring-break.ts'
import { SegmentList } from './segments.ts'

/** How a queue splits and limits what it takes; fixed for the life of the queue. */
export interface VirtQueueOptions {
  /** Position of the queue in its device. */
  readonly index: number
  /** Largest ring it can be started with: a power of two, 1 to 32768. */
  readonly sizeMax: number
  /** Bytes copied out of the front of each request, 0 to 64. */
  readonly headerBytes: number
  /** True when the last device-writable byte of a request is a status. */
  readonly statusByte: boolean
  /** Most requests in one batch, 1 to `sizeMax`. Default 8, or up to 32 if that is an eighth of what is visible. */
  readonly batchCountMax?: number
  /** True: a malformed chain breaks the queue. Default false: it is returned with length 0. */
  readonly strictChains?: boolean
}

/**
 * A driver that is woken by the first batch works on its answers while the device serves the next one. With all that
 * is visible in one batch the two take turns and sleep on each other: at 128 in flight, batches of 128 run at 40 % of
 * the speed of batches of 8 and need as many signals. Below 8 the fences and calls a batch show, and where more is in flight
 * they do as well: an eighth of what is visible leaves the driver as much to work on.
 */
const BATCH_COUNT_MIN = 8
const BATCH_COUNT_MAX = 32
/**
 * The same for large requests, which are worth a signal sooner: with eight reads of 128 KiB in flight, a batch of all of them
 * has the driver wait for the last copy, and then the device for the driver.
 */
const LARGE_BATCH_COUNT_MAX = 4
/** From so many bytes of data on, as the mean of a batch, the requests of the next batch are taken to be large. */
const LARGE_BYTES = 64 * 1024

// V8 looks a name of another module up again at each use, and a constant of this one never.
const {
  head: HEAD,
  firstSegment: FIRST_SEGMENT,
  readableCount: READABLE_COUNT,
  writableCount: WRITABLE_COUNT,
  readableBytes: READABLE_BYTES,
  writableBytes: WRITABLE_BYTES,
  words: REQUEST_WORDS,
} = RequestRow
const {
  head: ANSWERED_HEAD,
  bytesWritten: BYTES_WRITTEN,
  status: STATUS,
  words: COMPLETION_WORDS,
} = CompletionRow
const {
  signalled: SIGNALLED,
  polled: POLLED,
  waited: WAITED,
  undecided: UNDECIDED,
  armed: ARMED,
  more: MORE,
} = CompleteBits

/** Of all queues: several may serve the same disk. */
const copies = new DeferredCopies(native.createCopies())
const newList = (): SegmentList => new SegmentList(copies)

/** Where a ring lies and how it was negotiated; see {@link VirtQueue.start}. */
export interface VirtQueueStart {
  readonly size: number
  readonly memory: DriverMemory
  readonly descriptorAddress: bigint
  readonly availableAddress: bigint
  readonly usedAddress: bigint
  /** Next available index to take. */
  readonly availableBase: number
  readonly eventIdx: boolean
  readonly indirect: boolean
  /** eventfd to signal, or -1. Borrowed. */
  readonly callFd: number
  /** Where the queue keeps account for a later process; left out: nowhere. */
  readonly inflight?: NativeInflightPlace | undefined
}

/** The requests of one `take`. The object and its array are reused by the next `take`. */
export class Batch<Io extends RingRequest = RingRequest> {
  readonly requests: Io[] = []
  /** Number of valid entries at the front of {@link requests}. */
  count = 0
}

/** What publishing did; reused by the next publish. */
export interface Published {
  /** Completions made visible by this call. */
  readonly count: number
  /** True when the driver was signalled, false when it had asked for silence or nothing was published. */
  readonly signalled: boolean
  /** True when requests were waited for, in vain if the queue is armed now. Left out: it cannot be. */
  readonly polled?: boolean
  /** True when that took so long that a clock had to be asked. Left out: it did not. */
  readonly waited?: boolean
}

/** Counts of one queue since it was made. */
export interface QueueCounts {
  readonly requests: number
  readonly completions: number
  readonly batches: number
  readonly signals: number
  readonly suppressed: number
  readonly malformedChains: number
  readonly skippedHeads: number
  readonly ignoredCompletions: number
  readonly nativeCalls: number
  readonly signalFences: number
  /** {@link SizeHistogram} of requests a `take` and of answers a `publish`. */
  readonly batchSizes: SizeHistogram
  readonly publishSizes: SizeHistogram
}

/** How often there were 1, 2 to 3, 4 to 7 … : the index is the base-2 logarithm, rounded down. Empty ones do not count. */
export type SizeHistogram = readonly number[]

/** Sizes of up to 2^16 - 1: a ring has 2^15 entries at most. */
export const SIZE_HISTOGRAM_LENGTH = 16

function countSize(histogram: Float64Array, size: number): void {
  if (size > 0) histogram[31 - Math.clz32(size)]!++
}

function bytesWrittenOf(completion: Completion): number {
  return completion.result === 'ok' ? completion.bytesWritten! : 0
}

function statusOf({ result }: Completion): number {
  if (result === 'ok') return 0
  return result === 'failed' ? 1 : 2
}

/**
 * The device's half of one split virtqueue. It crosses into native code twice a batch: {@link take} and
 * {@link publish}; every index, flag and barrier is native.
 *
 * A queue that the driver broke throws its {@link HushringError} from `take` and `publish` until it is started
 * anew, and touches no shared memory meanwhile.
 */
export class VirtQueue {
  readonly index: number
  readonly sizeMax: number
  readonly batchCountMax: number
  /** True after the queue asked for a kick and found nothing visible: the driver will kick for the next request. */
  armed = false
  /** True when the last native call saw requests that nobody will kick for. */
  more = false
  /** Requests taken and not yet published. */
  inFlightCount = 0
  #undecided = false

  readonly #native: NativeQueue
  // The tables of the native queue, each looked up once and not once a request.
  readonly #requests: Uint32Array
  readonly #segments: Uint32Array
  readonly #headers: Uint32Array
  readonly #completions: Uint32Array
  readonly #batch = new Batch()
  /** Objects that may be used and have no place in {@link #batch}. */
  readonly #spare: RingRequest[] = []
  readonly #headerBytes: number
  readonly #headerWords: number
  /** Most requests of the next batch. */
  #nextCountMax: number
  #recordedCount = 0
  #memory: DriverMemory | undefined
  /** Pins held on {@link #memory}: one for each request from its take until its answer is published. */
  #pinCount = 0
  /** The same for older generations, whose requests were in flight when the memory was replaced. */
  readonly #olderPins = new Map<Pinnable, number>()
  /** Recorded answers, not yet published, of requests taken under an older generation. */
  readonly #recordedOlder: Pinnable[] = []
  readonly #batchSizes = new Float64Array(SIZE_HISTOGRAM_LENGTH)
  readonly #publishSizes = new Float64Array(SIZE_HISTOGRAM_LENGTH)
  readonly #published = { count: 0, signalled: false, polled: false, waited: false }

  constructor(options: VirtQueueOptions) {
    this.index = options.index
    this.sizeMax = options.sizeMax
    this.batchCountMax = Math.min(options.batchCountMax ?? BATCH_COUNT_MAX, options.sizeMax)
    this.#nextCountMax = this.batchCountMax
    this.#headerBytes = options.headerBytes
    this.#headerWords = Math.ceil(options.headerBytes / 4)
    this.#native = native.createSplitQueue({
      sizeMax: options.sizeMax,
      headerBytes: options.headerBytes,
      statusByte: options.statusByte,
      batchCountMax: this.batchCountMax,
      batchCountMin: options.batchCountMax ?? BATCH_COUNT_MIN,
      // Drivers exceed the ring's size with indirect tables in practice; 1024 is what other devices accept.
      chainCountMax: Math.max(1024, options.sizeMax),
      strictChains: options.strictChains ?? false,
    })
    this.#requests = this.#native.requests
    this.#segments = this.#native.segments
    this.#headers = this.#native.headers
    this.#completions = this.#native.completions
  }

  /**
   * Starts the ring, or starts it anew after {@link stop} or a break. Throws `ERR_RING_SIZE` or
   * `ERR_RING_ADDRESS`, or `ERR_RING_INFLIGHT` for an in-flight region that is not of this ring; then the queue stays
   * stopped. The first decision after a start always signals.
   *
   * With an in-flight region that was in use the queue goes on where the earlier process ended: what that one took and
   * did not answer comes first, and `availableBase` does not count.
   */
  start(ring: VirtQueueStart): void {
    const { memory, inflight, ...rest } = ring
    this.#throwIfFaulty(
      this.#native.start({ ...rest, inflight, guestAddresses: false, regions: memory.nativeRegions }),
    )
    this.#memory = memory
    this.armed = false
    this.more = true
  }

  /** Stops the ring and forgets what is in flight. Returns the next available index. */
  stop(): number {
    // Before the memory goes. What was written and not answered may be stored or not.
    copies.run()
    const availableIndex = this.#native.stop()
    this.armed = false
    this.more = false
    this.#undecided = false
    this.inFlightCount = 0
    this.#recordedCount = 0
    this.#recordedOlder.length = 0
    const memory = this.#memory
    this.#memory = undefined
    memory?.unpin(this.#pinCount)
    this.#pinCount = 0
    for (const [older, count] of this.#olderPins) older.unpin(count)
    this.#olderPins.clear()
    return availableIndex
  }

  /**
   * Moves a running ring to a new generation of memory. The old one stays pinned for the requests in flight: their
   * status bytes lie in it and are written when they are published.
   */
  setMemory(memory: DriverMemory): void {
    const older = this.#memory
    this.#throwIfFaulty(this.#native.setRegions(memory.nativeRegions))
    this.#memory = memory
    if (older === undefined || this.#pinCount === 0) return
    this.#olderPins.set(older, this.#pinCount)
    while (this.#recordedOlder.length < this.#recordedCount) this.#recordedOlder.push(older)
    this.#pinCount = 0
  }

  /** Replaces the eventfd that wakes the driver (-1: none). The next decision signals whatever the driver asked. */
  setCallFd(callFd: number): void {
    this.#native.setCallFd(callFd)
  }

  /** Signals the driver once without a decision, for a queue that starts on a ring with history. */
  signal(): void {
    this.#native.signal()
  }

  /**
   * Takes up to `countMax` requests off the ring and suppresses kicks. One native call.
   *
   * @returns the batch, possibly empty; it and its requests are valid until the next `take`
   */
  take(countMax: number): Batch {
    const batch = this.#batch
    this.#keepUsed(batch)
    const count = this.#throwIfBroken(this.#native.take(Math.min(countMax, this.#nextCountMax)))
    this.armed = false
    this.more = false
    batch.count = count
    if (count === 0) return batch
    countSize(this.#batchSizes, count)
    const dataBytes = this.#fill(batch, count, this.#memory!)
    const areLarge = dataBytes >= LARGE_BYTES * count
    this.#nextCountMax = areLarge ? Math.min(this.batchCountMax, LARGE_BATCH_COUNT_MAX) : this.batchCountMax
    this.inFlightCount += count
    this.#memory!.pin(count)
    this.#pinCount += count
    return batch
  }

  /**
   * Those of the last batch that somebody may still use lie in tables that the next one is written to. Not only those in flight:
   * a handler goes on with a request after a deadline has answered for it, and after the ring was stopped.
   */
  #keepUsed(batch: Batch): void {
    const { requests, count } = batch
    for (let row = 0; row < count; row++) {
      const request = requests[row]!
      if (request.isIdle === false) request.keep()
    }
  }

  /** Makes objects stand for the requests in the first rows of the tables. Returns the bytes of their data. */
  #fill(batch: Batch, count: number, memory: DriverMemory): number {
    const { windows } = memory
    const rows = this.#requests
    const segments = this.#segments
    const headers = this.#headers
    const headerWords = this.#headerWords
    let dataBytes = 0
    for (let row = 0; row < count; row++) {
      let request = batch.requests[row]
      // One that is not answered, or that somebody may still hold: its place gets another object.
      if (request?.isIdle !== true) request = this.#replace(batch, row)
      const base = row * REQUEST_WORDS
      const firstSegment = rows[base + FIRST_SEGMENT]!
      const readableCount = rows[base + READABLE_COUNT]!
      const readableBytes = rows[base + READABLE_BYTES]!
      const writableBytes = rows[base + WRITABLE_BYTES]!
      request.begin(rows[base + HEAD]!, memory, headers, row * headerWords)
      // One that is used again has empty lists, and hardly any request has data in both directions.
      if (readableCount > 0) {
        request.readable.point(windows, segments, firstSegment, readableCount, readableBytes)
      }
      const writableCount = rows[base + WRITABLE_COUNT]!
      if (writableCount > 0) {
        const firstWritable = firstSegment + readableCount
        request.writable.point(windows, segments, firstWritable, writableCount, writableBytes)
      }
      dataBytes += readableBytes + writableBytes
    }
    return dataBytes
  }

  #replace(batch: Batch, row: number): RingRequest {
    const displaced = batch.requests[row]
    if (displaced !== undefined) displaced.isDisplaced = true
    const request = this.#spare.pop() ?? this.#newRequest()
    batch.requests[row] = request
    return request
  }

  #newRequest(): RingRequest {
    const request = new RingRequest(this.#headerBytes, newList)
    request.queueIndex = this.index
    return request
  }

  /**
   * Notes the answer to a request; the driver sees it with the next {@link publish}. Each request of this queue
   * must be recorded exactly once between two starts.
   */
  record(request: RingRequest, completion: Completion): void {
    // A ring that was stopped has forgotten its requests; their heads may stand for others by now.
    if (this.#memory === undefined) return
    const completions = this.#completions
    const base = this.#recordedCount++ * COMPLETION_WORDS
    if (request.memory !== this.#memory) this.#recordedOlder.push(request.memory!)
    completions[base + ANSWERED_HEAD] = request.head
    if (isWholeOk(completion)) {
      completions[base + BYTES_WRITTEN] = request.writable.byteLength
      completions[base + STATUS] = 0
    } else {
      completions[base + BYTES_WRITTEN] = bytesWrittenOf(completion)
      completions[base + STATUS] = statusOf(completion)
    }
  }

  /**
   * Gives a request object back for reuse: nobody else may still hold it. It stands for another request when its place in the
   * batch is filled the next time or, if another object has that place by now, when one is needed.
   */
  recycle(request: RingRequest): void {
    request.recycle()
    if (!request.isDisplaced) return
    request.isDisplaced = false
    this.#spare.push(request)
  }

  /**
   * Makes every recorded answer visible with one index store, executes one full barrier, decides once whether to
   * signal, and re-arms if nothing more is visible. One native call. Sets {@link armed} and {@link more}.
   *
   * @param pollNanosMax looks for requests for up to so many ns before it asks for kicks; the event loop stands still
   * meanwhile, so nothing is waited for while a request of this queue is still in flight. Default 0
   * @param mayDefer lets the decision wait for later batches while enough is visible, so that one signal covers them. The
   * caller owes a {@link settle} when it takes nothing more. Default false
   */
  publish(pollNanosMax: number = 0, mayDefer: boolean = false): Published {
    copies.run()
    const count = this.#recordedCount
    const bits = this.#complete(count, this.inFlightCount === count ? pollNanosMax : 0, mayDefer)
    countSize(this.#publishSizes, count)
    this.#recordedCount = 0
    this.inFlightCount -= count
    this.#unpinPublished(count)
    this.#published.count = count
    this.#published.signalled = (bits & SIGNALLED) !== 0
    this.#published.polled = (bits & POLLED) !== 0
    this.#published.waited = (bits & WAITED) !== 0
    return this.#published
  }

  /**
   * Asks for kicks and looks once more, without publishing recorded answers, which a policy may be holding. One
   * native call. Sets {@link armed} and {@link more}.
   */
  rearm(): void {
    this.#complete(0, 0, false)
  }

  /** Takes the decision that a {@link publish} put off, if one did. */
  settle(): void {
    if (!this.#undecided) return
    this.#undecided = false
    this.#native.settle()
  }

  #complete(count: number, pollNanosMax: number, mayDefer: boolean): number {
    const bits = this.#throwIfBroken(this.#native.complete(count, pollNanosMax, mayDefer))
    this.#undecided = (bits & UNDECIDED) !== 0
    this.armed = (bits & ARMED) !== 0
    this.more = (bits & MORE) !== 0
    return bits
  }

  #unpinPublished(count: number): void {
    const current = count - this.#recordedOlder.length
    this.#pinCount -= current
    this.#memory?.unpin(current)
    if (this.#recordedOlder.length === 0) return
    for (const older of this.#recordedOlder) {
      const left = this.#olderPins.get(older)! - 1
      if (left === 0) this.#olderPins.delete(older)
      else this.#olderPins.set(older, left)
      older.unpin()
    }
    this.#recordedOlder.length = 0
  }

  /** Requests that an earlier process owed and that are not taken yet. */
  get owedCount(): number {
    return this.#native.inspect().owed
  }

  /** A look at both sides without changing anything, for a watchdog. */
  inspect(): ReturnType<NativeQueue['inspect']> {
    return this.#native.inspect()
  }

  /** The latest malformed chain or skipped head that did not break the queue, if any. */
  get lastFault(): HushringError | undefined {
    const fault = Number(this.#native.counters[QueueCounter.lastFault]!)
    return fault === 0 ? undefined : ringError(fault, this.index)
  }

  counts(): QueueCounts {
    const at = (index: number): number => Number(this.#native.counters[index]!)
    return {
      requests: at(QueueCounter.requests),
      completions: at(QueueCounter.completions),
      batches: at(QueueCounter.batches),
      signals: at(QueueCounter.signals),
      suppressed: at(QueueCounter.suppressed),
      malformedChains: at(QueueCounter.malformedChains),
      skippedHeads: at(QueueCounter.skippedHeads),
      ignoredCompletions: at(QueueCounter.ignoredCompletions),
      nativeCalls: at(QueueCounter.nativeCalls),
      signalFences: at(QueueCounter.signalFences),
      batchSizes: [...this.#batchSizes],
      publishSizes: [...this.#publishSizes],
    }
  }

  /** Frees the native queue. */
  close(): void {
    this.#native.close()
  }

  #throwIfFaulty(fault: number): void {
    if (fault !== 0) throw ringError(fault, this.index)
  }

  /** As {@link #throwIfFaulty}, apart from it: a 0 that was negated is no small integer, and V8 remembers having seen one. */
  #throwIfBroken(result: number): number {
    if (result < 0) throw ringError(-result, this.index)
    return result
  }
}
