import { type SchedulerAction, type SchedulerLike, Subscription } from 'rxjs'
import { native } from '../native.ts'

/**
 * A scheduler whose zero delay is the end of the current turn of the event loop (`setImmediate`), after every
 * I/O callback of the turn has run. RxJS's own asapScheduler runs in a microtask, before the next callback, and
 * so would gather nothing. Delays above zero are milliseconds, as in RxJS.
 */
export const turnScheduler: SchedulerLike = schedulerOver((work, delayMs) => {
  if (delayMs > 0) {
    const timer = setTimeout(work, delayMs)
    return () => clearTimeout(timer)
  }
  const immediate = setImmediate(work)
  return () => clearImmediate(immediate)
})

/**
 * A scheduler that keeps delays below a millisecond: RxJS's unit stays the millisecond, fractions count. A zero
 * delay is the end of the turn, everything else a timerfd, because Node's timers tick in milliseconds.
 */
export const microScheduler: SchedulerLike = schedulerOver((work, delayMs) => {
  if (delayMs <= 0) {
    const immediate = setImmediate(work)
    return () => clearImmediate(immediate)
  }
  const timer = idleTimers.pop() ?? newTimer()
  timer.work = work
  timer.start(Math.max(1, Math.round(delayMs * 1000)))
  return () => timer.release()
})

/**
 * Calls back when no microtask is left, before the event loop goes on: whatever promises can settle without waiting for an
 * event has settled by then. `process.nextTick` does so only when it is called by a microtask; otherwise it comes before all
 * of them.
 */
export function afterMicrotasks(work: () => void): void {
  queueMicrotask(() => process.nextTick(work))
}

interface ReusableTimer {
  work: (() => void) | undefined
  start(delayMicros: number): void
  release(): void
}

const idleTimers: ReusableTimer[] = []

// A timer owns a file descriptor and a poll handle, so it is kept for the next hold instead of being closed.
function newTimer(): ReusableTimer {
  const micro = native.createMicroTimer(() => {
    const work = timer.work
    timer.release()
    work?.()
  })
  const timer: ReusableTimer = {
    work: undefined,
    start: (delayMicros) => micro.start(delayMicros),
    release: () => {
      if (timer.work === undefined) return
      timer.work = undefined
      micro.stop()
      idleTimers.push(timer)
    },
  }
  return timer
}

type Cancel = () => void

function schedulerOver(defer: (work: () => void, delayMs: number) => Cancel): SchedulerLike {
  return {
    now: () => performance.now(),
    schedule<T>(work: (this: SchedulerAction<T>, state?: T) => void, delayMs = 0, state?: T): Subscription {
      const subscription = new Subscription()
      let cancel: Cancel | undefined
      const action = Object.assign(subscription, {
        schedule(nextState?: T, nextDelayMs = 0): Subscription {
          cancel?.()
          cancel = defer(() => {
            cancel = undefined
            if (!subscription.closed) work.call(action, nextState)
          }, nextDelayMs)
          return subscription
        },
      }) as unknown as SchedulerAction<T>
      subscription.add(() => cancel?.())
      action.schedule(state, delayMs)
      return subscription
    },
  }
}
