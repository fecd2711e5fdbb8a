import { HushringError } from '../errors.ts'
import {
  type NativeTcmuKernel,
  type NativeTcmuLoad,
  type NativeTcmuPort,
  type NativeWatch,
  native,
  TcmuMailboxFlag,
  TcmuServerFault,
} from '../native.ts'
import { booleanOf, integerIn, refuseUnknownOptions } from '../options.ts'
import { histogramOf, latenciesOf } from '../transport/latencies.ts'
import type { TcmuControl } from '../transport/tcmu/index.ts'
import { KiB, MiB } from '../units.ts'

/** Options of {@link TcmuKernel}. */
export interface TcmuKernelOptions {
  /** Mailbox and command ring: a multiple of 4096, 4 KiB to 8 MiB. Default 1 MiB; a small one wraps soon. */
  readonly ringBytes?: number
  /** A multiple of `blockBytes`, at most 16 GiB. Default 64 MiB. Pages that nobody touches cost nothing. */
  readonly dataAreaBytes?: number
  /** Unit in which the data area is given out: a multiple of 4096. Default 4096. */
  readonly blockBytes?: number
  /** False: a kernel before 4.6, which takes answers in the order of the commands only. Default true. */
  readonly outOfOrder?: boolean
  /** The kernel takes the length of a short read. Default true. */
  readonly readLength?: boolean
  /** The kernel tells the server of task management functions, and is set to do so. Default true. */
  readonly taskManagement?: boolean
  /** The server may keep the buffer of a command that it completed. Default true. */
  readonly keepBuffer?: boolean
  /** A command on the ring ends after so many ms of {@link TcmuKernel.advance}. Default 30,000; 0: never. */
  readonly commandTimeoutMs?: number
  /**
   * A command that found no room waits so many ms. Default -1: as `commandTimeoutMs`, or 30,000 if that is 0. 0: it
   * fails at once.
   */
  readonly queueFullTimeoutMs?: number
}

/** A SCSI command as an initiator sends it. */
export interface ScsiCommand {
  /** As many bytes as the first one says; zeros are added for what is missing. */
  readonly cdb: Uint8Array
  /** Data for the device. Copied. */
  readonly dataOut?: Uint8Array
  /** Room for data from the device, in bytes, up to 1 GiB. Both kinds of data make the command bidirectional. */
  readonly dataInBytes?: number
  /** Names the command among those that have not ended, for {@link TcmuKernel.abortTask}. Default: the next one. */
  readonly tag?: number
}

/** How a SCSI command ended, as its initiator sees it. */
export interface ScsiResult {
  readonly tag: number
  /** SAM status; TASK ABORTED (0x40) for a command that was aborted, whatever the device answered. */
  readonly status: number
  /** 96 bytes, zeros but for CHECK CONDITION. */
  readonly sense: Buffer
  /** What reached the initiator. */
  readonly dataIn: Buffer
  /** How many fewer bytes of Data-In the device said it has. */
  readonly residualBytes: number
}

/** How a task management function ended. */
export type TaskManagementResponse = 'function complete' | 'task does not exist'

/** What a server can do wrong so that the ring cannot go on. */
export type TcmuServerFaultName = Exclude<keyof typeof TcmuServerFault, 'none'>

/** A load of commands of one size at random places; see {@link TcmuKernel.runLoad}. */
export interface TcmuLoadOptions {
  /** Size of the disk. */
  readonly capacityBytes: number
  /** Bytes a logical block of the disk has: 512 or 4096. Default 512. */
  readonly logicalBlockBytes?: number
  /** Commands in flight, 1 to 65535. Default 32. */
  readonly queueDepth?: number
  /** Ends the load after so many ms; default 1000. 0: only by count. */
  readonly durationMs?: number
  /** Ends the load after so many commands; default 0: only by time. */
  readonly requestCountMax?: number
  /** Bytes a command: a multiple of `logicalBlockBytes`. Default 4096. */
  readonly blockBytes?: number
  /** Share of writes, 0 to 100. Default 0. */
  readonly writePercent?: number
  /** Writes some blocks first, and checks every byte read against what was written last. Default true. */
  readonly verify?: boolean
  /** Seed of the places and the data. Default 1. */
  readonly seed?: number
}

/** What a load measured, as its initiator saw it. */
export interface TcmuLoadResult {
  readonly requests: number
  readonly elapsedMs: number
  readonly iops: number
  /** From submit to reap, to within 1 %. */
  readonly p50Micros: number
  readonly p99Micros: number
  readonly p999Micros: number
  /** Rung by the server, signalled by the kernel. */
  readonly doorbells: number
  readonly events: number
  readonly mismatchedBytes: number
  readonly verifiedBytes: number
  readonly failedRequests: number
}

