import test from 'ava'
import fc from 'fast-check'
import type { HushringError } from '../../src/errors.ts'
import {
  checkReplyHeader,
  checkRequestHeader,
  decodeHeader,
  encodeMessage,
  FrontEndRequest,
  HEADER_BYTES,
  HeaderFlag,
  PAYLOAD_BYTES_MAX,
  REQUEST_RULES,
  requestName,
} from '../../src/transport/vhost-user/messages.ts'
import {
  CONFIG_BYTES_MAX,
  decodeConfig,
  decodeMemoryTable,
  decodeSingleRegion,
  decodeU64,
  decodeVringAddress,
  decodeVringFd,
  decodeVringState,
  encodeConfig,
  encodeMemoryTable,
  encodeSingleRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
  TABLE_REGION_COUNT_MAX,
} from '../../src/transport/vhost-user/payloads.ts'

const u32 = fc.nat({ max: 0xffff_ffff })
const u64 = fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn })
const region = fc.record({ guestAddress: u64, sizeBytes: u64, userAddress: u64, mmapOffsetBytes: u64 })

/** One row for each kind of payload: values of it, and both directions. */
const codecs = [
  { kind: '64-bit number', values: u64, encode: encodeU64, decode: decodeU64 },
  {
    kind: 'vring state',
    values: fc.record({ index: u32, num: u32 }),
    encode: encodeVringState,
    decode: decodeVringState,
  },
  {
    kind: 'vring address',
    values: fc.record({ index: u32, flags: u32, descriptor: u64, used: u64, available: u64, log: u64 }),
    encode: encodeVringAddress,
    decode: decodeVringAddress,
  },
  {
    kind: 'vring descriptor',
    values: fc.record({ index: fc.nat({ max: 255 }), attached: fc.boolean() }),
    encode: encodeVringFd,
    decode: decodeVringFd,
  },
  {
    kind: 'memory table',
    values: fc.array(region, { maxLength: TABLE_REGION_COUNT_MAX }),
    encode: encodeMemoryTable,
    decode: decodeMemoryTable,
  },
  { kind: 'single region', values: region, encode: encodeSingleRegion, decode: decodeSingleRegion },
  {
    kind: 'configuration range',
    values: fc.record({
      offsetBytes: u32,
      flags: u32,
      bytes: fc.uint8Array({ maxLength: CONFIG_BYTES_MAX }).map((bytes) => Buffer.from(bytes)),
    }),
    encode: encodeConfig,
    decode: decodeConfig,
  },
] as const

/** The rows seen as one type: the values only ever meet the codec of their own row. */
interface Codec {
  readonly kind: string
  readonly values: fc.Arbitrary<unknown>
  encode(value: unknown): Buffer
  decode(payload: Buffer): unknown
}

for (const { kind, values, encode, decode } of codecs as unknown as readonly Codec[]) {
  test(`a ${kind} comes out of its payload as it went in`, (t) => {
    fc.assert(
      fc.property(values, (value) => {
        t.deepEqual(decode(encode(value)), value)
      }),
    )
  })

  test(`a ${kind} is refused when its payload is a byte longer or shorter`, (t) => {
    fc.assert(
      fc.property(values, (value) => {
        const payload = encode(value)
        for (const wrong of [payload.subarray(0, -1), Buffer.concat([payload, Buffer.alloc(1)])]) {
          t.throws(() => decode(wrong), { code: 'ERR_VHOST_SIZE' })
        }
      }),
    )
  })
}

test('payloads lie on the wire as the specification says', (t) => {
  t.is(encodeVringState({ index: 1, num: 0x0102 }).toString('hex'), '0100000002010000')
  t.is(encodeVringFd({ index: 3, attached: false }).toString('hex'), '0301000000000000')
  const address = encodeVringAddress({
    index: 7,
    flags: 1,
    descriptor: 0xd0n,
    used: 0xe0n,
    available: 0xa0n,
    log: 0xf0n,
  })
  t.is(
    address.toString('hex'),
    '0700000001000000' + 'd000000000000000' + 'e000000000000000' + 'a000000000000000' + 'f000000000000000',
    'descriptor, used, available: the order of the wire is not the order of the ring',
  )
  const table = encodeMemoryTable([{ guestAddress: 1n, sizeBytes: 2n, userAddress: 3n, mmapOffsetBytes: 4n }])
  t.is(
    table.toString('hex'),
    '0100000000000000' + '0100000000000000' + '0200000000000000' + '0300000000000000' + '0400000000000000',
  )
  t.is(encodeMessage(1, 9, Buffer.from('aa', 'hex')).toString('hex'), '010000000900000001000000' + 'aa')
})

