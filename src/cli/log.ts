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
 * Makes a logger that writes one line a message.
 *
 * @param write gets each line with its newline
 */
export function createLog({ level, json }: LogOptions, write: (line: string) => void): Logger {
  const enabled = LOG_LEVELS.indexOf(level)
  const at = (lineLevel: LogLevel) => (message: string) => {
    if (LOG_LEVELS.indexOf(lineLevel) > enabled) return
    const time = new Date().toISOString()
    write(json ? `${JSON.stringify({ time, level: lineLevel, message })}\n` : `${lineLevel}: ${message}\n`)
  }
  return { error: at('error'), warn: at('warn'), info: at('info'), debug: at('debug') }
}
