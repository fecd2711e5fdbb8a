import test from 'ava'
import fc from 'fast-check'
import { asyncScheduler, EMPTY, NEVER, Observable, of, type SchedulerLike, throwError } from 'rxjs'
import { HushringError } from '../../src/errors.ts'
import type { BlockRequest, BlockVerb } from '../../src/handlers/block/block-request.ts'
import {
  type Answer,
  blockDevice,
  cache,
  compose,
  fault,
  type Handler,
  LAYERS,
  type Layer,
  layerFromText,
  mapAnswer,
  memoryDisk,
  mirror,
  rateLimit,
  readonly,
  retry,
  stack,
  type TraceEntry,
  timeout,
  trace,
  writeThrough,
} from '../../src/handlers/index.ts'
import { type Completion, isCompletion } from '../../src/ring/request.ts'
import { SegmentList } from '../../src/ring/segments.ts'
import { KiB, parseSizeBytes } from '../../src/units.ts'
import {
  ask,
  blockRequest,
  describe,
  layered,
  ManualClock,
  ManualHandler,
  pattern,
  readFrom,
  turn,
} from '../helpers/block-requests.ts'

const aborted = new HushringError('ERR_REQUEST_ABORTED', 'the queue was stopped')
const eio = new Error('EIO: i/o error')

// ---- every layer, around every kind of answer ---------------------------------------------------------------------

const layers: readonly [name: string, make: () => Layer][] = [
  ['trace', () => trace({ log: () => {} })],
  ['rateLimit', () => rateLimit({ iopsMax: 1e6, bytesPerSecondMax: 1e12 })],
  ['retry', () => retry({ count: 2 })],
  ['timeout', () => timeout({ ms: 1000, scheduler: new ManualClock() })],
  ['readonly', () => readonly()],
  ['fault', () => fault({ seed: 1 })],
  ['cache', () => cache({ sizeBytes: 64 * KiB })],
  ['mirror', () => mirror({ to: memoryDisk({ capacityBytes: 64 * KiB }) })],
  ['writeThrough', () => writeThrough()],
  [
    'a stack of them',
    () => stack([trace({ log: () => {} }), retry({ count: 1 }), cache({ sizeBytes: 8 * KiB })]),
  ],
]

const shapes: readonly [name: string, wrap: (completion: Completion) => Answer][] = [
  ['at once', (completion) => completion],
  ['by a promise', (completion) => Promise.resolve(completion)],
  ['by an observable', (completion) => of(completion)],
  ['by an observable that emits twice', (completion) => of(completion, completion)],
]

for (const [name, make] of layers) {
  for (const [shape, wrap] of shapes) {
    test(`${name}: passes data that is answered ${shape}`, async (t) => {
      const written: Buffer[] = []
      const handler = layered(make(), (io) => {
        if (io.verb === 'read') io.data.copyFrom(pattern(4096))
        if (io.verb === 'write') written.push(io.data.toBuffer())
        return wrap(io.ok())
      })
      const bytes = Buffer.alloc(4096)
      const answer = handler(blockRequest('read', 8192, bytes))
      t.is(isCompletion(answer), shape === 'at once')
      t.is(describe(await ask(() => answer, blockRequest('read'))), 'ok')
      t.true(bytes.equals(pattern(4096)))

      const expected = name === 'readonly' ? 'ERR_BLOCK_READ_ONLY' : 'ok'
      t.is(describe(await ask(handler, blockRequest('write', 0, pattern(512, 5)))), expected)
      t.deepEqual(written, name === 'readonly' ? [] : [pattern(512, 5)])
    })
  }

  test(`${name}: whatever the handler inside does wrong is one failure`, async (t) => {
    const wrongs: [next: (io: BlockRequest) => unknown, expected: string][] = [
      [(io) => io.fail(eio), 'ERR_STORE_IO'],
      [async (io) => io.fail(eio), 'ERR_STORE_IO'],
      [(io) => of(io.fail(eio), io.ok()), 'ERR_STORE_IO'],
      [(io) => io.unsupported(), 'unsupported'],
      [
        () => {
          throw eio
        },
        'ERR_HANDLER_THREW',
      ],
      [() => Promise.reject(eio), 'ERR_HANDLER_THREW'],
      [() => throwError(() => eio), 'ERR_HANDLER_THREW'],
      [() => EMPTY, 'ERR_HANDLER_ANSWER'],
      [() => undefined, 'ERR_HANDLER_ANSWER'],
    ]
    const verbs: BlockVerb[] = name === 'readonly' ? ['flush'] : ['flush', 'write']
    for (const [next, expected] of wrongs) {
      for (const verb of verbs) {
        const io = blockRequest(verb, 0, verb === 'write' ? pattern(512) : 0)
        t.is(describe(await ask(layered(make(), next), io)), expected)
      }
    }
  })

  test(`${name}: a request that is never answered holds up no other`, async (t) => {
    for (const never of [() => NEVER, () => new Promise(() => {})]) {
      let asked = 0
      const handler = layered(make(), (io) => (asked++ === 0 ? never() : io.ok()))
      let settled = false
      ask(handler, blockRequest('read', 0, Buffer.alloc(512))).then(() => {
        settled = true
      })
      await turn()
      t.is(describe(await ask(handler, blockRequest('read', 4096, Buffer.alloc(512)))), 'ok')
      t.false(settled)
    }
  })
}

// ---- options ----------------------------------------------------------------------------------------------------

