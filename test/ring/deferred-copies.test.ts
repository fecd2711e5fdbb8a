import { ftruncateSync } from 'node:fs'
import test from 'ava'
import fc from 'fast-check'
import { CopyRow, type NativeCopies, native } from '../../src/native.ts'
import { DeferredCopies } from '../../src/ring/deferred-copies.ts'
import { SharedRegion } from '../../src/ring/memory.ts'
import { SegmentList } from '../../src/ring/segments.ts'
import { StoreMemory } from '../../src/ring/store-memory.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'

// ---- against copies that are done at once ------------------------------------------------------------------------------

const WINDOW_BYTES = 48
const STORE_BYTES = 40
const CALLS = ['fromStore', 'toStore', 'fill', 'read', 'write', 'view', 'part', 'bytes', 'release'] as const

/** One thing that a store or a layer does. Everything is small, so that nearly all of it overlaps. */
interface Step {
  readonly call: (typeof CALLS)[number]
  readonly windowOffset: number
  readonly cut: number
  readonly lengthBytes: number
  readonly storeOffset: number
  readonly skip: number
  readonly salt: number
}

const programs = fc.array(
  fc.record<Step>({
    call: fc.constantFrom(...CALLS, 'fromStore', 'toStore', 'fromStore', 'toStore'),
    windowOffset: fc.nat(WINDOW_BYTES - 1),
    cut: fc.nat(WINDOW_BYTES),
    lengthBytes: fc.integer({ min: 1, max: WINDOW_BYTES }),
    storeOffset: fc.nat(STORE_BYTES),
    skip: fc.nat(8),
    salt: fc.nat(255),
  }),
  { minLength: 1, maxLength: 40 },
)

/** What every step shows, and all memory at the end. With `copies` left out, each copy is done at once. */
function played(program: readonly Step[], copies?: DeferredCopies): Buffer[] {
  const windows = [Buffer.alloc(WINDOW_BYTES, 1), Buffer.alloc(WINDOW_BYTES, 2)] as const
  const store = new StoreMemory(STORE_BYTES)
  const list = new SegmentList(copies)
  const seen: Buffer[] = []
  for (const { call, windowOffset, cut, lengthBytes, storeOffset, skip, salt } of program) {
    list.clear()
    const first = Math.min(cut, lengthBytes, WINDOW_BYTES - windowOffset)
    list.append(windows[0], windowOffset, first)
    list.append(windows[salt % 2]!, 0, lengthBytes - first)
    switch (call) {
      case 'fromStore':
        list.copyFromStore(store, storeOffset, skip)
        break
      case 'toStore':
        list.copyToStore(store, storeOffset, skip)
        break
      case 'fill':
        list.fill(salt, Math.min(skip, lengthBytes))
        break
      case 'read':
        seen.push(list.toBuffer())
        break
      case 'write':
        list.copyFrom(Buffer.alloc(20, salt), 0, skip)
        break
      case 'view': {
        const views = list.views()
        list.copyFromStore(store, storeOffset, skip)
        seen.push(Buffer.concat(views))
        break
      }
      case 'part': {
        const part = list.first(Math.ceil(lengthBytes / 2))
        part.copyFromStore(store, storeOffset, skip)
        const views = part.views()
        list.copyFromStore(store, storeOffset, 0)
        seen.push(Buffer.concat(views))
        break
      }
      case 'bytes':
        seen.push(Buffer.from(store.bytes))
        store.bytes.fill(salt, storeOffset)
        break
      case 'release':
        store.release()
        break
    }
  }
  copies?.run()
  return [...seen, ...windows, store.bytes]
}

test('copies that wait are seen by nobody: random programs show what they do when each copy is done at once', (t) => {
  const copies = new DeferredCopies(native.createCopies())
  fc.assert(
    fc.property(programs, (program) => {
      t.deepEqual(played(program, copies), played(program))
    }),
    { numRuns: 300 },
  )
})

const isNoticed = test.macro({
  exec(t, spoil: (copies: NativeCopies) => Partial<NativeCopies>) {
    const copies = native.createCopies()
    const flawed = new DeferredCopies({ ...copies, ...spoil(copies) })
    const differs = fc.check(
      fc.property(programs, (program) => {
        const [actual, expected] = [played(program, flawed), played(program)]
        return (
          actual.length === expected.length && actual.every((bytes, index) => bytes.equals(expected[index]!))
        )
      }),
      { numRuns: 300 },
    )
    t.true(differs.failed)
  },
  title: (what) => `the comparison notices ${what} (control)`,
})
test('copies in another order', isNoticed, ({ rows, run }) => ({
  run(rowCount, windowCount, windows) {
    const { words } = CopyRow
    const all = rows.slice(0, rowCount * words)
    for (let row = 0; row < rowCount; row++) {
      rows.set(all.subarray(row * words, (row + 1) * words), (rowCount - 1 - row) * words)
    }
    run(rowCount, windowCount, windows)
  },
}))
test('the last copy left out', isNoticed, ({ run }) => ({
  run: (rowCount, windowCount, windows) => run(rowCount - 1, windowCount, windows),
}))

