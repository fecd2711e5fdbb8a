import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import {
  type NativeTcmuPort,
  type NativeTcmuQueue,
  native,
  SegmentRow,
  TcmuCommandRow,
  TcmuCompletionFlag,
  TcmuCompletionRow,
  TcmuServerFault,
} from '../../src/native.ts'
import { TcmuKernel, type TcmuKernelOptions } from '../../src/testing/index.ts'
import { KiB, MiB } from '../../src/units.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { until } from '../helpers/until.ts'

const GOOD = 0x00
const CHECK_CONDITION = 0x02
const BUSY = 0x08
const TASK_SET_FULL = 0x28
const TASK_ABORTED = 0x40
const COMMUNICATION_FAILURE = [0x2, 0x08, 0x00]

const testUnitReady = { cdb: new Uint8Array(6) }
const readOf = (dataInBytes: number) => ({ cdb: Uint8Array.of(0x28), dataInBytes })
const writeOf = (dataOut: Uint8Array) => ({ cdb: Uint8Array.of(0x2a), dataOut })

/** Sense key, additional sense code and its qualifier. */
const senseOf = (sense: Buffer): number[] => [sense[2]!, sense[12]!, sense[13]!]

function kernelWith(t: ExecutionContext, options: TcmuKernelOptions = {}): TcmuKernel {
  const kernel = new TcmuKernel({ ringBytes: 4 * KiB, dataAreaBytes: 64 * KiB, ...options })
  t.teardown(() => kernel.close())
  return kernel
}

interface Answer {
  readonly status?: number
  readonly readLength?: number
  readonly keepBuffer?: boolean
}

/** A server that answers when it is told to, straight on the native queue. */
class Server {
  readonly port: NativeTcmuPort
  readonly #queue: NativeTcmuQueue
  readonly #data: Buffer
  #closed = false

  constructor(t: ExecutionContext, kernel: TcmuKernel) {
    this.port = kernel.openPort()
    this.#data = Buffer.from(this.port.windows[0]!)
    this.#queue = native.createTcmuQueue({
      port: this.port,
      commandCountMax: 64,
      batchCountMax: 64,
      inlineCopyBytesMax: MiB,
    })
    t.is(this.#queue.start(), 0)
    t.teardown(() => this.close())
  }

  /** Takes what there is: of each command its number, and a view of its data. */
  take(): { command: number; data: Buffer[] }[] {
    const { commands, segments } = this.#queue
    return Array.from({ length: this.#queue.take(64) }, (_, row) => {
      const at = row * TcmuCommandRow.words
      const first = commands[at + TcmuCommandRow.firstSegment]!
      const data = Array.from({ length: commands[at + TcmuCommandRow.dataCount]! }, (_, index) => {
        const segment = (first + index) * SegmentRow.words
        const offset = segments[segment + SegmentRow.offsetBytes]!
        return this.#data.subarray(offset, offset + segments[segment + SegmentRow.lengthBytes]!)
      })
      return { command: commands[at + TcmuCommandRow.command]!, data }
    })
  }

  complete(command: number, { status = GOOD, readLength = 0, keepBuffer = false }: Answer = {}): void {
    const { completions } = this.#queue
    completions[TcmuCompletionRow.command] = command
    completions[TcmuCompletionRow.status] = status
    completions[TcmuCompletionRow.readLength] = readLength
    completions[TcmuCompletionRow.flags] = keepBuffer ? TcmuCompletionFlag.keepBuffer : 0
    this.#queue.complete(1)
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#queue.stop()
    this.#queue.close()
    this.port.close()
  }
}

// ---- Options -----------------------------------------------------------------------------------------------------

test('a kernel with nothing said has the mailbox of Linux 6.12', (t) => {
  const kernel = new TcmuKernel()
  t.teardown(() => kernel.close())
  t.is(kernel.mapBytes, 65 * MiB)
  const mailbox = kernel.readMemory(0, 128)
  t.is(mailbox.readUInt16LE(0), 2)
  t.is(mailbox.readUInt16LE(2), 0xf)
  t.is(mailbox.readUInt32LE(4), 128)
  t.is(mailbox.readUInt32LE(8), MiB - 128)
  t.is(mailbox.readUInt32LE(12), 0)
  t.is(mailbox.readUInt32LE(64), 0)
  t.deepEqual(kernel.log, [])
  t.false(kernel.isBroken)
  t.is(kernel.fault, undefined)
})

