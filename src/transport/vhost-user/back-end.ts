import { HushringError } from '../../errors.ts'
import { native } from '../../native.ts'
import { inflightBytes, makeInflightFd } from '../../ring/inflight.ts'
import type { DeviceSession } from '../device-session.ts'
import type { QueueController } from '../queue-controller.ts'
import type { Message, MessageHandler } from './connection.ts'
import {
  BackEndRequest,
  checkRequestHeader,
  encodeMessage,
  F_PROTOCOL_FEATURES,
  HeaderFlag,
  type MessageHeader,
  ProtocolFeature,
  requestName,
  requestRule,
  type ServedRequestName,
} from './messages.ts'
import {
  CONFIG_BYTES_MAX,
  type ConfigRange,
  decodeConfig,
  decodeInflight,
  decodeMemoryTable,
  decodeSingleRegion,
  decodeU64,
  decodeVringAddress,
  decodeVringFd,
  decodeVringState,
  encodeConfig,
  encodeInflight,
  encodeU64,
  encodeVringState,
  type VringAddress,
  type WireInflight,
} from './payloads.ts'

/** Memory regions a front-end can add one by one: as many as the kernel's hypervisor gives a guest. */
const MEMORY_SLOT_COUNT = 509
const OFFERED_PROTOCOL_FEATURES = Object.values(ProtocolFeature).reduce((all, feature) => all | feature, 0n)
const NO_FD = -1
const NO_PAYLOAD = Buffer.alloc(0)

/** The same function, which may also be done later. A queue that is served by another thread is. */
type MaybeLater<Function> = Function extends (...parameters: infer Parameters) => infer Result
  ? (...parameters: Parameters) => Result | Promise<Awaited<Result>>
  : never

/** What the back-end asks of a queue. */
export type BackEndQueue = {
  readonly [Name in
    | 'setSize'
    | 'setAddresses'
    | 'setBase'
    | 'setKick'
    | 'setCall'
    | 'setError'
    | 'setEnabled'
    | 'stop']: MaybeLater<QueueController[Name]>
}

/** What the back-end asks of a session. */
export type BackEndSession = Pick<DeviceSession, 'offeredFeatures' | 'queueCount' | 'checkInflightLayout'> & {
  readonly [Name in
    | 'setFeatures'
    | 'setMemory'
    | 'addRegion'
    | 'removeRegion'
    | 'setInflight'
    | 'config'
    | 'writeConfig'
    | 'reset']: MaybeLater<DeviceSession[Name]>
} & {
  readonly memory: { readonly regions: { readonly length: number } }
  queue(index: number): BackEndQueue
}

/** An answer that a file descriptor goes with, which is closed when it was sent. */
class AnswerWithFd {
  readonly payload: Buffer
  readonly fd: number
  constructor(payload: Buffer, fd: number) {
    this.payload = payload
    this.fd = fd
  }
}

/**
 * What a message leads to: the payload of its own answer, nothing (done), or a refusal that is no fault of the
 * front-end and so leaves the connection open.
 */
// biome-ignore lint/suspicious/noConfusingVoidType: what a session did at once it returns nothing of
type Outcome = Buffer | AnswerWithFd | void | typeof REFUSED
const REFUSED = 'refused'

/**
 * The back-end's half of one vhost-user connection: says what each message means for the device's session, and
 * keeps the negotiation. It throws what a front-end did wrong; then the connection has to end.
 */
export class BackEnd implements MessageHandler {
  readonly #session: BackEndSession
  readonly #send: (message: Buffer, fds?: readonly number[]) => void
  #protocolFeatures = 0n
  #deviceStatus = 0
  /** Socket for our own requests (SET_BACKEND_REQ_FD). */
  #requestFd = NO_FD

  /**
   * @param session serves the device to this front-end; closed by whoever made it
   * @param send sends one message to the front-end, with file descriptors that stay open
   */
  constructor(session: BackEndSession, send: (message: Buffer, fds?: readonly number[]) => void) {
    this.#session = session
    this.#send = send
  }

  checkHeader(header: MessageHeader): void {
    try {
      checkRequestHeader(header)
    } catch (error) {
      this.#acknowledge(header, 1n)
      throw error
    }
  }

  async handle(message: Message): Promise<void> {
    try {
      const outcome = await this.#outcomeOf(message)
      if (outcome instanceof Buffer) this.#reply(message.request, outcome)
      else if (outcome instanceof AnswerWithFd) this.#replyWithFd(message.request, outcome)
      else this.#acknowledge(message, outcome === REFUSED ? 1n : 0n)
    } catch (error) {
      this.#acknowledge(message, 1n)
      throw error
    }
  }

