import { KiB, MiB } from '../units.ts'
import type { ProgressView } from './progress.ts'
import { formatTable } from './table.ts'

/** The load of every demonstration. */
export const DEMO_LOAD = { queueDepth: 32, blockBytes: 4 * KiB, writePercent: 30, verify: true } as const

/** Size of the disk that is driven, in bytes. */
export const DEMO_CAPACITY_BYTES: number = 64 * MiB

/** What a load measured, whatever the transport. */
export interface DemoFigures {
  readonly requests: number
  readonly iops: number
  readonly p50Micros: number
  readonly p99Micros: number
  readonly p999Micros: number
  /** Wake-ups that never came, in either direction. */
  readonly lostNotifications: number
  readonly mismatchedBytes: number
  readonly verifiedBytes: number
  readonly failedRequests: number
}

/** One of the ways that a demonstration compares. */
export interface DemoWay<Figures extends DemoFigures> {
  readonly name: string
  /**
   * Serves a disk, drives it, and takes everything away again. Rejects when the load cannot come to its end.
   *
   * @param onProgress called about ten times a second
   */
  run(durationMs: number, onProgress: DemoProgress): Promise<Figures>
}

/** Told how far a load is. */
export type DemoProgress = (progress: { readonly requests: number; readonly elapsedMs: number }) => void

/** A disk that is driven in several ways, to compare them. */
export interface Demonstration<Figures extends DemoFigures> {
  /** What is compared: the lines above the table, without a final newline. */
  readonly introduction: string
  readonly ways: readonly DemoWay<Figures>[]
  /** The columns behind those that every demonstration has. */
  readonly columns: readonly DemoColumn<Figures>[]
}

/** A column of the table: its heading, and a cell for each way. */
export interface DemoColumn<Figures> {
  readonly heading: string
  cell(figures: Figures): string
}

/** How a demonstration is run, and where its result goes. */
export interface DemoRun {
  /** How long each way runs. */
  readonly durationMs: number
  /** True: one JSON object instead of the table. */
  readonly json: boolean
  readonly progress: ProgressView
  writeOutput(text: string): void
}

/**
 * Runs every way of a demonstration, one after the other, and writes what they measured.
 *
 * @returns the exit status: 1 when a wake-up was lost, a byte was wrong or a request failed
 */
export async function runDemonstration<Figures extends DemoFigures>(
  demonstration: Demonstration<Figures>,
  run: DemoRun,
): Promise<number> {
  const results: WayResult<Figures>[] = []
  const nameLengthMax = Math.max(...demonstration.ways.map(({ name }) => name.length))
  for (const way of demonstration.ways) {
    run.progress.begin(way.name.padEnd(nameLengthMax))
    try {
      results.push({ name: way.name, figures: await runWay(way, run) })
    } finally {
      run.progress.end()
    }
  }
  const ok = results.every(({ figures }) => isRight(figures))
  run.writeOutput(run.json ? jsonReport(results, ok) : textReport(demonstration, results, ok))
  return ok ? 0 : 1
}

interface WayResult<Figures> {
  readonly name: string
  readonly figures: Figures
}

function runWay<Figures extends DemoFigures>(
  way: DemoWay<Figures>,
  { durationMs, progress }: DemoRun,
): Promise<Figures> {
  return way.run(durationMs, ({ requests, elapsedMs }) =>
    progress.update(elapsedMs / durationMs, `${count(requests)} requests`),
  )
}

function isRight(figures: DemoFigures): boolean {
  const { requests, verifiedBytes, lostNotifications, mismatchedBytes, failedRequests } = figures
  return requests > 0 && verifiedBytes > 0 && lostNotifications + mismatchedBytes + failedRequests === 0
}

function jsonReport(results: readonly WayResult<DemoFigures>[], ok: boolean): string {
  return `${JSON.stringify({ ok, ways: results.map(({ name, figures }) => ({ name, ...figures })) })}\n`
}

const COLUMNS: readonly DemoColumn<DemoFigures>[] = [
  { heading: 'IOPS', cell: ({ iops }) => count(iops) },
  { heading: 'p50 µs', cell: ({ p50Micros }) => p50Micros.toFixed(1) },
  { heading: 'p99 µs', cell: ({ p99Micros }) => p99Micros.toFixed(1) },
  { heading: 'p99.9 µs', cell: ({ p999Micros }) => p999Micros.toFixed(1) },
]

function textReport<Figures extends DemoFigures>(
  demonstration: Demonstration<Figures>,
  results: readonly WayResult<Figures>[],
  ok: boolean,
): string {
  const columns: readonly DemoColumn<Figures>[] = [...COLUMNS, ...demonstration.columns]
  const sum = (pick: (figures: DemoFigures) => number): number =>
    results.reduce((total, { figures }) => total + pick(figures), 0)
  const heading = ['', ...columns.map((column) => column.heading)]
  const rows = results.map(({ name, figures }) => [name, ...columns.map((column) => column.cell(figures))])
  return `
${demonstration.introduction}

${formatTable([heading, ...rows])}

${ok ? 'All is well' : 'SOMETHING IS WRONG'}: ${count(sum((figures) => figures.verifiedBytes) / MiB)} MiB read back and compared, \
${count(sum((figures) => figures.mismatchedBytes))} bytes differ, \
${count(sum((figures) => figures.failedRequests))} requests failed, \
${count(sum((figures) => figures.lostNotifications))} wake-ups lost.
`
}

/** A whole number for people. */
export function count(value: number): string {
  return Math.round(value).toLocaleString('en-US')
}

/** How many of `events` come on 1,000 of `requests`, for people. */
export function perThousand(events: number, requests: number): string {
  return ((events * 1000) / Math.max(1, requests)).toFixed(1)
}
