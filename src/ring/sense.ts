import { integerIn } from '../options.ts'

/** SCSI status codes (SAM-5, 5.3.1). */
export const ScsiStatus = {
  GOOD: 0x00,
  CHECK_CONDITION: 0x02,
  CONDITION_MET: 0x04,
  BUSY: 0x08,
  RESERVATION_CONFLICT: 0x18,
  TASK_SET_FULL: 0x28,
  ACA_ACTIVE: 0x30,
  TASK_ABORTED: 0x40,
} as const

/** Sense keys (SPC-4, 4.5.6). */
export const SenseKey = {
  NO_SENSE: 0x0,
  RECOVERED_ERROR: 0x1,
  NOT_READY: 0x2,
  MEDIUM_ERROR: 0x3,
  HARDWARE_ERROR: 0x4,
  ILLEGAL_REQUEST: 0x5,
  UNIT_ATTENTION: 0x6,
  DATA_PROTECT: 0x7,
  ABORTED_COMMAND: 0xb,
  MISCOMPARE: 0xe,
} as const

/** Why a command ended with CHECK CONDITION (SPC-4, 4.5). */
export interface Sense {
  /** {@link SenseKey}, 0 to 15. */
  readonly key: number
  /** Additional sense code and its qualifier, 0 to 255 each. */
  readonly asc: number
  readonly ascq: number
  /**
   * INFORMATION: a block address, or the offset of the first byte that differs (MISCOMPARE). 0 to 2^53 - 1; what
   * does not fit 32 bits is told in descriptor format only.
   */
  readonly information?: number
  /**
   * Where the field in error begins: in the CDB or, if `inData`, in the parameter list. `byte`: 0 to 65535; `bit`: 0 to 7.
   */
  readonly field?: { readonly byte: number; readonly bit?: number; readonly inData?: boolean }
  /** True: descriptor format, as the mode page 0Ah (D_SENSE) may ask. Default false: fixed format. */
  readonly descriptor?: boolean
}

/** Sense bytes of one answer. The kernel copies all of them, whatever their use. */
export const SENSE_BYTES = 96

const FIXED_SENSE = 0x70
const DESCRIPTOR_SENSE = 0x72
const FIXED_BYTES = 18
const VALID = 0x80

/**
 * Writes sense data into `target`, the rest of it zeros. Throws a `TypeError` or `RangeError` when a number is none or
 * out of its range: cut off, it would tell of another condition.
 *
 * @param target {@link SENSE_BYTES} bytes
 */
export function encodeSense(sense: Sense, target: Uint8Array): void {
  checkSense(sense)
  target.fill(0)
  if (sense.descriptor === true) encodeDescriptorFormat(sense, target)
  else encodeFixedFormat(sense, target)
}

function checkSense({ key, asc, ascq, information = 0, field = { byte: 0 } }: Sense): void {
  integerIn('key', key, 0, 0xf)
  integerIn('asc', asc, 0, 0xff)
  integerIn('ascq', ascq, 0, 0xff)
  integerIn('information', information, 0, Number.MAX_SAFE_INTEGER)
  integerIn('field.byte', field.byte, 0, 0xffff)
  integerIn('field.bit', field.bit ?? 0, 0, 7)
}

/** Fixed format (SPC-4, 4.5.3). */
function encodeFixedFormat({ key, asc, ascq, information, field }: Sense, target: Uint8Array): void {
  target[0] = FIXED_SENSE
  target[2] = key
  if (information !== undefined && information <= 0xffffffff) {
    target[0] = FIXED_SENSE | VALID
    writeBigEndian(information, target, 3, 4)
  }
  target[7] = FIXED_BYTES - 8
  target[12] = asc
  target[13] = ascq
  if (field !== undefined) encodeFieldPointer(field, target, 15)
}

/** Descriptor format (SPC-4, 4.5.2) with the information (type 0) and sense-key specific (type 2) descriptors. */
function encodeDescriptorFormat({ key, asc, ascq, information, field }: Sense, target: Uint8Array): void {
  target[0] = DESCRIPTOR_SENSE
  target[1] = key
  target[2] = asc
  target[3] = ascq
  let end = 8
  if (information !== undefined) {
    target.set([0x00, 0x0a, VALID], end)
    writeBigEndian(information, target, end + 4, 8)
    end += 12
  }
  if (field !== undefined) {
    target.set([0x02, 0x06], end)
    encodeFieldPointer(field, target, end + 4)
    end += 8
  }
  target[7] = end - 8
}

/** Field pointer sense-key specific data (SPC-4, 4.5.2.4.2): SKSV, C/D, BPV with the bit pointer, the byte. */
function encodeFieldPointer(field: NonNullable<Sense['field']>, target: Uint8Array, at: number): void {
  const { byte, bit, inData = false } = field
  target[at] = 0x80 | (inData ? 0 : 0x40) | (bit === undefined ? 0 : 0x08 | bit)
  writeBigEndian(byte, target, at + 1, 2)
}

function writeBigEndian(value: number, target: Uint8Array, at: number, lengthBytes: number): void {
  let rest = value
  for (let index = at + lengthBytes - 1; index >= at; index--) {
    target[index] = rest % 256
    rest = Math.floor(rest / 256)
  }
}
