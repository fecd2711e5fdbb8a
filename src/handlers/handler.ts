import { firstValueFrom, from, isObservable, mergeMap, type Observable, of, take } from 'rxjs'
import { HushringError, messageOf } from '../errors.ts'
import { isThenable } from '../ring/later.ts'
import {
  type Completion,
  type FailedCompletion,
  isCompletion,
  type Request,
  type RingRequest,
} from '../ring/request.ts'
import type { ScsiRequest } from '../ring/scsi-request.ts'
import type { BlockRequest } from './block/block-request.ts'
import { CompletionPromise, isOwnPromise, StoreCompletion } from './completion-promise.ts'
import type { BlockDevice, Device, ScsiDevice, VirtioDevice } from './device.ts'
import { CompletionObservable } from './first-value.ts'

/**
 * What a handler may return: a completion at once (allocates nothing and stays in the batch), a promise of one,
 * or an observable whose first value is one.
 */
export type Answer = Completion | PromiseLike<Completion> | Observable<Completion>

/**
 * Answers one request. It is called once a request and owes exactly one completion. What it throws becomes a
 * failed completion; it can never end the stream of requests.
 */
export type Handler<Io extends Request = BlockRequest> = (io: Io) => Answer

/**
 * Wraps a handler in behaviour: `(next) => (io) => answer`. The outer function runs once, when the device is
 * composed; state that outlives a request belongs there.
 */
export type Layer<Io extends Request = BlockRequest> = (next: Handler<Io>) => Handler<Io>

/** The kind of request a device's handler answers. */
export type RequestOf<D extends Device> = D extends BlockDevice
  ? BlockRequest
  : D extends VirtioDevice
    ? RingRequest
    : D extends ScsiDevice
      ? ScsiRequest
      : never

/**
 * Puts layers around a device. The first layer of the list is the outermost: it sees a request first and its
 * answer last.
 *
 * @param device a disk or another device; unchanged
 * @param layers outermost first; may be empty
 * @returns a device of the same kind, to be used wherever `device` could be
 */
export function compose<D extends Device>(device: D, layers: readonly Layer<RequestOf<D>>[]): D {
  return device.wrap(stack(layers) as never) as D
}

/** Makes one layer out of several, outermost first. */
export function stack<Io extends Request>(layers: readonly Layer<Io>[]): Layer<Io> {
  return (handler) => layers.reduceRight((next, layer) => layer(next), handler)
}

/**
 * Lets a layer look at an answer, and change it, without caring which of the three shapes it has. A completion
 * stays a completion, so a layer built on this keeps the fast path.
 *
 * @param answer what `next(io)` returned
 * @param project called once with the completion; returns the completion to pass on
 */
export function mapAnswer(answer: Answer, project: (completion: Completion) => Completion): Answer {
  // The shape of nearly all answers comes first: the other looks cost more than the rest of a layer.
  if (isCompletion(answer)) return project(answer)
  if (answer instanceof CompletionPromise) return answer.mapped(project)
  if (isPromiseLike(answer)) return answer.then(project)
  if (answer instanceof CompletionObservable) return answer.mapped(project)
  if (isObservable(answer)) return new CompletionObservable(answer, project)
  return project(answer)
}

/**
 * As {@link mapAnswer}, for a layer that needs a further answer to make its own, such as a second attempt. It is a
 * completion at once only if both are.
 */
export function flatMapAnswer(answer: Answer, project: (completion: Completion) => Answer): Answer {
  if (isCompletion(answer)) return project(answer)
  if (isPromiseLike(answer)) return answer.then((completion) => settled(project(completion)))
  if (isObservable(answer)) {
    return answer.pipe(
      take(1),
      mergeMap((completion) => observed(project(completion))),
    )
  }
  return project(answer)
}

/**
 * Asks a handler and makes a failed completion of everything that can go wrong on the way: it throws, rejects,
 * ends its observable with an error or without a value, or answers with something that no request made. For layers
 * that act on failures; the others leave that to the pipeline, which does the same for the whole stack.
 */
