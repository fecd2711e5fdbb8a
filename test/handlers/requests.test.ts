import test from 'ava'
import fc from 'fast-check'
import { EMPTY, of, Subject, throwError } from 'rxjs'
import { HushringError } from '../../src/errors.ts'
import { BlockRequest } from '../../src/handlers/block/block-request.ts'
import {
  type Answer,
  attempt,
  blockDevice,
  compose,
  flatMapAnswer,
  type Handler,
  type Layer,
  mapAnswer,
  memoryDisk,
  stack,
  virtioDevice,
} from '../../src/handlers/index.ts'
import { type Completion, isCompletion, RingRequest } from '../../src/ring/request.ts'
import { SegmentList } from '../../src/ring/segments.ts'
import { ask, blockRequest, describe, pattern } from '../helpers/block-requests.ts'

// ---- the bytes of a request -------------------------------------------------------------------------------------

const piecesOf = (bytes: Buffer, cuts: readonly number[]): SegmentList => {
  const list = new SegmentList()
  const borders = [0, ...cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length]
  for (let index = 1; index < borders.length; index++) {
    list.append(bytes, borders[index - 1]!, borders[index]! - borders[index - 1]!)
  }
  return list
}
const cuts = fc.array(fc.nat(200), { maxLength: 6 })

test('copying, filling and viewing a list of pieces is the same as doing it to their bytes in a row', (t) => {
  fc.assert(
    fc.property(fc.nat(120), cuts, fc.nat(130), fc.nat(130), fc.nat(130), (length, at, from, to, count) => {
      const bytes = pattern(length)
      const list = piecesOf(bytes, at)
      t.is(list.byteLength, length)
      t.deepEqual(Buffer.concat(list.views()), bytes)
      t.deepEqual(list.toBuffer(), bytes)

      const target = Buffer.alloc(100)
      const copiedOut = list.copyTo(target, to, from)
      t.is(copiedOut, Math.max(0, Math.min(length - from, 100 - to)))
      const expectedTarget = Buffer.alloc(100)
      if (copiedOut > 0) bytes.copy(expectedTarget, to, from, from + copiedOut)
      t.deepEqual(target, expectedTarget)

      const expected = Buffer.from(bytes)
      const source = pattern(100, 9)
      const copiedIn = list.copyFrom(source, from, to)
      t.is(copiedIn, Math.max(0, Math.min(length - to, 100 - from)))
      if (copiedIn > 0) source.copy(expected, to, from, from + copiedIn)
      t.deepEqual(bytes, expected)

      list.fill(0xab, from, count)
      expected.fill(0xab, Math.min(from, length), Math.min(from + count, length))
      t.deepEqual(bytes, expected)
      list.fill(0)
      t.deepEqual(bytes, Buffer.alloc(length))
    }),
  )
})

test('a cleared list is empty and can be filled again', (t) => {
  const list = SegmentList.of(pattern(10), pattern(5))
  list.views()
  list.clear()
  t.is(list.count, 0)
  t.is(list.byteLength, 0)
  t.deepEqual(list.views(), [])
  list.append(Buffer.from('abc'), 1, 2)
  t.is(list.toBuffer().toString(), 'bc')
})

// ---- block requests ---------------------------------------------------------------------------------------------

test('a derived request has the range of its data, and none for verbs that carry none', (t) => {
  const io = blockRequest('write', 4096, pattern(1024))
  const other = io.derive({ offsetBytes: 512, data: SegmentList.of(pattern(512)) })
  t.like(other, { verb: 'write', offsetBytes: 512, lengthBytes: 512 })
  t.like(io.derive({ lengthBytes: 5 }), { lengthBytes: 1024, data: io.data })
  t.like(io.derive({ verb: 'flush' }), { verb: 'flush', offsetBytes: 0, lengthBytes: 0 })
  const discard = io.derive({ verb: 'discard' })
  t.like(discard, { verb: 'discard', offsetBytes: 4096, lengthBytes: 1024 })
  t.is(discard.data.byteLength, 0)
  t.like(blockRequest('writeZeroes', 0, 8192).derive({ lengthBytes: 4096, mayUnmap: true }), {
    lengthBytes: 4096,
    mayUnmap: true,
  })
})

test('a derived request is aborted with the one it comes from, and alone', (t) => {
  const reason = new HushringError('ERR_REQUEST_ABORTED')
  const ring = new RingRequest(0)
  const io = new BlockRequest().assign(ring, 'read', 0, 512, SegmentList.of(Buffer.alloc(512)))
  const [asked, unasked, alone] = [io.derive({}), io.derive({}), io.derive({})]
  t.false(asked.signal.aborted)
  t.is(io.signal, ring.signal)

  alone.abort(reason)
  t.true(alone.signal.aborted)
  t.true(alone.isAborted)
  t.false(io.signal.aborted)
  t.false(asked.isAborted)

  ring.abort(reason)
  for (const request of [ring, io, asked, unasked, unasked.derive({})]) {
    t.true(request.isAborted)
    t.true(request.signal.aborted)
    t.is(request.signal.reason, reason)
  }
})

