import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { NEVER } from 'rxjs'
import type { BlockRequest } from '../../src/handlers/block/block-request.ts'
import type { Device } from '../../src/handlers/device.ts'
import { type BlockAnswer, blockDevice, memoryDisk, scsiDevice } from '../../src/handlers/index.ts'
import { coalesce } from '../../src/notify/suppression.ts'
import type { ScsiRequest } from '../../src/ring/scsi-request.ts'
import type { SegmentList } from '../../src/ring/segments.ts'
import { ScsiStatus } from '../../src/ring/sense.ts'
import { TcmuKernel } from '../../src/testing/index.ts'
import type { Logger } from '../../src/transport/logger.ts'
import type { TcmuControl } from '../../src/transport/tcmu/index.ts'
import { type ServePortOptions, serve } from '../../src/transport/tcmu/serve.ts'
import { GiB, KiB, MiB } from '../../src/units.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { read, serveOn, statusOf, TEST_UNIT_READY, write } from '../helpers/tcmu-bench.ts'
import { until } from '../helpers/until.ts'

const CAPACITY_BYTES = 4 * MiB

/** Resolves with `undefined` when `work` takes longer: what hangs is a failure with a name. */
async function within<T>(ms: number, work: Promise<T>): Promise<T | undefined> {
  return await Promise.race([work, sleep(ms, undefined, { ref: false })])
}

/** A disk whose reads are answered as a test says. */
function diskWithReads(read: (io: BlockRequest) => BlockAnswer) {
  return blockDevice({ capacityBytes: CAPACITY_BYTES, read, write: () => {} })
}

/** A disk whose reads end when their signal fires, and never else. */
function diskThatWaitsForAborts() {
  return diskWithReads(
    (io) =>
      new Promise((_resolve, reject) => {
        io.signal.addEventListener('abort', () => reject(io.signal.reason))
      }),
  )
}

/** A handler's work that a test ends. */
function gate() {
  let open = (): void => {}
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { open, opened }
}

async function inFlight(t: ExecutionContext, backstore: ReturnType<typeof serve>, count: number) {
  await until(() => backstore.statsSnapshot().inFlight === count)
  t.is(backstore.statsSnapshot().inFlight, count)
}

// ---- Wake-ups --------------------------------------------------------------------------------------------------

test('task management is told when every credit is taken: it is what gives them back', async (t) => {
  const { kernel, backstore, aborts } = serveOn(t, diskThatWaitsForAborts(), { commandCountMax: 2 })
  const stalled = [read(kernel, 8, 1), read(kernel, 16, 1)]
  await inFlight(t, backstore, 2)
  t.is(await within(2000, kernel.lunReset()), 'function complete')
  await Promise.all(stalled)
  t.is(aborts.length, 1)
})

test('task management behind the last credit and behind other task management is told', async (t) => {
  const { kernel, aborts } = serveOn(t, diskThatWaitsForAborts(), { commandCountMax: 2 })
  kernel.plug()
  const stalled = [read(kernel, 8, 1, 1), read(kernel, 16, 1, 2)]
  const responses = [kernel.abortTask(1), kernel.abortTask(2), kernel.lunReset()]
  kernel.unplug()
  t.deepEqual(await within(2000, Promise.all(responses)), Array(3).fill('function complete'))
  await Promise.all(stalled)
  t.is(aborts.length, 3)
  t.is(kernel.fault, undefined)
})

test('an answer that had to wait for its buffer gives its credit back', async (t) => {
  const disk = diskWithReads(async (io) => {
    if (io.offsetBytes === 0) await sleep(60)
  })
  const options = { requestTimeoutMs: 20, commandCountMax: 1, safetyCheckMs: 0 }
  const { kernel } = serveOn(t, disk, options, { keepBuffer: false })
  const late = read(kernel, 0, 8)
  const next = read(kernel, 8, 8)
  t.is(statusOf(await late), 'B/00/00')
  const served = await within(2000, next)
  t.is(served && statusOf(served), 'GOOD')
})

