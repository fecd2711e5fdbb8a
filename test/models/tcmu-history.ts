// Random histories of one TCMU ring, played on the native ring and on the reference model at once.
import fc from 'fast-check'
import {
  CDB_WORDS,
  CompleteBits,
  type NativeTcmuPort,
  type NativeTcmuQueue,
  native,
  RingBreak,
  SegmentRow,
  TcmuCommandRow,
  TcmuCompletionFlag,
  TcmuCompletionRow,
  TcmuCounter,
  TcmuTidings,
} from '../../src/native.ts'
import {
  type ReferenceCommand,
  type ReferenceTcmuAnswer,
  type ReferenceTcmuOptions,
  ReferenceTcmuRing,
  TcmuKernel,
} from '../../src/testing/index.ts'
import { KiB } from '../../src/units.ts'
import { Disagreement, expectSame, playSteps } from './expect-same.ts'

// ---- Histories ---------------------------------------------------------------------------------------------------

/** What is wrong with a command; `none`: nothing. The CDB without a length of its own is legal. */
const flaws = [
  'id 0',
  'id in flight',
  'shorter than an answer',
  'length 0',
  'length beyond the head',
  'more vectors than the entry holds',
  'vector in the ring',
  'vector past the end',
  'vector that wraps',
  'more data than the data area',
  'CDB in the vectors',
  'CDB behind the entry',
  'CDB at the end of the entry',
] as const

interface CommandStep {
  readonly do: 'send a command'
  readonly pick: number
  readonly data: readonly number[]
  readonly bidi: readonly number[]
  readonly opcode: number
  readonly additional: number
  readonly flaw: (typeof flaws)[number] | 'none'
  readonly publish: boolean
}

interface AnswerChoice {
  readonly pick: number
  readonly status: number
  readonly readLength: number
  readonly keepBuffer: boolean
  readonly sense: number
}

export type TcmuStep =
  | CommandStep
  | {
      readonly do: 'send task management'
      readonly type: number
      readonly ids: readonly number[]
      readonly claims: number
      readonly publish: boolean
    }
  | {
      readonly do: 'send an entry'
      readonly opcode: number
      readonly words: number
      readonly publish: boolean
    }
  | { readonly do: 'publish'; readonly jump: number }
  | { readonly do: 'take'; readonly count: number }
  | { readonly do: 'complete'; readonly answers: readonly AnswerChoice[] }
  | { readonly do: 'free a kept buffer'; readonly pick: number }
  | { readonly do: 'restart'; readonly ring: TcmuRingChoice; readonly reset: boolean }
  | { readonly do: 'stop' }
  | { readonly do: 'scribble'; readonly at: number; readonly value: number }

/** The mailbox. */
export interface TcmuRingChoice {
  readonly version: number
  readonly flags: number
  readonly offset: number
  readonly size: number
  readonly tail: number
}

export interface TcmuHistory {
  readonly options: ReferenceTcmuOptions
  readonly ring: TcmuRingChoice
  readonly steps: readonly TcmuStep[]
}

const mostly = fc.oneof(
  { weight: 6, arbitrary: fc.constant(true) },
  { weight: 1, arbitrary: fc.constant(false) },
)

const ringChoice: fc.Arbitrary<TcmuRingChoice> = fc.record({
  version: fc.oneof(
    { weight: 80, arbitrary: fc.constant(2) },
    { weight: 1, arbitrary: fc.constantFrom(0, 1, 3) },
  ),
  flags: fc.oneof({ weight: 3, arbitrary: fc.constant(15) }, { weight: 2, arbitrary: fc.nat(15) }),
  offset: fc.oneof(
    { weight: 80, arbitrary: fc.constantFrom(128, 192) },
    { weight: 1, arbitrary: fc.constantFrom(120, 132, 8192) },
  ),
  size: fc.oneof(
    { weight: 80, arbitrary: fc.constantFrom(2056, 1024, 4000, 1024, 600, 224) },
    { weight: 1, arbitrary: fc.constantFrom(216, 1028, 8192, 0) },
  ),
  tail: fc.oneof(
    { weight: 20, arbitrary: fc.constant(0) },
    { weight: 40, arbitrary: fc.nat(255).map((count) => 8 * count) },
    { weight: 1, arbitrary: fc.nat(2100) },
  ),
})

