import { once } from 'node:events'
import { ftruncateSync, readFileSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { native } from '../../src/native.ts'
import { socketPair } from '../../src/testing/socket-pair.ts'
import { MiB } from '../../src/units.ts'
import { ringIsAllowed } from '../helpers/file-ring.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { temporaryDirectory } from '../helpers/processes.ts'
import { until } from '../helpers/until.ts'

const addonPath =
  process.env.HUSHRING_NATIVE_PATH ??
  fileURLToPath(new URL('../../build/Release/hushring.node', import.meta.url))

/** Starts a worker thread that runs `program`, where `native` is the addon and `fds` what is given here. */
function startWorker(program: string, fds: Record<string, number> = {}): Worker {
  const script = `const { parentPort, workerData } = require('node:worker_threads')
    const native = require(workerData.addonPath)
    const fds = workerData.fds
    ${program}`
  return new Worker(script, { eval: true, workerData: { addonPath, fds } })
}

/** Mappings of this process that show memory files with this name. */
function mappingCount(name: string): number {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes(`/memfd:${name} `)).length
}

test.serial('sixty workers are terminated while their watches, timers and memory are in use', async (t) => {
  const program = `
    const region = native.mapRegion(fds.memory, 0n, 0n, ${MiB}n, 0n)
    const bytes = Buffer.from(region.windows[0])
    let count = 0
    // Rings itself, so that it is always in the middle of a call or about to be called.
    native.watchReadable(fds.own, true, () => {
      bytes.fill(count++ % 256)
      native.eventfdSignal(fds.own)
      native.eventfdSignal(fds.reply)
    })
    native.eventfdSignal(fds.own)
    native.watchReadable(fds.kick, true, () => bytes.fill(1))
    native.watchReadable(fds.idle, true, () => {}).unref()
    const again = native.createMicroTimer(() => again.start(1))
    again.start(1)
    native.createMicroTimer(() => {}).start(60_000_000)
    native.createMicroTimer(() => {}).close()`
  const before = openFdCount()
  const fds = {
    memory: native.memfdCreate('hushring-workers', MiB, true),
    own: native.eventfdCreate(),
    reply: native.eventfdCreate(),
    kick: native.eventfdCreate(),
    idle: native.eventfdCreate(),
  }
  let residentBytes = 0
  const roundCount = 60
  for (let round = 0; round < roundCount; round++) {
    const worker = startWorker(program, fds)
    t.teardown(() => worker.terminate())
    await until(() => native.eventfdDrain(fds.reply) > 0)
    t.is(mappingCount('hushring-workers'), 1)
    for (let kick = 0; kick < round; kick++) native.eventfdSignal(fds.kick)
    t.is(await worker.terminate(), 1)
    native.eventfdDrain(fds.reply)
    t.is(mappingCount('hushring-workers'), 0)
    // The first rounds fill the caches of the allocator.
    if (round === roundCount / 3) residentBytes = process.memoryUsage().rss
  }
  t.true(process.memoryUsage().rss - residentBytes < 100 * MiB)
  for (const fd of Object.values(fds)) native.closeFd(fd)
  await until(() => openFdCount() <= before)
  t.pass()
})

test.serial('workers are terminated while a litmus test has their two threads', async (t) => {
  const before = openFdCount()
  for (const wholeRing of [false, true]) {
    const options = `{ wholeRing: ${wholeRing}, step: 0, eventIdx: true, weakened: false, roundCountMax: 0, lostCountMax: 0 }`
    const worker = startWorker(`
      native.createLitmus({ ...${options}, durationMs: 3_600_000 }).run(() => {})
      parentPort.postMessage('running')`)
    await once(worker, 'message')
    await worker.terminate()
  }
  t.is(openFdCount(), before)
})

const testRing = ringIsAllowed() ? test.serial : test.skip

testRing('a worker that is terminated waits for what the kernel still writes into its memory', async (t) => {
  const before = openFdCount()
  const [reader, writer] = socketPair()
  const memory = native.memfdCreate('hushring-ring', MiB, true)
  const worker = startWorker(
    `const region = native.mapRegion(fds.memory, 0n, 0n, ${MiB}n, 0n)
    const ring = native.openFileRing(fds.reader, { entryCount: 8, inlineBytesMax: 4096, direct: false })
    ring.addPiece(Buffer.from(region.windows[0]), 512, 4)
    ring.begin(0, 0)
    ring.turn()
    parentPort.postMessage(ring.inKernelCount())`,
    { memory, reader },
  )
  t.deepEqual(await once(worker, 'message'), [1])
  const terminated = worker.terminate()
  // Long enough for a worker that did not wait: it would take the read with it.
  for (let count = 0; count < 50; count++) await new Promise((resolve) => setImmediate(resolve))
  t.is(native.unixSend(writer, Buffer.from('late'), []), 4)
  await terminated
  t.is(mappingCount('hushring-ring'), 0)
  const bytes = Buffer.alloc(4)
  native.fileReadAt(memory, bytes, 0, 4, 512, true)
  t.is(bytes.toString(), 'late')
  for (const fd of [reader, writer, memory]) native.closeFd(fd)
  t.is(openFdCount(), before)
})

