import { native } from '../native.ts'
import { RingFeature } from '../ring/features.ts'
import type { InflightDescription, InflightLayout } from '../ring/inflight.ts'
import { type Message, MessageConnection } from '../transport/vhost-user/connection.ts'
import {
  BackEndRequest,
  checkReplyHeader,
  encodeMessage,
  F_PROTOCOL_FEATURES,
  FrontEndRequest,
  type FrontEndRequestName,
  HeaderFlag,
  type MessageHeader,
  ProtocolFeature,
} from '../transport/vhost-user/messages.ts'
import {
  decodeConfig,
  decodeInflight,
  decodeU64,
  decodeVringState,
  encodeConfig,
  encodeInflight,
  encodeMemoryTable,
  encodeSingleRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
} from '../transport/vhost-user/payloads.ts'
import type { SharedMemory } from './shared-memory.ts'
import { socketPair } from './socket-pair.ts'
import type { SplitDriver } from './split-driver.ts'

const NO_PAYLOAD = Buffer.alloc(0)

/** What {@link VhostUserFrontEnd.handshake} accepts of what the back-end offers. */
export interface HandshakeOptions {
  /** Mask over the offered virtio features. Default: all. Without bit 30 there is no SET_VRING_ENABLE. */
  readonly features?: bigint
  /** Mask over the offered protocol features. Default: all that {@link ProtocolFeature} names. */
  readonly protocolFeatures?: bigint
}

/** What a back-end did instead of answering: it hung up, or it refused a command and said so. */
export class BackEndError extends Error {
  readonly reason: 'hung up' | 'refused'

  /** @param message what was asked of it, in a sentence */
  constructor(reason: BackEndError['reason'], message: string) {
    super(message)
    this.reason = reason
  }
}

/** What a front-end tells of a queue; a {@link SplitDriver} is one. */
export interface FrontEndQueue extends Pick<SplitDriver, 'size' | 'addresses'> {
  /** Eventfds, borrowed. */
  readonly kickFd: number
  readonly callFd: number
}

/**
 * A vhost-user front-end for tests of back-ends: it speaks the protocol in the order that QEMU does, one small
 * step a method, and it can send anything at all, for tests with front-ends that break the rules.
 *
 * A question waits for its answer. A command asks for an acknowledgement once REPLY_ACK is negotiated and throws
 * when the back-end refuses it; before that it returns at once.
 */
export class VhostUserFrontEnd {
  /** Virtio feature bits accepted, as sent with SET_FEATURES. */
  features = 0n
  /** Protocol feature bits accepted. */
  protocolFeatures = 0n
  readonly #connection: MessageConnection
  #requestChannel: MessageConnection | undefined

  private constructor(fd: number) {
    this.#connection = new MessageConnection(fd)
  }

  /** Connects to a back-end that listens on `path`. */
  static connect(path: string): VhostUserFrontEnd {
    return new VhostUserFrontEnd(native.unixConnect(path))
  }

  // ---- the whole way, in steps ------------------------------------------------------------------------------

  /** Negotiates features, from GET_FEATURES to SET_FEATURES. */
  async handshake(options: HandshakeOptions = {}): Promise<void> {
    const offered = decodeU64(await this.ask('GET_FEATURES'))
    this.features = offered & (options.features ?? -1n)
    if ((offered & F_PROTOCOL_FEATURES) !== 0n) {
      const protocolOffered = decodeU64(await this.ask('GET_PROTOCOL_FEATURES'))
      const known = Object.values(ProtocolFeature).reduce((all, feature) => all | feature, 0n)
      const accepted = protocolOffered & known & (options.protocolFeatures ?? -1n)
      this.send('SET_PROTOCOL_FEATURES', encodeU64(accepted))
      this.protocolFeatures = accepted
    }
    await this.command('SET_OWNER')
    await this.command('SET_FEATURES', encodeU64(this.features))
  }

  /** Number of queues that the back-end has. Needs MQ. */
  async queueCount(): Promise<number> {
    return Number(decodeU64(await this.ask('GET_QUEUE_NUM')))
  }

  /** Offers these memories and no others. */
  async setMemory(...memories: readonly SharedMemory[]): Promise<void> {
    const table = encodeMemoryTable(memories.map(wireRegionOf))
    await this.command(
      'SET_MEM_TABLE',
      table,
      memories.map(({ fd }) => fd),
    )
  }

