import { closeSync, openSync, readFileSync } from 'node:fs'
import { setImmediate as turn } from 'node:timers/promises'
import test from 'ava'
import fc from 'fast-check'
import type { ErrorCode } from '../../src/errors.ts'
import { memoryDisk } from '../../src/handlers/index.ts'
import { native } from '../../src/native.ts'
import {
  type HostileRow,
  hostileRows,
  playHostileRow,
  SharedMemory,
  VhostUserFrontEnd,
} from '../../src/testing/index.ts'
import { socketPair } from '../../src/testing/socket-pair.ts'
import { encodeMessage, FrontEndRequest, ProtocolFeature } from '../../src/transport/vhost-user/messages.ts'
import {
  encodeInflight,
  encodeMemoryTable,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
} from '../../src/transport/vhost-user/payloads.ts'
import { MiB } from '../../src/units.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'
import { FakeGuest, type FakeGuestOptions } from '../helpers/fake-guest.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { until } from '../helpers/until.ts'
import { CAPACITY_BYTES, expectServed, heldDisk, listen, start } from '../helpers/vhost-user-bench.ts'

const INDIRECT_DESC = 1n << 28n

// ---- what any back-end must survive -----------------------------------------------------------------------------

/** Plays a row of the test kit against a fresh server, which must do what the row demands, say so, and go on. */
const played = test.macro({
  title: (_, { title }: HostileRow, strictChains: boolean) => `${title}${strictChains ? ' (strict)' : ''}`,
  async exec(t, row: HostileRow, strictChains: boolean) {
    const readOnly = row.title === 'row 35: a write to a read-only disk'
    const device = memoryDisk({ capacityBytes: CAPACITY_BYTES, readOnly })
    const bench = await listen(t, { device, strictChains })
    const fdCount = openFdCount()
    const { outcome } = await playHostileRow(row, { socketPath: bench.socketPath })
    const expected = (strictChains ? row.strictExpectation : undefined) ?? row.expectation
    t.is(outcome, expected)
    await until(() => !bench.server.attached && openFdCount() === fdCount)
    const codes = row.strictExpectation === undefined || strictChains ? row.codes : undefined
    t.is(bench.errors.length > 0, codes !== undefined)
    for (const { code, family } of bench.errors) {
      t.true(codes?.includes(code), code)
      t.is(family, 'peer')
    }
    if (expected === 'protocol error')
      t.deepEqual(bench.events.slice(-3), ['attached', 'degraded', 'detached'])
    await expectServed(t, bench)
    await until(() => openFdCount() === fdCount)
  },
})
for (const row of hostileRows) {
  test.serial(played, row, false)
  if (row.strictExpectation !== undefined) test.serial(played, row, true)
}

// ---- what only this back-end has ----------------------------------------------------------------------------------

/** Tries something on a fresh server that must end the connection with `code`, and nothing else. */
const protocolError = test.macro({
  title: (_, what: string) => what,
  async exec(
    t,
    _what: string,
    code: ErrorCode,
    attack: (guest: FakeGuest) => void | Promise<void>,
    options: FakeGuestOptions = {},
  ) {
    const bench = await listen(t)
    const fdCount = openFdCount()
    const guest = await FakeGuest.start(bench.socketPath, options)
    await attack(guest)
    await guest.frontEnd.hungUp()
    await until(() => !bench.server.attached)
    t.is(bench.errors.at(-1)?.code, code)
    t.deepEqual(bench.events.slice(-3), ['attached', 'degraded', 'detached'])
    guest.close()
    await expectServed(t, bench)
    t.is(openFdCount(), fdCount)
  },
})
test.serial(
  protocolError,
  'row 22: a queue of size 2048, where 1024 is the most',
  'ERR_RING_SIZE',
  ({ frontEnd }) => frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 1, num: 2048 })),
)
test.serial(
  protocolError,
  'features that were not offered',
  'ERR_VHOST_FEATURES',
  ({ frontEnd }) => frontEnd.send('SET_FEATURES', encodeU64(frontEnd.features | (1n << 34n))),
  { started: false },
)
test.serial(protocolError, 'a region that is removed twice', 'ERR_MEMORY_REGION', async ({ frontEnd }) => {
  const memory = new SharedMemory({ guestAddress: 0n, userAddress: 0n, sizeBytes: 4096 })
  await frontEnd.addMemory(memory)
  await frontEnd.removeMemory(memory)
  await frontEnd.removeMemory(memory).catch(() => {})
  memory.close()
})

