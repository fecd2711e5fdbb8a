// What the native core is compared with the reference models on, and the planted bugs that the comparison must notice.
import fc from 'fast-check'
import { ChainsStage, driverChains } from './driver-chains.ts'
import { Disagreement } from './expect-same.ts'
import { splitBugs, tcmuBugs } from './planted-bugs.ts'
import { playSplit, splitHistories } from './split-history.ts'
import { laps, playLap } from './split-laps.ts'
import { playTcmu, tcmuHistories } from './tcmu-history.ts'

/** How a property came out. */
export interface Outcome {
  /** Cases tried, up to the first that fails. */
  readonly caseCount: number
  /** The smallest case that fails, as a story with the way to play it again. */
  readonly story?: string
}

/** How many cases, from where; `path` is fast-check's, of one case in a run. */
export interface Extent {
  readonly count: number
  readonly seed: number
  readonly path?: string
}

/** A property of random cases. */
export interface Property {
  readonly title: string
  check(extent: Extent): Outcome
}

/** A bug that the property called `property` must notice. */
export interface Control {
  readonly title: string
  readonly property: string
  check(extent: Extent): Outcome
}

function checked<Case>(
  name: string,
  cases: fc.Arbitrary<Case>,
  play: (value: Case) => void,
  extent: Extent,
): Outcome {
  const { count, ...from } = extent
  const details = fc.check(fc.property(cases, play), { numRuns: count, ...from })
  if (!details.failed) return { caseCount: details.numRuns }
  const [smallest] = details.counterexample as [Case]
  const error = details.errorInstance as Error
  const story = [
    `${name}: case ${details.numRuns} of seed ${details.seed}, made smaller ${details.numShrinks} times`,
    ...toldOf(smallest as object),
    `  ${error instanceof Disagreement ? error.message : error.stack}`,
    `  again: node --import=tsx test/models/run.ts ${name} --seed ${details.seed} --path ${details.counterexamplePath}`,
  ].join('\n')
  return { caseCount: details.numRuns, story }
}

/** A history with a line for each step; anything else in lines as it comes. */
function toldOf(value: object): string[] {
  const told = (part: unknown) => JSON.stringify(part).replaceAll('"', '').replaceAll(',', ', ')
  return Object.entries(value).flatMap(([key, part]) => {
    if (key !== 'steps') return [`  ${key}: ${told(part)}`]
    return (part as { do: string }[]).map(
      ({ do: verb, ...rest }, index) => `  ${index + 1}. ${verb} ${told(rest)}`,
    )
  })
}

/** A disagreement is what a planted bug has to show; that the wrong model falls over its own feet is not one. */
export function disagreementsOf<Case>(play: (value: Case) => void): (value: Case) => void {
  return (value) => {
    try {
      play(value)
    } catch (error) {
      if (error instanceof Disagreement) throw error
    }
  }
}

/** By name. */
export const properties: Readonly<Record<string, Property>> = {
  split: {
    title: 'native core and model agree on every history of a split ring',
    check: (extent) => checked('split', splitHistories, (history) => playSplit(history), extent),
  },
  tcmu: {
    title: 'native core and model agree on every history of a TCMU ring',
    check: (extent) => checked('tcmu', tcmuHistories, (history) => playTcmu(history), extent),
  },
  laps: {
    title: 'native core and model agree on laps of the used index, and the signal that is owed comes',
    check: (extent) => checked('laps', laps, (lap) => playLap(lap), extent),
  },
  chains: {
    title: 'what the driver of the test kit puts onto a ring is what is taken off it',
    check(extent) {
      const stage = new ChainsStage()
      try {
        return checked('chains', driverChains, (chains) => stage.play(chains), extent)
      } finally {
        stage.close()
      }
    },
  },
}

export const controls: readonly Control[] = [
  ...splitBugs.map(({ title, Model }) => ({
    title,
    property: 'split',
    check: (extent: Extent) =>
      checked(
        'split',
        splitHistories,
        disagreementsOf((history) => playSplit(history, Model)),
        extent,
      ),
  })),
  ...tcmuBugs.map(({ title, Model }) => ({
    title,
    property: 'tcmu',
    check: (extent: Extent) =>
      checked(
        'tcmu',
        tcmuHistories,
        disagreementsOf((history) => playTcmu(history, Model)),
        extent,
      ),
  })),
  {
    // Only after exactly a lap: parked where it was, used_event is in the way of no other completion.
    title: `${splitBugs[0]!.title}, which 65,535 silent completions bring about`,
    property: 'laps',
    check: (extent) =>
      checked(
        'laps',
        laps.map((lap) => ({ ...lap, eventIdx: true, parksAgain: false })),
        disagreementsOf((lap) => playLap(lap, splitBugs[0]!.Model)),
        extent,
      ),
  },
]