const refuses = test.macro({
  exec(t, make: () => unknown, message: RegExp) {
    const error = t.throws(make, { message })
    t.true(error instanceof TypeError || error instanceof RangeError)
  },
  title: (_, make) => `${String(make).replace(/^\(\)\s*=>\s*/, '')} is refused`,
})
test(refuses, () => retry({} as never), /`count` to be a number, got `undefined`/)
test(refuses, () => retry({ count: 0 }), /`count` to be an integer from 1 to 1000, got `0`/)
test(refuses, () => retry({ count: 1, delayMs: -1 }), /`delayMs` to be a number from 0/)
test(refuses, () => retry({ count: 1, scheduler: {} as never }), /`scheduler` to be a scheduler of RxJS/)
test(refuses, () => retry(undefined as never), /`options` to be an object/)
test(refuses, () => timeout({ ms: 0 }), /`ms` to be a number from 1/)
test(refuses, () => timeout({ ms: Number.NaN }), /`ms`/)
test(refuses, () => rateLimit({}), /`iopsMax` to be a number unless bytesPerSecondMax is given/)
test(refuses, () => rateLimit({ iopsMax: 0 }), /`iopsMax`/)
test(refuses, () => rateLimit({ iopsMax: '5' as never }), /`iopsMax` to be a number, got `"5"`/)
test(refuses, () => rateLimit({ iopsMax: 5, burstMs: 1 }), /`burstMs` to be a number from 10/)
test(refuses, () => rateLimit({ iosMax: 5 } as never), /unknown option `iosMax`: did you mean `iopsMax`\?/)
test(refuses, () => fault({ errorPercent: 101 }), /`errorPercent` to be a number from 0 to 100/)
test(refuses, () => fault({ seed: -1 }), /`seed`/)
test(refuses, () => fault({ verbs: ['raed' as never] }), /`verbs` to be a list of read, write, flush/)
test(refuses, () => cache({ sizeBytes: 100 }), /`sizeBytes` to be an integer from 4096/)
test(refuses, () => cache({ sizeBytes: 8192, blockBytes: 1000 }), /`blockBytes` to be a power of two/)
test(refuses, () => mirror({ to: {} as never }), /`to` to be a disk such as memoryDisk/)
test(
  refuses,
  () => mirror({ to: memoryDisk({ capacityBytes: 512, readOnly: true }) }),
  /`to` to be a disk that can be/,
)
test(refuses, () => trace({ log: 'stderr' as never }), /`log` to be a function/)
test(refuses, () => trace({ enabled: true as never }), /`enabled` to be a function/)

// ---- trace ------------------------------------------------------------------------------------------------------

test('trace: tells each request with its result and its time', async (t) => {
  const scheduler = new ManualClock()
  const entries: TraceEntry[] = []
  const log = (entry: TraceEntry): void => {
    entries.push(entry)
  }
  const inner = new ManualHandler()
  const handler = trace({ log, name: 'disk0', scheduler })(inner.handler)
  const answers = [
    ask(handler, blockRequest('read', 8192, Buffer.alloc(512))),
    ask(handler, blockRequest('flush')),
    ask(handler, blockRequest('discard', 0, 4096)),
  ]
  const [read, flush, discard] = inner.pending
  await scheduler.advance(3)
  flush!.resolve(flush!.io.fail(new HushringError('ERR_STORE_IO', 'EIO')))
  discard!.resolve(discard!.io.unsupported())
  await turn()
  await scheduler.advance(4)
  read!.resolve(read!.io.ok())
  await Promise.all(answers)
  t.deepEqual(entries.map(String), [
    'disk0 flush: failed, 3000 µs, ERR_STORE_IO: EIO',
    'disk0 discard 4096 at 0: unsupported, 3000 µs',
    'disk0 read 512 at 8192: ok, 7000 µs',
  ])
  t.like(entries[2], {
    name: 'disk0',
    verb: 'read',
    offsetBytes: 8192,
    lengthBytes: 512,
    result: 'ok',
    micros: 7000,
  })
  t.like(entries[0], { error: 'ERR_STORE_IO: EIO' })
})

test('trace: asks whether anybody wants to know, and without times asks no clock', async (t) => {
  const lines: string[] = []
  let enabled = false
  const handler = trace({
    log: (entry) => lines.push(String(entry)),
    enabled: () => enabled,
    times: false,
    scheduler: {
      now: () => t.fail('it asked the clock') as never,
      schedule: asyncScheduler.schedule.bind(asyncScheduler) as SchedulerLike['schedule'],
    },
  })(async (io) => (io.verb === 'flush' ? io.ok() : io.fail(eio)))
  await ask(handler, blockRequest('flush'))
  enabled = true
  await ask(handler, blockRequest('flush'))
  await ask(handler, blockRequest('discard', 512, 512))
  t.deepEqual(lines, ['trace flush: ok', 'trace discard 512 at 512: failed, ERR_STORE_IO: EIO: i/o error'])
})

test('trace: writes its lines to stderr unless it is given another place', (t) => {
  const written: unknown[] = []
  const { write } = process.stderr
  process.stderr.write = (text: unknown) => written.push(text) > 0
  try {
    trace({ scheduler: new ManualClock() })((io) => io.ok())(blockRequest('flush'))
  } finally {
    process.stderr.write = write
  }
  t.deepEqual(written, ['trace flush: ok, 0 µs\n'])
})

// ---- rateLimit --------------------------------------------------------------------------------------------------

/** A handler that answers at once and notes when it was asked for what. */
function timing(scheduler: ManualClock): { handler: Handler; asked: [ms: number, offsetBytes: number][] } {
  const asked: [number, number][] = []
  return {
    asked,
    handler: (io) => {
      asked.push([scheduler.now(), io.offsetBytes])
      return io.ok()
    },
  }
}

test('rateLimit: lets a burst through at once and the rest at the rate, in order', async (t) => {
  const scheduler = new ManualClock()
  const { handler, asked } = timing(scheduler)
  const limited = rateLimit({ iopsMax: 100, burstMs: 50, scheduler })(handler)
  const answers = Array.from({ length: 12 }, (_, index) => limited(blockRequest('discard', index * 512, 512)))
  // 50 ms at 100 a second are 5 requests; one more may pass while the level is just at the line.
  t.deepEqual(answers.map(isCompletion), [...Array(6).fill(true), ...Array(6).fill(false)])
  await scheduler.advance(100)
  await Promise.all(answers)
  t.deepEqual(
    asked.map(([ms]) => ms),
    [0, 0, 0, 0, 0, 0, 10, 20, 30, 40, 50, 60],
  )
  t.deepEqual(
    asked.map(([, offset]) => offset),
    Array.from({ length: 12 }, (_, index) => index * 512),
  )
})

test('rateLimit: a quiet time is made up for, up to the burst', async (t) => {
  const scheduler = new ManualClock()
  const { handler, asked } = timing(scheduler)
  const limited = rateLimit({ iopsMax: 1000, burstMs: 10, scheduler })(handler)
  await scheduler.advance(500)
  const answers = Array.from({ length: 13 }, () => limited(blockRequest('flush')))
  await scheduler.advance(5)
  await Promise.all(answers)
  t.deepEqual(
    asked.map(([ms]) => ms),
    [...Array(11).fill(500), 501, 502],
  )
})

test('rateLimit: bytes are counted of reads and writes alone, and a large request passes late, not never', async (t) => {
  const scheduler = new ManualClock()
  const { handler, asked } = timing(scheduler)
  const limited = rateLimit({ bytesPerSecondMax: 512_000, burstMs: 10, scheduler })(handler)
  const answers = [
    limited(blockRequest('write', 1, Buffer.alloc(51_200))), // 100 ms of the rate
    limited(blockRequest('read', 2, Buffer.alloc(512))), // waits until the level is down at 10 ms
    limited(blockRequest('flush')), // stands behind it, and costs nothing
    limited(blockRequest('read', 3, Buffer.alloc(512))),
  ]
  await scheduler.advance(200)
  await Promise.all(answers)
  t.deepEqual(asked, [
    [0, 1],
    [90, 2],
    [91, 0],
    [91, 3],
  ])
})

