import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import { serveWithHushring, serveWithStorageDaemon } from '../helpers/back-ends.ts'
import { bootGuest, type GuestReport } from '../helpers/guest.ts'
import { run, type Scope, temporaryDirectory } from '../helpers/processes.ts'
import { onEachBackEnd, testWith } from '../helpers/scenarios.ts'
import { guestTools, storageDaemon } from '../helpers/tools.ts'

const tools = Object.values(guestTools)

const DISK_BYTES = 128 * 1024 * 1024
/** What the guest writes into a file. */
const DATA_BYTES = 16 * 1024 * 1024
/** What the guest reads of the raw disk, from its start. */
const DIRECT_BYTES = 2048 * 4096

/** Feature bits (virtio 1.3, 6). */
const VIRTIO_F_EVENT_IDX = 29
const VIRTIO_F_VERSION_1 = 32

interface DiskVariant {
  readonly eventIdx: boolean
  /** As many queues as CPUs, so that Linux gives each CPU its own. */
  readonly cpuCount: number
}

const variants: Record<string, DiskVariant> = {
  'with EVENT_IDX': { eventIdx: true, cpuCount: 1 },
  'without EVENT_IDX': { eventIdx: false, cpuCount: 1 },
  'with EVENT_IDX and two queues': { eventIdx: true, cpuCount: 2 },
}

const md5 = (bytes: Uint8Array): string => createHash('md5').update(bytes).digest('hex')

/** Boots a guest that puts a disk to use. */
function useDisk(socketPath: string, { eventIdx, cpuCount }: DiskVariant): Promise<GuestReport> {
  const device = `vhost-user-blk-pci,chardev=disk,num-queues=${cpuCount},event_idx=${eventIdx ? 'on' : 'off'}`
  const devices = ['-chardev', `socket,id=disk,path=${socketPath}`, '-device', device]
  return bootGuest({ scenario: 'disk', cpuCount, devices })
}

/** Passes when every step of the scenario succeeded and the guest's kernel has nothing to complain about. */
function succeeded(t: ExecutionContext<unknown>, report: GuestReport): void {
  t.is(report.results.get('status'), '0', report.console)
  t.deepEqual(report.complaints, [], report.console)
}

for (const [name, variant] of Object.entries(variants)) {
  onEachBackEnd(
    tools,
    `a Linux guest formats, writes, remounts and checks a disk ${name}`,
    async (t, serve) => {
      const imagePath = join(await temporaryDirectory(t), 'image')
      await using image = await open(imagePath, 'w+')
      await image.truncate(DISK_BYTES)
      const backEnd = await serve(t, { store: { imagePath }, queueCount: variant.cpuCount })
      const report = await useDisk(backEnd.socketPath, variant)
      await backEnd.stop()
      succeeded(t, report)

      const { results } = report
      const features = results.get('features')!
      t.is(features[VIRTIO_F_VERSION_1], '1')
      t.is(features[VIRTIO_F_EVENT_IDX], variant.eventIdx ? '1' : '0')
      t.is(results.get('queues'), String(variant.cpuCount))

      // The store holds what the guest wrote, what it read after a remount, and what it read past its page cache.
      t.is(results.get('remounted'), results.get('written'))
      await run([guestTools.e2fsck.path!, '-fn', imagePath], 20)
      const data = await run([guestTools.debugfs.path!, '-R', 'cat /data', imagePath], 20)
      t.is(data.length, DATA_BYTES)
      t.is(md5(data), results.get('written')!)
      const { buffer: start } = await image.read(Buffer.alloc(DIRECT_BYTES), 0, DIRECT_BYTES, 0)
      for (let cpu = 0; cpu < variant.cpuCount; cpu++) t.is(results.get(`direct${cpu}`), md5(start))
    },
  )
}

testWith(
  [...tools, storageDaemon],
  'control: a guest notices a disk that forgets and fails one read',
  async (t) => {
    const { socketPath } = await serveWithStorageDaemon(
      t,
      { store: { nullBytes: DISK_BYTES } },
      `driver=blkdebug,image.driver=null-co,image.size=${DISK_BYTES},image.read-zeroes=on,` +
        'inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.once=on',
    )
    const report = await useDisk(socketPath, { eventIdx: true, cpuCount: 1 })
    t.not(report.results.get('status'), '0', report.console)
    t.regex(report.complaints.join('\n'), /I\/O error/, report.console)
  },
)

interface EntropyDevice {
  readonly qemuArguments: readonly string[]
  stop(): Promise<void>
}

/** QEMU's own device, which is no vhost-user device, shows that the scenario is right. */
const entropyDevices: Record<string, (scope: Scope) => Promise<EntropyDevice>> = {
  hushring: async (scope) => {
    const backEnd = await serveWithHushring(scope, { device: 'rng', store: { nullBytes: 1024 * 1024 } })
    const chardev = `socket,id=rng,path=${backEnd.socketPath}`
    return {
      qemuArguments: ['-chardev', chardev, '-device', 'vhost-user-rng-pci,chardev=rng'],
      stop: () => backEnd.stop(),
    }
  },
  QEMU: async () => ({ qemuArguments: ['-device', 'virtio-rng-pci'], stop: async () => {} }),
}
for (const [name, attach] of Object.entries(entropyDevices)) {
  testWith(tools, `${name}: a Linux guest reads entropy through /dev/hwrng`, async (t) => {
    const device = await attach(t)
    const report = await bootGuest({ scenario: 'entropy', devices: device.qemuArguments })
    await device.stop()
    succeeded(t, report)

    const { results } = report
    t.regex(results.get('source')!, /^virtio_rng/)
    for (const sample of ['first', 'second']) {
      t.is(results.get(`${sample}Bytes`), '16384')
      // 16 KiB of random bytes lack one of the 256 values with a probability below 1e-25.
      t.is(results.get(`${sample}Values`), '256')
    }
    t.not(results.get('firstSum'), results.get('secondSum'))
  })
}
