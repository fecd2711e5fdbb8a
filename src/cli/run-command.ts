import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { constants } from 'node:os'

/** A command of the user that runs while a device is served. */
export class CaptiveCommand {
  readonly #child: ChildProcess
  /** At a terminal the command stays in our process group: it may read the terminal, and Ctrl-C reaches it. */
  readonly #ownGroup = !process.stdin.isTTY
  /**
   * Settles when the command has ended: its exit status, or 128 plus the number of the signal that ended it, as
   * shells do. Rejects when there is no shell to run it.
   */
  readonly exitStatus: Promise<number>

  /**
   * Starts the command through `/bin/sh`, with our standard input and outputs.
   *
   * @param command a line for the shell
   * @param socketPath what `$socket` is in its environment
   */
  constructor(command: string, socketPath: string) {
    this.#child = spawn('/bin/sh', ['-c', command], {
      stdio: 'inherit',
      detached: this.#ownGroup,
      env: { ...process.env, socket: socketPath },
    })
    // Nothing of the user's is left running, however this process ends.
    const abandon = (): void => this.kill('SIGKILL')
    process.once('exit', abandon)
    this.exitStatus = once(this.#child, 'exit').then((end) => {
      process.removeListener('exit', abandon)
      const [status, signal] = end as [number, null] | [null, NodeJS.Signals]
      return status ?? 128 + constants.signals[signal]
    })
  }

  /** Sends a signal to the command and to what it started. Does nothing once it has ended. */
  kill(signal: NodeJS.Signals): void {
    const { pid, exitCode, signalCode } = this.#child
    if (pid === undefined || exitCode !== null || signalCode !== null) return
    try {
      if (this.#ownGroup) process.kill(-pid, signal)
      else this.#child.kill(signal)
    } catch {
      // It ended just now, or it became somebody else (sudo) whom we may not signal: then it ends by itself.
    }
  }
}
