// Random histories of one split virtqueue, played on the native queue and on the reference model at once.
import fc from 'fast-check'
import {
  CompleteBits,
  CompletionRow,
  type NativeQueue,
  native,
  QueueCounter,
  RequestRow,
  RingBreak,
  SegmentRow,
} from '../../src/native.ts'
import {
  DescriptorFlag,
  indexDistance,
  type ReferenceSplitOptions,
  ReferenceSplitQueue,
  type ReferenceSplitRing,
} from '../../src/testing/index.ts'
import { Disagreement, expectSame, playSteps } from './expect-same.ts'
import { type RegionPlan, type RegionTable, TwoMemories } from './two-memories.ts'

// ---- Histories ---------------------------------------------------------------------------------------------------

/** What is wrong with a chain; `none`: nothing. The empty buffer and the long chain are legal. */
const flaws = [
  'next outside the table',
  'next is itself',
  'two that loop',
  'address in a hole',
  'address before the memory',
  'wraps',
  'length 0xffffffff',
  'empty buffer at a bad address',
  'readable after writable',
  'no readable part',
  'no writable part',
  'table of length 0',
  'table of length 24',
  'table in a table',
  'table with a next',
  'table outside memory',
  'table behind a buffer',
  'head outside the ring',
  'head in flight',
  'as long as it can be',
  'one longer than it can be',
] as const

export interface ChainStep {
  readonly do: 'add a chain'
  readonly pick: number
  readonly readable: readonly number[]
  readonly writable: readonly number[]
  readonly at: number
  /** Number of an indirect table; 0: none. */
  readonly table: number
  readonly flaw: (typeof flaws)[number] | 'none'
  readonly publish: boolean
}

export type SplitStep =
  | ChainStep
  | { readonly do: 'publish'; readonly jump: number }
  | { readonly do: 'wish'; readonly event: number; readonly silent: boolean }
  | { readonly do: 'take'; readonly count: number }
  | {
      readonly do: 'complete'
      readonly answers: readonly { readonly pick: number; readonly bytes: number; readonly status: number }[]
      /** Whether the decision may be put off. */
      readonly defers: boolean
    }
  | { readonly do: 'change memory'; readonly table: number; readonly copy: boolean }
  | { readonly do: 'restart'; readonly ring: RingChoice; readonly keepsIndex: boolean }
  | { readonly do: 'stop' }
  | { readonly do: 'change the call fd' }
  | { readonly do: 'scribble'; readonly at: number; readonly value: number }

/** How a ring is started. */
export interface RingChoice {
  readonly size: number
  readonly eventIdx: boolean
  readonly indirect: boolean
  readonly guestAddresses: boolean
  readonly table: number
  readonly availableBase: number
  readonly usedIndex: number
  /** Moves the descriptors' address: 0 but for a misaligned ring. */
  readonly shift: number
}

export interface SplitHistory {
  readonly options: ReferenceSplitOptions
  readonly ring: RingChoice
  readonly steps: readonly SplitStep[]
}

const seldom = fc.oneof(
  { weight: 30, arbitrary: fc.constant(false) },
  { weight: 1, arbitrary: fc.constant(true) },
)
const mostly = fc.oneof(
  { weight: 5, arbitrary: fc.constant(true) },
  { weight: 1, arbitrary: fc.constant(false) },
)
const nearTheWrap = fc.oneof(
  { weight: 3, arbitrary: fc.integer({ min: -8, max: 8 }).map((value) => value & 0xffff) },
  { weight: 1, arbitrary: fc.nat(0xffff) },
)
const lengths = fc.array(fc.constantFrom(1, 2, 3, 7, 16, 17, 40, 0), { maxLength: 3 })

const ringChoice: fc.Arbitrary<RingChoice> = fc.record({
  size: fc.oneof(
    { weight: 30, arbitrary: fc.constantFrom(8, 8, 4, 4, 2, 1) },
    { weight: 1, arbitrary: fc.constantFrom(0, 3, 16) },
  ),
  eventIdx: fc.boolean(),
  indirect: mostly,
  guestAddresses: fc.boolean(),
  table: fc.nat(4),
  availableBase: nearTheWrap,
  usedIndex: nearTheWrap,
  shift: fc.oneof({ weight: 30, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.constantFrom(8, 1) }),
})

