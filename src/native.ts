import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { HushringError } from './errors.ts'

export { SegmentRow } from './segment-row.ts'

/**
 * Everything the compiled addon exports. This file is the only one that loads it.
 *
 * File descriptors are plain numbers; each function says who closes them. Functions throw an `Error` with `code`
 * (`EACCES`, `EADDRINUSE` …) and `syscall` when the kernel refuses, like `node:fs` does.
 */
export interface NativeBinding {
  // ---- memory -------------------------------------------------------------------------------------------
  /**
   * Makes an anonymous memory file of zeros (memfd_create, close-on-exec), its size sealed when asked.
   *
   * @returns a file descriptor; the caller closes it
   */
  memfdCreate(name: string, sizeBytes: number, sealed: boolean): number
  /**
   * Maps one region of driver memory, shared and writable, from file offset 0 to `mmapOffsetBytes + sizeBytes`.
   * Does not keep or close `fd`. Throws `ERR_MEMORY_REGION` (as `code`) when the file is shorter than that, the
   * size is 0, or a sum wraps.
   */
  mapRegion(
    fd: number,
    guestAddress: bigint,
    userAddress: bigint,
    sizeBytes: bigint,
    mmapOffsetBytes: bigint,
  ): NativeRegion

  // ---- rings --------------------------------------------------------------------------------------------
  createSplitQueue(options: NativeQueueOptions): NativeQueue
  /** For stores in memory; see {@link NativeCopies}. */
  createCopies(): NativeCopies

  // ---- TCMU ---------------------------------------------------------------------------------------------
  /**
   * Opens and maps a UIO device of target_core_user. Throws what open(2) and mmap(2) refuse with (`EBUSY`: another
   * process serves it), and `ERR_TCMU_OPEN` when it is no UIO device with a map.
   *
   * @param path such as `/dev/uio0`
   * @param sysfs where sysfs is mounted, for the exact size of the map
   */
  openUioPort(path: string, sysfs: string): NativeTcmuPort
  createTcmuQueue(options: NativeTcmuQueueOptions): NativeTcmuQueue
  /** See {@link NativeTcmuKernel}. */
  createTcmuKernel(options: NativeTcmuKernelOptions): NativeTcmuKernel

  // ---- files --------------------------------------------------------------------------------------------
  /**
   * Reads one piece of a file into `buffer`, in this thread.
   *
   * @param mayWait false: `EAGAIN` instead of waiting for a device, `EOPNOTSUPP` where the file system cannot promise
   * that (RWF_NOWAIT). True only for a file in memory.
   * @returns the bytes read, fewer than asked for at the end of the file or where the rest would have to wait; or minus
   * an errno: EINVAL also for an argument of another kind and for a piece that does not lie in `buffer`
   */
  readonly fileReadAt: FileTransfer
  /** As {@link fileReadAt}, for a write of what is in `buffer`. */
  readonly fileWriteAt: FileTransfer
  /**
   * Makes a ring of io_uring for one file. Throws what the kernel refuses with: `ENOSYS` before Linux 5.6, `EPERM` where
   * io_uring is switched off or filtered, `ENOMEM` where RLIMIT_MEMLOCK is too low for the rings (before Linux 5.12).
   *
   * @param fd borrowed; open for as long as the ring is
   */
  openFileRing(fd: number, options: NativeFileRingOptions): NativeFileRing

  // ---- eventfd and readiness ----------------------------------------------------------------------------
  /** Makes a non-blocking, close-on-exec eventfd with counter 0. The caller closes it. */
  eventfdCreate(): number
  /** True when `fd` is an eventfd (and not a file, a pipe, a socket or closed). */
  isEventfd(fd: number): boolean
  /** Sets O_NONBLOCK on the open file behind `fd`. */
  setNonBlocking(fd: number): void
  /** Adds 1 to the counter. A full counter is "already signalled": never waits, never throws for it. */
  eventfdSignal(fd: number): void
  /** Reads and resets the counter; 0 when it was 0. Never waits. */
  eventfdDrain(fd: number): number
  closeFd(fd: number): void
  /** A second, close-on-exec descriptor for the same open file. The caller closes it. */
  duplicateFd(fd: number): number
  /**
   * Calls `onReadable` from the event loop whenever `fd` is readable (level-triggered, uv_poll).
   *
   * @param drainEventfd true: the eventfd is read natively before the call, so one call covers many kicks.
   * The watch does not own `fd`; close the watch first, then the fd. A watch keeps the process alive unless
   * `unref()` is called. If the fd fails or hangs up, `onReadable` is called once with a negative errno and the
   * watch stops by itself, so that it can never spin.
   */
  watchReadable(fd: number, drainEventfd: boolean, onReadable: (error: number) => void): NativeWatch
  /**
   * Calls `onHangUp` once, from the event loop, when the other side of the stream socket `fd` closed it, whether or
   * not bytes are left to read (UV_DISCONNECT, never UV_READABLE); the watch then stops by itself. An fd has at
   * most one watch of either kind at a time.
   */
  watchHangUp(fd: number, onHangUp: () => void): NativeWatch
  /**
   * A one-shot timer in microseconds on a timerfd, because the event loop's own timers tick in milliseconds.
   * One object serves many shots.
   */
  createMicroTimer(onExpire: () => void): NativeMicroTimer

