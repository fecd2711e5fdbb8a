// Whole laps of the used index without a signal, played on the native queue and on the reference model at once.
import fc from 'fast-check'
import { CompleteBits, CompletionRow, native, RequestRow } from '../../src/native.ts'
import { indexDistance, ReferenceSplitQueue } from '../../src/testing/index.ts'
import { Disagreement, expectSame } from './expect-same.ts'
import { type RegionTable, TwoMemories } from './two-memories.ts'

/** A device that completes in silence and is then asked for a signal. */
export interface Lap {
  /** Completions in all; the last one is the one that the driver waits for. */
  readonly progress: number
  readonly eventIdx: boolean
  readonly firstIndex: number
  /** Most completions that share a decision. */
  readonly chunkCountMax: number
  /** True: used_event is parked anew right behind each decision. False: it stays where it was, as Linux leaves it. */
  readonly parksAgain: boolean
}

export const laps: fc.Arbitrary<Lap> = fc.record({
  progress: fc.constantFrom(65_535, 65_536, 65_537),
  eventIdx: fc.boolean(),
  firstIndex: fc.oneof(fc.nat(0xffff), fc.constantFrom(0, 1, 65_535)),
  chunkCountMax: fc.integer({ min: 64, max: 256 }),
  parksAgain: fc.boolean(),
})

const SIZE = 256
const GUEST = 1n << 32n
const AVAILABLE_AT = 16 * SIZE
const USED_EVENT_AT = AVAILABLE_AT + 4 + 2 * SIZE
const USED_AT = 5120
const FILE_BYTES = 8192
const NO_INTERRUPT = 1

let stage: { readonly memories: TwoMemories; readonly table: RegionTable; readonly callFd: number }

function preparedStage(): typeof stage {
  if (stage === undefined) {
    const memories = new TwoMemories(1, FILE_BYTES)
    const whole = { file: 0, fromByte: 0, toByte: FILE_BYTES, guestAddress: GUEST, userAddress: GUEST }
    stage = { memories, table: memories.table([whole]), callFd: native.eventfdCreate() }
  }
  stage.memories.clear()
  return stage
}

/**
 * Plays a lap on both sides. Throws when they differ in a decision or a byte of memory, or when the driver is not told of
 * the completion that it waits for.
 *
 * @param Model the reference, or one with a planted bug
 */
export function playLap(lap: Lap, Model: typeof ReferenceSplitQueue = ReferenceSplitQueue): void {
  const { memories, table, callFd } = preparedStage()
  const options = {
    sizeMax: SIZE,
    headerBytes: 0,
    statusByte: false,
    batchCountMax: SIZE,
    chainCountMax: SIZE,
    strictChains: false,
  }
  const ours = native.createSplitQueue(options)
  const theirs = new Model(options)
  try {
    // Descriptor and slot of one number belong together: whole chunks are completed, so no head is needed twice.
    for (let index = 0; index < SIZE; index++) {
      const descriptor = Buffer.alloc(16)
      descriptor.writeBigUInt64LE(GUEST + BigInt(FILE_BYTES - 8))
      descriptor.writeUInt32LE(8, 8)
      descriptor.writeUInt16LE(2, 12)
      memories.write(0, 16 * index, descriptor)
      memories.writeU16(0, AVAILABLE_AT + 4 + 2 * index, index)
    }
    memories.writeU16(0, AVAILABLE_AT + 2, lap.firstIndex)
    memories.writeU16(0, USED_AT + 2, lap.firstIndex)
    const ring = {
      size: SIZE,
      descriptorAddress: GUEST,
      availableAddress: GUEST + BigInt(AVAILABLE_AT),
      usedAddress: GUEST + BigInt(USED_AT),
      guestAddresses: true,
      availableBase: lap.firstIndex,
      eventIdx: lap.eventIdx,
      indirect: false,
    }
    expectSame('start', ours.start({ ...ring, regions: table.native, callFd }), 0)
    theirs.start(ring, table.reference)

    let index = lap.firstIndex
    /** Completes `count` requests with one decision. Returns whether it signalled. */
    const complete = (count: number): boolean => {
      index = indexDistance(0, index + count)
      memories.writeU16(0, AVAILABLE_AT + 2, index)
      const requests = theirs.take(SIZE)
      if (typeof requests === 'string') throw new Disagreement(requests)
      expectSame('requests taken', ours.take(SIZE), requests.length)
      for (let row = 0; row < count; row++) {
        ours.completions[row * CompletionRow.words] = ours.requests[row * RequestRow.words]!
        ours.completions[row * CompletionRow.words + CompletionRow.bytesWritten] = 8
      }
      const result = theirs.complete(requests.map(({ head }) => ({ head, bytesWritten: 8, status: 0 })))
      if (typeof result === 'string') throw new Disagreement(result)
      const signals = (ours.complete(count, 0, false) & CompleteBits.signalled) !== 0
      expectSame(`a signal at index ${index}`, signals, result.signal)
      const difference = memories.difference()
      if (difference !== undefined) throw new Disagreement(difference)
      return signals
    }
    const park = (): void => {
      memories.writeU16(0, USED_EVENT_AT, index - 1)
      memories.writeU16(0, AVAILABLE_AT, NO_INTERRUPT)
    }
    // The first decision after a start signals, whatever the driver asked for.
    expectSame('the first decision', complete(1), true)
    park()
    for (let left = lap.progress - 1; left > 0; ) {
      const count = Math.min(left, lap.chunkCountMax)
      complete(count)
      left -= count
      if (lap.parksAgain) park()
    }
    memories.writeU16(0, USED_EVENT_AT, index)
    memories.writeU16(0, AVAILABLE_AT, 0)
    expectSame('the signal that the driver waits for', complete(1), true)
  } finally {
    ours.close()
  }
}
