import { type ErrorCode, HushringError } from '../errors.ts'
import { RingBreak } from '../native.ts'

const CODE_OF_FAULT: ReadonlyMap<number, ErrorCode> = new Map(
  Object.entries(RingBreak).map(([code, fault]) => [fault, code as ErrorCode]),
)

/**
 * The error for a fault that native code reports.
 *
 * @param fault a {@link RingBreak}
 * @param queueIndex the queue it was found in, where there are several
 */
export function ringError(fault: number, queueIndex: number | undefined): HushringError {
  const code = CODE_OF_FAULT.get(fault) ?? 'ERR_RING_ADDRESS'
  return new HushringError(code, undefined, queueIndex === undefined ? {} : { details: { queueIndex } })
}
