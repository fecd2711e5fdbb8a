import { spawnSync } from 'node:child_process'
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeSync,
} from 'node:fs'
import { constants as osConstants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test, { type ExecutionContext } from 'ava'
import { type NativeRegion, native } from '../../src/native.ts'
import { GiB, KiB, MiB } from '../../src/units.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { temporaryDirectory } from '../helpers/processes.ts'
import { until } from '../helpers/until.ts'

const PAGE_BYTES = 4096
const { errno } = osConstants

/** Runs `program` in a Node of its own, where `native` is the addon. It must end by itself. */
function runAlone(program: string): { stdout: string; status: number | null; signal: string | null } {
  const addon =
    process.env.HUSHRING_NATIVE_PATH ??
    fileURLToPath(new URL('../../build/Release/hushring.node', import.meta.url))
  const script = `const addonPath = ${JSON.stringify(addon)}\n${program}`
  const { stdout, status, signal } = spawnSync(process.execPath, ['-e', script], {
    encoding: 'utf8',
    timeout: 30_000,
    cwd: tmpdir(),
  })
  return { stdout, status, signal }
}

/** Close-on-exec and O_NONBLOCK as the kernel tells them. */
function flagsOf(fd: number): { closeOnExec: boolean; nonBlocking: boolean } {
  const [, octal] = /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))!
  const flags = Number.parseInt(octal!, 8)
  return { closeOnExec: (flags & 0o2000000) !== 0, nonBlocking: (flags & 0o4000) !== 0 }
}

/** Mappings of this process that show memory files with this name. */
function mappingCount(name: string): number {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes(`/memfd:${name} `)).length
}

/** Makes a memory file, maps it as one region and closes the file. */
function regionOf(sizeBytes: number, name = 'hushring-test'): NativeRegion {
  const fd = native.memfdCreate(name, sizeBytes, true)
  const region = native.mapRegion(fd, 0n, 0n, BigInt(sizeBytes), 0n)
  native.closeFd(fd)
  return region
}

/** A connected pair of stream sockets, closed with the test. */
async function socketPair(t: ExecutionContext): Promise<[one: number, other: number]> {
  const path = join(await temporaryDirectory(t), 'pair')
  const listenFd = native.unixListen(path, 0o600, 1)
  const one = native.unixConnect(path)
  const other = native.unixAccept(listenFd)
  native.closeFd(listenFd)
  return [one, other]
}

/** Collects garbage until the condition holds. */
async function untilCollected(condition: () => boolean): Promise<void> {
  while (!condition()) await collectGarbage()
}

// ---- Descriptors ------------------------------------------------------------------------------------------------

test.serial('every descriptor the addon makes is close-on-exec, and what can wait does not', async (t) => {
  const path = join(await temporaryDirectory(t), 'socket')
  const memory = native.memfdCreate('hushring-test', 1, false)
  const event = native.eventfdCreate()
  const listener = native.unixListen(path, 0o600, 1)
  const client = native.unixConnect(path)
  const server = native.unixAccept(listener)
  native.unixSend(client, Buffer.from('x'), [event])
  const [passed] = native.unixReceive(server, Buffer.alloc(1), 0, 1).fds
  t.deepEqual(flagsOf(memory), { closeOnExec: true, nonBlocking: false })
  for (const fd of [event, listener, client, server, passed!]) {
    t.deepEqual(flagsOf(fd), { closeOnExec: true, nonBlocking: true })
  }
  for (const fd of [memory, event, listener, client, server, passed!]) native.closeFd(fd)
})

const refusesFd = test.macro({
  exec(t, call: (fd: number) => unknown, syscall: string) {
    // What is no descriptor must never become descriptor 0.
    for (const fd of [
      -1,
      1 << 30,
      0.5,
      Number.NaN,
      undefined as unknown as number,
      '1' as unknown as number,
    ]) {
      t.throws(() => call(fd), { code: 'EBADF', message: `EBADF: bad file descriptor, ${syscall}` })
    }
  },
  title: (_, call, syscall) => `a descriptor that is none is refused with EBADF by ${syscall}: ${call}`,
})
test(refusesFd, (fd) => native.closeFd(fd), 'close')
test(refusesFd, (fd) => native.setNonBlocking(fd), 'fcntl')
test(refusesFd, (fd) => native.eventfdSignal(fd), 'fcntl')
test(refusesFd, (fd) => native.eventfdDrain(fd), 'read')
test(refusesFd, (fd) => native.mapRegion(fd, 0n, 0n, 1n, 0n), 'fstat')
test(refusesFd, (fd) => native.watchReadable(fd, true, () => {}), 'uv_poll_init')
test(refusesFd, (fd) => native.watchHangUp(fd, () => {}), 'uv_poll_init')
test(refusesFd, (fd) => native.unixAccept(fd), 'fcntl')
test(refusesFd, (fd) => native.unixReceive(fd, Buffer.alloc(1), 0, 1), 'recvmsg')
test(refusesFd, (fd) => native.unixSend(fd, Buffer.alloc(1), []), 'sendmsg')

