import { once } from 'node:events'
import { ftruncateSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import { HushringError } from '../../src/errors.ts'
import { virtioBlk } from '../../src/handlers/block/virtio-blk.ts'
import { type BlockDevice, compose, type Layer, memoryDisk } from '../../src/handlers/index.ts'
import { type NativeQueueOptions, native } from '../../src/native.ts'
import { DriverMemory, SharedRegion } from '../../src/ring/memory.ts'
import { VirtQueue, type VirtQueueOptions } from '../../src/ring/queue.ts'
import type { Completion, RingRequest } from '../../src/ring/request.ts'
import {
  BlockDriver,
  BlockRequestType,
  DescriptorFlag,
  type Piece,
  SharedMemory,
  SplitDriver,
} from '../../src/testing/index.ts'
import { KiB, MiB } from '../../src/units.ts'
import { blockRequest, pattern } from '../helpers/block-requests.ts'

const HEADER_BYTES = 16

/** A queue and its driver over one memory file. */
class Bench {
  readonly shared = new SharedMemory()
  readonly driver: SplitDriver
  readonly queue: VirtQueue
  memory: DriverMemory
  readonly #buffersAt: number
  readonly #size: number

  constructor(t: ExecutionContext, options: Partial<VirtQueueOptions> = {}) {
    this.#size = options.sizeMax ?? 8
    this.driver = new SplitDriver({ memory: this.shared, size: this.#size })
    this.#buffersAt = this.shared.allocate(4096)
    this.queue = new VirtQueue({
      index: 3,
      sizeMax: 8,
      headerBytes: HEADER_BYTES,
      statusByte: true,
      ...options,
    })
    this.memory = this.map()
    this.start()
    t.teardown(() => {
      this.queue.stop()
      this.queue.close()
      this.memory.retire()
      this.driver.close()
      this.shared.close()
    })
  }

  map(): DriverMemory {
    const { fd, guestAddress, userAddress, sizeBytes } = this.shared
    const region = { fd, guestAddress, userAddress, sizeBytes: BigInt(sizeBytes), mmapOffsetBytes: 0n }
    return new DriverMemory([new SharedRegion(region)])
  }

  start(): void {
    const { descriptor, available, used } = this.driver.addresses
    this.queue.start({
      size: this.#size,
      memory: this.memory,
      descriptorAddress: descriptor,
      availableAddress: available,
      usedAddress: used,
      availableBase: this.driver.availableIndex,
      eventIdx: true,
      indirect: true,
      callFd: this.driver.callFd,
    })
  }

  /** A request of 16 header bytes, `dataBytes` of writable data and a status byte. */
  submit(dataBytes = 512): Promise<number> {
    const piece = (at: number, lengthBytes: number, writable: boolean): Piece => ({
      address: this.shared.guestAddressOf(this.#buffersAt + at),
      lengthBytes,
      writable,
    })
    return this.driver.submit([piece(0, HEADER_BYTES, false), piece(512, dataBytes + 1, true)])
  }

  takeOne(): RingRequest {
    const batch = this.queue.take(8)
    if (batch.count !== 1) throw new Error(`${batch.count} requests`)
    return batch.requests[0]!
  }

  get header(): Buffer {
    return this.shared.bytes.subarray(this.#buffersAt, this.#buffersAt + HEADER_BYTES)
  }

  get statusAt(): number {
    return this.#buffersAt + 512 + 512
  }
}

test('take copies the header and leaves the data without header and status', (t) => {
  const bench = new Bench(t)
  bench.header.write('0123456789abcdef')
  void bench.submit()
  const request = bench.takeOne()
  t.is(Buffer.from(request.headerBytes).toString(), '0123456789abcdef')
  t.is(request.queueIndex, 3)
  t.is(request.readable.byteLength, 0)
  t.is(request.writable.byteLength, 512)
  bench.header.fill(0)
  t.is(
    Buffer.from(request.headerBytes).toString(),
    '0123456789abcdef',
    'the driver cannot change it any more',
  )
})

const answered = test.macro({
  async exec(
    t,
    answer: (io: RingRequest) => ReturnType<RingRequest['ok' | 'fail' | 'unsupported']>,
    usedBytes: number,
    status: number,
  ) {
    const bench = new Bench(t)
    const used = bench.submit()
    const request = bench.takeOne()
    bench.shared.bytes[bench.statusAt] = 99
    bench.queue.record(request, answer(request))
    t.true(bench.queue.publish().signalled)
    t.true(bench.queue.armed)
    t.is(await used, usedBytes)
    t.is(bench.shared.bytes[bench.statusAt], status)
  },
  title: (provided) => `publish: ${provided}`,
})
test('everything written counts the status byte too', answered, (io) => io.ok(), 513, 0)
test('a part of the data counts itself only', answered, (io) => io.ok(100), 100, 0)
test('a failure writes status 1 and counts nothing', answered, (io) => io.fail(new Error('EIO')), 0, 1)
test('an unsupported request gets status 2', answered, (io) => io.unsupported(), 0, 2)

test('a request that is not answered keeps its header and its data when others are taken', (t) => {
  const bench = new Bench(t)
  bench.header.write('the first header')
  void bench.submit(64)
  const first = bench.takeOne()
  const early = first.headerWords
  bench.header.write('the next header.')
  void bench.submit(128)
  const second = bench.takeOne()
  bench.header.write('the last header.')
  void bench.submit(32)
  const third = bench.takeOne()
  t.deepEqual(
    [first, second, third].map((request) => Buffer.from(request.headerBytes).toString()),
    ['the first header', 'the next header.', 'the last header.'],
  )
  t.deepEqual(
    [first, second, third].map(({ writable }) => writable.byteLength),
    [64, 128, 32],
  )
  first.writable.fill(1)
  third.writable.fill(3)
  const data = bench.header.buffer
  t.is(first.headerWord(0), early[0]!)
  t.deepEqual(
    [...new Uint8Array(data, bench.header.byteOffset + 512, 64)],
    [...new Array<number>(32).fill(3), ...new Array<number>(32).fill(1)],
  )
})

const staysWithItsHandler = test.macro({
  exec(t, end: (bench: Bench, request: RingRequest) => void) {
    const bench = new Bench(t)
    const submit = (at: number, header: string, dataBytes: number): void => {
      bench.shared.bytes.write(header, at)
      const piece = (offset: number, lengthBytes: number, writable: boolean): Piece => ({
        address: bench.shared.guestAddressOf(at + offset),
        lengthBytes,
        writable,
      })
      void bench.driver.submit([piece(0, HEADER_BYTES, false), piece(512, dataBytes + 1, true)])
    }
    const [firstAt, secondAt] = [bench.shared.allocate(4096), bench.shared.allocate(4096)]
    submit(firstAt, 'the first header', 64)
    const first = bench.takeOne()
    end(bench, first)
    submit(secondAt, 'the next header.', 128)
    bench.takeOne()
    t.is(Buffer.from(first.headerBytes).toString(), 'the first header')
    t.is(first.writable.byteLength, 64)
    first.writable.fill(7)
    const bytesOf = (at: number, count: number): number[] => [
      ...bench.shared.bytes.subarray(at + 512, at + 512 + count),
    ]
    t.deepEqual(bytesOf(firstAt, 64), new Array<number>(64).fill(7))
    t.deepEqual(bytesOf(secondAt, 128), new Array<number>(128).fill(0), 'another request has this memory')
  },
  title: (how) => `a handler that goes on with a request reaches no other one: ${how}`,
})
test('after a deadline has answered for it', staysWithItsHandler, (bench, request) => {
  bench.queue.record(request, request.fail(new Error('too late')))
  bench.queue.publish()
})
test('after the ring was stopped and started', staysWithItsHandler, (bench) => {
  bench.queue.stop()
  bench.start()
})

test('requests in flight keep the memory they were taken under, until they are published', async (t) => {
  const bench = new Bench(t)
  const used = bench.submit()
  const request = bench.takeOne()
  const older = bench.memory
  bench.memory = bench.map()
  bench.queue.setMemory(bench.memory)
  older.retire()
  t.is(older.pinCount, 1)
  t.true(older.windows[0]!.length > 0, 'the old windows still work')
  bench.queue.record(request, request.ok())
  bench.queue.publish()
  t.is(await used, 513)
  t.is(older.pinCount, 0)
  t.is(older.windows[0]!.length, 0, 'detached with the last pin')
})

test('an answer that was recorded before the memory changed is published into the old memory', async (t) => {
  const bench = new Bench(t)
  const used = bench.submit()
  const request = bench.takeOne()
  bench.queue.record(request, request.ok())
  const older = bench.memory
  bench.memory = bench.map()
  bench.queue.setMemory(bench.memory)
  older.retire()
  t.is(older.pinCount, 1)
  bench.queue.publish()
  t.is(await used, 513)
  t.is(older.pinCount, 0)
})

test('after a batch of large requests the next one is smaller, until they are small again', (t) => {
  const bench = new Bench(t)
  const sizes = [4 * KiB, 64 * KiB, 64 * KiB, 4 * KiB, 4 * KiB]
  const at = bench.shared.allocate(64 * KiB)
  const counts = sizes.map((dataBytes) => {
    const address = bench.shared.guestAddressOf(at)
    const pieces = [
      { address, lengthBytes: HEADER_BYTES, writable: false },
      { address, lengthBytes: dataBytes, writable: true },
      { address, lengthBytes: 1, writable: true },
    ]
    for (let count = 0; count < 8; count++) void bench.driver.submit(pieces, { indirect: true })
    let batch = bench.queue.take(8)
    const { count: firstCount } = batch
    // The last look finds nothing, and teaches nothing.
    for (; batch.count > 0; batch = bench.queue.take(8)) {
      for (const request of batch.requests.slice(0, batch.count)) bench.queue.record(request, request.ok())
      bench.queue.publish()
      bench.driver.collect()
    }
    return firstCount
  })
  t.deepEqual(counts, [8, 8, 4, 4, 8])
})

test('a hold outlives the answer, and letting go twice is once', (t) => {
  const bench = new Bench(t)
  void bench.submit()
  const request = bench.takeOne()
  const letGo = request.hold()
  bench.queue.record(request, request.ok())
  bench.queue.publish()
  t.is(bench.memory.pinCount, 1)
  letGo()
  letGo()
  t.is(bench.memory.pinCount, 0)
})

test('stop forgets what is in flight, and an answer from before is not published', (t) => {
  const bench = new Bench(t)
  void bench.submit()
  const request = bench.takeOne()
  t.is(bench.queue.stop(), 1)
  t.is(bench.memory.pinCount, 0)
  bench.start()
  request.memory = bench.memory
  bench.queue.record(request, request.ok())
  bench.queue.publish()
  t.is(bench.driver.loadUsedIndex(), 0)
  t.is(bench.queue.counts().ignoredCompletions, 1)
})

test('an index that jumps breaks the queue until it is started anew', (t) => {
  const bench = new Bench(t)
  bench.driver.storeAvailableIndex(40_000)
  for (const use of [() => bench.queue.take(1), () => bench.queue.publish(), () => bench.queue.take(1)]) {
    const error = t.throws(use, { instanceOf: HushringError, code: 'ERR_RING_AVAIL_INDEX' })
    t.deepEqual(error?.details, { queueIndex: 3 })
  }
  bench.queue.stop()
  bench.start()
  t.is(bench.queue.take(1).count, 0)
})

test('a malformed chain is returned with length 0 and the next request is served', async (t) => {
  const bench = new Bench(t)
  bench.driver.writeDescriptor(7, { address: 0n, lengthBytes: 0, flags: DescriptorFlag.NEXT, next: 7 })
  bench.driver.writeAvailable(0, 7)
  bench.driver.storeAvailableIndex(1)
  t.is(bench.queue.take(8).count, 0)
  bench.queue.rearm()
  t.is(bench.driver.loadUsedIndex(), 1)
  t.is(bench.driver.loadUsedLength(0), 0)
  t.is(bench.queue.lastFault?.code, 'ERR_CHAIN_LOOP')
  const used = bench.submit()
  const request = bench.takeOne()
  bench.queue.record(request, request.ok())
  bench.queue.publish()
  t.is(await used, 513)
})

test('with strict chains the same chain breaks the queue', (t) => {
  const bench = new Bench(t, { strictChains: true })
  bench.driver.writeDescriptor(7, { address: 0n, lengthBytes: 0, flags: DescriptorFlag.NEXT, next: 7 })
  bench.driver.writeAvailable(0, 7)
  bench.driver.storeAvailableIndex(1)
  t.throws(() => bench.queue.take(8), { code: 'ERR_CHAIN_LOOP' })
})

test('synchronously answered request objects are used again', (t) => {
  const bench = new Bench(t)
  void bench.submit()
  const first = bench.takeOne()
  bench.queue.record(first, first.ok())
  bench.queue.recycle(first)
  bench.queue.publish()
  t.is(first.writable.byteLength, 0)
  void bench.submit(100)
  t.is(bench.takeOne(), first)
  t.is(first.writable.byteLength, 100)
})

test('request objects that are answered later are used again, never two requests at a time', (t) => {
  const bench = new Bench(t)
  const { queue } = bench
  const take = (): RingRequest => {
    void bench.submit()
    return bench.takeOne()
  }
  const answer = (request: RingRequest): void => {
    queue.record(request, request.ok())
    queue.recycle(request)
    queue.publish()
    bench.driver.collect()
  }
  const first = take()
  const second = take()
  t.not(second, first)
  // The place of the first one is the second one's by now.
  answer(first)
  const third = take()
  t.is(third, first)
  answer(second)
  answer(third)
  const [fourth, fifth] = [take(), take()]
  t.deepEqual(new Set([fourth, fifth]), new Set([first, second]))
  // The control: one that nobody gave back is still somebody's.
  const sixth = take()
  t.false([first, second].includes(sixth))
})

test('sizes of batches and of publishes are counted by powers of two, and empty ones are not', (t) => {
  const bench = new Bench(t)
  const { queue } = bench
  queue.take(8)
  queue.publish()
  for (let count = 0; count < 3; count++) void bench.submit()
  const requests = [...queue.take(8).requests]
  const counted = (name: 'batchSizes' | 'publishSizes'): number[] => queue.counts()[name].slice(0, 3)
  t.deepEqual(counted('batchSizes'), [0, 1, 0])
  t.deepEqual(counted('publishSizes'), [0, 0, 0])
  queue.record(requests[0]!, requests[0]!.ok())
  queue.publish()
  for (const request of requests.slice(1, 3)) queue.record(request, request.ok())
  queue.publish()
  t.deepEqual(counted('publishSizes'), [1, 1, 0])
  t.deepEqual(counted('batchSizes'), [0, 1, 0])
})

const goodOptions: NativeQueueOptions = {
  sizeMax: 8,
  headerBytes: 16,
  statusByte: true,
  batchCountMax: 4,
  chainCountMax: 64,
  strictChains: false,
}

const refused = test.macro({
  exec(t, changes: object, message: RegExp) {
    const error = t.throws(() =>
      native.createSplitQueue({ ...goodOptions, ...changes } as NativeQueueOptions),
    )
    t.regex(error!.message, message)
  },
  title: (_provided, changes) => `the native queue refuses ${JSON.stringify(changes)}`,
})
test(refused, { sizeMax: 100 }, /power of two/)
test(refused, { sizeMax: null }, /sizeMax/)
test(refused, { headerBytes: 65 }, /0 to 64/)
test(refused, { statusByte: 1 }, /boolean/)
test(refused, { batchCountMax: undefined }, /batchCountMax/)

test('a closed native queue says so, whatever is asked of it', (t) => {
  const queue = native.createSplitQueue(goodOptions)
  queue.close()
  queue.close()
  for (const use of [
    () => queue.take(1),
    () => queue.complete(0, 0, false),
    () => queue.inspect(),
    () => queue.stop(),
  ]) {
    t.throws(use, { code: 'ERR_CLOSED' })
  }
})

test("indices are native: the queue works while JavaScript sees no byte of the driver's memory", async (t) => {
  const bench = new Bench(t)
  // All that JavaScript has of it: from now on there is nothing that an index could be read from or written to.
  for (const holder of [bench.memory, ...bench.memory.regions]) Object.assign(holder, { windows: [] })
  for (let round = 0; round < 20; round++) {
    const answer = bench.submit()
    const request = bench.takeOne()
    bench.queue.record(request, request.ok())
    t.true(bench.queue.publish().signalled)
    bench.driver.collect()
    t.is(await answer, 513)
  }
})

// ---- signals that are put off ---------------------------------------------------------------------------------------

test('a signal that may wait for the next batch goes out when it is settled, once for both', (t) => {
  const bench = new Bench(t, { batchCountMax: 1, sizeMax: 32 })
  const answerOne = (mayDefer: boolean) => {
    const request = bench.takeOne()
    bench.queue.record(request, request.ok())
    return bench.queue.publish(0, mayDefer)
  }
  void bench.submit()
  t.true(answerOne(false).signalled)
  // Only a device that is quick puts anything off, and a machine may be busy with something else for a while.
  for (let round = 0; ; round++) {
    bench.driver.collect()
    while (bench.driver.inFlightCount < 6) void bench.submit()
    const signalCount = native.eventfdDrain(bench.driver.callFd)
    const published = answerOne(true)
    if (!published.signalled) {
      t.log(`put off in round ${round}, after ${signalCount} signals`)
      break
    }
    t.true(round < 10_000, 'nothing is ever put off')
  }
  t.true(bench.queue.more)
  t.is(native.eventfdDrain(bench.driver.callFd), 0)
  bench.queue.settle()
  t.is(native.eventfdDrain(bench.driver.callFd), 1)
  bench.queue.settle()
  t.is(native.eventfdDrain(bench.driver.callFd), 0)
})

// ---- polling ----------------------------------------------------------------------------------------------------

const FOREVER_NANOS = 4e9
const addonPath =
  process.env.HUSHRING_NATIVE_PATH ??
  fileURLToPath(new URL('../../build/Release/hushring.node', import.meta.url))

test('a publish that may poll finds what is visible, and polls for nothing', (t) => {
  const bench = new Bench(t)
  void bench.submit()
  const request = bench.takeOne()
  bench.queue.record(request, request.ok())
  void bench.submit()
  t.false(bench.queue.publish(FOREVER_NANOS).polled)
  t.true(bench.queue.more)
  t.false(bench.queue.armed)
})

test('a publish that polls in vain asks for kicks afterwards', (t) => {
  const bench = new Bench(t)
  void bench.submit()
  const request = bench.takeOne()
  bench.queue.record(request, request.ok())
  const before = process.hrtime.bigint()
  t.true(bench.queue.publish(3e6).polled)
  t.true(process.hrtime.bigint() - before >= 3_000_000n)
  t.true(bench.queue.armed)
  t.false(bench.queue.more)
  void bench.submit()
  t.is(bench.driver.counts.kicks, 2, 'the driver was asked to kick')
})

test('a publish polls for nothing while another request is in flight: its answer would wait', (t) => {
  const bench = new Bench(t)
  void bench.submit()
  void bench.submit()
  const batch = bench.queue.take(8)
  t.is(batch.count, 2)
  bench.queue.record(batch.requests[0]!, batch.requests[0]!.ok())
  t.false(bench.queue.publish(FOREVER_NANOS).polled)
  t.true(bench.queue.armed)
})

test('a publish may poll although kicks were asked for while its requests were in flight', (t) => {
  const bench = new Bench(t)
  void bench.submit()
  const request = bench.takeOne()
  bench.queue.rearm()
  t.true(bench.queue.armed)
  bench.queue.record(request, request.ok())
  t.true(bench.queue.publish(3e6).polled)
  t.true(bench.queue.armed, 'in vain, so kicks are asked for again')
  const again = bench.queue.take(8)
  t.is(again.count, 0)
  void bench.submit()
  t.is(bench.driver.counts.kicks, 2)
})

test('a poll ends as soon as another thread publishes a request, of which nobody kicks', async (t) => {
  const bench = new Bench(t)
  void bench.submit()
  const request = bench.takeOne()
  bench.queue.record(request, request.ok())
  const { fd, sizeBytes, userAddress } = bench.shared
  const indexAt = Number(bench.driver.addresses.available - userAddress) + 2
  // The index only: what it points to is the request that lies there already.
  const worker = new Worker(
    `const { workerData } = require('node:worker_threads')
    const native = require(workerData.addonPath)
    const region = native.mapRegion(workerData.fd, 0n, 0n, BigInt(workerData.sizeBytes), 0n)
    const words = new Uint16Array(region.windows[0], workerData.indexAt, 1)
    setTimeout(() => Atomics.store(words, 0, 2), 50)`,
    { eval: true, workerData: { addonPath, fd, sizeBytes, indexAt } },
  )
  t.teardown(() => worker.terminate())
  await once(worker, 'online')
  const kickCount = bench.driver.counts.kicks
  t.true(bench.queue.publish(FOREVER_NANOS).polled)
  t.true(bench.queue.more)
  t.false(bench.queue.armed)
  t.is(bench.driver.counts.kicks, kickCount)
})

// ---- A disk in memory, whose copies wait for the publish -------------------------------------------------------------

/** Takes all that is visible as one batch and has it answered; publishes nothing. */
function answerBatch(bench: Bench, disk: BlockDevice): number {
  const handler = virtioBlk(disk).connect(0n)
  const batch = bench.queue.take(8)
  for (const request of batch.requests.slice(0, batch.count)) {
    bench.queue.record(request, handler(request) as Completion)
    bench.queue.recycle(request)
  }
  return batch.count
}

/** A disk of 2 MiB that has a pattern everywhere, so that nothing is left to be allocated. */
function patternedDisk(): { disk: BlockDevice; contents: Buffer } {
  const [disk, contents] = [memoryDisk({ capacityBytes: 2 * MiB }), pattern(2 * MiB)]
  disk.handler(blockRequest('write', 0, contents))
  return { disk, contents }
}

// Alone: what another test looks at would do the copies of this one.
test.serial(
  'a read sees the writes before it in its batch and none of those after it, whatever overlaps',
  async (t) => {
    const bench = new Bench(t)
    const { disk, contents } = patternedDisk()
    const driver = new BlockDriver(bench.driver, bench.shared, 8192)
    // Around the border of two pieces of the store's memory.
    const sector = (offset: number): bigint => BigInt(MiB / 512 + offset)
    const expected: Buffer[] = []
    const ask = (salt: number | undefined, offset: number, sectors: number): Promise<Buffer> => {
      const range = contents.subarray(MiB + offset * 512, MiB + (offset + sectors) * 512)
      const common = { sector: sector(offset), indirect: true, pieceBytesMax: 700 }
      if (salt === undefined) {
        expected.push(Buffer.from(range))
        const read = { ...common, type: BlockRequestType.IN, writableBytes: range.length }
        return driver.request(read).then(({ data }) => data)
      }
      range.set(pattern(range.length, salt))
      return driver.request({ ...common, type: BlockRequestType.OUT, readable: range }).then(() => range)
    }
    const asked = [
      ask(2, -4, 8),
      ask(undefined, -8, 16),
      ask(3, -1, 3),
      ask(undefined, -4, 8),
      ask(4, -8, 16),
    ]
    t.is(answerBatch(bench, disk), asked.length)
    t.is(bench.queue.publish().count, asked.length)
    const [, first, , second] = await Promise.all(asked)
    t.deepEqual([first, second], expected)
  },
)

test('a layer sees the data of a read once the layer below it has answered', async (t) => {
  const bench = new Bench(t)
  const { disk, contents } = patternedDisk()
  const seen: Buffer[] = []
  const looks: Layer = (next) => (io) => {
    const answer = next(io)
    seen.push(io.data.toBuffer())
    return answer
  }
  const looksLater: Layer = (next) => (io) => {
    const { segments } = io
    const answer = next(io)
    seen.push(Buffer.concat(segments))
    return answer
  }
  for (const layer of [looks, looksLater]) {
    const read = new BlockDriver(bench.driver, bench.shared).read(4096, 4096)
    answerBatch(bench, compose(disk, [layer]))
    bench.queue.publish()
    t.deepEqual([seen.pop(), await read], [contents.subarray(4096, 8192), contents.subarray(4096, 8192)])
  }
})

test('memory that shrinks between the handler and the publish breaks the queue and leaves the disk well', (t) => {
  const bench = new Bench(t)
  const { disk, contents } = patternedDisk()
  const driver = new BlockDriver(bench.driver, bench.shared)
  void driver.read(0, 65536)
  t.is(answerBatch(bench, disk), 1)
  ftruncateSync(bench.shared.fd, 8192)
  t.throws(() => bench.queue.publish(), { code: 'ERR_MEMORY_TRUNCATED' })
  const bytes = Buffer.alloc(65536)
  disk.handler(blockRequest('read', 0, bytes))
  t.true(bytes.equals(contents.subarray(0, 65536)))
})

test('a queue that is stopped before its publish leaves no copy behind for memory that is gone', (t) => {
  const bench = new Bench(t)
  const { disk, contents } = patternedDisk()
  void new BlockDriver(bench.driver, bench.shared).write(0, Buffer.alloc(4096, 9))
  t.is(answerBatch(bench, disk), 1)
  bench.queue.stop()
  bench.memory.retire()
  t.is(bench.memory.windows[0]!.length, 0)
  const bytes = Buffer.alloc(8192)
  disk.handler(blockRequest('read', 0, bytes))
  t.true(bytes.subarray(0, 4096).equals(Buffer.alloc(4096, 9)), 'the copy was done while it could be')
  t.true(bytes.subarray(4096).equals(contents.subarray(4096, 8192)))
})
