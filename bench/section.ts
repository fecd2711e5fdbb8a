/** What a row of a table was made of: every round's figures, by name. */
export interface MeasuredRow<Sample extends object = object> {
  /** What was measured: the cells before the figures. */
  readonly names: readonly string[]
  readonly samples: readonly Sample[]
}

/** One part of the measurements, as text and as data. */
export interface Section<Sample extends object = object> {
  /** What `--only` calls it. */
  readonly name: string
  readonly markdown: string
  readonly rows: readonly MeasuredRow<Sample>[]
  /** Why nothing was measured. */
  readonly notRun?: string
}

/** A section that this machine cannot have. @param heading Markdown */
export function notRun(name: string, heading: string, because: string): Section<never> {
  return { name, markdown: `${heading}\n\nNot run: ${because}.`, rows: [], notRun: because }
}

/** What every measurement is told. */
export interface BenchOptions {
  /** Interleaved rounds. */
  readonly rounds: number
  /** Length of one run. */
  readonly ms: number
  /** Runs that take minutes are run in full. */
  readonly long: boolean
}
