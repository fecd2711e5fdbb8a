import { optionRangeError } from '../errors.ts'
import { capacityOfConfig } from '../handlers/block/virtio-blk.ts'
import { type NativeDriverThread, native } from '../native.ts'
import { integerIn, refuseUnknownOptions } from '../options.ts'
import { RingFeature } from '../ring/features.ts'
import { histogramOf, type Latencies, latenciesOf } from '../transport/latencies.ts'
import { countOf, figuresOf } from '../transport/loopback.ts'
import { MiB, SECTOR_BYTES } from '../units.ts'
import { processVitals } from './hostile/process-vitals.ts'
import { SharedMemory } from './shared-memory.ts'
import { VhostUserFrontEnd } from './vhost-user-front-end.ts'

/** What {@link loadBlockDevice} does to a disk. */
export interface BlockLoadOptions {
  /** Where a vhost-user-blk back-end listens, of whoever made it. */
  readonly socketPath: string
  /** Queues, 1 to 64, each with a driver thread and, so that what is verified is its own, a part of the disk. Default 1. */
  readonly queueCount?: number
  /** Requests in flight in each queue, 1 to `queueSize`. Default 32. */
  readonly queueDepth?: number
  /** How long, 1 to 86,400,000 ms. Default 1000. */
  readonly durationMs?: number
  /** Bytes a request, a multiple of 512 up to 1 MiB. Default 4096. */
  readonly blockBytes?: number
  /** Share of writes, 0 to 100; the rest are reads. Default 0. */
  readonly writePercent?: number
  /** One block after the other, round and round; otherwise at random. Not with `verify`. Default false. */
  readonly sequential?: boolean
  /** Writes blocks all over the disk first, and checks every byte that is read against what was written. Default false. */
  readonly verify?: boolean
  /** Ends the load after so many requests, in all queues together; default 0: only by time. */
  readonly requestCountMax?: number
  /** Pieces that the data of a request is cut into, 1 to 126; each is a descriptor of the chain. Default 1. */
  readonly segmentCount?: number
  /** Entries of the ring, a power of two up to what the back-end has, 4 to 32768. Default 256. */
  readonly queueSize?: number
  /** Notifications are suppressed by event indices, if the back-end has them, or by flags. Default true. */
  readonly eventIdx?: boolean
  /** The same number, the same requests. Default 1. */
  readonly seed?: number
}

/** What a load has measured. */
export interface BlockLoadResult {
  readonly requests: number
  readonly elapsedMs: number
  /** Requests a second. */
  readonly iops: number
  /** From submit to reap, to within 1 %, of all queues together. */
  readonly p50Micros: number
  readonly p99Micros: number
  readonly p999Micros: number
  /** All of them, in nanoseconds, as HdrHistogram writes them (V2, compressed, base64): to be added to those of other runs. */
  readonly latencyHistogram: string
  /** Event indices were negotiated. */
  readonly eventIdx: boolean
  /** Wake-ups of the back-end. */
  readonly kicks: number
  /** Wake-ups of the front-end. */
  readonly signals: number
  /** Answers that were there while the front-end slept for a second: the back-end did not tell of them. */
  readonly lostSignals: number
  /** Seconds in which nothing was answered. */
  readonly stalls: number
  readonly failedRequests: number
  readonly mismatchedBytes: number
  /** CPU time of this process and of the back-end. `undefined` when the back-end cannot be seen. */
  readonly frontEndCpuMs: number
  readonly backEndCpuMs: number | undefined
}

/** A wait for a signal that lasts so long is looked into. */
const STALL_MS = 1000

/** Where the data of a request begins; the ring of a queue lies before. */
const QUEUE_BYTES = 2 * MiB

/** One queue and the thread that drives it. */
interface Driver {
  readonly thread: NativeDriverThread
  readonly kickFd: number
  readonly callFd: number
}

/**
 * Drives a vhost-user-blk back-end, each queue from a thread of its own: one request after the other kept in flight up to
 * a depth, each published and kicked for on its own as those of independent programs are. A thread sleeps when it has
 * nothing to do.
 *
 * @throws `BackEndError` when the back-end refuses the front-end, an `Error` of the system when nobody listens,
 * RangeError for an option out of its range, or when the back-end has fewer queues
 */
