// The reference models with one bug each, such as back-ends really had. The comparison with the native core must notice
// every one of them, or it would not notice the same bug there.
import {
  indexDistance,
  type ReferenceCommand,
  type ReferencePiece,
  type ReferenceRegion,
  ReferenceSplitQueue,
  type ReferenceSplitRing,
  type ReferenceTcmuAnswer,
  ReferenceTcmuRing,
  type RingFault,
} from '../../src/testing/index.ts'

/** A model that is wrong in the way that its title tells. */
export interface PlantedBug<Model> {
  readonly title: string
  readonly Model: Model
}

const NO_NOTIFY = 1

export const splitBugs: readonly PlantedBug<typeof ReferenceSplitQueue>[] = [
  {
    title: 'the decided index moves with signals only',
    Model: class extends ReferenceSplitQueue {
      protected override decide(): boolean {
        const old = this.decidedIndex
        const signals = super.decide()
        if (!signals) this.decidedIndex = old
        return signals
      }
    },
  },
  {
    title: 'the event index is compared without the wrap',
    Model: class extends ReferenceSplitQueue {
      protected override decide(): boolean {
        const old = this.decidedIndex
        const signals = super.decide()
        if (old === undefined || !this.ring.eventIdx) return signals
        const event = this.parts!.available.getUint16(4 + 2 * this.ring.size, true)
        return event >= old && event < this.usedIndex
      }
    },
  },
  {
    title: 'the first decision after a start believes the one before it',
    Model: class extends ReferenceSplitQueue {
      override start(ring: ReferenceSplitRing, regions: readonly ReferenceRegion[]): RingFault | undefined {
        const old = this.decidedIndex
        const fault = super.start(ring, regions)
        this.decidedIndex = old
        return fault
      }
    },
  },
  {
    title: 'the mask of the ring is one bit short',
    Model: class extends ReferenceSplitQueue {
      protected override slot(index: number): number {
        return index % Math.max(1, this.ring.size / 2)
      }
    },
  },
  {
    title: 'the used length never counts the status byte',
    Model: class extends ReferenceSplitQueue {
      protected override usedLength(written: number): number {
        return written
      }
    },
  },
  {
    title: 'the used length counts the status byte behind data that was not written',
    Model: class extends ReferenceSplitQueue {
      protected override usedLength(written: number): number {
        return this.options.statusByte ? written + 1 : written
      }
    },
  },
  {
    title: 'an indirect table may be in an indirect table',
    Model: class extends ReferenceSplitQueue {
      protected override mayBeIndirect(
        descriptor: Parameters<ReferenceSplitQueue['mayBeIndirect']>[0],
      ): boolean {
        return super.mayBeIndirect(descriptor, false)
      }
    },
  },
  {
    title: 'an indirect descriptor may have a next',
    Model: class extends ReferenceSplitQueue {
      protected override mayBeIndirect(
        descriptor: Parameters<ReferenceSplitQueue['mayBeIndirect']>[0],
        isInTable: boolean,
      ): boolean {
        return super.mayBeIndirect({ ...descriptor, hasNext: false }, isInTable)
      }
    },
  },
  {
    title: 'a chain may be one descriptor too long',
    Model: class extends ReferenceSplitQueue {
      protected override indirectCountMax(): number {
        return super.indirectCountMax() + 1
      }
    },
  },
  {
    title: 'the last byte of a buffer may lie outside memory',
    Model: class extends ReferenceSplitQueue {
      protected override *piecesOf(
        address: bigint,
        lengthBytes: number,
      ): Generator<ReferencePiece | undefined> {
        const pieces = [...super.piecesOf(address, lengthBytes)]
        const found = pieces.reduce((sum, piece) => sum + (piece?.lengthBytes ?? 0), 0)
        const last = pieces.at(-2)
        if (found !== lengthBytes - 1 || last === undefined) return yield* pieces
        yield* pieces.slice(0, -2)
        yield { ...last, lengthBytes: last.lengthBytes + 1 }
      }
    },
  },
  {
    title: 'a status goes where its address is by now',
    Model: class extends ReferenceSplitQueue {
      protected override byteAt(address: bigint): ((value: number) => void) | undefined {
        if (super.byteAt(address) === undefined) return undefined
        return (value) => super.byteAt(address)?.(value)
      }
    },
  },
  {
    title: 'a head may be taken while it is in flight',
    Model: class extends ReferenceSplitQueue {
      protected override headFault(head: number): RingFault | undefined {
        return head >= this.ring.size ? 'ERR_RING_HEAD_RANGE' : undefined
      }
    },
  },
  {
    title: 'avail_event is written though event indices were not negotiated',
    Model: class extends ReferenceSplitQueue {
      protected override askForKicks(): void {
        super.askForKicks()
        if (this.armed) this.parts!.used.setUint16(4 + 8 * this.ring.size, this.availableIndex, true)
      }
    },
  },
  {
    title: 'kicks are suppressed by a flag though event indices were negotiated',
    Model: class extends ReferenceSplitQueue {
      protected override suppressKicks(): void {
        super.suppressKicks()
        this.writeUsedFlags(NO_NOTIFY)
      }
    },
  },
  {
    title: 'an available index that went back by one is taken for a full ring',
    Model: class extends ReferenceSplitQueue {
      protected override break(fault: RingFault): RingFault {
        const isBack = indexDistance(this.driversIndex(), this.availableIndex) === 1
        return fault === 'ERR_RING_AVAIL_INDEX' && isBack ? fault : super.break(fault)
      }
    },
  },
]

