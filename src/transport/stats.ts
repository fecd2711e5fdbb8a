import { fromEventPattern, interval, map, type Observable, takeUntil } from 'rxjs'
import type { BlockVerb } from '../handlers/block/block-request.ts'
import { type Answer, type Layer, mapAnswer } from '../handlers/handler.ts'
import { integerIn } from '../options.ts'
import { SIZE_HISTOGRAM_LENGTH, type SizeHistogram } from '../ring/queue.ts'
import { isWholeOk } from '../ring/request.ts'

/** What a transport has done since it was made. Plain numbers, a fresh object each time. */
export interface TransportStats {
  /** Requests taken off the rings. */
  readonly requests: number
  readonly reads: number
  readonly writes: number
  readonly flushes: number
  /** Requests that failed; unsupported ones are no failures. */
  readonly errors: number
  readonly bytesRead: number
  readonly bytesWritten: number
  /** Times we were woken by a kick eventfd. */
  readonly kicks: number
  /** Times a call eventfd was written. */
  readonly signals: number
  /** Decisions that stayed silent because the driver had asked for silence. */
  readonly suppressed: number
  /** Batches taken. */
  readonly batches: number
  /** Wake-ups that the watchdog found missing. Always 0, or something is badly wrong. */
  readonly lostNotifications: number
  /** Times a driver broke a queue. */
  readonly brokenQueues: number
  /** Malformed chains given back with length 0. */
  readonly malformedChains: number
  /** Calls into native code by the queues. */
  readonly nativeCalls: number
  /** Requests taken and not yet answered. */
  readonly inFlight: number
  /** Drivers or front-ends that connected. */
  readonly connections: number
  /** Requests a batch, and answers made visible at once. Virtqueues only; zeros for TCMU. */
  readonly batchSizes: SizeHistogram
  readonly publishSizes: SizeHistogram
}

const NO_SIZES: SizeHistogram = Object.freeze(new Array<number>(SIZE_HISTOGRAM_LENGTH).fill(0))

/** Every count at zero. */
export const NO_STATS: TransportStats = Object.freeze({
  requests: 0,
  reads: 0,
  writes: 0,
  flushes: 0,
  errors: 0,
  bytesRead: 0,
  bytesWritten: 0,
  kicks: 0,
  signals: 0,
  suppressed: 0,
  batches: 0,
  lostNotifications: 0,
  brokenQueues: 0,
  malformedChains: 0,
  nativeCalls: 0,
  inFlight: 0,
  connections: 0,
  batchSizes: NO_SIZES,
  publishSizes: NO_SIZES,
})

/** Adds two counts, name by name. */
export function addStats(one: TransportStats, other: TransportStats): TransportStats {
  const sum: Record<string, number | SizeHistogram> = {}
  for (const name of Object.keys(NO_STATS) as (keyof TransportStats)[]) {
    const [value, added] = [one[name], other[name]]
    sum[name] =
      typeof value === 'number' ? value + (added as number) : addHistograms(value, added as SizeHistogram)
  }
  return sum as unknown as TransportStats
}

function addHistograms(one: SizeHistogram, other: SizeHistogram): SizeHistogram {
  return one.map((count, index) => count + other[index]!)
}

/** Something that counts, and emits `closed` when it is over. */
interface Counting<Stats> {
  statsSnapshot(): Stats
  addListener(event: 'closed', listener: () => void): unknown
  removeListener(event: 'closed', listener: () => void): unknown
}

/** How often {@link statsOf} counts. */
export interface StatsOptions {
  /** 10 or more; default 1000. */
  readonly everyMs?: number
}

/** Counts at intervals. Each subscriber has its own clock; it ends when the source is closed. */
export function statsOf<Stats>(source: Counting<Stats>, options: StatsOptions = {}): Observable<Stats> {
  const everyMs = integerIn('everyMs', options.everyMs ?? 1000, 10, 24 * 60 * 60 * 1000)
  return interval(everyMs).pipe(
    map(() => source.statsSnapshot()),
    takeUntil(
      fromEventPattern(
        (listener) => source.addListener('closed', listener),
        (listener) => source.removeListener('closed', listener),
      ),
    ),
  )
}

/** Counts of what a disk was asked, by verb. */
export class BlockTally {
  reads = 0
  writes = 0
  flushes = 0
  bytesRead = 0
  bytesWritten = 0

  /** A layer that counts the successful requests passing through it. */
  readonly layer: Layer = (next) => (io) => {
    const answer = next(io)
    if (!isWholeOk(answer)) return this.#countLater(io.verb, io.lengthBytes, answer)
    this.#count(io.verb, io.lengthBytes)
    return answer
  }

  #countLater(verb: BlockVerb, lengthBytes: number, answer: Answer): Answer {
    return mapAnswer(answer, (completion) => {
      // A handler in JavaScript may answer with anything; that is for the pipeline to tell.
      if (completion?.result === 'ok') this.#count(verb, lengthBytes)
      return completion
    })
  }

  #count(verb: BlockVerb, lengthBytes: number): void {
    if (verb === 'read') {
      this.reads++
      this.bytesRead += lengthBytes
    } else if (verb === 'write') {
      this.writes++
      this.bytesWritten += lengthBytes
    } else if (verb === 'flush') {
      this.flushes++
    }
  }
}
