import { type ErrorCode, HushringError } from '../errors.ts'
import {
  CDB_WORDS,
  CompleteBits,
  type NativeTcmuPort,
  type NativeTcmuQueue,
  native,
  SegmentRow,
  TcmuCommandRow,
  TcmuCompletionFlag,
  TcmuCompletionRow,
  TcmuCounter,
  TcmuMailboxFlag,
  TcmuTidings,
} from '../native.ts'
import { DataArea, DataAreaSegments } from './data-area.ts'
import { Batch, type Published } from './queue.ts'
import type { Completion } from './request.ts'
import { ringError } from './ring-break.ts'
import { ScsiRequest } from './scsi-request.ts'
import type { SegmentList } from './segments.ts'
import { encodeSense, ScsiStatus, SENSE_BYTES, type Sense, SenseKey } from './sense.ts'

// V8 looks a name of another module up again at each use, and a constant of this one never.
const {
  command: COMMAND,
  commandId: COMMAND_ID,
  cdbBytes: CDB_BYTES,
  firstSegment: FIRST_SEGMENT,
  dataCount: DATA_COUNT,
  bidiCount: BIDI_COUNT,
  words: COMMAND_WORDS,
} = TcmuCommandRow
const CDB_ROW_WORDS: number = CDB_WORDS
const { lengthBytes: SEGMENT_LENGTH, words: SEGMENT_WORDS } = SegmentRow
const {
  command: ANSWERED_COMMAND,
  status: STATUS,
  readLength: READ_LENGTH,
  flags: FLAGS,
  copyBytes: COPY_BYTES,
  words: COMPLETION_WORDS,
} = TcmuCompletionRow
const { GOOD, CHECK_CONDITION } = ScsiStatus

/** Task management functions that a TCMU ring tells of, by the kernel's numbers (enum tcmu_tmr_type). */
export const TaskManagementType = {
  unknown: 0,
  'abort-task': 1,
  'abort-task-set': 2,
  'clear-aca': 3,
  'clear-task-set': 4,
  'lun-reset': 5,
  'target-warm-reset': 6,
  'target-cold-reset': 7,
  /** A PERSISTENT RESERVE OUT with PREEMPT AND ABORT. */
  'preempt-and-abort': 128,
} as const

/** Task management that an initiator asked for, and the commands in flight that it gave up. */
export interface TaskManagement {
  readonly type: keyof typeof TaskManagementType
  readonly commands: readonly ScsiRequest[]
}

/** Options of {@link TcmuQueue}. */
export interface TcmuQueueOptions {
  /** The device; borrowed, and open for as long as the queue is. */
  readonly port: NativeTcmuPort
  /** Most commands that are not answered or whose buffer is kept, 1 to 65535. */
  readonly commandCountMax: number
  /** Most commands in one batch. Default 128: the more of them share a doorbell, the better. */
  readonly batchCountMax?: number
  /** A batch with more bytes of Data-In than this is rung from a thread of its own. */
  readonly inlineCopyBytesMax: number
  /**
   * Tells the kernel that a buffer is free which was kept beyond its answer. Left out: buffers are not kept, and the
   * answer to a command whose data somebody still needs waits for them.
   */
  readonly freeKeptBuffer?: (commandId: number) => Promise<void>
  /**
   * Called for each task management entry, after the commands before it were handed out. What it throws is an uncaught
   * exception; the commands are aborted all the same.
   */
  readonly onTaskManagement?: (taskManagement: TaskManagement) => void
  /** Called when commands may be taken again and no {@link TcmuQueue.publish} tells it: somebody has to look. */
  readonly onCreditsReturned?: () => void
}

/** Counts of one queue since it was made. */
export interface TcmuQueueCounts {
  readonly commands: number
  readonly completions: number
  readonly batches: number
  readonly doorbells: number
  readonly offThreadDoorbells: number
  readonly taskManagements: number
  /** Commands in flight that an initiator gave up. */
  readonly aborts: number
  readonly unknownOps: number
  readonly ignoredCompletions: number
  readonly nativeCalls: number
}

