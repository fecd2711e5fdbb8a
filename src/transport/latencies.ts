import type { Histogram } from 'hdr-histogram-js'
import { LatencyRow } from '../native.ts'

/** How long the requests of a load took, from submit to reap. */
export interface Latencies {
  /** Half of the requests took no longer, to within 1 %. 0 without requests, as the others. */
  readonly p50Micros: number
  readonly p99Micros: number
  readonly p999Micros: number
}

/**
 * Puts what a driver has counted into a histogram of the library's, in nanoseconds, which makes percentiles of it, adds
 * it to those of other loads, and writes it down for other programs.
 *
 * @param rows of {@link LatencyRow}
 */
export async function histogramOf(rows: Float64Array): Promise<Histogram> {
  // Loading the library takes as long as a tenth of the start of a server, which has no load to measure.
  const { build } = await import('hdr-histogram-js')
  // One digit more than was counted with, so that hardly anything is lost here.
  const histogram = build({ numberOfSignificantValueDigits: 3, bitBucketSize: 64 })
  for (let row = 0; row < rows.length; row += LatencyRow.words) {
    histogram.recordValueWithCount(rows[row + LatencyRow.nanos]!, rows[row + LatencyRow.count]!)
  }
  return histogram
}

/** The percentiles that are told everywhere. */
export function latenciesOf(histogram: Histogram): Latencies {
  const micros = (percentile: number): number => histogram.getValueAtPercentile(percentile) / 1000
  return { p50Micros: micros(50), p99Micros: micros(99), p999Micros: micros(99.9) }
}
