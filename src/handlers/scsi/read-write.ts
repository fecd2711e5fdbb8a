import type { Completion } from '../../ring/request.ts'
import type { ScsiRequest } from '../../ring/scsi-request.ts'
import type { SegmentList } from '../../ring/segments.ts'
import type { Answer } from '../handler.ts'
import type { BlockFields } from './cdb.ts'
import type { Execute } from './command.ts'
import type { DiskUnit } from './disk-unit.ts'
import type { RangeWork } from './range-lock.ts'
import { answeredWith, inSteps, type Steps } from './steps.ts'

/** READ (SBC-3, 5.11): straight into the memory of the initiator. */
export function read(fields: BlockFields): Execute {
  return (unit, request) => {
    const lba = fields.lba(request.cdb)
    const count = fields.count(request.cdb)
    const lengthBytes = count * unit.blockBytes
    const { dataIn } = request
    const fault =
      unit.rangeFault(request, fields, lba, count) ?? dataFault(unit, request, fields, dataIn, lengthBytes)
    if (fault !== undefined) return fault
    if (count === 0) return unit.good(request)
    const answer = unit.shared(request, lba * unit.blockBytes, lengthBytes, unit.readDataIn)
    return dataIn.byteLength === lengthBytes ? answer : filledTo(lengthBytes, request, answer)
  }
}

/** For an initiator that made room for more than it asked for. */
function filledTo(lengthBytes: number, request: ScsiRequest, answer: Answer): Answer {
  return answeredWith(answer, () => request.ok(lengthBytes))
}

/** WRITE (SBC-3, 5.32): straight from the memory of the initiator. */
export function write(fields: BlockFields): Execute {
  return (unit, request) => {
    const lba = fields.lba(request.cdb)
    const count = fields.count(request.cdb)
    const fault = writeFault(unit, request, fields, lba, count)
    if (fault !== undefined) return fault
    if (count === 0) return unit.good(request)
    const lengthBytes = count * unit.blockBytes
    const work = unit.isWriteThrough(request, fields) ? writeThrough(unit, fields) : unit.writeDataOut
    const answer = unit.shared(request, lba * unit.blockBytes, lengthBytes, work)
    if (request.dataIn.byteLength === lengthBytes && !request.isBidirectional) return answer
    return wroteFrontOf(unit, request, lengthBytes, answer)
  }
}

/** For an initiator that brought more than it asked to be written, or made room for Data-In. */
function wroteFrontOf(unit: DiskUnit, request: ScsiRequest, lengthBytes: number, answer: Answer): Answer {
  return answeredWith(answer, () => unit.goodWrite(request, lengthBytes))
}

function writeThrough(unit: DiskUnit, fields: BlockFields): RangeWork {
  return (request, offsetBytes, lengthBytes) =>
    inSteps(writing(unit, request, fields, offsetBytes, lengthBytes))
}

function* writing(
  unit: DiskUnit,
  request: ScsiRequest,
  fields: BlockFields,
  offsetBytes: number,
  lengthBytes: number,
): Steps {
  const written = yield unit.writeDataOut(request, offsetBytes, lengthBytes)
  if (written.result !== 'ok') return written
  return yield* madePermanent(unit, request, fields)
}

/**
 * The last step of every command that wrote: makes it permanent if it must be.
 *
 * @param fields undefined for a command that has no FUA
 */
export function* madePermanent(unit: DiskUnit, request: ScsiRequest, fields: BlockFields | undefined): Steps {
  return unit.isWriteThrough(request, fields) ? yield unit.flush(request) : request.ok()
}

/** What is wrong with a command that writes as many blocks as its Data-Out has. */
export function writeFault(
  unit: DiskUnit,
  request: ScsiRequest,
  fields: BlockFields,
  lba: number,
  count: number,
): Completion | undefined {
  return (
    unit.rangeFault(request, fields, lba, count) ??
    dataFault(unit, request, fields, request.dataOut, count * unit.blockBytes) ??
    unit.protectionFault(request)
  )
}

/**
 * The kernel does not compare the length in the CDB with the data that the initiator brings. Less than the CDB says
 * is an error; what is more than that is left alone.
 */
export function dataFault(
  unit: DiskUnit,
  request: ScsiRequest,
  fields: BlockFields,
  data: SegmentList,
  neededBytes: number,
): Completion | undefined {
  return data.byteLength < neededBytes ? unit.invalidField(request, fields.countAt) : undefined
}

/** SYNCHRONIZE CACHE (SBC-3, 5.25). The whole disk, whatever the range, and also if IMMED would allow less. */
export function synchronizeCache(fields: BlockFields): Execute {
  return (unit, request) => {
    const lba = fields.lba(request.cdb)
    const count = fields.count(request.cdb)
    if (unit.isOutside(lba, count)) return unit.outOfRange(request, fields.lbaAt)
    return answeredWith(unit.flush(request), () => unit.good(request))
  }
}

/** PRE-FETCH (SBC-3, 5.8). Nothing is fetched, which GOOD says; CONDITION MET would promise that it was. */
export function prefetch(fields: BlockFields): Execute {
  return (unit, request) => {
    const lba = fields.lba(request.cdb)
    const count = fields.count(request.cdb)
    return unit.isOutside(lba, count) ? unit.outOfRange(request, fields.lbaAt) : unit.good(request)
  }
}
