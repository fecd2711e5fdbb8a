import { spawnSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import test from 'ava'
import { blockDevice, memoryDisk } from '../../src/handlers/index.ts'
import { native } from '../../src/native.ts'
import { BlockRequestType, BlockStatus, VhostUserFrontEnd } from '../../src/testing/index.ts'
import { socketPair } from '../../src/testing/socket-pair.ts'
import { type VhostUserOptions, vhostUser } from '../../src/transport/vhost-user/index.ts'
import { encodeU64, encodeVringFd, encodeVringState } from '../../src/transport/vhost-user/payloads.ts'
import { FakeGuest } from '../helpers/fake-guest.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { until } from '../helpers/until.ts'
import {
  type Bench,
  CAPACITY_BYTES,
  expectServed,
  heldDisk,
  listen,
  start,
  temporaryFolder,
} from '../helpers/vhost-user-bench.ts'

const EVENT_IDX = 1n << 29n
const PROTOCOL_FEATURES_BIT = 1n << 30n

// ---- the socket ---------------------------------------------------------------------------------------------

test.serial(
  'the socket appears at exactly the path asked for, for its owner only, and goes at the end',
  async (t) => {
    const bench = await listen(t)
    t.is(bench.server.socketPath, bench.socketPath)
    const file = lstatSync(bench.socketPath)
    t.true(file.isSocket())
    t.is(file.mode & 0o777, 0o600)
    await bench.server.close()
    t.false(existsSync(bench.socketPath))
  },
)

for (const umask of [0o000, 0o077, 0o777]) {
  test.serial(`the socket has the mode asked for under the umask ${umask.toString(8)}`, async (t) => {
    const before = process.umask(umask)
    try {
      for (const socketMode of [0o600, 0o660]) {
        const socketPath = join(temporaryFolder(t), 'disk.sock')
        const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
        // The folder is there already; its mode is no matter of the socket.
        const server = await vhostUser.listen({ device, socketPath, socketMode })
        t.is(lstatSync(socketPath).mode & 0o777, socketMode)
        await server.close()
      }
    } finally {
      process.umask(before)
    }
  })
}

test.serial('a socket that nobody listens on is replaced', async (t) => {
  const path = join(temporaryFolder(t), 'disk.sock')
  native.closeFd(native.unixListen(path, 0o600, 1))
  t.true(lstatSync(path).isSocket())
  const bench = await listen(t, { socketPath: path })
  await expectServed(t, bench)
})

test.serial('a socket that somebody listens on is left alone', async (t) => {
  const bench = await listen(t)
  const error = await t.throwsAsync(listen(t, { socketPath: bench.socketPath }), {
    code: 'ERR_SOCKET_IN_USE',
  })
  t.true(error.message.includes(bench.socketPath))
  await until(() => !bench.server.attached)
  await expectServed(t, bench)
})

test.serial('what is not a socket is never removed', async (t) => {
  const folder = temporaryFolder(t)
  const file = join(folder, 'file')
  writeFileSync(file, 'precious')
  mkdirSync(join(folder, 'folder'))
  symlinkSync(file, join(folder, 'link'))
  for (const name of ['file', 'folder', 'link']) {
    await t.throwsAsync(listen(t, { socketPath: join(folder, name) }), { code: 'ERR_SOCKET_PATH' }, name)
    t.true(existsSync(join(folder, name)))
  }
})

const badPath = test.macro({
  title: (_, what: string) => `${what} is refused with one clear line`,
  async exec(t, _what: string, path: unknown, expected: object, words: RegExp) {
    const place = typeof path === 'string' ? path.replace('FOLDER', temporaryFolder(t)) : path
    const fdCount = openFdCount()
    const error = await t.throwsAsync(listen(t, { socketPath: place as string }), expected)
    t.regex(error.message, words)
    t.false(error.message.includes('\n'))
    t.is(openFdCount(), fdCount)
  },
})
test.serial(
  badPath,
  'a socket path that is too long',
  `/tmp/${'x'.repeat(103)}`,
  { instanceOf: RangeError },
  /107 bytes/,
)
test.serial(badPath, 'an empty socket path', '', { instanceOf: RangeError }, /socketPath/)
test.serial(badPath, 'a socket path with a zero byte', 'a\0b', { instanceOf: RangeError }, /socketPath/)
test.serial(badPath, 'a number as socket path', 7, { instanceOf: TypeError }, /socketPath/)
test.serial(
  badPath,
  'a missing folder',
  'FOLDER/none/x',
  { code: 'ERR_SOCKET_PATH' },
  /none does not exist; create it/,
)
test.serial(badPath, 'a file as folder', '/dev/null/x', { code: 'ERR_SOCKET_PATH' }, /null is not a folder/)

test.serial('a socket path of 107 bytes is accepted', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'x'.repeat(107 - folder.length - 1))
  t.is(Buffer.byteLength(path), 107)
  await listen(t, { socketPath: path })
  t.true(existsSync(path))
})

