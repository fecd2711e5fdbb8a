import {
  type LitmusResult,
  type LitmusRun,
  type LitmusTest,
  type LitmusVerdict,
  litmus as runLitmus,
} from '../testing/litmus.ts'
import { count } from './demonstration.ts'
import { barProgress, lineProgress, noProgress, type ProgressView } from './progress.ts'
import { formatTable } from './table.ts'

/** Options of the command `hushring litmus`. */
export interface LitmusCommandOptions {
  /** How long all tests take together, in seconds. */
  readonly seconds: number
  /** True: one JSON object on stdout instead of the tables, and no progress. */
  readonly json?: boolean
}

const EXIT_STATUS: Readonly<Record<LitmusVerdict, number>> = {
  'nothing-lost': 0,
  lost: 1,
  inconclusive: 3,
  'not-run': 4,
}

/** Runs the litmus tests in the surroundings of this process. @returns the exit status */
export async function litmus({ seconds, json = false }: LitmusCommandOptions): Promise<number> {
  const makeProgress = process.stderr.isTTY ? barProgress : lineProgress
  const progress = json ? noProgress : makeProgress((text) => void process.stderr.write(text))
  const result = await runLitmus({ durationMs: seconds * 1000, onProgress: showingParts(progress) })
  progress.end()
  process.stdout.write(json ? `${JSON.stringify(result)}\n` : textReport(result))
  return EXIT_STATUS[result.verdict]
}

/** A part for each kind of test. */
function showingParts(progress: ProgressView): (run: LitmusRun, fraction: number) => void {
  let part = ''
  return (run, fraction) => {
    const name = `${run.weakened ? 'weakened' : 'as shipped'}, ${run.experiment === 'paced' ? 'rounds by the clock' : 'a whole ring'}`
    if (name !== part) progress.begin(name.padEnd(31))
    part = name
    progress.update(fraction, `${count(run.rounds)} ${unitOf(run)}, ${count(run.lost)} lost`)
  }
}

// ---- For people ------------------------------------------------------------------------------------------------

/** What litmus() found, as text that ends with a verdict. */
export function textReport(result: LitmusResult): string {
  if (result.verdict === 'not-run') {
    return `
not run: 1 CPU. Two sides that never run at the same moment lose nothing, whatever is missing: this process may use one
CPU only. Let it have two, for example with taskset -c 0,1.
`
  }
  return `
Each side leaves a word for the other and then looks at the other's word; a processor may look before its own word has
left, and when both do, both fall asleep over a waiting request, unless a barrier stands between the two steps.

${pacedTable(result.runs)}

${ringTable(result.runs)}

${verdictText(result)}
`
}

function pacedTable(runs: readonly LitmusRun[]): string {
  const paced = runs.filter(({ experiment }) => experiment === 'paced')
  const rows = paced
    .filter(({ weakened }) => weakened)
    .map((control) => {
      const shipped = paced.find(
        ({ weakened, ordering, suppression }) =>
          !weakened && ordering === control.ordering && suppression === control.suppression,
      )!
      return [
        `${directionOf(control)}, ${suppressionOf(control)}`,
        count(control.rounds),
        count(control.lost),
        count((control.lost * 1e6) / Math.max(1, control.rounds)),
        afterMs(control),
        `${count(shipped.lost)} of ${count(shipped.rounds)}`,
        boundPerMillion(shipped),
      ]
    })
  return formatTable([
    [
      'both at once, by the clock',
      'no barrier: rounds',
      'lost',
      'per million',
      'first',
      'as shipped: lost',
      'bound',
    ],
    ...rows,
  ])
}

function ringTable(runs: readonly LitmusRun[]): string {
  const rows = runs
    .filter(({ experiment }) => experiment === 'ring')
    .map((run) => [
      `${suppressionOf(run)}, ${run.weakened ? MISSING[run.ordering] : 'as shipped'}`,
      count(run.rounds),
      run.lost > 0 ? `hung after ${afterMs(run)}` : `0 of ${count(run.rounds)}`,
      run.weakened ? '–' : boundPerMillion(run),
    ])
  return formatTable([['a whole ring, asleep in between', 'requests', 'lost', 'bound'], ...rows])
}

function verdictText({ verdict, runs }: LitmusResult): string {
  const shipped = runs.filter(({ weakened }) => !weakened)
  const sum = (experiment: LitmusTest['experiment']): string =>
    count(shipped.reduce((total, run) => total + (run.experiment === experiment ? run.rounds : 0), 0))
  const tried = `${sum('paced')} rounds and ${sum('ring')} requests`
  if (verdict === 'lost') {
    return `A NOTIFICATION WAS LOST as shipped, in ${tried}. That must never be: please report it, with this output.`
  }
  if (verdict === 'inconclusive') {
    const blind = runs.filter(({ weakened, lost }) => weakened && lost === 0)
    const names = blind.map(
      (run) => `${directionOf(run)}, ${suppressionOf(run)} (${EXPERIMENTS[run.experiment]})`,
    )
    return `\
THIS MACHINE COULD NOT SHOW IT: weakened builds lost nothing either, so that 0 lost in ${tried} as shipped says
little. Try again with more --seconds and less other work. Not seen: ${names.join('; ') || 'a run had no time at all'}.`
  }
  return `\
Nothing was lost as shipped: 0 in ${tried}; with one step left out, every test lost.
Bound: the true rate per million is below it with 95 % confidence (three losses among all that was tried).`
}

const EXPERIMENTS: Readonly<Record<LitmusTest['experiment'], string>> = {
  paced: 'by the clock',
  ring: 'a whole ring',
}

const MISSING: Readonly<Record<LitmusTest['ordering'], string>> = {
  F2: 'no barrier before a signal',
  F4: 'no barrier after asking for kicks',
  F5: 'no second look before sleeping',
  all: 'no barrier',
}

function directionOf({ ordering }: LitmusTest): string {
  return ordering === 'F2' ? 'device signals driver' : 'driver kicks device'
}

function suppressionOf({ suppression }: LitmusTest): string {
  return suppression === 'event-idx' ? 'EVENT_IDX' : 'flags'
}

function unitOf({ experiment }: LitmusTest): string {
  return experiment === 'paced' ? 'rounds' : 'requests'
}

function afterMs({ firstLossMs }: LitmusRun): string {
  return firstLossMs === undefined ? 'never' : `${firstLossMs.toFixed(1)} ms`
}

/** The rule of three: nothing in n tries means, with 95 % confidence, a rate below 3 / n. */
function boundPerMillion({ rounds, lost }: LitmusRun): string {
  return lost > 0 || rounds === 0 ? 'none' : `< ${((3 * 1e6) / rounds).toFixed(2)} per million`
}
