import {
  closeSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeSync,
} from 'node:fs'
import { setImmediate as turn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import test from 'ava'
import fc from 'fast-check'
import type { ErrorCode } from '../../src/errors.ts'
import { native } from '../../src/native.ts'
import { BlockRequestType, SharedMemory, VhostUserFrontEnd } from '../../src/testing/index.ts'
import { socketPair } from '../../src/testing/socket-pair.ts'
import { encodeMessage, FrontEndRequest, ProtocolFeature } from '../../src/transport/vhost-user/messages.ts'
import {
  encodeMemoryTable,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
} from '../../src/transport/vhost-user/payloads.ts'
import { MiB } from '../../src/units.ts'
import { FakeGuest, type FakeGuestOptions } from '../helpers/fake-guest.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { randomFrom } from '../helpers/random.ts'
import { until } from '../helpers/until.ts'
import { expectServed, heldDisk, listen, start } from '../helpers/vhost-user-bench.ts'

const EVENT_IDX = 1n << 29n
const INDIRECT_DESC = 1n << 28n

// What the modules were read from is still being closed when the first test begins.
test.before(() => until(() => !readdirSync('/proc/self/fd').some(isOpenModule)))

function isOpenModule(fd: string): boolean {
  try {
    return /\.[mc]?[jt]s$/.test(readlinkSync(`/proc/self/fd/${fd}`))
  } catch {
    return false // closed since
  }
}

// ---- front-ends that break the protocol -----------------------------------------------------------------------

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
    t.is(bench.errors.at(-1)?.family, 'peer')
    t.deepEqual(bench.events.slice(-3), ['attached', 'degraded', 'detached'])
    guest.close()
    t.is(openFdCount(), fdCount)
    await expectServed(t, bench)
    t.is(openFdCount(), fdCount)
  },
})
const configured = { started: false }

for (const [name, payload] of [
  ['SET_VRING_NUM', encodeVringState({ index: 255, num: 8 })],
  ['SET_VRING_BASE', encodeVringState({ index: 255, num: 0 })],
  ['GET_VRING_BASE', encodeVringState({ index: 255, num: 0 })],
  ['SET_VRING_ENABLE', encodeVringState({ index: 255, num: 1 })],
  ['SET_VRING_NUM', encodeVringState({ index: 0xffff_ffff, num: 8 })],
  [
    'SET_VRING_ADDR',
    encodeVringAddress({ index: 255, flags: 0, descriptor: 0n, used: 0n, available: 0n, log: 0n }),
  ],
] as const) {
  const index = payload.readUInt32LE(0)
  test.serial(protocolError, `row 36: ${name} for queue ${index}`, 'ERR_VHOST_QUEUE_INDEX', ({ frontEnd }) =>
    frontEnd.send(name, payload),
  )
}
for (const name of ['SET_VRING_KICK', 'SET_VRING_CALL', 'SET_VRING_ERR'] as const) {
  test.serial(
    protocolError,
    `row 36: ${name} for queue 255`,
    'ERR_VHOST_QUEUE_INDEX',
    ({ frontEnd, driver }) =>
      frontEnd.send(name, encodeVringFd({ index: 255, attached: true }), [driver.callFd]),
  )
  test.serial(protocolError, `row 47: ${name} with a file`, 'ERR_VHOST_FD', ({ frontEnd, memory }) =>
    frontEnd.send(name, encodeVringFd({ index: 0, attached: true }), [memory.fd]),
  )
  test.serial(protocolError, `row 47: ${name} with a folder`, 'ERR_VHOST_FD', ({ frontEnd }) => {
    const folder = openSync('/', 'r')
    frontEnd.send(name, encodeVringFd({ index: 0, attached: true }), [folder])
    closeSync(folder)
  })
  test.serial(protocolError, `row 47: ${name} with a closed socket`, 'ERR_VHOST_FD', ({ frontEnd }) => {
    const [one, other] = socketPair()
    native.closeFd(other)
    frontEnd.send(name, encodeVringFd({ index: 0, attached: true }), [one])
    native.closeFd(one)
  })
}

for (const num of [0, 3, 2048, 32769, 65535, 0xffff_ffff]) {
  test.serial(protocolError, `row 22: a queue of size ${num}`, 'ERR_RING_SIZE', ({ frontEnd }) =>
    frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 1, num })),
  )
}

