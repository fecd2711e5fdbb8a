import test, { type ExecutionContext } from 'ava'
import { retry, timeout } from '../../src/handlers/index.ts'
import { blockDevice, compose, type Device, MiB, type ServeOptions, virtioDevice } from '../../src/index.ts'
import { native } from '../../src/native.ts'
import { BlockDriver, SharedMemory, SplitDriver } from '../../src/testing/index.ts'
import { DeviceSession, type QueueController } from '../../src/transport/device-session.ts'
import { resolveServeOptions } from '../../src/transport/options.ts'
import { until } from '../helpers/until.ts'

/** A session with one queue and its driver, without any connection between them. */
class Bench {
  readonly memory = new SharedMemory()
  readonly driver = new SplitDriver({ memory: this.memory, size: 64 })
  readonly disk = new BlockDriver(this.driver, this.memory)
  readonly session: DeviceSession
  readonly errors: string[] = []

  constructor(t: ExecutionContext, device: Device, options: ServeOptions = {}) {
    this.session = new DeviceSession(device, resolveServeOptions(options), {
      onDegraded: (error) => this.errors.push(error.code),
    })
    this.session.setFeatures(this.session.offeredFeatures)
    this.session.setMemory([this.region()])
    t.teardown(async () => {
      await this.session.close()
      this.driver.close()
      this.memory.close()
    })
  }

  region() {
    const { fd, guestAddress, userAddress, sizeBytes } = this.memory
    return {
      fd: native.duplicateFd(fd),
      guestAddress,
      userAddress,
      sizeBytes: BigInt(sizeBytes),
      mmapOffsetBytes: 0n,
    }
  }

  get queue(): QueueController {
    return this.session.queue(0)
  }

  async start(base = 0): Promise<void> {
    const { queue, driver } = this
    queue.setSize(64)
    queue.setBase(base)
    queue.setAddresses(driver.addresses)
    queue.setCall(native.duplicateFd(driver.callFd))
    queue.setKick(native.duplicateFd(driver.kickFd))
    await queue.setEnabled(true)
  }
}

/** Timers that `work` makes to do something again and again. */
function intervalsMadeBy(work: () => void): number {
  const original = globalThis.setInterval
  let count = 0
  globalThis.setInterval = ((...parameters: Parameters<typeof original>) => {
    count++
    return original(...parameters)
  }) as typeof original
  try {
    work()
  } finally {
    globalThis.setInterval = original
  }
  return count
}

/** A disk whose reads wait until they are let go. */
function heldDisk() {
  const held: (() => void)[] = []
  const device = blockDevice({
    capacityBytes: MiB,
    read: (io) =>
      new Promise<void>((resolve) => {
        held.push(() => {
          io.data.fill(7)
          resolve()
        })
      }),
  })
  return { device, held }
}

test('a device that cannot be connected breaks its queue with a code, and the process lives', async (t) => {
  const device = virtioDevice({
    deviceId: 63,
    handler: (io) => io.ok(),
  })
  const broken = {
    ...device,
    connect: () => {
      throw new Error('no such features')
    },
  } as Device
  const bench = new Bench(t, broken)
  await bench.start()
  t.deepEqual(bench.errors, ['ERR_HANDLER_THREW'])
  t.false(bench.queue.running)
})

test('a ring that never ran keeps the base that the driver set', async (t) => {
  const { device } = heldDisk()
  const bench = new Bench(t, device)
  const { queue } = bench
  queue.setSize(64)
  queue.setBase(100)
  queue.setAddresses({ ...bench.driver.addresses, used: 0n })
  queue.setKick(native.duplicateFd(bench.driver.kickFd))
  await queue.setEnabled(true)
  t.deepEqual(bench.errors, ['ERR_RING_ADDRESS'])
  t.is(await queue.stop(), 100)
})

