import type { BlockRequest } from '../../src/handlers/block/block-request.ts'
import type { BlockVerbFunction } from '../../src/handlers/index.ts'
import type { ScsiRequest } from '../../src/ring/scsi-request.ts'
import type { SegmentList } from '../../src/ring/segments.ts'
import { changeableRanges } from '../helpers/scsi-ranges.ts'
import { ByteReader, ByteWriter, demand, type FuzzTarget, type LoadModule } from './target.ts'

/*
 * A disk and its initiators. An input is a script: what the disk can do, and commands with any CDB and any data, which
 * may overlap, be aborted, or meet a store that fails.
 */

/** One command of a script. */
export interface ScriptedCommand {
  readonly cdb: Uint8Array
  /** The front of the Data-Out, as long as {@link dataOutBytes}, the rest of it zeros. Undefined: there is none. */
  readonly dataOut?: Uint8Array
  /** Default: the length of `dataOut`. */
  readonly dataOutBytes?: number
  /** Room for Data-In. Undefined: none. */
  readonly dataInBytes?: number
  /** Index in {@link PIECE_BYTES}: into which pieces the data is cut. Default 0. */
  readonly pieces?: number
  /** The store fails with so many requests done. Default: never. */
  readonly failsAfter?: number
  /** True: sent before the answers of those before it are there. Default false. */
  readonly beside?: boolean
  /** True: given up as soon as it is sent. Default false. */
  readonly aborted?: boolean
}

/** What an input means. */
export interface ScsiScript {
  readonly disk?: {
    readonly flush?: boolean
    readonly discard?: boolean
    readonly writeZeroes?: boolean
    readonly readOnly?: boolean
    /** True: blocks of 4096 bytes. Default: 512. */
    readonly largeBlocks?: boolean
    /** True: it answers later. Default: at once. */
    readonly later?: boolean
    /** True: there is a unit attention to be told. Default false. */
    readonly attention?: boolean
  }
  readonly commands: readonly ScriptedCommand[]
}

const CAPACITY_BYTES = 32 * 1024
const COMMAND_COUNT_MAX = 12
const DATA_BYTES_MAX = 12 * 1024
const PIECE_BYTES = [DATA_BYTES_MAX, 4096, 512, 100, 16, 1000, 24, 8] as const
/** What is in memory before anybody writes to it, and between the pieces. No block of the disk is full of it. */
const OLD_BYTE = 0xee
const OLD_BYTES = Buffer.alloc(32, OLD_BYTE)
/** Between two pieces, where nothing may be written. */
const GAP_BYTES = 3

// ---- Inputs and what they mean -------------------------------------------------------------------------------------

const DISK_FLAGS = [
  'flush',
  'discard',
  'writeZeroes',
  'readOnly',
  'largeBlocks',
  'later',
  'attention',
] as const
const HAS_DATA_OUT = 1
const HAS_DATA_IN = 2
const FAILS = 4
const BESIDE = 8
const ABORTED = 16
/** Lengths of CDBs by the upper three bits of the operation code; those without one are the vendors'. */
const CDB_BYTES_OF_GROUP = [6, 10, 10, 10, 16, 12, 6, 10] as const

function usualCdbBytes(opcode: number): number {
  return CDB_BYTES_OF_GROUP[opcode >> 5]!
}

/** What an input means. */
export function decodeScsi(input: Uint8Array): ScsiScript {
  const reader = new ByteReader(input)
  const flags = reader.u8()
  const disk = Object.fromEntries(DISK_FLAGS.map((name, bit) => [name, (flags & (1 << bit)) !== 0]))
  const commands: ScriptedCommand[] = []
  while (reader.leftBytes > 0 && commands.length < COMMAND_COUNT_MAX) commands.push(decodeCommand(reader))
  return { disk, commands }
}

function decodeCommand(reader: ByteReader): ScriptedCommand {
  const flags = reader.u8()
  const shape = reader.u8()
  const opcode = reader.u8()
  // Length 0 stands for the usual one: an input that changes the operation code stays a command.
  const cdbBytes = (shape >> 3) - 1
  const cdb = Buffer.concat([Buffer.of(opcode), reader.bytes(usualCdbBytes(opcode) - 1)])
  const dataOut = (flags & HAS_DATA_OUT) === 0 ? undefined : decodeDataOut(reader)
  return {
    cdb: cdbBytes < 0 ? cdb : Buffer.concat([cdb, Buffer.alloc(32)]).subarray(0, cdbBytes),
    pieces: shape & 7,
    ...dataOut,
    ...((flags & HAS_DATA_IN) !== 0 && { dataInBytes: reader.u16() % (DATA_BYTES_MAX + 1) }),
    ...((flags & FAILS) !== 0 && { failsAfter: reader.u8() % 4 }),
    beside: (flags & BESIDE) !== 0,
    aborted: (flags & ABORTED) !== 0,
  }
}

