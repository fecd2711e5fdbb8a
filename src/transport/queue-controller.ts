import { BehaviorSubject, interval, map, merge, type Observable, Subject, switchMap, tap } from 'rxjs'
import { HushringError } from '../errors.ts'
import type { VirtioDevice } from '../handlers/device.ts'
import type { Handler } from '../handlers/handler.ts'
import { native } from '../native.ts'
import { doorbell } from '../notify/doorbell.ts'
import { RingFeature } from '../ring/features.ts'
import { type InflightFile, inflightError } from '../ring/inflight.ts'
import type { DriverMemory } from '../ring/memory.ts'
import { type QueueCounts, VirtQueue } from '../ring/queue.ts'
import type { RingRequest } from '../ring/request.ts'
import type { ResolvedServeOptions } from './options.ts'
import { asHushringError, PipelineRun } from './pipeline-run.ts'

/** Where the three parts of a ring lie, as the front-end sees them. */
export interface RingAddresses {
  readonly descriptor: bigint
  readonly available: bigint
  readonly used: bigint
}

/** What a queue asks of the session it belongs to. */
export interface QueueHost {
  readonly device: VirtioDevice
  readonly options: ResolvedServeOptions
  readonly memory: DriverMemory
  /** Feature bits the driver accepted. */
  readonly features: bigint
  /** Where the queues keep account for a process after this one; undefined: nowhere. */
  readonly inflight: InflightFile | undefined
  onBroken(queue: QueueController, error: HushringError): void
  onFailure(request: RingRequest, error: HushringError): void
}

/** Who was not told: the device of a request, or the driver of an answer. */
export type LostWakeUp = 'kick' | 'signal'

/** What a look of the watchdog saw; see {@link QueueController.findLostWakeUps}. */
type Sighting = { readonly [wakeUp in LostWakeUp]?: number }

const NO_FD = -1

/**
 * One virtqueue of a session through its life: configured, started (it has a kick eventfd), enabled, running,
 * draining, stopped, and configured again. A queue runs while it is started and enabled.
 */
export class QueueController {
  readonly index: number
  readonly #host: QueueHost
  readonly #queue: VirtQueue
  #size = 0
  #addresses: RingAddresses | undefined
  #availableBase = 0
  readonly #kickFd = new BehaviorSubject(NO_FD)
  #callFd = NO_FD
  #errorFd = NO_FD
  #started = false
  #enabled = false
  #run: PipelineRun<RingRequest> | undefined
  /** The drain under way, if any. */
  #draining: Promise<void> | undefined
  #wake = new Subject<void>()
  #broken: HushringError | undefined
  #closed = false
  #kicks = 0
  #lateAnswers = 0
  #sighting: Sighting = {}

  constructor(index: number, host: QueueHost) {
    this.index = index
    this.#host = host
    const { queueSizeMax, strictChains } = host.options
    this.#queue = new VirtQueue({ index, sizeMax: queueSizeMax, strictChains, ...host.device.framing })
  }

  /** True while requests are taken. */
  get running(): boolean {
    return this.#run !== undefined
  }

  /** Why the driver's ring was given up; undefined while it is in order. */
  get broken(): HushringError | undefined {
    return this.#broken
  }