test('a vring descriptor with reserved bits is refused', (t) => {
  t.throws(() => decodeVringFd(encodeU64(1n << 9n)), { code: 'ERR_VHOST_MESSAGE' })
})

test('a memory table that counts more regions than it has is refused', (t) => {
  const payload = encodeMemoryTable([])
  payload.writeUInt32LE(0xffff_ffff, 0)
  t.throws(() => decodeMemoryTable(payload), { code: 'ERR_VHOST_SIZE' })
})

test('a header comes out of a message as it went in', (t) => {
  fc.assert(
    fc.property(u32, u32, fc.uint8Array({ maxLength: 300 }), (request, flags, payload) => {
      const message = encodeMessage(request, flags, payload)
      t.deepEqual(decodeHeader(message), { request, flags, payloadBytes: payload.length })
      t.deepEqual(new Uint8Array(message.subarray(HEADER_BYTES)), payload)
    }),
  )
})

const badHeader = test.macro({
  title: (_, what: string) => `row 44: a header with ${what} is refused before its payload is read`,
  exec(t, _what: string, changes: object, code: HushringError['code']) {
    const good = { request: FrontEndRequest.SET_FEATURES, flags: HeaderFlag.VERSION, payloadBytes: 8 }
    t.notThrows(() => checkRequestHeader(good))
    t.throws(() => checkRequestHeader({ ...good, ...changes }), { code })
  },
})
test(badHeader, 'version 0', { flags: 0 }, 'ERR_VHOST_MESSAGE')
test(badHeader, 'version 2', { flags: 2 }, 'ERR_VHOST_MESSAGE')
test(badHeader, 'the reply flag', { flags: 5 }, 'ERR_VHOST_MESSAGE')
test(badHeader, 'a reserved flag', { flags: 0x8000_0001 }, 'ERR_VHOST_MESSAGE')
test(badHeader, 'a size of 2^32 - 1', { payloadBytes: 0xffff_ffff }, 'ERR_VHOST_SIZE')
test(badHeader, 'a size that its request does not have', { payloadBytes: 7 }, 'ERR_VHOST_SIZE')
test(badHeader, 'a region and a half', { request: 5, payloadBytes: 8 + 48 }, 'ERR_VHOST_SIZE')
test(
  badHeader,
  'more regions than a table may have',
  { request: 5, payloadBytes: 8 + 9 * 32 },
  'ERR_VHOST_SIZE',
)
test(
  badHeader,
  'an unknown request and a payload above the limit',
  { request: 1000, payloadBytes: PAYLOAD_BYTES_MAX + 1 },
  'ERR_VHOST_SIZE',
)

test('an unknown request may have any payload up to the limit', (t) => {
  t.notThrows(() => checkRequestHeader({ request: 1000, flags: 1, payloadBytes: PAYLOAD_BYTES_MAX }))
})

test('an answer is recognised by its request and its flags', (t) => {
  t.notThrows(() => checkReplyHeader({ request: 1, flags: 5, payloadBytes: 8 }, 1))
  t.throws(() => checkReplyHeader({ request: 2, flags: 5, payloadBytes: 8 }, 1), {
    code: 'ERR_VHOST_MESSAGE',
  })
  t.throws(() => checkReplyHeader({ request: 1, flags: 1, payloadBytes: 8 }, 1), {
    code: 'ERR_VHOST_MESSAGE',
  })
  t.throws(() => checkReplyHeader({ request: 1, flags: 5, payloadBytes: 4097 }, 1), {
    code: 'ERR_VHOST_SIZE',
  })
})

test('every request of the specification has a name, and every question waits for its answer', (t) => {
  for (const [name, id] of Object.entries(FrontEndRequest)) t.is(requestName(id), name as never)
  t.is(requestName(0), undefined)
  const questions = Object.entries(REQUEST_RULES).filter(([, { answered }]) => answered)
  t.deepEqual(
    questions.map(([name]) => name),
    Object.keys(REQUEST_RULES).filter((name) => name.startsWith('GET_')),
  )
})
