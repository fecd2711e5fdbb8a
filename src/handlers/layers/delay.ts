import {
  asyncScheduler,
  fromEvent,
  map,
  merge,
  mergeMap,
  type Observable,
  of,
  type SchedulerLike,
  take,
  timer,
} from 'rxjs'
import { optionTypeError } from '../../errors.ts'
import type { Completion, Request } from '../../ring/request.ts'
import { type Answer, observed } from '../handler.ts'

/** The default clock of the layers: the timers of Node, on a clock that never jumps. Its unit is the millisecond. */
export const monotonicScheduler: SchedulerLike = {
  now: () => performance.now(),
  schedule: asyncScheduler.schedule.bind(asyncScheduler) as SchedulerLike['schedule'],
}

/** Returns `value` when it is a scheduler; throws a `TypeError` otherwise. */
export function schedulerOf(value: SchedulerLike = monotonicScheduler): SchedulerLike {
  if (typeof value?.now === 'function' && typeof value.schedule === 'function') return value
  throw optionTypeError('scheduler', 'a scheduler of RxJS', value)
}

/**
 * Answers a request later, or at once with a failure when nobody waits for its answer any more.
 *
 * @param work called after `delayMs`, unless the request is aborted before
 */
export function delayed(
  io: Request,
  delayMs: number,
  scheduler: SchedulerLike,
  work: () => Answer,
): Observable<Completion> {
  const due = timer(delayMs, scheduler).pipe(map(() => undefined))
  return merge(due, abortOf(io)).pipe(
    take(1),
    mergeMap((aborted) => (aborted === undefined ? observed(work()) : of(aborted))),
  )
}

/** Emits the failed completion of a request once it is aborted. */
function abortOf(io: Request): Observable<Completion> {
  const { signal } = io
  const failed = (): Completion => io.fail(signal.reason)
  return signal.aborted ? of(failed()) : fromEvent(signal, 'abort').pipe(map(failed))
}
