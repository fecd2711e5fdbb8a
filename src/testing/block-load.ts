import { capacityOfConfig } from '../handlers/block/virtio-blk.ts'
import { type NativeDriverThread, native } from '../native.ts'
import { integerIn, refuseUnknownOptions } from '../options.ts'
import { RingFeature } from '../ring/features.ts'
import { countOf, figuresOf } from '../transport/loopback.ts'
import { MiB } from '../units.ts'
import { processVitals } from './hostile/process-vitals.ts'
import { SharedMemory } from './shared-memory.ts'
import { VhostUserFrontEnd } from './vhost-user-front-end.ts'

/** What {@link loadBlockDevice} does to a disk. */
export interface BlockLoadOptions {
  /** Where a vhost-user-blk back-end listens, of whoever made it. */
  readonly socketPath: string
  /** Requests in flight, 1 to `queueSize`. Default 32. */
  readonly queueDepth?: number
  /** How long, 1 to 86,400,000 ms. Default 1000. */
  readonly durationMs?: number
  /** Bytes a request, a multiple of 512 up to 1 MiB. Default 4096. */
  readonly blockBytes?: number
  /** Share of writes, 0 to 100; the rest are reads. Where on the disk is random. Default 0. */
  readonly writePercent?: number
  /** Writes blocks all over the disk first, and checks every byte that is read against what was written. Default false. */
  readonly verify?: boolean
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
  /** From submit to reap, to within 1/64. */
  readonly p50Micros: number
  readonly p99Micros: number
  readonly p999Micros: number
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

/**
 * Drives a vhost-user-blk back-end from a thread of its own, one request after the other kept in flight up to a depth,
 * each published and kicked for on its own as those of independent programs are. The thread sleeps when it has nothing
 * to do.
 *
 * @throws `BackEndError` when the back-end refuses the front-end, an `Error` of the system when nobody listens,
 * RangeError for an option out of its range
 */
export async function loadBlockDevice(options: BlockLoadOptions): Promise<BlockLoadResult> {
  const load = checkedOptions(options)
  const memory = new SharedMemory({
    sizeBytes: 2 * MiB + load.queueDepth * (load.blockBytes + 8192),
    guestAddress: 0n,
    userAddress: 0n,
  })
  const [kickFd, callFd] = [native.eventfdCreate(), native.eventfdCreate()]
  const frontEnd = VhostUserFrontEnd.connect(load.socketPath)
  let driver: NativeDriverThread | undefined
  try {
    await frontEnd.handshake({ features: load.eventIdx ? -1n : ~RingFeature.EVENT_IDX })
    const { eventIdx } = frontEnd
    driver = native.startDriverThread({
      ...load,
      memoryFd: memory.fd,
      memoryBytes: memory.sizeBytes,
      kickFd,
      callFd,
      eventIdx,
      indirect: (frontEnd.features & RingFeature.INDIRECT_DESC) !== 0n,
      suppress: true,
      requestCountMax: 0,
      capacityBytes: await capacityOf(frontEnd),
      stallMs: STALL_MS,
    })
    await frontEnd.setMemory(memory)
    const { descriptorAddress: descriptor, availableAddress: available, usedAddress: used } = driver
    await frontEnd.startQueue(0, {
      size: load.queueSize,
      addresses: { descriptor, available, used },
      kickFd,
      callFd,
    })
    const cpuMs = await cpuMsOf(frontEnd.backEndPid, () => ended(driver!))
    await frontEnd.stopQueue(0)
    return { ...resultOf(driver), eventIdx, ...cpuMs }
  } finally {
    driver?.close()
    frontEnd.close()
    for (const fd of [kickFd, callFd]) native.closeFd(fd)
    memory.close()
  }
}

function checkedOptions(options: BlockLoadOptions): Required<BlockLoadOptions> {
  const { socketPath, verify = false, eventIdx = true, ...numbers } = options
  refuseUnknownOptions(numbers, [
    'queueDepth',
    'durationMs',
    'blockBytes',
    'writePercent',
    'queueSize',
    'seed',
  ])
  const queueSize = integerIn('queueSize', options.queueSize ?? 256, 4, 32768)
  return {
    socketPath,
    verify,
    eventIdx,
    queueSize,
    queueDepth: integerIn('queueDepth', options.queueDepth ?? 32, 1, queueSize),
    durationMs: integerIn('durationMs', options.durationMs ?? 1000, 1, 86_400_000),
    blockBytes: integerIn('blockBytes', options.blockBytes ?? 4096, 512, MiB),
    writePercent: integerIn('writePercent', options.writePercent ?? 0, 0, 100),
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

function resultOf(
  driver: NativeDriverThread,
): Omit<BlockLoadResult, 'eventIdx' | 'frontEndCpuMs' | 'backEndCpuMs'> {
  const figures = figuresOf(driver)
  return {
    ...figures,
    p999Micros: driver.latencyNanos(0.999) / 1000,
    signals: countOf(driver, 'signalsReceived'),
    lostSignals: countOf(driver, 'lostSignals'),
    stalls: countOf(driver, 'stalls'),
    // Whatever the device did wrong on the ring, the load ended with one request.
    failedRequests: figures.failedRequests + (countOf(driver, 'deviceFault') === 0 ? 0 : 1),
  }
}
