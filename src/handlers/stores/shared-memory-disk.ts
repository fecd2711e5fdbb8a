import { optionTypeError } from '../../errors.ts'
import { refuseUnknownOptions } from '../../options.ts'
import { blockDevice, type DiskShapeOptions, SHAPE_OPTION_NAMES } from '../block/block-device.ts'
import type { BlockDevice } from '../device.ts'

/** Options of {@link sharedMemoryDisk}. */
export interface SharedMemoryDiskOptions extends DiskShapeOptions {
  /** The bytes of the disk, a positive multiple of the block size. Give it to each worker thread. */
  readonly buffer: SharedArrayBuffer
}

/**
 * A disk in memory that several threads serve, each with a disk of its own over the same bytes. What two drivers do to one
 * block at the same time may mix, as it may on any disk. A flush has nothing to do.
 */
export function sharedMemoryDisk(options: SharedMemoryDiskOptions): BlockDevice {
  refuseUnknownOptions(options, ['buffer', ...SHAPE_OPTION_NAMES])
  const { buffer, ...shape } = options
  if (!(buffer instanceof SharedArrayBuffer)) throw optionTypeError('buffer', 'a SharedArrayBuffer', buffer)
  const bytes = Buffer.from(buffer)
  const zero = ({ offsetBytes, lengthBytes }: { offsetBytes: number; lengthBytes: number }): void =>
    void bytes.fill(0, offsetBytes, offsetBytes + lengthBytes)
  return blockDevice({
    ...shape,
    capacityBytes: bytes.length,
    read: (io) => void io.data.copyFrom(bytes, io.offsetBytes),
    write: (io) => void io.data.copyTo(bytes, io.offsetBytes),
    flush() {},
    discard: zero,
    writeZeroes: zero,
  })
}