  // ---- unix sockets with file descriptors ---------------------------------------------------------------
  /**
   * Binds a stream socket to exactly `path`, mode `mode` from the first moment on, and listens (non-blocking,
   * close-on-exec). Throws EADDRINUSE when the path exists; ENAMETOOLONG when it does not fit (107 bytes).
   */
  unixListen(path: string, mode: number, backlog: number): number
  /** Connects a stream socket, blocking only as connect(2) to a local socket does. Non-blocking afterwards. */
  unixConnect(path: string): number
  /** True when `fd` is a Unix stream socket that listens. */
  unixIsListening(fd: number): boolean
  /** The process on the other side of a connected socket; for one that connected, whoever listened (SO_PEERCRED). */
  unixPeerPid(fd: number): number
  /** Accepts one connection (non-blocking, close-on-exec), or -1 when none waits. */
  unixAccept(listenFd: number): number
  /**
   * Receives at most `lengthBytes` into `target` at `offsetBytes`, with the file descriptors that came along
   * (close-on-exec; the caller owns them). `bytes` is -1 when nothing is there yet and 0 at end of stream.
   * When the ancillary data was truncated, every received fd is closed and `code` EMSGSIZE is thrown.
   */
  unixReceive(
    fd: number,
    target: Uint8Array,
    offsetBytes: number,
    lengthBytes: number,
  ): { bytes: number; fds: number[] }
  /**
   * Sends all of `bytes` with `fds` attached to the first byte (not closed). Returns the number of bytes sent,
   * which is less than asked only when the socket buffer is full; -1 when nothing could be sent.
   */
  unixSend(fd: number, bytes: Uint8Array, fds: readonly number[]): number

  // ---- generic netlink ------------------------------------------------------------------------------------
  /**
   * Makes a non-blocking, close-on-exec socket of generic netlink. The caller closes it. When it is full it loses what
   * comes, goes on as soon as there is room, and counts ({@link netlinkLostCount}); the sender of a lost multicast
   * gets ENOBUFS.
   *
   * @param receiveBufferBytes room for what waits to be received; above the system's limit only with CAP_NET_ADMIN
   */
  netlinkOpen(receiveBufferBytes: number): number
  /** Receives the multicasts of a group from now on. */
  netlinkJoin(fd: number, group: number): void
  /** Sends one datagram to the kernel, which has handled it and queued its answer when this returns. */
  netlinkSend(fd: number, datagram: Uint8Array): number
  /**
   * Receives one datagram of the kernel into `target`; those of other processes are dropped. Returns its length, -1
   * when none waits. Throws EMSGSIZE when it did not fit; it is gone then.
   */
  netlinkReceive(fd: number, target: Uint8Array): number
  /** Datagrams that the socket has lost since it was opened, modulo 2^32. */
  netlinkLostCount(fd: number): number

  // ---- memory reclaim: for a process that serves a disk of its own machine ------------------------------------
  /**
   * Tells the kernel whether this thread writes out the dirty pages of others (PR_SET_IO_FLUSHER): what it allocates
   * for the thread then never waits for such a page to be written. Threads and processes made later inherit it, and
   * execve keeps it; threads that exist already, as libuv's pool may, stay as they are. Throws EPERM without
   * CAP_SYS_RESOURCE and EINVAL before Linux 5.6.
   */
  setIoFlusher(enabled: boolean): void
  /** Whether this thread is an I/O flusher. Throws as {@link setIoFlusher}. */
  isIoFlusher(): boolean
  /**
   * Keeps the program and its libraries in memory (mlock) until the process ends, so that no instruction waits for a
   * disk. Not the heap: V8 does not survive a locked one; it can only be swapped, which the operator can prevent.
   * All or nothing: throws EPERM, ENOMEM or EAGAIN when RLIMIT_MEMLOCK is too low and the process lacks CAP_IPC_LOCK.
   */
  lockMemory(): void

  // ---- the driver's half, for the loopback, tests and benches ---------------------------------------------
  /** See {@link NativeDriverThread}. */
  startDriverThread(options: NativeDriverThreadOptions): NativeDriverThread

  // ---- litmus tests -----------------------------------------------------------------------------------------
  /** See {@link NativeLitmus}. */
  createLitmus(options: NativeLitmusOptions): NativeLitmus
  /** CPUs that this process may use (sched_getaffinity). */
  usableCpuCount(): number

  /** Memory barriers, orderings and facts about the build, for `hushring --version` and tests. */
  readonly build: { readonly napiVersion: number; readonly compiler: string; readonly sanitizer: string }
}

/** See {@link NativeBinding.fileReadAt}. */
export type FileTransfer = (
  fd: number,
  buffer: Buffer,
  offsetBytes: number,
  lengthBytes: number,
  fileOffsetBytes: number,
  mayWait: boolean,
) => number

export interface NativeFileRingOptions {
  /** Operations given to the kernel by one system call, 1 to 4096. Twice as many are in it, the rest waits. */
  readonly entryCount: number
  /** Transfers of more bytes are done by threads of the kernel, others in this thread if nothing has to be waited for. */
  readonly inlineBytesMax: number
  /** True for a file opened with O_DIRECT: data that is not aligned as its device needs it goes through a buffer. */
  readonly direct: boolean
}