const vectors = fc.array(fc.constantFrom(1, 512, 513, 7, 0), { maxLength: 3 })

const step: fc.Arbitrary<TcmuStep> = fc.oneof(
  {
    weight: 14,
    arbitrary: fc.record({
      do: fc.constant('send a command' as const),
      pick: fc.nat(15),
      data: vectors,
      bidi: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: vectors }),
      opcode: fc.constantFrom(0x00, 0x28, 0x5f, 0x60, 0x7f, 0x88, 0xa8, 0xc0),
      additional: fc.constantFrom(0, 24, 255),
      flaw: fc.oneof(
        { weight: 25, arbitrary: fc.constant('none' as const) },
        { weight: 1, arbitrary: fc.constantFrom(...flaws) },
      ),
      publish: mostly,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('send task management' as const),
      type: fc.constantFrom(1, 5, 128),
      ids: fc.array(fc.nat(9), { maxLength: 6 }),
      claims: fc.oneof(
        { weight: 12, arbitrary: fc.constant(0) },
        { weight: 1, arbitrary: fc.constantFrom(5, 0x8000_0000) },
      ),
      publish: mostly,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('send an entry' as const),
      opcode: fc.constantFrom(0, 0, 3, 7),
      words: fc.integer({ min: 1, max: 6 }),
      publish: mostly,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('publish' as const),
      jump: fc.oneof(
        { weight: 15, arbitrary: fc.constant(0) },
        { weight: 1, arbitrary: fc.constantFrom(8, -8, 4, 128, 4096) },
      ),
    }),
  },
  { weight: 10, arbitrary: fc.record({ do: fc.constant('take' as const), count: fc.nat(9) }) },
  {
    weight: 10,
    arbitrary: fc.record({
      do: fc.constant('complete' as const),
      answers: fc.array(
        fc.record({
          pick: fc.nat(9),
          status: fc.constantFrom(0, 2, 8, 258),
          readLength: fc.constantFrom(0, 1, 512, 0xffff_ffff),
          keepBuffer: fc.boolean(),
          sense: fc.nat(255),
        }),
        { maxLength: 4 },
      ),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('free a kept buffer' as const), pick: fc.nat(5) }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('restart' as const), ring: ringChoice, reset: mostly }),
  },
  {
    weight: 1,
    arbitrary: fc.oneof(
      fc.record({ do: fc.constant('stop' as const) }),
      fc.record({ do: fc.constant('scribble' as const), at: fc.nat(1100), value: fc.nat(0xffff) }),
    ),
  },
)

export const tcmuHistories: fc.Arbitrary<TcmuHistory> = fc.record({
  options: fc.record({ commandCountMax: fc.constantFrom(16, 3), batchCountMax: fc.constantFrom(8, 2) }),
  ring: ringChoice,
  steps: fc.array(step, { maxLength: 60, size: 'max' }),
})

// ---- Playing them ------------------------------------------------------------------------------------------------

const MAP_BYTES = 8 * KiB
const HISTORIES_A_STAGE = 2000
const COMMAND = 1
const TMR = 2

/**
 * The native side. Its ring lies in the memory of a simulated kernel, which takes no part: it believes the ring to be
 * broken from the first doorbell on.
 */
class Stage {
  readonly memory: Buffer
  readonly #mailbox: Buffer
  readonly #kernel = new TcmuKernel({ ringBytes: 4 * KiB, dataAreaBytes: 4 * KiB })
  readonly #port: NativeTcmuPort
  /** By their options; a queue is started anew for each history. */
  readonly #queues = new Map<string, NativeTcmuQueue>()
  historyCount = 0

