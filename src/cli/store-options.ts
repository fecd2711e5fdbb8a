import type { BlockDevice } from '../handlers/device.ts'
import { type FileIo, fileDisk, memoryDisk, nullDisk, sharedMemoryDisk } from '../handlers/index.ts'
import type { Logger } from '../transport/logger.ts'
import { formatSize } from './sizes.ts'
import { UsageError } from './usage-error.ts'

/** The options that say where a disk's bytes live and how the disk looks. Sizes are in bytes. */
export interface StoreOptions {
  readonly null?: number
  readonly memory?: number
  /** The bytes of `memory`, where several threads serve them. */
  readonly sharedMemory?: SharedArrayBuffer
  readonly file?: string
  /** Only with `file`. */
  readonly size?: number
  /** Only with `file`. */
  readonly followSymlinks?: boolean
  /** Only with `file`. Default auto. */
  readonly io?: FileIo
  /** Only with `file`. */
  readonly direct?: boolean
  readonly blockSize: 512 | 4096
  readonly readOnly?: boolean
  readonly serial?: string
}

/** Names of {@link StoreOptions}, without what every disk has. */
export const STORE_OPTION_NAMES = [
  'null',
  'memory',
  'file',
  'size',
  'followSymlinks',
  'io',
  'direct',
  'readOnly',
  'serial',
] as const satisfies (keyof StoreOptions)[]

/**
 * Checks that the options name exactly one store of whole blocks. (That they name not two is checked where they are
 * parsed.)
 *
 * @throws UsageError
 */
export function checkStoreOptions(options: StoreOptions): void {
  const { blockSize } = options
  if (!namesStore(options)) {
    throw new UsageError('no store is named: give --null SIZE, --memory SIZE or --file PATH')
  }
  if (options.size !== undefined && options.file === undefined) {
    throw new UsageError(
      '--size is the size of a file: it needs --file PATH; the others take their size themselves',
    )
  }
  if (options.followSymlinks && options.file === undefined) {
    throw new UsageError('--follow-symlinks is about a file: it needs --file PATH')
  }
  if (options.io !== undefined && options.file === undefined) {
    throw new UsageError('--io is about a file: it needs --file PATH')
  }
  if (options.direct && options.file === undefined) {
    throw new UsageError('--direct is about a file: it needs --file PATH')
  }
  if (options.direct && options.io === 'threads') {
    throw new UsageError('--direct goes through io_uring only: leave out --io threads')
  }
  for (const name of ['null', 'memory', 'size'] as const) {
    const sizeBytes = options[name]
    if (sizeBytes === undefined || sizeBytes % blockSize === 0) continue
    const next = Math.ceil(sizeBytes / blockSize) * blockSize
    throw new UsageError(
      `--${name} ${sizeBytes} is not a multiple of the block size of ${blockSize} bytes; use ${formatSize(next)}`,
    )
  }
}

/** True when the options name a store. */
export function namesStore(options: StoreOptions): boolean {
  return options.null !== undefined || options.memory !== undefined || options.file !== undefined
}

/** Opens the store that {@link checkStoreOptions} passed. The caller closes it. */
export async function openStore(options: StoreOptions, log: Logger): Promise<BlockDevice> {
  const { blockSize: blockBytes, followSymlinks = false, readOnly = false, serial } = options
  const shape = { blockBytes, readOnly, ...(serial !== undefined && { serial }) }
  if (options.file !== undefined) {
    const { file: path, size: sizeBytes, io = 'auto', direct = false } = options
    return fileDisk({
      ...shape,
      path,
      followSymlinks,
      io,
      direct,
      onFallback: (reason) => log.warn(`${path}: threads do what io_uring would: ${reason}`),
      ...(sizeBytes !== undefined && { sizeBytes, create: !readOnly }),
    })
  }
  if (options.sharedMemory !== undefined) return sharedMemoryDisk({ buffer: options.sharedMemory, ...shape })
  if (options.memory !== undefined) return memoryDisk({ capacityBytes: options.memory, ...shape })
  return nullDisk({ capacityBytes: options.null!, ...shape })
}
