import { native } from '../../native.ts'
import type { InflightDescription, InflightLayout } from '../../ring/inflight.ts'
import {
  checkInflightFits,
  checkQueueIndex,
  type DeviceSessionEvents,
  type RegionDescription,
} from '../device-session.ts'
import type { RegionIdentity } from '../memory-table.ts'
import { addStats, NO_STATS, type TransportStats } from '../stats.ts'
import type { BackEndQueue } from '../vhost-user/back-end.ts'
import type { ServedSession } from '../vhost-user/device-host.ts'
import type { DeviceWorker } from './device-worker.ts'
import type { WorkerDevice } from './messages.ts'
import type { CallParameters, SessionCallName } from './session-calls.ts'

/** A worker that owes an answer so long after the grace time of its handlers is stuck. */
const ANSWER_MS_MAX = 1000
/** How long statistics wait for workers that are busy. */
const COUNT_MS_MAX = 50
const NO_FD = -1

/**
 * The session of a front-end whose queues are spread over workers: each has a session of its own with its share of the
 * queues, hears of features, memory and the in-flight file as all others do, and is asked alone about its queues.
 */
export class SessionOnWorkers implements ServedSession {
  readonly queueCount: number
  readonly offeredFeatures: bigint
  readonly memory = { regions: { length: 0 } }
  readonly #device: WorkerDevice
  readonly #workers: readonly DeviceWorker[]
  readonly #stopGraceMs: number
  readonly #events: DeviceSessionEvents
  /** Queues that have a kick. */
  readonly #started = new Set<number>()
  #brokenQueues = 0

  /** @param workers each has made the same device; borrowed */
  constructor(
    device: WorkerDevice,
    workers: readonly DeviceWorker[],
    stopGraceMs: number,
    events: DeviceSessionEvents,
  ) {
    this.queueCount = device.queueCount
    this.offeredFeatures = device.offeredFeatures
    this.#device = device
    this.#workers = workers
    this.#stopGraceMs = stopGraceMs
    this.#events = events
    for (const worker of workers) worker.open(workers.length)
  }

  setFeatures(features: bigint): Promise<void> {
    return this.#everywhere('setFeatures', features)
  }

  async setMemory(regions: readonly RegionDescription[]): Promise<void> {
    await lend(regions, () => this.#everywhere('setMemory', regions))
    this.memory.regions.length = regions.length
  }

  async addRegion(region: RegionDescription): Promise<void> {
    await lend([region], () => this.#everywhere('addRegion', region))
    this.memory.regions.length++
  }

  async removeRegion(region: RegionIdentity): Promise<void> {
    await this.#everywhere('removeRegion', region)
    this.memory.regions.length--
  }

  setInflight(description: InflightDescription): Promise<void> {
    return lend([description], () => this.#everywhere('setInflight', description))
  }

  checkInflightLayout(layout: InflightLayout): void {
    checkInflightFits(layout, this.#device)
  }

  config(): Promise<Uint8Array> {
    return this.#workers[0]!.call('config')
  }

  async writeConfig(offsetBytes: number, bytes: Uint8Array): Promise<boolean> {
    const written = await settled(
      this.#workers.map((worker) => worker.call('writeConfig', offsetBytes, bytes)),
    )
    return written.every(Boolean)
  }

  async reset(): Promise<void> {
    await this.#everywhere('reset')
    this.#started.clear()
  }

  queue(index: number): BackEndQueue {
    checkQueueIndex(index, this)
    const worker = this.#workers[index % this.#workers.length]!
    return {
      setSize: (size) => worker.call('setSize', index, size),
      setAddresses: (addresses) => worker.call('setAddresses', index, addresses),
      setBase: (base) => worker.call('setBase', index, base),
      setKick: async (fd) => {
        await lend([{ fd }], () => worker.call('setKick', index, fd))
        this.#started.add(index)
      },
      setCall: (fd) => lend([{ fd }], () => worker.call('setCall', index, fd)),
      setError: (fd) => lend([{ fd }], () => worker.call('setError', index, fd)),
      setEnabled: (enabled) => worker.call('setEnabled', index, enabled),
      stop: async () => {
        const base = await worker.call('stop', index)
        this.#started.delete(index)
        return base
      },
    }
  }

  drain(): Promise<void> {
    return this.#within('drain')
  }

  close(): Promise<void> {
    return this.#within('close')
  }

  statsSnapshot(): TransportStats {
    const deadlineMs = performance.now() + COUNT_MS_MAX
    return this.#workers
      .map((worker) => worker.statsSnapshot(deadlineMs))
      .reduce(addStats, { ...NO_STATS, brokenQueues: this.#brokenQueues })
  }

  /** What the host got to know of a worker while this session is open. */
  onDegraded: NonNullable<DeviceSessionEvents['onDegraded']> = (error) => this.#events.onDegraded?.(error)

  /** The queues of a worker that ended are broken. @returns their indices */
  onDied(workerNumber: number): number[] {
    const broken = [...this.#started].filter((index) => index % this.#workers.length === workerNumber)
    this.#brokenQueues += broken.length
    return broken
  }

  async #everywhere<Name extends SessionCallName>(
    name: Name,
    ...parameters: CallParameters<Name>
  ): Promise<void> {
    await settled(this.#workers.map((worker) => worker.call(name, ...parameters)))
  }

  /** Asks every worker, and ends those that do not answer, as one in an endless loop. Who has died is told elsewhere. */
  async #within(name: 'drain' | 'close'): Promise<void> {
    const asked = this.#workers.map(async (worker) => {
      const late = setTimeout(() => worker.kill(), this.#stopGraceMs + ANSWER_MS_MAX)
      await worker.call(name).catch(() => {})
      clearTimeout(late)
    })
    await Promise.all(asked)
  }
}

/** Waits for all, also when one of them fails: what was lent to them is needed until then. */
async function settled<Value>(all: readonly Promise<Value>[]): Promise<Value[]> {
  await Promise.allSettled(all)
  return await Promise.all(all)
}

/** Closes file descriptors when the workers, which take duplicates, have done with them. */
async function lend<Value>(
  described: readonly { readonly fd: number }[],
  use: () => Promise<Value>,
): Promise<Value> {
  try {
    return await use()
  } finally {
    for (const { fd } of described) {
      if (fd !== NO_FD) native.closeFd(fd)
    }
  }
}
