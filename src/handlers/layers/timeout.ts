import { map, type Observable, of, type SchedulerLike, timeout as timeoutOperator } from 'rxjs'
import { HushringError } from '../../errors.ts'
import { numberIn, refuseUnknownOptions } from '../../options.ts'
import { type Completion, isCompletion } from '../../ring/request.ts'
import { SegmentList } from '../../ring/segments.ts'
import type { BlockRequest } from '../block/block-request.ts'
import { attempt, type Layer, observed } from '../handler.ts'
import { schedulerOf } from './delay.ts'

/** Options of {@link timeout}. */
export interface TimeoutOptions {
  /** Longest wait for an answer, 1 to 3,600,000 ms. */
  readonly ms: number
  /** The clock of the wait. */
  readonly scheduler?: SchedulerLike
}

/**
 * Fails a request with `ERR_HANDLER_TIMEOUT` when it is not answered in time, and aborts its `io.signal`. A later
 * answer is ignored.
 *
 * The work itself may go on: a read that the kernel was asked for cannot be called back. After our answer, however,
 * the driver uses the buffer for something else, so the late work must not have it:
 *
 * | driver              | this layer                     | store                                 |
 * | ------------------- | ------------------------------ | ------------------------------------- |
 * | read into buffer B  | passes on                      | starts reading into B                 |
 * |                     | time is up: fails the request  |                                       |
 * | puts new data in B  |                                | finishes: overwrites the new data     |
 *
 * A late write would do the reverse and store what B holds by then. Therefore the layers inside work on memory of
 * this process: a read is copied out when it succeeds in time, a write is copied in first. What remains is that a
 * write which was given up may still reach the disk later, as with any disk that loses its connection.
 */
export function timeout(options: TimeoutOptions): Layer {
  refuseUnknownOptions(options, ['ms', 'scheduler'])
  const ms = numberIn('ms', options.ms, 1, 3_600_000)
  const scheduler = schedulerOf(options.scheduler)
  return (next) => (io) => {
    const memory = privateMemory(io)
    const own = io.derive(memory === undefined ? {} : { data: SegmentList.of(memory) })
    const finish = (completion: Completion): Completion => {
      const isRead = completion.result === 'ok' && io.verb === 'read' && memory !== undefined
      // A transport may have given the request up before our time was over.
      if (isRead && !io.isAborted) io.data.copyFrom(memory)
      return completion
    }
    const answer = attempt(next, own)
    if (isCompletion(answer)) return finish(answer)
    const giveUp = (): Observable<Completion> => {
      const error = new HushringError('ERR_HANDLER_TIMEOUT', `${io.verb}: no answer after ${ms} ms`)
      own.abort(error)
      return of(io.fail(error))
    }
    return observed(answer).pipe(timeoutOperator({ first: ms, scheduler, with: giveUp }), map(finish))
  }
}

/** Zeros for a read, so that a store that fills too little shows nothing of this process; a copy for a write. */
function privateMemory({ verb, data }: BlockRequest): Buffer | undefined {
  if (data.byteLength === 0) return undefined
  return verb === 'read' ? Buffer.alloc(data.byteLength) : data.toBuffer()
}
