import test from 'ava'
import { type DemoSurroundings, runDemo } from '../../src/cli/demo.ts'
import { noProgress } from '../../src/cli/progress.ts'
import type { LoadResult, LoopbackOptions, loopback } from '../../src/transport/loopback.ts'
import { hushring } from '../helpers/back-ends.ts'
import { run } from '../helpers/processes.ts'

const GOOD: LoadResult = {
  requests: 100_000,
  elapsedMs: 1000,
  iops: 100_000,
  p50Micros: 12.34,
  p99Micros: 56.78,
  kicks: 1000,
  kicksSuppressed: 99_000,
  signals: 500,
  signalsSuppressed: 99_500,
  batches: 5000,
  nativeCalls: 10_000,
  lostNotifications: 0,
  mismatchedBytes: 0,
  verifiedBytes: 2 ** 30,
  failedRequests: 0,
}

/** A demo over a loopback whose loads end at once with a given result. */
async function demoWith(change: Partial<LoadResult>, json = false) {
  let output = ''
  const connected: LoopbackOptions[] = []
  let closed = 0
  const connect = async (options: LoopbackOptions) => {
    connected.push(options)
    return { runLoad: async () => ({ ...GOOD, ...change }), close: async () => void closed++ }
  }
  const surroundings: DemoSurroundings = {
    connect: connect as unknown as typeof loopback.connect,
    progress: noProgress,
    writeOutput(text) {
      output += text
    },
  }
  const status = await runDemo({ seconds: 1, json }, surroundings)
  return { status, output, closed, ways: connected.map(({ notification }) => notification) }
}

test('the demo runs three ways and ends with a table', async (t) => {
  const { status, output, closed, ways } = await demoWith({})
  t.is(status, 0)
  t.deepEqual(ways, ['none', 'flags', 'event-idx'])
  t.is(closed, 3)
  t.regex(output, /IOPS +p50 µs +p99 µs +kicks\/1,000 +signals\/1,000 +suppressed +lost\n/)
  t.regex(output, /flags +100,000 +12\.3 +56\.8 +10\.0 +5\.0 +198,500 +0\n/)
  t.regex(
    output,
    /All is well: 3,072 MiB read back and compared, 0 bytes differ, 0 requests failed, 0 wake-ups lost\./,
  )
})

const isWrong = test.macro({
  async exec(t, change: Partial<LoadResult>) {
    const { status, output } = await demoWith(change)
    t.is(status, 1)
    t.regex(output, /SOMETHING IS WRONG/)
    t.false(JSON.parse((await demoWith(change, true)).output).ok)
  },
  title: (_, change) => `the demo fails with ${JSON.stringify(change)}`,
})
test(isWrong, { lostNotifications: 1 })
test(isWrong, { mismatchedBytes: 1 })
test(isWrong, { failedRequests: 1 })
test(isWrong, { requests: 0 })
test(isWrong, { verifiedBytes: 0 })

test('hushring demo --json measures all three ways, loses no wake-up and finds no wrong byte', async (t) => {
  const { ok, ways } = JSON.parse(String(await run([...hushring, 'demo', '--seconds', '1', '--json'], 60)))
  t.true(ok)
  t.deepEqual(
    ways.map(({ name }: { name: string }) => name),
    ['no suppression', 'flags', 'EVENT_IDX, batching'],
  )
})