function decodeDataOut(reader: ByteReader): Pick<ScriptedCommand, 'dataOut' | 'dataOutBytes'> {
  const dataOutBytes = reader.u16() % (DATA_BYTES_MAX + 1)
  const dataOut = reader.bytes(Math.min(reader.u8(), dataOutBytes))
  return { dataOut, dataOutBytes }
}

/** The input that means a script whose CDBs have their usual lengths. */
export function encodeScsi({ disk = {}, commands }: ScsiScript): Buffer {
  const writer = new ByteWriter()
  writer.u8(DISK_FLAGS.reduce((flags, name, bit) => flags | (disk[name] ? 1 << bit : 0), 0))
  for (const command of commands) {
    const { cdb, dataOut, dataInBytes, pieces = 0, failsAfter, beside = false, aborted = false } = command
    writer.u8(
      (dataOut === undefined ? 0 : HAS_DATA_OUT) |
        (dataInBytes === undefined ? 0 : HAS_DATA_IN) |
        (failsAfter === undefined ? 0 : FAILS) |
        (beside ? BESIDE : 0) |
        (aborted ? ABORTED : 0),
    )
    const bytes = Buffer.alloc(usualCdbBytes(cdb[0]!))
    bytes.set(cdb)
    writer.u8(pieces).bytes(bytes)
    if (dataOut !== undefined) {
      writer
        .u16(command.dataOutBytes ?? dataOut.length)
        .u8(dataOut.length)
        .bytes(dataOut)
    }
    if (dataInBytes !== undefined) writer.u16(dataInBytes)
    if (failsAfter !== undefined) writer.u8(failsAfter)
  }
  return writer.done()
}

// ---- Playing one ---------------------------------------------------------------------------------------------------

/** What the target takes from the product. */
async function loadProduct(load: LoadModule) {
  const { blockDevice } = (await load('handlers/index')) as typeof import('../../src/handlers/index.ts')
  const { scsiBlock } = (await load(
    'handlers/scsi/scsi-block',
  )) as typeof import('../../src/handlers/scsi/scsi-block.ts')
  const { UnitAttentions } = (await load(
    'handlers/scsi/unit-attentions',
  )) as typeof import('../../src/handlers/scsi/unit-attentions.ts')
  const { settled } = (await load('handlers/handler')) as typeof import('../../src/handlers/handler.ts')
  const { HushringError } = (await load('errors')) as typeof import('../../src/errors.ts')
  const { isCompletion } = (await load('ring/request')) as typeof import('../../src/ring/request.ts')
  const request = (await load('ring/scsi-request')) as typeof import('../../src/ring/scsi-request.ts')
  const sense = (await load('ring/sense')) as typeof import('../../src/ring/sense.ts')
  return {
    blockDevice,
    scsiBlock,
    UnitAttentions,
    settled,
    HushringError,
    isCompletion,
    ScsiRequest: request.ScsiRequest,
    encodeSense: sense.encodeSense,
  }
}

type Product = Awaited<ReturnType<typeof loadProduct>>

/** Fuzzes the SCSI disk. What commands came to is counted in `statuses`: `GOOD`, or key/asc/ascq. */
export async function scsiTarget(
  load: LoadModule,
  statuses: Map<string, number> = new Map(),
): Promise<FuzzTarget> {
  const product = await loadProduct(load)
  return {
    play: (input) => new ScsiGame(product, decodeScsi(input), statuses).play(),
    describe: decodeScsi,
  }
}

/** A command that is being played, and the memory of its data. */
interface SentCommand {
  readonly script: ScriptedCommand
  readonly request: ScsiRequest
  /** The pieces of the data with gaps between them. */
  readonly memory: Buffer
  readonly before: Buffer
  /** Where the pieces of the Data-In are in it. */
  readonly dataInPieces: readonly Piece[]
}

interface Piece {
  readonly at: number
  readonly lengthBytes: number
}

function dataOutOf({ dataOut = Buffer.alloc(0), dataOutBytes = dataOut.length }: ScriptedCommand): Buffer {
  return Buffer.concat([dataOut], dataOutBytes)
}

