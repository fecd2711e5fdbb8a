import test, { type ExecutionContext } from 'ava'
import { CompleteBits, CompletionRow, native, RequestRow, RingBreak, SegmentRow } from '../../src/native.ts'
import {
  availableIndexVectors,
  type ChainVector,
  chainMemory,
  chainVectors,
  indexDistance,
  indexLapped,
  lapVectors,
  needEvent,
  needEventVectors,
  ReferenceSplitQueue,
  ringVectors,
  silenceVectors,
} from '../../src/testing/index.ts'
import { TwoMemories } from '../models/two-memories.ts'

// ---- Indices -----------------------------------------------------------------------------------------------------

type NeedEvent = (event: number, fresh: number, old: number) => boolean

const wrongNeedEventVectors = (predicate: NeedEvent) =>
  needEventVectors.filter(({ event, fresh, old, notify }) => predicate(event, fresh, old) !== notify)

test('the reference agrees with every vector of need_event', (t) => {
  t.deepEqual(wrongNeedEventVectors(needEvent), [])
})

const u16 = (value: number): number => value & 0xffff
const i16 = (value: number): number => (value << 16) >> 16

const isFoundWrong = test.macro({
  exec(t, predicate: NeedEvent) {
    t.true(wrongNeedEventVectors(predicate).length > 0)
  },
  title: (what) => `the vectors of need_event find out ${what}`,
})
test('<= in the place of <', isFoundWrong, (event, fresh, old) => u16(fresh - event - 1) <= u16(fresh - old))
test('the missing 1', isFoundWrong, (event, fresh, old) => u16(fresh - event) < u16(fresh - old))
test('signed numbers', isFoundWrong, (event, fresh, old) => i16(fresh - event - 1) < i16(fresh - old))
test('numbers that do not wrap', isFoundWrong, (event, fresh, old) => fresh - event - 1 < fresh - old)
test('order in the place of distance', isFoundWrong, (event, fresh, old) => event >= old && event < fresh)
test('equality with the last entry', isFoundWrong, (event, fresh) => event === u16(fresh - 1))
test('a signal for every progress', isFoundWrong, (_event, fresh, old) => fresh !== old)

test('the reference agrees with every vector of laps, and <= does not', (t) => {
  for (const { decided, fresh, before, lapped } of lapVectors) {
    t.is(indexLapped(decided, fresh, before), lapped, JSON.stringify({ decided, fresh, before }))
  }
  t.false(
    lapVectors.every(
      ({ decided, fresh, before, lapped }) => u16(fresh - decided) <= u16(fresh - before) === lapped,
    ),
  )
})

/** Whether the completion after the silence of a vector signals. */
function signalsAfterSilence(firstIndex: number, count: number, decidesAlways: boolean): boolean {
  let decided = firstIndex
  for (let done = 1; done <= count; done++) {
    const used = u16(firstIndex + done)
    const signals = needEvent(u16(firstIndex - 1), used, decided)
    if (decidesAlways || signals) decided = used
  }
  const wanted = u16(firstIndex + count)
  return needEvent(wanted, u16(wanted + 1), decided)
}

test('a device that decides always signals after every silence, one that remembers signals only does not', (t) => {
  t.true(silenceVectors.every(({ firstIndex, count }) => signalsAfterSilence(firstIndex, count, true)))
  const lost = silenceVectors.filter(
    ({ firstIndex, count }) => !signalsAfterSilence(firstIndex, count, false),
  )
  t.deepEqual([...new Set(lost.map(({ count }) => count))], [65_535])
})

