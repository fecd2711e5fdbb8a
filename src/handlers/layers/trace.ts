import type { SchedulerLike } from 'rxjs'
import { functionOf, refuseUnknownOptions, stringOf } from '../../options.ts'
import type { Completion } from '../../ring/request.ts'
import type { BlockVerb } from '../block/block-request.ts'
import { attempt, type Layer, mapAnswer } from '../handler.ts'
import { schedulerOf } from './delay.ts'

/** One request as {@link trace} saw it. */
export interface TraceEntry {
  readonly name: string
  readonly verb: BlockVerb
  readonly offsetBytes: number
  readonly lengthBytes: number
  readonly result: Completion['result']
  /** Time from the request to its answer, in µs. */
  readonly micros: number
  /** Code and message of the error, when it failed. */
  readonly error?: string
}

/** Options of {@link trace}. */
export interface TraceOptions {
  /** Gets a line a request, and the same as an object. Default: writes the line to stderr. */
  readonly log?: (line: string, entry: TraceEntry) => void
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
  refuseUnknownOptions(options, ['log', 'name', 'scheduler'])
  const log = functionOf('log', options.log ?? writeToStderr)
  const name = stringOf('name', options.name ?? 'trace')
  const scheduler = schedulerOf(options.scheduler)
  return (next) => (io) => {
    const { verb, offsetBytes, lengthBytes } = io
    const startMs = scheduler.now()
    return mapAnswer(attempt(next, io), (completion) => {
      const { result } = completion
      const micros = Math.round((scheduler.now() - startMs) * 1000)
      const error =
        result === 'failed' ? { error: `${completion.error.code}: ${completion.error.message}` } : {}
      const entry = { name, verb, offsetBytes, lengthBytes, result, micros, ...error }
      log(lineOf(entry), entry)
      return completion
    })
  }
}

function lineOf({ name, verb, offsetBytes, lengthBytes, result, micros, error }: TraceEntry): string {
  const range = verb === 'flush' ? '' : ` ${lengthBytes} at ${offsetBytes}`
  return `${name} ${verb}${range}: ${result}, ${micros} µs${error === undefined ? '' : `, ${error}`}`
}

function writeToStderr(line: string): void {
  process.stderr.write(`${line}\n`)
}
