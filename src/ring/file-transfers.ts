import { type SegmentList, transferPieces } from './segments.ts'

/** Transfers between a file and the data of a request that end before they return. */
export interface FileTransfers {
  /**
   * Fills a list from the file.
   *
   * @returns bytes moved; fewer than the list has at the end of the file or where the rest would have to wait; minus an
   * errno when none were, such as `EAGAIN` where a device would have to be waited for
   */
  read(list: SegmentList, fileOffsetBytes: number): number
  /** Writes the bytes of a list to the file; otherwise as {@link read}. */
  write(list: SegmentList, fileOffsetBytes: number): number
}

/**
 * Makes the transfers of an open file, for the stores of hushring. Loads the addon only now, so that all else works
 * without it.
 *
 * @param fd borrowed; open for as long as the transfers are used
 * @param mayWait true for a file in memory; else the kernel is asked not to wait (RWF_NOWAIT)
 */
export async function fileTransfers(fd: number, mayWait: boolean): Promise<FileTransfers> {
  const { native } = await import('../native.ts')
  // Looking them up in the addon is a search, each time.
  const { fileReadAt, fileWriteAt } = native
  return {
    read: (list, fileOffsetBytes) => transferPieces(list, fileReadAt, fd, fileOffsetBytes, mayWait),
    write: (list, fileOffsetBytes) => transferPieces(list, fileWriteAt, fd, fileOffsetBytes, mayWait),
  }
}
