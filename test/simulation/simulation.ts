import { writeSync } from 'node:fs'
import {
  type Observable,
  of,
  type SchedulerLike,
  Subject,
  throwError,
  timer,
  VirtualTimeScheduler,
} from 'rxjs'
import { map, mergeMap } from 'rxjs/operators'
import {
  type Answer,
  adaptive,
  anticipate,
  coalesce,
  immediate,
  type SuppressionPolicy,
} from '../../src/index.ts'
import { native } from '../../src/native.ts'
import { DriverMemory, SharedRegion } from '../../src/ring/memory.ts'
import type { Completion, RingRequest } from '../../src/ring/request.ts'
import { SharedMemory, SplitDriver } from '../../src/testing/index.ts'
import { randomFrom } from '../../src/testing/random.ts'
import { PipelineRun } from '../../src/transport/pipeline-run.ts'
import { KiB } from '../../src/units.ts'
import { forgetPins, type Sabotage, WatchedQueue } from './sabotage.ts'

/** What came of one seed. */
export interface Outcome {
  readonly seed: number
  /** What happened, a line for each thing, with its virtual time in ms. The same for the same seed. */
  readonly story: readonly string[]
  /** How often each kind of fault and each way of a handler came up. */
  readonly counts: Readonly<Record<string, number>>
  /** What must not be; empty if all is well. */
  readonly violations: readonly string[]
}

/** Longest that a simulation may run, in virtual ms: nothing in it waits for nearly as long. */
const LIMIT_MS = 60_000
const REQUEST_HEADER_BYTES = 4
const ANSWER_BYTES = 4
const STATUS_UNWRITTEN = 0xff

/** How a handler answers, and what the driver may then see. */
const behaviours = [
  'answers at once',
  'answers with a promise',
  'answers with a late promise',
  'answers with an observable',
  'answers with a late observable',
  'emits two answers',
  'fails',
  'throws',
  'rejects',
  'claims too many bytes',
  'answers with nonsense',
  'never settles',
] as const
type Behaviour = (typeof behaviours)[number]

interface Question {
  readonly number: number
  readonly at: { readonly header: number; readonly answer: number }
  behaviour: Behaviour | undefined
  /** Status bytes that the driver may find. */
  allowedStatuses: readonly number[]
  answeredCount: number
}

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
export async function simulate(seed: number, sabotage?: Sabotage): Promise<Outcome> {
  const simulation = new Simulation(seed, sabotage)
  try {
    await simulation.run()
  } finally {
    simulation.close()
  }
  return simulation
}

class Simulation implements Outcome {
  readonly seed: number
  readonly story: string[] = []
  readonly counts: Record<string, number> = {}
  readonly violations: string[] = []

  readonly #sabotage: Sabotage | undefined
  readonly #random: () => number
  readonly #clock = new VirtualTimeScheduler()
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
  #faultsAreOver = false
  /** The driver went away, with whatever it had asked. */
  #isGone = false
  /** Settles what "never settles", after all else is over. */
  readonly #unsettled: (() => void)[] = []
  /** The driver would ask if it had room. */
  #isStarved = false
  /** Next available index when the queue is started again. */
  #base = 0

  constructor(seed: number, sabotage: Sabotage | undefined) {
    this.seed = seed
    this.#sabotage = sabotage
    this.#random = randomFrom(seed)
    const size = this.#pick([2, 4, 8, 16])
    const eventIdx = this.#chance(0.5)
    this.#driver = new SplitDriver({ memory: this.#sharedMemory, size: 4 * size, eventIdx })
    for (let slot = 0; slot < size; slot++) {
      const header = this.#sharedMemory.allocate(REQUEST_HEADER_BYTES)
      this.#free.push({ header, answer: this.#sharedMemory.allocate(ANSWER_BYTES + 1) })
    }
    this.#askCount = this.#integer(1, 60)
    this.#creditCountMax = this.#integer(1, size)
    this.#requestTimeoutMs = this.#chance(0.5) ? 0 : 50
    this.#policy = this.#somePolicy()
    this.#memory = this.#mapMemory()
    this.#queue = new WatchedQueue(
      {
        index: 0,
        sizeMax: 4 * size,
        headerBytes: REQUEST_HEADER_BYTES,
        statusByte: true,
        batchCountMax: this.#integer(1, 8),
      },
      { onRecord: () => this.#onRecord(), onPublish: (count) => this.#onPublish(count) },
      sabotage,
    )
    this.#tell(`a ring of ${4 * size}, ${eventIdx ? 'EVENT_IDX' : 'flags'}, ${this.#askCount} requests`)
  }

