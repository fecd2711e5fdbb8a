import { execFile, execFileSync } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { GiB, MiB } from '../src/index.ts'
import { type BlockLoadResult, VhostUserFrontEnd } from '../src/testing/index.ts'
import {
  hushring,
  type ServeOptions,
  serveWithHushring,
  serveWithStorageDaemon,
} from '../test/helpers/back-ends.ts'
import { temporaryDirectory } from '../test/helpers/processes.ts'
import { storageDaemon } from '../test/helpers/tools.ts'
import { Scope } from './scope.ts'
import { interleave, iopsCell, markdownTable, spreadOf } from './statistics.ts'

/** The peer's null disk. One that clears 4 KiB a read would measure memset: neither side does. */
export const NULL_BLOCKDEV: string = `driver=null-co,size=${GiB},read-zeroes=off`

/** The processors that the back-end and the front-end are pinned to. */
const BACK_END_CPU = 0
const FRONT_END_CPU = 1

/** What a table compares: back-ends, the peer first, under some loads. */
interface Comparison {
  readonly title: string
  /** Each as arguments for `hushring bench`. */
  readonly loads: readonly { readonly name: string; readonly words: readonly string[] }[]
  readonly backEnds: readonly { readonly name: string; serve(scope: Scope): Promise<string> }[]
}

const ours = (
  name: string,
  store: (scope: Scope) => Promise<ServeOptions['store']>,
  ...words: readonly string[]
): Comparison['backEnds'][number] => ({
  name,
  serve: async (scope) => (await serveWithHushring(scope, { store: await store(scope) }, words)).socketPath,
})
const peer = (
  store: (scope: Scope) => Promise<ServeOptions['store']>,
  blockdev?: (store: ServeOptions['store']) => string,
): Comparison['backEnds'][number] => ({
  name: 'qemu-storage-daemon',
  async serve(scope) {
    const made = await store(scope)
    return (await serveWithStorageDaemon(scope, { store: made }, blockdev?.(made))).socketPath
  },
})

const device = (name: string): string => fileURLToPath(new URL(`${name}-device.mjs`, import.meta.url))
const memory = async (): Promise<ServeOptions['store']> => ({ memoryBytes: 256 * MiB })
const nothing = async (): Promise<ServeOptions['store']> => ({ nullBytes: GiB })
/** An image of 256 MiB in which every block is there. */
const image =
  (parent?: string) =>
  async (scope: Scope): Promise<{ imagePath: string }> => {
    const imagePath = join(await temporaryDirectory(scope, parent), 'disk.img')
    await writeFile(imagePath, Buffer.alloc(256 * MiB, 1))
    return { imagePath }
  }
/** One image for all back-ends of a table: how large the pages of a file are in the cache is a matter of chance. */
const images = new WeakMap<Scope, Promise<{ imagePath: string }>>()
const sameImage = (scope: Scope): Promise<{ imagePath: string }> => {
  const made = images.get(scope) ?? image()(scope)
  images.set(scope, made)
  return made
}
const peerFile = (words: string): Comparison['backEnds'][number] =>
  peer(sameImage, (store) => `driver=file,${words},filename=${'imagePath' in store && store.imagePath}`)
const depth = (queueDepth: number, ...words: readonly string[]) => ({
  name: `QD${queueDepth}${words.length === 0 ? '' : `, ${words.join(' ').replace('--', '')}`}`,
  words: ['--depth', String(queueDepth), ...words],
})

const COMPARISONS: readonly Comparison[] = [
  {
    title: 'Null disk, handler in TypeScript, 4 KiB reads',
    loads: [1, 8, 32, 128].map((queueDepth) => depth(queueDepth)),
    backEnds: [
      peer(nothing, () => NULL_BLOCKDEV),
      ours('hushring, adaptive', nothing, '--device', device('null')),
      ours('hushring, immediate', nothing, '--device', device('null'), '--suppression', 'immediate'),
    ],
  },
  {
    title: 'Null disk, 4 KiB reads, handlers that answer later',
    loads: [depth(32)],
    backEnds: [
      peer(nothing, () => NULL_BLOCKDEV),
      ours('hushring, observable', nothing, '--device', device('observable')),
      ours('hushring, promise', nothing, '--device', device('promise')),
    ],
  },
  {
    title: 'Memory, 4 KiB, half of them writes',
    loads: [depth(32, '--writes', '50')],
    backEnds: [peer(image('/dev/shm')), ours('hushring --memory', memory)],
  },
  {
    title: 'A file in the page cache',
    loads: [depth(32), depth(8, '--block-size', '128KiB')],
    backEnds: [peerFile('aio=io_uring'), ours('hushring --file', sameImage)],
  },
  {
    title: 'A file in the page cache, writes',
    loads: [depth(32, '--writes', '100')],
    backEnds: [
      peerFile('aio=io_uring'),
      ours('hushring --file', sameImage),
      ours('hushring --file, threads', sameImage, '--io', 'threads'),
    ],
  },
  {
    title: 'A file past the page cache',
    loads: [depth(32), depth(8, '--block-size', '128KiB')],
    backEnds: [
      peerFile('aio=io_uring,cache.direct=on'),
      ours('hushring --file --direct', sameImage, '--direct'),
    ],
  },
]

