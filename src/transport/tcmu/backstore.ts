import { EventEmitter } from 'eventemitter3'
import { filter, interval, map, merge, NEVER, type Observable, pairwise, Subject, tap } from 'rxjs'
import { HushringError, messageOf } from '../../errors.ts'
import type { Device, LogicalUnit, ScsiDevice } from '../../handlers/device.ts'
import type { Handler } from '../../handlers/handler.ts'
import { scsiBlock } from '../../handlers/scsi/scsi-block.ts'
import { UnitAttentions } from '../../handlers/scsi/unit-attentions.ts'
import type { NativeTcmuPort } from '../../native.ts'
import { tcmuEvents } from '../../notify/doorbell.ts'
import { creditsReturned } from '../../notify/drain.ts'
import type { ScsiRequest } from '../../ring/scsi-request.ts'
import { type Sense, SenseKey } from '../../ring/sense.ts'
import { type TaskManagement, TcmuQueue } from '../../ring/tcmu-queue.ts'
import { PipelineRun } from '../pipeline-run.ts'
import { BlockTally, NO_STATS, type StatsOptions, statsOf, type TransportStats } from '../stats.ts'
import type { ResolvedTcmuOptions } from './options.ts'

/** What a TCMU device has done since it was served. */
export interface TcmuStats extends TransportStats {
  /** Commands taken off the ring; the same as `requests`. */
  readonly commands: number
  /** Doorbells rung; the same as `signals`. */
  readonly doorbells: number
  /** Events read from the UIO device; the same as `kicks`. */
  readonly uioReads: number
  /** Commands in flight that an initiator gave up. */
  readonly aborts: number
  /** Entries of a kind that this version does not know. */
  readonly unknownOps: number
  /** Times the ring was reset: at the start, after another server, or to recover. */
  readonly ringResets: number
}

/** One command that an initiator gave up, as it was when that was told. */
export interface AbortedCommand {
  /** The kernel's number of the command, which stands for another one once this one is answered. */
  readonly commandId: number
  readonly operationCode: number
}

/** An initiator gave commands up. Their `io.signal` fires right after this. */
export interface Abort {
  readonly type: TaskManagement['type']
  /** Those of the commands that were still in flight; none when all had been answered. */
  readonly commands: readonly AbortedCommand[]
}

/** Lifecycle of a served TCMU device. */
export interface TcmuEvents {
  /** The ring cannot be believed or the device is gone; it is not served any more. */
  degraded: [error: HushringError]
  closed: []
}

/** The actions of configfs that a served device needs; without them it does without what they do. */
export interface TcmuControl {
  block(): Promise<void>
  unblock(): Promise<void>
  /** Ends what is on the ring with BUSY and empties it. */
  resetRing(): Promise<void>
  freeKeptBuffer(commandId: number): Promise<void>
  setSize(sizeBytes: number): Promise<void>
}

/** Unit attentions (SPC-4, 4.5.2.1 and annex F). */
const POWER_ON_OR_RESET: Sense = { key: SenseKey.UNIT_ATTENTION, asc: 0x29, ascq: 0x00 }
const CAPACITY_DATA_HAS_CHANGED: Sense = { key: SenseKey.UNIT_ATTENTION, asc: 0x2a, ascq: 0x09 }

/** What a {@link TcmuBackstore} serves on. */
export interface TcmuPlace {
  /** Taken over: closed with the backstore. */
  readonly port: NativeTcmuPort
  /** For logs and the ready line: `/dev/uio0`. */
  readonly uioPath: string
  readonly unit: Omit<LogicalUnit, 'attentions'>
  readonly control: TcmuControl | undefined
  /** Times the ring was reset before it was served. */
  readonly ringResets: number
  /** /dev/sdX of this machine, where there is one. */
  readonly blockDevicePath?: string | undefined
  /** Takes the device away from its initiators; called by close() while commands are still answered. */
  readonly unexport?: () => Promise<void>
  /** Lets go of what serving needed, when the device is not served any more. */
  readonly release?: () => Promise<void>
  /** Removes what was made for the device; called by close() at the end. */
  readonly remove?: () => Promise<void>
}

/**
 * A device served over TCMU: a logical unit of the kernel's SCSI target, whose commands come through a UIO device.
 *
 * Lifecycle is events, data is observables.
 */
