// A TCMU backstore: the disk is served to a simulated kernel, so this needs neither root nor the kernel's module. With
// them, `tcmu.create({ name: 'disk0', device: disk })` makes the same disk /dev/sdX of this machine.
import { blockDevice, MiB, tcmu } from 'hushring'
import { TcmuKernel } from 'hushring/testing'

const bytes = Buffer.alloc(16 * MiB)
const disk = blockDevice({
  capacityBytes: bytes.length,
  read: (io) => void io.data.copyFrom(bytes, io.offsetBytes),
  write: (io) => void io.data.copyTo(bytes, io.offsetBytes),
  flush: () => {},
})

const kernel = new TcmuKernel()
const backstore = tcmu.serve({ port: kernel.openPort(), device: disk, control: kernel.control })

const load = await kernel.runLoad({ capacityBytes: bytes.length, durationMs: 500, writePercent: 50 })
console.log(`${load.requests} commands, ${load.verifiedBytes} bytes verified, ${load.mismatchedBytes} wrong`)
const { commands, doorbells, uioReads } = backstore.statsSnapshot()
console.log(`${commands} commands in all took ${doorbells} doorbells and ${uioReads} reads of the event`)
await backstore.close()
kernel.close()
