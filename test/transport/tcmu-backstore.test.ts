import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { from, map, NEVER, of, throwError, timer } from 'rxjs'
import type { ErrorCode } from '../../src/errors.ts'
import type { BlockRequest } from '../../src/handlers/block/block-request.ts'
import {
  type BlockAnswer,
  blockDevice,
  entropyDevice,
  memoryDisk,
  scsiDevice,
} from '../../src/handlers/index.ts'
import { coalesce, immediate, type SuppressionPolicy } from '../../src/notify/suppression.ts'
import type { SegmentList } from '../../src/ring/segments.ts'
import { TcmuKernel } from '../../src/testing/index.ts'
import { serve } from '../../src/transport/tcmu/serve.ts'
import { MiB } from '../../src/units.ts'
import { read, serveOn, statusOf, TEST_UNIT_READY, write } from '../helpers/tcmu-bench.ts'
import { until } from '../helpers/until.ts'

const CAPACITY_BYTES = 4 * MiB

/** A disk that answers in one of the three shapes. */
function diskThat(answer: (io: BlockRequest, work: () => void) => BlockAnswer) {
  const bytes = Buffer.alloc(CAPACITY_BYTES)
  const end = (io: BlockRequest): number => io.offsetBytes + io.lengthBytes
  return blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => answer(io, () => void io.data.copyFrom(bytes.subarray(io.offsetBytes, end(io)))),
    write: (io) => answer(io, () => void io.data.copyTo(bytes.subarray(io.offsetBytes, end(io)))),
    flush: (io) => answer(io, () => {}),
  })
}

const shapes = {
  'at once': (_io: BlockRequest, work: () => void) => work(),
  'with a promise': async (_io: BlockRequest, work: () => void) => {
    await turn()
    work()
  },
  'with an observable': (_io: BlockRequest, work: () => void) => {
    work()
    return of(undefined)
  },
  'out of order': async (io: BlockRequest, work: () => void) => {
    for (let turns = (io.offsetBytes / 4096) % 5; turns > 0; turns--) await turn()
    work()
  },
} as const

const survivesLoad = test.macro({
  async exec(t, shape: keyof typeof shapes, outOfOrder: boolean, queueDepth: number) {
    const { kernel, backstore } = serveOn(
      t,
      diskThat(shapes[shape]),
      {},
      { outOfOrder, ringBytes: 16 * 1024 },
    )
    const load = await kernel.runLoad({
      capacityBytes: CAPACITY_BYTES,
      queueDepth,
      requestCountMax: 3000,
      durationMs: 0,
      writePercent: 40,
    })
    t.is(load.requests, 3000)
    t.true(load.verifiedBytes > 0)
    t.is(load.mismatchedBytes + load.failedRequests, 0)
    t.is(kernel.fault, undefined)
    t.deepEqual(kernel.log, [])
    t.is(kernel.commandIdCount, 0)
    const { commands, doorbells, inFlight } = backstore.statsSnapshot()
    t.true(commands >= 3000)
    t.is(doorbells, kernel.doorbells)
    t.is(inFlight, 0)
  },
  title: (_, shape, outOfOrder, queueDepth) =>
    `a disk that answers ${shape} serves a load ${queueDepth} deep on a kernel that takes answers ${outOfOrder ? 'in any order' : 'in order only'}`,
})
for (const shape of Object.keys(shapes) as (keyof typeof shapes)[]) {
  for (const outOfOrder of [true, false]) {
    for (const queueDepth of [1, 32, 128]) test(survivesLoad, shape, outOfOrder, queueDepth)
  }
}

test('the safety check finds a command whose event was lost, and a load beside it is no false alarm', async (t) => {
  const kernel = new TcmuKernel()
  const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
  const backstore = serve({ port: kernel.openPort(), device, safetyCheckMs: 10 })
  await kernel.runLoad({ capacityBytes: CAPACITY_BYTES, requestCountMax: 3000, durationMs: 0 })
  t.is(backstore.statsSnapshot().lostNotifications, 0)
  // The command is on the ring, and no event tells of it.
  kernel.plug()
  t.is((await read(kernel, 0, 8)).status, 0)
  t.is(backstore.statsSnapshot().lostNotifications, 1)
  await backstore.close()
  kernel.close()
})

