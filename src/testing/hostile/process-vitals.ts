import { readdirSync, readFileSync } from 'node:fs'

/** What the kernel says about a process. */
export interface ProcessVitals {
  /** Open file descriptors. */
  readonly fdCount: number
  /** Memory that is there: resident set size. */
  readonly rssBytes: number
  /**
   * Time in ms that its threads have run or have waited for a processor. Waiting counts, because a thread that spins on
   * a busy machine seldom runs, but would always like to.
   */
  readonly runnableMs: number
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
    return {
      fdCount: readdirSync(`/proc/${pid}/fd`).length,
      rssBytes: 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0),
      runnableMs: readdirSync(`/proc/${pid}/task`).reduce((sum, thread) => sum + threadMs(pid, thread), 0),
    }
  } catch (error) {
    if (hasEnded(error)) return undefined
    throw error
  }
}

/** The first two numbers of schedstat are the ns that a thread ran and the ns that it waited to. */
function threadMs(pid: number, thread: string): number {
  try {
    const [ran = 0, waited = 0] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8')
      .split(' ')
      .map(Number)
    return (ran + waited) / 1e6
  } catch (error) {
    if (hasEnded(error)) return 0
    throw error
  }
}

function hasEnded(error: unknown): boolean {
  return ['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')
}