test('a buffer that is kept holds a credit, nobody spins for it, and it comes back', async (t) => {
  const { open, opened } = gate()
  const disk = diskWithReads((io) => (io.offsetBytes === 0 ? opened : undefined))
  const { kernel, backstore } = serveOn(t, disk, {
    requestTimeoutMs: 20,
    commandCountMax: 1,
    safetyCheckMs: 0,
  })
  t.is(statusOf(await read(kernel, 0, 8)), 'B/00/00')
  const next = read(kernel, 8, 8)
  await sleep(20)
  const { nativeCalls } = backstore.statsSnapshot()
  await sleep(50)
  t.true(backstore.statsSnapshot().nativeCalls - nativeCalls < 10)
  open()
  const served = await within(2000, next)
  t.is(served && statusOf(served), 'GOOD')
  await until(() => kernel.commandIdCount === 0)
})

test('task management does not wait for answers that are held for company', async (t) => {
  const disk = diskWithReads((io) => (io.offsetBytes === 0 ? undefined : NEVER))
  const doorbell = coalesce({ countMax: 64, holdMicrosMax: 1_000_000 })
  const { kernel, backstore } = serveOn(t, disk, { doorbell, stopGraceMs: 0 })
  void read(kernel, 8, 1, 1)
  await inFlight(t, backstore, 1)
  const held = read(kernel, 0, 1, 2)
  await until(() => backstore.statsSnapshot().commands === 2)
  const start = performance.now()
  t.is(await kernel.abortTask(2), 'function complete')
  await held
  t.true(performance.now() - start < 900)
})

test('held answers go out when the data area fills up behind them', async (t) => {
  const disk = diskWithReads((io) => (io.offsetBytes === 0 ? undefined : NEVER))
  const doorbell = coalesce({ countMax: 64, holdMicrosMax: 1_000_000 })
  const { kernel, backstore } = serveOn(t, disk, { doorbell, stopGraceMs: 0 }, { dataAreaBytes: 64 * KiB })
  void read(kernel, 8, 1)
  await inFlight(t, backstore, 1)
  const start = performance.now()
  const held = read(kernel, 0, 8)
  await until(() => backstore.statsSnapshot().commands === 2)
  void read(kernel, 16, 104)
  await held
  t.true(performance.now() - start < 900)
})

// ---- Kept buffers ----------------------------------------------------------------------------------------------

test('a kept buffer that is let go while its answer is held is freed all the same', async (t) => {
  let letGo = (): void => {}
  const device = scsiDevice({
    handler: (io) => {
      letGo = io.hold()
      return io.ok()
    },
  })
  const { kernel, backstore } = serveOn(t, device, { doorbell: () => 1_000_000 })
  const free = kernel.freeBlockCount
  const written = write(kernel, 0, Buffer.alloc(4096))
  await until(() => backstore.statsSnapshot().commands === 1)
  t.is(backstore.statsSnapshot().doorbells, 0)
  letGo()
  t.is(statusOf(await written), 'GOOD')
  await turn()
  t.is(kernel.commandIdCount, 0)
  t.is(kernel.freeBlockCount, free)
  t.is(kernel.fault, undefined)
})

test('a handler that holds its data again after the answer frees nobody else’s buffer', async (t) => {
  const requests: ScsiRequest[] = []
  const held: (() => void)[] = []
  const device = scsiDevice({
    handler: (io) => {
      requests.push(io)
      held.push(io.hold())
      return io.ok()
    },
  })
  const { kernel } = serveOn(t, device)
  await write(kernel, 0, Buffer.alloc(4096))
  held[0]?.()
  await until(() => kernel.commandIdCount === 0)
  // The same id and number, kept by the second command.
  await write(kernel, 0, Buffer.alloc(4096))
  t.is(kernel.commandIdCount, 1)
  requests[0]?.hold()()
  await sleep(20)
  t.is(kernel.commandIdCount, 1)
  held[1]?.()
  await until(() => kernel.commandIdCount === 0)
})

// ---- Old bytes and old sense -------------------------------------------------------------------------------------

type Status = (typeof ScsiStatus)[keyof typeof ScsiStatus]

