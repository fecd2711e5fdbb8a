import { Observable, type OperatorFunction, type SchedulerLike, type Subscription } from 'rxjs'
import type { Batch } from '../ring/queue.ts'
import type { RingRequest } from '../ring/request.ts'
import { afterMicrotasks, turnScheduler } from './schedulers.ts'

/** The part of a queue that {@link drain} uses. */
export interface DrainableQueue<Io extends RingRequest = RingRequest> {
  take(countMax: number): Batch<Io>
  rearm(): void
  readonly armed: boolean
  readonly more: boolean
  readonly inFlightCount: number
  /** Decides on a signal that was put off while batches were taken. Left out: none ever is. */
  settle?(): void
  /** Requests that are answered and hold a credit all the same. Left out: none. */
  readonly keptCount?: number
  /**
   * Takes what needs no credit, and may be what frees the requests that hold them all. Returns true when there was
   * something, so that there may be more. Left out: everything needs a credit.
   */
  takeUncredited?(): boolean
}

/**
 * A value of {@link drain}'s source that comes from within a turn of the event loop: answers were published and
 * credits came back. Every other value is a kick and stands for a new turn.
 */
export const creditsReturned: unique symbol = Symbol('credits returned')

/** Whether a {@link drain} is at work; written by it, for whoever publishes what it took. */
export interface DrainProgress {
  /** True while batches are taken: the ring is looked at once more after whatever is published meanwhile. */
  underWay: boolean
  /**
   * Set by whoever has a batch answered when it got a promise: the answer may come before the event loop goes on. Cleared
   * before each batch. Left out: never set.
   */
  promised?: boolean
}

/** Batches of promises that are taken without waiting for them after one whose promises needed an event to settle. */
const BATCHES_PER_TRY = 16

/** Limits of {@link drain}. */
export interface DrainOptions {
  /** Most requests taken and not yet answered; the back-pressure. */
  readonly creditCountMax: number
  /** Most requests taken (and looks without one) in a turn of the event loop, so that one driver cannot starve the rest. */
  readonly budgetCountMax: number
  /** Runs the rest of a drain that used up its budget. Default: the end of the turn. */
  readonly scheduler?: SchedulerLike
  /** Default: one that nobody looks at. */
  readonly progress?: DrainProgress
  /** Called before each batch goes out: a `tap`, without another operator for each batch to pass. */
  readonly onTaken?: () => void
}

/**
 * Turns wake-ups into batches: at each value of the source it takes batches until the queue is armed (kicks asked
 * for, nothing visible), the credits are used up, or the budget of this turn is.
 *
 * It never sleeps on a request. The driver owes no kick for what is already visible, so each early stop has its
 * own waker: out of budget, the scheduler; out of credits, whoever publishes answers emits {@link creditsReturned}
 * on the source (see pipeline.ts). If nobody downstream re-armed the queue while it handled the batch, drain does.
 *
 * Promises of a batch get the time to settle before the ring is looked at again, without a turn of the event loop. To ask
 * for a kick at once would get one for nothing:
 *
 * | drain                          | microtasks                        | driver                     |
 * | ------------------------------ | --------------------------------- | -------------------------- |
 * | takes a batch, gets promises   |                                   |                            |
 * | asks for a kick                |                                   |                            |
 * |                                | publish the batch, poll           | reaps it                   |
 * |                                |                                   | sends more, and a kick     |
 *
 * A promise that does not settle by then keeps nobody waiting: the next look asks for the kick. And as waiting costs a
 * little, the next batches are not waited for.
 *
 * A kick refills the budget, returned credits do not: promises settle, publish and take again without ever leaving
 * the turn, and a driver that keeps the ring full would hold the event loop for as long as it likes.
 *
 * The same `Batch` object is emitted each time; it is valid until the consumer returns. Completes with its source
 * without taking more; errors when the queue is broken.
 */
