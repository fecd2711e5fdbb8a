// A disk of 64 MiB in memory. A read of the last block stalls once after each write of it: for 15 seconds, or until it is
// aborted. With the argument `deaf` the handler does not listen to the signal.
//
//   node stalling.mjs INDEX [deaf]     INDEX is the path of the library's index.js
const [index, mode] = process.argv.slice(2)
const { blockDevice, MiB, tcmu } = await import(index)

const STALL_MILLIS = 15_000
const capacityBytes = 64 * MiB
const memory = Buffer.alloc(capacityBytes)
let armed = false

const endsAtLastBlock = (io) => io.offsetBytes + io.lengthBytes === capacityBytes
const fill = (io) => {
  io.data.copyFrom(memory, io.offsetBytes)
}

const device = blockDevice({
  capacityBytes,
  read(io) {
    if (!armed || !endsAtLastBlock(io)) return fill(io)
    armed = false
    return stall(io)
  },
  write(io) {
    if (endsAtLastBlock(io)) armed = true
    io.data.copyTo(memory, io.offsetBytes)
  },
  flush() {},
})

async function stall(io) {
  const start = performance.now()
  const elapsedMillis = () => Math.round(performance.now() - start)
  console.log('stalled')
  await new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, STALL_MILLIS)
    if (mode === 'deaf') return
    io.signal.addEventListener('abort', () => {
      clearTimeout(timer)
      console.log(`aborted after ${elapsedMillis()} ms`)
      reject(io.signal.reason)
    })
  })
  console.log(`answered after ${elapsedMillis()} ms`)
  fill(io)
}

const lun = await tcmu.create({ name: 'stalling', device })
lun.aborts.subscribe(({ type, commands }) => {
  console.log(`aborts ${type} ${typeof commands === 'number' ? commands : commands.length}`)
})
process.once('SIGTERM', () => void lun.close().then(() => device.close()))
console.log(`ready ${lun.blockDevicePath}`)
