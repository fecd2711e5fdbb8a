/**
 * Test vectors of split virtqueues as data, for back-ends in any language: every value is a number up to 2^53 - 1, a
 * boolean or a string, so that `JSON.stringify(ringVectors)` has all of them. Addresses are strings of hexadecimal digits
 * with `0x` in front, because they have 64 bits. All integers in a ring are little-endian.
 */
import type { RingFault } from './reference/split-queue.ts'

/**
 * Whether somebody who waits for the entry `event` is owed a notification, when the index of what is published moved from
 * `old`, its value at the last decision, to `fresh` (virtio 1.3, 2.7.7.2 and 2.7.10). The same for both directions.
 */
export interface NeedEventVector {
  readonly event: number
  readonly fresh: number
  readonly old: number
  readonly notify: boolean
}

/**
 * Whether an index that moved from `before` to `fresh` came round to `decided`, its value at the last decision. Then the
 * last decision says nothing any more, and the next one notifies.
 */
export interface LapVector {
  readonly decided: number
  readonly fresh: number
  readonly before: number
  readonly lapped: boolean
}

/**
 * A device that completes `count` requests one by one, with a decision after each, while the driver's `used_event` stands
 * still right behind the first index. Then the driver asks for the very next completion. It must signal, whatever the
 * count: a device that remembers the last signal instead of the last decision loses the one after 65,535.
 */
export interface SilenceVector {
  readonly firstIndex: number
  readonly count: number
}

/**
 * How many entries a device sees that has taken those before `taken`, when the driver's index is `published`. `undefined`
 * in TypeScript, and absent in JSON: more than the ring holds, so that the queue breaks.
 */
export interface AvailableIndexVector {
  readonly size: number
  readonly taken: number
  readonly published: number
  readonly visible?: number
}

/**
 * What must become of a chain. In no case is memory touched that is not the driver's. `code` says why, as hushring names
 * it; another back-end has names of its own, and may find another fault first where a chain has two.
 */
export type ChainOutcome =
  /** It is served. `dataBytes`: what is left for the device without header and status. */
  | { readonly result: 'served'; readonly readableBytes: number; readonly writableBytes: number }
  /**
   * It is malformed: its head is returned with length 0 and the queue lives on, or, with strict checks, the queue breaks.
   * `statusAt` tells where a status can be written all the same.
   */
  | { readonly result: 'malformed'; readonly code: RingFault; readonly statusAt?: string }
  /** Nobody can tell whose chain it is: the entry is passed over, nothing is returned, and the queue lives on or breaks. */
  | { readonly result: 'passed over'; readonly code: RingFault }
  /** The queue breaks: it touches no driver memory until it is reset. */
  | { readonly result: 'broken'; readonly code: RingFault }

/** A descriptor at its place in memory: 16 bytes, as virtio 1.3, 2.7.5 lays them out. */
export interface VectorDescriptor {
  /** Guest address of the descriptor itself. */
  readonly at: string
  readonly address: string
  readonly lengthBytes: number
  readonly flags: number
  readonly next: number
}

/**
 * One chain on a ring that is otherwise empty: {@link ChainMemory} tells where everything lies. Requests have a header of
 * 16 readable bytes in front and a status byte at the end, as those of a block device.
 */
export interface ChainVector {
  readonly title: string
  /** Whether VIRTIO_F_INDIRECT_DESC was negotiated. */
  readonly indirect: boolean
  /** Everything else in memory is zero. */
  readonly descriptors: readonly VectorDescriptor[]
  /** The first entries of the available ring. */
  readonly heads: readonly number[]
  /** The driver's available index; the device has taken nothing yet. */
  readonly availableIndex: number
  /** For each of `heads` in turn, unless the queue breaks before. */
  readonly outcomes: readonly ChainOutcome[]
}

/** Where the chains of {@link chainVectors} lie. */
export interface ChainMemory {
  readonly size: number
  readonly headerBytes: number
  readonly statusByte: boolean
  /** Longest chain through an indirect table. */
  readonly chainCountMax: number
  readonly regions: readonly { readonly guestAddress: string; readonly sizeBytes: number }[]
  readonly descriptorAddress: string
  readonly availableAddress: string
  readonly usedAddress: string
}

// ---- Indices -----------------------------------------------------------------------------------------------------

const needEventRow = ([event, fresh, old, notify]: readonly [
  number,
  number,
  number,
  boolean,
]): NeedEventVector => ({
  event,
  fresh,
  old,
  notify,
})