const showsNothingOld = test.macro({
  async exec(t, status: Status) {
    const device = scsiDevice({ handler: (io) => (io.cdb[0] === 0x2a ? io.ok() : io.status(status)) })
    const { kernel } = serveOn(t, device)
    await write(kernel, 0, Buffer.alloc(4096, 0xaa))
    const { dataIn } = await read(kernel, 0, 8)
    t.is(dataIn.indexOf(0xaa), -1)
  },
  title: (_, status: Status) => `the status ${status.toString(16)} brings no old bytes of Data-In`,
})
for (const status of Object.values(ScsiStatus)) test(showsNothingOld, status)

test('CHECK CONDITION without sense data does not repeat that of another command', async (t) => {
  const sense = { key: 0x3, asc: 0x11, ascq: 0 }
  const device = scsiDevice({
    handler: (io) => (io.cdb[0] === 0 ? io.checkCondition(sense) : io.status(ScsiStatus.CHECK_CONDITION)),
  })
  const { kernel } = serveOn(t, device)
  t.is(statusOf(await kernel.submit({ cdb: TEST_UNIT_READY })), '3/11/00')
  t.is(statusOf(await read(kernel, 0, 1)), '4/44/00')
})

test('sense data that is nonsense costs the command its sense and nothing else', async (t) => {
  const sense = { key: 5, asc: 0x24, ascq: 0, field: null } as never
  const device = scsiDevice({ handler: async (io) => io.checkCondition(sense) })
  const { kernel } = serveOn(t, device)
  const result = await within(2000, read(kernel, 0, 1))
  t.is(result?.status, 2)
  t.is(kernel.commandIdCount, 0)
})

// ---- Data after the answer ---------------------------------------------------------------------------------------

test('a part of a list goes empty with the list, and its views with it', async (t) => {
  const kept: { parts: SegmentList[]; views: readonly Uint8Array[] }[] = []
  const device = scsiDevice({
    handler: async (io) => {
      const part = io.dataIn.first(4096)
      kept.push({ parts: [part, part.first(100)], views: part.views() })
      await turn()
      io.dataIn.fill(0)
      return io.ok()
    },
  })
  const { kernel } = serveOn(t, device)
  await read(kernel, 0, 16)
  const [{ parts, views } = { parts: [], views: [] }] = kept
  t.is(parts.length, 2)
  for (const part of parts) t.deepEqual([part.byteLength, part.views().length], [0, 0])
  t.is(views[0]?.buffer.byteLength, 0)
})

/** Puts a command onto the ring whose data lies at any offset of the mapping. */
function putRead(kernel: TcmuKernel, id: number, offsetBytes: number, lengthBytes: number): void {
  const entry = Buffer.alloc(128)
  entry.writeUInt32LE(128 | 1, 0)
  entry.writeUInt16LE(id, 4)
  entry.writeUInt32LE(1, 8)
  entry.writeBigUInt64LE(BigInt(128 + kernel.head + 112), 24)
  entry.writeBigUInt64LE(BigInt(offsetBytes), 48)
  entry.writeBigUInt64LE(BigInt(lengthBytes), 56)
  entry[112] = 0x28
  kernel.writeMemory(128 + kernel.head, entry)
  kernel.publishHead(kernel.head + 128)
}

test('two commands with the same data are detached each on its own', async (t) => {
  const views: (Uint8Array | undefined)[] = []
  const gates = [gate(), gate()]
  const device = scsiDevice({
    handler: async (io) => {
      const { opened } = gates[views.length]!
      views.push(io.dataIn.views()[0])
      await opened
      return io.ok()
    },
  })
  const { kernel } = serveOn(t, device)
  const dataAt = kernel.mapBytes - 4096
  putRead(kernel, 1000, dataAt, 4096)
  putRead(kernel, 1001, dataAt, 4096)
  await until(() => views.length === 2)
  gates[1]?.open()
  await until(() => views[1]?.byteLength === 0)
  // What is detached is collected now or later, and must not be taken for the other one.
  views[1] = undefined
  for (let round = 0; round < 5; round++) {
    await collectGarbage()
    await sleep(2)
  }
  t.is(views[0]?.byteLength, 4096)
  gates[0]?.open()
  await until(() => views[0]?.byteLength === 0)
  t.pass()
})