const OPTION_NAMES = [
  'ringBytes',
  'dataAreaBytes',
  'blockBytes',
  'outOfOrder',
  'readLength',
  'taskManagement',
  'keepBuffer',
  'commandTimeoutMs',
  'queueFullTimeoutMs',
] as const satisfies readonly (keyof TcmuKernelOptions)[]

const LOAD_OPTION_NAMES = [
  'capacityBytes',
  'logicalBlockBytes',
  'queueDepth',
  'durationMs',
  'requestCountMax',
  'blockBytes',
  'writePercent',
  'verify',
  'seed',
] as const satisfies readonly (keyof TcmuLoadOptions)[]

const UINT32_MAX = 0xffffffff
const DAY_MS = 24 * 60 * 60 * 1000
const RESPONSES: readonly TaskManagementResponse[] = ['function complete', 'task does not exist']

/**
 * The kernel's half of a TCMU device, and an initiator of it: what target_core_user of Linux 6.12 does, without a
 * kernel and without root. It is the other side for tests of TCMU back-ends, and it can break every rule, for tests
 * with kernels that do.
 *
 * The server is not believed either: what would break the ring of the real kernel, or hang it, is found and told by
 * {@link isBroken}, {@link fault} and {@link log}.
 *
 * Nothing happens by itself: time is what {@link advance} says, and answers are taken when the server rings its
 * doorbell. Unanswered commands keep the process alive until {@link close}.
 */
export class TcmuKernel {
  /** Bytes that server and kernel share. */
  readonly mapBytes: number
  readonly #native: NativeTcmuKernel
  readonly #watch: NativeWatch
  readonly #commands = new Map<number, (result: ScsiResult) => void>()
  readonly #taskManagement = new Map<number, (response: TaskManagementResponse) => void>()
  #load: { resolve: (load: NativeTcmuLoad) => void; reject: (error: HushringError) => void } | undefined
  #lastTag = 0
  #lastNumber = 0
  #closed = false

