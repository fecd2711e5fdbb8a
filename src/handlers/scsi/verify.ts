import type { Completion } from '../../ring/request.ts'
import type { ScsiRequest } from '../../ring/scsi-request.ts'
import { SegmentList } from '../../ring/segments.ts'
import type { BlockFields } from './cdb.ts'
import type { Execute } from './command.ts'
import { Condition } from './conditions.ts'
import type { DiskUnit } from './disk-unit.ts'
import { Limit } from './limits.ts'
import { dataFault, writeFault } from './read-write.ts'
import { answeredWith, inSteps, type Steps } from './steps.ts'

/** BYTCHK: what the blocks are compared with (SBC-3, 5.29). The fourth value, 2, is reserved. */
const ByteCheck = { nothing: 0, everyBlock: 1, oneBlock: 3 } as const
const RESERVED = 2

function byteCheckOf({ cdb }: ScsiRequest): number {
  return (cdb[1]! >>> 1) & 3
}

/** VERIFY (SBC-3, 5.29): reads blocks for nobody, or compares each with its own or all with one block. */
export function verify(fields: BlockFields): Execute {
  return (unit, request) => {
    const byteCheck = byteCheckOf(request)
    if (byteCheck === RESERVED) return unit.invalidField(request, 1, 2)
    const lba = fields.lba(request.cdb)
    const count = fields.count(request.cdb)
    const fault =
      unit.rangeFault(request, fields, lba, count) ??
      dataFault(unit, request, fields, request.dataOut, comparedBytes(unit, byteCheck, count))
    if (fault !== undefined) return fault
    const answer = unit.shared(
      request,
      lba * unit.blockBytes,
      count * unit.blockBytes,
      (_request, offsetBytes, lengthBytes) =>
        inSteps(verifying(unit, request, offsetBytes, lengthBytes, byteCheck)),
    )
    return answeredWith(answer, () => unit.good(request))
  }
}

function comparedBytes(unit: DiskUnit, byteCheck: number, count: number): number {
  if (byteCheck === ByteCheck.nothing || count === 0) return 0
  return byteCheck === ByteCheck.oneBlock ? unit.blockBytes : count * unit.blockBytes
}

/** WRITE AND VERIFY (SBC-3, 5.36). Every BYTCHK but 00b compares what was written, all of it, with what is read. */
export function writeAndVerify(fields: BlockFields): Execute {
  return (unit, request) => {
    const byteCheck = byteCheckOf(request)
    if (byteCheck === RESERVED) return unit.invalidField(request, 1, 2)
    const lba = fields.lba(request.cdb)
    const count = fields.count(request.cdb)
    const fault = writeFault(unit, request, fields, lba, count)
    if (fault !== undefined) return fault
    if (count === 0) return unit.good(request)
    const compared = byteCheck === ByteCheck.nothing ? ByteCheck.nothing : ByteCheck.everyBlock
    const answer = unit.shared(
      request,
      lba * unit.blockBytes,
      count * unit.blockBytes,
      (_request, offsetBytes, lengthBytes) =>
        inSteps(writingAndVerifying(unit, request, offsetBytes, lengthBytes, compared)),
    )
    return answeredWith(answer, () => unit.goodWrite(request, count * unit.blockBytes))
  }
}

function* writingAndVerifying(
  unit: DiskUnit,
  request: ScsiRequest,
  offsetBytes: number,
  lengthBytes: number,
  byteCheck: number,
): Steps {
  const written = yield unit.writeDataOut(request, offsetBytes, lengthBytes)
  if (written.result !== 'ok') return written
  // It is the medium that is to be verified, so nothing may be left in a cache before it.
  const flushed = yield unit.flush(request)
  if (flushed.result !== 'ok') return flushed
  return yield* verifying(unit, request, offsetBytes, lengthBytes, byteCheck)
}

function* verifying(
  unit: DiskUnit,
  request: ScsiRequest,
  offsetBytes: number,
  lengthBytes: number,
  byteCheck: number,
): Steps {
  const pieceBytes = Math.min(lengthBytes, Limit.pieceBytesMax)
  // Of its own also where nothing is compared: a layer that keeps or checks what it sees read would find a mixture.
  const found = Buffer.allocUnsafe(pieceBytes)
  const expected = byteCheck === ByteCheck.nothing ? undefined : expectedPiece(unit, request, pieceBytes)
  for (let doneBytes = 0; doneBytes < lengthBytes; ) {
    if (request.isAborted) return unit.aborted(request)
    const countBytes = Math.min(pieceBytes, lengthBytes - doneBytes)
    const piece = found.subarray(0, countBytes)
    const read = yield unit.ask(request, 'read', offsetBytes + doneBytes, countBytes, SegmentList.of(piece))
    if (read.result !== 'ok') return read
    if (expected !== undefined) {
      if (byteCheck === ByteCheck.everyBlock) request.dataOut.copyTo(expected, 0, doneBytes)
      const differenceBytes = firstDifference(piece, expected.subarray(0, countBytes))
      if (differenceBytes !== undefined) {
        const isOneBlock = byteCheck === ByteCheck.oneBlock
        const inDataOut = isOneBlock ? differenceBytes % unit.blockBytes : doneBytes + differenceBytes
        return miscompare(unit, request, inDataOut)
      }
    }
    doneBytes += countBytes
  }
  return request.ok()
}

/** Memory for a piece of what is expected, full of the first block of the Data-Out: all there is for BYTCHK 11b. */
function expectedPiece(unit: DiskUnit, request: ScsiRequest, pieceBytes: number): Buffer {
  const block = Buffer.alloc(unit.blockBytes)
  request.dataOut.copyTo(block)
  return Buffer.alloc(pieceBytes, block)
}

/** The answer MISCOMPARE. @param offsetBytes first byte of the Data-Out that differs from the disk */
export function miscompare(unit: DiskUnit, request: ScsiRequest, offsetBytes: number): Completion {
  return unit.checkCondition(request, {
    ...Condition.MISCOMPARE_DURING_VERIFY_OPERATION,
    information: offsetBytes,
  })
}

/** Index of the first byte that differs between two buffers of one length; undefined when they are equal. */
export function firstDifference(one: Buffer, other: Buffer): number | undefined {
  if (one.equals(other)) return undefined
  let index = 0
  while (one[index] === other[index]) index++
  return index
}
