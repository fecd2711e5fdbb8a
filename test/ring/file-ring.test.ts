import { closeSync, constants, ftruncateSync, openSync, readFileSync } from 'node:fs'
import test, { type ExecutionContext } from 'ava'
import { Subject } from 'rxjs'
import { blockDevice } from '../../src/handlers/block/block-device.ts'
import type { BlockRequest } from '../../src/handlers/block/block-request.ts'
import type { Handler } from '../../src/handlers/handler.ts'
import { RingFile } from '../../src/handlers/stores/ring-file.ts'
import { FileRingEnd, FileRingVerb, type NativeFileRing, native } from '../../src/native.ts'
import { answer } from '../../src/notify/answer.ts'
import { FileRing, type FileRingPort, openFileRing } from '../../src/ring/file-ring.ts'
import { Batch } from '../../src/ring/queue.ts'
import { type Completion, RingRequest } from '../../src/ring/request.ts'
import { SegmentList } from '../../src/ring/segments.ts'
import { randomFrom } from '../../src/testing/random.ts'
import { KiB, MiB } from '../../src/units.ts'
import { ask, blockRequest, describe, pattern, turn } from '../helpers/block-requests.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'
import { ringIsAllowed } from '../helpers/file-ring.ts'
import { openFdCount } from '../helpers/open-fds.ts'

// ---- a kernel of our own ------------------------------------------------------------------------------------------

/** A kernel that ends operations when a test says so, in any order, and loses on a crash what was not flushed. */
class SimulatedKernel {
  readonly cached: Buffer
  readonly durable: Buffer
  /** Given to the kernel and not ended. */
  readonly inKernel: Begun[] = []
  turnCount = 0
  #begun: Begun[] = []
  #pieces: Buffer[] = []
  #nextNumber = 0
  #ended: { readonly number: number; readonly value: number }[] = []
  #onReadable = (): void => {}

  constructor(sizeBytes: number) {
    this.cached = Buffer.alloc(sizeBytes)
    this.durable = Buffer.alloc(sizeBytes)
  }