/** See {@link NeedEventVector}. */
export const needEventVectors: readonly NeedEventVector[] = (
  [
    // Nothing was published: nobody is owed anything.
    [0, 0, 0, false],
    [65_535, 0, 0, false],
    [32_768, 0, 0, false],
    // One entry, and the events around it.
    [0, 1, 0, true],
    [1, 1, 0, false],
    [65_535, 1, 0, false],
    [5, 6, 5, true],
    [5, 5, 4, false],
    [5, 6, 6, false],
    // Several entries: the first, the last, the one behind, the one before.
    [0, 2, 0, true],
    [1, 2, 0, true],
    [2, 2, 0, false],
    [100, 200, 100, true],
    [199, 200, 100, true],
    [200, 200, 100, false],
    [99, 200, 100, false],
    // Over the wrap at 65535.
    [65_535, 0, 65_535, true],
    [65_535, 0, 65_534, true],
    [65_534, 0, 65_534, true],
    [0, 1, 65_535, true],
    [65_533, 1, 65_534, false],
    [1, 1, 65_534, false],
    [3, 5, 65_530, true],
    [65_530, 5, 65_530, true],
    // Half a lap and more, where signed numbers go wrong.
    [0, 32_768, 0, true],
    [32_767, 32_768, 0, true],
    [32_768, 32_768, 0, false],
    [40_000, 50_000, 0, true],
    [60_000, 50_000, 0, false],
    // As far as can be told: 65,535 entries leave out one.
    [9, 9, 10, false],
    [10, 9, 10, true],
    [8, 9, 10, true],
  ] as const
).map(needEventRow)

const lapRow = ([decided, fresh, before, lapped]: readonly [number, number, number, boolean]): LapVector => ({
  decided,
  fresh,
  before,
  lapped,
})

/** See {@link LapVector}. */
export const lapVectors: readonly LapVector[] = (
  [
    [10, 20, 10, false],
    [10, 20, 15, false],
    // 65,535 entries since the decision can still be told apart, 65,536 look like none.
    [10, 9, 5, false],
    [10, 10, 5, true],
    [10, 11, 5, true],
    [10, 11, 9, true],
    [10, 10, 9, true],
    [65_535, 3, 65_530, true],
    [0, 65_535, 65_530, false],
    [0, 0, 65_530, true],
    [0, 0, 0, false],
  ] as const
).map(lapRow)

/** See {@link SilenceVector}. */
export const silenceVectors: readonly SilenceVector[] = [0, 1, 32_768, 65_535].flatMap((firstIndex) =>
  [1, 65_534, 65_535].map((count) => ({ firstIndex, count })),
)

/** See {@link AvailableIndexVector}. */
export const availableIndexVectors: readonly AvailableIndexVector[] = [
  { size: 8, taken: 0, published: 0, visible: 0 },
  { size: 8, taken: 0, published: 8, visible: 8 },
  { size: 8, taken: 0, published: 9 },
  { size: 8, taken: 65_535, published: 0, visible: 1 },
  { size: 8, taken: 65_530, published: 2, visible: 8 },
  { size: 8, taken: 65_530, published: 3 },
  // It went back by one.
  { size: 8, taken: 7, published: 6 },
  { size: 8, taken: 0, published: 65_535 },
  // It ran ahead.
  { size: 8, taken: 0, published: 40_000 },
  // The index has 16 bits whatever the size, so the largest ring can be full.
  { size: 32_768, taken: 1, published: 32_769, visible: 32_768 },
  { size: 32_768, taken: 40_000, published: 7232, visible: 32_768 },
  { size: 32_768, taken: 1, published: 32_770 },
  { size: 1, taken: 65_535, published: 0, visible: 1 },
  { size: 1, taken: 65_535, published: 1 },
]

// ---- Chains ------------------------------------------------------------------------------------------------------

const NEXT = 1
const WRITE = 2
const INDIRECT = 4

/** Two regions with a hole of 0x1000 bytes between them. */
const LOW = 0x1_0000
const HIGH = 0x2_0000
const REGION_BYTES = 0xf000
const AVAILABLE_AT = LOW + 0x100
const USED_AT = LOW + 0x200
const TABLE_AT = LOW + 0x400
const HEADER_AT = LOW + 0x1000
const DATA_AT = LOW + 0x2000
const STATUS_AT = LOW + 0x3000
const SIZE = 8

const hex = (value: number | bigint): string => `0x${value.toString(16)}`

