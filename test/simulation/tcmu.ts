import { merge, type SchedulerLike, Subject } from 'rxjs'
import type { Answer, SuppressionPolicy } from '../../src/index.ts'
import { type NativeTcmuPort, native } from '../../src/native.ts'
import type { Completion } from '../../src/ring/request.ts'
import type { ScsiRequest } from '../../src/ring/scsi-request.ts'
import { ScsiStatus, SenseKey } from '../../src/ring/sense.ts'
import type { TaskManagement } from '../../src/ring/tcmu-queue.ts'
import { type ScsiResult, TcmuKernel } from '../../src/testing/index.ts'
import { PipelineRun } from '../../src/transport/pipeline-run.ts'
import { KiB } from '../../src/units.ts'
import { statusOf } from '../helpers/tcmu-bench.ts'
import { type Behaviour, behave, behaviours, failures } from './behaviours.ts'
import { microtasks, type Outcome, Simulation } from './simulation.ts'
import { type TcmuSabotage, WatchedTcmuQueue } from './tcmu-sabotage.ts'

const BLOCK_BYTES = 4 * KiB
/** A handler in the product has no limit; here it has one, so that a ring is full now and then. */
const COMMAND_COUNT_MAX = 60

/** CDBs of 6, 10, 16 and 32 bytes: entries of unequal length, so that the ring ends with a PAD. */
const CDB_BYTES = { 8: 6, 40: 10, 136: 16, 127: 32 } as const

/** What SCSI handlers do beyond what all do. */
const scsiBehaviours = [
  'settles at its signal',
  'settles some time after its signal',
  'keeps its data beyond its answer',
  'answers short',
  'says BUSY',
  'says CHECK CONDITION',
  'does not know the command',
] as const
type ScsiBehaviour = Behaviour | (typeof scsiBehaviours)[number]

/** Those that may wait for ever unless somebody gives the command up. */
const patientOnes: ReadonlySet<ScsiBehaviour> = new Set<ScsiBehaviour>([
  'never settles',
  'settles at its signal',
  'settles some time after its signal',
])

/** What an initiator sees of an answer, as {@link statusOf} writes it. */
const Status = {
  good: 'GOOD',
  busy: '08',
  taskSetFull: '28',
  aborted: '40',
  /** What the kernel says of a command that expired. */
  communicationFailure: '2/08/00',
  /** What the product says of a handler that failed. */
  failed: '4/44/00',
  /** What the product says of a command that was given up. */
  givenUp: 'B/00/00',
  mediumError: '3/11/00',
  unknownCommand: '5/20/00',
  tooBig: '5/24/00',
} as const

/** Where a command is when task management names it. */
const abortPoints = [
  'aborted while the kernel holds it back',
  'aborted before it is taken',
  'aborted as it is handed out',
  'aborted while its handler works',
  'aborted as its handler has settled',
  'aborted while its answer waits for its data',
  'aborted between its answer and the publication',
  'aborted after the publication',
  'aborted while its buffer is kept',
  'aborted after it expired',
] as const
type AbortPoint = (typeof abortPoints)[number]

interface Command {
  readonly number: number
  readonly dataOut: Buffer
  readonly dataInBytes: number
  readonly submittedMs: number
  /** The kernel has found no room for it yet. */
  isHeldBack: boolean
  wasHeldBack: boolean
  /** It has an entry on the ring, until it is taken, whatever its initiator has been told. */
  isOnRing: boolean
  request: ScsiRequest | undefined
  behaviour: ScsiBehaviour | undefined
  takenMs: number
  /** Of a short answer. */
  bytesWritten: number | undefined
  /** The handler has answered. */
  isSettled: boolean
  isRecorded: boolean
  isPublished: boolean
  /** The ring was given up with it. */
  isForgotten: boolean
  /** The kernel gave it up; the initiator sees nothing but that. */
  isAborted: boolean
  /** Its signal may fire. */
  maySignal: boolean
  /** Its signal must have fired. */
  mustSignal: boolean
  listens: boolean
  signalCount: number
  /** Statuses that its handler has earned it. */
  readonly earned: Set<string>
  result: string | undefined
}

/** A task management entry that the server must be told of. */
interface Told {
  readonly type: TaskManagement['type']
  readonly commands: readonly Command[]
  /** Entries that come before it on the ring; undefined when it had to wait for room, and others may overtake it. */
  readonly behind: readonly Command[] | undefined
}

/** What {@link TcmuSimulation} can do to a pipeline, beside aborts. */
const faults = [
  'an event comes late',
  'an event comes twice',
  'an event for nothing',
  'a doorbell for nothing',
  'commands come without an event for each',
  'a command does not fit',
  'the ring wraps',
  'the ring wraps with a PAD',
  'a command is too big',
  'a command expires on the ring',
  'a command expires while it is held back',
  'task management of an unknown command',
  'task management waits for room',
  'task management names commands that are answered',
  'task management is not told of for a while',
  'LUN RESET',
  'an entry of an unknown kind',
  'a kept buffer is given back late',
  'the device is blocked',
  'the ring is reset',
  'the server ends',
] as const

/** What must come up within some thousand seeds, or the simulation has lost a part of its world. */
export const tcmuFaults: readonly string[] = [...faults, ...abortPoints]
export const tcmuBehaviours: readonly string[] = [...behaviours, ...scsiBehaviours]

