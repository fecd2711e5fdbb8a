import { constants } from 'node:os'
import { Observable, type Subscriber } from 'rxjs'
import { HushringError } from '../../errors.ts'
import { booleanOf, integerIn, refuseUnknownOptions, stringOf } from '../../options.ts'
import { type Logger, silentLogger } from '../logger.ts'
import { parseTcmuName, SUBTYPE, type TcmuName } from './discovery.ts'
import {
  type Attributes,
  decodeDatagram,
  encodeRequest,
  type Family,
  type FamilyMessage,
  type NetlinkMessage,
  type NetlinkSocket,
  numberOf,
  openNetlinkSocket,
  resolveFamily,
  textOf,
} from './generic-netlink.ts'
import { type KernelPaths, withoutNewline } from './kernel-files.ts'

/*
 * The events of target_core_user: family TCM-USER, version 2, multicast group `config`
 * (Linux: include/uapi/linux/target_core_user.h, drivers/target/target_core_user.c).
 */

const FAMILY_NAME = 'TCM-USER'
const GROUP_NAME = 'config'
const VERSION = 2

/** The kernel's commands, and ours. */
export const TcmuCommand = {
  addedDevice: 1,
  removedDevice: 2,
  reconfigDevice: 3,
  addedDeviceDone: 4,
  removedDeviceDone: 5,
  reconfigDeviceDone: 6,
  setFeatures: 7,
} as const

/** Attributes of messages, by number. */
export const TcmuAttribute = {
  device: 1,
  minor: 2,
  pad: 3,
  devConfig: 4,
  devSize: 5,
  writeCache: 6,
  commandStatus: 7,
  deviceId: 8,
  supportsReply: 9,
} as const

interface EventKind {
  readonly name: DeviceEvent['command']
  readonly done: number
}

/** What each event is called, and the only command that answers it. */
const EVENTS = new Map<number, EventKind>([
  [TcmuCommand.addedDevice, { name: 'added', done: TcmuCommand.addedDeviceDone }],
  [TcmuCommand.removedDevice, { name: 'removed', done: TcmuCommand.removedDeviceDone }],
  [TcmuCommand.reconfigDevice, { name: 'reconfig', done: TcmuCommand.reconfigDeviceDone }],
])

/** Something happens to a device, and the kernel may wait for our opinion. */
export interface DeviceEvent extends TcmuName {
  /**
   * - `added`: it was enabled; the write to `enable` waits. Refusing makes that write fail.
   * - `removed`: it goes away; its rmdir waits, whatever the answer is.
   * - `reconfig`: somebody writes one of its attributes; refusing keeps the old value. The kernel stores the new one
   *   after the answer.
   */
  readonly command: 'added' | 'removed' | 'reconfig'
  /** Minor number of the UIO device. */
  readonly minor: number
  /** The device node, /dev/uioN; udev may make it a little later. */
  readonly uioPath: string
  /** The kernel's number of the device; undefined with kernels that wait for nobody (before 4.13). */
  readonly deviceId: number | undefined
  /** `reconfig`: the new capacity. */
  readonly sizeBytes?: number
  /** `reconfig`: whether there is a volatile cache now. */
  readonly writeCache?: boolean
  /** `reconfig`: the whole new `dev_config`, subtype included. */
  readonly newConfig?: string
  /**
   * Answers the kernel. Every event needs exactly one answer, and soon; what is not answered when the listener is
   * unsubscribed is refused with ECANCELED then.
   *
   * @param status 0, or minus an errno (-4095 to -1) to refuse
   * @returns false when nothing was sent: it was answered before, a later event of the same device took its place, or
   *   this listener does not answer
   */
  reply(status: number): boolean
}

/** Events were lost, because too many came at once. Look at the devices anew with {@link discover}. */
export interface OverrunEvent {
  readonly command: 'overrun'
}

/** What {@link listenNetlink} tells. */
export type NetlinkEvent = DeviceEvent | OverrunEvent

/** Options of {@link listenNetlink}. */
export interface NetlinkOptions {
  /** Only events about devices of exactly this subtype; to all others the listener is deaf and silent. */
  readonly subtype?: string
  /**
   * True: asks the kernel to wait for answers, for every device that is enabled from now on, whoever made it, unless
   * the device was made without them ({@link CoreDeviceOptions.netlinkReplies}). Where a kernel waits and nobody
   * answers, it waits for ever and cannot be interrupted: while this is on, some process must answer for each subtype
   * that is used on this machine, and this one must not be killed. Default false: listens only.
   */
  readonly replies?: boolean
  /** Default: silent. */
  readonly logger?: Logger
  /** Opens the socket. Default: one of the kernel's. */
  readonly openSocket?: () => NetlinkSocket
}

/** Datagrams handled before the event loop goes on. */
const BURST_COUNT_MAX = 64
const ERRNO_MAX = 4095
const { ECANCELED, EINVAL } = constants.errno

