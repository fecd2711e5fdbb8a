import { NO_STATS, type TransportStats } from '../stats.ts'

const NAMES = Object.keys(NO_STATS) as (keyof TransportStats)[]
const COUNTS_AT_BYTES = 8
/** Counts with those of the histograms, which all have the same length. */
const COUNT_COUNT = Object.values(NO_STATS).flat().length

/**
 * The counts of one worker, in memory that both threads see: who asks for statistics gets them at once, and a server's
 * `statsSnapshot()` can stay a function without a promise.
 */
export class StatsBoard {
  readonly memory: SharedArrayBuffer
  /** How often the worker has written. */
  readonly #writings: Int32Array
  readonly #counts: Float64Array

  /** @param memory that of the other thread's board; left out: fresh */
  constructor(
    memory = new SharedArrayBuffer(COUNTS_AT_BYTES + COUNT_COUNT * Float64Array.BYTES_PER_ELEMENT),
  ) {
    this.memory = memory
    this.#writings = new Int32Array(memory, 0, 1)
    this.#counts = new Float64Array(memory, COUNTS_AT_BYTES)
  }

  /** Writes the counts, and wakes who waits for them. For the worker, and for the main thread before a session begins. */
  write(stats: TransportStats): void {
    this.#counts.set(NAMES.flatMap((name) => stats[name]))
    Atomics.add(this.#writings, 0, 1)
    Atomics.notify(this.#writings, 0)
  }

  /** The counts as they were written last. */
  read(): TransportStats {
    const counts = [...this.#counts]
    const stats = NAMES.map((name) => {
      const none = NO_STATS[name]
      return [name, typeof none === 'number' ? counts.shift() : counts.splice(0, none.length)]
    })
    return Object.fromEntries(stats) as unknown as TransportStats
  }

  /**
   * Has fresh counts written, and waits for them, but not longer than until `deadlineMs`, because the worker may be busy
   * for any time; then the earlier ones stand. This thread stands still meanwhile.
   *
   * @param ask asks the worker for a {@link write}
   * @param deadlineMs a time of `performance.now()`
   */
  refresh(ask: () => void, deadlineMs: number): void {
    const before = Atomics.load(this.#writings, 0)
    ask()
    const leftMs = deadlineMs - performance.now()
    if (leftMs > 0) Atomics.wait(this.#writings, 0, before, leftMs)
  }
}
