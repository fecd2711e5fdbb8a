// A disk whose two queues are served by two worker threads. This file is both: the program, and the module that each
// worker makes its disk of.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isMainThread, threadId } from 'node:worker_threads'
import { type BlockDevice, compose, MiB, sharedMemoryDisk, vhostUser } from 'hushring'
import { trace } from 'hushring/handlers'
import { loadBlockDevice } from 'hushring/testing'

/** Called once in each worker; `buffer` is the same memory in all of them. */
export function disk({ buffer }: { buffer: SharedArrayBuffer }): BlockDevice {
  let count = 0
  const log = (): void => {
    if (++count === 1000) console.log(`thread ${threadId} has answered a thousand requests`)
  }
  return compose(sharedMemoryDisk({ buffer }), [trace({ log })])
}

if (isMainThread) {
  const folder = mkdtempSync(join(tmpdir(), 'hushring-'))
  const socketPath = join(folder, 'd.sock')
  const server = await vhostUser.listen({
    socketPath,
    device: { module: import.meta.url, name: 'disk', options: { buffer: new SharedArrayBuffer(64 * MiB) } },
    workers: 2, // and so two queues
  })
  server.on('degraded', (error) => console.error(error.code, error.message))
  const load = await loadBlockDevice({ socketPath, queueCount: 2, writePercent: 30, verify: true })
  console.log(`${Math.round(load.iops)} requests a second, ${load.mismatchedBytes} bytes wrong`)
  await server.close()
  rmSync(folder, { recursive: true })
}
