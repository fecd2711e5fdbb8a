import test, { type ExecutionContext } from 'ava'
import { of } from 'rxjs'
import { BlockRequest } from '../../src/handlers/block/block-request.ts'
import {
  type Answer,
  type BlockDevice,
  blockDevice,
  compose,
  type Handler,
  memoryDisk,
  virtioBlk,
} from '../../src/handlers/index.ts'
import { type Completion, isCompletion, RingRequest } from '../../src/ring/request.ts'
import { ask, describe, pattern, turn } from '../helpers/block-requests.ts'

const IN = 0
const OUT = 1
const FLUSH = 4
const GET_ID = 8
const DISCARD = 11
const WRITE_ZEROES = 13

const F_RO = 1n << 5n
const F_FLUSH = 1n << 9n
const F_DISCARD = 1n << 13n
const F_WRITE_ZEROES = 1n << 14n
const ALL = F_FLUSH | F_DISCARD | F_WRITE_ZEROES

const CAPACITY_BYTES = 64 * 1024

interface Wire {
  readonly type: number
  readonly sector?: bigint
  readonly readable?: Uint8Array
  readonly writable?: Uint8Array
  /** Cuts the data into pieces of so many bytes. */
  readonly pieceBytes?: number
}

/** What the ring makes of a chain: the header copied out, the status byte kept back. */
function ringRequest({ type, sector = 0n, readable, writable, pieceBytes = 1 << 20 }: Wire): RingRequest {
  const request = new RingRequest(16)
  const header = Buffer.from(request.headerBytes.buffer)
  header.writeUInt32LE(type, 0)
  header.writeUInt32LE(0x77, 4)
  header.writeBigUInt64LE(sector, 8)
  for (const [list, bytes] of [
    [request.readable, readable],
    [request.writable, writable],
  ] as const) {
    if (bytes === undefined) continue
    const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    for (let at = 0; at < buffer.length; at += pieceBytes) {
      list.append(buffer, at, Math.min(pieceBytes, buffer.length - at))
    }
  }
  return request
}

const run = async (handler: Handler<RingRequest>, wire: Wire): Promise<Completion> =>
  (await handler(ringRequest(wire))) as Completion

interface Seen {
  readonly verb: string
  readonly offsetBytes: number
  readonly lengthBytes: number
  readonly mayUnmap: boolean
}

/** A disk that notes what reaches it. */
function recordingDisk(
  options: {
    answer?: (io: BlockRequest) => Answer
    readOnly?: boolean
    blockBytes?: 512 | 4096
    serial?: string
  } = {},
): {
  disk: BlockDevice
  seen: Seen[]
} {
  const { answer = (io) => io.ok(), ...shape } = options
  const seen: Seen[] = []
  const note = (io: BlockRequest): Answer => {
    const { verb, offsetBytes, lengthBytes, mayUnmap } = io
    seen.push({ verb, offsetBytes, lengthBytes, mayUnmap })
    return answer(io)
  }
  const verbs = { read: note, write: note, flush: note, discard: note, writeZeroes: note }
  return { disk: blockDevice({ capacityBytes: CAPACITY_BYTES, ...verbs, ...shape }), seen }
}

function range(sector: number | bigint, sectorCount: number, flags = 0): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeBigUInt64LE(BigInt(sector), 0)
  bytes.writeUInt32LE(sectorCount, 8)
  bytes.writeUInt32LE(flags, 12)
  return bytes
}
const block = Buffer.alloc(512)

// ---- what is answered, and what reaches the disk ------------------------------------------------------------------

interface Expected {
  readonly answer: string
  /** What the ring writes into the used element, beside the status byte; undefined: all writable data. */
  readonly bytesWritten?: number | undefined
  readonly seen?: readonly string[]
}

const isAnswered = test.macro({
  async exec(
    t,
    _title: string,
    wire: Wire,
    expected: Expected,
    options?: Parameters<typeof recordingDisk>[0],
  ) {
    const { disk, seen } = recordingDisk(options)
    const completion = await run(virtioBlk(disk).connect(ALL), wire)
    t.is(describe(completion), expected.answer)
    t.deepEqual(
      seen.map(
        ({ verb, offsetBytes, lengthBytes, mayUnmap }) =>
          `${verb} ${offsetBytes}+${lengthBytes}${mayUnmap ? ' unmap' : ''}`,
      ),
      expected.seen ?? [],
    )
    if (completion.result === 'ok') t.is(completion.bytesWritten, expected.bytesWritten)
  },
  title: (_, title) => `virtio-blk: ${title}`,
})

