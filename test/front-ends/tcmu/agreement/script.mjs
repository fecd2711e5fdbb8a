// @ts-check
// What a script of agreement is told in, and the trace that it leaves: one line for each thing that the server or the
// initiator can see. Two machines agree on a script when their traces are equal.
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Opcode, RingServer } from './ring-server.mjs'

/** @import { Answer, Entry, Port } from './ring-server.mjs' */

/**
 * A SCSI command. No two of a script have the same CDB.
 *
 * @typedef {object} Command
 * @property {number} tag names it in the trace
 * @property {Buffer} cdb
 * @property {Buffer} [dataOut]
 * @property {number} [dataInBytes]
 */

/**
 * How a command ended.
 *
 * @typedef {object} Result
 * @property {readonly number[]} statuses the last one is the command's; the others, BUSY or TASK SET FULL, are those after
 *   which the initiator sent it again. Each once, however often it came. Empty for a command that was aborted.
 * @property {Buffer} sense up to 18 bytes
 * @property {Buffer} dataIn what reached the initiator
 * @property {number} residualBytes
 */

/**
 * A device with one initiator, which sends again what ended with BUSY or TASK SET FULL as soon as nothing else is in
 * flight, as Linux does.
 *
 * @typedef {object} Machine
 * @property {Port} port
 * @property {number} limitMs time within which whatever is waited for must come
 * @property {() => string} openTwice opens the device once more, which must fail: the name of the error
 * @property {() => Port} reopen closes the device and opens it again; the new `port`
 * @property {readonly string[]} log what the kernel said of the ring
 * @property {(command: Command) => Promise<Result>} send commands arrive in the order in which they were sent
 * @property {(command: Command) => Promise<void>} sendAndAbort gives up on the command after a while, by ABORT TASK; is done
 *   when that has its answer
 * @property {() => Promise<void>} lunReset is done when the LUN RESET has its answer; send nothing meanwhile
 * @property {(file: string, value: string) => string} configure writes to a file of the device in configfs; `ok`, or the
 *   name of the error
 * @property {(ms: number) => Promise<void>} elapse lets time go by
 * @property {() => Promise<void>} settle waits until all that was sent has arrived
 */

/**
 * @typedef {object} MachineOptions
 * @property {number} dataAreaMegabytes
 * @property {number} pagesPerBlock of 4096 bytes
 * @property {number} commandTimeoutSeconds
 * @property {number} queueFullTimeoutSeconds
 * @property {boolean} taskManagement
 */

/** @type {MachineOptions} */
export const defaultOptions = {
  dataAreaMegabytes: 1,
  pagesPerBlock: 1,
  commandTimeoutSeconds: 30,
  queueFullTimeoutSeconds: -1,
  taskManagement: true,
}

/** A command without data. @type {(tag: number) => Command} */
export function testUnitReady(tag) {
  const cdb = Buffer.alloc(6)
  cdb.writeUInt16BE(tag, 3)
  return { tag, cdb }
}

/** @type {(opcode: number, tag: number, bytes: number) => Buffer} */
function cdbOf(opcode, tag, bytes) {
  const cdb = Buffer.alloc(10)
  cdb[0] = opcode
  cdb.writeUInt32BE(tag, 2)
  cdb.writeUInt16BE(Math.ceil(bytes / 512), 7)
  return cdb
}

/** READ(10). @type {(tag: number, bytes: number) => Command} */
export const read = (tag, bytes) => ({ tag, cdb: cdbOf(0x28, tag, bytes), dataInBytes: bytes })

/** WRITE(10). @type {(tag: number, bytes: number) => Command} */
export const write = (tag, bytes) => ({ tag, cdb: cdbOf(0x2a, tag, bytes), dataOut: patternOf(tag, bytes) })

/** READ(16) of nothing: a command of 16 bytes without data. @type {(tag: number) => Command} */
export function readNothing(tag) {
  const cdb = Buffer.alloc(16)
  cdb[0] = 0x88
  cdb.writeUInt32BE(tag, 6)
  return { tag, cdb }
}