test('rateLimit: a request that is aborted while it waits fails at once and uses nothing up', async (t) => {
  const scheduler = new ManualClock()
  const { handler, asked } = timing(scheduler)
  const limited = rateLimit({ iopsMax: 10, burstMs: 10, scheduler })(handler)
  const requests = Array.from({ length: 4 }, (_, index) => blockRequest('discard', index, 512))
  const answers = requests.map((io) => ask(limited, io))
  requests[1]!.abort(aborted)
  t.is(describe(await answers[1]!), 'ERR_REQUEST_ABORTED')
  const late = blockRequest('discard', 9, 512)
  late.abort(aborted)
  t.is(describe(await ask(limited, late)), 'ERR_REQUEST_ABORTED')
  await scheduler.advance(300)
  await Promise.all(answers)
  t.deepEqual(asked, [
    [0, 0],
    [90, 2],
    [190, 3],
  ])
})

test('rateLimit: far from the limit the clock is read for few requests', (t) => {
  let readings = 0
  const scheduler = { now: () => readings++, schedule: asyncScheduler.schedule.bind(asyncScheduler) }
  const limited = rateLimit({ iopsMax: 1e6, burstMs: 100, scheduler: scheduler as SchedulerLike })((io) =>
    io.ok(),
  )
  for (let index = 0; index < 10_000; index++) t.true(isCompletion(limited(blockRequest('flush'))))
  t.true(readings > 0 && readings < 10, `${readings} readings`)
})

test('rateLimit: after a long time without a reading no more than a burst and a sixteenth passes', async (t) => {
  const scheduler = new ManualClock()
  const { handler, asked } = timing(scheduler)
  const limited = rateLimit({ iopsMax: 1000, burstMs: 160, scheduler })(handler)
  const ask = (count: number): Answer[] => Array.from({ length: count }, () => limited(blockRequest('flush')))
  ask(1)
  await scheduler.advance(1000)
  const answers = ask(300)
  t.is(answers.filter(isCompletion).length, 160 + 1 + 9, 'nine passed without a look at the clock')
  await scheduler.advance(200)
  await Promise.all(answers)
  t.is(asked.length, 301)
})

test('rateLimit: a large request passes with a look at the clock, so that the next one waits', async (t) => {
  const scheduler = new ManualClock()
  const { handler, asked } = timing(scheduler)
  const limited = rateLimit({ bytesPerSecondMax: 512_000, burstMs: 100, scheduler })(handler)
  limited(blockRequest('read', 0, Buffer.alloc(512)))
  await scheduler.advance(1000)
  const large = [1, 2].map((offset) => limited(blockRequest('write', offset, Buffer.alloc(102_400))))
  t.deepEqual(large.map(isCompletion), [true, false])
  await scheduler.advance(200)
  await Promise.all(large)
  t.deepEqual(asked, [
    [0, 0],
    [1000, 1],
    [1100, 2],
  ])
})

test('rateLimit: no run of requests exceeds the rate, overtakes, is dropped or waits in vain', async (t) => {
  const arrivals = fc.array(fc.record({ pauseMs: fc.nat(8), bytes: fc.integer({ min: 1, max: 8 }) }), {
    maxLength: 30,
  })
  await fc.assert(
    fc.asyncProperty(arrivals, async (program) => {
      const scheduler = new ManualClock()
      const { handler, asked } = timing(scheduler)
      const limited = rateLimit({ iopsMax: 500, bytesPerSecondMax: 512_000, burstMs: 10, scheduler })(handler)
      const answers: Answer[] = []
      for (const [index, { pauseMs, bytes }] of program.entries()) {
        await scheduler.advance(pauseMs)
        answers.push(limited(blockRequest('write', index, Buffer.alloc(bytes * 512))))
      }
      await scheduler.advance(program.length * 10)
      await Promise.all(answers)
      t.deepEqual(
        asked.map(([, index]) => index),
        program.map((_, index) => index),
      )
      for (let from = 0; from < asked.length; from++) {
        for (let to = from; to < asked.length; to++) {
          const elapsedMs = asked[to]![0] - asked[from]![0]
          // Everything between the two, without the last, fits into the time and the burst.
          t.true((to - from) * 2 <= elapsedMs + 10 + 2)
          const bytes = program.slice(from, to).reduce((sum, request) => sum + request.bytes, 0)
          t.true(bytes <= elapsedMs + 10 + 8)
        }
      }
    }),
    { numRuns: 20 },
  )
})

// ---- retry ------------------------------------------------------------------------------------------------------

/** Fails so many times, then succeeds. */
function failing(times: number, wrap: (completion: Completion) => Answer = (completion) => completion) {
  const seen = { count: 0 }
  const handler: Handler = (io) => wrap(++seen.count <= times ? io.fail(eio) : io.ok())
  return { handler, seen }
}

for (const [shape, wrap] of shapes) {
  test(`retry: asks again when a failure is answered ${shape}`, async (t) => {
    const recovers = failing(2, wrap)
    t.is(
      describe(await ask(retry({ count: 2 })(recovers.handler), blockRequest('write', 0, pattern(512)))),
      'ok',
    )
    t.is(recovers.seen.count, 3)
    const broken = failing(9, wrap)
    t.is(describe(await ask(retry({ count: 2 })(broken.handler), blockRequest('read'))), 'ERR_STORE_IO')
    t.is(broken.seen.count, 3)
  })
}

test('retry: without a delay, what fails and succeeds at once is answered at once', (t) => {
  t.true(isCompletion(retry({ count: 3 })(failing(2).handler)(blockRequest('read'))))
})

test('retry: waits before each further attempt', async (t) => {
  const scheduler = new ManualClock()
  const times: number[] = []
  const handler = retry({ count: 2, delayMs: 10, scheduler })((io) => {
    times.push(scheduler.now())
    return io.fail(eio)
  })
  const answer = ask(handler, blockRequest('read'))
  await scheduler.advance(50)
  t.is(describe(await answer), 'ERR_STORE_IO')
  t.deepEqual(times, [0, 10, 20])
})

