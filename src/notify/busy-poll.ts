import type { Published } from '../ring/queue.ts'

/** Polling begins with so many ns, and doubles as long as requests keep coming soon. */
const FIRST_NANOS = 10_000
/**
 * After so many ms of polling without a sleep, kicks are asked for once: the event loop turns and comes to its other
 * work.
 */
const STRETCH_MS_MAX = 1
/** Sleeps that are not preceded by a poll after one that was in vain; twice as many each time. */
const SLEEPS_PER_TRY = { min: 16, max: 4096 } as const

/**
 * Decides how long a queue that has answered everything looks for the next request before it asks for a kick and
 * sleeps. Kick, wake-up and the driver's system call cost more than a short wait; a long wait costs a processor.
 *
 * It learns from how long each sleep was, as KVM's halt polling does: after one that was shorter than the longest poll
 * the next poll is longer, after a longer one nothing is polled until requests come quickly again. So a queue that
 * nobody uses never polls. And where a poll finds nothing and the request comes just afterwards, driver and device share
 * a processor, and each poll only keeps the driver from sending: that is tried again, but ever more rarely.
 */
export class BusyPoll {
  readonly #nanosMax: number
  readonly #now: () => number
  #nanos = 0
  /** When the queue asked for kicks, until requests are taken. */
  #asleepSinceMs: number | undefined
  /** Whether it had polled before, as long as it ever does. */
  #polledInVain = false
  #sleepsPerTry: number = SLEEPS_PER_TRY.min
  #sleepsUntilTry = 0
  /** When the polling began that has not been interrupted by a sleep. */
  #stretchSinceMs: number | undefined
  #isStretchOver = false

  /**
   * @param microsMax longest poll, in µs; 0: never
   * @param now a monotonic clock in ms with fractions
   */
  constructor(microsMax: number, now: () => number = () => performance.now()) {
    this.#nanosMax = microsMax * 1000
    this.#now = now
  }

  /** Learns that requests were taken: a sleep is over. What a handler takes to answer them is none of it. */
  taken(): void {
    if (this.#asleepSinceMs === undefined) return
    this.#learnFromSleep(this.#now() - this.#asleepSinceMs)
    this.#asleepSinceMs = undefined
  }

  /** How long the next publish may poll, in ns. */
  nanos(): number {
    return this.#isStretchOver || this.#sleepsUntilTry > 0 ? 0 : this.#nanos
  }

  #learnFromSleep(sleepMs: number): void {
    if (this.#sleepsUntilTry > 0) this.#sleepsUntilTry--
    const wasShort = sleepMs * 1_000_000 <= this.#nanosMax
    if (wasShort && this.#polledInVain) {
      this.#sleepsUntilTry = this.#sleepsPerTry
      this.#sleepsPerTry = Math.min(2 * this.#sleepsPerTry, SLEEPS_PER_TRY.max)
    }
    this.#nanos = wasShort ? Math.min(this.#nanosMax, Math.max(FIRST_NANOS, 2 * this.#nanos)) : 0
  }

  /**
   * Learns what a publish did. To be told after each one.
   *
   * @param armed whether the queue asked for kicks in it
   */
  learn({ polled = false, waited = polled }: Published, armed: boolean): void {
    if (this.#nanosMax === 0) return
    if (armed) {
      this.#asleepSinceMs = this.#now()
      this.#polledInVain = polled && this.#nanos === this.#nanosMax
      this.#stretchSinceMs = undefined
      this.#isStretchOver = false
      return
    }
    // Kicks may have been asked for before, while other requests were not answered. That was no sleep.
    this.#asleepSinceMs = undefined
    if (polled) {
      this.#sleepsPerTry = SLEEPS_PER_TRY.min
      // What is found at once costs no time to speak of, and how much is found is bounded elsewhere (drain's budget).
      if (!waited) return
      const now = this.#now()
      this.#stretchSinceMs ??= now
      this.#isStretchOver = now - this.#stretchSinceMs >= STRETCH_MS_MAX
    }
  }
}