test('a derived request keeps the memory of the ring request mapped until its hold ends', (t) => {
  let pins = 0
  const ring = new RingRequest(0)
  ring.memory = { pin: () => pins++, unpin: () => pins-- }
  const release = new BlockRequest().assign(ring, 'flush', 0, 0, new SegmentList()).derive({}).hold()
  t.is(pins, 1)
  release()
  release()
  t.is(pins, 0)
})

test('a transfer of fewer or more bytes than asked for fails with ERR_STORE_SHORT', (t) => {
  const io = blockRequest('read', 0, Buffer.alloc(512))
  t.is(describe(io.transferred(512)), 'ok')
  for (const count of [0, 511, 513, Number.NaN]) t.is(describe(io.transferred(count)), 'ERR_STORE_SHORT')
})

// ---- answers of three shapes ------------------------------------------------------------------------------------

const shapes: readonly [name: string, wrap: (completion: Completion) => Answer][] = [
  ['a completion', (completion) => completion],
  ['a promise', (completion) => Promise.resolve(completion)],
  ['an observable', (completion) => of(completion)],
  ['an observable that emits twice', (completion) => of(completion, completion)],
]

for (const [name, wrap] of shapes) {
  test(`mapAnswer changes ${name} once`, async (t) => {
    const io = blockRequest('flush')
    let count = 0
    const answer = mapAnswer(wrap(io.ok()), () => {
      count++
      return io.unsupported()
    })
    t.is(isCompletion(answer), name === 'a completion')
    t.is(describe(await ask(() => answer, io)), 'unsupported')
    t.is(count, 1)
  })

  for (const [innerName, innerWrap] of shapes) {
    test(`flatMapAnswer makes one answer of ${name} and then ${innerName}`, async (t) => {
      const io = blockRequest('flush')
      let count = 0
      const answer = flatMapAnswer(wrap(io.ok()), () => {
        count++
        return innerWrap(io.unsupported())
      })
      t.is(isCompletion(answer), name === 'a completion' && innerName === 'a completion')
      t.is(describe(await ask(() => answer, io)), 'unsupported')
      t.is(count, 1)
    })
  }
}

const isAttempted = test.macro({
  async exec(t, _title: string, handler: (io: BlockRequest) => unknown, expected: string, message?: RegExp) {
    const completion = await ask(handler as Handler, blockRequest('flush'))
    t.true(isCompletion(completion))
    t.is(describe(completion), expected)
    if (message !== undefined && completion.result === 'failed') t.regex(completion.error.message, message)
  },
  title: (_, title) => `attempt: ${title}`,
})

const mistake = new TypeError('x is not defined')
const outOfSpace = Object.assign(new Error('ENOSPC: no space left on device, write'), {
  code: 'ENOSPC',
  errno: -28,
  syscall: 'write',
})
const coded = new HushringError('ERR_STORE_SHORT')

test(isAttempted, 'a completion passes', (io) => io.ok(), 'ok')
test(isAttempted, 'a promise of a completion passes', async (io) => io.unsupported(), 'unsupported')
test(
  isAttempted,
  'a throw is a failure',
  () => {
    throw mistake
  },
  'ERR_HANDLER_THREW',
  /x is not defined/,
)
test(isAttempted, 'a rejection is a failure', () => Promise.reject(mistake), 'ERR_HANDLER_THREW', /x is not/)
test(
  isAttempted,
  'an observable that errors is a failure',
  () => throwError(() => mistake),
  'ERR_HANDLER_THREW',
)
test(isAttempted, 'a thrown string is a failure', () => Promise.reject('no'), 'ERR_HANDLER_THREW', /no/)
test(
  isAttempted,
  'an error of the system is one of the store',
  () => Promise.reject(outOfSpace),
  'ERR_STORE_IO',
  /ENOSPC/,
)
test(isAttempted, 'an error with a code keeps it', () => throwError(() => coded), 'ERR_STORE_SHORT')
test(
  isAttempted,
  'an observable without a value is a failure',
  () => EMPTY,
  'ERR_HANDLER_ANSWER',
  /without a value/,
)
test(isAttempted, 'nothing is no answer', () => undefined, 'ERR_HANDLER_ANSWER')
test(
  isAttempted,
  'an object that only looks like a completion is none',
  async () => ({ result: 'ok', bytesWritten: undefined }),
  'ERR_HANDLER_ANSWER',
)
test(
  isAttempted,
  'a thenable that throws is a failure',
  () => ({
    // biome-ignore lint/suspicious/noThenProperty: this is what is tested
    then() {
      throw mistake
    },
  }),
  'ERR_HANDLER_THREW',
)