for (const [part, addresses] of [
  ['descriptors', { descriptor: 8n, available: 0n, used: 0n }],
  ['available ring', { descriptor: 0n, available: 1n, used: 0n }],
  ['used ring', { descriptor: 0n, available: 0n, used: 2n }],
] as const) {
  test.serial(protocolError, `row 21: misaligned ${part}`, 'ERR_RING_ADDRESS', ({ frontEnd }) =>
    frontEnd.send('SET_VRING_ADDR', encodeVringAddress({ index: 1, flags: 0, log: 0n, ...addresses })),
  )
}

const someAddresses = encodeVringAddress({
  index: 1,
  flags: 0,
  descriptor: 0n,
  used: 0n,
  available: 0n,
  log: 0n,
})
const sendKick = ({ frontEnd, driver }: FakeGuest): void =>
  frontEnd.send('SET_VRING_KICK', encodeVringFd({ index: 1, attached: true }), [driver.kickFd])
test.serial(
  protocolError,
  'row 46: ring addresses before the memory',
  'ERR_VHOST_ORDER',
  ({ frontEnd }) => frontEnd.send('SET_VRING_ADDR', someAddresses),
  configured,
)
test.serial(protocolError, 'row 46: a kick before size and addresses', 'ERR_VHOST_ORDER', sendKick)
test.serial(protocolError, 'row 46: a kick before the addresses', 'ERR_VHOST_ORDER', (guest) => {
  guest.frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 1, num: 64 }))
  sendKick(guest)
})
test.serial(protocolError, 'row 46: features while a queue runs', 'ERR_VHOST_ORDER', ({ frontEnd }) =>
  frontEnd.send('SET_FEATURES', encodeU64(frontEnd.features & ~EVENT_IDX)),
)
test.serial(protocolError, 'row 46: a new size while the queue runs', 'ERR_VHOST_ORDER', ({ frontEnd }) =>
  frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 0, num: 32 })),
)
test.serial(protocolError, 'row 46: a new base while the queue runs', 'ERR_VHOST_ORDER', ({ frontEnd }) =>
  frontEnd.send('SET_VRING_BASE', encodeVringState({ index: 0, num: 1 })),
)
test.serial(
  protocolError,
  'row 46: new addresses while the queue runs',
  'ERR_VHOST_ORDER',
  ({ frontEnd, driver }) =>
    frontEnd.send(
      'SET_VRING_ADDR',
      encodeVringAddress({
        index: 0,
        flags: 0,
        log: 0n,
        ...driver.addresses,
        descriptor: driver.addresses.descriptor + 16n,
      }),
    ),
)
test.serial(
  protocolError,
  'features that were not offered',
  'ERR_VHOST_FEATURES',
  ({ frontEnd }) => frontEnd.send('SET_FEATURES', encodeU64(frontEnd.features | (1n << 34n))),
  configured,
)

