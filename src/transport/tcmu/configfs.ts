import { createHash } from 'node:crypto'
import { basename, dirname, resolve } from 'node:path'
import { HushringError, optionRangeError } from '../../errors.ts'
import { booleanOf, integerIn, refuseUnknownOptions, stringOf } from '../../options.ts'
import { MiB } from '../../units.ts'
import { findUioDevice, hasNode, parseDevConfig, SUBTYPE, type TcmuName } from './discovery.ts'
import {
  errnoOf,
  eventually,
  type KernelFile,
  type KernelFiles,
  type KernelPaths,
  kernelFiles,
  unless,
  withoutNewline,
} from './kernel-files.ts'

/*
 * The devices of target_core_user and their export through tcm_loop, made and removed in configfs:
 *
 *   target/core/user_<hba>/<name>/            the core device
 *   target/loopback/<naa>/tpgt_1/lun/lun_0/   its export, with a symbolic link to the core device
 */

// ---- Steps that are undone ---------------------------------------------------------------------------------------

type Undo = (step: () => Promise<unknown>) => void

/**
 * Runs `build`; when it fails, runs the steps it registered, the latest first, so that nothing is left of what was
 * made. What the kernel does not let go is told in the message.
 */
async function allOrNothing<T>(build: (undo: Undo) => Promise<T>): Promise<T> {
  const steps: (() => Promise<unknown>)[] = []
  try {
    return await build((step) => steps.unshift(step))
  } catch (error) {
    const failures: string[] = []
    for (const step of steps) await step().catch((failure: Error) => failures.push(failure.message))
    if (failures.length === 0 || !(error instanceof HushringError)) throw error
    throw new HushringError(error.code, [error.message, ...failures].join('; then '), {
      cause: error.cause,
      details: error.details,
    })
  }
}

/** @returns false when it was there before */
async function makeDirectory(files: KernelFiles, path: string): Promise<boolean> {
  try {
    await files.mkdir(path)
    return true
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false
    throw error
  }
}

/** Makes a directory that others may have made; it is only undone if it was this call that did. */
async function ensureDirectory(files: KernelFiles, path: string, undo: Undo): Promise<void> {
  if (await makeDirectory(files, path)) undo(() => unless(files.rmdir(path), 'ENOENT', 'ENOTEMPTY'))
}

// ---- The core device ---------------------------------------------------------------------------------------------

/** Options of {@link createCoreDevice}. */
export interface CoreDeviceOptions {
  /** Name of the device in its hba: 1 to 128 printable ASCII characters but `/`, `:` and `,`; neither `.` nor `..`. */
  readonly name: string
  /** Number of the directory `user_<hba>`, 0 to 4294967295, made when it is not there. Default 0. */
  readonly hba?: number
  /** Capacity as configfs shows it; a positive multiple of `blockBytes`. Initiators learn it from the server. */
  readonly sizeBytes: number
  readonly blockBytes: 512 | 4096
  /** VPD unit serial number: 1 to 253 printable ASCII characters without a space at either end. */
  readonly serial: string
  /**
   * What follows `hushring/` in `dev_config`: for people and for a server that starts again. Together at most 255
   * bytes, without comma and control characters: the kernel would take what follows for another parameter.
   */
  readonly config: string
  /** Most memory for data in flight, whole MiB from 1 MiB. Default: the kernel's, 1 GiB. */
  readonly maxDataAreaBytes?: number
  /** Mailbox and command ring, whole MiB from 1 to 8 MiB. Default: the kernel's, 8 MiB. */
  readonly ringBytes?: number
  /** Pages in a block of the data area, 1 to 65536; more make fewer and longer pieces. Default: the kernel's, 1. */
  readonly dataPagesPerBlock?: number
  /** Longest transfer in blocks of the device, 8 to 65536. Default: the kernel's, 128. */
  readonly maxSectors?: number
  /**
   * The kernel fails a command that has been on the ring for so many s, 0 to 4294967. Default: the kernel's, 30.
   * With 0 it waits for ever: a server that died then blocks the removal of its device for good.
   */
  readonly commandTimeoutS?: number
  /**
   * The kernel fails a command that found no room on the ring for so many s, -1 to 2147483. -1: as long as
   * `commandTimeoutS` says; 0: at once. Default: the kernel's, -1.
   */
  readonly queueFullTimeoutS?: number
  /** Whether the device has a volatile cache, as configfs shows it (`emulate_write_cache`). Default: the kernel's. */
  readonly writeCache?: boolean
  /** Asks for task-management entries on the ring, where the kernel has them (5.9). Default true. */
  readonly taskManagement?: boolean
  /**
   * True: the kernel waits for an answer to each of its netlink events about this device once any process asked it to.
   * It then waits for ever when nobody answers, so this needs {@link listenNetlink} with `replies`. Default false: the
   * kernel waits for nobody.
   */
  readonly netlinkReplies?: boolean
}

