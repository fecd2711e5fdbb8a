import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import test from 'ava'
import { EMPTY, Observable, of, throwError } from 'rxjs'
import { HushringError } from '../../src/errors.ts'
import { asVirtioDevice } from '../../src/handlers/as-virtio-device.ts'
import {
  type BlockAnswer,
  type BlockDeviceOptions,
  type BlockVerbFunction,
  blockDevice,
  entropyDevice,
  memoryDisk,
  type VirtioDeviceOptions,
  virtioDevice,
} from '../../src/handlers/index.ts'
import { type Completion, isCompletion, RingRequest } from '../../src/ring/request.ts'
import { ask, blockRequest, describe, pattern } from '../helpers/block-requests.ts'

const nothing = (): void => {}
const disk = (options: Partial<BlockDeviceOptions>): ReturnType<typeof blockDevice> =>
  blockDevice({ capacityBytes: 8192, read: nothing, ...options })
const read512 = (): ReturnType<typeof blockRequest> => blockRequest('read', 0, Buffer.alloc(512))

// ---- blockDevice: what a verb may come to -----------------------------------------------------------------------

const comesTo = test.macro({
  async exec(
    t,
    _title: string,
    read: (...parameters: Parameters<BlockVerbFunction>) => unknown,
    expected: string,
  ) {
    const completion = await ask(disk({ read: read as BlockVerbFunction }), read512())
    t.is(describe(completion), expected)
    if (completion.result === 'ok') t.is(completion.bytesWritten, undefined)
  },
  title: (_, title) => `blockDevice: a verb that comes to ${title}`,
})

test(comesTo, 'nothing is done', () => {}, 'ok')
test(comesTo, 'nothing later is done', async () => {}, 'ok')
test(comesTo, 'an observable of nothing is done', () => of(undefined), 'ok')
test(comesTo, 'its length is done', () => 512, 'ok')
test(comesTo, 'what FileHandle.readv returns is done', async () => ({ bytesRead: 512, buffers: [] }), 'ok')
test(
  comesTo,
  'what FileHandle.writev returns is done',
  async () => ({ bytesWritten: 512, buffers: [] }),
  'ok',
)
test(comesTo, 'the first value of two is done', () => of(512, 100), 'ok')
test(comesTo, 'a completion passes it on', (io) => io.unsupported(), 'unsupported')
test(comesTo, 'a completion later passes it on', async (io) => io.fail(new Error('no')), 'ERR_STORE_IO')
test(comesTo, 'a short count fails', () => 511, 'ERR_STORE_SHORT')
test(comesTo, 'a short count later fails', async () => ({ bytesRead: 0 }), 'ERR_STORE_SHORT')
test(comesTo, 'a long count fails', () => of(513), 'ERR_STORE_SHORT')
test(
  comesTo,
  'an observable that goes on until it is unsubscribed from is done',
  () =>
    new Observable<void>((subscriber) => {
      while (!subscriber.closed) subscriber.next()
    }),
  'ok',
)
test(comesTo, 'an observable without a value fails', () => EMPTY, 'ERR_HANDLER_ANSWER')
test(comesTo, 'a text fails', () => 'done', 'ERR_HANDLER_ANSWER')
test(comesTo, 'null fails', () => null, 'ERR_HANDLER_ANSWER')
test(comesTo, 'a forged completion fails', () => ({ result: 'ok', bytesWritten: 512 }), 'ERR_HANDLER_ANSWER')
test(
  comesTo,
  'a throw fails',
  () => {
    throw new TypeError('a mistake')
  },
  'ERR_HANDLER_THREW',
)
test(comesTo, 'a rejection fails', async () => Promise.reject(new Error('a mistake')), 'ERR_HANDLER_THREW')
test(
  comesTo,
  'an observable that errors fails',
  () => throwError(() => new Error('a mistake')),
  'ERR_HANDLER_THREW',
)

test('blockDevice: a verb that answers at once stays synchronous and shares one answer', (t) => {
  const { handler } = disk({ read: nothing, write: (io) => io.ok() })
  const first = handler(read512())
  t.true(isCompletion(first))
  t.is(first, handler(blockRequest('write', 512, Buffer.alloc(512))))
})

