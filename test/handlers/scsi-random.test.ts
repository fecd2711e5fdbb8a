import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import type { BlockRequest } from '../../src/handlers/block/block-request.ts'
import { type BlockDevice, blockDevice } from '../../src/handlers/index.ts'
import { diskCommands } from '../../src/handlers/scsi/disk-commands.ts'
import { isCompletion } from '../../src/ring/request.ts'
import { pattern } from '../helpers/block-requests.ts'
import { Initiator, OLD_BYTE, outcomeOf, scsiRequest } from '../helpers/scsi-commands.ts'
import { changeableRanges } from '../helpers/scsi-ranges.ts'

const BLOCK = 512
const COUNT = 300

/** A disk whose bytes a test can see, answering at once or later, with failures by the way. */
function visibleDisk(contents: Buffer, isLater: boolean, failsAfter: number): BlockDevice {
  let left = failsAfter
  const verb = (work: (io: BlockRequest, bytes: Buffer) => void) => {
    const answer = (io: BlockRequest): void => {
      if (left-- === 0) throw Object.assign(new Error('EIO'), { syscall: 'pwritev', code: 'EIO' })
      work(io, contents.subarray(io.offsetBytes, io.offsetBytes + io.lengthBytes))
    }
    return (io: BlockRequest) => (isLater ? Promise.resolve().then(() => answer(io)) : answer(io))
  }
  return blockDevice({
    capacityBytes: COUNT * BLOCK,
    read: verb((io, bytes) => void io.data.copyFrom(bytes)),
    write: verb((io, bytes) => void io.data.copyTo(bytes)),
    flush: verb(() => {}),
    discard: verb((_io, bytes) => void bytes.fill(0)),
    writeZeroes: verb((_io, bytes) => void bytes.fill(0)),
  })
}

const commands = diskCommands({ canUnmap: true, unmapsToZeros: true }).all

/** Any bytes, and CDBs that are nearly right: few devices are wrong about those that are far from it. */
const anyCdb = fc.uint8Array({ minLength: 0, maxLength: 32 })
const smallNumber = fc.oneof(
  { arbitrary: fc.nat({ max: 8 }), weight: 5 },
  { arbitrary: fc.integer({ min: COUNT - 4, max: COUNT + 4 }), weight: 1 },
)
const likelyCdb = fc
  .record({
    command: fc.constantFrom(...commands),
    fill: fc.uint8Array({ minLength: 16, maxLength: 16 }),
    lba: fc.oneof(
      { arbitrary: smallNumber, weight: 9 },
      { arbitrary: fc.constantFrom(2 ** 31, 0xffff_ffff, 2 ** 53 - 1), weight: 1 },
    ),
    count: fc.oneof({ arbitrary: smallNumber, weight: 4 }, { arbitrary: fc.nat({ max: 1024 }), weight: 1 }),
    isRandom: fc.constantFrom(true, false, false, false),
    cut: fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 1),
  })
  .map(({ command: { usage, serviceAction }, fill, lba, count, isRandom, cut }) => {
    const { length } = usage
    const cdb = Buffer.from(usage.map((bits, byte) => (isRandom ? bits & fill[byte]! : 0)))
    cdb[0] = usage[0]!
    if (serviceAction !== undefined) cdb[1] = serviceAction
    else cdb[1] = usage[1]! & fill[1]!
    if (!isRandom && length === 6) {
      cdb.writeUInt16BE(lba % 2 ** 16, 2)
      cdb[4] = count & usage[4]!
    } else if (!isRandom && length === 10) {
      cdb.writeUInt32BE(lba % 2 ** 32, 2)
      cdb.writeUInt16BE(count, 7)
    } else if (!isRandom && length === 12) {
      cdb.writeUInt32BE(lba % 2 ** 32, 2)
      cdb.writeUInt32BE(count, 6)
    } else if (!isRandom) {
      cdb.writeBigUInt64BE(BigInt(lba), 2)
      cdb.writeUInt32BE(usage[10] === 0 ? 0 : count, 10)
      if (usage[10] === 0) cdb[13] = count
    }
    // What must be 0 is, or every second command would end there.
    for (let byte = 2; byte < length; byte++) cdb[byte]! &= usage[byte]!
    return cdb.subarray(0, length - cut)
  })

const dataLength = fc.oneof(
  fc.constantFrom(0, 8, 24, 40, BLOCK, 2 * BLOCK, 8 * BLOCK, 16 * BLOCK, 2 ** 17),
  fc.nat({ max: 20 * BLOCK }),
)

interface Case {
  readonly cdb: Uint8Array
  readonly outBytes: number | undefined
  readonly inBytes: number | undefined
  readonly salt: number
  readonly pieceBytes: number
  readonly isLater: boolean
  readonly failsAfter: number
  readonly isUnmapList: boolean
  readonly ranges: readonly (readonly [number, number])[]
}

const anyCase: fc.Arbitrary<Case> = fc.record({
  cdb: fc.oneof({ arbitrary: anyCdb, weight: 1 }, { arbitrary: likelyCdb, weight: 9 }),
  outBytes: fc.option(dataLength, { nil: undefined }),
  inBytes: fc.option(dataLength, { nil: undefined }),
  salt: fc.nat({ max: 7 }),
  pieceBytes: fc.constantFrom(1 << 20, 4096, 700, 64),
  isLater: fc.boolean(),
  failsAfter: fc.constantFrom(-1, -1, -1, -1, 0, 1, 2),
  isUnmapList: fc.boolean(),
  ranges: fc.array(fc.tuple(smallNumber, fc.nat({ max: 12 })), { maxLength: 4 }),
})