/**
 * Listens to the kernel's events about TCMU devices, from the moment of subscription on; look at what is there already
 * with {@link discover}, after subscribing. Needs CAP_NET_ADMIN to answer.
 *
 * Errors with `ERR_TCMU_UNAVAILABLE` when target_core_user is not loaded, and with `ERR_TCMU_SYSTEM` when the socket
 * fails or the kernel refuses to wait. Keeps the process alive until it is unsubscribed; it then answers what is open
 * and tells the kernel to wait no more.
 */
export function listenNetlink(paths: KernelPaths, options: NetlinkOptions = {}): Observable<NetlinkEvent> {
  refuseUnknownOptions(options, ['subtype', 'replies', 'logger', 'openSocket'])
  const settings: ListenerSettings = {
    subtype: stringOf('subtype', options.subtype ?? SUBTYPE),
    replies: booleanOf('replies', options.replies ?? false),
    logger: options.logger ?? silentLogger,
    dev: paths.dev,
  }
  return new Observable((subscriber) => {
    const socket = systemCall('open a socket', () => (options.openSocket ?? openNetlinkSocket)())
    try {
      const listener = new Listener(socket, settings, subscriber)
      return () => {
        listener.close()
        socket.close()
      }
    } catch (error) {
      socket.close()
      throw error
    }
  })
}

interface ListenerSettings {
  readonly subtype: string
  readonly replies: boolean
  readonly logger: Logger
  readonly dev: string
}

class Listener {
  readonly #socket: NetlinkSocket
  readonly #settings: ListenerSettings
  readonly #subscriber: Subscriber<NetlinkEvent>
  readonly #family: Family
  readonly #watch: { close(): void }
  /** The event of each device that has to be answered, by the number of the device. */
  readonly #open = new Map<number, DeviceEvent>()
  /** What our requests were about, until they are acknowledged. */
  readonly #requests = new Map<number, { readonly what: string; readonly isVital: boolean }>()
  #sequence = 1
  #lostCount: number

