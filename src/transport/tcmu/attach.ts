import { HushringError, optionTypeError } from '../../errors.ts'
import type { Device } from '../../handlers/device.ts'
import { type NativeTcmuPort, native } from '../../native.ts'
import { refuseUnknownOptions, stringOf } from '../../options.ts'
import { TcmuBackstore, type TcmuControl, type TcmuPlace } from './backstore.ts'
import { type CoreDevice, findCoreDevice, RingReset } from './configfs.ts'
import { parseTcmuName, type TcmuName } from './discovery.ts'
import {
  errnoOf,
  KERNEL_PATHS,
  type KernelPaths,
  kernelFiles,
  unless,
  withoutNewline,
} from './kernel-files.ts'
import {
  isPrintable,
  type ResolvedTcmuOptions,
  resolveTcmuOptions,
  TCMU_SERVE_OPTION_NAMES,
  type TcmuServeOptions,
} from './options.ts'

/** Options of `tcmu.attach`. */
export interface AttachOptions extends TcmuServeOptions {
  /** A device node such as `/dev/uio0`. */
  readonly uioPath: string
  /** A disk or a SCSI device; borrowed. */
  readonly device: Device
  /**
   * What to do with what an earlier server left. `reset`: forget it; commands on the ring end with BUSY, so that
   * initiators try them again. This is right after a server that was killed, and cures a ring that it broke. `resume`: go
   * on where the tail is, which is right only if that server answered strictly in order. `refuse`: reject with
   * `ERR_TCMU_RING_DIRTY` when there are commands on the ring. Default `reset`.
   */
  readonly recover?: 'reset' | 'resume' | 'refuse'
  /** Where the kernel's files are. Default: where they usually are. */
  readonly paths?: KernelPaths
}

/**
 * Serves a TCMU device that exists. Nothing of it is removed when it is closed.
 *
 * Rejects with `ERR_TCMU_IN_USE` when another process serves it, `ERR_TCMU_OPEN` when there is no such TCMU device,
 * `ERR_TCMU_RING_DIRTY` as {@link AttachOptions.recover} says and when the ring has to be reset and cannot,
 * `ERR_TCMU_UNAVAILABLE` when the process lacks a right, `ERR_TCMU_SYSTEM` when the kernel refuses something else, and
 * with an error of the peer (`ERR_TCMU_MAILBOX` …) for a ring that cannot be served.
 */
export async function attach(options: AttachOptions): Promise<TcmuBackstore> {
  refuseUnknownOptions(options, ['uioPath', 'device', 'recover', 'paths', ...TCMU_SERVE_OPTION_NAMES])
  const { uioPath, recover = 'reset', paths = KERNEL_PATHS } = options
  stringOf('uioPath', uioPath)
  if (!['reset', 'resume', 'refuse'].includes(recover)) {
    throw optionTypeError('recover', "'reset', 'resume' or 'refuse'", recover)
  }
  const device = servableDevice(options.device)
  const resolved = resolveTcmuOptions(options)
  return await serveUio({
    device,
    options: resolved,
    paths,
    uioPath,
    recover,
    ...(await placeOf(paths, uioPath)),
  })
}

/** What {@link serveUio} needs. */
export interface ServedUio {
  readonly device: Device
  readonly options: ResolvedTcmuOptions
  readonly paths: KernelPaths
  readonly uioPath: string
  /** Whose device that was when it was looked up. */
  readonly name: Pick<TcmuName, 'hba' | 'name'>
  readonly recover: NonNullable<AttachOptions['recover']>
  /** Its place in configfs; undefined where configfs cannot be used. */
  readonly coreDevice: CoreDevice | undefined
  readonly remove?: () => Promise<void>
}

/** Opens a UIO device, brings its ring in order and serves it. */
export async function serveUio(served: ServedUio): Promise<TcmuBackstore> {
  const { device, options, uioPath, coreDevice, remove } = served
  if (options.lockMemory) lockMemory()
  setIoFlusher(options)
  const port = openPort(served)
  const control = coreDevice === undefined ? undefined : controlOf(coreDevice)
  let wasReset = false
  let backstore: TcmuBackstore | undefined
  try {
    await expectSameDevice(served)
    wasReset = await emptyRing(served, port, control)
    const place: TcmuPlace = {
      port,
      uioPath,
      unit: unitOf(device, options, await configuredIdentity(coreDevice), nodeName(uioPath)),
      control,
      ringResets: wasReset ? 1 : 0,
      ...(remove !== undefined && { remove }),
      ...(coreDevice !== undefined && { release: () => coreDevice.close() }),
    }
    backstore = TcmuBackstore.serve(device, options, place)
    if (wasReset) await control?.unblock()
    return backstore
  } catch (error) {
    if (backstore === undefined) port.close()
    else await backstore.abandon()
    if (wasReset) await control?.unblock().catch(() => {})
    throw error
  }
}

