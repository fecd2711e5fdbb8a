import type { FileHandle } from 'node:fs/promises'
import type { FileRing } from '../../ring/file-ring.ts'
import type { Completion } from '../../ring/request.ts'
import { SegmentList } from '../../ring/segments.ts'
import type { BlockRequest } from '../block/block-request.ts'
import { type DiskFile, type QuickTransfers, writeZeroPieces } from './disk-file.ts'

/** Bounds how long one write of zeros keeps the kernel from others. Of one MiB in pieces, because they need not be there. */
const ZEROS: SegmentList = SegmentList.of(...new Array<Buffer>(16).fill(Buffer.alloc(64 * 1024)))

/** A file whose transfers go through io_uring, unless they can be done at once. It is closed after its last operation. */
export class RingFile implements DiskFile {
  readonly #handle: Pick<FileHandle, 'close'>
  readonly #ring: FileRing
  readonly #quick: QuickTransfers
  #zeroingCount = 0
  #onZeroed: (() => void) | undefined

  /** @param handle what `ring` is for; both are owned from now on */
  constructor(handle: Pick<FileHandle, 'close'>, ring: FileRing, quick: QuickTransfers) {
    this.#handle = handle
    this.#ring = ring
    this.#quick = quick
  }

  read(io: BlockRequest): number | PromiseLike<number> {
    if (this.#quick.read(io)) return io.lengthBytes
    // The kernel writes into the memory of the driver whoever has answered for this request meanwhile.
    return this.#ring.read(io.data, io.offsetBytes, io.hold())
  }

  write(io: BlockRequest): number | PromiseLike<number> {
    if (this.#quick.write(io)) return io.lengthBytes
    return this.#ring.write(io.data, io.offsetBytes, io.hold())
  }

  /** A driver may count on what was answered before it asked: that is in the file when this is begun. */
  flush(): PromiseLike<number> {
    return this.#ring.sync()
  }

  async writeZeroes(io: BlockRequest): Promise<number | Completion> {
    // Counted as one operation: between two pieces there is none in the ring that would keep it open.
    this.#zeroingCount++
    try {
      return await writeZeroPieces(io, ZEROS.byteLength, (pieceBytes, offsetBytes) =>
        this.#ring.write(ZEROS.first(pieceBytes), offsetBytes, () => {}),
      )
    } finally {
      if (--this.#zeroingCount === 0) this.#onZeroed?.()
    }
  }

  async close(): Promise<void> {
    if (this.#zeroingCount > 0) {
      await new Promise<void>((resolve) => {
        this.#onZeroed = resolve
      })
    }
    await this.#ring.close()
    await this.#handle.close()
  }
}