  /** Throws a `TypeError` or a `RangeError` for a wrong option. */
  constructor(options: TcmuKernelOptions = {}) {
    refuseUnknownOptions(options, OPTION_NAMES)
    const taskManagement = booleanOf('taskManagement', options.taskManagement ?? true)
    this.#native = native.createTcmuKernel({
      ringBytes: options.ringBytes ?? MiB,
      dataAreaBytes: options.dataAreaBytes ?? 64 * MiB,
      blockBytes: options.blockBytes ?? 4 * KiB,
      flags:
        (booleanOf('outOfOrder', options.outOfOrder ?? true) ? TcmuMailboxFlag.outOfOrder : 0) |
        (booleanOf('readLength', options.readLength ?? true) ? TcmuMailboxFlag.readLength : 0) |
        (taskManagement ? TcmuMailboxFlag.taskManagement : 0) |
        (booleanOf('keepBuffer', options.keepBuffer ?? true) ? TcmuMailboxFlag.keepBuffer : 0),
      taskManagement,
      commandTimeoutMs: options.commandTimeoutMs ?? 30_000,
      queueFullTimeoutMs: options.queueFullTimeoutMs ?? -1,
    })
    this.mapBytes = this.#native.mapBytes
    this.#watch = native.watchReadable(this.#native.initiatorFd, true, () => this.#collect())
    this.#watch.unref()
  }

  // ---- the server's side ----------------------------------------------------------------------------------

  /**
   * Opens the device for a server, as opening `/dev/uioN` does. Throws `EBUSY` while somebody has it open. The device
   * is closed when the port and every queue on it are; the buffers that the server kept are freed then. The port
   * may outlive the kernel.
   */
  openPort(): NativeTcmuPort {
    return this.#native.openPort()
  }

  // ---- the initiator's side -------------------------------------------------------------------------------

  /**
   * Sends a command: when this returns, it is on the ring, held back or refused. Resolves when it has ended; the
   * promise of a command that never does stays pending.
   *
   * Rejects with `ERR_BUSY` when its tag is in use or a load runs, with `ERR_CLOSED` after {@link close}.
   */
  async submit(command: ScsiCommand): Promise<ScsiResult> {
    const { cdb, dataOut = new Uint8Array(0), dataInBytes = 0, tag = this.#nextTag() } = command
    if (!this.#native.submit(tag, cdb, dataOut, dataInBytes)) {
      throw new HushringError('ERR_BUSY', `the tag ${tag} is in use, or a load is running`)
    }
    return await this.#wait(this.#commands, tag)
  }

  #nextTag(): number {
    do this.#lastTag++
    while (this.#commands.has(this.#lastTag))
    return this.#lastTag
  }

  /**
   * ABORT TASK. Resolves when the initiator would get its answer: the server must complete the command before, unless
   * that never reached the ring.
   *
   * @param tag the command; one that is not there does not exist
   */
  async abortTask(tag: number): Promise<TaskManagementResponse> {
    const number = ++this.#lastNumber
    this.#native.abortTask(number, tag)
    return await this.#wait(this.#taskManagement, number)
  }

  /** LOGICAL UNIT RESET: aborts every command. Resolves when the server has completed each of them. */
  async lunReset(): Promise<TaskManagementResponse> {
    const number = ++this.#lastNumber
    this.#native.lunReset(number)
    return await this.#wait(this.#taskManagement, number)
  }

  /** From now on no command signals, as when an initiator sends many at once. */
  plug(): void {
    this.#native.plug()
  }

  /** Ends {@link plug} and signals once. */
  unplug(): void {
    this.#native.unplug()
  }

  /** Lets so many ms go by, 0 to 2^32 - 1, and what has timed out end. */
  advance(ms: number): void {
    this.#native.advance(ms)
    this.#collect()
  }

  /**
   * Runs a load of READ(10) and WRITE(10), natively: the initiator answers within the doorbell, as one that is always
   * ready. One load at a time, and not beside other commands. Resolves when all of it is answered; with a server that
   * forgets commands, call {@link advance}, {@link resetRing} or {@link close}.
   *
   * Rejects with `ERR_BUSY` while something is in flight, with a `RangeError` for a wrong option.
   */
  async runLoad(options: TcmuLoadOptions): Promise<TcmuLoadResult> {
    refuseUnknownOptions(options, LOAD_OPTION_NAMES)
    const blockBytes = options.blockBytes ?? 4 * KiB
    const started = this.#native.startLoad({
      capacityBytes: options.capacityBytes,
      logicalBlockBytes: options.logicalBlockBytes ?? 512,
      queueDepth: integerIn('queueDepth', options.queueDepth ?? 32, 1, 65535),
      durationMs: integerIn('durationMs', options.durationMs ?? 1000, 0, DAY_MS),
      requestCountMax: integerIn('requestCountMax', options.requestCountMax ?? 0, 0, Number.MAX_SAFE_INTEGER),
      blockBytes: integerIn('blockBytes', blockBytes, 512, 32 * MiB),
      writePercent: integerIn('writePercent', options.writePercent ?? 0, 0, 100),
      verify: booleanOf('verify', options.verify ?? true),
      seed: integerIn('seed', options.seed ?? 1, 0, UINT32_MAX),
    })
    if (!started) throw new HushringError('ERR_BUSY', 'commands are in flight, or a load is running')
    const load = await new Promise<NativeTcmuLoad>((resolve, reject) => {
      this.#load = { resolve, reject }
      this.#collect()
    })
    const elapsedMs = load.elapsedNanos / 1e6
    return {
      requests: load.requests,
      elapsedMs,
      iops: elapsedMs === 0 ? 0 : (load.requests / elapsedMs) * 1000,
      ...latenciesOf(await histogramOf(load.latencies)),
      doorbells: load.doorbells,
      events: load.events,
      mismatchedBytes: load.mismatchedBytes,
      verifiedBytes: load.verifiedBytes,
      failedRequests: load.failedRequests,
    }
  }

  // ---- the administrator's side: configfs -----------------------------------------------------------------

  /** These actions as `tcmu.serve` takes them. A change of the size changes nothing here. */
  get control(): TcmuControl {
    return {
      block: async () => this.block(),
      unblock: async () => this.unblock(),
      resetRing: async () => this.resetRing(1),
      freeKeptBuffer: async (commandId) => {
        const errno = this.freeKeptBuffer(commandId)
        if (errno !== 0)
          throw new HushringError('ERR_TCMU_SYSTEM', `errno ${errno}`, { details: { commandId } })
      },
      setSize: async () => {},
    }
  }

  /** attrib/tmr_notification. Without `taskManagement` nothing is told all the same. */
  notifyOfTaskManagement(notify: boolean): void {
    this.#native.notifyOfTaskManagement(booleanOf('notify', notify))
  }

  /**
   * action/reset_ring: ends every command on the ring, frees everything, and begins anew with an empty ring. The
   * server must have stopped before.
   *
   * @param level 1: with BUSY; 2: with CHECK CONDITION 2/08/00; others throw a `RangeError`, as the kernel has EINVAL
   */
  resetRing(level: number): void {
    integerIn('level', level, 1, 2)
    this.#native.resetRing(level)
    this.#collect()
  }

  /** action/block_dev 1: new commands end with BUSY, and so do those that found no room. */
  block(): void {
    this.#native.setBlocked(true)
    this.#collect()
  }

  /** action/block_dev 0. */
  unblock(): void {
    this.#native.setBlocked(false)
  }

  /** action/free_kept_buf. Returns 0, or EINVAL (22) when no buffer of that command was kept. */
  freeKeptBuffer(commandId: number): number {
    const errno = this.#native.freeKeptBuffer(commandId)
    this.#collect()
    return errno
  }

  /** The device goes away: its port gives EIO from now on. Commands in flight never end. */
  remove(): void {
    this.#native.remove()
  }

  // ---- anything at all ------------------------------------------------------------------------------------

  /** A copy of the memory that server and kernel share. */
  readMemory(offsetBytes: number, lengthBytes: number): Buffer {
    return Buffer.from(this.#native.readMemory(offsetBytes, lengthBytes))
  }

  /** Writes into the mailbox (128 bytes from 0 on), the ring behind it, or the data area behind that. */
  writeMemory(offsetBytes: number, bytes: Uint8Array): void {
    this.#native.writeMemory(offsetBytes, bytes)
  }

  /**
   * Stores a head of any value and signals. What lies between the old head and it is taken for entries that
   * {@link writeMemory} made.
   */
  publishHead(head: number): void {
    this.#native.publishHead(head)
  }

  /**
   * Puts an entry of any opcode, 0 to 7, onto the ring, as a later kernel might. Passing one of an unknown opcode
   * without saying so is a {@link fault} of the server. False when there is no room.
   */
  putEntry(opcode: number, body: Uint8Array = new Uint8Array(0)): boolean {
    return this.#native.putEntry(opcode, body)
  }

  // ---- what is known --------------------------------------------------------------------------------------

  /** The ring is not believed any more, until {@link resetRing}. */
  get isBroken(): boolean {
    return this.#native.inspect().isBroken
  }

  /** The first wrong thing that a server did; it stays. */
  get fault(): TcmuServerFaultName | undefined {
    const { fault } = this.#native.inspect()
    const names = Object.keys(TcmuServerFault) as (keyof typeof TcmuServerFault)[]
    const name = names.find((candidate) => TcmuServerFault[candidate] === fault)
    return name === 'none' ? undefined : name
  }

  /** What the kernel printed. */
  get log(): readonly string[] {
    return this.#native.logLines()
  }

  /** Times the kernel signalled, and times a server rang. */
  get events(): number {
    return this.#native.inspect().eventCount
  }
  get doorbells(): number {
    return this.#native.inspect().doorbellCount
  }

  /** Offsets in the ring: where the next entry comes, and up to where entries were taken off. */
  get head(): number {
    return this.#native.inspect().head
  }
  get drained(): number {
    return this.#native.inspect().drained
  }

  /** Commands on the ring, and those of which the server kept the buffer or that timed out and were not completed. */
  get commandIdCount(): number {
    return this.#native.inspect().idCount
  }

  /** Commands that wait for room. */
  get heldBackCount(): number {
    return this.#native.inspect().heldBackCount
  }

  /** Task management functions that wait for room. */
  get waitingTaskManagementCount(): number {
    return this.#native.inspect().waitingTaskManagementCount
  }

  /** Blocks of the data area that no command has. */
  get freeBlockCount(): number {
    return this.#native.inspect().freeBlockCount
  }

  /**
   * Stops listening. The promises of unanswered commands stay pending, a load that runs rejects with `ERR_CLOSED`. An
   * open port lives on until it is closed. Calling it again does nothing; any other call throws `ERR_CLOSED`.
   */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#load?.reject(new HushringError('ERR_CLOSED', 'the kernel was closed'))
    this.#watch.close()
    native.closeFd(this.#native.initiatorFd)
    this.#native.close()
  }

  // ---- results --------------------------------------------------------------------------------------------

  /** A promise for what ends under `key`. Meanwhile the process stays alive. */
  #wait<Result>(waiting: Map<number, (result: Result) => void>, key: number): Promise<Result> {
    const ended = new Promise<Result>((resolve) => waiting.set(key, resolve))
    // It may have ended at once: refused, or nothing to abort.
    this.#collect()
    return ended
  }

  #collect(): void {
    const { commands, taskManagement } = this.#native.takeResults()
    for (const { tag, status, sense, dataIn, residualBytes } of commands) {
      settle(this.#commands, tag, {
        tag,
        status,
        sense: Buffer.from(sense),
        dataIn: Buffer.from(dataIn),
        residualBytes,
      })
    }
    for (const { number, response } of taskManagement) {
      settle(this.#taskManagement, number, RESPONSES[response]!)
    }
    const load = this.#load === undefined ? undefined : this.#native.load()
    if (load?.isDone) {
      this.#load?.resolve(load)
      this.#load = undefined
    }
    if (this.#commands.size + this.#taskManagement.size > 0 || this.#load !== undefined) this.#watch.ref()
    else this.#watch.unref()
  }
}

function settle<Result>(waiting: Map<number, (result: Result) => void>, key: number, result: Result): void {
  waiting.get(key)?.(result)
  waiting.delete(key)
}