  port(): FileRingPort {
    const ring: NativeFileRing = {
      fd: -1,
      fdIsEventfd: false,
      ends: new Float64Array(8 * FileRingEnd.words),
      addPiece: (buffer, offsetBytes, lengthBytes) =>
        this.#pieces.push(buffer.subarray(offsetBytes, offsetBytes + lengthBytes)) > 0,
      begin: (verb, offsetBytes) => {
        this.#begun.push({ number: this.#nextNumber, verb, offsetBytes, pieces: this.#pieces })
        this.#pieces = []
        return this.#nextNumber++
      },
      turn: () => {
        this.turnCount++
        this.inKernel.push(...this.#begun)
        this.#begun = []
        const told = this.#ended.splice(0, ring.ends.length / FileRingEnd.words)
        for (const [row, { number, value }] of told.entries())
          ring.ends.set([number, value], row * FileRingEnd.words)
        return told.length
      },
      waitingCount: () => 0,
      inKernelCount: () => this.inKernel.length,
      close() {},
    }
    return {
      ring,
      watch: (onReadable) => {
        this.#onReadable = onReadable
        return { close() {}, ref() {}, unref() {} }
      },
    }
  }

  /** Does one operation; its end is told by the next {@link tell}. */
  end(index: number): void {
    const [{ number, verb, offsetBytes, pieces }] = this.inKernel.splice(index, 1) as [Begun]
    if (verb === FileRingVerb.sync) this.cached.copy(this.durable)
    let at = offsetBytes
    for (const piece of pieces) {
      if (verb === FileRingVerb.write) piece.copy(this.cached, at)
      if (verb === FileRingVerb.read) this.cached.copy(piece, 0, at, at + piece.length)
      at += piece.length
    }
    this.#ended.push({ number, value: at - offsetBytes })
  }

  tell(): void {
    this.#onReadable()
  }

  /** One block reaches the medium by itself, as the page cache does at any time. */
  writeBack(block: number): void {
    this.cached.copy(this.durable, block * 512, block * 512, (block + 1) * 512)
  }
}

interface Begun {
  readonly number: number
  readonly verb: number
  readonly offsetBytes: number
  readonly pieces: readonly Buffer[]
}

function fileOver(kernel: SimulatedKernel): RingFile {
  const quick = { read: () => false, write: () => false }
  return new RingFile({ close: async () => {} }, new FileRing(kernel.port()), quick)
}

// ---- flushes ------------------------------------------------------------------------------------------------------

const BLOCK_COUNT = 8

/**
 * Writes and flushes with several in flight, ends them in any order, and crashes at any moment. Says what was lost of
 * what an answered flush promised.
 */
async function lostAfterCrash(seed: number, flush: (file: RingFile) => unknown): Promise<string | undefined> {
  const random = randomFrom(seed)
  const below = (end: number): number => Math.floor(random() * end)
  const kernel = new SimulatedKernel(BLOCK_COUNT * 512)
  const file = fileOver(kernel)
  const disk = blockDevice({
    capacityBytes: BLOCK_COUNT * 512,
    read: (io) => file.read(io),
    write: (io) => file.write(io),
    flush: () => flush(file) as PromiseLike<number>,
  })
  // By block: the version that was answered, the one that a flush promised, and whether one is in flight.
  const blocks = Array.from({ length: BLOCK_COUNT }, () => ({ answered: 0, promised: 0, busy: false }))
  let version = 0
  for (let step = 0; step < 60; step++) {
    const block = below(BLOCK_COUNT)
    const state = blocks[block]!
    const kind = below(6)
    if (kind < 2 && !state.busy) {
      const written = ++version
      state.busy = true
      void ask(disk, blockRequest('write', block * 512, Buffer.alloc(512, written))).then(() => {
        state.answered = written
        state.busy = false
      })
    } else if (kind === 2) {
      const before = blocks.map(({ answered }) => answered)
      void ask(disk, blockRequest('flush')).then(() => {
        for (const [index, promised] of before.entries()) {
          blocks[index]!.promised = Math.max(blocks[index]!.promised, promised)
        }
      })
    } else if (kind === 3) kernel.writeBack(block)
    else if (kernel.inKernel.length > 0) {
      kernel.end(below(kernel.inKernel.length))
      if (kind === 5) kernel.tell()
    }
    await turn()
  }
  for (const [index, { promised }] of blocks.entries()) {
    const stored = kernel.durable[index * 512]!
    if (stored < promised)
      return `block ${index} is of version ${stored}, flushed was ${promised} (seed ${seed})`
  }
  return undefined
}

const firstSeed = Math.floor(Math.random() * 2 ** 31)
const SEEDS = Array.from({ length: 40 }, (_, index) => firstSeed + index)

test('what an answered flush promised survives a crash, in whatever order the kernel ends operations', async (t) => {
  t.log(`seeds from ${firstSeed}`)
  for (const seed of SEEDS) t.is(await lostAfterCrash(seed, (file) => file.flush()), undefined)
})

test('a flush that is answered without the kernel is found to lose writes (control)', async (t) => {
  const found: (string | undefined)[] = []
  for (const seed of SEEDS) found.push(await lostAfterCrash(seed, () => 0))
  t.true(found.some((loss) => loss !== undefined))
})

// ---- batches ------------------------------------------------------------------------------------------------------

/** Answers batches of reads from a file, and notes how many answers come out together. */
function answering(file: RingFile, onGroup: () => void = () => {}) {
  const groups: number[] = []
  const batches = new Subject<Batch>()
  const recorder = { record() {}, recycle() {} }
  const handler: Handler<RingRequest> = (request) => {
    const io = blockRequest('read', 0, Buffer.alloc(512))
    return (file.read(io) as PromiseLike<number>).then(() => request.ok())
  }
  batches.pipe(answer(recorder, handler, { timeoutMs: 0 })).subscribe((count) => {
    groups.push(count)
    onGroup()
  })
  const send = (count: number): void => {
    const batch = new Batch()
    batch.count = count
    for (let index = 0; index < count; index++) batch.requests.push(new RingRequest(0))
    batches.next(batch)
  }
  return { groups, send }
}

test('a batch goes to the kernel at once, and what has ended is published in groups as large as the table of ends', (t) => {
  const kernel = new SimulatedKernel(4096)
  const { groups, send } = answering(fileOver(kernel))
  send(8)
  t.is(kernel.turnCount, 1)
  t.is(kernel.inKernel.length, 8)
  t.deepEqual(groups, [])
  for (let index = 0; index < 5; index++) kernel.end(0)
  kernel.tell()
  t.deepEqual(groups, [5])
  // The driver has something to do with the first group while the next one is answered.
  send(8)
  send(8)
  while (kernel.inKernel.length > 0) kernel.end(0)
  kernel.tell()
  t.deepEqual(groups, [5, 8, 8, 3])
})

test('what has ended when a batch was given to the kernel is published with that batch', (t) => {
  const kernel = new SimulatedKernel(4096)
  const { groups, send } = answering(fileOver(kernel))
  send(20)
  for (let index = 0; index < 20; index++) kernel.end(0)
  send(2)
  t.deepEqual(groups, [20])
})

test('a driver that sends more between two groups gets each answer once', (t) => {
  const kernel = new SimulatedKernel(4096)
  let isFirst = true
  const { groups, send } = answering(fileOver(kernel), () => {
    if (isFirst) {
      isFirst = false
      send(4)
    }
  })
  send(24)
  while (kernel.inKernel.length > 0) kernel.end(0)
  kernel.tell()
  t.is(kernel.inKernel.length, 4)
  while (kernel.inKernel.length > 0) kernel.end(0)
  kernel.tell()
  t.deepEqual(groups, [8, 16, 4], 'the second group goes out with the new batch')
})

// ---- memory -------------------------------------------------------------------------------------------------------

test('memory is held until the kernel is through, also when the request was given up', (t) => {
  const kernel = new SimulatedKernel(4096)
  const file = fileOver(kernel)
  let pinCount = 0
  const parent = new RingRequest(0)
  parent.memory = { pin: () => pinCount++, unpin: () => pinCount-- }
  const io: BlockRequest = blockRequest('read', 0, Buffer.alloc(512)).assign(
    parent,
    'read',
    0,
    512,
    SegmentList.of(Buffer.alloc(512)),
  )
  file.read(io)
  kernel.tell()
  parent.abort(new Error('nobody waits') as never)
  t.is(pinCount, 1)
  kernel.end(0)
  t.is(pinCount, 1)
  kernel.tell()
  t.is(pinCount, 0)
})

// ---- the kernel of this machine --------------------------------------------------------------------------------------

const testAllowed = ringIsAllowed() ? test.serial : test.skip

async function ringOver(
  t: ExecutionContext,
  path: string,
  flags: number = constants.O_RDWR,
): Promise<FileRing> {
  const fd = openSync(path, flags)
  const ring = await openFileRing(fd, { direct: false })
  t.teardown(async () => {
    await ring.close()
    closeSync(fd)
  })
  return ring
}

const noRelease = (): void => {}

testAllowed('memory whose file was made shorter fails the read, and the process lives', async (t) => {
  const memoryFd = native.memfdCreate('hushring-shrinking', MiB, false)
  const region = native.mapRegion(memoryFd, 0n, 0n, BigInt(MiB), 0n)
  t.teardown(() => {
    region.close()
    native.closeFd(memoryFd)
  })
  const data = SegmentList.of(Buffer.from(region.windows[0]!).subarray(512 * KiB, 516 * KiB))
  const ring = await ringOver(t, process.execPath, constants.O_RDONLY)
  t.is(await ring.read(data, 0, noRelease), 4 * KiB)
  ftruncateSync(memoryFd, 0)
  await t.throwsAsync(async () => ring.read(data, 0, noRelease), { code: 'EFAULT' })
})

testAllowed('an error of the medium is one of the family medium', async (t) => {
  // Memory of this process at address 0, where none is: the kernel says EIO.
  const ring = await ringOver(t, '/proc/self/mem', constants.O_RDONLY)
  const quick = { read: () => false, write: () => false }
  const file = new RingFile({ close: async () => {} }, ring, quick)
  const disk = blockDevice({ capacityBytes: MiB, read: (io) => file.read(io) })
  const completion = (await ask(disk, blockRequest('read', 0, Buffer.alloc(512)))) as Completion
  t.is(describe(completion), 'ERR_STORE_IO')
  t.is(completion.result === 'failed' && completion.error.family, 'medium')
  t.like(completion.result === 'failed' && completion.error.cause, { code: 'EIO', syscall: 'preadv' })
})

testAllowed('a thousand operations at once, more than there are entries for, all end', async (t) => {
  const ring = await ringOver(t, process.execPath, constants.O_RDONLY)
  const expected = readFileSync(process.execPath).subarray(0, MiB)
  const target = Buffer.alloc(MiB)
  const reads: PromiseLike<number>[] = []
  for (let at = 0; at < MiB; at += KiB) {
    reads.push(ring.read(SegmentList.of(target.subarray(at, at + KiB)), at, noRelease))
  }
  t.deepEqual(new Set(await Promise.all(reads)), new Set([KiB]))
  t.true(target.equals(expected))
})

testAllowed('a ring leaves no descriptor behind, whether it was used or not', async (t) => {
  const fd = openSync(process.execPath, constants.O_RDONLY)
  await (await openFileRing(fd, { direct: false })).close()
  const before = openFdCount()
  for (let round = 0; round < 20; round++) {
    const ring = await openFileRing(fd, { direct: round % 2 === 1 })
    const reading = ring.read(SegmentList.of(pattern(512)), 0, noRelease)
    await ring.close()
    t.is(await reading, 512)
  }
  t.is(openFdCount(), before)
  await t.throwsAsync(openFileRing(-1, { direct: false }), { code: 'EBADF' })
  t.is(openFdCount(), before)
  closeSync(fd)
})

testAllowed('the native ring takes no argument of another kind', (t) => {
  const fd = openSync(process.execPath, constants.O_RDONLY)
  const options = { entryCount: 8, inlineBytesMax: 0, direct: false }
  const ring = native.openFileRing(fd, options)
  const bytes = Buffer.alloc(512)
  for (const [offset, length] of [
    [0, 513],
    [513, 0],
    [-1, 1],
    [0.5, 1],
    [0, Number.NaN],
  ] as const) {
    t.false(ring.addPiece(bytes, offset, length))
  }
  t.false(ring.addPiece('bytes' as never, 0, 1))
  for (const offset of [-1, 0.5, 2 ** 53, Number.NaN]) t.is(ring.begin(FileRingVerb.read, offset), -1)
  t.is(ring.begin(3, 0), -1)
  ring.close()
  ring.close()
  t.throws(() => ring.turn(), { code: 'ERR_CLOSED' })
  for (const wrong of [{ entryCount: 0 }, { inlineBytesMax: -1 }]) {
    t.throws(() => native.openFileRing(fd, { ...options, ...wrong }), { code: 'ERR_OPTION_RANGE' })
  }
  closeSync(fd)
})

testAllowed('a wake-up that comes too late is taken back, and does not come for ever', async (t) => {
  const fd = openSync(process.execPath, constants.O_RDONLY)
  const ring = native.openFileRing(fd, { entryCount: 8, inlineBytesMax: 0, direct: false })
  if (!ring.fdIsEventfd) {
    t.pass('the ring itself is watched here')
  } else {
    let wakeCount = 0
    const watch = native.watchReadable(ring.fd, ring.fdIsEventfd, () => {
      wakeCount++
      ring.turn()
    })
    native.eventfdSignal(ring.fd)
    for (let count = 0; count < 20; count++) await turn()
    t.is(wakeCount, 1)
    watch.close()
  }
  ring.close()
  closeSync(fd)
})

test('memory of this process is not collected before the kernel is through, whoever has forgotten it', async (t) => {
  const ends = new Float64Array(FileRingEnd.words)
  let endedCount = 0
  const ring: NativeFileRing = {
    fd: -1,
    fdIsEventfd: false,
    ends,
    addPiece: () => true,
    begin: () => 0,
    turn: () => {
      const count = endedCount
      endedCount = 0
      return count
    },
    waitingCount: () => 0,
    inKernelCount: () => 1,
    close: () => {},
  }
  let onReadable = (): void => {}
  const files = new FileRing({
    ring,
    watch: (callback) => {
      onReadable = callback
      return { ref() {}, unref() {}, close() {} }
    },
  })
  const memory = (() => {
    const bytes = Buffer.alloc(64 * KiB)
    void files.read(SegmentList.of(bytes), 0, () => {})
    return new WeakRef(bytes.buffer)
  })()
  await collectGarbage()
  t.not(memory.deref(), undefined, 'the kernel would write into what is free')
  await turn()
  ends.set([0, 64 * KiB])
  endedCount = 1
  onReadable()
  await collectGarbage()
  t.is(memory.deref(), undefined)
})
