import { type Completion, isCompletion } from '../../ring/request.ts'
import type { ScsiRequest } from '../../ring/scsi-request.ts'
import type { SegmentList } from '../../ring/segments.ts'
import type { Sense } from '../../ring/sense.ts'
import { BlockRequest, type BlockVerb, NO_DATA } from '../block/block-request.ts'
import type { BlockDevice, LogicalUnit } from '../device.ts'
import { type Answer, attempt, mapAnswer } from '../handler.ts'
import { type BlockFields, forcesUnitAccess } from './cdb.ts'
import { type CommandTable, isServiceActions } from './command.ts'
import { Condition } from './conditions.ts'
import { Limit } from './limits.ts'
import { senseOfFailure } from './medium-failure.ts'
import { ModePages } from './mode-pages.ts'
import { type Provisioning, provisioningOf } from './provisioning.ts'
import type { RangeLock, RangeWork } from './range-lock.ts'

/** A disk as one logical unit: its state, and what its commands have in common. */
export class DiskUnit {
  readonly disk: BlockDevice
  readonly identity: LogicalUnit
  readonly commands: CommandTable
  readonly modes: ModePages
  readonly provisioning: Provisioning
  readonly #ranges: RangeLock
  readonly #idle: BlockRequest[] = []

  /** @param ranges shared by all units of the disk */
  constructor(disk: BlockDevice, identity: LogicalUnit, commands: CommandTable, ranges: RangeLock) {
    this.disk = disk
    this.identity = identity
    this.commands = commands
    this.#ranges = ranges
    this.modes = new ModePages({ hasVolatileCache: disk.abilities.flush })
    this.provisioning = provisioningOf(disk.abilities)
  }

  /** Block size in bytes: 512 or 4096. */
  get blockBytes(): number {
    return this.disk.geometry.blockBytes
  }

  /** Number of blocks at this moment: a disk may be resized between two commands. */
  get blockCount(): number {
    return this.disk.geometry.capacityBytes / this.disk.geometry.blockBytes
  }

  /** True when nothing can be written: the disk is read-only, or an initiator wants it so (SWP). */
  get isWriteProtected(): boolean {
    return this.disk.readOnly || this.modes.isWriteProtected
  }

  /** Finds the command of a CDB, checks what can be checked without knowing it, and has it done. */
  answer(request: ScsiRequest): Answer {
    const { cdb, cdbBytes } = request
    const command = cdbBytes === 0 ? undefined : this.commands.find(cdb)
    const { attentions } = this.identity
    if (attentions.pending && command?.passesAttention !== true) {
      return this.checkCondition(request, attentions.take()!)
    }
    if (command === undefined) return this.#refuseUnknown(request)
    const { permitted, reservedWords } = command
    if (cdbBytes < permitted.length) return this.checkCondition(request, Condition.INVALID_FIELD_IN_CDB)
    const { headerWords } = request
    for (let word = 0; word < reservedWords.length; word++) {
      if ((headerWords[word]! & reservedWords[word]!) !== 0) return this.#refuseReserved(request, permitted)
    }
    return command.execute(this, request)
  }