test('retry: a flush, a fault of the driver and an unsupported request are asked once', async (t) => {
  const once = async (verb: BlockVerb, answer: (io: BlockRequest) => Completion): Promise<number> => {
    let count = 0
    await ask(
      layered(retry({ count: 5 }), (io) => ++count && answer(io)),
      blockRequest(verb),
    )
    return count
  }
  t.is(await once('flush', (io) => io.fail(eio)), 1)
  t.is(await once('read', (io) => io.fail(new HushringError('ERR_BLOCK_RANGE'))), 1)
  t.is(await once('read', (io) => io.unsupported()), 1)
  t.is(await once('read', (io) => io.fail(eio)), 6)
})

test('retry: gives up when nobody waits any more, also during the wait', async (t) => {
  const scheduler = new ManualClock()
  const { handler, seen } = failing(9)
  const patient = retry({ count: 5, delayMs: 10, scheduler })(handler)
  const io = blockRequest('read')
  const answer = ask(patient, io)
  await scheduler.advance(15)
  t.is(seen.count, 2)
  io.abort(aborted)
  t.is(describe(await answer), 'ERR_REQUEST_ABORTED')
  await scheduler.advance(50)
  t.is(seen.count, 2)

  const given = blockRequest('read')
  given.abort(aborted)
  t.is(describe(await ask(patient, given)), 'ERR_STORE_IO')
  t.is(seen.count, 3)
})

// ---- timeout ----------------------------------------------------------------------------------------------------

test('timeout: answers for a handler that does not, aborts its signal, and ignores its late answer', async (t) => {
  const scheduler = new ManualClock()
  const inner = new ManualHandler()
  const handler = timeout({ ms: 10, scheduler })(inner.handler)
  const bytes = Buffer.alloc(512, 0xee)
  const io = blockRequest('read', 0, bytes)
  const answer = ask(handler, io)
  const { io: own, resolve } = inner.pending[0]!
  await scheduler.advance(9)
  t.false(own.signal.aborted)
  await scheduler.advance(1)
  t.is(describe(await answer), 'ERR_HANDLER_TIMEOUT')
  t.true(own.signal.aborted)
  t.false(io.isAborted)

  own.data.copyFrom(pattern(512))
  resolve(own.ok())
  await turn()
  t.true(bytes.equals(Buffer.alloc(512, 0xee)))
})

test('timeout: a read that answers in time is copied out, and only when it succeeded', async (t) => {
  const inner = new ManualHandler()
  const handler = timeout({ ms: 10, scheduler: new ManualClock() })(inner.handler)
  const [done, failed, abandoned] = [Buffer.alloc(512), Buffer.alloc(512), Buffer.alloc(512)]
  const given = blockRequest('read', 0, abandoned)
  const answers = [
    ask(handler, blockRequest('read', 0, done)),
    ask(handler, blockRequest('read', 0, failed)),
    ask(handler, given),
  ]
  for (const { io } of inner.pending) io.data.copyFrom(pattern(512))
  given.abort(aborted)
  for (const [index, { io, resolve }] of inner.pending.entries())
    resolve(index === 1 ? io.fail(eio) : io.ok())
  await Promise.all(answers)
  t.true(done.equals(pattern(512)))
  t.true(failed.equals(Buffer.alloc(512)))
  t.true(abandoned.equals(Buffer.alloc(512)))
})

test('timeout: a late write stores what the driver wrote, not what its buffer holds by then', async (t) => {
  const inner = new ManualHandler()
  const buffer = pattern(512)
  ask(timeout({ ms: 10, scheduler: new ManualClock() })(inner.handler), blockRequest('write', 0, buffer))
  buffer.fill(0)
  t.true(inner.pending[0]!.io.data.toBuffer().equals(pattern(512)))
})

test('timeout: a store that fills too little shows nothing of this process', async (t) => {
  const stores: Handler[] = [(io) => io.ok(), async (io) => io.ok()]
  for (const store of stores) {
    const bytes = Buffer.alloc(4096, 0xee)
    await ask(timeout({ ms: 1000 })(store), blockRequest('read', 0, bytes))
    t.true(bytes.equals(Buffer.alloc(4096, 0xee)))
  }
})

test('timeout: a store that reads a part at once and the rest later, or through views, fills all of it', async (t) => {
  const inTwoSteps: Handler = async (io) => {
    io.data.copyFrom(pattern(4096), 0, 0)
    await turn()
    io.data.copyFrom(pattern(4096, 7), 0, 2048)
    return io.ok()
  }
  const throughViews: Handler = (io) => {
    for (const view of io.segments) view.fill(3)
    return io.ok()
  }
  const filled = async (handler: Handler): Promise<Buffer> =>
    readFrom(timeout({ ms: 1000 })(handler), 0, 4096)
  const expected = Buffer.concat([pattern(4096).subarray(0, 2048), pattern(4096, 7).subarray(0, 2048)])
  t.true((await filled(inTwoSteps)).equals(expected))
  t.true((await filled(throughViews)).equals(Buffer.alloc(4096, 3)))
})

const staysAway = test.macro({
  exec(t, grasp: (io: BlockRequest) => () => void) {
    const buffer = Buffer.alloc(512, 0xee)
    let late: (() => void) | undefined
    const store = layered(timeout({ ms: 10, scheduler: new ManualClock() }), (io) => {
      late = grasp(io)
      return new Promise(() => {})
    })
    ask(store, blockRequest('read', 0, buffer))
    late!()
    t.true(buffer.equals(Buffer.alloc(512, 0xee)))
  },
  title: (what) => `timeout: work that goes on has no hold of the driver's memory: ${what}`,
})
test(
  'the list',
  staysAway,
  ({ data }) =>
    () =>
      data.fill(1),
)
test(
  'views',
  staysAway,
  ({ segments }) =>
    () =>
      segments[0]!.fill(1),
)
test('a part of the list', staysAway, ({ data }) => {
  const part = data.first(256)
  return () => part.fill(1)
})
test('views of a part', staysAway, ({ data }) => {
  const [view] = data.first(256).views()
  return () => view!.fill(1)
})
test('a request derived from it', staysAway, (io) => {
  const derived = io.derive({ verb: 'read' })
  return () => derived.data.fill(1)
})
test('a second timeout within', staysAway, (io) => {
  let data: SegmentList | undefined
  ask(
    layered(timeout({ ms: 5, scheduler: new ManualClock() }), (own) => {
      data = own.data
      return new Promise(() => {})
    }),
    io,
  )
  return () => data!.fill(1)
})

