import { type NativeRegion, native } from '../native.ts'
import { MiB } from '../units.ts'

/** Options of {@link SharedMemory}. */
export interface SharedMemoryOptions {
  /** Size of the memory file in bytes. Default 4 MiB. */
  readonly sizeBytes?: number
  /** Where descriptors see the first byte. Default 1 GiB: not 0, so that a mix-up of addresses shows. */
  readonly guestAddress?: bigint
  /** Where the front-end sees the first byte; ring addresses are given in these. */
  readonly userAddress?: bigint
  /** Default false, as most front-ends do; true: the file cannot be made shorter (F_SEAL_SHRINK). */
  readonly sealed?: boolean
}

/**
 * The memory of a pretended guest: one memory file, mapped here for the driver and offered to a device by its
 * descriptor. Memory is handed out from the bottom and never taken back.
 */
export class SharedMemory {
  /** The memory file. Owned; closed by {@link close}. */
  readonly fd: number
  readonly sizeBytes: number
  readonly guestAddress: bigint
  readonly userAddress: bigint
  readonly mmapOffsetBytes: bigint = 0n
  /** The first GiB of the memory as the driver sees it. Goes empty with {@link close}. */
  readonly bytes: Buffer
  readonly #region: NativeRegion
  #usedBytes = 0
  #closed = false

  constructor(options: SharedMemoryOptions = {}) {
    const { sizeBytes = 4 * MiB, guestAddress = 1n << 30n, userAddress = 0x7f00_0000_0000n } = options
    this.sizeBytes = sizeBytes
    this.guestAddress = guestAddress
    this.userAddress = userAddress
    this.fd = native.memfdCreate('hushring-testing', sizeBytes, options.sealed ?? false)
    this.#region = native.mapRegion(this.fd, guestAddress, userAddress, BigInt(sizeBytes), 0n)
    this.bytes = Buffer.from(this.#region.windows[0]!)
  }

  /** Takes `lengthBytes` of the memory, aligned to `alignBytes` (default 16). Returns their offset. */
  allocate(lengthBytes: number, alignBytes = 16): number {
    const offsetBytes = Math.ceil(this.#usedBytes / alignBytes) * alignBytes
    if (offsetBytes + lengthBytes > this.bytes.length) {
      throw new RangeError(`the shared memory of ${this.sizeBytes} bytes is used up`)
    }
    this.#usedBytes = offsetBytes + lengthBytes
    return offsetBytes
  }

  /** The address of a byte as descriptors give it. */
  guestAddressOf(offsetBytes: number): bigint {
    return this.guestAddress + BigInt(offsetBytes)
  }

  /** The address of a byte as the front-end gives it. */
  userAddressOf(offsetBytes: number): bigint {
    return this.userAddress + BigInt(offsetBytes)
  }

  /** Unmaps the memory and closes the file. Close drivers that use it first. Calling it again does nothing. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#region.close()
    native.closeFd(this.fd)
  }
}
