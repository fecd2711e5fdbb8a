import test from 'ava'
import { EMPTY, NEVER, Observable, of, Subject, Subscription, throwError } from 'rxjs'
import { TestScheduler } from 'rxjs/testing'
import { HushringError } from '../../src/errors.ts'
import type { Answer } from '../../src/handlers/handler.ts'
import { answer } from '../../src/notify/answer.ts'
import { creditsReturned, type DrainableQueue, drain } from '../../src/notify/drain.ts'
import { gather } from '../../src/notify/gather.ts'
import { serveQueue } from '../../src/notify/pipeline.ts'
import {
  adaptive,
  anticipate,
  coalesce,
  type Hold,
  immediate,
  type SuppressionPolicy,
  soonest,
} from '../../src/notify/suppression.ts'
import { Later } from '../../src/ring/later.ts'
import { Batch, type Published } from '../../src/ring/queue.ts'
import { type Completion, RingRequest } from '../../src/ring/request.ts'

/** Runs a marble test: frames are virtual milliseconds, and what is expected is compared when it ends. */
function marbles(
  run: (helpers: Parameters<Parameters<TestScheduler['run']>[0]>[0] & { scheduler: TestScheduler }) => void,
) {
  return (t: import('ava').ExecutionContext): void => {
    const scheduler = new TestScheduler((actual, expected) => t.deepEqual(actual, expected))
    scheduler.run((helpers) => run({ ...helpers, scheduler }))
    t.pass()
  }
}

/** A ring without memory: requests wait in a number, answers are counted. */
class FakeQueue implements DrainableQueue {
  armed = false
  more = false
  inFlightCount = 0
  takenCounts: number[] = []
  recorded: { request: RingRequest; completion: Completion }[] = []
  recycledCount = 0
  readyCount = 0
  publishedCount = 0
  rearmCount = 0
  settledCount = 0
  /** Whether each publish could rely on a {@link settle} to come. */
  deferrals: boolean[] = []
  readonly #batch = new Batch()
  readonly #published = { count: 0, signalled: true }

  visibleCount: number

  constructor(visibleCount = 0) {
    this.visibleCount = visibleCount
  }

  take(countMax: number): Batch {
    const count = Math.min(countMax, this.visibleCount, 4)
    this.takenCounts.push(count)
    this.visibleCount -= count
    this.inFlightCount += count
    this.armed = false
    this.more = false
    this.#batch.count = count
    for (let index = 0; index < count; index++) this.#batch.requests[index] = new RingRequest(0)
    return this.#batch
  }

  record(request: RingRequest, completion: Completion): void {
    this.recorded.push({ request, completion })
    this.readyCount++
  }

  recycle(): void {
    this.recycledCount++
  }

  rearm(): void {
    this.rearmCount++
    this.armed = this.visibleCount === 0
    this.more = !this.armed
  }

  settle(): void {
    this.settledCount++
  }

  publish(_pollNanosMax = 0, mayDefer = false): Published {
    this.deferrals.push(mayDefer)
    this.#published.count = this.readyCount
    this.publishedCount += this.readyCount
    this.inFlightCount -= this.readyCount
    this.readyCount = 0
    this.rearm()
    return this.#published
  }
}

const ample = { creditCountMax: 1000, budgetCountMax: 1000 }

// ---- drain ------------------------------------------------------------------------------------------------

test(
  'drain: never wakes, takes nothing and stays subscribed',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const source = cold('-')
    expectObservable(source.pipe(drain(new FakeQueue(3), ample))).toBe('-')
    expectSubscriptions(source.subscriptions).toBe('^')
  }),
)

test(
  'drain: completes with an empty source and takes nothing',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const source = cold('|')
    expectObservable(source.pipe(drain(new FakeQueue(3), ample))).toBe('|')
    expectSubscriptions(source.subscriptions).toBe('(^!)')
  }),
)

test(
  'drain: one wake takes batches until the queue is armed',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const source = cold('--a---|')
    const queue = new FakeQueue(6)
    const batchCounts = source.pipe(drain(queue, ample), counted)
    expectObservable(batchCounts).toBe('--(bc)|', { b: 4, c: 2 })
    expectSubscriptions(source.subscriptions).toBe('^-----!')
  }),
)

test(
  'drain: a wake on an empty ring emits nothing and arms the queue',
  marbles(({ cold, expectObservable, flush }) => {
    const queue = new FakeQueue(0)
    expectObservable(cold('a-a|').pipe(drain(queue, ample))).toBe('---|')
    flush()
    if (!queue.armed) throw new Error('the queue sleeps without having asked for kicks')
  }),
)

test(
  'drain: passes the error of its source on',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const source = cold('-#')
    expectObservable(source.pipe(drain(new FakeQueue(3), ample))).toBe('-#')
    expectSubscriptions(source.subscriptions).toBe('^!')
  }),
)

test(
  'drain: an endless source is left when the consumer has enough',
  marbles(({ hot, expectObservable, expectSubscriptions }) => {
    const source = hot('-a-a-a-a-a')
    const queue = new FakeQueue(1)
    expectObservable(source.pipe(drain(queue, ample), counted), '---!').toBe('-a', { a: 1 })
    expectSubscriptions(source.subscriptions).toBe('^--!')
  }),
)

test(
  'drain: a broken queue errors the stream and leaves the source',
  marbles(({ hot, expectObservable, expectSubscriptions }) => {
    const source = hot('-a-a')
    const queue = new FakeQueue(1)
    const broken = new HushringError('ERR_RING_AVAIL_INDEX')
    queue.take = () => {
      throw broken
    }
    expectObservable(source.pipe(drain(queue, ample))).toBe('-#', undefined, broken)
    expectSubscriptions(source.subscriptions).toBe('^!')
  }),
)

