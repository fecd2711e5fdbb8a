import { attempt, settled } from '../../src/handlers/handler.ts'
import type { BlockDevice, Handler, LogicalUnit, ScsiDevice } from '../../src/handlers/index.ts'
import { scsiBlock } from '../../src/handlers/scsi/scsi-block.ts'
import { UnitAttentions } from '../../src/handlers/scsi/unit-attentions.ts'
import type { Completion } from '../../src/ring/request.ts'
import { ScsiRequest } from '../../src/ring/scsi-request.ts'
import { encodeSense, SENSE_BYTES, type Sense } from '../../src/ring/sense.ts'

/** What an initiator sends with a CDB. */
export interface CommandData {
  readonly dataOut?: Uint8Array
  /** Room for Data-In; it is full of {@link OLD_BYTE} at first, as if another command had used it before. */
  readonly dataInBytes?: number
  /** Cuts the data into pieces of so many bytes. */
  readonly pieceBytes?: number
}

/** What is in the memory of a command before anybody writes to it. */
export const OLD_BYTE = 0xee

/** A command as it comes off the ring. With data in both directions it is bidirectional. */
export function scsiRequest(
  cdb: Uint8Array | string,
  { dataOut, dataInBytes, pieceBytes = 1 << 20 }: CommandData = {},
): ScsiRequest {
  const request = new ScsiRequest()
  const bytes = typeof cdb === 'string' ? hex(cdb) : cdb
  request.cdb.set(bytes)
  request.cdbBytes = bytes.length
  request.isBidirectional = dataOut !== undefined && dataInBytes !== undefined
  const append = (list: ScsiRequest['writable'], memory: Buffer): void => {
    for (let at = 0; at < memory.length; at += pieceBytes) {
      list.append(memory, at, Math.min(pieceBytes, memory.length - at))
    }
  }
  if (dataInBytes !== undefined) append(request.writable, Buffer.alloc(dataInBytes, OLD_BYTE))
  if (dataOut !== undefined) {
    append(request.isBidirectional ? request.readable : request.writable, Buffer.from(dataOut))
  }
  return request
}

/** How a command ended, as its initiator sees it. */
export interface Outcome {
  /** `GOOD`, key/asc/ascq as `5/24/00`, or the status in hexadecimal. */
  readonly status: string
  readonly sense: Sense | undefined
  /** The Data-In that was filled. */
  readonly dataIn: Buffer
  readonly completion: Completion
}

export function outcomeOf(request: ScsiRequest, completion: Completion): Outcome {
  const { details = {} } = completion.result === 'failed' ? completion.error : {}
  const sense = details.sense as Sense | undefined
  const isGood = completion.result === 'ok'
  const countBytes = isGood ? (completion.bytesWritten ?? request.dataIn.byteLength) : 0
  return {
    status: isGood
      ? 'GOOD'
      : sense === undefined
        ? String(details.status ?? completion.result)
        : named(sense),
    sense,
    dataIn: request.dataIn.toBuffer().subarray(0, countBytes),
    completion,
  }
}

function named({ key, asc, ascq }: Sense): string {
  const two = (byte: number): string => byte.toString(16).toUpperCase().padStart(2, '0')
  return `${key.toString(16).toUpperCase()}/${two(asc)}/${two(ascq)}`
}

/** The 96 bytes that an initiator gets. */
export function senseBytes(sense: Sense): Buffer {
  const bytes = Buffer.alloc(SENSE_BYTES, OLD_BYTE)
  encodeSense(sense, bytes)
  return bytes
}

export function logicalUnit(changes: Partial<LogicalUnit> = {}): LogicalUnit {
  return {
    vendor: 'HUSHRING',
    product: 'TEST DISK',
    revision: '0001',
    serial: 'd0-0001',
    attentions: new UnitAttentions(),
    ...changes,
  }
}

/** A disk with an initiator in front of it. */
export class Initiator {
  readonly unit: LogicalUnit
  readonly handler: Handler<ScsiRequest>

  constructor(device: BlockDevice | ScsiDevice, unit: LogicalUnit = logicalUnit()) {
    this.unit = unit
    this.handler = (device.kind === 'scsi' ? device : scsiBlock(device)).connect(unit)
  }

  /** Sends a command, which may be answered at once or later. */
  async send(cdb: Uint8Array | string, data: CommandData = {}): Promise<Outcome> {
    const request = scsiRequest(cdb, data)
    return outcomeOf(request, await this.answer(request))
  }

  async answer(request: ScsiRequest): Promise<Completion> {
    return await settled(attempt(this.handler, request))
  }
}

/** Bytes out of hexadecimal digits; spaces mean nothing. */
export function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(' ', ''), 'hex')
}

// ---- CDBs of the commands that name blocks -----------------------------------------------------------------------

export function cdb6(opcode: number, lba: number, count: number): Buffer {
  return Buffer.from([opcode, (lba >>> 16) & 0x1f, (lba >>> 8) & 0xff, lba & 0xff, count, 0])
}

export function cdb10(opcode: number, lba: number, count: number, flags = 0): Buffer {
  const cdb = Buffer.alloc(10)
  cdb.set([opcode, flags])
  cdb.writeUInt32BE(lba, 2)
  cdb.writeUInt16BE(count, 7)
  return cdb
}

export function cdb12(opcode: number, lba: number, count: number, flags = 0): Buffer {
  const cdb = Buffer.alloc(12)
  cdb.set([opcode, flags])
  cdb.writeUInt32BE(lba, 2)
  cdb.writeUInt32BE(count, 6)
  return cdb
}

export function cdb16(opcode: number, lba: number | bigint, count: number, flags = 0): Buffer {
  const cdb = Buffer.alloc(16)
  cdb.set([opcode, flags])
  cdb.writeBigUInt64BE(BigInt(lba), 2)
  cdb.writeUInt32BE(count, 10)
  return cdb
}

export function compareAndWriteCdb(lba: number | bigint, count: number, flags = 0): Buffer {
  const cdb = cdb16(0x89, lba, 0, flags)
  cdb[13] = count
  return cdb
}

/** The parameter list of UNMAP. */
export function unmapList(...ranges: readonly (readonly [lba: number | bigint, count: number])[]): Buffer {
  const list = Buffer.alloc(8 + 16 * ranges.length)
  list.writeUInt16BE(list.length - 2, 0)
  list.writeUInt16BE(16 * ranges.length, 2)
  for (const [index, [lba, count]] of ranges.entries()) {
    list.writeBigUInt64BE(BigInt(lba), 8 + 16 * index)
    list.writeUInt32BE(count, 16 + 16 * index)
  }
  return list
}

export function unmapCdb(listBytes: number, flags = 0): Buffer {
  return cdb10(0x42, 0, listBytes, flags)
}
