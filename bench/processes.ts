import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { GiB } from '../src/index.ts'
import { processVitals } from '../src/testing/index.ts'
import { type ServeOptions, serveWithHushring, serveWithStorageDaemon } from '../test/helpers/back-ends.ts'
import { storageDaemon } from '../test/helpers/tools.ts'
import { backEndPidOf, pinBackEnd, runLoad } from './load.ts'
import { Scope } from './scope.ts'
import type { BenchOptions, Section } from './section.ts'
import { interleave, markdownTable, spreadOf } from './statistics.ts'

const run = promisify(execFile)

interface Server {
  readonly name: string
  serve(scope: Scope): Promise<{ readonly socketPath: string }>
}

function servers(): readonly Server[] {
  const options: ServeOptions = { store: { nullBytes: GiB }, limitSeconds: 1800 }
  return [
    { name: 'hushring', serve: (scope) => serveWithHushring(scope, options) },
    ...(storageDaemon.path === undefined
      ? []
      : [
          {
            name: 'qemu-storage-daemon',
            serve: (scope: Scope) => serveWithStorageDaemon(scope, options),
          },
        ]),
  ]
}

function spreadCell(values: readonly number[], digits = 0): string {
  const { median, min, max } = spreadOf(values)
  return `${median.toFixed(digits)} (${min.toFixed(digits)} to ${max.toFixed(digits)})`
}

function rssMiBOf(pid: number): number {
  return processVitals(pid)!.rssBytes / 2 ** 20
}

// ---- Start, and devices that nobody uses -------------------------------------------------------------------------

/** What the start of a server came to. */
export interface LifeSample {
  /** From the start of the program until a front-end can connect. */
  readonly startMs: number
  readonly freshMiB: number
}

/** What each of a thousand devices in one process costs while nobody uses them; wake-ups are of all of them. */
export interface IdleSample {
  readonly createMs: number
  readonly rssKiB: number
  readonly wakeUpsPerSecond: number
}

/** Measures what a server needs besides the requests: time to start, memory, and what idle devices cost. */
export async function benchProcesses({ rounds }: BenchOptions): Promise<Section<LifeSample | IdleSample>> {
  const measured = servers()
  const samples = await interleave(measured, rounds, start)
  const idle = await idleDevices()
  const table = markdownTable(
    ['server of a null disk', 'ms to start', 'RSS MiB, fresh'],
    measured.map(({ name }, index) => [
      name,
      spreadCell(samples[index]!.map(({ startMs }) => startMs)),
      spreadCell(samples[index]!.map(({ freshMiB }) => freshMiB)),
    ]),
  )
  const markdown = `### Processes

${table}

A thousand disks in one process, nobody connected: ${idle.createMs.toFixed(2)} ms to make each, ${idle.rssKiB.toFixed(0)} KiB of RSS each,
${idle.wakeUpsPerSecond.toFixed(1)} wake-ups a second in all.`
  const rows = [
    ...measured.map(({ name }, index) => ({ names: [name], samples: samples[index]! })),
    { names: ['a thousand idle devices'], samples: [idle] },
  ]
  return { name: 'processes', markdown, rows }
}

async function start({ serve }: Server): Promise<LifeSample> {
  const scope = new Scope()
  try {
    const before = performance.now()
    const { socketPath } = await serve(scope)
    const startMs = performance.now() - before
    return { startMs, freshMiB: rssMiBOf(backEndPidOf(socketPath)) }
  } finally {
    await scope.end()
  }
}

async function idleDevices(): Promise<IdleSample> {
  const program = fileURLToPath(new URL('idle-devices.mjs', import.meta.url))
  return JSON.parse((await run(process.execPath, [program])).stdout)
}

// ---- Memory after many requests ----------------------------------------------------------------------------------

/** Memory of a server before any request, after the first million, and after all. */
export interface RssSample {
  readonly freshMiB: number
  readonly warmMiB: number
  readonly afterMiB: number
  readonly requests: number
}

const WARM_UP_REQUESTS = 1_000_000
const LIMIT_MS = 1_200_000

/** Measures the memory of a server of a null disk that has served many requests, once. */
export async function benchRss({ long }: BenchOptions): Promise<Section<RssSample>> {
  const requests = long ? 100_000_000 : 10_000_000
  const rows: { names: string[]; samples: RssSample[] }[] = []
  for (const { name, serve } of servers()) {
    const scope = new Scope()
    try {
      const { socketPath } = await serve(scope)
      const pid = pinBackEnd(socketPath)
      const freshMiB = rssMiBOf(pid)
      const loadOf = (requestCountMax: number) =>
        runLoad([socketPath], pid, { queueDepth: 128, durationMs: LIMIT_MS, requestCountMax })
      const warmUp = await loadOf(WARM_UP_REQUESTS)
      const warmMiB = rssMiBOf(pid)
      const rest = await loadOf(requests - WARM_UP_REQUESTS)
      const sample = { freshMiB, warmMiB, afterMiB: rssMiBOf(pid), requests: warmUp.requests + rest.requests }
      rows.push({ names: [name], samples: [sample] })
    } finally {
      await scope.end()
    }
  }
  const table = markdownTable(
    ['server of a null disk', 'RSS MiB, fresh', 'after a million requests', 'after all', 'requests'],
    rows.map(({ names, samples: [sample] }) => [
      ...names,
      ...[sample!.freshMiB, sample!.warmMiB, sample!.afterMiB].map((value) => value.toFixed(1)),
      sample!.requests.toLocaleString('en'),
    ]),
  )
  const hint = long ? '' : '\n\n`npm run bench -- --long` makes it a hundred million.'
  return { name: 'rss', rows, markdown: `### Memory after many requests at QD128\n\n${table}${hint}` }
}
