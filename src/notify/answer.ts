import { isObservable, Observable, type OperatorFunction, type SchedulerLike, type Subscription } from 'rxjs'
import { HushringError } from '../errors.ts'
import {
  CompletionPromise,
  isOwnPromise,
  listenTo,
  type SettleListener,
} from '../handlers/completion-promise.ts'
import { CompletionObservable, type FirstValueObserver, subscribeToFirst } from '../handlers/first-value.ts'
import { type Answer, type Handler, isPromiseLike } from '../handlers/handler.ts'
import { afterBatch, enterBatchScope, leaveBatchScope } from '../ring/batch-scope.ts'
import type { Batch } from '../ring/queue.ts'
import { type Completion, isCompletion, type RingRequest } from '../ring/request.ts'
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
  const {
    timeoutMs,
    scheduler = turnScheduler,
    giveUp,
    onFailure,
    onLateAnswer,
    progress = { underWay: false },
  } = options
  return (batches) =>
    new Observable((subscriber) => {
      // In the order of their deadlines, because every request has the same time.
      const inFlight = new Set<LateAnswer<Io>>()
      let sourceCompleted = false
      let answering = false
      /** Later answers that are recorded and not yet emitted. */
      let laterCount = 0
      let deadline: Subscription | undefined

      const record = (request: Io, completion: Completion): void => {
        recorder.record(request, completion)
        if (completion.result === 'failed') onFailure?.(request, completion.error)
      }

      const settle = (late: LateAnswer<Io>, completion: Completion): void => {
        inFlight.delete(late)
        if (subscriber.closed) return
        record(late.request, completion)
        // In the middle of its own batch it counts with that; among others that settle now, with those.
        if (laterCount++ > 0 || answering || afterBatch(emitLater)) return
        // Promises that were waiting for the same thing settle in microtasks that are all queued by now.
        if (late.isPromised) queueMicrotask(emitLater)
        else emitLater()
      }

      const emitLater = (): void => {
        // Unsubscribed, or emitted with a batch of this queue that was answered meanwhile.
        if (subscriber.closed || laterCount === 0) return
        const count = laterCount
        laterCount = 0
        subscriber.next(count)
        completeIfThrough()
      }

      const completeIfThrough = (): void => {
        // Not in the middle of a batch: a handler may end the source, and the rest of its batch is owed an answer.
        if (sourceCompleted && !answering && inFlight.size === 0 && laterCount === 0) subscriber.complete()
      }

      const expire = (): void => {
        deadline = undefined
        const now = scheduler.now()
        for (const late of inFlight) {
          if (late.deadlineMs > now) break
          late.giveUp(new HushringError('ERR_HANDLER_TIMEOUT', `no answer after ${timeoutMs} ms`))
        }
        armDeadline()
      }

      const armDeadline = (): void => {
        if (inFlight.size === 0 || timeoutMs === 0 || deadline !== undefined || subscriber.closed) return
        for (const oldest of inFlight) {
          deadline = scheduler.schedule(expire, Math.max(0, oldest.deadlineMs - scheduler.now()))
          break
        }
      }

      /** Has one request answered; true if its completion was recorded at once. */
      const answerOne = (request: Io): boolean => {
        const answered = callHandler(handler, request)
        if (isCompletion(answered)) {
          // The handler reset its own queue: the ring that waits for this answer is forgotten.
          if (subscriber.closed) return false
          record(request, checkedCompletion(request, answered))
          recorder.recycle(request)
          return true
        }
        const late = new LateAnswer(request, settle, onLateAnswer)
        const early = late.wait(answered)
        if (subscriber.closed) {
          late.abandon()
          return false
        }
        if (early !== undefined) {
          // A subscription that ended before it returned is as good as an answer at once.
          record(request, early)
          recorder.recycle(request)
          return true
        }
        if (timeoutMs > 0) late.deadlineMs = scheduler.now() + timeoutMs
        inFlight.add(late)
        if (late.isPromised) progress.promised = true
        return false
      }

      const answerBatch = (batch: Batch<Io>): void => {
        let readyCount = 0
        answering = true
        enterBatchScope()
        try {
          for (let index = 0; index < batch.count && !subscriber.closed; index++) {
            if (answerOne(batch.requests[index]!)) readyCount++
          }
        } finally {
          leaveBatchScope()
          answering = false
        }
        if (subscriber.closed) return
        armDeadline()
        readyCount += laterCount
        laterCount = 0
        if (readyCount > 0) subscriber.next(readyCount)
        completeIfThrough()
      }

      const givingUp = giveUp?.subscribe((reason) => {
        // Not those that are taken meanwhile, with the credits of these.
        for (const late of [...inFlight]) late.giveUp(reason)
      })
      const subscription = batches.subscribe({
        next: answerBatch,
        error: (error) => subscriber.error(error),
        complete: () => {
          sourceCompleted = true
          completeIfThrough()
        },
      })
      return () => {
        subscription.unsubscribe()
        givingUp?.unsubscribe()
        deadline?.unsubscribe()
        for (const late of inFlight) late.abandon()
        inFlight.clear()
      }
    })
}

function callHandler<Io extends RingRequest>(handler: Handler<Io>, request: Io): Answer {
  try {
    return handler(request)
  } catch (error) {
    return handlerThrew(request, error)
  }
}

function handlerThrew(request: RingRequest, cause: unknown): Completion {
  const message = `the handler threw: ${cause instanceof Error ? cause.message : String(cause)}`
  return request.fail(new HushringError('ERR_HANDLER_THREW', message, { cause }))
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
class LateAnswer<Io extends RingRequest> implements FirstValueObserver<unknown>, SettleListener<unknown> {
  readonly request: Io
  deadlineMs: number = Number.POSITIVE_INFINITY
  /** It settles in a microtask. */
  isPromised = false
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
    if (answered instanceof CompletionPromise) {
      this.isPromised = true
      answered.listen(this)
    } else if (isOwnPromise(answered)) {
      this.isPromised = true
      this.#follow(answered)
    } else if (isObservable(answered)) this.#subscribe(answered)
    else if (isPromiseLike(answered)) this.#followThenable(answered)
    else this.value(answered)
    this.#isEarly = false
    // Until then the queue that is waited for by its batch kept it.
    if (!this.#answered) this.#releaseMemory = this.request.hold()
    return this.#early
  }

  #follow(answered: Promise<unknown>): void {
    try {
      listenTo(answered, this)
    } catch (error) {
      this.error(error)
    }
  }

  /** It may call back at once, twice or never. */
  #followThenable(answered: PromiseLike<unknown>): void {
    try {
      answered.then(
        (value) => this.value(value),
        (error) => this.error(error),
      )
    } catch (error) {
      this.error(error)
    }
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