test.serial('a folder without permission is refused with one clear line', async (t) => {
  const folder = temporaryFolder(t)
  const script = `
    import { vhostUser } from ${JSON.stringify(new URL('../../src/transport/vhost-user/index.ts', import.meta.url).href)}
    import { memoryDisk } from ${JSON.stringify(new URL('../../src/handlers/index.ts', import.meta.url).href)}
    process.setgid?.(65534)
    process.setuid?.(65534)
    const device = memoryDisk({ capacityBytes: 4096 })
    await vhostUser.listen({ socketPath: ${JSON.stringify(join(folder, 'x'))}, device }).catch((error) => {
      console.log(error.code, error.message)
    })
    process.exit()`
  if (process.getuid?.() !== 0) {
    t.log('not run: needs root to become a user without permission')
    t.pass()
    return
  }
  const { stdout, stderr } = spawnSync(
    process.execPath,
    ['--import=tsx', '--input-type=module', '--eval', script],
    { encoding: 'utf8', timeout: 20_000 },
  )
  t.regex(stdout, /^ERR_SOCKET_PATH .*no permission in .*writable.*\n$/, stderr)
})

test.serial('a socket that another server made meanwhile is not removed', async (t) => {
  const bench = await listen(t)
  renameSync(bench.socketPath, `${bench.socketPath}.moved`)
  const other = await listen(t, { socketPath: bench.socketPath })
  await bench.server.close()
  t.true(existsSync(bench.socketPath))
  await expectServed(t, other)
})

test.serial('a socket that listens already is taken over, and its path stays', async (t) => {
  const fdCount = openFdCount()
  const path = join(temporaryFolder(t), 'activated.sock')
  const listenFd = native.unixListen(path, 0o600, 4)
  const bench = await listen(t, { listenFd })
  t.is(bench.server.socketPath, undefined)
  await expectServed(t, { ...bench, socketPath: path })
  await bench.server.close()
  t.true(existsSync(path))
  t.is(openFdCount(), fdCount)
})

test.serial('wrong options are refused by name', async (t) => {
  const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
  const socketPath = join(temporaryFolder(t), 'never.sock')
  const refuse = async (options: object, expected: object, words: RegExp): Promise<void> => {
    const error = await t.throwsAsync(vhostUser.listen(options as VhostUserOptions), expected)
    t.regex(error.message, words)
  }
  await refuse({ device, socketpath: socketPath }, { instanceOf: TypeError }, /`socketpath`/)
  await refuse({ device }, { instanceOf: TypeError }, /`socketPath`.*`undefined`/)
  await refuse({ socketPath }, { instanceOf: TypeError }, /`device`/)
  await refuse({ device, socketPath, listenFd: 3 }, { instanceOf: TypeError }, /`socketPath`.*absent beside/)
  await refuse({ device, listenFd: -1 }, { instanceOf: RangeError }, /`listenFd`/)
  await refuse({ device, listenFd: 99_999 }, { instanceOf: RangeError }, /`listenFd`.*listening Unix socket/)
  const file = openSync('/dev/null', 'r')
  await refuse({ device, listenFd: file }, { instanceOf: RangeError }, /`listenFd`.*listening Unix socket/)
  closeSync(file)
  for (const fd of socketPair()) {
    // Accepting from one that is connected, or only bound, would fail for ever.
    await refuse({ device, listenFd: fd }, { instanceOf: RangeError }, /`listenFd`.*listening Unix socket/)
    native.closeFd(fd)
  }
  await refuse({ device, listenFd: 3, socketMode: 0o600 }, { instanceOf: TypeError }, /`socketMode`.*absent/)
  await refuse({ device, socketPath, socketMode: 0o1777 }, { instanceOf: RangeError }, /`socketMode`/)
  await refuse(
    { device, socketPath, queues: { countMax: 0 } },
    { instanceOf: RangeError },
    /queues\.countMax/,
  )
  t.false(existsSync(socketPath))
})

// ---- requests -----------------------------------------------------------------------------------------------