export class TcmuBackstore extends EventEmitter<TcmuEvents> {
  /** The UIO device, such as `/dev/uio0`. */
  readonly uioPath: string
  /** Commands that initiators gave up, as they are told of. Completes with {@link close}. */
  readonly aborts: Observable<Abort>
  readonly #device: Device
  readonly #options: ResolvedTcmuOptions
  readonly #place: TcmuPlace
  readonly #queue: TcmuQueue
  readonly #handler: Handler<ScsiRequest>
  readonly #attentions = new UnitAttentions()
  readonly #tally = new BlockTally()
  readonly #aborts = new Subject<Abort>()
  readonly #creditsReturned = new Subject<typeof creditsReturned>()
  #run: PipelineRun<ScsiRequest> | undefined
  #blockDevicePath: string | undefined
  #unexport: (() => Promise<void>) | undefined
  #broken: HushringError | undefined
  #uioReads = 0
  #ringResets: number
  #lostNotifications = 0
  #brokenQueues = 0
  #errors = 0
  #recovering: Promise<void> | undefined
  #closing: Promise<void> | undefined

  private constructor(device: Device, options: ResolvedTcmuOptions, place: TcmuPlace) {
    super()
    this.#device = device
    this.#options = options
    this.#place = place
    this.uioPath = place.uioPath
    this.#blockDevicePath = place.blockDevicePath
    this.#unexport = place.unexport
    this.#ringResets = place.ringResets
    // Initiators may know the unit from an earlier server: the mode pages have their defaults again.
    if (place.ringResets > 0) this.#attentions.raise(POWER_ON_OR_RESET)
    this.aborts = this.#aborts.asObservable()
    // One for the life of the unit: what initiators set with MODE SELECT outlives a reset of the ring.
    const unit: LogicalUnit = { ...place.unit, attentions: this.#attentions }
    this.#handler = asScsiDevice(device, this.#tally).connect(unit)
    const { control, port } = place
    this.#queue = new TcmuQueue({
      port,
      commandCountMax: options.commandCountMax,
      inlineCopyBytesMax: options.inlineCopyBytesMax,
      ...(control !== undefined && { freeKeptBuffer: (id) => this.#freeKept(control, id) }),
      onTaskManagement: (taskManagement) => this.#onTaskManagement(taskManagement),
      onCreditsReturned: () => this.#creditsReturned.next(creditsReturned),
    })
  }

  /** The disk of this machine, such as `/dev/sda`; undefined where none was asked for. */
  get blockDevicePath(): string | undefined {
    return this.#blockDevicePath
  }

  /** Why the ring was given up; undefined while it is in order. */
  get broken(): HushringError | undefined {
    return this.#broken
  }

  /**
   * Serves a device: starts on the ring as it is, and looks at it once. Throws `ERR_TCMU_MAILBOX` for a ring that cannot
   * be served, and what breaks the ring at that first look (`ERR_TCMU_HEAD` …); the port is then left to its owner.
   *
   * @internal Use `tcmu.create`, `tcmu.attach` or `tcmu.serve`.
   */
  static serve(device: Device, options: ResolvedTcmuOptions, place: TcmuPlace): TcmuBackstore {
    const backstore = new TcmuBackstore(device, options, place)
    try {
      backstore.#start()
      return backstore
    } catch (error) {
      backstore.#queue.close()
      throw error
    }
  }

  #start(): void {
    this.#queue.start()
    this.#broken = undefined
    this.#run = new PipelineRun()
    const { doorbell, commandCountMax, budgetCountMax, requestTimeoutMs } = this.#options
    this.#run.start(
      this.#queue,
      this.#wakes(),
      this.#handler,
      {
        suppression: doorbell,
        creditCountMax: commandCountMax,
        budgetCountMax,
        requestTimeoutMs,
        onFailure: (request, error) => this.#onFailure(request, error),
      },
      {
        onBroken: (error) => this.#onBroken(error),
        onStopped: () => {
          this.#run = undefined
        },
      },
    )
    this.#throwIfBroken()
  }

  /**
   * Makes the device a disk of this machine; called by `tcmu.create` once it is served.
   *
   * @internal
   */
  exported(blockDevicePath: string | undefined, unexport: () => Promise<void>): void {
    this.#blockDevicePath = blockDevicePath
    this.#unexport = unexport
  }

  #wakes(): Observable<unknown> {
    const events = tcmuEvents(this.#place.port).pipe(tap(() => this.#uioReads++))
    return merge(events, this.#overlookedEntries(), this.#creditsReturned)
  }

  /**
   * Nothing in the kernel orders the increment of its event counter behind the new head for a reader on another
   * processor: this thread may read the event and still see the old head, and no further event follows. Partner: the
   * look of {@link TcmuQueue.rearm} before sleeping. A look from a timer mends what is left of that.
   */
  #overlookedEntries(): Observable<void> {
    const { safetyCheckMs, logger } = this.#options
    if (safetyCheckMs === 0) return NEVER
    // An entry is seen before its event as long as the kernel gathers several, so it has to be there for a while.
    const sighting = (): number | undefined =>
      this.#queue.armed && this.#queue.seesEntry()
        ? this.#uioReads + this.#queue.counts().commands
        : undefined
    return interval(safetyCheckMs).pipe(
      map(sighting),
      pairwise(),
      filter(([before, now]) => now !== undefined && now === before),
      map(() => {
        this.#lostNotifications++
        logger.warn(`${this.uioPath}: an entry came without an event; the safety check found it`)
      }),
    )
  }

  #onTaskManagement({ type, commands }: TaskManagement): void {
    this.#options.logger.info(`${this.uioPath}: ${type}: ${commands.length} commands are given up`)
    this.#aborts.next({
      type,
      commands: commands.map(({ commandId, cdb }) => ({ commandId, operationCode: cdb[0]! })),
    })
  }

  #onFailure(request: ScsiRequest, error: HushringError): void {
    this.#errors++
    const code = request.cdb[0]!.toString(16).padStart(2, '0')
    this.#options.logger.debug(`${this.uioPath}: command ${code}h failed: ${error.code}: ${error.message}`)
  }

  #onBroken(error: HushringError): void {
    this.#broken = error
    this.#brokenQueues++
    this.#stop()
    this.#options.logger.error(`${this.uioPath}: ${error.code}: ${error.message}`)
    this.emit('degraded', error)
  }

  async #freeKept(control: TcmuControl, commandId: number): Promise<void> {
    try {
      await control.freeKeptBuffer(commandId)
    } catch (error) {
      // The buffer stays the kernel's loss until the ring is reset or the device closed.
      this.#options.logger.warn(
        `${this.uioPath}: a kept buffer cannot be given back: ${(error as Error).message}`,
      )
    }
  }

  /**
   * Gives the ring up as it is and starts on an empty one: what is in flight is aborted here and ends with BUSY for its
   * initiators, who try again. For a ring that broke. Called while another recovery is under way it waits for that one.
   *
   * The reset gives the memory of commands in flight to others, so handlers have to let go of it before: that is waited
   * for as long as `stopGraceMs` says. Rejects with `ERR_BUSY` when one has not, with `ERR_TCMU_UNAVAILABLE` when the
   * device was attached without its place in configfs, with `ERR_TCMU_SYSTEM` when the kernel refuses, and with
   * `ERR_TCMU_REMOVED` when there is no device any more. The device is not served then; try again later or close it.
   */
  async recover(): Promise<void> {
    this.#throwIfClosed()
    await this.#recover()
  }

  #recover(): Promise<void> {
    this.#recovering ??= this.#resetAndStart().finally(() => {
      this.#recovering = undefined
    })
    return this.#recovering
  }

  async #resetAndStart(): Promise<void> {
    const { control } = this.#place
    if (this.#broken?.code === 'ERR_TCMU_REMOVED') throw this.#broken
    if (control === undefined) {
      throw new HushringError('ERR_TCMU_UNAVAILABLE', `${this.uioPath} has no directory in configfs`)
    }
    this.#stop()
    try {
      await control.block()
      try {
        if (!(await this.#isDataFreeInTime())) {
          throw new HushringError('ERR_BUSY', `${this.uioPath}: a handler still uses the data of its command`)
        }
        await control.resetRing()
        this.#ringResets++
        this.#start()
      } finally {
        await control.unblock()
      }
    } catch (cause) {
      this.#stop()
      this.#broken ??=
        cause instanceof HushringError
          ? cause
          : new HushringError('ERR_TCMU_SYSTEM', messageOf(cause), {
              cause,
            })
      throw cause
    }
  }

  /** Takes and answers nothing any more. */
  #stop(): void {
    this.#run?.unsubscribe()
    this.#run = undefined
    this.#queue.stop()
  }

  /** Whether handlers let go of the data of commands that were given up within `stopGraceMs`. */
  async #isDataFreeInTime(): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<boolean>((resolve) => {
      timer = setTimeout(() => resolve(false), this.#options.stopGraceMs)
    })
    try {
      return await Promise.race([this.#queue.whenDataIsFree().then(() => true), late])
    } finally {
      clearTimeout(timer)
    }
  }

  /**
   * Changes the capacity of the disk: the store first, then what configfs shows, then the initiators are told with the
   * next command (CAPACITY DATA HAS CHANGED); Linux shows the new size after a rescan.
   *
   * @param capacityBytes a positive multiple of the block size. Rejects with `ERR_DEVICE_KIND` for a device that cannot
   * be resized.
   */
  async resize(capacityBytes: number): Promise<void> {
    this.#throwIfClosed()
    const device = this.#device
    if (device.kind !== 'block' || device.resize === undefined) {
      throw new HushringError('ERR_DEVICE_KIND', 'this device has the size it was made with')
    }
    await device.resize(capacityBytes)
    await this.announceCapacity(capacityBytes)
  }

  /**
   * Tells configfs and the initiators what capacity the device has.
   *
   * @internal
   */
  async announceCapacity(capacityBytes: number): Promise<void> {
    try {
      await this.#place.control?.setSize(capacityBytes)
    } finally {
      // Whatever configfs shows, this is the capacity that commands meet.
      this.#attentions.raise(CAPACITY_DATA_HAS_CHANGED)
    }
  }

  /** Counts since the device was served. */
  statsSnapshot(): TcmuStats {
    const counts = this.#queue.counts()
    const { reads, writes, flushes, bytesRead, bytesWritten } = this.#tally
    return {
      ...NO_STATS,
      requests: counts.commands,
      reads,
      writes,
      flushes,
      bytesRead,
      bytesWritten,
      errors: this.#errors,
      kicks: this.#uioReads,
      signals: counts.doorbells,
      batches: counts.batches,
      nativeCalls: counts.nativeCalls,
      inFlight: this.#queue.inFlightCount,
      lostNotifications: this.#lostNotifications,
      brokenQueues: this.#brokenQueues,
      connections: 1,
      commands: counts.commands,
      doorbells: counts.doorbells,
      uioReads: this.#uioReads,
      aborts: counts.aborts,
      unknownOps: counts.unknownOps,
      ringResets: this.#ringResets,
    }
  }

  /** Counts at intervals. Each subscriber has its own clock; it ends with {@link close} or when unsubscribed. */
  stats(options?: StatsOptions): Observable<TcmuStats> {
    return statsOf<TcmuStats>(this, options)
  }

  /**
   * Takes the device away from its initiators (a device that was created), answers what is in flight, lets the UIO
   * device go, and removes what was made. Handlers that have not answered after `stopGraceMs` are answered for. Calling
   * it again waits for the same end. Rejects with `ERR_TCMU_SYSTEM` when something of it cannot be removed; everything
   * else is then done all the same.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  /**
   * Lets the UIO device go and leaves everything else as it is, for a server that starts again.
   *
   * @internal
   */
  async abandon(): Promise<void> {
    this.#closing ??= this.#withGrace(() => this.#leave()).finally(() => this.emit('closed'))
    await this.#closing
  }

  async #leave(): Promise<void> {
    await this.#recovering?.catch(() => {})
    await this.#run?.drain()
    // A kernel that keeps no buffers gets an answer when its handler lets go of the data, also one that was given up.
    if (this.#queue.inFlightCount > 0) await this.#isDataFreeInTime()
    this.#queue.stop()
    this.#queue.close()
    this.#place.port.close()
    this.#aborts.complete()
    await this.#place.release?.()
  }

  /**
   * From `stopGraceMs` on, aborts what handlers have not answered, and again what they left unanswered since. What comes
   * meanwhile is served: the kernel may still be about to send the flush that it waits for.
   */
  async #withGrace(work: () => Promise<void>): Promise<void> {
    const { stopGraceMs } = this.#options
    const abort = (): void => {
      this.#run?.abort()
      timer = setTimeout(abort, Math.max(stopGraceMs, ABORT_AGAIN_MS))
    }
    let timer = setTimeout(abort, stopGraceMs)
    try {
      await work()
    } finally {
      clearTimeout(timer)
    }
  }

  async #close(): Promise<void> {
    const failures: unknown[] = []
    const attempt = async (step: (() => Promise<void>) | undefined): Promise<void> => {
      try {
        await step?.()
      } catch (error) {
        failures.push(error)
      }
    }
    await this.#withGrace(async () => {
      await this.#recovering?.catch(() => {})
      // The kernel asks for a flush and waits for what is in flight, so commands are answered meanwhile: also by a ring
      // that broke, if it can be started once more.
      if (this.#unexport !== undefined && this.#run === undefined) await this.#recover().catch(() => {})
      await attempt(this.#unexport)
      await attempt(() => this.#leave())
    })
    await attempt(this.#place.remove)
    this.emit('closed')
    if (failures.length > 0) throw failures[0]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #throwIfBroken(): void {
    if (this.#broken !== undefined) throw this.#broken
  }

  #throwIfClosed(): void {
    if (this.#closing !== undefined) throw new HushringError('ERR_CLOSED', `${this.uioPath} was closed`)
  }
}

/** While a device is taken away from its initiators its handlers have at least so long for what still comes. */
const ABORT_AGAIN_MS = 1000

/** Any device as TCMU serves it: a disk becomes a SCSI disk. Throws `ERR_DEVICE_KIND` for a virtio device. */
function asScsiDevice(device: Device, tally: BlockTally): ScsiDevice {
  if (device.kind === 'block') return scsiBlock(device.wrap(tally.layer))
  if (device.kind === 'scsi') return device
  throw new HushringError('ERR_DEVICE_KIND', `TCMU cannot serve the virtio device ${device.name}`)
}