function lockMemory(): void {
  try {
    native.lockMemory()
  } catch (cause) {
    const { message } = cause as Error
    throw new HushringError('ERR_TCMU_UNAVAILABLE', `lockMemory: the memory cannot be locked: ${message}`, {
      cause,
    })
  }
}

/** A device that TCMU can serve; throws `TypeError`, or `ERR_DEVICE_KIND` for a virtio device. */
export function servableDevice(device: Device): Device {
  if (device?.kind === 'virtio') {
    throw new HushringError('ERR_DEVICE_KIND', `TCMU cannot serve the virtio device ${device.name}`)
  }
  if (device?.kind === 'block' || device?.kind === 'scsi') return device
  throw optionTypeError('device', 'a disk such as blockDevice({ … }), or a SCSI device', device)
}

/**
 * Memory reclaim must not wait for a disk that this process serves. The threads that exist already keep their state,
 * and a process without the right to say so serves all the same.
 */
function setIoFlusher({ logger }: ResolvedTcmuOptions): void {
  try {
    native.setIoFlusher(true)
  } catch (error) {
    logger.debug(`not marked as a process that memory reclaim depends on: ${(error as Error).message}`)
  }
}

function openPort({ uioPath, paths }: ServedUio): NativeTcmuPort {
  try {
    return paths.openPort?.(uioPath) ?? native.openUioPort(uioPath, paths.sysfs)
  } catch (error) {
    throw openError(uioPath, error as NodeJS.ErrnoException)
  }
}

function openError(uioPath: string, cause: NodeJS.ErrnoException): HushringError {
  switch (cause.code) {
    case 'EBUSY':
      return new HushringError(
        'ERR_TCMU_IN_USE',
        `${uioPath} is served by another process: a TCMU device has one server at a time`,
        { cause },
      )
    case 'EACCES':
    case 'EPERM':
      return new HushringError('ERR_TCMU_UNAVAILABLE', `no permission to open ${uioPath}: run as root`, {
        cause,
      })
    case 'ENOENT':
    case 'ENXIO':
    case 'ENODEV':
    case 'ERR_TCMU_OPEN':
      return new HushringError('ERR_TCMU_OPEN', `${uioPath} is no TCMU device: ${cause.message}`, { cause })
    default:
      return new HushringError('ERR_TCMU_SYSTEM', `cannot open ${uioPath}: ${cause.message}`, { cause })
  }
}

/** The device behind a UIO device node, and its directory in configfs; undefined where configfs cannot be used. */
async function placeOf(paths: KernelPaths, uioPath: string): Promise<Pick<ServedUio, 'name' | 'coreDevice'>> {
  const name = await nameOf(paths, uioPath)
  const coreDevice = await findCoreDevice(paths, name).catch((error: unknown) => {
    if (errnoOf(error) === 'EACCES') return undefined
    throw error
  })
  return { name, coreDevice }
}

async function nameOf(paths: KernelPaths, uioPath: string): Promise<TcmuName> {
  const uio = nodeName(uioPath)
  const text = await unless(
    kernelFiles(paths).readFile(`${paths.sysfs}/class/uio/${uio}/name`),
    'ENOENT',
    'ENODEV',
  )
  if (text === undefined) {
    throw new HushringError(
      'ERR_TCMU_OPEN',
      `${uioPath} is no UIO device: ${paths.sysfs}/class/uio has no ${uio}`,
    )
  }
  const name = parseTcmuName(withoutNewline(text))
  if (name === undefined) {
    throw new HushringError(
      'ERR_TCMU_OPEN',
      `${uioPath} is no TCMU device: its name is ${withoutNewline(text)}`,
    )
  }
  return name
}

/**
 * Between the look-up of a device and the open of its node the device may go, and another one get its number. From the
 * open on the descriptor is of one device for good, so a look after it is enough.
 */
async function expectSameDevice({ paths, uioPath, name }: ServedUio): Promise<void> {
  const present = await nameOf(paths, uioPath)
  if (present.hba === name.hba && present.name === name.name) return
  throw new HushringError(
    'ERR_TCMU_OPEN',
    `${uioPath} was the device user_${name.hba}/${name.name} and is user_${present.hba}/${present.name} now; try again`,
  )
}