const someAddresses = encodeVringAddress({
  index: 1,
  flags: 0,
  descriptor: 0n,
  used: 0n,
  available: 0n,
  log: 0n,
})

/** The row of the test kit with this title. */
function rowOf(title: string): HostileRow {
  return hostileRows.find((row) => row.title === title)!
}
const INFLIGHT = { queueCount: 2, queueSize: 64, mmapOffsetBytes: 0n, mmapSizeBytes: 4096n }
for (const [what, changes] of [
  ['for no queue', { queueCount: 0 }],
  ['for more queues than there are', { queueCount: 5 }],
  ['for 65535 queues', { queueCount: 0xffff }],
  ['for rings of size 0', { queueSize: 0 }],
  ['for rings larger than any may be', { queueSize: 2048 }],
  ['for rings of 65535', { queueSize: 0xffff }],
  ['that is one byte short', { mmapSizeBytes: 2n * 1088n - 1n }],
  ['of size 0', { mmapSizeBytes: 0n }],
  ['that is longer than its file', { mmapSizeBytes: 1n << 30n }],
  ['of 2^64 - 1 bytes', { mmapSizeBytes: 2n ** 64n - 1n }],
  ['at an offset that is no multiple of 64', { mmapOffsetBytes: 8n }],
  ['at an offset behind the end of its file', { mmapOffsetBytes: 1n << 40n }],
  ['whose offset and size wrap', { mmapOffsetBytes: 2n ** 64n - 64n }],
] as const) {
  test.serial(
    protocolError,
    `row 42: an in-flight region ${what}`,
    'ERR_VHOST_INFLIGHT',
    ({ frontEnd, memory }) =>
      frontEnd.send('SET_INFLIGHT_FD', encodeInflight({ ...INFLIGHT, ...changes }), [memory.fd]),
    { started: false },
  )
}
for (const queueCount of [0, 5]) {
  test.serial(
    protocolError,
    `row 42: GET_INFLIGHT_FD for ${queueCount} queues`,
    'ERR_VHOST_INFLIGHT',
    ({ frontEnd }) => frontEnd.send('GET_INFLIGHT_FD', encodeInflight({ ...INFLIGHT, queueCount })),
  )
}
for (const [what, count] of [
  ['without its descriptor', 0],
  ['with two descriptors', 2],
] as const) {
  test.serial(protocolError, `row 42: an in-flight region ${what}`, 'ERR_VHOST_FD', ({ frontEnd, memory }) =>
    frontEnd.send('SET_INFLIGHT_FD', encodeInflight(INFLIGHT), new Array(count).fill(memory.fd)),
  )
}
for (const [what, open] of [
  ['a pipe', () => socketPair()],
  ['an eventfd', () => [native.eventfdCreate()]],
  ['a folder', () => [openSync('/', 'r')]],
  ['a file that may only be read', () => [openSync(process.execPath, 'r')]],
] as const) {
  test.serial(
    protocolError,
    `row 42: an in-flight region in ${what}`,
    'ERR_VHOST_INFLIGHT',
    ({ frontEnd }) => {
      const fds = open()
      frontEnd.send('SET_INFLIGHT_FD', encodeInflight(INFLIGHT), [fds[0]!])
      for (const fd of fds) closeSync(fd)
    },
    { started: false },
  )
}
test.serial(
  protocolError,
  'row 42: an in-flight region while a queue runs',
  'ERR_VHOST_ORDER',
  ({ frontEnd, memory }) => frontEnd.send('SET_INFLIGHT_FD', encodeInflight(INFLIGHT), [memory.fd]),
)
test.serial(
  protocolError,
  'row 42: a ring that is larger than its in-flight region',
  'ERR_VHOST_INFLIGHT',
  async ({ frontEnd, memory }) => {
    await frontEnd.setInflight({ ...INFLIGHT, fd: memory.fd })
    frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 1, num: 128 }))
  },
  { started: false },
)
test.serial(
  protocolError,
  'row 42: an in-flight region that is smaller than a ring',
  'ERR_VHOST_INFLIGHT',
  async ({ frontEnd, memory }) => {
    await frontEnd.command('SET_VRING_NUM', encodeVringState({ index: 1, num: 128 }))
    frontEnd.send('SET_INFLIGHT_FD', encodeInflight(INFLIGHT), [memory.fd])
  },
  { started: false },
)
test.serial(
  protocolError,
  'row 42: a ring that has no in-flight region',
  'ERR_VHOST_INFLIGHT',
  async ({ frontEnd, memory }) => {
    await frontEnd.setInflight({ ...INFLIGHT, fd: memory.fd })
    frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 2, num: 64 }))
  },
  { started: false },
)