const step: fc.Arbitrary<SplitStep> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constant('add a chain' as const),
      pick: fc.nat(7),
      readable: lengths,
      writable: lengths,
      at: fc.nat(900),
      table: fc.nat(3),
      flaw: fc.oneof(
        { weight: 3, arbitrary: fc.constant('none' as const) },
        { weight: 1, arbitrary: fc.constantFrom(...flaws) },
      ),
      publish: mostly,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('publish' as const),
      jump: fc.oneof(
        { weight: 12, arbitrary: fc.constant(0) },
        { weight: 1, arbitrary: fc.constantFrom(1, -1, 8, 40_000, 65_535, 65_536, 65_537) },
      ),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant('wish' as const),
      event: fc.integer({ min: -4, max: 4 }),
      silent: fc.boolean(),
    }),
  },
  { weight: 9, arbitrary: fc.record({ do: fc.constant('take' as const), count: fc.nat(9) }) },
  {
    weight: 9,
    arbitrary: fc.record({
      do: fc.constant('complete' as const),
      answers: fc.array(
        fc.record({ pick: fc.nat(9), bytes: fc.integer({ min: -1, max: 80 }), status: fc.nat(300) }),
        { maxLength: 5 },
      ),
      defers: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('change memory' as const), table: fc.nat(5), copy: mostly }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('restart' as const),
      ring: ringChoice,
      keepsIndex: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.oneof(
      fc.record({ do: fc.constant('stop' as const) }),
      fc.record({ do: fc.constant('change the call fd' as const) }),
      fc.record({ do: fc.constant('scribble' as const), at: fc.nat(1023), value: fc.nat(0xffff) }),
    ),
  },
)

export const splitHistories: fc.Arbitrary<SplitHistory> = fc.record({
  options: fc.record({
    headerBytes: fc.constantFrom(0, 1, 4, 16),
    statusByte: fc.boolean(),
    batchCountMax: fc.constantFrom(8, 3, 1),
    batchCountMin: fc.constantFrom(8, 2, 1),
    sizeMax: fc.constant(8),
    chainCountMax: fc.constantFrom(12, 8, 1),
    strictChains: seldom,
  }),
  ring: ringChoice,
  steps: fc.array(step, { maxLength: 40, size: 'max' }),
})

// ---- Playing them ------------------------------------------------------------------------------------------------

const GUEST = 1n << 32n
const USER = 0x7f00_0000_0000n
const TOP = 1n << 64n
const FILE_BYTES = 2048
const DESCRIPTORS_AT = 0
const AVAILABLE_AT = 160
const USED_AT = 256
const TABLES_AT = 352
const TABLE_BYTES = 16 * 14
const BUFFERS_AT = 1024

const plan = (file: number, fromByte: number, toByte: number): RegionPlan => ({
  file,
  fromByte,
  toByte,
  guestAddress: GUEST + BigInt(fromByte),
  userAddress: USER + BigInt(fromByte),
})
/** Memory at both ends of the address space, so that a buffer that wraps finds some. */
const ends = (file: number): RegionPlan[] => [
  { ...plan(file, 1024, 1536), guestAddress: TOP - 512n, userAddress: TOP - 512n },
  { ...plan(file, 1536, 2048), guestAddress: 0n, userAddress: 0n },
]
/** The tables of regions that a history changes between, by number. */
const PLANS: readonly (readonly RegionPlan[])[] = [
  [plan(0, 0, 2048), ...ends(0)],
  // Borders in the middle of a descriptor and at an odd byte.
  [plan(0, 0, 600), plan(0, 600, 1501), plan(0, 1501, 2048)],
  [plan(0, 0, 1400), plan(0, 1464, 2048)],
  [plan(1, 0, 2048), ...ends(1)],
  // So many regions that a batch runs out of rows for the pieces, in no order.
  [
    ...Array.from({ length: 40 }, (_, index) => plan(1, 1024 + 25 * index, 1024 + 25 * (index + 1))),
    plan(1, 0, 1024),
    plan(1, 2024, 2048),
  ],
  // The ring is not in there.
  [plan(0, 1024, 2048)],
]

