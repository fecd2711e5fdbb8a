import { randomInt } from 'node:crypto'
import type { SchedulerLike } from 'rxjs'
import { HushringError, optionTypeError } from '../../errors.ts'
import { integerIn, numberIn, refuseUnknownOptions } from '../../options.ts'
import { BLOCK_VERBS, type BlockVerb } from '../block/block-request.ts'
import type { Answer, Layer } from '../handler.ts'
import { delayed, schedulerOf } from './delay.ts'

/** Options of {@link fault}. */
export interface FaultOptions {
  /** Delay of each request, 0 to 3,600,000 ms. Default 0: none. */
  readonly delayMs?: number
  /** Share of requests that fail instead of being done, 0 to 100; fractions count. Default 0. */
  readonly errorPercent?: number
  /** Seed of the choice, 0 to 2^32 - 1. Default: a random one; see {@link FaultLayer.seed}. */
  readonly seed?: number
  /** Verbs to disturb; the others pass. Default: all. */
  readonly verbs?: readonly BlockVerb[]
  /** The clock of the delay. */
  readonly scheduler?: SchedulerLike
}

/** A layer that can say how to repeat what it does. */
export interface FaultLayer extends Layer {
  /** The seed in use. The same seed and the same order of requests give the same faults. */
  readonly seed: number
}

/**
 * Delays requests and fails some of them with `ERR_STORE_IO`, to see what a driver or another layer does then. A
 * request that fails does not reach the disk. The error tells the seed and the number of the request.
 */
export function fault(options: FaultOptions = {}): FaultLayer {
  refuseUnknownOptions(options, ['delayMs', 'errorPercent', 'seed', 'verbs', 'scheduler'])
  const delayMs = numberIn('delayMs', options.delayMs ?? 0, 0, 3_600_000)
  const errorPercent = numberIn('errorPercent', options.errorPercent ?? 0, 0, 100)
  const seed = integerIn('seed', options.seed ?? randomInt(2 ** 32), 0, 2 ** 32 - 1)
  const verbs = checkedVerbs(options.verbs ?? BLOCK_VERBS)
  const scheduler = schedulerOf(options.scheduler)
  const nextPercent = percentages(seed)
  let requestNumber = 0

  const layer: Layer = (next) => (io) => {
    if (!verbs.includes(io.verb)) return next(io)
    const number = ++requestNumber
    const fails = nextPercent() < errorPercent
    const work = (): Answer => {
      if (!fails) return next(io)
      const message = `${io.verb}: injected fault, request ${number} of seed ${seed}`
      return io.fail(new HushringError('ERR_STORE_IO', message, { details: { seed, requestNumber: number } }))
    }
    return delayMs === 0 ? work() : delayed(io, delayMs, scheduler, work)
  }
  return Object.assign(layer, { seed })
}

function checkedVerbs(verbs: readonly BlockVerb[]): readonly BlockVerb[] {
  const isVerbs = Array.isArray(verbs) && verbs.every((verb) => BLOCK_VERBS.includes(verb))
  if (!isVerbs) throw optionTypeError('verbs', `a list of ${BLOCK_VERBS.join(', ')}`, verbs)
  return verbs
}

/** Numbers from 0 to below 100 that look random: a Weyl sequence, mixed. Enough for faults, not for secrets. */
function percentages(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x9e3779b9) >>> 0
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad)
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97)
    return (((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32) * 100
  }
}