test.serial('row 23: SET_VRING_NUM 100,000 times takes no memory', async (t) => {
  const bench = await listen(t)
  const play = (): Promise<unknown> =>
    playHostileRow(rowOf('row 23: SET_VRING_NUM 100,000 times'), { socketPath: bench.socketPath })
  await play()
  const before = await (await memoryBytes()).heap
  await play()
  t.true((await memoryBytes()).heap - before < 2 * MiB)
})

test.serial(
  'row 40: memory that is replaced or removed stays mapped for the requests in flight',
  async (t) => {
    const { device, held } = heldDisk()
    const bench = await listen(t, { device })
    const guest = await start(t, bench)
    const other = new SharedMemory({ guestAddress: 1n << 40n, userAddress: 1n << 40n, sizeBytes: 65536 })
    t.teardown(() => other.close())
    await guest.frontEnd.addMemory(other)
    const headerAt = guest.memory.allocate(17)
    const submitRead = (): Promise<number> =>
      guest.driver.submit([
        { address: guest.memory.guestAddressOf(headerAt), lengthBytes: 16, writable: false },
        { address: other.guestAddressOf(512), lengthBytes: 512, writable: true },
        { address: guest.memory.guestAddressOf(headerAt + 16), lengthBytes: 1, writable: true },
      ])
    for (const change of [
      () => guest.frontEnd.removeMemory(other),
      () => guest.frontEnd.setMemory(guest.memory),
    ]) {
      other.bytes.fill(0)
      guest.memory.bytes[headerAt + 16] = 0xff
      const answer = submitRead()
      await until(() => held.length === 1)
      await change()
      held.pop()!()
      t.is(await answer, 513)
      t.is(guest.memory.bytes[headerAt + 16], 0)
      t.deepEqual(
        other.bytes.subarray(512, 1024),
        Buffer.alloc(512, 0xa5),
        'the data arrived where it was to go',
      )
      const refused = submitRead()
      t.is(await refused, 0, 'a new request cannot reach the memory that is gone')
      t.is(held.length, 0)
      await guest.frontEnd.setMemory(guest.memory, other)
    }
  },
)

