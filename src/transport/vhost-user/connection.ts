import { setImmediate as turn } from 'node:timers/promises'
import { HushringError } from '../../errors.ts'
import { type NativeWatch, native } from '../../native.ts'
import { decodeHeader, HEADER_BYTES, type MessageHeader, PAYLOAD_BYTES_MAX } from './messages.ts'
import { ReceivedFds } from './received-fds.ts'

/** One message as it came in. Its payload and its descriptors are lent until the message has been handled. */
export interface Message {
  readonly request: number
  readonly flags: number
  readonly payload: Buffer
  readonly fds: ReceivedFds
}

/** What a connection does with its messages. */
export interface MessageHandler {
  /** Throws when no message may start with this header. Called before the payload is read. */
  checkHeader(header: MessageHeader): void
  /** Handles one message; the next one is not read before it settles. What it throws ends the connection. */
  handle(message: Message): Promise<void>
}

/** Messages handled in one turn of the event loop, so that a flood cannot keep everything else waiting. */
const MESSAGES_PER_TURN_MAX = 16
const CLOSED = -1

/**
 * One end of a vhost-user socket: a stream of bytes and file descriptors made into messages.
 *
 * It reads exactly the bytes of one message, header first, so that the descriptors which arrive belong to that
 * message, however the stream was cut or merged on its way. Nothing is read ahead: what a front-end sends while a
 * message is being handled stays in the socket, whose size bounds it.
 */
export class MessageConnection {
  #fd: number
  #watch: NativeWatch | undefined
  #wake: (() => void) | undefined
  #behind = false
  #error: HushringError | undefined
  readonly #header = Buffer.allocUnsafe(HEADER_BYTES)
  readonly #payload = Buffer.allocUnsafe(PAYLOAD_BYTES_MAX)

  /** @param fd a connected, non-blocking stream socket; taken over */
  constructor(fd: number) {
    this.#fd = fd
  }

