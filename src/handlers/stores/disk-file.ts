import type { Completion } from '../../ring/request.ts'
import type { BlockAnswer } from '../block/block-device.ts'
import type { BlockRequest } from '../block/block-request.ts'

/** The verbs of a file that is a disk, whichever way its bytes go. */
export interface DiskFile {
  read(io: BlockRequest): BlockAnswer
  write(io: BlockRequest): BlockAnswer
  flush(): BlockAnswer
  writeZeroes(io: BlockRequest): BlockAnswer
  /** Waits for what is in flight, then closes the file. */
  close(): Promise<void>
}

/** Does a request at once; false when that did not move all of it. */
export type QuickTransfer = (io: BlockRequest) => boolean

/** What is tried before a request is handed to somebody who may wait. */
export interface QuickTransfers {
  readonly read: QuickTransfer
  readonly write: QuickTransfer
}

/**
 * Writes the zeros of a request in pieces, which bound how long it keeps others from the file, until it is aborted.
 *
 * @param write writes so many zeros, at most `pieceBytesMax`, at that place; resolves to the bytes written, 0 to end early
 * @returns the bytes written, or a failure when the request was aborted
 */
export async function writeZeroPieces(
  io: BlockRequest,
  pieceBytesMax: number,
  write: (pieceBytes: number, offsetBytes: number) => PromiseLike<number>,
): Promise<number | Completion> {
  const { offsetBytes, lengthBytes } = io
  let doneBytes = 0
  while (doneBytes < lengthBytes) {
    if (io.isAborted) return io.fail(io.signal.reason)
    const countBytes = await write(Math.min(pieceBytesMax, lengthBytes - doneBytes), offsetBytes + doneBytes)
    if (countBytes === 0) break
    doneBytes += countBytes
  }
  return doneBytes
}