test.serial(
  'row 51: a thousand disconnects at random points leave descriptors and memory as they were',
  async (t) => {
    const bench = await listen(t)
    const seed = Date.now() % 2 ** 31
    t.log(`seeds ${seed} and ${seed + 1}`)
    const disconnect = async (seed: number): Promise<void> => {
      const row = rowOf('row 51: a thousand disconnects at random points')
      await playHostileRow(row, { socketPath: bench.socketPath, seed })
      await until(() => !bench.server.attached)
    }
    // The heap of a young process grows for a while whatever it does.
    await disconnect(seed)
    const fdCount = openFdCount()
    const before = await memoryBytes()
    await disconnect(seed + 1)
    const after = await memoryBytes()
    t.log(`heap ${before.heap} -> ${after.heap} bytes, RSS ${before.rss} -> ${after.rss} bytes`)
    t.is(openFdCount(), fdCount)
    t.true(after.heap - before.heap < 2 * MiB)
    // RSS breathes with the collector by more than any single leak; a region left mapped shows below.
    t.true(after.rss - before.rss < 48 * MiB)
    t.false(
      readFileSync('/proc/self/maps', 'utf8').includes('hushring-testing'),
      'guest memory is still mapped',
    )
    t.deepEqual(bench.errors, [])
    await expectServed(t, bench)
  },
)

test.serial('a stream of messages that was tampered with never takes the server down', async (t) => {
  const bench = await listen(t)
  const region = { guestAddress: 0n, userAddress: 0n, sizeBytes: 4096n, mmapOffsetBytes: 0n }
  const messages = [
    encodeMessage(FrontEndRequest.GET_FEATURES, 1, Buffer.alloc(0)),
    encodeMessage(FrontEndRequest.SET_PROTOCOL_FEATURES, 1, encodeU64(ProtocolFeature.REPLY_ACK)),
    encodeMessage(FrontEndRequest.SET_FEATURES, 9, encodeU64((1n << 32n) | INDIRECT_DESC)),
    encodeMessage(FrontEndRequest.SET_MEM_TABLE, 9, encodeMemoryTable([region])),
    encodeMessage(FrontEndRequest.SET_VRING_NUM, 1, encodeVringState({ index: 0, num: 8 })),
    encodeMessage(FrontEndRequest.SET_VRING_ADDR, 1, someAddresses),
    encodeMessage(FrontEndRequest.SET_VRING_KICK, 1, encodeVringFd({ index: 0, attached: true })),
    encodeMessage(FrontEndRequest.GET_VRING_BASE, 1, encodeVringState({ index: 0, num: 0 })),
  ]
  const memory = new SharedMemory({ sizeBytes: 8192 })
  const eventfd = native.eventfdCreate()
  const fdCount = openFdCount()
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ message: fc.nat({ max: messages.length - 1 }), fds: fc.nat({ max: 3 }) }), {
        minLength: 1,
        maxLength: 12,
      }),
      fc.array(fc.record({ message: fc.nat(), byte: fc.nat(), value: fc.nat({ max: 255 }) }), {
        maxLength: 4,
      }),
      async (script, changes) => {
        const stream = script.map(({ message }) => Buffer.from(messages[message]!))
        for (const { message, byte, value } of changes) {
          const target = stream[message % stream.length]!
          target[byte % target.length] = value
        }
        const frontEnd = VhostUserFrontEnd.connect(bench.socketPath)
        for (const [index, bytes] of stream.entries()) {
          const fds = [memory.fd, eventfd, memory.fd].slice(0, script[index]!.fds)
          frontEnd.sendBytes(bytes, fds)
        }
        await turn()
        frontEnd.close()
        await until(() => bench.events.at(-1) === 'detached' && !bench.server.attached)
        bench.events.length = 0
        t.true(bench.errors.every(({ family }) => family === 'peer'))
        t.is(openFdCount(), fdCount)
      },
    ),
    { numRuns: 300 },
  )
  await expectServed(t, bench)
  memory.close()
  native.closeFd(eventfd)
})

/** Memory in use after a full collection. */
async function memoryBytes(): Promise<{ heap: number; rss: number }> {
  await collectGarbage()
  const { heapUsed, rss } = process.memoryUsage()
  return { heap: heapUsed, rss }
}
