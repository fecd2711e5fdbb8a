import { memoryDisk } from '../handlers/index.ts'
import { adaptive, immediate, type SuppressionPolicy } from '../notify/suppression.ts'
import { type LoadResult, loopback, type NotificationMode } from '../transport/loopback.ts'
import { MiB } from '../units.ts'
import { barProgress, lineProgress, noProgress, type ProgressView } from './progress.ts'
import { formatTable } from './table.ts'

/** Options of the command `hushring demo`. */
export interface DemoOptions {
  /** How long each of the three ways runs, in seconds. */
  readonly seconds: number
  /** True: one JSON object on stdout instead of the table, and no progress. */
  readonly json?: boolean
}

/** What a demo runs on and writes to; a test has its own. */
export interface DemoSurroundings {
  readonly connect: typeof loopback.connect
  readonly progress: ProgressView
  writeOutput(text: string): void
}

interface Way {
  readonly name: string
  readonly notification: NotificationMode
  readonly suppression: SuppressionPolicy
}

const WAYS: readonly Way[] = [
  { name: 'no suppression', notification: 'none', suppression: immediate() },
  { name: 'flags', notification: 'flags', suppression: immediate() },
  { name: 'EVENT_IDX, batching', notification: 'event-idx', suppression: adaptive() },
]

/** Runs the demo in the surroundings of this process. Arguments and result as {@link runDemo}. */
export function demo(options: DemoOptions): Promise<number> {
  const writeProgress = (text: string): void => void process.stderr.write(text)
  const makeProgress = process.stderr.isTTY ? barProgress : lineProgress
  return runDemo(options, {
    connect: loopback.connect,
    progress: options.json ? noProgress : makeProgress(writeProgress),
    writeOutput: (text) => process.stdout.write(text),
  })
}

/**
 * Serves a disk in memory to a driver thread over a real ring and real eventfds, in three ways of notification, and
 * compares them.
 *
 * @returns the exit status: 1 when a wake-up was lost, a byte was wrong or a request failed
 */
export async function runDemo(options: DemoOptions, surroundings: DemoSurroundings): Promise<number> {
  const results: LoadResult[] = []
  for (const way of WAYS) results.push(await runWay(way, options.seconds * 1000, surroundings))
  const ok = results.every(isRight)
  surroundings.writeOutput(options.json ? jsonReport(results, ok) : textReport(results, ok))
  return ok ? 0 : 1
}

async function runWay(
  way: Way,
  durationMs: number,
  { connect, progress }: DemoSurroundings,
): Promise<LoadResult> {
  const { name, notification, suppression } = way
  const disk = memoryDisk({ capacityBytes: 64 * MiB })
  const connection = await connect({ device: disk, queueSize: 256, notification, suppression })
  progress.begin(name.padEnd(NAME_LENGTH_MAX))
  try {
    return await connection.runLoad({
      queueDepth: 32,
      durationMs,
      writePercent: 30,
      verify: true,
      onProgress: ({ requests, elapsedMs }) =>
        progress.update(elapsedMs / durationMs, `${count(requests)} requests`),
    })
  } finally {
    progress.end()
    await connection.close()
    await disk.close()
  }
}

const NAME_LENGTH_MAX = Math.max(...WAYS.map(({ name }) => name.length))

function isRight(result: LoadResult): boolean {
  const { requests, verifiedBytes, lostNotifications, mismatchedBytes, failedRequests } = result
  return requests > 0 && verifiedBytes > 0 && lostNotifications + mismatchedBytes + failedRequests === 0
}

function jsonReport(results: readonly LoadResult[], ok: boolean): string {
  return `${JSON.stringify({ ok, ways: results.map((result, index) => ({ name: WAYS[index]!.name, ...result })) })}\n`
}

const HEADING = ['', 'IOPS', 'p50 µs', 'p99 µs', 'kicks/1,000', 'signals/1,000', 'suppressed', 'lost']

function textReport(results: readonly LoadResult[], ok: boolean): string {
  const sum = (pick: (result: LoadResult) => number): number =>
    results.reduce((total, result) => total + pick(result), 0)
  const rows = results.map((result, index) => [WAYS[index]!.name, ...cellsOf(result)])
  return `
A disk in TypeScript, driven by a thread of this process over a split virtqueue in shared memory:
4 KiB requests, 32 in flight, 30 % writes. Kicks wake the device, signals wake the driver.

${formatTable([HEADING, ...rows])}

${ok ? 'All is well' : 'SOMETHING IS WRONG'}: ${count(sum((result) => result.verifiedBytes) / MiB)} MiB read back and compared, \
${count(sum((result) => result.mismatchedBytes))} bytes differ, \
${count(sum((result) => result.failedRequests))} requests failed, \
${count(sum((result) => result.lostNotifications))} wake-ups lost.
`
}

function cellsOf(result: LoadResult): string[] {
  const { requests, kicksSuppressed, signalsSuppressed } = result
  const perThousand = (events: number): string => ((events * 1000) / Math.max(1, requests)).toFixed(1)
  return [
    count(result.iops),
    result.p50Micros.toFixed(1),
    result.p99Micros.toFixed(1),
    perThousand(result.kicks),
    perThousand(result.signals),
    count(kicksSuppressed + signalsSuppressed),
    count(result.lostNotifications),
  ]
}

function count(value: number): string {
  return Math.round(value).toLocaleString('en-US')
}
