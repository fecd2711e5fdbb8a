import { refuseUnknownOptions } from '../../options.ts'
import { blockDevice, type DiskShapeOptions, SHAPE_OPTION_NAMES } from '../block/block-device.ts'
import type { BlockDevice } from '../device.ts'

/** Options of {@link nullDisk}. */
export interface NullDiskOptions extends DiskShapeOptions {
  /** Size in bytes; a positive multiple of the block size. */
  readonly capacityBytes: number
}

/**
 * A disk that keeps nothing: reads are zeros, writes succeed and are forgotten. It measures everything but a store.
 *
 * Reads do fill the driver's memory, because "done" without doing so would hand the guest whatever its buffer held
 * before; a store that skips this measures better than it is.
 */
export function nullDisk(options: NullDiskOptions): BlockDevice {
  refuseUnknownOptions(options, ['capacityBytes', ...SHAPE_OPTION_NAMES])
  return blockDevice({
    ...options,
    read: (io) => io.data.fill(0),
    write: forget,
    flush: forget,
    discard: forget,
    writeZeroes: forget,
    resize: forget,
  })
}

function forget(): void {}
