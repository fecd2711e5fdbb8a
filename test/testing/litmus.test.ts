import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { native } from '../../src/native.ts'
import { LITMUS_TESTS, type LitmusRun, litmus } from '../../src/testing/index.ts'
import { runLitmusTest, verdictOf } from '../../src/testing/litmus.ts'
import { openFdCount } from '../helpers/open-fds.ts'

const onTwoCpus = native.usableCpuCount() > 1 ? test.serial : test.skip

/** Runs of every test: `change` says what is not as it should be. */
function runs(change: (run: LitmusRun) => Partial<LitmusRun> = () => ({})): LitmusRun[] {
  return LITMUS_TESTS.map((litmusTest): LitmusRun => {
    const run = {
      ...litmusTest,
      rounds: 1000,
      lost: litmusTest.weakened ? 1 : 0,
      firstLossMs: 1,
      elapsedMs: 1,
    }
    return { ...run, ...change(run) }
  })
}

test('each weakened build must lose and nothing may be lost as shipped', (t) => {
  t.is(verdictOf(runs()), 'nothing-lost')
  for (const { experiment, ordering, suppression, weakened } of LITMUS_TESTS) {
    const only = (change: Partial<LitmusRun>) =>
      verdictOf(
        runs((run) =>
          run.experiment === experiment &&
          run.ordering === ordering &&
          run.suppression === suppression &&
          run.weakened === weakened
            ? change
            : {},
        ),
      )
    if (weakened) t.is(only({ lost: 0 }), 'inconclusive')
    else t.is(only({ lost: 1 }), 'lost')
    if (!weakened) t.is(only({ rounds: 0 }), 'inconclusive')
  }
})

test('a loss as shipped is told even when a weakened build lost nothing', (t) => {
  t.is(verdictOf(runs(({ weakened }) => ({ lost: weakened ? 0 : 1 }))), 'lost')
})

test('every ordering is tested in both ways of suppression, weakened and as shipped', (t) => {
  const names = LITMUS_TESTS.map(
    ({ experiment, ordering, suppression, weakened }) =>
      `${experiment} ${ordering} ${suppression}${weakened ? ' weakened' : ''}`,
  )
  t.is(new Set(names).size, 16)
  for (const ordering of ['F2', 'F4', 'F5']) {
    for (const suppression of ['event-idx', 'flags']) {
      t.true(names.includes(`ring ${ordering} ${suppression} weakened`))
    }
  }
})

onTwoCpus('litmus() runs every test once, tells how far it is, and loses nothing as shipped', async (t) => {
  const fractions: number[] = []
  const { verdict, runs } = await litmus({
    durationMs: 500,
    onProgress: (_run, fraction) => fractions.push(fraction),
  })
  // How much is lost without the barriers depends on what else the machine does.
  t.true(verdict === 'nothing-lost' || verdict === 'inconclusive')
  t.deepEqual(
    runs.map(({ experiment, ordering, suppression, weakened }) => ({
      experiment,
      ordering,
      suppression,
      weakened,
    })),
    LITMUS_TESTS,
  )
  t.is(fractions.at(-1), 1)
  t.deepEqual(
    fractions,
    fractions.toSorted((one, other) => one - other),
  )
})

onTwoCpus('litmus() ends when it is aborted, and leaves no descriptor behind', async (t) => {
  const before = openFdCount()
  for (const experiment of ['paced', 'ring'] as const) {
    const reason = new Error('enough')
    const controller = new AbortController()
    const running = runLitmusTest(
      { experiment, ordering: 'F2', suppression: 'flags', weakened: false },
      { durationMs: 60 * 60 * 1000 },
      { signal: controller.signal },
    )
    await sleep(10)
    controller.abort(reason)
    t.is(await t.throwsAsync(running), reason)
    await t.throwsAsync(litmus({ signal: controller.signal }), { is: reason })
  }
  t.is(openFdCount(), before)
})

test('options that are wrong are refused by name', async (t) => {
  await t.throwsAsync(litmus({ durationMs: 1 }), { code: 'ERR_OPTION_RANGE', message: /durationMs/ })
  await t.throwsAsync(litmus({ seconds: 1 } as object), { code: 'ERR_OPTION_TYPE', message: /seconds/ })
  const options = {
    wholeRing: false,
    step: 2,
    eventIdx: true,
    weakened: true,
    roundCountMax: 0,
    lostCountMax: 0,
    durationMs: 1,
  }
  t.throws(() => native.createLitmus(options), { code: 'ERR_OPTION_RANGE', message: /`step`/ })
  t.throws(() => native.createLitmus({ ...options, step: 3 }), { code: 'ERR_OPTION_RANGE' })
})