test(
  'drain: out of budget, it continues by itself on a later turn without any kick',
  marbles(({ cold, expectObservable, scheduler }) => {
    const queue = new FakeQueue(5)
    const later = { now: () => scheduler.now(), schedule: delayed(scheduler, 10) }
    const counts = cold('a---').pipe(
      drain(queue, { creditCountMax: 1000, budgetCountMax: 2, scheduler: later }),
      counted,
    )
    expectObservable(counts).toBe('a 9ms a 9ms b', { a: 2, b: 1 })
  }),
)

test(
  'drain: a consumer that unsubscribes cancels the continuation',
  marbles(({ cold, expectObservable, scheduler, flush }) => {
    const queue = new FakeQueue(5)
    const later = { now: () => scheduler.now(), schedule: delayed(scheduler, 10) }
    const counts = cold('a').pipe(
      drain(queue, { creditCountMax: 1000, budgetCountMax: 2, scheduler: later }),
      counted,
    )
    expectObservable(counts, '-----!').toBe('a', { a: 2 })
    flush()
    if (queue.visibleCount !== 3) throw new Error('it went on taking after it was left')
  }),
)

test('drain: a driver that offers nothing but malformed chains uses the budget up too', (t) => {
  const queue = new FakeQueue(1)
  let looks = 0
  queue.take = () => {
    looks++
    return new Batch()
  }
  queue.rearm = () => {
    queue.more = true
  }
  const later = { now: () => 0, schedule: () => new Subscription() }
  of(undefined)
    .pipe(drain(queue, { creditCountMax: 9, budgetCountMax: 5, scheduler: later }))
    .subscribe()
  t.is(looks, 5)
})

test('drain: out of credits, it takes nothing and leaves kicks suppressed until somebody wakes it', (t) => {
  const queue = new FakeQueue(10)
  const wakes = new Subject<void>()
  const counts: number[] = []
  wakes
    .pipe(drain(queue, { creditCountMax: 3, budgetCountMax: 1000 }))
    .subscribe((batch) => counts.push(batch.count))
  wakes.next()
  t.deepEqual(counts, [3])
  t.false(queue.armed)
  wakes.next()
  t.deepEqual(counts, [3])
  queue.inFlightCount = 1
  wakes.next()
  t.deepEqual(counts, [3, 2])
})

test('drain: a wake from inside the handling of a batch is not a second drain', (t) => {
  const queue = new FakeQueue(6)
  const wakes = new Subject<void>()
  let depth = 0
  wakes.pipe(drain(queue, ample)).subscribe(() => {
    t.is(depth++, 0)
    wakes.next()
    depth--
  })
  wakes.next()
  t.is(queue.inFlightCount, 6)
  t.true(queue.armed)
})

test('drain: returned credits do not refill the budget of a turn, a kick does', (t) => {
  const queue = new FakeQueue(100)
  const wakes = new Subject<unknown>()
  const scheduled: (() => void)[] = []
  const later = {
    now: () => 0,
    schedule: (work: () => void) => {
      scheduled.push(work)
      return new Subscription()
    },
  }
  wakes.pipe(drain(queue, { creditCountMax: 2, budgetCountMax: 6, scheduler: later as never })).subscribe()
  wakes.next('kick')
  for (let round = 0; round < 20; round++) {
    queue.inFlightCount = 0
    wakes.next(creditsReturned)
  }
  t.is(queue.visibleCount, 94)
  t.is(scheduled.length, 1)
  scheduled[0]!()
  t.is(queue.visibleCount, 92)
})

test('drain: a source that completes while a batch is handled completes after that batch, without another', (t) => {
  const queue = new FakeQueue(6)
  const wakes = new Subject<void>()
  const seen: (number | string)[] = []
  wakes.pipe(drain(queue, ample)).subscribe({
    next: (batch) => {
      wakes.complete()
      seen.push(batch.count)
    },
    complete: () => seen.push('complete'),
  })
  wakes.next()
  t.deepEqual(seen, [4, 'complete'])
})

test('drain: the consumer that re-armed the queue spares drain the call', (t) => {
  const queue = new FakeQueue(2)
  of(undefined)
    .pipe(drain(queue, ample))
    .subscribe(() => queue.rearm())
  t.is(queue.rearmCount, 1)
})

// ---- answer -----------------------------------------------------------------------------------------------

function batchOf(count: number): Batch {
  const batch = new Batch()
  batch.count = count
  for (let index = 0; index < count; index++) batch.requests[index] = new RingRequest(0)
  return batch
}

const noDeadline = { timeoutMs: 0 }

test(
  'answer: never, empty and error of the source pass through',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const run = (source: ReturnType<typeof cold>) =>
      (source as unknown as Observable<Batch>).pipe(answer(new FakeQueue(), (io) => io.ok(), noDeadline))
    const never = cold('-')
    const empty = cold('|')
    const failing = cold('--#')
    expectObservable(run(never)).toBe('-')
    expectObservable(run(empty)).toBe('|')
    expectObservable(run(failing)).toBe('--#')
    expectSubscriptions(never.subscriptions).toBe('^')
    expectSubscriptions(empty.subscriptions).toBe('(^!)')
    expectSubscriptions(failing.subscriptions).toBe('^-!')
  }),
)

test(
  'answer: synchronous answers of one batch are one value',
  marbles(({ cold, expectObservable }) => {
    const source = cold('-a-b|', { a: batchOf(1), b: batchOf(3) })
    expectObservable(source.pipe(answer(new FakeQueue(), (io) => io.ok(), noDeadline))).toBe('-a-b|', {
      a: 1,
      b: 3,
    })
  }),
)

