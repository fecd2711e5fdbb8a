import type { ScsiRequest } from '../../ring/scsi-request.ts'
import { SegmentList } from '../../ring/segments.ts'
import type { BlockAbilities } from '../device.ts'
import { type BlockFields, readUInt64BE } from './cdb.ts'
import type { Execute } from './command.ts'
import { Condition } from './conditions.ts'
import type { DiskUnit } from './disk-unit.ts'
import { Limit } from './limits.ts'
import { dataFault, madePermanent } from './read-write.ts'
import { answeredWith, inSteps, type Steps } from './steps.ts'

/**
 * What a disk says of the blocks it gives back (SBC-3, 4.7). READ CAPACITY (16), the VPD pages B0h and B2h and the
 * commands all follow it, so that they agree.
 */
export interface Provisioning {
  /** LBPME and LBPU: there is UNMAP. */
  readonly canUnmap: boolean
  /** LBPRZ, LBPWS and LBPWS10: what was unmapped reads as zeros, and WRITE SAME can unmap as well. */
  readonly unmapsToZeros: boolean
}

/**
 * A discard may leave anything behind, so a disk that has nothing else promises nothing. One that can also write
 * zeros unmaps with them, and then every block of the range reads as zeros, also those at its ends that the store
 * cannot give back.
 */
export function provisioningOf({ discard, writeZeroes }: BlockAbilities): Provisioning {
  return { canUnmap: discard, unmapsToZeros: discard && writeZeroes }
}

// ---- UNMAP -------------------------------------------------------------------------------------------------------

const UNMAP_HEADER_BYTES = 8
const UNMAP_RANGE_BYTES = 16

interface UnmapRange {
  readonly lba: number
  readonly count: number
}

/** UNMAP (SBC-3, 5.28). All ranges are checked before the first one is done. */
export const unmap: Execute = (unit, request) => {
  const listBytes = request.cdb.readUInt16BE(7)
  if (listBytes === 0) return unit.good(request)
  if (listBytes < UNMAP_HEADER_BYTES) {
    return unit.checkCondition(request, Condition.PARAMETER_LIST_LENGTH_ERROR)
  }
  if (request.dataOut.byteLength < listBytes) return unit.invalidField(request, 7)
  const list = Buffer.alloc(listBytes)
  request.dataOut.copyTo(list)
  // A length that is no multiple of 16 leaves a piece of a descriptor at the end, which is ignored.
  const rangeCount = Math.floor(
    Math.min(list.readUInt16BE(2), listBytes - UNMAP_HEADER_BYTES) / UNMAP_RANGE_BYTES,
  )
  const ranges: UnmapRange[] = []
  for (let index = 0; index < rangeCount; index++) {
    const at = UNMAP_HEADER_BYTES + index * UNMAP_RANGE_BYTES
    const range = { lba: readUInt64BE(list, at), count: list.readUInt32BE(at + 8) }
    if (unit.isOutside(range.lba, range.count)) {
      return unit.checkCondition(request, Condition.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    }
    if (range.count > 0) ranges.push(range)
  }
  const blockCount = ranges.reduce((sum, { count }) => sum + count, 0)
  if (rangeCount > Limit.unmapRangeCountMax) return unit.invalidParameter(request, 2)
  if (blockCount > Limit.unmapBytesMax / unit.blockBytes) {
    return unit.invalidParameter(request, UNMAP_HEADER_BYTES + 8)
  }
  return (
    unit.protectionFault(request) ??
    answeredWith(inSteps(unmapping(unit, request, ranges)), () => unit.good(request))
  )
}

function* unmapping(unit: DiskUnit, request: ScsiRequest, ranges: readonly UnmapRange[]): Steps {
  const verb = unit.provisioning.unmapsToZeros ? 'writeZeroes' : 'discard'
  for (const { lba, count } of ranges) {
    if (request.isAborted) return unit.aborted(request)
    const done = yield unit.shared(
      request,
      lba * unit.blockBytes,
      count * unit.blockBytes,
      (_request, offsetBytes, lengthBytes) =>
        unit.ask(request, verb, offsetBytes, lengthBytes, undefined, verb === 'writeZeroes'),
    )
    if (done.result !== 'ok') return done
  }
  return yield* madePermanent(unit, request, undefined)
}

// ---- WRITE SAME --------------------------------------------------------------------------------------------------

/** Bits of byte 1. */
const UNMAP_BIT = 0x08
const NO_DATA_OUT_BUFFER = 0x01

/**
 * WRITE SAME (SBC-3, 5.41). A number of blocks of 0 would stand for the rest of the disk, however much that is, and
 * is refused; initiators are told so (WSNZ).
 */
export function writeSame(fields: BlockFields): Execute {
  return (unit, request) => {
    const { cdb } = request
    const lba = fields.lba(cdb)
    const count = fields.count(cdb)
    const hasBlock = (cdb[1]! & NO_DATA_OUT_BUFFER) === 0
    const fault =
      unit.rangeFault(request, fields, lba, count, Limit.writeSameBytesMax / unit.blockBytes) ??
      (count === 0 ? unit.invalidField(request, fields.countAt) : undefined) ??
      (hasBlock ? dataFault(unit, request, fields, request.dataOut, unit.blockBytes) : undefined) ??
      unit.protectionFault(request)
    if (fault !== undefined) return fault
    const block = Buffer.alloc(unit.blockBytes)
    if (hasBlock) request.dataOut.copyTo(block)
    const answer = unit.shared(
      request,
      lba * unit.blockBytes,
      count * unit.blockBytes,
      (_request, offsetBytes, lengthBytes) =>
        inSteps(writingSame(unit, request, offsetBytes, lengthBytes, block)),
    )
    return answeredWith(answer, () => unit.good(request))
  }
}

function* writingSame(
  unit: DiskUnit,
  request: ScsiRequest,
  offsetBytes: number,
  lengthBytes: number,
  block: Buffer,
): Steps {
  const canZero = unit.disk.abilities.writeZeroes && block.every((byte) => byte === 0)
  const mayUnmap = canZero && (request.cdb[1]! & UNMAP_BIT) !== 0
  const pieceBytes = canZero ? lengthBytes : Math.min(lengthBytes, Limit.pieceBytesMax)
  const piece = canZero ? undefined : Buffer.alloc(pieceBytes, block)
  for (let doneBytes = 0; doneBytes < lengthBytes; ) {
    if (request.isAborted) return unit.aborted(request)
    const countBytes = Math.min(pieceBytes, lengthBytes - doneBytes)
    const done = yield piece === undefined
      ? unit.ask(request, 'writeZeroes', offsetBytes + doneBytes, countBytes, undefined, mayUnmap)
      : unit.ask(
          request,
          'write',
          offsetBytes + doneBytes,
          countBytes,
          SegmentList.of(piece.subarray(0, countBytes)),
        )
    if (done.result !== 'ok') return done
    doneBytes += countBytes
  }
  return yield* madePermanent(unit, request, undefined)
}
