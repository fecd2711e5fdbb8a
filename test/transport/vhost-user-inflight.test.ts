import { fstatSync, ftruncateSync, readFileSync } from 'node:fs'
import test from 'ava'
import { blockDevice } from '../../src/handlers/index.ts'
import { native } from '../../src/native.ts'
import { InflightFile, inflightBytes } from '../../src/ring/inflight.ts'
import { BlockRequestType, BlockStatus, SharedMemory } from '../../src/testing/index.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { until } from '../helpers/until.ts'
import { CAPACITY_BYTES, expectServed, heldDisk, listen, start } from '../helpers/vhost-user-bench.ts'

const SECTOR_BYTES = 512
const ENTRY_COUNT = 64
const LAYOUT = { queueCount: 2, queueSize: ENTRY_COUNT }

/** The words of the first queue's region. */
function regionOf(fd: number): { heads: () => number[]; version: () => number; usedIndex: () => number } {
  const bytes = (): Buffer => readFileSync(`/proc/self/fd/${fd}`)
  return {
    heads: () =>
      Array.from({ length: ENTRY_COUNT }, (_, head) => head).filter((head) => bytes()[16 + 16 * head] === 1),
    version: () => bytes().readUInt16LE(8),
    usedIndex: () => bytes().readUInt16LE(14),
  }
}

test.serial('GET_INFLIGHT_FD answers with a file of zeros whose size nobody can change', async (t) => {
  const bench = await listen(t)
  const fdCount = openFdCount()
  const guest = await start(t, bench, { started: false })
  const inflight = await guest.frontEnd.getInflight(LAYOUT)
  t.is(inflightBytes(LAYOUT), 2 * 1088)
  t.deepEqual({ ...inflight, fd: 0 }, { ...LAYOUT, mmapSizeBytes: 2176n, mmapOffsetBytes: 0n, fd: 0 })
  t.is(fstatSync(inflight.fd).size, 2176)
  t.true(readFileSync(`/proc/self/fd/${inflight.fd}`).every((byte) => byte === 0))
  t.throws(() => ftruncateSync(inflight.fd, 0), { code: 'EPERM' })
  t.throws(() => ftruncateSync(inflight.fd, 1 << 20), { code: 'EPERM' })
  native.closeFd(inflight.fd)
  guest.close()
  await until(() => !bench.server.attached)
  t.is(openFdCount(), fdCount)
})

test.serial(
  'requests in flight when the connection ends are served by the next one, in their order, each answered once',
  async (t) => {
    const { device, held } = heldDisk()
    const bench = await listen(t, { device, stopGraceMs: 50 })
    const guest = await start(t, bench, { inflight: true })
    let answers = 0
    const requests = [1, 2, 3].map((sector) =>
      guest.disk.read(sector * SECTOR_BYTES, SECTOR_BYTES).finally(() => answers++),
    )
    await until(() => held.length === 3)
    // The second one is answered, the others are not.
    held[1]!()
    await requests[1]
    await guest.resume(bench.socketPath)
    await until(() => held.length === 5)
    t.is(answers, 1)
    // What the old connection's handlers say now is nobody's business.
    held[0]!()
    held[2]!()
    await guest.frontEnd.readConfig(0, 8)
    t.is(answers, 1)
    held[3]!()
    held[4]!()
    const data = await Promise.all(requests)
    t.true(data.every((bytes) => bytes.every((byte) => byte === 0xa5)))
    t.is(guest.driver.loadUsedIndex(), 3)
    const later = guest.disk.flush()
    await until(() => held.length === 6)
    held[5]!()
    await later
    t.deepEqual(bench.errors, [])
  },
)

test.serial('control: without an in-flight file the next connection knows nothing of them', async (t) => {
  const { device, held } = heldDisk()
  const bench = await listen(t, { device, stopGraceMs: 50 })
  const guest = await start(t, bench)
  const requests = [1, 2].map((sector) => guest.disk.read(sector * SECTOR_BYTES, SECTOR_BYTES))
  await until(() => held.length === 2)
  held[1]!()
  await requests[1]
  await guest.resume(bench.socketPath)
  // From the used index on it takes the second request again, and never the first.
  await until(() => held.length === 3)
  await guest.frontEnd.readConfig(0, 8)
  t.is(held.length, 3)
})