test('data that begins where a window does leaves the window its share of the mapping', async (t) => {
  const kernel = new TcmuKernel({ dataAreaBytes: GiB })
  t.teardown(() => kernel.close())
  const port = kernel.openPort()
  t.is(port.windows.length, 2)
  const window = port.windows[1]!
  for (let round = 0; round < 3; round++) {
    port.conceal(port.expose(GiB, 4096))
    await turn()
    await turn()
  }
  t.true(window.byteLength > 0)
  port.close()
  t.is(window.byteLength, 0)
  t.is(port.windows[0]?.byteLength, 0)
  // The device was closed with the port.
  kernel.openPort().close()
})

// ---- Recovery ----------------------------------------------------------------------------------------------------

/** Serves a device whose actions of configfs are changed. */
function serveWithControl(
  t: ExecutionContext,
  device: Device,
  change: (control: TcmuControl) => TcmuControl,
) {
  const kernel = new TcmuKernel()
  const backstore = serve({ port: kernel.openPort(), device, control: change(kernel.control) })
  t.teardown(async () => {
    await backstore.close()
    kernel.close()
  })
  return { kernel, backstore }
}

test('the ring is not reset under a handler that still has data of it', async (t) => {
  const { open, opened } = gate()
  const log: string[] = []
  const disk = diskWithReads(async (io) => {
    const [view] = io.segments
    await opened
    view?.fill(1)
    log.push('the handler is through')
  })
  const { kernel, backstore } = serveWithControl(t, disk, (control) => ({
    ...control,
    resetRing: async () => {
      log.push('reset')
      await control.resetRing()
    },
  }))
  const interrupted = read(kernel, 0, 8)
  await inFlight(t, backstore, 1)
  const recovered = backstore.recover()
  await sleep(30)
  open()
  await recovered
  t.deepEqual(log, ['the handler is through', 'reset'])
  t.is(statusOf(await interrupted), '08')
  t.is(statusOf(await read(kernel, 0, 8)), 'GOOD')
})

test('a handler that does not let go of its data prevents the reset, and a later one succeeds', async (t) => {
  const { open, opened } = gate()
  const disk = diskWithReads((io) => (io.offsetBytes === 0 ? opened : undefined))
  const { kernel, backstore } = serveOn(t, disk, { stopGraceMs: 20 })
  void read(kernel, 0, 8)
  await inFlight(t, backstore, 1)
  await t.throwsAsync(backstore.recover(), { code: 'ERR_BUSY' })
  t.is(backstore.broken?.code, 'ERR_BUSY')
  open()
  await turn()
  await backstore.recover()
  t.is(backstore.broken, undefined)
  t.is(statusOf(await read(kernel, 8, 8)), 'GOOD')
})

