import { constants, fdatasync, readv, type Stats, writev } from 'node:fs'
import { type FileHandle, open, readFile, statfs } from 'node:fs/promises'
import { HushringError, optionRangeError, optionTypeError } from '../../errors.ts'
import { booleanOf, functionOf, refuseUnknownOptions, stringOf } from '../../options.ts'
import { type FileRing, openFileRing } from '../../ring/file-ring.ts'
import { type FileTransfers, fileTransfers } from '../../ring/file-transfers.ts'
import type { Completion } from '../../ring/request.ts'
import { SegmentList } from '../../ring/segments.ts'
import { SECTOR_BYTES } from '../../units.ts'
import {
  blockDevice,
  checkedShape,
  type DiskShapeOptions,
  SHAPE_OPTION_NAMES,
  wholeBlocks,
} from '../block/block-device.ts'
import type { BlockRequest } from '../block/block-request.ts'
import type { BlockDevice } from '../device.ts'
import { type DiskFile, type QuickTransfer, type QuickTransfers, writeZeroPieces } from './disk-file.ts'
import { RingFile } from './ring-file.ts'

/** Every way in which a file disk can wait for its file. */
export const FILE_IO_WAYS = ['auto', 'uring', 'threads'] as const

/** See {@link FileDiskOptions.io}. */
export type FileIo = (typeof FILE_IO_WAYS)[number]

/** Options of {@link fileDisk}. */
export interface FileDiskOptions extends DiskShapeOptions {
  /** A regular file or a block device. */
  readonly path: string
  /**
   * Size in bytes that the file must have; a multiple of the block size. Needed with `create`. Default: the size that
   * the file has.
   */
  readonly sizeBytes?: number
  /** True: makes the file, sparse and with mode 0600, if it does not exist or is empty. Default false. */
  readonly create?: boolean
  /**
   * True: `path` may be a symbolic link. Default false, because who may write to the folder could otherwise point a
   * privileged process to any file.
   */
  readonly followSymlinks?: boolean
  /**
   * Who waits for the file: `uring`, the kernel (io_uring), which has to allow it; `threads`, the thread pool; `auto`, the
   * kernel if it does, else the thread pool. Default `auto`.
   */
  readonly io?: FileIo
  /**
   * True: past the page cache (O_DIRECT), through io_uring only. Needs a file system that can do so and blocks that are
   * not smaller than those of its device. Default false.
   */
  readonly direct?: boolean
  /** Called when `io` is `auto` and the kernel refuses io_uring, with why. Default: nobody is told. */
  readonly onFallback?: (reason: string) => void
}

/**
 * A disk in a file. Reads and writes go straight from and into the driver's memory. What the page cache can do without
 * waiting is answered at once; all else goes to io_uring, or to the thread pool (`preadv`, `pwritev`). A flush is
 * `fdatasync`; zeros are written in pieces of 1 MiB. Discard is not offered, because Node has no way to punch holes.
 *
 * The file is not locked: nothing else should write to it meanwhile. `close()` waits for the I/O in flight.
 *
 * @throws TypeError or RangeError naming the option; HushringError `ERR_STORE_OPEN` when the file cannot be a disk
 */
export async function fileDisk(options: FileDiskOptions): Promise<BlockDevice> {
  refuseUnknownOptions(options, [...OWN_OPTION_NAMES, ...SHAPE_OPTION_NAMES])
  const { path, sizeBytes, create, followSymlinks, io, direct, onFallback, ...shape } = options
  const wish = checkedWish(options)
  const handle = await openFile(wish)
  try {
    const capacityBytes = await capacityOf(handle, wish)
    const file = await diskFile(handle, wish)
    return blockDevice({
      ...shape,
      capacityBytes,
      read: (io) => file.read(io),
      write: (io) => file.write(io),
      flush: () => file.flush(),
      writeZeroes: (io) => file.writeZeroes(io),
      resize: (capacityBytes) => makeRoom(handle, wish, capacityBytes),
      close: () => file.close(),
    })
  } catch (error) {
    await handle.close()
    throw error
  }
}

const OWN_OPTION_NAMES = [
  'path',
  'sizeBytes',
  'create',
  'followSymlinks',
  'io',
  'direct',
  'onFallback',
] as const satisfies (keyof FileDiskOptions)[]

