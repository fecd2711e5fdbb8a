import test from 'ava'
import { type BlockDevice, blockDevice, memoryDisk } from '../../src/handlers/index.ts'
import { diskCommands } from '../../src/handlers/scsi/disk-commands.ts'
import { SenseKey } from '../../src/ring/sense.ts'
import { pattern } from '../helpers/block-requests.ts'
import {
  type CommandData,
  cdb10,
  hex,
  Initiator,
  logicalUnit,
  type Outcome,
  outcomeOf,
  scsiRequest,
  senseBytes,
} from '../helpers/scsi-commands.ts'

const CAPACITY_BYTES = 64 * 1024
const INVALID_FIELD = '5/24/00'

const nothing = (): void => {}
const memory = (options: { blockBytes?: 512 | 4096; readOnly?: boolean } = {}): BlockDevice =>
  memoryDisk({ capacityBytes: CAPACITY_BYTES, ...options })
const simple = (options: Partial<Parameters<typeof blockDevice>[0]> = {}): BlockDevice =>
  blockDevice({ capacityBytes: CAPACITY_BYTES, read: nothing, write: nothing, ...options })

const ask = (
  cdb: string | Buffer,
  disk: BlockDevice = memory(),
  unit = logicalUnit(),
  data: CommandData = { dataInBytes: 4096 },
): Promise<Outcome> => new Initiator(disk, unit).send(cdb, data)

const isRefused = test.macro({
  async exec(t, _title: string, cdb: string, status: string, field?: readonly [number, number?]) {
    const outcome = await ask(cdb)
    t.is(outcome.status, status)
    if (field !== undefined) {
      const [byte, bit] = field
      t.deepEqual(outcome.sense?.field, bit === undefined ? { byte } : { byte, bit })
    }
  },
  title: (_, title) => `scsi: ${title} is refused`,
})

/** Every command whose data is cut off where its allocation length says, and nowhere inside. */
const ALLOCATING: Readonly<Record<string, (allocationBytes: number) => Buffer>> = {
  INQUIRY: (length) => allocation('12 00 00 0000 00', length, 3, 2),
  'INQUIRY of a VPD page': (length) => allocation('12 01 b0 0000 00', length, 3, 2),
  'REQUEST SENSE': (length) => allocation('03 00 0000 00 00', length, 4, 1),
  'MODE SENSE (6)': (length) => allocation('1a 00 3f 00 00 00', length, 4, 1),
  'MODE SENSE (10)': (length) => allocation('5a 00 3f 00 000000 0000 00', length, 7, 2),
  'READ CAPACITY (16)': (length) => allocation(`9e 10 ${'00'.repeat(14)}`, length, 10, 4),
  'GET LBA STATUS': (length) => allocation(`9e 12 ${'00'.repeat(14)}`, length, 10, 4),
  'REPORT LUNS': (length) => allocation(`a0 ${'00'.repeat(11)}`, length, 6, 4),
  'REPORT SUPPORTED OPERATION CODES': (length) => allocation(`a3 0c ${'00'.repeat(10)}`, length, 6, 4),
  'one of REPORT SUPPORTED OPERATION CODES': (length) =>
    allocation(`a3 0c 01 28 ${'00'.repeat(8)}`, length, 6, 4),
  'REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS': (length) =>
    allocation(`a3 0d 80 ${'00'.repeat(9)}`, length, 6, 4),
}

function allocation(cdb: string, allocationBytes: number, at: number, fieldBytes: number): Buffer {
  const bytes = hex(cdb)
  bytes.writeUIntBE(allocationBytes, at, fieldBytes)
  return bytes
}

