/** Native core and model differ: what a planted bug has to bring about, and nothing else may. */
export class Disagreement extends Error {}

/** Throws a {@link Disagreement} with both values unless they are the same. */
export function expectSame<Value>(what: string, ours: Value, theirs: Value): void {
  if (ours !== theirs) throw new Disagreement(`${what}: native ${ours}, model ${theirs}`)
}

/** Runs the steps of a history; what one of them throws gets its number and its name. */
export function playSteps<Step extends { readonly do: string }>(
  steps: readonly Step[],
  play: (step: Step) => void,
): void {
  for (const [index, step] of steps.entries()) {
    try {
      play(step)
    } catch (error) {
      if (error instanceof Error) error.message = `step ${index + 1} (${step.do}): ${error.message}`
      throw error
    }
  }
}
