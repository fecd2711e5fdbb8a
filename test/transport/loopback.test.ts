import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { firstValueFrom, lastValueFrom, of, timer } from 'rxjs'
import {
  adaptive,
  type BlockDevice,
  blockDevice,
  coalesce,
  compose,
  entropyDevice,
  immediate,
  type Layer,
  type LoadResult,
  loopback,
  MiB,
  memoryDisk,
  type NotificationMode,
  type SuppressionPolicy,
  virtioDevice,
} from '../../src/index.ts'
import type { Completion } from '../../src/ring/index.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { until } from '../helpers/until.ts'

async function load(
  device: BlockDevice,
  notification: NotificationMode,
  suppression: SuppressionPolicy,
): Promise<LoadResult> {
  const connection = await loopback.connect({ device, notification, suppression, watchdogMs: 10 })
  const result = await connection.runLoad({ durationMs: 300, queueDepth: 16, writePercent: 40, seed: 11 })
  await connection.close()
  return result
}

const delivers = test.macro({
  async exec(t, notification: NotificationMode, suppression: SuppressionPolicy, layer: Layer) {
    const disk = memoryDisk({ capacityBytes: 4 * MiB })
    const result = await load(compose(disk, [layer]), notification, suppression)
    t.true(result.requests > 0)
    t.true(result.verifiedBytes > 0)
    t.like(result, { mismatchedBytes: 0, failedRequests: 0, lostNotifications: 0 })
    await disk.close()
  },
  title: (provided) => `every byte comes back and no wake-up is lost: ${provided}`,
})

const atOnce: Layer = (next) => next
const asPromise: Layer = (next) => async (io) => next(io) as Completion
const asObservable: Layer = (next) => (io) => of(next(io) as Completion)
const outOfOrder: Layer = (next) => (io) =>
  new Promise((resolve) => setTimeout(() => resolve(next(io) as Completion), (io.offsetBytes / 4096) % 3))

test.serial('no suppression', delivers, 'none', immediate(), atOnce)
test.serial('flags', delivers, 'flags', immediate(), atOnce)
test.serial('event indices', delivers, 'event-idx', immediate(), atOnce)
test.serial('adaptive, promises', delivers, 'event-idx', adaptive(), asPromise)
test.serial('flags, observables', delivers, 'flags', adaptive(), asObservable)
test.serial('answers out of order', delivers, 'event-idx', adaptive(), outOfOrder)
test.serial('flags, answers out of order', delivers, 'flags', immediate(), outOfOrder)
const held = coalesce({ countMax: 8, holdMicrosMax: 200 })
test.serial('answers held for 200 µs', delivers, 'event-idx', held, asPromise)

test.serial('a disk that returns wrong bytes is caught by the load', async (t) => {
  const disk = memoryDisk({ capacityBytes: 4 * MiB })
  let countdown = 500
  const forgetful: Layer = (next) => (io) => (io.verb === 'write' && --countdown === 0 ? io.ok() : next(io))
  const result = await load(compose(disk, [forgetful]), 'event-idx', immediate())
  t.true(result.mismatchedBytes > 0)
  await disk.close()
})

test.serial('a disk that fails is seen by the load, and the loopback lives on', async (t) => {
  const failing = blockDevice({ capacityBytes: MiB, read: () => Promise.reject(new Error('EIO')) })
  const connection = await loopback.connect({ device: failing })
  const result = await connection.runLoad({ requestCountMax: 100, durationMs: 0, verify: false })
  t.is(result.failedRequests, result.requests)
  t.is(connection.statsSnapshot().errors, result.requests)
  t.is(connection.statsSnapshot().inFlight, 0)
  await connection.close()
})

test.serial('the statistics tell how large the batches were', async (t) => {
  const disk = memoryDisk({ capacityBytes: MiB })
  const connection = await loopback.connect({ device: disk })
  for (let round = 0; round < 2; round++) await connection.runLoad({ requestCountMax: 200, durationMs: 0 })
  const { batches, batchSizes, publishSizes, requests } = connection.statsSnapshot()
  const sum = (sizes: readonly number[]): number => sizes.reduce((total, count) => total + count, 0)
  t.is(sum(batchSizes), batches)
  t.true(sum(publishSizes) > 0)
  t.true(sum(batchSizes.map((count, log2) => count * 2 ** log2)) <= requests)
  t.true(sum(batchSizes.map((count, log2) => count * 2 ** (log2 + 1))) > requests)
  await connection.close()
  await disk.close()
})