test(
  isAnswered,
  'IN reads from its sector',
  { type: IN, sector: 3n, writable: Buffer.alloc(1024) },
  {
    answer: 'ok',
    seen: ['read 1536+1024'],
  },
)
test(
  isAnswered,
  'OUT writes to its sector and fills nothing',
  { type: OUT, sector: 127n, readable: block },
  {
    answer: 'ok',
    seen: ['write 65024+512'],
  },
)
test(
  isAnswered,
  'OUT with room for data as well fills none of it',
  { type: OUT, readable: block, writable: block },
  {
    answer: 'ok',
    bytesWritten: 0,
    seen: ['write 0+512'],
  },
)
test(
  isAnswered,
  'FLUSH has no range, whatever its sector',
  { type: FLUSH, sector: 2n ** 64n - 1n },
  {
    answer: 'ok',
    seen: ['flush 0+0'],
  },
)
test(
  isAnswered,
  'FLUSH with room for data fills none of it',
  { type: FLUSH, writable: block },
  {
    answer: 'ok',
    bytesWritten: 0,
    seen: ['flush 0+0'],
  },
)
test(
  isAnswered,
  'DISCARD takes one range',
  { type: DISCARD, readable: range(8, 16) },
  {
    answer: 'ok',
    seen: ['discard 4096+8192'],
  },
)
test(
  isAnswered,
  'WRITE_ZEROES takes several ranges, in their order, with and without unmap',
  { type: WRITE_ZEROES, readable: Buffer.concat([range(8, 8, 1), range(0, 1), range(0, 0)]), pieceBytes: 5 },
  { answer: 'ok', seen: ['writeZeroes 4096+4096 unmap', 'writeZeroes 0+512'] },
)

// Row 30: data not a multiple of 512; past the end; overflow.
const PAST = { answer: 'ERR_BLOCK_RANGE' }
const ODD = { answer: 'ERR_BLOCK_ALIGNMENT' }
const NO_DATA = { answer: 'ERR_BLOCK_DATA' }
test(isAnswered, 'IN of 511 bytes is refused', { type: IN, writable: Buffer.alloc(511) }, ODD)
test(isAnswered, 'OUT of 513 bytes is refused', { type: OUT, readable: Buffer.alloc(513) }, ODD)
test(
  isAnswered,
  'IN of the last block is served',
  { type: IN, sector: 127n, writable: block },
  {
    answer: 'ok',
    seen: ['read 65024+512'],
  },
)
test(isAnswered, 'IN of one block too far is refused', { type: IN, sector: 128n, writable: block }, PAST)
test(
  isAnswered,
  'OUT that reaches past the end is refused',
  { type: OUT, sector: 127n, readable: Buffer.alloc(1024) },
  PAST,
)
test(
  isAnswered,
  'IN larger than the disk is refused',
  { type: IN, writable: Buffer.alloc(CAPACITY_BYTES + 512) },
  PAST,
)
for (const sector of [2n ** 32n, 2n ** 44n, 2n ** 53n + 1n, 2n ** 55n, 2n ** 63n, 2n ** 64n - 1n]) {
  test(isAnswered, `IN at sector ${sector} does not wrap around`, { type: IN, sector, writable: block }, PAST)
  test(
    isAnswered,
    `DISCARD at sector ${sector} does not wrap around`,
    { type: DISCARD, readable: range(sector, 1) },
    PAST,
  )
}
test(
  isAnswered,
  'IN off the blocks of a 4096-byte disk is refused',
  { type: IN, sector: 1n, writable: Buffer.alloc(4096) },
  ODD,
  {
    blockBytes: 4096,
  },
)
test(
  isAnswered,
  'IN of half a block of a 4096-byte disk is refused',
  { type: IN, writable: Buffer.alloc(2048) },
  ODD,
  {
    blockBytes: 4096,
  },
)
test(
  isAnswered,
  'a sector has 512 bytes on a 4096-byte disk too',
  { type: IN, sector: 8n, writable: Buffer.alloc(4096) },
  {
    answer: 'ok',
    seen: ['read 4096+4096'],
  },
  { blockBytes: 4096 },
)

