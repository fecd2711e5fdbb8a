// The product in worlds that a seed decides (test/simulation): faults, aborts, disconnects. The controls, which are mistakes
// at the seams of the product, are unit tests; the one for unmapping too early counts as the mutant F14.
import { run } from '../../processes.mjs'
import { noResults } from '../../test-results.mjs'

const program = ['node', '--import=tsx', 'scripts/simulate.ts', '--json']

/** Worlds, and how many seeds of each. */
const seedCounts = { split: 10_000, tcmu: 5_000, 'vhost-user': 2_000 }

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '11',
  title: 'simulation with faults, by seed',
  killsMutants: true,
  async run({ mutantsOnly, show }) {
    const results = { ...noResults(), killed: {}, figure: '' }
    if (!mutantsOnly) {
      // Each is one thread that waits for nothing, so they share the processors.
      const played = await Promise.all(
        Object.entries(seedCounts).map(async ([world, count]) => [
          world,
          await simulate(['--of', world, '--count', String(count)], show),
        ]),
      )
      for (const [world, summary] of played) judge(world, summary, results)
      results.figure = played.map(([world, summary]) => figureOf(world, summary)).join('; ')
      for (const [world, { counts, faults }] of played) {
        show(`${world}: ${faults.map((what) => `${counts[what] ?? 0} ${what}`).join(', ')}`)
      }
    }
    const mutant = await simulate(['--count', '50', '--sabotage', 'F14'], show)
    results.killed.F14 = mutant.wrong.length > 0
    if (results.killed.F14) results.passed++
    else results.failed.push('F14 is not noticed')
    return results
  },
}

function judge(world, { wrong, missing }, results) {
  for (const { seed, violations } of wrong) results.failed.push(`${world}: seed ${seed}: ${violations[0]}`)
  if (wrong.length === 0) results.passed++
  // What never comes up is not tested.
  for (const what of missing) results.failed.push(`${world}: never came up: ${what}`)
  if (missing.length === 0) results.passed++
}

function figureOf(world, { seedCount, stepCount, counts, faults }) {
  const faultCount = faults.reduce((sum, what) => sum + (counts[what] ?? 0), 0)
  return `${world} ${seedCount} seeds, ${stepCount} steps, ${faultCount} faults of ${faults.length} kinds`
}

/** Runs seeds. @returns {Promise<object>} the summary of test/simulation/simulations.ts, with `faults` and `missing` */
async function simulate(flags, show) {
  const { output } = await run([...program, ...flags])
  try {
    return JSON.parse(output)
  } catch (error) {
    show(output)
    throw error
  }
}