/** The options with their defaults. */
type Wish = Required<Omit<FileDiskOptions, 'sizeBytes'>> & { readonly sizeBytes: number | undefined }

/** Everything is checked before a file is made. */
function checkedWish(options: FileDiskOptions): Wish {
  const { path, sizeBytes, create = false, followSymlinks = false } = options
  const { io = 'auto', direct = false, onFallback = () => {} } = options
  const shape = checkedShape(options)
  if (create && shape.readOnly) throw optionTypeError('create', 'false when readOnly is true', create)
  if (create && sizeBytes === undefined) throw optionTypeError('sizeBytes', 'a number with create', sizeBytes)
  if (!FILE_IO_WAYS.includes(io)) throw optionRangeError('io', `one of ${FILE_IO_WAYS.join(', ')}`, io)
  if (direct && io === 'threads') throw optionTypeError('direct', 'false when io is threads', direct)
  return {
    ...shape,
    path: stringOf('path', path),
    create: booleanOf('create', create),
    followSymlinks: booleanOf('followSymlinks', followSymlinks),
    io,
    direct: booleanOf('direct', direct),
    onFallback: functionOf('onFallback', onFallback),
    sizeBytes: sizeBytes === undefined ? undefined : wholeBlocks('sizeBytes', sizeBytes, shape.blockBytes),
  }
}

async function openFile({ path, create, readOnly, followSymlinks, direct }: Wish): Promise<FileHandle> {
  const flags =
    (readOnly ? constants.O_RDONLY : constants.O_RDWR) |
    (create ? constants.O_CREAT : 0) |
    (followSymlinks ? 0 : constants.O_NOFOLLOW) |
    (direct ? constants.O_DIRECT : 0) |
    // Only so that opening a named pipe by mistake fails below instead of waiting for its other end.
    constants.O_NONBLOCK
  try {
    return await open(path, flags, 0o600)
  } catch (cause) {
    const { code = '', message } = cause as NodeJS.ErrnoException
    if (direct && code === 'EINVAL') throw openError(path, 'its file system has no direct I/O', cause)
    throw openError(path, OPEN_FAILURES[code] ?? message, cause)
  }
}

const OPEN_FAILURES: Readonly<Record<string, string>> = {
  EACCES: 'no permission; change its mode or owner, or open it with readOnly',
  EISDIR: 'it is a folder; name a file or a block device',
  ELOOP: 'it is a symbolic link; name the file itself, or allow it with followSymlinks',
  ENOENT: 'it does not exist; check the path, or make it with create and sizeBytes',
  ENOTDIR: 'a part of the path is no folder; check the path',
  EPERM: 'no permission; change its mode or owner, or open it with readOnly',
  EROFS: 'its file system is read-only; open it with readOnly',
}

function openError(path: string, why: string, cause?: unknown): HushringError {
  return new HushringError('ERR_STORE_OPEN', `cannot use ${path} as a disk: ${why}`, {
    cause,
    details: { path },
  })
}

async function capacityOf(
  handle: FileHandle,
  { path, create, sizeBytes, blockBytes }: Wish,
): Promise<number> {
  const stats = await handle.stat()
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw openError(path, 'it is neither a regular file nor a block device')
  }
  if (create && stats.isFile() && stats.size === 0) await handle.truncate(sizeBytes)
  const actualBytes = stats.isFile() ? (await handle.stat()).size : await blockDeviceBytes(path, stats)
  if (sizeBytes !== undefined && sizeBytes !== actualBytes) {
    throw openError(path, `it has ${actualBytes} bytes, but sizeBytes is ${sizeBytes}`)
  }
  if (actualBytes === 0) throw openError(path, `it is empty; give it a size, as with: truncate -s 1G ${path}`)
  if (actualBytes % blockBytes === 0) return actualBytes
  const nextBytes = Math.ceil(actualBytes / blockBytes) * blockBytes
  throw openError(
    path,
    `its ${actualBytes} bytes are not a multiple of the block size of ${blockBytes} bytes; ` +
      `make it longer, as with: truncate -s ${nextBytes} ${path}`,
  )
}

/** A file is made longer, never shorter: what is beyond a smaller capacity is kept. A block device has its size. */
async function makeRoom(handle: FileHandle, { path, readOnly }: Wish, capacityBytes: number): Promise<void> {
  const stats = await handle.stat()
  const actualBytes = stats.isFile() ? stats.size : await blockDeviceBytes(path, stats)
  if (actualBytes >= capacityBytes) return
  if (!stats.isFile() || readOnly) {
    throw openError(path, `it has ${actualBytes} bytes and cannot be made ${capacityBytes} bytes long`)
  }
  await handle.truncate(capacityBytes)
}