test('timeout: an abort of a request that was answered reaches no later one', async (t) => {
  const seen: AbortSignal[] = []
  const handler = timeout({ ms: 10 })((io) => {
    seen.push(io.signal)
    return io.ok()
  })
  const [first, second] = [
    blockRequest('read', 0, Buffer.alloc(512)),
    blockRequest('read', 0, Buffer.alloc(512)),
  ]
  await ask(handler, first)
  await ask(handler, second)
  first.abort(aborted)
  t.false(seen[1]!.aborted)
  second.abort(aborted)
  t.true(seen[1]!.aborted)
})

test('timeout: unsubscribes an observable that is too late, and keeps the range of a discard', async (t) => {
  const scheduler = new ManualClock()
  let subscribers = 0
  const seen: BlockRequest[] = []
  const handler = layered(timeout({ ms: 10, scheduler }), (io) => {
    seen.push(io)
    return new Observable(() => {
      subscribers++
      return () => subscribers--
    })
  })
  const answer = ask(handler, blockRequest('discard', 4096, 8192))
  t.like(seen[0], { verb: 'discard', offsetBytes: 4096, lengthBytes: 8192 })
  t.is(subscribers, 1)
  await scheduler.advance(10)
  t.is(describe(await answer), 'ERR_HANDLER_TIMEOUT')
  t.is(subscribers, 0)
})

// ---- fault ------------------------------------------------------------------------------------------------------

const pass: Handler = (io) => io.ok()

async function faultsOf(layer: Layer, count: number, verb: BlockVerb = 'read'): Promise<boolean[]> {
  const handler = layer(pass)
  const results: boolean[] = []
  for (let index = 0; index < count; index++)
    results.push((await ask(handler, blockRequest(verb))).result === 'failed')
  return results
}

test('fault: the same seed gives the same faults, another seed others, and the share is kept', async (t) => {
  const faults = await faultsOf(fault({ errorPercent: 10, seed: 7 }), 5000)
  t.deepEqual(await faultsOf(fault({ errorPercent: 10, seed: 7 }), 5000), faults)
  t.notDeepEqual(await faultsOf(fault({ errorPercent: 10, seed: 8 }), 5000), faults)
  const count = faults.filter(Boolean).length
  t.true(count > 400 && count < 600, `${count} of 5000`)
  t.true((await faultsOf(fault({ errorPercent: 100 }), 100)).every(Boolean))
  t.false((await faultsOf(fault({ errorPercent: 0 }), 100)).some(Boolean))
})

test('fault: a random seed is told, by the layer and by the error', async (t) => {
  const layer = fault({ errorPercent: 100 })
  t.true(Number.isInteger(layer.seed))
  const completion = await ask(layer(pass), blockRequest('write'))
  t.is(
    completion.result === 'failed' && completion.error.message,
    `write: injected fault, request 1 of seed ${layer.seed}`,
  )
})

test('fault: a request that fails does not reach the disk, and other verbs are left alone', async (t) => {
  const seen: string[] = []
  const handler = layered(fault({ errorPercent: 100, verbs: ['write'] }), (io) => {
    seen.push(io.verb)
    return io.ok()
  })
  t.is(describe(await ask(handler, blockRequest('write'))), 'ERR_STORE_IO')
  t.is(describe(await ask(handler, blockRequest('read'))), 'ok')
  t.deepEqual(seen, ['read'])
})

test('fault: delays every request, unless nobody waits any more', async (t) => {
  const scheduler = new ManualClock()
  const { handler, asked } = timing(scheduler)
  const slow = fault({ delayMs: 20, scheduler })(handler)
  const io = blockRequest('read', 512)
  const answers = [ask(slow, blockRequest('read')), ask(slow, io)]
  await scheduler.advance(10)
  io.abort(aborted)
  t.is(describe(await answers[1]!), 'ERR_REQUEST_ABORTED')
  await scheduler.advance(10)
  t.is(describe(await answers[0]!), 'ok')
  t.deepEqual(asked, [[20, 0]])
})

// ---- a disk whose requests happen and are answered in any order ------------------------------------------------------

/** Things that can happen next; a test picks one after the other. */
type Events = (() => void)[]

/** A disk on which a request takes effect at one moment and is answered at a later one. */
class SlowDisk {
  readonly bytes: Buffer
  readonly #events: Events

  constructor(capacityBytes: number, events: Events) {
    this.bytes = Buffer.alloc(capacityBytes)
    this.#events = events
  }

  readonly handler: Handler = (io) =>
    new Promise((resolve) => {
      this.#events.push(() => {
        this.#apply(io)
        this.#events.push(() => resolve(io.ok()))
      })
    })

  #apply({ verb, offsetBytes, lengthBytes, data }: BlockRequest): void {
    const range = this.bytes.subarray(offsetBytes, offsetBytes + lengthBytes)
    if (verb === 'read') data.copyFrom(range)
    else if (verb === 'write') data.copyTo(range)
    else range.fill(0)
  }
}

interface Operation {
  readonly verb: BlockVerb
  readonly sector: number
  readonly count: number
  readonly salt: number
}

const SECTORS = 12
const DISK_BYTES = SECTORS * 512

const operation = fc
  .record({
    verb: fc.constantFrom<BlockVerb>('read', 'read', 'write', 'write', 'discard'),
    sector: fc.nat(SECTORS - 1),
    count: fc.integer({ min: 1, max: 6 }),
    salt: fc.nat(255),
  })
  .map((wish): Operation => ({ ...wish, count: Math.min(wish.count, SECTORS - wish.sector) }))
/** Rounds of requests; all of a round are answered before the next. The numbers pick what happens next. */
const rounds = fc.array(
  fc.tuple(fc.array(operation, { minLength: 1, maxLength: 5 }), fc.array(fc.nat(), { maxLength: 20 })),
  { minLength: 1, maxLength: 4 },
)

/** Starts the operations of a round and lets their events happen in the order that the picks say. */
async function play(
  handler: Handler,
  events: Events,
  operations: readonly Operation[],
  picks: readonly number[],
): Promise<void> {
  const answers: Promise<Completion>[] = []
  const left = [...operations]
  for (let step = 0; left.length > 0 || events.length > 0; step++) {
    const pick = (picks[step] ?? 0) % (events.length + (left.length > 0 ? 1 : 0))
    if (pick < events.length) {
      events.splice(pick, 1)[0]!()
    } else {
      const { verb, sector, count, salt } = left.shift()!
      const bytes = verb === 'write' ? pattern(count * 512, salt) : Buffer.alloc(count * 512)
      const io = blockRequest(verb, sector * 512, verb === 'discard' ? count * 512 : bytes)
      answers.push(ask(handler, io))
    }
    await turn()
  }
  await Promise.all(answers)
}

