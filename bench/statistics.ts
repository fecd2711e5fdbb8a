/** Median, smallest and largest of a few samples. */
export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

/** Summarises samples; at least one is needed. */
export function spreadOf(samples: readonly number[]): Spread {
  const sorted = [...samples].sort((one, other) => one - other)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { median, min: sorted[0]!, max: sorted.at(-1)! }
}

/** Median, smallest and largest of some IOPS, as the tables show them. */
export function iopsCell(samples: readonly number[]): string {
  const { median, min, max } = spreadOf(samples)
  const kilo = (value: number): string => `${Math.round(value / 1000)}k`
  return `${kilo(median)} (${kilo(min)} to ${kilo(max)})`
}

/**
 * Runs every case once a round, in an order that turns by one each round, so that a slow moment of a shared machine
 * does not fall on the same case each time.
 *
 * @returns the samples of each case, in the order of `cases`
 */
export async function interleave<C, S>(
  cases: readonly C[],
  roundCount: number,
  run: (one: C) => Promise<S>,
): Promise<S[][]> {
  const samples: S[][] = cases.map(() => [])
  for (let round = 0; round < roundCount; round++) {
    for (let step = 0; step < cases.length; step++) {
      const index = (step + round) % cases.length
      samples[index]!.push(await run(cases[index]!))
    }
  }
  return samples
}

/** A table in Markdown. */
export function markdownTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`
  const rule = header.map((_, index) => (index === 0 ? '---' : '---:'))
  return [line(header), line(rule), ...rows.map(line)].join('\n')
}

/**
 * Between which samples the median of what they come from lies, with a confidence of 95 % or more whatever their
 * distribution: that of a sign test. Seven samples: between the smallest and the largest (98 %). Undefined for fewer than
 * six, which cannot say so much.
 */
export function medianInterval(samples: readonly number[]): { low: number; high: number } | undefined {
  const sorted = [...samples].sort((one, other) => one - other)
  // Each sample is above the median as often as below: `tail` is the chance that at most `rank` of them are above.
  let [rank, tail, term] = [-1, 0, 0.5 ** sorted.length]
  while (tail + term <= 0.025) {
    tail += term
    rank++
    term *= (sorted.length - rank) / (rank + 1)
  }
  return rank < 0 ? undefined : { low: sorted[rank]!, high: sorted[sorted.length - 1 - rank]! }
}