test.serial('requests of the earlier connection come before new ones, within the credits', async (t) => {
  const order: bigint[] = []
  const held: (() => void)[] = []
  const device = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: (io) => {
      order.push(BigInt(io.offsetBytes / SECTOR_BYTES))
      return new Promise<void>((resolve) => held.push(resolve))
    },
  })
  const bench = await listen(t, { device, stopGraceMs: 50 })
  const guest = await start(t, bench, { inflight: true })
  const requests = [1, 2, 3, 4, 5].map((sector) => guest.disk.read(sector * SECTOR_BYTES, SECTOR_BYTES))
  await until(() => held.length === 5)
  guest.frontEnd.close()
  await until(() => !bench.server.attached)
  const next = await listen(t, { device, creditCountMax: 2 })
  requests.push(guest.disk.read(6 * SECTOR_BYTES, SECTOR_BYTES))
  order.length = 0
  held.length = 0
  await guest.resume(next.socketPath)
  for (let count = 1; count <= 6; count++) {
    await until(() => held.length >= count)
    t.true(held.length <= count + 1)
    held[count - 1]!()
    await requests[count - 1]
  }
  t.deepEqual(order, [1n, 2n, 3n, 4n, 5n, 6n])
})

test.serial(
  'GET_VRING_BASE answers what the earlier connection owed too, and leaves no head marked',
  async (t) => {
    const { device, held } = heldDisk()
    const bench = await listen(t, { device, stopGraceMs: 50 })
    const guest = await start(t, bench, { inflight: true })
    const region = regionOf(guest.inflight!.fd)
    const requests = [1, 2, 3].map((sector) => guest.disk.read(sector * SECTOR_BYTES, SECTOR_BYTES))
    await until(() => held.length === 3)
    t.is(region.version(), 1)
    t.is(region.heads().length, 3)
    guest.frontEnd.close()
    await until(() => !bench.server.attached)
    t.is(region.heads().length, 3)

    const next = await listen(t, { device, creditCountMax: 1 })
    await guest.resume(next.socketPath)
    await until(() => held.length === 4)
    const stopped = guest.frontEnd.stopQueue(0)
    for (let count = 4; count <= 6; count++) {
      await until(() => held.length === count)
      held[count - 1]!()
    }
    t.is(await stopped, 3)
    await Promise.all(requests)
    t.deepEqual(region.heads(), [])
    t.is(region.usedIndex(), 3)
  },
)

test.serial(
  'a server that closes and cannot wait longer leaves what is in flight to the next one',
  async (t) => {
    const { device, held } = heldDisk()
    const bench = await listen(t, { device, stopGraceMs: 50 })
    const guest = await start(t, bench, { inflight: true })
    const request = guest.disk.request({ type: BlockRequestType.IN, writableBytes: SECTOR_BYTES })
    await until(() => held.length === 1)
    await bench.server.close()
    t.is(guest.driver.loadUsedIndex(), 0)
    const next = await listen(t, { device })
    await guest.resume(next.socketPath)
    await until(() => held.length === 2)
    held[1]!()
    t.is((await request).status, BlockStatus.OK)
  },
)

test.serial('a reset forgets what is in flight, for later processes too', async (t) => {
  const { device, held } = heldDisk()
  const bench = await listen(t, { device, stopGraceMs: 50 })
  const guest = await start(t, bench, { inflight: true })
  const region = regionOf(guest.inflight!.fd)
  void guest.disk.read(0, SECTOR_BYTES)
  await until(() => held.length === 1)
  await guest.frontEnd.command('RESET_DEVICE')
  t.is(region.version(), 0)
  // The driver begins anew with an empty ring.
  guest.driver.storeAvailableIndex(0)
  await guest.resume(bench.socketPath)
  t.deepEqual(region.heads(), [])
})

