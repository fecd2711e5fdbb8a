import { constants } from 'node:fs'
import { open, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { GiB, KiB, MiB, type TransportStats } from '../src/index.ts'
import { type ServeOptions, serveWithHushring, serveWithStorageDaemon } from '../test/helpers/back-ends.ts'
import { start, temporaryDirectory } from '../test/helpers/processes.ts'
import { storageDaemon } from '../test/helpers/tools.ts'
import { cpuMicrosPerRequest, type LoadOrder, type LoadSample, pinBackEnd, runLoad, warmUp } from './load.ts'
import { Scope } from './scope.ts'
import { type BenchOptions, notRun, type Section } from './section.ts'
import { interleave, iopsCell, markdownTable, spreadOf } from './statistics.ts'

/** The peer's null disk. One that clears 4 KiB a read would measure memset: neither side does. */
export const NULL_BLOCKDEV: string = `driver=null-co,size=${GiB},read-zeroes=off`

/** Longer than a table takes: a back-end lives as long as that. */
const LIMIT_SECONDS = 3600

/** Disks of one process that wait for a front-end. */
interface Served {
  readonly socketPaths: readonly string[]
  /** Stops the process. @returns what hushring counted */
  stop?(): Promise<TransportStats>
}

interface BackEnd {
  readonly name: string
  serve(scope: Scope): Promise<Served>
}

interface Load {
  readonly name: string
  order(options: BenchOptions): LoadOrder
}

/** A table: back-ends under some loads. */
interface Comparison {
  /** What `--only` calls it. */
  readonly name: string
  readonly title: string
  readonly loads: readonly Load[]
  readonly backEnds: readonly BackEnd[]
  /** What a ratio is to: the first back-end under the same load, or the first load. */
  readonly ratioTo: 'first back-end' | 'first load'
  /** A tool that is needed. */
  readonly needs?: typeof storageDaemon
  /** Why it cannot run for another reason; undefined: it can. */
  whyNot?(): Promise<string | undefined>
}

// ---- Back-ends -------------------------------------------------------------------------------------------------

type Store = ServeOptions['store']

const ours = (
  name: string,
  store: (scope: Scope) => Promise<Store>,
  ...words: readonly string[]
): BackEnd => ({
  name,
  serve: async (scope) =>
    await servedByHushring(scope, { store: await store(scope), limitSeconds: LIMIT_SECONDS }, words),
})

async function servedByHushring(
  scope: Scope,
  options: ServeOptions,
  words: readonly string[],
): Promise<Served> {
  const { socketPath, statsPath, stop } = await serveWithHushring(scope, options, words)
  return {
    socketPaths: [socketPath],
    async stop() {
      await stop()
      return JSON.parse(await readFile(statsPath, 'utf8'))
    },
  }
}

const peer = (
  store: (scope: Scope) => Promise<Store>,
  blockdev?: (store: ServeOptions['store']) => string,
): BackEnd => ({
  name: 'qemu-storage-daemon',
  async serve(scope) {
    const made = await store(scope)
    const options = { store: made, limitSeconds: LIMIT_SECONDS }
    return { socketPaths: [(await serveWithStorageDaemon(scope, options, blockdev?.(made))).socketPath] }
  },
})

const inBench = (file: string): string => fileURLToPath(new URL(file, import.meta.url))
const memory = async (): Promise<Store> => ({ memoryBytes: 256 * MiB })
const nothing = async (): Promise<Store> => ({ nullBytes: GiB })
const nullPeer = peer(nothing, () => NULL_BLOCKDEV)
const nullDevice = (name: string, ...words: readonly string[]): BackEnd =>
  ours(name, nothing, '--device', inBench('null-device.mjs'), ...words)

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
const peerFile = (words: string): BackEnd =>
  peer(sameImage, (store) => `driver=file,${words},filename=${'imagePath' in store && store.imagePath}`)

/** Why files of the folder for temporary ones cannot be opened past the page cache. */
async function noDirectFiles(): Promise<string | undefined> {
  const scope = new Scope()
  try {
    const path = join(await temporaryDirectory(scope), 'file')
    await writeFile(path, '')
    await (await open(path, constants.O_RDWR | constants.O_DIRECT)).close()
    return undefined
  } catch (error) {
    return `no file past the page cache here (${(error as NodeJS.ErrnoException).code})`
  } finally {
    await scope.end()
  }
}

/** The null disk with a layer around it. */
const layered = (name: string, expression: string): BackEnd => ({
  name,
  async serve(scope) {
    const path = join(await temporaryDirectory(scope), 'device.mjs')
    const urlOf = (file: string): string => new URL(file, import.meta.url).href
    await writeFile(
      path,
      `import { compose } from '${urlOf('../dist/index.js')}'
import * as layers from '${urlOf('../dist/handlers/index.js')}'
import device from '${urlOf('null-device.mjs')}'
export default compose(device, [layers.${expression}])
`,
    )
    const options = { store: await nothing(), limitSeconds: LIMIT_SECONDS }
    return await servedByHushring(scope, options, ['--device', path])
  },
})

/** So many null disks in one process. */
const many = (count: number): BackEnd => ({
  name: `${count} ${count === 1 ? 'device' : 'devices'}`,
  async serve(scope) {
    const folder = await temporaryDirectory(scope)
    const words = [process.execPath, inBench('many-devices.mjs'), folder, String(count)]
    const command = start(words, LIMIT_SECONDS)
    scope.teardown(() => command.stop())
    await command.until(() => command.stdout().startsWith('ready'))
    return { socketPaths: Array.from({ length: count }, (_, index) => join(folder, `${index}.sock`)) }
  },
})

// ---- Loads -----------------------------------------------------------------------------------------------------

const depth = (queueDepth: number, name = '', order: LoadOrder = {}): Load => ({
  name: `QD${queueDepth}${name === '' ? '' : `, ${name}`}`,
  order: ({ ms }) => ({ durationMs: ms, queueDepth, ...order }),
})
const segments = (segmentCount: number): Load => ({
  name: `${segmentCount} ${segmentCount === 1 ? 'segment' : 'segments'}`,
  order: ({ ms }) => ({ durationMs: ms, queueDepth: 32, blockBytes: 64 * KiB, segmentCount }),
})

const LAYERS: Readonly<Record<string, string>> = {
  trace: 'trace({ log: () => {} })',
  rateLimit: 'rateLimit({ iopsMax: 1e9 })',
  retry: 'retry({ count: 3 })',
  timeout: 'timeout({ ms: 30_000 })',
  readonly: 'readonly()',
}
/** Names of the layers that are measured. */
export const LAYER_NAMES: readonly string[] = Object.keys(LAYERS)

/** How many devices one process has, smallest number first. */
export const DEVICE_COUNTS: readonly number[] = [1, 8, 64]

const FILE_READS: readonly Load[] = [
  depth(32, '4 KiB at random'),
  depth(8, '128 KiB in sequence', { blockBytes: 128 * KiB, sequential: true }),
]

const COMPARISONS: readonly Comparison[] = [
  {
    name: 'null',
    title: 'Null disk, handler in TypeScript, 4 KiB reads',
    loads: [1, 8, 32, 128].map((queueDepth) => depth(queueDepth)),
    backEnds: [
      nullPeer,
      nullDevice('hushring, adaptive'),
      nullDevice('hushring, immediate', '--suppression', 'immediate'),
    ],
    ratioTo: 'first back-end',
    needs: storageDaemon,
  },
  {
    name: 'late',
    title: 'Null disk, 4 KiB reads, handlers that answer later',
    loads: [depth(32)],
    backEnds: [
      nullPeer,
      ours('hushring, observable', nothing, '--device', inBench('observable-device.mjs')),
      ours('hushring, promise', nothing, '--device', inBench('promise-device.mjs')),
    ],
    ratioTo: 'first back-end',
    needs: storageDaemon,
  },
  {
    name: 'memory',
    title: 'Memory, 4 KiB at random, half of them writes; the peer has a file in tmpfs',
    loads: [depth(32, '', { writePercent: 50 })],
    backEnds: [peer(image('/dev/shm')), ours('hushring --memory', memory)],
    ratioTo: 'first back-end',
    needs: storageDaemon,
  },
  {
    name: 'file',
    title: 'A file in the page cache, which both sides use',
    loads: FILE_READS,
    backEnds: [peerFile('aio=io_uring'), ours('hushring --file', sameImage)],
    ratioTo: 'first back-end',
    needs: storageDaemon,
  },
  {
    name: 'file-writes',
    title: 'A file in the page cache, writes',
    loads: [depth(32, '4 KiB at random', { writePercent: 100 })],
    backEnds: [
      peerFile('aio=io_uring'),
      ours('hushring --file', sameImage),
      ours('hushring --file, threads', sameImage, '--io', 'threads'),
    ],
    ratioTo: 'first back-end',
    needs: storageDaemon,
  },
  {
    name: 'file-direct',
    title: 'A file past the page cache (O_DIRECT) on both sides',
    loads: FILE_READS,
    backEnds: [
      peerFile('aio=io_uring,cache.direct=on'),
      ours('hushring --file --direct', sameImage, '--direct'),
    ],
    ratioTo: 'first back-end',
    needs: storageDaemon,
    whyNot: noDirectFiles,
  },
  {
    name: 'layers',
    title: 'Layers around the null disk, 4 KiB reads',
    loads: [depth(32)],
    backEnds: [
      nullDevice('no layer'),
      ...Object.entries(LAYERS).map(([name, expression]) => layered(name, expression)),
    ],
    ratioTo: 'first back-end',
  },
  {
    name: 'growth-depth',
    title: 'Growth of the queue depth: null disk, 4 KiB reads, a ring of 1,024 entries',
    loads: [8, 32, 128, 512, 1024].map((queueDepth) => depth(queueDepth, '', { queueSize: 1024 })),
    backEnds: [nullDevice('hushring, adaptive')],
    ratioTo: 'first load',
  },
  {
    name: 'growth-segments',
    title: 'Growth of the segments of a request: null disk, 64 KiB reads, 32 in flight',
    loads: [1, 8, 32, 126].map(segments),
    backEnds: [nullDevice('hushring, adaptive')],
    ratioTo: 'first load',
  },
  {
    name: 'growth-devices',
    title: 'Growth of the devices in one process: as many requests in all, 8 in flight at each',
    // Each count of devices has its own load: the same number of requests, divided among them.
    loads: [
      {
        name: 'QD8 each',
        order: ({ ms }) => ({ durationMs: 60_000, queueDepth: 8, requestCountMax: 320 * ms }),
      },
    ],
    backEnds: DEVICE_COUNTS.map(many),
    ratioTo: 'first back-end',
  },
]

/** What `--only` calls the tables of {@link benchDisks}. */
export const DISK_TABLES: readonly string[] = COMPARISONS.map(({ name }) => name)

/**
 * Measures one table of vhost-user disks, driven by the front-end generator of the test kit, all back-ends in
 * alternation, back-end and front-end pinned to a processor each.
 *
 * @param name one of {@link DISK_TABLES}
 */
export async function benchDisks(name: string, options: BenchOptions): Promise<Section<LoadSample>> {
  const comparison = COMPARISONS.find((one) => one.name === name)!
  const heading = `### ${comparison.title}`
  if (comparison.needs !== undefined && comparison.needs.path === undefined) {
    return notRun(name, heading, `${comparison.needs.name} is missing`)
  }
  const because = await comparison.whyNot?.()
  if (because !== undefined) return notRun(name, heading, because)
  const { cases, samples } = await measure(comparison, options)
  const rows = cases.map(({ load, backEnd }, index) => ({
    names: [load.name, backEnd.name],
    samples: samples[index]!,
  }))
  const reference = (index: number): readonly LoadSample[] =>
    samples[
      comparison.ratioTo === 'first load' ? 0 : cases.findIndex(({ load }) => load === cases[index]!.load)
    ]!
  const table = markdownTable(
    HEADER,
    rows.map(({ names, samples }, index) => rowOf(names, samples, reference(index))),
  )
  return { name, rows, markdown: `${heading}\n\n${table}${await batchTable(comparison, options)}` }
}

interface Case {
  readonly load: Load
  readonly backEnd: BackEnd
}

async function measure(
  { loads, backEnds }: Comparison,
  options: BenchOptions,
): Promise<{ readonly cases: readonly Case[]; readonly samples: readonly (readonly LoadSample[])[] }> {
  const scope = new Scope()
  try {
    const served = new Map<BackEnd, Served & { readonly pid: number }>()
    for (const backEnd of backEnds) {
      const disks = await backEnd.serve(scope)
      served.set(backEnd, { ...disks, pid: pinBackEnd(disks.socketPaths[0]!) })
    }
    const cases = loads.flatMap((load) => backEnds.map((backEnd) => ({ load, backEnd })))
    const drive = async ({ load, backEnd }: Case, ms: number): Promise<LoadSample> => {
      const { socketPaths, pid } = served.get(backEnd)!
      return await runLoad(socketPaths, pid, dividedBy(socketPaths.length, load.order({ ...options, ms })))
    }
    for (const one of cases) await warmUp((ms) => drive(one, ms))
    const samples = await interleave(cases, options.rounds, (one) => drive(one, options.ms))
    return { cases, samples }
  } finally {
    await scope.end()
  }
}

/** The share that each of some sockets has of the requests. */
function dividedBy(count: number, order: LoadOrder): LoadOrder {
  if (order.requestCountMax === undefined) return order
  return { ...order, requestCountMax: Math.ceil(order.requestCountMax / count) }
}

const HEADER = [
  'load',
  'back-end',
  'IOPS (min to max)',
  '×',
  'p50 µs',
  '×',
  'p99 µs',
  'p99.9 µs',
  'kicks / 1,000',
  'calls / 1,000',
  'back-end CPU µs',
  '×',
  'front-end CPU µs',
]

/** A row of medians; the ratios are those of the medians. */
function rowOf(
  names: readonly string[],
  samples: readonly LoadSample[],
  reference: readonly LoadSample[],
): string[] {
  const median = (of: readonly LoadSample[], pick: (sample: LoadSample) => number): number =>
    spreadOf(of.map(pick)).median
  const ratio = (pick: (sample: LoadSample) => number): string =>
    (median(samples, pick) / median(reference, pick)).toFixed(2)
  const perThousand = (pick: (sample: LoadSample) => number): string =>
    median(samples, (sample) => (1000 * pick(sample)) / sample.requests).toFixed(1)
  return [
    ...names,
    iopsCell(samples.map(({ iops }) => iops)),
    ratio(({ iops }) => iops),
    median(samples, ({ p50Micros }) => p50Micros).toFixed(1),
    ratio(({ p50Micros }) => p50Micros),
    median(samples, ({ p99Micros }) => p99Micros).toFixed(1),
    median(samples, ({ p999Micros }) => p999Micros).toFixed(1),
    perThousand(({ kicks }) => kicks),
    perThousand(({ signals }) => signals),
    median(samples, cpuMicrosPerRequest).toFixed(2),
    ratio(cpuMicrosPerRequest),
    median(samples, ({ frontEndCpuMs, requests }) => (1000 * frontEndCpuMs) / requests).toFixed(2),
  ]
}

// ---- Sizes of batches --------------------------------------------------------------------------------------------

/** Largest size that has a column of its own: that of a ring's 256 entries. */
const SIZE_LOG2_MAX = 8

/**
 * How many requests hushring takes and publishes at once under each load: one more run each, against a process of its own,
 * whose statistics are of that run alone. Empty where there is nothing to tell.
 */
async function batchTable({ loads, backEnds }: Comparison, options: BenchOptions): Promise<string> {
  const rows: string[][] = []
  for (const load of loads) {
    for (const backEnd of backEnds) {
      const stats = await statsOf(backEnd, load.order(options))
      if (stats === undefined) continue
      const { batchSizes, publishSizes, requests, batches } = stats
      rows.push([load.name, backEnd.name, 'taken', (requests / batches).toFixed(1), ...shares(batchSizes)])
      const publishes = publishSizes.reduce((sum, count) => sum + count, 0)
      rows.push(['', '', 'published', (requests / publishes).toFixed(1), ...shares(publishSizes)])
    }
  }
  if (rows.length === 0) return ''
  const sizes = Array.from({ length: SIZE_LOG2_MAX + 1 }, (_, log2) =>
    log2 === 0
      ? '1'
      : log2 === SIZE_LOG2_MAX
        ? `${2 ** log2} or more`
        : `${2 ** log2} to ${2 ** (log2 + 1) - 1}`,
  )
  const header = ['load', 'back-end', 'requests at once', 'mean', ...sizes.map((size) => `${size}, %`)]
  return `\n\n${markdownTable(header, rows)}`
}

async function statsOf(backEnd: BackEnd, order: LoadOrder): Promise<TransportStats | undefined> {
  const scope = new Scope()
  try {
    const { socketPaths, stop } = await backEnd.serve(scope)
    if (stop === undefined) return undefined
    await runLoad(socketPaths, pinBackEnd(socketPaths[0]!), order)
    return await stop()
  } finally {
    await scope.end()
  }
}

/** Percent of each size. */
function shares(histogram: readonly number[]): string[] {
  const total = histogram.reduce((sum, count) => sum + count, 0)
  const last = histogram.slice(SIZE_LOG2_MAX).reduce((sum, count) => sum + count, 0)
  return [...histogram.slice(0, SIZE_LOG2_MAX), last].map((count) =>
    count === 0 ? '' : ((100 * count) / total).toFixed(count / total < 0.01 ? 1 : 0),
  )
}
