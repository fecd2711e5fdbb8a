import test from 'ava'
import fc from 'fast-check'
import { defer, firstValueFrom, timer } from 'rxjs'
import { map } from 'rxjs/operators'
import { HushringError } from '../../src/errors.ts'
import type { BlockRequest } from '../../src/handlers/block/block-request.ts'
import { type BlockDevice, blockDevice, memoryDisk } from '../../src/handlers/index.ts'
import { RangeLock } from '../../src/handlers/scsi/range-lock.ts'
import { scsiBlock } from '../../src/handlers/scsi/scsi-block.ts'
import { type Completion, isCompletion } from '../../src/ring/request.ts'
import type { ScsiRequest } from '../../src/ring/scsi-request.ts'
import { pattern, turn } from '../helpers/block-requests.ts'
import {
  type CommandData,
  cdb10,
  cdb16,
  compareAndWriteCdb,
  Initiator,
  type Outcome,
  outcomeOf,
  scsiRequest,
  unmapCdb,
  unmapList,
} from '../helpers/scsi-commands.ts'

const BLOCK = 512
const COUNT = 64

/** What waits in a slow store. */
interface Pending {
  readonly io: BlockRequest
  /** Does it now. */
  finish(outcome?: Error): void
}

/** A store that does its work when the test says so. */
class SlowStore {
  readonly contents: Buffer
  readonly pending: Pending[] = []
  readonly disk: BlockDevice

  constructor(capacityBytes = COUNT * BLOCK) {
    this.contents = pattern(capacityBytes)
    const later = (io: BlockRequest, work: (bytes: Buffer) => void): Promise<Completion | undefined> =>
      new Promise((resolve) => {
        const bytes = this.contents.subarray(io.offsetBytes, io.offsetBytes + io.lengthBytes)
        const pending: Pending = {
          io,
          finish: (outcome) => {
            this.pending.splice(this.pending.indexOf(pending), 1)
            if (outcome === undefined) work(bytes)
            resolve(outcome === undefined ? undefined : io.fail(outcome))
          },
        }
        this.pending.push(pending)
      })
    this.disk = blockDevice({
      capacityBytes,
      read: (io) => later(io, (bytes) => void io.data.copyFrom(bytes)) as never,
      write: (io) => later(io, (bytes) => void io.data.copyTo(bytes)) as never,
      flush: (io) => later(io, () => {}) as never,
      discard: (io) => later(io, (bytes) => void bytes.fill(0)) as never,
      writeZeroes: (io) => later(io, (bytes) => void bytes.fill(0)) as never,
    })
  }

  /** What waits, as `verb block`. */
  get waiting(): string[] {
    return this.pending.map(({ io }) => `${io.verb} ${io.offsetBytes / BLOCK}`)
  }

  block(index: number): Buffer {
    return Buffer.from(this.contents.subarray(index * BLOCK, (index + 1) * BLOCK))
  }

  async finish(text: string, outcome?: Error): Promise<void> {
    const found = this.pending.find(({ io }) => `${io.verb} ${io.offsetBytes / BLOCK}` === text)
    if (found === undefined) throw new Error(`${text} does not wait: ${this.waiting.join(', ')}`)
    found.finish(outcome)
    await turn()
  }

  /** Does everything that waits, and what comes of it. */
  async finishAll(): Promise<void> {
    for (await turn(); this.pending.length > 0; await turn()) this.pending[0]!.finish()
  }
}

/** COMPARE AND WRITE of one block from what the store holds now to `replacement`. */
function swap(store: SlowStore, index: number, replacement: Buffer): [Buffer, CommandData] {
  return [compareAndWriteCdb(index, 1), { dataOut: Buffer.concat([store.block(index), replacement]) }]
}

// ---- Nobody comes between the two halves -------------------------------------------------------------------------

const OTHERS: Readonly<Record<string, readonly [Buffer, CommandData]>> = {
  'READ (10)': [cdb10(0x28, 4, 4), { dataInBytes: 4 * BLOCK }],
  'WRITE (10)': [cdb10(0x2a, 4, 4), { dataOut: pattern(4 * BLOCK, 8) }],
  'WRITE (16) with FUA': [cdb16(0x8a, 5, 1, 0x08), { dataOut: pattern(BLOCK, 8) }],
  'WRITE AND VERIFY': [cdb10(0x2e, 4, 2, 0x02), { dataOut: pattern(2 * BLOCK, 8) }],
  VERIFY: [cdb10(0x2f, 4, 4), {}],
  'WRITE SAME': [cdb16(0x93, 4, 4), { dataOut: pattern(BLOCK, 8) }],
  UNMAP: [unmapCdb(24), { dataOut: unmapList([5, 1]) }],
  'COMPARE AND WRITE': [compareAndWriteCdb(5, 1), { dataOut: Buffer.alloc(2 * BLOCK) }],
}

