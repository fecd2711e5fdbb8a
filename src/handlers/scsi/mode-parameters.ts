import type { Completion } from '../../ring/request.ts'
import type { ScsiRequest } from '../../ring/scsi-request.ts'
import type { Answer } from '../handler.ts'
import { writeUInt64BE } from './cdb.ts'
import type { Execute } from './command.ts'
import { Condition } from './conditions.ts'
import type { DiskUnit } from './disk-unit.ts'
import { ALL_SUBPAGES, type ModeSelectFault, PageControl } from './mode-pages.ts'
import { answeredWith } from './steps.ts'

/** Where the commands of 6 and of 10 bytes, and the headers of their data, have their fields (SPC-4, 6.9 to 6.12). */
interface ModeFormat {
  readonly headerBytes: 4 | 8
  /** First byte of the ALLOCATION LENGTH or the PARAMETER LIST LENGTH. */
  readonly lengthAt: number
  length(cdb: Buffer): number
}

const MODE_6: ModeFormat = { headerBytes: 4, lengthAt: 4, length: (cdb) => cdb[4]! }
const MODE_10: ModeFormat = { headerBytes: 8, lengthAt: 7, length: (cdb) => cdb.readUInt16BE(7) }

/** DEVICE-SPECIFIC PARAMETER of a disk: write protected; DPO and FUA are understood. */
const WRITE_PROTECTED = 0x80
const DPO_FUA = 0x10

const DISABLE_BLOCK_DESCRIPTORS = 0x08
const LONG_LBA_ACCEPTED = 0x10
const SHORT_DESCRIPTOR_BYTES = 8
const LONG_DESCRIPTOR_BYTES = 16

/** MODE SENSE (6) (SPC-4, 6.11). */
export const modeSense6: Execute = (unit, request) => modeSense(unit, request, MODE_6)
/** MODE SENSE (10) (SPC-4, 6.12). */
export const modeSense10: Execute = (unit, request) => modeSense(unit, request, MODE_10)
/** MODE SELECT (6) (SPC-4, 6.9). */
export const modeSelect6: Execute = (unit, request) => modeSelect(unit, request, MODE_6)
/** MODE SELECT (10) (SPC-4, 6.10). */
export const modeSelect10: Execute = (unit, request) => modeSelect(unit, request, MODE_10)

function modeSense(unit: DiskUnit, request: ScsiRequest, format: ModeFormat): Completion {
  const { cdb } = request
  const control = cdb[2]! >>> 6
  const subpage = cdb[3]!
  if (subpage !== 0 && subpage !== ALL_SUBPAGES) return unit.invalidField(request, 3)
  const pages = unit.modes.sense(cdb[2]! & 0x3f, control)
  if (pages === undefined) return unit.invalidField(request, 2, 5)
  if (control === PageControl.saved) {
    return unit.checkCondition(request, Condition.SAVING_PARAMETERS_NOT_SUPPORTED)
  }
  const descriptor = blockDescriptor(unit, cdb[1]!)
  const data = Buffer.concat([Buffer.alloc(format.headerBytes), descriptor, pages])
  const deviceSpecific = DPO_FUA | (unit.isWriteProtected ? WRITE_PROTECTED : 0)
  if (format === MODE_6) {
    data[0] = data.length - 1
    data[2] = deviceSpecific
    data[3] = descriptor.length
  } else {
    data.writeUInt16BE(data.length - 2, 0)
    data[3] = deviceSpecific
    data[4] = descriptor.length === LONG_DESCRIPTOR_BYTES ? 1 : 0 // LONGLBA
    data.writeUInt16BE(descriptor.length, 6)
  }
  return unit.parameterData(request, data, format.length(cdb))
}