// ---- Files ------------------------------------------------------------------------------------------------------

type TransferArguments = Parameters<typeof native.fileReadAt>

test('a piece of a buffer is written to its place in a file, and read from there', (t) => {
  const fd = native.memfdCreate('hushring-test', 2 * PAGE_BYTES, false)
  const bytes = Buffer.from('0123456789')
  t.is(native.fileWriteAt(fd, bytes, 2, 5, PAGE_BYTES, true), 5)
  const target = Buffer.alloc(10, 'x')
  t.is(native.fileReadAt(fd, target, 3, 6, PAGE_BYTES - 1, true), 6)
  t.is(target.toString('latin1'), 'xxx\x0023456x')
  t.is(native.fileReadAt(fd, target, 0, 10, 2 * PAGE_BYTES - 4, true), 4)
  t.is(native.fileReadAt(fd, target, 0, 10, 2 * PAGE_BYTES, true), 0)
  t.is(native.fileWriteAt(fd, bytes, 0, 10, 2 ** 40, true), 10)
  t.is(fstatSync(fd).size, 2 ** 40 + 10)
  native.closeFd(fd)
  t.is(native.fileReadAt(fd, target, 0, 10, 0, true), -errno.EBADF)
  t.is(native.fileWriteAt(fd, target, 0, 10, 0, true), -errno.EBADF)
})

test('a transfer with wrong arguments moves nothing', (t) => {
  const fd = native.memfdCreate('hushring-test', PAGE_BYTES, false)
  const bytes = Buffer.alloc(16, 0xaa)
  const detached = Buffer.from(new ArrayBuffer(16))
  structuredClone(detached.buffer, { transfer: [detached.buffer] })
  const right: TransferArguments = [fd, bytes, 4, 8, 0, true]
  const nonNumbers = [undefined, null, '4', {}, 4n, Symbol('4')]
  const nonSizes = [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, -(2 ** 40), 2 ** 53, 2 ** 64]
  const wrong: readonly (readonly [index: number, values: readonly unknown[]])[] = [
    [0, [...nonNumbers, -1, 0.5, Number.NaN, 2 ** 32 + fd, 2 ** 31]],
    [1, [undefined, null, 'text', 7, {}, [1, 2], new ArrayBuffer(16), new DataView(new ArrayBuffer(16))]],
    [1, [new Uint16Array(16), detached]],
    [2, [...nonNumbers, ...nonSizes, 9, 17, 2 ** 32, 2 ** 32 + 4]],
    [3, [...nonNumbers, ...nonSizes, 13, 2 ** 32, 2 ** 32 + 8]],
    [4, [...nonNumbers, ...nonSizes]],
    [5, [undefined, null, 1, 'true']],
  ]
  for (const transfer of [native.fileReadAt, native.fileWriteAt]) {
    for (const [index, values] of wrong) {
      for (const value of values) {
        const given = right.with(index, value as never) as TransferArguments
        t.is(transfer(...given), -errno.EINVAL, `${index}: ${String(value)}`)
      }
    }
    for (let count = 0; count < 6; count++) {
      t.is((transfer as (...given: unknown[]) => number)(...right.slice(0, count)), -errno.EINVAL)
    }
  }
  t.deepEqual(bytes, Buffer.alloc(16, 0xaa))
  t.true(readFileSync(`/proc/self/fd/${fd}`).every((byte) => byte === 0))
  // The control: with the right ones it moves.
  t.is(native.fileReadAt(...right), 8)
  t.deepEqual(bytes.subarray(4, 12), Buffer.alloc(8))
  native.closeFd(fd)
})

// ---- Memory -----------------------------------------------------------------------------------------------------

test('a memory file holds zeros, and only an unsealed one can change its size', (t) => {
  const sealed = native.memfdCreate('hushring-test', 3 * KiB, true)
  const open = native.memfdCreate('hushring-test', 3 * KiB, false)
  for (const fd of [sealed, open]) {
    const content = Buffer.alloc(4 * KiB, 1)
    t.is(readSync(fd, content), 3 * KiB)
    t.true(content.subarray(0, 3 * KiB).every((byte) => byte === 0))
  }
  t.throws(() => ftruncateSync(sealed, KiB), { code: 'EPERM' })
  t.throws(() => ftruncateSync(sealed, 4 * KiB), { code: 'EPERM' })
  ftruncateSync(open, KiB)
  t.is(fstatSync(open).size, KiB)
  for (const fd of [sealed, open]) native.closeFd(fd)
  t.throws(() => native.memfdCreate('x'.repeat(300), 1, true), { code: 'EINVAL', message: /memfd_create$/ })
  t.throws(() => native.memfdCreate('hushring-test', -1, true), { code: 'ERR_OPTION_RANGE' })
})

