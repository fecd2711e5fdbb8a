// A thousand devices in one process, with nobody connected. Prints what each costs as JSON.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { GiB, nullDisk, vhostUser } from '../dist/index.js'

const DEVICE_COUNT = 1000
const IDLE_SECONDS = 5

const folder = mkdtempSync(join(tmpdir(), 'hushring-'))
const rssBefore = process.memoryUsage.rss()
const startMs = performance.now()
const servers = []
for (let index = 0; index < DEVICE_COUNT; index++) {
  const socketPath = join(folder, `${index}.sock`)
  servers.push(await vhostUser.listen({ socketPath, device: nullDisk({ capacityBytes: GiB }) }))
}
const createMs = performance.now() - startMs
const rssBytes = process.memoryUsage.rss() - rssBefore
const before = wakeUpCount()
await sleep(IDLE_SECONDS * 1000)
const wakeUps = wakeUpCount() - before
for (const server of servers) await server.close()
rmSync(folder, { recursive: true })
console.log(
  JSON.stringify({
    createMs: createMs / DEVICE_COUNT,
    rssKiB: rssBytes / 1024 / DEVICE_COUNT,
    // The timer of this measurement is one of them.
    wakeUpsPerSecond: Math.max(0, wakeUps - 1) / IDLE_SECONDS,
  }),
)

/** Times the event loop's thread slept so far. */
function wakeUpCount() {
  const status = readFileSync(`/proc/self/task/${process.pid}/status`, 'utf8')
  return Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)[1])
}