export const tcmuBugs: readonly PlantedBug<typeof ReferenceTcmuRing>[] = [
  {
    title: 'an answer goes into the entry that its command came in',
    Model: class extends ReferenceTcmuRing {
      protected override placeFor(command: ReferenceCommand) {
        return this.entries.find((entry) => entry.command === command)!
      }
    },
  },
  {
    title: 'a kernel that wants answers in order gets them in any',
    Model: class extends ReferenceTcmuRing {
      protected override placeFor() {
        return this.entries.find(({ command, answered }) => command !== undefined && answered === undefined)!
      }
    },
  },
  {
    title: 'the tail does not pass a PAD',
    Model: class extends ReferenceTcmuRing {
      protected override mayPass(entry: Parameters<ReferenceTcmuRing['mayPass']>[0]): boolean {
        return entry.answered !== undefined
      }
    },
  },
  {
    title: 'the tail moves by the length that lies in the ring when it moves',
    Model: class extends ReferenceTcmuRing {
      protected override lengthOf({ offsetBytes }: Parameters<ReferenceTcmuRing['lengthOf']>[0]): number {
        const lengthAndOpcode = this.memory!.getUint32(this.ringOffset + offsetBytes, true)
        return lengthAndOpcode - (lengthAndOpcode % 8)
      }
    },
  },
  {
    title: 'a task management request does not end its batch',
    Model: class extends ReferenceTcmuRing {
      protected override endsBatch(): boolean {
        return false
      }
    },
  },
  {
    title: 'task management names commands that were answered',
    Model: class extends ReferenceTcmuRing {
      protected override commandNamed(id: number): ReferenceCommand | undefined {
        return this.owned.get(id)?.command
      }
    },
  },
  {
    title: 'an unknown entry is passed without a word',
    Model: class extends ReferenceTcmuRing {
      protected override refuse(): void {
        this.counts.unknownOps++
      }
    },
  },
  {
    title: 'the length of a short read is told to a kernel that does not know it',
    Model: class extends ReferenceTcmuRing {
      protected override writeAnswer(
        at: number,
        id: number,
        answer: ReferenceTcmuAnswer,
        keep: boolean,
      ): void {
        const { flags } = this
        this.flags |= 2
        super.writeAnswer(at, id, answer, keep)
        this.flags = flags
      }
    },
  },
  {
    title: 'the id of a command whose buffer is kept may be used again',
    Model: class extends ReferenceTcmuRing {
      protected override letGo(id: number): void {
        this.owned.delete(id)
      }
    },
  },
  {
    title: 'sense data is written with every status',
    Model: class extends ReferenceTcmuRing {
      protected override writeAnswer(
        at: number,
        id: number,
        answer: ReferenceTcmuAnswer,
        keep: boolean,
      ): void {
        super.writeAnswer(at, id, { ...answer, status: 2 }, keep)
        this.memory!.setUint8(at + 8, answer.status)
      }
    },
  },
]
