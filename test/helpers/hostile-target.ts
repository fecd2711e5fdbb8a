import { setTimeout as sleep } from 'node:timers/promises'
import { type ProcessVitals, playHealthyFrontEnd, processVitals } from '../../src/testing/index.ts'
import { type RunningCommand, type Scope, start } from './processes.ts'

/** A back-end in a process of its own that hostile front-ends are let loose on. */
export interface HostileTarget {
  readonly socketPath: string
  readonly pid: number
  readonly command: RunningCommand
  /** What it was like before the first of them, warm. */
  readonly calm: ProcessVitals
  readonly logLines: RegExp
}

/** The most memory that may come to stay over all rows: what a young process still grows by itself, and no more. */
const RSS_GROWTH_BYTES_MAX = 96 * 1024 * 1024
/** How long a back-end is looked at with nothing to do, and how long it may run then: garbage is collected. */
const IDLE_WINDOW_MS = 100
const IDLE_CPU_MS_MAX = 25
const REST_MS_MAX = 5000

/** How long a whole table may take, in seconds. */
const LIMIT_SECONDS = 180

/**
 * Starts a back-end and lets a few well-behaved front-ends come and go.
 *
 * @param command its words
 * @param socketPath where it listens
 * @param isReady tells that by what it printed or made
 * @param logLines lines of stderr that are its own words, and neither a sanitizer's nor an exception nobody caught
 */
export async function startTarget(
  scope: Scope,
  command: readonly string[],
  socketPath: string,
  isReady: (command: RunningCommand) => boolean,
  logLines = /^(error|warn|info|debug): /,
): Promise<HostileTarget> {
  const running = start(command, LIMIT_SECONDS)
  scope.teardown(() => running.stop())
  await running.until(() => isReady(running))
  for (let count = 0; count < 5; count++) await playHealthyFrontEnd({ socketPath })
  await sleep(200)
  const pid = running.pid()
  const calm = pid === undefined ? undefined : processVitals(pid)
  if (pid === undefined || calm === undefined) throw new Error(`${command[0]} has ended`)
  return { socketPath, pid, command: running, calm, logLines }
}

/** What is wrong with a back-end after a row, and how much memory it has more than at first. */
export interface Examination {
  /** In sentences; empty when nothing is. */
  readonly findings: readonly string[]
  readonly rssGrowthBytes: number
}

/**
 * Looks at a back-end after a row: does it live, serve, hold nothing back, and rest?
 *
 * @param limitMs how long it may take to come to rest: another process's share of the machine must be no failure
 */
export async function examine(target: HostileTarget, limitMs = REST_MS_MAX): Promise<Examination> {
  const findings: string[] = []
  const { calm, command, logLines, pid, socketPath } = target
  await playHealthyFrontEnd({ socketPath, limitMs }).catch((error: Error) => findings.push(error.message))
  let vitals = processVitals(pid)
  const deadline = performance.now() + limitMs
  while (vitals !== undefined && vitals.fdCount !== calm.fdCount && performance.now() < deadline) {
    await sleep(10)
    vitals = processVitals(pid)
  }
  if (vitals === undefined) return { findings: [...findings, 'the process has ended'], rssGrowthBytes: 0 }
  if (vitals.fdCount !== calm.fdCount) {
    findings.push(`${vitals.fdCount} descriptors are open and not ${calm.fdCount}`)
  }
  const rssGrowthBytes = vitals.rssBytes - calm.rssBytes
  if (rssGrowthBytes > RSS_GROWTH_BYTES_MAX) findings.push(`${rssGrowthBytes} bytes of memory came to stay`)
  if (!(await comesToRest(pid, deadline))) findings.push('it uses the processor with nothing to do')
  const odd = command
    .stderr()
    .split('\n')
    .find((line) => line !== '' && !logLines.test(line))
  if (odd !== undefined) findings.push(`it printed: ${odd}`)
  return { findings, rssGrowthBytes }
}

/** True as soon as one window shows no work: a busy loop never does. */
async function comesToRest(pid: number, deadline: number): Promise<boolean> {
  do {
    const before = processVitals(pid)
    await sleep(IDLE_WINDOW_MS)
    const after = processVitals(pid)
    if (before === undefined || after === undefined) return false
    if (!after.isRunnable && after.cpuMs - before.cpuMs <= IDLE_CPU_MS_MAX) return true
  } while (performance.now() < deadline)
  return false
}