/**
 * Serves one TCMU ring with the product's queue and pipeline on a virtual clock, against the kernel of the test kit: its
 * initiators give commands up at every point of their way, commands expire, the ring and the data area are full, and
 * handlers do what they like, whether or not their signal fires.
 *
 * @param seed decides everything
 * @param sabotage a mistake to be noticed
 */
export function simulateTcmu(seed: number, sabotage?: TcmuSabotage): Promise<Outcome> {
  return new TcmuSimulation(seed, sabotage).play()
}

class TcmuSimulation extends Simulation {
  readonly #sabotage: TcmuSabotage | undefined
  readonly #kernel: TcmuKernel
  readonly #port: NativeTcmuPort
  readonly #queue: WatchedTcmuQueue
  readonly #canKeep: boolean
  readonly #tellsLength: boolean
  readonly #commandTimeoutMs: number
  readonly #holdBackMsMax: number
  readonly #requestTimeoutMs: number
  readonly #blockCount: number
  readonly #creditCountMax: number
  readonly #askCount: number
  /** How often an initiator gives a command up at one of the points where only the product's own calls lead. */
  readonly #abortChance: number
  readonly #policy: { readonly make: () => SuppressionPolicy; readonly holdMsMax: number }
  readonly #commands: Command[] = []
  readonly #commandOf = new Map<ScsiRequest, Command>()
  /** What is on its way to the server, in the order of the ring but for what waits for room. */
  #told: Told[] = []
  #isTold: boolean
  readonly #canBeTold: boolean
  #run: PipelineRun<ScsiRequest> | undefined
  #kicks = new Subject<void>()
  readonly #creditsReturned = new Subject<void>()
  #kicksUnderWay = 0
  /** What the pipeline wants to do as soon as this step is over. */
  #turnsUnderWay = 0
  #isPlugged = false
  #isBlocked = false
  #readySinceMs: number | undefined
  readonly #unsettled: (() => void)[] = []
  #pendingFunctionCount = 0
  #kernelMs = 0
  #strayDoorbellCount = 0
  #unknownEntryCount = 0
  #toldCount = 0
  #deliveredCount = 0
  #namedCount = 0
  #publishedCount = 0
  #resetCount = 0