/** Reads, writes and flushes of one file through io_uring. Functions are bound. */
export interface NativeFileRing {
  /**
   * Readable when something has ended since a {@link turn} that filled fewer rows than there are. Lent: closed by
   * {@link close}.
   */
  readonly fd: number
  /** Whether {@link fd} has to be read by whoever watches it. False where the kernel is older than Linux 6.1. */
  readonly fdIsEventfd: boolean
  /** Rows of {@link FileRingEnd.words} numbers that {@link turn} fills. */
  readonly ends: Float64Array
  /**
   * Adds a piece to the operation that {@link begin} begins next. The memory must stay until its end is told. False, and
   * nothing done, when the piece does not lie in `buffer`.
   */
  addPiece(buffer: Buffer, offsetBytes: number, lengthBytes: number): boolean
  /**
   * Begins an operation with the pieces that were added; {@link turn} gives it to the kernel.
   *
   * @param verb {@link FileRingVerb}
   * @returns a number that no other operation has until its end is told; -1 for an argument of another kind
   */
  begin(verb: number, fileOffsetBytes: number): number
  /**
   * Gives the kernel what was begun, by one system call, and gathers what has ended.
   *
   * @returns rows filled in {@link ends}; when those are all, there may be more
   */
  turn(): number
  /** Operations that the kernel does not take at the moment; {@link turn} tries again. */
  waitingCount(): number
  inKernelCount(): number
  /** Waits for what is in the kernel, whose ends are not told, and closes the ring. Any later call throws ERR_CLOSED. */
  close(): void
}

export const FileRingVerb = { read: 0, write: 1, sync: 2 } as const
/** Row of {@link NativeFileRing.ends}: `value` is the bytes moved, fewer only at the end of the file, or minus an errno. */
export const FileRingEnd = { number: 0, value: 1, words: 2 } as const

/** One mapped region of driver memory. */
export interface NativeRegion {
  /**
   * The region as JavaScript sees it: windows of {@link windowBytes}, in order, the last one shorter. Never hand
   * the ArrayBuffers themselves to users.
   */
  readonly windows: readonly ArrayBuffer[]
  /** 1 GiB: a window's length except for the last. */
  readonly windowBytes: number
  /** True once an access fell behind the end of the file (SIGBUS was caught and answered with zeros). */
  readonly truncated: boolean
  /** Detaches every window, so that all views go empty, then unmaps. Calling it again does nothing. */
  close(): void
}

export interface NativeQueueOptions {
  /** Largest ring this queue can be started with; a power of two, 1 to 32768. */
  readonly sizeMax: number
  readonly headerBytes: number
  readonly statusByte: boolean
  /** Most requests one `take` hands out. */
  readonly batchCountMax: number
  /** So many at most unless more than eight times as many are visible: then an eighth of those. Default `batchCountMax`. */
  readonly batchCountMin?: number
  /** Longest chain accepted, in descriptors (at least the ring's size is always accepted). */
  readonly chainCountMax: number
  /** True: a malformed chain breaks the queue. False: it is returned with length 0. */
  readonly strictChains: boolean
}

export interface NativeQueueStart {
  /** Ring size; a power of two up to `sizeMax`. */
  readonly size: number
  /** Front-end virtual addresses of the three parts (vhost-user), or guest addresses with `guestAddresses`. */
  readonly descriptorAddress: bigint
  readonly availableAddress: bigint
  readonly usedAddress: bigint
  readonly guestAddresses: boolean
  /** Next available index to take (SET_VRING_BASE). The used index starts from ring memory. */
  readonly availableBase: number
  readonly eventIdx: boolean
  readonly indirect: boolean
  readonly regions: readonly NativeRegion[]
  /** eventfd to signal the driver with, or -1. Borrowed; must outlive the queue's use of it. */
  readonly callFd: number
  /** Where the queue keeps account for the process after this one, and finds that of the one before. */
  readonly inflight?: NativeInflightPlace | undefined
}

/** Where the in-flight region of one queue lies (vhost-user, "Inflight I/O tracking"). */
export interface NativeInflightPlace {
  readonly region: NativeRegion
  /** A multiple of 64. */
  readonly offsetBytes: number
  /** Descriptors it has entries for, at least the ring's size, at most 32768. */
  readonly entryCount: number
}

/**
 * The device's half of one split virtqueue. Functions are bound: they work without `this`.
 *
 * Hot path: `take` and `complete`, one call each per batch.
 */
export interface NativeQueue {
  /**
   * Starts or re-starts the ring. Returns 0, or the {@link RingBreak} that says why it cannot run.
   * The first decision after a start always signals (`signalled_used_valid` is false). With an in-flight region that
   * was in use, `take` hands out what the earlier process owed before anything else, and `availableBase` is ignored.
   */
  start(options: NativeQueueStart): number
  /** Stops the ring, forgets what is in flight and starts a new generation. Returns the next available index. */
  stop(): number
  /** Replaces the memory of a running ring. Returns 0 or a {@link RingBreak}. In-flight heads stay valid. */
  setRegions(regions: readonly NativeRegion[]): number
  /** Replaces the call eventfd (-1: none) and lets the next decision signal whatever the driver asked for. */
  setCallFd(callFd: number): void
  /** Signals the driver once, without a decision; used when a queue starts or its call fd changes. */
  signal(): void

