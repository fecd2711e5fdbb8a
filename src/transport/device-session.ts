import { HushringError } from '../errors.ts'
import { asVirtioDevice } from '../handlers/as-virtio-device.ts'
import type { Device, VirtioDevice } from '../handlers/device.ts'
import { native } from '../native.ts'
import { RingFeature } from '../ring/features.ts'
import {
  checkInflightLayout,
  type InflightDescription,
  InflightFile,
  type InflightLayout,
  inflightError,
} from '../ring/inflight.ts'
import type { DriverMemory, RegionDescription } from '../ring/memory.ts'
import type { RingRequest } from '../ring/request.ts'
import { MemoryTable, type RegionIdentity } from './memory-table.ts'
import type { ResolvedServeOptions } from './options.ts'
import { QueueController, type QueueHost } from './queue-controller.ts'
import { addStats, BlockTally, NO_STATS, type TransportStats } from './stats.ts'

export type { RegionDescription } from '../ring/memory.ts'
export { QueueController } from './queue-controller.ts'

/** What a session tells the transport it belongs to. */
export interface DeviceSessionEvents {
  /** The driver broke a queue. The others run on. */
  onDegraded?(error: HushringError): void
}

/** Which queues of a device a session serves: those whose index leaves this rest. */
export interface QueueShare {
  /** 0 to `workerCount` - 1. */
  readonly worker: number
  readonly workerCount: number
}

/** What a device offers to drivers. */
export interface DeviceOffer {
  /** Number of virtqueues offered. */
  readonly queueCount: number
  /** Every feature bit offered: those of the device and of the ring. */
  readonly offeredFeatures: bigint
}

/** What a device offers when it is served with these options. */
export function offerOf(device: VirtioDevice, options: ResolvedServeOptions): DeviceOffer {
  return {
    queueCount: Math.min(options.queueCountMax, device.queueCountMax),
    offeredFeatures:
      device.features |
      RingFeature.VERSION_1 |
      (options.eventIdx ? RingFeature.EVENT_IDX : 0n) |
      (options.indirect ? RingFeature.INDIRECT_DESC : 0n),
  }
}

/**
 * One driver's connection to a device, whatever the transport: the features it accepted, its memory and its
 * queues. Wrong input from the driver is thrown as a {@link HushringError} of the family `peer`.
 */
export class DeviceSession implements QueueHost, DeviceOffer {
  readonly device: VirtioDevice
  readonly options: ResolvedServeOptions
  readonly queueCount: number
  readonly offeredFeatures: bigint
  readonly #share: QueueShare
  /** Those of its share. */
  readonly #queues: readonly QueueController[]
  readonly #memoryTable = new MemoryTable()
  #inflight: InflightFile | undefined
  readonly #tally = new BlockTally()
  readonly #events: DeviceSessionEvents
  readonly #watchdog: NodeJS.Timeout | undefined
  #features = 0n
  #errors = 0
  #brokenQueues = 0
  #lostNotifications = 0
  #closed = false