/**
 * The device's half of one TCMU command ring. As with {@link VirtQueue} two native calls a batch cross the border:
 * {@link take} and {@link publish}; the head, the tail and every slot are native.
 *
 * TCMU has no wish to be notified that could be read: the kernel looks at the tail when the doorbell is written and
 * never else. So `publish` always rings, once, and `armed` says only that a look found nothing: the kernel makes the
 * event readable for whatever comes after.
 *
 * A corrupt ring throws its {@link HushringError} from `take` and `publish` until the ring is started anew, and is
 * not touched meanwhile.
 */
export class TcmuQueue {
  armed = false
  more = false
  /** Commands taken whose answer is not out: none yet, not published, or behind one that has none (see {@link AnswerOrder}). */
  inFlightCount = 0
  /** Commands whose answer is published and whose buffer is kept. */
  keptCount = 0

  readonly #native: NativeTcmuQueue
  // The tables of the native queue: looking them up in it is slow, and this is done for each command.
  readonly #commands: NativeTcmuQueue['commands']
  readonly #cdbs: NativeTcmuQueue['cdbs']
  readonly #segments: NativeTcmuQueue['segments']
  readonly #completions: NativeTcmuQueue['completions']
  readonly #tidings: NativeTcmuQueue['tidings']
  readonly #area: DataArea
  readonly #options: TcmuQueueOptions
  readonly #batch = new Batch<ScsiRequest>()
  readonly #pool: ScsiRequest[] = []
  /** By the command's number on the ring: those whose answer was not recorded. */
  readonly #requests: (ScsiRequest | undefined)[] = []
  readonly #published = { count: 0, signalled: false }
  #recordedCount = 0
  #keptRecordedCount = 0
  #mailboxFlags = 0
  /** For a kernel that takes answers in the order of the commands only. */
  #order: AnswerOrder | undefined
  #running = false
  /** Lives of the ring so far: an answer of an earlier one must not meet a command of this one. */
  #lifeCount = 0
  #undelivered: TaskManagement | undefined
  /** Given up by an initiator, which waits for them. */
  readonly #awaited = new Set<ScsiRequest>()
  #awaitedRecorded = false
  /** Answered or given up while somebody uses their data. */
  readonly #lent = new Set<ScsiRequest>()
  readonly #onDataFree: (() => void)[] = []