test('the answers of one batch share one store of the tail and one doorbell', async (t) => {
  const { kernel, backstore } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  kernel.plug()
  const results = Array.from({ length: 32 }, (_, index) => read(kernel, index * 8, 8))
  kernel.unplug()
  await Promise.all(results)
  t.is(backstore.statsSnapshot().doorbells, 1)
  t.is(kernel.events, 1)
})

test('control: without gathering each answer of a slow disk rings for itself', async (t) => {
  const disk = diskThat(shapes['out of order'])
  const { kernel, backstore } = serveOn(t, disk, { doorbell: immediate() })
  await Promise.all(Array.from({ length: 32 }, (_, index) => read(kernel, index * 8, 8)))
  t.true(backstore.statsSnapshot().doorbells > 3)
})

test('a doorbell that is held for company is rung within its bound', async (t) => {
  let answer = (): void => {}
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => (io.offsetBytes === 0 ? undefined : new Promise<void>((resolve) => (answer = resolve))),
  })
  const { kernel } = serveOn(t, disk, { doorbell: coalesce({ countMax: 64, holdMicrosMax: 20_000 }) })
  const start = performance.now()
  const slow = read(kernel, 8, 1)
  await read(kernel, 0, 1)
  const heldMs = performance.now() - start
  t.true(heldMs >= 15, `${heldMs} ms`)
  answer()
  await slow
})

test('a doorbell is not held when the data area is nearly full', async (t) => {
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => (io.offsetBytes === 0 ? undefined : new Promise<void>(() => {})),
  })
  const { doorbell, urgencies } = observedPolicy()
  const { kernel } = serveOn(t, disk, { doorbell, stopGraceMs: 0 }, { dataAreaBytes: 64 * 1024 })
  const first = read(kernel, 8, 1)
  await read(kernel, 0, 1)
  t.deepEqual(urgencies, [false])
  void read(kernel, 16, 104)
  await read(kernel, 0, 8)
  t.deepEqual(urgencies, [false, true])
  void first
})

/** Holds for 20 ms what is not urgent, and notes what is. */
function observedPolicy() {
  const urgencies: boolean[] = []
  const doorbell: SuppressionPolicy = ({ urgent }) => {
    urgencies.push(urgent)
    return urgent ? 'now' : 20_000
  }
  return { doorbell, urgencies }
}

test('answers that wait for one before them keep their credits, and nobody looks again and again meanwhile', async (t) => {
  let answer = (): void => {}
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => (io.offsetBytes > 0 ? undefined : new Promise<void>((resolve) => (answer = resolve))),
  })
  const { kernel, backstore } = serveOn(t, disk, { commandCountMax: 2 }, { outOfOrder: false })
  const results = [0, 8, 16].map((lba) => read(kernel, lba, 1))
  await until(() => backstore.statsSnapshot().commands === 2)
  for (let turns = 0; turns < 5; turns++) await turn()
  const { nativeCalls, inFlight } = backstore.statsSnapshot()
  for (let turns = 0; turns < 50; turns++) await turn()
  t.is(backstore.statsSnapshot().nativeCalls, nativeCalls)
  t.is(inFlight, 2)
  answer()
  for (const result of results) t.is(statusOf(await result), 'GOOD')
})

test('reads of more than the inline limit are copied by a thread, and nothing is lost', async (t) => {
  const disk = memoryDisk({ capacityBytes: CAPACITY_BYTES })
  const { kernel, backstore } = serveOn(t, disk, { inlineCopyBytesMax: 0 })
  const load = await kernel.runLoad({
    capacityBytes: CAPACITY_BYTES,
    queueDepth: 32,
    requestCountMax: 20_000,
    durationMs: 0,
    writePercent: 20,
  })
  t.is(load.mismatchedBytes + load.failedRequests, 0)
  t.is(load.requests, 20_000)
  t.is(kernel.fault, undefined)
  t.is(kernel.commandIdCount, 0)
  t.is(backstore.statsSnapshot().inFlight, 0)
})

