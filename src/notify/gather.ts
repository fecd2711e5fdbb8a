import { Observable, type OperatorFunction, type SchedulerLike, type Subscription } from 'rxjs'
import { microScheduler } from './schedulers.ts'
import type { Hold, SuppressionPolicy } from './suppression.ts'

/** Options of {@link gather}. */
export interface GatherOptions {
  readonly policy: SuppressionPolicy
  /** Requests taken and not yet published, ready answers included. */
  readonly inFlightCount: () => number
  /** Whether the other side waits for answers to go out; see the load of a {@link SuppressionPolicy}. Default: never. */
  readonly isUrgent?: () => boolean
  /** The clock of the holds; its unit is the millisecond, fractions count. Default: timerfd and loop turns. */
  readonly scheduler?: SchedulerLike
}

/**
 * Gathers counts of ready answers into groups, as the policy says, and emits the size of each group when it is to
 * be published.
 *
 * A held group always has an armed deadline; it never waits for the next request. It goes out early when the
 * policy says so and when the source completes or fails, so that stopping a queue loses no answer.
 */
export function gather(options: GatherOptions): OperatorFunction<number, number> {
  const { policy, inFlightCount, isUrgent = () => false, scheduler = microScheduler } = options
  return (answers) =>
    new Observable((subscriber) => {
      let readyCount = 0
      let deadline: Subscription | undefined
      let deadlineMs = Number.POSITIVE_INFINITY

      const flush = (): void => {
        deadline?.unsubscribe()
        deadline = undefined
        deadlineMs = Number.POSITIVE_INFINITY
        if (readyCount === 0) return
        const groupCount = readyCount
        readyCount = 0
        subscriber.next(groupCount)
      }

      const hold = (delayMs: number): void => {
        const untilMs = scheduler.now() + delayMs
        if (untilMs >= deadlineMs) return
        const sooner = scheduler.schedule(flush, delayMs)
        deadline?.unsubscribe()
        deadline = sooner
        deadlineMs = untilMs
      }

      // Answers are never held without a deadline. A policy that fails or wishes nonsense, and a timer that the
      // system refuses (there are no descriptors left), cost the hold and nothing else.
      const flushOrHold = (): void => {
        let held = false
        try {
          // Not below 0: a queue may have published some of the ready ones by itself.
          const unansweredCount = Math.max(0, inFlightCount() - readyCount)
          const load = { readyCount, unansweredCount, urgent: isUrgent(), held: deadline !== undefined }
          const delayMs = holdMs(policy(load))
          if (delayMs !== undefined) hold(delayMs)
          held = delayMs !== undefined
        } catch {
          held = false
        }
        if (!held) flush()
      }

      const subscription = answers.subscribe({
        next: (count) => {
          readyCount += count
          flushOrHold()
        },
        error: (error) => {
          flush()
          subscriber.error(error)
        },
        complete: () => {
          flush()
          subscriber.complete()
        },
      })
      return () => {
        subscription.unsubscribe()
        deadline?.unsubscribe()
      }
    })
}

const HOLD_MICROS_MAX = 1_000_000

/** The delay of a hold in ms; undefined means "now", and so does everything that is no hold. */
function holdMs(hold: Hold): number | undefined {
  if (hold === 'turn') return 0
  return typeof hold === 'number' && hold >= 0 && hold <= HOLD_MICROS_MAX ? hold / 1000 : undefined
}