/** Node can neither seek nor ask a block device for its size, so it is read from sysfs. */
async function blockDeviceBytes(path: string, { rdev }: Stats): Promise<number> {
  // The layout of dev_t: the upper 32 bits hold the rest of the major and, in glibc, the minor number's high bits.
  const low = rdev % 2 ** 32
  const high = Math.floor(rdev / 2 ** 32)
  const major = ((low >>> 8) & 0xfff) | (high & ~0xfff)
  const minor = (low & 0xff) | ((low >>> 12) & ~0xff)
  try {
    return Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'ascii')) * SECTOR_BYTES
  } catch (cause) {
    throw openError(path, 'the size of the block device is not to be found in /sys', cause)
  }
}

type Views = readonly Uint8Array[]

/** One of `fs.readv` and `fs.writev`. */
type VectoredCall = (
  fd: number,
  views: Views,
  offsetBytes: number,
  done: (error: NodeJS.ErrnoException | null, countBytes: number) => void,
) => void

const ZEROS = Buffer.alloc(64 * 1024)
/** Bounds how long one call holds a thread of the pool. */
const ZERO_VIEWS: Views = Array.from({ length: 16 }, () => ZEROS)
const ZERO_VIEWS_BYTES = ZEROS.length * ZERO_VIEWS.length

/**
 * Requests up to this size are tried in the thread of the event loop: copying more takes longer than handing it to
 * another thread, and other requests wait meanwhile.
 */
const QUICK_BYTES_MAX = 128 * 1024
const EOPNOTSUPP = -95
const TMPFS_MAGIC = 0x01021994
const RAMFS_MAGIC = 0x858458f6

/**
 * A file in memory has nothing to wait for. Elsewhere the kernel is asked not to wait, and is not asked again once it has
 * said that it cannot tell: Linux 6.1 cannot for most buffered writes.
 */
async function quickTransfers(handle: FileHandle): Promise<QuickTransfers> {
  const transfers = await fileTransfers(handle.fd, await isInMemory(handle))
  const tried = (transfer: FileTransfers['read']): QuickTransfer => {
    let possible = true
    return (io) => {
      if (!possible || io.lengthBytes > QUICK_BYTES_MAX) return false
      const countBytes = transfer(io.data, io.offsetBytes)
      possible = countBytes !== EOPNOTSUPP
      return countBytes === io.lengthBytes
    }
  }
  return { read: tried(transfers.read), write: tried(transfers.write) }
}

/** True when the file lies in memory; false when it does not, or when that cannot be told (no /proc). */
async function isInMemory(handle: FileHandle): Promise<boolean> {
  // The node of a block device lies in memory, in /dev; what it stands for does not.
  if (!(await handle.stat()).isFile()) return false
  const fileSystem = await statfs(`/proc/self/fd/${handle.fd}`).catch(() => undefined)
  return fileSystem?.type === TMPFS_MAGIC || fileSystem?.type === RAMFS_MAGIC
}

/** Nothing is in the page cache of a file that is read past it. */
const NOTHING_QUICK: QuickTransfers = { read: () => false, write: () => false }

/** Wraps an open file in what moves its bytes. */
async function diskFile(handle: FileHandle, wish: Wish): Promise<DiskFile> {
  const { direct } = wish
  const ring = await ringFor(handle, wish)
  if (ring === undefined) return new PooledFile(handle, await quickTransfers(handle))
  try {
    if (direct) await checkDirect(ring, wish)
    return new RingFile(handle, ring, direct ? NOTHING_QUICK : await quickTransfers(handle))
  } catch (error) {
    await ring.close()
    throw error
  }
}

/** Undefined when the thread pool is to be used. */
async function ringFor(
  handle: FileHandle,
  { path, io, direct, onFallback }: Wish,
): Promise<FileRing | undefined> {
  if (io === 'threads') return undefined
  try {
    return await openFileRing(handle.fd, { direct })
  } catch (cause) {
    const { code = '', message } = cause as NodeJS.ErrnoException
    const reason = RING_REFUSALS[code] ?? `the kernel refuses io_uring (${message})`
    if (io === 'uring' || direct) throw openError(path, reason, cause)
    onFallback(reason)
    return undefined
  }
}