  constructor() {
    this.#port = this.#kernel.openPort()
    this.memory = Buffer.from(this.#port.windows[0]!)
    this.#mailbox = Buffer.from(this.memory)
  }

  queue(options: ReferenceTcmuOptions): NativeTcmuQueue {
    const key = JSON.stringify(options)
    const queue =
      this.#queues.get(key) ??
      native.createTcmuQueue({ ...options, port: this.#port, inlineCopyBytesMax: Number.MAX_SAFE_INTEGER })
    this.#queues.set(key, queue)
    // As new: what broke it before is over once it started on a good ring, the one that the kernel made.
    this.memory.set(this.#mailbox)
    expectSame('start', queue.start(), 0)
    queue.stop()
    this.memory.fill(0)
    queue.counters.fill(0n)
    return queue
  }

  close(): void {
    for (const queue of this.#queues.values()) queue.close()
    this.#port.close()
    this.#kernel.close()
  }
}

let stage: Stage | undefined

function preparedStage(): Stage {
  // The kernel keeps a line of its log for each doorbell.
  if (stage !== undefined && stage.historyCount === HISTORIES_A_STAGE) {
    stage.close()
    stage = undefined
  }
  stage ??= new Stage()
  stage.historyCount++
  return stage
}

/**
 * Plays a history on both sides. Throws at the first step after which they differ in a result, a table, a counter or a
 * byte of memory.
 *
 * @param Model the reference, or one with a planted bug
 */
export function playTcmu(history: TcmuHistory, Model: typeof ReferenceTcmuRing = ReferenceTcmuRing): void {
  const play = new TcmuPlay(history, Model)
  try {
    play.start(history.ring)
    playSteps(history.steps, (step) => play.step(step))
  } finally {
    play.stop()
  }
}

class TcmuPlay {
  readonly #ours: Buffer
  readonly #theirs = Buffer.from(new ArrayBuffer(MAP_BYTES))
  readonly #native: NativeTcmuQueue
  /** The low and high words of the native counters; no history counts beyond the low one. */
  readonly #counters: Uint32Array
  readonly #model: ReferenceTcmuRing
  /** As the kernel remembers the ring. */
  #ring: TcmuRingChoice
  #head = 0
  /** Ids of the commands that were sent and not taken. */
  #sentIds: number[] = []
  /** Commands by the native ring's numbers, which it gives out again; the latest counts. */
  readonly #commands = new Map<number, ReferenceCommand>()
  #inFlight: number[] = []
  #lastFault: keyof typeof RingBreak | undefined

  constructor({ options, ring }: TcmuHistory, Model: typeof ReferenceTcmuRing) {
    const { memory } = preparedStage()
    this.#ours = memory
    this.#native = stage!.queue(options)
    const { buffer, byteOffset, length } = this.#native.counters
    this.#counters = new Uint32Array(buffer, byteOffset, 2 * length)
    this.#model = new Model(options)
    this.#ring = ring
  }

  stop(): void {
    this.#native.stop()
  }

  start(ring: TcmuRingChoice, reset = true): void {
    this.#ring = ring
    this.#forget()
    const { version, flags, offset, size } = ring
    const tail = ring.tail % Math.max(1, size)
    this.#write(0, 2, version)
    this.#write(2, 2, flags)
    this.#write(4, 4, offset)
    this.#write(8, 4, size)
    if (reset) {
      this.#head = tail
      this.#write(12, 4, tail)
      this.#write(64, 4, tail)
    }
    this.#expectFault('start', this.#native.start(), this.#model.start(this.#theirs))
    this.#expectSameState()
  }

  #forget(): void {
    this.#sentIds = []
    this.#inFlight = []
    this.#commands.clear()
  }

  step(step: TcmuStep): void {
    switch (step.do) {
      case 'send a command':
        this.#sendCommand(step)
        return
      case 'send task management':
        this.#sendTaskManagement(step.ids, step)
        return
      case 'send an entry': {
        const at = this.#begin(8 * step.words)
        if (at !== undefined) this.#end(at, 8 * step.words, step.opcode, step.publish)
        return
      }
      case 'publish':
        this.#head += step.jump
        this.#publish()
        return
      case 'scribble':
        this.#write(step.at, 2, step.value)
        return
      case 'take':
        this.#take(step.count)
        break
      case 'complete':
        this.#complete(step.answers)
        break
      case 'free a kept buffer':
        this.#native.freeKept(step.pick)
        this.#model.freeKept(this.#commands.get(step.pick))
        break
      case 'restart':
        this.start(step.ring, step.reset)
        return
      case 'stop':
        this.#forget()
        this.#native.stop()
        this.#model.stop()
    }
    this.#expectSameState()
  }

  // ---- The kernel ----

  #write(at: number, lengthBytes: number, value: number): void {
    const unsigned = lengthBytes === 4 ? value >>> 0 : value & 0xffff
    this.#ours.writeUIntLE(unsigned, at, lengthBytes)
    this.#theirs.writeUIntLE(unsigned, at, lengthBytes)
  }

  #write64(at: number, value: bigint): void {
    this.#ours.writeBigUInt64LE(value, at)
    this.#theirs.writeBigUInt64LE(value, at)
  }

  #publish(): void {
    this.#write(12, 4, this.#head)
  }

  /** Where an entry of so many bytes comes, zeroed, behind a PAD if need be. Nothing when there is no room. */
  #begin(lengthBytes: number): number | undefined {
    const { offset, size } = this.#ring
    const head = this.#head
    const isRing = offset >= 128 && offset + size <= MAP_BYTES && head >= 0 && head % 8 === 0 && head < size
    if (!isRing) return undefined
    const used =
      head >= this.#model.tailIndex ? head - this.#model.tailIndex : size - this.#model.tailIndex + head
    const padBytes = size - head < lengthBytes ? size - head : 0
    if (size - used - 1 < padBytes + lengthBytes) return undefined
    if (padBytes > 0) {
      this.#write(offset + head, 4, padBytes)
      this.#head = 0
    }
    const at = offset + this.#head
    this.#ours.fill(0, at, at + lengthBytes)
    this.#theirs.fill(0, at, at + lengthBytes)
    return at
  }

