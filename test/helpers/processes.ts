import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

/**
 * The command line that runs a command under a limit which holds even when this process dies: timeout(1) sends
 * SIGTERM at the limit and SIGKILL two seconds later. A SIGTERM to timeout is passed on in the same way.
 *
 * @param limitSeconds wall-clock time the command may take
 */
function limited(command: readonly string[], limitSeconds: number): [file: string, args: string[]] {
  return ['timeout', ['--foreground', '--kill-after=2', String(limitSeconds), ...command]]
}

/**
 * Runs a command to its end.
 *
 * @param limitSeconds wall-clock time the command may take
 * @returns what it printed to stdout, as bytes
 * @throws with the command line and its stderr when it exits with a status other than 0; 124 means the limit
 */
export async function run(command: readonly string[], limitSeconds: number): Promise<Buffer> {
  const options = { encoding: 'buffer', maxBuffer: 64 * 1024 * 1024 } as const
  const { stdout } = await promisify(execFile)(...limited(command, limitSeconds), options)
  return stdout
}

/** A command that runs until it is stopped or ends by itself. */
export interface RunningCommand {
  /** The process of the command itself, which runs under timeout(1). Undefined once it has ended. */
  pid(): number | undefined
  /** All of stdout so far. */
  stdout(): string
  /** All of stderr so far. */
  stderr(): string
  /**
   * Settles when the command has ended: its exit status, or 128 plus the number of the signal that ended it. At the
   * limit that is 124, or 137 when it had to be killed.
   */
  readonly exitStatus: Promise<number>
  /**
   * Waits until a condition holds; looks every 10 ms.
   *
   * @throws with both outputs when the command ends first
   */
  until(condition: () => boolean): Promise<void>
  /** Sends SIGTERM unless the command has ended, and waits for the end. @returns the exit status */
  stop(): Promise<number>
}

/**
 * Starts a command with nothing on stdin.
 *
 * @param limitSeconds wall-clock time the command may live
 */
export function start(command: readonly string[], limitSeconds: number): RunningCommand {
  const child: ChildProcess = spawn(...limited(command, limitSeconds), { stdio: ['ignore', 'pipe', 'pipe'] })
  const output = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]!.setEncoding('utf8').on('data', (text: string) => {
      output[name] += text
    })
  }
  const kill = (): void => void child.kill()
  process.once('exit', kill)
  const exitStatus = once(child, 'close').then(([status, signal]) => {
    process.removeListener('exit', kill)
    return status ?? 128 + constants.signals[signal as NodeJS.Signals]
  })

  return {
    pid() {
      try {
        const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8')
        return Number.parseInt(children, 10) || undefined
      } catch {
        return undefined
      }
    },
    stdout: () => output.stdout,
    stderr: () => output.stderr,
    exitStatus,
    async until(condition) {
      while (!condition()) {
        const status = await Promise.race([exitStatus, sleep(10)])
        if (status !== undefined) {
          throw new Error(
            `${command.join(' ')} ended with status ${status}\n${output.stdout}${output.stderr}`,
          )
        }
      }
    },
    async stop() {
      if (child.exitCode === null && child.signalCode === null) child.kill()
      return await exitStatus
    },
  }
}

/** Ends what a helper started: the context of a test, or anything else that runs its cleanups last to first. */
export interface Scope {
  teardown(end: () => Promise<unknown>): void
}

/** Makes an empty directory that goes away with the scope. @returns its path, short enough to hold sockets */
export async function temporaryDirectory(scope: Scope, parent: string = tmpdir()): Promise<string> {
  const path = await mkdtemp(join(parent, 'hushring-'))
  scope.teardown(() => rm(path, { recursive: true, force: true }))
  return path
}
