import { LRUCache } from 'lru-cache'
import { optionRangeError } from '../../errors.ts'
import { integerIn, refuseUnknownOptions } from '../../options.ts'
import { type Completion, isCompletion } from '../../ring/request.ts'
import { SegmentList } from '../../ring/segments.ts'
import { type BlockRequest, isWriting } from '../block/block-request.ts'
import { type ByteRange, overlapping } from '../block/byte-range.ts'
import { type Answer, attempt, type Handler, type Layer, settled } from '../handler.ts'

/** Options of {@link cache}. */
export interface CacheOptions {
  /** Most bytes of data to keep; at least one block. */
  readonly sizeBytes: number
  /**
   * Unit of caching, a power of two from 512 to 1 MiB. Default 4096. Only blocks that a request covers entirely enter
   * the cache, so it should not be larger than the requests of the driver.
   */
  readonly blockBytes?: number
}

/**
 * Keeps what was read and written last in memory. Writes go through to the disk before they are answered, so a flush
 * has nothing to do here and passes. Reads that find all their blocks are answered at once.
 *
 * A `timeout` belongs outside of the cache: inside, it would tell the cache that a write failed which still happens.
 */
export function cache(options: CacheOptions): Layer {
  refuseUnknownOptions(options, ['sizeBytes', 'blockBytes'])
  const { blockBytes = 4096 } = options
  integerIn('blockBytes', blockBytes, 512, 1024 * 1024)
  if ((blockBytes & (blockBytes - 1)) !== 0) {
    throw optionRangeError('blockBytes', 'a power of two', blockBytes)
  }
  const sizeBytes = integerIn('sizeBytes', options.sizeBytes, blockBytes, Number.MAX_SAFE_INTEGER)
  return (next) => {
    const cached = new CachedDisk(next, blockBytes, sizeBytes)
    return (io) => cached.answer(io)
  }
}

/** A request on its way to the disk and back. */
interface Journey extends ByteRange {
  /** True when its bytes may be cached if it succeeds. */
  isCacheable: boolean
}

/**
 * The cache of one disk. It holds a block only if the disk holds the same bytes or will for certain.
 *
 * Requests that overlap may take effect on the disk in any order, whatever the order of their answers:
 *
 * | read R            | write W                   | disk                  | if R were cached             |
 * | ----------------- | ------------------------- | --------------------- | ---------------------------- |
 * | sent              |                           | R looks: old bytes    |                              |
 * |                   | sent, answered, cached    | new bytes             | cache: new                   |
 * | answered          |                           |                       | cache: old, and stays so     |
 *
 * | write A           | write B                   | disk                  | if both were cached          |
 * | ----------------- | ------------------------- | --------------------- | ---------------------------- |
 * | sent              | sent                      | B, then A: A's bytes  |                              |
 * | answered          |                           |                       | cache: A                     |
 * |                   | answered                  |                       | cache: B, and stays so       |
 *
 * Hence the rules: what changes the disk evicts its blocks when it is sent, so that nothing is served which may be
 * outdated, and it bars from the cache every request in flight that overlaps with it, and itself if there is one.
 * A request that is never answered bars its blocks for ever, which is the only safe thing: it may still happen.
 */
class CachedDisk {
  readonly #next: Handler
  readonly #blockBytes: number
  readonly #blocks: LRUCache<number, Buffer>
  readonly #readsInFlight = new Set<Journey>()
  readonly #changesInFlight = new Set<Journey>()

  constructor(next: Handler, blockBytes: number, sizeBytes: number) {
    this.#next = next
    this.#blockBytes = blockBytes
    this.#blocks = new LRUCache({ maxSize: sizeBytes, sizeCalculation: (block) => block.length })
  }

  answer(io: BlockRequest): Answer {
    if (io.verb === 'flush') return this.#next(io)
    const { offsetBytes, lengthBytes } = io
    const journey: Journey = { offsetBytes, endBytes: offsetBytes + lengthBytes, isCacheable: true }
    if (isWriting(io.verb)) return this.#change(io, journey)
    return this.#holds(journey) ? this.#readBlocks(io) : this.#readDisk(io, journey)
  }