test('the native queue and the reference see what the vectors of the available index say', (t) => {
  const GUEST = 1n << 32n
  const fileBytes = 1 << 20
  const memories = new TwoMemories(1, fileBytes)
  const table = memories.table([
    { file: 0, fromByte: 0, toByte: fileBytes, guestAddress: GUEST, userAddress: GUEST },
  ])
  const options = {
    sizeMax: 32_768,
    headerBytes: 0,
    statusByte: false,
    batchCountMax: 1,
    chainCountMax: 8,
    strictChains: false,
  }
  const ours = native.createSplitQueue(options)
  const theirs = new ReferenceSplitQueue(options)
  const availableAt = 16 * 32_768
  for (const { size, taken, published, visible } of availableIndexVectors) {
    const ring = {
      size,
      descriptorAddress: GUEST,
      availableAddress: GUEST + BigInt(availableAt),
      usedAddress: GUEST + BigInt(availableAt + 0x1_1000),
      guestAddresses: true,
      availableBase: taken,
      eventIdx: true,
      indirect: false,
    }
    memories.writeU16(0, availableAt + 2, published)
    t.is(ours.start({ ...ring, regions: table.native, callFd: -1 }), 0)
    t.is(theirs.start(ring, table.reference), undefined)
    const title = JSON.stringify({ size, taken, published })
    if (visible === undefined) {
      t.is(ours.take(1), -RingBreak.ERR_RING_AVAIL_INDEX, title)
      t.is(theirs.take(1), 'ERR_RING_AVAIL_INDEX', title)
    } else {
      t.is(ours.inspect().visible, visible, title)
      t.is(theirs.visibleCount, visible, title)
    }
  }
  ours.close()
})

// ---- Chains ------------------------------------------------------------------------------------------------------

const REGION_BYTES_MAX = 0xf000
/** The memory of the vectors, for the native queue and for the reference. */
const memories = new TwoMemories(chainMemory.regions.length, REGION_BYTES_MAX)
const table = memories.table(
  chainMemory.regions.map(({ guestAddress, sizeBytes }, file) => ({
    file,
    fromByte: 0,
    toByte: sizeBytes,
    guestAddress: BigInt(guestAddress),
    userAddress: BigInt(guestAddress),
  })),
)
const callFd = native.eventfdCreate()

/** What a queue made of a chain. */
interface Seen {
  /** By the order of `heads`: what was handed out, as bytes without header and status. */
  readonly served: Map<number, { readableBytes: number; writableBytes: number }>
  readonly returned: { head: number; lengthBytes: number }[]
  readonly passedOverCount: number
  readonly lastFault: number
  readonly broken: number
}

const [{ guestAddress: lowAddress } = { guestAddress: '' }] = chainMemory.regions
const offsetOf = (address: string): number => Number(BigInt(address) - BigInt(lowAddress))

const STATUS_UNTOUCHED = 0xee

function writeVector({ descriptors, heads, availableIndex, outcomes }: ChainVector): void {
  memories.clear()
  for (const { at, address, lengthBytes, flags, next } of descriptors) {
    const bytes = Buffer.alloc(16)
    bytes.writeBigUInt64LE(BigInt(address))
    bytes.writeUInt32LE(lengthBytes, 8)
    bytes.writeUInt16LE(flags, 12)
    bytes.writeUInt16LE(next, 14)
    memories.write(0, offsetOf(at), bytes)
  }
  const availableAt = offsetOf(chainMemory.availableAddress)
  for (const [index, head] of heads.entries()) memories.writeU16(0, availableAt + 4 + 2 * index, head)
  memories.writeU16(0, availableAt + 2, availableIndex)
  for (const outcome of outcomes) {
    if (outcome.result === 'malformed' && outcome.statusAt !== undefined) {
      memories.write(0, offsetOf(outcome.statusAt), Uint8Array.of(STATUS_UNTOUCHED))
    }
  }
}

const options = {
  sizeMax: chainMemory.size,
  headerBytes: chainMemory.headerBytes,
  statusByte: chainMemory.statusByte,
  batchCountMax: 8,
  chainCountMax: chainMemory.chainCountMax,
  strictChains: false,
}

function ringOf(vector: ChainVector) {
  return {
    size: chainMemory.size,
    descriptorAddress: BigInt(chainMemory.descriptorAddress),
    availableAddress: BigInt(chainMemory.availableAddress),
    usedAddress: BigInt(chainMemory.usedAddress),
    guestAddresses: true,
    availableBase: 0,
    eventIdx: true,
    indirect: vector.indirect,
  }
}