for (const [name, cdb] of Object.entries(ALLOCATING)) {
  test(`scsi: ${name} is cut off at its allocation length and at its room, without a change inside`, async (t) => {
    const whole = (await ask(cdb(255))).dataIn
    t.true(whole.length >= 8)
    for (const lengthBytes of [0, 1, 3, 4, 5, 7, 8]) {
      const cut = await ask(cdb(lengthBytes))
      t.is(cut.status, 'GOOD')
      t.deepEqual(cut.dataIn, whole.subarray(0, lengthBytes))
      t.like(cut.completion, { bytesWritten: lengthBytes })
      const narrow = await ask(cdb(255), memory(), logicalUnit(), { dataInBytes: lengthBytes })
      t.is(narrow.status, 'GOOD')
      t.deepEqual(narrow.dataIn, whole.subarray(0, lengthBytes))
    }
  })
}

test('scsi: parameter data fills pieces of any size and no byte after it', async (t) => {
  const request = scsiRequest('12 00 00 0060 00', { dataInBytes: 100, pieceBytes: 7 })
  const { dataIn } = outcomeOf(request, await new Initiator(memory()).answer(request))
  t.is(dataIn.length, 96)
  t.true(
    request.dataIn
      .toBuffer()
      .subarray(96)
      .every((byte) => byte === 0xee),
  )
})

// ---- INQUIRY -----------------------------------------------------------------------------------------------------

test('scsi: standard INQUIRY data says what the device is', async (t) => {
  const unit = logicalUnit({ vendor: 'ACME', product: 'A product name beyond 16', revision: '9' })
  const { dataIn } = await ask('12 00 00 0100 00', memory(), unit)
  t.is(dataIn.length, 96)
  t.is(dataIn.toString('hex', 0, 8), '000006125b000002')
  t.is(dataIn.toString('latin1', 8, 36), 'ACME    A product name b9   ')
  t.is(dataIn.toString('hex', 58, 66), '00a0046004c00000')
})
test(isRefused, 'INQUIRY of a page without EVPD', '12 00 80 0060 00', INVALID_FIELD, [2])
test(isRefused, 'INQUIRY of an unknown VPD page', '12 01 b3 0060 00', INVALID_FIELD, [2])

const vpd = async (
  code: number,
  disk?: BlockDevice,
  unit?: ReturnType<typeof logicalUnit>,
): Promise<Buffer> => {
  const { status, dataIn } = await ask(Buffer.from([0x12, 1, code, 0x0f, 0xff, 0]), disk, unit)
  if (status !== 'GOOD') throw new Error(status)
  return dataIn
}

test('scsi: every VPD page that is listed can be read, and the list is sorted', async (t) => {
  const list = [...(await vpd(0x00)).subarray(4)]
  t.deepEqual(list, [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2])
  t.deepEqual(
    list,
    [...list].sort((one, other) => one - other),
  )
  for (const code of list) {
    const page = await vpd(code)
    t.deepEqual([page[0], page[1], page.readUInt16BE(2)], [0, code, page.length - 4])
  }
})

test('scsi: VPD page 80h is the serial number', async (t) => {
  t.is((await vpd(0x80, memory(), logicalUnit({ serial: 'S 42' }))).toString('latin1', 4), 'S 42')
})

/** The designators of page 83h as [code set, type, bytes]. */
async function designators(serial: string): Promise<[number, number, Buffer][]> {
  const page = await vpd(0x83, memory(), logicalUnit({ serial, vendor: 'ACME', product: 'DISK' }))
  const found: [number, number, Buffer][] = []
  for (let at = 4; at < page.length; at += 4 + page[at + 3]!) {
    found.push([page[at]!, page[at + 1]!, page.subarray(at + 4, at + 4 + page[at + 3]!)])
  }
  return found
}

test('scsi: VPD page 83h names the disk by vendor and serial number, and by a worldwide name', async (t) => {
  const [vendor, naa, ...rest] = await designators('2F9AB1C0-77e1-4f0c-b6d2-0123456789ab')
  t.deepEqual(
    [vendor![0], vendor![1], vendor![2].toString('latin1')],
    [2, 1, 'ACME    DISK:2F9AB1C0-77e1-4f0c-b6d2-0123456789ab'],
  )
  t.deepEqual([naa![0], naa![1], naa![2].toString('hex')], [1, 3, '60014052f9ab1c077e14f0cb6d201234'])
  t.deepEqual(rest, [])
})

