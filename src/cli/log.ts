import type { Logger } from '../transport/logger.ts'

/** From the fewest lines to the most. */
export const LOG_LEVELS = ['error', 'warn', 'info', 'debug'] as const

/** How much is logged: this level and those before it in {@link LOG_LEVELS}. */
export type LogLevel = (typeof LOG_LEVELS)[number]

/** Options of {@link createLog}. */
export interface LogOptions {
  readonly level: LogLevel
  /** True: one JSON object a line with `time`, `level` and `message`. False: `level: message`, for people. */
  readonly json: boolean
}

/**
 * Lines of one level that are written at once, and then each second. Whoever may connect can make errors as fast as
 * connections, and must not fill the disk with what is said about them.
 */
const LINES_AT_ONCE_MAX = 200
const LINES_PER_SECOND_MAX = 10

/**
 * Makes a logger that writes one line a message. Of each level but debug, which is asked for, it writes 200 lines at
 * once and 10 a second afterwards, and tells with the next line how many it left out.
 *
 * @param write gets each line with its newline
 * @param nowMs the time, from any beginning
 */
export function createLog(
  { level, json }: LogOptions,
  write: (line: string) => void,
  nowMs: () => number = () => performance.now(),
): Logger {
  const enabled = LOG_LEVELS.indexOf(level)
  const at = (lineLevel: LogLevel) => {
    const allowance = new Allowance(nowMs)
    const writeLine = (message: string): void => {
      const time = new Date().toISOString()
      write(json ? `${JSON.stringify({ time, level: lineLevel, message })}\n` : `${lineLevel}: ${message}\n`)
    }
    return (message: string) => {
      if (LOG_LEVELS.indexOf(lineLevel) > enabled) return
      if (lineLevel === 'debug') return writeLine(message)
      const leftOutCount = allowance.take()
      if (leftOutCount === undefined) return
      if (leftOutCount > 0) writeLine(`${leftOutCount} lines like this were left out: there were too many`)
      writeLine(message)
    }
  }
  return { error: at('error'), warn: at('warn'), info: at('info'), debug: at('debug') }
}

/** How many lines may be written: it fills up with time. */
class Allowance {
  readonly #nowMs: () => number
  #lines = LINES_AT_ONCE_MAX
  #filledMs: number
  #leftOutCount = 0

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs
    this.#filledMs = nowMs()
  }

  /** Takes a line. @returns how many were left out before it; undefined when this one has to be, too */
  take(): number | undefined {
    const now = this.#nowMs()
    const filled = this.#lines + ((now - this.#filledMs) / 1000) * LINES_PER_SECOND_MAX
    this.#lines = Math.min(filled, LINES_AT_ONCE_MAX)
    this.#filledMs = now
    if (this.#lines < 1) {
      this.#leftOutCount++
      return undefined
    }
    this.#lines--
    const count = this.#leftOutCount
    this.#leftOutCount = 0
    return count
  }
}