test('a region shows its part of the file, shared with every other mapping of it', (t) => {
  const fd = native.memfdCreate('hushring-test', 3 * PAGE_BYTES, true)
  const whole = native.mapRegion(fd, 0n, 0n, BigInt(3 * PAGE_BYTES), 0n)
  const part = native.mapRegion(fd, 1n << 40n, 7n << 40n, BigInt(PAGE_BYTES), BigInt(PAGE_BYTES + 100))
  t.is(part.windows.length, 1)
  t.is(part.windowBytes, GiB)
  t.is(part.windows[0]!.byteLength, PAGE_BYTES)
  Buffer.from(part.windows[0]!).write('from the part', 5)
  t.is(Buffer.from(whole.windows[0]!).toString('latin1', PAGE_BYTES + 105, PAGE_BYTES + 118), 'from the part')
  writeSync(fd, 'from the file', PAGE_BYTES + 200)
  t.is(Buffer.from(part.windows[0]!).toString('latin1', 100, 113), 'from the file')
  t.false(part.truncated)
  part.close()
  whole.close()
  native.closeFd(fd)
})

test('a region of more than 4 GiB has a window a GiB, the last one shorter', (t) => {
  const sizeBytes = 5 * GiB + PAGE_BYTES
  const fd = native.memfdCreate('hushring-large', sizeBytes, true)
  const region = native.mapRegion(fd, 0n, 0n, BigInt(sizeBytes), 0n)
  t.deepEqual(
    region.windows.map((window) => window.byteLength),
    [GiB, GiB, GiB, GiB, GiB, PAGE_BYTES],
  )
  const second = native.mapRegion(fd, 0n, 0n, BigInt(GiB + PAGE_BYTES), BigInt(4 * GiB))
  Buffer.from(region.windows[4]!).write('the fifth', GiB - 100)
  Buffer.from(region.windows[5]!).write('the last', 1)
  t.is(Buffer.from(second.windows[0]!).toString('latin1', GiB - 100, GiB - 91), 'the fifth')
  t.is(Buffer.from(second.windows[1]!).toString('latin1', 1, 9), 'the last')
  region.close()
  second.close()
  native.closeFd(fd)
})

const refusesRegion = test.macro({
  exec(t, [guest, user, size, offset]: [bigint, bigint, bigint, bigint], message: string) {
    const fd = native.memfdCreate('hushring-test', 2 * PAGE_BYTES, true)
    t.throws(() => native.mapRegion(fd, guest, user, size, offset), { code: 'ERR_MEMORY_REGION', message })
    native.closeFd(fd)
  },
  title: (_, numbers: bigint[] = [], message = '') =>
    `the region ${numbers.join(', ')} is refused: ${message}`,
})
const U64_MAX = 2n ** 64n - 1n
test(refusesRegion, [0n, 0n, 0n, 0n], 'its size is 0')
test(refusesRegion, [0n, 0n, 8193n, 0n], 'it ends at byte 8193 of a file of 8192 bytes')
test(refusesRegion, [0n, 0n, 8192n, 1n], 'it ends at byte 8193 of a file of 8192 bytes')
test(refusesRegion, [U64_MAX, 0n, 2n, 0n], 'guest address + size is more than 2^64')
test(refusesRegion, [0n, U64_MAX, 2n, 0n], 'user address + size is more than 2^64')
test(refusesRegion, [0n, 0n, 2n, U64_MAX], 'mmap offset + size is 2^64 or more')
test(refusesRegion, [0n, 0n, U64_MAX, 0n], `it ends at byte ${U64_MAX} of a file of 8192 bytes`)

test('a region may end at 2^64, and what is refused by the kernel says so', (t) => {
  const fd = native.memfdCreate('hushring-test', PAGE_BYTES, true)
  native.mapRegion(fd, U64_MAX, U64_MAX - 9n, 1n, 0n).close()
  native.closeFd(fd)
  const readOnly = openSync(process.execPath, 'r')
  t.throws(() => native.mapRegion(readOnly, 0n, 0n, 1n, 0n), {
    code: 'EACCES',
    message: 'EACCES: permission denied, mmap',
  })
  closeSync(readOnly)
  t.throws(() => native.mapRegion(0, -1n, 0n, 1n, 0n), { instanceOf: TypeError, code: 'ERR_OPTION_TYPE' })
  t.throws(() => native.mapRegion(0, 0n, 0n, 2n ** 64n, 0n), {
    message: /^expected `sizeBytes` to be a bigint/,
  })
})

test.serial('closing a region empties every view of it and unmaps at once, and may be repeated', (t) => {
  const region = regionOf(MiB, 'hushring-close')
  const view = new Uint8Array(region.windows[0]!)
  const buffer = Buffer.from(region.windows[0]!, 4)
  t.is(mappingCount('hushring-close'), 1)
  region.close()
  t.is(view.length, 0)
  t.is(buffer.length, 0)
  t.is(mappingCount('hushring-close'), 0)
  region.close()
  t.throws(() => region.close.call({} as NativeRegion), { instanceOf: TypeError })
})

