import { execFileSync } from 'node:child_process'
import { ftruncateSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import type { HushringError } from '../../src/errors.ts'
import type { BlockRequest } from '../../src/handlers/block/block-request.ts'
import type { BlockVerbFunction } from '../../src/handlers/index.ts'
import type { VhostUserServer } from '../../src/transport/vhost-user/index.ts'
import {
  decodeHeader,
  FrontEndRequest,
  HEADER_BYTES,
  HeaderFlag,
  requestRule,
} from '../../src/transport/vhost-user/messages.ts'
import { until } from '../helpers/until.ts'
import { ByteReader, ByteWriter, demand, type FuzzTarget, type LoadModule } from './target.ts'

/*
 * A server and one front-end after the other, which sends it any bytes with any descriptors over the socket, cut
 * anywhere, and changes the memory that it shares. An input is a script of such steps.
 */

/** Descriptors that a front-end may send. `answered`: the one that came with an answer, or `otherMemory`. */
export const FD_KINDS = [
  'memory',
  'kick',
  'call',
  'otherMemory',
  'answered',
  'fifo',
  'null',
  'socket',
  'folder',
] as const
export type FdKind = (typeof FD_KINDS)[number]

/** A message, right or wrong. */
export interface ScriptedMessage {
  readonly step: 'message'
  readonly request: number
  readonly payload: Uint8Array
  /** Default: version 1. */
  readonly flags?: number
  /** Added to the size in the header, -128 to 127. Default 0: it is the payload's. */
  readonly sizeError?: number
  /** One of {@link FD_COUNTS}, all of one kind. Default: none. */
  readonly fds?: { readonly kind: FdKind; readonly count: number }
  /** The event loop turns behind so many bytes. Default: it comes as a whole. */
  readonly cutBytes?: number
}

/** One step of a front-end. */
export type FrontEndStep =
  | ScriptedMessage
  /** Writes into the memory. */
  | { readonly step: 'write'; readonly offsetBytes: number; readonly bytes: Uint8Array }
  /** Gives the memory another length. */
  | { readonly step: 'resize'; readonly pages: number }
  | { readonly step: 'kick' }
  /** Lets the event loop turn, and reads the answers. */
  | { readonly step: 'turn' }
  /** Requests of the disk wait from now on; until they are released, which they are at the end as well. */
  | { readonly step: 'hold' | 'release' }
  /** The device tells of a change of its configuration space. */
  | { readonly step: 'notify' }
  /** The front-end goes, whatever is in flight or not read. */
  | { readonly step: 'hangUp' }

const PAGE_BYTES = 4096
const MEMORY_PAGES = 16
const CAPACITY_BYTES = 16 * 1024
const STEP_COUNT_MAX = 40
const PAYLOAD_BYTES_MAX = 4200
/** The last one is more than any message may have. */
export const FD_COUNTS: readonly number[] = [0, 1, 2, 3, 7, 8, 9, 40]
/** Turns after the last step in which messages are still read. */
const LAST_TURNS = 8

// ---- Inputs and what they mean -------------------------------------------------------------------------------------

/** Bits of the byte that a message begins with. */
const HAS_FLAGS = 1
const HAS_SIZE_ERROR = 2
const HAS_FDS = 4
const HAS_CUT = 8
/** What a step begins with that is no message; its three lowest bits say what it is. */
const IS_OTHER = 0x80
const OTHER_STEPS = ['turn', 'kick', 'resize', 'write', 'hold', 'release', 'notify', 'hangUp'] as const
/** Lengths of payloads: the shortest that the request may have, so that an input that changes the request stays right. */
const USUAL_LENGTH = 0
const LONG = 0xff

/** What an input means. */
export function decodeVhostUser(input: Uint8Array): FrontEndStep[] {
  const reader = new ByteReader(input)
  const steps: FrontEndStep[] = []
  while (reader.leftBytes > 0 && steps.length < STEP_COUNT_MAX) steps.push(decodeStep(reader))
  return steps
}

function decodeStep(reader: ByteReader): FrontEndStep {
  const tag = reader.u8()
  if ((tag & IS_OTHER) === 0) return decodeMessage(tag, reader)
  const step = OTHER_STEPS[tag & 7]!
  if (step === 'resize') return { step, pages: reader.u8() % (MEMORY_PAGES + 1) }
  if (step === 'write') return { step, offsetBytes: reader.u16(), bytes: reader.bytes(reader.u8()) }
  return { step }
}

function decodeMessage(tag: number, reader: ByteReader): ScriptedMessage {
  const byte = reader.u8()
  // One that is no byte, for what is compared as a number of 32 bits.
  const request = byte === 0xff ? 0xffff_ffff : byte
  const length = reader.u8()
  const payloadBytes =
    length === USUAL_LENGTH
      ? usualPayloadBytes(request)
      : length === LONG
        ? reader.u16() % PAYLOAD_BYTES_MAX
        : length - 1
  return {
    step: 'message',
    request,
    payload: reader.bytes(payloadBytes),
    ...((tag & HAS_FLAGS) !== 0 && { flags: reader.u8() }),
    ...((tag & HAS_SIZE_ERROR) !== 0 && { sizeError: (reader.u8() << 24) >> 24 }),
    ...((tag & HAS_FDS) !== 0 && { fds: decodeFds(reader.u8()) }),
    ...((tag & HAS_CUT) !== 0 && { cutBytes: reader.u8() }),
  }
}

function usualPayloadBytes(request: number): number {
  return requestRule(request)?.payload.minBytes ?? 0
}

function decodeFds(byte: number): { kind: FdKind; count: number } {
  return { kind: FD_KINDS[(byte >> 3) % FD_KINDS.length]!, count: FD_COUNTS[byte & 7]! }
}

/** The input that means a script. */
export function encodeVhostUser(steps: readonly FrontEndStep[]): Buffer {
  const writer = new ByteWriter()
  for (const step of steps) {
    if (step.step === 'message') {
      encodeMessageStep(writer, step)
      continue
    }
    writer.u8(IS_OTHER | OTHER_STEPS.indexOf(step.step))
    if (step.step === 'resize') writer.u8(step.pages)
    if (step.step === 'write') writer.u16(step.offsetBytes).u8(step.bytes.length).bytes(step.bytes)
  }
  return writer.done()
}

function encodeMessageStep(writer: ByteWriter, message: ScriptedMessage): void {
  const { request, payload, flags, sizeError, fds, cutBytes } = message
  writer.u8(
    (flags === undefined ? 0 : HAS_FLAGS) |
      (sizeError === undefined ? 0 : HAS_SIZE_ERROR) |
      (fds === undefined ? 0 : HAS_FDS) |
      (cutBytes === undefined ? 0 : HAS_CUT),
  )
  writer.u8(request & 0xff)
  if (payload.length === usualPayloadBytes(request)) writer.u8(USUAL_LENGTH)
  else if (payload.length + 1 < LONG) writer.u8(payload.length + 1)
  else writer.u8(LONG).u16(payload.length)
  writer.bytes(payload)
  if (flags !== undefined) writer.u8(flags)
  if (sizeError !== undefined) writer.u8(sizeError & 0xff)
  if (fds !== undefined) writer.u8((FD_KINDS.indexOf(fds.kind) << 3) | FD_COUNTS.indexOf(fds.count))
  if (cutBytes !== undefined) writer.u8(cutBytes)
}

// ---- Playing one ---------------------------------------------------------------------------------------------------

/** What the target takes from the product. */
async function loadProduct(load: LoadModule) {
  const { ERROR_CODES } = (await load('errors')) as typeof import('../../src/errors.ts')
  const { blockDevice } = (await load('handlers/index')) as typeof import('../../src/handlers/index.ts')
  const { native } = (await load('native')) as typeof import('../../src/native.ts')
  const { vhostUser } = (await load(
    'transport/vhost-user/index',
  )) as typeof import('../../src/transport/vhost-user/index.ts')
  return { ERROR_CODES, blockDevice, native, vhostUser }
}

type Product = Awaited<ReturnType<typeof loadProduct>>

/** Options of {@link vhostUserTarget}. */
export interface VhostUserTargetOptions {
  /** An empty one, for sockets; its path is short. */
  readonly folder: string
  /** Number of descriptors that this process has open. Called twice for each input. */
  readonly openFdCount: () => number
  /** How many connections ended how since the target was made: by code, or `closed` when the front-end hung up. */
  readonly ends?: Map<string, number>
}

/** Fuzzes a server of a disk. One server serves all inputs. */
export async function vhostUserTarget(
  load: LoadModule,
  options: VhostUserTargetOptions,
): Promise<FuzzTarget & { requestCount(): number; close(): Promise<void> }> {
  const bench = await Bench.listen(await loadProduct(load), options)
  return {
    play: (input) => bench.play(decodeVhostUser(input)),
    describe: decodeVhostUser,
    requestCount: () => bench.requestCount,
    close: () => bench.close(),
  }
}

/** The disk that is served. */
class Store {
  readonly #contents = Buffer.alloc(CAPACITY_BYTES)
  readonly #held: (() => void)[] = []
  #isHolding = false

  readonly read: BlockVerbFunction = (io) => this.#answer(() => void io.data.copyFrom(this.#bytesOf(io)))
  readonly write: BlockVerbFunction = (io) => this.#answer(() => void io.data.copyTo(this.#bytesOf(io)))
  readonly flush: BlockVerbFunction = () => this.#answer(() => {})
  readonly writeZeroes: BlockVerbFunction = (io) => this.#answer(() => void this.#bytesOf(io).fill(0))

  hold(): void {
    this.#isHolding = true
  }

  /** Answers what was held. */
  release(): void {
    this.#isHolding = false
    for (const answer of this.#held.splice(0)) answer()
  }

  makeNew(): void {
    this.#contents.fill(0x5a)
  }

  #bytesOf(io: BlockRequest): Buffer {
    return this.#contents.subarray(io.offsetBytes, io.offsetBytes + io.lengthBytes)
  }

  #answer(work: () => void): void | Promise<void> {
    if (!this.#isHolding) return work()
    return new Promise<void>((resolve) => this.#held.push(resolve)).then(work)
  }
}

/** A server, and what the front-ends have: one after the other the same, and each as if it were new. */
class Bench {
  readonly #product: Product
  readonly #server: VhostUserServer
  readonly #options: VhostUserTargetOptions
  readonly #store: Store
  readonly #fds: Readonly<Record<Exclude<FdKind, 'answered'>, number>>
  /** What the server said about the front-end that is played. */
  readonly #degraded: HushringError[] = []
  readonly #lines: string[]
  /** How the last connection ended; undefined while it lasts. */
  #end: { readonly error: HushringError | undefined } | undefined

  private constructor(
    product: Product,
    server: VhostUserServer,
    options: VhostUserTargetOptions,
    store: Store,
    lines: string[],
  ) {
    const { native } = product
    this.#product = product
    this.#server = server
    this.#options = options
    this.#store = store
    this.#lines = lines
    server.on('degraded', (error) => this.#degraded.push(error))
    server.on('detached', (error) => {
      this.#end = { error }
    })
    const { folder } = options
    const fifoPath = join(folder, 'fifo')
    execFileSync('mkfifo', [fifoPath])
    const otherPath = join(folder, 'other.sock')
    const listenFd = native.unixListen(otherPath, 0o600, 1)
    this.#fds = {
      memory: native.memfdCreate('hushring-fuzz', MEMORY_PAGES * PAGE_BYTES, false),
      kick: native.eventfdCreate(),
      call: native.eventfdCreate(),
      otherMemory: native.memfdCreate('hushring-fuzz-other', PAGE_BYTES, false),
      fifo: openSync(fifoPath, 'r+'),
      null: openSync('/dev/null', 'r+'),
      socket: native.unixConnect(otherPath),
      folder: openSync(folder, 'r'),
    }
    native.closeFd(listenFd)
  }

  static async listen(product: Product, options: VhostUserTargetOptions): Promise<Bench> {
    const store = new Store()
    const { read, write, flush, writeZeroes } = store
    const device = product.blockDevice({
      capacityBytes: CAPACITY_BYTES,
      read,
      write,
      flush,
      writeZeroes,
    })
    const lines: string[] = []
    const note = (line: string): void => void lines.push(line)
    const server = await product.vhostUser.listen({
      device,
      socketPath: join(options.folder, 'disk.sock'),
      queues: { countMax: 2, sizeMax: 64 },
      logger: { error: note, warn: note, info: () => {}, debug: note },
    })
    return new Bench(product, server, options, store, lines)
  }

  /** Requests that the server has answered. */
  get requestCount(): number {
    return this.#server.statsSnapshot().requests
  }

  async close(): Promise<void> {
    await this.#server.close()
    for (const fd of Object.values(this.#fds)) this.#product.native.closeFd(fd)
  }

  async play(steps: readonly FrontEndStep[]): Promise<void> {
    const { native } = this.#product
    this.#makeNew()
    const fdCount = this.#options.openFdCount()
    const peer = new Peer(this.#product, this.#server.socketPath!)
    try {
      await until(() => this.#server.attached)
      for (const step of steps) {
        if (this.#end !== undefined || peer.isGone) break
        await this.#take(step, peer)
      }
      for (let turns = 0; turns < LAST_TURNS && this.#end === undefined && !peer.isGone; turns++) {
        await turn()
        peer.readAnswers()
      }
    } finally {
      peer.close()
    }
    // What is in flight when the front-end goes must not keep anything.
    if (this.#end === undefined) await turn()
    this.#store.release()
    await until(() => this.#end !== undefined)
    peer.judgeAnswers()
    this.#judge()
    const left = this.#options.openFdCount()
    demand(left === fdCount, () => `no descriptor is left: ${fdCount} before, ${left} after`)
    native.eventfdDrain(this.#fds.kick)
  }

  #makeNew(): void {
    const { native } = this.#product
    const { memory, otherMemory, kick, call } = this.#fds
    for (const [file, pages] of [
      [memory, MEMORY_PAGES],
      [otherMemory, 1],
    ] as const) {
      // Without its pages it is full of zeros again.
      ftruncateSync(file, 0)
      ftruncateSync(file, pages * PAGE_BYTES)
    }
    native.eventfdDrain(kick)
    native.eventfdDrain(call)
    this.#store.makeNew()
    this.#degraded.length = 0
    this.#lines.length = 0
    this.#end = undefined
  }

  async #take(step: FrontEndStep, peer: Peer): Promise<void> {
    const { native } = this.#product
    switch (step.step) {
      case 'message':
        return await peer.send(
          step,
          (kind) => (kind === 'answered' ? peer.answeredFd : this.#fds[kind]) ?? this.#fds.otherMemory,
        )
      case 'write':
        writeSync(this.#fds.memory, step.bytes, 0, step.bytes.length, step.offsetBytes)
        return
      case 'resize':
        return ftruncateSync(this.#fds.memory, step.pages * PAGE_BYTES)
      case 'kick':
        return native.eventfdSignal(this.#fds.kick)
      case 'turn':
        await turn()
        return peer.readAnswers()
      case 'hold':
        return this.#store.hold()
      case 'release':
        return this.#store.release()
      case 'notify':
        this.#server.notifyConfigChange()
        return
      case 'hangUp':
        return peer.close()
    }
  }

  #judge(): void {
    const { error } = this.#end!
    const name = error?.code ?? 'closed'
    this.#options.ends?.set(name, (this.#options.ends.get(name) ?? 0) + 1)
    for (const one of [error, ...this.#degraded]) {
      demand(
        one === undefined || one.family === 'peer',
        () =>
          `only the peer is to blame: ${one!.code}: ${(one!.cause as Error | undefined)?.stack ?? one!.stack}`,
      )
    }
    const { ERROR_CODES } = this.#product
    for (const line of this.#lines) {
      const code = /\bERR_\w+/.exec(line)?.[0] as keyof typeof ERROR_CODES | undefined
      // A request that is in flight when its queue is reset is given up.
      demand(
        code !== undefined && (ERROR_CODES[code].family === 'peer' || code === 'ERR_REQUEST_ABORTED'),
        () => `the log tells of the peer's mistakes alone: ${line}`,
      )
    }
    const { inFlight } = this.#server.statsSnapshot()
    demand(inFlight === 0, () => `nothing is in flight any more, not ${inFlight}`)
  }
}

/** The front-end's end of a connection. */
class Peer {
  readonly #product: Product
  readonly #fd: number
  readonly #room = Buffer.alloc(8192)
  readonly #answers: Buffer[] = []
  readonly #answeredFds: number[] = []
  readonly #sent: Buffer[] = []
  #isGone = false

  constructor(product: Product, socketPath: string) {
    this.#product = product
    this.#fd = product.native.unixConnect(socketPath)
  }

  get isGone(): boolean {
    return this.#isGone
  }

  /** What came with an answer. */
  get answeredFd(): number | undefined {
    return this.#answeredFds.at(-1)
  }

  async send(message: ScriptedMessage, fdOf: (kind: FdKind) => number): Promise<void> {
    const { request, payload, flags = VERSION_1, sizeError = 0, fds, cutBytes = 0 } = message
    const bytes = Buffer.alloc(HEADER_BYTES + payload.length)
    bytes.writeUInt32LE(request, 0)
    bytes.writeUInt32LE(flags, 4)
    bytes.writeUInt32LE((payload.length + sizeError) >>> 0, 8)
    bytes.set(payload, HEADER_BYTES)
    const descriptors = fds === undefined ? [] : new Array<number>(fds.count).fill(fdOf(fds.kind))
    const cut = cutBytes < bytes.length ? cutBytes : 0
    if (cut > 0) {
      this.#send(bytes.subarray(0, cut), [])
      await turn()
    }
    this.#send(bytes.subarray(cut), descriptors)
  }

  #send(bytes: Buffer, fds: number[]): void {
    this.#sent.push(bytes)
    try {
      this.#product.native.unixSend(this.#fd, bytes, fds)
    } catch (error) {
      // The back-end has hung up.
      if (!['EPIPE', 'ECONNRESET'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    }
  }

  readAnswers(): void {
    for (;;) {
      let part: { bytes: number; fds: number[] }
      try {
        part = this.#product.native.unixReceive(this.#fd, this.#room, 0, this.#room.length)
      } catch {
        return // hung up with messages unread
      }
      this.#answeredFds.push(...part.fds)
      if (part.bytes <= 0) return
      this.#answers.push(Buffer.from(this.#room.subarray(0, part.bytes)))
    }
  }

  /** Whole answers came, each to something that was asked, and descriptors with those that have one. */
  judgeAnswers(): void {
    // What was asked, the bytes tell: a size that is wrong makes payloads of headers and headers of payloads.
    const asked = new Set(messagesOf(Buffer.concat(this.#sent)).map(({ request }) => request))
    const answers = messagesOf(Buffer.concat(this.#answers))
    for (const { request, flags, payload, isWhole } of answers) {
      demand(isWhole, () => 'an answer is as long as it says')
      demand(flags === (VERSION_1 | HeaderFlag.REPLY), () => `an answer has the flags of one, not ${flags}`)
      demand(asked.has(request), () => `an answer is to what was asked, not to ${request}`)
      if (requestRule(request)?.answered ?? false) continue
      demand(
        payload.length === 8 && payload.readBigUInt64LE() <= 1n,
        () => `${request} is acknowledged with 0 or 1, not ${payload.toString('hex')}`,
      )
    }
    const fdCount = answers.filter(({ request }) => request === FrontEndRequest.GET_INFLIGHT_FD).length
    demand(
      fdCount === this.#answeredFds.length,
      () => `${fdCount} descriptors come, not ${this.#answeredFds.length}`,
    )
  }

  /** Hangs up, with answers unread that came since the last turn. Calling it again does nothing. */
  close(): void {
    if (this.#isGone) return
    this.#isGone = true
    const { native } = this.#product
    native.closeFd(this.#fd)
    for (const fd of this.#answeredFds) native.closeFd(fd)
  }
}

const VERSION_1: number = HeaderFlag.VERSION

/** The messages in a stream of bytes. The last one may be cut off. */
function messagesOf(stream: Buffer): { request: number; flags: number; payload: Buffer; isWhole: boolean }[] {
  const messages: ReturnType<typeof messagesOf> = []
  for (let at = 0; at < stream.length; ) {
    const header = Buffer.concat([stream.subarray(at, at + HEADER_BYTES)], HEADER_BYTES)
    const { request, flags, payloadBytes } = decodeHeader(header)
    const payload = stream.subarray(at + HEADER_BYTES, at + HEADER_BYTES + payloadBytes)
    at += HEADER_BYTES + payloadBytes
    messages.push({ request, flags, payload, isWhole: at <= stream.length })
  }
  return messages
}
