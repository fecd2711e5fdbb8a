import * as fs from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { HushringError } from '../../errors.ts'
import type { NativeTcmuPort } from '../../native.ts'

/** Where the kernel's files lie. Tests give their own places, or a model of the kernel. */
export interface KernelPaths {
  /** Mount point of configfs; `/sys/kernel/config` on every usual system. */
  readonly configfs: string
  /** Mount point of sysfs; `/sys`. */
  readonly sysfs: string
  /** Folder of device nodes; `/dev`. */
  readonly dev: string
  /** How these files are reached. Default: `node:fs/promises`. */
  readonly files?: KernelFiles
  /** Opens a UIO device; fails with the error of the operating system. Default: the real one. */
  readonly openPort?: (uioPath: string) => NativeTcmuPort
  /** Longest wait in ms for a device that the kernel or udev makes a little later. Default 10000. */
  readonly waitMsMax?: number
}

/** The places of a usual Linux system. */
export const KERNEL_PATHS: KernelPaths = { configfs: '/sys/kernel/config', sysfs: '/sys', dev: '/dev' }

/**
 * What is done with the kernel's files, and nothing else. All of it is asynchronous, because the kernel may hold any
 * of these calls until this process has answered SCSI commands or netlink events: the call then blocks a thread of
 * libuv's pool and not the thread that has to answer.
 *
 * Rejects with the error of the operating system (`code`: `ENOENT`, `EBUSY` …).
 */
export interface KernelFiles {
  mkdir(path: string): Promise<void>
  /** Removes one directory. There is no recursive form on purpose: the order of removal matters to the kernel. */
  rmdir(path: string): Promise<void>
  /** Names in a directory. */
  readdir(path: string): Promise<readonly string[]>
  readFile(path: string): Promise<string>
  /** Writes `text` with one write. Never makes a file: an attribute that this kernel lacks is ENOENT. */
  writeFile(path: string, text: string): Promise<void>
  symlink(target: string, path: string): Promise<void>
  readlink(path: string): Promise<string>
  unlink(path: string): Promise<void>
  /** The inode behind a path; it tells apart two devices that had the same name one after the other. */
  inode(path: string): Promise<bigint>
  /** Rejects unless this process may write to `path`. */
  expectWritable(path: string): Promise<void>
  /** Opens an existing file for repeated writing. */
  open(path: string): Promise<KernelFile>
}

/** A kernel file that stays open. */
export interface KernelFile {
  /** Writes `text` with one write at offset 0. */
  write(text: string): Promise<void>
  close(): Promise<void>
}

/**
 * Write-only: an attribute without a reader cannot be opened for both. Neither O_CREAT, which configfs answers with a
 * permission error that hides what is wrong.
 */
const WRITE_FLAG = fs.constants.O_WRONLY

const nodeFiles: KernelFiles = {
  mkdir: (path) => fs.mkdir(path),
  rmdir: (path) => fs.rmdir(path),
  readdir: (path) => fs.readdir(path),
  readFile: (path) => fs.readFile(path, 'utf8'),
  writeFile: (path, text) => fs.writeFile(path, text, { flag: WRITE_FLAG }),
  symlink: (target, path) => fs.symlink(target, path),
  readlink: (path) => fs.readlink(path),
  unlink: (path) => fs.unlink(path),
  inode: async (path) => (await fs.stat(path, { bigint: true })).ino,
  expectWritable: (path) => fs.access(path, fs.constants.W_OK),
  open: async (path) => {
    const handle = await fs.open(path, WRITE_FLAG)
    return {
      write: async (text) => {
        await handle.write(text, 0)
      },
      close: () => handle.close(),
    }
  },
}

/**
 * The files of `paths`, with errors that tell the whole story: every rejection is `ERR_TCMU_SYSTEM` with the path and
 * what was tried in its message, the error of the operating system as `cause`, and `details.errno` for
 * {@link errnoOf}.
 */
export function kernelFiles(paths: KernelPaths): KernelFiles {
  const files = paths.files ?? nodeFiles
  return {
    mkdir: (path) => told(`make ${path}`, path, files.mkdir(path)),
    rmdir: (path) => told(`remove ${path}`, path, files.rmdir(path)),
    readdir: (path) => told(`list ${path}`, path, files.readdir(path)),
    readFile: (path) => told(`read ${path}`, path, files.readFile(path)),
    writeFile: (path, text) =>
      told(`write ${JSON.stringify(text)} to ${path}`, path, files.writeFile(path, text)),
    symlink: (target, path) => told(`link ${target} as ${path}`, path, files.symlink(target, path)),
    readlink: (path) => told(`read the link ${path}`, path, files.readlink(path)),
    unlink: (path) => told(`remove ${path}`, path, files.unlink(path)),
    inode: (path) => told(`look at ${path}`, path, files.inode(path)),
    expectWritable: (path) => told(`write to ${path}`, path, files.expectWritable(path)),
    open: async (path) => {
      const file = await told(`open ${path}`, path, files.open(path))
      return {
        write: (text) => told(`write ${JSON.stringify(text)} to ${path}`, path, file.write(text)),
        close: () => told(`close ${path}`, path, file.close()),
      }
    },
  }
}

async function told<T>(attempt: string, path: string, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    throw new HushringError('ERR_TCMU_SYSTEM', `cannot ${attempt}: ${code ?? message}`, {
      cause,
      details: { path, errno: code },
    })
  }
}

/** The name of the operating system's error (`EBUSY`) behind an error of {@link kernelFiles}; else undefined. */
export function errnoOf(error: unknown): string | undefined {
  const errno = error instanceof HushringError ? error.details.errno : undefined
  return typeof errno === 'string' ? errno : undefined
}

/**
 * What `work` came to, or undefined when it failed with one of these errors of the operating system.
 *
 * @param work a call of {@link kernelFiles}
 * @param errnos such as `ENOENT`
 */
export async function unless<T>(work: Promise<T>, ...errnos: readonly string[]): Promise<T | undefined> {
  try {
    return await work
  } catch (error) {
    if (errnos.includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}

/** An attribute's text as the kernel holds it: it is shown with a newline, and `echo` stores one more. */
export function withoutNewline(text: string): string {
  return text.replace(/\n+$/, '')
}

const WAIT_MS_MAX = 10_000
const LOOK_AGAIN_MS = 10

/**
 * Looks again and again until there is an answer.
 *
 * @returns undefined when there was none within `waitMsMax`
 */
export async function eventually<T>(
  { waitMsMax = WAIT_MS_MAX }: KernelPaths,
  look: () => Promise<T | undefined>,
): Promise<T | undefined> {
  const endMs = performance.now() + waitMsMax
  for (;;) {
    const found = await look()
    if (found !== undefined || performance.now() >= endMs) return found
    await delay(LOOK_AGAIN_MS)
  }
}