// ---- limits ------------------------------------------------------------------------------------------------------------

test('more copies and more windows than native code takes in one call are all done', (t) => {
  const copies = new DeferredCopies(native.createCopies())
  const store = new StoreMemory(1000)
  const windows = Array.from({ length: 100 }, (_, index) => Buffer.alloc(10, index))
  for (const [index, window] of windows.entries()) {
    const list = new SegmentList(copies)
    for (let at = 0; at < 10; at++) list.append(window, at, 1)
    list.copyToStore(store, index * 10, 0)
  }
  t.true(store.bytes.equals(Buffer.concat(windows)))
})

test('a copy stops at the end of the store and at the end of the list', (t) => {
  const store = new StoreMemory(8)
  const list = new SegmentList(new DeferredCopies(native.createCopies()))
  const window = Buffer.from('abcdef')
  list.append(window, 0, 6)
  list.copyToStore(store, 5, 0)
  list.copyToStore(store, 0, 4)
  t.is(store.bytes.toString(), 'ef\0\0\0abc')
})

// ---- memory that goes --------------------------------------------------------------------------------------------------

function region(sizeBytes: number): { fd: number; region: SharedRegion } {
  const fd = native.memfdCreate('hushring-copies', sizeBytes, false)
  const shape = { fd, guestAddress: 0n, userAddress: 0n, sizeBytes: BigInt(sizeBytes), mmapOffsetBytes: 0n }
  const shared = new SharedRegion(shape)
  shared.enterTable()
  return { fd, region: shared }
}

test('a window that was unmapped before its copy is left alone, and the other copies are done', (t) => {
  const copies = new DeferredCopies(native.createCopies())
  const [store, list, { fd, region: gone }] = [new StoreMemory(6), new SegmentList(copies), region(4096)]
  const kept = Buffer.from('abc')
  list.append(gone.windows[0]!, 0, 3)
  list.append(kept, 0, 3)
  list.copyToStore(store, 0, 0)
  list.copyFromStore(store, 0, 0)
  gone.leaveTable()
  t.is(gone.windows[0]!.length, 0)
  t.is(store.bytes.toString(), '\0\0\0abc')
  native.closeFd(fd)
})

test('memory whose file is made shorter before the copy reads as zeros, and its region knows', (t) => {
  const copies = new DeferredCopies(native.createCopies())
  const [store, list, { fd, region: short }] = [
    new StoreMemory(16384),
    new SegmentList(copies),
    region(16384),
  ]
  short.windows[0]!.fill(1)
  list.append(short.windows[0]!, 0, 16384)
  list.copyToStore(store, 0, 0)
  ftruncateSync(fd, 4096)
  t.true(store.bytes.equals(Buffer.concat([Buffer.alloc(4096, 1), Buffer.alloc(12288)])))
  t.true(short.native.truncated)
  short.leaveTable()
  native.closeFd(fd)
})

test('memory of a store that nobody released is given back with it', async (t) => {
  const copies = native.createCopies()
  const deferred = new DeferredCopies(copies)
  const attachOne = (): number => new StoreMemory(1).indexIn(deferred)
  const index = attachOne()
  t.not(attachOne(), index, 'control: the first one is still there')
  await collectGarbage()
  t.is(attachOne(), index)
})

test('native code refuses to attach what is no buffer, and leaves out rows that lie outside', (t) => {
  const copies = native.createCopies()
  t.throws(() => copies.attach('text' as never), { code: 'ERR_OPTION_TYPE' })
  const [window, memory] = [Buffer.from('window'), Buffer.from('memory')]
  const index = copies.attach(memory)
  const outside = [
    [1, 0, index, 0, 1, 1],
    [0, 0, index + 1, 0, 1, 1],
    [0, 6, index, 0, 1, 1],
    [0, 0, index, 6, 1, 0],
    [0, 2 ** 32 - 1, index, 0, 2 ** 32 - 1, 1],
  ]
  copies.rows.set(outside.flat())
  copies.run(outside.length, 1, [window])
  copies.run(outside.length, 17, [window])
  copies.run(outside.length, 1, ['text' as never])
  t.deepEqual([window.toString(), memory.toString()], ['window', 'memory'])
  copies.rows.set([0, 0, index, 0, 6, 1])
  copies.detach(index)
  copies.detach(99)
  copies.run(1, 1, [window])
  t.is(memory.toString(), 'memory', 'it was detached')
})