test('blockDevice: a missing verb is answered unsupported and not offered', async (t) => {
  const device = disk({ write: nothing })
  t.deepEqual(device.abilities, { flush: false, discard: false, writeZeroes: false })
  for (const verb of ['flush', 'discard', 'writeZeroes'] as const) {
    t.is(describe(await ask(device, blockRequest(verb))), 'unsupported')
  }
  const able = disk({ write: nothing, flush: nothing, discard: nothing, writeZeroes: nothing })
  t.deepEqual(able.abilities, { flush: true, discard: true, writeZeroes: true })
})

test('blockDevice: a disk without write, or with readOnly, changes nothing', async (t) => {
  t.true(disk({}).readOnly)
  t.false(disk({ write: nothing }).readOnly)
  const reached: string[] = []
  const note = (io: { verb: string }): void => {
    reached.push(io.verb)
  }
  const device = disk({
    readOnly: true,
    write: note,
    discard: note,
    writeZeroes: note,
    flush: note,
    read: note,
  })
  t.deepEqual(device.abilities, { flush: true, discard: false, writeZeroes: false })
  for (const verb of ['write', 'discard', 'writeZeroes'] as const) {
    t.is(describe(await ask(device, blockRequest(verb))), 'unsupported')
  }
  await ask(device, read512())
  await ask(device, blockRequest('flush'))
  t.deepEqual(reached, ['read', 'flush'])
})

const isOutside = test.macro({
  async exec(t, offsetBytes: number, lengthBytes: number, expected: string) {
    let reached = 0
    const device = blockDevice({
      capacityBytes: 2 ** 40,
      blockBytes: 4096,
      read: nothing,
      write: nothing,
      discard: () => {
        reached++
      },
    })
    t.is(describe(await ask(device, blockRequest('discard', offsetBytes, lengthBytes))), expected)
    t.is(reached, expected === 'ok' ? 1 : 0)
  },
  title: (_, offsetBytes, lengthBytes, expected) =>
    `blockDevice: ${lengthBytes} bytes at ${offsetBytes} of 1 TiB: ${expected}`,
})
test(isOutside, 0, 2 ** 40, 'ok')
test(isOutside, 2 ** 40 - 4096, 4096, 'ok')
test(isOutside, 2 ** 40 - 4096, 8192, 'ERR_BLOCK_RANGE')
test(isOutside, 2 ** 40, 4096, 'ERR_BLOCK_RANGE')
test(isOutside, 2 ** 73, 4096, 'ERR_BLOCK_RANGE')
test(isOutside, -4096, 4096, 'ERR_BLOCK_RANGE')
test(isOutside, Number.NaN, 4096, 'ERR_BLOCK_RANGE')
test(isOutside, 0, Number.NaN, 'ERR_BLOCK_RANGE')
test(isOutside, 512, 4096, 'ERR_BLOCK_ALIGNMENT')
test(isOutside, 4096, 512, 'ERR_BLOCK_ALIGNMENT')
test(isOutside, 4096.5, 4096, 'ERR_BLOCK_ALIGNMENT')
test(isOutside, 2 ** 33 + 512, 4096, 'ERR_BLOCK_ALIGNMENT')

test('blockDevice: close ends the store once, and requests after it fail', async (t) => {
  let closes = 0
  const device = disk({
    close: () => {
      closes++
    },
  })
  await Promise.all([device.close(), device.wrap((next) => next).close()])
  t.is(closes, 1)
  t.is(describe(await ask(device, read512())), 'ERR_CLOSED')
})

test('blockDevice: a close that throws rejects', async (t) => {
  const device = disk({
    close: () => {
      throw new Error('stuck')
    },
  })
  await t.throwsAsync(device.close(), { message: 'stuck' })
})

// ---- options ----------------------------------------------------------------------------------------------------