  constructor(seed: number, sabotage: TcmuSabotage | undefined) {
    super(seed)
    this.#sabotage = sabotage
    const dataAreaBytes = this.pick([4, 16, 64, 64]) * BLOCK_BYTES
    const outOfOrder = this.chance(0.85)
    const keepBuffer = this.chance(0.6)
    this.#canBeTold = this.chance(0.9)
    this.#tellsLength = this.chance(0.8)
    this.#canKeep = outOfOrder && keepBuffer
    this.#isTold = this.#canBeTold
    this.#commandTimeoutMs = this.pick([0, 60, 200, 30_000])
    const queueFullTimeoutMs = this.pick([-1, 0, 40])
    this.#holdBackMsMax = queueFullTimeoutMs === -1 ? this.#commandTimeoutMs || 30_000 : queueFullTimeoutMs
    this.#kernel = new TcmuKernel({
      ringBytes: 4 * KiB,
      dataAreaBytes,
      blockBytes: BLOCK_BYTES,
      outOfOrder,
      readLength: this.#tellsLength,
      taskManagement: this.#canBeTold,
      keepBuffer,
      commandTimeoutMs: this.#commandTimeoutMs,
      queueFullTimeoutMs,
    })
    this.#blockCount = this.#kernel.freeBlockCount
    this.#requestTimeoutMs = this.chance(0.6) ? 0 : 50
    this.#creditCountMax = this.pick([1, 2, 4, 16, COMMAND_COUNT_MAX])
    this.#askCount = this.integer(1, 60)
    this.#abortChance = this.pick([0, 0.01, 0.05])
    this.#policy = this.somePolicy()
    this.#port = this.#kernel.openPort()
    this.#queue = new WatchedTcmuQueue(
      {
        port: this.#port,
        commandCountMax: this.#creditCountMax,
        batchCountMax: this.integer(1, 8),
        // A thread that rings the doorbell has a time of its own, which no seed decides.
        inlineCopyBytesMax: Number.MAX_SAFE_INTEGER,
        freeKeptBuffer: (commandId) => this.#freeKept(commandId),
        onTaskManagement: (taskManagement) => this.#onTaskManagement(taskManagement),
        onCreditsReturned: () => {
          if (sabotage !== 'returned credits wake nobody') this.#creditsReturned.next()
        },
      },
      {
        beforeRecord: (request) =>
          this.#maybeAbort(this.#commandOf.get(request), 'aborted as its handler has settled'),
        onRecord: (request, isHeld) => this.#onRecord(request, isHeld),
        beforePublish: () => this.#maybeAbort(this.#anyRecorded()),
        onPublish: (count) => this.#onPublish(count),
      },
      sabotage,
    )
    const kind = `${outOfOrder ? 'any order' : 'in order'}, ${keepBuffer ? 'keeps buffers, ' : ''}${this.#canBeTold ? 'tells of task management' : 'silent'}`
    this.tell(
      `a ring of 4 KiB, ${this.#blockCount} blocks, ${kind}, ${this.#askCount} commands, ${this.#creditCountMax} credits`,
    )
  }

  protected override async run(): Promise<void> {
    this.#start()
    this.#planFaults()
    this.after(0, () => this.#ask())
    await this.playOut()
    this.faultsAreOver = true
    this.#kernel.unblock()
    this.#unplug()
    await this.playOut()
    if (this.chance(0.3)) await this.#endServer()
    else await this.#expectAllAnswered()
    this.#expectCounts()
  }

  protected override close(): void {
    this.#run?.unsubscribe()
    this.#queue.stop()
    this.#queue.close()
    this.#port.close()
    this.#kernel.close()
  }

  protected override async beforeStep(): Promise<void> {
    const ms = Math.floor(this.clock.now()) - this.#kernelMs
    if (ms === 0) return
    this.#kernelMs += ms
    this.#kernel.advance(ms)
    await microtasks()
  }

  protected override async afterStep(): Promise<void> {
    await this.#lookAtKernel()
    this.#carryEvents()
    this.#expectAwake()
    this.#expectNoneHeldFor()
    if (this.#kernel.isBroken) this.violate(`the ring is broken: ${this.#kernel.log.at(-1)}`)
    if (this.#queue.inFlightCount + this.#queue.keptCount > this.#creditCountMax)
      this.violate('more in flight than there are credits')
  }

  // ---- The server -------------------------------------------------------------------------------------------

  #start(): void {
    this.#queue.start()
    this.#kicks = new Subject()
    this.#run = new PipelineRun()
    this.startPipeline(
      this.#run,
      this.#queue,
      merge(this.#kicks, this.#creditsReturned),
      (request) => this.#handle(request),
      {
        suppression: this.#policy.make(),
        creditCountMax: this.#creditCountMax,
        requestTimeoutMs: this.#requestTimeoutMs,
        scheduler: this.#schedulerOfPipeline(),
      },
    )
  }

  /** The clock as the pipeline sees it, which tells whether the pipeline is about to look at its ring. */
  #schedulerOfPipeline(): SchedulerLike {
    const { clock } = this
    return {
      now: () => clock.now(),
      schedule: ((work: (state?: unknown) => void, delayMs = 0, state?: unknown) => {
        if (delayMs > 0) return clock.schedule(work, delayMs, state)
        if (this.#sabotage === 'what is left after a full budget is forgotten')
          return clock.schedule(() => {}, 0)
        let isUnderWay = true
        this.#turnsUnderWay++
        const over = (): void => {
          if (isUnderWay) this.#turnsUnderWay--
          isUnderWay = false
        }
        const turn = clock.schedule(() => {
          over()
          work(state)
        }, 0)
        turn.add(over)
        return turn
      }) as SchedulerLike['schedule'],
    }
  }

  #handle(request: ScsiRequest): Answer {
    const command = this.#commands[request.cdb.readUInt16BE(2) - 1]
    if (command === undefined) {
      this.violate(`a command that nobody sent: ${request.cdb.toString('hex')}`)
      return request.ok()
    }
    if (command.request !== undefined) this.violate(`command ${command.number} is handed out twice`)
    command.request = request
    command.isOnRing = false
    command.takenMs = this.clock.now()
    this.#commandOf.set(request, command)
    if (this.#sabotage === 'the signal of an aborted command does not fire') request.abort = () => {}
    if (this.#sabotage === 'the data of a command goes with its answer') request.hold = () => () => {}
    const behaviour = this.#someBehaviour()
    command.behaviour = behaviour
    this.count(behaviour)
    if (this.chance(0.7)) {
      command.listens = true
      request.signal.addEventListener('abort', () => this.#onSignal(command))
    }
    this.#maybeAbort(command, 'aborted as it is handed out')
    return this.#answerAs(behaviour, command, request)
  }

  #someBehaviour(): ScsiBehaviour {
    const behaviour = this.pick<ScsiBehaviour>([...behaviours, ...scsiBehaviours])
    return this.faultsAreOver && patientOnes.has(behaviour) ? 'answers at once' : behaviour
  }

  #answerAs(behaviour: ScsiBehaviour, command: Command, request: ScsiRequest): Answer {
    const delayMs = this.integer(0, 100)
    const { earned } = command
    const ok = (): Completion => this.#serve(command, request)
    switch (behaviour) {
      case 'settles at its signal':
        earned.add(Status.givenUp).add(Status.good)
        return this.#untilSignal(request, 0, ok)
      case 'settles some time after its signal':
        earned.add(Status.givenUp).add(Status.good)
        return this.#untilSignal(request, delayMs, ok)
      case 'keeps its data beyond its answer': {
        earned.add(Status.good)
        const letGo = request.hold()
        this.after(delayMs, () => {
          this.#expectData(command, request)
          letGo()
        })
        return ok()
      }
      case 'answers short':
        earned.add(Status.good)
        command.bytesWritten = this.integer(0, command.dataInBytes)
        return ok()
      case 'says BUSY':
        earned.add(Status.busy)
        return request.status(ScsiStatus.BUSY)
      case 'says CHECK CONDITION':
        earned.add(Status.mediumError)
        return request.checkCondition({ key: SenseKey.MEDIUM_ERROR, asc: 0x11, ascq: 0 })
      case 'does not know the command':
        earned.add(Status.unknownCommand)
        return request.unsupported()
      default:
        earned.add(failures.has(behaviour) && behaviour !== 'never settles' ? Status.failed : Status.good)
        return behave(behaviour, {
          request,
          clock: this.clock,
          delayMs,
          withPromise: () => this.chance(0.5),
          ok,
          onUnsettled: (settle) => this.#unsettled.push(settle),
        })
    }
  }

  #untilSignal(request: ScsiRequest, delayMs: number, ok: () => Completion): Promise<Completion> {
    return new Promise((resolve) => {
      const giveUp = (): void => {
        if (delayMs === 0) resolve(request.fail(request.signal.reason))
        else this.after(delayMs, () => resolve(request.fail(request.signal.reason)))
      }
      if (request.isAborted) giveUp()
      else request.signal.addEventListener('abort', giveUp)
      this.#unsettled.push(() => request.isAborted || resolve(ok()))
    })
  }

  /** Does what the command says: its data is there and its own, however late the handler is. */
  #serve(command: Command, request: ScsiRequest): Completion {
    this.#expectData(command, request)
    if (command.dataInBytes > 0) {
      request.dataIn.copyFrom(patternOf(command, command.bytesWritten ?? command.dataInBytes))
    }
    return request.ok(command.bytesWritten)
  }

  #expectData(command: Command, request: ScsiRequest): void {
    const { dataOut, dataInBytes, number } = command
    const lengths = [request.dataOut.byteLength, request.dataIn.byteLength]
    const expected = [dataOut.length || dataInBytes, dataInBytes || dataOut.length]
    if (lengths[0] !== expected[0] || lengths[1] !== expected[1]) {
      this.violate(`command ${number} lost its data: ${lengths} bytes, not ${expected}`)
    } else if (dataOut.length > 0 && !request.dataOut.toBuffer().equals(dataOut)) {
      this.violate(`the data of command ${number} was overwritten`)
    }
  }

  #onSignal(command: Command): void {
    command.signalCount++
    this.tell(`the signal of ${command.number}`)
    if (command.signalCount > 1) this.violate(`the signal of command ${command.number} fired twice`)
    const isOverdue =
      this.#requestTimeoutMs > 0 && this.clock.now() - command.takenMs >= this.#requestTimeoutMs - 1e-6
    if (!command.maySignal && !isOverdue)
      this.violate(`the signal of command ${command.number} fired for nothing`)
  }

  #onRecord(request: ScsiRequest, isHeld: boolean): void {
    const command = this.#commandOf.get(request)
    if (command === undefined || command.isForgotten) return
    command.isSettled = true
    // The answer waits for the data; then it comes again.
    if (isHeld && !this.#canKeep) return
    if (command.isRecorded) this.violate(`command ${command.number} is answered twice`)
    command.isRecorded = true
    if (isHeld && this.#sabotage === 'a buffer is given back before its answer')
      void this.#freeKept(request.commandId)
    this.#readySinceMs ??= this.clock.now()
    this.#maybeAbort(command, 'aborted between its answer and the publication')
  }

  #onPublish(count: number): void {
    const ready = this.#commands.filter(
      ({ isRecorded, isPublished, isForgotten }) => isRecorded && !isPublished && !isForgotten,
    )
    for (const command of ready) command.isPublished = true
    if (ready.length !== count) this.violate(`${count} answers go out of ${ready.length}`)
    this.#publishedCount += count
    if (this.#readySinceMs === undefined) return
    const heldMs = this.clock.now() - this.#readySinceMs
    this.#readySinceMs = undefined
    this.tell(`${count} answers go out after ${heldMs.toFixed(2)} ms`)
    if (heldMs > this.#policy.holdMsMax + 1e-6) this.violate(`answers were held for ${heldMs} ms`)
    this.#maybeAbort(this.#anyAnswered(), 'aborted after the publication')
  }

  /** action/free_kept_buf is a file of its own, and whoever writes it takes its time. */
  async #freeKept(commandId: number): Promise<void> {
    if (!this.faultsAreOver && this.chance(0.3)) {
      this.count('a kept buffer is given back late')
      await new Promise<void>((resolve) => this.after(this.integer(1, 30), resolve))
    }
    const errno = this.#kernel.freeKeptBuffer(commandId)
    if (errno !== 0) this.violate(`a buffer is given back that the kernel does not keep: ${errno}`)
  }

  // ---- The initiator ----------------------------------------------------------------------------------------

  #ask(): void {
    let burst = this.integer(1, 8)
    while (burst-- > 0 && this.#commands.length < this.#askCount) this.#askOne()
    if (this.#commands.length < this.#askCount) this.after(this.integer(0, 40), () => this.#ask())
  }

  #askOne(): void {
    const number = this.#commands.length + 1
    const [outBytes, inBytes] = this.#someLengths()
    const command: Command = {
      number,
      dataOut: Buffer.alloc(outBytes, 0x80 | number),
      dataInBytes: inBytes,
      submittedMs: this.clock.now(),
      isHeldBack: false,
      wasHeldBack: false,
      isOnRing: false,
      request: undefined,
      behaviour: undefined,
      takenMs: 0,
      bytesWritten: undefined,
      isSettled: false,
      isRecorded: false,
      isPublished: false,
      isForgotten: false,
      isAborted: false,
      maySignal: false,
      mustSignal: false,
      listens: false,
      signalCount: 0,
      earned: new Set(),
      result: undefined,
    }
    this.#commands.push(command)
    this.tell(`command ${number}: ${outBytes} bytes out, ${inBytes} in`)
    if (this.#isBlocked) command.earned.add(Status.busy)
    const { head, heldBackCount, commandIdCount } = this.#kernel
    const result = this.#kernel.submit({
      cdb: cdbOf(this.pick([0x08, 0x28, 0x88, 0x7f]), number),
      dataOut: command.dataOut,
      dataInBytes: inBytes,
      tag: number,
    })
    void result.then((ended) => this.#check(command, ended))
    command.isOnRing = this.#kernel.commandIdCount > commandIdCount
    this.#lookAtRing(head, heldBackCount, command)
    // The kernel's time goes by with the clock's steps, so there is one when something may expire.
    for (const timeoutMs of [this.#commandTimeoutMs, this.#holdBackMsMax]) {
      if (timeoutMs > 0) this.after(timeoutMs + 1, () => {})
    }
  }

  #someLengths(): [outBytes: number, inBytes: number] {
    const bytes = this.pick([1, 512, BLOCK_BYTES, 5000, 9000])
    return this.pick([
      [0, 0],
      [bytes, 0],
      [0, bytes],
      // Of a bidirectional command the kernel copies no more in than out.
      [bytes, this.integer(1, bytes)],
    ] as [number, number][])
  }

  /** What became of a command that was just sent. */
  #lookAtRing(before: number, heldBackBefore: number, command: Command): void {
    if (this.#kernel.heldBackCount > heldBackBefore) {
      this.count('a command does not fit')
      command.isHeldBack = true
      command.wasHeldBack = true
    }
    const { head } = this.#kernel
    if (head >= before) return
    this.count(head === 0 ? 'the ring wraps' : 'the ring wraps with a PAD')
  }

  #check(command: Command, result: ScsiResult): void {
    const status = statusOf(result)
    const { number, behaviour } = command
    this.tell(`result of ${number}: ${status}`)
    if (command.result !== undefined) this.violate(`command ${number} has two results`)
    const allowed = this.#allowedStatuses(command)
    if (!allowed.has(status)) {
      this.violate(`command ${number} (${behaviour}): ${status}, not ${[...allowed].join(' or ')}`)
    }
    command.result = status
    command.isHeldBack = false
    if (status === Status.communicationFailure && command.request === undefined) {
      this.count('a command expires on the ring')
    }
    if (status === Status.taskSetFull && this.#holdBackMsMax > 0) {
      this.count('a command expires while it is held back')
    }
    if (status === Status.tooBig) this.count('a command is too big')
    this.#checkData(command, status, result)
  }

  #allowedStatuses(command: Command): ReadonlySet<string> {
    if (command.isAborted) return new Set([Status.aborted])
    const allowed = new Set(command.earned)
    const nowMs = this.clock.now()
    if (this.#commandTimeoutMs > 0 && nowMs - command.submittedMs >= this.#commandTimeoutMs) {
      allowed.add(Status.communicationFailure)
    }
    if (this.#requestTimeoutMs > 0 && nowMs - command.takenMs >= this.#requestTimeoutMs - 1e-6) {
      allowed.add(Status.givenUp)
    }
    if (command.wasHeldBack || this.#holdBackMsMax === 0) allowed.add(Status.taskSetFull)
    const neededBlocks = [command.dataOut.length, command.dataInBytes]
      .map((bytes) => Math.ceil(bytes / BLOCK_BYTES))
      .reduce((sum, count) => sum + count)
    if (neededBlocks > this.#blockCount) {
      allowed.add(Status.tooBig)
      // Of one that was held back the kernel no longer tells why it is refused.
      if (command.wasHeldBack) allowed.add(Status.communicationFailure)
    }
    return allowed
  }

  /** The initiator gets what the handler wrote, and never a byte of another command. */
  #checkData(command: Command, status: string, { dataIn, residualBytes }: ScsiResult): void {
    const { number, dataInBytes, dataOut, bytesWritten = dataInBytes } = command
    if (status !== Status.good) {
      if (dataIn.some((byte) => byte !== 0)) this.violate(`command ${number} failed and brought data`)
      return
    }
    const tellsLength = this.#tellsLength && dataOut.length === 0 && bytesWritten > 0
    const lengthBytes = tellsLength ? bytesWritten : dataInBytes
    const expected = Buffer.concat([patternOf(command, bytesWritten), Buffer.alloc(dataInBytes)]).subarray(
      0,
      lengthBytes,
    )
    if (!dataIn.equals(expected))
      this.violate(`command ${number} got ${dataIn.length} bytes that are not its own`)
    if (residualBytes !== dataInBytes - lengthBytes)
      this.violate(`command ${number}: ${residualBytes} bytes residual`)
  }

  // ---- Task management --------------------------------------------------------------------------------------

  /** An initiator may give a command up at this very moment. */
  #maybeAbort(command: Command | undefined, point?: AbortPoint): void {
    if (command === undefined || this.faultsAreOver || !this.chance(this.#abortChance)) return
    this.#abortTask(command, point)
  }

  #abortTask(command: Command, point?: AbortPoint): void {
    this.tell(`ABORT TASK of ${command.number}`)
    this.count(point === undefined || command.result !== undefined ? this.#pointOf(command) : point)
    const live = command.result === undefined && !command.isAborted ? [command] : []
    const response = this.#manage('abort-task', live, () => this.#kernel.abortTask(command.number))
    void response.then((what) => {
      const expected = live.length > 0 ? 'function complete' : 'task does not exist'
      if (what !== expected) this.violate(`ABORT TASK of ${command.number}: ${what}, not ${expected}`)
    })
  }

  #lunReset(): void {
    const live = this.#commands.filter(({ result, isAborted }) => result === undefined && !isAborted)
    for (const command of live) this.count(this.#pointOf(command))
    void this.#manage('lun-reset', live, () => this.#kernel.lunReset())
  }

  /** Sends task management, and notes what the server must be told of it. */
  async #manage<Response>(
    type: Told['type'],
    live: readonly Command[],
    send: () => Promise<Response>,
  ): Promise<Response> {
    this.#noteRingEntries()
    const named = live.filter(({ isHeldBack }) => !isHeldBack)
    const behind = this.#commands.filter(({ isOnRing }) => isOnRing)
    for (const command of live) command.isAborted = true
    const { waitingTaskManagementCount } = this.#kernel
    const response = send()
    const waits = this.#kernel.waitingTaskManagementCount > waitingTaskManagementCount
    if (waits) this.count('task management waits for room')
    if (this.#isTold) {
      this.#told.push({ type, commands: named, behind: waits ? undefined : behind })
      this.#toldCount++
    }
    this.#pendingFunctionCount++
    const what = await response
    this.#pendingFunctionCount--
    const unended = live.filter(({ result }) => result === undefined)
    if (unended.length > 0) this.violate(`${type} is through before command ${unended[0]!.number}`)
    return what
  }

  #pointOf(command: Command): AbortPoint {
    const { isHeldBack, request, isSettled, isRecorded, isPublished, result } = command
    if (result !== undefined) {
      if (request !== undefined && !isPublished) return 'aborted after it expired'
      return request?.isHeld === true && this.#canKeep
        ? 'aborted while its buffer is kept'
        : 'aborted after the publication'
    }
    if (isHeldBack) return 'aborted while the kernel holds it back'
    if (request === undefined) return 'aborted before it is taken'
    if (isRecorded) return 'aborted between its answer and the publication'
    return isSettled ? 'aborted while its answer waits for its data' : 'aborted while its handler works'
  }

  #onTaskManagement({ type, commands }: TaskManagement): void {
    const told = this.#told.shift()
    this.tell(`told of ${type}`)
    this.#deliveredCount++
    if (told?.type !== type) {
      this.violate(`told of ${type} instead of ${told?.type}`)
      return
    }
    const given = new Set(commands.map((request) => this.#commandOf.get(request)!))
    this.#namedCount += given.size
    for (const command of told.commands) {
      const isInFlight = command.request !== undefined && !command.isRecorded && !command.isForgotten
      if (isInFlight && !given.has(command))
        this.violate(`not told that command ${command.number} is given up`)
    }
    for (const command of given) {
      command.maySignal = true
      command.mustSignal = true
      if (!told.commands.includes(command)) {
        this.violate(`told of command ${command.number}, which nobody gave up`)
      }
    }
    if (this.#sabotage === 'the signal of another command fires') {
      const other = this.#commands.find(
        ({ request, isSettled, maySignal }) => request && !isSettled && !maySignal,
      )
      other?.request?.abort(new Error() as never)
    }
  }

  // ---- What is wrong at the end of a step -------------------------------------------------------------------

  async #lookAtKernel(): Promise<void> {
    this.#kernel.advance(0)
    await microtasks()
    this.#noteRingEntries()
  }

  /** Of those that the kernel held back the ones that waited longest are on the ring now. */
  #noteRingEntries(): void {
    const waiting = this.#commands.filter(({ isHeldBack }) => isHeldBack)
    for (const command of waiting.slice(0, Math.max(0, waiting.length - this.#kernel.heldBackCount))) {
      command.isHeldBack = false
      command.isOnRing = true
    }
  }

  #carryEvents(): void {
    if (native.eventfdDrain(this.#port.eventFd) === 0) return
    if (this.#sabotage === 'an event is swallowed') return
    let isUnderWay = true
    this.#kicksUnderWay++
    this.deliver('an event comes late', 'an event comes twice', () => {
      if (isUnderWay) this.#kicksUnderWay--
      isUnderWay = false
      this.#kicks.next()
    })
  }

  /** When the server sleeps there must be nothing that it could take. */
  #expectAwake(): void {
    if (this.#run === undefined || this.#isPlugged || this.#kicksUnderWay > 0 || this.#turnsUnderWay > 0)
      return
    const creditCount = this.#creditCountMax - this.#queue.inFlightCount - this.#queue.keptCount
    if (creditCount > 0 && this.#queue.seesEntry())
      this.violate('a wake-up is lost: a command waits on the ring')
    const next = this.#told[0]
    const isNext = next?.behind?.every(({ isOnRing }) => !isOnRing)
    if (isNext === true) this.violate(`a wake-up is lost: ${next?.type} waits on the ring`)
  }

  /** What an initiator waits for is not held for company, and its signal has fired. */
  #expectNoneHeldFor(): void {
    for (const command of this.#commands) {
      if (!command.mustSignal || command.isForgotten) continue
      if (command.isRecorded && !command.isPublished) {
        this.violate(`command ${command.number} was given up, and its answer is held for company`)
      }
      if (command.listens && command.signalCount === 0) {
        this.violate(`command ${command.number} was given up, and its signal does not fire`)
      }
      command.mustSignal = command.isRecorded === command.isPublished && !command.isPublished
    }
  }

  // ---- The faults -------------------------------------------------------------------------------------------

  #planFaults(): void {
    const abortAny = (): void => {
      if (this.#commands.length > 0) this.#abortTask(this.pick(this.#commands))
    }
    this.planFaults(
      {
        'an event for nothing': () => this.#kicks.next(),
        'a doorbell for nothing': () => this.#ringDoorbell(),
        'commands come without an event for each': () => this.#plug(),
        'ABORT TASK of any command': abortAny,
        'ABORT TASK of a command in flight': () => this.#maybeAbortLive(),
        'LUN RESET': () => this.#lunReset(),
        'task management of an unknown command': () => this.#abortNobody(),
        'task management names commands that are answered': () => this.#nameAnswered(),
        'task management is not told of for a while': () => this.#beSilent(),
        'an entry of an unknown kind': () => this.#putUnknown(),
        'the device is blocked': () => this.#block(),
        'the ring is reset': () => void this.#reset(),
      },
      16,
      500,
    )
  }

  #anyRecorded(): Command | undefined {
    return this.#commands.find(({ isRecorded, isPublished }) => isRecorded && !isPublished)
  }

  #anyAnswered(): Command | undefined {
    return this.#commands.findLast(({ isPublished, result }) => isPublished && result !== undefined)
  }

  #maybeAbortLive(): void {
    const live = this.#commands.filter(({ result, isAborted }) => result === undefined && !isAborted)
    if (live.length > 0) this.#abortTask(this.pick(live))
  }

  #ringDoorbell(): void {
    this.#strayDoorbellCount++
    this.#port.ringDoorbell()
  }

  #plug(): void {
    this.#isPlugged = true
    this.#kernel.plug()
    this.after(this.integer(1, 30), () => this.#unplug())
  }

  #unplug(): void {
    if (this.#isPlugged) this.#kernel.unplug()
    this.#isPlugged = false
  }

  #abortNobody(): void {
    void this.#manage('abort-task', [], () => this.#kernel.abortTask(9999)).then((what) => {
      if (what !== 'task does not exist') this.violate(`ABORT TASK of nobody: ${what}`)
    })
  }

  /** The kernel names what it has not seen the answer of: here an entry comes when the answers are published. */
  #nameAnswered(): void {
    const inUse = new Set<number>()
    for (const { request, isOnRing, isPublished } of this.#commands) {
      // Which id it has is not known yet.
      if (isOnRing) return
      if (request !== undefined && !isPublished) inUse.add(request.commandId)
    }
    const ids = [1, 2, 3, 4, 5].filter((id) => !inUse.has(id))
    const body = Buffer.alloc(24 + 2 * ids.length)
    body[0] = 1
    body.writeUInt32LE(ids.length, 4)
    for (const [index, id] of ids.entries()) body.writeUInt16LE(id, 24 + 2 * index)
    if (!this.#canBeTold || this.#kernel.waitingTaskManagementCount > 0 || !this.#kernel.putEntry(2, body))
      return
    this.#told.push({ type: 'abort-task', commands: [], behind: [] })
    this.#toldCount++
  }

  #beSilent(): void {
    const say = (tells: boolean): void => {
      this.#kernel.notifyOfTaskManagement(tells)
      this.#isTold = tells && this.#canBeTold
    }
    say(false)
    this.after(this.integer(1, 100), () => say(true))
  }

  #putUnknown(): void {
    if (this.#kernel.putEntry(this.integer(3, 7), Buffer.alloc(this.integer(0, 64))))
      this.#unknownEntryCount++
  }

  #setBlocked(isBlocked: boolean): void {
    this.#isBlocked = isBlocked
    if (isBlocked) {
      for (const { result, isHeldBack, earned } of this.#commands) {
        if (result === undefined && isHeldBack) earned.add(Status.busy)
      }
      this.#kernel.block()
    } else {
      this.#kernel.unblock()
    }
  }

  #block(): void {
    this.#setBlocked(true)
    this.after(this.integer(1, 50), () => this.#setBlocked(false))
  }

  /** What a server does whose ring broke: gives all up, waits for the data, empties the ring, starts. */
  async #reset(): Promise<void> {
    if (this.#run === undefined) return
    this.#giveRingUp()
    this.#resetCount++
    this.#setBlocked(true)
    this.after(this.integer(0, 40), () => this.#settleAll())
    await this.#queue.whenDataIsFree()
    const level = this.integer(1, 2)
    for (const { result, earned } of this.#commands) {
      if (result === undefined) earned.add(level === 1 ? Status.busy : Status.communicationFailure)
    }
    this.#kernel.resetRing(level)
    for (const command of this.#commands) command.isOnRing = false
    this.#told = []
    this.#start()
    this.#setBlocked(false)
  }

  #giveRingUp(): void {
    for (const command of this.#commands) {
      if (command.request === undefined || command.isPublished) continue
      command.isForgotten = true
      command.maySignal = true
    }
    this.#run?.unsubscribe()
    this.#run = undefined
    this.#queue.stop()
    this.#readySinceMs = undefined
  }

  #settleAll(): void {
    for (const settle of this.#unsettled.splice(0)) settle()
  }

  // ---- The end ----------------------------------------------------------------------------------------------

  async #expectAllAnswered(): Promise<void> {
    this.after(0, () => this.#settleAll())
    await this.playOut()
    const open = this.#commands.filter(({ result }) => result === undefined)
    if (open.length > 0) this.violate(`nobody answered ${open.map(({ number }) => number)}`)
    if (this.#pendingFunctionCount > 0) this.violate(`${this.#pendingFunctionCount} functions do not end`)
    if (this.#told.length > 0) this.violate(`not told of ${this.#told.length} functions`)
    const { commandIdCount, heldBackCount, freeBlockCount, head, drained } = this.#kernel
    if (commandIdCount > 0) this.violate(`the kernel waits for ${commandIdCount} commands`)
    if (heldBackCount > 0) this.violate(`${heldBackCount} commands wait for room`)
    if (freeBlockCount !== this.#blockCount)
      this.violate(`${this.#blockCount - freeBlockCount} blocks are lost`)
    if (head !== drained) this.violate('something is left on the ring')
    const { inFlightCount, keptCount } = this.#queue
    if (inFlightCount + keptCount > 0) this.violate(`${inFlightCount} in flight and ${keptCount} kept`)
  }

  /** As a backstore closes: what is in flight is given up, and what was taken is answered. */
  async #endServer(): Promise<void> {
    this.count('the server ends')
    const run = this.#run
    for (const command of this.#commands) {
      if (command.request === undefined || command.isPublished) continue
      command.maySignal = true
      command.earned.add(Status.givenUp)
    }
    let hasEnded = false
    run?.giveUp()
    void run?.drain().then(() => {
      hasEnded = true
    })
    this.#run = undefined
    await this.playOut()
    if (!hasEnded) this.violate('a queue whose commands are given up does not come to its end')
    this.after(0, () => this.#settleAll())
    await this.playOut()
    const open = this.#commands.filter(
      ({ request, result, isForgotten }) => request && !isForgotten && result === undefined,
    )
    if (open.length > 0)
      this.violate(`the server ended and had not answered ${open.map(({ number }) => number)}`)
    this.#queue.stop()
    let isFree = false
    void this.#queue.whenDataIsFree().then(() => {
      isFree = true
    })
    await microtasks()
    if (!isFree) this.violate('somebody still uses data when all handlers have settled')
  }

  #expectCounts(): void {
    const { fault, log, doorbells } = this.#kernel
    if (fault !== undefined) this.violate(`the server did wrong: ${fault}`)
    const complaints = log.filter((line) => !line.includes('is too big for'))
    if (complaints.length > 0) this.violate(`the kernel says: ${complaints[0]}`)
    const counts = this.#queue.counts()
    const taken = this.#commands.filter(({ request }) => request !== undefined)
    const expected = {
      commands: taken.length,
      completions: this.#publishedCount,
      doorbells: doorbells - this.#strayDoorbellCount,
      offThreadDoorbells: 0,
      ignoredCompletions: 0,
      // What a reset took away, or nobody took at the end, was told to nobody.
      ...(this.#resetCount === 0 &&
        this.#kernel.head === this.#kernel.drained && {
          taskManagements: this.#toldCount,
          unknownOps: this.#unknownEntryCount,
        }),
    }
    for (const [name, count] of Object.entries(expected)) {
      const counted = counts[name as keyof typeof counts]
      if (counted !== count) this.violate(`${name}: counted ${counted}, but there were ${count}`)
    }
    if (counts.aborts < this.#namedCount || counts.taskManagements < this.#deliveredCount) {
      this.violate(`counted ${counts.aborts} aborts by ${counts.taskManagements} functions, but told of more`)
    }
    const unanswered = taken.filter(({ isPublished, isForgotten }) => !isPublished && !isForgotten)
    if (unanswered.length > 0) this.violate(`command ${unanswered[0]!.number} was taken and not answered`)
  }
}

function cdbOf(operationCode: keyof typeof CDB_BYTES, number: number): Buffer {
  const cdb = Buffer.alloc(CDB_BYTES[operationCode])
  cdb[0] = operationCode
  cdb.writeUInt16BE(number, 2)
  // The length of a variable CDB beyond its first 8 bytes.
  if (operationCode === 0x7f) cdb[7] = cdb.length - 8
  return cdb
}

/** What the handler writes into Data-In: never 0, and different in each command. */
function patternOf({ number }: Command, lengthBytes: number): Buffer {
  return Buffer.alloc(lengthBytes, 1 + (number % 127))
}
