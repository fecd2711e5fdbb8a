import { closeSync, existsSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { threadId } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import type { ErrorCode } from '../../src/errors.ts'
import { memoryDisk } from '../../src/handlers/index.ts'
import { native } from '../../src/native.ts'
import { immediate } from '../../src/notify/suppression.ts'
import { BlockDriver, BlockRequestType, BlockStatus, SharedMemory } from '../../src/testing/index.ts'
import { type VhostUserOptions, vhostUser } from '../../src/transport/vhost-user/index.ts'
import type { FrontEndRequestName } from '../../src/transport/vhost-user/messages.ts'
import { encodeU64, encodeVringFd, encodeVringState } from '../../src/transport/vhost-user/payloads.ts'
import { FakeGuest } from '../helpers/fake-guest.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { until } from '../helpers/until.ts'
import { type Bench, type Lifetime, listen, start, temporaryFolder } from '../helpers/vhost-user-bench.ts'
import {
  At,
  CAPACITY_BYTES,
  closeGate,
  heldCount,
  openGate,
  sharedDisk,
  type WorkerDiskOptions,
} from '../helpers/worker-disk.ts'

const module = new URL('../helpers/worker-disk.ts', import.meta.url)

/** Serves the disk of worker-disk.ts with two queues on two workers. */
function listenOnWorkers(
  lifetime: Lifetime,
  disk: WorkerDiskOptions,
  options: Partial<VhostUserOptions> = {},
): Promise<Bench> {
  return listen(lifetime, {
    device: { module, options: disk },
    workers: 2,
    queues: { countMax: 2 },
    stopGraceMs: 20,
    ...options,
  })
}

// Threads that compile TypeScript take most of a second to start: what ends no worker shares two of them.
const shared = sharedDisk()
const teardowns: (() => unknown)[] = []
let common: Bench
test.before(async () => {
  const lifetime = { teardown: (end: () => unknown) => void teardowns.unshift(end) }
  common = await listenOnWorkers(lifetime, shared)
})
test.after.always(async () => {
  for (const end of teardowns) await end()
})
test.beforeEach(async () => {
  // The guest of the test before may still be on its way out.
  await until(() => common.events.lastIndexOf('detached') >= common.events.lastIndexOf('attached'))
  common.events.length = 0
  closeGate(shared)
  common.errors.length = 0
  common.log.length = 0
})

/** A guest with two queues, and a disk driver on each. */
async function startOnTwo(
  t: ExecutionContext,
  bench: Bench,
  options: { readonly inflight?: boolean; readonly features?: bigint } = {},
): Promise<{ guest: FakeGuest; disks: readonly [BlockDriver, BlockDriver] }> {
  const guest = await start(t, bench, { queueCount: 2, ...options })
  return { guest, disks: [guest.disk, new BlockDriver(guest.drivers[1]!, guest.memory)] }
}

async function servingThread(disk: BlockDriver): Promise<number> {
  return (await disk.read(At.threadId, 512)).readUInt32LE()
}

const patternOf = (index: number): Buffer => Buffer.alloc(4096, index + 1)

test.serial('two queues are served by two workers, which see one disk, and counted together', async (t) => {
  const fdCount = openFdCount()
  const bench = await listenOnWorkers(t, shared)
  const { guest, disks } = await startOnTwo(t, bench)
  const threads = await Promise.all(disks.map(servingThread))
  t.is(new Set([threadId, ...threads]).size, 3, 'neither is this thread, and they are two')
  const blocks = Array.from({ length: 32 }, (_, index) => index)
  await Promise.all(blocks.map((index) => disks[index % 2]!.write(index * 4096, patternOf(index))))
  // Each block comes back through the other queue.
  const read = await Promise.all(blocks.map((index) => disks[(index + 1) % 2]!.read(index * 4096, 4096)))
  for (const index of blocks) t.deepEqual(read[index], patternOf(index))
  await disks[1].flush()
  t.like(bench.server.statsSnapshot(), {
    requests: 2 + 32 + 32 + 1,
    writes: 32,
    bytesWritten: 32 * 4096,
    flushes: 1,
    errors: 0,
    inFlight: 0,
    lostNotifications: 0,
    brokenQueues: 0,
    connections: 1,
  })
  t.is((await guest.frontEnd.readConfig(0, 8))?.readBigUInt64LE(), BigInt(CAPACITY_BYTES / 512))
  guest.close()
  await until(() => !bench.server.attached)
  await bench.server.close()
  t.like(bench.server.statsSnapshot(), { requests: 67, inFlight: 0 })
  t.deepEqual(bench.errors, [])
  t.is(openFdCount(), fdCount)
})

test.serial('control: with one worker both queues are served by the same thread', async (t) => {
  const bench = await listenOnWorkers(t, shared, { workers: 1 })
  const { disks } = await startOnTwo(t, bench)
  const threads = await Promise.all(disks.map(servingThread))
  t.is(threads[0], threads[1])
  t.not(threads[0], threadId)
})

test.serial('no more workers are started than the device has queues', async (t) => {
  const bench = await listenOnWorkers(t, shared, {
    device: { module, name: 'readyMade' },
    workers: 64,
    queues: { countMax: 1 },
  })
  const guest = await start(t, bench)
  t.is(await guest.frontEnd.queueCount(), 1)
  t.deepEqual(await guest.disk.read(0, 512), Buffer.alloc(512))
})

test.serial('there are as many queues as workers, unless it is said', async (t) => {
  const socketPath = join(temporaryFolder(t), 'default.sock')
  const server = await vhostUser.listen({ socketPath, device: { module, options: shared }, workers: 2 })
  const guest = await FakeGuest.start(socketPath)
  t.is(await guest.frontEnd.queueCount(), 2)
  guest.close()
  await server.close()
})

test.serial('a device given by its module is served in this thread without workers', async (t) => {
  const bench = await listenOnWorkers(t, shared, { workers: 0 })
  const { disks } = await startOnTwo(t, bench)
  t.deepEqual(await Promise.all(disks.map(servingThread)), [threadId, threadId])
})

test.serial('a policy is made in each worker by the function that its module names', async (t) => {
  const suppression = { module, name: 'policy', options: { countMax: 2, holdMicrosMax: 0 } }
  const bench = await listenOnWorkers(t, shared, { suppression })
  const { disks } = await startOnTwo(t, bench)
  await Promise.all(disks.map((disk) => disk.flush()))
  t.is(bench.server.statsSnapshot().requests, 2)
})

// ---- The life of queues ---------------------------------------------------------------------------------------------

test.serial(
  'a queue that is stopped waits for its worker, and the other one goes on meanwhile',
  async (t) => {
    const bench = common
    const { guest, disks } = await startOnTwo(t, bench)
    const held = disks[1].read(At.held, 512)
    await until(() => heldCount(shared) === 1)
    let stoppedAt: number | undefined
    const stopping = guest.frontEnd.stopQueue(1).then((base) => {
      stoppedAt = base
    })
    await disks[0].write(0, patternOf(1))
    t.deepEqual(await disks[0].read(0, 4096), patternOf(1))
    t.is(stoppedAt, undefined, 'its request is still in flight')
    openGate(shared)
    await stopping
    t.is(stoppedAt, 1)
    await held
    await guest.frontEnd.startQueue(1, guest.drivers[1]!, stoppedAt)
    t.deepEqual(await disks[1].read(0, 4096), patternOf(1))
    t.deepEqual(bench.errors, [])
  },
)

test.serial('a disabled queue takes nothing, and a call eventfd may be swapped', async (t) => {
  const bench = common
  const { guest, disks } = await startOnTwo(t, bench)
  await guest.frontEnd.enableQueue(1, false)
  const answer = disks[1].request({ type: BlockRequestType.FLUSH })
  await disks[0].flush()
  t.is(guest.drivers[1]!.inFlightCount, 1)
  const other = native.eventfdCreate()
  const swap = (fd: number): Promise<void> =>
    guest.frontEnd.command('SET_VRING_CALL', encodeVringFd({ index: 1, attached: true }), [fd])
  await swap(other)
  await guest.frontEnd.enableQueue(1, true)
  await swap(guest.drivers[1]!.callFd)
  t.is((await answer).status, BlockStatus.OK)
  native.closeFd(other)
})

test.serial(
  'a reset gives up what is in flight everywhere, and both queues can be set up again',
  async (t) => {
    const bench = common
    const { guest, disks } = await startOnTwo(t, bench)
    for (const disk of disks) void disk.read(At.held, 512)
    await until(() => heldCount(shared) === 2)
    await guest.frontEnd.command('RESET_DEVICE')
    await guest.frontEnd.command('SET_FEATURES', encodeU64(guest.frontEnd.features))
    for (const [index, driver] of guest.drivers.entries()) {
      await guest.frontEnd.startQueue(index, driver, driver.availableIndex)
    }
    await Promise.all(disks.map((disk) => disk.flush()))
    t.is(bench.server.statsSnapshot().inFlight, 0)
    openGate(shared)
  },
)

test.serial('memory that is added and taken away is so for every worker', async (t) => {
  const bench = common
  const { guest, disks } = await startOnTwo(t, bench)
  const more = new SharedMemory({ guestAddress: 1n << 40n, userAddress: 1n << 41n })
  await guest.frontEnd.addMemory(more)
  const inMore = guest.drivers.map((driver) => new BlockDriver(driver, more))
  await inMore[0]!.write(0, patternOf(7))
  // The ring lies in the first memory, the buffers in the second one.
  t.deepEqual(await inMore[1]!.read(0, 4096), patternOf(7))
  await guest.frontEnd.removeMemory(more)
  const lost = await Promise.all(inMore.map((disk) => disk.request({ type: BlockRequestType.FLUSH })))
  t.deepEqual(
    lost.map(({ status, usedBytes }) => [status, usedBytes]),
    [
      [255, 0],
      [255, 0],
    ],
  )
  await Promise.all(disks.map((disk) => disk.flush()))
  more.close()
})

test.serial('what a front-end does wrong is told as without workers', async (t) => {
  const fdCount = openFdCount()
  const bench = common
  const wrong: readonly [ErrorCode, FrontEndRequestName, Buffer][] = [
    ['ERR_VHOST_ORDER', 'SET_VRING_NUM', encodeVringState({ index: 1, num: 64 })],
    ['ERR_VHOST_ORDER', 'SET_VRING_BASE', encodeVringState({ index: 1, num: 3 })],
    ['ERR_VHOST_QUEUE_INDEX', 'GET_VRING_BASE', encodeVringState({ index: 2, num: 0 })],
    ['ERR_VHOST_FEATURES', 'SET_FEATURES', encodeU64(1n << 63n)],
  ]
  for (const [code, request, payload] of wrong) {
    const { guest } = await startOnTwo(t, bench)
    await t.throwsAsync(guest.frontEnd.command(request, payload).then(() => guest.frontEnd.hungUp()))
    guest.close()
    await until(() => !bench.server.attached)
    t.is(bench.errors.at(-1)?.code, code)
  }
  const { guest } = await startOnTwo(t, bench)
  const noEventfd = openSync('/dev/null', 'r')
  const kick = encodeVringFd({ index: 1, attached: true })
  await t.throwsAsync(guest.frontEnd.command('SET_VRING_KICK', kick, [noEventfd]))
  closeSync(noEventfd)
  guest.close()
  await until(() => !bench.server.attached)
  t.is(bench.errors.at(-1)?.code, 'ERR_VHOST_FD')
  t.is(bench.errors.at(-1)?.details.queueIndex, 1)
  // A driver that breaks one ring.
  const { guest: last, disks } = await startOnTwo(t, bench)
  last.drivers[1]!.storeAvailableIndex(1000)
  native.eventfdSignal(last.drivers[1]!.kickFd)
  await until(() => bench.errors.at(-1)?.code === 'ERR_RING_AVAIL_INDEX')
  await disks[0].flush()
  t.is(bench.server.statsSnapshot().brokenQueues, 1)
  last.close()
  await until(() => openFdCount() === fdCount)
})

test.serial('a lost kick is made up for by the watchdog of the worker, and counted', async (t) => {
  const socketPath = join(temporaryFolder(t), 'disk.sock')
  const server = await vhostUser.listen({
    socketPath,
    device: { module, options: shared },
    workers: 2,
    watchdogMs: 20,
  })
  t.teardown(() => server.close())
  const guest = await FakeGuest.start(socketPath, { queueCount: 2 })
  const disk = new BlockDriver(guest.drivers[1]!, guest.memory)
  await disk.flush()
  // The device may look for a while before it sleeps, and would find the request without a kick.
  let lost = 0
  while (lost === 0) {
    const answer = disk.request({ type: BlockRequestType.FLUSH })
    native.eventfdDrain(guest.drivers[1]!.kickFd)
    t.is((await answer).status, BlockStatus.OK)
    lost = server.statsSnapshot().lostNotifications
  }
  t.true(lost > 0)
  guest.close()
})

test.serial('requests and failures are answered for in time, logged and counted', async (t) => {
  const bench = await listenOnWorkers(t, shared, { requestTimeoutMs: 20 })
  const { disks } = await startOnTwo(t, bench)
  const late = await disks[0].request({
    type: BlockRequestType.IN,
    sector: BigInt(At.held / 512),
    writableBytes: 512,
  })
  t.is(late.status, BlockStatus.IOERR)
  await t.throwsAsync(disks[1].write(At.fails, Buffer.alloc(512)))
  t.is(bench.server.statsSnapshot().errors, 2)
  await until(() => bench.log.some((line) => /queue 1: request failed: ERR_HANDLER_THREW/.test(line)))
  t.true(bench.log.some((line) => /queue 0: request failed: ERR_HANDLER_TIMEOUT/.test(line)))
  openGate(shared)
})

// ---- The life of connections ----------------------------------------------------------------------------------------

test.serial(
  'requests in flight when the connection ends are served by the next one, on both workers',
  async (t) => {
    const bench = common
    const { guest, disks } = await startOnTwo(t, bench, { inflight: true })
    const requests = disks.map((disk) => disk.read(At.held, 512))
    await until(() => heldCount(shared) === 2)
    await guest.resume(bench.socketPath)
    await until(() => heldCount(shared) === 4)
    openGate(shared)
    await Promise.all(requests)
    t.deepEqual(
      guest.drivers.map((driver) => driver.loadUsedIndex()),
      [1, 1],
    )
    t.deepEqual(bench.errors, [])
  },
)

test.serial(
  'close() answers what is in flight on the workers, and leaves no descriptor and no thread',
  async (t) => {
    const fdCount = openFdCount()
    const bench = await listenOnWorkers(t, shared, { stopGraceMs: 5_000 })
    const { guest, disks } = await startOnTwo(t, bench)
    const requests = disks.map((disk) => disk.read(At.held, 512))
    await until(() => heldCount(shared) === 2)
    const closing = bench.server.close()
    await turn()
    openGate(shared)
    await closing
    t.is((await Promise.all(requests)).length, 2)
    t.deepEqual(
      guest.drivers.map((driver) => driver.loadUsedIndex()),
      [1, 1],
    )
    guest.close()
    t.is(openFdCount(), fdCount)
  },
)

test.serial('control: what does not end in time is failed, and close() ends all the same', async (t) => {
  const bench = await listenOnWorkers(t, shared, { stopGraceMs: 20 })
  const { disks } = await startOnTwo(t, bench)
  const requests = disks.map((disk) => t.throwsAsync(disk.read(At.held, 512)))
  await until(() => heldCount(shared) === 2)
  await bench.server.close()
  await Promise.all(requests)
})

// ---- Workers that end ------------------------------------------------------------------------------------------------

const workerEnds = test.macro({
  title: (_, how: string) =>
    `a worker that ${how} breaks its queues and ends the server, and the next one goes on`,
  async exec(t, _how: string, place: number, why: RegExp) {
    const fdCount = openFdCount()
    const bench = await listenOnWorkers(t, shared, { stopGraceMs: 20 })
    const { guest, disks } = await startOnTwo(t, bench, { inflight: true })
    await disks[0].write(0, patternOf(3))
    const fatal = disks[1].request({
      type: BlockRequestType.OUT,
      sector: BigInt(place / 512),
      readable: patternOf(9).subarray(0, 512),
    })
    await until(() => bench.events.includes('closed'))
    t.deepEqual(
      bench.events.filter((name) => name !== 'listening'),
      ['attached', 'degraded', 'detached', 'closed'],
    )
    const [error] = bench.errors
    t.like(error, { code: 'ERR_WORKER_EXITED', family: 'caller' })
    t.is(error?.details.worker, 1)
    t.regex(error?.message ?? '', why)
    t.like(bench.server.statsSnapshot(), { brokenQueues: 1, inFlight: 0 })
    await guest.frontEnd.hungUp()
    t.false(existsSync(bench.socketPath))

    // The request is not lost: a disk on which that place means nothing answers it.
    const next = await listen(t, {
      device: memoryDisk({ capacityBytes: CAPACITY_BYTES }),
      queues: { countMax: 2 },
    })
    await guest.resume(next.socketPath)
    t.is((await fatal).status, BlockStatus.OK)
    t.deepEqual(await disks[0].read(place, 512), patternOf(9).subarray(0, 512))
    t.deepEqual(Buffer.from(shared.bytes, 0, 4096), patternOf(3))
    guest.close()
    await next.server.close()
    t.is(openFdCount(), fdCount)
  },
})
test.serial(workerEnds, 'throws where nobody catches it', At.throws, /in the worker/)
test.serial(workerEnds, 'exits', At.exits, /exited with 7/)

test.serial('a worker in an endless loop is ended, and close() is not kept waiting for it', async (t) => {
  const fdCount = openFdCount()
  const bench = await listenOnWorkers(t, shared, { stopGraceMs: 20 })
  const { guest, disks } = await startOnTwo(t, bench)
  void disks[1].request({
    type: BlockRequestType.OUT,
    sector: BigInt(At.loops / 512),
    readable: Buffer.alloc(512),
  })
  await until(() => heldCount(shared) === 1)
  await disks[0].flush()
  // Statistics do not wait for it either.
  t.true(bench.server.statsSnapshot().requests > 0)
  await bench.server.close()
  guest.close()
  t.true(bench.log.some((line) => /worker 1 does not answer/.test(line)))
  t.is(openFdCount(), fdCount)
})

// ---- Modules that are none -------------------------------------------------------------------------------------------

const refused = test.macro({
  title: (_, what: string) => `refused, with no thread and no descriptor left: ${what}`,
  async exec(t, _what: string, options: Partial<VhostUserOptions>, code: string, words: RegExp) {
    const fdCount = openFdCount()
    const error = await t.throwsAsync(listenOnWorkers(t, shared, options))
    t.is((error as NodeJS.ErrnoException).code, code, String(error))
    t.regex(error.message, words)
    t.is(openFdCount(), fdCount)
  },
})
const named = (name: string, options?: unknown): Partial<VhostUserOptions> => ({
  device: { module, name, options },
})
test.serial(
  refused,
  'a module that does not exist',
  { device: { module: new URL('none.js', module) } },
  'ERR_DEVICE_MODULE',
  /cannot load .*none\.js/,
)
test.serial(
  refused,
  'the same in this thread',
  { workers: 0, device: { module: new URL('none.js', module) } },
  'ERR_DEVICE_MODULE',
  /cannot load .*none\.js/,
)
test.serial(
  refused,
  'an export that does not exist',
  named('missing'),
  'ERR_DEVICE_MODULE',
  /no export `missing`/,
)
test.serial(refused, 'an export that is no device', named('nonsense'), 'ERR_DEVICE_MODULE', /is no device/)
test.serial(
  refused,
  'a function that returns no device',
  named('policy', { countMax: 1, holdMicrosMax: 0 }),
  'ERR_DEVICE_MODULE',
  /is no device/,
)
test.serial(
  refused,
  'a function that throws something',
  named('throwsText'),
  'ERR_DEVICE_MODULE',
  /threw: no error at all/,
)
test.serial(
  refused,
  'a function that refuses its options, as it says itself',
  named('policy', {}),
  'ERR_OPTION_TYPE',
  /countMax/,
)
test.serial(refused, 'a function that ends the thread', named('exits'), 'ERR_WORKER_EXITED', /exited with 3/)
test.serial(
  refused,
  'another disk in each thread',
  named('unlike'),
  'ERR_DEVICE_MODULE',
  /another device in each thread/,
)
test.serial(
  refused,
  'a policy that is none',
  { suppression: { module, name: 'nonsense' } },
  'ERR_DEVICE_MODULE',
  /no suppression policy/,
)
test.serial(
  refused,
  'a device in the place of its module',
  { device: memoryDisk({ capacityBytes: 512 }) },
  'ERR_OPTION_TYPE',
  /`device`.*module/,
)
test.serial(
  refused,
  'a policy in the place of its module',
  { suppression: immediate() },
  'ERR_OPTION_TYPE',
  /`suppression`.*module/,
)
test.serial(
  refused,
  'options that cannot be sent',
  named('default', () => {}),
  'ERR_OPTION_TYPE',
  /`device\.options`.*copied/,
)
test.serial(
  refused,
  'a relative path',
  { device: { module: './disk.js' } },
  'ERR_OPTION_RANGE',
  /`device\.module`.*absolute/,
)
test.serial(
  refused,
  'a misspelt option',
  { device: { module, option: 1 } as never },
  'ERR_OPTION_TYPE',
  /device\.option/,
)
test.serial(refused, 'too many workers', { workers: 65 }, 'ERR_OPTION_RANGE', /`workers`/)
test.serial(
  refused,
  'an option that every thread knows',
  { requestTimeoutMs: -1 },
  'ERR_OPTION_RANGE',
  /`requestTimeoutMs`/,
)
