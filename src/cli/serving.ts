import type { Logger } from '../transport/logger.ts'
import { explainFailure, fileError } from './failure.ts'
import { listenForInterrupts } from './interrupt.ts'
import { createLog, type LogOptions } from './log.ts'
import { keepStatsFile, type StatsSource } from './stats-file.ts'

/** The options that say what a serving command tells, whatever the transport. */
export interface TellOptions {
  readonly stats?: string
  readonly logLevel: LogOptions['level']
  readonly json?: boolean
}

/**
 * Runs a command that serves until SIGTERM or SIGINT: errors are logged and become the exit status.
 *
 * @param serve gets the log and a signal that aborts, with the name of the signal as its reason, when the process is
 * asked to end; resolves to the exit status
 */
export async function runServing(
  options: TellOptions,
  serve: (log: Logger, interrupt: AbortSignal) => Promise<number>,
): Promise<number> {
  const log = createLog({ level: options.logLevel, json: options.json ?? false }, (line) =>
    process.stderr.write(line),
  )
  const interrupt = new AbortController()
  listenForInterrupts((signal) => interrupt.abort(signal))
  try {
    return await serve(log, interrupt.signal)
  } catch (error) {
    const { message, exitStatus } = explainFailure(error)
    log.error(message)
    log.debug(error instanceof Error && error.stack !== undefined ? error.stack : String(error))
    return exitStatus
  }
}

/**
 * Keeps the statistics of a server in the file that the options name, if they do.
 *
 * @returns ends it, with the last statistics
 */
export async function startStats(
  { stats: path }: TellOptions,
  server: StatsSource,
  log: Logger,
): Promise<() => Promise<void>> {
  if (path === undefined) return async () => {}
  const failed = (cause: unknown): Error => fileError(`cannot write the statistics to ${path}`, cause)
  try {
    return await keepStatsFile(path, server, (cause) => log.warn(failed(cause).message))
  } catch (cause) {
    throw failed(cause)
  }
}

/** Calls back when a signal aborts, or at once if it has. */
export function whenAborted(signal: AbortSignal, callback: () => void): void {
  if (signal.aborted) callback()
  else signal.addEventListener('abort', callback, { once: true })
}