/** See {@link ChainMemory}. */
export const chainMemory: ChainMemory = {
  size: SIZE,
  headerBytes: 16,
  statusByte: true,
  chainCountMax: 16,
  regions: [
    { guestAddress: hex(LOW), sizeBytes: REGION_BYTES },
    { guestAddress: hex(HIGH), sizeBytes: REGION_BYTES },
    // The last page of all, and the first one: what wraps finds memory at both ends.
    { guestAddress: '0xfffffffffffff000', sizeBytes: 0x1000 },
    { guestAddress: '0x0', sizeBytes: 0x1000 },
  ],
  descriptorAddress: hex(LOW),
  availableAddress: hex(AVAILABLE_AT),
  usedAddress: hex(USED_AT),
}

type Fields = readonly [address: number | bigint, lengthBytes: number, flags: number, next?: number]

const descriptorsAt = (tableAt: number, table: readonly Fields[]): VectorDescriptor[] =>
  table.map(([address, lengthBytes, flags, next = 0], index) => ({
    at: hex(tableAt + 16 * index),
    address: hex(address),
    lengthBytes,
    flags,
    next,
  }))
const ring = (...table: readonly Fields[]): VectorDescriptor[] => descriptorsAt(LOW, table)
const table = (...entries: readonly Fields[]): VectorDescriptor[] => descriptorsAt(TABLE_AT, entries)

const header: Fields = [HEADER_AT, 16, NEXT, 1]
const status: Fields = [STATUS_AT, 1, WRITE]
const served = (readableBytes: number, writableBytes: number): ChainOutcome => ({
  result: 'served',
  readableBytes,
  writableBytes,
})
const malformed = (code: RingFault, statusAt?: number): ChainOutcome =>
  statusAt === undefined
    ? { result: 'malformed', code }
    : { result: 'malformed', code, statusAt: hex(statusAt) }

/** One chain that begins at descriptor 0. */
const chain = (
  title: string,
  outcome: ChainOutcome,
  descriptors: readonly VectorDescriptor[],
  indirect = true,
): ChainVector => ({ title, indirect, descriptors, heads: [0], availableIndex: 1, outcomes: [outcome] })

/** A read of 512 bytes whose data buffer is as given. */
const withData = (
  title: string,
  outcome: ChainOutcome,
  address: number | bigint,
  lengthBytes: number,
): ChainVector => chain(title, outcome, ring(header, [address, lengthBytes, NEXT | WRITE, 2], status))

const goodRead = ring(header, [DATA_AT, 512, NEXT | WRITE, 2], status)

