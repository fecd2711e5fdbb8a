import type { Worker } from 'node:worker_threads'
import { HushringError } from '../../errors.ts'
import type { DeviceSessionEvents } from '../device-session.ts'
import type { Logger } from '../logger.ts'
import { NO_STATS, type TransportStats } from '../stats.ts'
import {
  type FromWorker,
  type ToWorker,
  unpackError,
  type WorkerDevice,
  type WorkerSetup,
} from './messages.ts'
import type { CallParameters, CallResult, SessionCallName } from './session-calls.ts'
import { StatsBoard } from './stats-board.ts'
import { workerThread } from './worker-thread.ts'

/** What a {@link DeviceWorker} tells beside answers. */
export interface DeviceWorkerEvents extends DeviceSessionEvents {
  /** The thread ended though nobody had asked it to. */
  onDied(error: HushringError): void
}

interface PendingCall {
  resolve(value: unknown): void
  reject(error: Error): void
}

/** One worker thread, as the main thread sees it. */
export class DeviceWorker {
  /** 0 to the number of workers - 1. */
  readonly number: number
  readonly #thread: Worker
  readonly #logger: Logger
  readonly #events: DeviceWorkerEvents
  readonly #board: StatsBoard
  readonly #exited: Promise<void>
  readonly #calls = new Map<number, PendingCall>()
  #callCount = 0
  #ready: PendingCall | undefined
  /** What nobody in the thread caught. */
  #uncaught: unknown
  #ending = false
  #dead: HushringError | undefined

  private constructor(number: number, setup: WorkerSetup, logger: Logger, events: DeviceWorkerEvents) {
    this.number = number
    this.#logger = logger
    this.#events = events
    this.#board = new StatsBoard(setup.board)
    this.#thread = workerThread(`hushring ${number}`, setup)
    this.#thread.on('message', (message: FromWorker) => this.#receive(message))
    this.#thread.on('error', (error) => {
      this.#uncaught = error
    })
    this.#exited = new Promise((resolve) => {
      this.#thread.once('exit', (exitCode) => {
        this.#onExit(exitCode)
        resolve()
      })
    })
  }

  /**
   * Starts a thread and has it make the device. Rejects with `ERR_DEVICE_MODULE`, `ERR_WORKER_EXITED`, or what the module
   * threw if that has a code of ours.
   */
  static async start(
    number: number,
    setup: Omit<WorkerSetup, 'board'>,
    logger: Logger,
    events: DeviceWorkerEvents,
  ): Promise<{ readonly worker: DeviceWorker; readonly device: WorkerDevice }> {
    const worker = new DeviceWorker(number, { ...setup, board: new StatsBoard().memory }, logger, events)
    try {
      const device = await new Promise((resolve, reject) => {
        worker.#ready = { resolve, reject }
      })
      return { worker, device: device as WorkerDevice }
    } catch (error) {
      worker.#ending = true
      await worker.#thread.terminate()
      throw error
    }
  }

  /** A front-end has come: its session gets the queues `number`, `number` + `workerCount` and so on. */
  open(workerCount: number): void {
    this.#board.write(NO_STATS)
    this.#post({ kind: 'open', worker: this.number, workerCount })
  }

  /**
   * Asks something of the session. Rejects with what it throws there, and with `ERR_WORKER_EXITED` when the thread ends
   * or has ended.
   */
  call<Name extends SessionCallName>(
    name: Name,
    ...parameters: CallParameters<Name>
  ): Promise<CallResult<Name>> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead)
    const id = this.#callCount++
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve: resolve as PendingCall['resolve'], reject })
      this.#post({ kind: 'call', id, name, parameters })
    })
  }

  /** The counts of the session. @param deadlineMs see {@link StatsBoard.refresh} */
  statsSnapshot(deadlineMs: number): TransportStats {
    if (this.#dead !== undefined) return { ...this.#board.read(), inFlight: 0 }
    this.#board.refresh(() => this.#post({ kind: 'count' }), deadlineMs)
    return this.#board.read()
  }

  /** Closes the device and ends the thread, by force when that takes longer than `graceMs`. */
  async end(graceMs: number): Promise<void> {
    this.#ending = true
    this.#post({ kind: 'end' })
    const late = setTimeout(() => this.#terminate('has not closed its device in time'), graceMs)
    await this.#exited
    clearTimeout(late)
  }

  /** Ends the thread because it does not answer; that is told as its death. */
  kill(): void {
    if (this.#dead !== undefined) return
    this.#uncaught = new Error('it did not answer and was ended')
    this.#terminate('does not answer')
  }

  #terminate(why: string): void {
    this.#logger.warn(`worker ${this.number} ${why} and is ended`)
    void this.#thread.terminate()
  }

  #post(message: ToWorker): void {
    this.#thread.postMessage(message)
  }

  #receive(message: FromWorker): void {
    switch (message.kind) {
      case 'ready':
        this.#ready?.resolve(message.device)
        break
      case 'failed':
        this.#ready?.reject(unpackError(message.error))
        break
      case 'answer':
        this.#takeCall(message.id)?.resolve(message.value)
        break
      case 'refusal':
        this.#takeCall(message.id)?.reject(unpackError(message.error))
        break
      case 'degraded':
        this.#events.onDegraded?.(unpackError(message.error) as HushringError)
        break
      case 'log':
        this.#logger[message.level](message.message)
        break
    }
  }

  #takeCall(id: number): PendingCall | undefined {
    const call = this.#calls.get(id)
    this.#calls.delete(id)
    return call
  }

  /** By now the thread's environment is gone, and with it its descriptors and its maps. */
  #onExit(exitCode: number): void {
    const why = this.#uncaught instanceof Error ? this.#uncaught.message : `it exited with ${exitCode}`
    const error = new HushringError('ERR_WORKER_EXITED', `worker ${this.number} has ended: ${why}`, {
      details: { worker: this.number, exitCode },
      ...(this.#uncaught !== undefined && { cause: this.#uncaught }),
    })
    this.#dead = error
    this.#ready?.reject(error)
    for (const call of this.#calls.values()) call.reject(error)
    this.#calls.clear()
    if (!this.#ending) this.#events.onDied(error)
  }
}
