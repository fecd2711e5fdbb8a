// kill -9, over and over: front-ends of the test kit, each with a driver on a native thread that keeps a queue full and
// verifies every byte, and for each a device process that is killed at random moments. The next process goes on.
//
//   node scripts/verify/kill-soak.mjs --kills 10000 --seed 7      a longer run; needs dist/ and the addon
//
// The last line is the outcome as JSON. A process starts while the one before it still serves, so that a kill costs no
// more than the reconnect: all of them share the listening socket, as under a service manager.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { DriverCounter, native } from '../../dist/native.js'
import { SharedMemory, VhostUserFrontEnd } from '../../dist/testing/index.js'
import { ProtocolFeature } from '../../dist/transport/vhost-user/messages.js'

const main = new URL('../../dist/cli/main.js', import.meta.url).pathname
const { values: flags } = parseArgs({
  options: {
    kills: { type: 'string', default: '500' },
    pairs: { type: 'string', default: '3' },
    seed: { type: 'string', default: String(Date.now() % 2 ** 32) },
    /** What the front-end does wrong, for the controls: `forget` in-flight files, or `move` a mark in one. */
    fault: { type: 'string', default: 'none' },
    /**
     * So long without an answer is a stall. No device serves while the next one starts after a kill that came early, and several
     * such kills may follow each other where a start takes two seconds.
     */
    'stall-ms': { type: 'string', default: '20000' },
  },
})

const CAPACITY_BYTES = 16 * 1024 * 1024
const QUEUE_SIZE = 64
const QUEUE_DEPTH = 16
const MEMORY_BYTES = 1024 * 1024
/** Longest life of a device after the next one is ready. */
const LIFE_MS_MAX = 40
/** Share of the kills that hit a device while the front-end still negotiates. */
const EARLY_KILL_SHARE = 0.1
const NEGOTIATION_MS = 4