const OPTION_NAMES: readonly (keyof CoreDeviceOptions)[] = [
  'name',
  'hba',
  'sizeBytes',
  'blockBytes',
  'serial',
  'config',
  'maxDataAreaBytes',
  'ringBytes',
  'dataPagesPerBlock',
  'maxSectors',
  'commandTimeoutS',
  'queueFullTimeoutS',
  'writeCache',
  'taskManagement',
  'netlinkReplies',
]

const U32_MAX = 2 ** 32 - 1
const CONFIG_BYTES_MAX = 255
const MIB_COUNT_MAX = 1 << 20
// Timeouts are multiplied by 1000 in 32 bits: unsigned for the command, signed for the full queue.
const COMMAND_TIMEOUT_S_MAX = Math.floor(U32_MAX / 1000)
const QUEUE_FULL_TIMEOUT_S_MAX = Math.floor((2 ** 31 - 1) / 1000)

/** What {@link createCoreDevice} writes, by file. Undefined: left to the kernel. */
interface CoreDeviceText {
  readonly id: Pick<TcmuName, 'hba' | 'name'>
  readonly serial: string
  /** Parameters of `control`; each can be read back in `attrib` under the same name. */
  readonly control: ReadonlyMap<string, string>
  readonly attributes: ReadonlyMap<string, string>
  readonly taskManagement: boolean
}

/** Throws a `TypeError` or `RangeError` naming a wrong option, as {@link createCoreDevice} does. */
export function checkCoreDeviceOptions(options: CoreDeviceOptions): void {
  coreDeviceText(options)
}

/** Checks the options: the kernel ignores what it does not know and, in one case, divides by what it is given. */
function coreDeviceText(options: CoreDeviceOptions): CoreDeviceText {
  refuseUnknownOptions(options, OPTION_NAMES)
  const { hba = 0, taskManagement = true, netlinkReplies = false } = options
  const blockBytes = blockBytesOf(options.blockBytes)
  const given = <T>(value: T | undefined, check: (value: T) => unknown): string | undefined =>
    value === undefined ? undefined : String(check(value))
  return {
    id: checkedId({ hba, name: options.name }),
    serial: serialOf(options.serial),
    taskManagement: booleanOf('taskManagement', taskManagement),
    control: defined({
      dev_config: devConfigOf(options.config),
      dev_size: String(sizeOf(options.sizeBytes, blockBytes)),
      hw_block_size: String(blockBytes),
      hw_max_sectors: given(options.maxSectors, (count) => integerIn('maxSectors', count, 8, 65536)),
      // Before the size of a block, which the kernel compares with it.
      max_data_area_mb: given(options.maxDataAreaBytes, (bytes) =>
        wholeMib('maxDataAreaBytes', bytes, MIB_COUNT_MAX),
      ),
      data_pages_per_blk: given(options.dataPagesPerBlock, (count) =>
        integerIn('dataPagesPerBlock', count, 1, 65536),
      ),
      cmd_ring_size_mb: given(options.ringBytes, (bytes) => wholeMib('ringBytes', bytes, 8)),
      nl_reply_supported: booleanOf('netlinkReplies', netlinkReplies) ? undefined : '-1',
    }),
    attributes: defined({
      cmd_time_out: given(options.commandTimeoutS, (seconds) =>
        integerIn('commandTimeoutS', seconds, 0, COMMAND_TIMEOUT_S_MAX),
      ),
      qfull_time_out: given(options.queueFullTimeoutS, (seconds) =>
        integerIn('queueFullTimeoutS', seconds, -1, QUEUE_FULL_TIMEOUT_S_MAX),
      ),
      emulate_write_cache: given(options.writeCache, (enabled) => Number(booleanOf('writeCache', enabled))),
    }),
  }
}

