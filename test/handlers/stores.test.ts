import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { HushringError } from '../../src/errors.ts'
import type { BlockVerb } from '../../src/handlers/block/block-request.ts'
import {
  type BlockDevice,
  type FileDiskOptions,
  type FileIo,
  fileDisk,
  memoryDisk,
  nullDisk,
  sharedMemoryDisk,
} from '../../src/handlers/index.ts'
import { type Completion, isCompletion } from '../../src/ring/request.ts'
import { SegmentList } from '../../src/ring/segments.ts'
import { randomFrom } from '../../src/testing/random.ts'
import { KiB, MiB } from '../../src/units.ts'
import { ask, blockRequest, describe, pattern, readFrom } from '../helpers/block-requests.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'
import { ringIsAllowed } from '../helpers/file-ring.ts'
import { openFdCount } from '../helpers/open-fds.ts'

function temporaryFolder(t: ExecutionContext, parent = tmpdir()): string {
  const folder = mkdtempSync(join(parent, 'hushring-stores-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

function temporaryFile(t: ExecutionContext, sizeBytes: number, parent = tmpdir()): string {
  const path = join(temporaryFolder(t, parent), 'disk.img')
  writeFileSync(path, '')
  truncateSync(path, sizeBytes)
  return path
}

async function openFile(t: ExecutionContext, options: FileDiskOptions): Promise<BlockDevice> {
  const disk = await fileDisk(options)
  t.teardown(() => disk.close())
  return disk
}

// ---- every store against a plain model ----------------------------------------------------------------------------

interface Step {
  readonly verb: Exclude<BlockVerb, 'flush'>
  readonly block: number
  readonly count: number
  readonly salt: number
  /** Where the data is cut into two pieces. */
  readonly cut: number
}

function steps(blockCount: number, borderBlocks: number): fc.Arbitrary<Step[]> {
  const nearBorder = fc
    .tuple(fc.nat(Math.floor(blockCount / borderBlocks)), fc.integer({ min: -3, max: 3 }))
    .map(([border, distance]) => Math.min(Math.max(0, border * borderBlocks + distance), blockCount - 1))
  const step = fc.record({
    verb: fc.constantFrom<Step['verb']>('read', 'write', 'write', 'discard', 'writeZeroes'),
    block: fc.oneof(nearBorder, fc.nat(blockCount - 1)),
    count: fc.oneof(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: blockCount })),
    salt: fc.nat(255),
    cut: fc.nat(4096),
  })
  return fc.array(step, { minLength: 1, maxLength: 20 })
}

/** Does the steps on a disk and on a plain buffer; says where they first differ. `discardZeroes`: what it reads as. */
async function firstDifference(
  disk: BlockDevice,
  model: Buffer,
  program: readonly Step[],
): Promise<string | undefined> {
  for (const { verb, block, count, salt, cut } of program) {
    const offsetBytes = block * 512
    const lengthBytes = Math.min(count * 512, model.length - offsetBytes)
    const bytes = verb === 'write' ? pattern(lengthBytes, salt) : Buffer.alloc(lengthBytes, 0xee)
    const data = SegmentList.of(bytes.subarray(0, cut % lengthBytes), bytes.subarray(cut % lengthBytes))
    const io = blockRequest(verb, offsetBytes, lengthBytes)
    if (verb === 'read' || verb === 'write') io.data = data
    const completion = await ask(disk, io)
    if (completion.result !== 'ok') return `${verb}: ${describe(completion)}`
    const expected = model.subarray(offsetBytes, offsetBytes + lengthBytes)
    if (verb === 'write') bytes.copy(expected)
    if (verb === 'discard' || verb === 'writeZeroes') expected.fill(0)
    if (verb === 'read' && !bytes.equals(expected)) return `read of ${lengthBytes} at ${offsetBytes}`
  }
  const all = await readFrom(disk, 0, model.length)
  return all.equals(model) ? undefined : 'the disk as a whole'
}

const MODEL_BYTES = 3 * MiB + 512 * 3

test('memoryDisk: any sequence of requests does what it does to a plain buffer', async (t) => {
  await fc.assert(
    fc.asyncProperty(steps(MODEL_BYTES / 512, MiB / 512), async (program) => {
      const disk = memoryDisk({ capacityBytes: MODEL_BYTES })
      t.is(await firstDifference(disk, Buffer.alloc(MODEL_BYTES), program), undefined)
    }),
    { numRuns: 60 },
  )
})

test('sharedMemoryDisk: any sequence of requests does what it does to a plain buffer, for whoever shares it', async (t) => {
  await fc.assert(
    fc.asyncProperty(steps(64, 8), async (program) => {
      const buffer = new SharedArrayBuffer(32 * KiB)
      const model = Buffer.alloc(buffer.byteLength)
      t.is(await firstDifference(sharedMemoryDisk({ buffer }), model, program), undefined)
      t.deepEqual(await readFrom(sharedMemoryDisk({ buffer }), 0, buffer.byteLength), model)
    }),
    { numRuns: 60 },
  )
  t.throws(() => sharedMemoryDisk({ buffer: new ArrayBuffer(512) as never }), { code: 'ERR_OPTION_TYPE' })
  t.throws(() => sharedMemoryDisk({ buffer: new SharedArrayBuffer(500) }), { code: 'ERR_OPTION_RANGE' })
})

test('the comparison with a plain buffer notices a disk that forgets writes (control)', async (t) => {
  const details = await fc.check(
    fc.asyncProperty(steps(64, 8), async (program) => {
      const found = await firstDifference(
        nullDisk({ capacityBytes: 32 * KiB }),
        Buffer.alloc(32 * KiB),
        program,
      )
      return found === undefined
    }),
  )
  t.true(details.failed)
})

/** Folders of a file system on a disk (as a rule) and of one in memory. */
const FOLDERS = [...new Set([tmpdir(), '/dev/shm'])].filter((folder) => existsSync(folder))

/** Every way to wait for a file that there is on this machine. */
const WAYS: readonly FileIo[] = ringIsAllowed() ? ['uring', 'threads'] : ['threads']
const testRing = ringIsAllowed() ? test : test.skip
const PLACES = FOLDERS.flatMap((parent) => WAYS.map((io) => ({ parent, io })))

for (const { parent, io } of PLACES) {
  test(`fileDisk: any sequence of requests does what it does to a plain buffer, in ${parent} by ${io}`, async (t) => {
    const sizeBytes = 256 * KiB
    const folder = temporaryFolder(t, parent)
    let fileNumber = 0
    await fc.assert(
      fc.asyncProperty(steps(sizeBytes / 512, 64), async (program) => {
        const path = join(folder, `${fileNumber++}.img`)
        const disk = await fileDisk({ path, sizeBytes, create: true, io })
        const model = Buffer.alloc(sizeBytes)
        const possible = program.filter(({ verb }) => verb !== 'discard')
        t.is(await firstDifference(disk, model, possible), undefined)
        await disk.close()
        t.true(readFileSync(path).equals(model))
      }),
      { numRuns: 30 },
    )
  })
}

/** Random reads and writes with many in flight, none of which touches what another one writes, against a plain buffer. */
async function playInFlight(t: ExecutionContext, disk: BlockDevice, seed: number): Promise<void> {
  t.log(`seed ${seed}`)
  const random = randomFrom(seed)
  const below = (end: number): number => Math.floor(random() * end)
  const blockCount = disk.geometry.capacityBytes / 512
  const model = Buffer.alloc(disk.geometry.capacityBytes)
  for (let round = 0; round < 6; round++) {
    const answers: Promise<void>[] = []
    for (let block = below(8); block < blockCount; block += below(8)) {
      const count = Math.min(1 + (below(8) === 0 ? below(600) : below(16)), blockCount - block)
      const [start, end] = [block * 512, (block + count) * 512]
      const isWrite = below(2) === 0
      // Memory of a driver begins anywhere, and lies in pieces.
      const shift = below(3) * 256
      const bytes = Buffer.alloc(end - start + shift, isWrite ? below(256) : 0xee).subarray(shift)
      const data = new SegmentList()
      for (let at = 0; at < bytes.length; ) {
        const pieceBytes = Math.min(
          bytes.length - at,
          below(4) === 0 ? 1 + below(700) : 512 * (1 + below(64)),
        )
        data.append(bytes, at, pieceBytes)
        at += pieceBytes
      }
      const io = blockRequest(isWrite ? 'write' : 'read', start, bytes)
      io.data = data
      if (isWrite) bytes.copy(model, start)
      const expected = Buffer.from(model.subarray(start, end))
      answers.push(
        ask(disk, io).then((completion) => {
          t.is(describe(completion), 'ok')
          if (!bytes.equals(expected)) t.fail(`other bytes from ${start} to ${end}`)
        }),
      )
      if (below(10) === 0)
        answers.push(ask(disk, blockRequest('flush')).then((done) => void t.is(describe(done), 'ok')))
      block += count
    }
    await Promise.all(answers)
  }
  t.true((await readFrom(disk, 0, model.length)).equals(model))
}

const anySeed = (): number => Math.floor(Math.random() * 2 ** 31)

for (const { parent, io } of PLACES) {
  test(`fileDisk: many requests in flight at random places move the right bytes, in ${parent} by ${io}`, async (t) => {
    const disk = await openFile(t, { path: temporaryFile(t, 2 * MiB, parent), io })
    await playInFlight(t, disk, anySeed())
  })
}

for (const parent of FOLDERS) {
  testRing(`fileDisk: past the page cache the same bytes are moved, in ${parent}`, async (t) => {
    const path = temporaryFile(t, 256 * KiB, parent)
    let disk: BlockDevice
    try {
      disk = await openFile(t, { path, direct: true, blockBytes: 512 })
    } catch (error) {
      t.is((error as HushringError).code, 'ERR_STORE_OPEN')
      t.regex(
        (error as HushringError).message,
        /no direct I\/O|direct I\/O in blocks of 512 bytes is refused/,
      )
      t.log(`not run: ${(error as Error).message}`)
      return
    }
    await playInFlight(t, disk, anySeed())
  })
}

// ---- null -------------------------------------------------------------------------------------------------------

test('nullDisk: reads zeros over whatever the buffer held, and forgets the rest', async (t) => {
  const disk = nullDisk({ capacityBytes: MiB })
  t.is(describe(await ask(disk, blockRequest('write', 0, pattern(4096)))), 'ok')
  t.true((await readFrom(disk, 0, 4096)).equals(Buffer.alloc(4096)))
  for (const verb of ['flush', 'discard', 'writeZeroes'] as const) {
    t.is(describe(await ask(disk, blockRequest(verb, 0, 512))), 'ok')
  }
  t.is(describe(await ask(disk, blockRequest('read', MiB, Buffer.alloc(512)))), 'ERR_BLOCK_RANGE')
})

/** Memory in buffers that are still in use. The tests that ask run alone. */
async function bufferBytes(): Promise<number> {
  await collectGarbage()
  return process.memoryUsage().arrayBuffers
}

// ---- memory -----------------------------------------------------------------------------------------------------

test.serial('memoryDisk: a tebibyte costs only what is written', async (t) => {
  const disk = memoryDisk({ capacityBytes: 2 ** 40 })
  const before = await bufferBytes()
  const data = pattern(1024)
  for (const offsetBytes of [0, 2 ** 33 - 512, 2 ** 40 - 1024]) {
    t.is(describe(await ask(disk, blockRequest('write', offsetBytes, data))), 'ok')
    t.true((await readFrom(disk, offsetBytes, 1024)).equals(data))
  }
  t.true((await readFrom(disk, 2 ** 39, 4096)).equals(Buffer.alloc(4096)))
  // The write at 8 GiB - 512 lies in two chunks, so there are four of them.
  t.true((await bufferBytes()) - before < 5 * MiB)
  t.is(describe(await ask(disk, blockRequest('read', 2 ** 40, Buffer.alloc(512)))), 'ERR_BLOCK_RANGE')
})

test.serial('memoryDisk: discarding and zeroing whole MiB gives the memory back', async (t) => {
  const disk = memoryDisk({ capacityBytes: 64 * MiB })
  const before = await bufferBytes()
  for (let index = 0; index < 64; index++) await ask(disk, blockRequest('write', index * MiB, pattern(512)))
  t.true((await bufferBytes()) - before > 48 * MiB)
  await ask(disk, blockRequest('discard', 0, 32 * MiB))
  await ask(disk, blockRequest('writeZeroes', 32 * MiB, 32 * MiB))
  // The collector frees buffers on a thread of its own.
  while ((await bufferBytes()) - before >= MiB);
  t.true((await readFrom(disk, 0, MiB)).equals(Buffer.alloc(MiB)))
})

test('memoryDisk and nullDisk answer at once, always with the same object', (t) => {
  for (const disk of [memoryDisk({ capacityBytes: MiB }), nullDisk({ capacityBytes: MiB })]) {
    const answers = [
      disk.handler(blockRequest('write', 512, pattern(512))),
      disk.handler(blockRequest('read', 0, Buffer.alloc(4096))),
      disk.handler(blockRequest('flush')),
      disk.handler(blockRequest('discard', 0, 512)),
      disk.handler(blockRequest('writeZeroes', 0, 512)),
    ]
    t.true(isCompletion(answers[0]))
    t.is(new Set(answers).size, 1)
  }
})

test('memoryDisk: fails after close and is looked at by its shape', async (t) => {
  const disk = memoryDisk({ capacityBytes: 8192, blockBytes: 4096, serial: 'M', readOnly: true })
  t.like(disk, { serial: 'M', readOnly: true, geometry: { capacityBytes: 8192, blockBytes: 4096 } })
  t.deepEqual(disk.abilities, { flush: true, discard: false, writeZeroes: false })
  await disk.close()
  t.is(describe(await ask(disk, blockRequest('read', 0, Buffer.alloc(4096)))), 'ERR_CLOSED')
})

test('stores refuse options that they do not know', async (t) => {
  t.throws(() => memoryDisk({ capacityByte: 512 } as never), { message: /did you mean `capacityBytes`/ })
  t.throws(() => nullDisk({ capacityBytes: 512, read: () => {} } as never), {
    message: /unknown option `read`/,
  })
  await t.throwsAsync(fileDisk({ paht: '/x' } as never), { message: /did you mean `path`/ })
})

// ---- file -------------------------------------------------------------------------------------------------------

test('fileDisk: has the size of its file, keeps what is written, and creates none by itself', async (t) => {
  const path = temporaryFile(t, MiB)
  const disk = await fileDisk({ path, serial: 'F', blockBytes: 4096 })
  t.like(disk, { serial: 'F', readOnly: false, geometry: { capacityBytes: MiB, blockBytes: 4096 } })
  t.deepEqual(disk.abilities, { flush: true, discard: false, writeZeroes: true })
  t.is(describe(await ask(disk, blockRequest('write', MiB - 4096, pattern(4096)))), 'ok')
  t.is(describe(await ask(disk, blockRequest('flush'))), 'ok')
  await disk.close()
  t.true(
    readFileSync(path)
      .subarray(MiB - 4096)
      .equals(pattern(4096)),
  )
  t.is(statSync(path).size, MiB)
})

test('fileDisk: create makes a sparse file for its owner alone, or takes one of the right size', async (t) => {
  const path = join(temporaryFolder(t), 'new.img')
  const options = { path, sizeBytes: 64 * MiB, create: true }
  await (await fileDisk(options)).close()
  const { size, blocks, mode } = statSync(path)
  t.is(size, 64 * MiB)
  t.true(blocks * 512 < MiB)
  t.is(mode & 0o777, 0o600)

  const again = await openFile(t, options)
  t.is(again.geometry.capacityBytes, 64 * MiB)
  await t.throwsAsync(fileDisk({ ...options, sizeBytes: MiB }), {
    message: /it has 67108864 bytes, but sizeBytes is 1048576/,
  })
})

test('fileDisk: a transfer in more pieces than the kernel takes at once is made whole', async (t) => {
  const disk = await openFile(t, { path: temporaryFile(t, 2 * MiB) })
  const bytes = pattern(MiB)
  const inPieces = (buffer: Buffer): SegmentList => {
    const list = new SegmentList()
    for (let at = 0; at < buffer.length; at += 512) list.append(buffer, at, 512)
    return list
  }
  const write = blockRequest('write', 4096, bytes)
  write.data = inPieces(bytes)
  t.is(write.segments.length, 2048)
  t.is(describe(await ask(disk, write)), 'ok')
  const target = Buffer.alloc(MiB)
  const read = blockRequest('read', 4096, target)
  read.data = inPieces(target)
  t.is(describe(await ask(disk, read)), 'ok')
  t.true(target.equals(bytes))
})

test('fileDisk: a file that was made shorter fails reads with ERR_STORE_SHORT', async (t) => {
  const path = temporaryFile(t, MiB)
  const disk = await openFile(t, { path })
  truncateSync(path, 4096 + 512)
  t.is(describe(await ask(disk, blockRequest('read', 4096, Buffer.alloc(4096)))), 'ERR_STORE_SHORT')
  t.is(describe(await ask(disk, blockRequest('read', 8192, Buffer.alloc(512)))), 'ERR_STORE_SHORT')
  t.is(describe(await ask(disk, blockRequest('read', 0, Buffer.alloc(4096)))), 'ok')
  t.is(describe(await ask(disk, blockRequest('read', MiB, Buffer.alloc(512)))), 'ERR_BLOCK_RANGE')
})

test('fileDisk: writes zeros over more than one piece, and nothing beside them', async (t) => {
  const path = temporaryFile(t, 4 * MiB)
  writeFileSync(path, Buffer.alloc(4 * MiB, 0xff))
  const disk = await openFile(t, { path })
  t.is(describe(await ask(disk, blockRequest('writeZeroes', 512, 2 * MiB + 512 * 5))), 'ok')
  const expected = Buffer.alloc(4 * MiB, 0xff)
  expected.fill(0, 512, 512 + 2 * MiB + 512 * 5)
  t.true(readFileSync(path).equals(expected))
})

test('fileDisk: zeros that nobody waits for any more are not written to the end', async (t) => {
  const path = temporaryFile(t, 4 * MiB)
  writeFileSync(path, Buffer.alloc(4 * MiB, 0xff))
  const disk = await openFile(t, { path })
  const io = blockRequest('writeZeroes', 0, 4 * MiB)
  const answer = ask(disk, io)
  io.abort(new HushringError('ERR_REQUEST_ABORTED'))
  t.is(describe(await answer), 'ERR_REQUEST_ABORTED')
  t.true(
    readFileSync(path)
      .subarray(2 * MiB)
      .equals(Buffer.alloc(2 * MiB, 0xff)),
  )
})

const closeWaits = test.macro({
  exec: async (t, io: FileIo) => {
    const path = temporaryFile(t, 4 * MiB)
    const disk = await fileDisk({ path, io })
    const order: string[] = []
    const inFlight = [
      ask(disk, blockRequest('write', 0, pattern(MiB))),
      ask(disk, blockRequest('writeZeroes', MiB, 3 * MiB)),
      ask(disk, blockRequest('flush')),
    ].map((answer) => answer.then((completion) => order.push(describe(completion))))
    const closed = disk.close().then(() => order.push('closed'))
    t.is(describe(await ask(disk, blockRequest('read', 0, Buffer.alloc(512)))), 'ERR_CLOSED')
    await Promise.all([...inFlight, closed])
    t.deepEqual(order, ['ok', 'ok', 'ok', 'closed'])
  },
  title: (_, io) => `fileDisk: close waits for what is in flight and fails what comes after, by ${io}`,
})
for (const io of WAYS) test(closeWaits, io)

// ---- file: what is answered at once --------------------------------------------------------------------------------

const hasMemoryFolder = FOLDERS.includes('/dev/shm')
const testInMemory = hasMemoryFolder ? test : test.skip

testInMemory('fileDisk: a file in memory is answered at once, up to 128 KiB', async (t) => {
  const disk = await openFile(t, { path: temporaryFile(t, MiB, '/dev/shm') })
  const bytes = pattern(128 * KiB)
  t.true(isCompletion(disk.handler(blockRequest('write', 4096, bytes))))
  const target = Buffer.alloc(bytes.length)
  t.true(isCompletion(disk.handler(blockRequest('read', 4096, target))))
  t.deepEqual(target, bytes)
  // The control: more than that is left to other threads.
  const more = disk.handler(blockRequest('read', 0, Buffer.alloc(128 * KiB + 512)))
  t.false(isCompletion(more))
  t.is(describe((await more) as Completion), 'ok')
})

testInMemory(
  'fileDisk: a file in memory that was made shorter fails reads with ERR_STORE_SHORT',
  async (t) => {
    const path = temporaryFile(t, MiB, '/dev/shm')
    const disk = await openFile(t, { path })
    truncateSync(path, 4096 + 512)
    t.is(describe(await ask(disk, blockRequest('read', 4096, Buffer.alloc(4096)))), 'ERR_STORE_SHORT')
    t.is(describe(await ask(disk, blockRequest('read', 8192, Buffer.alloc(512)))), 'ERR_STORE_SHORT')
    t.is(describe(await ask(disk, blockRequest('read', 0, Buffer.alloc(4096)))), 'ok')
  },
)

for (const parent of FOLDERS) {
  test(`fileDisk: places beyond 4 GiB are not mistaken for those below, in ${parent}`, async (t) => {
    const path = temporaryFile(t, 2 ** 33, parent)
    const disk = await openFile(t, { path })
    const places = [0, 2 ** 31, 2 ** 32, 2 ** 32 + 2 ** 31, 2 ** 33 - 4096]
    for (const [index, place] of places.entries()) {
      t.is(describe(await ask(disk, blockRequest('write', place, pattern(4096, index)))), 'ok')
    }
    for (const [index, place] of places.entries()) {
      t.deepEqual(await readFrom(disk, place, 4096), pattern(4096, index))
    }
    t.is(statSync(path).size, 2 ** 33)
  })

  test(`fileDisk: what one request wrote the next one reads, whoever does them, in ${parent}`, async (t) => {
    const disk = await openFile(t, { path: temporaryFile(t, MiB, parent) })
    const bytes = [pattern(512 * KiB, 1), pattern(512 * KiB, 2)]
    for (let round = 0; round < 10; round++) {
      const large = bytes[round % 2]!
      const small = blockRequest('read', 64 * KiB, Buffer.alloc(4096))
      // Another thread writes while this one reads: any bytes may come, and the answer.
      const answers = [ask(disk, blockRequest('write', 0, large)), ask(disk, small)]
      for (const completion of await Promise.all(answers)) t.is(describe(completion), 'ok')
      t.deepEqual(await readFrom(disk, 64 * KiB, 4096), large.subarray(64 * KiB, 68 * KiB))
      await ask(disk, blockRequest('write', 64 * KiB, Buffer.alloc(4096, round)))
      t.deepEqual(await readFrom(disk, 0, 128 * KiB), withBytes(large, 64 * KiB, Buffer.alloc(4096, round)))
    }
  })

  test.serial(
    `fileDisk: a closed disk leaves alone the file that got its descriptor, in ${parent}`,
    async (t) => {
      const path = temporaryFile(t, MiB, parent)
      const before = new Set(openDescriptors())
      const disk = await fileDisk({ path })
      const own = openDescriptors().filter((fd) => !before.has(fd))
      await disk.close()
      const other = temporaryFile(t, MiB, parent)
      const descriptors: number[] = []
      while (!own.some((fd) => descriptors.includes(fd))) descriptors.push(openSync(other, 'r+'))
      for (const lengthBytes of [512, 256 * KiB]) {
        const write = blockRequest('write', 0, Buffer.alloc(lengthBytes, 0xff))
        t.is(describe(await ask(disk, write)), 'ERR_CLOSED')
        t.is(describe(await ask(disk, blockRequest('read', 0, Buffer.alloc(lengthBytes)))), 'ERR_CLOSED')
      }
      for (const fd of descriptors) closeSync(fd)
      t.true(readFileSync(other).equals(Buffer.alloc(MiB)))
    },
  )
}

function withBytes(bytes: Buffer, at: number, others: Buffer): Buffer {
  const changed = Buffer.from(bytes.subarray(0, 128 * KiB))
  changed.set(others, at)
  return changed
}

/** Descriptors of this process that show a disk of this test. */
function openDescriptors(): number[] {
  return readdirSync('/proc/self/fd')
    .filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).endsWith('/disk.img')
      } catch {
        return false
      }
    })
    .map(Number)
}

