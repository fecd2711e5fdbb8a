import { defer, map, merge, type Observable, type SchedulerLike, Subject, tap } from 'rxjs'
import type { HushringError } from '../errors.ts'
import type { Handler } from '../handlers/handler.ts'
import { othersWait } from '../ring/batch-scope.ts'
import type { Published } from '../ring/queue.ts'
import type { RingRequest } from '../ring/request.ts'
import { type AnswerRecorder, answer } from './answer.ts'
import { BusyPoll } from './busy-poll.ts'
import { creditsReturned, type DrainableQueue, type DrainProgress, drain } from './drain.ts'
import { gather } from './gather.ts'
import type { SuppressionPolicy } from './suppression.ts'

/** The part of a queue that the pipeline uses. */
export interface ServableQueue<Io extends RingRequest = RingRequest>
  extends DrainableQueue<Io>,
    AnswerRecorder<Io> {
  /**
   * @param pollNanosMax how long it may look for requests before it asks for kicks; see {@link BusyPoll}
   * @param mayDefer whether the signal may wait for the next batch, because `settle` will be called
   */
  publish(pollNanosMax?: number, mayDefer?: boolean): Published
  /** True while the other side waits for answers to go out; see the load of a {@link SuppressionPolicy}. Left out: never. */
  readonly urgent?: boolean
}

/** Options of {@link serveQueue}. */
export interface ServeOptions<Io extends RingRequest = RingRequest> {
  readonly suppression: SuppressionPolicy
  /** Longest busy poll in µs; see {@link SuppressionPolicy}. Default 0: none. */
  readonly pollMicrosMax?: number
  /** Most requests taken and not yet answered, 1 or more. */
  readonly creditCountMax: number
  /** Most requests taken in one turn of the event loop, 1 or more. */
  readonly budgetCountMax: number
  /** Deadline of a request in ms; 0: none. */
  readonly requestTimeoutMs: number
  /** When it emits, every request in flight is aborted and fails with that error. */
  readonly giveUp?: Observable<HushringError>
  readonly onFailure?: (request: Io, error: HushringError) => void
  readonly onLateAnswer?: () => void
  /** The clock of everything that waits. Default: each operator's own, which are the event loop's. */
  readonly scheduler?: SchedulerLike
}

/**
 * Serves one queue: the whole way of a request, once round.
 *
 * Subscribing looks at the ring at once, without a kick, because a ring may start with requests in it. When
 * `kicks` completes nothing more is taken, what is in flight is answered and published, and then the result
 * completes: that is a drain. Unsubscribing gives up at once. It errors when the driver broke the queue.
 *
 * @param queue a started queue; borrowed
 * @param kicks emits when the driver asked for attention, or {@link creditsReturned} when credits came back some other way
 * @param handler answers one request
 * @returns one value for each time answers were published; the same object each time
 */
export function serveQueue<Io extends RingRequest>(
  queue: ServableQueue<Io>,
  kicks: Observable<unknown>,
  handler: Handler<Io>,
  options: ServeOptions<Io>,
): Observable<Published> {
  return defer(() => {
    const start = defer(() => [undefined])
    const unarmed = new Subject<typeof creditsReturned>()
    const progress: DrainProgress = { underWay: false }
    const busyPoll = new BusyPoll(options.pollMicrosMax ?? 0)
    return withWaker(merge(kicks, start), unarmed).pipe(
      drain(queue, { ...options, progress, onTaken: () => busyPoll.taken() }),
      answer(queue, handler, { ...options, progress, timeoutMs: options.requestTimeoutMs }),
      gather({
        policy: options.suppression,
        inFlightCount: () => queue.inFlightCount,
        isUrgent: () => queue.urgent === true,
        ...(options.scheduler === undefined ? {} : { scheduler: options.scheduler }),
      }),
      map(() => {
        const published = queue.publish(othersWait() ? 0 : busyPoll.nanos(), progress.underWay)
        busyPoll.learn(published, queue.armed)
        // Not armed means that the driver owes no kick for what is visible now, or that credits came back:
        // somebody has to look, and drain is the one who looks, unless it is about to look anyhow.
        if (!queue.armed && !progress.underWay) unarmed.next(creditsReturned)
        return published
      }),
    )
  })
}

/** Merges a waker into the wakes that lives as long as they do and does not keep them from completing. */
function withWaker(wakes: Observable<unknown>, waker: Subject<typeof creditsReturned>): Observable<unknown> {
  return merge(wakes.pipe(tap({ complete: () => waker.complete() })), waker)
}
