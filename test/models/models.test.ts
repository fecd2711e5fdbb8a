import test from 'ava'
import { Disagreement } from './expect-same.ts'
import { splitBugs } from './planted-bugs.ts'
import { controls, disagreementsOf, properties } from './properties.ts'
import { playSplit, type SplitHistory } from './split-history.ts'

// The rung of `npm run verify` tries fifty times as many, and every planted bug.
const HISTORY_COUNT = 2000
const LAP_COUNT = 2
const seed = Math.trunc(Math.random() * 0x7fff_ffff)

for (const [name, property] of Object.entries(properties)) {
  test(property.title, (t) => {
    const count = name === 'laps' ? LAP_COUNT : HISTORY_COUNT
    const { caseCount, story } = property.check({ count, seed })
    t.is(story, undefined, story)
    t.is(caseCount, count)
  })
}

const isNoticed = test.macro({
  exec(t, property: string) {
    const control = controls.find((candidate) => candidate.property === property)!
    const { story } = control.check({ count: 50_000, seed })
    t.truthy(story)
    t.regex(story!, /native .*, model /)
    const [, seedAgain, path] = /--seed (\S+) --path (\S+)$/.exec(story!)!
    const again = control.check({ count: 50_000, seed: Number(seedAgain), path: path! })
    t.is(again.caseCount, 1)
    t.truthy(again.story)
  },
  title: (_, property) =>
    `${property}: a planted bug is noticed, made small, and found again by its seed and path`,
})
test(isNoticed, 'split')
test(isNoticed, 'tcmu')

test('a story has a line for each step', (t) => {
  const { story } = controls[0]!.check({ count: 50_000, seed })
  t.regex(story!, /\n {2}1\. [a-z ]+ \{/)
  t.regex(story!, /\n {2}2\. /)
  t.regex(story!, /\n {2}\d+\. add a chain \{/)
})

const emptyHistory: SplitHistory = {
  options: {
    headerBytes: 0,
    statusByte: false,
    batchCountMax: 8,
    sizeMax: 8,
    chainCountMax: 8,
    strictChains: false,
  },
  ring: {
    size: 8,
    eventIdx: true,
    indirect: false,
    guestAddresses: false,
    table: 0,
    availableBase: 0,
    usedIndex: 0,
    shift: 0,
  },
  steps: [],
}

test('a model that falls over its own feet is a failure, but not the notice that a control wants', (t) => {
  class Falls extends splitBugs[0]!.Model {
    override start(): never {
      throw new RangeError('on purpose')
    }
  }
  const play = (history: SplitHistory) => playSplit(history, Falls)
  t.throws(() => play(emptyHistory), { instanceOf: RangeError })
  t.notThrows(() => disagreementsOf(play)(emptyHistory))
})

test('a disagreement names the step and both values', (t) => {
  class NeverArmed extends splitBugs[0]!.Model {
    protected override askForKicks(): void {}
  }
  const steps = [{ do: 'complete', answers: [], defers: false }] as const
  const error = t.throws(() => playSplit({ ...emptyHistory, steps }, NeverArmed), {
    instanceOf: Disagreement,
  })
  t.is(error!.message, 'step 1 (complete): complete: native 8, model 4')
})