  /**
   * Tells the front-end that the configuration space changed; it will read it anew and tell the driver.
   *
   * @returns false when this front-end cannot be told
   */
  sendConfigChange(): boolean {
    if (this.#requestFd === NO_FD) return false
    const message = encodeMessage(BackEndRequest.CONFIG_CHANGE_MSG, HeaderFlag.VERSION, NO_PAYLOAD)
    try {
      // A full socket is no loss: it is full of messages that say the same.
      native.unixSend(this.#requestFd, message, [])
      return true
    } catch {
      this.#setRequestFd(NO_FD)
      return false
    }
  }

  /** Closes the socket for our own requests. */
  close(): void {
    this.#setRequestFd(NO_FD)
  }

  #outcomeOf(message: Message): Outcome | Promise<Outcome> {
    const name = requestName(message.request)
    // A request of a later specification: refused if the front-end wants to know, else ignored.
    if (name === undefined) return REFUSED
    const rule = requestRule(message.request)
    if (rule === undefined || (rule.protocolFeature & ~this.#protocolFeatures) !== 0n) {
      throw new HushringError('ERR_VHOST_FEATURES', `${name} belongs to a feature that was not negotiated`)
    }
    message.fds.expectAtMost(rule.fdCountMax)
    return this.#serve[name as ServedRequestName](message)
  }

  readonly #serve: Readonly<Record<ServedRequestName, (message: Message) => Outcome | Promise<Outcome>>> = {
    // ---- negotiation
    GET_FEATURES: () => encodeU64(this.#session.offeredFeatures | F_PROTOCOL_FEATURES),
    SET_FEATURES: ({ payload }) => this.#setFeatures(decodeU64(payload)),
    GET_PROTOCOL_FEATURES: () => encodeU64(OFFERED_PROTOCOL_FEATURES),
    SET_PROTOCOL_FEATURES: ({ payload }) => this.#setProtocolFeatures(decodeU64(payload)),
    GET_QUEUE_NUM: () => encodeU64(BigInt(this.#session.queueCount)),
    // The connection itself is the session; nothing depends on owning it.
    SET_OWNER: () => undefined,
    RESET_OWNER: () => undefined,

    // ---- memory
    SET_MEM_TABLE: (message) => this.#setMemoryTable(message),
    GET_MAX_MEM_SLOTS: () => encodeU64(BigInt(MEMORY_SLOT_COUNT)),
    ADD_MEM_REG: (message) => this.#addRegion(message),
    REM_MEM_REG: ({ payload }) => this.#removeRegion(payload),

    GET_INFLIGHT_FD: ({ payload }) => this.#makeInflight(decodeInflight(payload)),
    SET_INFLIGHT_FD: ({ payload, fds }) => {
      const description = decodeInflight(payload)
      return this.#session.setInflight({ ...description, fd: fds.takeOne() })
    },

    // ---- rings
    SET_VRING_NUM: ({ payload }) => {
      const { index, num } = decodeVringState(payload)
      return this.#session.queue(index).setSize(num)
    },
    SET_VRING_ADDR: ({ payload }) => this.#setAddresses(decodeVringAddress(payload)),
    SET_VRING_BASE: ({ payload }) => {
      const { index, num } = decodeVringState(payload)
      expectAtMost('a ring base', num, 0xffff)
      return this.#session.queue(index).setBase(num)
    },
    GET_VRING_BASE: async ({ payload }) => {
      const { index } = decodeVringState(payload)
      return encodeVringState({ index, num: await this.#session.queue(index).stop() })
    },
    SET_VRING_KICK: (message) => this.#setEventfd('setKick', message),
    SET_VRING_CALL: (message) => this.#setEventfd('setCall', message),
    SET_VRING_ERR: (message) => this.#setEventfd('setError', message),
    SET_VRING_ENABLE: async ({ payload }) => {
      const { index, num } = decodeVringState(payload)
      expectAtMost('the enable flag', num, 1)
      await this.#session.queue(index).setEnabled(num === 1)
      return undefined
    },

    // ---- device
    GET_CONFIG: ({ payload }) => this.#readConfig(decodeConfig(payload)),
    SET_CONFIG: ({ payload }) => this.#writeConfig(decodeConfig(payload)),
    SET_STATUS: ({ payload }) => this.#setStatus(decodeU64(payload)),
    GET_STATUS: () => encodeU64(BigInt(this.#deviceStatus)),
    RESET_DEVICE: () => this.#resetDevice(),
    SET_BACKEND_REQ_FD: ({ fds }) => {
      this.#setRequestFd(fds.takeOne())
      return undefined
    },
  }

  async #setFeatures(features: bigint): Promise<undefined> {
    await this.#session.setFeatures(features & ~F_PROTOCOL_FEATURES)
    if ((features & F_PROTOCOL_FEATURES) !== 0n) return
    // Such a front-end does not know SET_VRING_ENABLE: its rings count as enabled from the start.
    for (let index = 0; index < this.#session.queueCount; index++) {
      await this.#session.queue(index).setEnabled(true)
    }
  }

  #setProtocolFeatures(features: bigint): undefined {
    const unknown = features & ~OFFERED_PROTOCOL_FEATURES
    if (unknown !== 0n) {
      throw new HushringError(
        'ERR_VHOST_FEATURES',
        `protocol features 0x${unknown.toString(16)} were not offered`,
      )
    }
    this.#protocolFeatures = features
  }

  #setMemoryTable({ payload, fds }: Message): Outcome | Promise<Outcome> {
    const regions = decodeMemoryTable(payload)
    const taken = fds.take(regions.length)
    return this.#session.setMemory(regions.map((region, index) => ({ ...region, fd: taken[index]! })))
  }

  #addRegion({ payload, fds }: Message): Outcome | Promise<Outcome> {
    const region = decodeSingleRegion(payload)
    expectAtMost('the number of memory regions', this.#session.memory.regions.length + 1, MEMORY_SLOT_COUNT)
    return this.#session.addRegion({ ...region, fd: fds.takeOne() })
  }

  #removeRegion(payload: Buffer): Outcome | Promise<Outcome> {
    return this.#session.removeRegion(decodeSingleRegion(payload))
  }

  /** The front-end keeps the file and gives it to whoever serves the queues after this process. */
  #makeInflight({ queueCount, queueSize }: WireInflight): AnswerWithFd {
    const layout = { queueCount, queueSize }
    this.#session.checkInflightLayout(layout)
    const mmapSizeBytes = BigInt(inflightBytes(layout))
    return new AnswerWithFd(
      encodeInflight({ ...layout, mmapSizeBytes, mmapOffsetBytes: 0n }),
      makeInflightFd(layout),
    )
  }

  #setAddresses({ index, flags, ...addresses }: VringAddress): Outcome | Promise<Outcome> {
    const queue = this.#session.queue(index)
    // Writes that a migration relies on being logged must not go unlogged in silence.
    if (flags !== 0) throw new HushringError('ERR_VHOST_FEATURES', 'dirty-page logging was not offered')
    return queue.setAddresses(addresses)
  }

  #setEventfd(
    setter: 'setKick' | 'setCall' | 'setError',
    { payload, fds }: Message,
  ): Outcome | Promise<Outcome> {
    const { index, attached } = decodeVringFd(payload)
    const queue = this.#session.queue(index)
    const [fd = NO_FD] = fds.take(attached ? 1 : 0)
    return queue[setter](fd)
  }

  /** A range outside the space is answered with no payload, which says "error". */
  async #readConfig({ offsetBytes, flags, bytes }: ConfigRange): Promise<Buffer> {
    const endBytes = offsetBytes + bytes.length
    if (bytes.length === 0 || endBytes > CONFIG_BYTES_MAX) return NO_PAYLOAD
    // A front-end newer than the device asks for fields that the device does not have: they read as 0.
    const space = Buffer.alloc(CONFIG_BYTES_MAX)
    space.set(await this.#session.config())
    return encodeConfig({ offsetBytes, flags, bytes: space.subarray(offsetBytes, endBytes) })
  }

  async #writeConfig({ offsetBytes, flags, bytes }: ConfigRange): Promise<Outcome> {
    const space = await this.#session.config()
    if (offsetBytes + bytes.length > space.length) throw new HushringError('ERR_VHOST_CONFIG')
    // A driver may try to write a read-only field; that is no reason to take the disk away from it. Flag 1 is the
    // restore after a migration, of which this device has nothing to restore.
    return flags === 0 && (await this.#session.writeConfig(offsetBytes, bytes)) ? undefined : REFUSED
  }

  async #setStatus(status: bigint): Promise<undefined> {
    expectAtMost('the device status', Number(status), 0xff)
    if (status === 0n) await this.#resetDevice()
    this.#deviceStatus = Number(status)
  }

