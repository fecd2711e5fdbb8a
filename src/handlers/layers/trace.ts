import type { SchedulerLike } from 'rxjs'
import { booleanOf, functionOf, refuseUnknownOptions, stringOf } from '../../options.ts'
import { type Completion, isCompletion } from '../../ring/request.ts'
import type { BlockRequest, BlockVerb } from '../block/block-request.ts'
import { type Answer, attempt, type Layer, mapAnswer } from '../handler.ts'
import { schedulerOf } from './delay.ts'

/** One request as {@link trace} saw it. As a string it is a line for people, which is made only when asked for. */
export interface TraceEntry {
  readonly name: string
  readonly verb: BlockVerb
  readonly offsetBytes: number
  readonly lengthBytes: number
  readonly result: Completion['result']
  /** Time from the request to its answer, in µs; `undefined` when no times are taken. */
  readonly micros: number | undefined
  /** Code and message of the error, when it failed. */
  readonly error: string | undefined
  /** `trace read 4096 at 1048576: ok, 12 µs` */
  toString(): string
}

/** Options of {@link trace}. */
export interface TraceOptions {
  /** Gets each request when it is answered; `String(entry)` is a line. Default: writes the line to stderr. */
  readonly log?: (entry: TraceEntry) => void
  /**
   * Asked before each request whether anybody wants to know of it, such as `() => debug.enabled`; one that says no costs
   * next to nothing. Default: always.
   */
  readonly enabled?: () => boolean
  /** False: no times are taken, which saves two looks at the clock a request, most of what the layer costs. Default true. */
  readonly times?: boolean
  /** First word of each line, to tell several traces apart. Default `trace`. */
  readonly name?: string
  /** The clock. Default: the monotonic clock. */
  readonly scheduler?: SchedulerLike
}

/**
 * Tells each request when it is answered: `trace read 4096 at 1048576: ok, 12 µs`. What the layers inside do to a
 * request is seen from outside only; put it between two layers to look there.
 */
export function trace(options: TraceOptions = {}): Layer {
  refuseUnknownOptions(options, ['log', 'enabled', 'times', 'name', 'scheduler'])
  const log = functionOf('log', options.log ?? writeToStderr)
  const enabled = functionOf('enabled', options.enabled ?? always)
  const times = booleanOf('times', options.times ?? true)
  const name = stringOf('name', options.name ?? 'trace')
  const scheduler = schedulerOf(options.scheduler)

  const nowMs = (): number => (times ? scheduler.now() : Number.NaN)
  const tell = (entry: Entry, completion: Completion): Completion => {
    entry.end(completion, nowMs())
    log(entry)
    return completion
  }
  // A function of its own, because one that makes a closure keeps its variables on the heap, at each call.
  const tellLater = (entry: Entry, answer: Answer): Answer =>
    mapAnswer(answer, (completion) => tell(entry, completion))

  return (next) => (io) => {
    if (!enabled()) return next(io)
    const entry = new Entry(name, io, nowMs())
    const answer = attempt(next, io)
    return isCompletion(answer) ? tell(entry, answer) : tellLater(entry, answer)
  }
}

class Entry implements TraceEntry {
  readonly name: string
  readonly verb: BlockVerb
  readonly offsetBytes: number
  readonly lengthBytes: number
  result: Completion['result'] = 'ok'
  micros: number | undefined
  error: string | undefined
  readonly #startMs: number

  constructor(name: string, io: BlockRequest, startMs: number) {
    this.name = name
    this.verb = io.verb
    this.offsetBytes = io.offsetBytes
    this.lengthBytes = io.lengthBytes
    this.#startMs = startMs
  }

  end(completion: Completion, nowMs: number): void {
    this.result = completion.result
    const ms = nowMs - this.#startMs
    if (!Number.isNaN(ms)) this.micros = Math.round(ms * 1000)
    if (completion.result === 'failed') this.error = `${completion.error.code}: ${completion.error.message}`
  }

  toString(): string {
    const { name, verb, offsetBytes, lengthBytes, result, micros, error } = this
    const range = verb === 'flush' ? '' : ` ${lengthBytes} at ${offsetBytes}`
    const time = micros === undefined ? '' : `, ${micros} µs`
    return `${name} ${verb}${range}: ${result}${time}${error === undefined ? '' : `, ${error}`}`
  }
}

function always(): boolean {
  return true
}

function writeToStderr(entry: TraceEntry): void {
  process.stderr.write(`${entry}\n`)
}
