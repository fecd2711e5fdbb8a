import { Observable } from 'rxjs'
import { integerIn } from '../../options.ts'
import { type KernelPaths, kernelFiles, unless, withoutNewline } from './kernel-files.ts'

/** The subtype of devices that hushring made: the first part of their `dev_config`. */
export const SUBTYPE = 'hushring'

/** The name that target_core_user gives its UIO devices, `tcm-user/<hba>/<name>/<subtype>/<config>`, in parts. */
export interface TcmuName {
  /** Number of the configfs directory `user_<hba>`, 32 bits. */
  readonly hba: number
  /** Name of the device in that directory. */
  readonly name: string
  /** Who serves it. Empty when its `dev_config` is. */
  readonly subtype: string
  /** The rest of its `dev_config`; may contain slashes. */
  readonly config: string
}

/** A TCMU device that has a UIO device node. */
export interface DiscoveredDevice extends TcmuName {
  /** The whole name, as /sys/class/uio/uioN/name shows it. */
  readonly uioName: string
  /** The device node, /dev/uioN. */
  readonly uioPath: string
  /** N: the minor number of the device node. */
  readonly minor: number
  /** Number of this device that no later one gets, even with the same name and minor. */
  readonly inode: bigint
}

/**
 * Takes the name of a UIO device apart.
 *
 * @param text with or without newlines at its end
 * @returns undefined when this is no name of a TCMU device
 */
export function parseTcmuName(text: string): TcmuName | undefined {
  // The name and the subtype have no slash in them, the rest may: `s` lets it hold anything.
  const parts = /^tcm-user\/(\d{1,10})\/([^/]+)(?:\/([^/]*)(?:\/(.*))?)?$/s.exec(withoutNewline(text))
  const hba = Number(parts?.[1])
  if (parts === null || hba > 0xffff_ffff) return undefined
  return { hba, name: parts[2]!, subtype: parts[3] ?? '', config: parts[4] ?? '' }
}

/**
 * Takes a `dev_config` apart.
 *
 * @param text with or without newlines at its end
 */
export function parseDevConfig(text: string): Pick<TcmuName, 'subtype' | 'config'> {
  const [, subtype = '', config = ''] = /^([^/]*)(?:\/(.*))?$/s.exec(withoutNewline(text)) ?? []
  return { subtype, config }
}

/** Every TCMU device of this machine, in order of their minor numbers. */
async function allDevices(paths: KernelPaths): Promise<readonly DiscoveredDevice[]> {
  const files = kernelFiles(paths)
  const folder = `${paths.sysfs}/class/uio`
  // Without the folder there is no UIO, and so no TCMU either.
  const entries = (await unless(files.readdir(folder), 'ENOENT')) ?? []
  const minors = entries.flatMap((entry) => /^uio(\d+)$/.exec(entry)?.slice(1).map(Number) ?? [])
  const devices: DiscoveredDevice[] = []
  for (const minor of minors.sort((one, other) => one - other)) {
    // A device may go away at any moment: before the read with ENOENT, during the read with ENODEV. The inode is read
    // first and last, lest the name of one device be taken for that of its successor.
    const path = `${folder}/uio${minor}`
    const inode = await unless(files.inode(path), 'ENOENT')
    const text = await unless(files.readFile(`${path}/name`), 'ENOENT', 'ENODEV')
    const parts = text === undefined ? undefined : parseTcmuName(text)
    if (parts === undefined || inode === undefined) continue
    if ((await unless(files.inode(path), 'ENOENT')) !== inode) continue
    const uioPath = `${paths.dev}/uio${minor}`
    devices.push({ ...parts, uioName: withoutNewline(text!), uioPath, minor, inode })
  }
  return devices
}

/**
 * The UIO device of one configfs device.
 *
 * @returns undefined while there is none: the device is not enabled. Its node may not be there (see {@link hasNode}).
 */
export async function findUioDevice(
  paths: KernelPaths,
  { hba, name }: Pick<TcmuName, 'hba' | 'name'>,
): Promise<DiscoveredDevice | undefined> {
  return (await allDevices(paths)).find((device) => device.hba === hba && device.name === name)
}

/** Whether there is a node: udev may be late, and a container may have a /dev of its own. */
export async function hasNode(paths: KernelPaths, { uioPath }: DiscoveredDevice): Promise<boolean> {
  return (await unless(kernelFiles(paths).inode(uioPath), 'ENOENT')) !== undefined
}

/** Options of {@link discover}. */
export interface DiscoverOptions {
  /** Only devices of exactly this subtype. Default {@link SUBTYPE}. */
  readonly subtype?: string
}

/**
 * Lists the TCMU devices of one subtype, in order of their minor numbers. An empty list where there is no TCMU.
 * Rejects with `ERR_TCMU_SYSTEM` when sysfs cannot be read.
 */
export async function discover(
  paths: KernelPaths,
  { subtype = SUBTYPE }: DiscoverOptions = {},
): Promise<readonly DiscoveredDevice[]> {
  return (await allDevices(paths)).filter((device) => device.subtype === subtype)
}

/** Options of {@link watchDevices}. */
export interface WatchDevicesOptions extends DiscoverOptions {
  /** Time between two looks in ms, 1 to 86400000. Default 1000. */
  readonly everyMs?: number
}

/** A TCMU device came or went. */
export interface DeviceChange {
  readonly type: 'added' | 'removed'
  readonly device: DiscoveredDevice
}

const DAY_MS = 24 * 60 * 60 * 1000

/**
 * Tells which devices of a subtype there are and then what changes. It polls, because sysfs tells nobody (inotify does
 * not see it); {@link listenNetlink} is told at once, but takes duties upon itself.
 *
 * What is there at the first look is `added`. A device that was replaced between two looks, even by one with the same
 * name and minor, is `removed` and `added`. Keeps the process alive until it is unsubscribed. Errors with
 * `ERR_TCMU_SYSTEM` when sysfs cannot be read.
 */
export function watchDevices(
  paths: KernelPaths,
  { everyMs = 1000, ...options }: WatchDevicesOptions = {},
): Observable<DeviceChange> {
  integerIn('everyMs', everyMs, 1, DAY_MS)
  return new Observable((subscriber) => {
    let known: ReadonlyMap<bigint, DiscoveredDevice> = new Map()
    let timer: NodeJS.Timeout | undefined
    // A new look begins only after the last one ended: a slow one must not be overtaken.
    const look = async (): Promise<void> => {
      const present = new Map((await discover(paths, options)).map((device) => [device.inode, device]))
      for (const [inode, device] of known) {
        if (!present.has(inode)) subscriber.next({ type: 'removed', device })
      }
      for (const [inode, device] of present) {
        if (!known.has(inode)) subscriber.next({ type: 'added', device })
      }
      known = present
      if (!subscriber.closed) timer = setTimeout(lookSafely, everyMs)
    }
    const lookSafely = (): void => {
      look().catch((error: unknown) => subscriber.error(error))
    }
    lookSafely()
    return () => clearTimeout(timer)
  })
}
