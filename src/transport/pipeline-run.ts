import { type Observable, Subject, Subscription, takeUntil } from 'rxjs'
import { HushringError, messageOf } from '../errors.ts'
import type { Handler } from '../handlers/handler.ts'
import { type ServableQueue, type ServeOptions, serveQueue } from '../notify/pipeline.ts'
import type { RingRequest } from '../ring/request.ts'

/** How a {@link PipelineRun} ended. */
export interface PipelineEnd {
  /** The peer broke the queue, or the doorbell cannot be read any more. */
  onBroken(error: HushringError): void
  /** A drain is through with everything. */
  onStopped(): void
}

/**
 * One run of the spine over a started queue, with the ways it can end: drained, given up, or broken. The owner keeps
 * it from before its start, because a handler may stop the queue that its request came from.
 */
export class PipelineRun<Io extends RingRequest> {
  /** Resolves when the run has ended, in whatever way. */
  readonly ended: Promise<void>
  readonly #subscription = new Subscription()
  readonly #noMoreKicks = new Subject<void>()
  /** Called after each publish while a drain waits for something to be published. */
  #onPublished: (() => void) | undefined
  readonly #giveUp = new Subject<HushringError>()

  constructor() {
    this.ended = new Promise((resolve) => this.#subscription.add(resolve))
  }

  /**
   * Starts serving. Arguments as {@link serveQueue}.
   *
   * @param end called at most once, when the run ends by itself
   */
  start(
    queue: ServableQueue<Io>,
    kicks: Observable<unknown>,
    handler: Handler<Io>,
    options: Omit<ServeOptions<Io>, 'giveUp'>,
    end: PipelineEnd,
  ): void {
    const served = serveQueue(queue, kicks.pipe(takeUntil(this.#noMoreKicks)), handler, {
      ...options,
      giveUp: this.#giveUp,
    })
    this.#subscription.add(
      served.subscribe({
        next: () => this.#onPublished?.(),
        error: (error: unknown) => end.onBroken(asHushringError(error)),
        complete: () => {
          end.onStopped()
          this.unsubscribe()
        },
      }),
    )
  }

  /**
   * Takes nothing more and waits until everything in flight is answered and published.
   *
   * @param owesNothing false while there are requests that must be taken before; it is asked after each publish
   */
  async drain(owesNothing: () => boolean = () => true): Promise<void> {
    const stopIfThrough = (): void => {
      if (!owesNothing()) return
      this.#onPublished = undefined
      this.#noMoreKicks.next()
    }
    this.#onPublished = stopIfThrough
    stopIfThrough()
    await this.ended
  }

  /** Aborts what is in flight, which fails now. What comes later is served. */
  abort(): void {
    this.#giveUp.next(new HushringError('ERR_REQUEST_ABORTED', 'the queue was stopped'))
  }

  /** {@link abort}, and takes nothing more, so that a drain comes to its end. */
  giveUp(): void {
    this.#noMoreKicks.next()
    this.abort()
  }

  /** Ends at once: aborts what is in flight and answers nothing. */
  unsubscribe(): void {
    this.#subscription.unsubscribe()
  }
}

/** What a device or a layer threw when it was asked for its handler is the fault of neither the driver nor the ring. */
export function asHushringError(error: unknown): HushringError {
  if (error instanceof HushringError) return error
  const message = `the device cannot be connected: ${messageOf(error)}`
  return new HushringError('ERR_HANDLER_THREW', message, { cause: error })
}