const WHOLE = { guestAddress: 0n, userAddress: 0n, sizeBytes: 4096n, mmapOffsetBytes: 0n }
const ALL_ONES = 0xffff_ffff_ffff_ffffn
for (const [what, regions] of [
  ['row 37: a region of size 0', [{ ...WHOLE, sizeBytes: 0n }]],
  ['row 37: a region whose size and offset wrap', [{ ...WHOLE, mmapOffsetBytes: ALL_ONES - 4095n }]],
  ['row 37: a region whose guest addresses wrap', [{ ...WHOLE, guestAddress: ALL_ONES - 4094n }]],
  ['row 37: a region whose user addresses wrap', [{ ...WHOLE, userAddress: ALL_ONES - 4094n }]],
  ['row 37: a region of 2^64 - 1 bytes', [{ ...WHOLE, sizeBytes: ALL_ONES }]],
  [
    'row 38: regions that overlap for the guest',
    [WHOLE, { ...WHOLE, userAddress: 8192n, guestAddress: 4095n }],
  ],
  [
    'row 38: regions that overlap for the front-end',
    [WHOLE, { ...WHOLE, guestAddress: 8192n, userAddress: 4095n }],
  ],
  ['row 39: a region that is longer than its file', [{ ...WHOLE, sizeBytes: 1n << 30n }]],
] as const) {
  test.serial(
    protocolError,
    what,
    'ERR_MEMORY_REGION',
    ({ frontEnd, memory }) =>
      frontEnd.send(
        'SET_MEM_TABLE',
        encodeMemoryTable(regions),
        regions.map(() => memory.fd),
      ),
    configured,
  )
}
test.serial(protocolError, 'a region that is removed twice', 'ERR_MEMORY_REGION', async ({ frontEnd }) => {
  const memory = new SharedMemory({ guestAddress: 0n, userAddress: 0n, sizeBytes: 4096 })
  await frontEnd.addMemory(memory)
  await frontEnd.removeMemory(memory)
  await frontEnd.removeMemory(memory).catch(() => {})
  memory.close()
})
test.serial(
  protocolError,
  'row 42: SET_INFLIGHT_FD with a descriptor',
  'ERR_VHOST_FEATURES',
  ({ frontEnd, driver }) => frontEnd.send('SET_INFLIGHT_FD', Buffer.alloc(24, 0xff), [driver.callFd]),
)
test.serial(protocolError, 'row 44: a message of version 2', 'ERR_VHOST_MESSAGE', ({ frontEnd }) =>
  frontEnd.sendBytes(encodeMessage(FrontEndRequest.GET_FEATURES, 2, Buffer.alloc(0))),
)
test.serial(protocolError, 'row 44: a message of 2^32 - 1 bytes', 'ERR_VHOST_SIZE', ({ frontEnd }) => {
  const message = encodeMessage(FrontEndRequest.SET_MEM_TABLE, 1, Buffer.alloc(0))
  message.writeUInt32LE(0xffff_ffff, 8)
  frontEnd.sendBytes(message)
})

test.serial(
  'row 45: an unknown request is refused if asked, else ignored, and the connection lives',
  async (t) => {
    const bench = await listen(t)
    const { frontEnd, disk } = await start(t, bench)
    frontEnd.sendBytes(encodeMessage(1000, 1, Buffer.alloc(100)))
    frontEnd.sendBytes(encodeMessage(1000, 9, Buffer.alloc(0)))
    t.deepEqual(await frontEnd.answerTo(1000), encodeU64(1n))
    await disk.flush()
  },
)

test.serial('rows 21, 46: a ring outside the memory breaks its queue only', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  const error = native.eventfdCreate()
  const { frontEnd, driver } = guest
  await frontEnd.command('SET_VRING_NUM', encodeVringState({ index: 1, num: 64 }))
  await frontEnd.command('SET_VRING_ADDR', someAddresses)
  await frontEnd.command('SET_VRING_ERR', encodeVringFd({ index: 1, attached: true }), [error])
  await frontEnd.command('SET_VRING_KICK', encodeVringFd({ index: 1, attached: true }), [driver.kickFd])
  await frontEnd.enableQueue(1, true)
  t.is(bench.errors.at(-1)?.code, 'ERR_RING_ADDRESS')
  t.is(native.eventfdDrain(error), 1)
  native.closeFd(error)
  await guest.disk.flush()
})

test.serial('row 20: used_event may be anything and change all the time', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  const { driver, memory } = guest
  const usedEventAt = Number(driver.addresses.available - memory.userAddress) + 4 + 2 * driver.size
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat({ max: 0xffff }), { minLength: 1, maxLength: 20 }), async (events) => {
      const answer = guest.disk.flush()
      for (const event of events) {
        memory.bytes.writeUInt16LE(event, usedEventAt)
        await turn()
      }
      // The driver asked for nonsense and so has to look by itself.
      await until(() => driver.loadUsedIndex() === driver.availableIndex)
      driver.collect()
      await answer
    }),
    { numRuns: 50 },
  )
  t.deepEqual(bench.errors, [])
})

test.serial('row 23: SET_VRING_NUM 100,000 times takes no memory', async (t) => {
  const bench = await listen(t)
  const { frontEnd } = await start(t, bench)
  const message = encodeMessage(FrontEndRequest.SET_VRING_NUM, 1, encodeVringState({ index: 1, num: 1024 }))
  const many = Buffer.concat(new Array(1000).fill(message))
  let before = 0
  for (let count = 0; count < 100; count++) {
    frontEnd.sendBytes(many)
    await frontEnd.ask('GET_FEATURES')
    if (count === 20) before = memoryBytes().heap
  }
  t.true(memoryBytes().heap - before < 2 * MiB)
})

