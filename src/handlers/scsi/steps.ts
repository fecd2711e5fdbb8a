import { type Completion, isCompletion } from '../../ring/request.ts'
import { type Answer, mapAnswer, settled } from '../handler.ts'

/**
 * A command in several steps: it yields the answer to each step and goes on with its completion. What it returns is
 * the answer to the command.
 */
export type Steps = Generator<Answer, Completion, Completion>

/**
 * Takes the steps of a command one after the other. The command is answered at once if every step is; thousands of
 * steps take no more stack than one.
 */
export function inSteps(steps: Steps): Completion | PromiseLike<Completion> {
  let step = steps.next()
  while (step.done !== true) {
    const answer = settled(step.value)
    if (!isCompletion(answer)) return remaining(steps, answer)
    step = steps.next(answer)
  }
  return step.value
}

async function remaining(steps: Steps, first: PromiseLike<Completion>): Promise<Completion> {
  let step = steps.next(await first)
  while (step.done !== true) step = steps.next(await settled(step.value))
  return step.value
}

/**
 * The answer to a command whose work is done with `answer`.
 *
 * @param good makes the answer if the work went well; else `answer` is the answer
 */
export function answeredWith(answer: Answer, good: () => Completion): Answer {
  return mapAnswer(answer, (completion) => (completion.result === 'ok' ? good() : completion))
}
