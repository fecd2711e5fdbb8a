/** Who is told what a {@link Later} came to: one of the two is called, once. */
export interface LaterListener<Value> {
  fulfilled(value: Value): void
  rejected(error: unknown): void
}

const PENDING = 0
const FULFILLED = 1
const REJECTED = 2

/**
 * A value that comes later: a promise for one listener that is told at once and not in a microtask. So a hundred answers
 * that come together are published together, and each costs a fraction of a promise.
 *
 * A store that answers with one settles it when nobody works with the request any more, itself and the kernel included.
 */
export class Later<Value> implements PromiseLike<Value> {
  #state: typeof PENDING | typeof FULFILLED | typeof REJECTED = PENDING
  /** The value or the error. */
  #outcome: unknown
  #listener: LaterListener<Value> | undefined
  /**
   * Whether nobody works with the request any more once it is settled. False when it depended on a promise of somebody
   * else, who may lose a race and go on.
   */
  isThrough = true

  /** Settles it; only the first time counts. */
  fulfill(value: Value): void {
    if (this.#state !== PENDING) return
    this.#state = FULFILLED
    this.#outcome = value
    this.#listener?.fulfilled(value)
    this.#listener = undefined
  }

  /** Settles it; only the first time counts. */
  reject(error: unknown): void {
    if (this.#state !== PENDING) return
    this.#state = REJECTED
    this.#outcome = error
    this.#listener?.rejected(error)
    this.#listener = undefined
  }

  /** As {@link then} for somebody who needs no promise of what comes of it. The listener must not throw. */
  tell(listener: LaterListener<Value>): void {
    if (this.#state === FULFILLED) listener.fulfilled(this.#outcome as Value)
    else if (this.#state === REJECTED) listener.rejected(this.#outcome)
    else this.#listener = this.#listener === undefined ? listener : bothOf(this.#listener, listener)
  }

  // biome-ignore lint/suspicious/noThenProperty: it is a promise to everybody who awaits it
  then<Fulfilled = Value, Rejected = never>(
    onFulfilled?: ((value: Value) => Fulfilled | PromiseLike<Fulfilled>) | null,
    onRejected?: ((error: unknown) => Rejected | PromiseLike<Rejected>) | null,
  ): Later<Fulfilled | Rejected> {
    const next = new Projected<Value, Fulfilled | Rejected>(this, onFulfilled, onRejected)
    this.tell(next)
    return next
  }
}

/** What `then` makes: the listener of one promise and the next promise in one object, because there is one a layer a request. */
class Projected<Value, Next> extends Later<Next> implements LaterListener<Value> {
  readonly #source: Later<Value>
  readonly #onFulfilled: ((value: Value) => Next | PromiseLike<Next>) | null | undefined
  readonly #onRejected: ((error: unknown) => Next | PromiseLike<Next>) | null | undefined

  constructor(
    source: Later<Value>,
    onFulfilled: ((value: Value) => Next | PromiseLike<Next>) | null | undefined,
    onRejected: ((error: unknown) => Next | PromiseLike<Next>) | null | undefined,
  ) {
    super()
    this.#source = source
    this.#onFulfilled = onFulfilled
    this.#onRejected = onRejected
  }

  fulfilled(value: Value): void {
    this.isThrough = this.#source.isThrough
    if (typeof this.#onFulfilled === 'function') this.#project(this.#onFulfilled, value)
    else this.fulfill(value as unknown as Next)
  }

  rejected(error: unknown): void {
    this.isThrough = this.#source.isThrough
    if (typeof this.#onRejected === 'function') this.#project(this.#onRejected, error)
    else this.reject(error)
  }

  #project<From>(project: (from: From) => Next | PromiseLike<Next>, from: From): void {
    let next: Next | PromiseLike<Next>
    let comesLater: boolean
    try {
      next = project(from)
      comesLater = isThenable(next)
    } catch (error) {
      this.reject(error)
      return
    }
    if (comesLater) follow(this, next as PromiseLike<Next>)
    else this.fulfill(next as Next)
  }
}

/** Has a promise become another one. A function of its own, for the closures. */
function follow<Value>(later: Later<Value>, settled: PromiseLike<Value>): void {
  const isThroughBefore = later.isThrough
  later.isThrough = false
  const hear = (): void => {
    later.isThrough = isThroughBefore && settled instanceof Later && settled.isThrough
  }
  try {
    settled.then(
      (value) => {
        hear()
        later.fulfill(value)
      },
      (error) => {
        hear()
        later.reject(error)
      },
    )
  } catch (error) {
    later.reject(error)
  }
}

function bothOf<Value>(first: LaterListener<Value>, second: LaterListener<Value>): LaterListener<Value> {
  return {
    fulfilled(value) {
      first.fulfilled(value)
      second.fulfilled(value)
    },
    rejected(error) {
      first.rejected(error)
      second.rejected(error)
    },
  }
}

/** True for anything with a `then` method. Throws what reading it throws. */
export function isThenable<Value>(value: Value | PromiseLike<Value>): value is PromiseLike<Value> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}
