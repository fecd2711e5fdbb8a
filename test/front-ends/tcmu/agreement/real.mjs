// @ts-check
// Plays the scripts on the real driver, as root, in a machine that may be thrown away:
//
//   node real.mjs DIST [WORDS…]      DIST is the folder of the built library
//
// WORDS choose the scripts whose names have them, with hyphens for blanks; default: all. For each it prints a line
// `trace JSON`. A device is made for each, through configfs. Its initiator is tcm_loop, reached through the SCSI generic
// driver by its oldest interface: header, CDB and data go and come in one piece and without a pointer, so writes and
// reads of a file suffice. What the target core says of each command is taken from its tracepoint, as the initiator's
// kernel sends again by itself what ended with BUSY.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  constants,
  openSync,
  promises,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { RingServer } from './ring-server.mjs'
import { traceOf } from './script.mjs'
import { scripts } from './scripts.mjs'

/** @import { Command, Machine, MachineOptions, Result } from './script.mjs' */
/** @import { NativeTcmuPort } from '../../../../src/native.ts' */

const CORE = '/sys/kernel/config/target/core/user_0'
const DEVICE = `${CORE}/agreement`
const TARGET = '/sys/kernel/config/target/loopback/naa.5001405000000000'
const PORT_GROUP = `${TARGET}/tpgt_1`
const TRACING = '/sys/kernel/tracing'
/** What the driver logs of rings and kept buffers. */
const TOLD = /ring (is )?broken|free_kept_buf/
/** How long a command may be on its way to the ring or back, on a slow machine. */
const SETTLE_MS = 50

// struct sg_header and struct sg_io_hdr of <scsi/sg.h>
const SG_HEADER_BYTES = 36
const SG_REQUEST_BYTES = 88
const SG_COMMANDS_PER_FILE = 16

const STATUSES = new Map([
  ['GOOD', 0x00],
  ['CHECK CONDITION', 0x02],
  ['CONDITION MET', 0x04],
  ['BUSY', 0x08],
  ['RESERVATION CONFLICT', 0x18],
  ['TASK SET FULL', 0x28],
])

const [dist, ...names] = process.argv.slice(2)
const { native } = await import(`${dist}/native.js`)

/**
 * Reads what there is now of a file that would wait for more.
 *
 * @param {number} fd
 * @param {Buffer} buffer
 */
function readNow(fd, buffer) {
  try {
    return readSync(fd, buffer)
  } catch (error) {
    if (codeOf(error) === 'EAGAIN') return 0
    throw error
  }
}

/** @type {(uio: string) => NativeTcmuPort} */
const openPort = (uio) => native.openUioPort(uio, '/sys')

/** @type {(error: unknown) => string} */
const codeOf = (error) => /** @type {NodeJS.ErrnoException} */ (error).code ?? 'error'

/** An open file of the SCSI generic driver. */
class GenericFile {
  inFlight = 0

  /** @param {string} path */
  constructor(path) {
    this.fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
    // More than one command at a time is for those who have tried the newer interface, which refuses a request of zeros.
    const request = Buffer.alloc(SG_REQUEST_BYTES)
    request.writeInt32LE(-1, 4)
    try {
      writeSync(this.fd, request)
    } catch {}
  }

  /** @param {Command} command */
  send({ tag, cdb, dataOut = Buffer.alloc(0), dataInBytes = 0 }) {
    const header = Buffer.alloc(SG_HEADER_BYTES)
    header.writeInt32LE(SG_HEADER_BYTES + dataInBytes, 4)
    header.writeInt32LE(tag, 8)
    writeSync(this.fd, Buffer.concat([header, cdb, dataOut]))
    this.inFlight++
  }

  /**
   * Takes one command that has ended.
   *
   * @param {Buffer} buffer
   */
  receive(buffer) {
    const bytes = readNow(this.fd, buffer)
    if (bytes === 0) return undefined
    this.inFlight--
    return { tag: buffer.readInt32LE(8), dataIn: Buffer.from(buffer.subarray(SG_HEADER_BYTES, bytes)) }
  }
}

