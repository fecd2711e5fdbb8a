import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { type Answer, ERROR_CODES, type HushringError, vhostUser, virtioDevice } from '../../src/index.ts'
import { native } from '../../src/native.ts'
import { RingFeature } from '../../src/ring/features.ts'
import { inflightBytes, makeInflightFd } from '../../src/ring/inflight.ts'
import type { Completion, RingRequest } from '../../src/ring/request.ts'
import { SharedMemory, SplitDriver } from '../../src/testing/index.ts'
import {
  F_PROTOCOL_FEATURES,
  HEADER_BYTES,
  HeaderFlag,
  ProtocolFeature,
} from '../../src/transport/vhost-user/messages.ts'
import {
  encodeConfig,
  encodeInflight,
  encodeMemoryTable,
  encodeSingleRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
  type WireRegion,
} from '../../src/transport/vhost-user/payloads.ts'
import type { VhostUserServer } from '../../src/transport/vhost-user/server.ts'
import { KiB } from '../../src/units.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { type Outcome, Simulation } from './simulation.ts'
import { plant, type VhostUserSabotage } from './vhost-user-sabotage.ts'
import {
  CountingStream,
  message,
  type ScriptedMessage,
  unknownMessage,
  wrongMessage,
} from './vhost-user-stream.ts'

const QUEUE_SIZE = 16
const ANSWER_BYTES = 4
/** Turns of the event loop after which nothing more is going to happen. */
const TURN_COUNT_MAX = 400
/** Handlers come to their end by the seed, never by the clock, unless a mistake keeps the server from its end. */
const GRACE_MS = { right: 60_000, sabotaged: 50 } as const

const behaviours = [
  'answers at once',
  'answers with a promise',
  'fails',
  'waits',
  'waits until it is given up',
] as const
type Behaviour = (typeof behaviours)[number]
/** Those that answer without anybody's help come first. */
const PROMPT_COUNT = 3

const wrongMessages = [
  'a header of version 2',
  'a size that its request has not',
  'a queue that is not there',
  'a descriptor too few',
  'a descriptor too many',
  'a kick that is no eventfd',
] as const

/** Every message that a script has; each is cut somewhere. */
const MESSAGE_NAMES = [
  'GET_FEATURES',
  'GET_PROTOCOL_FEATURES',
  'SET_PROTOCOL_FEATURES',
  'SET_OWNER',
  'SET_FEATURES',
  'GET_QUEUE_NUM',
  'GET_MAX_MEM_SLOTS',
  'GET_CONFIG',
  'GET_STATUS',
  'SET_STATUS',
  'SET_BACKEND_REQ_FD',
  'GET_INFLIGHT_FD',
  'SET_INFLIGHT_FD',
  'SET_MEM_TABLE',
  'ADD_MEM_REG',
  'REM_MEM_REG',
  'SET_VRING_NUM',
  'SET_VRING_BASE',
  'SET_VRING_ADDR',
  'SET_VRING_ERR',
  'SET_VRING_CALL',
  'SET_VRING_KICK',
  'SET_VRING_ENABLE',
  'GET_VRING_BASE',
  'a later request',
] as const

/** What must come up within some hundred seeds, or the simulation has lost a part of its world. */
export const vhostUserFaults: readonly string[] = [
  'cut before a message',
  'cut inside a header',
  'cut between header and payload',
  'cut inside a payload',
  'cut with descriptors under way',
  'cut with answers owed',
  'cut with requests in flight',
  'cut while a queue is drained',
  'messages come merged',
  'a message comes in pieces',
  'a message comes byte by byte',
  'descriptors come with the payload',
  'descriptors come one by one',
  'connects again in the same turn',
  'connects again before it hangs up',
  'connects again later',
  'a second front-end comes',
  'a request is taken over',
  ...MESSAGE_NAMES.map((name) => `cut in ${name}`),
  ...wrongMessages,
]
export const vhostUserBehaviours: readonly string[] = behaviours

interface Question {
  readonly number: number
  readonly at: number
  readonly driver: SplitDriver
  /** Taken by how many handlers, one after the other. */
  takenCount: number
  mayFail: boolean
  answeredCount: number
}

/**
 * Serves a device on a socket to a front-end whose stream is cut at any byte, comes in pieces of any size, has descriptors
 * where they may be, now and then says something wrong, and which connects again. The sockets and the event loop are the
 * real ones; who does what in which turn of the loop is the seed's to say, and no time is waited for.
 *
 * @param seed decides everything
 * @param sabotage a mistake to be noticed
 */
