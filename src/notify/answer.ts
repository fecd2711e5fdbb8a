import {
  isObservable,
  Observable,
  type OperatorFunction,
  type SchedulerLike,
  type Subscriber,
  type Subscription,
} from 'rxjs'
import { HushringError } from '../errors.ts'
import {
  CompletionPromise,
  isOwnPromise,
  listenTo,
  type SettleListener,
} from '../handlers/completion-promise.ts'
import { CompletionObservable, type FirstValueObserver, subscribeToFirst } from '../handlers/first-value.ts'
import { type Answer, type Handler, handlerThrew, isPromiseLike } from '../handlers/handler.ts'
import { afterBatch, enterBatchScope, leaveBatchScope } from '../ring/batch-scope.ts'
import { Later, type LaterListener } from '../ring/later.ts'
import type { Batch } from '../ring/queue.ts'
import { type Completion, isCompletion, isWholeOk, type RingRequest } from '../ring/request.ts'
import type { DrainProgress } from './drain.ts'
import { turnScheduler } from './schedulers.ts'

/** Where {@link answer} puts the completions; a queue. */
export interface AnswerRecorder<Io extends RingRequest = RingRequest> {
  record(request: Io, completion: Completion): void
  recycle(request: Io): void
}

/** Options of {@link answer}. */
export interface AnswerOptions<Io extends RingRequest = RingRequest> {
  /** A handler that has not answered after so many ms is answered for, with `ERR_HANDLER_TIMEOUT`. 0: never. */
  readonly timeoutMs: number
  /** The clock of the deadline. Default: the monotonic clock of {@link turnScheduler}. */
  readonly scheduler?: SchedulerLike
  /** When it emits, every request in flight is aborted and fails with that error. */
  readonly giveUp?: Observable<HushringError>
  /** Called for each request that fails, with the error that does not fit into a status byte. */
  readonly onFailure?: (request: Io, error: HushringError) => void
  /** Called when a handler answers a request that was answered for it before. */
  readonly onLateAnswer?: () => void
  /** Is told of promises. Default: one that nobody looks at. */
  readonly progress?: DrainProgress
}

/**
 * Has each request of a batch answered: exactly one completion is recorded a request, whatever the handler does.
 * It throws, rejects, ends without a value, returns nonsense: a failed completion. It never settles: the deadline
 * answers. It settles twice or too late: ignored and counted. An error in one request never ends the stream.
 *
 * Emits how many completions were recorded: once for all answers of a batch that are there when it ends, and once for
 * each later answer, or for all of them that a store settles together (see batch-scope.ts) or whose promises settle together. Completes when the source has completed and every request is answered. When unsubscribed, it aborts the
 * signals of what is in flight and records no more.
 *
 * A promise or observable is never cut off from its memory: the memory stays pinned until it settles, even after
 * the deadline has answered, because a read in flight still writes into it. For the same reason an observable that
 * was given up is not unsubscribed; its handler learns from `io.signal`.
 */
export function answer<Io extends RingRequest>(
  recorder: AnswerRecorder<Io>,
  handler: Handler<Io>,
  options: AnswerOptions<Io>,
): OperatorFunction<Batch<Io>, number> {
  return (batches) =>
    new Observable((subscriber) => {
      const answering = new Answering(recorder, handler, options, subscriber)
      const givingUp = options.giveUp?.subscribe((reason) => answering.giveUp(reason))
      const subscription = batches.subscribe({
        next: (batch) => answering.answerBatch(batch),
        error: (error) => subscriber.error(error),
        complete: () => answering.sourceCompleted(),
      })
      return () => {
        subscription.unsubscribe()
        givingUp?.unsubscribe()
        answering.abandon()
      }
    })
}

/**
 * One subscription of {@link answer}. Its functions are methods and no closures: V8 compiles a method into its callers, but
 * not a closure of which there is a second one, which is there from the second queue on.
 */
class Answering<Io extends RingRequest> {
  readonly #recorder: AnswerRecorder<Io>
  readonly #handler: Handler<Io>
  readonly #subscriber: Subscriber<number>
  readonly #timeoutMs: number
  readonly #scheduler: SchedulerLike
  readonly #onFailure: AnswerOptions<Io>['onFailure']
  readonly #onLateAnswer: (() => void) | undefined
  readonly #progress: DrainProgress
  /** In the order of their deadlines, because every request has the same time. */
  readonly #inFlight = new Set<LateAnswer<Io>>()
  #sourceCompleted = false
  #isAnswering = false
  /** Later answers that are recorded and not yet emitted. */
  #laterCount = 0
  #deadline: Subscription | undefined

  constructor(
    recorder: AnswerRecorder<Io>,
    handler: Handler<Io>,
    options: AnswerOptions<Io>,
    subscriber: Subscriber<number>,
  ) {
    this.#recorder = recorder
    this.#handler = handler
    this.#subscriber = subscriber
    this.#timeoutMs = options.timeoutMs
    this.#scheduler = options.scheduler ?? turnScheduler
    this.#onFailure = options.onFailure
    this.#onLateAnswer = options.onLateAnswer
    this.#progress = options.progress ?? { underWay: false }
  }

