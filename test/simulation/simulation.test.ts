import test from 'ava'
import { type Sabotage, sabotages } from './sabotage.ts'
import { simulate } from './simulation.ts'

test.serial('in 200 simulations every request is answered once and nothing is left behind', async (t) => {
  for (let seed = 1; seed <= 200; seed++) {
    const { violations } = await simulate(seed)
    t.deepEqual(violations, [], `npm run simulate -- --seed ${seed}`)
  }
})

test.serial('a seed tells the same story each time', async (t) => {
  for (const seed of [1, 2, 3, 93, 182])
    t.deepEqual((await simulate(seed)).story, (await simulate(seed)).story)
  t.notDeepEqual((await simulate(1)).story, (await simulate(2)).story)
})

const noticed = test.macro({
  title: (_, sabotage: Sabotage) => `control: the simulation notices within 50 seeds that ${sabotage}`,
  async exec(t, sabotage: Sabotage) {
    for (let seed = 1; seed <= 50; seed++) {
      const { violations } = await simulate(seed, sabotage)
      if (violations.length === 0) continue
      t.log(`seed ${seed}: ${violations[0]}`)
      t.pass()
      return
    }
    t.fail()
  },
})
// One at a time: a simulation listens for rejections of the whole process.
for (const sabotage of sabotages) test.serial(noticed, sabotage)
