import { setImmediate as turn } from 'node:timers/promises'
import test from 'ava'
import { type ErrorCode, HushringError } from '../../src/errors.ts'
import { native } from '../../src/native.ts'
import { socketPair } from '../../src/testing/socket-pair.ts'
import { BackEnd } from '../../src/transport/vhost-user/back-end.ts'
import {
  decodeHeader,
  F_PROTOCOL_FEATURES,
  FrontEndRequest,
  type FrontEndRequestName,
  HEADER_BYTES,
  HeaderFlag,
  ProtocolFeature,
  REQUEST_RULES,
} from '../../src/transport/vhost-user/messages.ts'
import {
  CONFIG_BYTES_MAX,
  decodeConfig,
  decodeU64,
  decodeVringState,
  encodeConfig,
  encodeMemoryTable,
  encodeSingleRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
} from '../../src/transport/vhost-user/payloads.ts'
import { ReceivedFds } from '../../src/transport/vhost-user/received-fds.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { RecordingSession } from '../helpers/recording-session.ts'

const ALL_PROTOCOL_FEATURES = Object.values(ProtocolFeature).reduce((all, feature) => all | feature, 0n)
const VERSION_1 = 1n << 32n
const EMPTY = Buffer.alloc(0)
const region = { guestAddress: 1n, sizeBytes: 4096n, userAddress: 2n, mmapOffsetBytes: 3n }

interface Answer {
  readonly request: number
  readonly flags: number
  readonly payload: Buffer
}

/** A back-end over a recording session, and a way to give it messages without a socket. */
class Bench {
  readonly session = new RecordingSession()
  readonly answers: Answer[] = []
  readonly backEnd = new BackEnd(this.session, (message) => {
    const { request, flags } = decodeHeader(message)
    this.answers.push({ request, flags, payload: message.subarray(HEADER_BYTES) })
  })

  /** A bench whose front-end has accepted these protocol features. */
  static async negotiated(protocolFeatures = ALL_PROTOCOL_FEATURES): Promise<Bench> {
    const bench = new Bench()
    await bench.give('SET_PROTOCOL_FEATURES', encodeU64(protocolFeatures))
    return bench
  }

  /** Handles one message. Resolves with the latest answer, if it led to one. */
  async give(
    request: FrontEndRequestName | number,
    payload: Buffer = EMPTY,
    options: { fds?: readonly number[]; needReply?: boolean } = {},
  ): Promise<Answer | undefined> {
    const before = this.answers.length
    const fds = new ReceivedFds()
    fds.add(options.fds ?? [])
    await this.backEnd.handle({
      request: typeof request === 'number' ? request : FrontEndRequest[request],
      flags: HeaderFlag.VERSION | (options.needReply ? HeaderFlag.NEED_REPLY : 0),
      payload,
      fds,
    })
    return this.answers.slice(before).at(-1)
  }
}

const refused = test.macro({
  title: (_, what: string) => `${what} is refused`,
  async exec(
    t,
    _what: string,
    request: FrontEndRequestName,
    payload: Buffer,
    code: ErrorCode,
    fds: readonly number[] = [],
  ) {
    const bench = await Bench.negotiated()
    bench.session.takeCalls()
    await t.throwsAsync(bench.give(request, payload, { fds }), { code })
    t.deepEqual(bench.session.calls, [])
    t.deepEqual(bench.answers, [])
  },
})

test('GET_FEATURES offers the session features and the protocol features bit', async (t) => {
  const bench = new Bench()
  const answer = await bench.give('GET_FEATURES')
  t.is(decodeU64(answer!.payload), bench.session.offeredFeatures | F_PROTOCOL_FEATURES)
  t.is(answer!.flags, 5)
})

