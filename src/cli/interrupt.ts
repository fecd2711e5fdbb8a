/**
 * Listens for SIGTERM and SIGINT. The first one is reported; a second one ends the process at once with status 1,
 * for people who do not want to wait for the end of a drain.
 *
 * @param onInterrupt called once, with the first signal
 */
export function listenForInterrupts(onInterrupt: (signal: NodeJS.Signals) => void): void {
  let interrupted = false
  const handle = (signal: NodeJS.Signals): void => {
    if (interrupted) process.exit(1)
    interrupted = true
    onInterrupt(signal)
  }
  process.on('SIGTERM', handle)
  process.on('SIGINT', handle)
}