test('scsi: serial numbers with few hexadecimal digits have different worldwide names as well', async (t) => {
  const names = new Set<string>()
  const serials = [
    'vm1',
    'wn1',
    'ab',
    'ab0',
    'ab00',
    'disk-0001',
    'disk-0002',
    '1'.repeat(24),
    '1'.repeat(25),
    'x',
  ]
  for (const serial of serials) {
    const [, naa] = await designators(serial)
    const name = naa![2].toString('hex')
    t.regex(name, /^6001405[\da-f]{25}$/)
    names.add(name)
  }
  t.is(names.size, serials.length)
})

test('scsi: a serial number of 252 characters fits into its pages', async (t) => {
  const [vendor] = await designators(`${'x'.repeat(251)}y`)
  t.is(vendor![2].length, 255)
  t.is(vendor![2].at(-1), 'y'.charCodeAt(0))
})

test('scsi: VPD page B0h tells the limits in blocks', async (t) => {
  for (const blockBytes of [512, 4096] as const) {
    const page = await vpd(0xb0, memory({ blockBytes }))
    t.is(page.length, 64)
    t.is(page[4], 1, 'WSNZ')
    t.is(page[5], 255, 'compare and write')
    t.is(page.readUInt16BE(6) * blockBytes, 4096, 'granularity')
    t.is(page.readUInt32BE(8) * blockBytes, 2 ** 25, 'transfer')
    t.is(page.readUInt32BE(20) * blockBytes, 2 ** 30, 'unmap')
    t.is(page.readUInt32BE(24), 255, 'unmap ranges')
    t.is(page.readUInt32BE(28) * blockBytes, 4096, 'unmap granularity')
    t.is(page.readUInt32BE(32), 2 ** 31, 'unmap alignment')
    t.is(Number(page.readBigUInt64BE(36)) * blockBytes, 2 ** 26, 'write same')
    t.true(page.subarray(44).every((byte) => byte === 0))
  }
})

test('scsi: VPD page B1h says that nothing turns', async (t) => {
  const page = await vpd(0xb1)
  t.is(page.length, 64)
  t.is(page.readUInt16BE(4), 1)
})

const agrees = test.macro({
  async exec(
    t,
    _title: string,
    options: Parameters<typeof simple>[0],
    expected: { lbpme: boolean; lbprz: boolean; page: string },
  ) {
    const disk = simple(options)
    const capacity = (await ask(`9e 10 ${'00'.repeat(8)} 00000020 0000`, disk)).dataIn
    t.is((capacity[14]! & 0x80) !== 0, expected.lbpme)
    t.is((capacity[14]! & 0x40) !== 0, expected.lbprz)
    t.is((await vpd(0xb2, disk)).toString('hex', 4), expected.page)
    const limits = await vpd(0xb0, disk)
    t.is(limits.readUInt32BE(20) !== 0, expected.lbpme)
    t.is(limits.readUInt32BE(24) !== 0, expected.lbpme)
    const [unmapSupport, sameUsage] = await Promise.all(
      ['42', '93'].map(async (opcode) => (await ask(`a3 0c 01 ${opcode} 0000 00000100 0000`, disk)).dataIn),
    )
    t.is(unmapSupport![1], expected.lbpme ? 3 : 1)
    t.is((sameUsage![5]! & 0x08) !== 0, expected.lbprz, 'the bit UNMAP of WRITE SAME')
  },
  title: (_, title) => `scsi: all pages agree on provisioning of a disk ${title}`,
})
test(agrees, 'with neither discard nor zeros', {}, { lbpme: false, lbprz: false, page: '00000000' })
test(agrees, 'with zeros', { writeZeroes: nothing }, { lbpme: false, lbprz: false, page: '00000000' })
test(agrees, 'with discard', { discard: nothing }, { lbpme: true, lbprz: false, page: '00800200' })
test(
  agrees,
  'with both',
  { discard: nothing, writeZeroes: nothing },
  { lbpme: true, lbprz: true, page: '00e40200' },
)
test(
  agrees,
  'with both that is read-only',
  { discard: nothing, writeZeroes: nothing, readOnly: true },
  { lbpme: false, lbprz: false, page: '00000000' },
)