function defined(entries: Readonly<Record<string, string | undefined>>): ReadonlyMap<string, string> {
  return new Map(Object.entries(entries).filter((entry): entry is [string, string] => entry[1] !== undefined))
}

function checkedId({ hba, name }: Pick<TcmuName, 'hba' | 'name'>): Pick<TcmuName, 'hba' | 'name'> {
  if (!/^(?!\.\.?$)[!-~]{1,128}$/.test(stringOf('name', name)) || /[/:,]/.test(name)) {
    throw optionRangeError(
      'name',
      '1 to 128 printable ASCII characters but `/`, `:` and `,`, and not `.` or `..`',
      name,
    )
  }
  return { hba: integerIn('hba', hba, 0, U32_MAX), name }
}

/** Checks the name of a device that others may have made: whatever names a directory. */
function directoryId({ hba, name }: Pick<TcmuName, 'hba' | 'name'>): Pick<TcmuName, 'hba' | 'name'> {
  if (!/^(?!\.\.?$)[^/\0]+$/.test(stringOf('name', name))) {
    throw optionRangeError('name', 'the name of a directory', name)
  }
  return { hba: integerIn('hba', hba, 0, U32_MAX), name }
}

function blockBytesOf(blockBytes: number): number {
  if (blockBytes !== 512 && blockBytes !== 4096)
    throw optionRangeError('blockBytes', '512 or 4096', blockBytes)
  return blockBytes
}

function sizeOf(sizeBytes: number, blockBytes: number): number {
  integerIn('sizeBytes', sizeBytes, 1, Number.MAX_SAFE_INTEGER)
  if (sizeBytes % blockBytes === 0) return sizeBytes
  throw optionRangeError('sizeBytes', `a multiple of ${blockBytes}, the size of a block`, sizeBytes)
}

function wholeMib(name: string, bytes: number, countMax: number): number {
  integerIn(name, bytes, MiB, countMax * MiB)
  if (bytes % MiB === 0) return bytes / MiB
  throw optionRangeError(name, `a multiple of ${MiB}: the kernel counts in MiB`, bytes)
}

function serialOf(serial: string): string {
  if (/^(?! )[\x20-\x7e]{1,253}$/.test(stringOf('serial', serial)) && !serial.endsWith(' ')) return serial
  throw optionRangeError(
    'serial',
    '1 to 253 printable ASCII characters without a space at either end',
    serial,
  )
}

function devConfigOf(config: string): string {
  const text = `${SUBTYPE}/${stringOf('config', config)}`
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  if (Buffer.byteLength(text) <= CONFIG_BYTES_MAX && !/[,\x00-\x1f\x7f]/.test(text)) return text
  const bytesMax = CONFIG_BYTES_MAX - SUBTYPE.length - 1
  throw optionRangeError('config', `at most ${bytesMax} bytes without comma and control characters`, config)
}

function devicePathOf(paths: KernelPaths, { hba, name }: Pick<TcmuName, 'hba' | 'name'>): string {
  return resolve(`${paths.configfs}/target/core/user_${hba}/${name}`)
}

/** Tries again as often as another process may take the hba's directory away between two steps. */
const MAKE_ATTEMPT_COUNT_MAX = 5

/**
 * Makes the directory of a core device, and its hba's.
 *
 * @returns false when the device was there before
 */
async function makeDeviceDirectory(files: KernelFiles, path: string): Promise<boolean> {
  const hbaPath = dirname(path)
  for (let attempt = 1; ; attempt++) {
    await makeDirectory(files, hbaPath)
    try {
      return await makeDirectory(files, path)
    } catch (error) {
      // Another process removed its last device, and the hba with it, after we saw that the hba was there.
      if (errnoOf(error) === 'ENOENT' && attempt < MAKE_ATTEMPT_COUNT_MAX) continue
      await unless(files.rmdir(hbaPath), 'ENOENT', 'ENOTEMPTY')
      throw error
    }
  }
}

async function removeDeviceDirectory(files: KernelFiles, path: string): Promise<void> {
  await unless(files.rmdir(path), 'ENOENT')
  await unless(files.rmdir(dirname(path)), 'ENOENT', 'ENOTEMPTY')
}