  #end(at: number, lengthBytes: number, opcode: number, publish: boolean): void {
    this.#write(at, 4, lengthBytes + opcode)
    this.#head = (this.#head + lengthBytes) % this.#ring.size
    if (publish) this.#publish()
  }

  #sendCommand(step: CommandStep): void {
    const { flaw, data, bidi } = step
    const isVariable = step.opcode === 0x7f
    const cdbBytes = isVariable ? Math.min(8 + step.additional, 64) : 16
    const vectorBytes = 16 * (data.length + bidi.length)
    const cdbAt = Math.max(112, 48 + vectorBytes)
    const wanted = cdbAt + Math.ceil(cdbBytes / 8) * 8
    const lengthBytes = flaw === 'shorter than an answer' ? 104 : wanted
    const at = this.#begin(wanted)
    if (at === undefined) return
    const id = this.#idFor(step)
    this.#write(at + 4, 2, id)
    this.#write(at + 8, 4, flaw === 'more vectors than the entry holds' ? 0x7fff_ffff : data.length)
    this.#write(at + 12, 4, bidi.length)
    const areaAt = this.#ring.offset + this.#ring.size
    for (const [index, length] of [...data, ...bidi].entries()) {
      const flawed = index === 0 ? flaw : 'none'
      const [base, iovLength] = vectorOf(flawed, areaAt, BigInt(length), BigInt(areaAt + 600 * index))
      this.#write64(at + 48 + 16 * index, base)
      this.#write64(at + 56 + 16 * index, iovLength)
    }
    const cdbOffset =
      flaw === 'CDB in the vectors'
        ? cdbAt - 8
        : flaw === 'CDB behind the entry'
          ? lengthBytes
          : flaw === 'CDB at the end of the entry'
            ? lengthBytes - 1
            : cdbAt
    this.#write64(at + 24, BigInt(at + cdbOffset))
    this.#write(at + cdbAt, 2, step.opcode | (step.pick << 8))
    this.#write(at + cdbAt + 6, 2, step.additional << 8)
    if (cdbBytes > 8) this.#write(at + cdbAt + 8, 2, 0xa5a5)
    this.#sentIds.push(id)
    this.#end(at, lengthBytes, COMMAND, false)
    if (flaw === 'length 0') this.#write(at, 4, COMMAND)
    if (flaw === 'length beyond the head') this.#write(at, 4, lengthBytes + 8 + COMMAND)
    if (step.publish) this.#publish()
  }

  /** An id that nobody has, or on purpose one that somebody has. */
  #idFor({ pick, flaw }: CommandStep): number {
    if (flaw === 'id 0') return 0
    const ids = Array.from({ length: 40 }, (_, index) => index + 1)
    const isTaken = (id: number) => this.#sentIds.includes(id) || this.#model.owns(id)
    const choice = ids.filter((id) => isTaken(id) === (flaw === 'id in flight'))
    return choice.length === 0 ? 0 : choice[pick % choice.length]!
  }

  #sendTaskManagement(
    picks: readonly number[],
    { type, claims, publish }: { type: number; claims: number; publish: boolean },
  ): void {
    const lengthBytes = 32 + Math.ceil((2 * picks.length) / 8) * 8
    const at = this.#begin(lengthBytes)
    if (at === undefined) return
    this.#write(at + 8, 2, type)
    this.#write(at + 12, 4, picks.length + claims)
    for (const [index, pick] of picks.entries()) {
      const number = this.#inFlight[pick]
      const id = number === undefined ? pick : this.#commands.get(number)!.id
      this.#write(at + 32 + 2 * index, 2, id)
    }
    this.#end(at, lengthBytes, TMR, publish)
  }

  // ---- The device ----

  #take(count: number): void {
    const ours = this.#native.take(count)
    const theirs = this.#model.take(count)
    if (typeof theirs === 'string') {
      this.#expectFault('take', -ours, theirs)
      return
    }
    expectSame('commands taken', ours, theirs.commands.length)
    const { commands, cdbs, segments, tidings, aborted } = this.#native
    for (const [row, command] of theirs.commands.entries()) {
      const base = row * TcmuCommandRow.words
      expectSame('command id', commands[base + TcmuCommandRow.commandId], command.id)
      expectSame('CDB bytes', commands[base + TcmuCommandRow.cdbBytes], command.cdb.length)
      const cdb = Buffer.from(cdbs.buffer, cdbs.byteOffset + 4 * CDB_WORDS * row, 4 * CDB_WORDS)
      const wanted = Buffer.concat([command.cdb], 4 * CDB_WORDS)
      if (!cdb.equals(wanted)) expectSame('CDB', cdb.toString('hex'), wanted.toString('hex'))
      expectSame('pieces of data', commands[base + TcmuCommandRow.dataCount], command.data.length)
      expectSame('pieces of more data', commands[base + TcmuCommandRow.bidiCount], command.bidi.length)
      const first = commands[base + TcmuCommandRow.firstSegment]!
      for (const [index, piece] of [...command.data, ...command.bidi].entries()) {
        const at = (first + index) * SegmentRow.words
        expectSame('window of a piece', segments[at + SegmentRow.window], 0)
        expectSame('offset of a piece', segments[at + SegmentRow.offsetBytes], piece.offsetBytes)
        expectSame('length of a piece', segments[at + SegmentRow.lengthBytes], piece.lengthBytes)
      }
      const number = commands[base + TcmuCommandRow.command]!
      this.#commands.set(number, command)
      this.#inFlight.push(number)
      this.#sentIds = this.#sentIds.filter((id) => id !== command.id)
    }
    const { taskManagement } = theirs
    expectSame('task management', tidings[TcmuTidings.tmrPresent], taskManagement === undefined ? 0 : 1)
    if (taskManagement === undefined) return
    const named = taskManagement.commands
    expectSame('its type', tidings[TcmuTidings.tmrType], taskManagement.type)
    expectSame('commands it names', tidings[TcmuTidings.tmrCommandCount], named.length)
    for (const [index, command] of named.entries()) {
      expectSame('a command it names', this.#commands.get(aborted[index]!)?.id, command.id)
    }
  }

  #complete(choices: readonly AnswerChoice[]): void {
    const { completions, senses } = this.#native
    const answers = choices.map(({ pick, sense, ...choice }, row): ReferenceTcmuAnswer => {
      const index = pick % (this.#inFlight.length + 1)
      // One more than there are: an answer to nobody, or to a command that was answered.
      const [number = pick] = index === this.#inFlight.length ? [] : this.#inFlight.splice(index, 1)
      const base = row * TcmuCompletionRow.words
      completions[base + TcmuCompletionRow.command] = number
      completions[base + TcmuCompletionRow.status] = choice.status
      completions[base + TcmuCompletionRow.readLength] = choice.readLength
      completions[base + TcmuCompletionRow.flags] = choice.keepBuffer ? TcmuCompletionFlag.keepBuffer : 0
      completions[base + TcmuCompletionRow.copyBytes] = 0
      senses.fill(sense, 96 * row, 96 * (row + 1))
      return { ...choice, command: this.#commands.get(number), sense: new Uint8Array(96).fill(sense) }
    })
    // The table has no more rows than there may be commands.
    const rows = answers.slice(0, this.#model.options.commandCountMax)
    const ours = this.#native.complete(rows.length)
    const theirs = this.#model.complete(rows)
    if (typeof theirs === 'string') {
      this.#expectFault('complete', -ours, theirs)
      return
    }
    const look = this.#model.seesEntry ? CompleteBits.more : CompleteBits.armed
    expectSame('complete', ours, (theirs ? CompleteBits.signalled : 0) | (this.#model.isRunning ? look : 0))
    this.#inFlight = this.#inFlight.filter((number) => this.#model.awaitsAnswer(this.#commands.get(number)!))
  }

  #expectFault(what: string, ours: number, theirs: keyof typeof RingBreak | undefined): void {
    expectSame(what, ours, theirs === undefined ? 0 : RingBreak[theirs])
    if (theirs !== undefined && what === 'take') this.#lastFault = theirs
  }

  #expectSameState(): void {
    const model = this.#model
    const { flags, readIndex, tailIndex, broken } = this.#native.inspect()
    expectSame('flags', flags, model.flags)
    expectSame('read index', readIndex, model.readIndex)
    expectSame('tail index', tailIndex, model.tailIndex)
    expectSame('broken', broken, model.broken === undefined ? 0 : RingBreak[model.broken])
    expectSame('sees an entry', this.#native.seesEntry(), model.seesEntry)
    expectSame('nearly full', this.#native.tidings[TcmuTidings.nearlyFull], model.nearlyFull ? 1 : 0)
    for (const name in model.counts) {
      const key = name as keyof typeof model.counts
      expectSame(name, this.#counters[2 * TcmuCounter[key]], model.counts[key])
    }
    expectSame('doorbells', this.#counters[2 * TcmuCounter.doorbells], model.counts.publications)
    const lastFault = this.#lastFault === undefined ? 0 : RingBreak[this.#lastFault]
    expectSame('last fault', this.#counters[2 * TcmuCounter.lastFault], lastFault)
    if (this.#ours.equals(this.#theirs)) return
    const at = this.#ours.findIndex((byte, index) => byte !== this.#theirs[index])
    throw new Disagreement(`byte ${at}: native ${this.#ours[at]}, model ${this.#theirs[at]}`)
  }
}

/** Base and length of a vector, with its flaw. */
function vectorOf(flaw: string, areaAt: number, length: bigint, base: bigint): [bigint, bigint] {
  switch (flaw) {
    case 'vector in the ring':
      return [BigInt(areaAt - 1), length]
    case 'vector past the end':
      return [BigInt(MAP_BYTES) - length + 1n, length]
    case 'vector that wraps':
      return [BigInt(areaAt), (1n << 64n) - BigInt(areaAt)]
    case 'more data than the data area':
      return [BigInt(areaAt), BigInt(MAP_BYTES - areaAt)]
    default:
      return [base, length]
  }
}