export async function loadBlockDevice(options: BlockLoadOptions): Promise<BlockLoadResult> {
  const load = checkedOptions(options)
  const partBytes = QUEUE_BYTES + load.queueDepth * (Math.ceil(load.blockBytes / 4096) * 4096 + 4096)
  const memory = new SharedMemory({
    sizeBytes: load.queueCount * partBytes,
    guestAddress: 0n,
    userAddress: 0n,
  })
  const drivers: Driver[] = []
  const frontEnd = VhostUserFrontEnd.connect(load.socketPath)
  try {
    await frontEnd.handshake({ features: load.eventIdx ? -1n : ~RingFeature.EVENT_IDX })
    await expectQueues(frontEnd, load.queueCount)
    const { eventIdx } = frontEnd
    const partBlocks = Math.floor((await capacityOf(frontEnd)) / load.blockBytes / load.queueCount)
    for (let index = 0; index < load.queueCount; index++) {
      const [kickFd, callFd] = [native.eventfdCreate(), native.eventfdCreate()]
      const thread = native.startDriverThread({
        ...load,
        memoryFd: memory.fd,
        memoryBytes: memory.sizeBytes,
        memoryOffsetBytes: index * partBytes,
        kickFd,
        callFd,
        eventIdx,
        indirect: (frontEnd.features & RingFeature.INDIRECT_DESC) !== 0n,
        suppress: true,
        // 0 stays 0: no limit.
        requestCountMax: Math.ceil(load.requestCountMax / load.queueCount),
        firstSector: (index * partBlocks * load.blockBytes) / SECTOR_BYTES,
        capacityBytes: partBlocks * load.blockBytes,
        seed: load.seed + index,
        stallMs: STALL_MS,
      })
      drivers.push({ thread, kickFd, callFd })
    }
    await frontEnd.setMemory(memory)
    for (const [index, driver] of drivers.entries()) await startQueue(frontEnd, index, driver, load.queueSize)
    const cpuMs = await cpuMsOf(frontEnd.backEndPid, async () => {
      await Promise.all(drivers.map(({ thread }) => ended(thread)))
    })
    for (const index of drivers.keys()) await frontEnd.stopQueue(index)
    const threads = drivers.map(({ thread }) => thread)
    return { ...sumOf(threads.map(resultOf)), ...(await latencyResultOf(threads)), eventIdx, ...cpuMs }
  } finally {
    for (const { thread } of drivers) thread.close()
    frontEnd.close()
    for (const fd of drivers.flatMap(({ kickFd, callFd }) => [kickFd, callFd])) native.closeFd(fd)
    memory.close()
  }
}

async function expectQueues(frontEnd: VhostUserFrontEnd, queueCount: number): Promise<void> {
  if (queueCount === 1) return
  const offeredCount = await frontEnd.queueCount()
  if (queueCount > offeredCount) {
    throw optionRangeError('queueCount', `at most ${offeredCount}, the queues of the back-end`, queueCount)
  }
}

function startQueue(
  frontEnd: VhostUserFrontEnd,
  index: number,
  { thread, kickFd, callFd }: Driver,
  size: number,
): Promise<void> {
  const { descriptorAddress: descriptor, availableAddress: available, usedAddress: used } = thread
  return frontEnd.startQueue(index, { size, addresses: { descriptor, available, used }, kickFd, callFd })
}

