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
  checkCoreDeviceOptions,
  createCoreDevice,
  exportOverLoopback,
  findCoreDevice,
  findLoopbackExport,
} from './configfs.ts'
import { eventually, KERNEL_PATHS, type KernelPaths } from './kernel-files.ts'
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
  /** Name of the device in configfs: 1 to 128 printable ASCII characters but `/`, `:` and `,`; neither `.` nor `..`. */
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
 * on. So is a directory of that name which was made and then left without a word for a second, as by a crash. What an initiator had in flight then ends with BUSY and is tried again; a file system on it goes on. It keeps the
 * shape it was made with (sizes, timeouts, serial), but for the capacity.
 *
 * Throws a `TypeError` or `RangeError` naming a wrong option before anything is done. Rejects with
 * `ERR_TCMU_UNAVAILABLE` when the machine lacks something, with `ERR_TCMU_IN_USE` when the name belongs to somebody
 * else, or the device is served or has blocks of another size, and as `tcmu.attach` does. What was made is removed then.
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
  const core = coreDeviceOptions(options, device)
  checkCoreDeviceOptions(core)
  await checkAvailability(paths, {
    loopback: fabric === 'loopback',
    loadModules: options.loadModules ?? false,
  })
  const { coreDevice, isNew } = await findOrMake(paths, core)
  let backstore: TcmuBackstore | undefined
  try {
    backstore = await serveUio({
      device,
      options: resolved,
      paths,
      uioPath: coreDevice.uioPath,
      name: coreDevice,
      // Nobody can have used one that was just made.
      recover: isNew ? 'refuse' : 'reset',
      coreDevice,
      remove: () => coreDevice.remove(),
    })
    if (!isNew && device.kind === 'block')
      await adoptCapacity(coreDevice, backstore, device.geometry.capacityBytes)
    // The kernel scans the new unit within this call, and this process answers.
    if (fabric === 'loopback') {
      const made =
        (await findLoopbackExport(paths, coreDevice)) ?? (await exportOverLoopback(paths, coreDevice))
      backstore.exported(made.blockDevicePath, () => made.remove())
    }
    return backstore
  } catch (error) {
    // What was there before stays, for a second try; and so does what another process opened as soon as it was there.
    const isTaken = error instanceof HushringError && error.code === 'ERR_TCMU_IN_USE'
    const undo = async (): Promise<void> => {
      if (backstore === undefined) await (isNew && !isTaken ? coreDevice.remove() : coreDevice.close())
      else await (isNew ? backstore.close() : backstore.abandon())
    }
    await undo().catch((failure: Error) =>
      resolved.logger.warn(`${coreDevice.path} is left: ${failure.message}`),
    )
    throw error
  }
}

/** A device that is not enabled so many ms after it was found is one whose making was interrupted. */
const MAKING_MS_MAX = 1000

/** A disk may have another size than under its last server. */
async function adoptCapacity(
  coreDevice: CoreDevice,
  backstore: TcmuBackstore,
  capacityBytes: number,
): Promise<void> {
  if ((await coreDevice.attribute('dev_size')) === String(capacityBytes)) return
  await backstore.announceCapacity(capacityBytes)
}

async function findOrMake(
  paths: KernelPaths,
  core: CoreDeviceOptions,
): Promise<{ readonly coreDevice: CoreDevice; readonly isNew: boolean }> {
  const found = await findMade(paths, core)
  if (found === undefined) return { coreDevice: await createCoreDevice(paths, core), isNew: true }
  if (!found.isOurs && !(await isUntouched(found))) {
    throw new HushringError(
      'ERR_TCMU_IN_USE',
      `${found.path} belongs to another program (${found.subtype || 'no dev_config'}); choose another name`,
    )
  }
  if (found.isEnabled) {
    await expectBlockSize(found, core.blockBytes)
    return { coreDevice: found, isNew: false }
  }
  await found.remove()
  return { coreDevice: await createCoreDevice(paths, core), isNew: true }
}

/** Finds a device. Another process may be making it at this moment, which must not be taken for an interrupted making. */
async function findMade(paths: KernelPaths, core: CoreDeviceOptions): Promise<CoreDevice | undefined> {
  let found = await findCoreDevice(paths, core)
  const waitMsMax = Math.min(paths.waitMsMax ?? MAKING_MS_MAX, MAKING_MS_MAX)
  await eventually({ ...paths, waitMsMax }, async () => {
    if (found === undefined || found.hasNode || (found.subtype !== '' && !found.isOurs)) return true
    found = await findCoreDevice(paths, core)
    return undefined
  })
  return found
}

/**
 * True for a directory that somebody made and told nothing: what is left of us when we are killed behind the mkdir. The
 * kernel knows of no device there, so nothing is lost with it.
 */
async function isUntouched(coreDevice: CoreDevice): Promise<boolean> {
  return coreDevice.subtype === '' && !coreDevice.isEnabled && (await coreDevice.serial()) === ''
}

/** Initiators have seen the old size, and a file system on the disk lies in such blocks. */
async function expectBlockSize(coreDevice: CoreDevice, blockBytes: number): Promise<void> {
  const had = Number(await coreDevice.attribute('hw_block_size'))
  if (had === blockBytes) return
  throw new HushringError(
    'ERR_TCMU_IN_USE',
    `${coreDevice.path} was made with blocks of ${had} bytes, this device has ${blockBytes}; choose another name`,
  )
}

function coreDeviceOptions(options: CreateOptions, device: Device): CoreDeviceOptions {
  const core = Object.fromEntries(
    CORE_OPTION_NAMES.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]),
  ) as CoreOptions
  const isDisk = device.kind === 'block'
  return {
    // The kernel's own default of 64 KiB a transfer costs more commands than needed.
    maxSectors: 1024,
    ...core,
    name: stringOf('name', options.name),
    sizeBytes: isDisk
      ? device.geometry.capacityBytes
      : integerIn('sizeBytes', options.sizeBytes ?? 512, 512, 2 ** 53 - 1),
    blockBytes: isDisk ? (device.geometry.blockBytes as 512 | 4096) : 512,
    serial:
      options.serial ?? (isDisk && device.serial !== '' ? device.serial : randomBytes(8).toString('hex')),
    config: options.name,
    ...(isDisk && { writeCache: device.abilities.flush }),
  }
}