test('rings count as enabled for a front-end that does not accept the protocol features bit', async (t) => {
  const bench = new Bench()
  await bench.give('SET_FEATURES', encodeU64(VERSION_1))
  t.deepEqual(bench.session.takeCalls(), [
    ['setFeatures', VERSION_1],
    ['setEnabled', 0, true],
    ['setEnabled', 1, true],
  ])
  await bench.give('SET_FEATURES', encodeU64(VERSION_1 | F_PROTOCOL_FEATURES))
  t.deepEqual(
    bench.session.takeCalls(),
    [['setFeatures', VERSION_1]],
    'the bit itself is no feature of the device',
  )
})

test('protocol features can be asked for and accepted before anything else', async (t) => {
  const bench = new Bench()
  t.is(decodeU64((await bench.give('GET_PROTOCOL_FEATURES'))!.payload), ALL_PROTOCOL_FEATURES)
  await bench.give('SET_PROTOCOL_FEATURES', encodeU64(ProtocolFeature.CONFIG))
  await t.throwsAsync(bench.give('SET_PROTOCOL_FEATURES', encodeU64(1n << 1n)), {
    code: 'ERR_VHOST_FEATURES',
  })
})

test('a request is refused before its protocol feature was negotiated', async (t) => {
  for (const [name, rule] of Object.entries(REQUEST_RULES)) {
    if (rule.protocolFeature === 0n) continue
    const bench = await Bench.negotiated(ALL_PROTOCOL_FEATURES & ~rule.protocolFeature)
    const payload = Buffer.alloc(rule.payload.minBytes)
    const request = bench.give(name as FrontEndRequestName, payload)
    await t.throwsAsync(request, { code: 'ERR_VHOST_FEATURES' }, name)
  }
})

test('row 41: a request whose protocol feature is not offered is refused', async (t) => {
  const unserved = Object.keys(FrontEndRequest).filter(
    (name) => !(name in REQUEST_RULES),
  ) as FrontEndRequestName[]
  t.true(unserved.includes('SET_LOG_BASE'))
  for (const name of unserved) {
    const bench = await Bench.negotiated()
    await t.throwsAsync(bench.give(name, Buffer.alloc(24, 0xff)), { code: 'ERR_VHOST_FEATURES' }, name)
  }
})

test('row 45: an unknown request is refused when the front-end asks, else ignored', async (t) => {
  const bench = await Bench.negotiated()
  t.is(await bench.give(1000), undefined)
  const answer = await bench.give(1000, Buffer.alloc(9), { needReply: true })
  t.deepEqual(answer, { request: 1000, flags: 5, payload: encodeU64(1n) })
  t.deepEqual(bench.session.takeCalls(), [])
})

test('a command is acknowledged when the front-end asks and REPLY_ACK was negotiated', async (t) => {
  const bench = new Bench()
  t.is(await bench.give('SET_OWNER', EMPTY, { needReply: true }), undefined)
  const first = await bench.give('SET_PROTOCOL_FEATURES', encodeU64(ProtocolFeature.REPLY_ACK), {
    needReply: true,
  })
  t.is(first?.request, FrontEndRequest.SET_PROTOCOL_FEATURES)
  t.is(await bench.give('SET_OWNER'), undefined)
  const answer = await bench.give('SET_OWNER', EMPTY, { needReply: true })
  t.deepEqual(answer, { request: FrontEndRequest.SET_OWNER, flags: 5, payload: encodeU64(0n) })
})

test('a question is answered once, also when the front-end asks for an acknowledgement', async (t) => {
  const bench = await Bench.negotiated()
  await bench.give('GET_QUEUE_NUM', EMPTY, { needReply: true })
  t.deepEqual(bench.answers, [{ request: FrontEndRequest.GET_QUEUE_NUM, flags: 5, payload: encodeU64(2n) }])
})