interface WrittenDescriptor {
  address: bigint
  lengthBytes: number
  flags: number
  next: number
}

/** The process has one: its memory is used for one history after the other. */
let stage: {
  readonly memories: TwoMemories
  readonly tables: readonly RegionTable[]
  readonly callFd: number
}

function preparedStage(): typeof stage {
  if (stage === undefined) {
    const memories = new TwoMemories(2, FILE_BYTES)
    const tables = PLANS.map((plans) => memories.table(plans))
    stage = { memories, tables, callFd: native.eventfdCreate() }
  }
  stage.memories.clear()
  return stage
}

/**
 * Plays a history on both sides. Throws at the first step after which they differ in a result, a table, a counter or a
 * byte of memory.
 *
 * @param Model the reference, or one with a planted bug
 */
export function playSplit(
  history: SplitHistory,
  Model: typeof ReferenceSplitQueue = ReferenceSplitQueue,
): void {
  const play = new SplitPlay(history, Model)
  try {
    play.start(history.ring)
    playSteps(history.steps, (step) => play.step(step))
  } finally {
    play.close()
  }
}

class SplitPlay {
  readonly #stage = preparedStage()
  readonly #native: NativeQueue
  /** The low and high words of the native counters; no history counts beyond the low one. */
  readonly #counters: Uint32Array
  readonly #model: ReferenceSplitQueue
  readonly #headerBytes: number
  #ring: RingChoice
  /** The file that the driver works in. */
  #file = 0
  /** Where the driver writes the next entry of the available ring. */
  #next = 0
  /** Heads of the entries that the driver added and the device did not look at, by their index. */
  #added: { index: number; head: number }[] = []
  /** Heads that were handed out, with the room they have. */
  #taken: { head: number; writableBytes: number }[] = []

  constructor({ options, ring }: SplitHistory, Model: typeof ReferenceSplitQueue) {
    this.#native = native.createSplitQueue(options)
    const { buffer, byteOffset, length } = this.#native.counters
    this.#counters = new Uint32Array(buffer, byteOffset, 2 * length)
    this.#model = new Model(options)
    this.#headerBytes = options.headerBytes
    this.#ring = ring
  }

  close(): void {
    this.#native.close()
  }