  /** The process on the other side. Only while connected. */
  get peerPid(): number {
    return native.unixPeerPid(this.#fd)
  }

  /** True while there may be bytes that were not looked at yet, because the turn's share of messages was used up. */
  get behind(): boolean {
    return this.#behind
  }

  /**
   * Handles messages, one strictly after the other, until the connection ends. Does not wait then for a handler
   * still at work.
   *
   * @returns why it ended: `undefined` when either side closed it, the error of a peer that broke the protocol
   */
  async serve(handler: MessageHandler): Promise<HushringError | undefined> {
    try {
      for (let count = 1; ; count++) {
        const message = await this.receive((header) => handler.checkHeader(header))
        if (message === undefined) break
        await this.#untilHandled(handler.handle(message).finally(() => message.fds.close()))
        if (count % MESSAGES_PER_TURN_MAX === 0) await this.#nextTurn()
      }
      this.#end(undefined)
    } catch (error) {
      this.#end(asConnectionError(error))
    }
    return this.#error
  }

  /**
   * Receives one message.
   *
   * @param checkHeader throws to refuse a message before its payload is read
   * @returns the message, whose descriptors the caller takes or closes; `undefined` at the end of the connection
   */
  async receive(checkHeader: (header: MessageHeader) => void): Promise<Message | undefined> {
    const fds = new ReceivedFds()
    let complete = false
    try {
      if (!(await this.#receiveExactly(this.#header, HEADER_BYTES, fds))) return undefined
      const header = decodeHeader(this.#header)
      checkHeader(header)
      if (!(await this.#receiveExactly(this.#payload, header.payloadBytes, fds))) return undefined
      complete = true
      const payload = this.#payload.subarray(0, header.payloadBytes)
      return { request: header.request, flags: header.flags, payload, fds }
    } finally {
      if (!complete) fds.close()
    }
  }

  /**
   * Sends one message, or nothing once the connection has ended.
   *
   * There is no queue of outgoing messages: answers are small and few, and a socket too full for one means that
   * the other side has long stopped reading. Throws `ERR_VHOST_STALLED` then.
   *
   * @param fds sent along; not closed
   */
  send(message: Uint8Array, fds: readonly number[] = []): void {
    if (this.#fd === CLOSED) return
    try {
      if (native.unixSend(this.#fd, message, fds) === message.length) return
    } catch (error) {
      if (!isHangUp(error)) throw error
      this.#end(undefined)
      return
    }
    throw new HushringError('ERR_VHOST_STALLED')
  }

  /** Calls back when the connection ends, until it is told to stop. Not while a message is being received. */
  watchHangUp(onHangUp: () => void): { close(): void } {
    this.#wake = onHangUp
    this.#watch = native.watchHangUp(this.#fd, () => this.#end(undefined))
    return {
      close: () => {
        this.#wake = undefined
        this.#unwatch()
      },
    }
  }

  /** Closes the socket. Calling it again does nothing. */
  close(): void {
    this.#end(undefined)
  }

  /** False at the end of the stream; a message that the end cut off is no message. */
  async #receiveExactly(target: Buffer, lengthBytes: number, fds: ReceivedFds): Promise<boolean> {
    let receivedBytes = 0
    while (receivedBytes < lengthBytes) {
      if (this.#fd === CLOSED) return false
      const part = this.#receivePart(target, receivedBytes, lengthBytes - receivedBytes)
      fds.add(part.fds)
      if (part.bytes === 0) return false
      if (part.bytes > 0) receivedBytes += part.bytes
      else await this.#readable()
    }
    return true
  }

  #receivePart(target: Buffer, offsetBytes: number, lengthBytes: number): { bytes: number; fds: number[] } {
    try {
      return native.unixReceive(this.#fd, target, offsetBytes, lengthBytes)
    } catch (error) {
      // A peer that closes with our answers unread resets the connection: an end like any other.
      if (isHangUp(error)) return { bytes: 0, fds: [] }
      throw error
    }
  }

  #readable(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve
      // What ails the socket, the next read will tell.
      this.#watch = native.watchReadable(this.#fd, false, () => {
        this.#unwatch()
        resolve()
      })
    })
  }

  /**
   * Waits for a handler or the end, whichever is first. Most handlers are done before the next turn of the event
   * loop. During a longer one, such as a drain, nothing reads the socket, so a front-end that goes away is noticed
   * by its hang-up alone.
   */
  async #untilHandled(handling: Promise<void>): Promise<void> {
    const longer = setImmediate(() => {
      if (this.#fd !== CLOSED) this.#watch = native.watchHangUp(this.#fd, () => this.#end(undefined))
    })
    try {
      await new Promise<void>((resolve, reject) => {
        this.#wake = resolve
        handling.then(resolve, reject)
      })
    } finally {
      clearImmediate(longer)
      this.#unwatch()
    }
  }

  async #nextTurn(): Promise<void> {
    this.#behind = true
    await turn()
    this.#behind = false
  }

  #unwatch(): void {
    this.#watch?.close()
    this.#watch = undefined
  }

  #end(error: HushringError | undefined): void {
    if (this.#fd === CLOSED) return
    this.#error = error
    this.#unwatch()
    native.closeFd(this.#fd)
    this.#fd = CLOSED
    this.#wake?.()
  }
}

function isHangUp(error: unknown): boolean {
  return ['ECONNRESET', 'EPIPE'].includes((error as NodeJS.ErrnoException).code ?? '')
}

function asConnectionError(error: unknown): HushringError {
  if (error instanceof HushringError) return error
  const { code, message } = error as NodeJS.ErrnoException
  return code === 'EMSGSIZE'
    ? new HushringError('ERR_VHOST_FD', 'the file descriptors of a message did not fit', { cause: error })
    : new HushringError('ERR_VHOST_SYSTEM', message, { cause: error })
}