/** Reads all, in small reads, with every event at once. */
async function readAll(handler: Handler, events: Events): Promise<Buffer> {
  const parts: Buffer[] = []
  for (let sector = 0; sector < SECTORS; sector++) {
    const part = readFrom(handler, sector * 512, 512)
    while (events.length > 0) {
      events.shift()!()
      await turn()
    }
    parts.push(await part)
  }
  return Buffer.concat(parts)
}

// ---- cache ------------------------------------------------------------------------------------------------------

function counting(disk = memoryDisk({ capacityBytes: 64 * KiB })): { handler: Handler; asked: string[] } {
  const asked: string[] = []
  return {
    asked,
    handler: (io) => {
      asked.push(`${io.verb} ${io.offsetBytes}+${io.lengthBytes}`)
      return disk.handler(io)
    },
  }
}

test('cache: serves again what was read or written, and asks the disk once', async (t) => {
  const { handler, asked } = counting()
  const cached = cache({ sizeBytes: 32 * KiB })(handler)
  await ask(cached, blockRequest('write', 8192, pattern(8192, 2)))
  await ask(cached, blockRequest('write', 8192, pattern(8192)))
  await readFrom(cached, 0, 4096)
  asked.length = 0
  t.true((await readFrom(cached, 8192, 8192)).equals(pattern(8192)))
  t.true((await readFrom(cached, 10_240, 1024)).equals(pattern(8192).subarray(2048, 3072)))
  t.true((await readFrom(cached, 4096 - 512, 512)).equals(Buffer.alloc(512)))
  t.deepEqual(asked, [])
  await readFrom(cached, 4096, 8192)
  t.deepEqual(asked, ['read 4096+8192'])
})

test('cache: a hit is answered at once, though the disk takes time', async (t) => {
  const inner = new ManualHandler()
  const cached = cache({ sizeBytes: 8192 })(inner.handler)
  const first = ask(cached, blockRequest('read', 0, Buffer.alloc(4096)))
  const { io, resolve } = inner.pending[0]!
  io.data.copyFrom(pattern(4096))
  resolve(io.ok())
  await first
  const bytes = Buffer.alloc(512)
  t.true(isCompletion(cached(blockRequest('read', 1024, bytes))))
  t.true(bytes.equals(pattern(4096).subarray(1024, 1536)))
})

test('cache: keeps no more than its size, and drops what was used longest ago', async (t) => {
  const { handler, asked } = counting()
  const cached = cache({ sizeBytes: 8192, blockBytes: 4096 })(handler)
  await readFrom(cached, 0, 4096)
  await readFrom(cached, 4096, 4096)
  await readFrom(cached, 0, 4096)
  await readFrom(cached, 8192, 4096)
  asked.length = 0
  await readFrom(cached, 0, 4096)
  await readFrom(cached, 8192, 4096)
  t.deepEqual(asked, [])
  await readFrom(cached, 4096, 4096)
  t.deepEqual(asked, ['read 4096+4096'])
})

test('cache: discard and writeZeroes forget what they touch, however much that is, and a flush passes', async (t) => {
  const { handler, asked } = counting()
  const cached = cache({ sizeBytes: 32 * KiB })(handler)
  for (const [verb, lengthBytes] of [
    ['discard', 512],
    ['writeZeroes', 64 * KiB],
  ] as const) {
    await ask(cached, blockRequest('write', 4096, pattern(8192)))
    await ask(cached, blockRequest(verb, verb === 'discard' ? 4096 + 512 : 0, lengthBytes))
    const expected = pattern(8192)
    if (verb === 'discard') expected.fill(0, 512, 1024)
    else expected.fill(0)
    t.true((await readFrom(cached, 4096, 8192)).equals(expected))
  }
  await ask(cached, blockRequest('flush'))
  t.is(asked.at(-1), 'flush 0+0')
})

test('cache: a write that fails leaves nothing of it behind', async (t) => {
  let fails = false
  const disk = memoryDisk({ capacityBytes: 64 * KiB })
  const cached = cache({ sizeBytes: 32 * KiB })((io) => (fails ? io.fail(eio) : disk.handler(io)))
  await ask(cached, blockRequest('write', 0, pattern(4096, 1)))
  fails = true
  t.is(describe(await ask(cached, blockRequest('write', 0, pattern(4096, 2)))), 'ERR_STORE_IO')
  fails = false
  t.true((await readFrom(cached, 0, 4096)).equals(pattern(4096, 1)))
})

test('cache: a driver cannot change what is cached through its own memory', async (t) => {
  const cached = cache({ sizeBytes: 32 * KiB })(memoryDisk({ capacityBytes: 64 * KiB }).handler)
  const written = pattern(4096)
  await ask(cached, blockRequest('write', 0, written))
  written.fill(0xff)
  const read = await readFrom(cached, 0, 4096)
  read.fill(0xff)
  t.true((await readFrom(cached, 0, 4096)).equals(pattern(4096)))
})

test('cache: a request that was given up has nothing copied into the memory of its driver', async (t) => {
  const inner = new ManualHandler()
  const cached = cache({ sizeBytes: 32 * KiB })(inner.handler)
  const bytes = Buffer.alloc(4096)
  const io = blockRequest('read', 0, bytes)
  const answer = ask(cached, io)
  io.abort(aborted)
  inner.pending[0]!.io.data.copyFrom(pattern(4096))
  inner.pending[0]!.resolve(io.ok())
  await answer
  t.true(bytes.equals(Buffer.alloc(4096)))
})

test('cache: goes on with a write that nobody subscribes to any more', async (t) => {
  const scheduler = new ManualClock()
  const inner = new ManualHandler()
  const impatient = stack([timeout({ ms: 5, scheduler }), cache({ sizeBytes: 32 * KiB })])(inner.handler)
  const write = ask(impatient, blockRequest('write', 0, pattern(4096)))
  await scheduler.advance(5)
  t.is(describe(await write), 'ERR_HANDLER_TIMEOUT')

  // The write may still happen: what is read meanwhile must not be cached.
  const read = ask(impatient, blockRequest('read', 0, Buffer.alloc(4096)))
  inner.pending[1]!.resolve(inner.pending[1]!.io.ok())
  await read
  ask(impatient, blockRequest('read', 0, Buffer.alloc(4096)))
  t.is(inner.pending.length, 3)

  inner.pending[0]!.resolve(inner.pending[0]!.io.ok())
  await turn()
  t.true((await readFrom(impatient, 0, 4096)).equals(pattern(4096)))
  t.is(inner.pending.length, 3)
})