// ---- Data ----------------------------------------------------------------------------------------------------

test('what is written is read back, across blocks that do not lie together', async (t) => {
  const { kernel } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  const data = Buffer.from(Array.from({ length: 100 * 512 }, (_, index) => (index * 7) & 0xff))
  t.is(statusOf(await write(kernel, 3, data)), 'GOOD')
  const { dataIn, residualBytes } = await read(kernel, 3, 100)
  t.deepEqual(dataIn, data)
  t.is(residualBytes, 0)
})

test('a short answer tells its residual and nothing of another command', async (t) => {
  const device = scsiDevice({
    handler: (io) => {
      io.dataIn.fill(0x55, 0, Math.min(10, io.dataIn.byteLength))
      return io.ok(10)
    },
  })
  const { kernel } = serveOn(t, device)
  const { dataIn, residualBytes } = await kernel.submit({
    cdb: Buffer.of(0x12, 0, 0, 0, 96, 0),
    dataInBytes: 96,
  })
  t.is(residualBytes, 86)
  t.deepEqual(dataIn.subarray(0, 10), Buffer.alloc(10, 0x55))
  t.true(dataIn.subarray(10).every((byte) => byte === 0))
})

const leavesNothingOld = test.macro({
  async exec(t, bytesWritten: number, readLength: boolean) {
    const secret = Buffer.alloc(4096, 0xaa)
    const device = scsiDevice({
      handler: (io) => {
        if (io.cdb[0] === 0x2a) return io.ok()
        io.dataIn.fill(0x55, 0, bytesWritten)
        return io.ok(bytesWritten)
      },
    })
    const { kernel } = serveOn(t, device, {}, { readLength })
    await write(kernel, 0, secret)
    const { dataIn } = await read(kernel, 0, 8)
    t.is(dataIn.indexOf(0xaa), -1)
  },
  title: (_, bytesWritten, readLength) =>
    `an answer of ${bytesWritten} bytes to a kernel ${readLength ? 'with' : 'without'} READ_LEN shows no old bytes`,
})
for (const readLength of [true, false]) {
  for (const bytesWritten of [0, 1, 4095]) test(leavesNothingOld, bytesWritten, readLength)
}

test('a short answer to a bidirectional command shows no old bytes, because the kernel takes no length of it', async (t) => {
  const device = scsiDevice({
    handler: (io) => {
      if (io.cdb[0] === 0x2a) return io.ok()
      io.dataIn.fill(0x55, 0, 10)
      return io.ok(10)
    },
  })
  const { kernel } = serveOn(t, device)
  await write(kernel, 0, Buffer.alloc(8192, 0xaa))
  const dataOut = Buffer.alloc(512)
  // XDWRITEREAD (10).
  const { dataIn } = await kernel.submit({ cdb: Buffer.of(0x53), dataOut, dataInBytes: 512 })
  t.deepEqual(dataIn, Buffer.concat([Buffer.alloc(10, 0x55), Buffer.alloc(502)]))
})

test('views and lists that a handler keeps go empty with the answer', async (t) => {
  const kept: { views: readonly Uint8Array[]; data: SegmentList }[] = []
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: async (io) => {
      kept.push({ views: io.segments, data: io.data })
      io.data.fill(1)
      await turn()
    },
  })
  const { kernel } = serveOn(t, disk)
  await read(kernel, 0, 8)
  const [{ views, data } = { views: [], data: undefined }] = kept
  t.true(views.length > 0)
  t.true(views.every((view) => view.byteLength === 0 && view.buffer.byteLength === 0))
  t.is(data?.byteLength, 0)
})