test(
  'answer: late answers come one by one, and the source may complete before them',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const source = cold('-a|', { a: batchOf(2) })
    const delays = ['--x', '----x|']
    const handler = (io: RingRequest): Answer => cold(delays.shift()!, { x: io.ok() })
    expectObservable(source.pipe(answer(new FakeQueue(), handler, noDeadline))).toBe('---1-(1|)', { 1: 1 })
    expectSubscriptions(source.subscriptions).toBe('^-!')
  }),
)

test(
  'answer: the first value of an endless observable is the answer, and it is left then',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const source = cold('a|', { a: batchOf(1) })
    const endless = cold('--x-x-x', { x: new RingRequest(0).ok() })
    expectObservable(source.pipe(answer(new FakeQueue(), () => endless, noDeadline))).toBe('--(1|)', { 1: 1 })
    expectSubscriptions(endless.subscriptions).toBe('^-!')
  }),
)

test(
  'answer: the deadline answers for a handler that never settles, and only once',
  marbles(({ cold, expectObservable, scheduler, flush }) => {
    const source = cold('a 4ms a', { a: batchOf(1) })
    const queue = new FakeQueue()
    const answered = source.pipe(answer(queue, () => NEVER, { timeoutMs: 20, scheduler }))
    expectObservable(answered).toBe('20ms 1 4ms 1', { 1: 1 })
    flush()
    const codes = queue.recorded.map(
      ({ completion }) => completion.result === 'failed' && completion.error.code,
    )
    if (codes.join() !== 'ERR_HANDLER_TIMEOUT,ERR_HANDLER_TIMEOUT') throw new Error(codes.join())
  }),
)

test(
  'answer: giving up fails everything in flight at that moment',
  marbles(({ cold, hot, expectObservable, flush }) => {
    const queue = new FakeQueue()
    const giveUp = hot<HushringError>('---x', { x: new HushringError('ERR_REQUEST_ABORTED') })
    const source = cold('a|', { a: batchOf(2) })
    const answered = source.pipe(answer(queue, () => NEVER, { timeoutMs: 0, giveUp }))
    expectObservable(answered).toBe('---(11|)', { 1: 1 })
    flush()
    if (!queue.recorded.every(({ request }) => request.signal.aborted))
      throw new Error('a signal did not fire')
  }),
)

test('answer: when it is left, signals fire, nothing more is recorded and the deadline is cancelled', async (t) => {
  const queue = new FakeQueue()
  const requests: RingRequest[] = []
  let settle = (_completion: Completion): void => {}
  const subscription = of(batchOf(1))
    .pipe(
      answer(
        queue,
        (io) => {
          requests.push(io)
          return new Promise<Completion>((resolve) => {
            settle = resolve
          })
        },
        { timeoutMs: 1000 },
      ),
    )
    .subscribe(() => t.fail())
  subscription.unsubscribe()
  t.true(requests[0]!.signal.aborted)
  settle(requests[0]!.ok())
  await Promise.resolve()
  t.is(queue.recorded.length, 0)
})

const failure = test.macro({
  exec(t, handler: (io: RingRequest) => unknown, code: string) {
    const queue = new FakeQueue()
    const failed: string[] = []
    const counts: number[] = []
    return new Promise<void>((resolve) => {
      of(batchOf(1))
        .pipe(
          answer(queue, handler as (io: RingRequest) => Answer, {
            timeoutMs: 0,
            onFailure: (_request, error) => failed.push(error.code),
          }),
        )
        .subscribe({ next: (count) => counts.push(count), complete: resolve })
    }).then(() => {
      t.deepEqual(counts, [1])
      t.deepEqual(failed, [code])
      t.is(queue.recorded.length, 1)
    })
  },
  title: (provided) => `answer: a handler that ${provided} yields exactly one failed completion`,
})

const boom = new Error('boom')
test(
  'throws',
  failure,
  () => {
    throw boom
  },
  'ERR_HANDLER_THREW',
)
test('rejects', failure, () => Promise.reject(boom), 'ERR_HANDLER_THREW')
test(
  'throws what has no text',
  failure,
  () => {
    throw Object.create(null)
  },
  'ERR_HANDLER_THREW',
)
test('rejects with what has no text', failure, () => Promise.reject(Object.create(null)), 'ERR_HANDLER_THREW')
test(
  'has a then that cannot be read',
  failure,
  () => ({
    // biome-ignore lint/suspicious/noThenProperty: a hostile thenable is the subject of this test.
    get then() {
      throw boom
    },
  }),
  'ERR_HANDLER_THREW',
)
test('errors its observable', failure, () => throwError(() => boom), 'ERR_HANDLER_THREW')
test('ends its observable without a value', failure, () => EMPTY, 'ERR_HANDLER_ANSWER')
test('returns nothing', failure, () => undefined, 'ERR_HANDLER_ANSWER')
test('returns null', failure, () => null, 'ERR_HANDLER_ANSWER')
test(
  'returns an object of the right shape that no request made',
  failure,
  () => ({ result: 'ok' }),
  'ERR_HANDLER_ANSWER',
)
test(
  'returns what only looks like a promise',
  failure,
  () => Object.create(Promise.prototype),
  'ERR_HANDLER_THREW',
)
test('resolves with nonsense', failure, () => Promise.resolve(7), 'ERR_HANDLER_ANSWER')
test(
  'has a then that throws',
  failure,
  () => ({
    // biome-ignore lint/suspicious/noThenProperty: a hostile thenable is the subject of this test.
    then() {
      throw boom
    },
  }),
  'ERR_HANDLER_THREW',
)
test(
  'reports more bytes than there is room for',
  failure,
  (io: RingRequest) => io.ok(1),
  'ERR_HANDLER_ANSWER',
)
test('reports a negative number of bytes', failure, (io: RingRequest) => io.ok(-1), 'ERR_HANDLER_ANSWER')
test('answers with a failure', failure, (io: RingRequest) => io.fail(boom), 'ERR_STORE_IO')

