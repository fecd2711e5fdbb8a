// served-requests.mjs COUNT: serves COUNT reads of a null disk, 8 a batch and 64 a kick, through everything that JavaScript does for
// a request. The native half of the queue is a fake that hands the same batch out again and again, so that under callgrind
// (scripts/instructions.mjs) it is JavaScript that is counted.
import { execFileSync } from 'node:child_process'
import { Subject } from 'rxjs'
import { asVirtioDevice } from '../dist/handlers/as-virtio-device.js'
import { blockDevice, compose, GiB } from '../dist/index.js'
import { CompleteBits, CompletionRow, native, RequestRow } from '../dist/native.js'
import { adaptive, serveQueue } from '../dist/notify/index.js'
import { VirtQueue } from '../dist/ring/queue.js'
import { SegmentRow } from '../dist/segment-row.js'
import { BlockTally } from '../dist/transport/stats.js'

const BATCH_COUNT = 8
const KICK_COUNT = 64
const READ_BYTES = 4096
const WARM_UP_COUNT = 1_000_000

/** What a queue of native code looks like that finds reads of 4 KiB, until the 64 of a kick are answered. */
function fakeNativeQueue({ headerBytes, batchCountMax, sizeMax }) {
  const headerWords = headerBytes / Uint32Array.BYTES_PER_ELEMENT
  const requests = new Uint32Array(batchCountMax * RequestRow.words)
  const headers = new Uint32Array(batchCountMax * headerWords)
  const segments = new Uint32Array(batchCountMax * SegmentRow.words)
  for (let row = 0; row < BATCH_COUNT; row++) {
    requests.set([row, row, 0, 1, 0, READ_BYTES], row * RequestRow.words)
    headers.set([0, 0, row, 0], row * headerWords)
    segments.set([0, row * READ_BYTES, READ_BYTES], row * SegmentRow.words)
  }
  let answeredCount = 0
  return {
    requests,
    headers,
    segments,
    completions: new Uint32Array(sizeMax * CompletionRow.words),
    counters: new BigUint64Array(16),
    start: () => 0,
    settle: () => {},
    take: () => BATCH_COUNT,
    complete: (count) => {
      answeredCount += count
      return answeredCount % KICK_COUNT === 0 ? CompleteBits.armed : CompleteBits.more
    },
  }
}

native.createSplitQueue = fakeNativeQueue
const memory = {
  nativeRegions: [],
  windows: [Buffer.alloc(BATCH_COUNT * READ_BYTES)],
  pin: () => {},
  unpin: () => {},
}
const disk = blockDevice({ capacityBytes: GiB, read: () => {}, write: () => {}, flush: () => {} })
const device = asVirtioDevice(compose(disk, [new BlockTally().layer]))
const queue = new VirtQueue({ index: 0, sizeMax: 128, ...device.framing })
const nowhere = { descriptorAddress: 0n, availableAddress: 0n, usedAddress: 0n, callFd: -1 }
queue.start({ size: 128, memory, ...nowhere, availableBase: 0, eventIdx: true, indirect: true })

const kicks = new Subject()
let servedCount = 0
const options = {
  suppression: adaptive(),
  pollMicrosMax: 100,
  creditCountMax: 32768,
  budgetCountMax: 512,
  requestTimeoutMs: 0,
}
serveQueue(queue, kicks, device.connect(device.features), options).subscribe(({ count }) => {
  servedCount += count
})

function serve(count) {
  const wantedCount = servedCount + count
  while (servedCount < wantedCount) kicks.next()
}

const count = Number(process.argv[2])
serve(WARM_UP_COUNT)
execFileSync('callgrind_control', ['--instr=on', String(process.pid)])
serve(count)
execFileSync('callgrind_control', ['--instr=off', String(process.pid)])
