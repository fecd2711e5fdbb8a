import { setTimeout as delay, setImmediate as turn } from 'node:timers/promises'
import { EventEmitter } from 'eventemitter3'
import type { Observable } from 'rxjs'
import { HushringError, optionRangeError, optionTypeError } from '../../errors.ts'
import { type NativeWatch, native } from '../../native.ts'
import { integerIn, refuseUnknownOptions } from '../../options.ts'
import { type ResolvedServeOptions, SERVE_OPTION_NAMES } from '../options.ts'
import { addStats, NO_STATS, type StatsOptions, statsOf, type TransportStats } from '../stats.ts'
import { BackEnd } from './back-end.ts'
import { MessageConnection } from './connection.ts'
import type { DeviceHost, ServedSession } from './device-host.ts'
import { type HostOptions, openHost } from './open-host.ts'
import { SocketPath } from './socket-path.ts'

/** Options of {@link vhostUser.listen}. */
export interface VhostUserOptions extends HostOptions {
  /**
   * Where the socket is made: exactly this path, at most 107 bytes. A stale socket is replaced, one that somebody
   * listens on is not.
   */
  readonly socketPath?: string
  /**
   * Permissions of the socket file, whatever the umask; who may write to it may connect, and so read and write the
   * disk. Default 0o600. Only with `socketPath`.
   */
  readonly socketMode?: number
  /**
   * A Unix stream socket that listens already, in the place of `socketPath`, such as one that systemd made
   * (LISTEN_FDS). Taken over; its path is not removed at the end.
   */
  readonly listenFd?: number
}

/** Lifecycle of a server. */
export interface VhostUserEvents {
  /** Front-ends can connect. Emitted in the turn after `listen` resolved. */
  listening: []
  /** A front-end connected. */
  attached: []
  /** The front-end is gone and its memory is let go. With the error, if it broke the protocol. */
  detached: [error: HushringError | undefined]
  /** A driver broke a queue, a front-end broke the protocol, or the system refused something. */
  degraded: [error: HushringError]
  /** A second front-end came while one was connected. */
  refused: [error: HushringError]
  /** Everything is over; the socket is gone. After {@link VhostUserServer.close}, or after a worker has ended by itself. */
  closed: []
}

/** What serves one front-end. */
interface Attachment {
  readonly connection: MessageConnection
  readonly session: ServedSession
  readonly backEnd: BackEnd
}

/** Turns to wait at most for an attached front-end's messages before a newcomer is decided upon. */
const CATCH_UP_TURNS_MAX = 64
/** Turns without a message to read after which an attached front-end has not hung up. */
const QUIET_TURNS = 3
/** Pause after the system refused to accept a connection, for want of file descriptors for example. */
const ACCEPT_RETRY_MS = 100

/**
 * Serves a device to vhost-user front-ends (QEMU, libblkio …), one at a time and one after the other for ever.
 */
export class VhostUserServer extends EventEmitter<VhostUserEvents> {
  readonly #host: DeviceHost
  readonly #options: ResolvedServeOptions
  readonly #name: string
  readonly #listenFd: number
  readonly #socketPath: SocketPath | undefined
  #watch: NativeWatch | undefined
  #attachment: Attachment | undefined
  #serving: Promise<void> = Promise.resolve()
  #closing: Promise<void> | undefined
  #connections = 0
  /** Counts of the front-ends that are gone. */
  #pastStats: TransportStats = NO_STATS

  /** @internal Use {@link vhostUser.listen}. */
  constructor(host: DeviceHost, options: ResolvedServeOptions, listener: SocketPath | number) {
    super()
    this.#host = host
    this.#options = options
    this.#socketPath = typeof listener === 'number' ? undefined : listener
    this.#listenFd = typeof listener === 'number' ? listener : listener.listenFd
    this.#name = this.#socketPath?.path ?? `descriptor ${this.#listenFd}`
    this.#watchListener()
    void host.failed.then((error) => this.#fail(error))
    setImmediate(() => {
      if (this.#closing === undefined) this.emit('listening')
    })
  }

  /** The path of the socket; `undefined` when it came in as `listenFd`. */
  get socketPath(): string | undefined {
    return this.#socketPath?.path
  }

  /** True while a front-end is connected. */
  get attached(): boolean {
    return this.#attachment !== undefined
  }

  /**
   * Tells the front-end that the device's configuration space changed.
   *
   * @returns false when there is no front-end, or none that can be told
   */
  notifyConfigChange(): boolean {
    return this.#attachment?.backEnd.sendConfigChange() ?? false
  }

  /** Counts since the server was made, over all its connections. */
  statsSnapshot(): TransportStats {
    const current = this.#attachment?.session.statsSnapshot() ?? NO_STATS
    return { ...addStats(this.#pastStats, current), connections: this.#connections }
  }

  /** Counts at intervals. Each subscriber has its own clock; it ends with {@link close} or when unsubscribed. */
  stats(options?: StatsOptions): Observable<TransportStats> {
    return statsOf(this, options)
  }

  /**
   * Accepts nobody any more, answers what is in flight, lets the front-end go and removes the socket. Calling it
   * again returns the same promise.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#unwatchListener()
    this.#socketPath?.remove()
    native.closeFd(this.#listenFd)
    const attachment = this.#attachment
    await attachment?.session.drain()
    attachment?.connection.close()
    await this.#serving
    await this.#host.close()
    this.emit('closed')
  }

  /** What the front-end has in flight it can give to another process, once it knows that this one is over. */
  #fail(error: HushringError): void {
    this.#degrade(error)
    void this.close()
  }

  #watchListener(): void {
    this.#watch = native.watchReadable(this.#listenFd, false, () => {
      this.#unwatchListener()
      void this.#admit()
    })
  }

