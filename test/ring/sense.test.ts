import test from 'ava'
import { encodeSense, SENSE_BYTES, type Sense, SenseKey } from '../../src/ring/sense.ts'

const { ILLEGAL_REQUEST, MEDIUM_ERROR, MISCOMPARE, NO_SENSE, UNIT_ATTENTION } = SenseKey

const isEncoded = test.macro({
  exec(t, _title: string, sense: Sense, expected: string) {
    const bytes = Buffer.alloc(SENSE_BYTES, 0xee)
    encodeSense(sense, bytes)
    const digits = expected.replaceAll(' ', '')
    t.is(bytes.toString('hex'), digits.padEnd(2 * SENSE_BYTES, '0'))
  },
  title: (_, title) => `sense: ${title}`,
})

const INVALID_FIELD = { key: ILLEGAL_REQUEST, asc: 0x24, ascq: 0x00 }
const READ_ERROR = { key: MEDIUM_ERROR, asc: 0x11, ascq: 0x00 }

// ---- Fixed format: 70, key at 2, INFORMATION at 3, 10 more bytes, ASC and ASCQ at 12, sense-key specific at 15 ------

test(
  isEncoded,
  'fixed format without more to tell',
  { key: NO_SENSE, asc: 0, ascq: 0 },
  '70 00 00 00000000 0a 00000000 00 00 00 000000',
)
test(
  isEncoded,
  'fixed format carries key, ASC and ASCQ',
  { key: UNIT_ATTENTION, asc: 0x2a, ascq: 0x09 },
  '70 00 06 00000000 0a 00000000 2a 09 00 000000',
)
test(
  isEncoded,
  'fixed format marks INFORMATION as valid, also 0',
  { ...READ_ERROR, information: 0 },
  'f0 00 03 00000000 0a 00000000 11 00 00 000000',
)
test(
  isEncoded,
  'fixed format has 32 bits of INFORMATION',
  { ...READ_ERROR, information: 0xffff_ffff },
  'f0 00 03 ffffffff 0a 00000000 11 00 00 000000',
)
test(
  isEncoded,
  'fixed format leaves out INFORMATION that does not fit',
  { ...READ_ERROR, information: 2 ** 32 },
  '70 00 03 00000000 0a 00000000 11 00 00 000000',
)
test(
  isEncoded,
  'fixed format points at a byte of the CDB',
  { ...INVALID_FIELD, field: { byte: 7 } },
  '70 00 05 00000000 0a 00000000 24 00 00 c00007',
)
test(
  isEncoded,
  'fixed format points at bit 0 of a byte of the CDB',
  { ...INVALID_FIELD, field: { byte: 1, bit: 0 } },
  '70 00 05 00000000 0a 00000000 24 00 00 c80001',
)
test(
  isEncoded,
  'fixed format points at a bit in a parameter list',
  { key: ILLEGAL_REQUEST, asc: 0x26, ascq: 0, field: { byte: 0x102, bit: 7, inData: true } },
  '70 00 05 00000000 0a 00000000 26 00 00 8f0102',
)

// ---- Descriptor format: 72, key, ASC, ASCQ, length at 7, then descriptors --------------------------------------------

test(
  isEncoded,
  'descriptor format without more to tell',
  { key: NO_SENSE, asc: 0, ascq: 0, descriptor: true },
  '72 00 00 00 000000 00',
)
test(
  isEncoded,
  'descriptor format has 64 bits of INFORMATION',
  { ...READ_ERROR, information: 2 ** 53 - 1, descriptor: true },
  '72 03 11 00 000000 0c 00 0a 80 00 001fffffffffffff',
)
test(
  isEncoded,
  'descriptor format tells of a difference at byte 0',
  { key: MISCOMPARE, asc: 0x1d, ascq: 0, information: 0, descriptor: true },
  '72 0e 1d 00 000000 0c 00 0a 80 00 0000000000000000',
)
test(
  isEncoded,
  'descriptor format points at a field',
  { ...INVALID_FIELD, field: { byte: 2, bit: 5 }, descriptor: true },
  '72 05 24 00 000000 08 02 06 0000 cd0002 00',
)
test(
  isEncoded,
  'descriptor format carries INFORMATION and a field, in this order',
  { ...INVALID_FIELD, information: 5, field: { byte: 2 }, descriptor: true },
  '72 05 24 00 000000 14 00 0a 80 00 0000000000000005 02 06 0000 c00002 00',
)