for (const [name, [cdb, data]] of Object.entries(OTHERS)) {
  test(`scsi: ${name} waits for a COMPARE AND WRITE before it on its blocks`, async (t) => {
    const store = new SlowStore()
    const initiator = new Initiator(store.disk)
    const first = initiator.send(...swap(store, 5, pattern(BLOCK, 7)))
    await turn()
    const other = initiator.send(cdb, data)
    await turn()
    t.deepEqual(store.waiting, ['read 5'])
    await store.finish('read 5')
    t.deepEqual(store.waiting, ['write 5'])
    await store.finish('write 5')
    t.is((await first).status, 'GOOD')
    t.is(store.pending.length, 1, 'now it is the turn of the other')
    await store.finishAll()
    t.is((await other).status, name === 'COMPARE AND WRITE' ? 'E/1D/00' : 'GOOD')
  })

  test(`scsi: a COMPARE AND WRITE waits for a ${name} before it on its blocks`, async (t) => {
    const store = new SlowStore()
    const initiator = new Initiator(store.disk)
    const other = initiator.send(cdb, data)
    await turn()
    const before = store.waiting
    t.is(before.length, 1)
    const last = initiator.send(...swap(store, 5, pattern(BLOCK, 7)))
    await turn()
    t.deepEqual(store.waiting, before)
    await store.finishAll()
    t.is((await other).completion.result === 'ok', name !== 'COMPARE AND WRITE')
    const changes = !['READ (10)', 'VERIFY', 'COMPARE AND WRITE'].includes(name)
    t.is((await last).status, changes ? 'E/1D/00' : 'GOOD', 'it sees what the other did')
  })
}

test('scsi: a READ that waited sees what the COMPARE AND WRITE wrote', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  const replacement = pattern(BLOCK, 7)
  void initiator.send(...swap(store, 5, replacement))
  const read = initiator.send(cdb10(0x28, 5, 1), { dataInBytes: BLOCK })
  await store.finishAll()
  t.deepEqual((await read).dataIn, replacement)
})

test('scsi: other blocks, and blocks next to it, wait for nobody', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  void initiator.send(...swap(store, 5, pattern(BLOCK, 7)))
  void initiator.send(cdb10(0x28, 4, 1), { dataInBytes: BLOCK })
  void initiator.send(cdb10(0x2a, 6, 1), { dataOut: pattern(BLOCK) })
  void initiator.send(...swap(store, 7, pattern(BLOCK, 7)))
  void initiator.send(cdb10(0x35, 0, 0))
  await turn()
  t.deepEqual(store.waiting, ['read 5', 'read 4', 'write 6', 'read 7', 'flush 0'])
  await store.finishAll()
})

test('scsi: commands without COMPARE AND WRITE do not wait for each other', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  for (const [cdb, data] of [OTHERS['WRITE (10)']!, OTHERS['READ (10)']!, OTHERS['WRITE (10)']!]) {
    void initiator.send(cdb, data)
  }
  await turn()
  t.deepEqual(store.waiting, ['write 4', 'read 4', 'write 4'])
  await store.finishAll()
})

test('scsi: a COMPARE AND WRITE is not starved by the reads after it', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  const read = (): Promise<Outcome> => initiator.send(cdb10(0x28, 5, 1), { dataInBytes: BLOCK })
  void read()
  const swapped = initiator.send(...swap(store, 5, pattern(BLOCK, 7)))
  void read()
  void read()
  await turn()
  t.deepEqual(store.waiting, ['read 5'], 'later reads do not overtake it')
  await store.finish('read 5')
  t.deepEqual(store.waiting, ['read 5'], 'now it compares')
  await store.finish('read 5')
  await store.finish('write 5')
  t.is((await swapped).status, 'GOOD')
  t.deepEqual(store.waiting, ['read 5', 'read 5'], 'and the reads go on together')
  await store.finishAll()
})