  constructor(options: TcmuQueueOptions) {
    const { port, commandCountMax, batchCountMax = 128, inlineCopyBytesMax } = options
    this.#options = options
    this.#area = new DataArea(port)
    this.#native = native.createTcmuQueue({
      port,
      commandCountMax,
      batchCountMax: Math.min(batchCountMax, commandCountMax),
      inlineCopyBytesMax,
    })
    this.#commands = this.#native.commands
    this.#cdbs = this.#native.cdbs
    this.#segments = this.#native.segments
    this.#completions = this.#native.completions
    this.#tidings = this.#native.tidings
  }

  /**
   * Starts on the ring as it is now, or anew after {@link stop}, a fault or a reset. Throws `ERR_TCMU_MAILBOX`, or
   * `ERR_TCMU_REMOVED` or `ERR_TCMU_DATA` when the device or a part of its memory is gone; then the queue stays stopped.
   */
  start(): void {
    const fault = this.#native.start()
    if (fault !== 0) throw ringError(fault, undefined)
    this.#mailboxFlags = this.#native.inspect().flags
    this.#order = (this.#mailboxFlags & TcmuMailboxFlag.outOfOrder) === 0 ? new AnswerOrder() : undefined
    this.#running = true
    this.#lifeCount++
    this.armed = false
    this.more = true
  }

  /**
   * Touches the ring no more and forgets what is in flight. Handlers may still use the data: wait for
   * {@link whenDataIsFree} before the kernel may give it to other commands.
   */
  stop(): void {
    this.#native.stop()
    this.#running = false
    this.armed = false
    this.more = false
    this.inFlightCount = 0
    this.keptCount = 0
    this.#recordedCount = 0
    this.#keptRecordedCount = 0
    this.#undelivered = undefined
    this.#awaited.clear()
    this.#awaitedRecorded = false
    for (const request of this.#requests) {
      if (request?.isHeld === true) this.#lend(request, () => clearData(request))
      else if (request !== undefined) clearData(request)
    }
    this.#requests.length = 0
  }

  /** Resolves when nobody uses the data of a command that is answered or given up. */
  async whenDataIsFree(): Promise<void> {
    if (this.#lent.size > 0) await new Promise<void>((resolve) => this.#onDataFree.push(resolve))
  }

  /** See the load of a `SuppressionPolicy`: ring or data nearly full, or an answer that an initiator waits for. */
  get urgent(): boolean {
    return this.#awaitedRecorded || this.#tidings[TcmuTidings.nearlyFull] !== 0
  }

  /** A look at the ring that changes nothing: true when it shows an entry that was not taken. */
  seesEntry(): boolean {
    return this.#native.seesEntry()
  }

  /**
   * Takes up to `countMax` commands off the ring. One native call, and a second one when answers that are held keep the
   * kernel from going on.
   *
   * @returns the batch, possibly empty; it and its requests are valid until the next `take`
   */
  take(countMax: number): Batch<ScsiRequest> {
    this.#deliver()
    const batch = this.#batch
    const count = this.#throwIfBroken(this.#native.take(countMax))
    this.armed = false
    this.more = false
    batch.count = count
    for (let row = 0; row < count; row++) batch.requests[row] = this.#requestAt(row)
    this.inFlightCount += count
    if (this.#tidings[TcmuTidings.tmrPresent] !== 0) this.#noteTaskManagement()
    // Whoever holds the answers asked for the room when they were ready, and does not ask again.
    if (this.#tidings[TcmuTidings.nearlyFull] !== 0) this.#publishHeld()
    return batch
  }

  /** Takes task management when no command may be taken: it may be what ends those that are in flight. */
  takeUncredited(): boolean {
    const passedCount = this.#passedCount()
    this.take(0)
    // A look ends at what it passes over if batches are small: what is behind that needs another one.
    return this.#undelivered !== undefined || this.#passedCount() > passedCount
  }

  /** Entries that are nobody's: padding, and kinds that this version does not know. */
  #passedCount(): bigint {
    const { counters } = this.#native
    return counters[TcmuCounter.pads]! + counters[TcmuCounter.unknownOps]!
  }

  #requestAt(row: number): ScsiRequest {
    const commands = this.#commands
    const cdbs = this.#cdbs
    const request = this.#pool.pop() ?? this.#newRequest()
    const base = row * COMMAND_WORDS
    const command = commands[base + COMMAND]!
    const cdbBytes = commands[base + CDB_BYTES]!
    request.head = command
    request.commandId = commands[base + COMMAND_ID]!
    request.cdbBytes = cdbBytes
    const { headerWords } = request
    const cdbBase = row * CDB_ROW_WORDS
    const wordCount = (cdbBytes + 3) >>> 2
    for (let word = 0; word < wordCount; word++) headerWords[word] = cdbs[cdbBase + word]!
    const bidiCount = commands[base + BIDI_COUNT]!
    request.isBidirectional = bidiCount > 0
    const dataCount = commands[base + DATA_COUNT]!
    const firstSegment = commands[base + FIRST_SEGMENT]!
    if (dataCount > 0) this.#fill(request.dataOut, firstSegment, dataCount)
    if (bidiCount > 0) this.#fill(request.dataIn, firstSegment + dataCount, bidiCount)
    this.#requests[command] = request
    this.#order?.take(command)
    return request
  }

  /** Copies rows out of the table, which is written anew by the next take. */
  #fill(list: SegmentList, firstRow: number, rowCount: number): void {
    const segments = this.#segments
    let byteLength = 0
    for (let row = firstRow; row < firstRow + rowCount; row++) {
      byteLength += segments[row * SEGMENT_WORDS + SEGMENT_LENGTH]!
    }
    list.point(this.#area.windows, segments, firstRow, rowCount, byteLength)
    list.keep()
  }

  // Apart from its caller, which is called for each command: a closure over `this` is paid for at each call of the function
  // around it, made or not.
  #newRequest(): ScsiRequest {
    return new ScsiRequest(() => new DataAreaSegments(this.#area))
  }

  // The commands before the entry have to be with their handlers when it is told, and those after it must not be: an
  // id that it names may stand for a new command there. So it is told at the end of this turn of the loop's work, or
  // before the next take.
  #noteTaskManagement(): void {
    const { aborted } = this.#native
    const tidings = this.#tidings
    const commands: ScsiRequest[] = []
    for (let index = 0; index < tidings[TcmuTidings.tmrCommandCount]!; index++) {
      const request = this.#requests[aborted[index]!]
      if (request !== undefined) commands.push(request)
    }
    this.#undelivered = { type: taskManagementType(tidings[TcmuTidings.tmrType]!), commands }
    queueMicrotask(() => this.#deliver())
  }

  #deliver(): void {
    const taskManagement = this.#undelivered
    if (taskManagement === undefined) return
    this.#undelivered = undefined
    // One of the answers that are held may be what the initiator waits for.
    const hasPublished = this.#publishHeld()
    const { type } = taskManagement
    const commands = taskManagement.commands.filter((request) => this.#requests[request.head] === request)
    for (const request of commands) this.#awaited.add(request)
    try {
      this.#options.onTaskManagement?.({ type, commands })
    } catch (error) {
      queueMicrotask(() => {
        throw error
      })
    }
    const reason = new HushringError('ERR_REQUEST_ABORTED', `the initiator gave the command up: ${type}`, {
      details: { type },
    })
    for (const request of commands) request.abort(reason)
    // Not before: whoever looks at the ring now finds what comes behind this entry, and that may be the next one.
    if (hasPublished) this.#options.onCreditsReturned?.()
  }

  /**
   * Notes the answer to a command; the kernel sees it with the next {@link publish}. Each command must be recorded
   * exactly once.
   */
  record(request: ScsiRequest, completion: Completion): void {
    if (!this.#running || this.#requests[request.head] !== request) return
    if (request.isHeld && !this.#canKeep()) {
      // Somebody still reads or writes the data, and the kernel would give it to another command.
      this.#lend(request, () => this.#recordLate(request, completion))
      return
    }
    this.#requests[request.head] = undefined
    if (this.#awaited.size > 0 && this.#awaited.delete(request)) this.#awaitedRecorded = true
    this.#writeRow(request, completion)
    if (request.isHeld) this.#keep(request)
    else clearData(request)
  }

  #recordLate(request: ScsiRequest, completion: Completion): void {
    this.record(request, completion)
    this.#publishHeld()
    this.#options.onCreditsReturned?.()
  }

  /** Calls `onReturn` when nobody uses the data of a request any more. */
  #lend(request: ScsiRequest, onReturn: () => void | Promise<void>): void {
    this.#lent.add(request)
    const end = (): void => {
      this.#lent.delete(request)
      if (this.#lent.size > 0) return
      for (const resolve of this.#onDataFree.splice(0)) resolve()
    }
    request.whenLetGo(() => {
      const returned = onReturn()
      if (returned === undefined) end()
      else returned.then(end, end)
    })
  }

  /**
   * Publishes recorded answers without the pipeline, which holds them for company.
   *
   * @returns true when there were some. Those of a broken ring stay; the next look at it tells that it is broken
   */
  #publishHeld(): boolean {
    if (this.#recordedCount === 0) return false
    try {
      this.publish()
      return true
    } catch {
      return false
    }
  }

  #writeRow(request: ScsiRequest, completion: Completion): void {
    const completions = this.#completions
    const row = this.#recordedCount++
    this.#order?.answer(request.head)
    const base = row * COMPLETION_WORDS
    const isOk = completion.result === 'ok'
    const status = isOk ? GOOD : this.#failedStatus(row, completion)
    // CHECK CONDITION brings no data; with every other status the kernel copies it.
    const lengthBytes =
      status === CHECK_CONDITION ? 0 : this.#bytesOf(request, isOk ? completion.bytesWritten : 0)
    completions[base + ANSWERED_COMMAND] = request.head
    completions[base + STATUS] = status
    completions[base + READ_LENGTH] = lengthBytes === request.writable.byteLength ? 0 : lengthBytes
    completions[base + FLAGS] = request.isHeld ? TcmuCompletionFlag.keepBuffer : 0
    completions[base + COPY_BYTES] = isRead(request.cdb[0]!) ? lengthBytes : 0
  }

  // What the kernel copies to the initiator. It takes no 0 for an answer (READ_LEN 0 means "all"), and no length at all
  // of a bidirectional command or from an old kernel; the rest is then zeros, because the pages may hold another
  // command's data.
  #bytesOf(request: ScsiRequest, bytesWritten: number | undefined): number {
    const { dataIn, isBidirectional } = request
    if (bytesWritten === undefined || bytesWritten >= dataIn.byteLength) return dataIn.byteLength
    const tellsLength = (this.#mailboxFlags & TcmuMailboxFlag.readLength) !== 0 && !isBidirectional
    if (bytesWritten > 0 && tellsLength) return bytesWritten
    dataIn.fill(0, bytesWritten)
    return dataIn.byteLength
  }

  /** The status of an answer that is not "done", one byte; its sense data goes into the row. */
  #failedStatus(row: number, completion: Completion): number {
    const details = completion.result === 'failed' ? completion.error.details : {}
    if (typeof details.status === 'number') {
      const status = details.status & 0xff
      if (status !== ScsiStatus.CHECK_CONDITION) return status
    }
    const target = this.#native.senses.subarray(row * SENSE_BYTES, (row + 1) * SENSE_BYTES)
    try {
      encodeSense((details.sense as Sense | undefined) ?? fallbackSense(completion), target)
    } catch {
      // A handler in JavaScript may have put anything there.
      encodeSense(fallbackSense(completion), target)
    }
    return ScsiStatus.CHECK_CONDITION
  }

  #canKeep(): boolean {
    return (
      this.#options.freeKeptBuffer !== undefined && (this.#mailboxFlags & KEEPING_FLAGS) === KEEPING_FLAGS
    )
  }

  #keep(request: ScsiRequest): void {
    const { head, commandId } = request
    const life = this.#lifeCount
    this.#keptRecordedCount++
    this.#lend(request, () => {
      clearData(request)
      // Without this life of the ring its buffers are gone as well.
      if (!this.#running || life !== this.#lifeCount) return
      // The kernel keeps nothing, and has nothing to free, before it has the answer.
      this.#publishHeld()
      this.keptCount--
      // The id is the kernel's again only after this, so the number is given up first.
      this.#native.freeKept(head)
      const freed = this.#options.freeKeptBuffer?.(commandId)
      this.#options.onCreditsReturned?.()
      return freed
    })
  }

  /** Gives a request object back for reuse: nobody else may still hold it. */
  recycle(request: ScsiRequest): void {
    if (request.isHeld) return
    request.recycle()
    this.#pool.push(request)
  }

  /**
   * Makes every recorded answer visible with one store of the tail, and rings the doorbell once. One native call.
   * Sets {@link armed} and {@link more}.
   */
  publish(): Published {
    const count = this.#recordedCount
    const bits = this.#complete(count)
    this.#recordedCount = 0
    this.#awaitedRecorded = false
    this.inFlightCount -= this.#order?.publish() ?? count
    this.keptCount += this.#keptRecordedCount
    this.#keptRecordedCount = 0
    this.#published.count = count
    this.#published.signalled = (bits & CompleteBits.signalled) !== 0
    return this.#published
  }

  /**
   * Looks once more, without publishing recorded answers, which a policy may be holding. One native call. Sets
   * {@link armed} and {@link more}.
   */
  rearm(): void {
    this.#complete(0)
  }

  #complete(count: number): number {
    const bits = this.#throwIfBroken(this.#native.complete(count))
    this.armed = (bits & CompleteBits.armed) !== 0
    this.more = (bits & CompleteBits.more) !== 0
    return bits
  }

  counts(): TcmuQueueCounts {
    const at = (index: number): number => Number(this.#native.counters[index]!)
    return {
      commands: at(TcmuCounter.commands),
      completions: at(TcmuCounter.completions),
      batches: at(TcmuCounter.batches),
      doorbells: at(TcmuCounter.doorbells),
      offThreadDoorbells: at(TcmuCounter.offThreadDoorbells),
      taskManagements: at(TcmuCounter.taskManagements),
      aborts: at(TcmuCounter.abortedCommands),
      unknownOps: at(TcmuCounter.unknownOps),
      ignoredCompletions: at(TcmuCounter.ignoredCompletions),
      nativeCalls: at(TcmuCounter.nativeCalls),
    }
  }

  /** Frees the native queue. Waits for a doorbell that is being rung. */
  close(): void {
    this.#native.close()
  }

  #throwIfBroken(result: number): number {
    if (result < 0) throw ringError(-result, undefined)
    return result
  }
}

