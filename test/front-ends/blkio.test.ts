import { randomBytes } from 'node:crypto'
import { open, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { serveWithHushring } from '../helpers/back-ends.ts'
import { type BlkioWorkload, blkioBench, blkioCopyIn, blkioCopyOut, blkioInfo } from '../helpers/blkio.ts'
import { type Scope, temporaryDirectory } from '../helpers/processes.ts'
import { onEachBackEnd, testWith } from '../helpers/scenarios.ts'
import { blkioTools } from '../helpers/tools.ts'

const { info, copy, bench } = blkioTools

const DATA_BYTES = 16 * 1024 * 1024
/** Larger than the data, so that a write past its end would show. */
const DISK_BYTES = DATA_BYTES + 1024 * 1024

/** Makes a file as large as the disk that begins with `data` and goes on with zeros. */
async function imageOf(scope: Scope, data: Buffer = Buffer.alloc(0)): Promise<string> {
  const path = join(await temporaryDirectory(scope), 'image')
  await using file = await open(path, 'w')
  await file.writeFile(data)
  await file.truncate(DISK_BYTES)
  return path
}

onEachBackEnd([info], 'libblkio sees the geometry that was asked for', async (t, serve) => {
  const { socketPath } = await serve(t, { store: { imagePath: await imageOf(t) }, queueCount: 2 })
  const properties = await blkioInfo(socketPath, ['capacity', 'max-queues', 'request-alignment'])
  t.deepEqual(properties, [String(DISK_BYTES), '2', '512'])
})

onEachBackEnd([copy], 'what libblkio copies in is in the store and comes out again', async (t, serve) => {
  const imagePath = await imageOf(t)
  const copyPath = await imageOf(t)
  const data = randomBytes(DATA_BYTES)
  const dataPath = join(await temporaryDirectory(t), 'data')
  await writeFile(dataPath, data)
  const backEnd = await serve(t, { store: { imagePath } })

  await blkioCopyIn(dataPath, backEnd.socketPath)
  const expected = Buffer.concat([data, Buffer.alloc(DISK_BYTES - DATA_BYTES)])
  t.true((await readFile(imagePath)).equals(expected), 'the store differs from the data')

  // Half of the store changes in between: what comes out must be the store, and not a memory of what went in.
  randomBytes(DATA_BYTES / 2).copy(expected, DATA_BYTES / 2)
  await writeFile(imagePath, expected, { flag: 'r+' })
  await blkioCopyOut(backEnd.socketPath, copyPath)
  t.true((await readFile(copyPath)).equals(expected), 'what came out differs from the store')
  await backEnd.stop()
})

onEachBackEnd([copy], 'control: the comparison notices a disk that forgets', async (t, serve) => {
  const dataPath = await imageOf(t, randomBytes(DATA_BYTES))
  const copyPath = await imageOf(t)
  const { socketPath } = await serve(t, { store: { nullBytes: DISK_BYTES } })

  await blkioCopyIn(dataPath, socketPath)
  await blkioCopyOut(socketPath, copyPath)
  t.false((await readFile(copyPath)).equals(await readFile(dataPath)))
})

onEachBackEnd([copy], 'libblkio reads a read-only disk and refuses to write it', async (t, serve) => {
  const imagePath = await imageOf(t, randomBytes(DATA_BYTES))
  const copyPath = await imageOf(t)
  const backEnd = await serve(t, { store: { imagePath }, readOnly: true })

  await blkioCopyOut(backEnd.socketPath, copyPath)
  t.true((await readFile(copyPath)).equals(await readFile(imagePath)), 'what came out differs from the store')
  await t.throwsAsync(blkioCopyIn(copyPath, backEnd.socketPath), { message: /Device is read-only/ })
  await backEnd.stop()
})

const workloads: Record<string, Omit<BlkioWorkload, 'socketPath' | 'runtimeSeconds'>> = {
  'sequential reads, 32 in flight': { readWrite: 'read', ioDepth: 32 },
  'random writes, 32 in flight': { readWrite: 'randwrite', ioDepth: 32 },
  'random reads, one in flight': { readWrite: 'randread', ioDepth: 1 },
  'random reads on two queues': { readWrite: 'randread', ioDepth: 32, threadCount: 2 },
  'random reads without sleeping': { readWrite: 'randread', ioDepth: 32, poll: true },
}
for (const [name, workload] of Object.entries(workloads)) {
  onEachBackEnd([bench], `libblkio does ${name}`, async (t, serve) => {
    const imagePath = await imageOf(t)
    const backEnd = await serve(t, { store: { imagePath }, queueCount: workload.threadCount ?? 1 })
    const result = await blkioBench({ ...workload, socketPath: backEnd.socketPath, runtimeSeconds: 1 })
    t.true(result.iops > 0)
    t.log(`${Math.round(result.iops)} IOPS, mean latency ${result.latencyMicrosMean} µs`)
    await backEnd.stop()
  })
}

testWith([bench], 'hushring: libblkio does random writes on two queues that two workers serve', async (t) => {
  const store = { imagePath: await imageOf(t) }
  const backEnd = await serveWithHushring(t, { store, queueCount: 2 }, ['--workers', '2'])
  const workload = { readWrite: 'randwrite', ioDepth: 32, threadCount: 2, runtimeSeconds: 1 } as const
  const result = await blkioBench({ ...workload, socketPath: backEnd.socketPath })
  t.true(result.iops > 0)
  await backEnd.stop()
})
