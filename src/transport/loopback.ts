import { EventEmitter } from 'eventemitter3'
import type { Observable } from 'rxjs'
import { HushringError, optionRangeError, optionTypeError } from '../errors.ts'
import { capacityOfConfig } from '../handlers/block/virtio-blk.ts'
import type { Device } from '../handlers/device.ts'
import { DriverCounter, type NativeDriverThread, type NativeDriverThreadOptions, native } from '../native.ts'
import { booleanOf, integerIn, refuseUnknownOptions } from '../options.ts'
import { SharedMemory } from '../testing/shared-memory.ts'
import { type Piece, SplitDriver } from '../testing/split-driver.ts'
import { KiB, MiB } from '../units.ts'
import { DeviceSession, type RegionDescription } from './device-session.ts'
import { histogramOf, type Latencies, latenciesOf } from './latencies.ts'
import { resolveServeOptions, SERVE_OPTION_NAMES, type ServeOptions } from './options.ts'
import type { RingAddresses } from './queue-controller.ts'
import { type StatsOptions, statsOf, type TransportStats } from './stats.ts'

/**
 * How driver and device keep each other from being woken: not at all, by the flags of the rings, or by event
 * indices (VIRTIO_F_EVENT_IDX).
 */
export type NotificationMode = 'none' | 'flags' | 'event-idx'

/** Options of {@link loopback.connect}. */
export interface LoopbackOptions extends Omit<ServeOptions, 'queues' | 'features'> {
  /** The device to serve; borrowed. Loads need a disk. */
  readonly device: Device
  /** Default `event-idx`. */
  readonly notification?: NotificationMode
  /** Entries of the ring: a power of two, 4 to 32768. Default 256. */
  readonly queueSize?: number
}

/** A load of block requests of one size at random places; see {@link Loopback.runLoad}. */
export interface LoadOptions {
  /** Requests in flight, 1 to 256 and at most what the ring holds. Default 32. */
  readonly queueDepth?: number
  /** Ends the load after so many ms; default 1000. 0: only by count. */
  readonly durationMs?: number
  /** Ends the load after so many requests; default 0: only by time. */
  readonly requestCountMax?: number
  /** Bytes a request, a multiple of 512. Default 4096. */
  readonly blockBytes?: number
  /** Share of writes, 0 to 100. Default 0. */
  readonly writePercent?: number
  /** Checks every byte read against what was written last. Default true. */
  readonly verify?: boolean
  /** Seed of the places and the data. Default 1. */
  readonly seed?: number
  /** Called about ten times a second. */
  readonly onProgress?: (progress: { readonly requests: number; readonly elapsedMs: number }) => void
}

/** What a load measured, as its driver saw it. */
export interface LoadResult {
  readonly requests: number
  readonly elapsedMs: number
  readonly iops: number
  /** From submit to reap, to within 1 %. */
  readonly p50Micros: number
  readonly p99Micros: number
  readonly p999Micros: number
  /** Kick eventfd writes by the driver, and decisions of the driver to stay silent. */
  readonly kicks: number
  readonly kicksSuppressed: number
  /** Call eventfd writes by the device, and decisions of the device to stay silent. */
  readonly signals: number
  readonly signalsSuppressed: number
  /** Batches taken and calls into native code by the device. */
  readonly batches: number
  readonly nativeCalls: number
  /** Wake-ups that never came, in either direction. */
  readonly lostNotifications: number
  readonly mismatchedBytes: number
  readonly verifiedBytes: number
  readonly failedRequests: number
}

/** A load, checked: all that the driver thread is told except where. */
type LoadPlan = Omit<NativeDriverThreadOptions, 'memoryFd' | 'kickFd' | 'callFd'>

/** Lifecycle of a loopback. */
export interface LoopbackEvents {
  /** The driver broke a queue. */
  degraded: [error: HushringError]
  closed: []
}

const STALL_MS = 1000
/** Room for rings of any size; pages that nobody touches cost nothing. */
const RING_BYTES_MAX = 16 * MiB

/**
 * A device and its driver in one process, over a real shared-memory ring and real eventfds: no root, no virtual
 * machine. The driver runs on a thread of its own. For trying things, for tests and for measurements.
 */
export class Loopback extends EventEmitter<LoopbackEvents> {
  readonly #session: DeviceSession
  readonly #notification: NotificationMode
  readonly #queueSize: number
  #driver: NativeDriverThread | undefined
  #requester: Requester | undefined
  #loading = false
  #closed = false

