import { CDB_16, writeUInt64BE } from './cdb.ts'
import type { Execute } from './command.ts'
import { PHYSICAL_BLOCK_BYTES } from './limits.ts'

const LAST_LBA_MAX = 0xffff_ffff

/** READ CAPACITY (10) (SBC-3, 5.12). A disk too large for it says so with the highest number. */
export const readCapacity10: Execute = (unit, request) => {
  const data = Buffer.alloc(8)
  data.writeUInt32BE(Math.min(unit.blockCount - 1, LAST_LBA_MAX), 0)
  data.writeUInt32BE(unit.blockBytes, 4)
  return unit.parameterData(request, data, data.length)
}

const LBPME = 0x80
const LBPRZ = 0x40

/** READ CAPACITY (16) (SBC-3, 5.13). */
export const readCapacity16: Execute = (unit, request) => {
  const { canUnmap, unmapsToZeros } = unit.provisioning
  const data = Buffer.alloc(32)
  writeUInt64BE(data, unit.blockCount - 1, 0)
  data.writeUInt32BE(unit.blockBytes, 8)
  data[13] = Math.log2(PHYSICAL_BLOCK_BYTES / unit.blockBytes) // LBPPBE
  data[14] = (canUnmap ? LBPME : 0) | (unmapsToZeros ? LBPRZ : 0)
  return unit.parameterData(request, data, request.cdb.readUInt32BE(10))
}

/**
 * GET LBA STATUS (SBC-3, 5.5). No disk tells which of its blocks are mapped, so all blocks to the end are in one
 * descriptor, with the status that stands for "mapped or unknown".
 */
export const getLbaStatus: Execute = (unit, request) => {
  const lba = CDB_16.lba(request.cdb)
  if (unit.isOutside(lba, 1)) return unit.outOfRange(request, CDB_16.lbaAt)
  const data = Buffer.alloc(8 + 16)
  data.writeUInt32BE(data.length - 4, 0)
  writeUInt64BE(data, lba, 8)
  data.writeUInt32BE(Math.min(unit.blockCount - lba, 0xffff_ffff), 16)
  return unit.parameterData(request, data, request.cdb.readUInt32BE(10))
}