  async run(): Promise<void> {
    const unhandled = (reason: unknown): void => this.#violate(`a rejection that nobody handles: ${reason}`)
    process.on('unhandledRejection', unhandled)
    try {
      this.#start()
      this.#planFaults()
      this.#scheduleAfter(0, () => this.#ask())
      await this.#playOut()
      // Whatever was done to it, a queue that runs serves what is on its ring.
      this.#faultsAreOver = true
      if (this.#run === undefined && !this.#isGone) this.#start()
      await this.#playOut()
      if (!this.#isGone) this.#expectAllAnswered()
      await this.#end()
    } finally {
      process.off('unhandledRejection', unhandled)
    }
  }

  close(): void {
    this.#run?.unsubscribe()
    this.#queue.close()
    this.#memory.retire()
    this.#driver.close()
    this.#sharedMemory.close()
  }

  // ---- Chance and time --------------------------------------------------------------------------------------

  #integer(min: number, max: number): number {
    return min + Math.floor(this.#random() * (max - min + 1))
  }
  #pick<Value>(values: readonly Value[]): Value {
    return values[this.#integer(0, values.length - 1)]!
  }
  #chance(probability: number): boolean {
    return this.#random() < probability
  }
  #tell(what: string): void {
    this.story.push(`${this.#clock.now().toFixed(2)} ${what}`)
  }
  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1
    this.#tell(what)
  }
  #violate(what: string): void {
    this.violations.push(what)
    this.#tell(`WRONG: ${what}`)
  }
  #scheduleAfter(delayMs: number, work: () => void): void {
    this.#clock.schedule(work, delayMs)
  }

  /** Runs the clock until nothing is planned any more, and the microtasks between two steps of it. */
  async #playOut(): Promise<void> {
    const { actions } = this.#clock
    await microtasks()
    for (let next = actions[0]; next !== undefined; next = actions[0]) {
      if (next.delay > LIMIT_MS) return this.#violate('something waits for ever')
      actions.shift()
      this.#clock.frame = next.delay
      next.execute(next.state, next.delay)
      await microtasks()
      this.#carryWakeUps()
      if (this.#queue.inFlightCount > this.#creditCountMax)
        this.#violate('more in flight than there are credits')
    }
  }

  // ---- The device -------------------------------------------------------------------------------------------

  #somePolicy(): { make: () => SuppressionPolicy; holdMsMax: number } {
    const holdMicrosMax = this.#integer(1, 5000)
    const countMax = this.#integer(1, 16)
    if (this.#sabotage === 'answers are held for ever') return { make: () => () => 900_000, holdMsMax: 1 }
    return this.#pick([
      { make: immediate, holdMsMax: 0 },
      { make: adaptive, holdMsMax: 0 },
      { make: () => coalesce({ countMax, holdMicrosMax }), holdMsMax: holdMicrosMax / 1000 },
      { make: () => anticipate({ countMax, holdMicrosMax }), holdMsMax: holdMicrosMax / 1000 },
    ])
  }

  /** The clock as the pipeline sees it. */
  #schedulerOfPipeline(): SchedulerLike {
    if (this.#sabotage !== 'what is left after a full budget is forgotten') return this.#clock
    const clock = this.#clock
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
    this.#run.start(
      this.#queue,
      this.#kicks,
      (request) => this.#handle(request),
      {
        suppression: this.#policy.make(),
        creditCountMax: this.#creditCountMax,
        budgetCountMax: this.#integer(1, 8),
        requestTimeoutMs: this.#requestTimeoutMs,
        scheduler: this.#schedulerOfPipeline(),
      },
      {
        onBroken: (error) => this.#violate(`the queue is broken: ${error.message}`),
        onStopped: () => this.#tell('the queue is drained'),
      },
    )
  }

  #handle(request: RingRequest): Answer {
    const question = this.#byHeader.get(request.headerWords[0]!)
    if (question === undefined) {
      this.#violate(`a request that nobody made: ${request.headerWords[0]}`)
      return request.ok(0)
    }
    if (question.behaviour !== undefined) this.#violate(`request ${question.number} is handed out twice`)
    const settles = this.#requestTimeoutMs > 0 && !this.#faultsAreOver
    question.behaviour = this.#pick(behaviours.slice(0, settles ? behaviours.length : -1))
    this.#count(question.behaviour)
    return this.#answerAs(question.behaviour, question, request)
  }

  #answerAs(behaviour: Behaviour, question: Question, request: RingRequest): Answer {
    const delayMs = this.#integer(0, 100)
    const isLate = this.#requestTimeoutMs > 0 && delayMs >= this.#requestTimeoutMs
    const ok = (): Completion => {
      // Somebody answered in its place: the driver may use the buffer for something else by now.
      if (request.isAborted) return request.ok()
      if (request.writable.byteLength !== ANSWER_BYTES)
        this.#violate(`request ${question.number} lost its memory`)
      else request.writable.copyFrom(Buffer.from(Uint32Array.of(2 * question.number).buffer))
      return request.ok()
    }
    const later = (): Observable<Completion> => timer(delayMs, this.#clock).pipe(map(ok))
    const failed = [1]
    switch (behaviour) {
      case 'answers at once':
        return ok()
      case 'answers with a promise':
        return Promise.resolve().then(ok)
      case 'answers with a late promise':
        if (isLate) question.allowedStatuses = [0, 1]
        return new Promise((resolve) => this.#scheduleAfter(delayMs, () => resolve(ok())))
      case 'answers with an observable':
        return of(undefined).pipe(map(ok))
      case 'answers with a late observable':
        if (isLate) question.allowedStatuses = [0, 1]
        return later()
      case 'emits two answers':
        if (isLate) question.allowedStatuses = [0, 1]
        return later().pipe(mergeMap((completion) => [completion, request.fail(new Error('again'))]))
      case 'fails':
        question.allowedStatuses = failed
        return request.fail(new Error('the store says no'))
      case 'throws':
        question.allowedStatuses = failed
        throw new Error('a mistake')
      case 'rejects':
        question.allowedStatuses = failed
        return this.#chance(0.5) ? Promise.reject(new Error('no')) : throwError(() => new Error('no'))
      case 'claims too many bytes':
        question.allowedStatuses = failed
        return request.ok(ANSWER_BYTES + 1)
      case 'answers with nonsense':
        question.allowedStatuses = failed
        return 42 as never
      case 'never settles':
        question.allowedStatuses = failed
        return new Promise((resolve) => this.#unsettled.push(() => resolve(request.ok())))
    }
  }

  #onRecord(): void {
    this.#readyCount++
    this.#readySinceMs ??= this.#clock.now()
  }

  #onPublish(count: number): void {
    if (count === 0 || this.#readySinceMs === undefined) return
    const heldMs = this.#clock.now() - this.#readySinceMs
    this.#tell(`${count} answers go out after ${heldMs.toFixed(2)} ms`)
    // A group keeps the deadline of its first answer; one that was ready before it began has gone with the last one.
    if (heldMs > this.#policy.holdMsMax + 1e-6) this.#violate(`answers were held for ${heldMs} ms`)
    this.#readyCount -= count
    this.#readySinceMs = this.#readyCount > 0 ? this.#clock.now() : undefined
  }

  // ---- The driver -------------------------------------------------------------------------------------------

  #ask(): void {
    if (this.#isGone) return
    let burst = this.#integer(1, 6)
    while (burst-- > 0 && this.#free.length > 0 && this.#questions.length < this.#askCount) this.#askOne()
    this.#isStarved = this.#free.length === 0
    if (this.#isStarved || this.#questions.length === this.#askCount) return
    this.#scheduleAfter(this.#integer(0, 30), () => this.#ask())
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
    this.#tell(`request ${question.number}`)
    void this.#driver
      .submit(
        [
          { address: address(at.header), lengthBytes: REQUEST_HEADER_BYTES, writable: false },
          { address: address(at.answer), lengthBytes: ANSWER_BYTES + 1, writable: true },
        ],
        { indirect: this.#chance(0.3) },
      )
      .then((usedBytes) => this.#check(question, usedBytes))
  }

  #check(question: Question, usedBytes: number): void {
    const { number, at, allowedStatuses } = question
    question.answeredCount++
    const { bytes } = this.#sharedMemory
    const status = bytes[at.answer + ANSWER_BYTES]!
    const value = bytes.readUInt32LE(at.answer)
    this.#tell(`answer to ${number}: status ${status}`)
    if (!allowedStatuses.includes(status)) {
      this.#violate(`request ${number} (${question.behaviour}): status ${status}, not ${allowedStatuses}`)
    }
    if (status === 0 && (value !== 2 * number || usedBytes !== ANSWER_BYTES + 1)) {
      this.#violate(`request ${number} got the answer ${value} and ${usedBytes} bytes`)
    }
    this.#free.push(at)
    if (!this.#isStarved) return
    this.#isStarved = false
    this.#scheduleAfter(this.#integer(0, 30), () => this.#ask())
  }

  /** What the eventfds hold becomes an event of the clock, some time later, once or twice. */
  #carryWakeUps(): void {
    if (native.eventfdDrain(this.#driver.kickFd) > 0 && this.#sabotage !== 'a kick is swallowed') {
      this.#deliver('a kick comes late', 'a kick comes twice', () => this.#kicks.next())
    }
    if (native.eventfdDrain(this.#driver.callFd) > 0 && this.#sabotage !== 'a signal is swallowed') {
      this.#deliver('a signal comes late', 'a signal comes twice', () => this.#driver.collect())
    }
  }

  #deliver(late: string, twice: string, event: () => void): void {
    const isLate = !this.#faultsAreOver && this.#chance(0.2)
    if (isLate) this.#count(late)
    this.#scheduleAfter(isLate ? this.#integer(1, 40) : 0, event)
    if (this.#faultsAreOver || !this.#chance(0.1)) return
    this.#count(twice)
    this.#scheduleAfter(this.#integer(0, 40), event)
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
    if (this.#chance(0.15)) {
      this.#scheduleAfter(this.#integer(0, 300), () => {
        this.#count('the driver is gone')
        this.#leave()
      })
    }
    for (let count = this.#integer(0, 8); count > 0; count--) {
      const [what, fault] = this.#pick(Object.entries(faults))
      this.#scheduleAfter(this.#integer(0, 600), () => {
        this.#count(what)
        fault()
      })
    }
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
    this.#scheduleAfter(this.#integer(0, 20), () => {
      if (this.#run === undefined && !this.#isGone) this.#start()
    })
  }

  // ---- The end ----------------------------------------------------------------------------------------------

  #expectAllAnswered(): void {
    const open = this.#questions.filter(({ answeredCount }) => answeredCount === 0)
    if (open.length > 0) {
      this.#violate(
        `a wake-up is lost: everybody sleeps, and nobody answered ${open.map(({ number }) => number)}`,
      )
    }
    const counts = this.#queue.counts()
    if (counts.ignoredCompletions > 0) this.#violate(`${counts.ignoredCompletions} answers to nothing`)
    if (counts.skippedHeads + counts.malformedChains > 0) this.#violate('the device refused a right request')
    if (this.#queue.inFlightCount > 0)
      this.#violate(`${this.#queue.inFlightCount} requests are still in flight`)
    const { requests, completions } = counts
    if (requests !== completions) this.#violate(`${requests} requests and ${completions} completions`)
  }

  async #end(): Promise<void> {
    const run = this.#run
    this.#run = undefined
    let ended = false
    void run?.drain().then(() => {
      ended = true
    })
    await this.#playOut()
    if (run !== undefined && !ended) this.#violate('a queue with nothing in flight does not come to its end')
    run?.unsubscribe()
    this.#queue.stop()
    this.#memory.retire()
    // A handler that does not settle keeps its memory, because it may still write into it.
    for (const settle of this.#unsettled.splice(0)) settle()
    await microtasks()
    const kept = this.#generations.filter(({ pinCount }) => pinCount !== 0)
    if (kept.length > 0) this.#violate(`${kept.length} generations of memory are still pinned`)
  }
}

/** Lets every promise settle that can without the clock. */
async function microtasks(): Promise<void> {
  for (let count = 0; count < 20; count++) await undefined
}
