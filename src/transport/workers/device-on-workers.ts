import { HushringError } from '../../errors.ts'
import type { DeviceSessionEvents } from '../device-session.ts'
import type { ResolvedServeOptions } from '../options.ts'
import type { DeviceHost, ServedSession } from '../vhost-user/device-host.ts'
import { DeviceWorker, type DeviceWorkerEvents } from './device-worker.ts'
import type { WorkerDevice, WorkerSetup } from './messages.ts'
import { SessionOnWorkers } from './session-on-workers.ts'

/**
 * Serves the queues of a device on worker threads: queue i on worker i modulo their number. Each worker makes the device
 * anew from its module and serves its queues with an event loop and a pipeline of its own; this thread keeps the
 * connection and its protocol.
 *
 * It fails with its first worker: what that one had in memory of the device is gone, and one that takes its place would
 * serve another.
 */
export class DeviceOnWorkers implements DeviceHost {
  readonly failed: Promise<HushringError>
  readonly #options: ResolvedServeOptions
  readonly #workers: DeviceWorker[] = []
  #device: WorkerDevice | undefined
  #session: SessionOnWorkers | undefined
  #fail!: (error: HushringError) => void

  private constructor(options: ResolvedServeOptions) {
    this.#options = options
    this.failed = new Promise((resolve) => {
      this.#fail = resolve
    })
  }

  /**
   * Starts as many workers as the device has queues for. The first one makes its device before the others do, so that it
   * may create what they open.
   *
   * Rejects, with no thread left, as {@link DeviceWorker.start} does, and with `ERR_DEVICE_MODULE` when the devices differ.
   */
  static async start(
    workerCountMax: number,
    setup: Omit<WorkerSetup, 'board'>,
    options: ResolvedServeOptions,
  ): Promise<DeviceOnWorkers> {
    const host = new DeviceOnWorkers(options)
    try {
      const device = await host.#start(0, setup)
      host.#device = device
      const workerCount = Math.min(workerCountMax, device.queueCount)
      const numbers = Array.from({ length: workerCount - 1 }, (_, index) => index + 1)
      const starting = numbers.map(async (number) =>
        expectAlike(setup, device, await host.#start(number, setup)),
      )
      await Promise.allSettled(starting)
      await Promise.all(starting)
      host.#workers.sort((one, other) => one.number - other.number)
      return host
    } catch (error) {
      await host.close()
      throw error
    }
  }

  async #start(number: number, setup: Omit<WorkerSetup, 'board'>): Promise<WorkerDevice> {
    const events: DeviceWorkerEvents = {
      onDegraded: (error) => this.#session?.onDegraded(error),
      onDied: (error) => this.#onDied(number, error),
    }
    const { worker, device } = await DeviceWorker.start(number, setup, this.#options.logger, events)
    this.#workers.push(worker)
    return device
  }

  open(events: DeviceSessionEvents): ServedSession {
    this.#session = new SessionOnWorkers(this.#device!, this.#workers, this.#options.stopGraceMs, events)
    return this.#session
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.end(this.#options.stopGraceMs)))
  }

  #onDied(number: number, error: HushringError): void {
    for (const index of this.#session?.onDied(number) ?? []) {
      this.#options.logger.error(`queue ${index} is broken: ${error.code}: ${error.message}`)
    }
    this.#fail(error)
  }
}

function expectAlike(
  { device: { module } }: Omit<WorkerSetup, 'board'>,
  one: WorkerDevice,
  other: WorkerDevice,
): void {
  const [looks, otherLooks] = [one, other].map(({ queueCount, offeredFeatures, config }) =>
    [queueCount, offeredFeatures, config].join(' '),
  )
  if (looks === otherLooks) return
  throw new HushringError('ERR_DEVICE_MODULE', `${module} makes another device in each thread`)
}