test('a command that fails is refused before the error ends the connection', async (t) => {
  const bench = await Bench.negotiated()
  bench.session.failures.set('setSize', new HushringError('ERR_RING_SIZE'))
  const payload = encodeVringState({ index: 0, num: 3 })
  await t.throwsAsync(bench.give('SET_VRING_NUM', payload), { code: 'ERR_RING_SIZE' })
  t.deepEqual(bench.answers, [])
  await t.throwsAsync(bench.give('SET_VRING_NUM', payload, { needReply: true }), { code: 'ERR_RING_SIZE' })
  t.deepEqual(bench.answers, [{ request: FrontEndRequest.SET_VRING_NUM, flags: 5, payload: encodeU64(1n) }])
})

test('a question that fails is not answered with something that looks like an answer', async (t) => {
  const bench = await Bench.negotiated()
  bench.session.failures.set('stop', new HushringError('ERR_VHOST_QUEUE_INDEX'))
  const payload = encodeVringState({ index: 9, num: 0 })
  await t.throwsAsync(bench.give('GET_VRING_BASE', payload, { needReply: true }), {
    code: 'ERR_VHOST_QUEUE_INDEX',
  })
  t.deepEqual(bench.answers, [])
})

test('a bad header is refused too when the front-end asks', async (t) => {
  const bench = await Bench.negotiated()
  const header = { request: FrontEndRequest.SET_FEATURES, flags: 9, payloadBytes: 7 }
  t.throws(() => bench.backEnd.checkHeader(header), { code: 'ERR_VHOST_SIZE' })
  t.deepEqual(bench.answers, [{ request: FrontEndRequest.SET_FEATURES, flags: 5, payload: encodeU64(1n) }])
})

test('ring messages reach their queue', async (t) => {
  const bench = await Bench.negotiated()
  const address = { index: 1, flags: 0, descriptor: 16n, used: 32n, available: 48n, log: 64n }
  await bench.give('SET_VRING_NUM', encodeVringState({ index: 1, num: 256 }))
  await bench.give('SET_VRING_BASE', encodeVringState({ index: 1, num: 65535 }))
  await bench.give('SET_VRING_ADDR', encodeVringAddress(address))
  await bench.give('SET_VRING_KICK', encodeVringFd({ index: 1, attached: false }))
  await bench.give('SET_VRING_ENABLE', encodeVringState({ index: 1, num: 1 }))
  await bench.give('SET_VRING_ENABLE', encodeVringState({ index: 1, num: 0 }))
  t.deepEqual(bench.session.takeCalls(), [
    ['setSize', 1, 256],
    ['setBase', 1, 65535],
    ['setAddresses', 1, { descriptor: 16n, used: 32n, available: 48n, log: 64n }],
    ['setKick', 1, -1],
    ['setEnabled', 1, true],
    ['setEnabled', 1, false],
  ])
})

test('GET_VRING_BASE answers when the queue is drained, not before', async (t) => {
  const bench = await Bench.negotiated()
  let drain = (): void => {}
  bench.session.drained = new Promise((resolve) => {
    drain = resolve
  })
  const answer = bench.give('GET_VRING_BASE', encodeVringState({ index: 1, num: 0 }))
  await turn()
  t.deepEqual(bench.answers, [])
  drain()
  t.deepEqual(decodeVringState((await answer)!.payload), { index: 1, num: 4711 })
})

test.serial('eventfds are handed over to the queue they are for', async (t) => {
  const bench = await Bench.negotiated()
  const before = openFdCount()
  const fds = [native.eventfdCreate(), native.eventfdCreate(), native.eventfdCreate()] as const
  await bench.give('SET_VRING_KICK', encodeVringFd({ index: 0, attached: true }), { fds: [fds[0]] })
  await bench.give('SET_VRING_CALL', encodeVringFd({ index: 1, attached: true }), { fds: [fds[1]] })
  await bench.give('SET_VRING_ERR', encodeVringFd({ index: 0, attached: true }), { fds: [fds[2]] })
  t.deepEqual(bench.session.takeCalls(), [
    ['setKick', 0, fds[0]],
    ['setCall', 1, fds[1]],
    ['setError', 0, fds[2]],
  ])
  t.is(openFdCount(), before + 3, 'the queue closes them')
  for (const fd of fds) native.closeFd(fd)
})