export function attempt<Io extends Request>(next: Handler<Io>, io: Io): Answer {
  return answerOf(io, next, checkedCompletion)
}

/**
 * Calls a function that may answer in any of the three shapes, and converts what it answers with.
 *
 * @param call may throw, reject, or end its observable with an error: a failed completion
 * @param completionOf makes the completion out of the first value; may throw as well
 */
export function answerOf<Io extends Request, Value>(
  io: Io,
  call: (io: Io) => Value | PromiseLike<Value> | Observable<Value>,
  completionOf: (io: Io, value: Value) => Completion,
): Answer {
  try {
    const answer = call(io)
    // What a store mostly answers with: none of the other looks finds anything in it.
    if (answer === undefined || typeof answer === 'number') return completionOf(io, answer)
    if (isCompletion(answer)) return answer
    return laterAnswerOf(io, answer, completionOf)
  } catch (cause) {
    return failureOf(io, cause)
  }
}

/** Apart from its caller, which is called for each request: a closure is paid for at each call of the function around it. */
function laterAnswerOf<Io extends Request, Value>(
  io: Io,
  answer: Value | PromiseLike<Value> | Observable<Value>,
  completionOf: (io: Io, value: Value) => Completion,
): Answer {
  if (isOwnPromise(answer)) return new StoreCompletion(answer as Promise<Value>, io, completionOf, failureOf)
  return anyLaterAnswerOf(io, answer, completionOf)
}

/** Apart from its caller for the same reason. */
function anyLaterAnswerOf<Io extends Request, Value>(
  io: Io,
  answer: Value | PromiseLike<Value> | Observable<Value>,
  completionOf: (io: Io, value: Value) => Completion,
): Answer {
  if (isPromiseLike(answer)) {
    const fail = (cause: unknown): Completion => failureOf(io, cause)
    // One hop instead of then() and catch(): each is a promise, and a turn of the queue of microtasks.
    return answer.then((value) => {
      try {
        return completionOf(io, value as Value)
      } catch (cause) {
        return fail(cause)
      }
    }, fail)
  }
  if (isObservable(answer)) {
    return new CompletionObservable(
      answer,
      (value) => completionOf(io, value as Value),
      (cause) => failureOf(io, cause),
    )
  }
  return completionOf(io, answer as Value)
}

/** An answer as a completion or a promise of one. An observable is subscribed to. */
export function settled(answer: Answer): Completion | PromiseLike<Completion> {
  return isObservable(answer) ? firstValueFrom(answer) : answer
}

/** An answer as an observable. */
export function observed(answer: Answer): Observable<Completion> {
  if (isObservable(answer)) return answer
  return isPromiseLike(answer) ? from(answer) : of(answer)
}

function checkedCompletion(_io: Request, value: unknown): Completion {
  if (isCompletion(value)) return value
  throw new HushringError(
    'ERR_HANDLER_ANSWER',
    `expected a completion made by the request, got ${typeof value}`,
  )
}

/** What a thrown error means for a request: the medium failed, or the handler has a mistake. */
function failureOf(io: Request, cause: unknown): FailedCompletion {
  if (isOfStore(cause)) return io.fail(cause)
  return handlerThrew(io, cause)
}

/** What a mistake of a handler means for its request, whatever it threw. */
export function handlerThrew(io: Request, cause: unknown): FailedCompletion {
  return io.fail(new HushringError('ERR_HANDLER_THREW', `the handler threw: ${messageOf(cause)}`, { cause }))
}

/** True for what a store means to tell: an error of ours, or of the system. Anything may be thrown, also what cannot be looked at. */
function isOfStore(cause: unknown): boolean {
  try {
    return cause instanceof HushringError || typeof (cause as NodeJS.ErrnoException)?.syscall === 'string'
  } catch {
    return false
  }
}

/** True for anything with a `then` method. */
export function isPromiseLike(value: unknown): value is PromiseLike<Completion> {
  return isThenable(value)
}
