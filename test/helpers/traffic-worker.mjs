// Runs in a worker thread: serves a disk under load until it is terminated.
import { parentPort } from 'node:worker_threads'

// The built package: a worker starts four times as fast without a compiler.
const { loopback, MiB, memoryDisk } = await import('../../dist/index.js')
const disk = memoryDisk({ capacityBytes: 4 * MiB })
const connection = await loopback.connect({ device: disk })
let told = false
await connection.runLoad({
  durationMs: 60_000,
  queueDepth: 16,
  writePercent: 50,
  onProgress({ requests }) {
    if (told || requests === 0) return
    told = true
    parentPort.postMessage('busy')
  },
})