  /**
   * Takes up to `countMax` requests (at most `batchCountMax`) into the tables and suppresses kicks.
   * Requests whose chain is malformed are returned to the driver by the next `complete` and not handed out.
   *
   * @returns the number taken, or minus a {@link RingBreak} when the queue is broken
   */
  take(countMax: number): number
  /**
   * Gives back the first `count` rows of {@link completions}: writes the status bytes and used elements, stores
   * the index once with release order, executes one full barrier, reads used_event (or the flags), and signals
   * the call eventfd if the driver asked. Then, if kicks are suppressed and nothing is visible, re-arms: asks
   * for kicks, full barrier, looks once more. `count` may be 0: then only the decision for malformed chains (if
   * any) and the re-arm happen.
   *
   * @param pollNanosMax looks for requests for up to so long before it asks for kicks, in this thread, which does nothing
   * else meanwhile. 0: asks at once
   * @param mayDefer puts the barrier and the decision off, if enough is visible and was answered quickly (`undecided`).
   * Whoever allows it owes a {@link settle} as soon as it takes nothing more
   * @returns {@link CompleteBits}, or minus a {@link RingBreak}
   */
  complete(count: number, pollNanosMax: number, mayDefer: boolean): number
  /** Takes the decision that `complete` put off, if one is owed, and signals if the driver asked. */
  settle(): void

  /** Rows of {@link RequestRow.words} words, one a taken request; valid until the next `take`. */
  readonly requests: Uint32Array
  /** Headers of taken requests, row stride ceil(headerBytes / 4) words. */
  readonly headers: Uint32Array
  /** Rows of `SegmentRow.words` words. */
  readonly segments: Uint32Array
  /** Rows of {@link CompletionRow.words} words, filled by the caller of `complete`; `sizeMax` rows. */
  readonly completions: Uint32Array
  /** {@link QueueCounter} values, written by native code. */
  readonly counters: BigUint64Array

  /** A look at both sides without changing anything, for the watchdog. */
  inspect(): {
    visible: number
    armed: boolean
    inFlight: number
    /** Of {@link visible}: requests that an earlier process took and did not answer. */
    owed: number
    broken: number
    availableIndex: number
    usedIndex: number
    /** The driver asks for a signal about what is published, and got none. Only with event indices. */
    owesSignal: boolean
  }
  /** Frees the queue. Any later call throws ERR_CLOSED. */
  close(): void
}

/** Layout of one row of {@link NativeQueue.requests}. */
export const RequestRow = {
  head: 0,
  firstSegment: 1,
  readableCount: 2,
  writableCount: 3,
  /** Without the header. */
  readableBytes: 4,
  /** Without the status byte. */
  writableBytes: 5,
  words: 6,
} as const
/** Layout of one row of {@link NativeQueue.completions}. `status` is written only with a status byte. */
export const CompletionRow = { head: 0, bytesWritten: 1, status: 2, words: 3 } as const

/** Copies between windows of driver memory and memory of stores. */
export interface NativeCopies {
  /** Rows of {@link CopyRow.words} words, filled by the caller of `run`. */
  readonly rows: Uint32Array
  readonly rowCountMax: number
  /** Most windows that the rows of one `run` may name. */
  readonly windowCountMax: number
  /**
   * Does the first `rowCount` copies of {@link rows}, in order. A row that does not lie within its window or its memory is
   * left out: a window that was unmapped has no bytes.
   *
   * @param windowCount number of windows at the front of `windows`
   */
  run(rowCount: number, windowCount: number, windows: readonly Buffer[]): void
  /**
   * Keeps a buffer for the rows to name, which must not be transferred.
   *
   * @returns its index, until {@link detach}
   */
  attach(buffer: Buffer): number
  detach(index: number): void
}

/** Layout of one row of {@link NativeCopies.rows}. `toStore`: 1 from the window to the store, 0 the other way. */
export const CopyRow = {
  window: 0,
  windowOffsetBytes: 1,
  store: 2,
  storeOffsetBytes: 3,
  lengthBytes: 4,
  toStore: 5,
  words: 6,
} as const

/** What {@link NativeQueue.complete} did. */
export const CompleteBits = {
  /** The call eventfd was written. */
  signalled: 1,
  /** A decision was taken and the driver did not want a signal. */
  suppressed: 2,
  /** Requests are visible now: take again without waiting for a kick. */
  more: 4,
  /** Kicks are asked for: the driver kicks for the next request. */
  armed: 8,
  /** Nothing was visible at first: it was looked for, in vain if `armed`. */
  polled: 16,
  /** The looking took so long that a clock was asked. */
  waited: 32,
  /** Whether to signal is not decided yet: {@link NativeQueue.settle} is owed. */
  undecided: 64,
} as const

/** Index of each counter in {@link NativeQueue.counters}. */
export const QueueCounter = {
  requests: 0,
  completions: 1,
  batches: 2,
  signals: 3,
  suppressed: 4,
  rearms: 5,
  /** Chains returned with length 0 because they were malformed. */
  malformedChains: 6,
  /** Available entries skipped: head out of range or already in flight. */
  skippedHeads: 7,
  /** Rows given to `complete` whose head was not in flight; ignored. */
  ignoredCompletions: 8,
  nativeCalls: 9,
  /** The latest malformed chain or skipped head, as a {@link RingBreak}. */
  lastFault: 10,
  /** Fences executed for a decision to signal. */
  signalFences: 11,
  count: 12,
} as const