test.serial('memory that an ArrayBuffer still shows stays mapped when its region is forgotten', async (t) => {
  let window: ArrayBuffer | undefined = regionOf(MiB, 'hushring-forgotten').windows[0]!
  let collected = 0
  const registry = new FinalizationRegistry(() => collected++)
  registry.register(regionOf(MiB, 'hushring-unused'), undefined)
  await untilCollected(() => collected === 1 && mappingCount('hushring-unused') === 0)
  Buffer.from(window).write('still here')
  t.is(mappingCount('hushring-forgotten'), 1)
  window = undefined
  await untilCollected(() => mappingCount('hushring-forgotten') === 0)
  t.pass()
})

// Node 20 has no ArrayBuffer.prototype.transfer, and no other way to move memory that is not its own.
const canTransfer = 'transfer' in ArrayBuffer.prototype
;(canTransfer ? test.serial : test.skip)(
  'memory that was transferred to another ArrayBuffer is not unmapped under it',
  async (t) => {
    const region = regionOf(MiB, 'hushring-moved')
    let moved: ArrayBuffer | undefined = region.windows[0]!.transfer()
    region.close()
    Buffer.from(moved).fill(1)
    t.is(mappingCount('hushring-moved'), 1)
    moved = undefined
    await untilCollected(() => mappingCount('hushring-moved') === 0)
  },
)

test.serial(
  'a thousand regions, one after the other, leave no mapping, descriptor or memory behind',
  async (t) => {
    const fdCount = openFdCount()
    const residentBytes = process.memoryUsage().rss
    for (let round = 0; round < 1000; round++) {
      const region = regionOf(MiB, 'hushring-rounds')
      new Uint8Array(region.windows[0]!).fill(round)
      region.close()
    }
    t.is(mappingCount('hushring-rounds'), 0)
    t.is(openFdCount(), fdCount)
    // Every round touched a MiB: what is lost with each would add up to a GiB.
    t.true(process.memoryUsage().rss - residentBytes < 200 * MiB)
  },
)

test.serial('as many regions as the guard can hold are mapped, one more is refused', (t) => {
  const fd = native.memfdCreate('hushring-many', PAGE_BYTES, true)
  const regions: NativeRegion[] = []
  const mapOne = (): number => regions.push(native.mapRegion(fd, 0n, 0n, BigInt(PAGE_BYTES), 0n))
  const refused = t.throws(() => {
    while (regions.length < 5000) mapOne()
  })
  t.like(refused, { code: 'ERR_MEMORY_REGION' })
  t.is(refused?.message, 'this process has 4096 regions mapped, the most it can')
  regions.pop()!.close()
  t.notThrows(mapOne)
  for (const region of regions) region.close()
  t.is(mappingCount('hushring-many'), 0)
  native.closeFd(fd)
})

// ---- A memory file that is made shorter ----------------------------------------------------------------------------

test('an access behind the end of a shortened file finds zeros, and the region knows', (t) => {
  const fd = native.memfdCreate('hushring-short', 8 * PAGE_BYTES, false)
  const region = native.mapRegion(fd, 0n, 0n, BigInt(7 * PAGE_BYTES), BigInt(PAGE_BYTES))
  const untouched = native.mapRegion(fd, 0n, 0n, BigInt(8 * PAGE_BYTES), 0n)
  const bytes = Buffer.from(region.windows[0]!).fill(0xee)
  ftruncateSync(fd, 4 * PAGE_BYTES)
  t.is(bytes[3 * PAGE_BYTES - 1], 0xee, 'what the file still has is shown')
  t.false(region.truncated)
  t.is(bytes[5 * PAGE_BYTES + 1], 0)
  t.true(region.truncated)
  t.is(bytes[3 * PAGE_BYTES], 0, 'a page before the one that was touched first')
  bytes.fill(0xdd, 3 * PAGE_BYTES)
  t.is(bytes[7 * PAGE_BYTES - 1], 0xdd, 'writes go nowhere else, but they go')
  t.is(bytes[3 * PAGE_BYTES - 1], 0xee)
  t.false(untouched.truncated, 'regions are told one by one')
  t.is(Buffer.from(untouched.windows[0]!)[7 * PAGE_BYTES], 0)
  t.true(untouched.truncated)
  region.close()
  untouched.close()
  t.true(region.truncated, 'a closed region remembers')
  native.closeFd(fd)
})

test('a queue whose ring was cut off with the file breaks with ERR_MEMORY_TRUNCATED', (t) => {
  const fd = native.memfdCreate('hushring-ring', 4 * PAGE_BYTES, false)
  const region = native.mapRegion(fd, 0n, 0n, BigInt(4 * PAGE_BYTES), 0n)
  const queue = native.createSplitQueue({
    sizeMax: 8,
    headerBytes: 16,
    statusByte: true,
    batchCountMax: 8,
    chainCountMax: 8,
    strictChains: false,
  })
  const started = queue.start({
    size: 8,
    descriptorAddress: BigInt(PAGE_BYTES),
    availableAddress: BigInt(2 * PAGE_BYTES),
    usedAddress: BigInt(3 * PAGE_BYTES),
    guestAddresses: true,
    availableBase: 0,
    eventIdx: true,
    indirect: false,
    regions: [region],
    callFd: -1,
    inflight: undefined,
  })
  t.is(started, 0)
  t.is(queue.take(8), 0)
  ftruncateSync(fd, PAGE_BYTES)
  t.is(queue.take(8), -13)
  t.true(region.truncated)
  queue.close()
  region.close()
  native.closeFd(fd)
})