const hasFlags = test.macro({
  exec(t, options: TcmuKernelOptions, flags: number) {
    t.is(kernelWith(t, options).readMemory(2, 2).readUInt16LE(), flags)
  },
  title: (_, options) => `the mailbox tells of ${JSON.stringify(options)}`,
})
test(hasFlags, { outOfOrder: false }, 0xe)
test(hasFlags, { readLength: false }, 0xd)
test(hasFlags, { taskManagement: false }, 0xb)
test(hasFlags, { keepBuffer: false }, 0x7)

const isRefused = test.macro({
  exec(t, options: Record<string, unknown>, code: string, message: string) {
    const error = t.throws(() => new TcmuKernel(options as TcmuKernelOptions), { any: true }) as Error & {
      code: string
    }
    t.is(error.code, code)
    t.true(error.message.startsWith(message), error.message)
  },
  title: (_, options) => `a kernel refuses ${JSON.stringify(options)}`,
})
test(isRefused, { ringByte: 1 }, 'ERR_OPTION_TYPE', 'unknown option `ringByte`')
test(isRefused, { ringBytes: 5000 }, 'ERR_OPTION_RANGE', 'expected `ringBytes`')
test(isRefused, { ringBytes: '1' }, 'ERR_OPTION_TYPE', 'expected `ringBytes`')
test(isRefused, { ringBytes: 16 * MiB }, 'ERR_OPTION_RANGE', 'expected `ringBytes`')
test(isRefused, { dataAreaBytes: 0 }, 'ERR_OPTION_RANGE', 'expected `dataAreaBytes`')
test(isRefused, { dataAreaBytes: 6 * KiB }, 'ERR_OPTION_RANGE', 'expected `dataAreaBytes`')
test(isRefused, { blockBytes: 512 }, 'ERR_OPTION_RANGE', 'expected `blockBytes`')
test(isRefused, { outOfOrder: 1 }, 'ERR_OPTION_TYPE', 'expected `outOfOrder`')
test(isRefused, { commandTimeoutMs: -1 }, 'ERR_OPTION_RANGE', 'expected `commandTimeoutMs`')
test(isRefused, { queueFullTimeoutMs: -2 }, 'ERR_OPTION_RANGE', 'expected `queueFullTimeoutMs`')

// ---- Commands ----------------------------------------------------------------------------------------------------

test('a read brings back what the server wrote, and how much was missing', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  const result = kernel.submit({ ...readOf(5000), tag: 7 })
  const [read] = server.take()
  t.is(read!.data.length, 1)
  read!.data[0]!.fill('ab')
  server.complete(read!.command, { readLength: 3000 })
  const { tag, status, sense, dataIn, residualBytes } = await result
  t.is(tag, 7)
  t.is(status, GOOD)
  t.deepEqual(sense, Buffer.alloc(96))
  t.deepEqual(dataIn, Buffer.alloc(3000, 'ab'))
  t.is(residualBytes, 2000)
  t.is(kernel.events, 1)
  t.is(kernel.doorbells, 1)
})

test('a write reaches the server, whatever becomes of the bytes afterwards', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  const data = Buffer.alloc(4 * KiB + 1, 'xyz')
  const result = kernel.submit(writeOf(data))
  data.fill(0)
  const [write] = server.take()
  t.deepEqual(Buffer.concat(write!.data), Buffer.alloc(4 * KiB + 1, 'xyz'))
  server.complete(write!.command)
  t.is((await result).dataIn.length, 0)
})

test('answers in any order find their commands', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  const results = [1, 2, 3].map((length) => kernel.submit(readOf(length)))
  for (const { command, data } of server.take().reverse()) {
    data[0]!.fill(data[0]!.length)
    server.complete(command)
  }
  t.deepEqual(
    (await Promise.all(results)).map(({ dataIn }) => [...dataIn]),
    [[1], [2, 2], [3, 3, 3]],
  )
})

test('a tag that is in use is refused', async (t) => {
  const kernel = kernelWith(t)
  void kernel.submit({ ...testUnitReady, tag: 1 })
  await t.throwsAsync(kernel.submit({ ...testUnitReady, tag: 1 }), { code: 'ERR_BUSY' })
  void kernel.submit(testUnitReady) // takes the next free one
  t.is(kernel.commandIdCount, 2)
})

test('what does not fit the data area is refused at once', async (t) => {
  const { status, sense } = await kernelWith(t).submit(readOf(64 * KiB + 1))
  t.is(status, CHECK_CONDITION)
  t.deepEqual(senseOf(sense), [0x5, 0x24, 0x00])
})

test('what finds no room is held back, and fails when its time is over', async (t) => {
  const kernel = kernelWith(t, { queueFullTimeoutMs: 500 })
  void kernel.submit(readOf(64 * KiB))
  const result = kernel.submit(readOf(1))
  t.is(kernel.heldBackCount, 1)
  t.is(kernel.freeBlockCount, 0)
  kernel.advance(500)
  t.is((await result).status, TASK_SET_FULL)
})