const shrunkenMemory = test.macro({
  title: (_, what: string) => `row 39: ${what} breaks the queue, not the process`,
  async exec(t, _what: string, leftBytes: number, codes: readonly ErrorCode[]) {
    const bench = await listen(t)
    const guest = await start(t, bench)
    await guest.disk.flush()
    ftruncateSync(guest.memory.fd, leftBytes)
    void guest.disk.request({ type: BlockRequestType.IN, writableBytes: 65536 })
    guest.driver.kick()
    await until(() => bench.errors.length > 0)
    t.true(codes.includes(bench.errors[0]!.code), bench.errors[0]!.code)
    guest.close()
    await until(() => !bench.server.attached)
    await expectServed(t, bench)
  },
})
test.serial(shrunkenMemory, 'memory that shrinks under a request', 4096, ['ERR_MEMORY_TRUNCATED'])
// Where the ring was, zeros are read: that may look like an index that went back.
test.serial(shrunkenMemory, 'memory that shrinks under a ring', 0, [
  'ERR_MEMORY_TRUNCATED',
  'ERR_RING_AVAIL_INDEX',
])

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

test.serial('row 48: a call eventfd that is full never makes the device wait', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  const full = native.eventfdCreate()
  writeSync(full, encodeU64(0xffff_ffff_ffff_fffen))
  await guest.frontEnd.command('SET_VRING_CALL', encodeVringFd({ index: 0, attached: true }), [full])
  const answer = guest.disk.flush()
  await until(() => guest.driver.loadUsedIndex() === 1)
  guest.driver.collect()
  await t.notThrowsAsync(answer)
  native.closeFd(full)
})

test.serial('row 49: a queue that is kicked all the time leaves the others their share', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench, { queueCount: 2 })
  let running = true
  const storm = (async () => {
    while (running) {
      guest.drivers[1]!.kick()
      await turn()
    }
  })()
  for (let count = 0; count < 100; count++) await guest.disk.flush()
  running = false
  await storm
  t.true(guest.drivers[1]!.counts.kicks > 0)
  t.is(bench.server.statsSnapshot().requests, 100)
})

// ---- anything at all ------------------------------------------------------------------------------------------

test.serial(
  'row 51: a thousand disconnects at random points leave descriptors and memory as they were',
  async (t) => {
    const bench = await listen(t)
    const seed = Date.now() % 2 ** 32
    t.log(`seed ${seed}`)
    const random = randomFrom(seed)
    let connections = 0
    const disconnect = async (times: number): Promise<void> => {
      for (let count = 0; count < times; count++) {
        await disconnectSomewhere(bench.socketPath, random)
        connections++
        await until(() => bench.server.statsSnapshot().connections === connections && !bench.server.attached)
      }
    }
    // The heap of a young process grows for a while whatever it does.
    await disconnect(1000)
    const fdCount = openFdCount()
    const before = memoryBytes()
    await disconnect(1000)
    const after = memoryBytes()
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

/** Goes a random way into a session, with requests in flight or not, and hangs up without a word. */
async function disconnectSomewhere(socketPath: string, random: () => number): Promise<void> {
  const depth = Math.floor(random() * 6)
  if (depth < 2) {
    const frontEnd = VhostUserFrontEnd.connect(socketPath)
    const message = encodeMessage(FrontEndRequest.SET_FEATURES, 1, encodeU64(0n))
    if (depth === 1) frontEnd.sendBytes(message.subarray(0, 1 + Math.floor(random() * (message.length - 1))))
    return frontEnd.close()
  }
  const guest = await FakeGuest.start(socketPath, { started: depth > 2 })
  if (depth > 3) {
    for (let count = 0; count < 8; count++) void guest.disk.read(count * 512, 512)
    if (random() < 0.5) await turn()
  }
  if (depth > 4) guest.frontEnd.send('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 }))
  guest.close()
}

/** Memory in use after a full collection. */
function memoryBytes(): { heap: number; rss: number } {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  collect()
  const { heapUsed, rss } = process.memoryUsage()
  return { heap: heapUsed, rss }
}