/**
 * Makes a TCMU device and waits for its UIO device node. It has the subtype `hushring` and is not exported yet: serve
 * it first, then {@link exportOverLoopback}.
 *
 * Throws a `TypeError` or `RangeError` naming a wrong option. Rejects with `ERR_TCMU_IN_USE` when the name is taken,
 * and with `ERR_TCMU_SYSTEM` when the kernel refuses a step or no device node appears. After a rejection nothing is
 * left of what was made.
 *
 * With `netlinkReplies` the call may end only after an answer to the kernel's `added` event.
 */
export async function createCoreDevice(paths: KernelPaths, options: CoreDeviceOptions): Promise<CoreDevice> {
  const { id, serial, control, attributes, taskManagement } = coreDeviceText(options)
  const files = kernelFiles(paths)
  const path = devicePathOf(paths, id)
  return await allOrNothing(async (undo) => {
    if (!(await makeDeviceDirectory(files, path))) throw await nameTakenError(paths, id)
    undo(() => removeDeviceDirectory(files, path))
    await writeControl(files, path, control)
    for (const [name, value] of attributes) await files.writeFile(`${path}/attrib/${name}`, value)
    if (taskManagement) await unless(files.writeFile(`${path}/attrib/tmr_notification`, '1'), 'ENOENT')
    await files.writeFile(`${path}/wwn/vpd_unit_serial`, serial)
    await files.writeFile(`${path}/enable`, '1')
    return await enabledDevice(paths, id, control.get('dev_config')!)
  })
}

/** Writes the parameters and looks whether they took effect: the kernel ignores those it does not know. */
async function writeControl(
  files: KernelFiles,
  path: string,
  control: ReadonlyMap<string, string>,
): Promise<void> {
  await files.writeFile(`${path}/control`, [...control].map((pair) => pair.join('=')).join(','))
  for (const [name, value] of control) {
    const attribute = `${path}/attrib/${name}`
    const effective = await unless(files.readFile(attribute), 'ENOENT')
    if (effective !== undefined && withoutNewline(effective) === value) continue
    const instead = effective === undefined ? 'does not know it' : `has ${withoutNewline(effective)}`
    throw new HushringError('ERR_TCMU_SYSTEM', `cannot set ${name} to ${value}: the kernel ${instead}`, {
      details: { path: attribute },
    })
  }
}

async function enabledDevice(
  paths: KernelPaths,
  id: Pick<TcmuName, 'hba' | 'name'>,
  devConfig: string,
): Promise<CoreDevice> {
  const uioName = `tcm-user/${id.hba}/${id.name}/${devConfig}`
  const uio = await eventually(paths, async () => {
    const found = await findUioDevice(paths, id)
    return found !== undefined && (await hasNode(paths, found)) ? found : undefined
  })
  if (uio?.uioName === uioName) return new CoreDevice(paths, uio)
  throw new HushringError(
    'ERR_TCMU_SYSTEM',
    `${uioName} was enabled, but ${paths.dev} has no UIO device of that name`,
    { details: { uioName } },
  )
}

async function nameTakenError(
  paths: KernelPaths,
  id: Pick<TcmuName, 'hba' | 'name'>,
): Promise<HushringError> {
  const taken = await findCoreDevice(paths, id)
  const owner = taken?.subtype
  const what =
    taken?.isOurs === true
      ? 'exists; it is served by another process, or was left behind by one that was killed'
      : `belongs to ${owner === undefined || owner === '' ? 'somebody else' : `the subtype ${owner}`}`
  return new HushringError('ERR_TCMU_IN_USE', `the TCMU device user_${id.hba}/${id.name} ${what}`, {
    details: { ...id, subtype: owner },
  })
}

/** What is known of a core device. */
interface CoreDeviceFacts extends TcmuName {
  /** Known once it was enabled. */
  readonly uioName?: string | undefined
  /** Known while there is a node as well. */
  readonly uioPath?: string | undefined
}

/**
 * Finds a core device that exists, such as one whose server was killed.
 *
 * @param id its `name`, and its `hba` (default 0)
 * @returns undefined when there is none of that name. Look at `isOurs` before changing anything: it may belong to
 *   another program.
 */