test.serial('a synchronous batch costs two native calls', async (t) => {
  const disk = memoryDisk({ capacityBytes: 4 * MiB })
  const { nativeCalls, batches } = await load(disk, 'event-idx', immediate())
  // A few more: each start looks once, and a wake-up may find an empty ring.
  t.true(nativeCalls / batches < 2.1, `${nativeCalls} calls for ${batches} batches`)
  await disk.close()
})

test.serial('one loopback runs one load after the other', async (t) => {
  const disk = memoryDisk({ capacityBytes: MiB })
  const connection = await loopback.connect({ device: disk })
  for (let round = 0; round < 3; round++) {
    const running = connection.runLoad({ requestCountMax: 500, durationMs: 0 })
    await t.throwsAsync(connection.runLoad(), { code: 'ERR_BUSY' })
    t.like(await running, { mismatchedBytes: 0, lostNotifications: 0 })
  }
  t.is((await firstValueFrom(connection.stats({ everyMs: 10 }))).inFlight, 0)
  await connection.close()
  await t.throwsAsync(connection.runLoad(), { code: 'ERR_CLOSED' })
  await connection.close()
  await disk.close()
})

test.serial('the largest load fits', async (t) => {
  const disk = memoryDisk({ capacityBytes: 512 * MiB })
  const connection = await loopback.connect({ device: disk })
  const largest = { queueDepth: 256, blockBytes: MiB, requestCountMax: 300, durationMs: 0, verify: false }
  t.is((await connection.runLoad(largest)).requests, 300)
  await connection.close()
  await disk.close()
})

test.serial('single requests reach a device of any kind', async (t) => {
  const reverse = virtioDevice({
    deviceId: 63,
    handler(io) {
      const bytes = Buffer.alloc(io.readable.byteLength)
      io.readable.copyTo(bytes)
      return io.ok(io.writable.copyFrom(bytes.reverse()))
    },
  })
  const connection = await loopback.connect({ device: reverse })
  const answers = await Promise.all(['abc', 'de', ''].map((text) => connection.request(Buffer.from(text), 8)))
  t.deepEqual(answers.map(String), ['cba', 'ed', ''])
  await t.throwsAsync(connection.request(Buffer.alloc(0), 0), { code: 'ERR_OPTION_RANGE' })
  await t.throwsAsync(connection.runLoad(), { code: 'ERR_OPTION_TYPE' })
  await connection.close()
})

test.serial('the entropy device fills what it is given', async (t) => {
  const connection = await loopback.connect({ device: entropyDevice() })
  const [one, other] = await Promise.all([0, 1].map(() => connection.request(Buffer.alloc(0), 64)))
  t.is(one!.length, 64)
  t.notDeepEqual(one, other)
  await connection.close()
})

test.serial('a load that is refused leaves the loopback usable and no descriptor behind', async (t) => {
  const disk = memoryDisk({ capacityBytes: MiB })
  const connection = await loopback.connect({ device: disk })
  const before = openFdCount()
  for (let round = 0; round < 20; round++) {
    await t.throwsAsync(connection.runLoad({ seed: -1 }), { instanceOf: RangeError, message: /seed/ })
  }
  t.true(openFdCount() < before + 10)
  t.is((await connection.runLoad({ requestCountMax: 10, durationMs: 0 })).mismatchedBytes, 0)
  await connection.close()
  await disk.close()
})

