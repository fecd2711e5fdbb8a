// The lost wake-up on this machine: as shipped never, in any way of suppression; with one ordering weakened always, soon.
// And the same race between two JavaScript threads, which is why indices are touched through Atomics only (F15).
import { noResults } from '../../test-results.mjs'
import { atomicsRace } from '../atomics-race.mjs'

const CONTROL_RUN_COUNT = 20
const CONTROL_MS = 2000
/**
 * What one run as shipped must have tried, in millions, and how long it may take: a few seconds, or a minute where others are at
 * work on the same processors.
 */
const SHIPPED_MILLIONS = { paced: 2.6, ring: 0.52 }
const SHIPPED_MS = 60_000
const ATOMIC_MILLIONS = 1
/** JavaScript cannot pin its threads: beside other work they share a CPU for seconds, where nothing can be lost. */
const UNPINNED_MS = 20_000

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '7',
  title: 'litmus, on this machine',
  killsMutants: true,
  async run({ mutantsOnly }) {
    const { LITMUS_TESTS, runLitmusTest } = await import('../../../dist/testing/litmus.js')
    const { native } = await import('../../../dist/native.js')
    if (native.usableCpuCount() < 2) return { ...noResults(), figure: '', notRun: '1 CPU' }
    const results = { ...noResults(), killed: {}, figure: '' }
    const check = (title, holds) => {
      if (holds) results.passed++
      else results.failed.push(title)
      return holds
    }

    let lossCount = 0
    let slowestMs = 0
    /** Runs a control until it has lost, again and again. */
    const control = async (title, id, run) => {
      let runCount = 0
      for (; runCount < CONTROL_RUN_COUNT; runCount++) {
        const { lost, ms } = await run()
        if (lost === 0) break
        slowestMs = Math.max(slowestMs, ms)
      }
      lossCount += runCount
      const killed = check(
        `${title} lost in ${runCount} of ${CONTROL_RUN_COUNT} runs`,
        runCount === CONTROL_RUN_COUNT,
      )
      results.killed[id] = (results.killed[id] ?? true) && killed
    }
    for (const test of LITMUS_TESTS.filter(({ weakened }) => weakened)) {
      await control(`${titleOf(test)}, weakened,`, mutantOf(test), async () => {
        const { lost, firstLossMs } = await runLitmusTest(test, { durationMs: CONTROL_MS, lostCountMax: 1 })
        return { lost, ms: firstLossMs }
      })
    }
    await control('JavaScript, plain loads and stores,', 'F15', async () => {
      const start = performance.now()
      const { lost } = await atomicsRace({
        access: 'plain',
        roundCountMax: Infinity,
        lostCountMax: 1,
        durationMs: UNPINNED_MS,
      })
      return { lost, ms: performance.now() - start }
    })

    // What the controls are worth: a test that always sees a loss would kill every mutant.
    const share = mutantsOnly ? 0.1 : 1
    const tried = { paced: 0, ring: 0 }
    let lostAsShipped = 0
    for (const test of LITMUS_TESTS.filter(({ weakened }) => !weakened)) {
      const roundCountMax = SHIPPED_MILLIONS[test.experiment] * 1e6 * share
      const { rounds, lost } = await runLitmusTest(test, { durationMs: SHIPPED_MS, roundCountMax })
      tried[test.experiment] += rounds
      lostAsShipped += lost
      check(`${titleOf(test)}, as shipped, lost ${lost} in ${rounds}`, lost === 0)
      check(`${titleOf(test)}, as shipped, had ${rounds} tries`, rounds >= roundCountMax)
    }
    const atomic = await atomicsRace({
      access: 'atomic',
      roundCountMax: ATOMIC_MILLIONS * 1e6 * share,
      lostCountMax: 1,
      durationMs: UNPINNED_MS,
    })
    lostAsShipped += atomic.lost
    check(`JavaScript, Atomics, lost ${atomic.lost} in ${atomic.rounds}`, atomic.lost === 0)
    check(`JavaScript, Atomics, had ${atomic.rounds} tries`, atomic.rounds >= ATOMIC_MILLIONS * 1e6 * share)

    results.figure =
      `as shipped ${lostAsShipped} lost in ${millions(tried.paced)} rounds ${bound(tried.paced)}, ` +
      `${millions(tried.ring)} requests ${bound(tried.ring)}, ${millions(atomic.rounds)} rounds in JavaScript; ` +
      `weakened ${lossCount} runs lost, the slowest after ${slowestMs.toFixed(0)} ms`
    return results
  },
}

function mutantOf({ ordering, suppression }) {
  return ordering === 'F5' ? 'F5' : `${ordering}-${suppression}`
}

function titleOf({ experiment, ordering, suppression }) {
  return `${experiment} ${ordering} ${suppression}`
}

function millions(count) {
  return `${(count / 1e6).toFixed(1)} M`
}

/** The rule of three: none in n tries is a rate below 3 / n with 95 % confidence. */
function bound(count) {
  return `(< ${(3e6 / count).toFixed(2)} per million)`
}