const refuses = test.macro({
  exec(t, make: () => unknown, kind: ErrorConstructor, message: RegExp) {
    const error = t.throws(make, { instanceOf: kind, message })
    t.is(
      (error as { code?: string } | undefined)?.code,
      kind === TypeError ? 'ERR_OPTION_TYPE' : 'ERR_OPTION_RANGE',
    )
  },
  title: (_, make, _kind, message) => `${String(make).replace(/^\(\)\s*=>\s*/, '')} throws ${message}`,
})
const wrong = (options: object) => disk(options as Partial<BlockDeviceOptions>)
test(
  refuses,
  () => blockDevice(undefined as never),
  TypeError,
  /expected `options` to be an object, got `undefined`/,
)
test(refuses, () => wrong({ raed: nothing }), TypeError, /unknown option `raed`: did you mean `read`\?/)
test(
  refuses,
  () => wrong({ qqq: 1 }),
  TypeError,
  /unknown option `qqq`: expected one of capacityBytes, blockBytes,/,
)
test(refuses, () => wrong({ read: undefined }), TypeError, /`read` to be a function, got `undefined`/)
test(refuses, () => wrong({ write: 5 }), TypeError, /`write` to be a function, got `5`/)
test(refuses, () => wrong({ close: true }), TypeError, /`close` to be a function/)
test(refuses, () => wrong({ readOnly: false }), TypeError, /`write` to be a function unless readOnly is true/)
test(refuses, () => wrong({ readOnly: 'no' }), TypeError, /`readOnly` to be true or false, got `"no"`/)
test(refuses, () => wrong({ capacityBytes: '1' }), TypeError, /`capacityBytes` to be a number, got `"1"`/)
test(refuses, () => wrong({ capacityBytes: 0 }), RangeError, /`capacityBytes` to be an integer from 512 to/)
test(
  refuses,
  () => wrong({ capacityBytes: 1000 }),
  RangeError,
  /a multiple of the block size of 512 bytes, got `1000`/,
)
test(refuses, () => wrong({ capacityBytes: 512.5 }), RangeError, /`capacityBytes` to be an integer/)
test(refuses, () => wrong({ capacityBytes: 2 ** 53 }), RangeError, /`capacityBytes` to be an integer/)
test(refuses, () => wrong({ blockBytes: 1024 }), RangeError, /`blockBytes` to be 512 or 4096, got `1024`/)
test(refuses, () => wrong({ serial: 'x'.repeat(21) }), RangeError, /`serial` to be up to 20 printable ASCII/)
test(refuses, () => wrong({ serial: 'Größe' }), RangeError, /`serial`/)
test(refuses, () => wrong({ serial: 7 }), TypeError, /`serial` to be a string, got `7`/)

const wrongDevice = (options: object) => virtioDevice(options as VirtioDeviceOptions)
const answered = { deviceId: 42, handler: (io: RingRequest): Completion => io.ok() }
test(
  refuses,
  () => wrongDevice({ deviceId: 42 }),
  TypeError,
  /`handler` to be a function, unless connect is given/,
)
test(refuses, () => wrongDevice({ ...answered, connect: nothing }), TypeError, /`handler`/)
test(
  refuses,
  () => wrongDevice({ ...answered, handler: 3 }),
  TypeError,
  /`handler` to be a function, got `3`/,
)
test(
  refuses,
  () => wrongDevice({ ...answered, deviceId: 0 }),
  RangeError,
  /`deviceId` to be an integer from 1 to 255/,
)
test(
  refuses,
  () => wrongDevice({ ...answered, features: 1 }),
  TypeError,
  /`features` to be a bigint, got `1`/,
)
test(
  refuses,
  () => wrongDevice({ ...answered, features: 1n << 24n }),
  RangeError,
  /bits 0 to 23 and 50 to 63, got `"0x1000000"`/,
)
test(refuses, () => wrongDevice({ ...answered, features: 1n << 64n }), RangeError, /`features`/)
test(refuses, () => wrongDevice({ ...answered, features: -1n }), RangeError, /`features`/)
test(refuses, () => wrongDevice({ ...answered, queueCountMax: 257 }), RangeError, /`queueCountMax`/)
test(
  refuses,
  () => wrongDevice({ ...answered, framing: { headerBytes: 65, statusByte: true } }),
  RangeError,
  /`framing.headerBytes`/,
)
test(
  refuses,
  () => wrongDevice({ ...answered, framing: { headerBytes: 1 } }),
  TypeError,
  /`framing.statusByte`/,
)
test(
  refuses,
  () => wrongDevice({ ...answered, framing: { header: 1 } }),
  TypeError,
  /unknown option `framing.header`/,
)
test(
  refuses,
  () => wrongDevice({ ...answered, config: 'abc' }),
  TypeError,
  /`config` to be a Uint8Array or a function/,
)
test(
  refuses,
  () => wrongDevice({ ...answered, config: new Uint8Array(257) }),
  RangeError,
  /`config` to be up to 256 bytes/,
)
test(refuses, () => wrongDevice({ ...answered, nmae: 'x' }), TypeError, /did you mean `name`\?/)
test(refuses, () => entropyDevice({ source: 1 } as never), TypeError, /`source` to be a function/)

// ---- virtioDevice -----------------------------------------------------------------------------------------------