export async function findCoreDevice(
  paths: KernelPaths,
  { hba = 0, name }: { readonly hba?: number; readonly name: string },
): Promise<CoreDevice | undefined> {
  const id = directoryId({ hba, name })
  const attribute = `${devicePathOf(paths, id)}/attrib/dev_config`
  const text = await unless(kernelFiles(paths).readFile(attribute), 'ENOENT')
  if (text === undefined) return undefined
  const uio = await findUioDevice(paths, id)
  return new CoreDevice(paths, {
    ...id,
    ...parseDevConfig(text),
    uioName: uio?.uioName,
    uioPath: uio !== undefined && (await hasNode(paths, uio)) ? uio.uioPath : undefined,
  })
}

/** How {@link CoreDevice.resetRing} ends the commands that are in flight. */
export const RingReset = {
  /** With BUSY: the initiator tries again. */
  busy: 1,
  /** With CHECK CONDITION, a hardware error for most initiators. */
  checkCondition: 2,
} as const

/** A device of target_core_user in configfs. Changes need root; every rejection is `ERR_TCMU_SYSTEM`. */
export class CoreDevice {
  readonly hba: number
  readonly name: string
  /** Who serves it: the first part of `dev_config`. */
  readonly subtype: string
  /** The rest of `dev_config`. */
  readonly config: string
  /** Its directory in configfs. */
  readonly path: string
  readonly #files: KernelFiles
  readonly #facts: CoreDeviceFacts
  readonly #dev: string
  #freeKeptBuffer: Promise<KernelFile> | undefined
  #isClosed = false

  /** @internal Use {@link createCoreDevice} or {@link findCoreDevice}. */
  constructor(paths: KernelPaths, facts: CoreDeviceFacts) {
    this.hba = facts.hba
    this.name = facts.name
    this.subtype = facts.subtype
    this.config = facts.config
    this.path = devicePathOf(paths, facts)
    this.#files = kernelFiles(paths)
    this.#facts = facts
    this.#dev = paths.dev
  }

  /** True when hushring made it. */
  get isOurs(): boolean {
    return this.subtype === SUBTYPE
  }

  /** False for a device whose making was interrupted. It cannot be served; remove it and make it anew. */
  get isEnabled(): boolean {
    return this.#facts.uioName !== undefined
  }

  /** True when it is enabled and has a device node, so that it can be served. */
  get hasNode(): boolean {
    return this.#facts.uioPath !== undefined
  }

  /** The device node, such as /dev/uio0. Throws `ERR_TCMU_OPEN` unless {@link hasNode}. */
  get uioPath(): string {
    const { uioPath } = this.#facts
    if (uioPath !== undefined) return uioPath
    throw new HushringError('ERR_TCMU_OPEN', `${this.#dev} has no node of the UIO device ${this.uioName}`)
  }

  /** The name of the UIO device, `tcm-user/<hba>/<name>/<dev_config>`. Throws `ERR_TCMU_OPEN` unless {@link isEnabled}. */
  get uioName(): string {
    const { uioName } = this.#facts
    if (uioName !== undefined) return uioName
    throw new HushringError('ERR_TCMU_OPEN', `${this.path} has no UIO device: it was never enabled`)
  }

  /**
   * Reads an attribute.
   *
   * @param name a file of `attrib`, such as `cmd_time_out`
   * @returns its text without the newline
   */
  async attribute(name: string): Promise<string> {
    return withoutNewline(await this.#files.readFile(`${this.path}/attrib/${name}`))
  }

  /** Writes an attribute. Some are refused (`EINVAL`) once the device is exported. */
  async setAttribute(name: string, value: string | number): Promise<void> {
    await this.#files.writeFile(`${this.path}/attrib/${name}`, String(value))
  }

  /** From now on the kernel answers new commands with BUSY. As the other actions, only for an enabled device. */
  async block(): Promise<void> {
    await this.#act('block_dev', '1')
  }

  /** Ends {@link block}. */
  async unblock(): Promise<void> {
    await this.#act('block_dev', '0')
  }

  /**
   * Ends every command on the ring and empties it: head and tail are 0 then. Before, nothing of this process may touch
   * ring or data any more; afterwards the ring is read from its mailbox anew.
   */
  async resetRing(how: (typeof RingReset)[keyof typeof RingReset] = RingReset.busy): Promise<void> {
    await this.#act('reset_ring', String(how))
  }

  async #act(action: string, value: string): Promise<void> {
    await this.#files.writeFile(`${this.path}/action/${action}`, value)
  }

