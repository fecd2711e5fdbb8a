import { native } from '../native.ts'
import type { InflightDescription } from '../ring/inflight.ts'
import { BlockDriver } from './block-driver.ts'
import { SharedMemory } from './shared-memory.ts'
import { SplitDriver } from './split-driver.ts'
import { type HandshakeOptions, VhostUserFrontEnd } from './vhost-user-front-end.ts'

/** Options of {@link VhostUserGuest.start}. */
export interface VhostUserGuestOptions extends HandshakeOptions {
  /** Entries of each ring, a power of two. Default 64. */
  readonly queueSize?: number
  /** Default 1. */
  readonly queueCount?: number
  /** True: keeps account of the requests in flight, for {@link VhostUserGuest.resume}. Default false. */
  readonly inflight?: boolean
  /** False: connected and negotiated, memory and queues not set up. Default true. */
  readonly started?: boolean
}

/** What a virtual machine would bring: memory, a driver for each queue, a disk driver on the first, a front-end. */
export class VhostUserGuest {
  frontEnd: VhostUserFrontEnd
  /** The file of the requests in flight; owned. */
  inflight: InflightDescription | undefined
  readonly #options: VhostUserGuestOptions
  readonly memory: SharedMemory
  readonly drivers: readonly SplitDriver[]
  readonly disk: BlockDriver

  private constructor(frontEnd: VhostUserFrontEnd, options: VhostUserGuestOptions) {
    const { queueSize = 64, queueCount = 1 } = options
    this.frontEnd = frontEnd
    this.#options = options
    this.memory = new SharedMemory()
    this.drivers = Array.from(
      { length: queueCount },
      () => new SplitDriver({ memory: this.memory, size: queueSize, eventIdx: frontEnd.eventIdx }),
    )
    this.disk = new BlockDriver(this.driver, this.memory)
  }

  /** Connects, negotiates and starts every queue. Rejects, with nothing left open, when the back-end refuses. */
  static async start(socketPath: string, options: VhostUserGuestOptions = {}): Promise<VhostUserGuest> {
    const frontEnd = VhostUserFrontEnd.connect(socketPath)
    let guest: VhostUserGuest | undefined
    try {
      await frontEnd.handshake(options)
      guest = new VhostUserGuest(frontEnd, options)
      if (options.started ?? true) await guest.#setUp()
      return guest
    } catch (error) {
      if (guest === undefined) frontEnd.close()
      else guest.close()
      throw error
    }
  }

  /** Connects again after the back-end went, with the same memory, rings, eventfds and file of requests in flight. */
  async resume(socketPath: string): Promise<void> {
    this.frontEnd.close()
    this.frontEnd = VhostUserFrontEnd.connect(socketPath)
    await this.frontEnd.handshake(this.#options)
    await this.#setUp()
  }

  async #setUp(): Promise<void> {
    const { frontEnd, drivers } = this
    if (this.#options.inflight ?? false) {
      const queueSize = this.driver.size
      this.inflight ??= await frontEnd.getInflight({ queueCount: drivers.length, queueSize })
      await frontEnd.setInflight(this.inflight)
    }
    await frontEnd.setMemory(this.memory)
    for (const [index, driver] of drivers.entries()) {
      await frontEnd.startQueue(index, driver, driver.loadUsedIndex())
    }
  }

  /** The driver of the first queue. */
  get driver(): SplitDriver {
    return this.drivers[0]!
  }

  /** Hangs up and lets everything go. Calling it again does nothing. */
  close(): void {
    this.frontEnd.close()
    for (const driver of this.drivers) driver.close()
    this.memory.close()
    if (this.inflight !== undefined) native.closeFd(this.inflight.fd)
    this.inflight = undefined
  }
}