test('a handler that stops its queue in the very first batch is answered before the queue stops', async (t) => {
  let stopping: Promise<number> | undefined
  const device = blockDevice({
    capacityBytes: MiB,
    read: (io) => {
      stopping = bench.queue.stop()
      io.data.fill(7)
    },
  })
  const bench: Bench = new Bench(t, device)
  const answer = bench.disk.read(0, 512)
  await bench.start()
  t.deepEqual(await answer, Buffer.alloc(512, 7))
  t.is(await stopping, 1)
  t.false(bench.queue.running)
})

test('a reset waits for handlers that still write into the memory', async (t) => {
  const { device, held } = heldDisk()
  const bench = new Bench(t, device)
  await bench.start()
  void bench.disk.read(0, 512)
  await until(() => held.length === 1)
  let reset = false
  const resetting = bench.session.reset().then(() => {
    reset = true
  })
  await new Promise((resolve) => setImmediate(resolve))
  t.false(reset)
  held[0]!()
  await resetting
  t.is(bench.driver.loadUsedIndex(), 0, 'the forgotten request is not answered')
})

test('a reset waits no longer than the grace time', async (t) => {
  const bench = new Bench(t, heldDisk().device, { stopGraceMs: 10 })
  await bench.start()
  void bench.disk.read(0, 512)
  await until(() => bench.queue.counts().inFlight === 1)
  await bench.session.reset()
  t.is(bench.queue.counts().inFlight, 0)
})

test('the watchdog finds a queue that sleeps on a request, and wakes it', async (t) => {
  const device = blockDevice({ capacityBytes: MiB, read: (io) => io.data.fill(7) })
  const bench = new Bench(t, device)
  await bench.start()
  await bench.disk.read(0, 512)
  // The driver makes a request visible and never kicks: the wake-up is lost.
  const kick = bench.driver.kick.bind(bench.driver)
  bench.driver.kick = () => {}
  const answer = bench.disk.read(0, 512)
  await new Promise((resolve) => setImmediate(resolve))
  t.deepEqual(bench.queue.findLostWakeUps(), [], 'the first look only remembers')
  t.deepEqual(bench.queue.findLostWakeUps(), ['kick'])
  t.deepEqual(await answer, Buffer.alloc(512, 7))
  bench.driver.kick = kick
  await bench.disk.read(0, 512)
  t.deepEqual(bench.queue.findLostWakeUps(), [])
  t.deepEqual(bench.queue.findLostWakeUps(), [], 'a queue that is idle and armed has lost nothing')
})

test('the watchdog finds a driver that sleeps on an answer, and signals it', async (t) => {
  const { device, held } = heldDisk()
  const bench = new Bench(t, device)
  await bench.start()
  const { driver } = bench
  const answers = [bench.disk.read(0, 512), bench.disk.read(0, 512)]
  await until(() => held.length === 2)
  held[0]!()
  await answers[0]
  t.deepEqual(bench.queue.findLostWakeUps(), [], 'an unanswered request is no lost signal')
  // As if the wish stayed in the store buffer while the device read the old one: it publishes and stays silent.
  const wish = driver.loadUsedEvent()
  driver.storeUsedEvent(wish - 1)
  held[1]!()
  await until(() => driver.loadUsedIndex() === 2)
  t.deepEqual(bench.queue.findLostWakeUps(), [])
  t.deepEqual(bench.queue.findLostWakeUps(), [], 'nobody asked to be told')
  driver.storeUsedEvent(wish)
  t.deepEqual(bench.queue.findLostWakeUps(), [], 'the first look only remembers')
  t.is(driver.inFlightCount, 1)
  t.deepEqual(bench.queue.findLostWakeUps(), ['signal'])
  t.deepEqual(await answers[1], Buffer.alloc(512, 7))
  t.deepEqual(bench.queue.findLostWakeUps(), [])
  t.deepEqual(bench.queue.findLostWakeUps(), [], 'a driver that has seen everything has lost nothing')
})