test.serial('a second in-flight file takes the place of the first, which is unmapped', async (t) => {
  const bench = await listen(t)
  const { frontEnd } = await start(t, bench, { started: false })
  const mappings = (): number =>
    readFileSync('/proc/self/maps', 'utf8')
      .split('\n')
      .filter((line) => line.includes('hushring-inflight')).length
  const before = mappings()
  for (let count = 0; count < 3; count++) {
    const inflight = await frontEnd.getInflight(LAYOUT)
    await frontEnd.setInflight(inflight)
    native.closeFd(inflight.fd)
    t.is(mappings(), before + 1)
  }
  frontEnd.close()
  await until(() => !bench.server.attached)
  t.is(mappings(), before)
})

test.serial('an in-flight file may come after the rings are described', async (t) => {
  const bench = await listen(t)
  const guest = await start(t, bench, { started: false })
  const { frontEnd, driver, memory } = guest
  await frontEnd.setMemory(memory)
  await frontEnd.command('SET_VRING_NUM', Buffer.from([0, 0, 0, 0, driver.size, 0, 0, 0]))
  const inflight = await frontEnd.getInflight({ queueCount: 1, queueSize: driver.size })
  await frontEnd.setInflight(inflight)
  await frontEnd.startQueue(0, driver)
  await guest.disk.flush()
  t.is(regionOf(inflight.fd).usedIndex(), 1)
  native.closeFd(inflight.fd)
})

for (const [what, spoil] of [
  ['of another version', (bytes: Buffer) => bytes.writeUInt16LE(2, 8)],
  ['with another number of entries', (bytes: Buffer) => bytes.writeUInt16LE(3, 10)],
  ['with a mark that is none', (bytes: Buffer) => bytes.writeUInt8(7, 16)],
] as const) {
  test.serial(
    `row 42: an in-flight region ${what} breaks its queue with ERR_RING_INFLIGHT and nothing else`,
    async (t) => {
      const bench = await listen(t)
      const guest = await start(t, bench, { inflight: true })
      await guest.disk.flush()
      guest.frontEnd.close()
      await until(() => !bench.server.attached)
      const file = new InflightFile({ ...guest.inflight!, queueCount: 1 })
      spoil(Buffer.from(file.placeOf(0).region.windows[0]!))
      file.close()
      await guest.resume(bench.socketPath)
      await until(() => bench.errors.length > 0)
      t.is(bench.errors.at(-1)?.code, 'ERR_RING_INFLIGHT')
      t.is(bench.errors.at(-1)?.family, 'peer')
      guest.frontEnd.close()
      await until(() => !bench.server.attached)
      await expectServed(t, bench)
    },
  )
}

test.serial(
  'rows 39, 42: an in-flight file that is made shorter breaks its queue, not the process',
  async (t) => {
    const bench = await listen(t)
    const guest = await start(t, bench, { started: false })
    const { frontEnd, driver, memory } = guest
    const file = new SharedMemory({ sizeBytes: 64 * 1024 })
    await frontEnd.setInflight({
      ...LAYOUT,
      fd: file.fd,
      mmapOffsetBytes: 4096n,
      mmapSizeBytes: 8192n,
    })
    await frontEnd.setMemory(memory)
    await frontEnd.startQueue(0, driver)
    await guest.disk.flush()
    ftruncateSync(file.fd, 0)
    void guest.disk.flush()
    await until(() => bench.errors.length > 0)
    t.is(bench.errors.at(-1)?.code, 'ERR_MEMORY_TRUNCATED')
    frontEnd.close()
    file.close()
    await until(() => !bench.server.attached)
    await expectServed(t, bench)
  },
)

test.serial('a front-end may hang up while its server closes', async (t) => {
  const { device, held } = heldDisk()
  const bench = await listen(t, { device })
  const guest = await start(t, bench)
  void guest.disk.flush()
  await until(() => held.length === 1)
  const closed = bench.server.close()
  guest.frontEnd.close()
  await until(() => !bench.server.attached)
  held[0]!()
  await t.notThrowsAsync(closed)
})
