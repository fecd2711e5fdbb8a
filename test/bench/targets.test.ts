import test from 'ava'
import { encodeIntoCompressedBase64 } from 'hdr-histogram-js'
import type { LoadSample } from '../../bench/load.ts'
import { sumOf } from '../../bench/load.ts'
import { summaryOf } from '../../bench/page.ts'
import type { Section } from '../../bench/section.ts'
import { NotRun, TARGETS, type Target, targetTable, verdictsOf } from '../../bench/targets.ts'
import { histogramOf } from '../../src/transport/latencies.ts'

/** A run with these figures, and others of no matter. */
function sample(change: Partial<LoadSample> = {}): LoadSample {
  return {
    requests: 1000,
    elapsedMs: 1000,
    iops: 1000,
    p50Micros: 10,
    p99Micros: 20,
    p999Micros: 30,
    latencyHistogram: '',
    kicks: 10,
    signals: 20,
    frontEndCpuMs: 1,
    backEndCpuMs: 1,
    ...change,
  }
}

/** The table of the null disk, each row with these IOPS in its rounds. */
function nullDisk(ours: readonly number[], theirs: readonly number[]): Section<LoadSample> {
  const rows = ['QD1', 'QD8', 'QD32', 'QD128'].flatMap((load) => [
    { names: [load, 'qemu-storage-daemon'], samples: theirs.map((iops) => sample({ iops })) },
    ...['hushring, adaptive', 'hushring, immediate'].map((name) => ({
      names: [load, name],
      samples: ours.map((iops) => sample({ iops })),
    })),
  ])
  return { name: 'null', markdown: '', rows }
}

const sections = (...all: readonly Section[]): Map<string, Section> =>
  new Map(all.map((section) => [section.name, section]))

/** The verdict on the IOPS at QD32 of the default policy, as a row of the table. */
function rowOf(ours: readonly number[], theirs: readonly number[]): string {
  return targetTable(verdictsOf(sections(nullDisk(ours, theirs)))).split('\n')[2]!
}

test('a target is judged by the median of the ratios of each round', (t) => {
  // The ratio of the medians would be 4: what counts is what ran at the same time.
  t.regex(
    rowOf([4000, 100, 900], [1000, 100, 300]),
    /\| IOPS at QD32 ≥ 3\.5× \| 3\.00× \(1\.00 to 4\.00\) \| \*\*no\*\* \|$/,
  )
  t.regex(rowOf([3500, 3600, 100], [1000, 1000, 1000]), /3\.50× \(0\.10 to 3\.60\) \| yes \|$/)
})

test('control: a hair below the aim is not met', (t) => {
  t.regex(rowOf([3499], [1000]), /\| \*\*no\*\* \|$/)
})

test('what is to be small is met from below', (t) => {
  const [, , notifications] = verdictsOf(sections(nullDisk([1000], [1000])))
  t.deepEqual(
    notifications!.checks.map(({ of, values, met }) => ({ of, values, met })),
    [
      { of: 'QD32', values: [30], met: true },
      { of: 'QD128', values: [30], met: false },
    ],
  )
})

test('every target has a row, and one that was not run says why', (t) => {
  const missing: Section = { name: 'tcmu', markdown: '', rows: [], notRun: 'tcmu-runner is missing' }
  const table = targetTable(verdictsOf(sections(missing)))
  t.is(table.split('\n').length, 2 + TARGETS.length)
  t.regex(table, /tcmu-runner \| {2}\| not run: tcmu-runner is missing \|/)
  t.regex(table, /null disk, .* \| not run: not asked for \|/)
  t.notRegex(table, /\| yes \|/)
})

test('control: a mistake of a target is not taken for something that was not run', (t) => {
  const wrong = (error: Error): Target => ({
    work: 'w',
    peer: 'p',
    measure() {
      throw error
    },
  })
  t.throws(() => verdictsOf(new Map(), [wrong(new TypeError('mistake'))]), { message: 'mistake' })
  t.is(verdictsOf(new Map(), [wrong(new NotRun('no root'))])[0]!.notRun, 'no root')
})

test('growth is that of the costliest row, and per segment for segments', (t) => {
  const costs = (name: string, loads: readonly string[], cpuMs: readonly number[]): Section<LoadSample> => ({
    name,
    markdown: '',
    rows: loads.map((load, index) => ({
      names: [load, 'hushring, adaptive'],
      samples: [sample({ backEndCpuMs: cpuMs[index]! })],
    })),
  })
  const verdicts = verdictsOf(
    sections(
      costs('growth-depth', ['QD8', 'QD32', 'QD128'], [1, 1.2, 0.5]),
      costs('growth-segments', ['1 segment', '8 segments', '32 segments'], [1, 8.8, 32]),
    ),
  )
  const growth = verdicts.filter(({ work }) =>
    /growth: CPU a (request at the costliest of QD|segment)/.test(work),
  )
  t.deepEqual(
    growth.map(({ checks }) => checks.map(({ values, met }) => [values[0]!.toFixed(2), met])),
    [[['1.20', false]], [['1.10', true]]],
  )
})

test("the README's table has the peer and the default policy, from the same data", (t) => {
  const summary = summaryOf(nullDisk([2000, 3000, 4000], [1000, 1000, 1000]))
  t.regex(
    summary,
    /\| QD32 \| hushring, adaptive \| 3k \(2k to 4k\) \| 3\.00 \| 10\.0 \| 1\.00 \| 10\.0 \| 1\.00 \|/,
  )
  t.notRegex(summary, /immediate/)
  t.is(summaryOf({ name: 'null', markdown: '', rows: [] }), '')
})

test('loads at the same time add up, latencies too', async (t) => {
  const load = async (nanos: number) => ({
    ...sample({
      latencyHistogram: encodeIntoCompressedBase64(await histogramOf(Float64Array.of(nanos, 1000))),
    }),
    eventIdx: true,
    lostSignals: 0,
    stalls: 0,
    failedRequests: 0,
    mismatchedBytes: 0,
    backEndCpuMs: undefined,
  })
  const sum = await sumOf([await load(1000), await load(100_000)])
  t.is(sum.requests, 2000)
  t.is(sum.iops, 2000)
  t.is(sum.kicks, 20)
  t.true(Math.abs(sum.p50Micros - 1) < 0.01 && Math.abs(sum.p99Micros - 100) < 1)
})
