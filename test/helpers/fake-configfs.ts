import { dirname, relative, resolve } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import type { KernelFile, KernelFiles, KernelPaths } from '../../src/transport/tcmu/kernel-files.ts'

/** What a file of the kernel does; without `store` it is read-only, without `show` write-only. */
interface Attribute {
  readonly show?: () => string
  readonly store?: (text: string) => void | Promise<void>
}

/** A directory and what the kernel does when something happens in it. */
class Directory {
  readonly inode: bigint
  readonly children = new Map<string, Directory | Attribute | { readonly target: Directory; path: string }>()
  /** True: made by the kernel with its parent, and only removed with it. */
  readonly isDefault: boolean
  /** Makes what a mkdir asks for. */
  make: ((name: string) => Directory) | undefined
  /** Called before a link to a directory is made here, and before it is removed; may take its time. */
  linked: ((target: Directory) => Promise<void>) | undefined
  unlinked: ((target: Directory) => Promise<void>) | undefined
  removed: (() => void) | undefined
  /** Links that point here. */
  linkCount = 0
  static #inodeCount = 0n

  constructor(entries: Readonly<Record<string, Directory | Attribute>> = {}, isDefault = false) {
    this.inode = ++Directory.#inodeCount
    this.isDefault = isDefault
    for (const [name, entry] of Object.entries(entries)) this.children.set(name, entry)
  }

  /** Whether somebody made something in it: default groups and attributes do not count, what is in them does. */
  get isInUse(): boolean {
    return [...this.children.values()].some((child) =>
      child instanceof Directory ? !child.isDefault || child.isInUse : 'target' in child,
    )
  }
}

function group(entries: Readonly<Record<string, Directory | Attribute>> = {}): Directory {
  return new Directory(entries, true)
}