/** A TCMU device as its server sees it: the real one or a simulated one. */
export interface NativeTcmuPort {
  /**
   * The whole mapping in windows of 1 GiB, in order, the last one shorter. Most of its pages must not be touched:
   * only those of commands in flight. Never hand the ArrayBuffers themselves to users.
   */
  readonly windows: readonly ArrayBuffer[]
  readonly mapBytes: number
  /** Readable when the kernel put something on the ring. Borrowed. */
  readonly eventFd: number
  /**
   * An ArrayBuffer over one piece of the mapping, for the time that its command is in flight. The caller conceals it
   * when the command is answered.
   */
  expose(offsetBytes: number, lengthBytes: number): ArrayBuffer
  /** Detaches an exposed ArrayBuffer, so that every view on it goes empty. */
  conceal(buffer: ArrayBuffer): void
  /** Reads the counter of events, which makes {@link eventFd} unreadable again. 0, or an errno: the device is gone. */
  readEvent(): number
  /**
   * Makes the kernel process what was published, in this thread. For servers without a {@link NativeTcmuQueue}, which
   * rings by itself. 0, or an errno: the device is gone.
   */
  ringDoorbell(): number
  /** Detaches the windows and closes the device; unmaps when no queue and no exposed buffer needs the memory. */
  close(): void
}

export interface NativeTcmuQueueOptions {
  readonly port: NativeTcmuPort
  /** Most commands taken and not yet answered, 1 to 65535. */
  readonly commandCountMax: number
  /** Most commands one `take` hands out, 1 to 65535. */
  readonly batchCountMax: number
  /** A batch with more Data-In than this is rung from a thread of its own. */
  readonly inlineCopyBytesMax: number
}

/**
 * The device's half of one TCMU command ring. Functions are bound: they work without `this`.
 *
 * Hot path: `take` and `complete`, one call each per batch.
 */
export interface NativeTcmuQueue {
  /** Starts on the ring as it is now. Returns 0, or the {@link RingBreak} that says why it cannot be served. */
  start(): number
  /** Touches the ring no more; late answers are ignored. */
  stop(): void
  /**
   * Takes up to `countMax` commands (at most `batchCountMax`) into the tables. Stops after a task management entry,
   * which {@link tidings} and {@link aborted} then tell.
   *
   * @returns the number taken, or minus a {@link RingBreak}
   */
  take(countMax: number): number
  /**
   * Gives back the first `count` rows of {@link completions}: fills slots, stores the tail once with release order,
   * and rings the doorbell once. Then looks at the ring again. Without anything to publish it only looks.
   *
   * @returns `signalled`, `more`, `armed` of {@link CompleteBits}, or minus a {@link RingBreak}
   */
  complete(count: number): number
  /** The kernel may use the id of a command again whose buffer was kept (TcmuCompletionFlag.keepBuffer). */
  freeKept(command: number): void
  /** True when the ring shows an entry that was not taken. Changes nothing. */
  seesEntry(): boolean

  /** Rows of {@link TcmuCommandRow.words} words, one a taken command; valid until the next `take`. */
  readonly commands: Uint32Array
  /** CDBs of taken commands, {@link CDB_WORDS} words apart. */
  readonly cdbs: Uint32Array
  /** Rows of `SegmentRow.words` words. */
  readonly segments: Uint32Array
  /** Rows of {@link TcmuCompletionRow.words} words, filled by the caller of `complete`; `commandCountMax` rows. */
  readonly completions: Uint32Array
  /** 96 sense bytes for each row of {@link completions}; they count with CHECK CONDITION only. */
  readonly senses: Uint8Array
  /** {@link TcmuTidings}, written by `take` and `complete`. */
  readonly tidings: Uint32Array
  /** The commands that a task management entry names and that are in flight. */
  readonly aborted: Uint32Array
  /** {@link TcmuCounter} values, written by native code. */
  readonly counters: BigUint64Array

  /** `flags`: the mailbox's; the two cursors; the {@link RingBreak} or 0. */
  inspect(): { flags: number; readIndex: number; tailIndex: number; broken: number }
  /** Frees the queue, after a doorbell that is being rung. Any later call throws ERR_CLOSED. */
  close(): void
}

/** Words of one CDB in {@link NativeTcmuQueue.cdbs}. */
export const CDB_WORDS = 66

/**
 * Layout of one row of {@link NativeTcmuQueue.commands}. `command` names it in the answer; `commandId` is the
 * kernel's. The segments of iov_cnt come before those of iov_bidi_cnt.
 */
export const TcmuCommandRow = {
  command: 0,
  commandId: 1,
  cdbBytes: 2,
  firstSegment: 3,
  dataCount: 4,
  bidiCount: 5,
  words: 6,
} as const
/**
 * Layout of one row of {@link NativeTcmuQueue.completions}. `readLength` 0: the whole length. `copyBytes`: what the
 * kernel will copy of Data-In.
 */
