import { GiB, KiB, MiB } from '../../units.ts'

/**
 * What an initiator is told in VPD page B0h and held to. In bytes, because a disk has blocks of 512 or 4096.
 */
export const Limit = {
  /**
   * One transfer. The data lies in the memory of the ring and costs nothing here, so this is no less than what any
   * fabric of Linux sends: 65,535 sectors of 512 bytes over the loopback.
   */
  transferBytesMax: 32 * MiB,
  /** One UNMAP, all its ranges together: a store that has to write zeros is busy with it for a second or so. */
  unmapBytesMax: GiB,
  /** Ranges of one UNMAP: a parameter list of one page. */
  unmapRangeCountMax: 255,
  /** One WRITE SAME. It may have to be written block by block. */
  writeSameBytesMax: 64 * MiB,
  /** One COMPARE AND WRITE: its field has one byte. All of it is in memory twice, up to 3 MiB. */
  compareAndWriteBlockCountMax: 255,
  /** What is read or written at a time when a command needs memory of this process. */
  pieceBytesMax: 256 * KiB,
} as const

/** What a disk likes best as unit of its requests; block sizes divide it. */
export const PHYSICAL_BLOCK_BYTES = 4096
