import { type Sense, SenseKey } from '../../ring/sense.ts'

const { ABORTED_COMMAND, DATA_PROTECT, HARDWARE_ERROR, ILLEGAL_REQUEST, MEDIUM_ERROR, MISCOMPARE } = SenseKey

/** What a disk tells an initiator (SPC-4, annex D), named as there. */
export const Condition = {
  NO_ADDITIONAL_SENSE: { key: SenseKey.NO_SENSE, asc: 0x00, ascq: 0x00 },
  WRITE_ERROR: { key: MEDIUM_ERROR, asc: 0x0c, ascq: 0x00 },
  UNRECOVERED_READ_ERROR: { key: MEDIUM_ERROR, asc: 0x11, ascq: 0x00 },
  INTERNAL_TARGET_FAILURE: { key: HARDWARE_ERROR, asc: 0x44, ascq: 0x00 },
  PARAMETER_LIST_LENGTH_ERROR: { key: ILLEGAL_REQUEST, asc: 0x1a, ascq: 0x00 },
  INVALID_COMMAND_OPERATION_CODE: { key: ILLEGAL_REQUEST, asc: 0x20, ascq: 0x00 },
  LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE: { key: ILLEGAL_REQUEST, asc: 0x21, ascq: 0x00 },
  INVALID_FIELD_IN_CDB: { key: ILLEGAL_REQUEST, asc: 0x24, ascq: 0x00 },
  INVALID_FIELD_IN_PARAMETER_LIST: { key: ILLEGAL_REQUEST, asc: 0x26, ascq: 0x00 },
  SAVING_PARAMETERS_NOT_SUPPORTED: { key: ILLEGAL_REQUEST, asc: 0x39, ascq: 0x00 },
  WRITE_PROTECTED: { key: DATA_PROTECT, asc: 0x27, ascq: 0x00 },
  SPACE_ALLOCATION_FAILED_WRITE_PROTECT: { key: DATA_PROTECT, asc: 0x27, ascq: 0x07 },
  ABORTED: { key: ABORTED_COMMAND, asc: 0x00, ascq: 0x00 },
  MISCOMPARE_DURING_VERIFY_OPERATION: { key: MISCOMPARE, asc: 0x1d, ascq: 0x00 },
} as const satisfies Readonly<Record<string, Sense>>
