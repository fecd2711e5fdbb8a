import { readFileSync } from 'node:fs'
import test from 'ava'
import { textReport } from '../../src/cli/litmus.ts'
import { native } from '../../src/native.ts'
import { LITMUS_TESTS, type LitmusRun, type LitmusVerdict } from '../../src/testing/index.ts'
import { hushring } from '../helpers/back-ends.ts'
import { start } from '../helpers/processes.ts'

const RUNS = LITMUS_TESTS.map(
  (litmusTest): LitmusRun =>
    litmusTest.weakened
      ? { ...litmusTest, rounds: 2_000_000, lost: 40_000, firstLossMs: 1.23, elapsedMs: 300 }
      : { ...litmusTest, rounds: 5_000_000, lost: 0, firstLossMs: undefined, elapsedMs: 900 },
)

/** Runs the command. @returns its exit status and what it wrote to stdout */
async function run(...command: string[]): Promise<{ status: number; stdout: string }> {
  const running = start(command, 60)
  const status = await running.exitStatus
  return { status, stdout: running.stdout() }
}

test('the report has both directions and both ways of suppression, weakened and as shipped', (t) => {
  const text = textReport({ verdict: 'nothing-lost', runs: RUNS })
  t.regex(
    text,
    /device signals driver, EVENT_IDX +2,000,000 +40,000 +20,000 +1\.2 ms +0 of 5,000,000 +< 0\.60 per million\n/,
  )
  t.regex(text, /driver kicks device, flags +2,000,000/)
  t.regex(text, /flags, no second look before sleeping +2,000,000 +hung after 1\.2 ms/)
  t.regex(text, /EVENT_IDX, as shipped +5,000,000 +0 of 5,000,000 +< 0\.60 per million\n/)
  t.regex(text, /Nothing was lost as shipped: 0 in 20,000,000 rounds and 10,000,000 requests/)
})

const says = test.macro({
  exec(t, verdict: LitmusVerdict, change: (run: LitmusRun) => Partial<LitmusRun>, text: RegExp) {
    t.regex(textReport({ verdict, runs: RUNS.map((run) => ({ ...run, ...change(run) })) }), text)
  },
  title: (_, verdict) => `the report of the verdict ${verdict} says so`,
})
test(
  says,
  'lost',
  ({ weakened }) => (weakened ? {} : { lost: 1, firstLossMs: 5 }),
  /1 of 5,000,000 +none\n[\s\S]*hung after 5\.0 ms +none\n[\s\S]*A NOTIFICATION WAS LOST as shipped/,
)
test(
  says,
  'inconclusive',
  ({ ordering }) => (ordering === 'F4' ? { lost: 0, firstLossMs: undefined } : {}),
  /COULD NOT SHOW IT: [\s\S]*driver kicks device, EVENT_IDX \(by the clock\); .*\(a whole ring\)/,
)
test(says, 'not-run', () => ({}), /^\nnot run: 1 CPU\./)

const onTwoCpus = native.usableCpuCount() > 1 ? test : test.skip

onTwoCpus('hushring litmus --json runs every test and its status tells the verdict', async (t) => {
  const { status, stdout } = await run(...hushring, 'litmus', '--seconds', '1', '--json')
  const { verdict, runs } = JSON.parse(stdout)
  t.is(runs.length, LITMUS_TESTS.length)
  // On a machine that does much else a weakened build may lose nothing in so short a time.
  t.is(status, verdict === 'nothing-lost' ? 0 : 3)
})

test('hushring litmus on one CPU does not run, and is not a pass', async (t) => {
  const cpu = /^Cpus_allowed_list:\t(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]!
  const { status, stdout } = await run('taskset', '-c', cpu, ...hushring, 'litmus', '--seconds', '1')
  t.is(status, 4)
  t.regex(stdout, /not run: 1 CPU/)
  const json = await run('taskset', '-c', cpu, ...hushring, 'litmus', '--seconds', '1', '--json')
  t.is(json.status, 4)
  t.deepEqual(JSON.parse(json.stdout), { verdict: 'not-run', runs: [] })
})