test('scsi: of many COMPARE AND WRITE for one lock exactly one wins', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  const free = store.block(9)
  const outcomes = Array.from({ length: 1000 }, (_, host) =>
    initiator.send(compareAndWriteCdb(9, 1), { dataOut: Buffer.concat([free, pattern(BLOCK, host + 2)]) }),
  )
  await store.finishAll()
  const statuses = (await Promise.all(outcomes)).map(({ status }) => status)
  t.is(statuses.filter((status) => status === 'GOOD').length, 1)
  t.is(statuses.filter((status) => status === 'E/1D/00').length, 999)
})

test('scsi: a COMPARE AND WRITE to a synchronous store is answered at once', (t) => {
  const { handler } = new Initiator(memoryDisk({ capacityBytes: COUNT * BLOCK }))
  const request = scsiRequest(compareAndWriteCdb(0, 1), { dataOut: Buffer.alloc(2 * BLOCK) })
  t.true(isCompletion(handler(request)))
})

// ---- Whatever happens, the blocks are free afterwards -------------------------------------------------------------

const frees = test.macro({
  async exec(
    t,
    _title: string,
    spoil: (store: SlowStore, request: ScsiRequest) => Promise<void>,
    status: string,
  ) {
    const store = new SlowStore()
    const initiator = new Initiator(store.disk)
    const request = scsiRequest(...swap(store, 5, pattern(BLOCK, 7)))
    const first = initiator.answer(request)
    await turn()
    const second = initiator.send(cdb10(0x28, 5, 1), { dataInBytes: BLOCK })
    await turn()
    await spoil(store, request)
    await store.finishAll()
    t.is(outcomeOf(request, await first).status, status)
    t.is((await second).status, 'GOOD')
  },
  title: (_, title) => `scsi: a COMPARE AND WRITE lets go of its blocks when ${title}`,
})
const reason = new HushringError('ERR_REQUEST_ABORTED')
test(frees, 'it is done', async () => {}, 'GOOD')
test(frees, 'its read fails', (store) => store.finish('read 5', new Error('EIO')), '3/11/00')
test(
  frees,
  'its write fails',
  async (store) => {
    await store.finish('read 5')
    await store.finish('write 5', new Error('EIO'))
  },
  '3/0C/00',
)
test(
  frees,
  'the blocks are others',
  async (store) => {
    store.contents.fill(0)
  },
  'E/1D/00',
)
test(
  frees,
  'it is aborted between its halves, and writes nothing',
  async (store, request) => {
    request.abort(reason)
    await store.finish('read 5')
    if (store.waiting.includes('write 5')) throw new Error('it wrote')
  },
  'B/00/00',
)

test('scsi: a command that is aborted while it waits is answered at once, never done, and lets the next go', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  const read = initiator.send(cdb10(0x28, 5, 1), { dataInBytes: BLOCK })
  const request = scsiRequest(...swap(store, 5, pattern(BLOCK, 7)))
  const waiting = initiator.answer(request)
  const behind = initiator.send(cdb10(0x28, 5, 1), { dataInBytes: BLOCK })
  await turn()
  t.deepEqual(store.waiting, ['read 5'])
  request.abort(reason)
  await turn()
  const { status, completion } = outcomeOf(request, await waiting)
  t.is(status, 'B/00/00')
  t.is(completion.result === 'failed' && completion.error.cause, reason)
  t.deepEqual(store.waiting, ['read 5', 'read 5'], 'the one behind it goes on')
  await store.finishAll()
  t.is((await read).status, 'GOOD')
  t.is((await behind).status, 'GOOD')
})

test('scsi: a command that was aborted before it came waits for nobody and is not done', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  void initiator.send(...swap(store, 5, pattern(BLOCK, 7)))
  await turn()
  const request = scsiRequest(cdb10(0x2a, 5, 1), { dataOut: pattern(BLOCK) })
  request.abort(reason)
  t.is(outcomeOf(request, await initiator.answer(request)).status, 'B/00/00')
  t.deepEqual(store.waiting, ['read 5'])
  await store.finishAll()
})

test('scsi: a write that was given up keeps its blocks until the store is through with it', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  const request = scsiRequest(cdb10(0x2a, 5, 1), { dataOut: pattern(BLOCK, 8) })
  void initiator.answer(request)
  await turn()
  request.abort(reason)
  const swapped = initiator.send(...swap(store, 5, pattern(BLOCK, 7)))
  await turn()
  t.deepEqual(store.waiting, ['write 5'], 'it would still land between the two halves')
  await store.finishAll()
  t.is((await swapped).status, 'E/1D/00')
})

