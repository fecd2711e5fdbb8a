import { HushringError, messageOf } from '../errors.ts'
import { SegmentList } from './segments.ts'

declare const madeByRequest: unique symbol

/**
 * The answer to one request. Only a request can make one (`io.ok()`, `io.fail(error)`, `io.unsupported()`), so
 * that an object of the right shape made elsewhere does not compile and is refused at run time.
 */
export type Completion = OkCompletion | FailedCompletion | UnsupportedCompletion

/** The request was done. */
export interface OkCompletion {
  readonly [madeByRequest]: true
  readonly result: 'ok'
  /** Bytes placed into the device-writable data, counted from its start; `undefined` means all of them. */
  readonly bytesWritten: number | undefined
}

/** The request was tried and failed. A virtio block driver sees IOERR. */
export interface FailedCompletion {
  readonly [madeByRequest]: true
  readonly result: 'failed'
  readonly error: HushringError
}

/** The device does not know this kind of request. A virtio block driver sees UNSUPP. */
export interface UnsupportedCompletion {
  readonly [madeByRequest]: true
  readonly result: 'unsupported'
}

const completions = new WeakSet<object>()

function made<C extends object>(fields: C): C & { readonly [madeByRequest]: true } {
  const completion = Object.freeze(fields) as C & { readonly [madeByRequest]: true }
  completions.add(completion)
  return completion
}

/** True for what a request made; false for everything else a handler written in JavaScript may return. */
export function isCompletion(value: unknown): value is Completion {
  // The two shared answers come first: they are nearly all answers, and a WeakSet look-up costs far more.
  return (
    value === OK_ALL ||
    value === UNSUPPORTED ||
    (typeof value === 'object' && value !== null && completions.has(value))
  )
}

/** True for the answer "done, all of it", which nearly all answers are: there is nothing in it to check. */
export function isWholeOk(value: unknown): value is OkCompletion {
  return value === OK_ALL
}

const OK_ALL: OkCompletion = made({ result: 'ok' as const, bytesWritten: undefined })
const UNSUPPORTED: UnsupportedCompletion = made({ result: 'unsupported' as const })

/**
 * What every request has, whatever the device: a way to answer and a way to learn that nobody waits any more.
 *
 * A request and its segments are borrowed by the handler from the call until the answer. After that the object
 * may stand for another request.
 */
export abstract class Request {
  #abortController: AbortController | undefined

  /**
   * Aborts when the driver gave this request up: its queue was stopped or reset, its connection or transport
   * closed, its deadline passed, or (TCMU) a task management request named it. The request must still be
   * answered once; the answer is then ignored.
   */
  get signal(): AbortSignal {
    this.#abortController ??= new AbortController()
    return this.#abortController.signal
  }

  /** True once {@link signal} has fired. Costs nothing, while the first use of the signal makes an object. */
  get isAborted(): boolean {
    return this.#abortController?.signal.aborted ?? false
  }

  /** Fires {@link signal}. Called by the pipeline, not by handlers. */
  abort(reason: HushringError): void {
    this.#abortController ??= new AbortController()
    this.#abortController.abort(reason)
  }

  /** Called by the pool before a request stands for another one. */
  protected forgetSignal(): void {
    this.#abortController = undefined
  }

  /**
   * The answer "done".
   *
   * @param bytesWritten bytes placed into the device-writable data, from its start. Leave it out when all of
   * it was filled, or when there is none.
   */
  ok(bytesWritten?: number): OkCompletion {
    return bytesWritten === undefined ? OK_ALL : made({ result: 'ok' as const, bytesWritten })
  }

  /**
   * The answer "failed".
   *
   * @param cause what went wrong. Anything but a {@link HushringError} becomes the `cause` of `ERR_STORE_IO`.
   */
  fail(cause: unknown): FailedCompletion {
    const error =
      cause instanceof HushringError ? cause : new HushringError('ERR_STORE_IO', messageOf(cause), { cause })
    return made({ result: 'failed' as const, error })
  }

  /** The answer "this device does not know such a request". */
  unsupported(): UnsupportedCompletion {
    return UNSUPPORTED
  }

  /**
   * Keeps the memory behind the segments mapped beyond the answer, for work that cannot be recalled, such as a
   * read that the kernel is still doing when a deadline answers for it.
   *
   * @returns a function that lets the memory go; calling it again does nothing
   */
  abstract hold(): () => void
}

/** Keeps shared memory mapped. Implemented by the memory of a transport. */
export interface Pinnable {
  /** Adds `count` pins; default 1. */
  pin(count?: number): void
  /** Takes `count` pins away; default 1. The memory may go with the last one. */
  unpin(count?: number): void
}

