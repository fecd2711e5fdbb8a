import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { HushringError } from './errors.ts'

/**
 * Everything the compiled addon exports. This file is the only one that loads it.
 *
 * File descriptors are plain numbers; each function says who closes them. Functions throw an `Error` with `code`
 * (`EACCES`, `EADDRINUSE` …) and `syscall` when the kernel refuses, like `node:fs` does.
 */
export interface NativeBinding {
  // ---- memory -------------------------------------------------------------------------------------------
  /**
   * Makes an anonymous memory file of zeros (memfd_create, close-on-exec), sealed against shrinking when asked.
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

  // ---- the driver's half, for the loopback, tests and benches ---------------------------------------------
  /** See {@link NativeDriverThread}. */
  startDriverThread(options: NativeDriverThreadOptions): NativeDriverThread
  /** Memory barriers, orderings and facts about the build, for `hushring --version` and tests. */
  readonly build: { readonly napiVersion: number; readonly compiler: string; readonly sanitizer: string }
}

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
}

/**
 * The device's half of one split virtqueue. Functions are bound: they work without `this`.
 *
 * Hot path: `take` and `complete`, one call each per batch.
 */
export interface NativeQueue {
  /**
   * Starts or re-starts the ring. Returns 0, or the {@link RingBreak} that says why it cannot run.
   * The first decision after a start always signals (`signalled_used_valid` is false).
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
   * @param rearm false: leave kicks suppressed (no credits)
   * @returns {@link CompleteBits}, or minus a {@link RingBreak}
   */
  complete(count: number, rearm: boolean): number

  /** Rows of {@link RequestRow.words} words, one a taken request; valid until the next `take`. */
  readonly requests: Uint32Array
  /** Headers of taken requests, row stride ceil(headerBytes / 4) words. */
  readonly headers: Uint32Array
  /** Rows of {@link SegmentRow.words} words. */
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
    broken: number
    availableIndex: number
    usedIndex: number
  }
  /** Frees the queue. Any later call throws ERR_CLOSED. */
  close(): void
}

/** Layout of one row of {@link NativeQueue.requests}. */
export const RequestRow = { head: 0, firstSegment: 1, readableCount: 2, writableCount: 3, words: 4 } as const
/** Layout of one row of {@link NativeQueue.segments}: readable segments of a request come before writable ones. */
export const SegmentRow = { window: 0, offsetBytes: 1, lengthBytes: 2, words: 3 } as const
/** Layout of one row of {@link NativeQueue.completions}. `status` is written only with a status byte. */
export const CompletionRow = { head: 0, bytesWritten: 1, status: 2, words: 3 } as const

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
  readonly kickFd: number
  readonly callFd: number
  readonly queueSize: number
  readonly eventIdx: boolean
  readonly indirect: boolean
  /** False: never asks for silence and always kicks, the baseline "no suppression". */
  readonly suppress: boolean
  /** Requests in flight; cut to what the ring holds (three descriptors a request, one with `indirect`). */
  readonly queueDepth: number
  /** Stop after so many requests (0: no limit) or so many ms (0: no limit), whichever is first. */
  readonly requestCountMax: number
  readonly durationMs: number
  readonly blockBytes: number
  readonly capacityBytes: number
  /** 0 to 100: share of writes; the rest are reads. */
  readonly writePercent: number
  /**
   * True: keeps to a set of blocks spread over the disk (1,024 or twice the queue depth if that is more; fewer on a
   * small disk or above 64 MiB), writes each of them first, and checks every byte read against what was last
   * written. Those first writes count towards no limit and in no counter except for what goes wrong.
   */
  readonly verify: boolean
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
  /**
   * The time from submit to reap that a share `quantile` of the requests did not exceed, to within 1/64 of it;
   * 0 until the load has ended. Throws ERR_OPTION_RANGE unless 0 < quantile < 1.
   */
  latencyNanos(quantile: number): number
  /**
   * Starts the load. `onDone` is called once from the event loop, after `close()` too; until then the process is
   * kept alive. Throws ERR_CLOSED when it ran before or is closed.
   */
  run(onDone: () => void): void
  /**
   * Asks the thread to stop, whatever is in flight, and waits for it. Counters and latencies stay readable. Call it
   * after every run, before the eventfds are closed. Calling it again does nothing.
   */
  close(): void
}

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
