import { randomBytes } from 'node:crypto'
import { HushringError, optionTypeError } from '../../errors.ts'
import type { Device } from '../../handlers/device.ts'
import { integerIn, refuseUnknownOptions, stringOf } from '../../options.ts'
import { servableDevice, serveUio } from './attach.ts'
import { checkAvailability } from './availability.ts'
import type { TcmuBackstore } from './backstore.ts'
import {
  type CoreDevice,
  type CoreDeviceOptions,
  createCoreDevice,
  exportOverLoopback,
  findCoreDevice,
  findLoopbackExport,
} from './configfs.ts'
import { KERNEL_PATHS, type KernelPaths } from './kernel-files.ts'
import { resolveTcmuOptions, TCMU_SERVE_OPTION_NAMES, type TcmuServeOptions } from './options.ts'

/** Options of the core device that `tcmu.create` passes on. */
type CoreOptions = Pick<
  CoreDeviceOptions,
  | 'hba'
  | 'maxDataAreaBytes'
  | 'ringBytes'
  | 'dataPagesPerBlock'
  | 'maxSectors'
  | 'commandTimeoutS'
  | 'queueFullTimeoutS'
>

/** Options of `tcmu.create`. */
export interface CreateOptions extends TcmuServeOptions, CoreOptions {
  /** Name of the device in configfs: 1 to 128 characters without white space, `/`, `:` and `,`. */
  readonly name: string
  /** A disk or a SCSI device; borrowed. */
  readonly device: Device
  /**
   * How initiators reach it. `loopback`: as a disk of this machine, /dev/sdX (tcm_loop). `none`: not yet; link it into
   * a fabric of your own. Default `loopback`.
   */
  readonly fabric?: 'loopback' | 'none'
  /** Unit serial number. Default: that of the disk, else one made of random bytes. */
  readonly serial?: string
  /** True: loads the kernel's modules first (modprobe). Default false. */
  readonly loadModules?: boolean
  /** Capacity that configfs shows for a SCSI device, in bytes; a disk tells its own. */
  readonly sizeBytes?: number
  /** Where the kernel's files are. Default: where they usually are. */
  readonly paths?: KernelPaths
}

const CORE_OPTION_NAMES: readonly (keyof CoreOptions)[] = [
  'hba',
  'maxDataAreaBytes',
  'ringBytes',
  'dataPagesPerBlock',
  'maxSectors',
  'commandTimeoutS',
  'queueFullTimeoutS',
]

/**
 * Makes a TCMU device, serves it and exports it; `close()` takes all of it away in the right order. Needs root and the
 * module target_core_user.
 *
 * A device of that name which hushring made, and which nobody serves, is taken over: after a crash the same call goes
 * on. What an initiator had in flight then ends with BUSY and is tried again; a file system on it goes on.
 *
 * Rejects with `ERR_TCMU_UNAVAILABLE` when the machine lacks something, with `ERR_TCMU_IN_USE` when the name belongs to somebody else or the device is served, and as
 * `tcmu.attach` does.
 */
export async function create(options: CreateOptions): Promise<TcmuBackstore> {
  const { fabric = 'loopback', paths = KERNEL_PATHS } = options
  refuseUnknownOptions(options, [
    'name',
    'device',
    'fabric',
    'serial',
    'sizeBytes',
    'loadModules',
    'paths',
    ...CORE_OPTION_NAMES,
    ...TCMU_SERVE_OPTION_NAMES,
  ])
  if (fabric !== 'loopback' && fabric !== 'none')
    throw optionTypeError('fabric', "'loopback' or 'none'", fabric)
  const device = servableDevice(options.device)
  const resolved = resolveTcmuOptions(options)
  await checkAvailability(paths, {
    loopback: fabric === 'loopback',
    loadModules: options.loadModules ?? false,
  })
  const { coreDevice, isNew } = await findOrMake(paths, options, device)
  let backstore: TcmuBackstore | undefined
  try {
    backstore = await serveUio({
      device,
      options: resolved,
      paths,
      uioPath: coreDevice.uioPath,
      recover: 'reset',
      coreDevice,
      remove: () => coreDevice.remove(),
    })
    if (!isNew && device.kind === 'block') await coreDevice.setSize(device.geometry.capacityBytes)
    // The kernel scans the new unit within this call, and this process answers.
    if (fabric === 'loopback') {
      const made =
        (await findLoopbackExport(paths, coreDevice)) ?? (await exportOverLoopback(paths, coreDevice))
      backstore.exported(made.blockDevicePath, () => made.remove())
    }
    return backstore
  } catch (error) {
    // What was there before stays, for a second try.
    if (isNew) await (backstore === undefined ? coreDevice.remove() : backstore.close()).catch(() => {})
    else await backstore?.abandon()
    throw error
  }
}

async function findOrMake(
  paths: KernelPaths,
  options: CreateOptions,
  device: Device,
): Promise<{ readonly coreDevice: CoreDevice; readonly isNew: boolean }> {
  const { name, hba = 0 } = options
  const found = await findCoreDevice(paths, { name: stringOf('name', name), hba })
  if (found === undefined) return { coreDevice: await make(paths, options, device), isNew: true }
  if (!found.isOurs) {
    throw new HushringError(
      'ERR_TCMU_IN_USE',
      `${found.path} belongs to another program (${found.subtype || 'no dev_config'}); choose another name`,
    )
  }
  if (found.isEnabled) return { coreDevice: found, isNew: false }
  // Its making was interrupted.
  await found.remove()
  return { coreDevice: await make(paths, options, device), isNew: true }
}

async function make(paths: KernelPaths, options: CreateOptions, device: Device): Promise<CoreDevice> {
  const core = Object.fromEntries(
    CORE_OPTION_NAMES.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]),
  ) as CoreOptions
  const isDisk = device.kind === 'block'
  return await createCoreDevice(paths, {
    // The kernel's own default of 64 KiB a transfer costs more commands than needed.
    maxSectors: 1024,
    ...core,
    name: options.name,
    sizeBytes: isDisk
      ? device.geometry.capacityBytes
      : integerIn('sizeBytes', options.sizeBytes ?? 512, 512, 2 ** 53 - 1),
    blockBytes: isDisk ? (device.geometry.blockBytes as 512 | 4096) : 512,
    serial:
      options.serial ?? (isDisk && device.serial !== '' ? device.serial : randomBytes(8).toString('hex')),
    config: options.name,
    ...(isDisk && { writeCache: device.abilities.flush }),
  })
}