test('a command that nobody answers ends when its time is over', async (t) => {
  const kernel = kernelWith(t, { commandTimeoutMs: 2000 })
  const result = kernel.submit(testUnitReady)
  kernel.advance(1999)
  t.is(await Promise.race([result, 'waits']), 'waits')
  kernel.advance(1)
  t.deepEqual(senseOf((await result).sense), COMMUNICATION_FAILURE)
  t.is(kernel.commandIdCount, 1)
})

test('a plugged kernel signals once', (t) => {
  const kernel = kernelWith(t)
  kernel.plug()
  for (let count = 0; count < 5; count++) void kernel.submit(testUnitReady)
  t.is(kernel.events, 0)
  kernel.unplug()
  t.is(kernel.events, 1)
})

// ---- Task management ---------------------------------------------------------------------------------------------

test('a LUN reset ends when the server has completed every command', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  const results = [kernel.submit(testUnitReady), kernel.submit(testUnitReady)]
  const reset = kernel.lunReset()
  const [first, second] = server.take()
  server.complete(first!.command)
  t.is(await Promise.race([reset, results[0]!.then(() => 'waits')]), 'waits')
  server.complete(second!.command)
  t.is(await reset, 'function complete')
  t.deepEqual(
    (await Promise.all(results)).map(({ status }) => status),
    [TASK_ABORTED, TASK_ABORTED],
  )
})

test('a task that is not there cannot be aborted, one that was held back ends at once', async (t) => {
  const kernel = kernelWith(t)
  void kernel.submit({ ...readOf(64 * KiB), tag: 1 })
  const heldBack = kernel.submit({ ...readOf(1), tag: 2 })
  t.is(await kernel.abortTask(3), 'task does not exist')
  t.is(await kernel.abortTask(2), 'function complete')
  t.is((await heldBack).status, TASK_ABORTED)
})

// ---- configfs ----------------------------------------------------------------------------------------------------

const endsCommands = test.macro({
  async exec(t, level: number, wanted: number) {
    const kernel = kernelWith(t)
    const result = kernel.submit(testUnitReady)
    kernel.resetRing(level)
    t.is((await result).status, wanted)
    t.is(kernel.head, 0)
    t.is(kernel.commandIdCount, 0)
  },
  title: (_, level) => `resetting the ring with ${level} ends what is on it`,
})
test(endsCommands, 1, BUSY)
test(endsCommands, 2, CHECK_CONDITION)

test('a ring is reset with 1 or 2', (t) => {
  t.throws(() => kernelWith(t).resetRing(3), { instanceOf: RangeError })
})

test('a blocked device is busy', async (t) => {
  const kernel = kernelWith(t)
  kernel.block()
  t.is((await kernel.submit(testUnitReady)).status, BUSY)
  kernel.unblock()
  void kernel.submit(testUnitReady)
  t.is(kernel.commandIdCount, 1)
})

test('a kept buffer is freed once, or when the device is closed', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  const results = [1, 2].map((fill) => kernel.submit(writeOf(Buffer.alloc(4 * KiB, fill))))
  for (const { command } of server.take()) server.complete(command, { keepBuffer: true })
  await Promise.all(results)
  t.is(kernel.commandIdCount, 2)
  t.is(kernel.freeKeptBuffer(1), 0)
  t.is(kernel.freeKeptBuffer(1), 22)
  t.is(kernel.freeBlockCount, 15)
  server.close()
  t.is(kernel.freeBlockCount, 16)
})

// ---- Servers and kernels that are wrong --------------------------------------------------------------------------

test('a server that answers on a ring of before is found out', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  for (let count = 0; count < 2; count++) {
    void kernel.submit(testUnitReady)
    const [taken] = server.take()
    // The second one is on a ring that the server does not know to be reset, where its slot is not.
    if (count === 1) kernel.resetRing(1)
    server.complete(taken!.command)
  }
  t.is(kernel.fault, 'tailRange')
  t.true(kernel.isBroken)
  t.is(kernel.log.length, 1)
  t.regex(kernel.log[0]!, /^tail \d+: the server stored a tail outside/)
  t.deepEqual(senseOf((await kernel.submit(testUnitReady)).sense), COMMUNICATION_FAILURE)
  kernel.resetRing(1)
  t.false(kernel.isBroken)
  t.is(kernel.fault, 'tailRange')
})