  answerBatch(batch: Batch<Io>): void {
    let readyCount = 0
    this.#isAnswering = true
    enterBatchScope()
    try {
      for (let index = 0; index < batch.count && !this.#subscriber.closed; index++) {
        if (this.#answerOne(batch.requests[index]!)) readyCount++
      }
    } finally {
      leaveBatchScope()
      this.#isAnswering = false
    }
    if (this.#subscriber.closed) return
    if (this.#inFlight.size > 0) this.#armDeadline()
    readyCount += this.#laterCount
    this.#laterCount = 0
    if (readyCount > 0) this.#subscriber.next(readyCount)
    if (this.#sourceCompleted) this.#completeIfThrough()
  }

  /** Has one request answered; true if its completion was recorded at once. */
  #answerOne(request: Io): boolean {
    const answered = callHandler(this.#handler, request)
    if (!isCompletion(answered)) return this.#wait(request, answered)
    // The handler reset its own queue: the ring that waits for this answer is forgotten.
    if (this.#subscriber.closed) return false
    this.#recordAtOnce(request, isWholeOk(answered) ? answered : checkedCompletion(request, answered))
    return true
  }

  /** As {@link #answerOne}, for a handler that did not answer with a completion. */
  #wait(request: Io, answered: Answer): boolean {
    const late = new LateAnswer(request, this.#settle, this.#onLateAnswer)
    const early = late.wait(answered)
    if (this.#subscriber.closed) {
      late.abandon()
      return false
    }
    if (early !== undefined) {
      // A subscription that ended before it returned is as good as an answer at once.
      this.#recordAtOnce(request, early)
      return true
    }
    if (this.#timeoutMs > 0) late.deadlineMs = this.#scheduler.now() + this.#timeoutMs
    this.#inFlight.add(late)
    if (late.isPromised) this.#progress.promised = true
    return false
  }

  #recordAtOnce(request: Io, completion: Completion): void {
    this.#record(request, completion)
    this.#recorder.recycle(request)
  }

  #record(request: Io, completion: Completion): void {
    this.#recorder.record(request, completion)
    if (!isWholeOk(completion) && completion.result === 'failed') this.#onFailure?.(request, completion.error)
  }

  readonly #settle: Settle<Io> = (late, completion) => {
    this.#inFlight.delete(late)
    if (this.#subscriber.closed) return
    this.#record(late.request, completion)
    if (late.isThrough) this.#recorder.recycle(late.request)
    // In the middle of its own batch it counts with that; among others that settle now, with those.
    if (this.#laterCount++ > 0 || this.#isAnswering || afterBatch(this.#emitLater)) return
    // Promises that were waiting for the same thing settle in microtasks that are all queued by now.
    if (late.isPromised) queueMicrotask(this.#emitLater)
    else this.#emitLater()
  }

  readonly #emitLater = (): void => {
    // Unsubscribed, or emitted with a batch of this queue that was answered meanwhile.
    if (this.#subscriber.closed || this.#laterCount === 0) return
    const count = this.#laterCount
    this.#laterCount = 0
    this.#subscriber.next(count)
    this.#completeIfThrough()
  }

  sourceCompleted(): void {
    this.#sourceCompleted = true
    this.#completeIfThrough()
  }

  #completeIfThrough(): void {
    if (!this.#sourceCompleted) return
    // Not in the middle of a batch: a handler may end the source, and the rest of its batch is owed an answer.
    if (!this.#isAnswering && this.#inFlight.size === 0 && this.#laterCount === 0) this.#subscriber.complete()
  }

  readonly #expire = (): void => {
    this.#deadline = undefined
    const now = this.#scheduler.now()
    for (const late of this.#inFlight) {
      if (late.deadlineMs > now) break
      late.giveUp(new HushringError('ERR_HANDLER_TIMEOUT', `no answer after ${this.#timeoutMs} ms`))
    }
    this.#armDeadline()
  }

  #armDeadline(): void {
    if (this.#inFlight.size === 0 || this.#timeoutMs === 0) return
    if (this.#deadline !== undefined || this.#subscriber.closed) return
    for (const oldest of this.#inFlight) {
      const delayMs = Math.max(0, oldest.deadlineMs - this.#scheduler.now())
      this.#deadline = this.#scheduler.schedule(this.#expire, delayMs)
      break
    }
  }

  /** Aborts what is in flight and answers it with an error. */
  giveUp(reason: HushringError): void {
    // Not those that are taken meanwhile, with the credits of these.
    for (const late of [...this.#inFlight]) late.giveUp(reason)
  }

  /** Aborts what is in flight, without an answer. */
  abandon(): void {
    this.#deadline?.unsubscribe()
    for (const late of this.#inFlight) late.abandon()
    this.#inFlight.clear()
  }
}

function callHandler<Io extends RingRequest>(handler: Handler<Io>, request: Io): Answer {
  try {
    return handler(request)
  } catch (error) {
    return handlerThrew(request, error)
  }
}

function checkedCompletion(request: RingRequest, value: unknown): Completion {
  if (!isCompletion(value)) {
    return request.fail(new HushringError('ERR_HANDLER_ANSWER', `the handler answered with ${typeof value}`))
  }
  if (value.result !== 'ok' || value.bytesWritten === undefined) return value
  const { bytesWritten } = value
  const writableBytes = request.writable.byteLength
  if (Number.isInteger(bytesWritten) && bytesWritten >= 0 && bytesWritten <= writableBytes) return value
  return request.fail(
    new HushringError(
      'ERR_HANDLER_ANSWER',
      `expected 0 to ${writableBytes} bytes written, got ${bytesWritten}`,
    ),
  )
}

type Settle<Io extends RingRequest> = (late: LateAnswer<Io>, completion: Completion) => void

/** One request whose handler did not answer at once. It listens to what the handler returned. */
class LateAnswer<Io extends RingRequest>
  implements FirstValueObserver<unknown>, SettleListener<unknown>, LaterListener<unknown>
{
  readonly request: Io
  deadlineMs: number = Number.POSITIVE_INFINITY
  /** It settles in a microtask. */
  isPromised = false
  /**
   * Nobody works with the request any more, as after an answer at once: a store that answers with a {@link Later} settles it
   * only then, and what a layer makes of one comes after it. A promise or an observable says nothing of the kind: `timeout`
   * and `mirror` answer with one while a handler below them still works.
   */
  isThrough = false
  #later: Later<unknown> | undefined
  readonly #settle: Settle<Io>
  readonly #onLateAnswer: (() => void) | undefined
  #releaseMemory: (() => void) | undefined
  #answered = false
  /** While {@link wait} has not returned. */
  #isEarly = true
  #early: Completion | undefined

  constructor(request: Io, settle: Settle<Io>, onLateAnswer: (() => void) | undefined) {
    this.request = request
    this.#settle = settle
    this.#onLateAnswer = onLateAnswer
  }

  /** Waits for a promise or an observable. Returns the completion if it is there already, as with `of(io.ok())`. */
  wait(answered: Answer): Completion | undefined {
    try {
      this.#listen(answered)
    } catch (error) {
      // A `then` that cannot be read, for one.
      this.error(error)
    }
    this.#isEarly = false
    // Until then the queue that is waited for by its batch kept it.
    if (!this.#answered) this.#releaseMemory = this.request.hold()
    return this.#early
  }

  /** A {@link Later} came to this. */
  fulfilled(value: unknown): void {
    this.#finishThrough(checkedCompletion(this.request, value))
  }

  /** A {@link Later} came to this error. */
  rejected(error: unknown): void {
    this.#finishThrough(handlerThrew(this.request, error))
  }

  #finishThrough(completion: Completion): void {
    this.isThrough = !this.#answered && this.#later!.isThrough
    this.#finish(completion)
  }

  #listen(answered: Answer): void {
    if (answered instanceof CompletionPromise) {
      this.isPromised = true
      answered.listen(this)
    } else if (isOwnPromise(answered)) {
      this.isPromised = true
      listenTo(answered, this)
    } else if (answered instanceof Later) {
      this.#later = answered
      answered.tell(this)
    } else if (isObservable(answered)) this.#subscribe(answered)
    else if (isPromiseLike(answered)) this.#followThenable(answered)
    else this.value(answered)
  }

  /** It may call back at once, twice or never. */
  #followThenable(answered: PromiseLike<unknown>): void {
    answered.then(
      (value) => this.value(value),
      (error) => this.error(error),
    )
  }

  #subscribe(answered: Observable<unknown>): void {
    if (answered instanceof CompletionObservable) answered.subscribeToCompletion(this)
    else subscribeToFirst(answered, this)
  }

  value(value: unknown): void {
    this.#finish(checkedCompletion(this.request, value))
  }

  error(cause: unknown): void {
    this.#finish(handlerThrew(this.request, cause))
  }

  nothing(): void {
    this.value(undefined)
  }

  /** The handler is through. Its memory goes; its answer counts only if nobody answered before. */
  #finish(completion: Completion): void {
    this.#releaseMemory?.()
    if (this.#answered) {
      this.#onLateAnswer?.()
      return
    }
    this.#answered = true
    if (this.#isEarly) this.#early = completion
    else this.#settle(this, completion)
  }

  /** Answers in the place of the handler, and tells it through the signal. */
  giveUp(reason: HushringError): void {
    if (this.#answered) return
    this.#answered = true
    this.request.abort(reason)
    this.#settle(this, this.request.fail(reason))
  }

  /** Nobody waits for an answer any more. */
  abandon(): void {
    if (this.#answered) return
    this.#answered = true
    this.request.abort(new HushringError('ERR_REQUEST_ABORTED'))
  }
}
