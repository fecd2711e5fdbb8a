/**
 * Where a transport says what happens. Any logger with these four methods fits (pino, console). The library is
 * silent without one.
 */
export interface Logger {
  error(message: string): void
  warn(message: string): void
  info(message: string): void
  debug(message: string): void
}

/** Says nothing. */
export const silentLogger: Logger = { error() {}, warn() {}, info() {}, debug() {} }
