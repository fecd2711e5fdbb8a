import test from 'ava'
import { BlockRequest } from '../../src/handlers/block/block-request.ts'
import { CompletionPromise, isOwnPromise } from '../../src/handlers/completion-promise.ts'
import { type Answer, answerOf, mapAnswer } from '../../src/handlers/handler.ts'
import type { Completion } from '../../src/ring/request.ts'

const io = new BlockRequest()

/** The answer of a store that returns `value`, and answers with the numbers that its promises come to. */
function answerWith(value: unknown, completionOf = (count: number): Completion => io.ok(count)): Answer {
  return answerOf(
    io,
    () => value as never,
    (_io, count: number) => completionOf(count),
  )
}

function bytesOf(completion: Completion): number | undefined {
  return completion.result === 'ok' ? completion.bytesWritten : undefined
}

const plusOne = (completion: Completion): Completion => io.ok(bytesOf(completion)! + 1)

/** Microtasks until `done` is called. */
async function microtasksUntil(start: (done: () => void) => void): Promise<number> {
  let isDone = false
  start(() => {
    isDone = true
  })
  let count = 0
  for (; !isDone; count++) await undefined
  return count
}

test('layers cost no microtask: the pipeline is told in the one in which the promise of the store settles', async (t) => {
  const count = await microtasksUntil((done) => {
    const answer = mapAnswer(mapAnswer(answerWith(Promise.resolve(1)), plusOne), plusOne)
    t.true(answer instanceof CompletionPromise)
    ;(answer as CompletionPromise).listen({
      value(completion) {
        t.is(bytesOf(completion), 3)
        done()
      },
      error: () => t.fail(),
    })
  })
  t.is(count, 1)
  const ofThens = await microtasksUntil((done) => {
    Promise.resolve(1)
      .then(plusOne as never, () => {})
      .then(plusOne as never, () => {})
      .then(done, done)
  })
  t.true(ofThens > 1, 'control: promises take a microtask each')
})

test('an answer that is mapped stays what it was, and may be awaited by several', async (t) => {
  const answer = answerWith(Promise.resolve(5)) as PromiseLike<Completion>
  const mapped = mapAnswer(answer, plusOne) as PromiseLike<Completion>
  const all = await Promise.all([answer, mapped, answer, mapAnswer(answer, plusOne) as typeof answer])
  t.deepEqual(all.map(bytesOf), [5, 6, 5, 6])
  t.is(bytesOf(await mapped), 6, 'also after it settled')
  t.is(bytesOf(await (mapAnswer(mapped, plusOne) as PromiseLike<Completion>)), 7)
})

test('a rejection, and an outcome that is none, are failed completions and no errors', async (t) => {
  const boom = new Error('boom')
  const throwing = (): Completion => {
    throw boom
  }
  for (const answer of [answerWith(Promise.reject(boom)), answerWith(Promise.resolve(1), throwing)]) {
    const completion = await (answer as PromiseLike<Completion>)
    t.is(completion.result === 'failed' && completion.error.code, 'ERR_HANDLER_THREW')
  }
})

test('what a layer throws is an error of the answer, and passes the layers around it by', async (t) => {
  const boom = new Error('boom')
  const failing = mapAnswer(answerWith(Promise.resolve(1)), () => {
    throw boom
  })
  const around = mapAnswer(failing, () => t.fail() as never)
  await t.throwsAsync(async () => await around, { is: boom })
})

test('a promise that settled has no say in the requests after it', async (t) => {
  let settleFirst = (_count: number): void => {}
  const first = answerWith(
    new Promise<number>((resolve) => {
      settleFirst = resolve
    }),
  ) as PromiseLike<Completion>
  settleFirst(1)
  t.is(bytesOf(await first), 1)
  // The functions that told of the first promise tell of this one.
  let settleSecond = (_count: number): void => {}
  const second = answerWith(
    new Promise<number>((resolve) => {
      settleSecond = resolve
    }),
  ) as PromiseLike<Completion>
  settleFirst(7)
  await undefined
  settleSecond(2)
  t.deepEqual([bytesOf(await first), bytesOf(await second)], [1, 2])
})

const foreign = test.macro({
  async exec(t, value: unknown, bytes: number | undefined) {
    t.false(isOwnPromise(value))
    const answer = answerWith(value)
    t.false(answer instanceof CompletionPromise)
    t.is(bytesOf(await (answer as PromiseLike<Completion>)), bytes)
  },
  title: (provided) => `${provided} is followed by what it calls itself`,
})
class Eager extends Promise<number> {
  // biome-ignore lint/suspicious/noThenProperty: a promise that breaks the rules is the subject
  override then(onFulfilled?: unknown): never {
    ;(onFulfilled as (count: number) => void)?.(4)
    return Promise.resolve(io.ok(4)) as never
  }
}
test('a promise with a then of its own', foreign, new Eager(() => {}), 4)
test(
  'a thenable',
  foreign,
  {
    // biome-ignore lint/suspicious/noThenProperty: as above
    then: (onFulfilled: (count: number) => Completion) => Promise.resolve(onFulfilled(3)),
  },
  3,
)

test('a rejection that has no text is a failed completion', async (t) => {
  const completion = await (answerWith(Promise.reject(Object.create(null))) as PromiseLike<Completion>)
  t.is(completion.result, 'failed')
})

test('an object that only looks like a promise is a failed completion', (t) => {
  const answer = answerWith(Object.create(Promise.prototype)) as Completion
  t.is(answer.result === 'failed' && answer.error.code, 'ERR_HANDLER_THREW')
})
