import { type Observable, of, type SchedulerLike, throwError, timer } from 'rxjs'
import { map, mergeMap } from 'rxjs/operators'
import type { Answer } from '../../src/index.ts'
import type { Completion, RingRequest } from '../../src/ring/request.ts'

/** How a handler answers, whatever the device. */
export const behaviours = [
  'answers at once',
  'answers with a promise',
  'answers with a late promise',
  'answers with an observable',
  'answers with a late observable',
  'emits two answers',
  'fails',
  'throws',
  'rejects',
  'claims too many bytes',
  'answers with nonsense',
  'never settles',
] as const
export type Behaviour = (typeof behaviours)[number]

/** Those that end in a failure. */
export const failures: ReadonlySet<Behaviour> = new Set<Behaviour>([
  'fails',
  'throws',
  'rejects',
  'claims too many bytes',
  'answers with nonsense',
  'never settles',
])

/** Those that answer after a delay, and so perhaps after somebody else did. */
export const lateOnes: ReadonlySet<Behaviour> = new Set<Behaviour>([
  'answers with a late promise',
  'answers with a late observable',
  'emits two answers',
])

/** What a handler needs in order to behave. */
export interface Situation {
  readonly request: RingRequest
  readonly clock: SchedulerLike
  /** For those that are late. */
  readonly delayMs: number
  /** Rejects with a promise; else with an observable. */
  readonly withPromise: () => boolean
  /** Does the work and makes the answer. */
  readonly ok: () => Completion
  /** Takes what settles the handler that does not settle by itself. */
  readonly onUnsettled: (settle: () => void) => void
}

/** Answers as `behaviour` says. */
export function behave(behaviour: Behaviour, situation: Situation): Answer {
  const { request, clock, delayMs, withPromise, ok, onUnsettled } = situation
  const later = (): Observable<Completion> => timer(delayMs, clock).pipe(map(ok))
  switch (behaviour) {
    case 'answers at once':
      return ok()
    case 'answers with a promise':
      return Promise.resolve().then(ok)
    case 'answers with a late promise':
      return new Promise((resolve) => clock.schedule(() => resolve(ok()), delayMs))
    case 'answers with an observable':
      return of(undefined).pipe(map(ok))
    case 'answers with a late observable':
      return later()
    case 'emits two answers':
      return later().pipe(mergeMap((completion) => [completion, request.fail(new Error('again'))]))
    case 'fails':
      return request.fail(new Error('the store says no'))
    case 'throws':
      throw new Error('a mistake')
    case 'rejects':
      return withPromise() ? Promise.reject(new Error('no')) : throwError(() => new Error('no'))
    case 'claims too many bytes':
      return request.ok(request.writable.byteLength + 1)
    case 'answers with nonsense':
      return 42 as never
    case 'never settles':
      return new Promise((resolve) => onUnsettled(() => resolve(ok())))
  }
}