test('a SIGBUS that is about something else ends the process as ever, with the guard installed', (t) => {
  const guarded = `const native = require(addonPath)
    const fd = native.memfdCreate('x', 8192, false)
    const region = native.mapRegion(fd, 0n, 0n, 8192n, 0n)
    require('fs').ftruncateSync(fd, 0)
    console.log(new Uint8Array(region.windows[0])[5000])`
  t.deepEqual(runAlone(guarded), { stdout: '0\n', status: 0, signal: null })
  const sent = `${guarded}; process.kill(process.pid, 'SIGBUS'); setTimeout(() => {}, 60_000)`
  t.deepEqual(runAlone(sent), { stdout: '0\n', status: null, signal: 'SIGBUS' })
})

test('the guard stays when the only thread that loaded the addon ends', (t) => {
  const inWorker = `const native = require(require('worker_threads').workerData)
    const fd = native.memfdCreate('x', 8192, false)
    const region = native.mapRegion(fd, 0n, 0n, 8192n, 0n)
    require('fs').ftruncateSync(fd, 0)
    console.log(new Uint8Array(region.windows[0])[5000], region.truncated)`
  const program = `const { Worker } = require('worker_threads')
    const run = () => new Promise((ended) =>
      new Worker(${JSON.stringify(inWorker)}, { eval: true, workerData: addonPath }).once('exit', ended))
    run().then(run).then(() => {
      setTimeout(() => {}, 60_000)
      process.kill(process.pid, 'SIGBUS')
    })`
  t.deepEqual(runAlone(program), { stdout: '0 true\n0 true\n', status: null, signal: 'SIGBUS' })
})

// ---- eventfd ------------------------------------------------------------------------------------------------------

test('an eventfd counts signals until it is drained', (t) => {
  const fd = native.eventfdCreate()
  t.is(native.eventfdDrain(fd), 0)
  for (let round = 0; round < 3; round++) native.eventfdSignal(fd)
  t.is(native.eventfdDrain(fd), 3)
  t.is(native.eventfdDrain(fd), 0)
  native.closeFd(fd)
})

test('a full counter is already signalled: nobody waits and nothing is thrown', (t) => {
  const fd = native.eventfdCreate()
  writeSync(fd, new BigUint64Array([2n ** 64n - 2n]))
  t.throws(() => writeSync(fd, new BigUint64Array([1n])), { code: 'EAGAIN' }, 'the counter is full')
  native.eventfdSignal(fd)
  t.is(native.eventfdDrain(fd), 2 ** 64)
  t.is(native.eventfdDrain(fd), 0)
  native.closeFd(fd)
})

test('isEventfd knows an eventfd from everything else', async (t) => {
  const event = native.eventfdCreate()
  const [one, other] = await socketPair(t)
  const memory = native.memfdCreate('anon_inode:[eventfd]', 1, false)
  const file = openSync(join(await temporaryDirectory(t), 'anon_inode:[eventfd]'), 'w+')
  t.true(native.isEventfd(event))
  for (const fd of [one, memory, file, -1, 1 << 30]) t.false(native.isEventfd(fd))
  for (const fd of [event, one, other, memory, file]) native.closeFd(fd)
  t.false(native.isEventfd(event))
})

test('setNonBlocking sets the flag on the open file', (t) => {
  const fd = openSync('/dev/zero', 'r')
  t.false(flagsOf(fd).nonBlocking)
  native.setNonBlocking(fd)
  t.true(flagsOf(fd).nonBlocking)
  closeSync(fd)
})

// ---- Readiness ----------------------------------------------------------------------------------------------------

test('one call covers all kicks since the last, and the counter is read before it', async (t) => {
  const fd = native.eventfdCreate()
  const errors: number[] = []
  const watch = native.watchReadable(fd, true, (error) => {
    errors.push(error)
    t.is(native.eventfdDrain(fd), 0)
    if (errors.length === 1) native.eventfdSignal(fd)
  })
  for (let kick = 0; kick < 5; kick++) native.eventfdSignal(fd)
  await until(() => errors.length === 2)
  watch.close()
  t.deepEqual(errors, [0, 0])
  native.closeFd(fd)
})

test('without draining, a watch calls until the callee has taken what is there', async (t) => {
  const [one, other] = await socketPair(t)
  const target = Buffer.alloc(1)
  let received = ''
  const watch = native.watchReadable(other, false, (error) => {
    t.is(error, 0)
    if (native.unixReceive(other, target, 0, 1).bytes === 1) received += target.toString()
  })
  native.unixSend(one, Buffer.from('abc'), [])
  await until(() => received === 'abc')
  watch.close()
  native.closeFd(one)
  native.closeFd(other)
})