  /**
   * Gives the buffer of a command that was completed with KEEP_BUF back to the kernel. The file stays open: this is
   * called once for each buffer. Nothing happens after {@link close} or when the device is gone, and the buffer with it.
   *
   * @param id the kernel's number of the command, 1 to 65535, else a `RangeError`; one that is not kept is refused
   * (`EINVAL`)
   */
  async freeKeptBuffer(id: number): Promise<void> {
    // Linux 6.1 takes 0 for a command that is there, and crashes.
    integerIn('id', id, 1, 0xffff)
    if (this.#isClosed) return
    this.#freeKeptBuffer ??= this.#files.open(`${this.path}/action/free_kept_buf`).catch((error) => {
      // The next buffer tries again.
      this.#freeKeptBuffer = undefined
      throw error
    })
    const file = await this.#freeKeptBuffer
    // Closed while it was being opened: the buffer goes with the device.
    if (this.#isClosed) return
    await unless(file.write(String(id)), 'ENOENT', 'ENODEV')
  }

  /** Closes what stays open between two calls. The device stays as it is. Calling it again does nothing. */
  async close(): Promise<void> {
    this.#isClosed = true
    const kept = this.#freeKeptBuffer
    this.#freeKeptBuffer = undefined
    await (await kept?.catch(() => undefined))?.close()
  }