  constructor(socket: NetlinkSocket, settings: ListenerSettings, subscriber: Subscriber<NetlinkEvent>) {
    this.#socket = socket
    this.#settings = settings
    this.#subscriber = subscriber
    this.#family = tcmuFamily(socket)
    this.#lostCount = socket.lostCount
    systemCall('join the events', () => socket.join(this.#family.groups.get(GROUP_NAME)!))
    this.#watch = systemCall('watch', () => socket.watch((error) => this.#onReadable(error)))
    try {
      // Last of all: from here on the kernel waits for answers, so nothing may keep them from being given.
      if (settings.replies) this.#setReplies(true)
    } catch (error) {
      this.#watch.close()
      throw error
    }
  }

  /** Answers what is open and stops listening. */
  close(): void {
    this.#watch.close()
    for (const event of this.#open.values()) this.#attempt(() => event.reply(-ECANCELED))
    if (this.#settings.replies) this.#attempt(() => this.#setReplies(false))
  }

  /** Does what must not keep the rest from being done. */
  #attempt(work: () => unknown): void {
    try {
      work()
    } catch (error) {
      this.#settings.logger.error((error as Error).message)
    }
  }

  #onReadable(error: number): void {
    try {
      if (error < 0)
        throw new HushringError('ERR_TCMU_SYSTEM', 'netlink: the socket failed', { details: { error } })
      // What is left after a burst makes the socket readable again.
      for (let count = 0; count < BURST_COUNT_MAX && !this.#subscriber.closed; count++) {
        const datagram = systemCall('receive', () => this.#socket.receive())
        if (datagram === undefined) break
        this.#onDatagram(datagram)
      }
      if (!this.#subscriber.closed) this.#checkLost()
    } catch (failure) {
      this.#subscriber.error(failure)
    }
  }

  #onDatagram(datagram: Buffer): void {
    try {
      for (const message of decodeDatagram(datagram)) {
        if (!this.#subscriber.closed) this.#onMessage(message)
      }
    } catch (error) {
      this.#settings.logger.warn(`an event was ignored: ${(error as Error).message}`)
    }
  }

  #checkLost(): void {
    const lostCount = this.#socket.lostCount
    if (lostCount === this.#lostCount) return
    this.#lostCount = lostCount
    this.#settings.logger.warn('netlink: events were lost because the socket was full')
    this.#subscriber.next({ command: 'overrun' })
  }

  #onMessage(message: NetlinkMessage): void {
    if (message.kind === 'acknowledgement') {
      this.#onAcknowledgement(message.sequence, message.errno)
    } else if (message.family === this.#family.id) {
      this.#onEvent(message)
    }
  }

  #onEvent({ command, attributes }: FamilyMessage): void {
    const kind = EVENTS.get(command)
    const name = parseTcmuName(textOf(attributes, TcmuAttribute.device) ?? '')
    // What means nothing to us, or is for somebody else to answer.
    if (kind === undefined || name?.subtype !== this.#settings.subtype) return
    const deviceId = numberOf(attributes, TcmuAttribute.deviceId, 4)
    let event: DeviceEvent
    try {
      event = this.#decodeEvent(kind, name, deviceId, attributes)
    } catch (error) {
      // Whoever made the kernel send this waits for an answer, for ever and without a way to be interrupted.
      if (deviceId !== undefined) this.#answer(name, deviceId, kind.done, -EINVAL)
      throw error
    }
    this.#tell(event)
  }

  #onAcknowledgement(sequence: number, errno: number): void {
    const request = this.#requests.get(sequence)
    this.#requests.delete(sequence)
    if (request === undefined || errno === 0) return
    const message = `netlink: the kernel refuses to ${request.what}: errno ${errno}`
    if (request.isVital) {
      this.#subscriber.error(new HushringError('ERR_TCMU_SYSTEM', message, { details: { errno } }))
    } else {
      // Nobody waits for the answer: this device was made without them, or another process was first.
      this.#settings.logger.debug(message)
    }
  }

  #tell(event: DeviceEvent): void {
    // The kernel has at most one event open for a device. With a new one, the older is void, and an answer to it would
    // be taken for the answer to this one, refused, and leave the waiting call waiting for ever.
    if (this.#settings.replies && event.deviceId !== undefined) this.#open.set(event.deviceId, event)
    this.#subscriber.next(event)
  }

  /** Throws when something is missing or malformed. */
  #decodeEvent(
    kind: EventKind,
    name: TcmuName,
    deviceId: number | undefined,
    attributes: Attributes,
  ): DeviceEvent {
    const minor = numberOf(attributes, TcmuAttribute.minor, 4)
    if (minor === undefined)
      throw new HushringError('ERR_TCMU_SYSTEM', 'netlink: an event without minor number')
    const sizeBytes = numberOf(attributes, TcmuAttribute.devSize, 8)
    const writeCache = numberOf(attributes, TcmuAttribute.writeCache, 1)
    const newConfig = textOf(attributes, TcmuAttribute.devConfig)
    const event: DeviceEvent = {
      ...name,
      command: kind.name,
      minor,
      uioPath: `${this.#settings.dev}/uio${minor}`,
      deviceId,
      ...(sizeBytes !== undefined && { sizeBytes }),
      ...(writeCache !== undefined && { writeCache: writeCache !== 0 }),
      ...(newConfig !== undefined && { newConfig: withoutNewline(newConfig) }),
      reply: (status) => this.#reply(event, kind.done, status),
    }
    return event
  }

  #reply(event: DeviceEvent, done: number, status: number): boolean {
    integerIn('status', status, -ERRNO_MAX, 0)
    const { deviceId } = event
    if (deviceId === undefined || this.#open.get(deviceId) !== event) return false
    this.#open.delete(deviceId)
    this.#answer(event, deviceId, done, status)
    return true
  }

  #answer({ name }: TcmuName, deviceId: number, done: number, status: number): void {
    if (!this.#settings.replies) return
    const number = Buffer.alloc(4)
    const id = Buffer.alloc(4)
    number.writeInt32LE(status)
    id.writeUInt32LE(deviceId)
    this.#request(`take the answer about ${name}`, false, done, [
      [TcmuAttribute.commandStatus, number],
      [TcmuAttribute.deviceId, id],
    ])
  }

  #setReplies(enabled: boolean): void {
    const value = Buffer.from([enabled ? 1 : 0])
    this.#request('wait for answers', enabled, TcmuCommand.setFeatures, [
      [TcmuAttribute.supportsReply, value],
    ])
  }

  /** @param isVital whether the listener ends when the kernel refuses */
  #request(
    what: string,
    isVital: boolean,
    command: number,
    attributes: readonly (readonly [type: number, value: Buffer])[],
  ): void {
    this.#sequence = (this.#sequence + 1) >>> 0
    const sequence = this.#sequence
    this.#requests.set(sequence, { what, isVital })
    const request = {
      family: this.#family.id,
      command,
      version: VERSION,
      sequence,
      acknowledge: true,
      attributes,
    }
    systemCall('send', () => this.#socket.send(encodeRequest(request)))
  }
}

function tcmuFamily(socket: NetlinkSocket): Family {
  const family = systemCall('ask for the family', () => resolveFamily(socket, FAMILY_NAME))
  if (family?.groups.has(GROUP_NAME)) return family
  throw new HushringError(
    'ERR_TCMU_UNAVAILABLE',
    'no TCMU: the kernel has no netlink family TCM-USER; run `modprobe target_core_user` as root',
  )
}

/** @throws `ERR_TCMU_SYSTEM` with the error of the operating system as `cause` */
function systemCall<T>(what: string, call: () => T): T {
  try {
    return call()
  } catch (cause) {
    if (cause instanceof HushringError) throw cause
    throw new HushringError('ERR_TCMU_SYSTEM', `netlink: cannot ${what}: ${(cause as Error).message}`, {
      cause,
    })
  }
}