export const TcmuCompletionRow = {
  command: 0,
  status: 1,
  readLength: 2,
  flags: 3,
  copyBytes: 4,
  words: 5,
} as const
/** {@link TcmuCompletionRow} `flags`. */
export const TcmuCompletionFlag = { keepBuffer: 1 } as const
/** Index of each word of {@link NativeTcmuQueue.tidings}. */
export const TcmuTidings = { tmrPresent: 0, tmrType: 1, tmrCommandCount: 2, nearlyFull: 3, words: 4 } as const
/** Bits of the mailbox's flags: what the kernel can do. */
export const TcmuMailboxFlag = { outOfOrder: 1, readLength: 2, taskManagement: 4, keepBuffer: 8 } as const

/** Index of each counter in {@link NativeTcmuQueue.counters}. */
export const TcmuCounter = {
  commands: 0,
  completions: 1,
  batches: 2,
  doorbells: 3,
  /** Doorbells that began on the thread for batches with much data. */
  offThreadDoorbells: 4,
  /** Stores of the tail. */
  publications: 5,
  taskManagements: 6,
  /** Commands in flight that task management named. */
  abortedCommands: 7,
  /** Ids that task management named and that were not in flight: answered already, or never there. */
  unmatchedAborts: 8,
  pads: 9,
  unknownOps: 10,
  /** Rows given to `complete` whose command was not in flight; ignored. */
  ignoredCompletions: 11,
  nativeCalls: 12,
  lastFault: 13,
  count: 14,
} as const

/** Throws `ERR_OPTION_RANGE` for what the kernel would not accept. */
export interface NativeTcmuKernelOptions {
  /** Mailbox and command ring: a multiple of 4096, at most 8 MiB. */
  readonly ringBytes: number
  /** A multiple of `blockBytes`, at most 16 GiB. */
  readonly dataAreaBytes: number
  /** A multiple of 4096. */
  readonly blockBytes: number
  /** {@link TcmuMailboxFlag} bits. */
  readonly flags: number
  /** Whether task management functions are told to the server (attrib/tmr_notification). */
  readonly taskManagement: boolean
  /** 0: never. */
  readonly commandTimeoutMs: number
  /** 0: nothing is held back; -1: as `commandTimeoutMs`, or 30 s if that is 0. */
  readonly queueFullTimeoutMs: number
}

/**
 * The kernel's half of a TCMU device and an initiator of it, simulated (native/core/peer/tcmu_kernel.h): what
 * target_core_user of Linux 6.12 does. Time is what {@link advance} says. Functions are bound.
 */
export interface NativeTcmuKernel {
  readonly mapBytes: number
  /** An eventfd, readable when results wait or a load has ended. The caller closes it. */
  readonly initiatorFd: number
  /** Opens the device for a server. Throws `EBUSY` while somebody has it open. */
  openPort(): NativeTcmuPort

  /**
   * Sends a command; both kinds of data make it bidirectional. The bytes are copied. False, and nothing done, while
   * another command has the tag or a load runs.
   */
  submit(tag: number, cdb: Uint8Array, dataOut: Uint8Array, dataInBytes: number): boolean
  /** Everything that has ended since the last call. The command results of a load are its own. */
  takeResults(): {
    readonly commands: readonly NativeScsiResult[]
    /** `response` 0: function complete; 1: task does not exist. */
    readonly taskManagement: readonly { readonly number: number; readonly response: number }[]
  }
  /** ABORT TASK; its result carries `number`. */
  abortTask(number: number, tag: number): void
  /** LOGICAL UNIT RESET. */
  lunReset(number: number): void
  /** Until `unplug()`, which signals once, no command signals. */
  plug(): void
  unplug(): void
  advance(ms: number): void

  notifyOfTaskManagement(notify: boolean): void
  /** action/reset_ring: 1 ends commands with BUSY, 2 with CHECK CONDITION. 0, or EINVAL. */
  resetRing(level: number): number
  /** action/block_dev. */
  setBlocked(blocked: boolean): void
  /** action/free_kept_buf. 0, or EINVAL. */
  freeKeptBuffer(commandId: number): number
  /** The device goes away: its ports give EIO. */
  remove(): void

  /** A copy of the shared memory; pages that no command has are zeros. */
  readMemory(offsetBytes: number, lengthBytes: number): ArrayBuffer
  writeMemory(offsetBytes: number, bytes: Uint8Array): void
  /** Stores a head of any value and signals. */
  publishHead(head: number): void
  /** Puts an entry of any opcode, 0 to 7, onto the ring. False when there is no room. */
  putEntry(opcode: number, body: Uint8Array): boolean

  inspect(): {
    readonly head: number
    readonly drained: number
    readonly idCount: number
    readonly heldBackCount: number
    readonly waitingTaskManagementCount: number
    readonly freeBlockCount: number
    readonly eventCount: number
    readonly doorbellCount: number
    readonly isBroken: boolean
    readonly isBlocked: boolean
    /** {@link TcmuServerFault} */
    readonly fault: number
  }
  logLines(): string[]

  /** Begins a load. False, and nothing done, while another one runs or results were not taken. */
  startLoad(options: NativeTcmuLoadOptions): boolean
  /** Sends nothing more; what is in flight goes on. */
  stopLoad(): void
  /** The last load, running or done. */
  load(): NativeTcmuLoad
  /** Lets go. An open port lives on. Any later call throws ERR_CLOSED. */
  close(): void
}

