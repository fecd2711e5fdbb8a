// A backstore of one's own: a disk whose blocks live in a Map, served to a driver in this process.
import { blockDevice, loopback, MiB } from 'hushring'

const blocks = new Map<number, Buffer>()
const blockBytes = 4096

const disk = blockDevice({
  capacityBytes: 16 * MiB,
  blockBytes,
  read(io) {
    const data = Buffer.alloc(io.lengthBytes)
    for (let at = 0; at < io.lengthBytes; at += blockBytes) blocks.get(io.offsetBytes + at)?.copy(data, at)
    io.data.copyFrom(data)
  },
  write(io) {
    const data = Buffer.alloc(io.lengthBytes)
    io.data.copyTo(data)
    for (let at = 0; at < io.lengthBytes; at += blockBytes) {
      blocks.set(io.offsetBytes + at, data.subarray(at, at + blockBytes))
    }
  },
  flush() {},
})

const connection = await loopback.connect({ device: disk })
const load = await connection.runLoad({ durationMs: 500, writePercent: 50 })
console.log(`${load.requests} requests, ${load.verifiedBytes} bytes verified, ${load.mismatchedBytes} wrong`)
console.log(`${blocks.size} blocks hold data; ${load.signals} signals, ${load.signalsSuppressed} not needed`)
await connection.close()
