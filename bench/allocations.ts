import { GiB, loopback, nullDisk } from '../src/index.ts'
import type { Section } from './section.ts'

/**
 * Bytes of JavaScript heap allocated a request on the synchronous path: a null disk over the loopback, no garbage
 * collection in between (the caller starts node with a young generation that is large enough).
 */
export async function benchAllocations(): Promise<Section<{ bytesPerRequest: number }>> {
  const disk = nullDisk({ capacityBytes: GiB })
  const connection = await loopback.connect({ device: disk })
  await connection.runLoad({ queueDepth: 32, requestCountMax: 200_000, durationMs: 0, verify: false })
  globalThis.gc?.()
  const before = process.memoryUsage().heapUsed
  const { requests } = await connection.runLoad({
    queueDepth: 32,
    requestCountMax: 1_000_000,
    durationMs: 0,
    verify: false,
  })
  const bytes = process.memoryUsage().heapUsed - before
  await connection.close()
  await disk.close()
  const bytesPerRequest = bytes / requests
  const markdown = `### Allocations on the synchronous path

${bytesPerRequest.toFixed(2)} bytes of JavaScript heap a request (null disk, QD 32, 1,000,000 requests without garbage
collection).`
  return { name: 'allocations', markdown, rows: [{ names: ['null disk'], samples: [{ bytesPerRequest }] }] }
}