const RING_REFUSALS: Readonly<Record<string, string>> = {
  ENOSYS: 'this kernel has no io_uring, which needs Linux 5.6 (ENOSYS)',
  EPERM: 'io_uring is not allowed here (EPERM), by kernel.io_uring_disabled or a filter of system calls',
}

/** Reads one block: a device with larger ones refuses that only now. */
async function checkDirect(ring: FileRing, { path, blockBytes }: Wish): Promise<void> {
  try {
    await ring.read(SegmentList.of(Buffer.alloc(blockBytes)), 0, () => {})
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EINVAL') throw cause
    throw openError(
      path,
      `direct I/O in blocks of ${blockBytes} bytes is refused; try a blockBytes of 4096`,
      cause,
    )
  }
}

/** A file whose operations go to the thread pool. It is closed after its last one. Callbacks, because promises of fs cost three times as much. */
class PooledFile implements DiskFile {
  readonly #handle: FileHandle
  readonly #quick: QuickTransfers
  #pendingCount = 0
  #onIdle: (() => void) | undefined

  constructor(handle: FileHandle, quick: QuickTransfers) {
    this.#handle = handle
    this.#quick = quick
  }

  /** Answers at once what is in memory. What moved in part, failed or would wait is done as a whole by the pool. */
  read(io: BlockRequest): number | Promise<number> {
    if (this.#quick.read(io)) return io.lengthBytes
    return this.#transfer(readv, io.segments, io.offsetBytes, io.lengthBytes)
  }

  write(io: BlockRequest): number | Promise<number> {
    if (this.#quick.write(io)) return io.lengthBytes
    return this.#transfer(writev, io.segments, io.offsetBytes, io.lengthBytes)
  }

  flush(): Promise<void> {
    this.#pendingCount++
    return new Promise((resolve, reject) => {
      fdatasync(this.#handle.fd, (error) => {
        this.#leave()
        if (error === null) resolve()
        else reject(error)
      })
    })
  }

  async writeZeroes(io: BlockRequest): Promise<number | Completion> {
    // Counted as one operation: closed between two pieces, the next one could hit a file that got the same number.
    this.#pendingCount++
    try {
      return await writeZeroPieces(io, ZERO_VIEWS_BYTES, (pieceBytes, offsetBytes) => {
        const views = pieceBytes === ZERO_VIEWS_BYTES ? ZERO_VIEWS : firstBytes(ZERO_VIEWS, pieceBytes)
        return this.#transfer(writev, views, offsetBytes, pieceBytes)
      })
    } finally {
      this.#leave()
    }
  }

  async close(): Promise<void> {
    if (this.#pendingCount > 0) {
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve
      })
    }
    await this.#handle.close()
  }

  /**
   * Moves all bytes: the kernel may stop early, at 2 GiB or 1024 pieces for one.
   *
   * @returns the bytes moved; fewer than asked for only at the end of the file
   */
  #transfer(call: VectoredCall, views: Views, offsetBytes: number, lengthBytes: number): Promise<number> {
    this.#pendingCount++
    return new Promise((resolve, reject) => {
      let doneBytes = 0
      const onMoved = (error: NodeJS.ErrnoException | null, countBytes: number): void => {
        if (error === null) {
          doneBytes += countBytes
          if (countBytes > 0 && doneBytes < lengthBytes) {
            call(this.#handle.fd, withoutFirstBytes(views, doneBytes), offsetBytes + doneBytes, onMoved)
            return
          }
        }
        this.#leave()
        if (error === null) resolve(doneBytes)
        else reject(error)
      }
      call(this.#handle.fd, views, offsetBytes, onMoved)
    })
  }

  #leave(): void {
    if (--this.#pendingCount === 0) this.#onIdle?.()
  }
}

function firstBytes(views: Views, countBytes: number): Views {
  let left = countBytes
  return views.flatMap((view) => {
    const kept = view.subarray(0, left)
    left -= kept.length
    return kept.length === 0 ? [] : [kept]
  })
}

function withoutFirstBytes(views: Views, countBytes: number): Views {
  let skip = countBytes
  return views.flatMap((view) => {
    const rest = view.subarray(skip)
    skip -= view.length - rest.length
    return rest.length === 0 ? [] : [rest]
  })
}
