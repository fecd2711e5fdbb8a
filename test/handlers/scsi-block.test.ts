import test from 'ava'
import { type Observable, of, timer } from 'rxjs'
import { map } from 'rxjs/operators'
import { HushringError } from '../../src/errors.ts'
import type { BlockRequest, BlockVerb } from '../../src/handlers/block/block-request.ts'
import {
  type Answer,
  type BlockAnswer,
  type BlockDevice,
  blockDevice,
  compose,
  memoryDisk,
  type RequestOf,
  readonly,
} from '../../src/handlers/index.ts'
import { scsiBlock } from '../../src/handlers/scsi/scsi-block.ts'
import { isCompletion } from '../../src/ring/request.ts'
import { SenseKey } from '../../src/ring/sense.ts'
import { pattern, readFrom } from '../helpers/block-requests.ts'
import {
  type CommandData,
  cdb6,
  cdb10,
  cdb12,
  cdb16,
  compareAndWriteCdb,
  hex,
  Initiator,
  logicalUnit,
  OLD_BYTE,
  outcomeOf,
  scsiRequest,
  senseBytes,
  unmapCdb,
  unmapList,
} from '../helpers/scsi-commands.ts'

const BLOCK = 512
/** Blocks of the small disk. */
const COUNT = 128
const CAPACITY_BYTES = COUNT * BLOCK
const FUA = 0x08

const INVALID_FIELD = '5/24/00'
const OUT_OF_RANGE = '5/21/00'
const UNSUPPORTED = '5/20/00'
const LIST_LENGTH = '5/1A/00'
const BAD_PARAMETER = '5/26/00'
const PROTECTED = '7/27/00'
const MISCOMPARE = 'E/1D/00'

interface Recording {
  readonly disk: BlockDevice
  /** What reached the disk, as `verb offset+length`. */
  readonly seen: string[]
}

/** A disk that notes what reaches it, and keeps nothing unless `keeps`. */
function recordingDisk(
  options: {
    readonly verbs?: readonly BlockVerb[]
    readonly readOnly?: boolean
    readonly blockBytes?: 512 | 4096
    readonly capacityBytes?: number
    readonly answer?: (io: BlockRequest) => BlockAnswer
  } = {},
): Recording {
  const { verbs = ['read', 'write', 'flush', 'discard', 'writeZeroes'], answer = () => {} } = options
  const seen: string[] = []
  const note = (io: BlockRequest): BlockAnswer => {
    const { verb, offsetBytes, lengthBytes, mayUnmap } = io
    seen.push(`${verb} ${offsetBytes}+${lengthBytes}${mayUnmap ? ' unmap' : ''}`)
    return answer(io)
  }
  const { readOnly = false, blockBytes = 512, capacityBytes = CAPACITY_BYTES } = options
  const functions = Object.fromEntries(verbs.map((verb) => [verb, note]))
  return { disk: blockDevice({ capacityBytes, blockBytes, readOnly, read: note, ...functions }), seen }
}

/** A small disk full of bytes that differ from block to block. */
function filledDisk(lengthBytes = CAPACITY_BYTES): { disk: BlockDevice; contents: Buffer } {
  const contents = pattern(lengthBytes)
  const copy = (io: BlockRequest): Buffer =>
    contents.subarray(io.offsetBytes, io.offsetBytes + io.lengthBytes)
  const disk = blockDevice({
    capacityBytes: lengthBytes,
    read: (io) => io.data.copyFrom(copy(io)),
    write: (io) => io.data.copyTo(copy(io)),
    flush() {},
    discard: (io) => void copy(io).fill(0xdd),
    writeZeroes: (io) => void copy(io).fill(0),
  })
  return { disk, contents }
}

interface Expected {
  readonly status: string
  /** What reaches the disk. Default nothing. */
  readonly seen?: readonly string[]
  /** Byte, and bit, of the field that sense data points at. */
  readonly field?: readonly [byte: number, bit?: number]
}

const isAnswered = test.macro({
  async exec(
    t,
    _title: string,
    cdb: Buffer | string,
    expected: Expected | string,
    data?: CommandData,
    options?: Parameters<typeof recordingDisk>[0],
  ) {
    const {
      status,
      seen: seenExpected = [],
      field,
    }: Expected = typeof expected === 'string' ? { status: expected } : expected
    const { disk, seen } = recordingDisk(options)
    const outcome = await new Initiator(disk).send(cdb, data)
    t.is(outcome.status, status)
    t.deepEqual(seen, [...seenExpected])
    if (field !== undefined) {
      const [byte, bit] = field
      t.deepEqual(outcome.sense?.field, bit === undefined ? { byte } : { byte, bit })
    }
    if (status !== 'GOOD') t.is(outcome.completion.result, 'failed')
  },
  title: (_, title) => `scsi: ${title}`,
})

const dataOut = (count: number, blockBytes = BLOCK): CommandData => ({ dataOut: pattern(count * blockBytes) })
const dataIn = (count: number, blockBytes = BLOCK): CommandData => ({ dataInBytes: count * blockBytes })
const good = (...seen: string[]): Expected => ({ status: 'GOOD', seen })

// ---- READ and WRITE ----------------------------------------------------------------------------------------------

test(isAnswered, 'READ (6) reads', cdb6(0x08, 3, 2), good('read 1536+1024'), dataIn(2))
test(isAnswered, 'READ (10) reads', cdb10(0x28, 3, 2), good('read 1536+1024'), dataIn(2))
test(isAnswered, 'READ (12) reads', cdb12(0xa8, 3, 2), good('read 1536+1024'), dataIn(2))
test(isAnswered, 'READ (16) reads', cdb16(0x88, 3, 2), good('read 1536+1024'), dataIn(2))
test(isAnswered, 'WRITE (6) writes', cdb6(0x0a, 3, 2), good('write 1536+1024'), dataOut(2))
test(isAnswered, 'WRITE (10) writes', cdb10(0x2a, 3, 2), good('write 1536+1024'), dataOut(2))
test(isAnswered, 'WRITE (12) writes', cdb12(0xaa, 3, 2), good('write 1536+1024'), dataOut(2))
test(isAnswered, 'WRITE (16) writes', cdb16(0x8a, 3, 2), good('write 1536+1024'), dataOut(2))
test(
  isAnswered,
  'READ (10) counts in blocks of 4096',
  cdb10(0x28, 1, 1),
  good('read 4096+4096'),
  dataIn(1, 4096),
  {
    blockBytes: 4096,
  },
)

const BIG = 2 ** 21 * BLOCK
test(isAnswered, 'READ (6) of 0 blocks reads 256', cdb6(0x08, 0, 0), good('read 0+131072'), dataIn(256), {
  capacityBytes: BIG,
})
test(
  isAnswered,
  'WRITE (6) of 0 blocks writes 256',
  cdb6(0x0a, 0x1f_ff00, 0),
  good(`write ${0x1f_ff00 * BLOCK}+131072`),
  dataOut(256),
  { capacityBytes: BIG },
)
test(
  isAnswered,
  'the LUN bits of SCSI-2 are no part of the address of READ (6)',
  hex('08 e0 00 03 01 00'),
  good('read 1536+512'),
  dataIn(1),
)
test(
  isAnswered,
  'READ (10) reaches blocks beyond 2^31',
  cdb10(0x28, 0xffff_ffff, 1),
  good('read 2199023255040+512'),
  dataIn(1),
  {
    capacityBytes: 2 ** 41,
  },
)
test(
  isAnswered,
  'READ (16) reaches blocks beyond 2^32',
  cdb16(0x88, 2 ** 40, 1),
  good(`read ${2 ** 49}+512`),
  dataIn(1),
  {
    capacityBytes: 2 ** 50,
  },
)

