import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { benchReport, type Run } from '../../src/cli/bench.ts'
import { type BlockDevice, blockDevice, MiB, memoryDisk, nullDisk, vhostUser } from '../../src/index.ts'
import { loadBlockDevice } from '../../src/testing/index.ts'
import { hushring } from '../helpers/back-ends.ts'
import { start, temporaryDirectory } from '../helpers/processes.ts'

/** Serves a disk in this process. @returns where */
async function serve(t: ExecutionContext, device: BlockDevice, queueCount = 1): Promise<string> {
  const socketPath = join(await temporaryDirectory(t), 'bench.sock')
  const server = await vhostUser.listen({ socketPath, device, queues: { countMax: queueCount } })
  t.teardown(() => server.close())
  return socketPath
}

/** Runs `hushring bench`. @returns its exit status and what it wrote */
async function bench(...words: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const running = start([...hushring, 'bench', ...words], 60)
  const status = await running.exitStatus
  return { status, stdout: running.stdout(), stderr: running.stderr() }
}

test('a load counts what it costs to notify, and verifies every byte', async (t) => {
  const socketPath = await serve(t, memoryDisk({ capacityBytes: 8 * MiB }))
  const result = await loadBlockDevice({
    socketPath,
    durationMs: 200,
    writePercent: 50,
    queueDepth: 16,
    verify: true,
  })
  t.true(result.requests > 100)
  t.is(result.failedRequests + result.mismatchedBytes + result.lostSignals + result.stalls, 0)
  t.true(result.eventIdx)
  t.true(result.kicks > 0 && result.kicks <= result.requests)
  t.true(result.signals > 0 && result.signals <= result.requests)
  t.true(result.p50Micros <= result.p99Micros && result.p99Micros <= result.p999Micros)
  t.true(result.backEndCpuMs! > 0)
})

test('two queues are driven by two threads, each on its part of the disk', async (t) => {
  const socketPath = await serve(t, memoryDisk({ capacityBytes: 8 * MiB }), 2)
  const load = { socketPath, queueDepth: 8, durationMs: 200, writePercent: 50, verify: true }
  const result = await loadBlockDevice({ ...load, queueCount: 2 })
  t.true(result.requests > 0)
  // Two loads on the same blocks would read what the other one wrote.
  t.is(result.failedRequests + result.mismatchedBytes + result.lostSignals + result.stalls, 0)
  await t.throwsAsync(loadBlockDevice({ ...load, queueCount: 3 }), { message: /queueCount.*at most 2/ })
})

test('control: two queues on a disk that forgets what is written are found out', async (t) => {
  const socketPath = await serve(t, nullDisk({ capacityBytes: 8 * MiB }), 2)
  const result = await loadBlockDevice({ socketPath, queueCount: 2, durationMs: 50, verify: true })
  t.true(result.mismatchedBytes > 0)
})

test('a load ends after so many requests, each in so many pieces', async (t) => {
  const socketPath = await serve(t, memoryDisk({ capacityBytes: 8 * MiB }))
  const result = await loadBlockDevice({
    socketPath,
    requestCountMax: 500,
    durationMs: 60_000,
    segmentCount: 126,
    writePercent: 50,
    queueSize: 1024,
    queueDepth: 256,
    verify: true,
  })
  t.is(result.requests, 500)
  t.is(result.failedRequests + result.mismatchedBytes, 0)
  await t.throwsAsync(loadBlockDevice({ socketPath, segmentCount: 127 }), { message: /segmentCount.* 126/ })
  await t.throwsAsync(loadBlockDevice({ socketPath, sequential: true, verify: true }), {
    message: /sequential/,
  })
})

test('without event indices a load is one of flags', async (t) => {
  const socketPath = await serve(t, nullDisk({ capacityBytes: MiB }))
  const result = await loadBlockDevice({ socketPath, durationMs: 50, eventIdx: false })
  t.false(result.eventIdx)
  t.true(result.requests > 0)
})

test('control: a disk that forgets what is written is found out', async (t) => {
  const socketPath = await serve(t, nullDisk({ capacityBytes: 8 * MiB }))
  const result = await loadBlockDevice({ socketPath, durationMs: 50, verify: true })
  t.true(result.mismatchedBytes > 0)
})

test('control: a disk that fails is found out', async (t) => {
  const socketPath = await serve(
    t,
    blockDevice({
      capacityBytes: MiB,
      read() {
        throw new Error('no medium')
      },
    }),
  )
  const result = await loadBlockDevice({ socketPath, durationMs: 50 })
  t.is(result.failedRequests, result.requests)
})

test('a depth that the ring does not have, and an option that does not exist, are refused', async (t) => {
  const socketPath = 'unused'
  await t.throwsAsync(loadBlockDevice({ socketPath, queueDepth: 257 }), { message: /queueDepth.* 256/ })
  await t.throwsAsync(loadBlockDevice({ socketPath, depth: 1 } as never), { message: /queueDepth|depth/ })
})

test('hushring bench prints a row for each depth', async (t) => {
  const socketPath = await serve(t, nullDisk({ capacityBytes: MiB }))
  const { status, stdout, stderr } = await bench('--socket', socketPath, '--depth', '1,4', '--seconds', '1')
  t.is(status, 0, stderr)
  t.regex(stdout, /in flight +IOPS +p50 µs/)
  t.regex(stdout, /^1 +[\d,]+ +[\d.]+/m)
  t.regex(stdout, /^4 +[\d,]+ +[\d.]+/m)
})

test('hushring bench --json prints an object for each depth', async (t) => {
  const socketPath = await serve(t, nullDisk({ capacityBytes: MiB }))
  const { status, stdout } = await bench('--socket', socketPath, '--depth', '1,4', '--seconds', '1', '--json')
  t.is(status, 0)
  const runs = stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
  t.deepEqual(
    runs.map(({ queueDepth }) => queueDepth),
    [1, 4],
  )
})

test('hushring bench fails where nobody listens', async (t) => {
  const { status, stderr } = await bench('--socket', join(await temporaryDirectory(t), 'none.sock'))
  t.is(status, 1)
  t.regex(stderr, /ENOENT/)
})

const run: Run = {
  queueDepth: 32,
  requests: 2_000,
  elapsedMs: 1_000,
  iops: 2_000,
  p50Micros: 10,
  p99Micros: 20,
  p999Micros: 30,
  latencyHistogram: '',
  eventIdx: true,
  kicks: 100,
  signals: 50,
  lostSignals: 0,
  stalls: 0,
  failedRequests: 0,
  mismatchedBytes: 0,
  frontEndCpuMs: 2,
  backEndCpuMs: undefined,
}

test('the report has notifications and CPU time by the request', (t) => {
  t.regex(benchReport([run]), /\n32 +2,000 +10\.0 +20\.0 +30\.0 +50\.0 +25\.0 +– +1\.00$/)
})

const tells = test.macro({
  exec(t, change: Partial<Run>, text: RegExp) {
    t.regex(benchReport([{ ...run, ...change }]), text)
  },
  title: (_, change) => `the report tells of ${JSON.stringify(change)}`,
})
test(tells, { failedRequests: 7 }, /\nwith 32 in flight: 7 requests failed$/)
test(tells, { mismatchedBytes: 512 }, /\nwith 32 in flight: 512 bytes are not what was written$/)
test(tells, { lostSignals: 1 }, /\nwith 32 in flight: 1 signals were lost$/)
test(tells, { stalls: 2 }, /\nwith 32 in flight: nothing was answered for a second, 2 times$/)
