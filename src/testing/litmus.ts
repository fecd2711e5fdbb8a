import { LitmusCounter, LitmusStep, type NativeLitmus, native } from '../native.ts'
import { functionOf, integerIn, refuseUnknownOptions } from '../options.ts'

/** What is tested, in one way of suppression. */
export interface LitmusTest {
  /**
   * `paced`: on each side the store, the barrier and the load, at the same moment by the clock, and nothing else.
   * `ring`: a whole ring with eventfds, one request at a time, on which both sides fall asleep again and again.
   */
  readonly experiment: 'paced' | 'ring'
  /**
   * The ordering of `native/core/ordering.h`: F2, the device signals the driver; F4, the driver kicks the device; F5, the
   * device looks once more before it sleeps. A ring as shipped has all of them.
   */
  readonly ordering: 'F2' | 'F4' | 'F5' | 'all'
  readonly suppression: 'event-idx' | 'flags'
  /** True: the device is built without this ordering, from the same text otherwise. The driver is always right. */
  readonly weakened: boolean
}

/** A test, and what it found. */
export interface LitmusRun extends LitmusTest {
  /** Rounds for which both sides were in time, or requests that were answered. */
  readonly rounds: number
  /** Notifications that were lost. A ring hangs with its first one. */
  readonly lost: number
  /** From the start of the run; undefined when nothing was lost. */
  readonly firstLossMs: number | undefined
  readonly elapsedMs: number
}

/**
 * - `nothing-lost`: nothing as shipped, while each weakened build did lose.
 * - `lost`: a notification was lost as shipped. Never seen; it would be a bug of hushring, or of the machine.
 * - `inconclusive`: nothing as shipped, but some weakened build lost nothing either: this machine could not show it.
 * - `not-run`: this process may use only one CPU, where two sides never run at the same moment.
 */
export type LitmusVerdict = 'nothing-lost' | 'lost' | 'inconclusive' | 'not-run'

/** What {@link litmus} found. */
export interface LitmusResult {
  readonly verdict: LitmusVerdict
  /** Each test of {@link LITMUS_TESTS}, in that order; empty when it was not run. */
  readonly runs: readonly LitmusRun[]
}

/** Options of {@link litmus}. */
export interface LitmusOptions {
  /**
   * About how long all tests take together, 100 ms to a day. A weakened ring that has not hung by then gets up to two
   * seconds more.
   *
   * @default 10000
   */
  readonly durationMs?: number
  /** Called about ten times a second, with the run so far and what share of everything is done, 0 to 1. */
  readonly onProgress?: (run: LitmusRun, fraction: number) => void
  /** Ends the tests; the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal
}

const SUPPRESSIONS = ['event-idx', 'flags'] as const

function testsOf(
  experiment: LitmusTest['experiment'],
  orderings: LitmusTest['ordering'][],
  weakened: boolean,
) {
  return orderings.flatMap((ordering) =>
    SUPPRESSIONS.map((suppression): LitmusTest => ({ experiment, ordering, suppression, weakened })),
  )
}

/** Every test, in the order in which {@link litmus} runs them. */
export const LITMUS_TESTS: readonly LitmusTest[] = [
  ...testsOf('paced', ['F2', 'F4'], true),
  ...testsOf('paced', ['F2', 'F4'], false),
  ...testsOf('ring', ['F2', 'F4', 'F5'], true),
  ...testsOf('ring', ['all'], false),
]

/** A ring without an ordering usually hangs within milliseconds. One that has not after so long is given up. */
const WEAKENED_RING_MS = 2000

/** Per mille of all the time that a test gets: as shipped, where little is left to find, gets most. */
function shareOf({ experiment, weakened }: LitmusTest): number {
  if (experiment === 'paced') return weakened ? 30 : 90
  return weakened ? 10 : 230
}

/**
 * Tests on this machine whether a notification can be lost: with the orderings as shipped, and with each of them
 * weakened, to see that the machine can show a loss at all. Runs on native threads that use two CPUs wholly; this one
 * stays free.
 *
 * A loss is a result, not an error. Rejects when the system has no threads or descriptors left.
 */
export async function litmus(options: LitmusOptions = {}): Promise<LitmusResult> {
  refuseUnknownOptions(options, ['durationMs', 'onProgress', 'signal'])
  const durationMs = integerIn('durationMs', options.durationMs ?? 10_000, 100, 24 * 60 * 60 * 1000)
  const onProgress = functionOf('onProgress', options.onProgress ?? (() => {}))
  if (native.usableCpuCount() < 2) return { verdict: 'not-run', runs: [] }
  const runs: LitmusRun[] = []
  let doneShare = 0
  for (const test of LITMUS_TESTS) {
    const share = shareOf(test)
    const limitMs =
      test.experiment === 'ring' && test.weakened ? WEAKENED_RING_MS : (durationMs * share) / 1000
    const run = await runLitmusTest(
      test,
      { durationMs: Math.ceil(limitMs) },
      {
        ...options,
        onProgress: (run) =>
          onProgress(run, (doneShare + share * Math.min(1, run.elapsedMs / limitMs)) / 1000),
      },
    )
    runs.push(run)
    doneShare += share
    onProgress(run, doneShare / 1000)
  }
  return { verdict: verdictOf(runs), runs }
}

/** @internal What the runs of {@link LITMUS_TESTS} show together. */
export function verdictOf(runs: readonly LitmusRun[]): LitmusVerdict {
  if (runs.some(({ weakened, lost }) => !weakened && lost > 0)) return 'lost'
  const shows = runs.every(({ weakened, rounds, lost }) => (weakened ? lost > 0 : rounds > 0))
  return shows ? 'nothing-lost' : 'inconclusive'
}

/** @internal Limits of one test; 0, the default of the counts: none. A ring ends with its first loss anyway. */
export interface LitmusLimits {
  readonly durationMs: number
  readonly roundCountMax?: number
  readonly lostCountMax?: number
}

/** @internal Runs one test. Two CPUs must be usable. */
export async function runLitmusTest(
  test: LitmusTest,
  limits: LitmusLimits,
  {
    onProgress,
    signal,
  }: { readonly onProgress?: (run: LitmusRun) => void; readonly signal?: AbortSignal } = {},
): Promise<LitmusRun> {
  signal?.throwIfAborted()
  const litmus = native.createLitmus({
    wholeRing: test.experiment === 'ring',
    step: { F2: LitmusStep.signal, F4: LitmusStep.kick, F5: LitmusStep.secondLook, all: LitmusStep.signal }[
      test.ordering
    ],
    eventIdx: test.suppression === 'event-idx',
    weakened: test.weakened,
    roundCountMax: 0,
    lostCountMax: 0,
    ...limits,
  })
  const end = (): void => litmus.close()
  signal?.addEventListener('abort', end)
  const progress =
    onProgress === undefined ? undefined : setInterval(() => onProgress(runOf(test, litmus)), 100)
  try {
    await new Promise<void>((resolve) => litmus.run(resolve))
  } finally {
    clearInterval(progress)
    signal?.removeEventListener('abort', end)
    litmus.close()
  }
  signal?.throwIfAborted()
  return runOf(test, litmus)
}

function runOf(test: LitmusTest, { counters }: NativeLitmus): LitmusRun {
  const value = (counter: number): number => Number(counters[counter])
  const lost = value(LitmusCounter.lost)
  return {
    ...test,
    rounds: value(LitmusCounter.rounds),
    lost,
    firstLossMs: lost === 0 ? undefined : value(LitmusCounter.firstLossNanos) / 1e6,
    elapsedMs: value(LitmusCounter.elapsedNanos) / 1e6,
  }
}