export function simulateVhostUser(seed: number, sabotage?: VhostUserSabotage): Promise<Outcome> {
  return new VhostUserSimulation(seed, sabotage).play()
}

class VhostUserSimulation extends Simulation {
  readonly #folder = mkdtempSync(join(tmpdir(), 'hushring-simulation-'))
  readonly #socketPath = join(this.#folder, 's')
  readonly #isSabotaged: boolean
  readonly #mend: () => void
  readonly #streams = new Set<number>()
  readonly #queueCount: number
  readonly #eventIdx: boolean
  readonly #keepsAccount: boolean
  #server: VhostUserServer | undefined
  #memory: SharedMemory | undefined
  #spare: SharedMemory | undefined
  #drivers: SplitDriver[] = []
  #inflightFd = -1
  readonly #eventFds: number[] = []
  readonly #questions: Question[] = []
  /** Handlers that wait for somebody who lets them answer. */
  #waiting: (() => void)[] = []
  #connectionCount = 0
  #detachedCount = 0
  #refusedCount = 0
  /** By connection: whether a wrong message is on its way, or a part of one, so that an error may come of it. */
  readonly #saidWrong: boolean[] = []
  /** Descriptors while nobody is connected. */
  #idleFdCount = 0
  /** A connection that was made before the last one hung up. */
  #nextFd: number | undefined

  constructor(seed: number, sabotage: VhostUserSabotage | undefined) {
    super(seed)
    this.#isSabotaged = sabotage !== undefined
    this.#mend = plant(sabotage, (fd) => this.#streams.has(fd))
    this.#queueCount = this.integer(1, 2)
    this.#eventIdx = this.chance(0.5)
    this.#keepsAccount = this.chance(0.6)
  }

  protected override async run(): Promise<void> {
    const before = openFdCount()
    await this.#listen()
    const cutCount = this.integer(1, 4)
    for (let count = 0; count < cutCount; count++) await this.#connect(true)
    this.faultsAreOver = true
    await this.#connect(false)
    await this.#expectDetached()
    await this.#server?.close()
    this.#letGo()
    if (!(await this.#until(() => openFdCount() === before))) {
      this.violate(`${openFdCount() - before} descriptors are left open`)
    }
  }

  protected override close(): void {
    void this.#server?.close()
    this.#letGo()
    this.#mend()
    rmSync(this.#folder, { recursive: true, force: true })
  }

  /** A turn of the event loop is what a step of the clock is elsewhere. */
  async #turn(): Promise<void> {
    await nextTurn()
    this.clock.frame++
    if (this.#waiting.length > 0 && this.chance(0.1)) this.#settleOne()
  }

  async #turns(countMax: number): Promise<void> {
    for (let count = this.integer(0, countMax); count > 0; count--) await this.#turn()
  }

  /** False when it does not come true. */
  async #until(condition: () => boolean): Promise<boolean> {
    for (let count = 0; count < TURN_COUNT_MAX; count++) {
      if (condition()) return true
      await this.#turn()
    }
    return condition()
  }

  // ---- The device -------------------------------------------------------------------------------------------