  #unwatchListener(): void {
    this.#watch?.close()
    this.#watch = undefined
  }

  /** Lets one newcomer in, or refuses it. It waits in the backlog until that is decided. */
  async #admit(): Promise<void> {
    await this.#attachmentDecided()
    if (this.#closing !== undefined) return
    try {
      const fd = native.unixAccept(this.#listenFd)
      if (fd !== -1) this.#welcome(fd)
    } catch (error) {
      this.#degrade(new HushringError('ERR_VHOST_SYSTEM', (error as Error).message, { cause: error }))
      await delay(ACCEPT_RETRY_MS)
    }
    // A listener of ours may have closed the server meanwhile.
    if (this.#closing === undefined) this.#watchListener()
  }

  /**
   * Waits until it is certain whether a front-end is attached. A front-end that restarts hangs up and connects
   * again, and the event loop may show us the new connection first: then the hang-up comes in the same turn, or
   * behind messages that are still to be read, or two turns behind the last of them, if that one takes longer (a drain
   * with requests in flight): a turn until its hang-up is watched for, another until that is looked at. And a new
   * session starts only after the old one has ended.
   */
  async #attachmentDecided(): Promise<void> {
    let quietTurns = 0
    for (let turns = 0; turns < CATCH_UP_TURNS_MAX && quietTurns < QUIET_TURNS; turns++) {
      await turn()
      quietTurns = this.#attachment?.connection.behind ? 0 : quietTurns + 1
    }
    if (this.#attachment === undefined) await this.#serving
  }

  #welcome(fd: number): void {
    if (this.#attachment === undefined) {
      this.#attachment = this.#attach(fd)
      this.#serving = this.#serve(this.#attachment)
      // Told when everything is in place: a listener may close the server.
      this.#connections++
      this.#options.logger.info(`${this.#name}: a front-end connected`)
      this.emit('attached')
      return
    }
    native.closeFd(fd)
    const error = new HushringError(
      'ERR_VHOST_BUSY',
      `${this.#name}: a second front-end was refused because one is connected; give each a socket of its own`,
    )
    this.#options.logger.error(error.message)
    this.emit('refused', error)
  }

  #attach(fd: number): Attachment {
    const connection = new MessageConnection(fd)
    try {
      const session = this.#host.open({ onDegraded: (error) => this.emit('degraded', error) })
      return {
        connection,
        session,
        backEnd: new BackEnd(session, (message, fds) => connection.send(message, fds)),
      }
    } catch (error) {
      connection.close()
      throw error
    }
  }

  async #serve({ connection, session, backEnd }: Attachment): Promise<void> {
    const error = await connection.serve(backEnd)
    this.#pastStats = { ...this.statsSnapshot(), inFlight: 0 }
    this.#attachment = undefined
    if (error !== undefined) this.#degrade(error)
    backEnd.close()
    await session.close()
    this.#options.logger.info(`${this.#name}: the front-end is gone`)
    this.emit('detached', error)
  }

  #degrade(error: HushringError): void {
    this.#options.logger.error(`${this.#name}: ${error.code}: ${error.message}`)
    this.emit('degraded', error)
  }
}

/** Serves devices over vhost-user; see {@link VhostUserServer}. */
export const vhostUser: {
  /**
   * Listens for front-ends. Rejects with a `TypeError` or `RangeError` naming a wrong option, `ERR_SOCKET_IN_USE`
   * or `ERR_SOCKET_PATH` when the socket cannot be made, `ERR_DEVICE_MODULE` when a module has no device,
   * `ERR_WORKER_EXITED`, or what the module itself threw if that has a code of ours.
   *
   * @param options the device, where to listen and how to serve; exactly one of `socketPath` and `listenFd`
   * @returns a listening server; close it when done
   */
  listen(options: VhostUserOptions): Promise<VhostUserServer>
} = {
  async listen(options) {
    refuseUnknownOptions(options, [
      'device',
      'workers',
      'socketPath',
      'socketMode',
      'listenFd',
      ...SERVE_OPTION_NAMES,
    ])
    const { socketPath, socketMode, listenFd, ...hostOptions } = options
    const { host, serveOptions } = await openHost(hostOptions)
    try {
      return new VhostUserServer(host, serveOptions, await listenerOf({ socketPath, socketMode, listenFd }))
    } catch (error) {
      await host.close()
      throw error
    }
  },
}

async function listenerOf({
  socketPath,
  socketMode,
  listenFd,
}: {
  readonly [Name in 'socketPath' | 'socketMode' | 'listenFd']: VhostUserOptions[Name] | undefined
}): Promise<SocketPath | number> {
  if (listenFd === undefined) {
    const mode = integerIn('socketMode', socketMode ?? 0o600, 0, 0o777)
    return SocketPath.listen(socketPath as string, mode)
  }
  if (socketPath !== undefined) throw optionTypeError('socketPath', 'absent beside listenFd', socketPath)
  if (socketMode !== undefined) throw optionTypeError('socketMode', 'absent beside listenFd', socketMode)
  checkListenFd(listenFd)
  return listenFd
}

function checkListenFd(listenFd: number): void {
  integerIn('listenFd', listenFd, 0, 2 ** 31 - 1)
  if (!native.unixIsListening(listenFd))
    throw optionRangeError('listenFd', 'a listening Unix socket', listenFd)
}
