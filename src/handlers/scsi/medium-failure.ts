import type { FailedCompletion, UnsupportedCompletion } from '../../ring/request.ts'
import type { Sense } from '../../ring/sense.ts'
import type { BlockRequest } from '../block/block-request.ts'
import { Condition } from './conditions.ts'

/**
 * What an initiator is told when the disk did not do what it was asked.
 *
 * @param io what it was asked
 * @param blockBytes block size of the disk
 */
export function senseOfFailure(
  io: BlockRequest,
  completion: FailedCompletion | UnsupportedCompletion,
  blockBytes: number,
): Sense {
  if (completion.result === 'unsupported') return Condition.INVALID_COMMAND_OPERATION_CODE
  switch (completion.error.code) {
    case 'ERR_BLOCK_READ_ONLY':
      return Condition.WRITE_PROTECTED
    case 'ERR_BLOCK_RANGE':
      // The disk shrank after the command was checked.
      return Condition.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE
    case 'ERR_REQUEST_ABORTED':
    case 'ERR_HANDLER_TIMEOUT':
      return Condition.ABORTED
    case 'ERR_HANDLER_THREW':
    case 'ERR_HANDLER_ANSWER':
      return Condition.INTERNAL_TARGET_FAILURE
  }
  if (isOutOfSpace(completion.error)) return Condition.SPACE_ALLOCATION_FAILED_WRITE_PROTECT
  if (io.verb === 'flush') return Condition.WRITE_ERROR
  const information = io.offsetBytes / blockBytes
  return io.verb === 'read'
    ? { ...Condition.UNRECOVERED_READ_ERROR, information }
    : { ...Condition.WRITE_ERROR, information }
}

/** Errors of the operating system that another disk would call "thin pool is full". */
const OUT_OF_SPACE: ReadonlySet<unknown> = new Set(['ENOSPC', 'EDQUOT'])
/** Errors are nested by hand, so this is more than there ever are; a circle ends. */
const CAUSE_DEPTH_MAX = 8

function isOutOfSpace(error: Error): boolean {
  let cause: unknown = error
  for (let depth = 0; depth < CAUSE_DEPTH_MAX && cause instanceof Error; depth++) {
    if (OUT_OF_SPACE.has((cause as NodeJS.ErrnoException).code)) return true
    cause = cause.cause
  }
  return false
}
