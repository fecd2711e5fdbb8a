// npm run bench:compare -- A B: whether commit B is faster than commit A. Both are built in a folder of their own and serve at
// the same time; the front-end generator of this checkout drives them in alternation, so that nothing differs but the
// back-end. Instructions, which repeat exactly, are counted for both where the machine has the tools.
import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { start } from '../test/helpers/processes.ts'
import { cpuMicrosPerRequest, type LoadOrder, type LoadSample, pinBackEnd, runLoad, warmUp } from './load.ts'
import { Scope } from './scope.ts'
import { interleave, markdownTable, medianInterval, spreadOf } from './statistics.ts'
import { ratios } from './targets.ts'

const root = fileURLToPath(new URL('..', import.meta.url))

/** What is compared: the rows that most users would notice. */
const ROWS: readonly {
  readonly name: string
  readonly words: readonly string[]
  readonly order: LoadOrder
}[] = [
  ...[1, 32, 128].map((queueDepth) => ({
    name: `null-qd${queueDepth}`,
    words: ['--null', '1GiB', '--device', 'bench/null-device.mjs'],
    order: { queueDepth },
  })),
  {
    name: 'null-immediate-qd32',
    words: ['--null', '1GiB', '--device', 'bench/null-device.mjs', '--suppression', 'immediate'],
    order: { queueDepth: 32 },
  },
  {
    name: 'promise-qd32',
    words: ['--null', '1GiB', '--device', 'bench/promise-device.mjs'],
    order: { queueDepth: 32 },
  },
  { name: 'memory-qd32', words: ['--memory', '256MiB'], order: { queueDepth: 32, writePercent: 50 } },
]

/**
 * What the ratios of B to A say. Their interval is that of a sign test: with seven rounds all of them must agree.
 *
 * @param more what a ratio above 1 is called, such as `faster`
 */
export function verdictOf(samples: readonly number[], more: string, less: string): string {
  const interval = medianInterval(samples)
  if (interval === undefined) return 'too few rounds to say'
  if (interval.low > 1) return more
  if (interval.high < 1) return less
  return 'no difference seen'
}

/** Builds a commit in a folder of its own. @returns the folder */
function build(scope: Scope, parent: string, name: string, commit: string): string {
  const folder = join(parent, name)
  const run = (program: string, ...words: readonly string[]): void =>
    void execFileSync(program, words, { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] })
  execFileSync('git', ['worktree', 'add', '--quiet', '--detach', folder, commit], { cwd: root })
  scope.teardown(() => execFileSync('git', ['worktree', 'remove', '--force', folder], { cwd: root }))
  const lockOf = (path: string): string => readFileSync(join(path, 'package-lock.json'), 'utf8')
  if (existsSync(join(root, 'node_modules')) && lockOf(folder) === lockOf(root)) {
    symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  } else {
    run('npm', 'ci', '--ignore-scripts', '--silent')
  }
  run('npm', 'run', '--silent', 'build:native')
  run('npm', 'run', '--silent', 'build:ts')
  // The same handlers for both, whatever an older commit has.
  for (const device of ['null-device.mjs', 'promise-device.mjs']) {
    copyFileSync(join(root, 'bench', device), join(folder, 'bench', device))
  }
  return folder
}

async function serve(scope: Scope, folder: string, index: number, words: readonly string[]): Promise<string> {
  const socketPath = join(folder, `${index}.sock`)
  const absolute = words.map((word) => (word.startsWith('bench/') ? join(folder, word) : word))
  const program = [process.execPath, join(folder, 'dist/cli/main.js'), 'serve', 'vhost-user']
  const command = start([...program, '--socket', socketPath, ...absolute], 3600)
  scope.teardown(() => command.stop())
  await command.until(() => /^ready /m.test(command.stdout()))
  return socketPath
}

/** A row of the table: ratios are of B to A, one for each round. */
function cellsOf(name: string, one: readonly LoadSample[], other: readonly LoadSample[]): string[] {
  const of = (pick: (sample: LoadSample) => number): number[] => ratios(other.map(pick), one.map(pick))
  const cell = (samples: readonly number[]): string => {
    const { median, min, max } = spreadOf(samples)
    return `${median.toFixed(3)} (${min.toFixed(3)} to ${max.toFixed(3)})`
  }
  const kilo = (samples: readonly LoadSample[]): string =>
    `${Math.round(spreadOf(samples.map(({ iops }) => iops)).median / 1000)}k`
  const [iops, p50, cpu] = [of(({ iops }) => iops), of(({ p50Micros }) => p50Micros), of(cpuMicrosPerRequest)]
  return [
    name,
    kilo(one),
    kilo(other),
    cell(iops),
    verdictOf(iops, 'more', 'fewer'),
    cell(p50),
    verdictOf(p50, 'longer', 'shorter'),
    cell(cpu),
    verdictOf(cpu, 'more', 'less'),
  ]
}