/** A block device over a file; undefined where none can be made. */
function loopDevice(t: ExecutionContext, path: string): string | undefined {
  try {
    const device = execFileSync('losetup', ['--find', '--show', path], { stdio: 'pipe' }).toString().trim()
    t.teardown(() => void execFileSync('losetup', ['--detach', device]))
    return device
  } catch {
    return undefined
  }
}

test.serial(
  'fileDisk: a block device is waited for by other threads, though its node lies in memory',
  async (t) => {
    const path = temporaryFile(t, 4 * MiB)
    writeFileSync(path, pattern(4 * MiB))
    const device = loopDevice(t, path)
    if (device === undefined) {
      t.pass()
      t.log('not run: this process cannot make a block device')
      return
    }
    const disk = await openFile(t, { path: device })
    t.is(disk.geometry.capacityBytes, 4 * MiB)
    const target = Buffer.alloc(4096)
    const cold = disk.handler(blockRequest('read', 2 * MiB, target))
    t.false(isCompletion(cold))
    t.is(describe((await cold) as Completion), 'ok')
    t.deepEqual(target, pattern(4 * MiB).subarray(2 * MiB, 2 * MiB + 4096))
    await disk.close()
  },
)

test('fileDisk: a read-only file is served read-only and opened only so', async (t) => {
  const path = temporaryFile(t, MiB)
  writeFileSync(path, pattern(MiB))
  chmodSync(path, 0o444)
  const disk = await openFile(t, { path, readOnly: true })
  t.true(disk.readOnly)
  t.true((await readFrom(disk, 512, 512)).equals(pattern(MiB).subarray(512, 1024)))
  t.is(describe(await ask(disk, blockRequest('write', 0, pattern(512)))), 'unsupported')
  t.is(describe(await ask(disk, blockRequest('writeZeroes', 0, 512))), 'unsupported')
  if (process.getuid?.() !== 0) await t.throwsAsync(fileDisk({ path }), { message: /no permission/ })
})