  start(ring: RingChoice): void {
    this.#ring = ring
    const { memories, tables, callFd } = this.#stage
    const table = tables[ring.table]!
    this.#file = PLANS[ring.table]![0]!.file
    this.#next = ring.availableBase
    this.#added = []
    this.#taken = []
    memories.writeU16(this.#file, AVAILABLE_AT + 2, this.#next)
    memories.writeU16(this.#file, USED_AT + 2, ring.usedIndex)
    const base = ring.guestAddresses ? GUEST : USER
    const start: ReferenceSplitRing = {
      size: ring.size,
      descriptorAddress: base + BigInt(DESCRIPTORS_AT + ring.shift),
      availableAddress: base + BigInt(AVAILABLE_AT),
      usedAddress: base + BigInt(USED_AT),
      guestAddresses: ring.guestAddresses,
      availableBase: ring.availableBase,
      eventIdx: ring.eventIdx,
      indirect: ring.indirect,
    }
    const ours = this.#native.start({ ...start, regions: table.native, callFd })
    this.#expectFault('start', ours, this.#model.start(start, table.reference))
    this.#expectSameState()
  }

  step(step: SplitStep): void {
    const { memories } = this.#stage
    switch (step.do) {
      case 'add a chain':
        this.#addChain(step)
        if (step.publish) this.#publish(0)
        return
      case 'publish':
        this.#publish(step.jump)
        return
      case 'wish':
        memories.writeU16(this.#file, AVAILABLE_AT, step.silent ? 1 : 0)
        memories.writeU16(
          this.#file,
          AVAILABLE_AT + 4 + 2 * this.#ring.size,
          this.#model.usedIndex + step.event,
        )
        return
      case 'scribble':
        memories.writeU16(this.#file, step.at, step.value)
        return
      case 'take':
        this.#take(step.count)
        break
      case 'complete':
        this.#complete(step.answers, step.defers)
        break
      case 'change memory': {
        const file = PLANS[step.table]![0]!.file
        if (step.copy && file !== this.#file) memories.copy(this.#file, file)
        const table = this.#stage.tables[step.table]!
        const fault = this.#model.setRegions(table.reference)
        this.#expectFault('setRegions', this.#native.setRegions(table.native), fault)
        if (fault === undefined) this.#file = file
        break
      }
      case 'restart': {
        const availableBase = step.keepsIndex ? this.#model.availableIndex : step.ring.availableBase
        this.start({ ...step.ring, availableBase })
        return
      }
      case 'stop':
        this.#taken = []
        expectSame('stop', this.#native.stop(), this.#model.stop())
        break
      case 'change the call fd':
        this.#native.setCallFd(this.#stage.callFd)
        this.#model.forgetDecision()
    }
    this.#expectSameState()
  }

  // ---- The driver ----

  #publish(jump: number): void {
    this.#next = indexDistance(0, this.#next + jump)
    this.#stage.memories.writeU16(this.#file, AVAILABLE_AT + 2, this.#next)
  }

  #addChain(step: ChainStep): void {
    const size = Math.max(1, this.#ring.size)
    const head = this.#headFor(step, size)
    if (head === undefined) return
    const { table, descriptors } = this.#chain(step, size, head)
    const inTable = table > 0
    for (const [index, descriptor] of descriptors.entries()) {
      const at = inTable
        ? TABLES_AT + TABLE_BYTES * (table - 1) + 16 * index
        : DESCRIPTORS_AT + 16 * ((head + index) % size)
      this.#writeDescriptor(at, descriptor)
    }
    if (inTable)
      this.#writeDescriptor(DESCRIPTORS_AT + 16 * (head % size), this.#tableDescriptor(step, descriptors))
    const entry = step.flaw === 'head outside the ring' ? head + size : head
    this.#stage.memories.writeU16(this.#file, AVAILABLE_AT + 4 + 2 * (this.#next % size), entry)
    this.#added.push({ index: this.#next, head })
    this.#next = indexDistance(0, this.#next + 1)
  }

  /** A head that nobody has, or on purpose one that somebody has; nothing when the ring is full. */
  #headFor({ pick, flaw }: ChainStep, size: number): number | undefined {
    const { availableIndex } = this.#model
    this.#added = this.#added.filter(
      ({ index }) => indexDistance(availableIndex, index) < indexDistance(availableIndex, this.#next),
    )
    if (this.#added.length >= size) return undefined
    const heads = [...Array(size).keys()]
    const isTaken = (head: number) =>
      this.#model.owns(head) || this.#added.some((added) => added.head === head)
    const choice = heads.filter((head) => isTaken(head) === (flaw === 'head in flight'))
    return choice[pick % choice.length]
  }

  /** The descriptors of a chain, linked; those of an indirect table when `table` is not 0. */
  #chain(step: ChainStep, size: number, head: number): { table: number; descriptors: WrittenDescriptor[] } {
    const { flaw } = step
    const isAboutTables = flaw.startsWith('table')
    const table = this.#ring.indirect || isAboutTables ? (isAboutTables ? step.table || 1 : step.table) : 0
    const room = table > 0 ? 13 : size

    // Such that header and status have their place.
    const readable = [...step.readable]
    const writable = [...step.writable]
    if (readable.length + writable.length === 0) writable.push(1)
    if (this.#headerBytes > 0) readable.unshift(this.#headerBytes)
    if (this.#model.options.statusByte && (writable.at(-1) ?? 0) === 0) writable.push(1)
    if (flaw === 'no readable part') readable.length = 0
    if (flaw === 'no writable part') writable.length = 0
    let count = flaw.endsWith('longer than it can be') ? room + 1 : flaw.startsWith('as long as') ? room : 0
    const all = [
      ...readable.map((lengthBytes) => ({ lengthBytes, flags: 0 })),
      ...writable.map((lengthBytes) => ({ lengthBytes, flags: DescriptorFlag.WRITE })),
    ]
    if (all.length === 0) all.push({ lengthBytes: 1, flags: 0 })
    for (; all.length < count; count--) all.push(all.at(-1)!)
    if (all.length > room && count === 0) all.splice(1, all.length - room)
    if (flaw === 'readable after writable') all.reverse()

    let at = BUFFERS_AT + step.at
    const descriptors = all.map(({ lengthBytes, flags }, index): WrittenDescriptor => {
      if (at + lengthBytes > FILE_BYTES) at = BUFFERS_AT
      const address = GUEST + BigInt(at)
      at += lengthBytes
      const next = table > 0 ? index + 1 : (head + index + 1) % size
      return { address, lengthBytes, flags: flags | DescriptorFlag.NEXT, next }
    })
    const last = descriptors.at(-1)!
    last.flags &= ~DescriptorFlag.NEXT
    this.#spoil(flaw, descriptors[step.pick % descriptors.length]!, last, table > 0 ? 0 : head)
    return { table, descriptors }
  }

  #spoil(flaw: ChainStep['flaw'], some: WrittenDescriptor, last: WrittenDescriptor, first: number): void {
    switch (flaw) {
      case 'next outside the table':
        some.flags |= DescriptorFlag.NEXT
        some.next = 14
        break
      case 'next is itself':
      case 'two that loop':
        last.flags |= DescriptorFlag.NEXT
        last.next = first
        if (flaw === 'next is itself') last.lengthBytes = 0
        break
      case 'address in a hole':
        some.address = GUEST + 1399n
        some.lengthBytes = 80
        break
      case 'address before the memory':
        some.address = GUEST - 1n
        break
      case 'wraps':
        some.address = TOP - 16n
        some.lengthBytes = 17
        break
      case 'length 0xffffffff':
        some.lengthBytes = 0xffff_ffff
        break
      case 'empty buffer at a bad address':
        some.address = 42n << 40n
        some.lengthBytes = 0
        break
      case 'table in a table':
      case 'table behind a buffer':
        some.flags |= DescriptorFlag.INDIRECT
    }
  }

  #tableDescriptor(step: ChainStep, descriptors: readonly WrittenDescriptor[]): WrittenDescriptor {
    const number = step.table || 1
    const lengthBytes = 16 * descriptors.length
    const descriptor = {
      address: GUEST + BigInt(TABLES_AT + TABLE_BYTES * (number - 1)),
      lengthBytes,
      flags: DescriptorFlag.INDIRECT,
      next: 0,
    }
    switch (step.flaw) {
      case 'table of length 0':
        return { ...descriptor, lengthBytes: 0 }
      case 'table of length 24':
        return { ...descriptor, lengthBytes: 24 }
      case 'table with a next':
        return { ...descriptor, flags: DescriptorFlag.INDIRECT | DescriptorFlag.NEXT }
      case 'table outside memory':
        return { ...descriptor, address: GUEST + BigInt(FILE_BYTES - lengthBytes + 1) }
      default:
        return descriptor
    }
  }

  readonly #descriptor = Buffer.alloc(16)
  #writeDescriptor(at: number, { address, lengthBytes, flags, next }: WrittenDescriptor): void {
    this.#descriptor.writeBigUInt64LE(address & (TOP - 1n), 0)
    this.#descriptor.writeUInt32LE(lengthBytes, 8)
    this.#descriptor.writeUInt16LE(flags, 12)
    this.#descriptor.writeUInt16LE(next, 14)
    this.#stage.memories.write(this.#file, at, this.#descriptor)
  }

  // ---- The device ----

  #take(count: number): void {
    const ours = this.#native.take(count)
    const theirs = this.#model.take(count)
    if (typeof theirs === 'string') {
      this.#expectFault('take', -ours, theirs)
      // What was put off goes out when nothing more will come.
      this.#model.settle()
      return
    }
    expectSame('requests taken', ours, theirs.length)
    const { requests, segments, headers } = this.#native
    const headerWords = Math.ceil(this.#headerBytes / 4)
    for (const [row, { head, header, readable, writable }] of theirs.entries()) {
      const base = row * RequestRow.words
      expectSame('head', requests[base + RequestRow.head], head)
      expectSame('readable pieces', requests[base + RequestRow.readableCount], readable.length)
      expectSame('writable pieces', requests[base + RequestRow.writableCount], writable.length)
      const first = requests[base + RequestRow.firstSegment]!
      for (const [index, piece] of [...readable, ...writable].entries()) {
        const at = (first + index) * SegmentRow.words
        expectSame('region of a piece', segments[at + SegmentRow.window], piece.region)
        expectSame('offset of a piece', segments[at + SegmentRow.offsetBytes], piece.offsetBytes)
        expectSame('length of a piece', segments[at + SegmentRow.lengthBytes], piece.lengthBytes)
      }
      const ourHeader = Buffer.from(headers.buffer, headers.byteOffset + 4 * row * headerWords, header.length)
      if (!ourHeader.equals(header))
        expectSame('header', ourHeader.toString('hex'), Buffer.from(header).toString('hex'))
      this.#taken.push({ head, writableBytes: writable.reduce((sum, piece) => sum + piece.lengthBytes, 0) })
    }
  }

  #complete(answers: readonly { pick: number; bytes: number; status: number }[], defers: boolean): void {
    const rows = answers.map(({ pick, bytes, status }) => {
      const index = pick % (this.#taken.length + 1)
      // One more than there are: an answer to nobody.
      const [taken] = index === this.#taken.length ? [] : this.#taken.splice(index, 1)
      const head = taken?.head ?? pick
      return { head, bytesWritten: bytes === -1 ? (taken?.writableBytes ?? 0) : bytes, status }
    })
    const { completions } = this.#native
    for (const [row, { head, bytesWritten, status }] of rows.entries()) {
      const base = row * CompletionRow.words
      completions[base + CompletionRow.head] = head
      completions[base + CompletionRow.bytesWritten] = bytesWritten
      completions[base + CompletionRow.status] = status
    }
    const ours = this.#native.complete(rows.length, 0, defers)
    if (defers && ours > 0 && (ours & CompleteBits.undecided) !== 0) {
      // Only a device that was quick does it; the next complete, take or stop is to make up for it.
      expectSame('put off', ours, CompleteBits.undecided | CompleteBits.more)
      expectSame('fault while putting off', undefined, this.#model.publish(rows))
      expectSame('may be put off', true, this.#model.signalCanWait)
      this.#taken = this.#taken.filter(({ head }) => this.#model.owns(head))
      return
    }
    const theirs = this.#model.complete(rows)
    if (typeof theirs === 'string') {
      this.#expectFault('complete', -ours, theirs)
      return
    }
    const { signal, armed } = theirs
    const decision = signal === undefined ? 0 : signal ? CompleteBits.signalled : CompleteBits.suppressed
    const more = this.#model.isRunning ? CompleteBits.more : 0
    expectSame('complete', ours, decision | (armed ? CompleteBits.armed : more))
    // An answer to a head in flight that nobody was given: the head is free again all the same.
    this.#taken = this.#taken.filter(({ head }) => this.#model.owns(head))
  }

  #expectFault(what: string, ours: number, theirs: keyof typeof RingBreak | undefined): void {
    expectSame(what, ours, theirs === undefined ? 0 : RingBreak[theirs])
  }

  #expectSameState(): void {
    const model = this.#model
    const { visible, armed, inFlight, broken, availableIndex, usedIndex } = this.#native.inspect()
    expectSame('visible entries', visible, model.visibleCount)
    expectSame('armed', armed, model.armed)
    expectSame('in flight', inFlight, model.inFlightCount)
    expectSame('broken', broken, model.broken === undefined ? 0 : RingBreak[model.broken])
    expectSame('available index', availableIndex, model.availableIndex)
    expectSame('used index', usedIndex, model.usedIndex)
    for (const name in model.counts) {
      const key = name as keyof typeof model.counts
      expectSame(name, this.#counters[2 * QueueCounter[key]], model.counts[key])
    }
    const lastFault = model.lastFault === undefined ? 0 : RingBreak[model.lastFault]
    expectSame('last fault', this.#counters[2 * QueueCounter.lastFault], lastFault)
    const difference = this.#stage.memories.difference()
    if (difference !== undefined) throw new Disagreement(difference)
  }
}
