import { type NativeRegion, native } from '../native.ts'
import type { Pinnable } from './request.ts'

/** One region of driver memory as a front-end announces it. */
export interface RegionDescription {
  /** The memory file. Whoever maps the region closes it; the mapping does not need it any more. */
  readonly fd: number
  /** Where descriptors see the region. */
  readonly guestAddress: bigint
  /** Where the front-end sees it; ring addresses are given in these. */
  readonly userAddress: bigint
  readonly sizeBytes: bigint
  /** Where the region starts within its file. */
  readonly mmapOffsetBytes: bigint
}

/** One mapping, shared by every memory table that names the same region. Unmapped with its last table. */
export class SharedRegion {
  readonly description: RegionDescription
  readonly native: NativeRegion
  readonly windows: readonly Buffer[]
  #tableCount = 0

  /** Maps the region. Throws an error with code `ERR_MEMORY_REGION` when it is empty, wraps, or is longer than its file. */
  constructor(description: RegionDescription) {
    const { fd, guestAddress, userAddress, sizeBytes, mmapOffsetBytes } = description
    this.description = description
    this.native = native.mapRegion(fd, guestAddress, userAddress, sizeBytes, mmapOffsetBytes)
    this.windows = this.native.windows.map((window) => Buffer.from(window))
  }

  /** Counts one more table that names this region. */
  enterTable(): void {
    this.#tableCount++
  }

  /** The opposite of {@link enterTable}; the last one detaches every view, then unmaps. */
  leaveTable(): void {
    if (--this.#tableCount === 0) this.native.close()
  }
}

/**
 * One generation of a driver's memory: the regions that were mapped together. A new memory table makes a new
 * generation; the old one stays mapped until the last request that was taken under it lets go. Memory ends in
 * this order: drain, detach, unmap, because a file read in flight still writes into it after a detach.
 */
export class DriverMemory implements Pinnable {
  readonly regions: readonly SharedRegion[]
  /** The windows of all regions, in order: a segment names one by its index here. */
  readonly windows: readonly Buffer[]
  /** Resolves when the generation has ended: retired, and nothing needs it any more. */
  readonly ended: Promise<void>
  #pinCount = 0
  #retired = false
  #end: (() => void) | undefined

  constructor(regions: readonly SharedRegion[]) {
    this.regions = regions
    this.windows = regions.flatMap((region) => region.windows)
    for (const region of regions) region.enterTable()
    this.ended = new Promise((resolve) => {
      this.#end = resolve
    })
  }

  get nativeRegions(): NativeRegion[] {
    return this.regions.map((region) => region.native)
  }

  /** Requests and holds that still need this generation. */
  get pinCount(): number {
    return this.#pinCount
  }

  pin(count = 1): void {
    this.#pinCount += count
  }

  unpin(count = 1): void {
    this.#pinCount -= count
    this.#closeWhenUnused()
  }

  /** Says that no new request will be taken under this generation; it ends with its last pin. */
  retire(): void {
    this.#retired = true
    this.#closeWhenUnused()
  }

  #closeWhenUnused(): void {
    if (!this.#retired || this.#pinCount > 0 || this.#end === undefined) return
    for (const region of this.regions) region.leaveTable()
    this.#end()
    this.#end = undefined
  }
}
