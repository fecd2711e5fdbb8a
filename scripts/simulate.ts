// npm run simulate: the pipeline on a virtual clock, with faults that a seed decides.
//
//   npm run simulate -- --seed 93                tells what happens with this seed
//   npm run simulate -- --count 10000 --from 1   runs many and prints what came up; --json for a program
//   npm run simulate -- --seed 3 --sabotage F14  with a mistake that must be noticed
import { parseArgs } from 'node:util'
import { type Sabotage, sabotages } from '../test/simulation/sabotage.ts'
import { simulate } from '../test/simulation/simulation.ts'

const { values: flags } = parseArgs({
  options: {
    seed: { type: 'string' },
    count: { type: 'string', default: '1000' },
    from: { type: 'string', default: '1' },
    sabotage: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
})
const sabotage = flags.sabotage as Sabotage | undefined
if (sabotage !== undefined && !sabotages.includes(sabotage)) {
  console.error(`no sabotage '${sabotage}'; there are: ${sabotages.join('; ')}`)
  process.exit(2)
}

if (flags.seed !== undefined) {
  const { story, violations } = await simulate(Number(flags.seed), sabotage)
  for (const line of story) console.log(line)
  console.log(violations.length === 0 ? 'all is well' : `WRONG: ${violations.join('; ')}`)
  process.exitCode = violations.length === 0 ? 0 : 1
} else {
  await runMany(Number(flags.from), Number(flags.count))
}

async function runMany(from: number, count: number): Promise<void> {
  const counts: Record<string, number> = {}
  const wrong: { seed: number; violations: readonly string[] }[] = []
  let stepCount = 0
  for (let seed = from; seed < from + count; seed++) {
    const outcome = await simulate(seed, sabotage)
    stepCount += outcome.story.length
    for (const [what, times] of Object.entries(outcome.counts)) counts[what] = (counts[what] ?? 0) + times
    if (outcome.violations.length > 0) wrong.push({ seed, violations: outcome.violations })
    if (!flags.json && outcome.violations.length > 0) {
      console.log(`npm run simulate -- --seed ${seed}    ${outcome.violations[0]}`)
    }
  }
  process.exitCode = wrong.length === 0 ? 0 : 1
  if (flags.json) {
    console.log(JSON.stringify({ seeds: count, steps: stepCount, counts, wrong }))
    return
  }
  for (const [what, times] of Object.entries(counts)) console.log(`${String(times).padStart(8)}  ${what}`)
  console.log(`${count} seeds from ${from}, ${stepCount} steps, ${wrong.length} wrong`)
}
