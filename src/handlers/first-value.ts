import { Observable, Subscriber } from 'rxjs'
import { HushringError } from '../errors.ts'
import type { Completion } from '../ring/request.ts'

/** What {@link subscribeToFirst} calls, once. */
export interface FirstValueObserver<Value> {
  value(value: Value): void
  error(cause: unknown): void
  /** The observable ended without a value. */
  nothing(): void
}

/**
 * Subscribes to an observable for its first value, and then unsubscribes: what `take(1)` does, without a second
 * subscription. It ends a source that goes on without ever coming back from its `subscribe()`, too.
 */
export function subscribeToFirst<Value>(
  source: Observable<Value>,
  observer: FirstValueObserver<Value>,
): Subscriber<Value> {
  const subscriber = new FirstValueSubscriber(observer)
  source.subscribe(subscriber)
  return subscriber
}

class FirstValueSubscriber<Value> extends Subscriber<Value> {
  // No private field: another version of RxJS subscribes with an object that inherits from this one.
  readonly observer: FirstValueObserver<Value>

  constructor(observer: FirstValueObserver<Value>) {
    super()
    this.observer = observer
  }

  protected override _next(value: Value): void {
    this.unsubscribe()
    this.observer.value(value)
  }

  protected override _error(cause: unknown): void {
    this.unsubscribe()
    this.observer.error(cause)
  }

  protected override _complete(): void {
    this.unsubscribe()
    this.observer.nothing()
  }
}

/**
 * The first value of an observable as a completion, and then its end: what `take(1)`, `map()`, `throwIfEmpty()` and
 * `catchError()` do, in one subscription. Projections of it are added to it, because an operator, with the subscription
 * that it makes, costs as much as the rest of the way of a request.
 */
export class CompletionObservable<Value = unknown> extends Observable<Completion> {
  readonly #source: Observable<Value>
  readonly #project: (value: Value) => Completion
  readonly #failed: ((cause: unknown) => Completion) | undefined
  readonly #next: ((completion: Completion) => Completion) | undefined

  /**
   * @param project makes the completion
   * @param failed makes a completion of an error, of an end without a value, and of what `project` throws. Left out: the error goes on, and so does the end
   * @param next what becomes of either; what it throws is an error of this observable
   */
  constructor(
    source: Observable<Value>,
    project: (value: Value) => Completion,
    failed?: (cause: unknown) => Completion,
    next?: (completion: Completion) => Completion,
  ) {
    super((subscriber) =>
      this.subscribeToCompletion({
        value(completion) {
          subscriber.next(completion)
          subscriber.complete()
        },
        error: (cause) => subscriber.error(cause),
        nothing: () => subscriber.complete(),
      }),
    )
    this.#source = source
    this.#project = project
    this.#failed = failed
    this.#next = next
  }

  /** The same with one more projection. */
  mapped(project: (completion: Completion) => Completion): CompletionObservable<Value> {
    const before = this.#next
    const next = before === undefined ? project : (completion: Completion) => project(before(completion))
    return new CompletionObservable(this.#source, this.#project, this.#failed, next)
  }

  /** Subscribes without the objects that RxJS makes for a subscriber of any observable. */
  subscribeToCompletion(observer: FirstValueObserver<Completion>): Subscriber<Value> {
    const failed = this.#failed
    const end = (completion: Completion): void => {
      let last: Completion
      try {
        last = this.#next === undefined ? completion : this.#next(completion)
      } catch (cause) {
        observer.error(cause)
        return
      }
      observer.value(last)
    }
    const fail = (cause: unknown): void => {
      if (failed === undefined) observer.error(cause)
      else end(failed(cause))
    }
    return subscribeToFirst(this.#source, {
      value: (value) => {
        let completion: Completion
        try {
          completion = this.#project(value)
        } catch (cause) {
          fail(cause)
          return
        }
        end(completion)
      },
      error: fail,
      nothing() {
        if (failed === undefined) observer.nothing()
        else end(failed(new HushringError('ERR_HANDLER_ANSWER', 'the observable ended without a value')))
      },
    })
  }
}
