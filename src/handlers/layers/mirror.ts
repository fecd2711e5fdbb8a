import { optionTypeError } from '../../errors.ts'
import { refuseUnknownOptions } from '../../options.ts'
import { type Completion, isCompletion } from '../../ring/request.ts'
import { SegmentList } from '../../ring/segments.ts'
import type { BlockRequest } from '../block/block-request.ts'
import { type ByteRange, overlapping } from '../block/byte-range.ts'
import type { BlockDevice } from '../device.ts'
import { type Answer, attempt, flatMapAnswer, type Handler, type Layer, settled } from '../handler.ts'

/** Options of {@link mirror}. */
export interface MirrorOptions {
  /** The second disk: as large as the first, with the same contents. Borrowed; its maker closes it. */
  readonly to: BlockDevice
}

/**
 * Keeps a second disk equal to the first. What writes or flushes goes to both at once and succeeds if both do; a read
 * goes to the first, and to the second if the first fails. Nothing is copied to catch up: after a failed write the
 * two may differ in its range, as the range of any failed write is undefined.
 *
 * What drivers are offered is what the first disk can do. A second disk without `flush` or `discard` is left out of
 * those; without `writeZeroes` both leave it to the driver.
 */
export function mirror(options: MirrorOptions): Layer {
  refuseUnknownOptions(options, ['to'])
  const { to } = options
  if (to?.kind !== 'block') throw optionTypeError('to', 'a disk such as memoryDisk({ … })', to)
  if (to.readOnly) throw optionTypeError('to', 'a disk that can be written', 'a read-only disk')
  return (next) => {
    const pair = new Pair(next, to.handler)
    return (io) => {
      switch (io.verb) {
        case 'read':
          return pair.read(io)
        case 'writeZeroes':
          return to.abilities.writeZeroes ? pair.change(io) : io.unsupported()
        case 'discard':
          return to.abilities.discard ? pair.change(io) : next(io)
        case 'flush':
          return to.abilities.flush ? pair.both(io) : next(io)
        case 'write':
          return pair.change(io)
      }
    }
  }
}

/** A write, discard or write of zeros that is not answered yet. */
interface Change extends ByteRange {
  readonly answered: PromiseLike<unknown>
}

/**
 * Two disks that change alike. Two things could make them differ though every write succeeds:
 *
 * - A driver changes its buffer while it is being written, as file systems do. Each disk would read the buffer at its
 *   own time. So both get a write out of one copy.
 * - Two writes that overlap are in flight together, and one disk does A, then B, the other B, then A. So a change
 *   waits for those before it that overlap with it.
 */
class Pair {
  readonly #first: Handler
  readonly #second: Handler
  /** In the order they came. */
  readonly #changesInFlight = new Set<Change>()

  constructor(first: Handler, second: Handler) {
    this.#first = first
    this.#second = second
  }

  read(io: BlockRequest): Answer {
    return flatMapAnswer(attempt(this.#first, io), (completion) =>
      completion.result === 'ok' ? completion : this.#readSecond(io, completion),
    )
  }

  #readSecond(io: BlockRequest, failure: Completion): Answer {
    return flatMapAnswer(attempt(this.#second, io), (completion) =>
      completion.result === 'ok' ? completion : failure,
    )
  }

  change(io: BlockRequest): Answer {
    const { offsetBytes, lengthBytes } = io
    const range = { offsetBytes, endBytes: offsetBytes + lengthBytes }
    const earlier = overlapping(this.#changesInFlight, range)
    const own = io.verb === 'write' ? io.derive({ data: SegmentList.of(io.data.toBuffer()) }) : io
    const answer =
      earlier.length === 0
        ? this.both(own)
        : Promise.all(earlier.map((change) => change.answered)).then(() =>
            io.isAborted ? io.fail(io.signal.reason) : this.both(own),
          )
    if (isCompletion(answer)) return answer
    const change: Change = { ...range, answered: answer }
    this.#changesInFlight.add(change)
    return answer.then((completion) => {
      this.#changesInFlight.delete(change)
      return completion
    })
  }

  both(io: BlockRequest): Completion | Promise<Completion> {
    const first = attempt(this.#first, io)
    const second = attempt(this.#second, io)
    if (isCompletion(first) && isCompletion(second)) return worseOf(first, second)
    return Promise.all([settled(first), settled(second)]).then(([one, other]) => worseOf(one, other))
  }
}

const BADNESS = { ok: 0, unsupported: 1, failed: 2 } as const

function worseOf(first: Completion, second: Completion): Completion {
  return BADNESS[second.result] > BADNESS[first.result] ? second : first
}
