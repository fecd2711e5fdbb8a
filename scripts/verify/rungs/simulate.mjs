// The pipeline on a virtual clock with faults, by seed (test/simulation). Its controls, which are mistakes at the seams of
// the product, are unit tests; the one for unmapping too early counts as the mutant F14.
import { run } from '../../processes.mjs'
import { noResults } from '../../test-results.mjs'

const seeds = 10_000
const program = ['node', '--import=tsx', 'scripts/simulate.ts', '--json']

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '11',
  title: 'simulation with faults, by seed',
  killsMutants: true,
  async run({ mutantsOnly, show }) {
    const results = { ...noResults(), killed: {}, figure: '' }
    if (!mutantsOnly) {
      const { seeds: ran, steps, counts, wrong } = await simulate(['--count', String(seeds)], show)
      for (const { seed, violations } of wrong) results.failed.push(`seed ${seed}: ${violations[0]}`)
      if (wrong.length === 0) results.passed++
      const faults = Object.entries(counts).filter(([what]) => /^(a|the|what) /.test(what))
      const faultCount = faults.reduce((sum, [, times]) => sum + times, 0)
      results.figure = `${ran} seeds, ${steps} steps, ${faultCount} faults of ${faults.length} kinds`
    }
    const mutant = await simulate(['--count', '50', '--sabotage', 'F14'], show)
    results.killed.F14 = mutant.wrong.length > 0
    if (results.killed.F14) results.passed++
    else results.failed.push('F14 is not noticed')
    return results
  },
}

/** Runs seeds. @returns {Promise<{ seeds: number, steps: number, counts: Record<string, number>, wrong: object[] }>} */
async function simulate(flags, show) {
  const { output } = await run([...program, ...flags])
  try {
    return JSON.parse(output)
  } catch (error) {
    show(output)
    throw error
  }
}