test('a closed watch never calls again, not even when it was closed by its own callback', async (t) => {
  const fd = native.eventfdCreate()
  let callCount = 0
  const watch = native.watchReadable(fd, false, () => {
    callCount++
    watch.close()
    watch.close()
    watch.ref()
    watch.unref()
  })
  native.eventfdSignal(fd)
  await until(() => callCount === 1)
  // The next watch of the same descriptor is ready at the same time as the closed one would be.
  let nextCount = 0
  const next = native.watchReadable(fd, false, () => nextCount++)
  await until(() => nextCount === 3)
  next.close()
  t.is(callCount, 1)
  native.closeFd(fd)
})

const endsOnce = test.macro({
  async exec(t, message: string, hangUp: boolean, expected: number) {
    const [one, other] = await socketPair(t)
    const errors: number[] = []
    const watch = native.watchReadable(other, true, (error) => errors.push(error))
    native.unixSend(one, Buffer.from(message), [])
    if (hangUp) native.closeFd(one)
    await until(() => errors.length > 0)
    // It has stopped: the descriptor can be watched anew, and only the new watch hears of it.
    let nextCount = 0
    const next = native.watchReadable(other, false, () => nextCount++)
    if (!hangUp) native.unixSend(one, Buffer.from('!'), [])
    await until(() => nextCount === 3)
    next.close()
    watch.close()
    t.deepEqual(errors, [expected])
    if (!hangUp) native.closeFd(one)
    native.closeFd(other)
  },
  title: (_, message: string = '', hangUp: boolean = false, expected: number = 0) =>
    `a drained descriptor that ${hangUp ? 'hangs up' : `gives ${message.length} bytes`} ends its watch once, with ${expected}`,
})
test(endsOnce, '', true, -errno.EPIPE)
test(endsOnce, 'abc', false, -errno.EINVAL)

test('a hang-up is told once, with unread bytes in the socket, and not before', async (t) => {
  const [one, other] = await socketPair(t)
  let hangUpCount = 0
  const watch = native.watchHangUp(other, () => hangUpCount++)
  native.unixSend(one, Buffer.from('unread'), [])
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
  t.is(hangUpCount, 0)
  native.closeFd(one)
  await until(() => hangUpCount === 1)
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
  t.is(hangUpCount, 1)
  t.is(native.unixReceive(other, Buffer.alloc(10), 0, 10).bytes, 6)
  watch.close()
  native.closeFd(other)
})

test('what cannot be watched is refused', (t) => {
  const event = native.eventfdCreate()
  const file = openSync(process.execPath, 'r')
  const folder = openSync(tmpdir(), 'r')
  for (const fd of [file, folder]) {
    t.throws(() => native.watchReadable(fd, true, () => {}), { code: 'EPERM', message: /uv_poll_init$/ })
  }
  const watch = native.watchReadable(event, true, () => {})
  t.throws(() => native.watchHangUp(event, () => {}), { code: 'EEXIST' })
  watch.close()
  const notAFunction = 'soon' as unknown as () => void
  const refusal = { instanceOf: TypeError, code: 'ERR_OPTION_TYPE' }
  t.throws(() => native.watchReadable(event, true, notAFunction), refusal)
  t.throws(() => native.watchHangUp(event, notAFunction), refusal)
  t.throws(() => native.createMicroTimer(notAFunction), refusal)
  native.closeFd(event)
  closeSync(file)
  closeSync(folder)
})

test('what a callback throws is an uncaughtException, and ticks and promises run after each call', (t) => {
  const program = `const native = require(addonPath)
    process.on('uncaughtException', (error) => console.log('uncaught', error.message))
    const fd = native.eventfdCreate()
    let callCount = 0
    const watch = native.watchReadable(fd, true, () => {
      Promise.resolve().then(() => console.log('promise', callCount))
      process.nextTick(() => console.log('tick', callCount))
      if (++callCount === 2) return watch.close()
      native.eventfdSignal(fd)
      throw new Error('oops')
    })
    native.eventfdSignal(fd)`
  const { stdout, status } = runAlone(program)
  t.is(stdout, 'uncaught oops\ntick 1\npromise 1\ntick 2\npromise 2\n')
  t.is(status, 0)
  t.is(runAlone(program.replace("'uncaughtException'", "'exit'")).status, 1)
})

const staysAlive = test.macro({
  exec(t, use: string, alive: boolean) {
    // The program ends by itself unless what is used keeps it alive; the timers alone do not.
    const program = `const native = require(addonPath)
      const fd = native.eventfdCreate()
      const watch = () => native.watchReadable(fd, true, () => {})
      const timer = (onExpire = () => {}) => native.createMicroTimer(onExpire)
      ${use}
      setTimeout(() => { console.log('alive'); process.exit() }, ${alive ? 1 : 20_000}).unref()`
    t.deepEqual(runAlone(program), { stdout: alive ? 'alive\n' : '', status: 0, signal: null })
  },
  title: (_, use, alive) => `the process ${alive ? 'stays alive' : 'ends'} with: ${use}`,
})
test(staysAlive, 'watch()', true)
test(staysAlive, 'watch().unref()', false)
test(staysAlive, 'const w = watch(); w.unref(); w.ref()', true)
test(staysAlive, 'watch().close()', false)
test(staysAlive, 'timer()', false)
test(staysAlive, 'timer().start(60_000_000)', true)
test(staysAlive, 'timer().start(1)', false)
test(staysAlive, 'const t = timer(); t.start(60_000_000); t.stop()', false)
test(staysAlive, 'const t = timer(); t.start(60_000_000); t.close()', false)
test(staysAlive, 'const t = timer(() => t.start(60_000_000)); t.start(1)', true)

