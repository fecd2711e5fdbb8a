import type { ScsiRequest } from '../../ring/scsi-request.ts'
import { SegmentList } from '../../ring/segments.ts'
import { CDB_COMPARE_AND_WRITE as FIELDS } from './cdb.ts'
import type { Execute } from './command.ts'
import type { DiskUnit } from './disk-unit.ts'
import { Limit } from './limits.ts'
import { dataFault, madePermanent } from './read-write.ts'
import { answeredWith, inSteps, type Steps } from './steps.ts'
import { firstDifference, miscompare } from './verify.ts'

/**
 * COMPARE AND WRITE (SBC-3, 5.2): the first half of the Data-Out is what the blocks must hold now, the second half
 * what they hold afterwards.
 */
export const compareAndWrite: Execute = (unit, request) => {
  const lba = FIELDS.lba(request.cdb)
  const count = FIELDS.count(request.cdb)
  const lengthBytes = count * unit.blockBytes
  const fault =
    unit.rangeFault(request, FIELDS, lba, count, Limit.compareAndWriteBlockCountMax) ??
    dataFault(unit, request, FIELDS, request.dataOut, 2 * lengthBytes) ??
    unit.protectionFault(request)
  if (fault !== undefined) return fault
  if (count === 0) return unit.good(request)
  const answer = unit.exclusive(request, lba * unit.blockBytes, lengthBytes, (_request, offsetBytes) =>
    inSteps(comparingAndWriting(unit, request, offsetBytes, lengthBytes)),
  )
  return answeredWith(answer, () => unit.good(request))
}

function* comparingAndWriting(
  unit: DiskUnit,
  request: ScsiRequest,
  offsetBytes: number,
  lengthBytes: number,
): Steps {
  // Both halves are copied out: the initiator must not change what is written after it was compared.
  const expected = Buffer.allocUnsafe(lengthBytes)
  const replacement = Buffer.allocUnsafe(lengthBytes)
  request.dataOut.copyTo(expected)
  request.dataOut.copyTo(replacement, 0, lengthBytes)
  const found = Buffer.allocUnsafe(lengthBytes)
  const read = yield unit.ask(request, 'read', offsetBytes, lengthBytes, SegmentList.of(found))
  if (read.result !== 'ok') return read
  const differenceBytes = firstDifference(found, expected)
  if (differenceBytes !== undefined) return miscompare(unit, request, differenceBytes)
  if (request.isAborted) return unit.aborted(request)
  const written = yield unit.ask(request, 'write', offsetBytes, lengthBytes, SegmentList.of(replacement))
  if (written.result !== 'ok') return written
  return yield* madePermanent(unit, request, FIELDS)
}
