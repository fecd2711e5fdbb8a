// @ts-check
// A server of a TCMU device that reads and writes mailbox and entries itself, so that what lies in memory is seen as it
// is. It takes what comes and answers what it is told to, in any order, also wrongly.

const HEADER_BYTES = 8
const COMMAND_BYTES_MIN = 112
const OPCODE_MASK = 7

/** What an entry is, by the low three bits of its first word. */
export const Opcode = /** @type {const} */ ({ pad: 0, command: 1, tmr: 2 })
/** Flags of a completion. */
export const UserFlag = /** @type {const} */ ({ unknownOp: 1, readLength: 2, keepBuffer: 4 })

/**
 * The server's end of a device: {@link NativeTcmuPort} of the library.
 *
 * @typedef {object} Port
 * @property {readonly ArrayBuffer[]} windows the mapping; the first one is used
 * @property {() => number} ringDoorbell 0, or an errno
 */

/** @typedef {{ offsetBytes: number, lengthBytes: number }} Piece from the start of the data area on */

/**
 * An entry as it lay in the ring when it was taken.
 *
 * @typedef {object} Entry
 * @property {number} opcode {@link Opcode}
 * @property {number} offset in the ring
 * @property {number} bytes
 * @property {number} id
 * @property {number} kernelFlags
 * @property {number} userFlags
 * @property {readonly Piece[]} pieces of a command
 * @property {number} bidirectionalCount the last ones of `pieces`
 * @property {string} cdb of a command, in hexadecimal, up to the end of the entry
 * @property {number} tmrType of a task management function
 * @property {readonly number[]} commandIds named by a task management function
 */

/**
 * An answer to a command. Default: GOOD, without anything.
 *
 * @typedef {object} Answer
 * @property {number} [status]
 * @property {Uint8Array} [sense] up to 96 bytes
 * @property {number} [readLength] goes into the entry; valid only with the flag
 * @property {number} [userFlags] {@link UserFlag} bits
 */

/** @type {(port: Port) => ArrayBuffer} */
function mapOf(port) {
  const [map] = port.windows
  if (map === undefined) throw new Error('the port has no memory')
  return map
}

export class RingServer {
  /** Where the next entry is taken from, and the end of the answered ones: offsets in the ring. */
  cursor = 0
  tail = 0
  /** Entries from `tail` to `cursor`: the places for answers. */
  #slots = /** @type {Entry[]} */ ([])
  #port
  #bytes
  #view

  /** @param {Port} port */
  constructor(port) {
    this.#port = port
    this.#bytes = Buffer.from(mapOf(port))
    this.#view = new DataView(mapOf(port))
  }

  /** Goes on with the same device, opened anew. @param {Port} port */
  use(port) {
    this.#port = port
    this.#bytes = Buffer.from(mapOf(port))
    this.#view = new DataView(mapOf(port))
  }

