import { createHash } from 'node:crypto'
import type { LogicalUnit } from '../device.ts'
import type { Execute } from './command.ts'
import type { DiskUnit } from './disk-unit.ts'
import { Limit, PHYSICAL_BLOCK_BYTES } from './limits.ts'

const ENABLE_VITAL_PRODUCT_DATA = 0x01

/** INQUIRY (SPC-4, 6.6). The one command that a device always answers. */
export const inquiry: Execute = (unit, request) => {
  const { cdb } = request
  const allocationBytes = cdb.readUInt16BE(3)
  const pageCode = cdb[2]!
  if ((cdb[1]! & ENABLE_VITAL_PRODUCT_DATA) === 0) {
    if (pageCode !== 0) return unit.invalidField(request, 2)
    return unit.parameterData(request, standardData(unit.identity), allocationBytes)
  }
  const page = VITAL_PRODUCT_DATA.get(pageCode)
  if (page === undefined) return unit.invalidField(request, 2)
  const data = Buffer.concat([Buffer.from([0, pageCode, 0, 0]), page(unit)])
  data.writeUInt16BE(data.length - 4, 2)
  return unit.parameterData(request, data, allocationBytes)
}

const STANDARD_BYTES = 96
const SPC_4 = 0x06
const HIERARCHICAL_SUPPORT = 0x10
const RESPONSE_DATA_FORMAT = 0x02
const COMMAND_QUEUING = 0x02
/** SAM-5, SPC-4, SBC-3, no version claimed (SPC-4, 6.6.2). */
const VERSION_DESCRIPTORS = [0x00a0, 0x0460, 0x04c0]

function standardData({ vendor, product, revision }: LogicalUnit): Buffer {
  const data = Buffer.alloc(STANDARD_BYTES)
  data[2] = SPC_4
  data[3] = HIERARCHICAL_SUPPORT | RESPONSE_DATA_FORMAT
  data[4] = STANDARD_BYTES - 5
  data[7] = COMMAND_QUEUING
  asciiField(vendor, 8).copy(data, 8)
  asciiField(product, 16).copy(data, 16)
  asciiField(revision, 4).copy(data, 32)
  for (const [index, version] of VERSION_DESCRIPTORS.entries()) data.writeUInt16BE(version, 58 + 2 * index)
  return data
}

/** Left-aligned text, padded with spaces (SPC-4, 4.3.1). */
function asciiField(text: string, lengthBytes: number): Buffer {
  return Buffer.from(text.padEnd(lengthBytes).slice(0, lengthBytes), 'latin1')
}

// ---- Vital product data (SPC-4, 7.8; SBC-3, 6.6) -----------------------------------------------------------------

/** By page code, in ascending order: what follows the header of four bytes. */
const VITAL_PRODUCT_DATA: ReadonlyMap<number, (unit: DiskUnit) => Buffer> = new Map([
  [0x00, () => Buffer.from([...VITAL_PRODUCT_DATA.keys()])],
  [0x80, ({ identity }: DiskUnit) => Buffer.from(identity.serial, 'latin1')],
  [0x83, ({ identity }: DiskUnit) => Buffer.concat([vendorDesignator(identity), naaDesignator(identity)])],
  [0xb0, blockLimits],
  [0xb1, blockDeviceCharacteristics],
  [0xb2, logicalBlockProvisioning],
])

const CodeSet = { binary: 1, ascii: 2 } as const
/** Both of the logical unit, not of a port. */
const DesignatorType = { t10Vendor: 1, naa: 3 } as const

function designator(codeSet: number, type: number, bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from([codeSet, type, 0, bytes.length]), bytes])
}

/** The vendor, and what only this vendor has once. As LIO makes it: product and serial number with a colon. */
function vendorDesignator({ vendor, product, serial }: LogicalUnit): Buffer {
  const text = Buffer.from(`${product}:${serial}`, 'latin1')
  // Its length has one byte. Cut off at the front, because the end of a serial number is what differs.
  const room = 0xff - 8
  const bytes = Buffer.concat([asciiField(vendor, 8), text.subarray(Math.max(0, text.length - room))])
  return designator(CodeSet.ascii, DesignatorType.t10Vendor, bytes)
}

/** NAA type 6, "IEEE registered extended", and the company that LIO uses: OpenFabrics Alliance, 00-14-05. */
const NAA_PREFIX = '6001405'
const NAA_DIGITS = 32
const NAA_VENDOR_DIGITS = NAA_DIGITS - NAA_PREFIX.length

/**
 * The worldwide name. Of a serial number with enough hexadecimal digits, such as a UUID, it is made as LIO and
 * tcmu-runner make it, so that a disk keeps its name when its server changes. Of any other serial number there would
 * be too little left, and two disks with one name are taken for two ways to one disk; then it is a hash.
 */
function naaDesignator({ serial }: LogicalUnit): Buffer {
  const isHexadecimal = /^[\da-f-]+$/i.test(serial)
  const digits = serial.replaceAll('-', '')
  const vendorDigits =
    isHexadecimal && digits.length >= NAA_VENDOR_DIGITS
      ? digits
      : createHash('sha256').update(serial, 'latin1').digest('hex')
  const name = NAA_PREFIX + vendorDigits.slice(0, NAA_VENDOR_DIGITS)
  return designator(CodeSet.binary, DesignatorType.naa, Buffer.from(name, 'hex'))
}

const WRITE_SAME_NON_ZERO = 0x01
const UNMAP_GRANULARITY_ALIGNMENT_VALID = 0x8000_0000

/** Page B0h. Offsets here are those of the standard less four. */
function blockLimits({ blockBytes, provisioning }: DiskUnit): Buffer {
  const granularity = PHYSICAL_BLOCK_BYTES / blockBytes
  const page = Buffer.alloc(0x3c)
  page[0] = WRITE_SAME_NON_ZERO
  page[1] = Limit.compareAndWriteBlockCountMax
  page.writeUInt16BE(granularity, 2) // optimal transfer length granularity
  page.writeUInt32BE(Limit.transferBytesMax / blockBytes, 4)
  if (provisioning.canUnmap) {
    page.writeUInt32BE(Limit.unmapBytesMax / blockBytes, 16)
    page.writeUInt32BE(Limit.unmapRangeCountMax, 20)
    page.writeUInt32BE(granularity, 24) // optimal unmap granularity
    page.writeUInt32BE(UNMAP_GRANULARITY_ALIGNMENT_VALID, 28) // alignment 0
  }
  page.writeUInt32BE(Limit.writeSameBytesMax / blockBytes, 36) // maximum write same length, lower half
  return page
}

const NON_ROTATING = 1
const VERIFY_UNMAPPED_SUPPORTED = 0x01

function blockDeviceCharacteristics(): Buffer {
  const page = Buffer.alloc(0x3c)
  page.writeUInt16BE(NON_ROTATING, 0)
  page[4] = VERIFY_UNMAPPED_SUPPORTED // VBULS: a compare sees what a read would
  return page
}

const LBPU = 0x80
const LBPWS = 0x40
const LBPWS10 = 0x20
const LBPRZ = 0x04
const THIN = 2

function logicalBlockProvisioning({ provisioning }: DiskUnit): Buffer {
  const { canUnmap, unmapsToZeros } = provisioning
  const flags = (canUnmap ? LBPU : 0) | (unmapsToZeros ? LBPWS | LBPWS10 | LBPRZ : 0)
  return Buffer.from([0, flags, canUnmap ? THIN : 0, 0])
}