const NO_FD = encodeVringFd({ index: 0, attached: false })
const ONE_FD = encodeVringFd({ index: 0, attached: true })
test(refused, 'a kick without the eventfd it promises', 'SET_VRING_KICK', ONE_FD, 'ERR_VHOST_FD')
test(refused, 'a kick with an eventfd it denies', 'SET_VRING_KICK', NO_FD, 'ERR_VHOST_FD', [0])
test(refused, 'a descriptor with a message that takes none', 'SET_OWNER', EMPTY, 'ERR_VHOST_FD', [0])
test(
  refused,
  'a memory table with a descriptor too few',
  'SET_MEM_TABLE',
  encodeMemoryTable([region]),
  'ERR_VHOST_FD',
)
test(refused, 'a region without its descriptor', 'ADD_MEM_REG', encodeSingleRegion(region), 'ERR_VHOST_FD')
test(refused, 'a request socket that is missing', 'SET_BACKEND_REQ_FD', EMPTY, 'ERR_VHOST_FD')
test(
  refused,
  'a ring that asks for dirty-page logging',
  'SET_VRING_ADDR',
  encodeVringAddress({ index: 0, flags: 1, descriptor: 0n, used: 0n, available: 0n, log: 0n }),
  'ERR_VHOST_FEATURES',
)
test(
  refused,
  'an enable flag of 2',
  'SET_VRING_ENABLE',
  encodeVringState({ index: 0, num: 2 }),
  'ERR_VHOST_MESSAGE',
)
test(
  refused,
  'a split ring base of 65536',
  'SET_VRING_BASE',
  encodeVringState({ index: 0, num: 65536 }),
  'ERR_VHOST_MESSAGE',
)
test(refused, 'a device status of 256', 'SET_STATUS', encodeU64(256n), 'ERR_VHOST_MESSAGE')
test(
  refused,
  'row 50: a write past the end of the configuration space',
  'SET_CONFIG',
  encodeConfig({ offsetBytes: 59, flags: 0, bytes: Buffer.alloc(2) }),
  'ERR_VHOST_CONFIG',
)
test(
  refused,
  'row 50: a write whose offset and size add up past 2^32',
  'SET_CONFIG',
  encodeConfig({ offsetBytes: 0xffff_ffff, flags: 0, bytes: Buffer.alloc(2) }),
  'ERR_VHOST_CONFIG',
)

test('memory messages reach the session with their descriptors', async (t) => {
  const bench = await Bench.negotiated()
  const other = { ...region, guestAddress: 8192n }
  await bench.give('SET_MEM_TABLE', encodeMemoryTable([region, other]), { fds: [100, 101] })
  await bench.give('ADD_MEM_REG', encodeSingleRegion(other), { fds: [102] })
  await bench.give('REM_MEM_REG', encodeSingleRegion(region))
  t.deepEqual(bench.session.takeCalls(), [
    [
      'setMemory',
      [
        { ...region, fd: 100 },
        { ...other, fd: 101 },
      ],
    ],
    ['addRegion', { ...other, fd: 102 }],
    ['removeRegion', region],
  ])
})

test('REM_MEM_REG may come with the descriptor of the region', async (t) => {
  const bench = await Bench.negotiated()
  await t.notThrowsAsync(bench.give('REM_MEM_REG', encodeSingleRegion(region), { fds: [100] }))
})

test('there are as many memory slots as GET_MAX_MEM_SLOTS says, and no more', async (t) => {
  const bench = await Bench.negotiated()
  const count = Number(decodeU64((await bench.give('GET_MAX_MEM_SLOTS'))!.payload))
  t.is(count, 509)
  bench.session.memory.regions.length = count - 1
  await t.notThrowsAsync(bench.give('ADD_MEM_REG', encodeSingleRegion(region), { fds: [100] }))
  bench.session.memory.regions.length = count
  await t.throwsAsync(bench.give('ADD_MEM_REG', encodeSingleRegion(region)), { code: 'ERR_VHOST_MESSAGE' })
})