for (const [name, opcode, cdb] of [
  ['(10)', 0x28, cdb10],
  ['(12)', 0xa8, cdb12],
  ['(16)', 0x88, cdb16],
] as const) {
  const past = { status: OUT_OF_RANGE, field: [2] } as const
  test(isAnswered, `READ ${name} of no blocks reads nothing`, cdb(opcode, 0, 0), 'GOOD')
  test(isAnswered, `READ ${name} of no blocks at the end is no error`, cdb(opcode, COUNT, 0), 'GOOD')
  test(isAnswered, `READ ${name} of no blocks past the end is one`, cdb(opcode, COUNT + 1, 0), past)
  test(
    isAnswered,
    `READ ${name} of the last block is served`,
    cdb(opcode, 127, 1),
    good('read 65024+512'),
    dataIn(1),
  )
  test(isAnswered, `READ ${name} of one block too far is refused`, cdb(opcode, COUNT, 1), past, dataIn(1))
  test(isAnswered, `READ ${name} across the end is refused`, cdb(opcode, 127, 2), past, dataIn(2))
  test(isAnswered, `WRITE ${name} of no blocks writes nothing`, cdb(opcode + 2, 0, 0), 'GOOD')
  test(isAnswered, `WRITE ${name} of no blocks past the end is an error`, cdb(opcode + 2, COUNT + 1, 0), past)
  test(isAnswered, `WRITE ${name} across the end is refused`, cdb(opcode + 2, 127, 2), past, dataOut(2))
}
test(
  isAnswered,
  'READ (6) across the end is refused',
  cdb6(0x08, 127, 2),
  { status: OUT_OF_RANGE, field: [1] },
  dataIn(2),
)

// Row 55: LBA + blocks overflow.
for (const lba of [
  2n ** 32n,
  2n ** 44n,
  2n ** 53n + 1n,
  2n ** 55n,
  2n ** 63n,
  2n ** 64n - 1n,
  2n ** 64n - 8n,
]) {
  test(isAnswered, `READ (16) at ${lba} does not wrap around`, cdb16(0x88, lba, 1), OUT_OF_RANGE, dataIn(1))
  test(
    isAnswered,
    `READ (16) of 16 blocks at ${lba} does not wrap around`,
    cdb16(0x88, lba, 16),
    OUT_OF_RANGE,
    dataIn(16),
  )
  test(isAnswered, `WRITE (16) at ${lba} does not wrap around`, cdb16(0x8a, lba, 1), OUT_OF_RANGE, dataOut(1))
  test(isAnswered, `VERIFY (16) at ${lba} does not wrap around`, cdb16(0x8f, lba, 1), OUT_OF_RANGE)
  test(
    isAnswered,
    `COMPARE AND WRITE at ${lba} does not wrap around`,
    compareAndWriteCdb(lba, 1),
    OUT_OF_RANGE,
    dataOut(2),
  )
  test(
    isAnswered,
    `WRITE SAME (16) at ${lba} does not wrap around`,
    cdb16(0x93, lba, 1),
    OUT_OF_RANGE,
    dataOut(1),
  )
  test(isAnswered, `PRE-FETCH (16) at ${lba} does not wrap around`, cdb16(0x90, lba, 1), OUT_OF_RANGE)
  test(isAnswered, `SYNCHRONIZE CACHE (16) at ${lba} does not wrap around`, cdb16(0x91, lba, 1), OUT_OF_RANGE)
  test(isAnswered, `UNMAP at ${lba} does not wrap around`, unmapCdb(24), OUT_OF_RANGE, {
    dataOut: unmapList([lba, 1]),
  })
}
test(
  isAnswered,
  'READ (16) of 2^32 - 1 blocks does not wrap around',
  cdb16(0x88, 0, 0xffff_ffff),
  OUT_OF_RANGE,
  dataIn(1),
)

// Row 56: the transfer length differs from the data.
test(
  isAnswered,
  'READ with less room than it reads is refused',
  cdb10(0x28, 0, 2),
  { status: INVALID_FIELD, field: [7] },
  { dataInBytes: 1023 },
)
test(isAnswered, 'READ without room is refused', cdb16(0x88, 0, 1), { status: INVALID_FIELD, field: [10] })
test(
  isAnswered,
  'WRITE with less data than it writes is refused',
  cdb10(0x2a, 0, 2),
  { status: INVALID_FIELD, field: [7] },
  { dataOut: pattern(1023) },
)
test(isAnswered, 'WRITE without data is refused', cdb12(0xaa, 0, 1), { status: INVALID_FIELD, field: [6] })
test(
  isAnswered,
  'WRITE with more data writes what the CDB says',
  cdb10(0x2a, 1, 1),
  good('write 512+512'),
  dataOut(3),
)

test('scsi: READ with more room fills what the CDB says, and says how much', async (t) => {
  const { disk, contents } = filledDisk()
  for (const pieceBytes of [100, 512, 1 << 20]) {
    const request = scsiRequest(cdb10(0x28, 5, 2), { dataInBytes: 2000, pieceBytes })
    const { status, completion } = outcomeOf(request, await new Initiator(disk).answer(request))
    t.is(status, 'GOOD')
    t.like(completion, { bytesWritten: 1024 })
    const memory = request.dataIn.toBuffer()
    t.deepEqual(memory.subarray(0, 1024), contents.subarray(2560, 3584))
    t.true(memory.subarray(1024).every((byte) => byte === OLD_BYTE))
  }
})

test('scsi: READ of no blocks says that nothing was filled', async (t) => {
  const { status, completion } = await new Initiator(filledDisk().disk).send(cdb10(0x28, 0, 0), dataIn(1))
  t.is(status, 'GOOD')
  t.like(completion, { bytesWritten: 0 })
})