  /** Offers one more memory. Needs CONFIGURE_MEM_SLOTS. */
  async addMemory(memory: SharedMemory): Promise<void> {
    await this.command('ADD_MEM_REG', encodeSingleRegion(wireRegionOf(memory)), [memory.fd])
  }

  /** Takes one memory back. Needs CONFIGURE_MEM_SLOTS. */
  async removeMemory(memory: SharedMemory): Promise<void> {
    await this.command('REM_MEM_REG', encodeSingleRegion(wireRegionOf(memory)))
  }

  /**
   * Asks for a file in which the back-end keeps account of the requests in flight. Needs INFLIGHT_SHMFD.
   *
   * @returns what {@link setInflight} takes, now and after a reconnect; the caller closes its `fd`
   */
  async getInflight(layout: InflightLayout): Promise<InflightDescription> {
    const wish = { ...layout, mmapSizeBytes: 0n, mmapOffsetBytes: 0n }
    this.send('GET_INFLIGHT_FD', encodeInflight(wish))
    const message = await receive(this.#connection, (header) =>
      checkReplyHeader(header, FrontEndRequest.GET_INFLIGHT_FD),
    )
    try {
      return { ...decodeInflight(message.payload), fd: message.fds.takeOne() }
    } finally {
      message.fds.close()
    }
  }

  /** Gives the back-end such a file, before its queues start. A later back-end goes on with the same one. */
  async setInflight(inflight: InflightDescription): Promise<void> {
    await this.command('SET_INFLIGHT_FD', encodeInflight(inflight), [inflight.fd])
  }

  /**
   * Starts a queue: size, base, addresses, kick, call, and enable if the back-end knows that.
   *
   * @param base the next available index the device takes; default 0. After a back-end died nobody knows it: QEMU then
   * sends the used index
   */
  async startQueue(index: number, driver: FrontEndQueue, base = 0): Promise<void> {
    await this.command('SET_VRING_NUM', encodeVringState({ index, num: driver.size }))
    await this.command('SET_VRING_BASE', encodeVringState({ index, num: base }))
    await this.command(
      'SET_VRING_ADDR',
      encodeVringAddress({ index, flags: 0, ...driver.addresses, log: 0n }),
    )
    await this.command('SET_VRING_KICK', encodeVringFd({ index, attached: true }), [driver.kickFd])
    await this.command('SET_VRING_CALL', encodeVringFd({ index, attached: true }), [driver.callFd])
    if ((this.features & F_PROTOCOL_FEATURES) !== 0n) await this.enableQueue(index, true)
  }

  /** Enables or disables a queue. */
  async enableQueue(index: number, enabled: boolean): Promise<void> {
    await this.command('SET_VRING_ENABLE', encodeVringState({ index, num: enabled ? 1 : 0 }))
  }

  /** Stops a queue. Returns the next available index, with which it can be started again. */
  async stopQueue(index: number): Promise<number> {
    return decodeVringState(await this.ask('GET_VRING_BASE', encodeVringState({ index, num: 0 }))).num
  }

  /** Reads a part of the configuration space; `undefined` when the back-end refuses that part. Needs CONFIG. */
  async readConfig(offsetBytes: number, lengthBytes: number): Promise<Buffer | undefined> {
    const bytes = Buffer.alloc(lengthBytes)
    const answer = await this.ask('GET_CONFIG', encodeConfig({ offsetBytes, flags: 0, bytes }))
    return answer.length === 0 ? undefined : decodeConfig(answer).bytes
  }

  /** True when event indices were negotiated. */
  get eventIdx(): boolean {
    return (this.features & RingFeature.EVENT_IDX) !== 0n
  }

  /** The process that serves, to look at what it needs; see `processVitals`. */
  get backEndPid(): number {
    return this.#connection.peerPid
  }

  // ---- one message --------------------------------------------------------------------------------------------

  /** Sends a message and expects nothing. */
  send(request: FrontEndRequestName, payload: Buffer = NO_PAYLOAD, fds: readonly number[] = []): void {
    this.sendBytes(encodeMessage(FrontEndRequest[request], HeaderFlag.VERSION, payload), fds)
  }