function seenByReference(vector: ChainVector, Model = ReferenceSplitQueue): Seen {
  const queue = new Model(options)
  queue.start(ringOf(vector), table.reference)
  const requests = queue.take(8)
  const sum = (pieces: readonly { lengthBytes: number }[]) =>
    pieces.reduce((bytes, piece) => bytes + piece.lengthBytes, 0)
  const served = new Map(
    (typeof requests === 'string' ? [] : requests).map(({ head, readable, writable }) => [
      head,
      { readableBytes: sum(readable), writableBytes: sum(writable) },
    ]),
  )
  queue.complete([])
  const used = memories.reference(0).subarray(offsetOf(chainMemory.usedAddress))
  return {
    served,
    returned: returnedIn(used),
    passedOverCount: queue.counts.skippedHeads,
    lastFault: queue.lastFault === undefined ? 0 : RingBreak[queue.lastFault],
    broken: queue.broken === undefined ? 0 : RingBreak[queue.broken],
  }
}

function seenByNative(vector: ChainVector): Seen {
  const queue = native.createSplitQueue(options)
  queue.start({ ...ringOf(vector), regions: table.native, callFd })
  const { requests, segments } = queue
  const served: Seen['served'] = new Map()
  for (let row = Math.max(0, queue.take(8)) - 1; row >= 0; row--) {
    const at = row * RequestRow.words
    const first = requests[at + RequestRow.firstSegment]!
    const readableCount = requests[at + RequestRow.readableCount]!
    const lengths = Array.from(
      { length: readableCount + requests[at + RequestRow.writableCount]! },
      (_, index) => segments[(first + index) * SegmentRow.words + SegmentRow.lengthBytes]!,
    )
    const sum = (part: number[]) => part.reduce((bytes, length) => bytes + length, 0)
    served.set(requests[at + RequestRow.head]!, {
      readableBytes: sum(lengths.slice(0, readableCount)),
      writableBytes: sum(lengths.slice(readableCount)),
    })
  }
  queue.complete(0, 0, false)
  const { broken } = queue.inspect()
  const [, , , , , , , skippedHeads, , , lastFault] = queue.counters
  queue.close()
  const used = memories.native(0).subarray(offsetOf(chainMemory.usedAddress))
  return {
    served,
    returned: returnedIn(used),
    passedOverCount: Number(skippedHeads),
    lastFault: Number(lastFault),
    broken,
  }
}

/** The elements of a used ring that began empty. */
function returnedIn(used: Buffer): Seen['returned'] {
  return Array.from({ length: used.readUInt16LE(2) }, (_, index) => ({
    head: used.readUInt32LE(4 + 8 * index),
    lengthBytes: used.readUInt32LE(8 + 8 * index),
  }))
}

/** How a queue was seen to differ from what the vector demands. */
function complaints({ heads, outcomes }: ChainVector, seen: Seen, memory: Buffer): string[] {
  const found: string[] = []
  const expect = (what: string, is: unknown, wanted: unknown) => {
    if (JSON.stringify(is) !== JSON.stringify(wanted)) found.push(`${what}: ${JSON.stringify(is)}`)
  }
  const returned = heads.filter((_, index) => outcomes[index]!.result === 'malformed')
  expect(
    'returned',
    seen.returned,
    returned.map((head) => ({ head, lengthBytes: 0 })),
  )
  const servedCount = outcomes.filter(({ result }) => result === 'served').length
  expect('served', seen.served.size, servedCount)
  const passedOver = outcomes.filter(({ result }) => result === 'passed over')
  expect('passed over', seen.passedOverCount, passedOver.length)
  for (const [index, outcome] of outcomes.entries()) {
    const head = heads[index]!
    if (outcome.result === 'served') {
      const { readableBytes, writableBytes } = outcome
      expect(`head ${head}`, seen.served.get(head), { readableBytes, writableBytes })
    } else if (outcome.result === 'broken') {
      expect('broken', seen.broken, RingBreak[outcome.code])
    } else {
      expect('fault', seen.lastFault, RingBreak[outcome.code])
    }
    if (outcome.result === 'malformed' && outcome.statusAt !== undefined) {
      expect('status', memory[offsetOf(outcome.statusAt)], 1)
    }
  }
  return found
}

