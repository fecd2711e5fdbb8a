/** Where the commands of one length have their block address and their number of blocks (SPC-4, 4.2.2). */
export interface BlockFields {
  /** First byte of the LOGICAL BLOCK ADDRESS, for the field pointer of sense data. */
  readonly lbaAt: number
  /** First byte of the TRANSFER LENGTH, or what takes its place. */
  readonly countAt: number
  /** True when byte 1 has the bit FUA; in six bytes there is no room for it. */
  readonly hasForceUnitAccess: boolean
  /** The block address: exact up to 2^53, and from there on past the end of any disk. */
  lba(cdb: Buffer): number
  /** Number of blocks, 0 to 2^32 - 1. */
  count(cdb: Buffer): number
}

/** READ(6) and WRITE(6): 21 bits of address, and 0 blocks stand for 256. */
export const CDB_6: BlockFields = {
  lbaAt: 1,
  countAt: 4,
  hasForceUnitAccess: false,
  lba: (cdb) => uint24(cdb, 1) & 0x1f_ffff,
  count: (cdb) => cdb[4]! || 256,
}

/** The commands of 10 bytes. */
export const CDB_10: BlockFields = {
  lbaAt: 2,
  countAt: 7,
  hasForceUnitAccess: true,
  lba: (cdb) => uint32(cdb, 2),
  count: (cdb) => uint16(cdb, 7),
}

/** The commands of 12 bytes. */
export const CDB_12: BlockFields = {
  lbaAt: 2,
  countAt: 6,
  hasForceUnitAccess: true,
  lba: (cdb) => uint32(cdb, 2),
  count: (cdb) => uint32(cdb, 6),
}

/** The commands of 16 bytes. */
export const CDB_16: BlockFields = {
  lbaAt: 2,
  countAt: 10,
  hasForceUnitAccess: true,
  lba: (cdb) => readUInt64BE(cdb, 2),
  count: (cdb) => uint32(cdb, 10),
}

/** COMPARE AND WRITE: 16 bytes, but the number of blocks has only one of them. */
export const CDB_COMPARE_AND_WRITE: BlockFields = { ...CDB_16, countAt: 13, count: (cdb) => cdb[13]! }

// A CDB has room for each of its fields. The methods of Buffer check their argument behind a wrapper that makes an array
// of it; this is read twice a command.
function uint16(cdb: Buffer, at: number): number {
  return (cdb[at]! << 8) | cdb[at + 1]!
}

function uint24(cdb: Buffer, at: number): number {
  return (uint16(cdb, at) << 8) | cdb[at + 2]!
}

function uint32(cdb: Buffer, at: number): number {
  return uint24(cdb, at) * 2 ** 8 + cdb[at + 3]!
}

const FORCE_UNIT_ACCESS = 0x08

/** True when a write must be permanent before it is answered, whatever the mode pages say. */
export function forcesUnitAccess(fields: BlockFields, cdb: Buffer): boolean {
  return fields.hasForceUnitAccess && (cdb[1]! & FORCE_UNIT_ACCESS) !== 0
}

/**
 * A 64-bit number: rounded from 2^53 on. No disk reaches that far, and rounding never brings a number back below
 * 2^53, so what is past the end stays past the end.
 */
export function readUInt64BE(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4)
}

/** Writes a number from 0 to 2^53 - 1 as 64 bits. */
export function writeUInt64BE(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / 2 ** 32), at)
  bytes.writeUInt32BE(value % 2 ** 32, at + 4)
}