  /**
   * @param device borrowed; the session never closes it
   * @param share default: every queue
   */
  constructor(
    device: Device,
    options: ResolvedServeOptions,
    events: DeviceSessionEvents = {},
    share: QueueShare = { worker: 0, workerCount: 1 },
  ) {
    this.device = asVirtioDevice(device.kind === 'block' ? device.wrap(this.#tally.layer) : device)
    this.options = options
    this.#events = events
    const { queueCount, offeredFeatures } = offerOf(this.device, options)
    this.queueCount = queueCount
    this.offeredFeatures = offeredFeatures
    this.#share = share
    this.#queues = Array.from({ length: queueCount }, (_, index) => index)
      .filter((index) => index % share.workerCount === share.worker)
      .map((index) => new QueueController(index, this))
    if (options.watchdogMs > 0) {
      this.#watchdog = setInterval(() => this.#look(), options.watchdogMs).unref()
    }
  }

  get features(): bigint {
    return this.#features
  }

  get memory(): DriverMemory {
    return this.#memoryTable.memory
  }

  get inflight(): InflightFile | undefined {
    return this.#inflight
  }

  get queueSizeMax(): number {
    return this.options.queueSizeMax
  }

  /** Throws `ERR_VHOST_FEATURES` for a bit that was not offered, `ERR_VHOST_ORDER` while a queue runs with others. */
  setFeatures(features: bigint): void {
    const unknown = features & ~this.offeredFeatures
    if (unknown !== 0n) {
      throw new HushringError('ERR_VHOST_FEATURES', `feature bits 0x${unknown.toString(16)} were not offered`)
    }
    if (features !== this.#features && this.#queues.some((queue) => queue.running)) {
      throw new HushringError('ERR_VHOST_ORDER', 'features cannot change while a queue runs')
    }
    this.#features = features
  }

  /**
   * Replaces the memory table; running queues follow, and requests in flight keep the old maps until they settle.
   * Takes the file descriptors over. Throws `ERR_MEMORY_REGION`; then the old table stays.
   */
  setMemory(regions: readonly RegionDescription[]): void {
    this.#memoryTable.replace(regions)
    this.#useNewMemory()
  }

  /** Adds one region; see {@link setMemory}. */
  addRegion(region: RegionDescription): void {
    this.#memoryTable.add(region)
    this.#useNewMemory()
  }

  /** Removes the region with these addresses and size; see {@link setMemory}. */
  removeRegion(region: RegionIdentity): void {
    this.#memoryTable.remove(region)
    this.#useNewMemory()
  }

  #useNewMemory(): void {
    for (const queue of this.#queues) queue.useNewMemory()
  }

  /**
   * Keeps account of the requests in flight in this file from now on, in the place of an earlier one, and goes on with
   * what an earlier process left in it. Takes the file descriptor over. Throws `ERR_VHOST_INFLIGHT` when it does not fit
   * the queues, `ERR_VHOST_ORDER` while one runs; then the earlier file stays.
   */
  setInflight(description: InflightDescription): void {
    try {
      this.checkInflightLayout(description)
      const inflight = new InflightFile(description)
      try {
        for (const queue of this.#queues) queue.checkInflight(inflight)
      } catch (error) {
        inflight.close()
        throw error
      }
      this.#inflight?.close()
      this.#inflight = inflight
    } finally {
      native.closeFd(description.fd)
    }
  }

  /** Throws `ERR_VHOST_INFLIGHT` for more queues than the device has, or larger rings than they accept. */
  checkInflightLayout(layout: InflightLayout): void {
    checkInflightFits(layout, this)
  }

  /** Throws `ERR_VHOST_QUEUE_INDEX` for a queue the device does not have. */
  queue(index: number): QueueController {
    checkQueueIndex(index, this)
    return this.#queues[Math.floor(index / this.#share.workerCount)]!
  }

  /** The device configuration space; a fresh copy. */
  config(): Uint8Array {
    return this.device.config(this.queueCount)
  }

  /** A driver's write to the configuration space; false when those bytes are read-only. */
  writeConfig(offsetBytes: number, bytes: Uint8Array): boolean {
    return this.device.writeConfig(offsetBytes, bytes)
  }

  /**
   * The device as it was when the driver came: queues stopped and forgotten, features dropped, and what was in flight
   * is nobody's any more, so that no later process answers it either. Memory stays. Resolves
   * as {@link close} does, so that a driver that starts anew is not written to by requests it has forgotten.
   */
  async reset(): Promise<void> {
    for (const queue of this.#queues) queue.reset()
    this.#inflight?.forget()
    this.#dropInflight()
    this.#features = 0n
    await this.#settled(this.#memoryTable.renew())
  }

  /** Takes nothing more and answers what is in flight; what takes longer than the grace time is aborted and fails. */
  async drain(): Promise<void> {
    await Promise.all(this.#queues.map((queue) => queue.stop(this.options.stopGraceMs)))
  }

  /**
   * The driver is gone: aborts what is in flight, closes every file descriptor, and unmaps the memory as soon as no
   * handler uses it. Resolves when the last handler has settled, so that a write of this driver cannot land after
   * one of the next driver; it waits for that no longer than the grace time. Calling it again does nothing.
   */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearInterval(this.#watchdog)
    for (const queue of this.#queues) queue.close()
    // What is marked in it stays marked: the front-end gives it to whoever serves next.
    this.#dropInflight()
    await this.#settled(this.#memoryTable.close())
  }

  #dropInflight(): void {
    this.#inflight?.close()
    this.#inflight = undefined
  }

  /** Waits until no handler uses the memory any more, but no longer than the grace time. */
  async #settled(ended: Promise<void>): Promise<void> {
    let grace: NodeJS.Timeout | undefined
    const late = new Promise<'late'>((resolve) => {
      grace = setTimeout(resolve, this.options.stopGraceMs, 'late')
    })
    if ((await Promise.race([ended, late])) === 'late') {
      this.options.logger.warn(
        'a handler has not settled after its driver went; its memory stays mapped until it does',
      )
    }
    clearTimeout(grace)
  }

  /** Counts since the session began. `connections` is 0: the transport knows those. */
  statsSnapshot(): TransportStats {
    let stats: TransportStats = {
      ...NO_STATS,
      reads: this.#tally.reads,
      writes: this.#tally.writes,
      flushes: this.#tally.flushes,
      bytesRead: this.#tally.bytesRead,
      bytesWritten: this.#tally.bytesWritten,
      errors: this.#errors,
      brokenQueues: this.#brokenQueues,
      lostNotifications: this.#lostNotifications,
    }
    for (const queue of this.#queues) {
      stats = addStats(stats, { ...NO_STATS, ...queue.counts() })
    }
    return stats
  }

  onBroken(queue: QueueController, error: HushringError): void {
    this.#brokenQueues++
    this.options.logger.error(`queue ${queue.index} is broken: ${error.code}: ${error.message}`)
    this.#events.onDegraded?.(error)
  }

  onFailure(request: RingRequest, error: HushringError): void {
    this.#errors++
    this.options.logger.debug(`queue ${request.queueIndex}: request failed: ${error.code}: ${error.message}`)
  }

  #look(): void {
    for (const queue of this.#queues) {
      for (const wakeUp of queue.findLostWakeUps()) {
        this.#lostNotifications++
        this.options.logger.error(`queue ${queue.index}: a ${wakeUp} was lost; the watchdog made up for it`)
      }
    }
  }
}

/** Throws `ERR_VHOST_QUEUE_INDEX` for a queue the device does not have. */
export function checkQueueIndex(index: number, { queueCount }: DeviceOffer): void {
  if (index < queueCount) return
  throw new HushringError('ERR_VHOST_QUEUE_INDEX', `queue ${index} does not exist; there are ${queueCount}`)
}

/** Throws `ERR_VHOST_INFLIGHT` for more queues than the device has, or larger rings than they accept. */
export function checkInflightFits(
  layout: InflightLayout,
  device: Pick<DeviceOffer, 'queueCount'> & { readonly queueSizeMax: number },
): void {
  checkInflightLayout(layout)
  const { queueCount, queueSize } = layout
  if (queueCount <= device.queueCount && queueSize <= device.queueSizeMax) return
  throw inflightError(
    `it is for ${queueCount} queues of up to ${queueSize}, ` +
      `the device has ${device.queueCount} of up to ${device.queueSizeMax}`,
  )
}