function checkedOptions(options: BlockLoadOptions): Required<BlockLoadOptions> {
  const { socketPath, verify = false, sequential = false, eventIdx = true, ...numbers } = options
  refuseUnknownOptions(numbers, [
    'queueCount',
    'queueDepth',
    'durationMs',
    'blockBytes',
    'writePercent',
    'requestCountMax',
    'segmentCount',
    'queueSize',
    'seed',
  ])
  if (verify && sequential) throw optionRangeError('sequential', 'false when `verify` is true', sequential)
  const queueSize = integerIn('queueSize', options.queueSize ?? 256, 4, 32768)
  return {
    socketPath,
    verify,
    sequential,
    eventIdx,
    queueSize,
    queueCount: integerIn('queueCount', options.queueCount ?? 1, 1, 64),
    queueDepth: integerIn('queueDepth', options.queueDepth ?? 32, 1, queueSize),
    durationMs: integerIn('durationMs', options.durationMs ?? 1000, 1, 86_400_000),
    blockBytes: integerIn('blockBytes', options.blockBytes ?? 4096, 512, MiB),
    writePercent: integerIn('writePercent', options.writePercent ?? 0, 0, 100),
    requestCountMax: integerIn('requestCountMax', options.requestCountMax ?? 0, 0, Number.MAX_SAFE_INTEGER),
    segmentCount: integerIn('segmentCount', options.segmentCount ?? 1, 1, 126),
    seed: integerIn('seed', options.seed ?? 1, 0, 2 ** 32 - 1),
  }
}

async function capacityOf(frontEnd: VhostUserFrontEnd): Promise<number> {
  const config = await frontEnd.readConfig(0, 8)
  if (config === undefined) throw new Error('the back-end does not tell how large its disk is')
  return capacityOfConfig(config)
}

function ended(driver: NativeDriverThread): Promise<void> {
  return new Promise((resolve) => driver.run(resolve))
}

/** What both sides need while something runs. */
async function cpuMsOf(
  backEndPid: number,
  running: () => Promise<void>,
): Promise<Pick<BlockLoadResult, 'frontEndCpuMs' | 'backEndCpuMs'>> {
  const before = { front: process.cpuUsage(), back: cpuMsOfProcess(backEndPid) }
  await running()
  const { user, system } = process.cpuUsage(before.front)
  const back = cpuMsOfProcess(backEndPid)
  return {
    frontEndCpuMs: (user + system) / 1000,
    backEndCpuMs: back === undefined || before.back === undefined ? undefined : back - before.back,
  }
}

/** Undefined for a process of somebody else, or in another namespace. */
function cpuMsOfProcess(pid: number): number | undefined {
  try {
    return processVitals(pid)?.cpuMs
  } catch {
    return undefined
  }
}

/** How long the requests of all queues took. */
async function latencyResultOf(
  drivers: readonly NativeDriverThread[],
): Promise<Latencies & Pick<BlockLoadResult, 'latencyHistogram'>> {
  const { encodeIntoCompressedBase64 } = await import('hdr-histogram-js')
  const histogram = await histogramOf(Float64Array.from(drivers.flatMap((driver) => [...driver.latencies()])))
  return { ...latenciesOf(histogram), latencyHistogram: encodeIntoCompressedBase64(histogram) }
}

type QueueResult = Omit<
  BlockLoadResult,
  keyof Latencies | 'latencyHistogram' | 'eventIdx' | 'frontEndCpuMs' | 'backEndCpuMs'
>

/** What several queues came to together. */
function sumOf(queues: readonly QueueResult[]): QueueResult {
  const sum = (pick: (queue: QueueResult) => number): number =>
    queues.reduce((total, queue) => total + pick(queue), 0)
  const max = (pick: (queue: QueueResult) => number): number => Math.max(...queues.map(pick))
  return {
    requests: sum(({ requests }) => requests),
    elapsedMs: max(({ elapsedMs }) => elapsedMs),
    iops: sum(({ iops }) => iops),
    kicks: sum(({ kicks }) => kicks),
    signals: sum(({ signals }) => signals),
    lostSignals: sum(({ lostSignals }) => lostSignals),
    stalls: sum(({ stalls }) => stalls),
    failedRequests: sum(({ failedRequests }) => failedRequests),
    mismatchedBytes: sum(({ mismatchedBytes }) => mismatchedBytes),
  }
}

function resultOf(driver: NativeDriverThread): QueueResult {
  const figures = figuresOf(driver)
  return {
    ...figures,
    signals: countOf(driver, 'signalsReceived'),
    lostSignals: countOf(driver, 'lostSignals'),
    stalls: countOf(driver, 'stalls'),
    // Whatever the device did wrong on the ring, the load ended with one request.
    failedRequests: figures.failedRequests + (countOf(driver, 'deviceFault') === 0 ? 0 : 1),
  }
}
