import { statSync } from 'node:fs'
import { resolve } from 'node:path'
import type { BlockDevice, Device } from '../handlers/device.ts'
import { compose, type Layer } from '../handlers/handler.ts'
import { entropyDevice } from '../handlers/index.ts'
import type { Logger } from '../transport/logger.ts'
import { type DeviceChoice, loadDevice } from './device-option.ts'
import type { FromText } from './from-text.ts'
import { checkStoreOptions, namesStore, openStore, type StoreOptions } from './store-options.ts'
import { UsageError } from './usage-error.ts'

/** The options that say what is served, whatever the transport. */
export interface ServedDeviceOptions extends StoreOptions {
  readonly device: DeviceChoice
  /** Outermost first. */
  readonly layer?: readonly FromText<Layer>[]
  readonly stats?: string
}

/**
 * Checks what can be checked before anything is opened.
 *
 * @throws UsageError
 */
export function checkServedDevice(options: ServedDeviceOptions, log: Logger): void {
  if (options.stats !== undefined && options.file !== undefined && isSameFile(options.stats, options.file)) {
    throw new UsageError(
      `--stats ${options.stats} is the store itself; give the statistics a file of their own`,
    )
  }
  if (options.device.kind === 'blk') {
    checkStoreOptions(options)
    return
  }
  if (options.readOnly || options.serial !== undefined || options.blockSize !== 512) {
    throw new UsageError(
      '--read-only, --serial and --block-size are for --device blk; another device decides for itself',
    )
  }
  if (namesStore(options)) log.warn('the store is not used: only --device blk has one')
}

function isSameFile(one: string, other: string): boolean {
  const [first, second] = [one, other].map((path) => statSync(path, { throwIfNoEntry: false }))
  if (first === undefined || second === undefined) return resolve(one) === resolve(other)
  return first.dev === second.dev && first.ino === second.ino
}

/** Opens the device that {@link checkServedDevice} passed, with its layers. The caller closes it. */
export async function openServedDevice(options: ServedDeviceOptions, log: Logger): Promise<Device> {
  const device = await openBareDevice(options, log)
  const { layer: layers = [] } = options
  if (layers.length === 0) return device
  if (device.kind === 'block') return compose<BlockDevice>(device, layers)
  await device.close()
  throw new UsageError(`--layer is for disks: ${device.name} is none`)
}

function openBareDevice(options: ServedDeviceOptions, log: Logger): Promise<Device> | Device {
  switch (options.device.kind) {
    case 'blk':
      return openStore(options, log)
    case 'rng':
      return entropyDevice()
    case 'module':
      return loadDevice(options.device.path)
  }
}