// Row 31: unknown types.
for (const [name, type] of [
  ['SCSI_CMD', 2],
  ['FLUSH_OUT', 5],
  ['GET_LIFETIME', 10],
  ['SECURE_ERASE', 14],
  ['ZONE_APPEND', 15],
  ['IN with the legacy barrier bit', 0x8000_0000],
  ['a type with a high bit', 0x0001_0000],
  ['a type of all ones', 0xffff_ffff],
] as const) {
  test(
    isAnswered,
    `${name} is unsupported`,
    { type, readable: block, writable: block },
    { answer: 'unsupported' },
  )
}

// Row 32: data in the wrong direction.
test(isAnswered, 'IN without room for data is refused', { type: IN }, NO_DATA)
test(isAnswered, 'IN with only data to read is refused', { type: IN, readable: block }, NO_DATA)
test(isAnswered, 'OUT without data is refused', { type: OUT }, NO_DATA)
test(isAnswered, 'OUT with only room for data is refused', { type: OUT, writable: block }, NO_DATA)
test(isAnswered, 'GET_ID without room is refused', { type: GET_ID, readable: block }, NO_DATA)

// Row 33: ranges.
const SEGMENTS = { answer: 'ERR_BLOCK_SEGMENTS' }
for (const [name, type] of [
  ['DISCARD', DISCARD],
  ['WRITE_ZEROES', WRITE_ZEROES],
] as const) {
  const manyRanges = (count: number): Buffer =>
    Buffer.concat(Array.from({ length: count }, () => range(0, 1)))
  const verb = name === 'DISCARD' ? 'discard' : 'writeZeroes'
  test(isAnswered, `${name} without a range is refused`, { type }, SEGMENTS)
  test(isAnswered, `${name} of 15 bytes is refused`, { type, readable: range(0, 1).subarray(1) }, SEGMENTS)
  test(isAnswered, `${name} of 24 bytes is refused`, { type, readable: Buffer.alloc(24) }, SEGMENTS)
  test(
    isAnswered,
    `${name} of 16 ranges is done`,
    { type, readable: manyRanges(16) },
    {
      answer: 'ok',
      seen: Array(16).fill(`${verb} 0+512`),
    },
  )
  test(isAnswered, `${name} of 17 ranges is refused`, { type, readable: manyRanges(17) }, SEGMENTS)
  test(
    isAnswered,
    `${name} of too many sectors is refused`,
    { type, readable: range(0, 2 ** 23 + 1) },
    SEGMENTS,
  )
  test(isAnswered, `${name} past the end is refused`, { type, readable: range(127, 2) }, PAST)
  test(isAnswered, `${name} off the blocks is refused`, { type, readable: range(1, 8) }, ODD, {
    blockBytes: 4096,
  })
  test(
    isAnswered,
    `${name} with a reserved flag is unsupported`,
    { type, readable: range(0, 1, 2) },
    { answer: 'unsupported' },
  )
  test(
    isAnswered,
    `${name} with one bad range does none`,
    { type, readable: Buffer.concat([range(0, 1), range(127, 2)]) },
    PAST,
  )
  test(
    isAnswered,
    `${name} on a read-only disk is refused`,
    { type, readable: range(0, 1) },
    { answer: 'ERR_BLOCK_READ_ONLY' },
    { readOnly: true },
  )
}
test(
  isAnswered,
  'DISCARD with unmap is unsupported',
  { type: DISCARD, readable: range(0, 1, 1) },
  { answer: 'unsupported' },
)

// Row 35.
test(
  isAnswered,
  'OUT to a read-only disk is refused',
  { type: OUT, readable: block },
  { answer: 'ERR_BLOCK_READ_ONLY' },
  {
    readOnly: true,
  },
)

for (const [name, feature, wire] of [
  ['DISCARD', F_DISCARD, { type: DISCARD, readable: range(0, 1) }],
  ['WRITE_ZEROES', F_WRITE_ZEROES, { type: WRITE_ZEROES, readable: range(0, 1) }],
] as const) {
  test(`virtio-blk: ${name} that was offered but not accepted is unsupported`, async (t) => {
    const { disk, seen } = recordingDisk()
    t.is(describe(await run(virtioBlk(disk).connect(ALL & ~feature), wire)), 'unsupported')
    t.deepEqual(seen, [])
  })
}

test('virtio-blk: verbs that the disk does not have are unsupported', async (t) => {
  const disk = blockDevice({ capacityBytes: 4096, read: () => {}, write: () => {} })
  const handler = virtioBlk(disk).connect(ALL)
  for (const type of [FLUSH, DISCARD, WRITE_ZEROES]) {
    t.is(describe(await run(handler, { type, readable: range(0, 1) })), 'unsupported')
  }
})