const readsAndWrites = test.macro({
  title: (_, how: string) => `a driver reads, writes and flushes: ${how}`,
  async exec(t, _how: string, features: bigint, indirect: boolean) {
    const bench = await listen(t)
    const guest = await start(t, bench, { features })
    const data = Buffer.alloc(8192, 'hushring')
    const write = { type: BlockRequestType.OUT, sector: 3n, readable: data, pieceBytesMax: 1000, indirect }
    t.deepEqual(await guest.disk.request(write), {
      status: BlockStatus.OK,
      data: Buffer.alloc(0),
      usedBytes: 1,
    })
    const read = { type: BlockRequestType.IN, sector: 3n, writableBytes: 8192, pieceBytesMax: 777, indirect }
    t.deepEqual(await guest.disk.request(read), { status: BlockStatus.OK, data, usedBytes: 8193 })
    await guest.disk.flush()
    const many = Array.from({ length: 200 }, (_, index) => index)
    // More requests than the ring holds at once, in rounds, so that indices and slots wrap.
    for (let round = 0; round < 10; round++) {
      await Promise.all(
        many
          .slice(0, 16)
          .map((index) => guest.disk.write(index * 4096, Buffer.alloc(4096, round * 16 + index))),
      )
      const blocks = await Promise.all(many.slice(0, 16).map((index) => guest.disk.read(index * 4096, 4096)))
      for (const [index, block] of blocks.entries())
        t.deepEqual(block, Buffer.alloc(4096, round * 16 + index))
    }
    const { requests, reads, writes, flushes, bytesRead, lostNotifications, inFlight } =
      bench.server.statsSnapshot()
    t.like(
      { requests, reads, writes, flushes, lostNotifications, inFlight },
      { requests: 323, reads: 161, writes: 161, flushes: 1, lostNotifications: 0, inFlight: 0 },
    )
    t.is(bytesRead, 8192 + 160 * 4096)
  },
})
test.serial(readsAndWrites, 'event indices, direct chains', -1n, false)
test.serial(readsAndWrites, 'event indices, indirect tables', -1n, true)
test.serial(readsAndWrites, 'flags, direct chains', ~EVENT_IDX, false)
test.serial(readsAndWrites, 'flags, indirect tables', ~EVENT_IDX, true)
test.serial(readsAndWrites, 'without the protocol features bit', ~PROTOCOL_FEATURES_BIT, false)

test.serial('a silent driver is not signalled and a busy device is not kicked', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  await guest.disk.flush()
  const before = { ...guest.driver.counts }
  const answers = Array.from({ length: 16 }, (_, index) => guest.disk.read(index * 512, 512))
  await Promise.all(answers)
  const kicks = guest.driver.counts.kicks - before.kicks
  const signals = guest.driver.counts.signals - before.signals
  t.is(kicks, 1, 'the first kick wakes the device for all sixteen')
  t.is(signals, 1, 'one signal tells of all sixteen')
})

test.serial('every queue is served', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench, { queueCount: 4 })
  t.is(await guest.frontEnd.queueCount(), 4)
  const answers = guest.drivers.map((driver) => {
    const at = guest.memory.allocate(17)
    guest.memory.bytes.writeUInt32LE(BlockRequestType.FLUSH, at)
    const address = guest.memory.guestAddressOf(at)
    return driver.submit([
      { address, lengthBytes: 16, writable: false },
      { address: address + 16n, lengthBytes: 1, writable: true },
    ])
  })
  t.deepEqual(await Promise.all(answers), [1, 1, 1, 1])
})

test.serial('the configuration space tells the capacity', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  t.is((await guest.frontEnd.readConfig(0, 8))?.readBigUInt64LE(), BigInt(CAPACITY_BYTES / 512))
  t.is((await guest.frontEnd.readConfig(0, 96))?.length, 96)
  t.is(await guest.frontEnd.readConfig(200, 100), undefined)
  await guest.frontEnd.openRequestChannel()
  t.true(bench.server.notifyConfigChange())
  await guest.frontEnd.configChange()
})

// ---- the life of a queue ------------------------------------------------------------------------------------

test.serial('a kick that comes before the queue is enabled is remembered', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench, { started: false })
  await guest.frontEnd.setMemory(guest.memory)
  const answer = guest.disk.request({ type: BlockRequestType.FLUSH })
  t.is(guest.driver.counts.kicks, 1)
  await guest.frontEnd.startQueue(0, guest.driver)
  t.is((await answer).status, BlockStatus.OK)
})

