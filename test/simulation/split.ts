import { writeSync } from 'node:fs'
import { type SchedulerLike, Subject } from 'rxjs'
import type { Answer, SuppressionPolicy } from '../../src/index.ts'
import { native } from '../../src/native.ts'
import { DriverMemory, SharedRegion } from '../../src/ring/memory.ts'
import type { Completion, RingRequest } from '../../src/ring/request.ts'
import { SharedMemory, SplitDriver } from '../../src/testing/index.ts'
import { PipelineRun } from '../../src/transport/pipeline-run.ts'
import { KiB } from '../../src/units.ts'
import { type Behaviour, behave, behaviours, failures, lateOnes } from './behaviours.ts'
import { microtasks, type Outcome, Simulation } from './simulation.ts'
import { forgetPins, type SplitSabotage, WatchedQueue } from './split-sabotage.ts'

const REQUEST_HEADER_BYTES = 4
const ANSWER_BYTES = 4
const STATUS_UNWRITTEN = 0xff

interface Question {
  readonly number: number
  readonly at: { readonly header: number; readonly answer: number }
  behaviour: Behaviour | undefined
  /** Status bytes that the driver may find. */
  allowedStatuses: readonly number[]
  answeredCount: number
}

/** Each of them must come up within some thousand seeds. */
export const splitFaults: readonly string[] = [
  'a kick comes late',
  'a kick comes twice',
  'a kick for nothing',
  'a signal comes late',
  'a signal comes twice',
  'a look of the driver for nothing',
  'the call eventfd is full',
  'the memory is replaced',
  'the queue is drained and started anew',
  'what is in flight is given up',
  'the driver is gone',
]
export const splitBehaviours: readonly string[] = behaviours

/**
 * Serves one queue with the product's pipeline on a virtual clock, with a driver, a handler and an operator that do what
 * the seed says: kicks that come late, twice or for nothing, a call eventfd that is full, handlers of every kind, memory
 * that is replaced, queues that are drained, given up and started anew.
 *
 * Nothing in it waits for a real event: the ring is real memory, but kicks and signals are carried by the clock.
 *
 * @param seed decides everything
 * @param sabotage a mistake to be noticed
 */
export function simulateSplit(seed: number, sabotage?: SplitSabotage): Promise<Outcome> {
  return new SplitSimulation(seed, sabotage).play()
}

class SplitSimulation extends Simulation {
  readonly #sabotage: SplitSabotage | undefined
  readonly #sharedMemory = new SharedMemory({ sizeBytes: 256 * KiB })
  readonly #driver: SplitDriver
  readonly #queue: WatchedQueue
  readonly #questions: Question[] = []
  readonly #byHeader = new Map<number, Question>()
  readonly #askCount: number
  readonly #creditCountMax: number
  readonly #requestTimeoutMs: number
  readonly #policy: { readonly make: () => SuppressionPolicy; readonly holdMsMax: number }
  readonly #free: Question['at'][] = []
  #memory: DriverMemory
  readonly #generations: DriverMemory[] = []
  #run: PipelineRun<RingRequest> | undefined
  #kicks = new Subject<void>()
  /** Virtual time since when an answer has been ready and not out. */
  #readySinceMs: number | undefined
  #readyCount = 0
  /** The driver went away, with whatever it had asked. */
  #isGone = false
  /** Settles what "never settles", after all else is over. */
  readonly #unsettled: (() => void)[] = []
  /** The driver would ask if it had room. */
  #isStarved = false
  /** Next available index when the queue is started again. */
  #base = 0

