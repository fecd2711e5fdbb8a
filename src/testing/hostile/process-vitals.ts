import { readdirSync, readFileSync } from 'node:fs'

/** What the kernel says about a process. */
export interface ProcessVitals {
  /** Open file descriptors. */
  readonly fdCount: number
  /** Memory that is there: resident set size. */
  readonly rssBytes: number
  /** CPU time of all threads since the process began, in ms; the kernel counts in steps of 10 ms. */
  readonly cpuMs: number
}

/** The kernel tells times in hundredths of a second whatever it counts in (USER_HZ). */
const TICK_MS = 10

/**
 * Looks at a process of this machine, of this user or by root.
 *
 * @returns undefined when it has ended
 */
export function processVitals(pid: number): ProcessVitals | undefined {
  try {
    // The name in parentheses may hold anything; behind it comes field 3.
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ')
    const field = (number: number): number => Number(fields[number - 3])
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined
    return {
      fdCount: readdirSync(`/proc/${pid}/fd`).length,
      rssBytes:
        1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0),
      cpuMs: (field(14) + field(15)) * TICK_MS,
    }
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
}
