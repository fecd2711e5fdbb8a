import { native } from '../../native.ts'
import { encodeVringFd } from '../../transport/vhost-user/payloads.ts'
import { BlockDriver } from '../block-driver.ts'
import { randomFrom } from '../random.ts'
import { SharedMemory, type SharedMemoryOptions } from '../shared-memory.ts'
import { SplitDriver } from '../split-driver.ts'
import { VhostUserFrontEnd } from '../vhost-user-front-end.ts'
import { VhostUserGuest, type VhostUserGuestOptions } from '../vhost-user-guest.ts'
import type { HostileOutcome } from './row.ts'

/** Queues that each guest starts: a broken one, and one that must go on. */
const QUEUE_COUNT = 2

/** Where one row is played: makes what it needs, sees what becomes of it, and takes everything away at the end. */
export class Stage {
  readonly socketPath: string
  /** How long to wait for anything before it counts as no answer. */
  readonly limitMs: number
  /** A number from 0 to 1, the same sequence for the same seed. */
  readonly random: () => number
  /** Connections made so far. */
  connectionCount = 0
  readonly #cleanups: (() => void)[] = []

  constructor(socketPath: string, limitMs: number, seed: number) {
    this.socketPath = socketPath
    this.limitMs = limitMs
    this.random = randomFrom(seed)
  }

  /** Connects a guest with two queues. */
  async guest(options: VhostUserGuestOptions = {}): Promise<VhostUserGuest> {
    this.connectionCount++
    const guest = await VhostUserGuest.start(this.socketPath, { queueCount: QUEUE_COUNT, ...options })
    this.#cleanups.push(() => guest.close())
    return guest
  }

  /** Connects and says nothing. */
  frontEnd(): VhostUserFrontEnd {
    this.connectionCount++
    const frontEnd = VhostUserFrontEnd.connect(this.socketPath)
    this.#cleanups.push(() => frontEnd.close())
    return frontEnd
  }

  memory(options: SharedMemoryOptions): SharedMemory {
    const memory = new SharedMemory(options)
    this.#cleanups.push(() => memory.close())
    return memory
  }

  eventfd(): number {
    const fd = native.eventfdCreate()
    this.atEnd(() => native.closeFd(fd))
    return fd
  }

  /** Calls `cleanup` when the row is over, the last one first. */
  atEnd(cleanup: () => void): void {
    this.#cleanups.push(cleanup)
  }

  /** What became of a message that the back-end did not have to answer. */
  async afterMessage(frontEnd: VhostUserFrontEnd): Promise<HostileOutcome> {
    const outcome = frontEnd.isAnswered().then((answered) => (answered ? 'served' : 'protocol error'))
    return this.inTime<HostileOutcome>(outcome, 'no answer')
  }

  /**
   * Does something to the first queue and sees what becomes of it.
   *
   * @param attack kicks the device as well
   * @param answered what the device's answers say; left out when there can be none
   * @param revive shows that a broken queue did no more harm than that; by default with {@link reviveQueue}
   */
  async onQueue(
    guest: VhostUserGuest,
    attack: () => void,
    answered: () => Promise<HostileOutcome> = () => new Promise(() => {}),
    revive: () => Promise<void> = () => this.reviveQueue(guest),
  ): Promise<HostileOutcome> {
    const { frontEnd } = guest
    const errorFd = this.eventfd()
    await frontEnd.command('SET_VRING_ERR', encodeVringFd({ index: 0, attached: true }), [errorFd])
    const { promise: decided, resolve: decide } = withResolvers<HostileOutcome>()
    const watches = [
      frontEnd.watchHangUp(() => decide('protocol error')),
      native.watchReadable(errorFd, true, () => decide('queue broken')),
    ]
    let outcome: HostileOutcome
    try {
      attack()
      outcome = await this.inTime(Promise.race([decided, answered()]), 'no answer')
    } finally {
      for (const watch of watches) watch.close()
    }
    if (outcome !== 'queue broken') return outcome
    return this.inTime(
      revive().then(() => outcome),
      'no answer',
    )
  }

  /** Makes a request on the second queue, which must have gone on, and starts the broken first one anew. */
  async reviveQueue({ frontEnd, memory, drivers }: VhostUserGuest): Promise<void> {
    await new BlockDriver(drivers[1]!, memory).flush()
    await frontEnd.stopQueue(0)
    await this.startAnew(frontEnd, memory)
  }

  /** Starts the first queue with a ring of its own, and makes a request on it. */
  async startAnew(frontEnd: VhostUserFrontEnd, memory: SharedMemory): Promise<void> {
    const driver = new SplitDriver({ memory, size: 64, eventIdx: frontEnd.eventIdx })
    this.atEnd(() => driver.close())
    await frontEnd.startQueue(0, driver)
    await new BlockDriver(driver, memory).flush()
  }

  /** What a promise resolves to, or `late` if that takes longer than the limit. */
  async inTime<Result>(promise: Promise<Result>, late: Result, limitMs = this.limitMs): Promise<Result> {
    let timer: NodeJS.Timeout | undefined
    const limit = new Promise<Result>((resolve) => {
      timer = setTimeout(resolve, limitMs, late)
    })
    try {
      return await Promise.race([promise, limit])
    } finally {
      clearTimeout(timer)
    }
  }

  /** Takes everything away. */
  close(): void {
    for (const cleanup of this.#cleanups.splice(0).reverse()) cleanup()
  }
}

function withResolvers<Value>(): { promise: Promise<Value>; resolve: (value: Value) => void } {
  let resolve!: (value: Value) => void
  const promise = new Promise<Value>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}