test('a view shows its piece of the data area and nothing else', async (t) => {
  const seen: number[] = []
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: async (io) => {
      for (const view of io.segments) seen.push(view.byteLength, view.byteOffset, view.buffer.byteLength)
      io.data.fill(1)
    },
  })
  const { kernel } = serveOn(t, disk)
  await read(kernel, 0, 8)
  t.deepEqual(seen, [4096, 0, 4096])
})

// ---- Aborts --------------------------------------------------------------------------------------------------

/** A disk whose reads wait until their signal aborts; other commands are answered at once. */
function stallingDisk(log: string[] = []) {
  return blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) =>
      new Promise<void>((resolve, reject) => {
        io.signal.addEventListener('abort', () => {
          log.push(`${io.offsetBytes / 512}: ${io.signal.reason.code}`)
          reject(io.signal.reason)
        })
        if (io.offsetBytes === 0) resolve()
      }),
    write: () => {},
  })
}

test('ABORT TASK fires the signal of the command that it names, and of no other', async (t) => {
  const log: string[] = []
  const { kernel, aborts, backstore } = serveOn(t, stallingDisk(log), { stopGraceMs: 0 })
  const named = read(kernel, 8, 1, 1)
  void read(kernel, 16, 1, 2)
  await until(() => backstore.statsSnapshot().inFlight === 2)
  t.is(await kernel.abortTask(1), 'function complete')
  t.is((await named).status, 0x40)
  t.deepEqual(log, ['8: ERR_REQUEST_ABORTED'])
  t.is(aborts.length, 1)
  t.is(aborts[0]?.type, 'abort-task')
  t.deepEqual(
    aborts[0]?.commands.map(({ operationCode }) => operationCode),
    [0x28],
  )
  t.is(backstore.statsSnapshot().aborts, 1)
})

test('LUN RESET aborts all that is in flight, and the initiator gets its answer at once', async (t) => {
  const log: string[] = []
  const { kernel, aborts, backstore } = serveOn(t, stallingDisk(log))
  const stalled = [8, 16, 24].map((lba) => read(kernel, lba, 1))
  await until(() => backstore.statsSnapshot().inFlight === 3)
  t.is(await kernel.lunReset(), 'function complete')
  await Promise.all(stalled)
  t.is(log.length, 3)
  t.deepEqual(
    aborts.map(({ type, commands }) => [type, commands.length]),
    [['lun-reset', 3]],
  )
  t.is(statusOf(await read(kernel, 0, 1)), 'GOOD')
})

test('control: a handler that does not listen keeps the initiator waiting', async (t) => {
  let answer = (): void => {}
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: () => new Promise<void>((resolve) => (answer = resolve)),
  })
  const { kernel, backstore } = serveOn(t, disk)
  void read(kernel, 0, 1)
  await until(() => backstore.statsSnapshot().inFlight === 1)
  let answered = false
  const reset = kernel.lunReset().then(() => (answered = true))
  await sleep(50)
  t.false(answered)
  answer()
  await reset
})

test('task management without anything in flight is told, and frees its place on the ring', async (t) => {
  const { kernel, aborts } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  for (let round = 0; round < 5; round++) await kernel.lunReset()
  await until(() => aborts.length === 5 && kernel.drained === kernel.head)
  t.true(aborts.every(({ commands }) => commands.length === 0))
})

test('task management is found behind an entry of no command, when no further command may be taken', async (t) => {
  const { kernel, aborts, backstore } = serveOn(t, stallingDisk(), { commandCountMax: 1 })
  const stalled = read(kernel, 8, 1)
  await until(() => backstore.statsSnapshot().inFlight === 1)
  t.true(kernel.putEntry(5))
  const reset = kernel.lunReset()
  await until(() => aborts.length === 1)
  t.is(await reset, 'function complete')
  t.is((await stalled).status, 0x40)
})

