// Behaviour in layers, and a layer of one's own: a slow and unreliable disk that looks fast and reliable.
import { compose, type Layer, loopback, MiB, mapAnswer, memoryDisk } from 'hushring'
import { cache, fault, rateLimit, retry } from 'hushring/handlers'

let slowest = 0
const slowestMicros: Layer = (next) => (io) => {
  const start = performance.now()
  return mapAnswer(next(io), (completion) => {
    slowest = Math.max(slowest, (performance.now() - start) * 1000)
    return completion
  })
}

const disk = memoryDisk({ capacityBytes: 8 * MiB })
const served = compose(disk, [
  slowestMicros,
  rateLimit({ iopsMax: 20_000 }),
  cache({ sizeBytes: 4 * MiB }),
  retry({ count: 5 }),
  fault({ errorPercent: 2, seed: 7 }),
])

const connection = await loopback.connect({ device: served })
const load = await connection.runLoad({ durationMs: 500, queueDepth: 16, writePercent: 30 })
console.log(`${load.requests} requests, ${load.failedRequests} failed, slowest ${Math.round(slowest)} µs`)
await connection.close()
await disk.close()
