// What a handler learns when an initiator gives up: a disk whose store takes ten seconds stops at `io.signal`, and the
// initiator, which waits for the commands that it reset, goes on at once.
import { setTimeout as sleep } from 'node:timers/promises'
import { blockDevice, MiB, tcmu } from 'hushring'
import { TcmuKernel } from 'hushring/testing'

const disk = blockDevice({
  capacityBytes: MiB,
  read: async (io) => {
    await sleep(10_000, undefined, { signal: io.signal })
    io.data.fill(0)
  },
})

const kernel = new TcmuKernel()
const lun = tcmu.serve({ port: kernel.openPort(), device: disk, control: kernel.control })
lun.aborts.subscribe(({ type, commands }) => console.log(`${type}: ${commands.length} commands are given up`))

const cdb = Uint8Array.of(0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0) // READ (10) of the first 8 blocks
const reads = [1, 2, 3].map((tag) => kernel.submit({ cdb, dataInBytes: 8 * 512, tag }))
await sleep(100) // the disk is at work on them

const start = performance.now()
await kernel.abortTask(2)
await kernel.lunReset()
console.log(`the initiator waited ${Math.round(performance.now() - start)} ms and not ten seconds`)
for (const { tag, status } of await Promise.all(reads))
  console.log(`read ${tag}: status ${status.toString(16)}h`)
await lun.close()
kernel.close()