/** Bytes in which no block is like another one. @type {(seed: number, bytes: number) => Buffer} */
function patternOf(seed, bytes) {
  const pattern = Buffer.alloc(bytes)
  for (let index = 0; index < bytes; index++) pattern[index] = seed * 31 + index * 7 + (index >> 9) * 13
  return pattern
}

/** @type {(pieces: readonly Uint8Array[]) => string} */
function digestOf(pieces) {
  const hash = createHash('sha256')
  for (const piece of pieces) hash.update(piece)
  return hash.digest('hex').slice(0, 12)
}

/** @type {(entry: Entry) => string} */
function textOf({
  opcode,
  offset,
  bytes,
  id,
  kernelFlags,
  userFlags,
  pieces,
  bidirectionalCount,
  cdb,
  ...tmr
}) {
  const place = `at ${offset}, ${bytes} bytes, id ${id}, flags ${kernelFlags} ${userFlags}`
  if (opcode === Opcode.pad) return `PAD ${place}`
  if (opcode === Opcode.tmr) return `TMR ${place}, type ${tmr.tmrType}, ids ${tmr.commandIds.join(' ')}`
  const list = pieces.map(({ offsetBytes, lengthBytes }) => `${offsetBytes}+${lengthBytes}`).join(' ')
  return `CMD ${place}, cdb ${cdb}, ${pieces.length - bidirectionalCount}+${bidirectionalCount} iovs: ${list}`
}

export class Script {
  /** @type {string[]} */
  trace = []
  /** @type {Map<number, Promise<Result>>} */
  #sent = new Map()

  /** @param {Machine} machine */
  constructor(machine) {
    this.machine = machine
    this.server = new RingServer(machine.port)
  }

  /** @param {string} line */
  note(line) {
    this.trace.push(line)
  }

  // --- The initiator

  /** @param {readonly Command[]} commands */
  send(...commands) {
    for (const command of commands) this.#sent.set(command.tag, this.machine.send(command))
  }

  /**
   * Waits for the ends of commands.
   *
   * @param {readonly number[]} tags
   */
  async end(...tags) {
    for (const tag of tags) this.note(`command ${tag} ${ending(await this.#result(tag))}`)
  }

  /** The same for many alike: one line for all. @param {readonly number[]} tags */
  async endAlike(tags) {
    /** @type {Map<string, number>} */
    const counts = new Map()
    for (const tag of tags) {
      const text = ending(await this.#result(tag))
      counts.set(text, (counts.get(text) ?? 0) + 1)
    }
    for (const [text, count] of counts) this.note(`${count} commands ${text}`)
  }

  /** @param {number} tag */
  async #result(tag) {
    const result = this.#sent.get(tag)
    if (result === undefined) throw new Error(`command ${tag} was not sent`)
    return await this.#within(result, `command ${tag} did not end`)
  }

  /** @param {Command} command */
  sendAndAbort(command) {
    return this.#within(this.machine.sendAndAbort(command), 'ABORT TASK got no answer')
  }

  lunReset() {
    return this.#within(this.machine.lunReset(), 'LUN RESET got no answer')
  }