test.serial('a request that came before the queue started is found without a kick', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench, { started: false })
  await guest.frontEnd.setMemory(guest.memory)
  const answer = guest.disk.request({ type: BlockRequestType.FLUSH })
  native.eventfdDrain(guest.driver.kickFd)
  await guest.frontEnd.startQueue(0, guest.driver)
  t.is((await answer).status, BlockStatus.OK)
})

test.serial('a stopped queue has answered everything and goes on where it stopped', async (t) => {
  const { device, held } = heldDisk()
  const bench = await listen(t, { device })
  const guest = await start(t, bench)
  const answers = [guest.disk.read(0, 512), guest.disk.read(512, 512)]
  await until(() => held.length === 2)
  let stoppedAt: number | undefined
  const stopping = guest.frontEnd.stopQueue(0).then((base) => {
    stoppedAt = base
  })
  held[0]!()
  for (let count = 0; count < 10; count++) await turn()
  t.is(stoppedAt, undefined, 'one request is still in flight')
  held[1]!()
  await stopping
  t.is(stoppedAt, 2)
  t.is(guest.driver.loadUsedIndex(), 2)
  const late = guest.disk.read(1024, 512)
  for (let count = 0; count < 10; count++) await turn()
  t.is(held.length, 2, 'a stopped queue takes nothing')
  await guest.frontEnd.startQueue(0, guest.driver, stoppedAt)
  await until(() => held.length === 3)
  held[2]!()
  t.deepEqual(await late, Buffer.alloc(512, 0xa5))
  t.deepEqual(await Promise.all(answers), [Buffer.alloc(512, 0xa5), Buffer.alloc(512, 0xa5)])
})

test.serial('a disabled queue takes nothing until it is enabled', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  await guest.disk.flush()
  await guest.frontEnd.enableQueue(0, false)
  const answer = guest.disk.request({ type: BlockRequestType.FLUSH })
  for (let count = 0; count < 20; count++) await turn()
  t.is(guest.driver.inFlightCount, 1)
  await guest.frontEnd.enableQueue(0, true)
  t.is((await answer).status, BlockStatus.OK)
})

test.serial('a reset device can be set up again', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  await guest.disk.flush()
  await guest.frontEnd.command('RESET_DEVICE')
  await guest.frontEnd.command('SET_FEATURES', encodeU64(guest.frontEnd.features))
  await guest.frontEnd.startQueue(0, guest.driver, guest.driver.availableIndex)
  await guest.disk.flush()
  t.is(guest.driver.loadUsedIndex(), 2)
})

test.serial('a call eventfd that is swapped while an answer is due loses no signal', async (t) => {
  const { device, held } = heldDisk()
  const bench = await listen(t, { device })
  const guest = await start(t, bench)
  const answer = guest.disk.read(0, 512)
  await until(() => held.length === 1)
  const other = native.eventfdCreate()
  const callPayload = encodeVringFd({ index: 0, attached: true })
  await guest.frontEnd.command('SET_VRING_CALL', callPayload, [other])
  held[0]!()
  await until(() => guest.driver.loadUsedIndex() === 1)
  await guest.frontEnd.command('SET_VRING_CALL', callPayload, [guest.driver.callFd])
  t.deepEqual(await answer, Buffer.alloc(512, 0xa5))
  native.closeFd(other)
})

// ---- the life of a connection -------------------------------------------------------------------------------

test.serial('events tell the life of a server in order', async (t) => {
  const bench = await listen(t)
  await until(() => bench.events.length > 0)
  const guest = await start(t, bench)
  await guest.disk.flush()
  guest.close()
  await until(() => bench.events.includes('detached'))
  await bench.server.close()
  t.deepEqual(bench.events, ['listening', 'attached', 'detached', 'closed'])
  t.deepEqual(bench.errors, [])
})

test.serial('a second front-end is refused with a clear error and the first lives on', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench)
  await guest.disk.flush()
  const second = VhostUserFrontEnd.connect(bench.socketPath)
  await second.hungUp()
  second.close()
  t.is(bench.errors.at(-1)?.code, 'ERR_VHOST_BUSY')
  t.true(
    bench.log.some(
      (line) => line.includes(bench.socketPath) && line.includes('second front-end was refused'),
    ),
  )
  await guest.disk.flush()
  t.deepEqual(bench.events.slice(-2), ['attached', 'refused'])
})