test('answer: a source that completes in the middle of a batch still gets all of it answered', (t) => {
  const queue = new FakeQueue()
  const batches = new Subject<Batch>()
  const seen: (number | string)[] = []
  const handler = (io: RingRequest): Answer => {
    batches.complete()
    return io.ok()
  }
  batches.pipe(answer(queue, handler, noDeadline)).subscribe({
    next: (count) => seen.push(count),
    complete: () => seen.push('complete'),
  })
  batches.next(batchOf(3))
  t.deepEqual(seen, [3, 'complete'])
  t.is(queue.recorded.length, 3)
})

test('answer: a handler that ends its own stream has nothing more recorded, neither now nor later', async (t) => {
  const queue = new FakeQueue()
  const batches = new Subject<Batch>()
  let settle = (_completion: Completion): void => {}
  const answers: ((io: RingRequest) => Answer)[] = [
    () =>
      new Promise((resolve) => {
        settle = resolve
      }),
    (io) => {
      subscription.unsubscribe()
      return io.ok()
    },
    (io) => io.ok(),
  ]
  const subscription = batches.pipe(answer(queue, (io) => answers.shift()!(io), noDeadline)).subscribe()
  batches.next(batchOf(3))
  t.is(queue.recorded.length, 0)
  t.is(answers.length, 1, 'the third request never reached the handler')
  settle(new RingRequest(0).ok())
  await Promise.resolve()
  t.is(queue.recorded.length, 0)
})

test('answer: promises that settle together are one value, and each other time is another', async (t) => {
  const counts: number[] = []
  const resolvers: ((completion: Completion) => void)[] = []
  const batch = batchOf(4)
  of(batch)
    .pipe(
      answer(
        new FakeQueue(),
        () => new Promise<Completion>((resolve) => resolvers.push(resolve)),
        noDeadline,
      ),
    )
    .subscribe((count) => counts.push(count))
  const resolve = (index: number): void => resolvers[index]!(batch.requests[index]!.ok())
  resolve(0)
  resolve(1)
  t.deepEqual(counts, [])
  await afterMicrotasks()
  t.deepEqual(counts, [2])
  resolve(2)
  await afterMicrotasks()
  resolve(3)
  await afterMicrotasks()
  t.deepEqual(counts, [2, 1, 1])
})

test('answer: a thenable that settles twice is one completion, and the second is counted', (t) => {
  const queue = new FakeQueue()
  let lateCount = 0
  const twice = (io: RingRequest): unknown => ({
    // biome-ignore lint/suspicious/noThenProperty: a hostile thenable is the subject of this test.
    then(resolve: (completion: Completion) => void) {
      resolve(io.ok())
      resolve(io.ok())
    },
  })
  of(batchOf(1))
    .pipe(answer(queue, twice as never, { timeoutMs: 0, onLateAnswer: () => lateCount++ }))
    .subscribe()
  t.is(queue.recorded.length, 1)
  t.is(lateCount, 1)
})

test('answer: memory stays pinned from the call until the handler settles, not until the deadline', async (t) => {
  let pins = 0
  const batch = batchOf(1)
  batch.requests[0]!.memory = { pin: () => pins++, unpin: () => pins-- }
  let settle = (_completion: Completion): void => {}
  const giveUp = new Subject<HushringError>()
  of(batch)
    .pipe(
      answer(
        new FakeQueue(),
        () =>
          new Promise<Completion>((resolve) => {
            settle = resolve
          }),
        { timeoutMs: 0, giveUp },
      ),
    )
    .subscribe()
  t.is(pins, 1)
  giveUp.next(new HushringError('ERR_REQUEST_ABORTED'))
  t.is(pins, 1)
  settle(batch.requests[0]!.ok())
  await Promise.resolve()
  t.is(pins, 0)
})

test('answer: only request objects that are answered when the handler returns are reused', (t) => {
  const queue = new FakeQueue()
  const answers: ((io: RingRequest) => Answer)[] = [
    (io) => io.ok(),
    (io) => Promise.resolve(io.ok()),
    (io) => of(io.ok()),
  ]
  of(batchOf(3))
    .pipe(answer(queue, (io) => answers.shift()!(io), noDeadline))
    .subscribe()
  t.is(queue.recycledCount, 2)
})

test('answer: a request that its store is through with is reused, unless it was answered for before', (t) => {
  const queue = new FakeQueue()
  const giveUp = new Subject<HushringError>()
  const laters = [new Later<Completion>(), new Later<Completion>(), new Later<Completion>()]
  const waiting = [...laters]
  const requests: RingRequest[] = []
  let lateAnswerCount = 0
  of(batchOf(3))
    .pipe(
      answer(
        queue,
        (io) => {
          requests.push(io)
          // As layers add to an answer.
          return waiting.shift()!.then((completion) => completion)
        },
        { timeoutMs: 0, giveUp, onLateAnswer: () => lateAnswerCount++ },
      ),
    )
    .subscribe()
  laters[0]!.fulfill(requests[0]!.ok())
  laters[1]!.reject(boom)
  t.is(queue.recycledCount, 2)
  // The kernel may still write into the memory of a request whose deadline has passed.
  giveUp.next(new HushringError('ERR_REQUEST_ABORTED'))
  t.is(queue.recycledCount, 2)
  laters[2]!.fulfill(requests[2]!.ok())
  t.is(queue.recycledCount, 2)
  t.is(lateAnswerCount, 1)
  t.deepEqual(
    queue.recorded.map(({ completion }) => completion.result),
    ['ok', 'failed', 'failed'],
  )
})