export function drain<Io extends RingRequest>(
  queue: DrainableQueue<Io>,
  options: DrainOptions,
): OperatorFunction<unknown, Batch<Io>> {
  const {
    creditCountMax,
    budgetCountMax,
    scheduler = turnScheduler,
    progress = { underWay: false },
    onTaken = () => {},
  } = options
  return (wakes) =>
    new Observable((subscriber) => {
      let sourceCompleted = false
      let budget = budgetCountMax
      let nextTurn: Subscription | undefined
      /** While the drain is under way and its next look is left to {@link goOn}. */
      let waitsForPromises = false
      /** A kick came while the promises were waited for, which may be for what came after the ring was looked at last. */
      let wokenMeanwhile = false
      let inFlightBefore = 0
      /** Batches of promises that are not waited for any more since one was waited for in vain. */
      let batchesUntilTry = 0

      const refill = (): void => {
        budget = budgetCountMax
        nextTurn?.unsubscribe()
        nextTurn = undefined
      }

      const creditCount = (): number => creditCountMax - queue.inFlightCount - (queue.keptCount ?? 0)

      /** Returns true when it should be called again after the promises of the last batch had their chance. */
      const takeUntilIdle = (): boolean => {
        while (creditCount() > 0 || queue.takeUncredited !== undefined) {
          if (budget <= 0) {
            nextTurn ??= scheduler.schedule(() => onWake(undefined))
            return false
          }
          if (creditCount() <= 0) {
            budget--
            const tookSome = queue.takeUncredited?.()
            // It may have given credits back.
            if (tookSome === true || creditCount() > 0) continue
            return false
          }
          progress.promised = false
          const batch = queue.take(Math.min(budget, creditCount()))
          // A look that finds only malformed chains costs too, or a driver that offers nothing else holds the loop.
          budget -= Math.max(1, batch.count)
          if (batch.count > 0) {
            onTaken()
            subscriber.next(batch)
          }
          if (subscriber.closed || sourceCompleted || queue.armed) return false
          if (progress.promised && batchesUntilTry-- <= 0) return true
          // Nobody downstream published, so nobody re-armed. Without credits a kick would be of no use yet.
          if (!queue.more && creditCount() > 0) queue.rearm()
          if (queue.armed) return false
        }
        return false
      }

      const onWake = (wake: unknown): void => {
        // An answer published while we drain wakes the source from inside: the loop sees what it saw.
        if (progress.underWay) {
          if (waitsForPromises && wake !== creditsReturned) wokenMeanwhile = true
          return
        }
        if (wake !== creditsReturned) refill()
        progress.underWay = true
        takeOrEnd()
      }

      const takeOrEnd = (): void => {
        try {
          waitsForPromises = takeUntilIdle()
        } catch (error) {
          subscriber.error(error)
        }
        if (waitsForPromises) {
          inFlightBefore = queue.inFlightCount
          afterMicrotasks(goOn)
        } else end()
      }

      /** The promises of a batch had their chance. */
      const goOn = (): void => {
        // Left meanwhile; the queue may be another drain's by now.
        if (!waitsForPromises) return
        waitsForPromises = false
        batchesUntilTry = queue.inFlightCount < inFlightBefore ? 0 : BATCHES_PER_TRY
        const mustLook = wokenMeanwhile
        wokenMeanwhile = false
        if (mustLook) refill()
        // What was published may have asked for kicks.
        if (sourceCompleted || (queue.armed && !mustLook)) end()
        else takeOrEnd()
      }

      const end = (): void => {
        progress.underWay = false
        // Whoever published meanwhile relied on it: the driver may sleep on what is published and not decided.
        queue.settle?.()
        if (sourceCompleted) subscriber.complete()
      }

      const subscription = wakes.subscribe({
        next: onWake,
        error: (error) => subscriber.error(error),
        complete: () => {
          sourceCompleted = true
          // A handler may stop its own queue: the batch it is in is answered and published before the end.
          if (!progress.underWay) subscriber.complete()
        },
      })
      return () => {
        subscription.unsubscribe()
        nextTurn?.unsubscribe()
        if (!waitsForPromises) return
        // Nobody comes back.
        waitsForPromises = false
        end()
      }
    })
}