// ---- data -------------------------------------------------------------------------------------------------------

test('virtio-blk: data that is written is read back, however the driver cuts it', async (t) => {
  const handler = virtioBlk(memoryDisk({ capacityBytes: CAPACITY_BYTES })).connect(ALL)
  const written = pattern(8192)
  for (const [index, pieceBytes] of [8192, 512, 1000, 7, 1].entries()) {
    const sector = BigInt(index * 16)
    t.is(describe(await run(handler, { type: OUT, sector, readable: written, pieceBytes })), 'ok')
    const read = Buffer.alloc(8192)
    const completion = await run(handler, { type: IN, sector, writable: read, pieceBytes: pieceBytes + 3 })
    t.like(completion, { result: 'ok', bytesWritten: undefined })
    t.deepEqual(read, written)
  }
})

const hasId = test.macro({
  async exec(t, serial: string, roomBytes: number, expectedText: string, bytesWritten: number) {
    const { disk } = recordingDisk({ serial })
    const id = Buffer.alloc(roomBytes, 0xee)
    const completion = await run(virtioBlk(disk).connect(ALL), { type: GET_ID, writable: id, pieceBytes: 7 })
    t.like(completion, { result: 'ok', bytesWritten })
    t.is(id.subarray(0, bytesWritten).toString('latin1'), expectedText)
    t.true(id.subarray(bytesWritten).every((byte) => byte === 0xee))
  },
  title: (_, serial, roomBytes) => `virtio-blk: GET_ID of "${serial}" into ${roomBytes} bytes`,
})
test(hasId, 'disk0', 20, `disk0${'\0'.repeat(15)}`, 20)
test(hasId, '01234567890123456789', 20, '01234567890123456789', 20)
test(hasId, '', 20, '\0'.repeat(20), 20)
test(hasId, 'disk0', 32, `disk0${'\0'.repeat(15)}`, 20)
test(hasId, 'disk0', 4, 'disk', 4)

// Row 34: the store answers short or fails.
const failsWith = test.macro({
  async exec(t, _title: string, answer: (io: BlockRequest) => Answer, expected: string) {
    const { disk } = recordingDisk()
    const handler = virtioBlk(compose(disk, [() => answer])).connect(ALL)
    const completion = await ask(
      handler as never,
      ringRequest({ type: IN, writable: Buffer.alloc(1024) }) as never,
    )
    t.is(describe(completion), expected)
  },
  title: (_, title) => `virtio-blk: a read that is answered ${title}`,
})
test(failsWith, 'with all its bytes is done', (io) => io.ok(1024), 'ok')
test(failsWith, 'with fewer bytes fails', (io) => io.ok(1023), 'ERR_STORE_SHORT')
test(failsWith, 'with more bytes fails', async (io) => io.ok(1025), 'ERR_STORE_SHORT')
test(failsWith, 'with no bytes fails', (io) => of(io.ok(0)), 'ERR_STORE_SHORT')
test(failsWith, 'with a failure fails', (io) => io.fail(new Error('EIO')), 'ERR_STORE_IO')
test(failsWith, 'with nothing leaves it to the pipeline', (() => undefined) as never, 'ERR_HANDLER_ANSWER')

test('virtio-blk: the number of bytes of a write is not reported as bytes filled', async (t) => {
  const { disk } = recordingDisk({ answer: (io) => io.ok(512) })
  const completion = await run(virtioBlk(disk).connect(ALL), { type: OUT, readable: block })
  t.like(completion, { result: 'ok', bytesWritten: undefined })
})

// ---- writethrough -----------------------------------------------------------------------------------------------

test('virtio-blk: a driver that does not accept FLUSH has every write flushed before it is answered', async (t) => {
  const { disk, seen } = recordingDisk()
  const handler = virtioBlk(disk).connect(F_DISCARD | F_WRITE_ZEROES)
  for (const wire of [
    { type: OUT, readable: block },
    { type: IN, writable: Buffer.alloc(512) },
    { type: WRITE_ZEROES, readable: range(0, 1) },
  ]) {
    t.is(describe(await run(handler, wire)), 'ok')
  }
  t.deepEqual(
    seen.map(({ verb }) => verb),
    ['write', 'flush', 'read', 'writeZeroes', 'flush'],
  )
})