const cannotBeOpened = test.macro({
  async exec(t, _title: string, make: (folder: string) => FileDiskOptions, message: RegExp) {
    const options = make(temporaryFolder(t))
    const error = await t.throwsAsync(fileDisk(options), { instanceOf: HushringError, message })
    t.is((error as HushringError).code, 'ERR_STORE_OPEN')
    t.true(error!.message.includes(options.path))
    t.false(error!.message.includes('\n'))
  },
  title: (_, title) => `fileDisk: ${title} is refused with one clear line`,
})
const file = (folder: string, sizeBytes: number): string => {
  const path = join(folder, 'disk.img')
  writeFileSync(path, Buffer.alloc(sizeBytes))
  return path
}
test(
  cannotBeOpened,
  'a file that does not exist',
  (folder) => ({ path: join(folder, 'none') }),
  /does not exist; check/,
)
test(
  cannotBeOpened,
  'a path through a file',
  (folder) => ({ path: join(file(folder, 512), 'x') }),
  /no folder/,
)
test(cannotBeOpened, 'a folder', (path) => ({ path }), /it is a folder/)
test(
  cannotBeOpened,
  'a folder, read-only,',
  (path) => ({ path, readOnly: true }),
  /neither a regular file nor a block/,
)
test(
  cannotBeOpened,
  'a character device',
  () => ({ path: '/dev/null' }),
  /neither a regular file nor a block device/,
)
test(
  cannotBeOpened,
  'an empty file',
  (folder) => ({ path: file(folder, 0) }),
  /it is empty; give it a size, as with: truncate -s/,
)
test(
  cannotBeOpened,
  'a file of 1000 bytes',
  (folder) => ({ path: file(folder, 1000) }),
  /its 1000 bytes are not a multiple of the block size of 512 bytes; .* truncate -s 1024/,
)
test(
  cannotBeOpened,
  'a file of 512 bytes for blocks of 4096',
  (folder) => ({ path: file(folder, 512), blockBytes: 4096 }),
  /not a multiple of the block size of 4096 bytes; .* truncate -s 4096/,
)
test(
  cannotBeOpened,
  'a file of another size than was asked for',
  (folder) => ({ path: file(folder, 512), sizeBytes: 1024 }),
  /it has 512 bytes, but sizeBytes is 1024/,
)
const link = (folder: string): string => {
  symlinkSync(file(folder, 512), join(folder, 'link'))
  return join(folder, 'link')
}
test(
  cannotBeOpened,
  'a symbolic link',
  (folder) => ({ path: link(folder) }),
  /it is a symbolic link; .* followSymlinks/,
)
test(
  cannotBeOpened,
  'a named pipe, without waiting for its other end,',
  (folder) => {
    execFileSync('mkfifo', [join(folder, 'pipe')])
    return { path: join(folder, 'pipe'), readOnly: true }
  },
  /neither a regular file nor a block device/,
)