/**
 * What the target core said at the end of each command, by its CDB.
 *
 * @typedef {object} Ending
 * @property {number[]} statuses
 * @property {Buffer} sense
 * @property {number} lengthBytes
 */
class TargetTrace {
  /** @type {Map<string, Ending>} */
  endings = new Map()
  #fd = openSync(`${TRACING}/trace_pipe`, constants.O_RDONLY | constants.O_NONBLOCK)
  #buffer = Buffer.alloc(1 << 16)
  #rest = ''

  // The tracepoint is switched on once, and the scheduler's, which would tell the names of tasks, never: a switch changes
  // code that the other CPU may be executing, and QEMU 7.2 then runs the old code for ever, now and then.
  constructor() {
    writeFileSync(`${TRACING}/options/record-cmd`, '0')
    writeFileSync(`${TRACING}/events/target/target_cmd_complete/enable`, '1')
  }

  read() {
    for (;;) {
      const bytes = readNow(this.#fd, this.#buffer)
      if (bytes === 0) return
      const lines = (this.#rest + this.#buffer.toString('latin1', 0, bytes)).split('\n')
      this.#rest = lines.pop() ?? ''
      for (const line of lines) this.#add(line)
    }
  }

  /** @param {string} line */
  #add(line) {
    const words =
      / status (.*?) \(sense len \d+(?: \/ ([^)]*))?\) .* data_length +(\d+) +CDB ([0-9a-f ]+?) +\(/.exec(
        line,
      )
    if (words === null) return
    const [, statusName = '', sense = '', length, cdb = ''] = words
    const key = cdb.replaceAll(' ', '')
    const ending = this.endings.get(key) ?? { statuses: [], sense: Buffer.alloc(0), lengthBytes: 0 }
    const status = STATUSES.get(statusName) ?? -1
    if (ending.statuses.at(-1) !== status) ending.statuses.push(status)
    ending.sense = Buffer.from(sense.replaceAll(' ', ''), 'hex')
    ending.lengthBytes = Number(length)
    this.endings.set(key, ending)
  }

  /** Forgets what was said before. */
  clear() {
    this.read()
    this.endings.clear()
  }
}

const targetTrace = new TargetTrace()

/** @implements {Machine} */
class RealMachine {
  // More than the kernel waits before it aborts a command, on a machine that is slow and busy.
  limitMs = 20_000
  /** @type {Map<number, { command: Command, resolve: (result: Result) => void }>} */
  #waiting = new Map()
  /** @type {GenericFile[]} */
  #files = []
  #buffer = Buffer.alloc(2 << 20)
  #kernelLog = openSync('/dev/kmsg', constants.O_RDONLY | constants.O_NONBLOCK)
  #polls = false
  #closed = false
  /** @type {string[]} */
  #log = []

  /**
   * @param {string} uio path of the device
   * @param {NativeTcmuPort} port of it
   * @param {string} disk path of the SCSI generic device
   */
  constructor(uio, port, disk) {
    this.uio = uio
    this.port = port
    this.disk = disk
  }