test('two recoveries at once are one, and close waits for it', async (t) => {
  const { kernel, backstore } = serveOn(t, memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  kernel.publishHead(4)
  await until(() => backstore.broken !== undefined)
  await Promise.all([backstore.recover(), backstore.recover()])
  t.is(backstore.statsSnapshot().ringResets, 1)
  t.is(statusOf(await read(kernel, 0, 1)), 'GOOD')
  const recovered = backstore.recover()
  await Promise.all([recovered, backstore.close()])
  t.is(backstore.statsSnapshot().ringResets, 2)
  t.is(kernel.fault, undefined)
})

test('a recovery that fails leaves the device broken and not blocked', async (t) => {
  const calls: string[] = []
  let refused = true
  const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
  const { kernel, backstore } = serveWithControl(t, device, (control) => ({
    ...control,
    block: async () => {
      calls.push('block')
      await control.block()
    },
    unblock: async () => {
      calls.push('unblock')
      await control.unblock()
    },
    resetRing: async () => {
      if (refused) throw new Error('refused')
      await control.resetRing()
    },
  }))
  await t.throwsAsync(backstore.recover(), { message: 'refused' })
  t.is(backstore.broken?.code, 'ERR_TCMU_SYSTEM')
  t.deepEqual(calls, ['block', 'unblock'])
  refused = false
  await backstore.recover()
  t.is(backstore.broken, undefined)
  t.is(statusOf(await read(kernel, 0, 1)), 'GOOD')
})

test('what an initiator set with MODE SELECT outlives a reset of the ring', async (t) => {
  let connections = 0
  const device = scsiDevice({
    connect: () => {
      connections++
      return (io) => io.ok(0)
    },
  })
  const { kernel, backstore } = serveOn(t, device)
  await backstore.recover()
  t.is(statusOf(await kernel.submit({ cdb: TEST_UNIT_READY })), 'GOOD')
  t.is(connections, 1)
})

// ---- Listeners and loggers ---------------------------------------------------------------------------------------

test('a logger that throws costs its line and nothing else', async (t) => {
  const refuse = (): never => {
    throw new Error('the disk of the log is full')
  }
  const logger: Logger = { error: refuse, warn: refuse, info: refuse, debug: refuse }
  const disk = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: async (io) => {
      if (io.offsetBytes === 0) throw new Error('failed')
      await new Promise((_resolve, reject) => {
        io.signal.addEventListener('abort', () => reject(io.signal.reason))
      })
    },
  })
  const { kernel, backstore, degraded } = serveOn(t, disk, { logger })
  t.is((await within(2000, read(kernel, 0, 1)))?.status, 2)
  const stalled = read(kernel, 8, 1)
  await inFlight(t, backstore, 1)
  t.is(await within(2000, kernel.lunReset()), 'function complete')
  await stalled
  kernel.publishHead(4)
  await until(() => degraded.length === 1)
  t.is(degraded[0]?.code, 'ERR_TCMU_HEAD')
})

// ---- Starts and ends ---------------------------------------------------------------------------------------------

test('a ring that cannot be believed at the first look is refused at the start', (t) => {
  const kernel = new TcmuKernel()
  t.teardown(() => kernel.close())
  kernel.writeMemory(12, Buffer.of(4, 0, 0, 0))
  const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
  const port = kernel.openPort()
  t.throws(() => serve({ port, device }), { code: 'ERR_TCMU_HEAD' })
  kernel.openPort().close()
})

test('serve closes the port when it refuses an option', (t) => {
  const kernel = new TcmuKernel()
  t.teardown(() => kernel.close())
  const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
  const options = { port: kernel.openPort(), device, dorbell: 1 } as unknown as ServePortOptions
  t.throws(() => serve(options), { code: 'ERR_OPTION_TYPE' })
  t.throws(() => serve({ port: kernel.openPort(), device, control: 1 as never }), { code: 'ERR_OPTION_TYPE' })
  kernel.openPort().close()
})

test('close waits for answers that wait for their buffers', async (t) => {
  const { kernel, backstore } = serveOn(
    t,
    diskThatWaitsForAborts(),
    { stopGraceMs: 20 },
    { keepBuffer: false },
  )
  const stalled = read(kernel, 8, 1)
  await inFlight(t, backstore, 1)
  await backstore.close()
  const result = await within(2000, stalled)
  t.is(result && statusOf(result), 'B/00/00')
})

test.serial(
  'a hundred devices that are served, broken, recovered and closed leave no descriptor behind',
  async (t) => {
    const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
    const round = async (): Promise<void> => {
      const kernel = new TcmuKernel()
      const backstore = serve({
        port: kernel.openPort(),
        device,
        control: kernel.control,
        inlineCopyBytesMax: 0,
      })
      await read(kernel, 0, 8)
      kernel.publishHead(4)
      await until(() => backstore.broken !== undefined)
      await backstore.recover()
      await backstore.close()
      kernel.close()
    }
    await round()
    const before = openFdCount()
    for (let count = 0; count < 100; count++) await round()
    await until(() => openFdCount() <= before)
    t.pass()
  },
)
