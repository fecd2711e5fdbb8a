import type { Outcome } from './simulation.ts'
import { simulateSplit, splitBehaviours, splitFaults } from './split.ts'
import { splitSabotages } from './split-sabotage.ts'
import { simulateTcmu, tcmuBehaviours, tcmuFaults } from './tcmu.ts'
import { tcmuSabotages } from './tcmu-sabotage.ts'
import { simulateVhostUser, vhostUserBehaviours, vhostUserFaults } from './vhost-user.ts'
import { vhostUserSabotages } from './vhost-user-sabotage.ts'

/** One world that seeds decide. */
export interface SimulatedWorld {
  /** What was played in a sentence's end, such as "the TCMU pipeline". */
  readonly title: string
  /** Plays one seed, with a mistake to be noticed or without. */
  simulate(seed: number, sabotage?: string): Promise<Outcome>
  /** Faults of the peer and the operator, by the names under which they are counted. */
  readonly faults: readonly string[]
  /** Ways of handlers, by the names under which they are counted. */
  readonly behaviours: readonly string[]
  readonly sabotages: readonly string[]
}

export const worlds: Readonly<Record<string, SimulatedWorld>> = {
  split: {
    title: 'the pipeline of a virtqueue',
    simulate: simulateSplit as SimulatedWorld['simulate'],
    faults: splitFaults,
    behaviours: splitBehaviours,
    sabotages: splitSabotages,
  },
  tcmu: {
    title: 'the pipeline of a TCMU ring',
    simulate: simulateTcmu as SimulatedWorld['simulate'],
    faults: tcmuFaults,
    behaviours: tcmuBehaviours,
    sabotages: tcmuSabotages,
  },
  'vhost-user': {
    title: 'vhost-user connections',
    simulate: simulateVhostUser as SimulatedWorld['simulate'],
    faults: vhostUserFaults,
    behaviours: vhostUserBehaviours,
    sabotages: vhostUserSabotages,
  },
}

/** What many seeds came to. */
export interface Summary {
  readonly seedCount: number
  readonly stepCount: number
  /** How often each fault and each way of a handler came up. */
  readonly counts: Readonly<Record<string, number>>
  readonly wrong: readonly { readonly seed: number; readonly violations: readonly string[] }[]
}

/** Plays seeds one after the other. @param onWrong called for each one in which something is wrong */
export async function simulateMany(
  world: SimulatedWorld,
  from: number,
  seedCount: number,
  sabotage?: string,
  onWrong: (seed: number, violation: string) => void = () => {},
): Promise<Summary> {
  const counts: Record<string, number> = {}
  const wrong: { seed: number; violations: readonly string[] }[] = []
  let stepCount = 0
  for (let seed = from; seed < from + seedCount; seed++) {
    const outcome = await world.simulate(seed, sabotage)
    stepCount += outcome.story.length
    for (const [what, times] of Object.entries(outcome.counts)) counts[what] = (counts[what] ?? 0) + times
    if (outcome.violations.length > 0) {
      wrong.push({ seed, violations: outcome.violations })
      onWrong(seed, outcome.violations[0]!)
    }
    // What was closed is let go in a turn of the event loop, which a simulation on a virtual clock never lets come.
    await new Promise(setImmediate)
  }
  return { seedCount, stepCount, counts, wrong }
}

/** Faults and ways of handlers that never came up, although the world has them. */
export function missing(world: SimulatedWorld, { counts }: Pick<Summary, 'counts'>): string[] {
  return [...world.faults, ...world.behaviours].filter((what) => (counts[what] ?? 0) === 0)
}