test('a micro timer expires once a start, later starts replace earlier ones, stop forgets', async (t) => {
  let expiredCount = 0
  const timer = native.createMicroTimer(() => expiredCount++)
  const started = process.hrtime.bigint()
  timer.start(3000)
  await until(() => expiredCount === 1)
  t.true(process.hrtime.bigint() - started >= 3_000_000n)
  timer.start(60_000_000)
  timer.start(1)
  await until(() => expiredCount === 2)

  let otherExpired = false
  const other = native.createMicroTimer(() => {
    otherExpired = true
  })
  timer.start(1)
  const end = process.hrtime.bigint() + 1_000_000n
  while (process.hrtime.bigint() < end);
  timer.stop() // it has expired, but the event loop has not seen it
  other.start(1)
  await until(() => otherExpired)
  t.is(expiredCount, 2)
  other.close()

  for (const delay of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    t.throws(() => timer.start(delay), { instanceOf: RangeError, code: 'ERR_OPTION_RANGE' })
  }
  timer.close()
  timer.close()
  timer.stop()
  t.throws(() => timer.start(1), { code: 'EBADF' })
})

test.serial('a thousand watches and timers leave no descriptor behind', async (t) => {
  const fdCount = openFdCount()
  for (let round = 0; round < 1000; round++) {
    const fd = native.eventfdCreate()
    const watch = native.watchReadable(fd, true, () => {})
    const timer = native.createMicroTimer(() => {})
    timer.start(1)
    watch.close()
    native.closeFd(fd)
    timer.close()
  }
  t.is(openFdCount(), fdCount)
})

// ---- Sockets --------------------------------------------------------------------------------------------------------

test.serial('a socket has exactly its mode whatever the umask is, which does not change', async (t) => {
  const folder = await temporaryDirectory(t)
  const before = process.umask()
  try {
    for (const umask of [0o000, 0o022, 0o077, 0o777]) {
      process.umask(umask)
      for (const mode of [0o600, 0o660, 0o666, 0o777]) {
        const path = join(folder, `${umask}-${mode}`)
        native.closeFd(native.unixListen(path, mode, 1))
        t.is(statSync(path).mode & 0o7777, mode)
        t.is(process.umask(), umask)
      }
    }
  } finally {
    process.umask(before)
  }
})

test('a socket path of 107 bytes is used as it is, everything that is none is refused', async (t) => {
  const folder = await temporaryDirectory(t)
  const longest = join(folder, 'x'.repeat(107 - folder.length - 1))
  const listenFd = native.unixListen(longest, 0o600, 1)
  t.true(statSync(longest).isSocket())
  t.is(native.unixAccept(listenFd), -1)
  native.closeFd(native.unixConnect(longest))
  t.throws(() => native.unixListen(longest, 0o600, 1), {
    code: 'EADDRINUSE',
    message: `EADDRINUSE: address already in use, bind '${longest}'`,
  })
  native.closeFd(listenFd)
  t.throws(() => native.unixConnect(longest), { code: 'ECONNREFUSED' })
  const failure = t.throws(() => native.unixListen(join(folder, 'no', 'where'), 0o600, 1))
  t.like(failure, { code: 'ENOENT', errno: -2, syscall: 'bind', path: join(folder, 'no', 'where') })
  for (const call of [native.unixConnect, (path: string) => native.unixListen(path, 0o600, 1)]) {
    t.throws(() => call(`${longest}x`), { code: 'ENAMETOOLONG' })
    t.throws(() => call(''), { code: 'EINVAL' })
    t.throws(() => call('\0abstract'), { code: 'EINVAL' })
    t.throws(() => call(join(folder, 'cut\0off')), { code: 'EINVAL' })
    t.throws(() => call(5 as unknown as string), { instanceOf: TypeError })
  }
  t.throws(() => native.unixListen(join(folder, 'mode'), 0o1000, 1), { code: 'ERR_OPTION_RANGE' })
})