  /** @param {MachineOptions} options */
  static async make(options) {
    await promises.mkdir(DEVICE, { recursive: true })
    const control = [
      'dev_config=agreement/',
      `dev_size=${1 << 30}`,
      'cmd_ring_size_mb=1',
      `max_data_area_mb=${options.dataAreaMegabytes}`,
      `data_pages_per_blk=${options.pagesPerBlock}`,
      // Nobody answers over netlink.
      'nl_reply_supported=-1',
    ]
    writeFileSync(`${DEVICE}/control`, control.join(','))
    writeFileSync(`${DEVICE}/attrib/cmd_time_out`, `${options.commandTimeoutSeconds}`)
    writeFileSync(`${DEVICE}/attrib/qfull_time_out`, `${options.queueFullTimeoutSeconds}`)
    writeFileSync(`${DEVICE}/attrib/tmr_notification`, options.taskManagement ? '1' : '0')
    writeFileSync(`${DEVICE}/enable`, '1')
    const uioName = readdirSync('/sys/class/uio').find((name) =>
      readFileSync(`/sys/class/uio/${name}/name`, 'utf8').startsWith('tcm-user/0/agreement/'),
    )
    const uio = `/dev/${uioName}`
    const port = openPort(uio)
    const stopScan = answerScan(new RingServer(port))
    await promises.mkdir(`${PORT_GROUP}/lun/lun_0`, { recursive: true })
    writeFileSync(`${PORT_GROUP}/nexus`, 'naa.5001405000000010')
    // The scan asks the server, so this thread must not wait for it.
    await promises.symlink(DEVICE, `${PORT_GROUP}/lun/lun_0/device`)
    const address = readFileSync(`${PORT_GROUP}/address`, 'utf8').trim()
    const [name] = readdirSync(`/sys/bus/scsi/devices/${address}:0/scsi_generic`)
    const machine = new RealMachine(uio, port, `/dev/${name}`)
    await machine.#clearUnitAttention()
    // No block has old data.
    await machine.send({ tag: 0, cdb: Buffer.from([0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]), dataInBytes: 4096 })
    stopScan()
    // Ids and blocks are free again, and the next entry is the first.
    machine.configure('action/reset_ring', '1')
    targetTrace.clear()
    machine.#readLog()
    machine.#log = []
    return machine
  }

  /** The target core tells the first command after a start or a reset of it, and does not pass it on. */
  async #clearUnitAttention() {
    const { statuses } = await this.send({ tag: 0, cdb: Buffer.alloc(6) })
    if (statuses.at(-1) !== 2) throw new Error('no unit attention')
    targetTrace.clear()
  }

