import test from 'ava'
import { Later } from '../../src/ring/later.ts'

/** What a promise comes to, from the moment that it is told. */
function outcomesOf(promise: PromiseLike<unknown>): unknown[] {
  const outcomes: unknown[] = []
  promise.then(
    (value) => outcomes.push(value),
    (error) => outcomes.push(error),
  )
  return outcomes
}

test('later: a listener is told within the call that settles it, and not in a microtask', async (t) => {
  const [later, rejected] = [new Later<number>(), new Later<number>()]
  const [outcomes, errors] = [outcomesOf(later), outcomesOf(rejected)]
  later.fulfill(7)
  rejected.reject('boom')
  t.deepEqual([outcomes, errors], [[7], ['boom']])
  // The control: a promise tells nobody before its turn comes.
  const promised = outcomesOf(Promise.resolve(7))
  t.deepEqual(promised, [])
  await Promise.resolve()
  t.deepEqual(promised, [7])
})

test('later: only the first time that it is settled counts', (t) => {
  const later = new Later<number>()
  const outcomes = outcomesOf(later)
  later.fulfill(1)
  later.fulfill(2)
  later.reject('boom')
  t.deepEqual([outcomes, outcomesOf(later)], [[1], [1]])
})

test('later: who listens to a settled one is told at once', (t) => {
  const [later, rejected] = [new Later<number>(), new Later<number>()]
  later.fulfill(7)
  rejected.reject('boom')
  t.deepEqual([outcomesOf(later), outcomesOf(rejected)], [[7], ['boom']])
})

test('later: several listeners are told in their order, each once', (t) => {
  const [later, rejected] = [new Later<number>(), new Later<number>()]
  const told: string[] = []
  for (const name of ['first', 'second', 'third']) {
    later.then((value) => told.push(`${name} ${value}`))
    rejected.then(undefined, (error) => told.push(`${name} ${error}`))
  }
  later.fulfill(7)
  rejected.reject('boom')
  t.deepEqual(told, ['first 7', 'second 7', 'third 7', 'first boom', 'second boom', 'third boom'])
})

test('later: what then makes of a value or an error goes on, and what has no function passes', (t) => {
  const [later, rejected] = [new Later<number>(), new Later<number>()]
  const outcomes = [
    later.then((value) => value + 1),
    later.then().then((value) => value + 2),
    rejected.then(undefined, (error) => `caught ${error}`),
    rejected.then(() => 'not called'),
  ].map(outcomesOf)
  later.fulfill(7)
  rejected.reject('boom')
  t.deepEqual(outcomes, [[8], [9], ['caught boom'], ['boom']])
})

test('later: what a function of then throws is an error of the next one, and of nobody else', (t) => {
  const later = new Later<number>()
  const thrown = outcomesOf(
    later.then(() => {
      throw 'boom'
    }),
  )
  const other = outcomesOf(later)
  t.notThrows(() => later.fulfill(7))
  t.deepEqual([thrown, other], [['boom'], [7]])
})

test('later: it becomes what a promise comes to that a function of then returns', async (t) => {
  const [later, inner] = [new Later<number>(), new Later<string>()]
  const outcomes = outcomesOf(later.then(() => inner))
  later.fulfill(7)
  t.deepEqual(outcomes, [])
  inner.fulfill('inner')
  t.deepEqual(outcomes, ['inner'])
  t.is(await later.then(async (value) => value + 1), 8)
  await t.throwsAsync(async () => later.then(() => Promise.reject(new Error('boom'))), { message: 'boom' })
})

test('later: a thenable that throws is an error', (t) => {
  const later = new Later<number>()
  const outcomes = outcomesOf(
    later.then(() => ({
      // biome-ignore lint/suspicious/noThenProperty: the thenable under test
      then(): never {
        throw 'boom'
      },
    })),
  )
  later.fulfill(7)
  t.deepEqual(outcomes, ['boom'])
})

test('later: a promise that cannot be looked at is an error of what follows', (t) => {
  const later = new Later<number>()
  const outcomes = outcomesOf(
    later.then(() => ({
      // biome-ignore lint/suspicious/noThenProperty: a hostile thenable is the subject of this test.
      get then() {
        throw 'boom'
      },
    })),
  )
  later.fulfill(7)
  t.deepEqual(outcomes, ['boom'])
})

test('later: it is through with a request unless a promise of somebody else had a part in it', async (t) => {
  const source = new Later<number>()
  const follows = (next: PromiseLike<number> | number): Later<number> =>
    source.then(() => next).then((value) => value) as Later<number>
  const another = new Later<number>()
  const cases = [
    follows(1),
    follows(another.then()),
    follows(Promise.resolve(1)),
    follows(follows(Promise.resolve(1))),
  ]
  source.fulfill(7)
  another.fulfill(8)
  await new Promise(setImmediate)
  t.deepEqual(
    cases.map(({ isThrough }) => isThrough),
    [true, true, false, false],
  )
})