// ---- READ CAPACITY and GET LBA STATUS ----------------------------------------------------------------------------

const huge = (capacityBytes: number): BlockDevice => simple({ capacityBytes })

test('scsi: READ CAPACITY (10) tells the last block, or that it has no room for it', async (t) => {
  const capacity = async (disk: BlockDevice): Promise<string> =>
    (await ask('25 00 00000000 0000 00 00', disk)).dataIn.toString('hex')
  t.is(await capacity(memory()), '0000007f00000200')
  t.is(await capacity(memory({ blockBytes: 4096 })), '0000000f00001000')
  t.is(await capacity(huge(2 ** 41)), 'ffffffff00000200')
  t.is(await capacity(huge(2 ** 41 - 512)), 'fffffffe00000200')
  t.is(await capacity(huge(2 ** 42)), 'ffffffff00000200')
})

test('scsi: READ CAPACITY (16) tells the last block of any disk, and its physical blocks', async (t) => {
  const capacity = async (disk: BlockDevice): Promise<Buffer> =>
    (await ask(`9e 10 ${'00'.repeat(8)} 00000020 0000`, disk)).dataIn
  const small = await capacity(memory({ blockBytes: 4096 }))
  t.is(small.length, 32)
  t.deepEqual([small.readBigUInt64BE(0), small.readUInt32BE(8), small[12], small[13]], [15n, 4096, 0, 0])
  const large = await capacity(huge(2 ** 53 - 512))
  t.deepEqual([large.readBigUInt64BE(0), large.readUInt32BE(8), large[13]], [2n ** 44n - 2n, 512, 3])
})

test('scsi: GET LBA STATUS has one descriptor for all blocks to the end', async (t) => {
  const status = (lba: string, disk?: BlockDevice): Promise<Outcome> =>
    ask(`9e 12 ${lba} 00000100 0000`, disk)
  t.is(
    (await status('0000000000000003')).dataIn.toString('hex'),
    `00000014 00000000 0000000000000003 0000007d 00000000`.replaceAll(' ', ''),
  )
  t.is((await status('000000000000007f')).dataIn.readUInt32BE(16), 1)
  t.is((await status('0000000000000000', huge(2 ** 42))).dataIn.readUInt32BE(16), 0xffff_ffff)
  t.is((await status('0000000000000080')).status, '5/21/00')
  t.is((await status('ffffffffffffffff')).status, '5/21/00')
})

// ---- MODE SENSE --------------------------------------------------------------------------------------------------

const PAGE_01 = `010a ${'00'.repeat(10)}`
const PAGE_08 = `0812 04${'00'.repeat(17)}`
const PAGE_0A = '0a0a 02 10 00 40 0000 ffff 0000'
const PAGE_1C = `1c0a 08${'00'.repeat(9)}`
const ALL_PAGES = PAGE_01 + PAGE_08 + PAGE_0A + PAGE_1C

