import { type NativeTcmuPort, native, TcmuCommandRow, TcmuCompletionRow } from '../../src/native.ts'
import type { Published } from '../../src/ring/queue.ts'
import type { Completion } from '../../src/ring/request.ts'
import type { ScsiRequest } from '../../src/ring/scsi-request.ts'
import { TcmuQueue, type TcmuQueueOptions } from '../../src/ring/tcmu-queue.ts'

/** Mistakes that the simulation must notice; see those of the split ring. */
export const tcmuSabotages = [
  'an event is swallowed',
  'what is left after a full budget is forgotten',
  'returned credits wake nobody',
  'task management waits for a credit',
  'the signal of an aborted command does not fire',
  'the signal of another command fires',
  'an aborted command waits for company',
  'the last group is not published',
  'two answers are mixed up',
  'somebody else answers a command as well',
  'a buffer is given back before its answer',
  'the data of a command goes with its answer',
] as const
export type TcmuSabotage = (typeof tcmuSabotages)[number]

/** What a queue tells of itself while it is watched. */
export interface TcmuQueueWatcher {
  /** A handler has answered, or its data came back after that. */
  beforeRecord(request: ScsiRequest): void
  /** @param isHeld somebody uses the data still */
  onRecord(request: ScsiRequest, isHeld: boolean): void
  beforePublish(): void
  onPublish(count: number): void
}

/** The product's queue, which tells when answers become ready and when they go out. */
export class WatchedTcmuQueue extends TcmuQueue {
  readonly #watcher: TcmuQueueWatcher
  readonly #port: NativeTcmuPort
  readonly #sabotage: TcmuSabotage | undefined
  #previous: ScsiRequest | undefined
  #hasInterfered = false

  constructor(options: TcmuQueueOptions, watcher: TcmuQueueWatcher, sabotage: TcmuSabotage | undefined) {
    super(options)
    this.#watcher = watcher
    this.#port = options.port
    this.#sabotage = sabotage
  }

  override get urgent(): boolean {
    return this.#sabotage === 'an aborted command waits for company' ? false : super.urgent
  }

  override takeUncredited(): boolean {
    return this.#sabotage === 'task management waits for a credit' ? false : super.takeUncredited()
  }

  override record(request: ScsiRequest, completion: Completion): void {
    this.#watcher.beforeRecord(request)
    const { isHeld } = request
    if (this.#sabotage === 'two answers are mixed up') {
      const { head } = request
      request.head = this.#previous?.head ?? head
      this.#previous = { head } as ScsiRequest
    }
    super.record(request, completion)
    this.#watcher.onRecord(request, isHeld)
  }

  override publish(): Published {
    if (this.#sabotage === 'the last group is not published' && this.inFlightCount === 1) {
      return { count: 0, signalled: false }
    }
    this.#watcher.beforePublish()
    const published = super.publish()
    this.#watcher.onPublish(published.count)
    // The pipeline looks again unless the queue says that there will be an event.
    if (this.#sabotage === 'returned credits wake nobody') this.armed = true
    if (this.#sabotage === 'somebody else answers a command as well') this.#interfere()
    return published
  }

  /** Answers the next command on the ring behind the back of this queue, which will take and answer it, too. */
  #interfere(): void {
    if (this.#hasInterfered) return
    const other = native.createTcmuQueue({
      port: this.#port,
      commandCountMax: 1,
      batchCountMax: 1,
      inlineCopyBytesMax: Number.MAX_SAFE_INTEGER,
    })
    other.start()
    if (other.take(1) === 1) {
      other.completions.fill(0)
      other.completions[TcmuCompletionRow.command] = other.commands[TcmuCommandRow.command]!
      other.complete(1)
      this.#hasInterfered = true
    }
    other.close()
  }
}
