import { fileURLToPath } from 'node:url'
import { GiB } from '../src/index.ts'
import { serveWithHushring, serveWithStorageDaemon } from '../test/helpers/back-ends.ts'
import { type BlkioWorkload, blkioBench } from '../test/helpers/blkio.ts'
import { blkioTools, storageDaemon } from '../test/helpers/tools.ts'
import { NULL_BLOCKDEV } from './disks.ts'
import { Scope } from './scope.ts'
import { type BenchOptions, notRun, type Section } from './section.ts'
import { interleave, iopsCell, markdownTable, spreadOf } from './statistics.ts'

const options = { store: { nullBytes: GiB }, limitSeconds: 3600 }
const nullDevice = fileURLToPath(new URL('null-device.mjs', import.meta.url))

interface Case {
  readonly name: string
  readonly socketPath: string
  readonly ioDepth: number
}

/**
 * Measures 4 KiB reads on a null disk by libblkio's blkio-bench, against hushring with each policy and against
 * qemu-storage-daemon, in alternation.
 */
export async function benchBlkio({ rounds }: BenchOptions): Promise<Section<{ iops: number }>> {
  const heading = '### blkio-bench, null disk, 4 KiB reads'
  const missing = [blkioTools.bench, storageDaemon].filter(({ path }) => path === undefined)
  if (missing.length > 0) {
    return notRun('blkio', heading, `${missing.map(({ name }) => name).join(', ')} is missing`)
  }
  const scope = new Scope()
  try {
    const peer = await serveWithStorageDaemon(scope, options, NULL_BLOCKDEV)
    const policies = ['immediate', 'coalesce:32,50', 'adaptive']
    const ours = await Promise.all(
      policies.map(async (policy) => ({
        name: `hushring, ${policy}`,
        socketPath: (
          await serveWithHushring(scope, options, ['--device', nullDevice, '--suppression', policy])
        ).socketPath,
      })),
    )
    const servers = [{ name: 'qemu-storage-daemon', socketPath: peer.socketPath }, ...ours]
    const cases: Case[] = [1, 8, 32, 128].flatMap((ioDepth) =>
      servers.map((server) => ({ ...server, ioDepth })),
    )
    const samples = await interleave(cases, rounds, async ({ socketPath, ioDepth }) => {
      const workload: BlkioWorkload = { socketPath, ioDepth, readWrite: 'randread', runtimeSeconds: 1 }
      return (await blkioBench(workload)).iops
    })
    const rows = cases.map(({ name, ioDepth }, index) => ({
      names: [name, `QD${ioDepth}`],
      samples: samples[index]!.map((iops) => ({ iops })),
    }))
    return { name: 'blkio', markdown: `${heading}\n\n${tableOf(cases, samples)}`, rows }
  } finally {
    await scope.end()
  }
}

function tableOf(cases: readonly Case[], samples: readonly (readonly number[])[]): string {
  const medians = samples.map((iops) => spreadOf(iops).median)
  const rows = cases.map(({ name, ioDepth }, index) => {
    // The peer is the first case of its depth.
    const peer = medians[cases.findIndex((one) => one.ioDepth === ioDepth)]!
    return [name, String(ioDepth), iopsCell(samples[index]!), (medians[index]! / peer).toFixed(2)]
  })
  return markdownTable(['back-end', 'QD', 'IOPS (min to max)', '× qemu-storage-daemon'], rows)
}