function dataOutOf({ outBytes, salt, isUnmapList, ranges }: Case): Buffer | undefined {
  if (outBytes === undefined) return undefined
  const data = salt === 0 ? Buffer.alloc(outBytes) : pattern(outBytes, salt)
  if (isUnmapList && outBytes >= 8) {
    data.writeUInt16BE(ranges.length * 16, 2)
    for (const [index, [lba, count]] of ranges.entries()) {
      if (24 + index * 16 > outBytes) break
      data.writeBigUInt64BE(BigInt(lba), 8 + index * 16)
      data.writeUInt32BE(count, 16 + index * 16)
    }
  }
  return data
}

/** Sends one command and checks everything that must hold for each. Returns how it ended. */
async function check(one: Case): Promise<string> {
  const before = pattern(COUNT * BLOCK)
  const contents = Buffer.from(before)
  const dataOut = dataOutOf(one)
  const request = scsiRequest(one.cdb, {
    ...(dataOut === undefined ? {} : { dataOut }),
    ...(one.inBytes === undefined ? {} : { dataInBytes: one.inBytes }),
    pieceBytes: one.pieceBytes,
  })
  const memory = request.dataIn.toBuffer()
  const { handler } = new Initiator(visibleDisk(contents, one.isLater, one.failsAfter))
  // Straight from the handler: it must not throw.
  const completion: unknown = await handler(request)
  if (!isCompletion(completion)) throw new Error('no completion')
  const { status, dataIn } = outcomeOf(request, completion)
  if (completion.result === 'unsupported') throw new Error('an answer without sense data')
  const { bytesWritten } = completion.result === 'ok' ? completion : { bytesWritten: 0 }
  const writtenBytes = bytesWritten ?? request.dataIn.byteLength
  if (!(writtenBytes >= 0 && writtenBytes <= request.dataIn.byteLength))
    throw new Error(`${writtenBytes} bytes`)
  const after = request.dataIn.toBuffer()
  if (completion.result === 'ok' && !after.subarray(writtenBytes).equals(memory.subarray(writtenBytes))) {
    throw new Error('bytes behind the answer were touched')
  }
  // A WRITE whose initiator brought no data but room for some writes what is there, and so nobody learns anything new.
  const oldBytes = Buffer.alloc(64, OLD_BYTE)
  if (dataOut === undefined && dataIn.includes(oldBytes) && !contents.includes(oldBytes)) {
    throw new Error('Data-In carries old bytes')
  }
  const ranges = changeableRanges(one.cdb, dataOut)
  for (let block = 0; block < COUNT; block++) {
    const [from, to] = [block * BLOCK, (block + 1) * BLOCK]
    if (contents.subarray(from, to).equals(before.subarray(from, to))) continue
    if (!ranges.some(([lba, count]) => lba <= block && block < lba + count)) {
      throw new Error(`block ${block} changed, which the command does not name`)
    }
    if (status !== 'GOOD' && one.failsAfter < 0 && status !== 'E/1D/00') {
      throw new Error(`${status}, but block ${block} changed`)
    }
  }
  return status
}

async function forMany(
  t: ExecutionContext,
  count: number,
  property: (one: Case) => Promise<void>,
): Promise<void> {
  const seed = Number(process.env.SCSI_SEED ?? Date.now() % 2 ** 31)
  t.log(`SCSI_SEED=${seed}`)
  await fc.assert(fc.asyncProperty(anyCase, property), { seed, numRuns: count })
}

test('scsi: any CDB with any data has one answer, within its memory, and changes only the blocks it names', async (t) => {
  const statuses = new Map<string, number>()
  await forMany(t, 5000, async (one) => {
    const status = await check(one)
    statuses.set(status, (statuses.get(status) ?? 0) + 1)
  })
  t.log([...statuses].map(([status, count]) => `${status} ${count}`).join(', '))
  // The cases are good for something only if they come to all kinds of ends.
  for (const status of ['GOOD', '5/20/00', '5/21/00', '5/24/00', 'E/1D/00', '3/11/00', '3/0C/00']) {
    t.true(statuses.has(status), status)
  }
})

test('scsi: the operation codes from 00 to FF all have an answer, with any flags', async (t) => {
  for (let opcode = 0; opcode < 256; opcode++) {
    for (const flags of [0x00, 0x08, 0x10, 0x12, 0x0c, 0x0d, 0xff]) {
      const cdb = Buffer.alloc(32)
      cdb.set([opcode, flags])
      for (const [outBytes, inBytes] of [
        [undefined, undefined],
        [1024, undefined],
        [undefined, 4096],
        [512, 512],
      ] as const) {
        await check({
          cdb,
          outBytes,
          inBytes,
          salt: 1,
          pieceBytes: 4096,
          isLater: false,
          failsAfter: -1,
          isUnmapList: false,
          ranges: [],
        })
      }
    }
  }
  t.pass()
})

test('scsi: the checks of these tests notice a block too many and a byte too many', async (t) => {
  const cdb = Buffer.from([0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0])
  const range = changeableRanges(cdb)
  t.deepEqual(range, [[1n, 1n]])
  t.deepEqual(changeableRanges(Buffer.alloc(16)), [])
  const one: Case = {
    cdb,
    outBytes: BLOCK,
    inBytes: undefined,
    salt: 2,
    pieceBytes: 4096,
    isLater: false,
    failsAfter: -1,
    isUnmapList: false,
    ranges: [],
  }
  t.is(await check(one), 'GOOD')
  // Read as VERIFY, the same change would be one that the command does not name.
  t.deepEqual(changeableRanges(Buffer.from([0x2f, ...cdb.subarray(1)])), [])
})
