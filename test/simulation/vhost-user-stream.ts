import { native } from '../../src/native.ts'
import {
  checkReplyHeader,
  decodeHeader,
  encodeMessage,
  FrontEndRequest,
  type FrontEndRequestName,
  HEADER_BYTES,
  HeaderFlag,
} from '../../src/transport/vhost-user/messages.ts'
import { encodeU64 } from '../../src/transport/vhost-user/payloads.ts'

/** What the back-end owes for a message. */
export type Reply = 'answer' | 'done' | 'refused' | 'nothing'

/** A message as a front-end would send it. */
export interface ScriptedMessage {
  readonly name: string
  readonly bytes: Buffer
  /** Borrowed. */
  readonly fds: readonly number[]
  readonly reply: Reply
  /** The connection has to end here. */
  readonly isWrong: boolean
}

export function message(
  name: FrontEndRequestName,
  payload: Buffer = Buffer.alloc(0),
  fds: readonly number[] = [],
  reply: Reply = 'nothing',
): ScriptedMessage {
  const flags = HeaderFlag.VERSION | (reply === 'done' ? HeaderFlag.NEED_REPLY : 0)
  return { name, bytes: encodeMessage(FrontEndRequest[name], flags, payload), fds, reply, isWrong: false }
}

const UNKNOWN_REQUEST = 1000

/** A request of a later specification. */
export function unknownMessage(fds: readonly number[], isAcknowledged: boolean): ScriptedMessage {
  const flags = HeaderFlag.VERSION | (isAcknowledged ? HeaderFlag.NEED_REPLY : 0)
  const bytes = encodeMessage(UNKNOWN_REQUEST, flags, Buffer.alloc(5))
  return {
    name: 'a later request',
    bytes,
    fds,
    reply: isAcknowledged ? 'refused' : 'nothing',
    isWrong: false,
  }
}

export function wrongMessage(
  name: string,
  request: FrontEndRequestName,
  flags: number,
  payload: Buffer,
  fds: readonly number[] = [],
): ScriptedMessage {
  const bytes = encodeMessage(FrontEndRequest[request], flags, payload)
  return { name, bytes, fds, reply: 'nothing', isWrong: true }
}

/** The front-end's end of a connection: it counts what it is told, and reads no further than it is asked to. */
export class CountingStream {
  readonly fd: number
  readonly #owed: ScriptedMessage[] = []
  #received = Buffer.alloc(0)
  #isOver = false

  /** @param fd taken over */
  constructor(fd: number) {
    this.fd = fd
  }

  /** Replies that are owed for what was sent. */
  get owedCount(): number {
    return this.#owed.length
  }

  /** The back-end has hung up, and everything before that was read. */
  get isOver(): boolean {
    return this.#isOver
  }

  /** A message is on its way, wholly. */
  owes(sent: ScriptedMessage): void {
    if (sent.reply !== 'nothing') this.#owed.push(sent)
  }

  /** False when the other side has hung up. */
  send(bytes: Uint8Array, fds: readonly number[]): boolean {
    try {
      return native.unixSend(this.fd, bytes, fds) === bytes.length
    } catch {
      return false
    }
  }

  /** Reads what is there. @returns what is wrong with it */
  read(): string | undefined {
    const part = Buffer.alloc(4096)
    while (!this.#isOver) {
      let bytes = 0
      try {
        const received = native.unixReceive(this.fd, part, 0, part.length)
        bytes = received.bytes
        for (const fd of received.fds) native.closeFd(fd)
      } catch {
        // Reset, because the other side left bytes unread.
      }
      if (bytes === -1) break
      if (bytes === 0) this.#isOver = true
      this.#received = Buffer.concat([this.#received, part.subarray(0, bytes)])
    }
    for (;;) {
      const header = this.#received.length < HEADER_BYTES ? undefined : decodeHeader(this.#received)
      const lengthBytes = HEADER_BYTES + (header?.payloadBytes ?? 0)
      if (header === undefined || this.#received.length < lengthBytes) break
      const complaint = this.#judge(this.#received.subarray(0, lengthBytes))
      if (complaint !== undefined) return complaint
      this.#received = this.#received.subarray(lengthBytes)
    }
    return this.#isOver && this.#received.length > 0 ? 'a reply that was cut off' : undefined
  }

  #judge(reply: Buffer): string | undefined {
    const owed = this.#owed.shift()
    const { request } = decodeHeader(reply)
    if (owed === undefined) return `a reply to request ${request}, and none is owed`
    try {
      checkReplyHeader(decodeHeader(reply), owed.bytes.readUInt32LE(0))
    } catch {
      return `a reply to request ${request}, and one to ${owed.name} is owed`
    }
    if (owed.reply === 'answer') return undefined
    const isAsOwed = reply.subarray(HEADER_BYTES).equals(encodeU64(owed.reply === 'done' ? 0n : 1n))
    return isAsOwed ? undefined : `${owed.name} is not ${owed.reply}`
  }

  close(): void {
    native.closeFd(this.fd)
  }
}