const senses = test.macro({
  async exec(t, _title: string, cdb: string, expected: string, disk: BlockDevice = memory()) {
    const { status, dataIn } = await ask(cdb, disk)
    t.is(status, 'GOOD')
    t.is(dataIn.toString('hex'), expected.replaceAll(' ', ''))
  },
  title: (_, title) => `scsi: MODE SENSE ${title}`,
})
test(senses, '(6) has a block descriptor', '1a 00 08 00 ff 00', `1f 00 10 08 00000080 00 000200 ${PAGE_08}`)
test(senses, '(6) with DBD has none', '1a 08 08 00 ff 00', `17 00 10 00 ${PAGE_08}`)
test(senses, '(6) has all pages', '1a 08 3f 00 ff 00', `3b 00 10 00 ${ALL_PAGES}`)
test(senses, '(6) has all pages and subpages', '1a 08 3f ff ff 00', `3b 00 10 00 ${ALL_PAGES}`)
test(
  senses,
  '(10) has a block descriptor',
  '5a 00 08 00 000000 00ff 00',
  `0022 00 10 00 00 0008 00000080 00 000200 ${PAGE_08}`,
)
test(
  senses,
  '(10) with LLBAA has a long block descriptor',
  '5a 10 08 00 000000 00ff 00',
  `002a 00 10 01 00 0010 0000000000000080 00000000 00000200 ${PAGE_08}`,
)
test(
  senses,
  '(6) of a disk too large for the descriptor says so',
  '1a 00 01 00 ff 00',
  `17 00 10 08 ffffffff 00 000200 ${PAGE_01}`,
  huge(2 ** 42),
)
test(senses, '(10) with DBD has none', '5a 08 0a 00 000000 00ff 00', `0012 00 10 00 00 0000 ${PAGE_0A}`)
test(senses, 'tells the error recovery page', '1a 08 01 00 ff 00', `0f 00 10 00 ${PAGE_01}`)
test(senses, 'tells the informational exceptions page', '1a 08 1c 00 ff 00', `0f 00 10 00 ${PAGE_1C}`)
test(senses, 'tells which bits can change', '1a 08 48 00 ff 00', `17 00 10 00 0812 04${'00'.repeat(17)}`)
test(
  senses,
  'tells which bits of the control page can change',
  '1a 08 4a 00 ff 00',
  `0f 00 10 00 0a0a 04 00 08 ${'00'.repeat(7)}`,
)
test(senses, 'tells the defaults', '1a 08 88 00 ff 00', `17 00 10 00 ${PAGE_08}`)
test(
  senses,
  'of a read-only disk has the bit WP',
  '1a 08 1c 00 ff 00',
  `0f 00 90 00 ${PAGE_1C}`,
  memory({ readOnly: true }),
)
const NO_CACHE_PAGE = `17 00 10 00 0812 ${'00'.repeat(18)}`
test(senses, 'of a disk without flush has no cache', '1a 08 08 00 ff 00', NO_CACHE_PAGE, simple())
test(senses, 'of a disk without flush has none to switch on', '1a 08 48 00 ff 00', NO_CACHE_PAGE, simple())

test(isRefused, 'MODE SENSE of saved values', '1a 08 c8 00 ff 00', '5/39/00')
test(isRefused, 'MODE SENSE of an unknown page', '1a 08 02 00 ff 00', INVALID_FIELD, [2, 5])
test(isRefused, 'MODE SENSE of an unknown subpage', '1a 08 08 01 ff 00', INVALID_FIELD, [3])
test(isRefused, 'MODE SENSE (10) of an unknown page', '5a 08 18 00 000000 00ff 00', INVALID_FIELD, [2, 5])

// ---- MODE SELECT -------------------------------------------------------------------------------------------------

const page08 = (wce: boolean): string => `0812 ${wce ? '04' : '00'}${'00'.repeat(17)}`
const page0A = (dSense: boolean, swp = false): string =>
  `0a0a ${dSense ? '06' : '02'} 10 ${swp ? '08' : '00'} 40 0000 ffff 0000`

function select6(list: string, listBytes = hex(list).length): [Buffer, CommandData] {
  return [Buffer.from([0x15, 0x10, 0, 0, listBytes, 0]), { dataOut: hex(list) }]
}
function select10(list: string, listBytes = hex(list).length): [Buffer, CommandData] {
  const cdb = cdb10(0x55, 0, listBytes)
  cdb[1] = 0x10
  return [cdb, { dataOut: hex(list) }]
}

