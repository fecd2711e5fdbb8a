import type { RingFault } from './split-queue.ts'

/** What a {@link ReferenceTcmuRing} is made with. */
export interface ReferenceTcmuOptions {
  /** Most commands that are taken and not published, or kept. */
  readonly commandCountMax: number
  /** Most entries that one `take` looks at. */
  readonly batchCountMax: number
}

/** A piece of the data area, from the start of the mapping. */
export interface ReferenceDataPiece {
  readonly offsetBytes: number
  readonly lengthBytes: number
}

/** A command as it was copied out of its entry. */
export interface ReferenceCommand {
  /** The kernel's cmd_id. */
  readonly id: number
  readonly cdb: Uint8Array
  /** Of iov_cnt: Data-Out or Data-In, which the ring does not tell. */
  readonly data: readonly ReferenceDataPiece[]
  /** Of iov_bidi_cnt: Data-In of a command that has both. */
  readonly bidi: readonly ReferenceDataPiece[]
}

/** An answer. `sense` counts with CHECK CONDITION only; `readLength` 0: all of Data-In is valid. */
export interface ReferenceTcmuAnswer {
  readonly command: ReferenceCommand | undefined
  readonly status: number
  readonly readLength: number
  readonly keepBuffer: boolean
  readonly sense: Uint8Array
}

/** A task management request, and the commands in flight that it names. */
export interface ReferenceTaskManagement {
  readonly type: number
  readonly commands: readonly ReferenceCommand[]
}

/** What one `take` found. */
export interface ReferenceTaken {
  readonly commands: readonly ReferenceCommand[]
  /** It ends a batch: its news comes after the commands before it and before those behind it. */
  readonly taskManagement: ReferenceTaskManagement | undefined
}

/** An entry between tail and read. Only the entry of a command has room for an answer. */
interface Entry {
  readonly offsetBytes: number
  readonly lengthBytes: number
  readonly command: ReferenceCommand | undefined
  /** The command whose answer lies there, which need not be the one that came there. */
  answered?: ReferenceCommand
}

type State = 'in flight' | 'answered' | 'kept'

const VERSION = 2
const OUT_OF_ORDER = 1
const READ_LENGTH = 2
const KEEP_BUFFER = 8
const MAILBOX_BYTES = 128
const CMD_TAIL = 64
const PAD = 0
const COMMAND = 1
const TMR = 2
const HEADER_BYTES = 8
const COMMAND_BYTES = 48
const IOVEC_BYTES = 16
const ANSWER_BYTES = 112
const TMR_BYTES = 32
const SENSE_BYTES = 96
const CDB_BYTES_MAX = 264
const CHECK_CONDITION = 2
const Uflag = { unknownOp: 1, readLengthValid: 2, bufferKept: 4 } as const

/**
 * The server's half of a TCMU ring, read off the kernel's ABI (include/uapi/linux/target_core_user.h, version 2) and what
 * its driver does with the entries (drivers/target/target_core_user.c): slow, sequential and obviously right. It is what
 * the native ring is compared with, and may be compared with yours.
 *
 * It rests on three rules. Everything is copied out of an entry when it is taken, because the k-th answer goes into the
 * k-th entry of a command, whoever came in it. The tail moves by the lengths that were read then. An entry that is no
 * command is never answered, and the tail passes over it in its turn.
 */
export class ReferenceTcmuRing {
  readonly options: ReferenceTcmuOptions
  /** As a real ring counts them. */
  readonly counts = {
    commands: 0,
    completions: 0,
    batches: 0,
    publications: 0,
    taskManagements: 0,
    abortedCommands: 0,
    unmatchedAborts: 0,
    pads: 0,
    unknownOps: 0,
    ignoredCompletions: 0,
  }
  /** Why the ring broke. It is then not touched until it is started anew. */
  broken: RingFault | undefined
  /** The kernel may be holding commands back for want of room, as far as was known at the last take or publish. */
  nearlyFull = false
  /** Of the mailbox; 0 while stopped. */
  flags = 0
  /** Offsets in the ring: of the next entry to take, and the tail as it was last stored. */
  readIndex = 0
  tailIndex = 0

  protected memory: DataView | undefined
  protected ringOffset = 0
  protected ringBytes = 0
  protected headIndex = 0
  /** Entries that were taken and that the tail has not passed, in the order of the ring. */
  protected entries: Entry[] = []
  /** Commands that we own, by the kernel's id. */
  protected readonly owned = new Map<number, { command: ReferenceCommand; state: State; keep: boolean }>()

  constructor(options: ReferenceTcmuOptions) {
    this.options = options
  }

