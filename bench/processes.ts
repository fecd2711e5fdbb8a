import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { GiB } from '../src/index.ts'
import { processVitals } from '../src/testing/index.ts'
import { hushring, serveWithHushring, serveWithStorageDaemon } from '../test/helpers/back-ends.ts'
import { storageDaemon } from '../test/helpers/tools.ts'
import { backEndPidOf } from './front-end.ts'
import { Scope } from './scope.ts'
import { interleave, markdownTable, spreadOf } from './statistics.ts'

const store = { nullBytes: GiB }
const run = promisify(execFile)

interface Server {
  readonly name: string
  serve(scope: Scope): Promise<{ readonly socketPath: string }>
}

/** What one life of a server came to. */
interface Life {
  /** From the start of the program until a front-end can connect. */
  readonly startMs: number
  /** Before and after a load of some seconds. */
  readonly freshMiB: number
  readonly usedMiB: number
}

/**
 * Measures what a server needs besides the requests: time to start, memory, and, for hushring, what a thousand devices in
 * one process cost while nobody uses them. Returns Markdown.
 */
export async function benchProcesses(roundCount: number): Promise<string> {
  const servers: Server[] = [
    { name: 'hushring', serve: (scope) => serveWithHushring(scope, { store }) },
    ...(storageDaemon.path === undefined
      ? []
      : [
          {
            name: 'qemu-storage-daemon',
            serve: (scope: Scope) => serveWithStorageDaemon(scope, { store }),
          },
        ]),
  ]
  const samples = await interleave(servers, roundCount, live)
  const cell = (of: readonly number[], digits = 0): string => {
    const { median, min, max } = spreadOf(of)
    return `${median.toFixed(digits)} (${min.toFixed(digits)} to ${max.toFixed(digits)})`
  }
  const rows = servers.map(({ name }, index) => [
    name,
    cell(samples[index]!.map(({ startMs }) => startMs)),
    cell(samples[index]!.map(({ freshMiB }) => freshMiB)),
    cell(samples[index]!.map(({ usedMiB }) => usedMiB)),
  ])
  return `### Processes

${markdownTable(['server of a null disk', 'ms to start', 'RSS MiB, fresh', 'RSS MiB, after a load at QD128'], rows)}

${await idleDevices()}`
}

async function live({ serve }: Server): Promise<Life> {
  const scope = new Scope()
  try {
    const before = performance.now()
    const { socketPath } = await serve(scope)
    const startMs = performance.now() - before
    const pid = backEndPidOf(socketPath)
    const freshMiB = rssMiBOf(pid)
    const [program, ...words] = [
      ...hushring,
      'bench',
      '--socket',
      socketPath,
      '--seconds',
      '3',
      '--depth',
      '128',
    ]
    await run(program!, words)
    return { startMs, freshMiB, usedMiB: rssMiBOf(pid) }
  } finally {
    await scope.end()
  }
}

function rssMiBOf(pid: number): number {
  return processVitals(pid)!.rssBytes / 2 ** 20
}

async function idleDevices(): Promise<string> {
  const program = fileURLToPath(new URL('idle-devices.mjs', import.meta.url))
  const { createMs, rssKiB, wakeUpsPerSecond } = JSON.parse((await run(process.execPath, [program])).stdout)
  return `A thousand disks in one process, nobody connected: ${createMs.toFixed(2)} ms to make each, ${rssKiB.toFixed(0)} KiB of RSS each,
${wakeUpsPerSecond.toFixed(1)} wake-ups a second in all.`
}
