import type { SchedulerLike, Subscription } from 'rxjs'
import { optionTypeError } from '../../errors.ts'
import { numberIn, refuseUnknownOptions } from '../../options.ts'
import type { Completion } from '../../ring/request.ts'
import type { BlockRequest } from '../block/block-request.ts'
import { attempt, type Handler, type Layer, settled } from '../handler.ts'
import { schedulerOf } from './delay.ts'

/** Options of {@link rateLimit}; at least one of the two rates. */
export interface RateLimitOptions {
  /** Requests a second of any kind, above 0. */
  readonly iopsMax?: number
  /** Bytes read and written a second, above 0. */
  readonly bytesPerSecondMax?: number
  /**
   * How much of a quiet time may be made up for at once, in ms of the rate: with 100 and an `iopsMax` of 20,000,
   * 2,000 requests may pass in a burst. 10 to 60,000, default 100. Timers tick in ms, so less would miss the rate. As the
   * clock is not read for each request, a burst that follows others may be 1/16 longer.
   */
  readonly burstMs?: number
  /** The clock. */
  readonly scheduler?: SchedulerLike
}

const RATE_MAX = 1e15
/** Share of a burst that may pass without a look at the clock, which takes longer than all the rest. */
const UNTIMED_SHARE = 1 / 16

/**
 * Delays requests so that no more pass than the rates allow, in the order they came. None is dropped; a request that
 * is aborted while it waits fails at once and uses up nothing. While the rates are not reached nothing is delayed.
 *
 * The state is shared by all queues of the device, so the limit is one of the device.
 */
export function rateLimit(options: RateLimitOptions): Layer {
  refuseUnknownOptions(options, ['iopsMax', 'bytesPerSecondMax', 'burstMs', 'scheduler'])
  const { iopsMax, bytesPerSecondMax } = options
  if (iopsMax === undefined && bytesPerSecondMax === undefined) {
    throw optionTypeError('iopsMax', 'a number unless bytesPerSecondMax is given', iopsMax)
  }
  const burstMs = numberIn('burstMs', options.burstMs ?? 100, 10, 60_000)
  const scheduler = schedulerOf(options.scheduler)
  const requests = new Bucket(rateOf('iopsMax', iopsMax), burstMs)
  const bytes = new Bucket(rateOf('bytesPerSecondMax', bytesPerSecondMax), burstMs)
  return (next) => {
    const gate = new Gate(next, requests, bytes, scheduler)
    return (io) => gate.pass(io)
  }
}

function rateOf(name: string, rate = Number.POSITIVE_INFINITY): number {
  return rate === Number.POSITIVE_INFINITY ? rate : numberIn(name, rate, Number.MIN_VALUE, RATE_MAX)
}

/**
 * A leaking bucket, measured in ms until it is empty. It leaks 1 ms a ms; a request pours in what its cost takes at
 * the rate. A request may pass while the level is at the line or below, whatever it pours, so that one larger than
 * the bucket passes too and those after it wait longer.
 *
 * ```
 *        cost / rate
 *            │
 *   │        ▼        │
 *   │                 │   e.g. iopsMax 1000, burstMs 100: each request pours 1 ms,
 *   ├─ ─ ─ ─ ─ ─ ─ ─ ─┤ burstMs    101 pass at once, then one a ms
 *   │█████████████████│ level
 *   └────────┬────────┘
 *            ▼ 1 ms a ms
 * ```
 */
class Bucket {
  readonly #ratePerMs: number
  readonly #burstMs: number
  #nowMs = 0
  #emptyAtMs = Number.NEGATIVE_INFINITY
  /** Poured in since the time was told. */
  #untimedMs = Number.POSITIVE_INFINITY

  constructor(ratePerSecond: number, burstMs: number) {
    this.#ratePerMs = ratePerSecond / 1000
    this.#burstMs = burstMs
  }

  tellTime(nowMs: number): void {
    this.#nowMs = nowMs
    this.#untimedMs = 0
  }

  /** ms until the level is down at the line; 0 or less when it is. As of the time that was told last. */
  waitMs(): number {
    return this.#emptyAtMs - this.#burstMs - this.#nowMs
  }

  /**
   * True when a request may pass whatever the time is by now: there was room when it was told, and room only grows. What
   * is poured in untimed leaks too early, as if it had come then; so it is a small part of the bucket only.
   */
  passesUntimed(cost: number): boolean {
    return this.waitMs() <= 0 && this.#untimedMs + cost / this.#ratePerMs <= this.#burstMs * UNTIMED_SHARE
  }

  pour(cost: number): void {
    const pouredMs = cost / this.#ratePerMs
    this.#emptyAtMs = Math.max(this.#nowMs, this.#emptyAtMs) + pouredMs
    this.#untimedMs += pouredMs
  }
}

interface Waiter {
  readonly io: BlockRequest
  answer(completion: Completion | PromiseLike<Completion>): void
}

/** Lets requests through to one handler, those that have to wait in the order they came. */
class Gate {
  readonly #next: Handler
  readonly #requests: Bucket
  readonly #bytes: Bucket
  readonly #scheduler: SchedulerLike
  readonly #waiting = new Set<Waiter>()
  #timer: Subscription | undefined

  constructor(next: Handler, requests: Bucket, bytes: Bucket, scheduler: SchedulerLike) {
    this.#next = next
    this.#requests = requests
    this.#bytes = bytes
    this.#scheduler = scheduler
  }

  pass(io: BlockRequest): ReturnType<Handler> {
    // Nobody overtakes: as long as somebody waits, the others stand behind.
    if (this.#waiting.size === 0 && (this.#passesUntimed(io) || this.#waitMs() <= 0)) {
      this.#pour(io)
      return this.#next(io)
    }
    return new Promise<Completion>((resolve) => this.#wait(io, resolve))
  }

  #wait(io: BlockRequest, resolve: Waiter['answer']): void {
    const { signal } = io
    const giveUp = (): void => {
      this.#waiting.delete(waiter)
      resolve(io.fail(signal.reason))
    }
    const waiter: Waiter = {
      io,
      answer: (completion) => {
        signal.removeEventListener('abort', giveUp)
        resolve(completion)
      },
    }
    if (signal.aborted) {
      giveUp()
      return
    }
    signal.addEventListener('abort', giveUp, { once: true })
    this.#waiting.add(waiter)
    this.#wakeLater()
  }

  #wakeLater(): void {
    if (this.#timer !== undefined || this.#waiting.size === 0) return
    const waitMs = this.#waitMs()
    // Whole ms: a wait that rounding made smaller than the clock can show would be found unfinished for ever.
    this.#timer = this.#scheduler.schedule(() => this.#letThrough(), Math.max(1, Math.ceil(waitMs)))
  }

  #letThrough(): void {
    this.#timer = undefined
    for (const waiter of this.#waiting) {
      if (this.#waitMs() > 0) break
      this.#waiting.delete(waiter)
      this.#pour(waiter.io)
      waiter.answer(settled(attempt(this.#next, waiter.io)))
    }
    this.#wakeLater()
  }

  #passesUntimed(io: BlockRequest): boolean {
    return this.#requests.passesUntimed(1) && this.#bytes.passesUntimed(io.data.byteLength)
  }

  #waitMs(): number {
    const nowMs = this.#scheduler.now()
    this.#requests.tellTime(nowMs)
    this.#bytes.tellTime(nowMs)
    return Math.max(this.#requests.waitMs(), this.#bytes.waitMs())
  }

  #pour(io: BlockRequest): void {
    this.#requests.pour(1)
    this.#bytes.pour(io.data.byteLength)
  }
}