class ScsiGame {
  readonly #product: Product
  readonly #script: ScsiScript
  readonly #statuses: Map<string, number>
  readonly #blockBytes: number
  readonly #contents: Buffer
  /** What the disk held when nothing was in flight last, and the commands since. */
  #contentsBefore: Buffer
  #since: ScriptedCommand[] = []
  #allRefused = true
  #isWritten = false
  /** Requests that the store still does before it fails. */
  #failsAfter: number | undefined
  #hasFailed = false

  constructor(product: Product, script: ScsiScript, statuses: Map<string, number>) {
    this.#product = product
    this.#script = script
    this.#statuses = statuses
    this.#blockBytes = script.disk?.largeBlocks ? 4096 : 512
    // Each block is full of its number: the first one of zeros, so that data of zeros compares equal.
    this.#contents = Buffer.alloc(CAPACITY_BYTES)
    for (let at = 0; at < CAPACITY_BYTES; at += this.#blockBytes) {
      this.#contents.fill(at / this.#blockBytes, at, at + this.#blockBytes)
    }
    this.#contentsBefore = Buffer.from(this.#contents)
  }

  async play(): Promise<void> {
    const { blockDevice, scsiBlock, UnitAttentions, settled, isCompletion, HushringError } = this.#product
    const { disk = {}, commands } = this.#script
    const attentions = new UnitAttentions()
    if (disk.attention) attentions.raise({ key: 6, asc: 0x29, ascq: 0 })
    const { flush, discard, writeZeroes, readOnly = false } = disk
    const handler = scsiBlock(
      blockDevice({
        capacityBytes: CAPACITY_BYTES,
        blockBytes: this.#blockBytes as 512 | 4096,
        readOnly,
        read: this.#verb((io, bytes) => void io.data.copyFrom(bytes)),
        write: this.#verb((io, bytes) => void io.data.copyTo(bytes)),
        ...(flush && { flush: this.#verb(() => {}) }),
        ...(discard && { discard: this.#verb((_io, bytes) => void bytes.fill(0xdd)) }),
        ...(writeZeroes && { writeZeroes: this.#verb((_io, bytes) => void bytes.fill(0)) }),
      }),
    ).connect({ vendor: 'HUSHRING', product: 'FUZZED DISK', revision: '1', serial: 'd0', attentions })
    let inFlight: Promise<void>[] = []
    for (const script of commands) {
      if (!script.beside && inFlight.length > 0) {
        await Promise.all(inFlight)
        inFlight = []
      }
      if (inFlight.length === 0) this.#judgeDisk()
      this.#since.push(script)
      this.#failsAfter = script.failsAfter
      const command = this.#send(script)
      const answer = settled(handler(command.request))
      if (script.aborted) command.request.abort(new HushringError('ERR_REQUEST_ABORTED'))
      if (isCompletion(answer)) this.#judge(command, answer)
      else inFlight.push(Promise.resolve(answer).then((completion) => this.#judge(command, completion)))
    }
    await Promise.all(inFlight)
    this.#judgeDisk()
  }

  #verb(work: (io: BlockRequest, bytes: Buffer) => void): BlockVerbFunction {
    const answer = (io: BlockRequest): void => {
      if (this.#failsAfter !== undefined && this.#failsAfter-- <= 0) {
        this.#hasFailed = true
        throw Object.assign(new Error('EIO'), { syscall: 'pwritev', code: 'EIO' })
      }
      this.#isWritten ||= io.verb !== 'read' && io.verb !== 'flush'
      work(io, this.#contents.subarray(io.offsetBytes, io.offsetBytes + io.lengthBytes))
    }
    return (io) => (this.#script.disk?.later ? Promise.resolve().then(() => answer(io)) : answer(io))
  }

  #send(script: ScriptedCommand): SentCommand {
    const { cdb, dataOut, dataOutBytes = dataOut?.length ?? 0, dataInBytes = 0, pieces = 0 } = script
    const request = new this.#product.ScsiRequest()
    // What is left of the command before.
    request.cdb.fill(0xff)
    request.cdb.set(cdb)
    request.cdbBytes = cdb.length
    request.isBidirectional = dataOut !== undefined && script.dataInBytes !== undefined
    const out = cutIntoPieces(GAP_BYTES, dataOutBytes, PIECE_BYTES[pieces]!)
    const room = cutIntoPieces(out.end, dataInBytes, PIECE_BYTES[pieces]!)
    const memory = Buffer.alloc(room.end, OLD_BYTE)
    const append = (list: SegmentList, { at, lengthBytes }: Piece): void =>
      list.append(memory, at, lengthBytes)
    const data = dataOutOf(script)
    for (const [index, piece] of out.pieces.entries()) {
      const from = index * PIECE_BYTES[pieces]!
      data.copy(memory, piece.at, from, from + piece.lengthBytes)
      append(request.isBidirectional ? request.readable : request.writable, piece)
    }
    for (const piece of room.pieces) append(request.writable, piece)
    return {
      script,
      request,
      memory,
      before: Buffer.from(memory),
      dataInPieces: request.isBidirectional || dataOut === undefined ? room.pieces : out.pieces,
    }
  }

  // ---- What must hold ----------------------------------------------------------------------------------------------

  #judge(command: SentCommand, completion: unknown): void {
    const { isCompletion } = this.#product
    demand(isCompletion(completion), () => 'an answer is a completion')
    const { request } = command
    demand(completion.result !== 'unsupported', () => 'an answer has a status that an initiator knows')
    const roomBytes = request.dataIn.byteLength
    if (completion.result === 'failed') {
      const { sense } = completion.error.details as { sense?: Parameters<Product['encodeSense']>[0] }
      demand(sense !== undefined, () => `a failure has sense data: ${completion.error.stack}`)
      this.#judgeSense(command, sense, completion.error)
      judgeMemory(command, roomBytes)
      return
    }
    this.#count('GOOD')
    this.#allRefused = false
    const { bytesWritten = roomBytes } = completion
    demand(
      Number.isInteger(bytesWritten) && bytesWritten >= 0 && bytesWritten <= roomBytes,
      () => `there are ${bytesWritten} bytes of Data-In in room for ${roomBytes}`,
    )
    judgeMemory(command, bytesWritten)
    const dataIn = request.dataIn.toBuffer().subarray(0, bytesWritten)
    // A WRITE with room for Data-In in the place of Data-Out writes what is there; it can be read then.
    demand(
      !dataIn.includes(OLD_BYTES) || this.#contents.includes(OLD_BYTES),
      () => 'Data-In tells nothing of what was in memory before',
    )
  }

  #judgeSense(
    { script, request }: SentCommand,
    sense: Parameters<Product['encodeSense']>[0],
    error: Error,
  ): void {
    const bytes = Buffer.alloc(96, OLD_BYTE)
    this.#product.encodeSense(sense, bytes)
    const told = decodeSense(bytes)
    this.#count(told.condition)
    demand(this.#mayTell(told.condition, script), () => `${told.condition} has no reason: ${error.stack}`)
    // ILLEGAL REQUEST, UNIT ATTENTION and DATA PROTECT are told before anything is done.
    if (!/^[567]/.test(told.condition)) this.#allRefused = false
    if (told.field !== undefined) {
      demand(told.condition.startsWith('5/'), () => 'only ILLEGAL REQUEST points at a field')
      const { byte, inData } = told.field
      const endByte = inData ? parameterListBytes(script.cdb) : script.cdb.length
      demand(byte < endByte, () => `the field at ${byte} is in what was sent, ${endByte} bytes`)
    }
    if (told.information !== undefined) {
      const isMiscompare = told.condition.startsWith('E/')
      const end = isMiscompare ? request.dataOut.byteLength : CAPACITY_BYTES / this.#blockBytes
      demand(told.information < end, () => `the information ${told.information} is below ${end}`)
    }
  }

  /** Whether a condition can be the truth about a command of this script. */
  #mayTell(condition: string, { aborted = false }: ScriptedCommand): boolean {
    const { disk = {}, commands } = this.#script
    switch (condition) {
      case '5/1A/00': // PARAMETER LIST LENGTH ERROR
      case '5/20/00': // INVALID COMMAND OPERATION CODE
      case '5/21/00': // LOGICAL BLOCK ADDRESS OUT OF RANGE
      case '5/24/00': // INVALID FIELD IN CDB
      case '5/26/00': // INVALID FIELD IN PARAMETER LIST
      case '5/39/00': // SAVING PARAMETERS NOT SUPPORTED
      case 'E/1D/00': // MISCOMPARE DURING VERIFY OPERATION
        return true
      case '3/0C/00': // WRITE ERROR
      case '3/11/00': // UNRECOVERED READ ERROR
        return this.#hasFailed
      case '7/27/00': // WRITE PROTECTED; a MODE SELECT may ask for it
        return disk.readOnly === true || commands.some(({ cdb }) => cdb[0] === 0x15 || cdb[0] === 0x55)
      case '6/29/00': // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
        return disk.attention === true
      case 'B/00/00': // the command was given up
        return aborted
      default:
        return false
    }
  }

  #count(status: string): void {
    this.#statuses.set(status, (this.#statuses.get(status) ?? 0) + 1)
  }

  /** Nothing is in flight: what changed since the last time is what a command could change. */
  #judgeDisk(): void {
    if (this.#isWritten && !this.#contents.equals(this.#contentsBefore)) {
      demand(!this.#allRefused, () => 'a command that is refused changes nothing')
      const ranges = this.#since.flatMap((command) => changeableRanges(command.cdb, dataOutOf(command)))
      for (let at = 0; at < CAPACITY_BYTES; at += this.#blockBytes) {
        const [now, before] = [this.#contents, this.#contentsBefore].map((all) =>
          all.subarray(at, at + this.#blockBytes),
        )
        const block = BigInt(at / this.#blockBytes)
        demand(
          now!.equals(before!) || ranges.some(([lba, count]) => lba <= block && block < lba + count),
          () => `only blocks that a command names change, not ${block}`,
        )
      }
      this.#contents.copy(this.#contentsBefore)
    }
    this.#since = []
    this.#isWritten = false
    this.#allRefused = true
  }
}

/** PARAMETER LIST LENGTH of the commands that have one: MODE SELECT (6), and UNMAP and MODE SELECT (10). */
function parameterListBytes(cdb: Uint8Array): number {
  return cdb[0] === 0x15 ? cdb[4]! : cdb[7]! * 256 + cdb[8]!
}

/** Where the pieces of one kind of data lie, with a gap behind each. */
function cutIntoPieces(
  start: number,
  lengthBytes: number,
  pieceBytes: number,
): { pieces: Piece[]; end: number } {
  const pieces: Piece[] = []
  let at = start
  for (let left = lengthBytes; left > 0; left -= pieceBytes) {
    pieces.push({ at, lengthBytes: Math.min(left, pieceBytes) })
    at += Math.min(left, pieceBytes) + GAP_BYTES
  }
  return { pieces, end: at }
}

/** Nothing but the first bytes of the Data-In was written. */
function judgeMemory({ memory, before, dataInPieces }: SentCommand, writtenBytes: number): void {
  let left = writtenBytes
  for (const { at, lengthBytes } of dataInPieces) {
    const countBytes = Math.min(left, lengthBytes)
    memory.copy(before, at, at, at + countBytes)
    left -= countBytes
  }
  demand(memory.equals(before), () => 'nothing is written behind the Data-In or to the Data-Out')
}

/** What 96 bytes of sense data tell an initiator (SPC-4, 4.5), read without the product. */
function decodeSense(bytes: Buffer): {
  readonly condition: string
  readonly information: number | undefined
  readonly field: { readonly byte: number; readonly inData: boolean } | undefined
} {
  const isFixed = (bytes[0]! & 0x7f) === 0x70
  demand(isFixed || bytes[0] === 0x72, () => `sense data begins with a response code, not ${bytes[0]}`)
  const hex = (at: number): string => bytes.toString('hex', at, at + 1).toUpperCase()
  const end = 8 + bytes[7]!
  demand(
    end <= bytes.length && bytes.subarray(end).every((byte) => byte === 0),
    () => 'sense data ends where it says',
  )
  if (isFixed) {
    demand(end === 18 && bytes[2]! < 0x10, () => 'fixed sense data has 18 bytes and no marks')
    return {
      condition: `${bytes[2]!.toString(16).toUpperCase()}/${hex(12)}/${hex(13)}`,
      information: bytes[0] === 0xf0 ? bytes.readUInt32BE(3) : undefined,
      field: decodeField(bytes, 15),
    }
  }
  let information: number | undefined
  let field: ReturnType<typeof decodeField>
  let at = 8
  for (; at < end; at += 2 + bytes[at + 1]!) {
    const [type, lengthBytes] = [bytes[at], bytes[at + 1]]
    if (type === 0 && lengthBytes === 10 && bytes[at + 2] === 0x80) {
      information = Number(bytes.readBigUInt64BE(at + 4))
    } else if (type === 2 && lengthBytes === 6) field = decodeField(bytes, at + 4)
    else demand(false, () => `a sense data descriptor is known, not ${type} of ${lengthBytes} bytes`)
  }
  demand(at === end, () => 'the last sense data descriptor ends where the sense data does')
  return {
    condition: `${(bytes[1]! & 0xf).toString(16).toUpperCase()}/${hex(2)}/${hex(3)}`,
    information,
    field,
  }
}

function decodeField(bytes: Buffer, at: number): { byte: number; inData: boolean } | undefined {
  if ((bytes[at]! & 0x80) === 0) return undefined
  return { byte: bytes.readUInt16BE(at + 1), inData: (bytes[at]! & 0x40) === 0 }
}
