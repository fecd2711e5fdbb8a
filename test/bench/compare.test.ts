import test from 'ava'
import { instructionsIn, verdictOf } from '../../bench/compare.ts'
import { medianInterval } from '../../bench/statistics.ts'

const says = test.macro({
  exec(t, ratios: readonly number[], verdict: string) {
    t.is(verdictOf(ratios, 'faster', 'slower'), verdict)
  },
  title: (_, ratios: readonly number[], verdict) => `ratios of ${ratios.join(', ')}: ${verdict}`,
})
test(says, [1.02, 1.05, 1.01, 1.1, 1.03, 1.2, 1.04], 'faster')
test(says, [0.98, 0.95, 0.99, 0.9, 0.97, 0.8, 0.96], 'slower')
test(says, [1.02, 1.05, 0.999, 1.1, 1.03, 1.2, 1.04], 'no difference seen')
test(says, [1, 1, 1, 1, 1, 1, 1], 'no difference seen')
test(says, [2, 2, 2, 2, 2], 'too few rounds to say')
// Of eleven, one on either side may differ.
test(says, [1.1, 1.1, 0.9, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1], 'faster')
test(says, [1.1, 1.1, 0.9, 0.9, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1], 'no difference seen')

test('the interval holds the true median as often as it says (seed 5)', (t) => {
  let state = 5
  const random = (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
  const missShare = (median: number): number => {
    let missed = 0
    for (let trial = 0; trial < 4000; trial++) {
      const { low, high } = medianInterval(Array.from({ length: 9 }, random))!
      if (median < low || median > high) missed++
    }
    return missed / 4000
  }
  t.true(missShare(0.5) < 0.05)
  t.true(missShare(0.1) > 0.5, 'control: what is not the median is missed')
})

test('instructions are read from what the script prints', (t) => {
  const output =
    'instructions a request: split, 8 a batch: 932, agreed 932\nother\ninstructions a request: tcmu: 7, agreed 8\n'
  t.deepEqual(
    [...instructionsIn(output)],
    [
      ['split, 8 a batch', 932],
      ['tcmu', 7],
    ],
  )
  t.is(instructionsIn('instructions: no valgrind').size, 0)
})