/** How a command ended, as its initiator sees it. */
export interface NativeScsiResult {
  readonly tag: number
  readonly status: number
  /** 96 bytes; zeros but for CHECK CONDITION. */
  readonly sense: ArrayBuffer
  /** What was written of it, from the first byte on. */
  readonly dataIn: ArrayBuffer
  readonly residualBytes: number
}

/**
 * A load of READ(10) and WRITE(10) of fixed depth, without a thread: each answer found in a doorbell becomes the next
 * command before that doorbell returns. Options as {@link NativeDriverThreadOptions} has them.
 */
export interface NativeTcmuLoadOptions {
  readonly queueDepth: number
  readonly requestCountMax: number
  readonly durationMs: number
  /** Bytes a command: a multiple of `logicalBlockBytes`. */
  readonly blockBytes: number
  readonly logicalBlockBytes: number
  readonly capacityBytes: number
  readonly writePercent: number
  readonly verify: boolean
  readonly seed: number
}

/** What a load has measured up to now. */
export interface NativeTcmuLoad {
  readonly isDone: boolean
  readonly requests: number
  readonly failedRequests: number
  readonly mismatchedBytes: number
  readonly verifiedBytes: number
  readonly elapsedNanos: number
  /** Rung by the server, signalled by the kernel. */
  readonly doorbells: number
  readonly events: number
  /** The times from submit to reap, as rows of {@link LatencyRow}; none until the load has ended. */
  readonly latencies: Float64Array
}

/** What a server did wrong to the ring (native/core/peer/tcmu_kernel.h, ServerFault). */
export const TcmuServerFault = {
  none: 0,
  commandId: 1,
  keptTwice: 2,
  tailRange: 3,
  tailBoundary: 4,
  entryLength: 5,
  order: 6,
  unknownOpcode: 7,
} as const

/** Why a queue broke or a chain was refused. Numbers are part of the native contract (native/core/fault.h). */
export const RingBreak = {
  ERR_RING_AVAIL_INDEX: 1,
  ERR_RING_HEAD_RANGE: 2,
  ERR_RING_HEAD_IN_FLIGHT: 3,
  ERR_RING_ADDRESS: 4,
  ERR_RING_SIZE: 5,
  ERR_CHAIN_NEXT_RANGE: 6,
  ERR_CHAIN_LOOP: 7,
  ERR_CHAIN_ADDRESS: 8,
  ERR_CHAIN_TOO_LONG: 9,
  ERR_CHAIN_INDIRECT: 10,
  ERR_CHAIN_ORDER: 11,
  ERR_CHAIN_FRAMING: 12,
  ERR_MEMORY_TRUNCATED: 13,
  ERR_TCMU_MAILBOX: 14,
  ERR_TCMU_HEAD: 15,
  ERR_TCMU_ENTRY: 16,
  ERR_TCMU_DATA: 17,
  ERR_TCMU_COMMAND_ID: 18,
  ERR_TCMU_REMOVED: 19,
  ERR_RING_INFLIGHT: 20,
} as const

export interface NativeWatch {
  /** Stops watching. The callback is not called again. Calling it again does nothing. */
  close(): void
  ref(): void
  unref(): void
}

export interface NativeMicroTimer {
  /** Arms or re-arms the timer, `delayMicros` from now, at least 1. */
  start(delayMicros: number): void
  stop(): void
  close(): void
}

/** What the driver thread does: a fixed-depth load on one split ring, each answer checked. */
export interface NativeDriverThreadOptions {
  /** Memory file shared with the device; rings and buffers are laid out in it by the thread. Not closed. */
  readonly memoryFd: number
  readonly memoryBytes: number
  /** Where in the memory file this thread's part begins, a multiple of 4096. Default 0. */
  readonly memoryOffsetBytes?: number
  readonly kickFd: number
  readonly callFd: number
  readonly queueSize: number
  readonly eventIdx: boolean
  readonly indirect: boolean
  /** Pieces that the data of a request is cut into, 1 to 126; each takes a descriptor. */
  readonly segmentCount: number
  /** False: never asks for silence and always kicks, the baseline "no suppression". */
  readonly suppress: boolean
  /** Requests in flight; cut to what the ring holds (one descriptor a request with `indirect`, two and the segments without). */
  readonly queueDepth: number
  /** Stop after so many requests (0: no limit) or so many ms (0: no limit), whichever is first. */
  readonly requestCountMax: number
  readonly durationMs: number
  readonly blockBytes: number
  /** Size of the disk, or of its part that this load keeps to. */
  readonly capacityBytes: number
  /** Where that part begins, in units of 512 bytes. Default 0. */
  readonly firstSector?: number
  /** 0 to 100: share of writes; the rest are reads. */
  readonly writePercent: number
  /**
   * True: keeps to a set of blocks spread over the disk (1,024 or twice the queue depth if that is more; fewer on a
   * small disk or above 64 MiB), writes each of them first, and checks every byte read against what was last
   * written. Those first writes count towards no limit and in no counter except for what goes wrong.
   */
  readonly verify: boolean
  /** One block after the other and not at random; without `verify` only. */
  readonly sequential: boolean
  readonly seed: number
  /** A wait on the call eventfd longer than this looks at the ring: used entries there mean a lost signal. */
  readonly stallMs: number
}