test('descriptors travel both ways with the first byte, received a byte at a time', async (t) => {
  const pair = await socketPair(t)
  for (const [from, to] of [pair, pair.toReversed()] as [number, number][]) {
    const memory = native.memfdCreate('hushring-passed', 16, true)
    const event = native.eventfdCreate()
    t.is(native.unixSend(from, Buffer.from('twelve bytes'), [memory, event]), 12)
    native.closeFd(memory)
    const target = Buffer.alloc(20)
    const counts: number[] = []
    const fds: number[] = []
    for (let offset = 0; ; offset++) {
      const received = native.unixReceive(to, target, offset + 2, 1)
      if (received.bytes < 0) break
      counts.push(received.fds.length)
      fds.push(...received.fds)
    }
    t.is(target.toString('latin1'), '\0\0twelve bytes\0\0\0\0\0\0')
    t.deepEqual(counts, [2, ...Array<number>(11).fill(0)])
    t.is(fstatSync(fds[0]!).size, 16)
    native.eventfdSignal(event)
    t.is(native.eventfdDrain(fds[1]!), 1)
    for (const fd of [event, ...fds]) native.closeFd(fd)
  }
  for (const fd of pair) native.closeFd(fd)
})

test.serial('64 descriptors are received; with 65 all are closed and EMSGSIZE is thrown', async (t) => {
  const [one, other] = await socketPair(t)
  const event = native.eventfdCreate()
  const fdCount = openFdCount()
  const target = Buffer.alloc(1)
  native.unixSend(one, target, Array<number>(64).fill(event))
  const { fds } = native.unixReceive(other, target, 0, 1)
  t.is(fds.length, 64)
  for (const fd of fds) native.closeFd(fd)
  native.unixSend(one, target, Array<number>(65).fill(event))
  t.throws(() => native.unixReceive(other, target, 0, 1), { code: 'EMSGSIZE' })
  t.is(openFdCount(), fdCount)
  for (const fd of [one, other, event]) native.closeFd(fd)
})

test('a full socket takes a part, then nothing, and goes on when there is room', async (t) => {
  const [one, other] = await socketPair(t)
  const all = Buffer.alloc(8 * MiB)
  for (let index = 0; index < all.length; index += 4) all.writeUInt32LE(index, index)
  let sent = native.unixSend(one, all, [])
  t.true(sent > 0 && sent < all.length)
  t.is(native.unixSend(one, all.subarray(sent), []), -1)
  const target = Buffer.alloc(all.length)
  let received = 0
  while (received < all.length) {
    const { bytes } = native.unixReceive(other, target, received, target.length - received)
    if (bytes > 0) received += bytes
    else sent += Math.max(0, native.unixSend(one, all.subarray(sent), []))
  }
  t.true(target.equals(all))
  for (const fd of [one, other]) native.closeFd(fd)
})

test('the end of the stream is 0 bytes, and sending to nobody is EPIPE', async (t) => {
  const [one, other] = await socketPair(t)
  const target = Buffer.alloc(4)
  t.is(native.unixReceive(one, target, 0, 4).bytes, -1)
  native.unixSend(other, Buffer.from('bye'), [])
  native.closeFd(other)
  t.is(native.unixReceive(one, target, 0, 4).bytes, 3)
  t.is(native.unixReceive(one, target, 0, 4).bytes, 0)
  t.throws(() => native.unixSend(one, target, []), { code: 'EPIPE', message: 'EPIPE: broken pipe, sendmsg' })
  native.closeFd(one)
})

test('receiving outside the target or without room, and descriptors without bytes, are refused', async (t) => {
  const [one, other] = await socketPair(t)
  const target = Buffer.alloc(8)
  for (const [offset, length] of [
    [0, 0],
    [0, 9],
    [8, 1],
    [-1, 1],
    [9, 1],
    [4, 5],
  ] as const) {
    t.throws(() => native.unixReceive(one, target, offset, length), { code: 'ERR_OPTION_RANGE' })
  }
  t.throws(() => native.unixReceive(one, new Uint16Array(8) as unknown as Uint8Array, 0, 1), {
    code: 'ERR_OPTION_TYPE',
  })
  t.throws(() => native.unixSend(one, new Uint8Array(0), [0]), { code: 'ERR_OPTION_TYPE' })
  t.throws(() => native.unixSend(one, target, [-1]), { code: 'EBADF' })
  t.is(native.unixSend(one, new Uint8Array(0), []), 0)
  t.is(native.unixReceive(other, target, 0, 8).bytes, -1, 'none of it was sent')
  for (const fd of [one, other]) native.closeFd(fd)
})

test.serial('a thousand connections with descriptors leave none behind', async (t) => {
  const path = join(await temporaryDirectory(t), 'socket')
  const listenFd = native.unixListen(path, 0o600, 8)
  const event = native.eventfdCreate()
  const fdCount = openFdCount()
  const target = Buffer.alloc(8)
  for (let round = 0; round < 1000; round++) {
    const client = native.unixConnect(path)
    const server = native.unixAccept(listenFd)
    native.unixSend(client, target, [event, event])
    // Every other message is never received: the kernel closes its descriptors with the socket.
    if (round % 2 === 0) for (const fd of native.unixReceive(server, target, 0, 8).fds) native.closeFd(fd)
    native.closeFd(client)
    native.closeFd(server)
  }
  t.is(openFdCount(), fdCount)
  native.closeFd(listenFd)
  native.closeFd(event)
})