test('a kernel writes what it is told, and publishes any head', (t) => {
  const kernel = kernelWith(t)
  kernel.writeMemory(128, Uint8Array.of(1, 2, 3))
  t.deepEqual([...kernel.readMemory(127, 5)], [0, 1, 2, 3, 0])
  kernel.publishHead(12345)
  t.is(kernel.readMemory(12, 4).readUInt32LE(), 12345)
  t.is(kernel.events, 1)
  t.throws(() => kernel.writeMemory(kernel.mapBytes, Uint8Array.of(1)), { code: 'ERR_OPTION_RANGE' })
  t.throws(() => kernel.readMemory(0, kernel.mapBytes + 1), { code: 'ERR_OPTION_RANGE' })
  t.throws(() => kernel.publishHead(-1), { code: 'ERR_OPTION_RANGE' })
})

test('entries of any opcode come onto the ring while there is room', (t) => {
  const kernel = kernelWith(t)
  t.true(kernel.putEntry(5, Uint8Array.of(1, 2)))
  t.is(kernel.readMemory(128, 4).readUInt32LE(), 16 | 5)
  t.false(kernel.putEntry(5, new Uint8Array(4096)))
  t.throws(() => kernel.putEntry(8), { code: 'ERR_OPTION_RANGE' })
})

test('TypeScript and C++ agree on the faults of a server', (t) => {
  const header = readFileSync(new URL('../../native/core/peer/tcmu_kernel.h', import.meta.url), 'utf8')
  const body = /enum class ServerFault[^{]*\{([^}]*)\}/.exec(header)?.[1] ?? ''
  const faults = [...body.matchAll(/^ {2}k(\w)(\w+) = (\d+),/gm)]
  t.deepEqual(
    Object.fromEntries(
      faults.map(([, first, rest, number]) => [first!.toLowerCase() + rest!, Number(number)]),
    ),
    TcmuServerFault,
  )
})

// ---- Loads -------------------------------------------------------------------------------------------------------

/** Answers everything with zeros for as long as the load runs. */
async function serveUntil(server: Server, load: Promise<unknown>): Promise<void> {
  const over = load.then(
    () => true,
    () => true,
  )
  while (!(await Promise.race([over, delay(0, false)]))) {
    for (let taken = server.take(); taken.length > 0; taken = server.take()) {
      for (const { command } of taken) server.complete(command)
    }
  }
}

test('a load counts its commands', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  const load = kernel.runLoad({
    capacityBytes: MiB,
    queueDepth: 4,
    requestCountMax: 1000,
    durationMs: 0,
    verify: false,
  })
  await t.throwsAsync(kernel.submit(testUnitReady), { code: 'ERR_BUSY' })
  await t.throwsAsync(kernel.runLoad({ capacityBytes: MiB }), { code: 'ERR_BUSY' })
  await serveUntil(server, load)
  const { requests, failedRequests, iops, p50Micros, p99Micros, doorbells, verifiedBytes } = await load
  t.is(requests, 1000)
  t.is(failedRequests, 0)
  t.is(verifiedBytes, 0)
  t.true(iops > 0)
  t.true(p50Micros > 0 && p50Micros <= p99Micros)
  t.is(doorbells, 1000)
})

test('a load sees that a server forgets what was written', async (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  const load = kernel.runLoad({ capacityBytes: 64 * KiB, requestCountMax: 100, durationMs: 0 })
  // Blocks of the data area are not cleared: a read that nobody filled shows another command's data.
  await serveUntil(server, load)
  const { mismatchedBytes, verifiedBytes } = await load
  t.is(verifiedBytes, 100 * 4 * KiB)
  t.true(mismatchedBytes > 0)
})

test('a load that nobody serves ends when the ring is reset, or the kernel closed', async (t) => {
  const kernel = kernelWith(t)
  const load = kernel.runLoad({
    capacityBytes: MiB,
    queueDepth: 3,
    requestCountMax: 3,
    durationMs: 0,
    verify: false,
  })
  kernel.resetRing(1)
  t.is((await load).failedRequests, 3)
  const next = kernel.runLoad({ capacityBytes: MiB })
  kernel.close()
  await t.throwsAsync(next, { code: 'ERR_CLOSED' })
})

const isRefusedLoad = test.macro({
  async exec(t, options: Record<string, unknown>, name: string) {
    const error = await t.throwsAsync(kernelWith(t).runLoad({ capacityBytes: MiB, ...options }), {
      any: true,
    })
    t.regex((error as Error).message, new RegExp(`\`${name}\``))
  },
  title: (_, options) => `a load refuses ${JSON.stringify(options)}`,
})
test(isRefusedLoad, { queueDepths: 1 }, 'queueDepths')
test(isRefusedLoad, { queueDepth: 0 }, 'queueDepth')
test(isRefusedLoad, { blockBytes: 1000 }, 'blockBytes')
test(isRefusedLoad, { logicalBlockBytes: 1024 }, 'logicalBlockBytes')
test(isRefusedLoad, { capacityBytes: 512 }, 'capacityBytes')
test(isRefusedLoad, { capacityBytes: 2 ** 42 }, 'capacityBytes')