const selects = test.macro({
  async exec(
    t,
    _title: string,
    command: [Buffer | string, CommandData],
    expected: string,
    field?: { readonly byte: number; readonly bit?: number },
  ) {
    const initiator = new Initiator(memory())
    const pages = async (): Promise<string> =>
      (await initiator.send('1a 08 3f 00 ff 00', { dataInBytes: 255 })).dataIn.toString('hex')
    const before = await pages()
    const { status, sense } = await initiator.send(...command)
    t.is(status, expected)
    if (field !== undefined) t.deepEqual(sense?.field, { ...field, inData: true })
    if (expected !== 'GOOD') t.is(await pages(), before, 'nothing changes')
  },
  title: (_, title, _command, expected) => `scsi: MODE SELECT ${title}: ${expected}`,
})
const BAD = '5/26/00'
const SHORT = '5/1A/00'
test(selects, '(6) of the same page', select6(`00000000 ${PAGE_08}`), 'GOOD')
test(selects, '(6) of all pages', select6(`00000000 ${ALL_PAGES}`), 'GOOD')
test(selects, '(10) of all pages', select10(`0000000000000000 ${ALL_PAGES}`), 'GOOD')
test(selects, '(6) with what MODE SENSE said', select6(`3b 00 10 00 ${ALL_PAGES}`), 'GOOD')
test(selects, '(6) with a block descriptor', select6(`00000008 00000080 00 000200 ${PAGE_08}`), 'GOOD')
test(
  selects,
  '(6) with a block descriptor that leaves the size',
  select6('00000008 00000000 00 000200'),
  'GOOD',
)
test(
  selects,
  '(10) with a long block descriptor',
  select10('00000000 0100 0010 0000000000000080 00000000 00000200'),
  'GOOD',
)
test(selects, '(6) of nothing', select6('', 0), 'GOOD')
test(selects, '(6) of a header alone', select6('00000000'), 'GOOD')
test(
  selects,
  'with the bit PS that MODE SENSE may have',
  select6(`00000000 8812 04${'00'.repeat(17)}`),
  'GOOD',
)
test(selects, '(6) of less than a header', select6('000000'), SHORT)
test(selects, '(10) of less than a header', select10('00000000000000'), SHORT)
test(selects, 'of a page that is cut off', select6('00000000 0812 0400'), SHORT)
test(selects, 'of half a page header', select6(`00000000 ${PAGE_08} 0a`), SHORT)
test(selects, 'of a block descriptor that is cut off', select6('00000008 00000080'), SHORT)
test(selects, 'of more than the data', select6(`00000000 ${PAGE_08}`, 99), INVALID_FIELD)
test(selects, 'with a medium type', select6('00010000'), BAD, { byte: 1 })
test(selects, 'of an unknown page', select6('00000000 0202 0000'), BAD, { byte: 4 })
test(selects, 'of a subpage', select6('00000000 4801 0000'), BAD, { byte: 4 })
test(selects, 'of a page with another length', select6(`00000000 080a ${'00'.repeat(10)}`), BAD, { byte: 5 })
test(selects, 'of a bit that cannot change', select6(`00000000 0812 05${'00'.repeat(17)}`), BAD, {
  byte: 6,
  bit: 0,
})
test(selects, 'of a good page and a bad one', select6(`00000000 ${page08(false)} 0202 0000`), BAD, {
  byte: 24,
})
test(selects, 'of another number of blocks', select6('00000008 00000040 00 000200'), BAD, { byte: 4 })
test(selects, 'of another block size', select6('00000008 00000080 00 001000'), BAD, { byte: 8 })
test(selects, 'of a block descriptor of 4 bytes', select6('00000004 00000080'), BAD, { byte: 3 })
test(selects, 'without PF', [hex('15 00 0000 04 00'), { dataOut: Buffer.alloc(4) }], INVALID_FIELD)

test('scsi: a write cache that is switched off stays off until it is switched on, or the device starts anew', async (t) => {
  const initiator = new Initiator(memory())
  const page = async (target = initiator, control = 0x08): Promise<string> => {
    const cdb = Buffer.from([0x1a, 8, control, 0, 255, 0])
    return (await target.send(cdb, { dataInBytes: 255 })).dataIn.toString('hex', 4)
  }
  await initiator.send(...select6(`00000000 ${page08(false)}`))
  t.is(await page(), hex(page08(false)).toString('hex'))
  t.is(await page(initiator, 0x88), hex(page08(true)).toString('hex'), 'the default stays')
  t.is(await page(new Initiator(memory())), hex(page08(true)).toString('hex'))
  await initiator.send(...select10(`0000000000000000 ${page08(true)}`))
  t.is(await page(), hex(page08(true)).toString('hex'))
})