test('scsi: WRITE and READ move the bytes in their order, whatever their pieces', async (t) => {
  const initiator = new Initiator(memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  const bytes = pattern(8 * BLOCK, 7)
  t.is((await initiator.send(cdb10(0x2a, 9, 8), { dataOut: bytes, pieceBytes: 700 })).status, 'GOOD')
  const { dataIn } = await initiator.send(cdb16(0x88, 9, 8), { dataInBytes: bytes.length, pieceBytes: 300 })
  t.deepEqual(dataIn, bytes)
})

test('scsi: a bidirectional WRITE takes its Data-Out and fills no Data-In', async (t) => {
  const { disk, contents } = filledDisk()
  const bytes = pattern(BLOCK, 9)
  const { status, completion } = await new Initiator(disk).send(cdb10(0x2a, 2, 1), {
    dataOut: bytes,
    dataInBytes: 64,
  })
  t.is(status, 'GOOD')
  t.like(completion, { bytesWritten: 0 })
  t.deepEqual(contents.subarray(1024, 1536), bytes)
})

test('scsi: READ and WRITE to a synchronous store are answered at once with one shared answer', (t) => {
  const { handler } = new Initiator(memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  const written = handler(scsiRequest(cdb10(0x2a, 0, 1), dataOut(1)))
  t.true(isCompletion(written))
  t.is(handler(scsiRequest(cdb10(0x28, 0, 1), dataIn(1))), written)
})

test('scsi: the request to a synchronous store is used again, one to an asynchronous store is not', async (t) => {
  const seen = new Set<BlockRequest>()
  const answers: Answer[] = []
  const disk = (later: boolean): BlockDevice =>
    blockDevice({
      capacityBytes: CAPACITY_BYTES,
      read: (io) => {
        seen.add(io)
        return later ? Promise.resolve() : undefined
      },
    })
  const ask = (device: BlockDevice, times: number): void => {
    const { handler } = new Initiator(device)
    for (let time = 0; time < times; time++) answers.push(handler(scsiRequest(cdb10(0x28, 0, 1), dataIn(1))))
  }
  ask(disk(false), 5)
  t.is(seen.size, 1)
  ask(disk(true), 5)
  t.is(seen.size, 6)
  await Promise.all(answers)
})

// ---- Limits ------------------------------------------------------------------------------------------------------

const HUGE = { capacityBytes: 2 ** 40 }
const TRANSFER_MAX = 65536
test(
  isAnswered,
  'READ of more than the limit is refused',
  cdb12(0xa8, 0, TRANSFER_MAX + 1),
  { status: INVALID_FIELD, field: [6] },
  {},
  HUGE,
)
test(
  isAnswered,
  'WRITE of more than the limit is refused',
  cdb16(0x8a, 0, TRANSFER_MAX + 1),
  { status: INVALID_FIELD, field: [10] },
  {},
  HUGE,
)
test(
  isAnswered,
  'VERIFY of more than the limit is refused',
  cdb16(0x8f, 0, TRANSFER_MAX + 1),
  INVALID_FIELD,
  {},
  HUGE,
)
test(
  isAnswered,
  'WRITE AND VERIFY of more than the limit is refused',
  cdb12(0xae, 0, TRANSFER_MAX + 1),
  INVALID_FIELD,
  {},
  HUGE,
)
test(
  isAnswered,
  'WRITE SAME of more than the limit is refused',
  cdb16(0x93, 0, 131073),
  INVALID_FIELD,
  dataOut(1),
  HUGE,
)
test(
  isAnswered,
  'a READ as long as the limit is served',
  cdb12(0xa8, 0, TRANSFER_MAX),
  good(`read 0+${2 ** 25}`),
  dataIn(TRANSFER_MAX),
  HUGE,
)

// ---- The order of checks -----------------------------------------------------------------------------------------

const READ_ONLY = { readOnly: true }
test(
  isAnswered,
  'an unknown operation code comes before everything',
  hex('ff ff ffffffff ff ffff ff'),
  UNSUPPORTED,
)
test(
  isAnswered,
  'reserved bits come before the address',
  cdb10(0x28, COUNT + 9, 1, 0x20),
  { status: INVALID_FIELD, field: [1, 5] },
  dataIn(1),
)
test(
  isAnswered,
  'the address comes before the length',
  cdb12(0xa8, COUNT + 9, TRANSFER_MAX + 1),
  OUT_OF_RANGE,
)
test(
  isAnswered,
  'the length comes before write protection',
  cdb12(0xaa, 0, TRANSFER_MAX + 1),
  INVALID_FIELD,
  {},
  { ...HUGE, ...READ_ONLY },
)
test(
  isAnswered,
  'the data comes before write protection',
  cdb10(0x2a, 0, 2),
  INVALID_FIELD,
  dataOut(1),
  READ_ONLY,
)
test(
  isAnswered,
  'write protection comes before the disk',
  cdb10(0x2a, 0, 1),
  PROTECTED,
  dataOut(1),
  READ_ONLY,
)
test(
  isAnswered,
  'the address comes before write protection',
  cdb10(0x2a, COUNT, 1),
  OUT_OF_RANGE,
  dataOut(1),
  READ_ONLY,
)

// ---- Write protection --------------------------------------------------------------------------------------------

for (const [name, cdb, data] of [
  ['WRITE (6)', cdb6(0x0a, 0, 1), dataOut(1)],
  ['WRITE (12)', cdb12(0xaa, 0, 1), dataOut(1)],
  ['WRITE (16)', cdb16(0x8a, 0, 1), dataOut(1)],
  ['WRITE AND VERIFY (10)', cdb10(0x2e, 0, 1), dataOut(1)],
  ['WRITE SAME (10)', cdb10(0x41, 0, 1), dataOut(1)],
  ['WRITE SAME (16)', cdb16(0x93, 0, 1, 1), {}],
  ['COMPARE AND WRITE', compareAndWriteCdb(0, 1), dataOut(2)],
] as const) {
  test(isAnswered, `${name} to a read-only disk is refused`, cdb, PROTECTED, data, READ_ONLY)
}
test(
  isAnswered,
  'READ from a read-only disk is served',
  cdb10(0x28, 0, 1),
  good('read 0+512'),
  dataIn(1),
  READ_ONLY,
)
test(isAnswered, 'VERIFY of a read-only disk is served', cdb10(0x2f, 0, 1), good('read 0+512'), {}, READ_ONLY)

// ---- Operation codes, lengths and reserved bits ------------------------------------------------------------------

for (const opcode of [
  '04',
  '16',
  '17',
  '37',
  '48',
  '4d',
  '5e',
  '5f',
  '60',
  '7f',
  '83',
  '84',
  '9c',
  'b7',
  'c0',
  'ff',
]) {
  test(
    isAnswered,
    `operation code ${opcode} is not supported`,
    `${opcode} 00 00000000 00 0000 00 000000000000`,
    UNSUPPORTED,
  )
}
test(isAnswered, 'an unknown service action is an invalid field', `9e 13 ${'00'.repeat(14)}`, {
  status: INVALID_FIELD,
  field: [1, 4],
})
test(
  isAnswered,
  'REPORT TARGET PORT GROUPS is an unknown service action',
  `a3 0a ${'00'.repeat(10)}`,
  INVALID_FIELD,
)
test(isAnswered, 'a CDB that is too short is refused', '28 00 00000000 00 00', INVALID_FIELD, dataIn(1))
test(isAnswered, 'a CDB of one byte is refused', '28', INVALID_FIELD)
test(isAnswered, 'a CDB of no bytes is refused', '', UNSUPPORTED)
test(
  isAnswered,
  'bytes after a CDB mean nothing',
  `28 00 00000000 00 0001 00 ffffffffffff`,
  good('read 0+512'),
  dataIn(1),
)

for (const [name, cdb] of [
  ['RDPROTECT of READ (10)', cdb10(0x28, 0, 1, 0x20)],
  ['RDPROTECT of READ (12)', cdb12(0xa8, 0, 1, 0x80)],
  ['RDPROTECT of READ (16)', cdb16(0x88, 0, 1, 0xe0)],
  ['WRPROTECT of WRITE (10)', cdb10(0x2a, 0, 1, 0x20)],
  ['WRPROTECT of WRITE (16)', cdb16(0x8a, 0, 1, 0x40)],
  ['VRPROTECT of VERIFY (10)', cdb10(0x2f, 0, 1, 0x20)],
  ['VRPROTECT of VERIFY (16)', cdb16(0x8f, 0, 1, 0x60)],
  ['WRPROTECT of WRITE AND VERIFY (12)', cdb12(0xae, 0, 1, 0x20)],
  ['WRPROTECT of COMPARE AND WRITE', compareAndWriteCdb(0, 1, 0x20)],
  ['WRPROTECT of WRITE SAME (10)', cdb10(0x41, 0, 1, 0x20)],
  ['WRPROTECT of WRITE SAME (16)', cdb16(0x93, 0, 1, 0x20)],
  ['ANCHOR of WRITE SAME (16)', cdb16(0x93, 0, 1, 0x10)],
  ['ANCHOR and UNMAP of WRITE SAME (16)', cdb16(0x93, 0, 1, 0x18)],
  ['ANCHOR of UNMAP', unmapCdb(24, 0x01)],
  ['LBDATA of WRITE SAME (10)', cdb10(0x41, 0, 1, 0x02)],
  ['NDOB of WRITE SAME (10)', cdb10(0x41, 0, 1, 0x01)],
  ['CMDDT of INQUIRY', '12 02 00 0024 00'],
  ['PMI of READ CAPACITY (10)', '25 00 00000000 0000 01 00'],
  ['an address in READ CAPACITY (10)', '25 00 00000001 0000 00 00'],
  ['PMI of READ CAPACITY (16)', '9e 10 0000000000000000 00000020 01 00'],
  ['SP of MODE SELECT', '15 11 0000 00 00'],
  ['a power condition of START STOP UNIT', '1b 00 0000 10 00'],
  ['a self-test code of SEND DIAGNOSTIC', '1d 20 00 0000 00'],
  ['a parameter list of SEND DIAGNOSTIC', '1d 10 00 0004 00'],
  ['NACA', '00 00 0000 00 04'],
  ['a reserved byte', '00 00 0100 00 00'],
] as const) {
  test(isAnswered, `${name} is an invalid field`, cdb, INVALID_FIELD, dataOut(2))
}
test(isAnswered, 'sense data points at the highest wrong bit', '00 00 0052 00 00', {
  status: INVALID_FIELD,
  field: [3, 6],
})
test(
  isAnswered,
  'DPO, FUA_NV and a group number are accepted',
  hex('28 12 00000000 1f 0001 00'),
  good('read 0+512'),
  dataIn(1),
)
test(isAnswered, 'the LUN of SCSI-2 is accepted', '00 e0 0000 00 00', 'GOOD')
test(isAnswered, 'vendor bits of CONTROL are accepted', '00 00 0000 00 c3', 'GOOD')

// ---- FUA and the write cache -------------------------------------------------------------------------------------

const WCE_OFF: CommandData = { dataOut: hex(`00000000 0812 00${'00'.repeat(17)}`) }
const MODE_SELECT_CACHE = hex('15 10 0000 18 00')

test(
  isAnswered,
  'FUA flushes after the write',
  cdb10(0x2a, 0, 1, FUA),
  good('write 0+512', 'flush 0+0'),
  dataOut(1),
)
test(
  isAnswered,
  'FUA of a 6-byte write is a bit of the address',
  hex('0a 08 0000 01 00'),
  OUT_OF_RANGE,
  dataOut(1),
)
test(isAnswered, 'FUA of a read asks nothing else', cdb16(0x88, 0, 1, FUA), good('read 0+512'), dataIn(1))
test(
  isAnswered,
  'FUA without a cache asks nothing else',
  cdb10(0x2a, 0, 1, FUA),
  good('write 0+512'),
  dataOut(1),
  {
    verbs: ['read', 'write'],
  },
)

test('scsi: without write cache every write is flushed before it is answered', async (t) => {
  const { disk, seen } = recordingDisk()
  const initiator = new Initiator(disk)
  t.is((await initiator.send(MODE_SELECT_CACHE, WCE_OFF)).status, 'GOOD')
  t.deepEqual(seen.splice(0), ['flush 0+0'], 'what was cached before is flushed first')
  for (const [cdb, data, expected] of [
    [cdb6(0x0a, 0, 1), dataOut(1), ['write 0+512', 'flush 0+0']],
    [cdb10(0x2a, 0, 1), dataOut(1), ['write 0+512', 'flush 0+0']],
    [cdb16(0x93, 0, 2, 1), {}, ['writeZeroes 0+1024', 'flush 0+0']],
    [unmapCdb(24), { dataOut: unmapList([0, 2]) }, ['writeZeroes 0+1024 unmap', 'flush 0+0']],
    [cdb10(0x28, 0, 1), dataIn(1), ['read 0+512']],
  ] as const) {
    t.is((await initiator.send(cdb, data)).status, 'GOOD')
    t.deepEqual(seen.splice(0), [...expected])
  }
  // The control: the same list with WCE.
  const on = Buffer.from(WCE_OFF.dataOut!)
  on[6] = 0x04
  t.is((await initiator.send(MODE_SELECT_CACHE, { dataOut: on })).status, 'GOOD')
  await initiator.send(cdb10(0x2a, 0, 1), dataOut(1))
  t.deepEqual(seen, ['write 0+512'])
})

test('scsi: a write whose flush fails has failed', async (t) => {
  const { disk } = recordingDisk({
    answer: (io) => (io.verb === 'flush' ? io.fail(new Error('power lost')) : undefined),
  })
  const { status } = await new Initiator(disk).send(cdb10(0x2a, 0, 1, FUA), dataOut(1))
  t.is(status, '3/0C/00')
})

// ---- SYNCHRONIZE CACHE, PRE-FETCH, START STOP UNIT and other commands with little to do ---------------------------

test(isAnswered, 'SYNCHRONIZE CACHE (10) flushes', cdb10(0x35, 0, 8), good('flush 0+0'))
test(
  isAnswered,
  'SYNCHRONIZE CACHE (10) of 0 blocks flushes to the end',
  cdb10(0x35, 5, 0),
  good('flush 0+0'),
)
test(isAnswered, 'SYNCHRONIZE CACHE (16) flushes', cdb16(0x91, 0, 0), good('flush 0+0'))
test(isAnswered, 'SYNCHRONIZE CACHE with IMMED flushes', cdb10(0x35, 0, 0, 0x02), good('flush 0+0'))
test(isAnswered, 'SYNCHRONIZE CACHE past the end is refused', cdb10(0x35, COUNT + 1, 0), OUT_OF_RANGE)
test(
  isAnswered,
  'SYNCHRONIZE CACHE without a cache is done',
  cdb10(0x35, 0, 0),
  'GOOD',
  {},
  { verbs: ['read', 'write'] },
)
test(isAnswered, 'PRE-FETCH (10) reads nothing', cdb10(0x34, 0, 8), 'GOOD')
test(isAnswered, 'PRE-FETCH (10) of 0 blocks is no error', cdb10(0x34, 0, 0), 'GOOD')
test(isAnswered, 'PRE-FETCH (10) past the end is refused', cdb10(0x34, 127, 2), OUT_OF_RANGE)
test(isAnswered, 'PRE-FETCH (16) reads nothing', cdb16(0x90, 0, 8, 0x02), 'GOOD')
test(isAnswered, 'PRE-FETCH (16) past the end is refused', cdb16(0x90, COUNT + 1, 0), OUT_OF_RANGE)
test(isAnswered, 'START STOP UNIT starts', '1b 00 0000 01 00', 'GOOD')
test(isAnswered, 'START STOP UNIT flushes when it stops', '1b 01 0000 00 00', good('flush 0+0'))
test(isAnswered, 'START STOP UNIT with NO_FLUSH does not', '1b 00 0000 04 00', 'GOOD')
test(isAnswered, 'START STOP UNIT ejects nothing', '1b 00 0000 02 00', 'GOOD')
test(isAnswered, 'PREVENT ALLOW MEDIUM REMOVAL is accepted', '1e 00 0000 01 00', 'GOOD')
test(isAnswered, 'SEND DIAGNOSTIC passes its self-test', '1d 04 00 0000 00', 'GOOD')
test(isAnswered, 'TEST UNIT READY is ready', '00 00 0000 00 00', 'GOOD')

test('scsi: a command without Data-In leaves none of the old bytes to an initiator that made room for some', async (t) => {
  const initiator = new Initiator(memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  for (const cdb of [
    hex('00 00 0000 00 00'),
    hex('1b 00 0000 01 00'),
    cdb10(0x35, 0, 0),
    cdb10(0x34, 0, 0),
    cdb10(0x2f, 0, 1),
  ]) {
    t.like((await initiator.send(cdb, { dataInBytes: 64 })).completion, { result: 'ok', bytesWritten: 0 })
  }
})

// ---- VERIFY and WRITE AND VERIFY ---------------------------------------------------------------------------------

const EACH = 0x02
const ONE = 0x06
for (const [name, opcode, cdb] of [
  ['(10)', 0x2f, cdb10],
  ['(12)', 0xaf, cdb12],
  ['(16)', 0x8f, cdb16],
] as const) {
  const send = (flags: number, data?: CommandData): ReturnType<Initiator['send']> =>
    new Initiator(filledDisk().disk).send(cdb(opcode, 3, 4, flags), data)
  const contents = pattern(CAPACITY_BYTES).subarray(3 * BLOCK, 7 * BLOCK)

  test(isAnswered, `VERIFY ${name} reads`, cdb(opcode, 3, 4), good('read 1536+2048'))
  test(isAnswered, `VERIFY ${name} with the reserved BYTCHK is refused`, cdb(opcode, 0, 1, 0x04), {
    status: INVALID_FIELD,
    field: [1, 2],
  })
  test(isAnswered, `VERIFY ${name} of no blocks is no error`, cdb(opcode, 0, 0, EACH), 'GOOD')
  test(isAnswered, `VERIFY ${name} past the end is refused`, cdb(opcode, 127, 2), OUT_OF_RANGE)
  test(
    isAnswered,
    `VERIFY ${name} with too little to compare is refused`,
    cdb(opcode, 0, 2, EACH),
    INVALID_FIELD,
    dataOut(1),
  )
  test(
    isAnswered,
    `VERIFY ${name} with less than one block to compare is refused`,
    cdb(opcode, 0, 2, ONE),
    INVALID_FIELD,
    { dataOut: pattern(511) },
  )

  test(`scsi: VERIFY ${name} compares each block`, async (t) => {
    t.is((await send(EACH, { dataOut: contents, pieceBytes: 100 })).status, 'GOOD')
    const wrong = Buffer.from(contents)
    wrong[1500]! ^= 1
    const { status, sense } = await send(EACH, { dataOut: wrong })
    t.is(status, MISCOMPARE)
    t.is(sense?.information, 1500)
  })

  test(`scsi: VERIFY ${name} compares all blocks with one`, async (t) => {
    const initiator = new Initiator(memoryDisk({ capacityBytes: CAPACITY_BYTES }))
    const block = pattern(BLOCK, 3)
    const verify = (): ReturnType<Initiator['send']> =>
      initiator.send(cdb(opcode, 3, 4, ONE), { dataOut: block })
    await initiator.send(cdb16(0x93, 3, 4), { dataOut: block })
    t.is((await verify()).status, 'GOOD')
    block[7]! ^= 1
    await initiator.send(cdb10(0x2a, 5, 1), { dataOut: block })
    block[7]! ^= 1
    const { status, sense } = await verify()
    t.is(status, MISCOMPARE)
    t.is(sense?.information, 7)
  })

  const writeOpcode = opcode === 0x2f ? 0x2e : opcode === 0xaf ? 0xae : 0x8e
  for (const flags of [0, EACH, ONE]) {
    test(
      isAnswered,
      `WRITE AND VERIFY ${name} with BYTCHK ${flags >> 1} writes, flushes and reads back`,
      cdb(writeOpcode, 3, 2, flags),
      good('write 1536+1024', 'flush 0+0', 'read 1536+1024'),
      { dataOut: Buffer.alloc(1024) },
      { answer: (io) => (io.verb === 'read' ? io.data.fill(0) : undefined) },
    )
  }
  test(
    isAnswered,
    `WRITE AND VERIFY ${name} with the reserved BYTCHK is refused`,
    cdb(writeOpcode, 0, 1, 0x04),
    INVALID_FIELD,
    dataOut(1),
  )
  test(isAnswered, `WRITE AND VERIFY ${name} of no blocks is no error`, cdb(writeOpcode, 0, 0), 'GOOD')
  test(
    isAnswered,
    `WRITE AND VERIFY ${name} past the end is refused`,
    cdb(writeOpcode, 127, 2),
    OUT_OF_RANGE,
    dataOut(2),
  )
  test(
    isAnswered,
    `WRITE AND VERIFY ${name} tells of a disk that keeps something else`,
    cdb(writeOpcode, 0, 1, EACH),
    { status: MISCOMPARE, seen: ['write 0+512', 'flush 0+0', 'read 0+512'] },
    dataOut(1),
    { answer: (io) => (io.verb === 'read' ? io.data.fill(0) : undefined) },
  )
}

test('scsi: VERIFY of much reads one piece after the other and finds the byte that differs', async (t) => {
  const lengthBytes = 5 * 2 ** 18 + BLOCK
  const { disk, contents } = filledDisk(2 ** 21)
  const wrong = Buffer.from(contents.subarray(0, lengthBytes))
  wrong[lengthBytes - 3]! ^= 0x80
  const send = (dataOut: Buffer): ReturnType<Initiator['send']> =>
    new Initiator(disk).send(cdb16(0x8f, 0, lengthBytes / BLOCK, EACH), { dataOut })
  t.is((await send(contents.subarray(0, lengthBytes))).status, 'GOOD')
  t.is((await send(wrong)).sense?.information, lengthBytes - 3)
})

// ---- COMPARE AND WRITE -------------------------------------------------------------------------------------------

test(isAnswered, 'COMPARE AND WRITE of no blocks is no error', compareAndWriteCdb(0, 0), 'GOOD')
test(
  isAnswered,
  'COMPARE AND WRITE past the end is refused',
  compareAndWriteCdb(127, 2),
  OUT_OF_RANGE,
  dataOut(4),
)
test(
  isAnswered,
  'COMPARE AND WRITE with one half of its data is refused',
  compareAndWriteCdb(0, 1),
  { status: INVALID_FIELD, field: [13] },
  dataOut(1),
)
test(
  isAnswered,
  'COMPARE AND WRITE with a reserved byte is refused',
  hex('89 00 0000000000000000 000100 01 00 00'),
  INVALID_FIELD,
  dataOut(2),
)

test('scsi: COMPARE AND WRITE writes when the blocks are as expected', async (t) => {
  const { disk, contents } = filledDisk()
  const replacement = pattern(2 * BLOCK, 9)
  const data = Buffer.concat([contents.subarray(1024, 2048), replacement])
  const before = Buffer.from(contents)
  t.is(
    (await new Initiator(disk).send(compareAndWriteCdb(2, 2), { dataOut: data, pieceBytes: 333 })).status,
    'GOOD',
  )
  replacement.copy(before, 1024)
  t.deepEqual(contents, before)
})

test('scsi: COMPARE AND WRITE that finds something else changes nothing and tells where', async (t) => {
  const { disk, contents } = filledDisk()
  const before = Buffer.from(contents)
  const data = Buffer.concat([contents.subarray(1024, 2048), pattern(2 * BLOCK, 9)])
  data[700]! ^= 1
  const { status, sense } = await new Initiator(disk).send(compareAndWriteCdb(2, 2), { dataOut: data })
  t.is(status, MISCOMPARE)
  t.is(sense?.information, 700)
  t.deepEqual(contents, before)
})

test('scsi: COMPARE AND WRITE with FUA flushes', async (t) => {
  const { disk, seen } = recordingDisk({ answer: (io) => (io.verb === 'read' ? io.data.fill(0) : undefined) })
  t.is(
    (await new Initiator(disk).send(compareAndWriteCdb(0, 1, FUA), { dataOut: Buffer.alloc(1024) })).status,
    'GOOD',
  )
  t.deepEqual(seen, ['read 0+512', 'write 0+512', 'flush 0+0'])
})

// ---- UNMAP -------------------------------------------------------------------------------------------------------

const ONLY_DISCARD = { verbs: ['read', 'write', 'flush', 'discard'] } as const
test(isAnswered, 'UNMAP writes zeros if the disk can', unmapCdb(24), good('writeZeroes 1024+2048 unmap'), {
  dataOut: unmapList([2, 4]),
})
test(
  isAnswered,
  'UNMAP discards if the disk can do no more',
  unmapCdb(24),
  good('discard 1024+2048'),
  { dataOut: unmapList([2, 4]) },
  ONLY_DISCARD,
)
test(
  isAnswered,
  'UNMAP does all its ranges, in their order',
  unmapCdb(56),
  good('writeZeroes 4096+512 unmap', 'writeZeroes 0+1024 unmap'),
  { dataOut: unmapList([8, 1], [3, 0], [0, 2]), pieceBytes: 5 },
)
test(isAnswered, 'UNMAP without a list is no error', unmapCdb(0), 'GOOD')
test(isAnswered, 'UNMAP without ranges is no error', unmapCdb(8), 'GOOD', { dataOut: unmapList() })
test(isAnswered, 'UNMAP of no blocks at the end is no error', unmapCdb(24), 'GOOD', {
  dataOut: unmapList([COUNT, 0]),
})
test(isAnswered, 'UNMAP of no blocks past the end is one', unmapCdb(24), OUT_OF_RANGE, {
  dataOut: unmapList([COUNT + 1, 0]),
})
test(isAnswered, 'UNMAP with less than a header is refused', unmapCdb(7), LIST_LENGTH, {
  dataOut: unmapList([0, 1]),
})
test(
  isAnswered,
  'UNMAP with less data than its list is refused',
  unmapCdb(40),
  { status: INVALID_FIELD, field: [7] },
  { dataOut: unmapList([0, 1]) },
)
test(isAnswered, 'UNMAP checks all ranges before it does one', unmapCdb(40), OUT_OF_RANGE, {
  dataOut: unmapList([0, 1], [127, 2]),
})
test(
  isAnswered,
  'UNMAP ignores the rest of a list that is longer than its ranges',
  unmapCdb(40),
  good('writeZeroes 0+512 unmap'),
  { dataOut: Buffer.concat([unmapList([0, 1]), unmapList([5, 1]).subarray(8)]) },
)
test(
  isAnswered,
  'UNMAP ignores a range that the list cuts off',
  unmapCdb(30),
  good('writeZeroes 0+512 unmap'),
  { dataOut: unmapList([0, 1], [5, 1]) },
)
test(isAnswered, 'UNMAP of more ranges than the limit is refused', unmapCdb(8 + 16 * 256), BAD_PARAMETER, {
  dataOut: unmapList(...new Array(256).fill([0, 0])),
})
test(
  isAnswered,
  'UNMAP of more blocks than the limit is refused',
  unmapCdb(40),
  BAD_PARAMETER,
  { dataOut: unmapList([0, 2 ** 20], [2 ** 20, 2 ** 20 + 1]) },
  HUGE,
)
test(
  isAnswered,
  'UNMAP is not supported by a disk without discard',
  unmapCdb(24),
  UNSUPPORTED,
  { dataOut: unmapList([0, 1]) },
  {
    verbs: ['read', 'write', 'flush', 'writeZeroes'],
  },
)

test('scsi: blocks that were unmapped read as zeros when the device says so', async (t) => {
  const { disk, contents } = filledDisk()
  const before = Buffer.from(contents)
  const initiator = new Initiator(disk)
  t.is((await initiator.send(unmapCdb(24), { dataOut: unmapList([3, 5]) })).status, 'GOOD')
  const { dataIn: capacity } = await initiator.send(`9e 10 ${'00'.repeat(8)} 00000020 0000`, {
    dataInBytes: 32,
  })
  t.is(capacity[14]! & 0xc0, 0xc0, 'LBPME and LBPRZ')
  before.fill(0, 3 * BLOCK, 8 * BLOCK)
  t.deepEqual(contents, before)
})

// ---- WRITE SAME --------------------------------------------------------------------------------------------------

const ZERO_BLOCK: CommandData = { dataOut: Buffer.alloc(BLOCK) }
const NO_ZEROES = { verbs: ['read', 'write', 'flush'] } as const
test(
  isAnswered,
  'WRITE SAME (10) of zeros writes zeros',
  cdb10(0x41, 2, 4),
  good('writeZeroes 1024+2048'),
  ZERO_BLOCK,
)
test(
  isAnswered,
  'WRITE SAME (16) of zeros writes zeros',
  cdb16(0x93, 2, 4),
  good('writeZeroes 1024+2048'),
  ZERO_BLOCK,
)
test(
  isAnswered,
  'WRITE SAME (16) with NDOB writes zeros',
  cdb16(0x93, 2, 4, 0x01),
  good('writeZeroes 1024+2048'),
)
test(
  isAnswered,
  'WRITE SAME (10) with UNMAP unmaps',
  cdb10(0x41, 2, 4, 0x08),
  good('writeZeroes 1024+2048 unmap'),
  ZERO_BLOCK,
)
test(
  isAnswered,
  'WRITE SAME (16) with UNMAP and NDOB unmaps',
  cdb16(0x93, 2, 4, 0x09),
  good('writeZeroes 1024+2048 unmap'),
)
test(
  isAnswered,
  'WRITE SAME with UNMAP of anything but zeros writes it',
  cdb16(0x93, 2, 4, 0x08),
  good('write 1024+2048'),
  dataOut(1),
)
test(
  isAnswered,
  'WRITE SAME of zeros writes blocks if the disk can do no more',
  cdb16(0x93, 2, 4, 0x01),
  good('write 1024+2048'),
  {},
  NO_ZEROES,
)
test(
  isAnswered,
  'WRITE SAME with UNMAP is refused where nothing can be unmapped',
  cdb16(0x93, 2, 4, 0x08),
  { status: INVALID_FIELD, field: [1, 3] },
  ZERO_BLOCK,
  NO_ZEROES,
)
test(
  isAnswered,
  'WRITE SAME with UNMAP is refused where unmapped blocks may hold anything',
  cdb10(0x41, 2, 4, 0x08),
  INVALID_FIELD,
  ZERO_BLOCK,
  ONLY_DISCARD,
)
test(
  isAnswered,
  'WRITE SAME (10) of 0 blocks is refused, as WSNZ says',
  cdb10(0x41, 0, 0),
  { status: INVALID_FIELD, field: [7] },
  ZERO_BLOCK,
)
test(isAnswered, 'WRITE SAME (16) of 0 blocks is refused, as WSNZ says', cdb16(0x93, 0, 0, 0x01), {
  status: INVALID_FIELD,
  field: [10],
})
test(isAnswered, 'WRITE SAME past the end is refused', cdb16(0x93, 127, 2), OUT_OF_RANGE, ZERO_BLOCK)
test(isAnswered, 'WRITE SAME with less than a block is refused', cdb10(0x41, 0, 1), INVALID_FIELD, {
  dataOut: Buffer.alloc(511),
})

test('scsi: WRITE SAME repeats its block over many pieces', async (t) => {
  const { disk, contents } = filledDisk(2 ** 21)
  const before = Buffer.from(contents)
  const block = pattern(BLOCK, 5)
  const count = 2 ** 20 / BLOCK + 3
  t.is((await new Initiator(disk).send(cdb16(0x93, 1, count), { dataOut: block })).status, 'GOOD')
  before.fill(block, BLOCK, (1 + count) * BLOCK)
  t.true(contents.equals(before))
})

// ---- What a failure of the disk means ----------------------------------------------------------------------------

interface Failure {
  readonly read: string
  readonly write: string
}

const failsAs = test.macro({
  async exec(t, _title: string, answer: (io: BlockRequest) => unknown, expected: Failure) {
    const { disk } = recordingDisk({ answer: answer as (io: BlockRequest) => BlockAnswer })
    for (const later of [false, true]) {
      const device = later ? compose(disk, [(next) => async (io) => (await next(io)) as never]) : disk
      const initiator = new Initiator(device)
      const read = await initiator.send(cdb10(0x28, 7, 1), dataIn(1))
      t.is(read.status, expected.read)
      t.is((await initiator.send(cdb10(0x2a, 7, 1), dataOut(1))).status, expected.write)
      if (expected.read === '3/11/00') t.is(read.sense?.information, 7)
    }
  },
  title: (_, title) => `scsi: a disk that ${title}`,
})

const code = (name: string): Error => Object.assign(new Error(name), { code: name, syscall: 'pwritev' })
const both = (status: string): Failure => ({ read: status, write: status })
test(failsAs, 'reports EIO has a medium error', (io) => io.fail(code('EIO')), {
  read: '3/11/00',
  write: '3/0C/00',
})
test(
  failsAs,
  'throws an error of the system has a medium error',
  () => {
    throw code('EIO')
  },
  { read: '3/11/00', write: '3/0C/00' },
)
test(failsAs, 'transfers too little has a medium error', () => 511, { read: '3/11/00', write: '3/0C/00' })
test(failsAs, 'is full says so', (io) => io.fail(code('ENOSPC')), both('7/27/07'))
test(
  failsAs,
  'is full says so below other errors',
  (io) =>
    io.fail(new HushringError('ERR_STORE_IO', 'pool', { cause: new Error('x', { cause: code('ENOSPC') }) })),
  both('7/27/07'),
)
test(
  failsAs,
  'is read-only says so',
  (io) => io.fail(new HushringError('ERR_BLOCK_READ_ONLY')),
  both('7/27/00'),
)
test(failsAs, 'shrank says so', (io) => io.fail(new HushringError('ERR_BLOCK_RANGE')), both('5/21/00'))
test(
  failsAs,
  'was aborted says so',
  (io) => io.fail(new HushringError('ERR_REQUEST_ABORTED')),
  both('B/00/00'),
)
test(
  failsAs,
  'was too slow was aborted',
  (io) => io.fail(new HushringError('ERR_HANDLER_TIMEOUT')),
  both('B/00/00'),
)
test(failsAs, 'does not know the verb says so', (io) => io.unsupported(), both('5/20/00'))
test(
  failsAs,
  'has a mistake in it has an internal failure',
  () => {
    throw new TypeError('x is not a function')
  },
  both('4/44/00'),
)
test(
  failsAs,
  'rejects has an internal failure',
  async () => Promise.reject(new TypeError('no')),
  both('4/44/00'),
)
test(failsAs, 'answers nonsense has an internal failure', () => 'done', both('4/44/00'))
test(failsAs, 'forges a completion has an internal failure', () => ({ result: 'ok' }), both('4/44/00'))

test('scsi: the error of the disk stays the cause of the answer', async (t) => {
  const error = code('EIO')
  const { disk } = recordingDisk({ answer: (io) => io.fail(error) })
  const { completion } = await new Initiator(disk).send(cdb10(0x28, 0, 1), dataIn(1))
  if (completion.result !== 'failed') return t.fail()
  t.is(completion.error.code, 'ERR_STORE_IO')
  t.is((completion.error.cause as Error).cause, error)
  t.regex(completion.error.message, /03\/11\/00: EIO/)
})

test('scsi: a layer that answers a read with too few bytes has a medium error, not old bytes', async (t) => {
  const disk = compose(memoryDisk({ capacityBytes: CAPACITY_BYTES }), [() => (io) => io.ok(100)])
  const { status } = await new Initiator(disk).send(cdb10(0x28, 0, 1), dataIn(1))
  t.is(status, '3/11/00')
})

test('scsi: the sense data of a failed WRITE SAME names the piece that failed', async (t) => {
  const disk = blockDevice({
    capacityBytes: 2 ** 21,
    read() {},
    write: (io) => (io.offsetBytes === 2 ** 19 ? io.fail(code('EIO')) : undefined),
  })
  const { status, sense } = await new Initiator(disk).send(cdb16(0x93, 0, 4096), dataOut(1))
  t.is(status, '3/0C/00')
  t.is(sense?.information, 1024)
})

// ---- Unit attention ----------------------------------------------------------------------------------------------

const CAPACITY_CHANGED = { key: SenseKey.UNIT_ATTENTION, asc: 0x2a, ascq: 0x09 }

test('scsi: a unit attention is told once, before the command and instead of it', async (t) => {
  const { disk, seen } = recordingDisk()
  const unit = logicalUnit()
  const initiator = new Initiator(disk, unit)
  unit.attentions.raise(CAPACITY_CHANGED)
  t.is((await initiator.send(cdb10(0x2a, 0, 1), dataOut(1))).status, '6/2A/09')
  t.deepEqual(seen, [])
  t.is((await initiator.send(cdb10(0x2a, 0, 1), dataOut(1))).status, 'GOOD')
  unit.attentions.raise(CAPACITY_CHANGED)
  t.is((await initiator.send('ff')).status, '6/2A/09', 'an unknown command as well')
  t.is((await initiator.send('ff')).status, UNSUPPORTED)
})

test('scsi: INQUIRY and REPORT LUNS pass a unit attention, REQUEST SENSE tells it', async (t) => {
  const unit = logicalUnit()
  const initiator = new Initiator(memoryDisk({ capacityBytes: CAPACITY_BYTES }), unit)
  unit.attentions.raise(CAPACITY_CHANGED)
  t.is((await initiator.send('12 00 00 0024 00', { dataInBytes: 36 })).status, 'GOOD')
  t.is((await initiator.send(`a0 ${'00'.repeat(5)} 00000010 0000`, { dataInBytes: 16 })).status, 'GOOD')
  t.true(unit.attentions.pending)
  const { status, dataIn: sense } = await initiator.send('03 00 0000 12 00', { dataInBytes: 18 })
  t.is(status, 'GOOD')
  t.deepEqual(sense, senseBytes(CAPACITY_CHANGED).subarray(0, 18))
  t.false(unit.attentions.pending)
  t.is((await initiator.send('00 00 0000 00 00')).status, 'GOOD')
})

test('scsi: REQUEST SENSE has nothing to tell otherwise, in the format asked for', async (t) => {
  const initiator = new Initiator(memoryDisk({ capacityBytes: CAPACITY_BYTES }))
  const none = { key: 0, asc: 0, ascq: 0 }
  const ask = async (cdb: string): Promise<Buffer> => (await initiator.send(cdb, { dataInBytes: 252 })).dataIn
  t.deepEqual(await ask('03 00 0000 fc 00'), senseBytes(none).subarray(0, 18))
  t.deepEqual(await ask('03 01 0000 fc 00'), senseBytes({ ...none, descriptor: true }).subarray(0, 8))
  t.is((await ask('03 00 0000 05 00')).length, 5)
})

test('scsi: the size is looked up with each command', async (t) => {
  const geometry = { capacityBytes: CAPACITY_BYTES, blockBytes: BLOCK }
  const fixed = memoryDisk({ capacityBytes: 4 * CAPACITY_BYTES })
  const initiator = new Initiator({ ...fixed, geometry })
  const last = async (): Promise<number> =>
    (await initiator.send('25 00 00000000 0000 00 00', { dataInBytes: 8 })).dataIn.readUInt32BE(0)
  t.is(await last(), COUNT - 1)
  t.is((await initiator.send(cdb10(0x28, COUNT, 1), dataIn(1))).status, OUT_OF_RANGE)
  geometry.capacityBytes *= 2
  t.is(await last(), 2 * COUNT - 1)
  t.is((await initiator.send(cdb10(0x28, COUNT, 1), dataIn(1))).status, 'GOOD')
})

// ---- Answers of every shape, and layers --------------------------------------------------------------------------

const shapes: Readonly<Record<string, () => PromiseLike<void> | Observable<void> | void>> = {
  'at once': () => {},
  'with a promise': async () => {},
  'with an observable': () => of(undefined),
  'with a later observable': () => timer(1).pipe(map(() => undefined)),
}
for (const [name, answer] of Object.entries(shapes)) {
  test(`scsi: every command is served by a store that answers ${name}`, async (t) => {
    const contents = pattern(CAPACITY_BYTES)
    const copy = (io: BlockRequest): Buffer =>
      contents.subarray(io.offsetBytes, io.offsetBytes + io.lengthBytes)
    const initiator = new Initiator(
      blockDevice({
        capacityBytes: CAPACITY_BYTES,
        read: (io) => {
          io.data.copyFrom(copy(io))
          return answer()
        },
        write: (io) => {
          io.data.copyTo(copy(io))
          return answer()
        },
        flush: answer,
        discard: answer,
        writeZeroes: (io) => {
          copy(io).fill(0)
          return answer()
        },
      }),
    )
    const block = pattern(BLOCK, 2)
    for (const [cdb, data] of [
      [cdb10(0x2a, 0, 1, FUA), { dataOut: block }],
      [compareAndWriteCdb(0, 1), { dataOut: Buffer.concat([block, block]) }],
      [cdb10(0x2f, 0, 1, EACH), { dataOut: block }],
      [cdb16(0x93, 1, 2), { dataOut: block }],
      [cdb10(0x2f, 0, 3, ONE), { dataOut: block }],
      [cdb10(0x2e, 4, 1, EACH), { dataOut: block }],
      [unmapCdb(40), { dataOut: unmapList([1, 1], [2, 1]) }],
      [MODE_SELECT_CACHE, WCE_OFF],
      [cdb10(0x35, 0, 0), {}],
    ] as const) {
      t.is((await initiator.send(cdb, data)).status, 'GOOD')
    }
    const { dataIn: read } = await initiator.send(cdb10(0x28, 0, 5), { dataInBytes: 6 * BLOCK })
    t.deepEqual(
      read,
      Buffer.concat([block, Buffer.alloc(2 * BLOCK), pattern(4 * BLOCK).subarray(3 * BLOCK), block]),
    )
  })
}

test('scsi: layers around the disk see its block requests, layers around the device its commands', async (t) => {
  const verbs: string[] = []
  const opcodes: number[] = []
  const disk = compose(memoryDisk({ capacityBytes: CAPACITY_BYTES }), [
    (next) => (io) => {
      verbs.push(io.verb)
      return next(io)
    },
    readonly(),
  ])
  const device = compose(scsiBlock(disk), [
    (next) => (io: RequestOf<ReturnType<typeof scsiBlock>>) => {
      opcodes.push(io.cdb[0]!)
      return next(io)
    },
  ])
  const handler = device.connect(logicalUnit())
  const request = scsiRequest(cdb10(0x2a, 0, 1), dataOut(1))
  t.is(outcomeOf(request, (await handler(request)) as never).status, PROTECTED)
  t.deepEqual([verbs, opcodes], [['write'], [0x2a]])
  t.is(device.name, 'scsi-block')
})

test('scsi: to close the device is to close the disk', async (t) => {
  const disk = memoryDisk({ capacityBytes: CAPACITY_BYTES })
  await scsiBlock(disk).close()
  await t.throwsAsync(readFrom(disk, 0, BLOCK), { message: 'ERR_CLOSED' })
})