test('virtio-blk: a write whose flush fails has failed; a write that fails is not flushed', async (t) => {
  const failing = (verb: string) =>
    recordingDisk({ answer: (io) => (io.verb === verb ? io.fail(new Error('EIO')) : io.ok()) })
  const flushFails = failing('flush')
  t.is(
    describe(await run(virtioBlk(flushFails.disk).connect(0n), { type: OUT, readable: block })),
    'ERR_STORE_IO',
  )
  const writeFails = failing('write')
  t.is(
    describe(await run(virtioBlk(writeFails.disk).connect(0n), { type: OUT, readable: block })),
    'ERR_STORE_IO',
  )
  t.deepEqual(
    writeFails.seen.map(({ verb }) => verb),
    ['write'],
  )
})

test('virtio-blk: a disk without flush is not flushed', async (t) => {
  const disk = blockDevice({ capacityBytes: 4096, read: () => {}, write: () => {} })
  t.is(describe(await run(virtioBlk(disk).connect(0n), { type: OUT, readable: block })), 'ok')
})

// ---- ranges in turn ---------------------------------------------------------------------------------------------

test('virtio-blk: ranges are done one after the other, and the first failure ends it', async (t) => {
  const waiting: (() => void)[] = []
  let count = 0
  const { disk, seen } = recordingDisk({
    answer: (io) => {
      const completion = ++count === 2 ? io.fail(new Error('EIO')) : io.ok()
      return new Promise((resolve) => {
        waiting.push(() => resolve(completion))
      })
    },
  })
  const readable = Buffer.concat([range(0, 1), range(1, 1), range(2, 1)])
  const answer = run(virtioBlk(disk).connect(ALL), { type: DISCARD, readable })
  t.is(seen.length, 1)
  waiting.shift()!()
  await turn()
  t.is(seen.length, 2)
  waiting.shift()!()
  t.is(describe(await answer), 'ERR_STORE_IO')
  t.is(seen.length, 2)
})

test('virtio-blk: ranges are read once, so a driver that changes them after the check changes nothing', async (t) => {
  const readable = Buffer.concat([range(0, 1), range(1, 1)])
  const { disk, seen } = recordingDisk({
    answer: async (io) => {
      readable.fill(0xff)
      return io.ok()
    },
  })
  t.is(describe(await run(virtioBlk(disk).connect(ALL), { type: DISCARD, readable })), 'ok')
  t.deepEqual(
    seen.map(({ offsetBytes }) => offsetBytes),
    [0, 512],
  )
})

// ---- pooling ----------------------------------------------------------------------------------------------------

function capturing(answer: (io: BlockRequest, index: number) => Answer): {
  handler: Handler<RingRequest>
  objects: BlockRequest[]
} {
  const objects: BlockRequest[] = []
  const { disk } = recordingDisk({ answer: (io) => answer(io, objects.push(io) - 1) })
  return { handler: virtioBlk(disk).connect(ALL), objects }
}

test('virtio-blk: a request has an object as long as it stands, and again when it stands for another one', async (t) => {
  const { handler, objects } = capturing((io) => io.ok())
  const request = ringRequest({ type: IN, writable: Buffer.alloc(512) })
  await handler(request)
  await run(handler, { type: IN, sector: 1n, writable: block })
  await handler(request)
  t.is(objects[0], objects[2])
  t.not(objects[0], objects[1])
  t.deepEqual(
    objects.map(({ offsetBytes }) => offsetBytes),
    [0, 512, 0],
  )
})

test('virtio-blk: what another device left with a request is not taken for an object of its own', async (t) => {
  const { handler, objects } = capturing((io) => io.ok())
  const request = ringRequest({ type: IN, writable: Buffer.alloc(512) })
  request.companion = new RingRequest(0)
  await handler(request)
  t.true(objects[0] instanceof BlockRequest)
})

test('virtio-blk: a request asked while another is being answered has an object of its own', (t) => {
  const { handler, objects } = capturing((io, index) => {
    if (index === 0) handler(ringRequest({ type: IN, sector: 5n, writable: Buffer.alloc(512) }))
    t.is(io.offsetBytes, index === 0 ? 0 : 2560)
    return io.ok()
  })
  t.true(isCompletion(handler(ringRequest({ type: IN, writable: Buffer.alloc(512) }))))
  t.not(objects[0], objects[1])
})

