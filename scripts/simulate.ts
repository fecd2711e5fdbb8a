// npm run simulate: the product with faults that a seed decides, in one of the worlds of test/simulation.
//
//   npm run simulate -- --seed 93                              tells what happens with this seed
//   npm run simulate -- --seed 93 --of tcmu                    the same for a TCMU ring; or vhost-user
//   npm run simulate -- --count 10000 --from 1                 runs many and prints what came up; --json for a program
//   npm run simulate -- --seed 3 --sabotage F14                with a mistake that must be noticed
import { parseArgs } from 'node:util'
import { missing, simulateMany, worlds } from '../test/simulation/simulations.ts'

const { values: flags } = parseArgs({
  options: {
    of: { type: 'string', default: 'split' },
    seed: { type: 'string' },
    count: { type: 'string', default: '1000' },
    from: { type: 'string', default: '1' },
    sabotage: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
})
const { of, sabotage } = flags
const world = worlds[of] ?? refuse(`no world '${of}'; there are ${Object.keys(worlds).join(', ')}`)
if (sabotage !== undefined && !world.sabotages.includes(sabotage)) {
  refuse(`no sabotage '${sabotage}'; there are: ${world.sabotages.join('; ')}`)
}

if (flags.seed !== undefined) {
  const { story, violations } = await world.simulate(Number(flags.seed), sabotage)
  for (const line of story) console.log(line)
  console.log(violations.length === 0 ? 'all is well' : `WRONG: ${violations.join('; ')}`)
  process.exitCode = violations.length === 0 ? 0 : 1
} else {
  const summary = await simulateMany(
    world,
    Number(flags.from),
    Number(flags.count),
    sabotage,
    (seed, violation) => {
      if (!flags.json) console.log(`npm run simulate -- --of ${of} --seed ${seed}    ${violation}`)
    },
  )
  const { seedCount, stepCount, counts, wrong } = summary
  process.exitCode = wrong.length === 0 ? 0 : 1
  if (flags.json) {
    console.log(JSON.stringify({ ...summary, faults: world.faults, missing: missing(world, summary) }))
  } else {
    for (const [what, times] of Object.entries(counts)) console.log(`${String(times).padStart(8)}  ${what}`)
    for (const what of missing(world, summary)) console.log(`   never  ${what}`)
    console.log(`${seedCount} seeds from ${flags.from}, ${stepCount} steps, ${wrong.length} wrong`)
  }
}

function refuse(why: string): never {
  console.error(why)
  process.exit(2)
}