/** True unless the cache ever serves something that the disk does not hold. */
const isCoherent = (makeCache: () => Layer) =>
  fc.asyncProperty(rounds, async (program) => {
    const events: Events = []
    const disk = new SlowDisk(DISK_BYTES, events)
    const cached = makeCache()(disk.handler)
    for (const [operations, picks] of program) {
      await play(cached, events, operations, picks)
      if (!(await readAll(cached, events)).equals(disk.bytes)) return false
    }
    return true
  })

for (const blockBytes of [512, 1024]) {
  test(`cache: in blocks of ${blockBytes} it equals the disk, whatever happens in which order`, async (t) => {
    await fc.assert(
      isCoherent(() => cache({ sizeBytes: 4096, blockBytes })),
      { numRuns: 150 },
    )
    t.pass()
  })
}

test('a cache that keeps every answer is found to be incoherent (control)', async (t) => {
  const naive: Layer = (next) => {
    const blocks = new Map<number, Buffer>()
    return (io) => {
      const { verb, offsetBytes, lengthBytes, data } = io
      const held = blocks.get(offsetBytes)
      if (verb === 'read' && lengthBytes === 512 && held !== undefined) {
        data.copyFrom(held)
        return io.ok()
      }
      const given = data.toBuffer()
      return mapAnswer(next(io), (completion) => {
        const bytes = verb === 'read' ? data.toBuffer() : verb === 'write' ? given : Buffer.alloc(lengthBytes)
        for (let at = 0; at < lengthBytes; at += 512)
          blocks.set(offsetBytes + at, bytes.subarray(at, at + 512))
        return completion
      })
    }
  }
  t.true(
    (
      await fc.check(
        isCoherent(() => naive),
        { numRuns: 500 },
      )
    ).failed,
  )
})

// ---- mirror -----------------------------------------------------------------------------------------------------

function diskOf(handler: Handler, verbs: Partial<Parameters<typeof blockDevice>[0]> = {}) {
  return blockDevice({ capacityBytes: DISK_BYTES, read: handler, write: handler, ...verbs })
}
const verbsOf = (handler: Handler) => ({ flush: handler, discard: handler, writeZeroes: handler })

test('mirror: what writes goes to both, a read to the first', async (t) => {
  const [first, second] = [counting(), counting()]
  const mirrored = mirror({ to: diskOf(second.handler, verbsOf(second.handler)) })(first.handler)
  await ask(mirrored, blockRequest('write', 0, pattern(512)))
  await ask(mirrored, blockRequest('flush'))
  await ask(mirrored, blockRequest('discard', 512, 512))
  await ask(mirrored, blockRequest('writeZeroes', 1024, 512))
  t.deepEqual(first.asked, ['write 0+512', 'flush 0+0', 'discard 512+512', 'writeZeroes 1024+512'])
  t.deepEqual(second.asked, first.asked)
  t.true((await readFrom(mirrored, 0, 512)).equals(pattern(512)))
  t.is(second.asked.length, 4)
})

const isMirrored = test.macro({
  async exec(t, verb: BlockVerb, first: string, second: string, expected: string) {
    const answering =
      (result: string): Handler =>
      (io) =>
        result === 'ok'
          ? io.ok()
          : result === 'unsupported'
            ? io.unsupported()
            : io.fail(new HushringError('ERR_STORE_IO', result))
    const to = diskOf(answering(second), verbsOf(answering(second)))
    const completion = await ask(mirror({ to })(answering(first)), blockRequest(verb, 0, pattern(512)))
    t.is(completion.result === 'failed' ? completion.error.message : completion.result, expected)
  },
  title: (_, verb, first, second, expected) =>
    `mirror: a ${verb} that is ${first} and ${second} is ${expected}`,
})
for (const verb of ['write', 'flush', 'discard', 'writeZeroes'] as const) {
  test(isMirrored, verb, 'ok', 'ok', 'ok')
  test(isMirrored, verb, 'bad', 'ok', 'bad')
  test(isMirrored, verb, 'ok', 'worse', 'worse')
  test(isMirrored, verb, 'bad', 'worse', 'bad')
  test(isMirrored, verb, 'ok', 'unsupported', 'unsupported')
  test(isMirrored, verb, 'unsupported', 'worse', 'worse')
}
test(isMirrored, 'read', 'bad', 'ok', 'ok')
test(isMirrored, 'read', 'bad', 'worse', 'bad')
test(isMirrored, 'read', 'ok', 'worse', 'ok')

test('mirror: a read that fails is read from the second disk', async (t) => {
  const to = memoryDisk({ capacityBytes: DISK_BYTES })
  const mirrored = mirror({ to })((io) => (io.verb === 'read' ? Promise.reject(eio) : io.ok()))
  await ask(mirrored, blockRequest('write', 512, pattern(1024)))
  t.true((await readFrom(mirrored, 512, 1024)).equals(pattern(1024)))
})

test('mirror: a second disk is left out of what it cannot do, but for zeros', async (t) => {
  const first = counting()
  const mirrored = mirror({ to: diskOf(pass) })(first.handler)
  t.is(describe(await ask(mirrored, blockRequest('flush'))), 'ok')
  t.is(describe(await ask(mirrored, blockRequest('discard', 0, 512))), 'ok')
  t.is(describe(await ask(mirrored, blockRequest('writeZeroes', 0, 512))), 'unsupported')
  t.deepEqual(first.asked, ['flush 0+0', 'discard 0+512'])
})

test('mirror: both get the same bytes though the driver changes its buffer meanwhile', async (t) => {
  const to = memoryDisk({ capacityBytes: DISK_BYTES })
  const first = memoryDisk({ capacityBytes: DISK_BYTES })
  const buffer = pattern(512)
  const mirrored = mirror({ to })((io) => {
    buffer.fill(0xff)
    return first.handler(io)
  })
  await ask(mirrored, blockRequest('write', 0, buffer))
  t.true((await readFrom(first, 0, 512)).equals(await readFrom(to, 0, 512)))
})

test('mirror: a change that waits for another is given up without being done', async (t) => {
  const inner = new ManualHandler()
  const mirrored = mirror({ to: memoryDisk({ capacityBytes: DISK_BYTES }) })(inner.handler)
  const [one, other] = [blockRequest('write', 0, pattern(512)), blockRequest('write', 0, pattern(512))]
  const answers = [ask(mirrored, one), ask(mirrored, other)]
  t.is(inner.pending.length, 1)
  other.abort(aborted)
  inner.pending[0]!.resolve(one.ok())
  t.is(describe(await answers[1]!), 'ERR_REQUEST_ABORTED')
  t.is(inner.pending.length, 1)
})