test('a worker that ends by itself or by process.exit() leaves nothing behind', async (t) => {
  for (const end of ['', 'process.exit()', 'setImmediate(() => process.exit())']) {
    const fds = { memory: native.memfdCreate('hushring-ends', MiB, true), event: native.eventfdCreate() }
    const program = `
      globalThis.region = native.mapRegion(fds.memory, 0n, 0n, ${MiB}n, 0n)
      globalThis.watch = native.watchReadable(fds.event, true, () => {})
      watch.unref()
      native.createMicroTimer(() => {})
      native.eventfdSignal(fds.event)
      ${end}`
    const [exitCode] = await once(startWorker(program, fds), 'exit')
    t.is(exitCode, 0)
    t.is(mappingCount('hushring-ends'), 0)
    for (const fd of Object.values(fds)) native.closeFd(fd)
  }
})

test('process.exit() and an exception in a callback end the worker and nothing else', async (t) => {
  const event = native.eventfdCreate()
  const watching = (body: string): Worker =>
    startWorker(`native.watchReadable(fds.event, true, () => { ${body} })`, { event })
  native.eventfdSignal(event)
  t.deepEqual(await once(watching('process.exit(7)'), 'exit'), [7])
  native.eventfdSignal(event)
  const [error] = await once(watching(`throw new RangeError('in the worker')`), 'error')
  t.true(error instanceof RangeError)
  t.is(error.message, 'in the worker')
  native.closeFd(event)
})

test.serial('a socket never has a wider mode, not even while it is being made', async (t) => {
  const path = join(await temporaryDirectory(t), 'socket')
  const umask = process.umask(0)
  t.teardown(() => void process.umask(umask))
  const stop = new Int32Array(new SharedArrayBuffer(8))
  // Looks at the path all the time, from another thread.
  const watcher = startWorker(`
    const { statSync } = require('node:fs')
    const modes = new Set()
    let seenCount = 0
    parentPort.once('message', ({ path, stop }) => {
      parentPort.postMessage('looking')
      while (Atomics.load(stop, 0) === 0) {
        const stat = statSync(path, { throwIfNoEntry: false })
        if (stat !== undefined && ++seenCount) modes.add(stat.mode & 0o777)
        Atomics.store(stop, 1, seenCount)
      }
      parentPort.postMessage([...modes])
    })`)
  watcher.postMessage({ path, stop })
  await once(watcher, 'message')
  for (let round = 0; round < 1000 || Atomics.load(stop, 1) < 100; round++) {
    native.closeFd(native.unixListen(path, 0o600, 1))
    unlinkSync(path)
  }
  Atomics.store(stop, 0, 1)
  t.deepEqual(await once(watcher, 'message'), [[0o600]])
  await once(watcher, 'exit')
})

test('two threads watch one eventfd and map one file, and each is told of its own region', async (t) => {
  const fds = { memory: native.memfdCreate('hushring-two', 2 * 4096, false), event: native.eventfdCreate() }
  const worker = startWorker(
    `const region = native.mapRegion(fds.memory, 0n, 0n, 8192n, 0n)
    const watch = native.watchReadable(fds.event, false, () => {
      watch.close()
      parentPort.postMessage([Buffer.from(region.windows[0])[4096], region.truncated])
    })
    parentPort.postMessage('ready')`,
    fds,
  )
  const exited = once(worker, 'exit')
  await once(worker, 'message')
  const region = native.mapRegion(fds.memory, 0n, 0n, 8192n, 0n)
  let called = false
  const watch = native.watchReadable(fds.event, false, () => {
    watch.close()
    called = true
  })
  ftruncateSync(fds.memory, 4096)
  native.eventfdSignal(fds.event)
  t.deepEqual(await once(worker, 'message'), [[0, true]])
  await until(() => called)
  t.false(region.truncated)
  t.is(Buffer.from(region.windows[0]!)[4096], 0)
  t.true(region.truncated)
  await exited
  region.close()
  for (const fd of Object.values(fds)) native.closeFd(fd)
})