/**
 * Measures vhost-user disks by `hushring bench`, hushring's and the peer's in alternation, back-end and front-end pinned
 * to a processor each. Returns Markdown, or a sentence that says what is missing.
 */
export async function benchFrontEnd(roundCount: number): Promise<string> {
  const heading = '### vhost-user disks, driven by `hushring bench`\n\n'
  if (storageDaemon.path === undefined) return `${heading}Not run: ${storageDaemon.name} is missing.`
  const sections: string[] = []
  for (const comparison of COMPARISONS) sections.push(await tableOf(comparison, roundCount))
  return heading + sections.join('\n\n')
}

async function tableOf({ title, loads, backEnds }: Comparison, roundCount: number): Promise<string> {
  const scope = new Scope()
  try {
    const served: { name: string; socketPath: string }[] = []
    for (const { name, serve } of backEnds) {
      const socketPath = await serve(scope)
      pinBackEnd(socketPath)
      served.push({ name, socketPath })
    }
    const cases = loads.flatMap((load) => served.map((backEnd) => ({ load, ...backEnd })))
    const samples = await interleave(cases, roundCount, ({ load, socketPath }) =>
      runLoad(socketPath, load.words),
    )
    const rows = cases.map(({ load, name }, index) => {
      // The peer is the first one of its load.
      const peerSamples = samples[cases.findIndex((one) => one.load === load)]!
      return rowOf([load.name, name], samples[index]!, peerSamples)
    })
    return `**${title}**\n\n${markdownTable(
      [
        'load',
        'back-end',
        'IOPS (min to max)',
        '×',
        'p50 µs',
        '×',
        'p99 µs',
        'kicks / 1,000',
        'calls / 1,000',
        'back-end CPU µs',
        'front-end CPU µs',
      ],
      rows,
    )}`
  } finally {
    await scope.end()
  }
}

function pinBackEnd(socketPath: string): void {
  const pid = String(backEndPidOf(socketPath))
  execFileSync('taskset', ['-a', '-c', '-p', String(BACK_END_CPU), pid], { stdio: 'ignore' })
}

/** The process that serves at a socket. */
export function backEndPidOf(socketPath: string): number {
  const frontEnd = VhostUserFrontEnd.connect(socketPath)
  const { backEndPid } = frontEnd
  frontEnd.close()
  return backEndPid
}

const run = promisify(execFile)

async function runLoad(socketPath: string, words: readonly string[]): Promise<BlockLoadResult> {
  const [program, ...first] = ['taskset', '-c', String(FRONT_END_CPU), ...hushring]
  const { stdout } = await run(program!, [
    ...first,
    'bench',
    '--socket',
    socketPath,
    '--seconds',
    '1',
    '--json',
    ...words,
  ])
  return JSON.parse(stdout)
}

/** A row of medians; the ratios are those of the medians. */
function rowOf(
  names: readonly string[],
  results: readonly BlockLoadResult[],
  peerResults: readonly BlockLoadResult[],
): string[] {
  const median = (of: readonly BlockLoadResult[], pick: (result: BlockLoadResult) => number): number =>
    spreadOf(of.map(pick)).median
  const ratio = (pick: (result: BlockLoadResult) => number): string =>
    (median(results, pick) / median(peerResults, pick)).toFixed(2)
  const perRequest = (pick: (result: BlockLoadResult) => number, factor: number): number =>
    median(results, (result) => (factor * pick(result)) / result.requests)
  return [
    ...names,
    iopsCell(results.map(({ iops }) => iops)),
    ratio(({ iops }) => iops),
    median(results, ({ p50Micros }) => p50Micros).toFixed(1),
    ratio(({ p50Micros }) => p50Micros),
    median(results, ({ p99Micros }) => p99Micros).toFixed(1),
    perRequest(({ kicks }) => kicks, 1000).toFixed(1),
    perRequest(({ signals }) => signals, 1000).toFixed(1),
    perRequest(({ backEndCpuMs }) => backEndCpuMs ?? Number.NaN, 1000).toFixed(2),
    perRequest(({ frontEndCpuMs }) => frontEndCpuMs, 1000).toFixed(2),
  ]
}
