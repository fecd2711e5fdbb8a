import { type Completion, isCompletion } from '../../ring/request.ts'
import type { ScsiRequest } from '../../ring/scsi-request.ts'
import { type ByteRange, overlapping } from '../block/byte-range.ts'
import { type Answer, settled } from '../handler.ts'
import { Condition } from './conditions.ts'

/** What a command does with its range. */
export type RangeWork = (request: ScsiRequest, offsetBytes: number, lengthBytes: number) => Answer

/**
 * Makes COMPARE AND WRITE one indivisible step for every other command on its blocks (SBC-3, 5.2). Without it two
 * hosts that fight for a lock on the disk could both win:
 *
 * | host A: COMPARE AND WRITE 0 → A | host B: COMPARE AND WRITE 0 → B | disk |
 * | ------------------------------- | ------------------------------- | ---- |
 * | reads 0, as expected            |                                 | 0    |
 * |                                 | reads 0, as expected            | 0    |
 * | writes A, is told GOOD          |                                 | A    |
 * |                                 | writes B, is told GOOD          | B    |
 *
 * Any number of other commands share a range. A command waits for those before it that overlap with it if one of the
 * two is exclusive, so nobody is overtaken and nobody starves; it waits only for earlier ones, so there is no circle.
 *
 * What a store answers at once cannot be interrupted: it costs one comparison while nothing exclusive is in flight.
 * What it answers later is noted until then, also if nobody waits for the answer any more: the write still happens.
 */
export class RangeLock {
  /** In the order they came. */
  readonly #claims = new Set<Claim>()
  #exclusiveCount = 0

  /** Number of commands that are not answered yet, waiting ones included. */
  get claimCount(): number {
    return this.#claims.size
  }

  /**
   * Does work that others may do on the same range at the same time.
   *
   * @param work called with the other parameters: at once, or when no exclusive work before it is in the way
   */
  shared(request: ScsiRequest, offsetBytes: number, lengthBytes: number, work: RangeWork): Answer {
    if (this.#exclusiveCount > 0) {
      const claim = this.#claim(offsetBytes, lengthBytes, false)
      return this.#granted(claim, request, work)
    }
    // An answer in the same call leaves nobody the time to come in between, so there is nothing to claim.
    const answer = work(request, offsetBytes, lengthBytes)
    if (isCompletion(answer)) return answer
    const late = settled(answer)
    return this.#released(this.#claim(offsetBytes, lengthBytes, false), late)
  }

  /** Does work during which nothing else happens on the range. Parameters as {@link shared}. */
  exclusive(request: ScsiRequest, offsetBytes: number, lengthBytes: number, work: RangeWork): Answer {
    return this.#granted(this.#claim(offsetBytes, lengthBytes, true), request, work)
  }

  #claim(offsetBytes: number, lengthBytes: number, isExclusive: boolean): Claim {
    const claim = new Claim(offsetBytes, lengthBytes, isExclusive)
    for (const earlier of overlapping(this.#claims, claim)) {
      if (isExclusive || earlier.isExclusive) claim.follow(earlier)
    }
    this.#claims.add(claim)
    if (isExclusive) this.#exclusiveCount++
    return claim
  }

  #granted(claim: Claim, request: ScsiRequest, work: RangeWork): Completion | PromiseLike<Completion> {
    if (!claim.isWaiting) return this.#work(claim, request, work)
    return claim.granted(request.signal).then(() => {
      if (!request.isAborted) return this.#work(claim, request, work)
      // Its memory may stand for something else by now. Those behind it need not wait for its turn.
      this.#release(claim)
      return request.checkCondition(Condition.ABORTED, request.signal.reason)
    })
  }

  #work(claim: Claim, request: ScsiRequest, work: RangeWork): Completion | PromiseLike<Completion> {
    try {
      const answer = settled(work(request, claim.offsetBytes, claim.lengthBytes))
      if (!isCompletion(answer)) return this.#released(claim, answer)
      this.#release(claim)
      return answer
    } catch (error) {
      this.#release(claim)
      throw error
    }
  }

  async #released(claim: Claim, answer: Completion | PromiseLike<Completion>): Promise<Completion> {
    try {
      return await answer
    } finally {
      this.#release(claim)
    }
  }

  #release(claim: Claim): void {
    this.#claims.delete(claim)
    if (claim.isExclusive) this.#exclusiveCount--
    claim.release()
  }
}

/** The place of one command in the queue for its range. */
class Claim implements ByteRange {
  readonly offsetBytes: number
  readonly lengthBytes: number
  readonly endBytes: number
  readonly isExclusive: boolean
  readonly #followers: Claim[] = []
  #earlierCount = 0
  #grant: (() => void) | undefined

  constructor(offsetBytes: number, lengthBytes: number, isExclusive: boolean) {
    this.offsetBytes = offsetBytes
    this.lengthBytes = lengthBytes
    this.endBytes = offsetBytes + lengthBytes
    this.isExclusive = isExclusive
  }

  get isWaiting(): boolean {
    return this.#earlierCount > 0
  }

  follow(earlier: Claim): void {
    earlier.#followers.push(this)
    this.#earlierCount++
  }

  /** Resolves when all earlier ones are released or the signal fires. A promise, because a chain may be long. */
  granted(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const grant = (): void => {
        signal.removeEventListener('abort', grant)
        resolve()
      }
      this.#grant = grant
      if (signal.aborted) grant()
      else signal.addEventListener('abort', grant)
    })
  }

  release(): void {
    for (const follower of this.#followers) {
      if (--follower.#earlierCount === 0) follower.#grant?.()
    }
  }
}