  get version() {
    return this.#view.getUint16(0, true)
  }
  get flags() {
    return this.#view.getUint16(2, true)
  }
  get ringOffset() {
    return this.#view.getUint32(4, true)
  }
  get ringBytes() {
    return this.#view.getUint32(8, true)
  }
  get head() {
    return this.#view.getUint32(12, true)
  }
  get publishedTail() {
    return this.#view.getUint32(64, true)
  }
  get #dataOffset() {
    return this.ringOffset + this.ringBytes
  }

  /**
   * Whether an entry of so many bytes has room, after all that was published has been taken off. One byte stays free.
   *
   * @param {number} bytes
   */
  hasRoom(bytes) {
    const toEnd = this.ringBytes - this.head
    const freeBytes = (this.publishedTail - this.head - 1 + this.ringBytes) % this.ringBytes
    return freeBytes >= (toEnd >= bytes ? bytes : toEnd + bytes)
  }

  /**
   * Takes the next entry.
   *
   * @returns {Entry | undefined}
   */
  take() {
    if (this.cursor === this.head) return undefined
    const start = this.ringOffset + this.cursor
    const word = this.#view.getUint32(start, true)
    /** @type {Entry} */
    const entry = {
      opcode: word & OPCODE_MASK,
      offset: this.cursor,
      bytes: word - (word & OPCODE_MASK),
      id: this.#view.getUint16(start + 4, true),
      kernelFlags: this.#view.getUint8(start + 6),
      userFlags: this.#view.getUint8(start + 7),
      pieces: [],
      bidirectionalCount: 0,
      cdb: '',
      tmrType: 0,
      commandIds: [],
    }
    if (entry.bytes < HEADER_BYTES || this.cursor + entry.bytes > this.ringBytes) {
      throw new Error(`no entry at ${this.cursor}: ${word}`)
    }
    if (entry.opcode === Opcode.command) this.#readCommand(start, entry)
    if (entry.opcode === Opcode.tmr) this.#readTmr(start, entry)
    this.cursor = (this.cursor + entry.bytes) % this.ringBytes
    this.#slots.push(entry)
    return entry
  }

  /** @type {(start: number, entry: Entry) => void} */
  #readCommand(start, entry) {
    entry.bidirectionalCount = this.#view.getUint32(start + 12, true)
    const count = this.#view.getUint32(start + 8, true) + entry.bidirectionalCount
    entry.pieces = Array.from({ length: count }, (_, index) => ({
      offsetBytes: Number(this.#view.getBigUint64(start + 48 + 16 * index, true)) - this.#dataOffset,
      lengthBytes: Number(this.#view.getBigUint64(start + 56 + 16 * index, true)),
    }))
    const cdbOffset = Number(this.#view.getBigUint64(start + 24, true))
    entry.cdb = this.#bytes.subarray(cdbOffset, start + entry.bytes).toString('hex')
  }

  /** @type {(start: number, entry: Entry) => void} */
  #readTmr(start, entry) {
    entry.tmrType = this.#view.getUint8(start + 8)
    const count = this.#view.getUint32(start + 12, true)
    entry.commandIds = Array.from({ length: count }, (_, index) =>
      this.#view.getUint16(start + 32 + 2 * index, true),
    )
  }

  /**
   * The bytes of a command that is in flight, piece by piece.
   *
   * @param {Entry} entry
   */
  data(entry) {
    return entry.pieces.map(({ offsetBytes, lengthBytes }) =>
      this.#bytes.subarray(this.#dataOffset + offsetBytes, this.#dataOffset + offsetBytes + lengthBytes),
    )
  }

  /**
   * Writes an answer into the first entry that is free for one. The kernel sees it after {@link publish}.
   *
   * @param {number} id of the command that is answered, or a wrong one
   * @param {Answer} [answer]
   */
  answer(id, answer = {}) {
    this.passNotices()
    const slot = this.#slots.shift()
    if (slot === undefined) throw new Error('no entry is left for an answer')
    const start = this.ringOffset + slot.offset
    this.#bytes.fill(0, start + HEADER_BYTES, start + COMMAND_BYTES_MIN)
    this.#view.setUint16(start + 4, id, true)
    this.#view.setUint8(start + 7, answer.userFlags ?? 0)
    this.#view.setUint8(start + 8, answer.status ?? 0)
    this.#view.setUint32(start + 12, answer.readLength ?? 0, true)
    this.#bytes.set(answer.sense ?? [], start + 16)
    this.#advance(slot)
  }

  /** Moves the tail over entries that nobody answers, up to the next command. */
  passNotices() {
    for (;;) {
      const slot = this.#slots[0]
      if (slot === undefined || slot.opcode === Opcode.command) return
      this.#slots.shift()
      this.#advance(slot)
    }
  }

  /** @param {Entry} slot */
  #advance(slot) {
    this.tail = (slot.offset + slot.bytes) % this.ringBytes
  }

  /** Stores the tail and rings the doorbell. */
  publish() {
    this.storeTail()
    const errno = this.#port.ringDoorbell()
    if (errno !== 0) throw new Error(`the doorbell gives errno ${errno}`)
  }
  storeTail() {
    this.#view.setUint32(64, this.tail, true)
  }

  /** Begins anew after the ring was reset. */
  restart() {
    this.cursor = 0
    this.tail = 0
    this.#slots = []
  }
}