test('scsi: a write cache that cannot be flushed stays off', async (t) => {
  const disk = simple({ flush: (io) => io.fail(new Error('power lost')) })
  const initiator = new Initiator(disk)
  t.is((await initiator.send(...select6(`00000000 ${page08(false)}`))).status, '3/0C/00')
  t.is((await initiator.send(cdb10(0x2a, 0, 1), { dataOut: Buffer.alloc(512) })).status, '3/0C/00')
})

test('scsi: D_SENSE changes the format of sense data, also of unit attentions', async (t) => {
  const unit = logicalUnit()
  const initiator = new Initiator(memory(), unit)
  const attention = { key: SenseKey.UNIT_ATTENTION, asc: 0x2a, ascq: 0x09 }
  const format = async (): Promise<number> => senseBytes((await initiator.send('ff')).sense!)[0]!
  t.is(await format(), 0x70)
  await initiator.send(...select6(`00000000 ${page0A(true)}`))
  t.is(await format(), 0x72)
  unit.attentions.raise(attention)
  t.is(await format(), 0x72)
  const past = await initiator.send(`88 00 ${'00'.repeat(7)}80 00000001 0000`, { dataInBytes: 512 })
  t.is(senseBytes(past.sense!)[0], 0x72)
  await initiator.send(...select6(`00000000 ${page0A(false)}`))
  t.is(await format(), 0x70)
})

test('scsi: SWP protects the disk from writes', async (t) => {
  const initiator = new Initiator(memory())
  const write = async (): Promise<string> =>
    (await initiator.send(cdb10(0x2a, 0, 1), { dataOut: pattern(512) })).status
  t.is(await write(), 'GOOD')
  await initiator.send(...select6(`00000000 ${page0A(false, true)}`))
  t.is(await write(), '7/27/00')
  t.is((await initiator.send('1a 08 1c 00 ff 00', { dataInBytes: 255 })).dataIn[2], 0x90)
  await initiator.send(...select6(`00000000 ${page0A(false)}`))
  t.is(await write(), 'GOOD')
})

// ---- REPORT SUPPORTED OPERATION CODES ----------------------------------------------------------------------------

const commands = diskCommands({ canUnmap: true, unmapsToZeros: true }).all
const digits = (value: number, length: number): string => value.toString(16).padStart(length, '0')

test('scsi: the table has every command once, with a CDB as long as its group says', (t) => {
  const keys = commands.map(({ opcode, serviceAction }) => `${opcode}/${serviceAction}`)
  t.is(new Set(keys).size, keys.length)
  for (const { name, opcode, serviceAction, usage, permitted } of commands) {
    t.is(usage.length, [6, 10, 10, 0, 16, 12][opcode >> 5]!, name)
    t.is(usage[0], opcode, name)
    if (serviceAction !== undefined) t.is(usage[1]! & 0x1f, serviceAction, name)
    t.true(
      usage.every((byte, index) => (byte & permitted[index]!) === byte),
      name,
    )
  }
})

test('scsi: REPORT SUPPORTED OPERATION CODES lists the table', async (t) => {
  for (const withTimeouts of [false, true]) {
    const { dataIn } = await ask(`a3 0c ${withTimeouts ? '80' : '00'} 00 0000 00001000 0000`)
    t.is(dataIn.readUInt32BE(0), dataIn.length - 4)
    const rowBytes = withTimeouts ? 20 : 8
    t.is((dataIn.length - 4) / rowBytes, commands.length)
    for (const [index, { name, opcode, serviceAction, usage }] of commands.entries()) {
      const row = dataIn.subarray(4 + index * rowBytes, 4 + (index + 1) * rowBytes)
      const flags = (serviceAction === undefined ? 0 : 1) | (withTimeouts ? 2 : 0)
      t.is(
        row.toString('hex', 0, 8),
        hex(
          `${digits(opcode, 2)} 00 ${digits(serviceAction ?? 0, 4)} 00 ${digits(flags, 2)} ${digits(usage.length, 4)}`,
        ).toString('hex'),
        name,
      )
      if (withTimeouts) t.is(row.readUInt16BE(8), 0x0a)
    }
  }
})

