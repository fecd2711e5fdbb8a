import { getSystemErrorName } from 'node:util'
import { FileRingEnd, FileRingVerb, type NativeFileRing, type NativeWatch } from '../native.ts'
import { atBatchEnd, inBatchScope } from './batch-scope.ts'
import { Later } from './later.ts'
import { type SegmentList, visitPieces } from './segments.ts'

/** The part of the addon that {@link FileRing} uses. */
export interface FileRingPort {
  readonly ring: NativeFileRing
  /** Calls back from the event loop while {@link NativeFileRing.fd} is readable. */
  watch(onReadable: () => void): NativeWatch
}

/** Options of {@link openFileRing}. */
export interface FileRingOptions {
  /** True for a file that was opened with O_DIRECT. */
  readonly direct: boolean
}

/** Operations that go to the kernel by one system call. */
const ENTRY_COUNT = 128
/**
 * Larger transfers are copied by threads of the kernel: copying them takes longer than handing them over, and other
 * requests wait meanwhile.
 */
const INLINE_BYTES_MAX = 128 * 1024

/**
 * Opens a ring for a file, for the stores of hushring. Loads the addon only now, so that all else works without it. Rejects
 * with the error of the operating system where the kernel has no io_uring or does not allow it.
 *
 * @param fd borrowed; open until the ring is closed
 */
export async function openFileRing(fd: number, { direct }: FileRingOptions): Promise<FileRing> {
  const { native } = await import('../native.ts')
  const ring = native.openFileRing(fd, {
    entryCount: ENTRY_COUNT,
    // O_DIRECT copies nothing, so nothing is gained by another thread.
    inlineBytesMax: direct ? Number.MAX_SAFE_INTEGER : INLINE_BYTES_MAX,
    direct,
  })
  try {
    const watch = (onReadable: () => void): NativeWatch =>
      native.watchReadable(ring.fd, ring.fdIsEventfd, onReadable)
    return new FileRing({ ring, watch })
  } catch (error) {
    ring.close()
    throw error
  }
}

/** One operation in flight, and what it comes to. */
class Operation extends Later<number> {
  readonly syscall: string
  readonly release: () => void
  /**
   * What the kernel works with, until it is through. Driver memory is held by whoever asks; memory of this process, which a
   * layer such as `timeout` has given the store, would go with the request when that is given up, while the kernel still reads
   * into it.
   */
  windows: readonly Buffer[] | undefined

  constructor(syscall: string, release: () => void, windows: readonly Buffer[] | undefined) {
    super()
    this.syscall = syscall
    this.release = release
    this.windows = windows
  }
}

const SYSCALLS = { read: 'preadv', write: 'pwritev', sync: 'fdatasync' } as const

/**
 * Reads, writes and flushes of a file through io_uring. Whatever one batch of requests begins goes to the kernel by one
 * system call at the end of the batch; what has ended by then is answered in the same batch, and the rest from the event
 * loop, in groups.
 */
export class FileRing {
  readonly #ring: NativeFileRing
  readonly #watch: NativeWatch
  readonly #operations: (Operation | undefined)[] = []
  #pendingCount = 0
  #willTurn = false
  #onIdle: (() => void) | undefined
  #nextTry: NodeJS.Immediate | undefined

  /** @param port owned from now on */
  constructor({ ring, watch }: FileRingPort) {
    this.#ring = ring
    this.#watch = watch(this.#onReadable)
    this.#watch.unref()
  }

  /**
   * Fills a list from the file.
   *
   * @param release called when the kernel is through with the memory of the list
   * @returns the bytes read, fewer than the list has only at the end of the file
   */
  read(list: SegmentList, fileOffsetBytes: number, release: () => void): Later<number> {
    return this.#begin('read', list, fileOffsetBytes, release)
  }

  /** Writes the bytes of a list; otherwise as {@link read}. */
  write(list: SegmentList, fileOffsetBytes: number, release: () => void): Later<number> {
    return this.#begin('write', list, fileOffsetBytes, release)
  }

  /** Makes permanent what was written by operations that had ended before (fdatasync). */
  sync(): Later<number> {
    return this.#begin('sync', undefined, 0, () => {})
  }

  /** Waits for what is in flight, then closes the ring. Nothing may be begun any more. */
  async close(): Promise<void> {
    if (this.#pendingCount > 0) {
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve
      })
    }
    clearImmediate(this.#nextTry)
    this.#watch.close()
    this.#ring.close()
  }

  #begin(
    verb: keyof typeof SYSCALLS,
    list: SegmentList | undefined,
    fileOffsetBytes: number,
    release: () => void,
  ): Later<number> {
    const windows = list && visitPieces(list, this.#ring.addPiece)
    const number = this.#ring.begin(FileRingVerb[verb], fileOffsetBytes)
    const operation = new Operation(SYSCALLS[verb], release, windows)
    this.#operations[number] = operation
    // The process lives for as long as something is in flight, as with the thread pool.
    if (this.#pendingCount++ === 0) this.#watch.ref()
    if (!this.#willTurn) {
      this.#willTurn = true
      atBatchEnd(this.#turn)
    }
    return operation
  }

  /**
   * Wakes up. What has ended is answered in groups and not all at once: the driver goes on with the first ones while the next
   * ones are answered.
   */
  readonly #onReadable = (): void => {
    while (inBatchScope(this.#settleSome)) {}
  }

  /** At the end of a batch, with which everything goes out that has ended by then. */
  readonly #turn = (): void => {
    while (this.#settleSome()) {}
  }

  /** Gives the kernel what was begun and settles some of what has ended; true when there may be more. */
  readonly #settleSome = (): boolean => {
    this.#willTurn = false
    const { ends } = this.#ring
    const rowCount = this.#ring.turn()
    for (let row = 0; row < rowCount; row++) {
      const at = row * FileRingEnd.words
      this.#end(ends[at + FileRingEnd.number]!, ends[at + FileRingEnd.value]!)
    }
    if (rowCount === ends.length / FileRingEnd.words) return true
    if (this.#pendingCount === 0) {
      this.#watch.unref()
      this.#onIdle?.()
    } else if (!this.#willTurn && this.#ring.inKernelCount() === 0 && this.#ring.waitingCount() > 0) {
      // The kernel took nothing for want of memory, and has nothing whose end would wake us.
      this.#willTurn = true
      this.#nextTry = setImmediate(this.#onReadable)
    }
    return false
  }

  #end(number: number, value: number): void {
    const operation = this.#operations[number]!
    this.#operations[number] = undefined
    this.#pendingCount--
    operation.windows = undefined
    operation.release()
    if (value >= 0) operation.fulfill(value)
    else operation.reject(systemError(value, operation.syscall))
  }
}

/** An error as those of `node:fs`. */
function systemError(errno: number, syscall: string): NodeJS.ErrnoException {
  const code = getSystemErrorName(errno)
  return Object.assign(new Error(`${code}: ${syscall}`), { errno, code, syscall })
}