test('task management is told in the order in which it came, also when a held answer goes out for the first', async (t) => {
  const { kernel, aborts } = serveOn(
    t,
    memoryDisk({ capacityBytes: CAPACITY_BYTES }),
    // The budget ends with the commands, so that the first function is told before the ring is looked at again.
    { budgetCountMax: 2, doorbell: ({ urgent }) => (urgent ? 'now' : 20_000) },
  )
  const answered = [read(kernel, 0, 1), read(kernel, 8, 1)]
  const functions = [kernel.lunReset(), kernel.abortTask(4711), kernel.lunReset()]
  await Promise.all([...answered, ...functions])
  await until(() => aborts.length === 3)
  t.deepEqual(
    aborts.map(({ type }) => type),
    ['lun-reset', 'abort-task', 'lun-reset'],
  )
})

test('an aborted command is not held for company', async (t) => {
  const { doorbell, urgencies } = observedPolicy()
  const { kernel, backstore } = serveOn(t, stallingDisk(), { doorbell, stopGraceMs: 0 })
  await read(kernel, 0, 1)
  const named = read(kernel, 8, 1, 1)
  void read(kernel, 16, 1, 2)
  await until(() => backstore.statsSnapshot().inFlight === 2)
  await kernel.abortTask(1)
  await named
  t.deepEqual(urgencies, [false, true])
})

// ---- Handlers that are wrong ----------------------------------------------------------------------------------

const isAnsweredOnce = test.macro({
  async exec(t, answer: (io: BlockRequest) => unknown, expected: string) {
    const disk = blockDevice({ capacityBytes: CAPACITY_BYTES, read: answer as (io: BlockRequest) => void })
    const { kernel } = serveOn(t, disk, { requestTimeoutMs: 30 })
    t.is(statusOf(await read(kernel, 0, 1)), expected)
    await sleep(60)
    t.is(kernel.fault, undefined)
    t.is(kernel.commandIdCount, 0)
    t.is(statusOf(await kernel.submit({ cdb: TEST_UNIT_READY })), 'GOOD')
  },
  title: (title, _answer, expected) => `a handler that ${title} is answered for once, with ${expected}`,
})
const boom = new Error('boom')
test(
  'throws',
  isAnsweredOnce,
  () => {
    throw boom
  },
  '4/44/00',
)
test('rejects', isAnsweredOnce, () => Promise.reject(boom), '4/44/00')
test('ends its observable with an error', isAnsweredOnce, () => throwError(() => boom), '4/44/00')
test('answers nonsense', isAnsweredOnce, () => ({ result: 'ok' }), '4/44/00')
test('reads too little', isAnsweredOnce, () => 100, '3/11/00')
test(
  'settles twice',
  isAnsweredOnce,
  (io: BlockRequest) => {
    io.data.fill(0)
    return from([undefined, undefined])
  },
  'GOOD',
)
test(
  'fails with an error of the system',
  isAnsweredOnce,
  () => Promise.reject(Object.assign(new Error('EIO'), { code: 'EIO', syscall: 'read' })),
  '3/11/00',
)

test('a handler that never settles is answered for at the deadline, and its buffer is kept', async (t) => {
  const disk = blockDevice({ capacityBytes: CAPACITY_BYTES, read: () => NEVER })
  const { kernel, backstore } = serveOn(t, disk, { requestTimeoutMs: 20, stopGraceMs: 0 })
  const free = kernel.freeBlockCount
  t.is(statusOf(await read(kernel, 0, 8)), 'B/00/00')
  t.is(kernel.freeBlockCount, free - 1)
  t.is(kernel.commandIdCount, 1)
  await backstore.close()
})

test('what a late handler writes lands in the kept buffer, which is then freed', async (t) => {
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: async (io) => {
      const [view] = io.segments
      if (io.offsetBytes === 0) await sleep(60)
      view?.fill(io.offsetBytes === 0 ? 0xaa : 0x55)
    },
  })
  const { kernel } = serveOn(t, disk, { requestTimeoutMs: 20 })
  const free = kernel.freeBlockCount
  t.is(statusOf(await read(kernel, 0, 8)), 'B/00/00')
  const { dataIn } = await read(kernel, 8, 8)
  t.is(dataIn.indexOf(0xaa), -1)
  await until(() => kernel.commandIdCount === 0)
  t.is(kernel.freeBlockCount, free)
  t.is(kernel.fault, undefined)
})