const TIMEOUTS = `000a ${'00'.repeat(10)}`
const reports = test.macro({
  async exec(t, _title: string, options: string, expected: string) {
    const { status, dataIn } = await ask(`a3 0c ${options} 00001000 0000`)
    if (expected === INVALID_FIELD) return void t.is(status, INVALID_FIELD)
    t.is(status, 'GOOD')
    t.is(dataIn.toString('hex'), expected.replaceAll(' ', ''))
  },
  title: (_, title) => `scsi: REPORT SUPPORTED OPERATION CODES ${title}`,
})
const READ_10 = '000a 28 18 ffffffff 3f ffff 00'
const READ_CAPACITY_16 = '0010 9e 10 0000000000000000 ffffffff 0000'
test(reports, 'tells one command with its usage', '01 28 0000', `00 03 ${READ_10}`)
test(reports, 'tells one command with its timeouts', '81 28 0000', `00 83 ${READ_10} ${TIMEOUTS}`)
test(reports, 'tells that a command is not supported', '01 04 0000', '00 01 0000')
test(reports, 'refuses an operation code without its service action', '01 9e 0000', INVALID_FIELD)
test(reports, 'tells one service action', '02 9e 0010', `00 03 ${READ_CAPACITY_16}`)
test(reports, 'tells that a service action is not supported', '02 9e 0011', '00 01 0000')
test(reports, 'refuses a service action of a command that has none', '02 28 0000', INVALID_FIELD)
test(
  reports,
  'tells that the service action of an unknown command is not supported',
  '02 7f 0009',
  '00 01 0000',
)
test(reports, 'tells either: a service action', '03 9e 0010', `00 03 ${READ_CAPACITY_16}`)
test(reports, 'tells either: a command without one', '03 28 0000', `00 03 ${READ_10}`)
test(reports, 'tells either: neither', '03 28 0001', '00 01 0000')
test(reports, 'tells itself', '02 a3 000c', '00 03 000c a3 0c 87 ff ffff ffffffff 0000')
test(reports, 'refuses a reserved option', '04 28 0000', INVALID_FIELD)
test(reports, 'refuses a reserved bit', '08 28 0000', INVALID_FIELD)

test('scsi: every bit that the usage of a command has not is refused, except those that old initiators set', async (t) => {
  const initiator = new Initiator(memory())
  let checkedCount = 0
  for (const { name, usage, permitted, serviceAction } of commands) {
    for (let byte = 1; byte < usage.length; byte++) {
      for (let bit = 0; bit < 8; bit++) {
        if ((permitted[byte]! & (1 << bit)) !== 0) continue
        const cdb = Buffer.alloc(usage.length)
        cdb[0] = usage[0]!
        if (serviceAction !== undefined) cdb[1] = serviceAction
        cdb[byte]! |= 1 << bit
        const { status, sense } = await initiator.send(cdb, { dataInBytes: 512 })
        t.is(status, INVALID_FIELD, `${name} byte ${byte} bit ${bit}`)
        t.deepEqual(sense?.field, { byte, bit })
        checkedCount++
      }
    }
  }
  t.true(checkedCount > 700, String(checkedCount))
})

test('scsi: REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS tells those that the kernel does', async (t) => {
  t.is((await ask(`a3 0d ${'00'.repeat(4)} 00000100 0000`)).dataIn.toString('hex'), '88000000')
  t.is(
    (await ask(`a3 0d 80 ${'00'.repeat(3)} 00000100 0000`)).dataIn.toString('hex'),
    `8800000c${'00'.repeat(12)}`,
  )
})

test('scsi: REPORT LUNS tells of one logical unit', async (t) => {
  t.is((await ask(`a0 ${'00'.repeat(5)} 00000100 0000`)).dataIn.toString('hex'), `00000008${'00'.repeat(12)}`)
})