test('fileDisk: a symbolic link is followed when that is allowed', async (t) => {
  const disk = await openFile(t, { path: link(temporaryFolder(t)), followSymlinks: true })
  t.is(disk.geometry.capacityBytes, 512)
})

test('fileDisk: wrong options are refused before a file is made', async (t) => {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'sub'))
  const path = join(folder, 'new.img')
  const wrong: [object, RegExp][] = [
    [{ create: true }, /`sizeBytes` to be a number with create/],
    [{ create: true, sizeBytes: 1000 }, /`sizeBytes` to be a multiple of the block size of 512/],
    [{ create: true, sizeBytes: 4096, blockBytes: 1024 }, /`blockBytes` to be 512 or 4096/],
    [{ create: true, sizeBytes: 4096, serial: 'x'.repeat(21) }, /`serial`/],
    [{ create: true, sizeBytes: 4096, readOnly: true }, /`create` to be false when readOnly is true/],
    [{ create: 1, sizeBytes: 4096 }, /`create` to be true or false/],
    [{ create: true, sizeBytes: 4096, path: 7 }, /`path` to be a string/],
    [{ create: true, sizeBytes: 4096, io: 'aio' }, /`io` to be one of auto, uring, threads/],
    [
      { create: true, sizeBytes: 4096, io: 'threads', direct: true },
      /`direct` to be false when io is threads/,
    ],
    [{ create: true, sizeBytes: 4096, onFallback: 'log' }, /`onFallback` to be a function/],
  ]
  for (const [options, message] of wrong) {
    await t.throwsAsync(fileDisk({ path, ...options } as FileDiskOptions), { message })
  }
  t.throws(() => statSync(path), { code: 'ENOENT' })
})

test.serial('fileDisk: an open that fails leaves no file descriptor behind', async (t) => {
  const path = file(temporaryFolder(t), 1000)
  const before = openFdCount()
  for (let round = 0; round < 10; round++) await t.throwsAsync(fileDisk({ path }))
  t.true(openFdCount() <= before)
})