test('attempt: an observable is left after its first value', async (t) => {
  const answers = new Subject<Completion>()
  const io = blockRequest('flush')
  const completion = ask(() => answers, io)
  t.true(answers.observed)
  answers.next(io.ok())
  t.false(answers.observed)
  t.is(describe(await completion), 'ok')
})

// ---- layers -----------------------------------------------------------------------------------------------------

function noting(name: string, notes: string[]): Layer {
  return (next) => (io) => {
    notes.push(`${name} in`)
    return mapAnswer(next(io), (completion) => {
      notes.push(`${name} out`)
      return completion
    })
  }
}

test('compose puts the first layer outermost and leaves the device as it was', async (t) => {
  const notes: string[] = []
  const disk = memoryDisk({ capacityBytes: 4096, serial: 'S1' })
  const served = compose(disk, [noting('a', notes), stack([noting('b', notes), noting('c', notes)])])
  t.is(describe(await ask(served, blockRequest('flush'))), 'ok')
  t.deepEqual(notes, ['a in', 'b in', 'c in', 'c out', 'b out', 'a out'])
  t.like(served, { kind: 'block', geometry: disk.geometry, abilities: disk.abilities, serial: 'S1' })
  notes.length = 0
  await ask(disk, blockRequest('flush'))
  t.deepEqual(notes, [])
})

test('compose with no layers is the device', (t) => {
  const disk = memoryDisk({ capacityBytes: 4096 })
  t.is(compose(disk, []).handler, disk.handler)
})

test('compose puts layers around the handler of each queue of any device', (t) => {
  let connects = 0
  const device = virtioDevice({
    deviceId: 42,
    connect: () => {
      connects++
      return (io) => io.ok()
    },
  })
  const refusing: Layer<RingRequest> = () => (io) => io.unsupported()
  const served = compose(device, [refusing])
  t.is(describe(served.connect(0n)(new RingRequest(0)) as Completion), 'unsupported')
  t.is(describe(device.connect(0n)(new RingRequest(0)) as Completion), 'ok')
  t.is(connects, 2)
})

// ---- what must not compile (checked by `npm run typecheck`) -------------------------------------------------------

test('types refuse what would go wrong at run time', (t) => {
  // @ts-expect-error a completion is made by a request, not written down
  const forged: Handler = () => ({ result: 'ok', bytesWritten: undefined })
  // @ts-expect-error a handler owes an answer
  const silent: Handler = () => {}
  // @ts-expect-error a layer takes the next handler
  const flat: Layer = (io: BlockRequest) => io.ok()
  const onRing: Layer<RingRequest> = (next) => next
  // @ts-expect-error a layer of ring requests does not fit around a disk
  const misfit = (): unknown => compose(memoryDisk({ capacityBytes: 512 }), [onRing])
  // @ts-expect-error a block size is 512 or 4096
  t.throws(() => memoryDisk({ capacityBytes: 4096, blockBytes: 1024 }))
  // @ts-expect-error `raed` is no verb
  t.throws(() => blockDevice({ capacityBytes: 512, raed: () => {} }))
  // @ts-expect-error a verb comes to nothing, a count or a completion
  const texts = blockDevice({ capacityBytes: 512, read: () => 'done' })
  // @ts-expect-error a request's completion cannot be changed
  t.throws(() => (blockRequest('flush').ok().result = 'failed'))
  // @ts-expect-error nobody but a request may name its result
  const outcome: Completion = { result: 'unsupported' }
  t.truthy([forged, silent, flat, misfit, texts, outcome, attempt])
})

test('a request has no word of the header beyond those that its device asks for', (t) => {
  const request = new RingRequest(8)
  request.begin(0, { pin() {}, unpin() {} }, Uint32Array.of(1, 2, 3, 4, 5), 1)
  t.deepEqual([request.headerWord(0), request.headerWord(1)], [2, 3])
  t.is(request.headerDoubleWord(0), 3 * 2 ** 32 + 2)
  for (const index of [-1, 2, Number.NaN])
    t.throws(() => request.headerWord(index), { instanceOf: RangeError })
  for (const index of [-1, 1, Number.NaN])
    t.throws(() => request.headerDoubleWord(index), { instanceOf: RangeError })
  t.deepEqual([...request.headerWords], [2, 3])
})