// ---- Ends --------------------------------------------------------------------------------------------------------

test('one server opens the device at a time', (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  t.throws(() => kernel.openPort(), { code: 'EBUSY' })
  server.close()
  kernel.openPort().close()
})

test('a removed device gives EIO', (t) => {
  const kernel = kernelWith(t)
  const { port } = new Server(t, kernel)
  t.is(port.readEvent(), 0)
  kernel.remove()
  t.is(port.readEvent(), 5)
})

test('a port outlives its kernel', (t) => {
  const kernel = kernelWith(t)
  const server = new Server(t, kernel)
  void kernel.submit(testUnitReady)
  kernel.close()
  const [taken] = server.take()
  server.complete(taken!.command)
  t.is(server.port.readEvent(), 0)
})

test('a closed kernel says so, and can be closed again', async (t) => {
  const kernel = kernelWith(t)
  void kernel.submit(testUnitReady)
  void kernel.lunReset()
  kernel.close()
  kernel.close()
  t.throws(() => kernel.log, { code: 'ERR_CLOSED' })
  t.throws(() => kernel.openPort(), { code: 'ERR_CLOSED' })
  await t.throwsAsync(kernel.submit(testUnitReady), { code: 'ERR_CLOSED' })
})

/** A process with an open kernel on which `statement` was run. */
function processWith(statement: string): ChildProcess {
  const program = `
    const { TcmuKernel } = await import(${JSON.stringify(import.meta.resolve('../../src/testing/index.ts'))})
    const kernel = new TcmuKernel()
    const port = kernel.openPort()
    ${statement}
    console.log('ready')`
  return spawn(process.execPath, ['--import=tsx', '--input-type=module', '--eval', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
}

test('a kernel keeps the process alive while something is unanswered, and only then', async (t) => {
  t.timeout(60_000)
  const idle = processWith('')
  t.deepEqual(await once(idle, 'exit'), [0, null])
  const waiting = processWith('void kernel.submit({ cdb: new Uint8Array(6) })')
  await once(waiting.stdout!, 'data')
  t.is(await Promise.race([once(waiting, 'exit'), delay(300, 'lives')]), 'lives')
  waiting.kill()
  await once(waiting, 'exit')
  const closed = processWith('void kernel.submit({ cdb: new Uint8Array(6) }); kernel.close()')
  t.deepEqual(await once(closed, 'exit'), [0, null])
})

test.serial('workers that are terminated in the middle of a load leave no descriptor behind', async (t) => {
  const addonPath =
    process.env.HUSHRING_NATIVE_PATH ??
    fileURLToPath(new URL('../../build/Release/hushring.node', import.meta.url))
  const script = `
    const { parentPort, workerData } = require('node:worker_threads')
    const native = require(workerData)
    const kernel = native.createTcmuKernel({ ringBytes: 4096, dataAreaBytes: 65536, blockBytes: 4096, flags: 15,
      taskManagement: true, commandTimeoutMs: 0, queueFullTimeoutMs: -1 })
    const port = kernel.openPort()
    const queue = native.createTcmuQueue({ port, commandCountMax: 64, batchCountMax: 64, inlineCopyBytesMax: 0 })
    queue.start()
    native.watchReadable(kernel.initiatorFd, true, () => {})
    kernel.startLoad({ capacityBytes: 65536, logicalBlockBytes: 512, queueDepth: 8, durationMs: 0,
      requestCountMax: 0, blockBytes: 4096, writePercent: 50, verify: false, seed: 1 })
    parentPort.postMessage('ready')
    const { commands, completions } = queue
    for (;;) {
      const taken = queue.take(64)
      for (let row = 0; row < taken; row++) {
        completions.set([commands[row * ${TcmuCommandRow.words}], 0, 0, 0, 4096], row * ${TcmuCompletionRow.words})
      }
      queue.complete(taken)
      kernel.inspect()
      kernel.logLines()
      kernel.readMemory(0, 128)
      kernel.takeResults()
    }`
  const before = openFdCount()
  for (let round = 0; round < 10; round++) {
    const worker = new Worker(script, { eval: true, workerData: addonPath })
    await once(worker, 'message')
    await delay(5)
    t.is(await worker.terminate(), 1)
  }
  await until(() => openFdCount() <= before)
})
