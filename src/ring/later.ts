type State<Value> =
  | { readonly is: 'fulfilled'; readonly value: Value }
  | { readonly is: 'rejected'; readonly error: unknown }

/**
 * A value that comes later: a promise for one listener that is told at once and not in a microtask. So a hundred answers
 * that come together are published together, and each costs a fraction of a promise.
 */
export class Later<Value> implements PromiseLike<Value> {
  #state: State<Value> | undefined
  #listener: ((state: State<Value>) => void) | undefined

  /** Settles it; only the first time counts. */
  fulfill(value: Value): void {
    this.#settle({ is: 'fulfilled', value })
  }

  /** Settles it; only the first time counts. */
  reject(error: unknown): void {
    this.#settle({ is: 'rejected', error })
  }

  #settle(state: State<Value>): void {
    if (this.#state !== undefined) return
    this.#state = state
    this.#listener?.(state)
    this.#listener = undefined
  }

  // biome-ignore lint/suspicious/noThenProperty: it is a promise to everybody who awaits it
  then<Fulfilled = Value, Rejected = never>(
    onFulfilled?: ((value: Value) => Fulfilled | PromiseLike<Fulfilled>) | null,
    onRejected?: ((error: unknown) => Rejected | PromiseLike<Rejected>) | null,
  ): Later<Fulfilled | Rejected> {
    const next = new Later<Fulfilled | Rejected>()
    const listen = (state: State<Value>): void => {
      try {
        if (state.is === 'fulfilled') {
          if (typeof onFulfilled === 'function') next.#follow(onFulfilled(state.value))
          else next.fulfill(state.value as unknown as Fulfilled)
        } else if (typeof onRejected === 'function') next.#follow(onRejected(state.error))
        else next.reject(state.error)
      } catch (error) {
        next.reject(error)
      }
    }
    if (this.#state !== undefined) listen(this.#state)
    else if (this.#listener === undefined) this.#listener = listen
    else {
      const before = this.#listener
      this.#listener = (state) => {
        before(state)
        listen(state)
      }
    }
    return next
  }

  /** Becomes what a listener returned. */
  #follow(value: Value | PromiseLike<Value>): void {
    if (isThenable(value)) {
      value.then(
        (settled) => this.fulfill(settled),
        (error) => this.reject(error),
      )
    } else this.fulfill(value)
  }
}

function isThenable<Value>(value: Value | PromiseLike<Value>): value is PromiseLike<Value> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}