  async #resetDevice(): Promise<undefined> {
    await this.#session.reset()
    this.#deviceStatus = 0
  }

  #setRequestFd(fd: number): void {
    if (this.#requestFd !== NO_FD) native.closeFd(this.#requestFd)
    this.#requestFd = fd
  }

  #reply(request: number, payload: Buffer, fds: readonly number[] = []): void {
    this.#send(encodeMessage(request, HeaderFlag.VERSION | HeaderFlag.REPLY, payload), fds)
  }

  #replyWithFd(request: number, { payload, fd }: AnswerWithFd): void {
    try {
      this.#reply(request, payload, [fd])
    } finally {
      native.closeFd(fd)
    }
  }

  /** Acknowledges a command if the front-end asked for it and may: 0 is "done", 1 is "not done". */
  #acknowledge({ request, flags }: Pick<Message, 'request' | 'flags'>, result: 0n | 1n): void {
    const asked = (flags & HeaderFlag.NEED_REPLY) !== 0
    const negotiated = (this.#protocolFeatures & ProtocolFeature.REPLY_ACK) !== 0n
    const question = requestRule(request)?.answered ?? false
    if (asked && negotiated && !question) this.#reply(request, encodeU64(result))
  }
}

function expectAtMost(what: string, value: number, max: number): void {
  if (value > max)
    throw new HushringError('ERR_VHOST_MESSAGE', `expected ${what} to be at most ${max}, got ${value}`)
}
