import { Observable, type OperatorFunction, type SchedulerLike, type Subscription } from 'rxjs'
import { microScheduler } from './schedulers.ts'
import type { Hold, SuppressionPolicy } from './suppression.ts'

/** Options of {@link gather}. */
export interface GatherOptions {
  readonly policy: SuppressionPolicy
  /** Requests taken and not yet published, ready answers included. */
  readonly inFlightCount: () => number
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
  const { policy, inFlightCount, scheduler = microScheduler } = options
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
        deadline?.unsubscribe()
        deadlineMs = untilMs
        deadline = scheduler.schedule(flush, delayMs)
      }

      const subscription = answers.subscribe({
        next: (count) => {
          readyCount += count
          const wish = policy({ readyCount, unansweredCount: inFlightCount() - readyCount })
          if (wish === 'now') flush()
          else hold(holdMs(wish))
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

function holdMs(hold: Exclude<Hold, 'now'>): number {
  return hold === 'turn' ? 0 : hold / 1000
}