test('virtio-blk: a request of the disk is aborted with the one of the ring and keeps its memory', (t) => {
  let pins = 0
  const { handler, objects } = capturing(() => new Promise(() => {}))
  const request = ringRequest({ type: IN, writable: Buffer.alloc(512) })
  request.memory = { pin: () => pins++, unpin: () => pins-- }
  handler(request)
  t.is(objects[0]!.signal, request.signal)
  const release = objects[0]!.hold()
  t.is(pins, 1)
  release()
  t.is(pins, 0)
})

// ---- features and configuration ---------------------------------------------------------------------------------

const ALWAYS = (1n << 1n) | (1n << 2n) | (1n << 6n) | (1n << 10n) | (1n << 12n)

const offers = test.macro({
  exec(t: ExecutionContext, _title: string, disk: BlockDevice, features: bigint) {
    t.is(virtioBlk(disk).features, ALWAYS | features)
  },
  title: (_, title) => `virtio-blk: ${title}`,
})
test(offers, 'a disk with every verb offers them', recordingDisk().disk, ALL)
test(
  offers,
  'a read-only disk offers RO and nothing that writes',
  recordingDisk({ readOnly: true }).disk,
  F_RO | F_FLUSH,
)
test(
  offers,
  'a disk that can only write offers no more',
  blockDevice({ capacityBytes: 512, read: () => {}, write: () => {} }),
  0n,
)

/** Name, offset and width of each field of the configuration space (virtio 1.3, 5.2.4). */
const FIELDS: readonly [name: string, offset: number, bytes: number][] = [
  ['capacity', 0, 8],
  ['size_max', 8, 4],
  ['seg_max', 12, 4],
  ['cylinders', 16, 2],
  ['heads', 18, 1],
  ['sectors', 19, 1],
  ['blk_size', 20, 4],
  ['physical_block_exp', 24, 1],
  ['alignment_offset', 25, 1],
  ['min_io_size', 26, 2],
  ['opt_io_size', 28, 4],
  ['writeback', 32, 1],
  ['unused0', 33, 1],
  ['num_queues', 34, 2],
  ['max_discard_sectors', 36, 4],
  ['max_discard_seg', 40, 4],
  ['discard_sector_alignment', 44, 4],
  ['max_write_zeroes_sectors', 48, 4],
  ['max_write_zeroes_seg', 52, 4],
  ['write_zeroes_may_unmap', 56, 1],
]

/** The fields of a configuration that are not 0. */
function fieldsOf(config: Uint8Array): Record<string, number> {
  const bytes = Buffer.from(config)
  const named = FIELDS.map(
    ([name, offset, width]) => [name, bytes.readUIntLE(offset, Math.min(width, 6))] as const,
  )
  return Object.fromEntries(named.filter(([, value]) => value !== 0))
}

test('virtio-blk: the configuration tells the shape and the limits', (t) => {
  const config = virtioBlk(recordingDisk().disk).config(3)
  t.is(config.length, 96)
  t.true(config.subarray(57).every((byte) => byte === 0))
  t.deepEqual(fieldsOf(config), {
    capacity: 128,
    size_max: 1 << 20,
    seg_max: 126,
    blk_size: 512,
    physical_block_exp: 3,
    min_io_size: 8,
    num_queues: 3,
    max_discard_sectors: 2 ** 23,
    max_discard_seg: 16,
    discard_sector_alignment: 1,
    max_write_zeroes_sectors: 2 ** 17,
    max_write_zeroes_seg: 16,
    write_zeroes_may_unmap: 1,
  })
})

test('virtio-blk: fields of features that are not offered are 0, and 2^53 bytes fit', (t) => {
  const capacityBytes = 2 ** 53 - 4096
  const disk = blockDevice({ capacityBytes, blockBytes: 4096, read: () => {} })
  const config = virtioBlk(disk).config(1)
  t.deepEqual(fieldsOf(config), {
    capacity: capacityBytes / 512,
    size_max: 1 << 20,
    seg_max: 126,
    blk_size: 4096,
    min_io_size: 1,
    num_queues: 1,
  })
})

test('virtio-blk: the configuration cannot be written, and closing it closes the disk', async (t) => {
  const device = virtioBlk(memoryDisk({ capacityBytes: 4096 }))
  t.false(device.writeConfig(32, Uint8Array.of(1)))
  t.deepEqual(device.framing, { headerBytes: 16, statusByte: true })
  const handler = device.connect(ALL)
  await device.close()
  t.is(describe(await run(handler, { type: IN, writable: Buffer.alloc(512) })), 'ERR_CLOSED')
})