/**
 * Which answers go out on a ring that wants them in the order of its commands: one that is ready waits for those before
 * it, and holds its credit meanwhile. Somebody who had the credit back would find that nothing can be taken with it, and
 * look again and again.
 */
class AnswerOrder {
  readonly #commands: number[] = []
  readonly #answered = new Set<number>()

  take(command: number): void {
    this.#commands.push(command)
  }

  answer(command: number): void {
    this.#answered.add(command)
  }

  /** @returns how many answers go out with a publication now */
  publish(): number {
    let count = 0
    while (count < this.#commands.length && this.#answered.delete(this.#commands[count]!)) count++
    this.#commands.splice(0, count)
    return count
  }
}

/**
 * What a kernel can do whose buffers may be kept. One that takes answers in the order of the commands only may not have
 * the answer yet when the buffer is to be freed.
 */
const KEEPING_FLAGS = TcmuMailboxFlag.keepBuffer | TcmuMailboxFlag.outOfOrder

/** True for READ (6), (10), (12) and (16), 08h in each group of codes: the commands that carry much Data-In. */
function isRead(operationCode: number): boolean {
  return (operationCode & 0x1f) === 0x08
}

const TYPE_OF_NUMBER: ReadonlyMap<number, TaskManagement['type']> = new Map(
  Object.entries(TaskManagementType).map(([type, number]) => [number, type as TaskManagement['type']]),
)

function taskManagementType(number: number): TaskManagement['type'] {
  return TYPE_OF_NUMBER.get(number) ?? 'unknown'
}

function clearData(request: ScsiRequest): void {
  request.readable.clear()
  request.writable.clear()
}

/** Codes of answers that were given for a handler: the initiator may try the command again. */
const GIVEN_UP: ReadonlySet<ErrorCode> = new Set(['ERR_REQUEST_ABORTED', 'ERR_HANDLER_TIMEOUT'])

/** The sense data of an answer that brings none. */
function fallbackSense(completion: Completion): Sense {
  if (completion.result !== 'failed') return { key: SenseKey.ILLEGAL_REQUEST, asc: 0x20, ascq: 0x00 }
  if (GIVEN_UP.has(completion.error.code)) return { key: SenseKey.ABORTED_COMMAND, asc: 0x00, ascq: 0x00 }
  return { key: SenseKey.HARDWARE_ERROR, asc: 0x44, ascq: 0x00 }
}