test('row 50: the configuration space reads as zeros behind its end, and not at all behind 256 bytes', async (t) => {
  const bench = await Bench.negotiated()
  const read = async (offsetBytes: number, lengthBytes: number): Promise<Buffer | undefined> => {
    const payload = encodeConfig({ offsetBytes, flags: 0, bytes: Buffer.alloc(lengthBytes, 0xee) })
    const answer = await bench.give('GET_CONFIG', payload)
    return answer!.payload.length === 0 ? undefined : decodeConfig(answer!.payload).bytes
  }
  t.deepEqual(await read(58, 4), Buffer.of(58, 59, 0, 0))
  t.is((await read(0, CONFIG_BYTES_MAX))?.length, CONFIG_BYTES_MAX)
  t.is(await read(1, CONFIG_BYTES_MAX), undefined)
  t.is(await read(0xffff_ffff, 1), undefined)
  t.is(await read(0, 0), undefined)
})

test('a write to a read-only field is refused and the connection lives', async (t) => {
  const bench = await Bench.negotiated()
  const payload = encodeConfig({ offsetBytes: 32, flags: 0, bytes: Buffer.of(1) })
  t.is(decodeU64((await bench.give('SET_CONFIG', payload, { needReply: true }))!.payload), 0n)
  t.deepEqual(bench.session.takeCalls(), [['writeConfig', 32, [1]]])
  bench.session.writable = false
  t.is(decodeU64((await bench.give('SET_CONFIG', payload, { needReply: true }))!.payload), 1n)
})

test('the device status is kept, and 0 or RESET_DEVICE resets the device', async (t) => {
  const bench = await Bench.negotiated()
  const status = async (): Promise<bigint> => decodeU64((await bench.give('GET_STATUS'))!.payload)
  t.is(await status(), 0n)
  await bench.give('SET_STATUS', encodeU64(15n))
  t.is(await status(), 15n)
  t.deepEqual(bench.session.takeCalls(), [])
  await bench.give('SET_STATUS', encodeU64(0n))
  t.deepEqual(bench.session.takeCalls(), [['reset']])
  await bench.give('SET_STATUS', encodeU64(7n))
  await bench.give('RESET_DEVICE')
  t.deepEqual(bench.session.takeCalls(), [['reset']])
  t.is(await status(), 0n)
})

test.serial('a change of the configuration space is told over the socket for our requests', async (t) => {
  const before = openFdCount()
  const bench = await Bench.negotiated()
  t.false(bench.backEnd.sendConfigChange(), 'there is no socket yet')
  const [older, olderFd] = socketPair()
  await bench.give('SET_BACKEND_REQ_FD', EMPTY, { fds: [olderFd] })
  const [ours, theirs] = socketPair()
  await bench.give('SET_BACKEND_REQ_FD', EMPTY, { fds: [theirs] })
  t.true(bench.backEnd.sendConfigChange())
  const message = Buffer.alloc(32)
  t.is(native.unixReceive(ours, message, 0, 32).bytes, HEADER_BYTES)
  t.deepEqual(decodeHeader(message), { request: 2, flags: 1, payloadBytes: 0 })
  t.is(native.unixReceive(older, message, 0, 32).bytes, 0, 'the older socket was closed')
  native.closeFd(ours)
  t.false(bench.backEnd.sendConfigChange(), 'the front-end closed it')
  bench.backEnd.close()
  native.closeFd(older)
  t.is(openFdCount(), before)
})

test('a front-end that never reads our requests does not hold us up', async (t) => {
  const bench = await Bench.negotiated()
  const [ours, theirs] = socketPair()
  await bench.give('SET_BACKEND_REQ_FD', EMPTY, { fds: [theirs] })
  for (let count = 0; count < 2000; count++) t.true(bench.backEnd.sendConfigChange())
  bench.backEnd.close()
  native.closeFd(ours)
})