test('answer: a request is not reused after a promise that a layer answered with, which may have left somebody at work', (t) => {
  const queue = new FakeQueue()
  const [later, other] = [new Later<Completion>(), new Later<Completion>()]
  const requests: RingRequest[] = []
  // biome-ignore lint/suspicious/noThenProperty: one that settles at once, so that nothing has to be waited for.
  const race = { then: (fulfilled: (completion: Completion) => void) => fulfilled(requests[0]!.ok()) }
  const answers = [later.then(() => race as never), later.then(() => other)]
  of(batchOf(2))
    .pipe(
      answer(
        queue,
        (io) => {
          requests.push(io)
          return answers.shift()!
        },
        noDeadline,
      ),
    )
    .subscribe()
  later.fulfill(requests[0]!.ok())
  t.deepEqual([queue.recorded.length, queue.recycledCount], [1, 0])
  // The control: a store that was asked a second time.
  other.fulfill(requests[1]!.ok())
  t.deepEqual([queue.recorded.length, queue.recycledCount], [2, 1])
})

// ---- gather -----------------------------------------------------------------------------------------------

const counts = { 1: 1, 2: 2, 3: 3, 4: 4, 5: 5 }

test(
  'gather: never, empty and error of the source pass through',
  marbles(({ cold, expectObservable, expectSubscriptions }) => {
    const options = { policy: immediate(), inFlightCount: () => 9 }
    for (const [marble, subscription] of [
      ['-', '^'],
      ['|', '(^!)'],
      ['--#', '^-!'],
    ] as const) {
      const source = cold<number>(marble)
      expectObservable(source.pipe(gather(options))).toBe(marble)
      expectSubscriptions(source.subscriptions).toBe(subscription)
    }
  }),
)

test(
  'gather: immediate passes each count on at once',
  marbles(({ cold, expectObservable }) => {
    const options = { policy: immediate(), inFlightCount: () => 9 }
    expectObservable(cold('1-2-(31)|', counts).pipe(gather(options))).toBe('1-2-(31)|', counts)
  }),
)

test(
  'gather: coalesce publishes a full group early and a partial one at its deadline',
  marbles(({ cold, expectObservable, scheduler }) => {
    const policy = coalesce({ countMax: 3, holdMicrosMax: 5000 })
    const source = cold('1-1-1---1------|', counts)
    // The deadline counts from the first answer of a group: 8 + 5 ms.
    expectObservable(source.pipe(gather({ policy, inFlightCount: () => 9, scheduler }))).toBe(
      '----3--------1-|',
      counts,
    )
  }),
)

test(
  'gather: later answers never push the deadline back',
  marbles(({ cold, expectObservable, scheduler }) => {
    const policy = coalesce({ countMax: 99, holdMicrosMax: 4000 })
    const source = cold('11111-----|', counts)
    expectObservable(source.pipe(gather({ policy, inFlightCount: () => 9, scheduler }))).toBe(
      '----5-----|',
      counts,
    )
  }),
)

test(
  'gather: the last answer in flight goes out at once',
  marbles(({ cold, expectObservable, scheduler }) => {
    const policy = coalesce({ countMax: 99, holdMicrosMax: 5000 })
    let inFlight = 2
    const source = cold('1-1|', counts)
    const options = { policy, inFlightCount: () => inFlight, scheduler }
    expectObservable(source.pipe(gather(options))).toBe('--2|', counts)
    inFlight = 2
  }),
)

test(
  'gather: what the other side waits for goes out at once, with what was held before it',
  marbles(({ cold, expectObservable, scheduler }) => {
    const policy = coalesce({ countMax: 99, holdMicrosMax: 5000 })
    const source = cold('1-1-1-------|', counts)
    let answered = 0
    const options = { policy, inFlightCount: () => 9, isUrgent: () => ++answered === 2, scheduler }
    expectObservable(source.pipe(gather(options))).toBe('--2------1--|', counts)
  }),
)

test(
  'gather: a completing source publishes what is held, then completes',
  marbles(({ cold, expectObservable, expectSubscriptions, scheduler }) => {
    const policy = coalesce({ countMax: 99, holdMicrosMax: 50_000 })
    const source = cold('1-1-|', counts)
    expectObservable(source.pipe(gather({ policy, inFlightCount: () => 9, scheduler }))).toBe(
      '----(2|)',
      counts,
    )
    expectSubscriptions(source.subscriptions).toBe('^---!')
  }),
)

test(
  'gather: a failing source publishes what is held, then fails',
  marbles(({ cold, expectObservable, scheduler }) => {
    const policy = coalesce({ countMax: 99, holdMicrosMax: 50_000 })
    const options = { policy, inFlightCount: () => 9, scheduler }
    expectObservable(cold('1-1-#', counts).pipe(gather(options))).toBe('----(2#)', counts)
  }),
)

test(
  'gather: left early, it cancels its deadline',
  marbles(({ cold, expectObservable, expectSubscriptions, scheduler }) => {
    const policy = coalesce({ countMax: 99, holdMicrosMax: 5000 })
    const source = cold('1-------', counts)
    expectObservable(source.pipe(gather({ policy, inFlightCount: () => 9, scheduler })), '---!').toBe('-')
    expectSubscriptions(source.subscriptions).toBe('^--!')
  }),
)