test('a kernel without KEEP_BUF gets no answer before the handler lets its data go', async (t) => {
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: async (io) => {
      await sleep(80)
      io.data.fill(0xaa)
    },
  })
  const { kernel } = serveOn(t, disk, { requestTimeoutMs: 20 }, { keepBuffer: false })
  const start = performance.now()
  t.is(statusOf(await read(kernel, 0, 8)), 'B/00/00')
  t.true(performance.now() - start >= 75)
  t.is(kernel.commandIdCount, 0)
  t.is(kernel.fault, undefined)
})

test('a command that the kernel timed out may be answered late', async (t) => {
  let answer = (): void => {}
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => (io.offsetBytes === 0 ? new Promise<void>((resolve) => (answer = resolve)) : undefined),
  })
  const { kernel, backstore } = serveOn(t, disk, {}, { commandTimeoutMs: 1000 })
  const late = read(kernel, 0, 8)
  await until(() => backstore.statsSnapshot().inFlight === 1)
  kernel.advance(1001)
  t.is(statusOf(await late), '2/08/00')
  answer()
  await until(() => kernel.commandIdCount === 0)
  t.is(statusOf(await read(kernel, 8, 8)), 'GOOD')
  t.is(kernel.fault, undefined)
})

// ---- Kernels that are wrong -----------------------------------------------------------------------------------

const HEAD_AT = 12
const RING_AT = 128

const stopsAt = test.macro({
  async exec(t, corrupt: (kernel: TcmuKernel) => void, code: ErrorCode) {
    const { kernel, backstore, degraded } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
    await read(kernel, 0, 1)
    const tail = kernel.readMemory(64, 4)
    corrupt(kernel)
    await until(() => degraded.length === 1)
    t.is(degraded[0]?.code, code)
    t.is(degraded[0]?.family, 'peer')
    t.deepEqual(kernel.readMemory(64, 4), tail)
    t.is(backstore.broken, degraded[0])
    // The way back.
    await backstore.recover()
    t.is(statusOf(await read(kernel, 0, 1)), 'GOOD')
    const { ringResets, brokenQueues } = backstore.statsSnapshot()
    t.deepEqual([ringResets, brokenQueues], [1, 1])
  },
  title: (title, _corrupt, code) =>
    `${title} stops the device with ${code}; the tail stays and a reset revives it`,
})
function entryAtHead(kernel: TcmuKernel, words: readonly number[], lengthBytes: number): void {
  const bytes = Buffer.alloc(words.length * 4)
  for (const [index, word] of words.entries()) bytes.writeUInt32LE(word >>> 0, index * 4)
  const { head } = kernel
  kernel.writeMemory(RING_AT + head, bytes)
  kernel.publishHead(head + lengthBytes)
}
test('a head outside the ring', stopsAt, (kernel) => kernel.publishHead(2 ** 30), 'ERR_TCMU_HEAD')
test('a head off a boundary', stopsAt, (kernel) => kernel.publishHead(kernel.head + 4), 'ERR_TCMU_HEAD')
test('an entry of length 0', stopsAt, (kernel) => entryAtHead(kernel, [1], 128), 'ERR_TCMU_ENTRY')
test(
  'a command too short for an answer',
  stopsAt,
  (kernel) => entryAtHead(kernel, [104 | 1, 1], 104),
  'ERR_TCMU_ENTRY',
)
test(
  'an entry past the end of the ring',
  stopsAt,
  (kernel) => entryAtHead(kernel, [(2 * MiB) | 1, 1], 128),
  'ERR_TCMU_ENTRY',
)
test(
  'a command with the id 0',
  stopsAt,
  (kernel) => entryAtHead(kernel, [128 | 1, 0, 0, 0, 0, 0, RING_AT + kernel.head + 112, 0], 128),
  'ERR_TCMU_COMMAND_ID',
)
test(
  'data outside the data area',
  stopsAt,
  (kernel) =>
    entryAtHead(
      kernel,
      [128 | 1, 77, 1, 0, 0, 0, RING_AT + kernel.head + 112, 0, 0, 0, 0, 0, 64, 0, 512, 0],
      128,
    ),
  'ERR_TCMU_DATA',
)
test(
  'a CDB outside its entry',
  stopsAt,
  (kernel) => entryAtHead(kernel, [128 | 1, 77, 0, 0, 0, 0, 0, 0], 128),
  'ERR_TCMU_DATA',
)

