import { execFile } from 'node:child_process'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { GiB } from '../src/index.ts'
import type { BlockLoadResult } from '../src/testing/index.ts'
import { hushring, serveWithHushring } from '../test/helpers/back-ends.ts'
import { Scope } from './scope.ts'
import type { BenchOptions, Section } from './section.ts'
import { interleave, iopsCell, markdownTable, spreadOf } from './statistics.ts'

const run = promisify(execFile)

/** A disk whose handler is TypeScript. */
const DEVICE = fileURLToPath(new URL('null-device.mjs', import.meta.url))

/** Who serves, in how many queues. */
const SERVERS = [
  { name: 'one queue', queueCount: 1, words: [] },
  { name: 'one queue, a worker', queueCount: 1, words: ['--workers', '1'] },
  { name: 'two queues, one thread', queueCount: 2, words: [] },
  { name: 'two queues, two workers', queueCount: 2, words: ['--workers', '2'] },
] as const

/** Requests in flight in all queues together. */
const DEPTHS = [2, 32, 128] as const

/**
 * Measures one queue and two, with and without workers, at the same number of requests in flight. Each queue has a thread
 * that drives it, so that two queues and two workers are four threads on whatever processors there are.
 */
export async function benchWorkers({
  rounds,
}: Pick<BenchOptions, 'rounds'>): Promise<Section<BlockLoadResult>> {
  const scope = new Scope()
  try {
    const cases: { depth: number; name: string; queueCount: number; socketPath: string }[] = []
    for (const { name, queueCount, words } of SERVERS) {
      const options = { store: { nullBytes: GiB }, queueCount, limitSeconds: 3600 }
      const { socketPath } = await serveWithHushring(scope, options, ['--device', DEVICE, ...words])
      for (const depth of DEPTHS) cases.push({ depth, name, queueCount, socketPath })
    }
    cases.sort((one, other) => one.depth - other.depth)
    const samples = await interleave(cases, rounds, load)
    const rows = cases.map(({ depth, name }, index) => {
      const one = samples[cases.findIndex((first) => first.depth === depth)]!
      return [String(depth), name, ...cellsOf(samples[index]!, one)]
    })
    const header = [
      'in flight',
      'served by',
      'IOPS (min to max)',
      '×',
      'p50 µs',
      'p99 µs',
      '×',
      'p99.9 µs',
      'back-end CPU µs',
    ]
    const markdown = `### Queues on workers

${markdownTable(header, rows)}

4 KiB reads on a null disk whose handler is TypeScript, \`adaptive\`, nothing pinned, by \`hushring bench --queues\`; the same number
of requests in flight in all queues together; percentiles are of all queues together; × is the ratio to one queue.
Device and client share the processors: with two queues there are two of each.`
    const measured = cases.map(({ depth, name }, index) => ({
      names: [`QD${depth}`, name],
      samples: samples[index]!,
    }))
    return { name: 'workers', markdown, rows: measured }
  } finally {
    await scope.end()
  }
}

async function load({
  depth,
  queueCount,
  socketPath,
}: {
  depth: number
  queueCount: number
  socketPath: string
}): Promise<BlockLoadResult> {
  const [program, ...first] = hushring
  const words = [
    '--queues',
    String(queueCount),
    '--depth',
    String(depth / queueCount),
    '--seconds',
    '1',
    '--json',
  ]
  const { stdout } = await run(program!, [...first, 'bench', '--socket', socketPath, ...words])
  return JSON.parse(stdout)
}

function cellsOf(results: readonly BlockLoadResult[], one: readonly BlockLoadResult[]): string[] {
  const median = (of: readonly BlockLoadResult[], pick: (result: BlockLoadResult) => number): number =>
    spreadOf(of.map(pick)).median
  const ratio = (pick: (result: BlockLoadResult) => number): string =>
    (median(results, pick) / median(one, pick)).toFixed(2)
  return [
    iopsCell(results.map(({ iops }) => iops)),
    ratio(({ iops }) => iops),
    median(results, ({ p50Micros }) => p50Micros).toFixed(1),
    median(results, ({ p99Micros }) => p99Micros).toFixed(1),
    ratio(({ p99Micros }) => p99Micros),
    median(results, ({ p999Micros }) => p999Micros).toFixed(1),
    median(results, ({ backEndCpuMs = 0, requests }) => (1000 * backEndCpuMs) / requests).toFixed(2),
  ]
}

if (import.meta.url === pathToFileURL(process.argv[1]!).href) {
  const { values } = parseArgs({ options: { rounds: { type: 'string', default: '7' } } })
  console.log((await benchWorkers({ rounds: Number(values.rounds) })).markdown)
}