  get isRunning(): boolean {
    return this.memory !== undefined
  }

  /** Whether the ring shows an entry that was not taken, or a head that is none. */
  get seesEntry(): boolean {
    return this.memory !== undefined && this.broken === undefined && this.head() !== this.readIndex
  }

  /** Whether a command of ours has this id: the kernel must not use it for another one. */
  owns(id: number): boolean {
    return this.owned.has(id)
  }

  /** Whether a command was taken and not answered. */
  awaitsAnswer(command: ReferenceCommand): boolean {
    const owned = this.owned.get(command.id)
    return owned?.command === command && owned.state === 'in flight'
  }

  // ---- Start and stop -------------------------------------------------------------------------------------

  /** Starts on the ring in `map`. Entries from the tail on count as new. */
  start(map: Uint8Array): RingFault | undefined {
    this.stop()
    const memory = new DataView(map.buffer, map.byteOffset, map.byteLength)
    if (map.byteLength < MAILBOX_BYTES) return 'ERR_TCMU_MAILBOX'
    const version = memory.getUint16(0, true)
    const flags = memory.getUint16(2, true)
    const offset = memory.getUint32(4, true)
    const size = memory.getUint32(8, true)
    const tail = memory.getUint32(CMD_TAIL, true)
    const isRing =
      offset >= MAILBOX_BYTES &&
      offset % 8 === 0 &&
      size >= 2 * ANSWER_BYTES &&
      size % 8 === 0 &&
      offset + size <= map.byteLength
    if (version !== VERSION || !isRing || tail >= size || tail % 8 !== 0) return 'ERR_TCMU_MAILBOX'
    this.memory = memory
    this.flags = flags
    this.ringOffset = offset
    this.ringBytes = size
    this.readIndex = this.headIndex = this.tailIndex = tail
    this.broken = undefined
    return undefined
  }

  /** Forgets what is in flight. */
  stop(): void {
    this.memory = undefined
    this.flags = 0
    this.entries = []
    this.owned.clear()
    this.nearlyFull = false
  }

  // ---- Taking ---------------------------------------------------------------------------------------------

  /** Takes up to `countMax` commands, and what lies before and between them. Returns the fault of a broken ring. */
  take(countMax: number): ReferenceTaken | RingFault {
    if (this.broken !== undefined) return this.broken
    if (this.memory === undefined) return { commands: [], taskManagement: undefined }
    this.nearlyFull = false
    const head = this.head()
    const taken = this.distance(this.tailIndex, this.readIndex)
    // One byte always stays free, so a head never reaches the tail from behind.
    const isHead = head < this.ringBytes && head % 8 === 0
    if (!isHead || taken + this.distance(this.readIndex, head) >= this.ringBytes)
      return this.break('ERR_TCMU_HEAD')
    this.headIndex = head

    const commands: ReferenceCommand[] = []
    let taskManagement: ReferenceTaskManagement | undefined
    const count = Math.min(countMax, this.options.batchCountMax)
    for (let look = 0; look < this.options.batchCountMax && this.readIndex !== head; look++) {
      const at = this.ringOffset + this.readIndex
      const lengthAndOpcode = this.memory.getUint32(at, true)
      const opcode = lengthAndOpcode % 8
      const lengthBytes = lengthAndOpcode - opcode
      const left = Math.min(this.distance(this.readIndex, head), this.ringBytes - this.readIndex)
      if (lengthBytes === 0 || lengthBytes > left) return this.break('ERR_TCMU_ENTRY')
      if (opcode === COMMAND) {
        if (commands.length === count || this.owned.size === this.options.commandCountMax) break
        const command = this.readCommand(at, lengthBytes)
        if (typeof command === 'string') return this.break(command)
        this.owned.set(command.id, { command, state: 'in flight', keep: false })
        commands.push(command)
        this.pass(lengthBytes, command)
      } else if (opcode === TMR) {
        const read = this.readTaskManagement(at, lengthBytes)
        if (typeof read === 'string') return this.break(read)
        taskManagement = read
        this.pass(lengthBytes)
        if (this.endsBatch()) break
      } else {
        if (opcode === PAD) this.counts.pads++
        else this.refuse(at)
        this.pass(lengthBytes)
      }
    }
    this.counts.commands += commands.length
    if (commands.length > 0) this.counts.batches++
    this.lookForRoom()
    return { commands, taskManagement }
  }

  /** A task management request is told when it is found, before the commands behind it are. */
  protected endsBatch(): boolean {
    return true
  }

  /** Says that the entry was skipped and not served. */
  protected refuse(at: number): void {
    this.memory!.setUint8(at + 7, this.memory!.getUint8(at + 7) | Uflag.unknownOp)
    this.counts.unknownOps++
  }