  /** @internal Use {@link loopback.connect}. */
  constructor(options: LoopbackOptions) {
    super()
    const { device, notification = 'event-idx', queueSize = 256, ...serve } = options
    this.#notification = notification
    this.#queueSize = queueSize
    const resolved = resolveServeOptions({
      watchdogMs: STALL_MS / 4,
      ...serve,
      queues: { countMax: 1, sizeMax: queueSize },
      // What driver and device agree on is said once, here.
      features: { eventIdx: notification === 'event-idx' },
    })
    this.#session = new DeviceSession(device, resolved, {
      onDegraded: (error) => this.emit('degraded', error),
    })
  }

  /**
   * Runs a load and resolves when every request is answered. One load at a time; the counts are those of this
   * load alone. Rejects with `ERR_CLOSED` after {@link close}.
   */
  async runLoad(load: LoadOptions = {}): Promise<LoadResult> {
    this.#throwIfBusy()
    const plan = this.#planLoad(load)
    this.#loading = true
    let progress: NodeJS.Timeout | undefined
    try {
      await this.#stopRequester()
      this.#throwIfClosed()
      const before = this.#session.statsSnapshot()
      const driver = this.#startDriver(plan)
      progress = reportProgress(driver, load.onProgress)
      await new Promise<void>((resolve) => driver.run(resolve))
      const after = this.#session.statsSnapshot()
      const latencies = latenciesOf(await histogramOf(driver.latencies()))
      return { ...resultOf(driver, before, after), ...latencies }
    } finally {
      clearInterval(progress)
      this.#driver?.close()
      this.#driver = undefined
      if (!this.#closed) await this.#session.drain()
      this.#loading = false
    }
  }

  /**
   * Makes one request, for experiments with devices of any kind: the driver's half runs on this thread. Requests may
   * overlap; they may not overlap a load. Rejects with `ERR_CLOSED` after {@link close}.
   *
   * @param readable bytes for the device, at most 1 MiB; the header of the device's requests included
   * @param writableBytes room for the device's answer, at most 1 MiB; its status byte included
   * @returns a copy of the bytes that the device says it wrote
   */
  async request(readable: Uint8Array, writableBytes: number): Promise<Buffer> {
    this.#throwIfBusy()
    this.#requester ??= this.#startRequester()
    return this.#requester.request(readable, writableBytes)
  }

  #throwIfBusy(): void {
    this.#throwIfClosed()
    if (this.#loading) throw new HushringError('ERR_BUSY', 'a load is running')
  }

  #throwIfClosed(): void {
    if (this.#closed) throw new HushringError('ERR_CLOSED', 'the loopback was closed')
  }

  get #eventIdx(): boolean {
    return this.#notification === 'event-idx'
  }

  #startRequester(): Requester {
    const requester = new Requester(this.#queueSize, this.#eventIdx)
    const { memory, driver } = requester
    this.#startQueue(driver.addresses, {
      kickFd: native.duplicateFd(driver.kickFd),
      callFd: native.duplicateFd(driver.callFd),
      memory: {
        fd: native.duplicateFd(memory.fd),
        guestAddress: memory.guestAddress,
        userAddress: memory.userAddress,
        sizeBytes: BigInt(memory.sizeBytes),
        mmapOffsetBytes: 0n,
      },
    })
    return requester
  }

  async #stopRequester(): Promise<void> {
    const requester = this.#requester
    if (requester === undefined) return
    this.#requester = undefined
    await this.#session.drain()
    await requester.close()
  }

  /** Checks a load before anything is made for it. */
  #planLoad(load: LoadOptions): LoadPlan {
    const queueDepth = integerIn('queueDepth', load.queueDepth ?? 32, 1, 256)
    const blockBytes = integerIn('blockBytes', load.blockBytes ?? 4096, 512, MiB)
    return {
      memoryBytes: RING_BYTES_MAX + queueDepth * (blockBytes + 4 * KiB),
      queueSize: this.#queueSize,
      eventIdx: this.#eventIdx,
      indirect: true,
      segmentCount: 1,
      sequential: false,
      suppress: this.#notification !== 'none',
      queueDepth,
      requestCountMax: integerIn('requestCountMax', load.requestCountMax ?? 0, 0, Number.MAX_SAFE_INTEGER),
      durationMs: integerIn('durationMs', load.durationMs ?? 1000, 0, 24 * 60 * 60 * 1000),
      blockBytes,
      capacityBytes: readCapacity(this.#session.config()),
      writePercent: integerIn('writePercent', load.writePercent ?? 0, 0, 100),
      verify: booleanOf('verify', load.verify ?? true),
      seed: integerIn('seed', load.seed ?? 1, 0, 0xffffffff),
      stallMs: STALL_MS,
    }
  }

  #startDriver(plan: LoadPlan): NativeDriverThread {
    const { memoryBytes } = plan
    const memoryFd = native.memfdCreate('hushring-loopback', memoryBytes, true)
    const kickFd = native.eventfdCreate()
    const callFd = native.eventfdCreate()
    try {
      this.#driver = native.startDriverThread({ ...plan, memoryFd, kickFd, callFd })
    } catch (error) {
      for (const fd of [memoryFd, kickFd, callFd]) native.closeFd(fd)
      throw error
    }
    // The driver thread is closed before the session closes the descriptors that they share.
    const { descriptorAddress, availableAddress, usedAddress } = this.#driver
    this.#startQueue(
      { descriptor: descriptorAddress, available: availableAddress, used: usedAddress },
      {
        kickFd,
        callFd,
        memory: {
          fd: memoryFd,
          guestAddress: 0n,
          userAddress: 0n,
          sizeBytes: BigInt(memoryBytes),
          mmapOffsetBytes: 0n,
        },
      },
    )
    return this.#driver
  }

  /** Does what a front-end does to start its first queue. The session takes the descriptors over. */
  #startQueue(
    addresses: RingAddresses,
    shared: { readonly kickFd: number; readonly callFd: number; readonly memory: RegionDescription },
  ): void {
    this.#session.setFeatures(this.#session.offeredFeatures)
    this.#session.setMemory([shared.memory])
    const queue = this.#session.queue(0)
    queue.setSize(this.#queueSize)
    queue.setBase(0)
    queue.setAddresses(addresses)
    queue.setCall(shared.callFd)
    void queue.setEnabled(true)
    queue.setKick(shared.kickFd)
  }

  /** Counts since the loopback was made. */
  statsSnapshot(): TransportStats {
    return { ...this.#session.statsSnapshot(), connections: 1 }
  }

  /**
   * Counts at intervals. Each subscriber has its own clock; it ends with {@link close} or when unsubscribed.
   */
  stats(options?: StatsOptions): Observable<TransportStats> {
    return statsOf(this, options)
  }

  /** Stops a running load, drains, detaches, unmaps. Calling it again does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#driver?.close()
    await this.#session.drain()
    await this.#requester?.close()
    await this.#session.close()
    this.emit('closed')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** Serves a device to a driver in this process; see {@link Loopback}. */
export const loopback: {
  /**
   * @param options the device and how it is served
   * @returns a connected loopback; close it when done
   */
  connect(options: LoopbackOptions): Promise<Loopback>
} = {
  async connect(options) {
    const others = SERVE_OPTION_NAMES.filter((name) => name !== 'queues' && name !== 'features')
    refuseUnknownOptions(options, ['device', 'notification', 'queueSize', ...others])
    const { device, notification = 'event-idx', queueSize = 256 } = options
    if (device?.kind !== 'block' && device?.kind !== 'virtio') {
      throw optionTypeError('device', 'a device such as blockDevice({ … })', device)
    }
    if (!['none', 'flags', 'event-idx'].includes(notification)) {
      throw optionTypeError('notification', "'none', 'flags' or 'event-idx'", notification)
    }
    integerIn('queueSize', queueSize, 4, 32768)
    if ((queueSize & (queueSize - 1)) !== 0) throw optionRangeError('queueSize', 'a power of two', queueSize)
    return new Loopback(options)
  },
}

const REQUEST_BYTES_MAX = MiB
const REQUEST_COUNT_MAX = 128
const REQUESTS_BYTES = 2 * REQUEST_COUNT_MAX * REQUEST_BYTES_MAX + 16 * MiB

/** The driver's half on this thread, one pair of buffers a request in flight. */
class Requester {
  readonly memory: SharedMemory
  readonly driver: SplitDriver
  readonly #freeBuffers: number[] = []
  #closed: () => void = () => {}
  readonly #whenClosed = new Promise<'closed'>((resolve) => {
    this.#closed = () => resolve('closed')
  })

  constructor(queueSize: number, eventIdx: boolean) {
    this.memory = new SharedMemory({ sizeBytes: REQUESTS_BYTES, sealed: true })
    this.driver = new SplitDriver({ memory: this.memory, size: queueSize, eventIdx })
  }

  async request(readable: Uint8Array, writableBytes: number): Promise<Buffer> {
    integerIn('readable.length', readable.length, 0, REQUEST_BYTES_MAX)
    integerIn('writableBytes', writableBytes, readable.length === 0 ? 1 : 0, REQUEST_BYTES_MAX)
    const { memory, driver } = this
    // Two descriptors a request, and a pair of buffers each.
    const countMax = Math.min(driver.size >> 1, REQUEST_COUNT_MAX)
    if (driver.inFlightCount >= countMax) {
      throw new HushringError('ERR_BUSY', `${countMax} requests are in flight; wait for one to end`)
    }
    const readableAt = this.#freeBuffers.pop() ?? memory.allocate(2 * REQUEST_BYTES_MAX)
    const writableAt = readableAt + REQUEST_BYTES_MAX
    memory.bytes.set(readable, readableAt)
    const pieces: Piece[] = [
      { address: memory.guestAddressOf(readableAt), lengthBytes: readable.length, writable: false },
      { address: memory.guestAddressOf(writableAt), lengthBytes: writableBytes, writable: true },
    ]
    const used = driver
      .submit(pieces.filter(({ lengthBytes }) => lengthBytes > 0))
      .then((usedBytes) =>
        Buffer.from(memory.bytes.subarray(writableAt, writableAt + Math.min(usedBytes, writableBytes))),
      )
    const answer = await Promise.race([used, this.#whenClosed])
    if (answer === 'closed') throw new HushringError('ERR_CLOSED', 'the loopback ended before the answer')
    this.#freeBuffers.push(readableAt)
    return answer
  }

  /** Takes the answers that are there already; requests without one reject with `ERR_CLOSED`. */
  async close(): Promise<void> {
    this.driver.collect()
    // The promises of those answers settle first.
    await new Promise((resolve) => setImmediate(resolve))
    this.#closed()
    this.driver.close()
    this.memory.close()
  }
}

function readCapacity(config: Uint8Array): number {
  if (config.length < 8)
    throw optionTypeError('device', 'a disk, because loads are made of block requests', 'another device')
  return capacityOfConfig(config)
}

function reportProgress(
  driver: NativeDriverThread,
  report: LoadOptions['onProgress'],
): NodeJS.Timeout | undefined {
  if (report === undefined) return undefined
  const startMs = performance.now()
  return setInterval(() => {
    report({
      requests: countOf(driver, 'requests'),
      elapsedMs: performance.now() - startMs,
    })
  }, 100)
}

/** What the thread of a driver has measured of its load. */
export function figuresOf(
  driver: NativeDriverThread,
): Pick<LoadResult, 'requests' | 'elapsedMs' | 'iops' | 'kicks' | 'mismatchedBytes' | 'failedRequests'> {
  const requests = countOf(driver, 'requests')
  const elapsedMs = countOf(driver, 'elapsedNanos') / 1e6
  return {
    requests,
    elapsedMs,
    iops: elapsedMs > 0 ? (requests / elapsedMs) * 1000 : 0,
    kicks: countOf(driver, 'kicks'),
    mismatchedBytes: countOf(driver, 'mismatchedBytes'),
    failedRequests: countOf(driver, 'failedRequests'),
  }
}

/** One of the counters of a driver's thread. */
export function countOf(driver: NativeDriverThread, name: keyof typeof DriverCounter): number {
  return Number(driver.counters[DriverCounter[name]]!)
}

function resultOf(
  driver: NativeDriverThread,
  before: TransportStats,
  after: TransportStats,
): Omit<LoadResult, keyof Latencies> {
  const lostKicks = after.lostNotifications - before.lostNotifications
  return {
    ...figuresOf(driver),
    kicksSuppressed: countOf(driver, 'kicksSuppressed'),
    signals: after.signals - before.signals,
    signalsSuppressed: after.suppressed - before.suppressed,
    batches: after.batches - before.batches,
    nativeCalls: after.nativeCalls - before.nativeCalls,
    lostNotifications: countOf(driver, 'lostSignals') + countOf(driver, 'stalls') + lostKicks,
    verifiedBytes: countOf(driver, 'verifiedBytes'),
  }
}
