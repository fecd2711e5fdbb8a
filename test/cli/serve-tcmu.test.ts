import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { hushring } from '../helpers/back-ends.ts'
import { temporaryDirectory } from '../helpers/processes.ts'

/** Starts `hushring serve tcmu` with a device that takes its time to open, and sends a signal meanwhile. */
async function interruptedStart(t: ExecutionContext, signal: NodeJS.Signals) {
  const directory = await temporaryDirectory(t)
  const device = join(directory, 'device.mjs')
  await writeFile(
    device,
    `export default async () => {
       process.stderr.write('opening\\n')
       await new Promise((resolve) => setTimeout(resolve, 300))
       process.stderr.write('opened\\n')
       const disk = { kind: 'block', wrap: () => disk, close: async () => void process.stderr.write('closed\\n') }
       return disk
     }`,
  )
  // There is no such TCMU device, so this ends by itself.
  const [file, ...args] = [...hushring, 'serve', 'tcmu', '--uio', '/dev/uio-none', '--device', device]
  const child = spawn(file!, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  const end = once(child, 'close')
  while (!stderr.includes('opening') && child.exitCode === null) await sleep(10)
  child.kill(signal)
  const [status, endedBy] = await end
  return { status, endedBy, stderr }
}

for (const signal of ['SIGHUP', 'SIGTERM', 'SIGINT'] as const) {
  test(`${signal} while a TCMU server starts does not end it half-way`, async (t) => {
    const { status, endedBy, stderr } = await interruptedStart(t, signal)
    t.is(endedBy, null)
    t.is(status, 1)
    t.regex(stderr, /opened\nclosed\nerror: .*uio-none/s)
  })
}