  constructor(seed: number, sabotage: SplitSabotage | undefined) {
    super(seed)
    this.#sabotage = sabotage
    const size = this.pick([2, 4, 8, 16])
    const eventIdx = this.chance(0.5)
    this.#driver = new SplitDriver({ memory: this.#sharedMemory, size: 4 * size, eventIdx })
    for (let slot = 0; slot < size; slot++) {
      const header = this.#sharedMemory.allocate(REQUEST_HEADER_BYTES)
      this.#free.push({ header, answer: this.#sharedMemory.allocate(ANSWER_BYTES + 1) })
    }
    this.#askCount = this.integer(1, 60)
    this.#creditCountMax = this.integer(1, size)
    this.#requestTimeoutMs = this.chance(0.5) ? 0 : 50
    this.#policy = this.somePolicy()
    if (sabotage === 'answers are held for ever') this.#policy = { make: () => () => 900_000, holdMsMax: 1 }
    this.#memory = this.#mapMemory()
    this.#queue = new WatchedQueue(
      {
        index: 0,
        sizeMax: 4 * size,
        headerBytes: REQUEST_HEADER_BYTES,
        statusByte: true,
        batchCountMax: this.integer(1, 8),
      },
      { onRecord: () => this.#onRecord(), onPublish: (count) => this.#onPublish(count) },
      sabotage,
    )
    this.tell(`a ring of ${4 * size}, ${eventIdx ? 'EVENT_IDX' : 'flags'}, ${this.#askCount} requests`)
  }

  protected override async run(): Promise<void> {
    this.#start()
    this.#planFaults()
    this.after(0, () => this.#ask())
    await this.playOut()
    // Whatever was done to it, a queue that runs serves what is on its ring.
    this.faultsAreOver = true
    if (this.#run === undefined && !this.#isGone) this.#start()
    await this.playOut()
    if (!this.#isGone) this.#expectAllAnswered()
    await this.#end()
  }

  protected override close(): void {
    this.#run?.unsubscribe()
    this.#queue.close()
    this.#memory.retire()
    this.#driver.close()
    this.#sharedMemory.close()
  }

  protected override afterStep(): void {
    this.#carryWakeUps()
    if (this.#queue.inFlightCount > this.#creditCountMax)
      this.violate('more in flight than there are credits')
  }

  // ---- The device -------------------------------------------------------------------------------------------

  /** The clock as the pipeline sees it. */
  #schedulerOfPipeline(): SchedulerLike {
    if (this.#sabotage !== 'what is left after a full budget is forgotten') return this.clock
    const clock = this.clock
    return {
      now: () => clock.now(),
      schedule: ((work: () => void, delayMs = 0) =>
        clock.schedule(delayMs === 0 ? () => {} : work, delayMs)) as SchedulerLike['schedule'],
    }
  }

  #mapMemory(): DriverMemory {
    const { fd, guestAddress, userAddress, sizeBytes, mmapOffsetBytes } = this.#sharedMemory
    const region = { fd, guestAddress, userAddress, sizeBytes: BigInt(sizeBytes), mmapOffsetBytes }
    const memory = new DriverMemory([new SharedRegion(region)])
    if (this.#sabotage === 'F14') forgetPins(memory)
    this.#generations.push(memory)
    return memory
  }

  #start(): void {
    const { addresses, size, eventIdx, callFd } = this.#driver
    this.#queue.start({
      size,
      memory: this.#memory,
      descriptorAddress: addresses.descriptor,
      availableAddress: addresses.available,
      usedAddress: addresses.used,
      availableBase: this.#base,
      eventIdx,
      indirect: true,
      callFd,
    })
    this.#kicks = new Subject()
    this.#run = new PipelineRun()
    this.startPipeline(this.#run, this.#queue, this.#kicks, (request) => this.#handle(request), {
      suppression: this.#policy.make(),
      creditCountMax: this.#creditCountMax,
      requestTimeoutMs: this.#requestTimeoutMs,
      scheduler: this.#schedulerOfPipeline(),
    })
  }