test('scsi: the signal of a command reaches the store', async (t) => {
  const store = new SlowStore()
  const request = scsiRequest(cdb10(0x28, 5, 1), { dataInBytes: BLOCK })
  void new Initiator(store.disk).answer(request)
  const { signal } = store.pending[0]!.io
  t.false(signal.aborted)
  request.abort(reason)
  t.true(signal.aborted)
  await store.finishAll()
})

const stops = test.macro({
  async exec(t, _title: string, cdb: Buffer, data: CommandData, firstStep: string) {
    const store = new SlowStore(2 ** 20)
    const request = scsiRequest(cdb, data)
    const answer = new Initiator(store.disk).answer(request)
    request.abort(reason)
    await store.finish(firstStep)
    t.deepEqual(store.waiting, [])
    t.is(outcomeOf(request, await answer).status, 'B/00/00')
  },
  title: (_, title) => `scsi: ${title} takes no further step once it is aborted`,
})
test(stops, 'UNMAP', unmapCdb(40), { dataOut: unmapList([1, 1], [3, 1]) }, 'writeZeroes 1')
test(stops, 'WRITE SAME', cdb16(0x93, 1, 2000), { dataOut: pattern(BLOCK) }, 'write 1')
test(stops, 'VERIFY', cdb16(0x8f, 1, 2000), {}, 'read 1')

test('scsi: an observable that nobody would subscribe to twice is subscribed to once, at once', async (t) => {
  let subscriptions = 0
  const disk = blockDevice({
    capacityBytes: COUNT * BLOCK,
    read: () =>
      defer(() => {
        subscriptions++
        return timer(1).pipe(map(() => undefined))
      }),
    write() {},
  })
  const initiator = new Initiator(disk)
  const read = initiator.send(cdb10(0x28, 0, 1), { dataInBytes: BLOCK })
  t.is(subscriptions, 1)
  t.is((await read).status, 'GOOD')
  t.is(subscriptions, 1)
  await firstValueFrom(timer(2))
})

// ---- The lock alone ----------------------------------------------------------------------------------------------

test('range lock: every history of shared and exclusive work ends, and nothing exclusive overlaps with anything', async (t) => {
  const step = fc.record({
    offset: fc.integer({ min: 0, max: 7 }),
    length: fc.integer({ min: 1, max: 4 }),
    isExclusive: fc.boolean(),
    ending: fc.constantFrom('later', 'later', 'at once', 'rejects', 'throws', 'aborts' as const),
    pause: fc.boolean(),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 25 }), async (steps) => {
      const lock = new RangeLock()
      const active = new Set<{ offset: number; end: number; isExclusive: boolean }>()
      const ends: (() => void)[] = []
      const answers: Promise<unknown>[] = []
      for (const { offset, length, isExclusive, ending, pause } of steps) {
        const request = scsiRequest('00 00 0000 00 00')
        const work = (): Completion | Promise<Completion> => {
          const mine = { offset, end: offset + length, isExclusive }
          for (const other of active) {
            const overlaps = other.offset < mine.end && mine.offset < other.end
            if (overlaps && (other.isExclusive || isExclusive)) throw new Error('two at once')
          }
          if (ending === 'throws') throw new TypeError('meant')
          if (ending === 'at once') return request.ok()
          active.add(mine)
          return new Promise((resolve, reject) => {
            ends.push(() => {
              active.delete(mine)
              if (ending === 'rejects') reject(new TypeError('meant'))
              else resolve(request.ok())
            })
          })
        }
        const start = async (): Promise<unknown> =>
          await lock[isExclusive ? 'exclusive' : 'shared'](request, offset, length, work)
        answers.push(
          start().catch((error) => {
            if (!(error instanceof TypeError)) throw error
          }),
        )
        if (ending === 'aborts') request.abort(reason)
        if (pause) {
          ends.shift()?.()
          await turn()
        }
      }
      let ended = false
      const all = Promise.all(answers).then(() => {
        ended = true
      })
      for (let rounds = 0; !ended && rounds < 100; rounds++) {
        for (const end of ends.splice(0)) end()
        await turn()
      }
      if (!ended) throw new Error(`${lock.claimCount} wait for ever`)
      await all
      return lock.claimCount === 0
    }),
    { numRuns: 500 },
  )
  t.pass()
})