test(
  'gather: the soonest of two policies decides',
  marbles(({ cold, expectObservable, scheduler }) => {
    const policy = soonest(
      coalesce({ countMax: 2, holdMicrosMax: 9000 }),
      coalesce({ countMax: 9, holdMicrosMax: 3000 }),
    )
    const options = { policy, inFlightCount: () => 9, scheduler }
    expectObservable(cold('1-1--1-----|', counts).pipe(gather(options))).toBe('--2-----1--|', counts)
  }),
)

const senseless = test.macro({
  exec(t, policy: () => never) {
    const seen: number[] = []
    of(1)
      .pipe(gather({ policy, inFlightCount: () => 9 }))
      .subscribe((count) => seen.push(count))
    t.deepEqual(seen, [1])
  },
  title: (provided) => `gather: ${provided} costs the hold and not the answer`,
})
const wish = (hold: unknown) => (): never => hold as never
test('a policy that wishes for ever', senseless, wish(Number.POSITIVE_INFINITY))
test('a policy that wishes NaN', senseless, wish(Number.NaN))
test('a policy that wishes a negative time', senseless, wish(-1))
test('a policy that wishes nothing', senseless, wish(undefined))
test('a policy that throws', senseless, () => {
  throw boom
})

test('gather: a timer that the system refuses costs the hold and not the answers', (t) => {
  const seen: number[] = []
  const answers = new Subject<number>()
  const scheduler = {
    now: () => 0,
    schedule: () => {
      throw boom
    },
  }
  answers
    .pipe(gather({ policy: () => 5, inFlightCount: () => 9, scheduler }))
    .subscribe((count) => seen.push(count))
  answers.next(1)
  answers.next(2)
  t.deepEqual(seen, [1, 2])
})

test('policies: adaptive lets a lone answer go and gathers a crowd until the end of the turn', (t) => {
  const policy = adaptive()
  t.is(policy({ readyCount: 1, unansweredCount: 0, urgent: false, held: false }), 'now')
  t.is(policy({ readyCount: 1, unansweredCount: 5, urgent: false, held: false }), 'turn')
  t.is(policy({ readyCount: 64, unansweredCount: 5, urgent: false, held: false }), 'now')
  t.is(policy({ readyCount: 1, unansweredCount: 5, urgent: true, held: false }), 'now')
})

test('policies: for adaptive a quarter of what is in flight is a crowd, 8 at least and 64 at most', (t) => {
  const policy = adaptive()
  const crowdOf = (inFlightCount: number): number => {
    for (let readyCount = 1; ; readyCount++) {
      const load = { readyCount, unansweredCount: inFlightCount - readyCount, urgent: false, held: false }
      if (policy(load) === 'now') return readyCount
    }
  }
  t.deepEqual([4, 20, 32, 36, 128, 256, 1024].map(crowdOf), [4, 8, 8, 9, 32, 64, 64])
})

/** What a policy decides when answers of so many at a time get ready; a held group ends when the list says `expiry`. */
function decisions(policy: SuppressionPolicy, steps: readonly (number | 'expiry')[]): Hold[] {
  let readyCount = 0
  let held = false
  return steps.flatMap((step) => {
    if (step === 'expiry') {
      readyCount = 0
      held = false
      return []
    }
    readyCount += step
    const hold = policy({ readyCount, unansweredCount: 0, urgent: false, held })
    held = hold !== 'now'
    if (!held) readyCount = 0
    return [hold]
  })
}
const ones = (count: number): readonly number[] => Array.from({ length: count }, () => 1)

test('policies: anticipate holds ever more rarely when no other answer ever comes', (t) => {
  const policy = anticipate({ holdMicrosMax: 50 })
  const perTry = decisions(policy, [...ones(129), 1, 'expiry', ...ones(256), 1, 1, 'expiry', ...ones(512)])
  t.is(perTry.filter((hold) => hold !== 'now').length, 2)
  t.deepEqual([perTry[129], perTry[387]], [50, 50])
})

test('policies: anticipate gathers ever more as long as they come, and two thirds of what came at last', (t) => {
  const policy = anticipate({ countMax: 64, holdMicrosMax: 50 })
  decisions(policy, ones(129))
  // Two come within a hold, then four, then eight; of the next sixteen only ten.
  t.deepEqual(decisions(policy, ones(2)), [50, 'now'])
  t.deepEqual(decisions(policy, ones(4)).slice(-2), [50, 'now'])
  t.deepEqual(decisions(policy, ones(8)).slice(-2), [50, 'now'])
  t.deepEqual(decisions(policy, [...ones(10), 'expiry']).slice(-1), [50])
  for (let round = 0; round < 2; round++) {
    t.deepEqual(decisions(policy, ones(7)), [50, 50, 50, 50, 50, 50, 'now'])
  }
})

test('policies: anticipate never waits for more than it may gather, nor with what is urgent', (t) => {
  const policy = anticipate({ countMax: 4, holdMicrosMax: 50 })
  decisions(policy, ones(129 + 2 + 4 + 4))
  t.deepEqual(decisions(policy, ones(8)), [50, 50, 50, 'now', 50, 50, 50, 'now'])
  t.is(policy({ readyCount: 1, unansweredCount: 0, urgent: true, held: false }), 'now')
})

const refused = test.macro({
  exec(t, options: { countMax: number; holdMicrosMax: number }, name: string) {
    t.throws(() => coalesce(options), { instanceOf: RangeError, message: new RegExp(`\`${name}\``) })
  },
  title: (_provided, options) => `policies: coalesce refuses ${JSON.stringify(options)}`,
})
test(refused, { countMax: 0, holdMicrosMax: 1 }, 'countMax')
test(refused, { countMax: 1.5, holdMicrosMax: 1 }, 'countMax')
test(refused, { countMax: 1, holdMicrosMax: -1 }, 'holdMicrosMax')
test(refused, { countMax: 1, holdMicrosMax: Number.NaN }, 'holdMicrosMax')

