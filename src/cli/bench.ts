import { type BlockLoadResult, loadBlockDevice } from '../testing/block-load.ts'
import { count } from './demonstration.ts'
import { formatTable } from './table.ts'

/** Options of the command `hushring bench`. */
export interface BenchOptions {
  /** Where the back-end listens. */
  readonly socket: string
  /** Queues, each driven by a thread of its own. */
  readonly queues: number
  /** Requests in flight in each queue; one run each. */
  readonly depth: readonly number[]
  /** Length of a run. */
  readonly seconds: number
  readonly blockSize: number
  /** Percent of the requests. */
  readonly writes: number
  readonly sequential?: boolean
  readonly verify?: boolean
  /** 0: `seconds` decide alone. */
  readonly requests: number
  /** Of each request's data. */
  readonly segments: number
  readonly queueSize: number
  readonly eventIdx: boolean
  /** True: one JSON object a run on stdout instead of the table. */
  readonly json?: boolean
}

/** Drives a vhost-user-blk back-end. @returns the exit status: 1 when it did something wrong */
export async function bench(options: BenchOptions): Promise<number> {
  const runs: Run[] = []
  for (const queueDepth of options.depth) {
    const result = await loadBlockDevice({
      socketPath: options.socket,
      queueCount: options.queues,
      queueDepth,
      durationMs: options.seconds * 1000,
      blockBytes: options.blockSize,
      writePercent: options.writes,
      sequential: options.sequential ?? false,
      verify: options.verify ?? false,
      requestCountMax: options.requests,
      segmentCount: options.segments,
      queueSize: options.queueSize,
      eventIdx: options.eventIdx,
    })
    runs.push({ queueDepth, ...result })
    if (options.json) process.stdout.write(`${JSON.stringify(runs.at(-1))}\n`)
  }
  if (!options.json) process.stdout.write(`${benchReport(runs)}\n`)
  return runs.some((run) => mistakesOf(run).length > 0) ? 1 : 0
}

/** What one run at one depth has measured. */
export interface Run extends BlockLoadResult {
  readonly queueDepth: number
}

/** A table of the runs, and a line for each one in which the back-end did something wrong. */
export function benchReport(runs: readonly Run[]): string {
  const perThousand = (number: number, { requests }: Run): string => ((1000 * number) / requests).toFixed(1)
  const cpuMicros = (ms: number | undefined, { requests }: Run): string =>
    ms === undefined ? '–' : ((1000 * ms) / requests).toFixed(2)
  const rows = runs.map((run) => [
    String(run.queueDepth),
    count(Math.round(run.iops)),
    run.p50Micros.toFixed(1),
    run.p99Micros.toFixed(1),
    run.p999Micros.toFixed(1),
    perThousand(run.kicks, run),
    perThousand(run.signals, run),
    cpuMicros(run.backEndCpuMs, run),
    cpuMicros(run.frontEndCpuMs, run),
  ])
  const table = formatTable([
    [
      'in flight',
      'IOPS',
      'p50 µs',
      'p99 µs',
      'p99.9 µs',
      'kicks/1,000',
      'calls/1,000',
      'back-end CPU µs',
      'front-end CPU µs',
    ],
    ...rows,
  ])
  const mistakes = runs.flatMap((run) =>
    mistakesOf(run).map((mistake) => `with ${run.queueDepth} in flight: ${mistake}`),
  )
  return [table, ...mistakes].join('\n')
}

function mistakesOf(run: Run): string[] {
  return [
    ...(run.requests === 0 ? ['nothing was answered'] : []),
    ...(run.failedRequests > 0 ? [`${count(run.failedRequests)} requests failed`] : []),
    ...(run.mismatchedBytes > 0 ? [`${count(run.mismatchedBytes)} bytes are not what was written`] : []),
    ...(run.lostSignals > 0 ? [`${count(run.lostSignals)} signals were lost`] : []),
    ...(run.stalls > 0 ? [`nothing was answered for a second, ${count(run.stalls)} times`] : []),
  ]
}
