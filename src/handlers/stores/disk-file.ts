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