/** Instructions a request by what is served, or the reason why there are none. */
function instructionsOf(folder: string): ReadonlyMap<string, number> {
  let output = ''
  try {
    output = execFileSync(process.execPath, ['scripts/instructions.mjs'], { cwd: folder, encoding: 'utf8' })
  } catch (error) {
    // It fails for a figure that is not as agreed on, which is not asked here.
    output = String((error as { stdout?: unknown }).stdout ?? '')
  }
  return instructionsIn(output)
}

/** Reads what `npm run instructions` prints. */
export function instructionsIn(output: string): ReadonlyMap<string, number> {
  const lines = output.matchAll(/^instructions a request: (.+): (\d+), agreed \d+$/gm)
  return new Map(Array.from(lines, ([, work, count]) => [work!, Number(count)]))
}

function instructionTable(folders: readonly string[]): string {
  const [one, other] = folders.map(instructionsOf)
  if (one!.size === 0 || other!.size === 0) {
    return 'Instructions: not counted; `npm run instructions` says what is missing.'
  }
  const rows = [...one!].map(([work, count]) => {
    const now = other!.get(work)
    return [
      work,
      String(count),
      now === undefined ? '–' : String(now),
      now === undefined ? '–' : (now / count).toFixed(3),
    ]
  })
  return markdownTable(['instructions a request', 'A', 'B', 'B / A'], rows)
}

async function compare(commits: readonly string[], rounds: number, ms: number, only?: string): Promise<void> {
  const rows = ROWS.filter(({ name }) => only === undefined || only.split(',').includes(name))
  if (rows.length === 0) throw new Error(`the rows are ${ROWS.map(({ name }) => name).join(', ')}`)
  const scope = new Scope()
  try {
    const parent = mkdtempSync(join(tmpdir(), 'hushring-compare-'))
    scope.teardown(() => rmSync(parent, { recursive: true, force: true }))
    const folders = commits.map((commit, index) => {
      console.error(`building ${commit} …`)
      return build(scope, parent, index === 0 ? 'a' : 'b', commit)
    })
    const table: string[][] = []
    for (const [index, { name, words, order }] of rows.entries()) {
      console.error(`${name} …`)
      const serving = new Scope()
      try {
        const sides: { socketPath: string; pid: number }[] = []
        for (const folder of folders) {
          const socketPath = await serve(serving, folder, index, words)
          sides.push({ socketPath, pid: pinBackEnd(socketPath) })
        }
        const drive = (
          { socketPath, pid }: (typeof sides)[number],
          durationMs: number,
        ): Promise<LoadSample> => runLoad([socketPath], pid, { ...order, durationMs })
        for (const side of sides) await warmUp((warmUpMs) => drive(side, warmUpMs))
        const [one, other] = await interleave(sides, rounds, (side) => drive(side, ms))
        table.push(cellsOf(name, one!, other!))
      } finally {
        await serving.end()
      }
    }
    const header = ['row', 'A IOPS', 'B IOPS', 'IOPS B / A', '', 'p50 B / A', '', 'CPU a request B / A', '']
    console.log(`A is ${commits[0]}, B is ${commits[1]}; ${rounds} rounds of ${ms} ms in alternation, medians of the rounds' ratios
(smallest to largest), driven by the generator of this checkout. Each verdict comes of mere chance once in 20 to 64 times: run it
again before you believe one.

${markdownTable(header, table)}

${instructionTable(folders)}`)
  } finally {
    await scope.end()
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]!).href) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '7' },
      ms: { type: 'string', default: '1000' },
      only: { type: 'string' },
    },
  })
  const [rounds, ms] = [Number(values.rounds), Number(values.ms)]
  if (positionals.length !== 2 || !(rounds >= 1) || !(ms >= 1)) {
    console.error('npm run bench:compare -- A B [--rounds 7] [--ms 1000] [--only ROW,…]; the rows are')
    console.error(ROWS.map(({ name }) => name).join(', '))
    process.exit(2)
  }
  await compare(positionals, rounds, ms, values.only)
}