  /** Sends a command and waits for its acknowledgement, if REPLY_ACK is negotiated. Throws {@link BackEndError} when it is refused. */
  async command(
    request: FrontEndRequestName,
    payload: Buffer = NO_PAYLOAD,
    fds: readonly number[] = [],
  ): Promise<void> {
    if ((this.protocolFeatures & ProtocolFeature.REPLY_ACK) === 0n) {
      this.send(request, payload, fds)
      return
    }
    const flags = HeaderFlag.VERSION | HeaderFlag.NEED_REPLY
    this.sendBytes(encodeMessage(FrontEndRequest[request], flags, payload), fds)
    const result = decodeU64(await this.answerTo(FrontEndRequest[request]))
    if (result !== 0n) throw new BackEndError('refused', `the back-end refused ${request}`)
  }

  /** Sends a question and returns the payload of its answer. */
  async ask(request: FrontEndRequestName, payload: Buffer = NO_PAYLOAD): Promise<Buffer> {
    this.send(request, payload)
    return this.answerTo(FrontEndRequest[request])
  }

  /** Waits for the answer to a request, by its number. Throws {@link BackEndError} when the back-end hangs up instead. */
  async answerTo(request: number): Promise<Buffer> {
    return receivePayload(this.#connection, (header) => checkReplyHeader(header, request))
  }

  /** Sends any bytes with any file descriptors, which are not closed. */
  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): void {
    this.#connection.send(bytes, fds)
  }

  // ---- the other direction ------------------------------------------------------------------------------------

  /** Gives the back-end a socket for requests of its own. Needs BACKEND_REQ. */
  async openRequestChannel(): Promise<void> {
    const [ours, theirs] = socketPair()
    this.#requestChannel = new MessageConnection(ours)
    try {
      await this.command('SET_BACKEND_REQ_FD', NO_PAYLOAD, [theirs])
    } finally {
      native.closeFd(theirs)
    }
  }

  /** Waits until the back-end says that the configuration space changed. */
  async configChange(): Promise<void> {
    if (this.#requestChannel === undefined) throw new Error('call openRequestChannel() first')
    await receivePayload(this.#requestChannel, ({ request }) => {
      if (request !== BackEndRequest.CONFIG_CHANGE_MSG) throw new Error(`unexpected request ${request}`)
    })
  }

  /** Waits until the back-end hangs up, whatever it still sends before. */
  async hungUp(): Promise<void> {
    for (;;) {
      const message = await this.#connection.receive(() => {})
      if (message === undefined) return
      message.fds.close()
    }
  }

  /**
   * Calls back when the back-end hangs up. Nothing is read, so that nothing else may wait for a message meanwhile.
   *
   * @returns ends the waiting
   */
  watchHangUp(onHangUp: () => void): { close(): void } {
    return this.#connection.watchHangUp(onHangUp)
  }

  /**
   * Asks a question that every back-end knows, and skips what else arrives before its answer.
   *
   * @returns false when the back-end has hung up
   */
  async isAnswered(): Promise<boolean> {
    this.send('GET_FEATURES')
    for (;;) {
      const message = await this.#connection.receive(() => {})
      if (message === undefined) return false
      message.fds.close()
      if (message.request === FrontEndRequest.GET_FEATURES) return true
    }
  }

  /** Hangs up. Drivers and memories stay as they are. */
  close(): void {
    this.#connection.close()
    this.#requestChannel?.close()
  }
}

async function receive(
  connection: MessageConnection,
  checkHeader: (header: MessageHeader) => void,
): Promise<Message> {
  const message = await connection.receive(checkHeader)
  if (message === undefined) throw new BackEndError('hung up', 'the back-end hung up')
  return message
}

async function receivePayload(
  connection: MessageConnection,
  checkHeader: (header: MessageHeader) => void,
): Promise<Buffer> {
  const message = await receive(connection, checkHeader)
  message.fds.close()
  return Buffer.from(message.payload)
}

function wireRegionOf(memory: SharedMemory): Parameters<typeof encodeSingleRegion>[0] {
  const { guestAddress, userAddress, sizeBytes, mmapOffsetBytes } = memory
  return { guestAddress, userAddress, sizeBytes: BigInt(sizeBytes), mmapOffsetBytes }
}