test('the watchdog does not take a draining queue, or one without credits, for a sleeping one', async (t) => {
  const { device, held } = heldDisk()
  const bench = new Bench(t, device, { creditCountMax: 1 })
  await bench.start()
  const answers = [bench.disk.read(0, 512), bench.disk.read(0, 512)]
  await until(() => held.length === 1)
  for (let look = 0; look < 3; look++) t.deepEqual(bench.queue.findLostWakeUps(), [], 'out of credits')
  const stopping = bench.queue.stop()
  for (let look = 0; look < 3; look++) t.deepEqual(bench.queue.findLostWakeUps(), [], 'draining')
  held[0]!()
  t.is(await stopping, 1)
  await answers[0]
})

test('the watchdog finds what is lost by itself, within two periods and without a false alarm before', async (t) => {
  const device = blockDevice({ capacityBytes: MiB, read: (io) => io.data.fill(7) })
  const log: string[] = []
  const logger = { error: (line: string) => log.push(line), warn() {}, info() {}, debug() {} }
  const bench = new Bench(t, device, { watchdogMs: 10, logger })
  await bench.start()
  for (let round = 0; round < 300; round++) {
    await Promise.all(Array.from({ length: 16 }, () => bench.disk.read(0, 512)))
  }
  t.is(bench.session.statsSnapshot().lostNotifications, 0)
  bench.driver.kick = () => {}
  // Nothing else would end this wait.
  await bench.disk.read(0, 512)
  t.is(bench.session.statsSnapshot().lostNotifications, 1)
  t.deepEqual(log, ['queue 0: a kick was lost; the watchdog made up for it'])
})

test('control: without the watchdog a lost kick stays lost, and no timer runs', async (t) => {
  const device = blockDevice({ capacityBytes: MiB, read: (io) => io.data.fill(7) })
  const bench = new Bench(t, device)
  t.is(
    intervalsMadeBy(() => void new Bench(t, device)),
    0,
  )
  t.is(
    intervalsMadeBy(() => void new Bench(t, device, { watchdogMs: 1000 })),
    1,
    'control: a timer would be counted',
  )
  await bench.start()
  bench.driver.kick = () => {}
  void bench.disk.read(0, 512)
  await new Promise((resolve) => setTimeout(resolve, 60))
  t.is(bench.driver.inFlightCount, 1)
  t.is(bench.session.statsSnapshot().lostNotifications, 0)
})

test('a memory file of any size costs a front-end nothing, so what is mapped of it has a limit', (t) => {
  const bench = new Bench(t, heldDisk().device)
  const sizeBytes = 257 * 2 ** 30
  const fd = native.memfdCreate('huge', sizeBytes, false)
  const huge = { fd, guestAddress: 0n, userAddress: 0n, sizeBytes: BigInt(sizeBytes), mmapOffsetBytes: 0n }
  t.throws(() => bench.session.setMemory([huge]), { code: 'ERR_MEMORY_REGION' })
  t.is(bench.session.memory.regions.length, 1, 'the old table stays')
})

test('a write that a deadline gave up is not repeated: it may still be running and land after later writes', async (t) => {
  let writes = 0
  let reads = 0
  const silent = blockDevice({
    capacityBytes: MiB,
    read: () => {
      reads++
      return new Promise<void>(() => {})
    },
    write: () => {
      writes++
      return new Promise<void>(() => {})
    },
  })
  const bench = new Bench(t, compose(silent, [retry({ count: 2 }), timeout({ ms: 10 })]), { stopGraceMs: 0 })
  await bench.start()
  await t.throwsAsync(bench.disk.write(0, Buffer.alloc(512)))
  t.is(writes, 1)
  await t.throwsAsync(bench.disk.read(0, 512))
  t.is(reads, 3, 'a read into private memory may be repeated')
})

test('a queue that its driver stops waits for a slow store and gives nothing up', async (t) => {
  const { device, held } = heldDisk()
  const bench = new Bench(t, device, { stopGraceMs: 5 })
  await bench.start()
  const answer = bench.disk.read(0, 512)
  await until(() => held.length === 1)
  const stopping = bench.queue.stop()
  await new Promise((resolve) => setTimeout(resolve, 30))
  held[0]!()
  t.is(await stopping, 1)
  t.deepEqual(await answer, Buffer.alloc(512, 7))
})