// A worker that is being terminated is still inside a native function for a moment, in which everything that might
// run JavaScript fails. An empty value that is used then ends the whole process, this test's included.
const cutOff = test.macro({
  async exec(t, body: string) {
    for (let round = 0; round < 12; round++) {
      const worker = startWorker(`
        const memory = native.memfdCreate('cut-off', 4096, true)
        const newQueue = () => native.createSplitQueue({ sizeMax: 8, headerBytes: 16, statusByte: true,
          batchCountMax: 4, chainCountMax: 8, strictChains: false })
        parentPort.postMessage('busy')
        for (;;) { ${body} }`)
      await once(worker, 'message')
      // Somewhere in the middle of a call, at another place each time.
      await new Promise((resolve) => setTimeout(resolve, round % 4))
      t.is(await worker.terminate(), 1)
    }
  },
  title: (provided) => `a worker can be terminated in the middle of ${provided}`,
})
test.serial('making queues', cutOff, 'newQueue().close()')
test.serial(
  'watching',
  cutOff,
  'const fd = native.eventfdCreate(); native.watchReadable(fd, true, () => {}).close(); native.closeFd(fd)',
)
test.serial('making memory', cutOff, "native.closeFd(native.memfdCreate('cut-off', 4096, true))")
test.serial('mapping and letting go', cutOff, 'native.mapRegion(memory, 0n, 0n, 4096n, 0n).close()')
test.serial(
  'starting and stopping a ring',
  cutOff,
  `
  const region = native.mapRegion(memory, 0n, 0n, 4096n, 0n)
  const queue = newQueue()
  queue.start({ size: 8, descriptorAddress: 0n, availableAddress: 1024n, usedAddress: 2048n, guestAddresses: false,
    availableBase: 0, eventIdx: true, indirect: true, regions: [region], callFd: -1 })
  queue.setRegions([region]); queue.inspect(); queue.stop(); queue.close(); region.close()`,
)

/** A simulated TCMU device with a command on its ring, and the functions that serve it. */
const TCMU_IN_WORKER = `
  const newKernel = () => native.createTcmuKernel({ ringBytes: 4096, dataAreaBytes: 65536, blockBytes: 4096, flags: 15,
    taskManagement: true, commandTimeoutMs: 0, queueFullTimeoutMs: 0 })
  const newTcmuQueue = (port) => native.createTcmuQueue({ port, commandCountMax: 8, batchCountMax: 8,
    inlineCopyBytesMax: 0 })
  const readCdb = Buffer.from([0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0])
  const serveSome = (kernel, port, queue, tag) => {
    kernel.submit(tag, readCdb, Buffer.alloc(0), 4096)
    port.readEvent()
    // None while the thread has not rung for those before, and the ring is full.
    const count = queue.take(8)
    const piece = port.expose(8192, 4096)
    Buffer.from(piece).fill(1)
    port.conceal(piece)
    for (let row = 0; row < count; row++) queue.completions.set([queue.commands[6 * row], 0, 0, 0, 4096], 5 * row)
    queue.complete(count)
    queue.seesEntry(); queue.inspect(); kernel.takeResults()
  }`

test.serial(
  'making TCMU devices and their queues',
  cutOff,
  `
  ${TCMU_IN_WORKER}
  const kernel = newKernel(), port = kernel.openPort(), queue = newTcmuQueue(port)
  queue.start(); queue.stop(); queue.close(); port.close(); native.closeFd(kernel.initiatorFd); kernel.close()`,
)
test.serial(
  'exposing and concealing data',
  cutOff,
  `
  ${TCMU_IN_WORKER}
  globalThis.port ??= newKernel().openPort()
  const pieces = [1, 2, 3].map((count) => globalThis.port.expose(8192, 4096 * count))
  for (const piece of pieces.slice(1)) globalThis.port.conceal(piece)`,
)
test.serial(
  'serving commands with doorbells from the thread',
  cutOff,
  `
  ${TCMU_IN_WORKER}
  if (globalThis.kernel === undefined) {
    globalThis.kernel = newKernel()
    globalThis.port = kernel.openPort()
    globalThis.queue = newTcmuQueue(port)
    queue.start()
  }
  globalThis.tag = (globalThis.tag ?? 0) + 1
  serveSome(kernel, port, queue, globalThis.tag)`,
)

test.serial(
  'workers that serve TCMU devices leave no descriptor behind when they are terminated',
  async (t) => {
    const program = `${TCMU_IN_WORKER}
    const kernel = newKernel(), port = kernel.openPort(), queue = newTcmuQueue(port)
    queue.start()
    globalThis.kept = port.expose(8192, 4096)
    native.watchReadable(port.eventFd, false, () => {})
    let tag = 0
    const again = () => { serveSome(kernel, port, queue, ++tag); setImmediate(again) }
    again()
    parentPort.postMessage('busy')`
    const round = async (): Promise<void> => {
      const worker = startWorker(program)
      await once(worker, 'message')
      t.is(await worker.terminate(), 1)
    }
    await round()
    const before = openFdCount()
    for (let count = 0; count < 20; count++) await round()
    await until(() => openFdCount() <= before)
  },
)

test('a value that has no text is refused and does not end the process', (t) => {
  const symbol = Symbol('no text') as never
  t.throws(() => native.createSplitQueue({ sizeMax: symbol } as never), { code: 'ERR_OPTION_TYPE' })
  t.throws(() => native.createMicroTimer(() => {}).start(symbol), { code: 'ERR_OPTION_TYPE' })
})