const refusesMailbox = test.macro({
  exec(t, at: number, value: number) {
    const kernel = new TcmuKernel()
    t.teardown(() => kernel.close())
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(value)
    kernel.writeMemory(at, bytes)
    const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
    t.throws(() => serve({ port: kernel.openPort(), device }), {
      code: at === HEAD_AT ? 'ERR_TCMU_HEAD' : 'ERR_TCMU_MAILBOX',
    })
    // The port was closed: it can be opened again.
    kernel.openPort().close()
  },
  title: (title) => `a mailbox with ${title} is refused at the start`,
})
test('version 0', refusesMailbox, 0, 0x000f0000)
test('version 3', refusesMailbox, 0, 0x000f0003)
test('a ring inside the mailbox', refusesMailbox, 4, 64)
test('a ring of no bytes', refusesMailbox, 8, 0)
test('a ring larger than the mapping', refusesMailbox, 8, 0x7ffffff8)
test('a tail outside the ring', refusesMailbox, 64, 0x7ffffff8)

test('an entry of an unknown kind is passed over as such', async (t) => {
  const { kernel, backstore } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  for (const opcode of [3, 4, 5, 6, 7]) kernel.putEntry(opcode, Buffer.alloc(24))
  t.is(statusOf(await read(kernel, 0, 1)), 'GOOD')
  t.is(backstore.statsSnapshot().unknownOps, 5)
  t.is(kernel.fault, undefined)
})

test('a device that goes away ends with its error, and recovers no more', async (t) => {
  const { kernel, backstore, degraded } = serveOn(t, stallingDisk())
  const log: unknown[] = []
  void read(kernel, 8, 1)
  await until(() => backstore.statsSnapshot().inFlight === 1)
  kernel.remove()
  await until(() => degraded.length === 1)
  t.is(degraded[0]?.code, 'ERR_TCMU_REMOVED')
  await t.throwsAsync(backstore.recover(), { code: 'ERR_TCMU_REMOVED' })
  t.deepEqual(log, [])
})

// ---- Ends ----------------------------------------------------------------------------------------------------

test('close answers what is in flight, once, and however often it is called', async (t) => {
  const { kernel, backstore } = serveOn(t, diskThat(shapes['with a promise']))
  const results = Array.from({ length: 20 }, (_, index) => read(kernel, index, 1))
  await until(() => backstore.statsSnapshot().commands === 20)
  let closed = 0
  backstore.on('closed', () => closed++)
  await Promise.all([backstore.close(), backstore.close()])
  t.true((await Promise.all(results)).every((result) => result.status === 0))
  t.is(closed, 1)
  t.is(kernel.fault, undefined)
  await t.throwsAsync(backstore.resize(MiB), { code: 'ERR_CLOSED' })
})

test('close from inside a handler answers that command as well', async (t) => {
  const device = scsiDevice({
    handler: (io) => {
      void bench.backstore.close()
      return io.ok()
    },
  })
  const bench = serveOn(t, device)
  t.is(statusOf(await bench.kernel.submit({ cdb: TEST_UNIT_READY })), 'GOOD')
  await bench.backstore.close()
})