/** See {@link ChainVector}. */
export const chainVectors: readonly ChainVector[] = [
  chain('a read', served(0, 512), goodRead),
  {
    title: 'a head that is the size of the ring',
    indirect: true,
    descriptors: goodRead,
    heads: [SIZE, 0],
    availableIndex: 2,
    outcomes: [{ result: 'passed over', code: 'ERR_RING_HEAD_RANGE' }, served(0, 512)],
  },
  {
    title: 'the same head twice, while it is in flight',
    indirect: true,
    descriptors: goodRead,
    heads: [0, 0],
    availableIndex: 2,
    outcomes: [served(0, 512), { result: 'passed over', code: 'ERR_RING_HEAD_IN_FLIGHT' }],
  },
  chain(
    'a next that is the size of the ring',
    malformed('ERR_CHAIN_NEXT_RANGE'),
    ring([HEADER_AT, 16, NEXT, SIZE]),
  ),
  chain('a next of 65535', malformed('ERR_CHAIN_NEXT_RANGE'), ring([HEADER_AT, 16, NEXT, 65_535])),
  chain('an empty descriptor that is its own next', malformed('ERR_CHAIN_LOOP'), ring([0, 0, NEXT, 0])),
  chain(
    'two descriptors that are each other’s next',
    malformed('ERR_CHAIN_LOOP'),
    ring([HEADER_AT, 16, NEXT, 1], [DATA_AT, 512, NEXT, 0]),
  ),
  chain(
    'as many descriptors as the ring has',
    served(0, 6 * 512),
    ring(
      header,
      ...[1, 2, 3, 4, 5, 6].map((index): Fields => [DATA_AT + 512 * index, 512, NEXT | WRITE, index + 1]),
      status,
    ),
  ),
  withData(
    'a buffer that ends beyond 2^64',
    malformed('ERR_CHAIN_ADDRESS', STATUS_AT),
    (1n << 64n) - 256n,
    512,
  ),
  withData('a buffer that ends at 2^64', served(0, 512), (1n << 64n) - 512n, 512),
  withData(
    'a buffer that ends one byte behind a region',
    malformed('ERR_CHAIN_ADDRESS', STATUS_AT),
    LOW + REGION_BYTES - 511,
    512,
  ),
  withData('a buffer that ends with a region', served(0, 512), LOW + REGION_BYTES - 512, 512),
  withData('a buffer in a hole', malformed('ERR_CHAIN_ADDRESS', STATUS_AT), LOW + REGION_BYTES, 512),
  withData('a buffer that begins in a hole', malformed('ERR_CHAIN_ADDRESS', STATUS_AT), HIGH - 1, 512),
  withData('an empty buffer at an address without memory', served(0, 0), 0x4242_0000, 0),
  withData('a buffer of 2^32 - 1 bytes', malformed('ERR_CHAIN_TOO_LONG', STATUS_AT), DATA_AT, 0xffff_ffff),
  chain('an indirect table', served(0, 512), [
    ...ring([TABLE_AT, 48, INDIRECT]),
    ...table([HEADER_AT, 16, NEXT, 1], [DATA_AT, 512, NEXT | WRITE, 2], [STATUS_AT, 1, WRITE]),
  ]),
  chain('an indirect table with as many descriptors as a chain may have', served(0, 14 * 512), [
    ...ring([TABLE_AT, 256, INDIRECT]),
    ...table(
      header,
      ...Array.from({ length: 14 }, (_, index): Fields => [DATA_AT, 512, NEXT | WRITE, index + 2]),
      status,
    ),
  ]),
  chain('an indirect table of length 0', malformed('ERR_CHAIN_INDIRECT'), ring([TABLE_AT, 0, INDIRECT])),
  chain('an indirect table of length 24', malformed('ERR_CHAIN_INDIRECT'), ring([TABLE_AT, 24, INDIRECT])),
  chain('an indirect table in a hole', malformed('ERR_CHAIN_ADDRESS'), ring([HIGH - 16, 16, INDIRECT])),
  chain('an indirect table in an indirect table', malformed('ERR_CHAIN_INDIRECT'), [
    ...ring([TABLE_AT, 16, INDIRECT]),
    ...table([TABLE_AT + 64, 16, INDIRECT]),
  ]),
  chain('INDIRECT and NEXT together', malformed('ERR_CHAIN_INDIRECT'), [
    ...ring([TABLE_AT, 16, INDIRECT | NEXT, 1], status),
    ...table([HEADER_AT, 16, 0]),
  ]),
  chain(
    'INDIRECT though it was not negotiated',
    malformed('ERR_CHAIN_INDIRECT'),
    [...ring([TABLE_AT, 32, INDIRECT]), ...table(header, status)],
    false,
  ),
  chain('a next outside an indirect table, though inside the ring', malformed('ERR_CHAIN_NEXT_RANGE'), [
    ...ring([TABLE_AT, 32, INDIRECT]),
    ...table([HEADER_AT, 16, NEXT, 2], status),
  ]),
  chain(
    'a readable buffer behind a writable one',
    malformed('ERR_CHAIN_ORDER', STATUS_AT),
    ring(header, [DATA_AT, 512, NEXT | WRITE, 2], [DATA_AT, 512, NEXT, 3], status),
  ),
  chain(
    'a header that is too short',
    malformed('ERR_CHAIN_FRAMING', STATUS_AT),
    ring([HEADER_AT, 15, NEXT, 1], status),
  ),
  chain('no room for a status', malformed('ERR_CHAIN_FRAMING'), ring([HEADER_AT, 16, 0])),
  chain(
    'a header over two buffers, and a status at the end of the data',
    served(5, 512),
    ring([HEADER_AT, 8, NEXT, 1], [DATA_AT, 13, NEXT, 2], [DATA_AT + 512, 513, WRITE]),
  ),
  {
    title: 'an available index that is ahead by more than the ring',
    indirect: true,
    descriptors: goodRead,
    heads: [0],
    availableIndex: 40_000,
    outcomes: [{ result: 'broken', code: 'ERR_RING_AVAIL_INDEX' }],
  },
  {
    title: 'an available index that went back by one',
    indirect: true,
    descriptors: goodRead,
    heads: [0],
    availableIndex: 65_535,
    outcomes: [{ result: 'broken', code: 'ERR_RING_AVAIL_INDEX' }],
  },
]

/** All of them in one object, for `JSON.stringify`. */
export const ringVectors = {
  needEvent: needEventVectors,
  lap: lapVectors,
  silence: silenceVectors,
  availableIndex: availableIndexVectors,
  chainMemory,
  chain: chainVectors,
} as const