/** The error of the operating system. */
export function systemError(code: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: by the fake kernel`), { code })
}

/** What a SCSI scan finds. */
export type ScanResult = 'disk' | 'tape' | 'nothing'

interface Variable extends Required<Attribute> {
  value: string
}

/** A value that the kernel shows, and stores after `check`. */
function variable(value: string, check: (text: string) => void = () => {}): Variable {
  const attribute: Variable = {
    value,
    show: () => `${attribute.value}\n`,
    store: (text: string) => {
      check(text)
      attribute.value = text
    },
  }
  return attribute
}

/**
 * configfs, sysfs and /dev of a kernel with target_core_user and tcm_loop, in memory, as far as hushring uses them, with
 * the kernel's refusals and delays.
 */
export class FakeKernel implements KernelFiles {
  readonly paths: KernelPaths
  /** What was changed successfully, in order, such as `mkdir core/user_0`; paths are those below `target`. */
  readonly changes: string[] = []
  /** Error codes by change: what is refused. */
  readonly refusals = new Map<string, string>()
  /** Parameters of `control` and attributes that this kernel does not know. */
  readonly unknown = new Set<string>()
  /** How long a UIO device and a disk take to appear; Infinity: for ever. */
  nodeDelayMs = 0
  /** The server of the devices: answers the scan that a link starts, and what comes before its end. */
  scan: () => Promise<ScanResult> = async () => 'disk'
  /** True once some process told the kernel to wait for netlink answers. */
  waitsForNetlink = false
  /** Lets the calls that wait for a netlink answer go on, with this errno. */
  answerNetlink: ((code?: string) => void) | undefined
  /** Buffers that were kept, by id. */
  readonly kept = new Set<string>()
  isRoot = true
  readonly #root: Directory
  readonly #uio = group()
  readonly #scsiDevices = group()
  readonly #dev = group()

  constructor({ waitMsMax = 2000, modules = ['target_core_user', 'tcm_loop'] } = {}) {
    this.paths = { configfs: '/config', sysfs: '/sys', dev: '/dev', files: this, waitMsMax }
    const core = group()
    core.make = (name) => this.#makeHba(name)
    const target = group({ core })
    target.make = (name) => {
      if (name !== 'loopback' || !modules.includes('tcm_loop')) throw systemError('EINVAL')
      return this.#makeLoopback()
    }
    this.#root = group({
      config: group(modules.includes('target_core_user') ? { target } : {}),
      sys: group({
        class: group({ uio: this.#uio }),
        bus: group({ scsi: group({ devices: this.#scsiDevices }) }),
        module: group(Object.fromEntries(modules.map((name) => [name, group()]))),
      }),
      dev: this.#dev,
    })
  }

  /** Every directory and link below `target` that somebody made, and every device: what is left behind. */
  leftovers(): readonly string[] {
    const found: string[] = []
    const walk = (path: string, directory: Directory): void => {
      for (const [name, child] of directory.children) {
        const childPath = `${path}${name}`
        if (child instanceof Directory) {
          if (!child.isDefault) found.push(childPath)
          walk(`${childPath}/`, child)
        } else if ('target' in child) found.push(childPath)
      }
    }
    const target = this.#directory('/config').children.get('target')
    if (target instanceof Directory) walk('', target)
    return [...found, ...this.#uio.children.keys(), ...this.#scsiDevices.children.keys()]
  }

  /** Adds a UIO device that is none of target_core_user's making. */
  addUio(minor: number, name: string): void {
    this.#uio.children.set(`uio${minor}`, group({ name: { show: () => `${name}\n` } }))
    this.#dev.children.set(`uio${minor}`, {})
  }

  removeUio(minor: number): void {
    this.#uio.children.delete(`uio${minor}`)
    this.#dev.children.delete(`uio${minor}`)
  }

  /** Shows a text in the place of a file. */
  replaceAttribute(path: string, text: string): void {
    this.#directory(dirname(path)).children.set(path.slice(path.lastIndexOf('/') + 1), { show: () => text })
  }

  // ---- KernelFiles

  async mkdir(path: string): Promise<void> {
    await this.#change('mkdir', path, () => {
      const [parent, name] = this.#place(path)
      if (parent.children.has(name)) throw systemError('EEXIST')
      if (parent.make === undefined) throw systemError('EPERM')
      parent.children.set(name, parent.make(name))
    })
  }

  async rmdir(path: string): Promise<void> {
    await this.#change('rmdir', path, () => {
      const directory = this.#directory(path)
      if (directory.isDefault) throw systemError('EPERM')
      if (directory.isInUse) throw systemError('ENOTEMPTY')
      if (directory.linkCount > 0) throw systemError('EBUSY')
      const [parent, name] = this.#place(path)
      parent.children.delete(name)
      directory.removed?.()
    })
  }

  async readdir(path: string): Promise<readonly string[]> {
    await turn()
    return [...this.#directory(path).children.keys()]
  }

  async readFile(path: string): Promise<string> {
    await turn()
    const { show } = this.#attribute(path)
    if (show === undefined) throw systemError('EACCES')
    return show()
  }

  async writeFile(path: string, text: string): Promise<void> {
    await this.#change('write', path, () => this.#store(path, text), text)
  }

  async symlink(target: string, path: string): Promise<void> {
    await this.#change('symlink', path, async () => {
      const [parent, name] = this.#place(path)
      const directory = this.#directory(target)
      if (parent.linked === undefined) throw systemError('EPERM')
      await parent.linked(directory)
      directory.linkCount++
      parent.children.set(name, { target: directory, path: target })
    })
  }

  async readlink(path: string): Promise<string> {
    await turn()
    const [parent, name] = this.#place(path)
    const entry = parent.children.get(name)
    if (entry === undefined) throw systemError('ENOENT')
    if (entry instanceof Directory || !('target' in entry)) throw systemError('EINVAL')
    return relative(dirname(path), entry.path)
  }

  async unlink(path: string): Promise<void> {
    await this.#change('unlink', path, async () => {
      const [parent, name] = this.#place(path)
      const entry = parent.children.get(name)
      if (entry === undefined) throw systemError('ENOENT')
      if (entry instanceof Directory || !('target' in entry)) throw systemError('EPERM')
      await parent.unlinked?.(entry.target)
      entry.target.linkCount--
      parent.children.delete(name)
    })
  }

  async inode(path: string): Promise<bigint> {
    await turn()
    const [parent, name] = this.#place(path)
    const entry = parent.children.get(name)
    if (entry === undefined) throw systemError('ENOENT')
    return entry instanceof Directory ? entry.inode : 0n
  }

  async expectWritable(path: string): Promise<void> {
    await turn()
    this.#directory(path)
    if (!this.isRoot) throw systemError('EACCES')
  }

  async open(path: string): Promise<KernelFile> {
    await this.#change('open', path, () => void this.#attribute(path))
    const attribute = this.#attribute(path)
    let isOpen = true
    return {
      write: async (text) => {
        if (!isOpen) throw systemError('EBADF')
        await this.#change('write', path, () => attribute.store!(text), text)
      },
      close: async () => {
        await this.#change('close', path, () => {
          isOpen = false
        })
      },
    }
  }

  // ---- The tree

  async #change(
    kind: string,
    path: string,
    change: () => void | Promise<void>,
    text?: string,
  ): Promise<void> {
    await turn()
    const name = `${kind} ${path.replace('/config/target/', '')}`
    const refusal = this.refusals.get(name)
    if (refusal !== undefined) throw systemError(refusal)
    if (!this.isRoot) throw systemError('EACCES')
    await change()
    this.changes.push(text === undefined ? name : `${name} ${text}`)
  }

  #place(path: string): [parent: Directory, name: string] {
    return [this.#directory(dirname(path)), path.slice(path.lastIndexOf('/') + 1)]
  }

  #directory(path: string): Directory {
    let directory = this.#root
    for (const name of resolve(path).split('/').filter(Boolean)) {
      const child = directory.children.get(name)
      if (child === undefined) throw systemError('ENOENT')
      if (!(child instanceof Directory)) throw systemError('ENOTDIR')
      directory = child
    }
    return directory
  }

  #attribute(path: string): Attribute {
    const [parent, name] = this.#place(path)
    const entry = parent.children.get(name)
    if (entry === undefined) throw systemError('ENOENT')
    if (entry instanceof Directory || 'target' in entry) throw systemError('EISDIR')
    return entry
  }

  async #store(path: string, text: string): Promise<void> {
    const { store } = this.#attribute(path)
    if (store === undefined) throw systemError('EACCES')
    await store(text)
  }

  #later(appear: () => void): void {
    if (this.nodeDelayMs === 0) appear()
    else if (this.nodeDelayMs !== Number.POSITIVE_INFINITY) setTimeout(appear, this.nodeDelayMs)
  }

  // ---- target_core_user

  #makeHba(name: string): Directory {
    const hba = /^user_(\d+)$/.exec(name)?.[1]
    if (hba === undefined) throw systemError('EINVAL')
    const directory = new Directory()
    directory.make = (device) => this.#makeCoreDevice(hba, device)
    return directory
  }

  #makeCoreDevice(hba: string, name: string): Directory {
    let isEnabled = false
    let minor = -1
    let isGone = false
    const unlessExported = (): void => {
      if (directory.linkCount > 0) throw systemError('EINVAL')
    }
    const size = variable('0', () => {
      // RECONFIG_DEVICE, to which nobody listens.
      if (isEnabled) throw systemError('ESRCH')
    })
    const shown: Record<string, Variable> = {
      dev_config: variable(''),
      dev_size: size,
      hw_block_size: variable('512'),
      hw_max_sectors: variable('128'),
      max_data_area_mb: variable('1024'),
      data_pages_per_blk: variable('1'),
      cmd_ring_size_mb: variable('8'),
      nl_reply_supported: variable('0'),
      cmd_time_out: variable('30', unlessExported),
      qfull_time_out: variable('-1'),
      emulate_write_cache: variable('0'),
      tmr_notification: variable('0', (text) => {
        if (!/^[01]$/.test(text)) throw systemError('EINVAL')
      }),
    }
    for (const name of this.unknown) delete shown[name]
    const control = (text: string): void => {
      for (const pair of text.split(/[,\n]/)) {
        const [, key = '', value = ''] = /^([^=]*)=(.*)$/.exec(pair) ?? []
        // The kernel ignores what it does not know, and divides by the pages of a block.
        if (key === 'data_pages_per_blk' && value === '0') throw new Error('the kernel divides by zero')
        if (shown[key] !== undefined) shown[key].value = value
      }
    }
    const uioName = (): string =>
      ['tcm-user', hba, name, ...(shown.dev_config!.value === '' ? [] : [shown.dev_config!.value])].join('/')
    const enable = async (text: string): Promise<void> => {
      if (text !== '1' || isEnabled || size.value === '0') throw systemError('EINVAL')
      minor = 0
      while (this.#uio.children.has(`uio${minor}`)) minor++
      isEnabled = true
      this.#later(() => {
        if (!isGone) this.#uio.children.set(`uio${minor}`, group({ name: { show: () => `${uioName()}\n` } }))
        if (!isGone) this.#later(() => this.#dev.children.set(`uio${minor}`, {}))
      })
      if (!this.waitsForNetlink || Number(shown.nl_reply_supported?.value ?? 0) < 0) return
      const code = await new Promise<string | undefined>((answered) => {
        this.answerNetlink = answered
      })
      if (code !== undefined) throw systemError(code)
    }
    const whenEnabled = (store: (text: string) => void) => (text: string) => {
      if (isGone) throw systemError('ENOENT')
      if (!isEnabled) throw systemError('ENODEV')
      store(text)
    }
    const serial = variable('', unlessExported)
    const directory = new Directory({
      control: { store: control },
      enable: { show: () => `${Number(isEnabled)}\n`, store: enable },
      attrib: group(shown),
      wwn: group({
        vendor_id: variable('LIO-ORG'),
        product_id: variable('TCMU device'),
        revision: variable('0002'),
        vpd_unit_serial: {
          show: () => `T10 VPD Unit Serial Number: ${serial.value}\n`,
          store: serial.store,
        },
      }),
      action: group({
        block_dev: { store: whenEnabled(() => {}) },
        reset_ring: {
          store: whenEnabled((text) => {
            if (!/^[12]$/.test(text)) throw systemError('EINVAL')
          }),
        },
        free_kept_buf: {
          store: whenEnabled((text) => {
            if (!this.kept.delete(text)) throw systemError('EINVAL')
          }),
        },
      }),
    })
    directory.removed = () => {
      isGone = true
      if (!isEnabled) return
      this.#uio.children.delete(`uio${minor}`)
      this.#dev.children.delete(`uio${minor}`)
    }
    return directory
  }

  // ---- tcm_loop

  #makeLoopback(): Directory {
    // The fabric stands for the module and stays.
    const fabric = group()
    fabric.make = (name) => {
      if (!/^naa\.[0-9a-f]{16}$/.test(name)) throw systemError('EINVAL')
      const target = new Directory()
      target.make = () => this.#makePortalGroup()
      return target
    }
    return fabric
  }

  #makePortalGroup(): Directory {
    const luns = group()
    luns.make = () => this.#makeLun()
    const nexus = variable('', () => {
      if (nexus.value !== '') throw systemError('EEXIST')
    })
    return new Directory({ nexus, address: { show: () => '7:0:1\n' }, lun: luns })
  }

  #makeLun(): Directory {
    const lun = new Directory({ alua_tg_pt_gp: variable('none'), statistics: group() })
    lun.linked = async () => {
      const result = await this.scan()
      if (result === 'nothing') return
      const device = group({ type: { show: () => (result === 'disk' ? '0\n' : '1\n') } })
      this.#scsiDevices.children.set('7:0:1:0', device)
      if (result !== 'disk') return
      this.#later(() => {
        device.children.set('block', group({ sdz: group() }))
        this.#later(() => this.#dev.children.set('sdz', {}))
      })
    }
    // The disk's cache is flushed, by its server.
    lun.unlinked = async () => {
      await this.scan()
      this.#scsiDevices.children.delete('7:0:1:0')
      this.#dev.children.delete('sdz')
    }
    return lun
  }
}
