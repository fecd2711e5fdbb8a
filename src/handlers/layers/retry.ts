import type { SchedulerLike } from 'rxjs'
import { integerIn, numberIn, refuseUnknownOptions } from '../../options.ts'
import { type Completion, isCompletion } from '../../ring/request.ts'
import { type BlockRequest, isWriting } from '../block/block-request.ts'
import { type Answer, attempt, flatMapAnswer, type Handler, type Layer } from '../handler.ts'
import { delayed, schedulerOf } from './delay.ts'

/** Options of {@link retry}. */
export interface RetryOptions {
  /** Further attempts after the first, 1 to 1000. */
  readonly count: number
  /** Wait before each of them, 0 to 60,000 ms. Default 0: at once. */
  readonly delayMs?: number
  /** The clock of the wait. */
  readonly scheduler?: SchedulerLike
}

/**
 * Asks again when a request failed because of the medium. Reads, writes, discards and zeros can be repeated safely.
 *
 * A flush is asked once: after a failed one the kernel may have dropped the pages it could not write and marked
 * them clean, so that a second flush succeeds though the data is lost. What the driver did wrong is not repeated
 * either, nor a request that nobody waits for any more.
 */
export function retry(options: RetryOptions): Layer {
  refuseUnknownOptions(options, ['count', 'delayMs', 'scheduler'])
  const count = integerIn('count', options.count, 1, 1000)
  const delayMs = numberIn('delayMs', options.delayMs ?? 0, 0, 60_000)
  const scheduler = schedulerOf(options.scheduler)

  const ask = (next: Handler, io: BlockRequest, left: number): Answer => {
    const answer = attempt(next, io)
    // Nearly all of them; what follows makes closures.
    return isCompletion(answer) && answer.result === 'ok' ? answer : askAgain(next, io, left, answer)
  }

  const askAgain = (next: Handler, io: BlockRequest, left: number, answer: Answer): Answer =>
    flatMapAnswer(answer, (completion) => {
      if (left === 0 || !isWorthRepeating(io, completion)) return completion
      const again = (): Answer => ask(next, io, left - 1)
      return delayMs === 0 ? again() : delayed(io, delayMs, scheduler, again)
    })

  return (next) => (io) => ask(next, io, count)
}

const GIVEN_UP: ReadonlySet<string> = new Set(['ERR_HANDLER_TIMEOUT', 'ERR_REQUEST_ABORTED'])

function isWorthRepeating(io: BlockRequest, completion: Completion): boolean {
  if (completion.result !== 'failed' || io.verb === 'flush') return false
  // A write that was given up may still be running, and would land after its own repetition and whatever followed.
  if (isWriting(io.verb) && GIVEN_UP.has(completion.error.code)) return false
  return completion.error.family === 'medium' && !io.isAborted
}
