import { readdirSync, readFileSync } from 'node:fs'

/** What the kernel says about a process. */
export interface ProcessVitals {
  /** Open file descriptors. */
  readonly fdCount: number
  /** Memory that is there: resident set size. */
  readonly rssBytes: number
  /** CPU time of its threads, in ms. */
  readonly cpuMs: number
  /**
   * Whether a thread runs or waits for a processor right now. On a busy machine a thread that spins may get no CPU time
   * for long, but is always waiting for some.
   */
  readonly isRunnable: boolean
}

/**
 * Looks at a process of this machine, of this user or by root.
 *
 * @returns undefined when it has ended
 */
export function processVitals(pid: number): ProcessVitals | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8')
    if (/^State:\s+[ZX]/m.test(status)) return undefined
    const threads = readdirSync(`/proc/${pid}/task`).map((thread) => threadVitals(pid, thread))
    return {
      fdCount: readdirSync(`/proc/${pid}/fd`).length,
      rssBytes: 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0),
      cpuMs: threads.reduce((sum, { cpuMs }) => sum + cpuMs, 0),
      isRunnable: threads.some(({ state }) => state === 'R'),
    }
  } catch (error) {
    if (hasEnded(error)) return undefined
    throw error
  }
}

function threadVitals(pid: number, thread: string): { state: string; cpuMs: number } {
  const folder = `/proc/${pid}/task/${thread}`
  try {
    // The name in parentheses may hold anything; behind it comes the state.
    const [, state = ''] = /^.*\) (\w)/s.exec(readFileSync(`${folder}/stat`, 'utf8')) ?? []
    // The first number is the ns that it ran.
    const cpuMs = Number.parseInt(readFileSync(`${folder}/schedstat`, 'utf8'), 10) / 1e6
    return { state, cpuMs }
  } catch (error) {
    if (hasEnded(error)) return { state: 'X', cpuMs: 0 }
    throw error
  }
}

function hasEnded(error: unknown): boolean {
  return ['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')
}