  #handle(request: RingRequest): Answer {
    const question = this.#byHeader.get(request.headerWords[0]!)
    if (question === undefined) {
      this.violate(`a request that nobody made: ${request.headerWords[0]}`)
      return request.ok(0)
    }
    if (question.behaviour !== undefined) this.violate(`request ${question.number} is handed out twice`)
    const settles = this.#requestTimeoutMs > 0 && !this.faultsAreOver
    question.behaviour = this.pick(behaviours.slice(0, settles ? behaviours.length : -1))
    this.count(question.behaviour)
    return this.#answerAs(question.behaviour, question, request)
  }

  #answerAs(behaviour: Behaviour, question: Question, request: RingRequest): Answer {
    const delayMs = this.integer(0, 100)
    const isLate = this.#requestTimeoutMs > 0 && delayMs >= this.#requestTimeoutMs
    if (failures.has(behaviour)) question.allowedStatuses = [1]
    else if (isLate && lateOnes.has(behaviour)) question.allowedStatuses = [0, 1]
    return behave(behaviour, {
      request,
      clock: this.clock,
      delayMs,
      withPromise: () => this.chance(0.5),
      ok: () => this.#fill(question, request),
      onUnsettled: (settle) => this.#unsettled.push(settle),
    })
  }

  #fill(question: Question, request: RingRequest): Completion {
    // Somebody answered in its place: the driver may use the buffer for something else by now.
    if (request.isAborted) return request.ok()
    if (request.writable.byteLength !== ANSWER_BYTES)
      this.violate(`request ${question.number} lost its memory`)
    else request.writable.copyFrom(Buffer.from(Uint32Array.of(2 * question.number).buffer))
    return request.ok()
  }

  #onRecord(): void {
    this.#readyCount++
    this.#readySinceMs ??= this.clock.now()
  }

  #onPublish(count: number): void {
    if (count === 0 || this.#readySinceMs === undefined) return
    const heldMs = this.clock.now() - this.#readySinceMs
    this.tell(`${count} answers go out after ${heldMs.toFixed(2)} ms`)
    // A group keeps the deadline of its first answer; one that was ready before it began has gone with the last one.
    if (heldMs > this.#policy.holdMsMax + 1e-6) this.violate(`answers were held for ${heldMs} ms`)
    this.#readyCount -= count
    this.#readySinceMs = this.#readyCount > 0 ? this.clock.now() : undefined
  }

  // ---- The driver -------------------------------------------------------------------------------------------

  #ask(): void {
    if (this.#isGone) return
    let burst = this.integer(1, 6)
    while (burst-- > 0 && this.#free.length > 0 && this.#questions.length < this.#askCount) this.#askOne()
    this.#isStarved = this.#free.length === 0
    if (this.#isStarved || this.#questions.length === this.#askCount) return
    this.after(this.integer(0, 30), () => this.#ask())
  }

  #askOne(): void {
    const at = this.#free.pop()!
    const question: Question = {
      number: this.#questions.length + 1,
      at,
      behaviour: undefined,
      allowedStatuses: [0],
      answeredCount: 0,
    }
    this.#questions.push(question)
    this.#byHeader.set(question.number, question)
    const { bytes } = this.#sharedMemory
    bytes.writeUInt32LE(question.number, at.header)
    bytes.writeUInt32LE(0, at.answer)
    bytes[at.answer + ANSWER_BYTES] = STATUS_UNWRITTEN
    const address = (offset: number): bigint => this.#sharedMemory.guestAddressOf(offset)
    this.tell(`request ${question.number}`)
    void this.#driver
      .submit(
        [
          { address: address(at.header), lengthBytes: REQUEST_HEADER_BYTES, writable: false },
          { address: address(at.answer), lengthBytes: ANSWER_BYTES + 1, writable: true },
        ],
        { indirect: this.chance(0.3) },
      )
      .then((usedBytes) => this.#check(question, usedBytes))
  }

  #check(question: Question, usedBytes: number): void {
    const { number, at, allowedStatuses } = question
    question.answeredCount++
    const { bytes } = this.#sharedMemory
    const status = bytes[at.answer + ANSWER_BYTES]!
    const value = bytes.readUInt32LE(at.answer)
    this.tell(`answer to ${number}: status ${status}`)
    if (!allowedStatuses.includes(status)) {
      this.violate(`request ${number} (${question.behaviour}): status ${status}, not ${allowedStatuses}`)
    }
    if (status === 0 && (value !== 2 * number || usedBytes !== ANSWER_BYTES + 1)) {
      this.violate(`request ${number} got the answer ${value} and ${usedBytes} bytes`)
    }
    this.#free.push(at)
    if (!this.#isStarved) return
    this.#isStarved = false
    this.after(this.integer(0, 30), () => this.#ask())
  }

  /** What the eventfds hold becomes an event of the clock, some time later, once or twice. */
  #carryWakeUps(): void {
    if (native.eventfdDrain(this.#driver.kickFd) > 0 && this.#sabotage !== 'a kick is swallowed') {
      this.deliver('a kick comes late', 'a kick comes twice', () => this.#kicks.next())
    }
    if (native.eventfdDrain(this.#driver.callFd) > 0 && this.#sabotage !== 'a signal is swallowed') {
      this.deliver('a signal comes late', 'a signal comes twice', () => this.#driver.collect())
    }
  }

  // ---- The faults -------------------------------------------------------------------------------------------

  #planFaults(): void {
    const faults: Record<string, () => void> = {
      'a kick for nothing': () => this.#kicks.next(),
      'a look of the driver for nothing': () => this.#driver.collect(),
      'the call eventfd is full': () => this.#fillCallEventfd(),
      'the memory is replaced': () => this.#replaceMemory(),
      'the queue is drained and started anew': () => void this.#drain(false),
      'what is in flight is given up': () => void this.#drain(true),
    }
    if (this.chance(0.15)) {
      this.after(this.integer(0, 300), () => {
        this.count('the driver is gone')
        this.#leave()
      })
    }
    this.planFaults(faults, 8, 600)
  }

  /** As a connection ends: at once, and nobody is answered any more. */
  #leave(): void {
    this.#isGone = true
    this.#run?.unsubscribe()
    this.#run = undefined
    this.#queue.stop()
    this.#readyCount = 0
    this.#readySinceMs = undefined
  }

  #fillCallEventfd(): void {
    native.eventfdDrain(this.#driver.callFd)
    writeSync(this.#driver.callFd, BigUint64Array.of(0xffff_ffff_ffff_fffen))
  }

  #replaceMemory(): void {
    const older = this.#memory
    this.#memory = this.#mapMemory()
    if (this.#run !== undefined) this.#queue.setMemory(this.#memory)
    older.retire()
  }

  async #drain(givesUp: boolean): Promise<void> {
    const run = this.#run
    if (run === undefined) return
    this.#run = undefined
    if (givesUp) {
      for (const question of this.#questions) {
        if (question.answeredCount === 0 && question.behaviour !== undefined)
          question.allowedStatuses = [0, 1]
      }
      run.giveUp()
    }
    await run.drain()
    if (this.#isGone) return
    this.#base = this.#queue.stop()
    this.after(this.integer(0, 20), () => {
      if (this.#run === undefined && !this.#isGone) this.#start()
    })
  }

  // ---- The end ----------------------------------------------------------------------------------------------

  #expectAllAnswered(): void {
    const open = this.#questions.filter(({ answeredCount }) => answeredCount === 0)
    if (open.length > 0) {
      this.violate(
        `a wake-up is lost: everybody sleeps, and nobody answered ${open.map(({ number }) => number)}`,
      )
    }
    const counts = this.#queue.counts()
    if (counts.ignoredCompletions > 0) this.violate(`${counts.ignoredCompletions} answers to nothing`)
    if (counts.skippedHeads + counts.malformedChains > 0) this.violate('the device refused a right request')
    if (this.#queue.inFlightCount > 0)
      this.violate(`${this.#queue.inFlightCount} requests are still in flight`)
    const { requests, completions } = counts
    if (requests !== completions) this.violate(`${requests} requests and ${completions} completions`)
  }

  async #end(): Promise<void> {
    const run = this.#run
    this.#run = undefined
    let ended = false
    void run?.drain().then(() => {
      ended = true
    })
    await this.playOut()
    if (run !== undefined && !ended) this.violate('a queue with nothing in flight does not come to its end')
    run?.unsubscribe()
    this.#queue.stop()
    this.#memory.retire()
    // A handler that does not settle keeps its memory, because it may still write into it.
    for (const settle of this.#unsettled.splice(0)) settle()
    await microtasks()
    const kept = this.#generations.filter(({ pinCount }) => pinCount !== 0)
    if (kept.length > 0) this.violate(`${kept.length} generations of memory are still pinned`)
  }
}