  #holds({ offsetBytes, endBytes }: Journey): boolean {
    const size = this.#blockBytes
    for (let index = Math.floor(offsetBytes / size); index * size < endBytes; index++) {
      if (!this.#blocks.has(index)) return false
    }
    return true
  }

  #readBlocks(io: BlockRequest): Completion {
    const { offsetBytes, lengthBytes, data } = io
    for (let doneBytes = 0; doneBytes < lengthBytes; ) {
      const position = offsetBytes + doneBytes
      const index = Math.floor(position / this.#blockBytes)
      doneBytes += data.copyFrom(this.#blocks.get(index)!, position - index * this.#blockBytes, doneBytes)
    }
    return io.ok()
  }

  #readDisk(io: BlockRequest, journey: Journey): Answer {
    if (overlapping(this.#changesInFlight, journey).length > 0) return this.#next(io)
    // Through memory of our own: from the driver's, a driver could change what others are served.
    const bytes = Buffer.alloc(io.lengthBytes)
    const own = io.derive({ data: SegmentList.of(bytes) })
    return this.#travel(this.#readsInFlight, journey, own, (completion) => {
      if (completion.result !== 'ok') return
      // The driver was answered for us and uses the memory for something else.
      if (!io.isAborted) io.data.copyFrom(bytes)
      if (journey.isCacheable) this.#keep(io.offsetBytes, bytes)
    })
  }

  #change(io: BlockRequest, journey: Journey): Answer {
    this.#evict(journey)
    for (const read of overlapping(this.#readsInFlight, journey)) read.isCacheable = false
    for (const change of overlapping(this.#changesInFlight, journey)) {
      change.isCacheable = journey.isCacheable = false
    }
    const bytes = io.verb === 'write' && journey.isCacheable ? io.data.toBuffer() : undefined
    const own = bytes === undefined ? io : io.derive({ data: SegmentList.of(bytes) })
    return this.#travel(this.#changesInFlight, journey, own, (completion) => {
      if (completion.result !== 'ok' || bytes === undefined) return
      if (journey.isCacheable) this.#keep(io.offsetBytes, bytes)
    })
  }

  #evict({ offsetBytes, endBytes }: Journey): void {
    const first = Math.floor(offsetBytes / this.#blockBytes)
    const end = Math.ceil(endBytes / this.#blockBytes)
    // A discard can span the whole disk; then the cache is the shorter of the two.
    if (end - first <= this.#blocks.size) {
      for (let index = first; index < end; index++) this.#blocks.delete(index)
    } else {
      for (const index of [...this.#blocks.keys()]) {
        if (first <= index && index < end) this.#blocks.delete(index)
      }
    }
  }

  /**
   * Asks the disk, with the journey listed among those in flight until the answer. It is always seen to its end, even
   * if nobody waits for the answer any more: only then is it certain what the disk holds.
   */
  #travel(
    inFlight: Set<Journey>,
    journey: Journey,
    io: BlockRequest,
    arrive: (completion: Completion) => void,
  ): Answer {
    inFlight.add(journey)
    const finish = (completion: Completion): Completion => {
      inFlight.delete(journey)
      arrive(completion)
      return completion
    }
    const answer = settled(attempt(this.#next, io))
    return isCompletion(answer) ? finish(answer) : answer.then(finish)
  }

  /** Caches the blocks that lie entirely in `bytes`, each in memory of its own, so that each can go alone. */
  #keep(offsetBytes: number, bytes: Buffer): void {
    const size = this.#blockBytes
    const endBytes = offsetBytes + bytes.length
    for (let index = Math.ceil(offsetBytes / size); (index + 1) * size <= endBytes; index++) {
      const from = index * size - offsetBytes
      const block = Buffer.allocUnsafeSlow(size)
      bytes.copy(block, 0, from, from + size)
      this.#blocks.set(index, block)
    }
  }
}
