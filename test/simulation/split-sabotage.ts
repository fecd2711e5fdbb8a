import type { DriverMemory } from '../../src/ring/memory.ts'
import { type Published, VirtQueue } from '../../src/ring/queue.ts'
import type { Completion, RingRequest } from '../../src/ring/request.ts'

/**
 * Mistakes that the simulation can be given, each at a seam of the product and without a change to it. It must notice
 * every one of them, or what it says about the product is worth nothing.
 */
export const splitSabotages = [
  'a kick is swallowed',
  'a signal is swallowed',
  'what is left after a full budget is forgotten',
  'returned credits wake nobody',
  'answers are held for ever',
  'the last group is not published',
  'a request is answered twice',
  'two answers are mixed up',
  'F14',
] as const
export type SplitSabotage = (typeof splitSabotages)[number]

/** What a queue tells of itself while it is watched. */
export interface QueueWatcher {
  onRecord(head: number): void
  onPublish(count: number): void
}

/** The product's queue, which tells when answers become ready and when they go out. */
export class WatchedQueue extends VirtQueue {
  readonly #watcher: QueueWatcher
  readonly #sabotage: SplitSabotage | undefined
  #previous: RingRequest | undefined

  constructor(
    options: ConstructorParameters<typeof VirtQueue>[0],
    watcher: QueueWatcher,
    sabotage: SplitSabotage | undefined,
  ) {
    super(options)
    this.#watcher = watcher
    this.#sabotage = sabotage
  }

  override record(request: RingRequest, completion: Completion): void {
    this.#watcher.onRecord(request.head)
    if (this.#sabotage === 'a request is answered twice') super.record(request, completion)
    if (this.#sabotage === 'two answers are mixed up') {
      const { head } = request
      request.head = this.#previous?.head ?? head
      this.#previous = { head } as RingRequest
    }
    super.record(request, completion)
  }

  override publish(): Published {
    if (this.#sabotage === 'the last group is not published' && this.inFlightCount === 1) {
      return { count: 0, signalled: false }
    }
    const published = super.publish()
    this.#watcher.onPublish(published.count)
    // The pipeline looks again unless the queue says that the driver will kick.
    if (this.#sabotage === 'returned credits wake nobody') this.armed = true
    return published
  }
}

/** Lets memory go while requests in flight still need it. */
export function forgetPins(memory: DriverMemory): void {
  Object.assign(memory, { pin: () => {}, unpin: () => {} })
}