test.serial('close() delivers what was answered and rejects the rest', async (t) => {
  let calls = 0
  const device = virtioDevice({
    deviceId: 63,
    handler: (io) => (calls++ === 0 ? firstValueFrom(timer(20)).then(() => io.ok(1)) : new Promise(() => {})),
  })
  const connection = await loopback.connect({ device, stopGraceMs: 50 })
  const answered = connection.request(Buffer.from('a'), 1)
  const dropped = connection.request(Buffer.from('b'), 1)
  await until(() => calls === 2)
  const closing = connection.close()
  t.is((await answered).length, 1)
  // The drain gave the second request up; its driver was told before it went.
  t.is((await dropped).length, 0)
  await closing
})

test.serial('a load that is closed before it starts rejects', async (t) => {
  const disk = memoryDisk({ capacityBytes: MiB })
  const connection = await loopback.connect({ device: disk })
  await connection.request(Buffer.alloc(16), 1)
  const load = connection.runLoad()
  await connection.close()
  await t.throwsAsync(load, { code: 'ERR_CLOSED' })
  await disk.close()
})

test.serial('stats() ends with the loopback', async (t) => {
  const disk = memoryDisk({ capacityBytes: MiB })
  const connection = await loopback.connect({ device: disk })
  const ended = lastValueFrom(connection.stats({ everyMs: 10 }), { defaultValue: undefined })
  await connection.close()
  await ended
  t.pass()
  await disk.close()
})

test.serial('close() during a load ends it', async (t) => {
  const disk = memoryDisk({ capacityBytes: MiB })
  const connection = await loopback.connect({ device: disk })
  const running = connection.runLoad({ durationMs: 60_000 })
  await firstValueFrom(timer(50))
  await connection.close()
  t.true((await running).requests >= 0)
  await disk.close()
})

test.serial('a handler that never settles is answered for, and close() does not wait for it', async (t) => {
  const silent = blockDevice({ capacityBytes: MiB, read: () => new Promise(() => {}) })
  const connection = await loopback.connect({ device: silent, requestTimeoutMs: 20 })
  const result = await connection.runLoad({ requestCountMax: 4, queueDepth: 4, durationMs: 0, verify: false })
  t.is(result.failedRequests, 4)
  await connection.close()
})

test.serial('loopbacks leave no file descriptor behind', async (t) => {
  const disk = memoryDisk({ capacityBytes: MiB })
  const once = async (): Promise<void> => {
    const connection = await loopback.connect({ device: disk })
    await connection.runLoad({ requestCountMax: 50, durationMs: 0 })
    await connection.request(Buffer.alloc(16), 1)
    await connection.close()
  }
  await once()
  const before = openFdCount()
  for (let round = 0; round < 20; round++) await once()
  // The process has descriptors of its own that come and go; a leak would show at least once a round.
  t.true(openFdCount() < before + 10)
  await disk.close()
})

const refused = test.macro({
  async exec(t, options: object, name: string) {
    const device = memoryDisk({ capacityBytes: MiB })
    const error = await t.throwsAsync(loopback.connect({ device, ...options } as never))
    t.regex(error!.message, new RegExp(name))
    t.true(error instanceof TypeError || error instanceof RangeError)
  },
  title: (_provided, options) => `connect() refuses ${JSON.stringify(options)} by name`,
})
test(refused, { notification: 'loud' }, 'notification')
test(refused, { queueSize: 100 }, 'queueSize')
test(refused, { queueSize: 65536 }, 'queueSize')
test(refused, { device: {} }, 'device')
test(refused, { devise: 1 }, 'devise')
test(refused, { creditCountMax: 0 }, 'creditCountMax')
test(refused, { features: { eventIdx: false } }, 'features')
test(refused, { logger: {} }, 'logger.error')
test(refused, { suppression: 'adaptive' }, 'suppression')

test.serial('60 workers are terminated in the middle of their traffic', async (t) => {
  const before = openFdCount()
  for (let round = 0; round < 30; round++) {
    const workers = [0, 1].map(() => new Worker(new URL('../helpers/traffic-worker.mjs', import.meta.url)))
    for (const worker of workers) worker.on('error', (error) => t.fail(error.message))
    await Promise.all(workers.map((worker) => once(worker, 'message')))
    await Promise.all(workers.map((worker) => worker.terminate()))
  }
  t.true(openFdCount() < before + 20, `${before} descriptors before, ${openFdCount()} after`)
})