// ---- the spine --------------------------------------------------------------------------------------------

const spine = {
  suppression: immediate(),
  creditCountMax: 1000,
  budgetCountMax: 1000,
  requestTimeoutMs: 0,
}

test('serveQueue: looks at the ring when it is subscribed to, without any kick', (t) => {
  const queue = new FakeQueue(3)
  serveQueue(queue, NEVER, (io) => io.ok(), spine).subscribe()
  t.is(queue.publishedCount, 3)
  t.true(queue.armed)
})

test('serveQueue: a batch of synchronous answers is one take and one publish that re-arms', (t) => {
  const queue = new FakeQueue(4)
  serveQueue(queue, NEVER, (io) => io.ok(), spine).subscribe()
  t.deepEqual(queue.takenCounts, [4])
  t.is(queue.rearmCount, 1)
})

test('serveQueue: credits that come back wake the drain, so that no visible request is left behind', async (t) => {
  const queue = new FakeQueue(50)
  const handler = (io: RingRequest): Answer => Promise.resolve().then(() => io.ok())
  serveQueue(queue, NEVER, handler, { ...spine, creditCountMax: 3 }).subscribe()
  await new Promise((resolve) => setTimeout(resolve, 20))
  t.is(queue.publishedCount, 50)
  t.true(queue.armed)
})

test('serveQueue: a signal may be put off while batches are taken, and is settled before nothing more is', (t) => {
  const queue = new FakeQueue(8)
  const kicks = new Subject<void>()
  let settledEarly = false
  const handler = (io: RingRequest) => {
    settledEarly ||= queue.settledCount > 0
    return io.ok()
  }
  serveQueue(queue, kicks, handler, spine).subscribe()
  t.deepEqual(queue.deferrals, [true, true])
  t.false(settledEarly)
  t.is(queue.settledCount, 1)
})

test('serveQueue: a signal for an answer that an event brings is never put off: nobody is about to take more', async (t) => {
  const queue = new FakeQueue(1)
  const handler = (io: RingRequest): Answer => new Promise((resolve) => setImmediate(() => resolve(io.ok())))
  serveQueue(queue, NEVER, handler, spine).subscribe()
  await afterEvents()
  t.deepEqual(queue.deferrals, [false])
})

for (const [what, handler] of [
  ['an async function', async (io: RingRequest) => io.ok()],
  [
    'a chain of promises',
    async (io: RingRequest) => {
      for (let count = 0; count < 9; count++) await undefined
      return io.ok()
    },
  ],
] as const) {
  test(`serveQueue: ${what} that waits for no event is served without a kick, with one publish a batch`, async (t) => {
    const queue = new FakeQueue(10)
    const publishedCounts: number[] = []
    serveQueue(queue, NEVER, handler, spine).subscribe(({ count }) => publishedCounts.push(count))
    t.deepEqual([queue.takenCounts, queue.rearmCount], [[4], 0])
    await afterMicrotasks()
    t.deepEqual(queue.takenCounts, [4, 4, 2])
    t.deepEqual(publishedCounts, [4, 4, 2])
    t.deepEqual(queue.deferrals, [true, true, true])
    t.deepEqual([queue.rearmCount, queue.settledCount, queue.armed], [publishedCounts.length, 1, true])
  })
}

test('serveQueue: promises that only an event settles have kicks asked for once, before the event loop goes on', async (t) => {
  const queue = new FakeQueue(3)
  serveQueue(queue, NEVER, () => new Promise(() => {}), spine).subscribe()
  t.false(queue.armed)
  await afterMicrotasks()
  t.deepEqual(queue.takenCounts, [3, 0])
  t.deepEqual([queue.rearmCount, queue.armed], [1, true])
})

test('serveQueue: promises are waited for rarely while only events settle them, and always once they settle at once', async (t) => {
  const queue = new FakeQueue()
  const kicks = new Subject<void>()
  let isSlow = true
  const handler = (io: RingRequest): Answer => (isSlow ? new Promise(() => {}) : Promise.resolve(io.ok()))
  serveQueue(queue, kicks, handler, spine).subscribe()
  /** True for each of so many batches that kicks were asked for without waiting. */
  const armedAtOnce = async (count: number): Promise<boolean[]> => {
    const seen: boolean[] = []
    for (let batch = 0; batch < count; batch++) {
      queue.visibleCount = 1
      kicks.next()
      seen.push(queue.armed)
      await afterMicrotasks()
      t.true(queue.armed)
    }
    return seen
  }
  const sixteen = new Array<boolean>(16).fill(true)
  t.deepEqual(await armedAtOnce(34), [false, ...sixteen, false, ...sixteen])
  isSlow = false
  t.deepEqual(await armedAtOnce(5), new Array<boolean>(5).fill(false))
})

test('serveQueue: a kick that comes while promises settle is not lost, though the queue has asked for kicks by then', async (t) => {
  const queue = new FakeQueue(3)
  const kicks = new Subject<void>()
  const armed: boolean[] = []
  serveQueue(queue, kicks, async (io) => io.ok(), spine).subscribe(() => {
    armed.push(queue.armed)
    if (armed.length > 1) return
    // Such as the new eventfd of a front-end, for which the kick of the old one was given up.
    queue.visibleCount = 2
    queueMicrotask(() => kicks.next())
  })
  await afterMicrotasks()
  t.deepEqual(queue.takenCounts, [3, 2])
  t.deepEqual(armed, [true, true])
})

test('serveQueue: control: an observable that answers later has kicks asked for at once', (t) => {
  const queue = new FakeQueue(2)
  serveQueue(queue, NEVER, () => NEVER, spine).subscribe()
  t.true(queue.armed)
})