  /** Throws `ERR_RING_SIZE` unless it is a power of two within the queue's maximum, `ERR_VHOST_ORDER` while running. */
  setSize(size: number): void {
    this.#throwIfRunning('the queue size')
    const { sizeMax } = this.#queue
    if (size < 1 || size > sizeMax || (size & (size - 1)) !== 0) {
      throw this.#error(
        'ERR_RING_SIZE',
        `expected a power of two up to ${sizeMax} as queue size, got ${size}`,
      )
    }
    this.#checkRoom(size, this.#host.inflight)
    this.#size = size
  }

  /**
   * The session is about to use another in-flight file. Throws `ERR_VHOST_INFLIGHT` when it has no room for the ring,
   * `ERR_VHOST_ORDER` while running.
   */
  checkInflight(inflight: InflightFile): void {
    this.#throwIfRunning('the in-flight file')
    this.#checkRoom(this.#size, inflight)
  }

  #checkRoom(size: number, inflight: InflightFile | undefined): void {
    if (inflight === undefined || size === 0) return
    if (this.index < inflight.queueCount && size <= inflight.queueSize) return
    const { queueCount, queueSize } = inflight
    throw inflightError(
      `queue ${this.index} has a ring of ${size}, and there is room for ${queueCount} of up to ${queueSize}`,
    )
  }

  /**
   * Throws `ERR_RING_ADDRESS` when a part is misaligned, `ERR_VHOST_ORDER` when there is no memory yet or a running
   * ring would move. The same addresses again are accepted at any time: a front-end sends them to toggle logging.
   */
  setAddresses(addresses: RingAddresses): void {
    if (this.#host.memory.regions.length === 0) {
      throw this.#error('ERR_VHOST_ORDER', 'ring addresses came before the memory they lie in')
    }
    const { descriptor, available, used } = addresses
    if (descriptor % 16n !== 0n || available % 2n !== 0n || used % 4n !== 0n) {
      throw this.#error('ERR_RING_ADDRESS', 'expected ring parts aligned to 16, 2 and 4 bytes')
    }
    const before = this.#addresses
    const same = before?.descriptor === descriptor && before.available === available && before.used === used
    if (!same) this.#throwIfRunning('the ring addresses')
    this.#addresses = addresses
  }

  /** The next available index to take. Throws `ERR_VHOST_ORDER` while running. */
  setBase(availableBase: number): void {
    this.#throwIfRunning('the ring base')
    this.#availableBase = availableBase & 0xffff
  }

  /**
   * Takes the kick eventfd over and starts the ring. -1 asks to be polled instead: the ring is looked at every
   * millisecond. A running ring changes over without losing a kick. Throws `ERR_VHOST_FD` (and closes the fd) when it is no eventfd, `ERR_VHOST_ORDER` when the ring
   * is not configured.
   */
  setKick(kickFd: number): void {
    const fd = this.#acceptEventfd(kickFd)
    if (this.#size === 0 || this.#addresses === undefined) {
      closeIfOpen(fd)
      throw this.#error(
        'ERR_VHOST_ORDER',
        'a kick eventfd came before the size and the addresses of its ring',
      )
    }
    const older = this.#kickFd.value
    this.#kickFd.next(fd)
    closeIfOpen(older)
    this.#started = true
    if (this.running) this.#wake.next()
    else this.#runIfReady()
  }

  /** Takes the call eventfd over (-1: the driver polls). A running queue signals the new one once. */
  setCall(callFd: number): void {
    const fd = this.#acceptEventfd(callFd)
    const older = this.#callFd
    this.#callFd = fd
    this.#queue.setCallFd(fd)
    closeIfOpen(older)
    // A signal may have been due on the old eventfd when it was replaced: a spurious one is legal, a lost one not.
    if (this.running) this.#queue.signal()
  }

  /** Takes the eventfd over that tells the front-end that the queue is broken (-1: none). */
  setError(errorFd: number): void {
    const fd = this.#acceptEventfd(errorFd)
    closeIfOpen(this.#errorFd)
    this.#errorFd = fd
  }

  /**
   * A started and enabled queue runs. A kick that came before is not lost: it is still in the eventfd, and the
   * ring is looked at when it starts. Disabling drains what is in flight.
   */
  async setEnabled(enabled: boolean): Promise<void> {
    this.#enabled = enabled
    if (enabled) {
      await this.#draining
      this.#runIfReady()
    } else {
      await this.#drain()
    }
  }

  /** Makes a running ring use the session's new memory. A ring that no longer lies in memory is broken. */
  useNewMemory(): void {
    if (!this.running) return
    try {
      this.#queue.setMemory(this.#host.memory)
    } catch (error) {
      this.#onBroken(error as HushringError)
    }
  }

  /**
   * GET_VRING_BASE: takes nothing more, waits until everything in flight is answered, publishes it, and closes the
   * kick and call eventfds.
   *
   * @param graceMs what is not answered after so many ms is aborted: it fails or, with an in-flight file, is left to the
   * process that goes on with that; without it a slow store is waited for
   * @returns the next available index
   */
  async stop(graceMs?: number): Promise<number> {
    this.#started = false
    const grace = graceMs === undefined ? undefined : setTimeout(() => this.#giveUp(), graceMs)
    await this.#drain()
    clearTimeout(grace)
    // The driver may have gone meanwhile, and everything with it.
    if (!this.#closed) this.#closeDoorbells()
    this.#broken = undefined
    return this.#availableBase
  }

  #giveUp(): void {
    if (this.#host.inflight === undefined) this.#run?.giveUp()
    else this.#unsubscribe()
  }

  /** Gives up at once: aborts what is in flight, answers nothing, forgets the ring. */
  reset(): void {
    this.#unsubscribe()
    this.#closeDoorbells()
    closeIfOpen(this.#errorFd)
    this.#errorFd = NO_FD
    this.#started = false
    this.#enabled = false
    this.#size = 0
    this.#addresses = undefined
    this.#availableBase = 0
    this.#broken = undefined
  }

  /** {@link reset}, and frees the native queue. The controller cannot be used afterwards. */
  close(): void {
    this.reset()
    this.#closed = true
    this.#queue.close()
  }

  /** Counts of this queue since it was made. */
  counts(): QueueCounts & {
    readonly kicks: number
    readonly inFlight: number
    readonly lateAnswers: number
  } {
    return {
      ...this.#queue.counts(),
      kicks: this.#kicks,
      inFlight: this.#queue.inFlightCount,
      lateAnswers: this.#lateAnswers,
    }
  }

  /**
   * The watchdog's look, at both sides. A kick was lost when requests have been visible since the last look, nothing was
   * taken, no kick arrived, and nothing in this process is about to look; the queue is then woken. A signal was lost when
   * the driver has been waiting since the last look for an entry that is published, and none was sent; it is then sent.
   *
   * One look proves nothing: a driver publishes before it kicks, and one that is awake tells late what it waits for.
   *
   * @returns what was found
   */
  findLostWakeUps(): readonly LostWakeUp[] {
    const before = this.#sighting
    const now = this.#sight()
    const lost = (['kick', 'signal'] as const).filter(
      (wakeUp) => now[wakeUp] !== undefined && now[wakeUp] === before[wakeUp],
    )
    this.#sighting = lost.length === 0 ? now : {}
    if (lost.includes('kick')) this.#wake.next()
    if (lost.includes('signal')) this.#queue.signal()
    return lost
  }

  /** For each side that sleeps though there is something for it: a number that moves as soon as anything happens. */
  #sight(): Sighting {
    if (!this.running) return {}
    const { visible, inFlight, owesSignal } = this.#queue.inspect()
    const { requests, completions, malformedChains, skippedHeads, signals } = this.#queue.counts()
    const isIdle = visible > 0 && inFlight < this.#creditCountMax && this.#draining === undefined
    return {
      ...(isIdle && { kick: requests + malformedChains + skippedHeads + this.#kicks }),
      ...(owesSignal && { signal: completions + malformedChains + signals }),
    }
  }

  get #creditCountMax(): number {
    return Math.min(this.#host.options.creditCountMax, this.#size)
  }

  #runIfReady(): void {
    if (!this.#started || !this.#enabled || this.running || this.#broken !== undefined) return
    const { memory, features, device } = this.#host
    const { descriptor, available, used } = this.#addresses!
    let handler: Handler<RingRequest>
    try {
      handler = device.connect(features)
      this.#queue.start({
        size: this.#size,
        memory,
        descriptorAddress: descriptor,
        availableAddress: available,
        usedAddress: used,
        availableBase: this.#availableBase,
        eventIdx: (features & RingFeature.EVENT_IDX) !== 0n,
        indirect: (features & RingFeature.INDIRECT_DESC) !== 0n,
        callFd: this.#callFd,
        inflight: this.#host.inflight?.placeOf(this.index),
      })
    } catch (error) {
      this.#onBroken(asHushringError(error))
      return
    }
    // The driver may be waiting for answers that an earlier run published without telling it.
    this.#queue.signal()
    this.#serve(handler)
  }

  #serve(handler: Handler<RingRequest>): void {
    const { suppression, budgetCountMax, requestTimeoutMs } = this.#host.options
    this.#run = new PipelineRun()
    this.#run.start(
      this.#queue,
      this.#kicksAndWakes(),
      handler,
      {
        suppression,
        ...(suppression.pollMicrosMax !== undefined && { pollMicrosMax: suppression.pollMicrosMax }),
        creditCountMax: this.#creditCountMax,
        budgetCountMax,
        requestTimeoutMs,
        onFailure: (request, error) => this.#host.onFailure(request, error),
        onLateAnswer: () => this.#lateAnswers++,
      },
      { onBroken: (error) => this.#onBroken(error), onStopped: () => this.#onStopped() },
    )
  }

  #kicksAndWakes(): Observable<void> {
    const kicks = this.#kickFd.pipe(
      switchMap((fd) =>
        fd === NO_FD ? interval(1).pipe(map(() => undefined)) : doorbell(fd).pipe(tap(() => this.#kicks++)),
      ),
    )
    return merge(kicks, this.#wake)
  }

  async #drain(): Promise<void> {
    if (this.#run === undefined) return
    // What an earlier process owed is in flight for the driver, whether it is taken here or not.
    this.#draining ??= this.#run.drain(() => this.#queue.owedCount === 0)
    await this.#draining
    this.#draining = undefined
  }

  /** The pipeline is through with everything; the ring may be continued from here. */
  #onStopped(): void {
    this.#availableBase = this.#queue.stop()
    this.#endRun()
  }

  #onBroken(error: HushringError): void {
    this.#broken = error
    this.#unsubscribe()
    if (this.#errorFd !== NO_FD) native.eventfdSignal(this.#errorFd)
    this.#host.onBroken(this, error)
  }

  /** Gives a running pipeline up. A ring that never ran keeps the base that the driver set. */
  #unsubscribe(): void {
    if (this.#run === undefined) return
    // The handlers' signals fire first, while the queue still knows what they stand for.
    this.#endRun()
    this.#availableBase = this.#queue.stop()
  }

  #endRun(): void {
    const run = this.#run
    this.#run = undefined
    run?.unsubscribe()
  }

  #closeDoorbells(): void {
    const kickFd = this.#kickFd.value
    this.#kickFd.next(NO_FD)
    closeIfOpen(kickFd)
    this.#queue.setCallFd(NO_FD)
    closeIfOpen(this.#callFd)
    this.#callFd = NO_FD
  }

  #acceptEventfd(fd: number): number {
    if (fd === NO_FD) return fd
    if (!native.isEventfd(fd)) {
      native.closeFd(fd)
      throw this.#error('ERR_VHOST_FD', 'expected an eventfd for kick, call and error')
    }
    // A full counter or a peer that reads its own kick must never make us wait. The flag belongs to the open
    // file and so shows in the peer as well; peers know that from other back-ends.
    native.setNonBlocking(fd)
    return fd
  }

  #throwIfRunning(what: string): void {
    if (this.running) throw this.#error('ERR_VHOST_ORDER', `${what} cannot change while the queue runs`)
  }

  #error(code: ConstructorParameters<typeof HushringError>[0], message: string): HushringError {
    return new HushringError(code, `queue ${this.index}: ${message}`, { details: { queueIndex: this.index } })
  }
}

function closeIfOpen(fd: number): void {
  if (fd !== NO_FD) native.closeFd(fd)
}