  /**
   * Changes the capacity that configfs shows. Through `control`, which changes it at once: the attribute `dev_size`
   * does so only after a netlink listener agreed, and fails where there is none. Initiators learn nothing of it: the
   * server has to raise the unit attention CAPACITY DATA HAS CHANGED.
   *
   * @param sizeBytes a positive multiple of the block size
   */
  async setSize(sizeBytes: number): Promise<void> {
    sizeOf(sizeBytes, Number(await this.attribute('hw_block_size')))
    await writeControl(this.#files, this.path, new Map([['dev_size', String(sizeBytes)]]))
  }

  /** VPD unit serial number; empty when none was set. */
  async serial(): Promise<string> {
    const text = await this.#identity('vpd_unit_serial')
    return text.replace(/^T10 VPD Unit Serial Number: /, '')
  }

  /** Vendor identification of at most 8 characters, for INQUIRY. */
  async vendor(): Promise<string> {
    return await this.#identity('vendor_id')
  }

  /** Product identification of at most 16 characters. */
  async product(): Promise<string> {
    return await this.#identity('product_id')
  }

  /** Product revision level of at most 4 characters. */
  async revision(): Promise<string> {
    return await this.#identity('revision')
  }

  async #identity(name: string): Promise<string> {
    return withoutNewline(await this.#files.readFile(`${this.path}/wwn/${name}`))
  }

  /**
   * Removes the device, and its hba when that was the last one. Every export must be gone before (else `EBUSY`), and
   * while exports are removed the server must be alive. What is gone already is no error; calling it again does
   * nothing more.
   */
  async remove(): Promise<void> {
    await this.close()
    await removeDeviceDirectory(this.#files, this.path)
  }
}

// ---- The export through tcm_loop -----------------------------------------------------------------------------------

/** Options of {@link exportOverLoopback}. */
export interface LoopbackOptions {
  /** World-wide name of the target, `naa.` and 16 hexadecimal digits. Default: derived from hba and name. */
  readonly naa?: string
}

/** The IEEE company id that the target core uses, behind the digit of an NAA IEEE registered identifier. */
const NAA_PREFIX = 'naa.5001405'
const VENDOR_DIGIT_COUNT = 9

/**
 * A name of a target or an initiator port that stays the same for the same device.
 *
 * @param role of the port in the export
 */
function portName({ hba, name }: Pick<TcmuName, 'hba' | 'name'>, role: 'target' | 'initiator'): string {
  const digest = createHash('sha256').update(`${role}/user_${hba}/${name}`).digest('hex')
  return NAA_PREFIX + digest.slice(0, VENDOR_DIGIT_COUNT)
}

function naaOf(naa: string): string {
  if (/^naa\.[0-9a-f]{16}$/.test(stringOf('naa', naa))) return naa
  throw optionRangeError('naa', '`naa.` and 16 lower-case hexadecimal digits', naa)
}

/**
 * Makes the device a disk of this machine, /dev/sdX, through tcm_loop.
 *
 * Its server must be running: within this call the kernel sends it the commands of a SCSI scan and waits for the
 * answers. The call occupies one thread of libuv's pool meanwhile, so a server whose store uses the pool needs a second
 * one (UV_THREADPOOL_SIZE is 4 unless somebody changed it).
 *
 * An export that an earlier process left behind, whole or half made, is completed and taken over. Rejects with
 * `ERR_TCMU_IN_USE` when the target exports another device, and with `ERR_TCMU_SYSTEM` when the kernel refuses a step or
 * no disk appears. After a rejection nothing is left of what this call made.
 */
export async function exportOverLoopback(
  paths: KernelPaths,
  coreDevice: CoreDevice,
  options: LoopbackOptions = {},
): Promise<LoopbackExport> {
  refuseUnknownOptions(options, ['naa'])
  const naa = naaOf(options.naa ?? portName(coreDevice, 'target'))
  const files = kernelFiles(paths)
  const fabricPath = `${paths.configfs}/target/loopback`
  const groupPath = `${fabricPath}/${naa}/tpgt_1`
  const lunPath = `${groupPath}/lun/lun_0`
  return await allOrNothing(async (undo) => {
    // Stays for good: it stands for the module, and others use it too.
    await makeDirectory(files, fabricPath)
    await ensureDirectory(files, dirname(groupPath), undo)
    await ensureDirectory(files, groupPath, undo)
    // EEXIST: whoever left the target behind came that far.
    await unless(files.writeFile(`${groupPath}/nexus`, portName(coreDevice, 'initiator')), 'EEXIST')
    await ensureDirectory(files, lunPath, undo)
    const link = (await exportOf(files, lunPath)) ?? (await makeLink(files, lunPath, coreDevice, undo))
    if (link.corePath !== coreDevice.path) {
      throw new HushringError('ERR_TCMU_IN_USE', `${lunPath} exports ${link.corePath} already`)
    }
    const scsiAddress = await scsiAddressOf(files, lunPath)
    const scanned = await eventually(paths, () => scannedDevice(paths, scsiAddress))
    if (scanned !== undefined) return new LoopbackExport(paths, link.path, scsiAddress, scanned.diskPath)
    throw new HushringError(
      'ERR_TCMU_SYSTEM',
      `${coreDevice.path} is exported as ${scsiAddress}, but no disk appeared: its server did not answer the ` +
        'SCSI scan, or sd_mod is not loaded',
      { details: { scsiAddress } },
    )
  })
}

/**
 * Finds the export of a device through tcm_loop, such as one that outlived its server.
 *
 * @returns undefined when there is none
 */
export async function findLoopbackExport(
  paths: KernelPaths,
  coreDevice: CoreDevice,
): Promise<LoopbackExport | undefined> {
  const files = kernelFiles(paths)
  const directories = async (path: string, names: RegExp): Promise<readonly string[]> =>
    ((await unless(files.readdir(path), 'ENOENT')) ?? [])
      .filter((name) => names.test(name))
      .map((name) => `${path}/${name}`)
  for (const targetPath of await directories(`${paths.configfs}/target/loopback`, /^naa\./)) {
    for (const groupPath of await directories(targetPath, /^tpgt_\d+$/)) {
      for (const lunPath of await directories(`${groupPath}/lun`, /^lun_\d+$/)) {
        const link = await exportOf(files, lunPath)
        if (link?.corePath !== coreDevice.path) continue
        const scsiAddress = await scsiAddressOf(files, lunPath)
        // Nothing to wait for: the scan was over before the link was.
        const scanned = await scannedDevice(paths, scsiAddress)
        return new LoopbackExport(paths, link.path, scsiAddress, scanned?.diskPath)
      }
    }
  }
  return undefined
}

/** The link by which a LUN exports a core device. */
interface LunLink {
  readonly path: string
  /** Directory of the core device. */
  readonly corePath: string
}

/** What a LUN exports; undefined when it exports nothing. */
async function exportOf(files: KernelFiles, lunPath: string): Promise<LunLink | undefined> {
  for (const entry of (await unless(files.readdir(lunPath), 'ENOENT')) ?? []) {
    const path = `${lunPath}/${entry}`
    // EINVAL: one of the attributes and groups that stand beside the link.
    const target = await unless(files.readlink(path), 'EINVAL', 'ENOENT')
    if (target !== undefined) return { path, corePath: resolve(lunPath, target) }
  }
  return undefined
}

/** Links a core device into a LUN, which makes the kernel scan it. */
async function makeLink(
  files: KernelFiles,
  lunPath: string,
  coreDevice: CoreDevice,
  undo: Undo,
): Promise<LunLink> {
  const link = { path: `${lunPath}/${coreDevice.name}`, corePath: coreDevice.path }
  await files.symlink(link.corePath, link.path)
  undo(() => unless(files.unlink(link.path), 'ENOENT'))
  return link
}

async function scsiAddressOf(files: KernelFiles, lunPath: string): Promise<string> {
  const [, groupPath, lun] = /^(.*)\/lun\/lun_(\d+)$/.exec(lunPath)!
  return `${withoutNewline(await files.readFile(`${groupPath}/address`))}:${lun}`
}

/** SCSI device types that the kernel makes block devices of: disk, WORM, CD, optical, simplified and zoned disk. */
const BLOCK_DEVICE_TYPES: readonly string[] = ['0', '4', '5', '7', '14', '20']

/**
 * What the scan made of a LUN: a disk with its node, or a device of another kind, which has none.
 *
 * @returns undefined while neither is there: the disk is attached, and its node made, after the scan
 */
async function scannedDevice(
  paths: KernelPaths,
  scsiAddress: string,
): Promise<{ readonly diskPath: string | undefined } | undefined> {
  const files = kernelFiles(paths)
  const devicePath = `${paths.sysfs}/bus/scsi/devices/${scsiAddress}`
  const type = await unless(files.readFile(`${devicePath}/type`), 'ENOENT', 'ENODEV')
  if (type === undefined) return undefined
  if (!BLOCK_DEVICE_TYPES.includes(withoutNewline(type))) return { diskPath: undefined }
  const [disk] = (await unless(files.readdir(`${devicePath}/block`), 'ENOENT')) ?? []
  if (disk === undefined) return undefined
  const diskPath = `${paths.dev}/${disk}`
  return (await unless(files.inode(diskPath), 'ENOENT')) === undefined ? undefined : { diskPath }
}

/** A core device that is a disk of this machine. */
export class LoopbackExport {
  /** World-wide name of the target. */
  readonly naa: string
  /** Host, channel, target and LUN: `H:0:T:0`. */
  readonly scsiAddress: string
  /** /dev/sdX; undefined when the device is no disk, or when its scan failed before it was found again. */
  readonly blockDevicePath: string | undefined
  readonly #files: KernelFiles
  /** From the link up to the target: what {@link remove} removes, in order. */
  readonly #linkPath: string
  readonly #directories: readonly string[]

  /**
   * @internal Use {@link exportOverLoopback} or {@link findLoopbackExport}.
   * @param linkPath <naa>/tpgt_<n>/lun/lun_<n>/<link>
   */
  constructor(
    paths: KernelPaths,
    linkPath: string,
    scsiAddress: string,
    blockDevicePath: string | undefined,
  ) {
    const lunPath = dirname(linkPath)
    const groupPath = dirname(dirname(lunPath))
    const targetPath = dirname(groupPath)
    this.#files = kernelFiles(paths)
    this.#linkPath = linkPath
    this.#directories = [lunPath, groupPath, targetPath]
    this.naa = basename(targetPath)
    this.scsiAddress = scsiAddress
    this.blockDevicePath = blockDevicePath
  }

  /**
   * Takes the disk away. The server must be alive until this resolves: the kernel flushes the disk's cache and waits
   * for commands in flight. What is gone already is no error, and a target that exports something else as well stays.
   */
  async remove(): Promise<void> {
    await unless(this.#files.unlink(this.#linkPath), 'ENOENT')
    for (const path of this.#directories) await unless(this.#files.rmdir(path), 'ENOENT', 'ENOTEMPTY')
  }
}
