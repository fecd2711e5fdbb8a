import { map, type Observable, of, type SchedulerLike, timeout as timeoutOperator } from 'rxjs'
import { HushringError } from '../../errors.ts'
import { numberIn, refuseUnknownOptions } from '../../options.ts'
import { LentSegments } from '../../ring/lent-segments.ts'
import { type Completion, isCompletion } from '../../ring/request.ts'
import { BlockRequest } from '../block/block-request.ts'
import { type Answer, attempt, type Layer, observed } from '../handler.ts'
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
 * A late write would do the reverse and store what B holds by then. Therefore the layers inside lose B when their work
 * outlives their call: they go on with memory of this process, into which the bytes were copied, and a read is copied out
 * when it succeeds in time. Who answers at once works with B all the way. What remains is that a write which was given up
 * may still reach the disk later, as with any disk that loses its connection.
 */
export function timeout(options: TimeoutOptions): Layer {
  refuseUnknownOptions(options, ['ms', 'scheduler'])
  const ms = numberIn('ms', options.ms, 1, 3_600_000)
  const scheduler = schedulerOf(options.scheduler)
  return (next) => {
    let idle: OwnRequest | undefined
    return (io) => {
      const own = (idle ?? new OwnRequest()).standFor(io)
      idle = undefined
      const answer = attempt(next, own.request)
      if (isCompletion(answer)) {
        const completion = own.finish(io, answer)
        // Answered at once: nobody else can still hold it.
        idle = own
        return completion
      }
      own.data.move()
      return own.finishLater(io, answer, ms, scheduler)
    }
  }
}

/** The request that the layers inside get. */
class OwnRequest {
  readonly request = new BlockRequest()
  readonly data = new LentSegments()
  readonly #changes = { data: this.data }

  standFor(io: BlockRequest): this {
    this.data.lend(io.data)
    io.derive(this.#changes, this.request)
    return this
  }

  /** A function of its own, because one that makes a closure keeps its variables on the heap, at each call. */
  finishLater(
    io: BlockRequest,
    answer: Answer,
    ms: number,
    scheduler: SchedulerLike,
  ): Observable<Completion> {
    const giveUp = (): Observable<Completion> => {
      const error = new HushringError('ERR_HANDLER_TIMEOUT', `${io.verb}: no answer after ${ms} ms`)
      this.request.abort(error)
      return of(io.fail(error))
    }
    return observed(answer).pipe(
      timeoutOperator({ first: ms, scheduler, with: giveUp }),
      map((completion) => this.finish(io, completion)),
    )
  }

  /** Copies out what a read brought, unless it is there already. */
  finish(io: BlockRequest, completion: Completion): Completion {
    const { moved } = this.data
    const isRead = completion.result === 'ok' && io.verb === 'read' && moved !== undefined
    // A transport may have given the request up before our time was over.
    if (isRead && !io.isAborted) io.data.copyFrom(moved)
    return completion
  }
}
