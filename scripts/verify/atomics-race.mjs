// The store-buffer race of two JavaScript threads on shared memory (F15): each stores its own word of a slot and loads
// the other's. With plain typed arrays both may load the old word; with Atomics that cannot be.
//
// As in native/os/litmus_paced.h the threads agree on a time for each round beforehand and share only the clock.
import { once } from 'node:events'
import { Worker, workerData } from 'node:worker_threads'

const SLOT_COUNT = 1024
/** Words that lie so far apart are never on one cache line, nor on its prefetched neighbour. */
const STRIDE_WORDS = 64
const PERIOD_MS = 0.0008
const JITTER_MS = 0.0003

/**
 * What one access is made of. Strings, because each thread compiles its own: a function that is called with both kinds
 * would be fast with neither.
 */
const ACCESSES = {
  plain: { store: 'words[index] = 1', load: 'words[index]' },
  atomic: { store: 'Atomics.store(words, index, 1)', load: 'Atomics.load(words, index)' },
}

/** @typedef {keyof typeof ACCESSES} Access */

/**
 * Runs the race on two threads until `roundCountMax` rounds are done, `lostCountMax` were lost or `durationMs` have passed.
 *
 * @param {{ access: Access, roundCountMax: number, lostCountMax: number, durationMs: number }} options
 * @returns {Promise<{ rounds: number, lost: number }>} `rounds`: those for which both threads were in time
 */
export async function atomicsRace(options) {
  const shared = {
    words: new SharedArrayBuffer(2 * SLOT_COUNT * STRIDE_WORDS * Uint16Array.BYTES_PER_ELEMENT),
    /** Of each thread and round: bit 0, it loaded the old word; bit 1, it was in time. */
    outcomes: new SharedArrayBuffer(2 * SLOT_COUNT),
    meetings: new SharedArrayBuffer(2 * STRIDE_WORDS * Int32Array.BYTES_PER_ELEMENT),
    /** The time of the next batch, in ms since `epoch`; 0: there is none. */
    start: new SharedArrayBuffer(Float64Array.BYTES_PER_ELEMENT),
  }
  const epoch = process.hrtime.bigint()
  const workers = [0, 1].map(
    (side) =>
      new Worker(new URL(import.meta.url), {
        workerData: { race: { side, epoch, ...options, ...shared } },
      }),
  )
  const [[result]] = await Promise.all([
    once(workers[0], 'message'),
    ...workers.map((worker) => once(worker, 'exit')),
  ])
  return result
}

if (workerData?.race !== undefined) {
  const { parentPort } = await import('node:worker_threads')
  const result = race(workerData.race)
  if (workerData.race.side === 0) parentPort.postMessage(result)
}

/** One thread's part; the first one decides when it ends. */
function race({ side, epoch, access, roundCountMax, lostCountMax, durationMs, ...shared }) {
  const words = new Uint16Array(shared.words)
  const outcomes = new Uint8Array(shared.outcomes)
  const meetings = new Int32Array(shared.meetings)
  const start = new Float64Array(shared.start)
  const { store, load } = ACCESSES[access]
  const storeWord = new Function('words', 'index', store)
  const loadWord = new Function('words', 'index', `return ${load}`)
  // Each thread has a clock of its own, which counts from another moment. The largest of many differences is the one
  // with the least time between its two readings.
  let offsetMs = -Infinity
  for (let reading = 0; reading < 20_000; reading++) {
    offsetMs = Math.max(offsetMs, Number(process.hrtime.bigint() - epoch) / 1e6 - performance.now())
  }
  const now = () => performance.now() + offsetMs
  let state = side === 0 ? 0x2545f491 : 0x9e3779b9
  const jitterMs = () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return ((state >>> 0) / 2 ** 32) * JITTER_MS
  }
  let meeting = 0
  const meet = () => {
    meeting++
    Atomics.store(meetings, side * STRIDE_WORDS, meeting)
    // Without Atomics.wait: JavaScript cannot pin a thread, and one that sleeps wakes up on the CPU of the other one.
    while (Atomics.load(meetings, (1 - side) * STRIDE_WORDS) < meeting);
  }
  const runBatch = () => {
    for (let round = 0; round < SLOT_COUNT; round++) {
      const due = start[0] + round * PERIOD_MS + jitterMs()
      let time = now()
      while (time < due) time = now()
      const slot = 2 * round * STRIDE_WORDS
      storeWord(words, slot + side * STRIDE_WORDS)
      const missed = loadWord(words, slot + (1 - side) * STRIDE_WORDS) === 0
      outcomes[side * SLOT_COUNT + round] = (missed ? 1 : 0) | (time - due < PERIOD_MS ? 2 : 0)
    }
  }

  const end = now() + durationMs
  let rounds = 0
  let lost = 0
  for (;;) {
    const isDone = rounds >= roundCountMax || lost >= lostCountMax || now() >= end
    if (side === 0) start[0] = isDone ? 0 : now() + 8 * PERIOD_MS
    meet()
    if (start[0] === 0) return { rounds, lost }
    runBatch()
    meet()
    if (side === 1) continue
    for (let round = 0; round < SLOT_COUNT; round++) {
      const [one, other] = [outcomes[round], outcomes[SLOT_COUNT + round]]
      const isLost = (one & other & 1) !== 0
      if (isLost) lost++
      if (isLost || (one & other & 2) !== 0) rounds++
    }
    words.fill(0)
  }
}
