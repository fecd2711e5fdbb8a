import type { Completion } from '../ring/request.ts'

/** What {@link listenTo} and {@link CompletionPromise.listen} call, once. */
export interface SettleListener<Value> {
  value(value: Value): void
  error(cause: unknown): void
}

const promiseThen = Promise.prototype.then

/**
 * True for a promise that tells how it settled once, and in a microtask: the language's own. Any other thenable may call
 * back twice, or at once.
 */
export function isOwnPromise(value: unknown): value is Promise<unknown> {
  return value instanceof Promise && value.then === promiseThen
}

/** The two functions that a promise calls one of, reused: as closures they would be half of what a promise costs. */
class Ear {
  listener: SettleListener<unknown> | undefined
  readonly fulfilled = (value: unknown): void => this.#release().value(value)
  readonly rejected = (cause: unknown): void => this.#release().error(cause)

  #release(): SettleListener<unknown> {
    const listener = this.listener!
    this.listener = undefined
    // The promise is settled, and has no use for either function any more.
    idleEars.push(this)
    return listener
  }
}

const idleEars: Ear[] = []

/** Has a listener told what a promise comes to, in a microtask. */
export function listenTo<Value>(promise: Promise<Value>, listener: SettleListener<Value>): void {
  const ear = idleEars.pop() ?? new Ear()
  ear.listener = listener as SettleListener<unknown>
  promiseThen.call(promise, ear.fulfilled, ear.rejected)
}

/**
 * A completion that comes later, for the pipeline, which is told in the microtask in which the promise of the store
 * settles. Each `then` of a promise would be a promise, two closures and a microtask more for each layer of a request. To
 * everybody else it is a promise.
 */
export abstract class CompletionPromise implements PromiseLike<Completion> {
  #state: 'pending' | 'fulfilled' | 'rejected' = 'pending'
  /** The completion or the error. */
  #result: unknown
  #listener: SettleListener<Completion> | undefined
  #others: SettleListener<Completion>[] | undefined

  /** Tells a listener, at once if it is settled already. Listeners must not throw. */
  listen(listener: SettleListener<Completion>): void {
    if (this.#state !== 'pending') this.#tell(listener)
    else if (this.#listener === undefined) this.#listener = listener
    else {
      this.#others ??= []
      this.#others.push(listener)
    }
  }

  /** What `project` makes of the completion, or the error that it throws. */
  mapped(project: (completion: Completion) => Completion): CompletionPromise {
    return new MappedCompletion(this, project)
  }

  // biome-ignore lint/suspicious/noThenProperty: it is a promise to everybody who awaits it
  then<Fulfilled = Completion, Rejected = never>(
    onFulfilled?: ((completion: Completion) => Fulfilled | PromiseLike<Fulfilled>) | null,
    onRejected?: ((cause: unknown) => Rejected | PromiseLike<Rejected>) | null,
  ): Promise<Fulfilled | Rejected> {
    return new Promise<Completion>((resolve, reject) => this.listen({ value: resolve, error: reject })).then(
      onFulfilled,
      onRejected,
    )
  }

  protected fulfill(completion: Completion): void {
    this.#state = 'fulfilled'
    this.#settle(completion)
  }

  protected reject(cause: unknown): void {
    this.#state = 'rejected'
    this.#settle(cause)
  }

  #settle(result: unknown): void {
    this.#result = result
    const listener = this.#listener
    const others = this.#others
    this.#listener = undefined
    this.#others = undefined
    if (listener !== undefined) this.#tell(listener)
    if (others === undefined) return
    for (const other of others) this.#tell(other)
  }

  #tell(listener: SettleListener<Completion>): void {
    if (this.#state === 'fulfilled') listener.value(this.#result as Completion)
    else listener.error(this.#result)
  }
}

/** The completion that the promise of a store comes to. Never an error. */
export class StoreCompletion<Io, Value> extends CompletionPromise implements SettleListener<Value> {
  readonly #io: Io
  readonly #completionOf: (io: Io, value: Value) => Completion
  readonly #failureOf: (io: Io, cause: unknown) => Completion

  /**
   * @param completionOf may throw
   * @param failureOf makes the completion of what it throws and of a rejection; must not throw
   */
  constructor(
    promise: Promise<Value>,
    io: Io,
    completionOf: (io: Io, value: Value) => Completion,
    failureOf: (io: Io, cause: unknown) => Completion,
  ) {
    super()
    this.#io = io
    this.#completionOf = completionOf
    this.#failureOf = failureOf
    listenTo(promise, this)
  }

  value(value: Value): void {
    let completion: Completion
    try {
      completion = this.#completionOf(this.#io, value)
    } catch (cause) {
      completion = this.#failureOf(this.#io, cause)
    }
    this.fulfill(completion)
  }

  error(cause: unknown): void {
    this.fulfill(this.#failureOf(this.#io, cause))
  }
}

class MappedCompletion extends CompletionPromise implements SettleListener<Completion> {
  readonly #project: (completion: Completion) => Completion

  constructor(source: CompletionPromise, project: (completion: Completion) => Completion) {
    super()
    this.#project = project
    source.listen(this)
  }

  value(completion: Completion): void {
    let projected: Completion
    try {
      projected = this.#project(completion)
    } catch (cause) {
      this.reject(cause)
      return
    }
    this.fulfill(projected)
  }

  error(cause: unknown): void {
    this.reject(cause)
  }
}
