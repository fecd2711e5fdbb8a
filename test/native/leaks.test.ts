import { readFileSync, unlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { FileRingVerb, type NativeTcmuKernel, native } from '../../src/native.ts'
import { KiB, MiB } from '../../src/units.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'
import { ringIsAllowed } from '../helpers/file-ring.ts'
import { openFdCount } from '../helpers/open-fds.ts'

/** How objects of one kind come and go. */
interface Life {
  /** Makes one, uses it, and lets go of it. Returns what must be collected. */
  live(): object | Promise<object>
  /** So many that a leak of their native memory, where they have any worth speaking of, is over {@link LIMIT_BYTES}. */
  readonly count: number
}

/** What is there more of after many lives than before them. */
interface Leak {
  objects: number
  fds: number
  mappings: number
  residentBytes: number
}

/** RSS breathes with the collector and the allocator, and more where a sanitizer puts aside what was freed. */
const LIMIT_BYTES = native.build.sanitizer === '' ? 24 * MiB : 64 * MiB

const memoryFd = native.memfdCreate('hushring-leaks', MiB, true)
const eventfd = native.eventfdCreate()
const eventfds = [eventfd, native.eventfdCreate()] as const

const mapMemory = () => native.mapRegion(memoryFd, 0n, 0n, BigInt(MiB), 0n)

function makeQueue() {
  return native.createSplitQueue({
    sizeMax: 1024,
    headerBytes: 16,
    statusByte: true,
    batchCountMax: 256,
    chainCountMax: 1024,
    strictChains: false,
  })
}

function startQueue() {
  const queue = makeQueue()
  const region = mapMemory()
  const fault = queue.start({
    size: 256,
    descriptorAddress: 0n,
    availableAddress: 4096n,
    usedAddress: 8192n,
    guestAddresses: true,
    availableBase: 0,
    eventIdx: true,
    indirect: true,
    regions: [region],
    callFd: eventfd,
  })
  if (fault !== 0) throw new Error(`the queue does not start: ${fault}`)
  queue.take(1)
  return { queue, region }
}

function makeKernel(): NativeTcmuKernel {
  return native.createTcmuKernel({
    ringBytes: 64 * KiB,
    dataAreaBytes: MiB,
    blockBytes: 4 * KiB,
    flags: 15,
    taskManagement: true,
    commandTimeoutMs: 0,
    queueFullTimeoutMs: 0,
  })
}

function letGo(kernel: NativeTcmuKernel): void {
  native.closeFd(kernel.initiatorFd)
  kernel.close()
}

function makeTcmuQueue() {
  const kernel = makeKernel()
  const port = kernel.openPort()
  const queue = native.createTcmuQueue({
    port,
    commandCountMax: 256,
    batchCountMax: 64,
    inlineCopyBytesMax: 64 * KiB,
  })
  if (queue.start() !== 0) throw new Error('the queue does not start')
  queue.take(1)
  letGo(kernel)
  return { port, queue }
}

function makeDriver() {
  return native.startDriverThread({
    memoryFd,
    memoryBytes: MiB,
    kickFd: eventfds[0],
    callFd: eventfds[1],
    queueSize: 16,
    eventIdx: true,
    indirect: false,
    segmentCount: 1,
    sequential: false,
    suppress: true,
    queueDepth: 1,
    requestCountMax: 1,
    durationMs: 0,
    blockBytes: 512,
    capacityBytes: MiB,
    writePercent: 0,
    verify: false,
    seed: 1,
    stallMs: 1000,
  })
}

function makeLitmus() {
  return native.createLitmus({
    wholeRing: false,
    step: 0,
    eventIdx: true,
    weakened: false,
    roundCountMax: 1,
    lostCountMax: 0,
    durationMs: 1,
  })
}

function makeFileRing() {
  const ring = native.openFileRing(memoryFd, { entryCount: 8, inlineBytesMax: 4096, direct: true })
  ring.addPiece(Buffer.alloc(1000), 0, 1000)
  ring.begin(FileRingVerb.write, 0)
  ring.turn()
  ring.addPiece(Buffer.alloc(1000), 0, 1000)
  ring.begin(FileRingVerb.write, 0)
  return ring
}

/** By a title that ends "many …". What is not closed must be freed when it is collected. */
const lives: Record<string, Life> = {
  'regions that are closed': {
    count: 2_000,
    live() {
      const region = mapMemory()
      new Uint8Array(region.windows[0]!)[0] = 1
      region.close()
      return region
    },
  },
  'regions that are forgotten': {
    count: 2_000,
    live() {
      const region = mapMemory()
      new Uint8Array(region.windows[0]!)[0] = 1
      return region
    },
  },
  'split queues that are closed': {
    count: 2_000,
    live() {
      const { queue, region } = startQueue()
      queue.close()
      region.close()
      return queue
    },
  },
  'split queues that are forgotten while they run': {
    count: 2_000,
    live: () => startQueue().queue,
  },
  'TCMU queues that are closed, with their ports': {
    count: 500,
    live() {
      const { port, queue } = makeTcmuQueue()
      queue.close()
      port.close()
      return queue
    },
  },
  'TCMU queues that are forgotten, with their ports': {
    count: 500,
    live: () => makeTcmuQueue().queue,
  },
  'ports with an exposed buffer that are closed': {
    count: 500,
    live() {
      const kernel = makeKernel()
      const port = kernel.openPort()
      const buffer = port.expose(port.mapBytes - 4 * KiB, 4 * KiB)
      port.conceal(buffer)
      port.close()
      letGo(kernel)
      return port
    },
  },
  'simulated kernels that are forgotten': {
    count: 500,
    live() {
      const kernel = makeKernel()
      native.closeFd(kernel.initiatorFd)
      return kernel
    },
  },
  ...(ringIsAllowed() && {
    'rings of a file that are closed': {
      count: 500,
      live() {
        const ring = makeFileRing()
        ring.close()
        return ring
      },
    },
    'rings of a file that are forgotten with something begun': {
      count: 500,
      live: makeFileRing,
    },
  }),
  'watches that are closed': {
    count: 50_000,
    live() {
      const watch = native.watchReadable(eventfd, true, () => {})
      watch.close()
      return watch
    },
  },
  'watches for a hang-up that came': {
    count: 1_000,
    async live() {
      const path = join(tmpdir(), `hushring-leaks-${process.pid}`)
      const listening = native.unixListen(path, 0o600, 1)
      const near = native.unixConnect(path)
      const far = native.unixAccept(listening)
      unlinkSync(path)
      native.closeFd(listening)
      let watch: object | undefined
      await new Promise<void>((resolve) => {
        watch = native.watchHangUp(near, resolve)
        native.closeFd(far)
      })
      native.closeFd(near)
      return watch!
    },
  },
  'timers that are closed while they are armed': {
    count: 20_000,
    live() {
      const timer = native.createMicroTimer(() => {})
      timer.start(1_000_000)
      timer.close()
      return timer
    },
  },
  'driver threads that are forgotten before they run': { count: 500, live: makeDriver },
  'driver threads that are closed while they run': {
    count: 200,
    async live() {
      const driver = makeDriver()
      await new Promise<void>((resolve) => {
        driver.run(resolve)
        driver.close()
      })
      return driver
    },
  },
  'litmus tests that are forgotten before they run': { count: 1_000, live: makeLitmus },
  'litmus tests that are closed while they run': {
    count: 50,
    async live() {
      const litmus = makeLitmus()
      await new Promise<void>((resolve) => {
        litmus.run(resolve)
        litmus.close()
      })
      return litmus
    },
  },
}

/** How often what goes late, with threads of the collector or turns of the event loop, gets another chance to go. */
const ATTEMPT_COUNT = 20

/** Lives so many lives, and finds what stays of them. */
async function leakOf({ live, count }: Pick<Life, 'live' | 'count'>): Promise<Leak> {
  let alive = 0
  const registry = new FinalizationRegistry(() => alive--)
  const round = async (): Promise<void> => {
    for (let index = 0; index < count; index++) {
      registry.register(await live(), undefined)
      alive++
      // The collector does not know how much native memory waits for it.
      if (index % Math.ceil(count / 4) === 0) await collectGarbage()
    }
    await collectGarbage()
  }
  const weigh = () => ({
    fds: openFdCount(),
    mappings: mappingCount(),
    residentBytes: process.memoryUsage().rss,
  })
  // The first rounds fill the caches of the allocators.
  await round()
  await round()
  const before = weigh()
  await round()
  const grown = (): Leak => {
    const after = weigh()
    return {
      objects: alive,
      fds: after.fds - before.fds,
      mappings: after.mappings - before.mappings,
      residentBytes: after.residentBytes - before.residentBytes,
    }
  }
  for (let attempt = 0; attempt < ATTEMPT_COUNT && isLeak(grown()); attempt++) await collectGarbage()
  return grown()
}

function isLeak({ objects, fds, mappings, residentBytes }: Leak): boolean {
  return objects > 0 || fds > 0 || mappings > 0 || residentBytes > LIMIT_BYTES
}

/** Mappings of this process that show a memory file of these tests or of the simulated kernel. */
function mappingCount(): number {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes('/memfd:')).length
}

for (const [title, life] of Object.entries(lives)) {
  test.serial(`nothing is left of many ${title}`, async (t) => {
    const leak = await leakOf(life)
    t.log(JSON.stringify(leak))
    t.false(isLeak(leak))
  })
}

test.serial('control: what is kept is found', async (t) => {
  const kept: { queue: ReturnType<typeof makeQueue>; fd: number }[] = []
  const leak = await leakOf({
    count: 1_000,
    live() {
      const { queue } = startQueue()
      kept.push({ queue, fd: native.eventfdCreate() })
      return queue
    },
  })
  t.log(JSON.stringify(leak))
  t.deepEqual(
    { ...leak, residentBytes: undefined },
    { objects: 3_000, fds: 1_000, mappings: 1_000, residentBytes: undefined },
  )
  t.true(leak.residentBytes > LIMIT_BYTES)
  for (const { queue, fd } of kept) {
    queue.close()
    native.closeFd(fd)
  }
})