function controlOf(coreDevice: CoreDevice): TcmuControl {
  return {
    block: () => coreDevice.block(),
    unblock: () => coreDevice.unblock(),
    resetRing: () => coreDevice.resetRing(RingReset.busy),
    freeKeptBuffer: (commandId) => coreDevice.freeKeptBuffer(commandId),
    setSize: (sizeBytes) => coreDevice.setSize(sizeBytes),
  }
}

/**
 * Empties a ring that may have had an earlier server. What is on it cannot be gone on with: answers out of order have
 * overwritten the entries of commands that have none yet. Nor does an empty one tell that all is well: the kernel may
 * take the ring for broken, be told to block the device, or not have been told of the last answers.
 *
 * @returns true when it was reset; the device then stays blocked until it is served
 */
async function emptyRing(
  { recover, uioPath }: ServedUio,
  port: NativeTcmuPort,
  control: TcmuControl | undefined,
): Promise<boolean> {
  if (recover === 'resume') {
    // A server that was killed may have published answers and not rung.
    port.ringDoorbell()
    return false
  }
  // ENOENT: a kernel from before 2018 has no such action.
  if (recover === 'reset' && control !== undefined && (await unless(blocked(control), 'ENOENT')) === true) {
    try {
      await control.resetRing()
      return true
    } catch (error) {
      await control.unblock().catch(() => {})
      throw error
    }
  }
  if (!hasEntries(port)) return false
  const reason = recover === 'refuse' ? 'recover is refuse' : 'nothing in configfs can reset it'
  throw new HushringError(
    'ERR_TCMU_RING_DIRTY',
    `${uioPath} has commands of an earlier server on its ring: ${reason}`,
  )
}

async function blocked(control: TcmuControl): Promise<true> {
  await control.block()
  return true
}

/** True when the ring of a device that nobody serves holds entries. */
function hasEntries(port: NativeTcmuPort): boolean {
  const queue = native.createTcmuQueue({ port, commandCountMax: 1, batchCountMax: 1, inlineCopyBytesMax: 0 })
  try {
    return queue.start() === 0 && queue.seesEntry()
  } finally {
    queue.close()
  }
}

const DEFAULT_IDENTITY = { vendor: 'HUSHRING', product: 'TCMU disk', revision: '1' } as const
/** What target_core_configfs shows for a device whose identity nobody set. */
const KERNEL_IDENTITY = { vendor: 'LIO-ORG', product: 'TCMU device' } as const
const SERIAL_LENGTH_MAX = 252

/** What configfs says of a device, where it says something. */
export interface ConfiguredIdentity {
  readonly vendor?: string | undefined
  readonly product?: string | undefined
  readonly serial?: string | undefined
}

/**
 * How the unit presents itself: as the options say, else as configfs says, else as the disk does.
 *
 * @param fallbackSerial for a device that has none
 */
export function unitOf(
  device: Device,
  { identity }: ResolvedTcmuOptions,
  configured: ConfiguredIdentity,
  fallbackSerial: string,
): TcmuPlace['unit'] {
  const own = device.kind === 'block' ? device.serial : ''
  return {
    vendor: identity.vendor ?? set(configured.vendor, KERNEL_IDENTITY.vendor) ?? DEFAULT_IDENTITY.vendor,
    product: identity.product ?? set(configured.product, KERNEL_IDENTITY.product) ?? DEFAULT_IDENTITY.product,
    revision: identity.revision ?? DEFAULT_IDENTITY.revision,
    // The kernel's own answers (persistent reservations) carry the serial of configfs, so that one comes first.
    serial: usableSerial(configured.serial) || own || fallbackSerial,
  }
}

async function configuredIdentity(coreDevice: CoreDevice | undefined): Promise<ConfiguredIdentity> {
  if (coreDevice === undefined) return {}
  return {
    // ENOENT: in older kernels they cannot be set.
    vendor: await unless(coreDevice.vendor(), 'ENOENT'),
    product: await unless(coreDevice.product(), 'ENOENT'),
    serial: await coreDevice.serial(),
  }
}

/** A text of configfs that somebody has set. */
function set(text: string | undefined, unset: string): string | undefined {
  return text === undefined || text === '' || text === unset ? undefined : text
}

function usableSerial(text: string | undefined): string | undefined {
  return text !== undefined && isPrintable(text, SERIAL_LENGTH_MAX) ? text : undefined
}

/** `uio0` of `/dev/uio0`. */
function nodeName(uioPath: string): string {
  return uioPath.slice(uioPath.lastIndexOf('/') + 1)
}