  /** @type {Machine['send']} */
  send(command) {
    let file = this.#files.find(({ inFlight }) => inFlight < SG_COMMANDS_PER_FILE)
    if (file === undefined) {
      file = new GenericFile(this.disk)
      this.#files.push(file)
    }
    /** @type {Promise<Result>} */
    const ended = new Promise((resolve) => this.#waiting.set(command.tag, { command, resolve }))
    file.send(command)
    void this.#poll()
    return ended
  }

  async #poll() {
    if (this.#polls) return
    this.#polls = true
    while (this.#waiting.size > 0 && !this.#closed) {
      for (const file of this.#files) {
        while (file.inFlight > 0) {
          const received = file.receive(this.#buffer)
          if (received === undefined) break
          this.#finish(received.tag, received.dataIn)
        }
      }
      await sleep(1)
    }
    this.#polls = false
  }

  /**
   * @param {number} tag
   * @param {Buffer} dataIn
   */
  #finish(tag, dataIn) {
    const waiting = this.#waiting.get(tag)
    if (waiting === undefined) return
    this.#waiting.delete(tag)
    targetTrace.read()
    const { cdb, dataInBytes = 0 } = waiting.command
    const key = Buffer.concat([cdb, Buffer.alloc(16 - cdb.length)]).toString('hex')
    const ending = targetTrace.endings.get(key)
    if (ending === undefined) {
      return waiting.resolve({
        statuses: [],
        sense: Buffer.alloc(0),
        dataIn: Buffer.alloc(0),
        residualBytes: 0,
      })
    }
    const { statuses, sense, lengthBytes } = ending
    const residualBytes = dataInBytes === 0 ? 0 : dataInBytes - lengthBytes
    // The initiator's buffer is there as a whole, and holds something else where nothing was written.
    const writtenBytes = statuses.at(-1) === 2 && residualBytes === 0 ? 0 : dataInBytes - residualBytes
    waiting.resolve({ statuses, sense, dataIn: dataIn.subarray(0, writtenBytes), residualBytes })
  }

  /** @type {Machine['sendAndAbort']} */
  async sendAndAbort({ cdb, dataInBytes = 0 }) {
    const bytes = Array.from(cdb, (byte) => byte.toString(16))
    const output = ['--outfile', '/dev/null']
    const child = spawn('sg_raw', ['--timeout=1', `--request=${dataInBytes}`, ...output, this.disk, ...bytes])
    await once(child, 'exit')
  }

  /** @type {Machine['lunReset']} */
  async lunReset() {
    const [status] = await once(spawn('sg_reset', ['--no-esc', '--device', this.disk]), 'exit')
    if (status !== 0) throw new Error(`sg_reset ends with ${status}`)
    await this.#clearUnitAttention()
  }

  /** @type {Machine['openTwice']} */
  openTwice() {
    try {
      openPort(this.uio).close()
      return 'ok'
    } catch (error) {
      return codeOf(error)
    }
  }

  /** @type {Machine['reopen']} */
  reopen() {
    this.port.close()
    this.port = openPort(this.uio)
    return this.port
  }

  /** @type {Machine['configure']} */
  configure(file, value) {
    try {
      writeFileSync(`${DEVICE}/${file}`, value)
      return 'ok'
    } catch (error) {
      return codeOf(error)
    }
  }

  /** @type {Machine['elapse']} */
  async elapse(ms) {
    // Timers of the kernel round up to whole seconds.
    await sleep(ms + 1000)
  }

  /** @type {Machine['settle']} */
  async settle() {
    await sleep(SETTLE_MS)
  }

  get log() {
    this.#readLog()
    return this.#log
  }

  #readLog() {
    for (;;) {
      const bytes = readNow(this.#kernelLog, this.#buffer)
      if (bytes === 0) return
      const text = this.#buffer.toString('utf8', 0, bytes)
      const line = text.slice(text.indexOf(';') + 1).split('\n')[0] ?? ''
      if (TOLD.test(line)) this.#log.push(line)
    }
  }

  /** Takes the device away, whatever a script left of it. */
  async close() {
    this.configure('action/block_dev', '0')
    for (let left = 100; this.#waiting.size > 0 && left > 0; left--) {
      this.configure('action/reset_ring', '2')
      await sleep(10)
    }
    this.#closed = true
    for (const { fd } of this.#files) closeSync(fd)
    closeSync(this.#kernelLog)
    await promises.unlink(`${PORT_GROUP}/lun/lun_0/device`)
    for (const path of [`${PORT_GROUP}/lun/lun_0`, PORT_GROUP, TARGET]) await promises.rmdir(path)
    this.port.close()
    for (const path of [DEVICE, CORE]) await promises.rmdir(path)
  }
}

/**
 * Answers the commands with which Linux looks at a new device: it is a processor device, which nobody wants to use.
 *
 * @param {RingServer} server
 * @returns {() => void} ends it
 */
function answerScan(server) {
  const inquiry = Buffer.from('\x03\0\x04\x02\x1f\0\0\x02hushringagreement       1   ', 'latin1')
  const unsupported = Buffer.alloc(96)
  unsupported.set([0x70, 0, 0x05, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0x00])
  const timer = setInterval(() => {
    for (let entry = server.take(); entry !== undefined; entry = server.take()) {
      const isInquiry = entry.cdb.startsWith('1200')
      for (const piece of server.data(entry)) {
        piece.fill(0)
        if (isInquiry) piece.set(inquiry.subarray(0, piece.length))
      }
      server.answer(entry.id, isInquiry ? {} : { status: 2, sense: unsupported })
      server.publish()
    }
  }, 1)
  return () => clearInterval(timer)
}

for (const [name, { options, play }] of Object.entries(scripts)) {
  if (names.length > 0 && !names.some((part) => name.replaceAll(' ', '-').includes(part))) continue
  const machine = await RealMachine.make(options)
  const trace = await traceOf(play, machine)
  await machine.close()
  console.log(`trace ${JSON.stringify({ name, trace })}`)
}
