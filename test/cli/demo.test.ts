import test, { type ExecutionContext } from 'ava'
import { type TcmuDemoResult, tcmuDemonstration } from '../../src/cli/demo-tcmu.ts'
import { virtioDemonstration } from '../../src/cli/demo-virtio.ts'
import { type DemoFigures, type Demonstration, runDemonstration } from '../../src/cli/demonstration.ts'
import { noProgress, type ProgressView } from '../../src/cli/progress.ts'
import { TcmuKernel } from '../../src/testing/index.ts'
import type { LoadResult, LoopbackOptions, loopback } from '../../src/transport/loopback.ts'
import { hushring } from '../helpers/back-ends.ts'
import { run } from '../helpers/processes.ts'

/** Figures that are right, of one way of any demonstration. */
const RIGHT = {
  requests: 100_000,
  elapsedMs: 1000,
  iops: 100_000,
  p50Micros: 12.34,
  p99Micros: 56.78,
  p999Micros: 90.12,
  lostNotifications: 0,
  mismatchedBytes: 0,
  verifiedBytes: 2 ** 30,
  failedRequests: 0,
}

/** Runs a demonstration whose loads end at once. */
async function outcomeOf<Figures extends DemoFigures>(demonstration: Demonstration<Figures>, json = false) {
  let output = ''
  const status = await runDemonstration(demonstration, {
    durationMs: 1000,
    json,
    progress: noProgress,
    writeOutput(text) {
      output += text
    },
  })
  return { status, output }
}

// ---- What every demonstration has --------------------------------------------------------------------------------

/** Two ways, the second of which measures `change`. */
function demonstrationWith(change: Partial<DemoFigures>): Demonstration<DemoFigures> {
  return {
    introduction: 'What is compared.',
    ways: [
      { name: 'one', run: async () => RIGHT },
      { name: 'other', run: async () => ({ ...RIGHT, ...change }) },
    ],
    columns: [{ heading: 'requests', cell: ({ requests }) => String(requests) }],
  }
}

test('a demonstration ends with a table of its ways and a verdict', async (t) => {
  const { status, output } = await outcomeOf(demonstrationWith({}))
  t.is(status, 0)
  t.regex(output, /^\nWhat is compared\.\n\n +IOPS +p50 µs +p99 µs +p99\.9 µs +requests\n/)
  t.regex(output, /one +100,000 +12\.3 +56\.8 +90\.1 +100000\nother +100,000/)
  t.regex(
    output,
    /All is well: 2,048 MiB read back and compared, 0 bytes differ, 0 requests failed, 0 wake-ups lost\./,
  )
})

const isWrong = test.macro({
  async exec(t, change: Partial<DemoFigures>) {
    const { status, output } = await outcomeOf(demonstrationWith(change))
    t.is(status, 1)
    t.regex(output, /SOMETHING IS WRONG/)
    t.false(JSON.parse((await outcomeOf(demonstrationWith(change), true)).output).ok)
  },
  title: (_, change) => `the demo fails with ${JSON.stringify(change)}`,
})
test(isWrong, { lostNotifications: 1 })
test(isWrong, { mismatchedBytes: 1 })
test(isWrong, { failedRequests: 1 })
test(isWrong, { requests: 0 })
test(isWrong, { verifiedBytes: 0 })

test('progress has a part for each way, which ends when the way fails', async (t) => {
  const told: string[] = []
  const progress: ProgressView = {
    begin: (part) => told.push(`begin ${part}`),
    update: (fraction, note) => told.push(`${fraction} ${note}`),
    end: () => told.push('end'),
  }
  const demonstration: Demonstration<DemoFigures> = {
    ...demonstrationWith({}),
    ways: [
      {
        name: 'one',
        run: async (durationMs, onProgress) => {
          onProgress({ requests: 1234, elapsedMs: durationMs / 4 })
          return RIGHT
        },
      },
      { name: 'other', run: () => Promise.reject(new Error('stuck')) },
    ],
  }
  const running = runDemonstration(demonstration, {
    durationMs: 1000,
    json: false,
    progress,
    writeOutput: () => t.fail(),
  })
  await t.throwsAsync(running, { message: 'stuck' })
  t.deepEqual(told, ['begin one  ', '0.25 1,234 requests', 'end', 'begin other', 'end'])
})

// ---- Over a virtqueue --------------------------------------------------------------------------------------------