test('scsi: COMPARE AND WRITE is one step for all logical units of a device', async (t) => {
  const store = new SlowStore()
  const device = scsiBlock(store.disk)
  t.deepEqual(await race(store, [new Initiator(device), new Initiator(device)]), ['GOOD', 'E/1D/00'])
})

test('scsi: the race for one lock has two winners where nothing orders it', async (t) => {
  // The control of the tests above: two devices on one disk have two locks.
  const store = new SlowStore()
  t.deepEqual(await race(store, [new Initiator(store.disk), new Initiator(store.disk)]), ['GOOD', 'GOOD'])
})

async function race(store: SlowStore, initiators: readonly Initiator[]): Promise<string[]> {
  const free = store.block(9)
  const outcomes = initiators.map((initiator, host) =>
    initiator.send(compareAndWriteCdb(9, 1), { dataOut: Buffer.concat([free, pattern(BLOCK, host + 2)]) }),
  )
  await store.finishAll()
  return (await Promise.all(outcomes)).map(({ status }) => status)
}

// ---- What ends before a command is answered ----------------------------------------------------------------------

const CACHING_PAGE = 0x08
const WCE = 0x04

/** MODE SELECT (6) of the caching page. */
function selectCache(enabled: boolean): [Buffer, CommandData] {
  const list = Buffer.alloc(4 + 20)
  list.set([CACHING_PAGE, 18, enabled ? WCE : 0], 4)
  return [Buffer.from([0x15, 0x10, 0, 0, list.length, 0]), { dataOut: list }]
}

test('scsi: a write cache is off when writes from before are permanent, also those that were in flight', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  // Both were let through to the cache; flushed before they end, they would be answered and lost with the power.
  const write = initiator.send(cdb10(0x2a, 5, 1), { dataOut: pattern(BLOCK, 8) })
  const unmapped = initiator.send(unmapCdb(24), { dataOut: unmapList([9, 1]) })
  await turn()
  const select = initiator.send(...selectCache(false))
  const later = initiator.send(cdb10(0x2a, 6, 1), { dataOut: pattern(BLOCK, 9) })
  const flush = initiator.send(cdb10(0x35, 0, 0))
  await turn()
  t.deepEqual(store.waiting, ['write 5', 'writeZeroes 9', 'flush 0'], 'only what was asked for is flushed')
  await store.finish('flush 0')
  t.is((await flush).status, 'GOOD')
  await store.finish('write 5')
  t.deepEqual(store.waiting, ['writeZeroes 9'])
  await store.finish('writeZeroes 9')
  t.deepEqual(store.waiting.slice(0, 1), ['flush 0'])
  await store.finishAll()
  for (const { status } of await Promise.all([write, unmapped, select, later])) t.is(status, 'GOOD')
})

test('scsi: a write cache is switched on at once', async (t) => {
  const store = new SlowStore()
  const initiator = new Initiator(store.disk)
  const off = initiator.send(...selectCache(false))
  await store.finishAll()
  t.is((await off).status, 'GOOD')
  void initiator.send(cdb10(0x28, 5, 1), { dataInBytes: BLOCK })
  t.is((await initiator.send(...selectCache(true))).status, 'GOOD')
  await store.finishAll()
})

test('scsi: a layer sees what the disk read for a VERIFY, whoever else verifies meanwhile', async (t) => {
  const store = new SlowStore()
  const mixed: string[] = []
  const checking = store.disk.wrap((next) => (io) => {
    const { offsetBytes, lengthBytes, data } = io
    return Promise.resolve(next(io) as PromiseLike<Completion>).then((completion) => {
      const expected = store.contents.subarray(offsetBytes, offsetBytes + lengthBytes)
      if (!data.toBuffer().equals(expected)) mixed.push(`${io.verb} ${offsetBytes / BLOCK}`)
      return completion
    })
  })
  const initiator = new Initiator(checking)
  const verified = [0, 1, 2, 3].map((lba) => initiator.send(cdb10(0x2f, lba, 1)))
  await turn()
  // All are read before anybody looks.
  for (const { finish } of [...store.pending]) finish()
  for (const { status } of await Promise.all(verified)) t.is(status, 'GOOD')
  t.deepEqual(mixed, [])
})