  protected pass(lengthBytes: number, command?: ReferenceCommand): void {
    this.entries.push({ offsetBytes: this.readIndex, lengthBytes, command })
    this.readIndex = (this.readIndex + lengthBytes) % this.ringBytes
  }

  protected readCommand(at: number, lengthBytes: number): ReferenceCommand | RingFault {
    const memory = this.memory!
    if (lengthBytes < ANSWER_BYTES) return 'ERR_TCMU_ENTRY'
    const id = memory.getUint16(at + 4, true)
    if (id === 0 || this.owned.has(id)) return 'ERR_TCMU_COMMAND_ID'
    const count = memory.getUint32(at + 8, true)
    const bidiCount = memory.getUint32(at + 12, true)
    const cdbAt = Number(memory.getBigUint64(at + 24, true))
    const iovecsEnd = COMMAND_BYTES + IOVEC_BYTES * (count + bidiCount)
    if (iovecsEnd > lengthBytes) return 'ERR_TCMU_DATA'
    const data = this.readIovecs(at + COMMAND_BYTES, count)
    const bidi = this.readIovecs(at + COMMAND_BYTES + IOVEC_BYTES * count, bidiCount)
    if (data === undefined || bidi === undefined) return 'ERR_TCMU_DATA'
    if (bytesOf([...data, ...bidi]) > this.dataAreaBytes()) return 'ERR_TCMU_DATA'
    // The CDB lies behind the vectors, and behind what the answer overwrites.
    const end = at + lengthBytes
    if (cdbAt < at + Math.max(ANSWER_BYTES, iovecsEnd) || cdbAt >= end) return 'ERR_TCMU_DATA'
    const room = Math.min(end - cdbAt, CDB_BYTES_MAX)
    const there = new Uint8Array(memory.buffer, memory.byteOffset + cdbAt, room)
    return { id, cdb: there.slice(0, Math.min(room, cdbBytesOf(there) ?? room)), data, bidi }
  }

  /** Pieces that lie wholly in the data area; nothing when one does not. Empty ones are none. */
  protected readIovecs(at: number, count: number): ReferenceDataPiece[] | undefined {
    const memory = this.memory!
    const pieces: ReferenceDataPiece[] = []
    for (let index = 0; index < count; index++) {
      const base = memory.getBigUint64(at + IOVEC_BYTES * index, true)
      const length = memory.getBigUint64(at + IOVEC_BYTES * index + 8, true)
      if (length === 0n) continue
      if (base < BigInt(this.dataAreaOffset()) || base + length > BigInt(memory.byteLength)) return undefined
      pieces.push({ offsetBytes: Number(base), lengthBytes: Number(length) })
    }
    return pieces
  }

  /** There is no answer to it, but each command that it names has to be answered all the same. */
  protected readTaskManagement(at: number, lengthBytes: number): ReferenceTaskManagement | RingFault {
    const memory = this.memory!
    if (lengthBytes < TMR_BYTES) return 'ERR_TCMU_ENTRY'
    const count = memory.getUint32(at + 12, true)
    if (TMR_BYTES + 2 * count > lengthBytes) return 'ERR_TCMU_ENTRY'
    // An id counts once. It may stand for a command that was answered, which the kernel does not know yet.
    const named = new Set<ReferenceCommand>()
    for (let index = 0; index < count; index++) {
      const command = this.commandNamed(memory.getUint16(at + TMR_BYTES + 2 * index, true))
      if (command !== undefined) named.add(command)
    }
    this.counts.taskManagements++
    this.counts.abortedCommands += named.size
    this.counts.unmatchedAborts += count - named.size
    return { type: memory.getUint8(at + 8), commands: [...named] }
  }

  protected commandNamed(id: number): ReferenceCommand | undefined {
    const owned = this.owned.get(id)
    return owned?.state === 'in flight' ? owned.command : undefined
  }

  // ---- Answering ------------------------------------------------------------------------------------------

  /** Writes these answers, and publishes all that may go out, with one store of the tail. True: a doorbell is due. */
  complete(answers: readonly ReferenceTcmuAnswer[]): boolean | RingFault {
    if (this.broken !== undefined) return this.broken
    for (const answer of answers) this.answer(answer)
    return this.publish()
  }

  protected answer(answer: ReferenceTcmuAnswer): void {
    const { command } = answer
    if (command === undefined || !this.awaitsAnswer(command)) {
      this.counts.ignoredCompletions++
      return
    }
    const owned = this.owned.get(command.id)!
    owned.state = 'answered'
    owned.keep = answer.keepBuffer && (this.flags & KEEP_BUFFER) !== 0
    const place = this.placeFor(command)
    place.answered = command
    this.writeAnswer(this.ringOffset + place.offsetBytes, command.id, answer, owned.keep)
    this.counts.completions++
  }