/** True unless the two disks ever differ. */
const staysEqual = (mirrorOf: (second: Handler) => Layer) =>
  fc.asyncProperty(rounds, async (program) => {
    const events: Events = []
    const [first, second] = [new SlowDisk(DISK_BYTES, events), new SlowDisk(DISK_BYTES, events)]
    const mirrored = mirrorOf(second.handler)(first.handler)
    for (const [operations, picks] of program) {
      await play(mirrored, events, operations, picks)
      if (!first.bytes.equals(second.bytes)) return false
    }
    return true
  })

test('mirror: both disks are equal, whatever happens in which order', async (t) => {
  await fc.assert(
    staysEqual((second) => mirror({ to: diskOf(second, verbsOf(second)) })),
    { numRuns: 150 },
  )
  t.pass()
})

test('a mirror that does not keep overlapping changes in order is found to differ (control)', async (t) => {
  const naive =
    (second: Handler): Layer =>
    (next) =>
    async (io) => {
      const answers = io.verb === 'read' ? [next(io)] : [next(io), second(io)]
      return (await Promise.all(answers))[0] as Completion
    }
  t.true((await fc.check(staysEqual(naive), { numRuns: 500 })).failed)
})

// ---- layers by name -----------------------------------------------------------------------------------------------

test('layerFromText: makes each layer of the list, with its options', async (t) => {
  const readOnly = layerFromText('readonly')
  t.is(describe(await ask(readOnly(pass), blockRequest('write'))), 'ERR_BLOCK_READ_ONLY')
  const faulty = layerFromText('fault:errorPercent=100,seed=5,verbs=write+flush')
  t.is((faulty as { seed?: number }).seed, 5)
  t.is(describe(await ask(faulty(pass), blockRequest('flush'))), 'ERR_STORE_IO')
  t.is(describe(await ask(faulty(pass), blockRequest('read'))), 'ok')
  for (const text of [
    'trace:name=disk0',
    'retry:count=3,delayMs=0.5',
    'timeout:ms=100',
    'cache:sizeBytes=64MiB,blockBytes=4k',
    'rateLimit:bytesPerSecondMax=10MiB,iopsMax=5,burstMs=20',
  ]) {
    t.is(typeof layerFromText(text), 'function')
  }
})

test('LAYERS: every option of every layer is known to its factory', (t) => {
  const example = { integer: '5', number: '50', size: '1MiB', text: 'x', verbs: 'read' }
  for (const { name, options, help } of LAYERS) {
    const pairs = Object.entries(options).map(([key, { type }]) => `${key}=${example[type]}`)
    t.is(typeof layerFromText(`${name}${pairs.length > 0 ? ':' : ''}${pairs.join(',')}`), 'function')
    t.false(help.includes('\n'))
  }
})

test(
  refuses,
  () => layerFromText('cahce:sizeBytes=1MiB'),
  /unknown layer `cahce`: did you mean `cache`\? expected one of trace, rateLimit/,
)
test(refuses, () => layerFromText(''), /unknown layer ``: expected one of trace/)
test(refuses, () => layerFromText('toString'), /unknown layer `toString`/)
test(
  refuses,
  () => layerFromText('retry:cuont=3'),
  /the layer retry has no option `cuont`: did you mean `count`\?/,
)
test(refuses, () => layerFromText('retry:toString=3'), /has no option `toString`/)
test(refuses, () => layerFromText('readonly:x=1'), /the layer readonly has no option `x`: it has no options/)
test(refuses, () => layerFromText('retry'), /`count` to be a number, got `undefined`/)
test(refuses, () => layerFromText('retry:count'), /`retry:count` to be followed by = and a value/)
test(refuses, () => layerFromText('retry:count=many'), /`retry:count` to be a whole number, got `"many"`/)
test(refuses, () => layerFromText('retry:count=0'), /`count` to be an integer from 1/)
test(
  refuses,
  () => layerFromText('cache:sizeBytes=1XB'),
  /`cache:sizeBytes` to be a size such as 512, 64KiB or 1GiB/,
)
test(refuses, () => layerFromText('timeout:ms=1e3'), /`timeout:ms` to be a number/)
test(refuses, () => layerFromText('fault:verbs=raed'), /`verbs` to be a list of/)

test('parseSizeBytes: reads sizes in powers of 1024 and nothing else', (t) => {
  const sizes = {
    '0': 0,
    '512': 512,
    '512b': 512,
    '4k': 4096,
    '64KiB': 65_536,
    '1 MiB': 2 ** 20,
    '2G': 2 ** 31,
    '1tib': 2 ** 40,
  }
  for (const [text, bytes] of Object.entries(sizes)) t.is(parseSizeBytes(text), bytes)
  for (const text of ['', 'k', '-1', '1.5k', '1kb', '1XiB', ' 1', '9007199254740992', '8192TiB']) {
    t.is(parseSizeBytes(text), undefined)
  }
})

test('compose: a disk under several layers keeps its data through faults', async (t) => {
  const disk = memoryDisk({ capacityBytes: 64 * KiB })
  const served = compose(disk, [
    trace({ log: () => {} }),
    rateLimit({ iopsMax: 1e6 }),
    cache({ sizeBytes: 16 * KiB }),
    retry({ count: 20 }),
    fault({ errorPercent: 30, seed: 3 }),
  ])
  for (let block = 0; block < 16; block++) {
    t.is(describe(await ask(served, blockRequest('write', block * 4096, pattern(4096, block)))), 'ok')
  }
  for (let block = 0; block < 16; block++) {
    t.true((await readFrom(served, block * 4096, 4096)).equals(pattern(4096, block)))
    t.true((await readFrom(disk, block * 4096, 4096)).equals(pattern(4096, block)))
  }
})

test('a request may bring its data in pieces through every layer that copies', async (t) => {
  const disk = memoryDisk({ capacityBytes: 64 * KiB })
  const served = compose(disk, [
    timeout({ ms: 1000 }),
    cache({ sizeBytes: 16 * KiB }),
    mirror({ to: memoryDisk({ capacityBytes: 64 * KiB }) }),
  ])
  const inPieces = (bytes: Buffer): SegmentList =>
    SegmentList.of(bytes.subarray(0, 100), bytes.subarray(100, 5000), bytes.subarray(5000))
  const write = blockRequest('write', 4096, pattern(8192))
  write.data = inPieces(pattern(8192))
  t.is(describe(await ask(served, write)), 'ok')
  for (let round = 0; round < 2; round++) {
    const bytes = Buffer.alloc(8192)
    const read = blockRequest('read', 4096, bytes)
    read.data = inPieces(bytes)
    t.is(describe(await ask(served, read)), 'ok')
    t.true(bytes.equals(pattern(8192)))
  }
})