  /**
   * @template Value
   * @param {Promise<Value>} promise
   * @param {string} complaint
   * @returns {Promise<Value>} rejects when the limit is over
   */
  #within(promise, complaint) {
    const ended = new AbortController()
    const tooLate = sleep(this.machine.limitMs, undefined, { signal: ended.signal }).then(() => {
      throw new Error(complaint)
    })
    const first = Promise.race([promise, tooLate]).finally(() => ended.abort())
    // A script that failed before awaits neither.
    for (const each of [tooLate, first]) each.catch(() => {})
    return first
  }

  // --- The server

  /**
   * Takes so many entries and writes them down.
   *
   * @param {number} count
   */
  async take(count) {
    const entries = await this.takeSilently(count)
    for (const entry of entries) this.note(textOf(entry))
    const [first] = entries
    if (first === undefined) throw new Error('nothing to take')
    return { first, entries, ids: entries.map(({ id }) => id) }
  }

  /** The same for many: one line for all. @param {number} count */
  async takeMany(count) {
    const entries = await this.takeSilently(count)
    this.noteMany(entries)
    return { entries, ids: entries.map(({ id }) => id) }
  }

  /** @param {readonly Entry[]} entries */
  noteMany(entries) {
    const [first, last] = [entries[0], entries.at(-1)]
    if (first === undefined || last === undefined) return
    const digest = digestOf([Buffer.from(entries.map(textOf).join('\n'))])
    this.note(`${entries.length} entries ${digest}: ${textOf(first)}; to: ${textOf(last)}`)
  }

  /** Takes what there is, and writes it down. */
  async takeAll() {
    await this.machine.settle()
    for (let entry = this.server.take(); entry !== undefined; entry = this.server.take()) {
      this.note(textOf(entry))
    }
    this.#noteEnds()
  }

  #noteEnds() {
    const { head, publishedTail, cursor } = this.server
    this.note(`head ${head}, tail ${publishedTail}, ${head === cursor ? 'all' : 'not all'} taken`)
  }

  /** @param {number} count */
  async takeSilently(count) {
    /** @type {Entry[]} */
    const entries = []
    for (const start = performance.now(); entries.length < count; ) {
      const entry = this.server.take()
      if (entry !== undefined) entries.push(entry)
      else if (performance.now() - start > this.machine.limitMs) {
        throw new Error(`only ${entries.length} of ${count} entries came`)
      } else await sleep(1)
    }
    return entries
  }

  /** Writes down that there is no more to take, and where head and tail are. */
  async rest() {
    await this.machine.settle()
    this.#noteEnds()
  }

  /**
   * Fills the pieces of a read.
   *
   * @param {Entry} entry
   * @param {number} seed
   */
  fill(entry, seed) {
    for (const [index, piece] of this.server.data(entry).entries()) {
      piece.set(patternOf(seed + index, piece.length))
    }
  }

  /** Writes down the data of a write. @param {Entry} entry */
  look(entry) {
    this.note(`data of id ${entry.id}: ${digestOf(this.server.data(entry))}`)
  }

  /**
   * Answers commands and rings the doorbell once.
   *
   * @param {readonly number[]} ids
   * @param {Answer} [answer]
   */
  answer(ids, answer) {
    for (const id of ids) this.server.answer(id, answer)
    // Behind the last answer nothing but notices may be passed.
    this.server.passNotices()
    this.server.publish()
  }

  /** Closes the device, opens it again, and goes on where it was. */
  reopen() {
    this.note(`opened twice: ${this.machine.openTwice()}`)
    this.server.use(this.machine.reopen())
  }

  // --- The administrator

  /**
   * Writes to a file of the device.
   *
   * @param {string} file
   * @param {string | number | undefined} value
   */
  configure(file, value) {
    this.note(`${file} ${value}: ${this.machine.configure(file, `${value}`)}`)
  }

  /** @param {string | number} level */
  reset(level) {
    this.configure('action/reset_ring', level)
    this.server.restart()
  }

  /** Writes down what the kernel said. */
  async tellLog() {
    await this.machine.settle()
    for (const line of this.machine.log) this.note(`log: ${line}`)
  }
}

/** @type {(result: Result) => string} */
function ending({ statuses, sense, dataIn, residualBytes }) {
  if (statuses.length === 0) return 'ended without a status'
  const words = statuses.map((status) => status.toString(16).padStart(2, '0')).join(', then ')
  const parts = [`ended with status ${words}`]
  if (statuses.at(-1) === 2) parts.push(`sense ${sense.toString('hex')}`)
  if (dataIn.length > 0) parts.push(`${dataIn.length} bytes ${digestOf([dataIn])}`)
  if (residualBytes > 0) parts.push(`residual ${residualBytes}`)
  return parts.join(', ')
}

/**
 * Plays a script from an empty ring on. Its trace is what it left, also when it fails.
 *
 * @param {(script: Script) => Promise<void>} play
 * @param {Machine} machine
 * @returns {Promise<string[]>}
 */
export async function traceOf(play, machine) {
  const script = new Script(machine)
  try {
    await play(script)
  } catch (error) {
    script.note(`failed: ${error instanceof Error ? error.message : error}`)
  }
  return script.trace
}