test('virtioDevice: has the defaults that its options say, and a configuration nobody else can change', (t) => {
  const device = virtioDevice({ ...answered, config: Uint8Array.of(1, 2, 3) })
  t.like(device, {
    kind: 'virtio',
    deviceId: 42,
    name: 'virtio-42',
    features: 0n,
    queueCountMax: 1,
    framing: { headerBytes: 0, statusByte: false },
  })
  device.config(1)[0] = 9
  t.deepEqual(device.config(1), Uint8Array.of(1, 2, 3))
  t.false(device.writeConfig(0, Uint8Array.of(1)))
  t.deepEqual(virtioDevice(answered).config(1), new Uint8Array(0))
})

test('virtioDevice: passes its functions what the driver did', async (t) => {
  const calls: unknown[] = []
  const device = virtioDevice({
    deviceId: 42,
    features: (1n << 63n) | (1n << 50n) | (1n << 23n) | 1n,
    config: (queueCount) => Uint8Array.of(queueCount),
    writeConfig: (offsetBytes, bytes) => calls.push([offsetBytes, bytes]) > 0,
    connect: (features) => {
      calls.push(features)
      return (io) => io.ok()
    },
    close: () => {
      calls.push('closed')
    },
  })
  t.deepEqual(device.config(4), Uint8Array.of(4))
  t.true(device.writeConfig(2, Uint8Array.of(7)))
  device.connect(5n)
  await device.close()
  await device.close()
  t.deepEqual(calls, [[2, Uint8Array.of(7)], 5n, 'closed'])
})

test('asVirtioDevice makes a block device of a disk and leaves others alone', (t) => {
  const device = virtioDevice(answered)
  t.is(asVirtioDevice(device), device)
  t.is(asVirtioDevice(memoryDisk({ capacityBytes: 512 })).deviceId, 2)
})

// ---- entropy ----------------------------------------------------------------------------------------------------

test('entropyDevice: fills what is writable and says how much that is', (t) => {
  const device = entropyDevice()
  t.is(device.deviceId, 4)
  const [one, other] = [Buffer.alloc(64), Buffer.alloc(64)]
  const request = new RingRequest(0)
  request.writable.append(one, 0, 64)
  request.writable.append(other, 0, 64)
  const completion = device.connect(0n)(request) as Completion
  t.like(completion, { result: 'ok', bytesWritten: 128 })
  t.false(one.equals(Buffer.alloc(64)))
  t.false(one.equals(other))
})

test('entropyDevice: a request without room gets 0 bytes, one with much gets 64 KiB', (t) => {
  const device = entropyDevice({ source: (view) => view.fill(0x5a) })
  const handler = device.connect(0n)
  const empty = new RingRequest(0)
  empty.readable.append(pattern(16), 0, 16)
  t.like(handler(empty), { result: 'ok', bytesWritten: 0 })

  const room = Buffer.alloc(100_000)
  const greedy = new RingRequest(0)
  greedy.writable.append(room, 0, 50_000)
  greedy.writable.append(room, 50_000, 50_000)
  t.like(handler(greedy), { result: 'ok', bytesWritten: 65_536 })
  t.true(room.subarray(0, 65_536).equals(Buffer.alloc(65_536, 0x5a)))
  t.true(room.subarray(65_536).equals(Buffer.alloc(100_000 - 65_536)))
})

test('a HushringError from a verb keeps its code', async (t) => {
  const read = (): BlockAnswer => Promise.reject(new HushringError('ERR_REQUEST_ABORTED'))
  t.is(describe(await ask(disk({ read }), read512())), 'ERR_REQUEST_ABORTED')
})

const LISTS_ADDONS = `
  const loaded = process.report.getReport().sharedObjects.filter((path) => path.endsWith('hushring.node'))
  console.log(loaded.length)`

const loadsAddon = test.macro({
  async exec(t, module: string, count: number) {
    const url = new URL(`../../src/${module}`, import.meta.url)
    const script = `await import('${url}'); ${LISTS_ADDONS}`
    const { stdout } = await promisify(execFile)(process.execPath, [
      '--import=tsx',
      '--input-type=module',
      '--eval',
      script,
    ])
    t.is(Number(stdout), count)
  },
  title: (_, module, count) => `${module} ${count === 0 ? 'is of use without' : 'loads'} the addon`,
})
test(loadsAddon, 'handlers/block/virtio-blk.ts', 0)
test(loadsAddon, 'native.ts', 1)