test('close gives up what is not answered in time', async (t) => {
  const { kernel, backstore } = serveOn(t, stallingDisk(), { stopGraceMs: 20 })
  const stalled = read(kernel, 8, 1)
  await until(() => backstore.statsSnapshot().inFlight === 1)
  await backstore.close()
  t.is(statusOf(await stalled), 'B/00/00')
})

test('a second server is refused while one is there', (t) => {
  const { kernel } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  t.throws(() => kernel.openPort(), { code: 'EBUSY' })
})

test('TCMU refuses a virtio device', (t) => {
  const kernel = new TcmuKernel()
  t.teardown(() => kernel.close())
  t.throws(() => serve({ port: kernel.openPort(), device: entropyDevice() }), { code: 'ERR_DEVICE_KIND' })
})

test('a resize is told with the next command, once, and the new capacity holds', async (t) => {
  const { kernel, backstore } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  const end = CAPACITY_BYTES / 512
  t.is(statusOf(await read(kernel, end, 1)), '5/21/00')
  await backstore.resize(2 * CAPACITY_BYTES)
  t.is(statusOf(await kernel.submit({ cdb: TEST_UNIT_READY })), '6/2A/09')
  t.is(statusOf(await kernel.submit({ cdb: TEST_UNIT_READY })), 'GOOD')
  t.is(statusOf(await read(kernel, end, 1)), 'GOOD')
  await t.throwsAsync(backstore.resize(1000), { code: 'ERR_OPTION_RANGE' })
  const fixed = serveOn(t, diskThat(shapes['at once']))
  await t.throwsAsync(fixed.backstore.resize(MiB), { code: 'ERR_DEVICE_KIND' })
})

// ---- Everything at once ----------------------------------------------------------------------------------------

interface Step {
  readonly kind: 'read' | 'write' | 'abort' | 'reset' | 'turn'
  readonly lba: number
  readonly turns: number
}

async function playSteps(t: ExecutionContext, steps: readonly Step[]): Promise<void> {
  const turnsOf = new Map<number, number>()
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => later(io),
    write: (io) => later(io),
  })
  function later(io: BlockRequest): BlockAnswer {
    const turns = turnsOf.get(io.offsetBytes / 512) ?? 0
    if (turns === 0) return undefined
    if (turns === 1) return of(undefined)
    if (turns === 2) return Promise.reject(boom)
    return timer(turns % 3).pipe(map(() => undefined))
  }
  const kernel = new TcmuKernel({ ringBytes: 8192, dataAreaBytes: 128 * 1024 })
  const backstore = serve({ port: kernel.openPort(), device: disk, control: kernel.control })
  const ends: Promise<unknown>[] = []
  let tag = 0
  for (const { kind, lba, turns } of steps) {
    turnsOf.set(lba, turns)
    if (kind === 'read') ends.push(read(kernel, lba, 1 + (lba % 16), ++tag))
    if (kind === 'write') ends.push(write(kernel, lba, Buffer.alloc(512 * (1 + (lba % 16))), ++tag))
    if (kind === 'abort') ends.push(kernel.abortTask(Math.max(1, tag - turns)))
    if (kind === 'reset') ends.push(kernel.lunReset())
    if (kind === 'turn') await turn()
  }
  // Every command ends, whatever became of it, and the kernel has nothing to complain of.
  await Promise.all(ends)
  await backstore.close()
  t.is(kernel.fault, undefined)
  t.false(kernel.isBroken)
  t.is(kernel.commandIdCount, 0)
  kernel.close()
}

test('whatever initiators and handlers do, every command ends exactly once', async (t) => {
  t.timeout(120_000)
  const step = fc.record<Step>({
    kind: fc.constantFrom('read', 'read', 'write', 'write', 'turn', 'abort', 'reset'),
    lba: fc.integer({ min: 0, max: 200 }),
    turns: fc.integer({ min: 0, max: 6 }),
  })
  const seed = Date.now() % 2 ** 31
  t.log(`seed ${seed}`)
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 80 }), (steps) => playSteps(t, steps)),
    { numRuns: 150, seed },
  )
})