  async #listen(): Promise<void> {
    this.#server = await vhostUser.listen({
      socketPath: this.#socketPath,
      device: virtioDevice({
        deviceId: 42,
        queueCountMax: 2,
        framing: { headerBytes: 4, statusByte: false },
        config: new Uint8Array(8),
        handler: (request) => this.#handle(request),
      }),
      queues: { countMax: this.#queueCount, sizeMax: 64 },
      stopGraceMs: GRACE_MS[this.#isSabotaged ? 'sabotaged' : 'right'],
    })
    this.#server.on('detached', (error) => this.#onDetached(error))
    this.#server.on('degraded', (error) => this.#onDegraded(error))
    this.#server.on('refused', () => this.#refusedCount++)
  }

  #onDetached(error: HushringError | undefined): void {
    const saidWrong = this.#saidWrong[this.#detachedCount++] === true
    this.tell(`detached${error === undefined ? '' : `: ${error.code}`}`)
    if (error === undefined || saidWrong) return
    this.violate(`a front-end that did nothing wrong is blamed: ${error.code}: ${error.message}`)
  }

  #onDegraded(error: HushringError): void {
    if (ERROR_CODES[error.code].family !== 'peer') this.violate(`${error.code}: ${error.message}`)
    else if (this.#saidWrong[this.#detachedCount] !== true)
      this.violate(`degraded for nothing: ${error.code}: ${error.message}`)
  }

  #handle(request: RingRequest): Answer {
    const question = this.#questions[request.headerWords[0]! - 1]
    if (question === undefined) {
      this.violate(`a request that nobody made: ${request.headerWords[0]}`)
      return request.ok(0)
    }
    question.takenCount++
    if (question.answeredCount > 0)
      this.violate(`request ${question.number} is served again, after its answer`)
    if (question.takenCount > 1) {
      this.count('a request is taken over')
      if (!this.#keepsAccount) this.violate(`request ${question.number} is handed out twice`)
    }
    const behaviour = this.pick(behaviours.slice(0, this.faultsAreOver ? PROMPT_COUNT : behaviours.length))
    this.count(behaviour)
    return this.#answerAs(behaviour, question, request)
  }

  #answerAs(behaviour: Behaviour, question: Question, request: RingRequest): Answer {
    const ok = (): Completion => {
      if (!request.isAborted)
        request.writable.copyFrom(Buffer.from(Uint32Array.of(2 * question.number).buffer))
      return request.ok(ANSWER_BYTES)
    }
    switch (behaviour) {
      case 'answers at once':
        return ok()
      case 'answers with a promise':
        return Promise.resolve().then(ok)
      case 'fails':
        question.mayFail = true
        return request.fail(new Error('the store says no'))
      case 'waits':
        return new Promise((resolve) => this.#waiting.push(() => resolve(ok())))
      case 'waits until it is given up':
        return new Promise((resolve) => {
          this.#waiting.push(() => resolve(ok()))
          request.signal.addEventListener('abort', () => resolve(request.fail(request.signal.reason)))
        })
    }
  }

  #settleOne(): void {
    const [settle] = this.#waiting.splice(this.integer(0, this.#waiting.length - 1), 1)
    settle?.()
  }

  // ---- The guest --------------------------------------------------------------------------------------------

  /** Memory and rings. Without an account of what is in flight, nobody can go on with the rings of an earlier connection. */
  #boot(): void {
    if (this.#memory !== undefined && this.#keepsAccount) return
    this.#shutDown()
    this.#memory = new SharedMemory({ sizeBytes: 256 * KiB })
    this.#spare = new SharedMemory({ sizeBytes: 64 * KiB, guestAddress: 1n << 40n, userAddress: 1n << 41n })
    const options = { memory: this.#memory, size: QUEUE_SIZE, eventIdx: this.#eventIdx }
    this.#drivers = Array.from({ length: this.#queueCount }, () => new SplitDriver(options))
    for (let count = 0; count < 3; count++) this.#eventFds.push(native.eventfdCreate())
    if (this.#keepsAccount) {
      this.#inflightFd = makeInflightFd({ queueCount: this.#queueCount, queueSize: QUEUE_SIZE })
    }
  }

  #shutDown(): void {
    for (const driver of this.#drivers) driver.close()
    this.#drivers = []
    this.#memory?.close()
    this.#spare?.close()
    this.#memory = undefined
    this.#spare = undefined
    for (const fd of this.#eventFds.splice(0)) native.closeFd(fd)
    if (this.#inflightFd !== -1) native.closeFd(this.#inflightFd)
    this.#inflightFd = -1
  }

  #submitSome(): void {
    for (let count = this.integer(0, 3); count > 0; count--) this.#submit(this.pick(this.#drivers))
  }

  #submit(driver: SplitDriver): void {
    if (driver.inFlightCount >= QUEUE_SIZE / 2) return
    const memory = this.#memory!
    const at = memory.allocate(2 * ANSWER_BYTES)
    const number = this.#questions.length + 1
    const question: Question = { number, at, driver, takenCount: 0, mayFail: false, answeredCount: 0 }
    this.#questions.push(question)
    memory.bytes.writeUInt32LE(number, at)
    memory.bytes.writeUInt32LE(0, at + 4)
    this.tell(`request ${number}`)
    const address = memory.guestAddressOf(at)
    void driver
      .submit([
        { address, lengthBytes: 4, writable: false },
        { address: address + 4n, lengthBytes: ANSWER_BYTES, writable: true },
      ])
      .then((usedBytes) => this.#check(question, usedBytes, memory.bytes.readUInt32LE(at + 4)))
  }

  #check(question: Question, usedBytes: number, value: number): void {
    const { number, mayFail } = question
    question.answeredCount++
    const isRight = usedBytes === ANSWER_BYTES ? value === 2 * number : usedBytes === 0 && mayFail
    if (!isRight) this.violate(`request ${number} got ${value} and ${usedBytes} bytes`)
  }

  /** The driver passes over an answer that nobody waits for; its index counts it. */
  #expectAnsweredOnce(): void {
    for (const driver of this.#drivers) {
      driver.collect()
      const answered = driver.availableIndex - driver.inFlightCount
      if (driver.loadUsedIndex() !== answered) {
        this.violate(`${driver.loadUsedIndex()} answers to ${answered} requests`)
      }
    }
  }

  // ---- The front-end ----------------------------------------------------------------------------------------

  /** One connection from its first byte to its last, which is the last one of a message or any other. */
  async #connect(isCut: boolean): Promise<void> {
    this.#boot()
    if (this.#connectionCount === 0) this.#idleFdCount = openFdCount()
    const fd = this.#nextFd ?? native.unixConnect(this.#socketPath)
    this.#nextFd = undefined
    this.#streams.add(fd)
    this.#connectionCount++
    this.tell('connects')
    const stream = new CountingStream(fd)
    const script = this.#script(isCut)
    const cutAt = isCut ? this.#somePlace(script) : { message: script.length, byte: 0 }
    const isLockstep = !isCut || this.chance(0.3)
    const isOpen = await this.#sendAll(stream, script, cutAt, isLockstep)
    if (!isCut) await this.#serveOut(stream)
    else if (isOpen) this.#tellOfCut(stream, script, cutAt)
    await this.#hangUp(stream)
  }

  #script(isCut: boolean): ScriptedMessage[] {
    const [eventFd, otherFd, errorFd] = this.#eventFds as [number, number, number]
    const acknowledges = this.chance(0.5)
    const some = (...messages: ScriptedMessage[]): ScriptedMessage[] => (this.chance(0.5) ? messages : [])
    const command = (...[name, payload, fds]: Parameters<typeof message>): ScriptedMessage =>
      message(name, payload, fds, acknowledges && this.chance(0.5) ? 'done' : 'nothing')
    const ask = (...[name, payload]: Parameters<typeof message>): ScriptedMessage =>
      message(name, payload, [], 'answer')
    const protocol = Object.values(ProtocolFeature).reduce((all, feature) => all | feature)
    const features =
      RingFeature.VERSION_1 | F_PROTOCOL_FEATURES | (this.#eventIdx ? RingFeature.EVENT_IDX : 0n)
    const layout = { queueCount: this.#queueCount, queueSize: QUEUE_SIZE }
    const [main, spare] = [regionOf(this.#memory!), regionOf(this.#spare!)]
    const withTable = this.chance(0.7)
    const script = [
      ask('GET_FEATURES'),
      ask('GET_PROTOCOL_FEATURES'),
      message(
        'SET_PROTOCOL_FEATURES',
        encodeU64(acknowledges ? protocol : protocol & ~ProtocolFeature.REPLY_ACK),
      ),
      command('SET_OWNER'),
      command('SET_FEATURES', encodeU64(features)),
      ...some(ask('GET_QUEUE_NUM'), ask('GET_MAX_MEM_SLOTS')),
      ...some(ask('GET_CONFIG', encodeConfig({ offsetBytes: 0, flags: 0, bytes: Buffer.alloc(8) }))),
      ...some(command('SET_STATUS', encodeU64(1n)), ask('GET_STATUS')),
      ...some(command('SET_BACKEND_REQ_FD', undefined, [eventFd])),
      ...some(unknownMessage([eventFd, otherFd], acknowledges && this.chance(0.5))),
      ...some(ask('GET_INFLIGHT_FD', encodeInflight({ ...layout, mmapSizeBytes: 0n, mmapOffsetBytes: 0n }))),
      ...(this.#keepsAccount
        ? [
            command(
              'SET_INFLIGHT_FD',
              encodeInflight({
                ...layout,
                mmapSizeBytes: BigInt(inflightBytes(layout)),
                mmapOffsetBytes: 0n,
              }),
              [this.#inflightFd],
            ),
          ]
        : []),
      ...(withTable
        ? [command('SET_MEM_TABLE', encodeMemoryTable([main, spare]), [this.#memory!.fd, this.#spare!.fd])]
        : [
            command('ADD_MEM_REG', encodeSingleRegion(main), [this.#memory!.fd]),
            command('ADD_MEM_REG', encodeSingleRegion(spare), [this.#spare!.fd]),
          ]),
      ...this.#drivers.flatMap((driver, index) => [
        command('SET_VRING_NUM', encodeVringState({ index, num: QUEUE_SIZE })),
        command('SET_VRING_BASE', encodeVringState({ index, num: driver.loadUsedIndex() })),
        command('SET_VRING_ADDR', encodeVringAddress({ index, flags: 0, ...driver.addresses, log: 0n })),
        ...some(command('SET_VRING_ERR', encodeVringFd({ index, attached: true }), [errorFd])),
        command('SET_VRING_CALL', encodeVringFd({ index, attached: true }), [driver.callFd]),
        command('SET_VRING_KICK', encodeVringFd({ index, attached: true }), [driver.kickFd]),
        command('SET_VRING_ENABLE', encodeVringState({ index, num: 1 })),
      ]),
      ...some(command('REM_MEM_REG', encodeSingleRegion(spare), this.chance(0.5) ? [this.#spare!.fd] : [])),
      ...some(ask('GET_STATUS')),
    ]
    if (!isCut) return script
    if (this.chance(0.3))
      script.push(ask('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 })), ask('GET_STATUS'))
    if (this.chance(0.15)) script.splice(this.integer(0, script.length), 0, this.#someWrongMessage())
    return script
  }

  #someWrongMessage(): ScriptedMessage {
    const { VERSION } = HeaderFlag
    const what = this.pick(wrongMessages)
    const kick = encodeVringFd({ index: 0, attached: true })
    switch (what) {
      case 'a header of version 2':
        return wrongMessage(what, 'GET_FEATURES', 2, Buffer.alloc(0))
      case 'a size that its request has not':
        return wrongMessage(what, 'SET_FEATURES', VERSION, Buffer.alloc(9))
      case 'a queue that is not there':
        return wrongMessage(what, 'SET_VRING_NUM', VERSION, encodeVringState({ index: 200, num: 16 }))
      case 'a descriptor too few':
        return wrongMessage(what, 'SET_MEM_TABLE', VERSION, encodeMemoryTable([regionOf(this.#memory!)]))
      case 'a descriptor too many':
        return wrongMessage(what, 'SET_VRING_KICK', VERSION, kick, this.#eventFds.slice(0, 2))
      case 'a kick that is no eventfd':
        return wrongMessage(what, 'SET_VRING_KICK', VERSION, kick, [this.#memory!.fd])
    }
  }

  /** A byte of a script behind which nothing more comes. Behind its last one nothing is cut off. */
  #somePlace(script: readonly ScriptedMessage[]): { readonly message: number; readonly byte: number } {
    // Half of them rather late, when there is more to be cut off.
    const earliest = this.chance(0.5) ? 0 : Math.floor(script.length / 2)
    const index = this.integer(earliest, script.length)
    const lengthBytes = script[index]?.bytes.length ?? 1
    // Half of them at the two edges that a message has.
    const byte = this.chance(0.5) ? this.integer(0, lengthBytes - 1) : this.pick([0, HEADER_BYTES])
    return { message: index, byte: byte < lengthBytes ? byte : 0 }
  }

  /** Sends a script up to a place. @returns false when the back-end has hung up before */
  async #sendAll(
    stream: CountingStream,
    script: readonly ScriptedMessage[],
    cutAt: { readonly message: number; readonly byte: number },
    isLockstep: boolean,
  ): Promise<boolean> {
    const pieces = new Pieces(stream)
    for (const [index, next] of script.entries()) {
      if (index > cutAt.message) break
      const lengthBytes = index === cutAt.message ? cutAt.byte : next.bytes.length
      if (next.isWrong && lengthBytes > 0) this.#saidWrong[this.#connectionCount - 1] = true
      if (lengthBytes > 0) await this.#send(pieces, next, lengthBytes)
      if (lengthBytes === next.bytes.length) stream.owes(next)
      if (isLockstep || this.chance(0.2)) pieces.flush()
      if (isLockstep) await this.#until(() => this.#read(stream) && stream.owedCount === 0)
      else if (this.chance(0.3)) this.#read(stream)
      if (this.chance(0.2)) this.#submitSome()
      const mayCompete = !this.faultsAreOver && this.#saidWrong[this.#connectionCount - 1] !== true
      if (this.chance(0.02) && mayCompete) await this.#sendSecondFrontEnd(stream)
      if (next.isWrong && lengthBytes === next.bytes.length) {
        this.count(next.name)
        pieces.flush()
        if (!(await this.#until(() => this.#read(stream) && stream.isOver)))
          this.violate(`${next.name} is let pass`)
        return false
      }
    }
    pieces.flush()
    return true
  }

  /** Sends the front of a message, whole or in pieces, with its descriptors at its front or behind. */
  async #send(pieces: Pieces, { bytes, fds }: ScriptedMessage, lengthBytes: number): Promise<void> {
    const way = this.#someWay(bytes.length, fds.length)
    if (way !== undefined) this.count(way)
    for (let at = 0, sentFds = 0; at < lengthBytes; ) {
      let to = lengthBytes
      let along: readonly number[] = at === 0 ? fds : []
      if (way === 'a message comes in pieces')
        to = Math.min(lengthBytes, at + this.integer(1, bytes.length - 1))
      else if (way === 'a message comes byte by byte') to = at + 1
      else if (way === 'descriptors come with the payload') {
        to = at === 0 ? Math.min(lengthBytes, HEADER_BYTES) : lengthBytes
        along = at === 0 ? [] : fds
      } else if (way === 'descriptors come one by one') {
        along = fds.slice(sentFds, ++sentFds)
        to = sentFds < fds.length ? at + 1 : lengthBytes
      }
      if (way === 'messages come merged') pieces.add(bytes.subarray(at, to), along)
      else pieces.send(bytes.subarray(at, to), along)
      at = to
      if (way !== 'messages come merged') await this.#turns(2)
    }
  }

  #someWay(lengthBytes: number, fdCount: number): string | undefined {
    const ways = ['messages come merged', 'messages come merged', 'a message comes in pieces', undefined]
    if (this.chance(0.1)) ways.push('a message comes byte by byte')
    if (fdCount > 0 && lengthBytes > HEADER_BYTES) ways.push('descriptors come with the payload')
    if (fdCount > 1) ways.push('descriptors come one by one')
    return this.pick(ways)
  }

  /** Reads what the back-end sent. @returns true, for conditions */
  #read(stream: CountingStream): true {
    const complaint = stream.read()
    if (complaint !== undefined) this.violate(complaint)
    return true
  }

  /** A front-end is served, so another one is sent away. */
  async #sendSecondFrontEnd(stream: CountingStream): Promise<void> {
    if (!(await this.#until(() => this.#read(stream) && stream.owedCount === 0)) || !this.#server!.attached)
      return
    this.count('a second front-end comes')
    const fd = native.unixConnect(this.#socketPath)
    this.#streams.add(fd)
    const second = new CountingStream(fd)
    const refusedCount = this.#refusedCount
    const isSentAway = await this.#until(() => this.#read(second) && second.isOver)
    if (!isSentAway || this.#refusedCount === refusedCount)
      this.violate('a second front-end is not sent away')
    this.#forget(second)
  }

  #tellOfCut(
    stream: CountingStream,
    script: readonly ScriptedMessage[],
    { message: index, byte }: { readonly message: number; readonly byte: number },
  ): void {
    const { bytes, fds, name, isWrong } = script[index] ?? {
      bytes: [],
      fds: [],
      name: 'nothing',
      isWrong: false,
    }
    if (index < script.length) {
      if (!isWrong) this.count(`cut in ${name}`)
      if (byte === 0) this.count('cut before a message')
      else if (byte < HEADER_BYTES) this.count('cut inside a header')
      else if (byte === HEADER_BYTES && bytes.length > HEADER_BYTES)
        this.count('cut between header and payload')
      else this.count('cut inside a payload')
      if (byte > 0 && fds.length > 0) this.count('cut with descriptors under way')
    }
    if (stream.owedCount > 0) this.count('cut with answers owed')
    if (this.#drivers.some(({ inFlightCount }) => inFlightCount > 0))
      this.count('cut with requests in flight')
    if (script.slice(0, index).some((sent) => sent.name === 'GET_VRING_BASE') && this.#waiting.length > 0) {
      this.count('cut while a queue is drained')
    }
  }

  async #hangUp(stream: CountingStream): Promise<void> {
    await this.#turns(3)
    const way = this.faultsAreOver ? 2 : this.integer(0, 2)
    if (way === 1) {
      this.count('connects again before it hangs up')
      this.#nextFd = native.unixConnect(this.#socketPath)
    }
    this.tell('hangs up')
    this.#forget(stream)
    if (way === 0) this.count('connects again in the same turn')
    if (way < 2 && !this.#keepsAccount) {
      // The guest is gone, and with it its rings: an answer to them is an answer to nobody.
      await this.#expectDetached()
    }
    if (way < 2) return
    this.count('connects again later')
    await this.#expectDetached()
  }

  #forget(stream: CountingStream): void {
    stream.close()
    this.#streams.delete(stream.fd)
  }

  // ---- What must be -----------------------------------------------------------------------------------------

  /** The server is through with every connection, and nobody's ring is touched any more. */
  async #expectDetached(): Promise<void> {
    const connections = this.#connectionCount
    while (this.#waiting.length > 0) {
      this.#settleOne()
      await this.#turns(2)
    }
    if (!(await this.#until(() => this.#detachedCount >= connections))) {
      this.violate(`${connections - this.#detachedCount} connections do not end`)
    }
    if (this.#detachedCount > connections) this.violate('a connection ends twice')
    const before = this.#drivers.map((driver) => driver.loadUsedIndex())
    await this.#turns(3)
    if (this.#drivers.some((driver, index) => driver.loadUsedIndex() !== before[index])) {
      this.violate('a ring is answered on whose front-end is gone')
    }
    this.#expectAnsweredOnce()
    if (this.#nextFd !== undefined) return
    if (!(await this.#until(() => openFdCount() === this.#idleFdCount))) {
      this.violate(`${openFdCount() - this.#idleFdCount} descriptors of a connection are left open`)
    }
  }

  /** Nothing cuts this one off: it is answered in full, and so is everything that is on its rings. */
  async #serveOut(stream: CountingStream): Promise<void> {
    const isAnswered = await this.#until(() => this.#read(stream) && stream.owedCount === 0)
    if (!isAnswered) this.violate(`the next front-end waits for ${stream.owedCount} answers`)
    for (const driver of this.#drivers) this.#submit(driver)
    const open = (): Question[] =>
      this.#questions.filter(
        ({ driver, answeredCount }) => this.#drivers.includes(driver) && answeredCount === 0,
      )
    if (!(await this.#until(() => open().length === 0))) {
      this.violate(`nobody answers requests ${open().map(({ number }) => number)}`)
    }
    await this.#turns(3)
    this.#read(stream)
    if (stream.isOver) this.violate('the server hung up on a front-end that did nothing wrong')
  }

  #letGo(): void {
    if (this.#nextFd !== undefined) native.closeFd(this.#nextFd)
    this.#nextFd = undefined
    for (const fd of this.#streams) native.closeFd(fd)
    this.#streams.clear()
    for (const settle of this.#waiting.splice(0)) settle()
    this.#shutDown()
  }
}

/** Bytes that are gathered until they are sent. Descriptors begin a piece, because they come with its first byte. */
class Pieces {
  readonly #stream: CountingStream
  #bytes = Buffer.alloc(0)
  #fds: readonly number[] = []

  constructor(stream: CountingStream) {
    this.#stream = stream
  }

  add(bytes: Buffer, fds: readonly number[]): void {
    if (fds.length > 0) this.flush()
    this.#bytes = Buffer.concat([this.#bytes, bytes])
    if (fds.length > 0) this.#fds = fds
  }

  send(bytes: Buffer, fds: readonly number[]): void {
    this.flush()
    this.#stream.send(bytes, fds)
  }

  flush(): void {
    if (this.#bytes.length > 0) this.#stream.send(this.#bytes, this.#fds)
    this.#bytes = Buffer.alloc(0)
    this.#fds = []
  }
}

function regionOf({ guestAddress, userAddress, sizeBytes, mmapOffsetBytes }: SharedMemory): WireRegion {
  return { guestAddress, userAddress, sizeBytes: BigInt(sizeBytes), mmapOffsetBytes }
}
