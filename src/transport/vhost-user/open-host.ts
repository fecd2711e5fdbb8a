import { optionTypeError } from '../../errors.ts'
import type { Device } from '../../handlers/device.ts'
import type { SuppressionPolicy } from '../../notify/suppression.ts'
import { integerIn } from '../../options.ts'
import {
  addressOf,
  importDevice,
  importSuppression,
  isModuleExport,
  type ModuleExport,
} from '../module-export.ts'
import { type ResolvedServeOptions, resolveServeOptions, type ServeOptions } from '../options.ts'
import { DeviceOnWorkers } from '../workers/device-on-workers.ts'
import { DeviceHere, type DeviceHost } from './device-host.ts'

/** What is served, how, and by which threads. */
export interface HostOptions extends Omit<ServeOptions, 'suppression'> {
  /**
   * The device to serve; borrowed. Or the export of a module that makes it: then the server has it made, and closes it in
   * the end.
   */
  readonly device: Device | ModuleExport
  /**
   * How long answers wait for company, or a module's function that returns the policy: with `workers` the latter. Default
   * {@link adaptive}.
   */
  readonly suppression?: SuppressionPolicy | ModuleExport
  /**
   * Worker threads over which the queues are spread, 0 to 64, each with an event loop of its own: queue i belongs to
   * worker i modulo their number. `device` must be the export of a module then, and each worker makes the device anew. No
   * more are started than there are queues; `queues.countMax` is as many by default. Default 0: this thread serves.
   */
  readonly workers?: number
}

const WORKER_COUNT_MAX = 64

/** A host, and the options it goes by. */
export interface OpenHost {
  readonly host: DeviceHost
  readonly serveOptions: ResolvedServeOptions
}

/**
 * Has the device made, if that is left to the server, and starts the workers. Throws what {@link vhostUser.listen} rejects
 * with.
 */
export async function openHost(options: HostOptions): Promise<OpenHost> {
  const { device, suppression, workers = 0, ...plain } = options
  integerIn('workers', workers, 0, WORKER_COUNT_MAX)
  return workers === 0 ? openHere(options, plain) : openOnWorkers(options, plain, workers)
}

async function openHere({ device, suppression }: HostOptions, plain: ServeOptions): Promise<OpenHost> {
  const isModule = isModuleExport(device)
  if (!isModule && device?.kind !== 'block' && device?.kind !== 'virtio') {
    throw optionTypeError('device', 'a device such as blockDevice({ … })', device)
  }
  const address = isModule ? addressOf('device', device) : undefined
  const policy = isModuleExport(suppression)
    ? await importSuppression(addressOf('suppression', suppression))
    : suppression
  const serveOptions = resolveServeOptions({ ...plain, ...(policy !== undefined && { suppression: policy }) })
  return address === undefined
    ? { host: new DeviceHere(device as Device, serveOptions, false), serveOptions }
    : { host: new DeviceHere(await importDevice(address), serveOptions, true), serveOptions }
}

async function openOnWorkers(
  { device, suppression }: HostOptions,
  plain: ServeOptions,
  workerCountMax: number,
): Promise<OpenHost> {
  const serveOptions = resolveServeOptions(plain, workerCountMax)
  const { logger, ...sendable } = plain
  const setup = {
    device: addressOf('device', exportOnly('device', device)),
    suppression:
      suppression === undefined
        ? undefined
        : addressOf('suppression', exportOnly('suppression', suppression)),
    serveOptions: { ...sendable, queues: { ...sendable.queues, countMax: serveOptions.queueCountMax } },
    hasLogger: logger !== undefined,
  }
  return { host: await DeviceOnWorkers.start(workerCountMax, setup, serveOptions), serveOptions }
}

function exportOnly(name: string, value: unknown): ModuleExport {
  if (isModuleExport(value)) return value
  throw optionTypeError(name, 'the export of a module, because no function can be sent to a worker', value)
}
