import test from 'ava'
import { missing, simulateMany, worlds } from './simulations.ts'

/** Enough for everything to come up, and for each mistake to be noticed. */
const SEEDS = {
  split: { plain: 200, sabotaged: 50 },
  tcmu: { plain: 300, sabotaged: 60 },
  'vhost-user': { plain: 300, sabotaged: 60 },
} as const
const TITLES = {
  split: 'every request is answered once and nothing is left behind',
  tcmu: 'every command is answered once or given up, and nothing is left behind',
  'vhost-user': 'no descriptor is left open, and whoever comes next is served',
} as const

const isRight = test.macro({
  title: (_, name: keyof typeof SEEDS) =>
    `in ${SEEDS[name].plain} simulations of ${worlds[name]!.title} ${TITLES[name]}`,
  async exec(t, name: keyof typeof SEEDS) {
    const world = worlds[name]!
    const summary = await simulateMany(world, 1, SEEDS[name].plain, undefined, (seed, violation) =>
      t.log(`npm run simulate -- --of ${name} --seed ${seed}    ${violation}`),
    )
    t.deepEqual(summary.wrong, [])
    t.deepEqual(missing(world, summary), [], 'a fault or a handler never came up')
  },
})

const isRepeatable = test.macro({
  title: (_, name: keyof typeof SEEDS) => `a seed of ${worlds[name]!.title} tells the same story each time`,
  async exec(t, name: keyof typeof SEEDS) {
    const story = async (seed: number) => (await worlds[name]!.simulate(seed)).story
    for (const seed of [1, 2, 3, 93, 182]) t.deepEqual(await story(seed), await story(seed))
    t.notDeepEqual(await story(1), await story(2))
  },
})

const isNoticed = test.macro({
  title: (_, name: keyof typeof SEEDS, sabotage: string) =>
    `control: the simulation of ${worlds[name]!.title} notices within ${SEEDS[name].sabotaged} seeds that ${sabotage}`,
  async exec(t, name: keyof typeof SEEDS, sabotage: string) {
    for (let seed = 1; seed <= SEEDS[name].sabotaged; seed++) {
      const { violations } = await worlds[name]!.simulate(seed, sabotage)
      if (violations.length === 0) continue
      t.log(`seed ${seed}: ${violations[0]}`)
      t.pass()
      return
    }
    t.fail()
  },
})

// One at a time: a simulation listens for rejections of the whole process.
for (const name of Object.keys(SEEDS) as (keyof typeof SEEDS)[]) {
  test.serial(isRight, name)
  test.serial(isRepeatable, name)
  for (const sabotage of worlds[name]!.sabotages) test.serial(isNoticed, name, sabotage)
}

test('control: what never came up is missing', (t) => {
  const world = worlds.tcmu!
  const counts = Object.fromEntries([...world.faults, ...world.behaviours].map((what) => [what, 1]))
  t.deepEqual(missing(world, { counts }), [])
  t.deepEqual(missing(world, { counts: { ...counts, 'LUN RESET': 0 } }), ['LUN RESET'])
  const { 'aborted before it is taken': _, ...others } = counts
  t.deepEqual(missing(world, { counts: others }), ['aborted before it is taken'])
})