const hasItsOutcome = test.macro({
  exec(t, vector: ChainVector) {
    writeVector(vector)
    t.deepEqual(complaints(vector, seenByNative(vector), memories.native(0)), [], 'native')
    t.deepEqual(complaints(vector, seenByReference(vector), memories.reference(0)), [], 'reference')
  },
  title: (_, vector: ChainVector) => `chain vectors: ${vector.title}`,
})
for (const vector of chainVectors) test(hasItsOutcome, vector)

/** Which vectors a wrong queue fails. */
function failedBy(Model: typeof ReferenceSplitQueue): string[] {
  return chainVectors.flatMap((vector) => {
    writeVector(vector)
    const seen = seenByReference(vector, Model)
    return complaints(vector, seen, memories.reference(0)).length > 0 ? [vector.title] : []
  })
}

test('a queue that lets an indirect table be anywhere fails the vectors about that', (t) => {
  class Wrong extends ReferenceSplitQueue {
    protected override mayBeIndirect({ lengthBytes }: { lengthBytes: number }): boolean {
      return lengthBytes > 0
    }
  }
  t.deepEqual(failedBy(Wrong).sort(), [
    'INDIRECT and NEXT together',
    'INDIRECT though it was not negotiated',
    'an indirect table in an indirect table',
    'an indirect table of length 24',
  ])
})

test('a queue that takes a head twice fails the vector about that', (t) => {
  class Wrong extends ReferenceSplitQueue {
    protected override headFault(head: number) {
      return head >= this.ring.size ? ('ERR_RING_HEAD_RANGE' as const) : undefined
    }
  }
  t.deepEqual(failedBy(Wrong), ['the same head twice, while it is in flight'])
})

// ---- The native queue's decisions ----------------------------------------------------------------------------------

/** Completes so many one-buffer requests at once. Returns whether that signalled. */
function completes(queue: ReturnType<typeof native.createSplitQueue>, count: number): boolean {
  const taken = queue.take(count)
  for (let row = 0; row < taken; row++) {
    queue.completions[row * CompletionRow.words] = queue.requests[row * RequestRow.words]!
  }
  return (queue.complete(taken, 0, false) & CompleteBits.signalled) !== 0
}

/** Starts one before `old`, so that the first decision, which always signals, is the one at `old`. */
function decidesAs(t: ExecutionContext, event: number, fresh: number, old: number): boolean {
  const SIZE = 128
  const low = BigInt(lowAddress)
  memories.clear()
  for (let head = 0; head < SIZE; head++) {
    const bytes = Buffer.alloc(16)
    bytes.writeBigUInt64LE(low)
    bytes.writeUInt32LE(1, 8)
    memories.write(0, 16 * head, bytes)
    memories.writeU16(0, 0x1004 + 2 * head, head)
  }
  const first = indexDistance(1, old)
  memories.writeU16(0, 0x1002, first + 1)
  memories.writeU16(0, 0x2002, first)
  const queue = native.createSplitQueue({
    ...options,
    sizeMax: SIZE,
    batchCountMax: SIZE,
    headerBytes: 0,
    statusByte: false,
  })
  const start = queue.start({
    size: SIZE,
    descriptorAddress: low,
    availableAddress: low + 0x1000n,
    usedAddress: low + 0x2000n,
    guestAddresses: true,
    availableBase: first,
    eventIdx: true,
    indirect: false,
    regions: table.native,
    callFd,
  })
  t.is(start, 0)
  t.true(completes(queue, 1))
  memories.writeU16(0, 0x1004 + 2 * SIZE, event)
  memories.writeU16(0, 0x1002, fresh)
  const signals = completes(queue, SIZE)
  t.is(queue.inspect().usedIndex, fresh)
  queue.close()
  return signals
}

test('the native queue decides as the vectors of need_event say, where one batch goes so far', (t) => {
  const within = needEventVectors.filter(({ fresh, old }) => indexDistance(old, fresh) <= 128)
  t.true(within.length > 20)
  for (const { event, fresh, old, notify } of within) {
    t.is(decidesAs(t, event, fresh, old), notify, JSON.stringify({ event, fresh, old }))
  }
})

test('the vectors are JSON and lose nothing by it', (t) => {
  t.deepEqual(JSON.parse(JSON.stringify(ringVectors)), ringVectors)
})