  /** Points at the first bit of a CDB that must be 0 and is not. */
  #refuseReserved(request: ScsiRequest, permitted: Buffer): Completion {
    const wrongBits = (byte: number): number => request.cdb[byte]! & ~permitted[byte]!
    let byte = 1
    while (wrongBits(byte) === 0) byte++
    return this.invalidField(request, byte, 31 - Math.clz32(wrongBits(byte)))
  }

  #refuseUnknown(request: ScsiRequest): Completion {
    const isUnknownAction = request.cdbBytes > 1 && isServiceActions(this.commands.at(request.cdb[0]!))
    return isUnknownAction
      ? this.invalidField(request, 1, 4)
      : this.checkCondition(request, Condition.INVALID_COMMAND_OPERATION_CODE)
  }

  // ---- Answers -----------------------------------------------------------------------------------------------------

  /** CHECK CONDITION, with sense data in the format that the control mode page asks for. */
  checkCondition(request: ScsiRequest, sense: Sense, cause?: unknown): Completion {
    return request.checkCondition(
      this.modes.hasDescriptorSense ? { ...sense, descriptor: true } : sense,
      cause,
    )
  }

  /** The answer INVALID FIELD IN CDB, with a pointer to the field: its first byte and, if less, its highest bit. */
  invalidField(request: ScsiRequest, byte: number, bit?: number): Completion {
    const field = bit === undefined ? { byte } : { byte, bit }
    return this.checkCondition(request, { ...Condition.INVALID_FIELD_IN_CDB, field })
  }

  /** The answer INVALID FIELD IN PARAMETER LIST, with a pointer to the field. */
  invalidParameter(request: ScsiRequest, byte: number, bit?: number): Completion {
    const field = bit === undefined ? { byte, inData: true } : { byte, bit, inData: true }
    return this.checkCondition(request, { ...Condition.INVALID_FIELD_IN_PARAMETER_LIST, field })
  }

  /** The answer GOOD to a command without Data-In. An initiator that made room for some gets zeros. */
  good(request: ScsiRequest): Completion {
    return request.dataIn.byteLength === 0 ? request.ok() : request.ok(0)
  }

  /**
   * The answer GOOD to a command that wrote its Data-Out to the disk. Data-In would lie in the same memory: whoever
   * asked for it gets back what can now be read from the disk as well, and nothing of what lies behind it.
   *
   * @param writtenBytes length of the Data-Out that was written
   */
  goodWrite(request: ScsiRequest, writtenBytes: number): Completion {
    if (request.isBidirectional) return this.good(request)
    return request.dataOut.byteLength === writtenBytes ? request.ok() : request.ok(writtenBytes)
  }

  /**
   * The answer GOOD with parameter data.
   *
   * @param bytes all of it; what is longer than the allocation length, or than the room for it, is cut off
   */
  parameterData(request: ScsiRequest, bytes: Buffer, allocationBytes: number): Completion {
    const { dataIn } = request
    const countBytes = Math.min(bytes.length, allocationBytes, dataIn.byteLength)
    dataIn.copyFrom(bytes.subarray(0, countBytes))
    return countBytes === dataIn.byteLength ? request.ok() : request.ok(countBytes)
  }

  // ---- Checks ------------------------------------------------------------------------------------------------------

  /**
   * What is wrong with a range of blocks: its address before its length, as conformance tests ask for. The sums
   * cannot overflow: an address of any 64 bits is compared, never added to.
   *
   * @param countMax most blocks that the command may have
   */
  rangeFault(
    request: ScsiRequest,
    fields: BlockFields,
    lba: number,
    count: number,
    countMax: number = Limit.transferBytesMax / this.blockBytes,
  ): Completion | undefined {
    if (this.isOutside(lba, count)) return this.outOfRange(request, fields.lbaAt)
    return count > countMax ? this.invalidField(request, fields.countAt) : undefined
  }

  /** True when a range of blocks, or the address of an empty one, reaches past the end. */
  isOutside(lba: number, count: number): boolean {
    const { blockCount } = this
    return lba > blockCount || count > blockCount - lba
  }

  /** The answer LOGICAL BLOCK ADDRESS OUT OF RANGE. `byte`: where the address is in the CDB. */
  outOfRange(request: ScsiRequest, byte: number): Completion {
    return this.checkCondition(request, {
      ...Condition.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
      field: { byte },
    })
  }

  /** The answer to a command that its initiator gave up. Nobody reads it. */
  aborted(request: ScsiRequest): Completion {
    return this.checkCondition(request, Condition.ABORTED, request.signal.reason)
  }

  /** The answer WRITE PROTECTED if it is. */
  protectionFault(request: ScsiRequest): Completion | undefined {
    return this.isWriteProtected ? this.checkCondition(request, Condition.WRITE_PROTECTED) : undefined
  }

  // ---- The disk ----------------------------------------------------------------------------------------------------

  /** Does work on a range that other commands may use meanwhile. See {@link RangeLock.shared}. */
  shared(request: ScsiRequest, offsetBytes: number, lengthBytes: number, work: RangeWork): Answer {
    return this.#ranges.shared(request, offsetBytes, lengthBytes, work)
  }

  /** Does work on a range that no other command uses meanwhile. */
  exclusive(request: ScsiRequest, offsetBytes: number, lengthBytes: number, work: RangeWork): Answer {
    return this.#ranges.exclusive(request, offsetBytes, lengthBytes, work)
  }

  /** Fills the front of the Data-In of a command from the disk. */
  readonly readDataIn: RangeWork = (request, offsetBytes, lengthBytes) =>
    this.ask(request, 'read', offsetBytes, lengthBytes, front(request.dataIn, lengthBytes))

  /** Writes the front of the Data-Out of a command to the disk. */
  readonly writeDataOut: RangeWork = (request, offsetBytes, lengthBytes) =>
    this.ask(request, 'write', offsetBytes, lengthBytes, front(request.dataOut, lengthBytes))

  /**
   * Asks the disk. Answers GOOD, or CHECK CONDITION with what the failure of the disk means; its error is the cause.
   */
  ask(
    request: ScsiRequest,
    verb: BlockVerb,
    offsetBytes: number,
    lengthBytes: number,
    data: SegmentList = NO_DATA,
    mayUnmap = false,
  ): Answer {
    const io = this.#idle.pop() ?? new BlockRequest()
    io.assign(request, verb, offsetBytes, lengthBytes, data, mayUnmap)
    const answer = attempt(this.disk.handler, io)
    if (!isCompletion(answer)) return this.#reportedLater(request, io, answer)
    // The object is free again only because it was answered at once: nobody else can still hold it.
    this.#idle.push(io)
    return this.#reported(request, io, answer)
  }

  #reportedLater(request: ScsiRequest, io: BlockRequest, answer: Answer): Answer {
    return mapAnswer(answer, (completion) => this.#reported(request, io, completion))
  }

  #reported(request: ScsiRequest, io: BlockRequest, answer: Completion): Completion {
    const completion =
      answer.result === 'ok' && io.verb === 'read' && answer.bytesWritten !== undefined
        ? io.transferred(answer.bytesWritten)
        : answer
    if (completion.result === 'ok') return request.ok()
    const cause = completion.result === 'failed' ? completion.error : undefined
    return this.checkCondition(request, senseOfFailure(io, completion, this.blockBytes), cause)
  }

  /** True when what a command wrote must be permanent before it is answered: FUA, or no write cache. */
  isWriteThrough(request: ScsiRequest, fields: BlockFields | undefined): boolean {
    if (!this.disk.abilities.flush) return false
    return !this.modes.hasWriteCache || (fields !== undefined && forcesUnitAccess(fields, request.cdb))
  }

  /** Makes everything written before permanent. A disk that cannot has nothing that is not. */
  flush(request: ScsiRequest): Answer {
    return this.disk.abilities.flush ? this.ask(request, 'flush', 0, 0) : request.ok()
  }
}

function front(data: SegmentList, lengthBytes: number): SegmentList {
  return data.byteLength === lengthBytes ? data : data.first(lengthBytes)
}