  /** The first entry of a command that has no answer; its own for a kernel that cannot tell answers apart by their id. */
  protected placeFor(command: ReferenceCommand): Entry {
    const isInOrder = (this.flags & OUT_OF_ORDER) === 0
    return this.entries.find((entry) =>
      isInOrder ? entry.command === command : entry.command !== undefined && entry.answered === undefined,
    )!
  }

  /** The length of the entry stays: the kernel finds the next one by it. */
  protected writeAnswer(at: number, id: number, answer: ReferenceTcmuAnswer, keep: boolean): void {
    const memory = this.memory!
    const isShort = answer.readLength !== 0 && (this.flags & READ_LENGTH) !== 0
    const status = answer.status % 256
    memory.setUint16(at + 4, id, true)
    memory.setUint8(at + 7, (isShort ? Uflag.readLengthValid : 0) | (keep ? Uflag.bufferKept : 0))
    // All eight bytes: a rest of what was there before would be a length.
    memory.setUint32(at + HEADER_BYTES, status, true)
    memory.setUint32(at + HEADER_BYTES + 4, isShort ? answer.readLength : 0, true)
    if (status !== CHECK_CONDITION) return
    const sense = new Uint8Array(memory.buffer, memory.byteOffset + at + 2 * HEADER_BYTES, SENSE_BYTES)
    sense.set(answer.sense.subarray(0, SENSE_BYTES))
  }

  /** Moves the tail over every answered entry and over what needs no answer, up to the first that awaits one. */
  protected publish(): boolean {
    if (this.memory === undefined) return false
    let passed = 0
    while (this.entries.length > 0 && this.mayPass(this.entries[0]!)) {
      const entry = this.entries.shift()!
      passed += this.lengthOf(entry)
      if (entry.answered !== undefined) this.letGo(entry.answered.id)
    }
    if (passed === 0) return false
    this.tailIndex = (this.tailIndex + passed) % this.ringBytes
    this.memory.setUint32(CMD_TAIL, this.tailIndex, true)
    this.counts.publications++
    this.lookForRoom()
    return true
  }

  protected mayPass({ command, answered }: Entry): boolean {
    return command === undefined || answered !== undefined
  }

  /** As it was read when the entry was taken, whatever lies there now: the kernel believes the tail. */
  protected lengthOf(entry: Entry): number {
    return entry.lengthBytes
  }

  protected letGo(id: number): void {
    const owned = this.owned.get(id)!
    if (owned.keep) owned.state = 'kept'
    else this.owned.delete(id)
  }

  /** Gives up a command whose buffer was kept beyond its published answer. */
  freeKept(command: ReferenceCommand | undefined): void {
    const owned = command && this.owned.get(command.id)
    if (owned !== undefined && owned.command === command && owned.state === 'kept')
      this.owned.delete(command.id)
    else this.counts.ignoredCompletions++
  }

  // ---- The ring -------------------------------------------------------------------------------------------

  protected head(): number {
    return this.memory!.getUint32(12, true)
  }

  protected distance(from: number, to: number): number {
    return to >= from ? to - from : this.ringBytes - from + to
  }

  protected dataAreaOffset(): number {
    return this.ringOffset + this.ringBytes
  }

  protected dataAreaBytes(): number {
    return this.memory!.byteLength - this.dataAreaOffset()
  }

  /** More than half of the ring or of the data area is in use: the largest command may not fit any more. */
  protected lookForRoom(): void {
    const dataBytes = [...this.owned.values()].reduce(
      (sum, { command }) => sum + bytesOf([...command.data, ...command.bidi]),
      0,
    )
    this.nearlyFull =
      2 * this.distance(this.tailIndex, this.headIndex) > this.ringBytes ||
      2 * dataBytes > this.dataAreaBytes()
  }

  protected break(fault: RingFault): RingFault {
    this.broken = fault
    return fault
  }
}

function bytesOf(pieces: readonly ReferenceDataPiece[]): number {
  return pieces.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)
}

/** Length of a CDB by its group (SPC-4, 4.2.5), or by its byte 7 when it is variable; nothing for the other groups. */
function cdbBytesOf(cdb: Uint8Array): number | undefined {
  const opcode = cdb[0]!
  if (opcode === 0x7f) return (cdb[7] ?? 0) + 8
  return [6, 10, 10, undefined, 16, 12][opcode >> 5]
}