/** The size of the disk, once more (SBC-3, 6.5.2). */
function blockDescriptor({ blockBytes, blockCount }: DiskUnit, flags: number): Buffer {
  if ((flags & DISABLE_BLOCK_DESCRIPTORS) !== 0) return Buffer.alloc(0)
  if ((flags & LONG_LBA_ACCEPTED) !== 0) {
    const descriptor = Buffer.alloc(LONG_DESCRIPTOR_BYTES)
    writeUInt64BE(descriptor, blockCount, 0)
    descriptor.writeUInt32BE(blockBytes, 12)
    return descriptor
  }
  const descriptor = Buffer.alloc(SHORT_DESCRIPTOR_BYTES)
  descriptor.writeUInt32BE(Math.min(blockCount, 0xffff_ffff), 0)
  descriptor.writeUIntBE(blockBytes, 5, 3)
  return descriptor
}

const PAGE_FORMAT = 0x10

/**
 * MODE SELECT. Nobody is told of the change with a unit attention: it is for all initiators but the one that made it,
 * and TCMU does not tell one from another.
 */
function modeSelect(unit: DiskUnit, request: ScsiRequest, format: ModeFormat): Answer {
  const { cdb } = request
  const listBytes = format.length(cdb)
  if ((cdb[1]! & PAGE_FORMAT) === 0) return unit.invalidField(request, 1, 4)
  if (listBytes === 0) return unit.good(request)
  if (request.dataOut.byteLength < listBytes) return unit.invalidField(request, format.lengthAt)
  const list = Buffer.alloc(listBytes)
  request.dataOut.copyTo(list)
  const wasCached = unit.modes.hasWriteCache
  const pagesAt = endOfDescriptors(unit, list, format)
  const fault =
    typeof pagesAt === 'number' ? movedBy(unit.modes.select(list.subarray(pagesAt)), pagesAt) : pagesAt
  if (fault !== undefined) {
    return 'truncated' in fault
      ? unit.checkCondition(request, Condition.PARAMETER_LIST_LENGTH_ERROR)
      : unit.invalidParameter(request, fault.byte, fault.bit)
  }
  if (!wasCached || unit.modes.hasWriteCache) return unit.good(request)
  // From now on an initiator takes every write that was answered for permanent, also those from before. And those that
  // are in flight: they were sent on when nobody had to flush behind them, so they have to end before this flush.
  const answer = unit.exclusive(request, 0, Number.MAX_SAFE_INTEGER, () => unit.flush(request))
  return answeredWith(answer, () => unit.good(request))
}

function movedBy(fault: ModeSelectFault | undefined, offsetBytes: number): ModeSelectFault | undefined {
  return fault === undefined || 'truncated' in fault ? fault : { ...fault, byte: fault.byte + offsetBytes }
}

/** Checks the header and the block descriptor, which may not ask for another size. Returns where the pages begin. */
function endOfDescriptors(unit: DiskUnit, list: Buffer, format: ModeFormat): number | ModeSelectFault {
  const { headerBytes } = format
  if (list.length < headerBytes) return { truncated: true }
  const isShortForm = format === MODE_6
  const mediumTypeAt = isShortForm ? 1 : 2
  if (list[mediumTypeAt] !== 0) return { byte: mediumTypeAt }
  const lengthAt = isShortForm ? 3 : 6
  const descriptorBytes = isShortForm ? list[3]! : list.readUInt16BE(6)
  if (descriptorBytes === 0) return headerBytes
  const isLong = !isShortForm && (list[4]! & 1) !== 0
  if (descriptorBytes !== (isLong ? LONG_DESCRIPTOR_BYTES : SHORT_DESCRIPTOR_BYTES)) return { byte: lengthAt }
  if (list.length < headerBytes + descriptorBytes) return { truncated: true }
  const present = blockDescriptor(unit, isLong ? LONG_LBA_ACCEPTED : 0)
  const wished = list.subarray(headerBytes, headerBytes + descriptorBytes)
  // A number of blocks of 0 leaves it as it is.
  const countBytes = isLong ? 8 : 4
  const keepsCount = wished.subarray(0, countBytes).every((byte) => byte === 0)
  if (!keepsCount && !wished.subarray(0, countBytes).equals(present.subarray(0, countBytes))) {
    return { byte: headerBytes }
  }
  const rest = countBytes
  if (!wished.subarray(rest).equals(present.subarray(rest))) return { byte: headerBytes + rest }
  return headerBytes + descriptorBytes
}
