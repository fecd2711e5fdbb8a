import {
  BlockDriver,
  type HandshakeOptions,
  SharedMemory,
  SplitDriver,
  VhostUserFrontEnd,
} from '../../src/testing/index.ts'

/** Options of {@link FakeGuest.start}. */
export interface FakeGuestOptions extends HandshakeOptions {
  readonly queueSize?: number
  readonly queueCount?: number
  /** False: connected and negotiated, memory and queues not set up. Default true. */
  readonly started?: boolean
}

/** What a virtual machine would bring: memory, a driver for each queue, a disk driver on the first, a front-end. */
export class FakeGuest {
  readonly frontEnd: VhostUserFrontEnd
  readonly memory: SharedMemory
  readonly drivers: readonly SplitDriver[]
  readonly disk: BlockDriver

  private constructor(frontEnd: VhostUserFrontEnd, options: FakeGuestOptions) {
    const { queueSize = 64, queueCount = 1 } = options
    this.frontEnd = frontEnd
    this.memory = new SharedMemory()
    this.drivers = Array.from(
      { length: queueCount },
      () => new SplitDriver({ memory: this.memory, size: queueSize, eventIdx: frontEnd.eventIdx }),
    )
    this.disk = new BlockDriver(this.driver, this.memory)
  }

  /** Connects, negotiates and starts every queue. */
  static async start(socketPath: string, options: FakeGuestOptions = {}): Promise<FakeGuest> {
    const frontEnd = VhostUserFrontEnd.connect(socketPath)
    await frontEnd.handshake(options)
    const guest = new FakeGuest(frontEnd, options)
    if (options.started ?? true) {
      await frontEnd.setMemory(guest.memory)
      for (const [index, driver] of guest.drivers.entries()) await frontEnd.startQueue(index, driver)
    }
    return guest
  }

  /** The driver of the first queue. */
  get driver(): SplitDriver {
    return this.drivers[0]!
  }

  /** Hangs up and lets everything go. */
  close(): void {
    this.frontEnd.close()
    for (const driver of this.drivers) driver.close()
    this.memory.close()
  }
}