test('serveQueue: promises that settle at once take no more than the budget in a turn of the event loop', async (t) => {
  const queue = new FakeQueue(100)
  const scheduled: (() => void)[] = []
  const scheduler = {
    now: () => 0,
    schedule: (work: () => void) => {
      scheduled.push(work)
      return new Subscription()
    },
  }
  serveQueue(queue, NEVER, async (io) => io.ok(), {
    ...spine,
    budgetCountMax: 12,
    scheduler: scheduler as never,
  }).subscribe()
  await afterMicrotasks()
  t.deepEqual([queue.publishedCount, scheduled.length, queue.settledCount], [12, 1, 1])
  scheduled[0]!()
  await afterMicrotasks()
  t.deepEqual([queue.publishedCount, scheduled.length, queue.settledCount], [24, 2, 2])
})

for (const end of ['unsubscribed', 'completed', 'broken'] as const) {
  test(`serveQueue: ${end} while promises of a batch settle, it takes nothing more and settles what was put off`, async (t) => {
    const queue = new FakeQueue(8)
    const kicks = new Subject<void>()
    let ended = false
    const run = serveQueue(queue, kicks, async (io) => io.ok(), spine).subscribe({
      next: () => {
        if (end === 'completed') kicks.complete()
        if (end === 'broken') kicks.error(new HushringError('ERR_DOORBELL'))
        if (end === 'unsubscribed') run.unsubscribe()
      },
      complete: () => {
        ended = true
      },
      error: () => {},
    })
    await afterMicrotasks()
    t.deepEqual(queue.takenCounts, [4])
    t.deepEqual([queue.settledCount, ended], [1, end === 'completed'])
  })
}

for (const [what, stops] of [
  ['the budget', { budgetCountMax: 4 }],
  ['the credits', { creditCountMax: 4 }],
] as const) {
  test(`serveQueue: what was put off is settled when ${what} end in the middle`, (t) => {
    const queue = new FakeQueue(8)
    const later = new Subject<Completion>()
    let count = 0
    const handler = (io: RingRequest) => (++count <= 4 ? io.ok() : later)
    serveQueue(queue, NEVER, handler, { ...spine, ...stops }).subscribe()
    t.is(queue.settledCount, 1)
  })
}

test('serveQueue: what was put off is settled when the queue breaks and when a handler stops it', (t) => {
  for (const end of ['breaks', 'stops'] as const) {
    const queue = new FakeQueue(8)
    const kicks = new Subject<void>()
    let count = 0
    const handler = (io: RingRequest) => {
      if (++count === 5 && end === 'breaks')
        queue.take = () => {
          throw new HushringError('ERR_RING_AVAIL_INDEX')
        }
      if (count === 5 && end === 'stops') kicks.complete()
      return io.ok()
    }
    serveQueue(queue, kicks, handler, spine).subscribe({ error: () => {} })
    t.is(queue.settledCount, 1, end)
  }
})

test('serveQueue: completing the kicks drains: nothing more is taken, everything taken is published', async (t) => {
  const queue = new FakeQueue(2)
  const kicks = new Subject<void>()
  const settle: (() => void)[] = []
  const handler = (io: RingRequest): Answer => new Promise((resolve) => settle.push(() => resolve(io.ok())))
  let completed = false
  serveQueue(queue, kicks, handler, spine).subscribe({
    complete: () => {
      completed = true
    },
  })
  kicks.complete()
  queue.visibleCount = 5
  t.false(completed)
  for (const one of settle) one()
  await new Promise((resolve) => setImmediate(resolve))
  t.true(completed)
  t.is(queue.publishedCount, 2)
  t.is(queue.visibleCount, 5)
})

test('serveQueue: a handler that stops its own queue is still answered and published', (t) => {
  const queue = new FakeQueue(1)
  const kicks = new Subject<void>()
  const handler = (io: RingRequest): Answer => {
    kicks.complete()
    return io.ok()
  }
  let completed = false
  serveQueue(queue, kicks, handler, spine).subscribe({
    complete: () => {
      completed = true
    },
  })
  t.is(queue.publishedCount, 1)
  t.true(completed)
})

test('serveQueue: without the waker of the spine the same load is left behind, which the tests above would see', async (t) => {
  const queue = new FakeQueue(50)
  const handler = (io: RingRequest): Answer => Promise.resolve().then(() => io.ok())
  of(undefined)
    .pipe(drain(queue, { ...ample, creditCountMax: 3 }), answer(queue, handler, noDeadline))
    .subscribe(() => queue.publish())
  await new Promise((resolve) => setTimeout(resolve, 20))
  t.true(queue.publishedCount < 50)
})

/** When no microtask is left, nor anything that waits for that. */
async function afterMicrotasks(): Promise<void> {
  for (let count = 0; count < 20; count++) await new Promise<void>((resolve) => process.nextTick(resolve))
}

async function afterEvents(): Promise<void> {
  for (let count = 0; count < 5; count++) await new Promise((resolve) => setImmediate(resolve))
}

function counted(batches: Observable<Batch>): Observable<number> {
  return new Observable((subscriber) =>
    batches.subscribe({
      next: (batch) => subscriber.next(batch.count),
      error: (error) => subscriber.error(error),
      complete: () => subscriber.complete(),
    }),
  )
}

function delayed(scheduler: TestScheduler, delayMs: number): TestScheduler['schedule'] {
  return ((work, _delay, state) =>
    scheduler.schedule(
      function (this, value) {
        work.call(this as never, value)
      },
      delayMs,
      state,
    )) as TestScheduler['schedule']
}