test.serial('a front-end that hangs up and connects again at once is served, not refused', async (t) => {
  const bench = await listen(t)
  for (let count = 0; count < 50; count++) {
    const first = VhostUserFrontEnd.connect(bench.socketPath)
    await first.ask('GET_FEATURES')
    // Unread messages stand between the server and the hang-up.
    for (let index = 0; index < count; index++) first.send('SET_OWNER')
    first.close()
    const second = VhostUserFrontEnd.connect(bench.socketPath)
    await second.ask('GET_FEATURES')
    second.close()
    await until(() => !bench.server.attached)
  }
  t.deepEqual(bench.errors, [])
  t.is(bench.server.statsSnapshot().connections, 100)
})

test.serial('a front-end that goes away while its queue drains is noticed', async (t) => {
  const { device, held } = heldDisk()
  const bench = await listen(t, { device })
  const guest = await start(t, bench)
  void guest.disk.read(0, 512)
  await until(() => held.length === 1)
  guest.frontEnd.send('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 }))
  guest.frontEnd.send('SET_OWNER')
  for (let count = 0; count < 5; count++) await turn()
  guest.close()
  await until(() => bench.events.includes('detached'))
  t.is(bench.server.statsSnapshot().inFlight, 0, 'nobody waits for that answer any more')
  held[0]!()
  await turn()
  t.deepEqual(bench.errors, [])
})

test.serial(
  'a front-end that goes away while its queue drains and connects again at once is served',
  async (t) => {
    const { device, held } = heldDisk()
    const bench = await listen(t, { device })
    for (let messages = 0; messages < 40; messages++) {
      const guest = await FakeGuest.start(bench.socketPath)
      void guest.disk.read(0, 512)
      await until(() => held.length === 1)
      for (let count = 0; count < messages; count++) guest.frontEnd.send('SET_OWNER')
      guest.frontEnd.send('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 }))
      guest.close()
      const second = VhostUserFrontEnd.connect(bench.socketPath)
      const answer = second.ask('GET_FEATURES')
      await until(() => !bench.server.attached || bench.events.includes('refused'))
      held.pop()!()
      await t.notThrowsAsync(answer)
      second.close()
      await until(() => !bench.server.attached)
      bench.events.length = 0
    }
  },
)

test.serial('counts go on over connections', async (t) => {
  const bench = await listen(t)
  for (let count = 0; count < 3; count++) {
    const guest = await FakeGuest.start(bench.socketPath)
    await guest.disk.write(0, Buffer.alloc(512))
    guest.close()
    await until(() => !bench.server.attached)
  }
  t.like(bench.server.statsSnapshot(), {
    connections: 3,
    requests: 3,
    writes: 3,
    bytesWritten: 1536,
    inFlight: 0,
  })
})

test.serial(
  'row 60: close() in the middle of traffic answers what is in flight, once, and resolves twice',
  async (t) => {
    const fdCount = openFdCount()
    const { device, held } = heldDisk()
    const bench = await listen(t, { device })
    const guest = await start(t, bench)
    const answer = guest.disk.read(0, 512)
    await until(() => held.length === 1)
    const closing = bench.server.close()
    t.is(bench.server.close(), closing)
    await turn()
    held[0]!()
    await closing
    t.deepEqual(await answer, Buffer.alloc(512, 0xa5))
    t.is(guest.driver.loadUsedIndex(), 1)
    await guest.frontEnd.hungUp()
    guest.close()
    t.is(openFdCount(), fdCount)
  },
)

test.serial('row 60: close() from inside a handler resolves', async (t) => {
  let closing: Promise<void> | undefined
  const device = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => {
      closing = bench.server.close()
      io.data.fill(1)
    },
    write: () => {},
  })
  const bench: Bench = await listen(t, { device })
  const guest = await start(t, bench)
  // The first closes the server while the rest of its batch is still to be answered.
  const reads = Array.from({ length: 4 }, (_, index) => guest.disk.read(index * 512, 512))
  t.deepEqual(await Promise.all(reads), new Array(4).fill(Buffer.alloc(512, 1)))
  await closing
  t.is(bench.events.at(-1), 'closed')
})

test.serial('close() from inside an attached listener resolves', async (t) => {
  const bench = await listen(t)
  const closed = new Promise<void>((resolve, reject) => {
    bench.server.once('attached', () => void bench.server.close().then(resolve, reject))
  })
  const guest = start(t, bench).catch(() => undefined)
  await closed
  t.is(bench.events.at(-1), 'closed')
  await guest
})

test.serial('a server can be disposed of', async (t) => {
  const bench = await listen(t)
  await bench.server[Symbol.asyncDispose]()
  t.false(existsSync(bench.socketPath))
})