/** Numbers from 0 to 1 (mulberry32). */
function randomFrom(seed) {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** One disk: its front-end, its driver, and the processes that serve it one after the other. */
class Pair {
  kills = 0
  earlyKills = 0
  recoveriesMs = []
  #memory = new SharedMemory({ sizeBytes: MEMORY_BYTES, guestAddress: 0n, userAddress: 0n })
  #kickFd = native.eventfdCreate()
  #callFd = native.eventfdCreate()
  #driver
  #done
  #isDone = false
  #inflight
  #frontEnd
  #spare

  constructor(folder, number, seed) {
    this.random = randomFrom(seed)
    this.socketPath = join(folder, `${number}.sock`)
    this.filePath = join(folder, `${number}.img`)
    this.listenFd = native.unixListen(this.socketPath, 0o600, 16)
    this.#driver = native.startDriverThread({
      memoryFd: this.#memory.fd,
      memoryBytes: MEMORY_BYTES,
      kickFd: this.#kickFd,
      callFd: this.#callFd,
      queueSize: QUEUE_SIZE,
      eventIdx: true,
      indirect: true,
      suppress: true,
      queueDepth: QUEUE_DEPTH,
      requestCountMax: 0,
      durationMs: 0,
      blockBytes: 4096,
      capacityBytes: CAPACITY_BYTES,
      segmentCount: 1,
      writePercent: 50,
      verify: true,
      sequential: false,
      seed,
      stallMs: Number(flags['stall-ms']),
    })
    this.#spare = this.#startDevice()
  }

  /** Serves, kills, goes on, until `isEnough` says so or the driver found something wrong; then lets the load end. */
  async run(isEnough) {
    this.#done = new Promise((resolve) =>
      this.#driver.run(() => {
        this.#isDone = true
        resolve()
      }),
    )
    let killedMs
    while (!isEnough() && !this.#isDone) killedMs = await this.#liveAndDie(killedMs)
    const last = await this.#nextDevice()
    await this.#resume()
    await this.#answered(killedMs)
    this.#driver.finish()
    await this.#done
    for (const device of [last, await this.#spare]) await end(device)
    this.#close()
  }

  counts() {
    const count = (index) => Number(this.#driver.counters[index])
    return {
      requests: count(DriverCounter.requests),
      lost: count(DriverCounter.failedRequests),
      lostSignals: count(DriverCounter.lostSignals),
      stalls: count(DriverCounter.stalls),
      // An answer to a request that was answered before, or that nobody made.
      double: count(DriverCounter.deviceFault) === 0 ? 0 : 1,
      mismatchedBytes: count(DriverCounter.mismatchedBytes),
      verifiedBytes: count(DriverCounter.verifiedBytes),
    }
  }

  /** One life of a device. @returns when it was killed */
  async #liveAndDie(killedMs) {
    const device = await this.#nextDevice()
    const isEarly = this.random() < EARLY_KILL_SHARE
    // The one that goes on is to be there in time, so that the recovery is measured and not the start of Node.
    if (isEarly) await this.#spare
    const resumed = this.#resume().then(
      () => true,
      () => false,
    )
    if (isEarly) {
      await sleep(this.random() * NEGOTIATION_MS)
      this.earlyKills++
    } else if (await resumed) {
      await this.#answered(killedMs)
      await this.#spare
      await sleep(this.random() * LIFE_MS_MAX)
    }
    const now = performance.now()
    await end(device)
    this.kills++
    await resumed
    return now
  }

  /** The device that is ready; another one starts. */
  async #nextDevice() {
    const device = await this.#spare
    this.#spare = this.#startDevice()
    return device
  }

  async #startDevice() {
    const serve = ['serve', 'vhost-user', '--file', this.filePath, '--size', String(CAPACITY_BYTES)]
    // Writes are answered later than reads that came after them: answers leave in another order than requests come.
    const slow = ['--layer', 'fault:delayMs=20,verbs=write', '--log-level', 'error']
    const child = spawn(
      'sh',
      ['-c', 'LISTEN_PID=$$ exec "$@"', 'sh', process.execPath, main, ...serve, ...slow],
      { stdio: ['ignore', 'pipe', 'inherit', this.listenFd], env: { ...process.env, LISTEN_FDS: '1' } },
    )
    const ended = once(child, 'close')
    const ready = once(createInterface({ input: child.stdout }), 'line')
    await Promise.race([
      ready,
      ended.then(() => {
        throw new Error('a device ended before it was ready')
      }),
    ])
    return { child, ended }
  }

  /** What QEMU does when its chardev has connected again. */
  async #resume() {
    this.#frontEnd?.close()
    const frontEnd = VhostUserFrontEnd.connect(this.socketPath)
    this.#frontEnd = frontEnd
    await frontEnd.handshake(
      flags.fault === 'forget' ? { protocolFeatures: ~ProtocolFeature.INFLIGHT_SHMFD } : {},
    )
    if (flags.fault !== 'forget') {
      this.#inflight ??= await frontEnd.getInflight({ queueCount: 1, queueSize: QUEUE_SIZE })
      if (flags.fault === 'move') this.#moveMark()
      await frontEnd.setInflight(this.#inflight)
    }
    await frontEnd.setMemory(this.#memory)
    const { descriptorAddress, availableAddress, usedAddress } = this.#driver
    const queue = {
      size: QUEUE_SIZE,
      addresses: { descriptor: descriptorAddress, available: availableAddress, used: usedAddress },
      kickFd: this.#kickFd,
      callFd: this.#callFd,
    }
    await frontEnd.startQueue(0, queue, this.#usedIndex())
  }

  #usedIndex() {
    return this.#memory.bytes.readUInt16LE(Number(this.#driver.usedAddress) + 2)
  }

  /** Moves a mark to a head that the driver never used, so that the next device answers what nobody asked. */
  #moveMark() {
    const { fd, mmapSizeBytes } = this.#inflight
    const region = native.mapRegion(fd, 0n, 0n, mmapSizeBytes, 0n)
    const bytes = Buffer.from(region.windows[0])
    // Behind the 16 bytes of the header an entry of 16 bytes for each head; the driver takes the first ones.
    const markAt = (head) => 16 + 16 * head
    const heads = Array.from({ length: QUEUE_SIZE }, (_, head) => head)
    const marked = heads.find((head) => bytes[markAt(head)] === 1)
    if (marked !== undefined) {
      bytes[markAt(marked)] = 0
      bytes[markAt(QUEUE_SIZE - 1)] = 1
    }
    region.close()
  }

  /** Waits for the first answer of a device; that ends the recovery after a kill. */
  async #answered(killedMs) {
    const before = this.#usedIndex()
    while (this.#usedIndex() === before && !this.#isDone) await sleep(1)
    if (killedMs !== undefined) this.recoveriesMs.push(performance.now() - killedMs)
  }

  #close() {
    this.#driver.close()
    this.#frontEnd.close()
    this.#memory.close()
    for (const fd of [this.#kickFd, this.#callFd, this.listenFd]) native.closeFd(fd)
    if (this.#inflight !== undefined) native.closeFd(this.#inflight.fd)
  }
}

async function end({ child, ended }) {
  child.kill('SIGKILL')
  await ended
}

const seed = Number(flags.seed)
console.log(`seed ${seed}`)
// A file in memory: the kills are the point, not the disk of this machine.
const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'hushring-kills-'))
process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
const startMs = performance.now()
const pairs = Array.from(
  { length: Number(flags.pairs) },
  (_, number) => new Pair(folder, number, seed + number),
)
const sum = (values) => values.reduce((total, value) => total + value, 0)
await Promise.all(
  pairs.map((pair) => pair.run(() => sum(pairs.map(({ kills }) => kills)) >= Number(flags.kills))),
)
const recoveriesMs = pairs.flatMap((pair) => pair.recoveriesMs).sort((one, other) => one - other)
const counts = pairs.map((pair) => pair.counts())
const total = (name) => sum(counts.map((count) => count[name]))
console.log(
  JSON.stringify({
    seed,
    kills: sum(pairs.map(({ kills }) => kills)),
    earlyKills: sum(pairs.map(({ earlyKills }) => earlyKills)),
    requests: total('requests'),
    lost: total('lost'),
    double: total('double'),
    lostSignals: total('lostSignals'),
    stalls: total('stalls'),
    mismatchedBytes: total('mismatchedBytes'),
    verifiedBytes: total('verifiedBytes'),
    medianRecoveryMs: Number((recoveriesMs[recoveriesMs.length >> 1] ?? 0).toFixed(1)),
    worstRecoveryMs: Number((recoveriesMs.at(-1) ?? 0).toFixed(1)),
    seconds: Number(((performance.now() - startMs) / 1000).toFixed(1)),
  }),
)
