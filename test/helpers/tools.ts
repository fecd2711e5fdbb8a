import { spawnSync } from 'node:child_process'
import { accessSync, constants, readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'

/** A program or a file that a test needs and a machine may lack. */
export interface Tool {
  /** What a person would look for, such as `qemu-storage-daemon`. */
  readonly name: string
  /** Where it is, or undefined when this machine lacks it. */
  readonly path: string | undefined
}

function usable(path: string, mode: number): boolean {
  try {
    accessSync(path, mode)
    return true
  } catch {
    return false
  }
}

function program(name: string, directories: readonly string[] = searchPath): Tool {
  const paths = directories.map((directory) => join(directory, name))
  return { name, path: paths.find((path) => usable(path, constants.X_OK)) }
}

// Users' search paths often lack the last two, where file system tools live.
const searchPath = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin']

/** The scripts that install front-ends. */
export const scriptsDirectory: string = join(import.meta.dirname, '../../scripts/front-ends')

const blkioDirectory = spawnSync(join(scriptsDirectory, 'libblkio.sh'), ['where'], {
  encoding: 'utf8',
}).stdout.trim()
const blkio = (name: string): Tool => program(name, blkioDirectory === '' ? [] : [blkioDirectory])

/** libblkio's example programs. */
export const blkioTools = {
  info: blkio('blkio-info'),
  copy: blkio('blkio-copy'),
  bench: blkio('blkio-bench'),
} as const

/** The version of the newest kernel in /boot whose modules are installed, for an emulated x86-64 machine. */
function newestKernelVersion(): string | undefined {
  if (process.arch !== 'x64' || !usable('/boot', constants.R_OK)) return undefined
  return readdirSync('/boot')
    .filter((name) => name.startsWith('vmlinuz-') && usable(join('/boot', name), constants.R_OK))
    .map((name) => name.slice('vmlinuz-'.length))
    .filter((version) => usable(join('/lib/modules', version), constants.R_OK))
    .sort((a, b) => b.localeCompare(a, 'en', { numeric: true }))[0]
}

/** What booting a guest and looking at its disk needs. The `path` of the kernel is its version. */
export const guestTools = {
  kernel: { name: 'a readable kernel in /boot with its modules', path: newestKernelVersion() },
  qemu: program('qemu-system-x86_64'),
  busybox: program('busybox'),
  cpio: program('cpio'),
  xz: program('xz'),
  modprobe: program('modprobe'),
  mke2fs: program('mke2fs'),
  e2fsck: program('e2fsck'),
  debugfs: program('debugfs'),
} as const satisfies Record<string, Tool>

/** What a TCMU guest needs, which runs on the host's own root file system, beside {@link guestTools}. */
export const tcmuGuestTools = {
  fio: program('fio'),
  sgInq: program('sg_inq'),
  mkfs: program('mkfs.ext4'),
  fstrim: program('fstrim'),
} as const satisfies Record<string, Tool>

/** The peer of the TCMU tests and measurements. */
export const tcmuRunner: Tool = program('tcmu-runner')

/** The peer that is measured and tested beside hushring. */
export const storageDaemon: Tool = program('qemu-storage-daemon')