/** A driver on a thread of its own. Times are in nanoseconds. */
export interface NativeDriverThread {
  /** Front-end addresses of the ring parts within the memory file (user address = guest address = offset). */
  readonly descriptorAddress: bigint
  readonly availableAddress: bigint
  readonly usedAddress: bigint
  /** {@link DriverCounter} values, written by the thread while it runs. */
  readonly counters: BigUint64Array
  /** The times from submit to reap, as rows of {@link LatencyRow}; none until the load has ended. */
  latencies(): Float64Array
  /**
   * Starts the load. `onDone` is called once from the event loop, after `close()` too; until then the process is
   * kept alive. Throws ERR_CLOSED when it ran before or is closed.
   */
  run(onDone: () => void): void
  /** Submits nothing more; the load ends when every request is answered. Calling it again does nothing. */
  finish(): void
  /**
   * Asks the thread to stop, whatever is in flight, and waits for it. Counters and latencies stay readable. Call it
   * after every run, before the eventfds are closed. Calling it again does nothing.
   */
  close(): void
}

/**
 * Layout of a row of latencies: so many requests took so many nanoseconds, or less by up to 1/128. Smallest latency
 * first; numbers, because a Float64Array is what a histogram takes.
 */
export const LatencyRow = { nanos: 0, count: 1, words: 2 } as const

/** Index of each counter in {@link NativeDriverThread.counters}. */
export const DriverCounter = {
  requests: 0,
  kicks: 1,
  kicksSuppressed: 2,
  /** Times the thread woke on the call eventfd. */
  signalsReceived: 3,
  /** Signals that never came though used entries did. */
  lostSignals: 4,
  /** Waits in which the device did not answer at all within stallMs. */
  stalls: 5,
  mismatchedBytes: 6,
  failedRequests: 7,
  elapsedNanos: 8,
  verifiedBytes: 9,
  /** What the device did wrong on the ring, after which the load ends; 0: nothing (native/core/peer/split_driver.h). */
  deviceFault: 10,
  count: 11,
} as const

/** What {@link NativeBinding.createLitmus} tests, and for how long. */
export interface NativeLitmusOptions {
  /** True: a whole ring with eventfds. False: the two accesses of each side and the fence between them, paced. */
  readonly wholeRing: boolean
  /** The step of the device that is tested: {@link LitmusStep}. The second look needs a whole ring. */
  readonly step: number
  /** False: suppression by flags. */
  readonly eventIdx: boolean
  /** True: the device without this step, so that the loss can be seen. */
  readonly weakened: boolean
  /** Ends after about so many rounds; 0: no limit. */
  readonly roundCountMax: number
  /** Ends after about so many losses; 0: no limit. A whole ring ends with its first one. */
  readonly lostCountMax: number
  readonly durationMs: number
}

/** The steps of `native/core/ordering.h` that a machine like this one can show to be missing: F2, F4, F5. */
export const LitmusStep = { signal: 0, kick: 1, secondLook: 2 } as const

/** A litmus test on two threads of its own, pinned to two CPUs, and one that supervises them. */
export interface NativeLitmus {
  /** {@link LitmusCounter} values, written by the threads while they run. */
  readonly counters: BigUint64Array
  /** As {@link NativeDriverThread.run}. */
  run(onDone: () => void): void
  /** Ends the test where it stands and waits for its threads. Call it after every run. */
  close(): void
}

/** Index of each counter in {@link NativeLitmus.counters}. */
export const LitmusCounter = {
  /** Rounds for which both sides were in time, or requests that were answered. */
  rounds: 0,
  lost: 1,
  /** Of the first loss, since the start. */
  firstLossNanos: 2,
  elapsedNanos: 3,
  count: 4,
} as const

const require = createRequire(import.meta.url)

function candidatePaths(): string[] {
  const root = new URL('../', import.meta.url)
  const report = process.report.getReport() as { header: { glibcVersionRuntime?: string } }
  const libc = report.header.glibcVersionRuntime === undefined ? '-musl' : ''
  const inPackage = (path: string): string => fileURLToPath(new URL(path, root))
  const named = process.env.HUSHRING_NATIVE_PATH
  return [
    ...(named === undefined ? [] : [named]),
    inPackage('build/Release/hushring.node'),
    inPackage(`prebuilds/${process.platform}-${process.arch}${libc}/hushring.node`),
  ]
}

function loadNative(): NativeBinding {
  const tried: string[] = []
  for (const path of candidatePaths()) {
    if (!existsSync(path)) {
      tried.push(`${path}: not found`)
      continue
    }
    try {
      return require(path) as NativeBinding
    } catch (error) {
      tried.push(`${path}: ${(error as Error).message}`)
    }
  }
  throw new HushringError(
    'ERR_NATIVE_LOAD',
    `the native addon does not load on ${process.platform}-${process.arch}, Node ${process.version}. ` +
      'Build it with `npm rebuild hushring` (needs `apt-get install cmake g++ make`). Tried:\n  ' +
      tried.join('\n  '),
  )
}

/** The addon, loaded once per process and environment. */
export const native: NativeBinding = loadNative()