const LOOPBACK_FIGURES: LoadResult = {
  ...RIGHT,
  kicks: 1000,
  kicksSuppressed: 99_000,
  signals: 500,
  signalsSuppressed: 99_500,
  batches: 5000,
  nativeCalls: 10_000,
}

test('the demo runs three ways of notification', async (t) => {
  const connected: LoopbackOptions[] = []
  let closed = 0
  const connect = async (options: LoopbackOptions) => {
    connected.push(options)
    return { runLoad: async () => LOOPBACK_FIGURES, close: async () => void closed++ }
  }
  const { output } = await outcomeOf(virtioDemonstration(connect as unknown as typeof loopback.connect))
  t.deepEqual(
    connected.map(({ notification }) => notification),
    ['none', 'flags', 'event-idx'],
  )
  t.is(closed, 3)
  t.regex(output, /IOPS +p50 µs +p99 µs +p99\.9 µs +kicks\/1,000 +signals\/1,000 +suppressed +lost\n/)
  t.regex(output, /flags +100,000 +12\.3 +56\.8 +90\.1 +10\.0 +5\.0 +198,500 +0\n/)
})

test('hushring demo --json measures all three ways, loses no wake-up and finds no wrong byte', async (t) => {
  const { ok, ways } = JSON.parse(String(await run([...hushring, 'demo', '--seconds', '1', '--json'], 60)))
  t.true(ok)
  t.deepEqual(
    ways.map(({ name }: LoadResult & { name: string }) => name),
    ['no suppression', 'flags', 'EVENT_IDX, batching'],
  )
})

// ---- Over TCMU ---------------------------------------------------------------------------------------------------

/** A kernel whose loads are replaced. */
function kernelWith(t: ExecutionContext, runLoad: TcmuKernel['runLoad']): TcmuKernel {
  const kernel = new TcmuKernel()
  t.teardown(() => kernel.close())
  return Object.assign(kernel, { runLoad })
}

test('the demo over TCMU runs three ways of ringing the doorbell', async (t) => {
  const load = async () => ({ ...RIGHT, doorbells: 3125, events: 500 })
  const kernels: TcmuKernel[] = []
  const { status, output } = await outcomeOf(
    tcmuDemonstration(() => {
      const kernel = kernelWith(t, load)
      kernels.push(kernel)
      return kernel
    }),
  )
  t.is(status, 0)
  t.regex(output, /IOPS +p50 µs +p99 µs +p99\.9 µs +doorbells\/1,000 +uio reads\/1,000 +verified MiB\n/)
  for (const way of ['immediate', 'coalesce:32,50', 'adaptive']) {
    t.regex(output, new RegExp(`${way} +100,000 +12\\.3 +56\\.8 +90\\.1 +31\\.3 +0\\.0 +1,024\n`))
  }
  t.is(kernels.length, 3)
  for (const kernel of kernels) t.throws(() => kernel.openPort(), { code: 'ERR_CLOSED' })
})

test('a load over TCMU that comes to a standstill ends the demo', async (t) => {
  const stuck = tcmuDemonstration(() => kernelWith(t, () => new Promise(() => {})))
  await t.throwsAsync(outcomeOf(stuck), { message: /no command came for 2000 ms/ })
})

test('a ring that breaks under the load ends the demo', async (t) => {
  const broken = tcmuDemonstration(() => {
    const kernel = kernelWith(t, () => {
      kernel.publishHead(4)
      return new Promise(() => {})
    })
    return kernel
  })
  await t.throwsAsync(outcomeOf(broken), { code: 'ERR_TCMU_HEAD' })
})

test('hushring demo --tcmu --json verifies every byte, and doorbells are what the ways differ in', async (t) => {
  const output = await run([...hushring, 'demo', '--tcmu', '--seconds', '1', '--json'], 60)
  const { ok, ways } = JSON.parse(String(output)) as {
    ok: boolean
    ways: (TcmuDemoResult & { name: string })[]
  }
  t.log(String(output))
  t.true(ok)
  const doorbellsPerThousand = Object.fromEntries(
    ways.map(({ name, doorbells, requests }) => [name, (doorbells * 1000) / requests]),
  )
  t.deepEqual(Object.keys(doorbellsPerThousand), ['immediate', 'coalesce:32,50', 'adaptive'])
  t.true(doorbellsPerThousand.immediate! > 500)
  t.true(doorbellsPerThousand['coalesce:32,50']! < 100)
  // It learns what to wait for, which takes longer on a busy machine.
  t.true(doorbellsPerThousand.adaptive! < doorbellsPerThousand.immediate! / 3)
})
