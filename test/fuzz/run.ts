// Lets libFuzzer loose on a target: node --import=tsx test/fuzz/run.ts TARGET BUILD libFuzzer's arguments…
//
// BUILD is the folder that scripts/verify/fuzz-targets.mjs made: the product, instrumented by istanbul, and the addon
// with libFuzzer in it.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, relative } from 'node:path'
import { pathToFileURL } from 'node:url'
import { inspect } from 'node:util'
import { encodeScsi, scsiTarget } from './scsi.ts'
import { scsiSeeds, vhostUserSeeds } from './seeds.ts'
import type { FuzzTarget, LoadModule } from './target.ts'
import { encodeVhostUser, vhostUserTarget } from './vhost-user.ts'

/** What the build says of itself. */
interface Build {
  /** The addon with libFuzzer. */
  readonly fuzzer: string
  /** The addon of the product. */
  readonly native: string
  /** The instrumented modules, and how many counters each has. */
  readonly modules: readonly InstrumentedModule[]
}

interface InstrumentedModule {
  readonly path: string
  readonly hash: string
  readonly statementCount: number
  readonly functionCount: number
  /** Ways of each branch. */
  readonly wayCounts: readonly number[]
}

interface Fuzzer {
  start(
    fuzzerArguments: readonly string[],
    counters: Uint8Array,
    secondsMax: number,
    target: (input: Buffer) => Promise<void>,
  ): void
  settle(isFinding: boolean): void
}

const targets: Readonly<
  Record<
    string,
    { make(load: LoadModule, folder: string): Promise<FuzzTarget>; seeds(): [string, Uint8Array][] }
  >
> = {
  scsi: {
    make: (load) => scsiTarget(load),
    // Also each command alone: in a short input a change hits what it should more often.
    seeds: () =>
      Object.entries(scsiSeeds).flatMap(([name, { disk = {}, commands }]) => [
        [name, encodeScsi({ disk, commands })],
        ...commands.map((command, index): [string, Uint8Array] => [
          `${name} ${index}`,
          encodeScsi({ disk, commands: [command] }),
        ]),
      ]),
  },
  'vhost-user': {
    // Modules are not loaded any more when inputs are played, so that every descriptor is somebody's.
    make: (load, folder) =>
      vhostUserTarget(load, { folder, openFdCount: () => readdirSync('/proc/self/fd').length }),
    seeds: () => Object.entries(vhostUserSeeds).map(([name, steps]) => [name, encodeVhostUser(steps)]),
  },
}

/** The longest that one input may take. */
const INPUT_SECONDS_MAX = 2

const [name, folder, ...fuzzerArguments] = process.argv.slice(2)
const { make, seeds } = targets[name!]!
const build: Build = JSON.parse(readFileSync(join(folder!, 'build.json'), 'utf8'))
process.env.HUSHRING_NATIVE_PATH = build.native

/**
 * What istanbul's code counts in: where it finds an object for its module it uses that one, and so it counts straight
 * in the bytes that libFuzzer looks at, which costs no more than the counting. They overflow as libFuzzer's own do. V8
 * counts as well, but takes longer to tell than an input takes to play.
 */
function countersOf(modules: readonly InstrumentedModule[]): Uint8Array {
  const sizes = modules.map(({ statementCount, functionCount, wayCounts }) =>
    wayCounts.reduce((sum, count) => sum + count, statementCount + functionCount),
  )
  const counters = new Uint8Array(sizes.reduce((sum, size) => sum + size, 0))
  let at = 0
  const take = (count: number): Uint8Array => {
    at += count
    return counters.subarray(at - count, at)
  }
  const coverage = Object.fromEntries(
    modules.map(({ path, hash, statementCount, functionCount, wayCounts }) => [
      path,
      { hash, s: take(statementCount), f: take(functionCount), b: wayCounts.map(take) },
    ]),
  )
  Object.assign(globalThis, { __coverage__: coverage })
  return counters
}

const counters = countersOf(build.modules)
/** Makes an empty folder below the build's. Its path is relative, because that of a socket has little room. */
function emptyFolder(title: string): string {
  const path = relative('.', join(folder!, title))
  rmSync(path, { recursive: true, force: true })
  mkdirSync(path)
  return path
}

const target = await make(
  (path) => import(pathToFileURL(join(folder!, 'dist', `${path}.js`)).href),
  emptyFolder('work'),
)
const seedFolder = emptyFolder('seeds')
const seedPaths = seeds().map(([title, input]) => {
  const path = join(seedFolder, title.replaceAll(/\W+/g, '-'))
  writeFileSync(path, input)
  return path
})

const fuzzer: Fuzzer = createRequire(import.meta.url)(build.fuzzer)
let input: Uint8Array = Buffer.alloc(0)

function say(text: string): void {
  // At once, because the process may end with the next step.
  writeSync(2, `${text}\n`)
}

function described(): string {
  return inspect(target.describe(input), { depth: 6, maxArrayLength: 64 })
}

function report(error: unknown): void {
  say(`${error instanceof Error ? error.stack : inspect(error)}\nwith ${described()}`)
  fuzzer.settle(true)
}

// What nobody waits for has to be right as well.
process.on('uncaughtException', report)
const allArguments = ['hushring', `-seed_inputs=${seedPaths.join(',')}`, ...fuzzerArguments]
fuzzer.start(allArguments, counters, INPUT_SECONDS_MAX, async (next) => {
  input = next
  try {
    await target.play(next)
    fuzzer.settle(false)
  } catch (error) {
    report(error)
  }
})
