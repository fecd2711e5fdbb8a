import { HushringError } from '../errors.ts'
import { native } from '../native.ts'
import { DriverMemory, type RegionDescription, SharedRegion } from '../ring/memory.ts'

/**
 * Most memory of one driver: 256 GiB. A front-end can announce a file of any size at no cost to itself, and each GiB
 * takes about 2 ms to map, in which nothing else is served.
 */
const MEMORY_BYTES_MAX = 256n * 2n ** 30n

/** What names a region when it is removed. */
export type RegionIdentity = Pick<RegionDescription, 'guestAddress' | 'userAddress' | 'sizeBytes'>

/**
 * The memory table of one driver. Each change makes a new {@link DriverMemory} and retires the old one, which
 * stays mapped for the requests that were taken under it. File descriptors are closed whether the change is
 * accepted or refused; a refused change leaves the table as it was.
 */
export class MemoryTable {
  #memory = new DriverMemory([])
  /** Generations that somebody still needs, the current one included. */
  readonly #living = new Set<DriverMemory>([this.#memory])

  /** The current generation. */
  get memory(): DriverMemory {
    return this.#memory
  }

  /** Replaces the whole table. Throws `ERR_MEMORY_REGION`. */
  replace(descriptions: readonly RegionDescription[]): void {
    this.#become(mapAll(descriptions, []))
  }

  /** Adds one region. Throws `ERR_MEMORY_REGION`. */
  add(description: RegionDescription): void {
    this.#become(mapAll([description], this.#memory.regions))
  }

  /** Removes the region with the same addresses and size. Throws `ERR_MEMORY_REGION` when there is none. */
  remove(identity: RegionIdentity): void {
    const left = this.#memory.regions.filter(({ description }) => !sameRegion(description, identity))
    if (left.length === this.#memory.regions.length) {
      throw regionError('no such region', identity)
    }
    this.#become(left)
  }

  /**
   * Retires the current generation; the table is empty afterwards. Resolves when every generation has ended, which
   * is when the last handler that works in one has settled.
   */
  async close(): Promise<void> {
    const living = [...this.#living]
    this.#become([])
    await Promise.all(living.map((memory) => memory.ended))
  }

  /**
   * Ends the current generation and begins another one over the same regions. Resolves when every earlier
   * generation has ended, which is when the last handler that works in one has settled.
   */
  async renew(): Promise<void> {
    const living = [...this.#living]
    this.#become(this.#memory.regions)
    await Promise.all(living.map((memory) => memory.ended))
  }

  #become(regions: readonly SharedRegion[]): void {
    const older = this.#memory
    const fresh = new DriverMemory(regions)
    this.#memory = fresh
    this.#living.add(fresh)
    void fresh.ended.then(() => this.#living.delete(fresh))
    older.retire()
  }
}

function mapAll(descriptions: readonly RegionDescription[], kept: readonly SharedRegion[]): SharedRegion[] {
  const regions = [...kept]
  try {
    for (const description of descriptions) {
      const totalBytes = regions.reduce(
        (sum, region) => sum + region.description.sizeBytes,
        description.sizeBytes,
      )
      if (totalBytes > MEMORY_BYTES_MAX)
        throw regionError(`more than ${MEMORY_BYTES_MAX} bytes in all`, description)
      const clash = regions.find((region) => overlaps(region.description, description))
      if (clash !== undefined) throw regionError('the region overlaps another one', description)
      regions.push(mapRegion(description))
    }
    return regions
  } catch (error) {
    for (const region of regions.slice(kept.length)) region.native.close()
    throw error
  } finally {
    for (const { fd } of descriptions) native.closeFd(fd)
  }
}

function mapRegion(description: RegionDescription): SharedRegion {
  try {
    return new SharedRegion(description)
  } catch (cause) {
    throw regionError((cause as Error).message, description, cause)
  }
}

function overlaps(one: RegionDescription, other: RegionDescription): boolean {
  return (
    rangesOverlap(one.guestAddress, one.sizeBytes, other.guestAddress, other.sizeBytes) ||
    rangesOverlap(one.userAddress, one.sizeBytes, other.userAddress, other.sizeBytes)
  )
}

function rangesOverlap(start: bigint, size: bigint, otherStart: bigint, otherSize: bigint): boolean {
  return start < otherStart + otherSize && otherStart < start + size
}

function sameRegion(one: RegionIdentity, other: RegionIdentity): boolean {
  return (
    one.guestAddress === other.guestAddress &&
    one.userAddress === other.userAddress &&
    one.sizeBytes === other.sizeBytes
  )
}

function regionError(why: string, identity: RegionIdentity, cause?: unknown): HushringError {
  const { guestAddress, sizeBytes } = identity
  const place = `guest address 0x${guestAddress.toString(16)}, ${sizeBytes} bytes`
  return new HushringError('ERR_MEMORY_REGION', `memory region refused (${place}): ${why}`, { cause })
}