/**
 * One request as it came off a ring, for any device: the header bytes already copied out, the readable and the
 * writable data without header and status.
 */
export class RingRequest extends Request {
  /** Index of the virtqueue it came from. */
  queueIndex = 0
  /** Descriptor index that names the chain; goes back to the driver with the answer. */
  head = 0
  /** Whether the object may stand for another request. */
  isIdle = false
  /** Whether another object has its place in the batch, because it was still in flight when that was filled. */
  isDisplaced = false
  /** Where the header is: with the ring that the request was taken from, until {@link keep}, or {@link #ownHeader}. */
  #headers: Uint32Array
  /** Index of the first word of the header. */
  #headerAt = 0
  readonly #ownHeader: Uint32Array
  /** The length of it: V8 takes ten instructions to ask an array for that, and each word that is read asks. */
  readonly #headerWordCount: number
  /** Device-readable data after the header. */
  readonly readable: SegmentList
  /** Device-writable data before the status byte. */
  readonly writable: SegmentList
  /** The memory that the segments lie in, or lay in if the request is answered. */
  memory: Pinnable | undefined
  /**
   * What a device made of this request for its own use, such as a {@link BlockRequest}. It stands for as long as the request
   * does, and is there again when the object stands for another one.
   */
  companion: Request | undefined

  /**
   * @param headerBytes bytes copied out of the front of each request (see the device's framing)
   * @param newList makes the two lists of data; default: plain ones
   */
  constructor(headerBytes: number, newList: () => SegmentList = () => new SegmentList()) {
    super()
    this.#headerWordCount = Math.ceil(headerBytes / 4)
    this.#ownHeader = new Uint32Array(this.#headerWordCount)
    this.#headers = this.#ownHeader
    this.readable = newList()
    this.writable = newList()
  }

  /**
   * The first bytes of the device-readable part, copied once when the request was taken, as little-endian words
   * of 32 bits. As many bytes as the device's framing asks for. The driver can no longer change them. Borrowed like the
   * segments.
   */
  get headerWords(): Uint32Array {
    this.#keepHeader()
    return this.#ownHeader
  }

  /** One of {@link headerWords}, at less cost. Throws a RangeError beyond them. */
  headerWord(index: number): number {
    if (!(index >= 0 && index < this.#headerWordCount)) throw headerRangeError(index)
    return this.#headers[this.#headerAt + index]!
  }

  /**
   * Two of {@link headerWords}, the low one at `index`, as one number: exact below 2^53. Throws a RangeError beyond them.
   */
  headerDoubleWord(index: number): number {
    if (!(index >= 0 && index + 1 < this.#headerWordCount)) throw headerRangeError(index)
    const at = this.#headerAt + index
    return this.#headers[at + 1]! * 2 ** 32 + this.#headers[at]!
  }

  /** The header as bytes. Borrowed like the segments. */
  get headerBytes(): Uint8Array {
    return new Uint8Array(this.headerWords.buffer)
  }

  #keepHeader(): void {
    const ownHeader = this.#ownHeader
    if (this.#headers === ownHeader) return
    for (let word = 0; word < this.#headerWordCount; word++) ownHeader[word] = this.headerWord(word)
    this.#headers = ownHeader
    this.#headerAt = 0
  }

  /**
   * Makes the object stand for a request. Called by a ring only, which lends its tables until {@link recycle} or {@link keep}.
   *
   * @param headers holds the words of the header from `headerAt` on
   */
  begin(head: number, memory: Pinnable, headers: Uint32Array, headerAt: number): void {
    this.isIdle = false
    this.head = head
    // Mostly the same as before, and the store of an object costs its barrier.
    if (this.memory !== memory) this.memory = memory
    if (this.#headers !== headers) this.#headers = headers
    this.#headerAt = headerAt
  }

  /** Called by a ring before it writes the next requests to its tables: somebody may still use this one. */
  keep(): void {
    this.#keepHeader()
    this.readable.keep()
    this.writable.keep()
  }

  override hold(): () => void {
    const memory = this.memory
    if (memory === undefined || this.isIdle) return () => {}
    memory.pin()
    let held = true
    return () => {
      if (held) memory.unpin()
      held = false
    }
  }

  /** Makes the object ready to stand for another request. Called by the ring only. */
  recycle(): void {
    this.forgetSignal()
    this.readable.clear()
    this.writable.clear()
    this.isIdle = true
  }
}

function headerRangeError(index: number): RangeError {
  return new RangeError(`the header has no word ${index}`)
}
