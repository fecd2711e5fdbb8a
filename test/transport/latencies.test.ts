import test from 'ava'
import { decodeFromCompressedBase64, encodeIntoCompressedBase64 } from 'hdr-histogram-js'
import { histogramOf, latenciesOf } from '../../src/transport/latencies.ts'

const SEED = 7

/** So many latencies in ns, from 1 to 10^10, as likely in each decade, smallest first. */
function someLatencies(count: number): number[] {
  let state = SEED
  const random = (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
  return Array.from({ length: count }, () => Math.round(10 ** (10 * random()))).sort((a, b) => a - b)
}

/** Rows as a driver hands them out: each value once, with its count. */
function rowsOf(sorted: readonly number[]): Float64Array {
  const counts = new Map<number, number>()
  for (const nanos of sorted) counts.set(nanos, (counts.get(nanos) ?? 0) + 1)
  return Float64Array.from([...counts].flat())
}

/** The farthest that a percentile of the rows is from that of the values, as a share of it. */
async function errorOf(rows: Float64Array, sorted: readonly number[]): Promise<number> {
  const { p50Micros, p99Micros, p999Micros } = latenciesOf(await histogramOf(rows))
  const exact = (share: number): number => sorted[Math.ceil(share * sorted.length) - 1]! / 1000
  const errors = [
    [p50Micros, exact(0.5)],
    [p99Micros, exact(0.99)],
    [p999Micros, exact(0.999)],
  ].map(([told, wanted]) => Math.abs(told! - wanted!) / wanted!)
  return Math.max(...errors)
}

test(`percentiles are those of the sorted latencies (seed ${SEED})`, async (t) => {
  const sorted = someLatencies(20_000)
  t.true((await errorOf(rowsOf(sorted), sorted)) < 0.001)
})

test('control: a count that is left out and a row in another unit are seen', async (t) => {
  const sorted = [...Array.from({ length: 900 }, () => 1000), ...someLatencies(300)].sort((a, b) => a - b)
  const rows = rowsOf(sorted)
  t.true((await errorOf(rows, sorted)) < 0.001)
  t.true(
    (await errorOf(
      Float64Array.from(rows, (word, index) => (index % 2 === 0 ? word : 1)),
      sorted,
    )) > 0.01,
  )
  t.true(
    (await errorOf(
      Float64Array.from(rows, (word, index) => (index % 2 === 0 ? 2 * word : word)),
      sorted,
    )) > 0.01,
  )
})

test('histograms of two loads add up to that of both, by way of text', async (t) => {
  const sorted = someLatencies(4000)
  const halves = [0, 1].map((rest) => rowsOf(sorted.filter((_, index) => index % 2 === rest)))
  const [one, other] = await Promise.all(halves.map((rows) => histogramOf(rows)))
  const sum = await histogramOf(new Float64Array())
  sum.add(decodeFromCompressedBase64(encodeIntoCompressedBase64(one!)))
  sum.add(decodeFromCompressedBase64(encodeIntoCompressedBase64(other!)))
  t.is(sum.totalCount, 4000)
  t.deepEqual(latenciesOf(sum), latenciesOf(await histogramOf(rowsOf(sorted))))
})

test('a load without requests has no latency', async (t) => {
  t.deepEqual(latenciesOf(await histogramOf(new Float64Array())), {
    p50Micros: 0,
    p99Micros: 0,
    p999Micros: 0,
  })
})
