import { rmSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Device } from '../handlers/device.ts'
import type { SuppressionPolicy } from '../notify/suppression.ts'
import type { Logger } from '../transport/logger.ts'
import { type VhostUserServer, vhostUser } from '../transport/vhost-user/index.ts'
import { CaptiveCommand } from './run-command.ts'
import { checkServedDevice, openServedDevice, type ServedDeviceOptions } from './served-device.ts'
import { runServing, startStats, type TellOptions, whenAborted } from './serving.ts'
import { takeActivatedSocket } from './socket-activation.ts'
import { UsageError } from './usage-error.ts'

/** Options of the command `hushring serve vhost-user`. */
export interface ServeVhostUserOptions extends ServedDeviceOptions, TellOptions {
  readonly socket?: string
  /** Permissions of the socket file. */
  readonly socketMode: number
  readonly queues: number
  readonly queueSizeMax: number
  readonly eventIdx: boolean
  readonly suppression: SuppressionPolicy
  readonly strict?: boolean
  readonly watchdog?: number
  readonly stats?: string
  readonly run?: string
}

/** Where front-ends connect. */
interface Place {
  /** What the ready line calls it: the path of the socket, unless it was passed in. */
  readonly name: string
  readonly listen: { readonly socketPath: string } | { readonly listenFd: number }
  /** Removes what was made for it. */
  release(): Promise<void>
}

/**
 * Serves a device over vhost-user until SIGTERM, SIGINT or the end of the captive command.
 *
 * @returns the exit status; errors are logged
 */
export function serveVhostUser(options: ServeVhostUserOptions): Promise<number> {
  return runServing(options, (log, interrupt) => serve(options, log, interrupt))
}

async function serve(options: ServeVhostUserOptions, log: Logger, interrupt: AbortSignal): Promise<number> {
  checkServedDevice(options, log)
  const device = await openServedDevice(options)
  try {
    const place = await choosePlace(options)
    try {
      const server = await listen(options, device, place, log)
      return await whileServing(options, server, place, log, interrupt)
    } finally {
      await place.release()
    }
  } finally {
    await device.close()
  }
}

async function choosePlace(options: ServeVhostUserOptions): Promise<Place> {
  const { socket: socketPath } = options
  const listenFd = takeActivatedSocket(process.env, process.pid)
  if (listenFd !== undefined) {
    if (socketPath !== undefined || options.run !== undefined) {
      throw new UsageError('the service manager passed a socket (LISTEN_FDS): leave out --socket and --run')
    }
    return { name: `fd:${listenFd}`, listen: { listenFd }, async release() {} }
  }
  if (socketPath !== undefined) return { name: socketPath, listen: { socketPath }, async release() {} }
  if (options.run === undefined) {
    throw new UsageError('no socket is named: give --socket PATH, or --run COMMAND for a private one')
  }
  const folder = await mkdtemp(join(tmpdir(), 'hushring-'))
  // Also when a second signal ends the process, which waits for nothing.
  const remove = (): void => rmSync(folder, { recursive: true, force: true })
  process.once('exit', remove)
  const privatePath = join(folder, 'vhost-user.sock')
  return {
    name: privatePath,
    listen: { socketPath: privatePath },
    async release() {
      process.removeListener('exit', remove)
      remove()
    },
  }
}

function listen(
  options: ServeVhostUserOptions,
  device: Device,
  place: Place,
  logger: Logger,
): Promise<VhostUserServer> {
  return vhostUser.listen({
    ...place.listen,
    ...('socketPath' in place.listen && { socketMode: options.socketMode }),
    device,
    queues: { countMax: options.queues, sizeMax: options.queueSizeMax },
    features: { eventIdx: options.eventIdx },
    suppression: options.suppression,
    strictChains: options.strict ?? false,
    watchdogMs: options.watchdog ?? 0,
    logger,
  })
}

/** From the moment the socket is there until the drain is over. */
async function whileServing(
  options: ServeVhostUserOptions,
  server: VhostUserServer,
  place: Place,
  log: Logger,
  interrupt: AbortSignal,
): Promise<number> {
  let endStats = async (): Promise<void> => {}
  try {
    endStats = await startStats(options, server, log)
    process.stdout.write(`ready vhost-user ${place.name}\n`)
    return await untilEnd(options.run, place, interrupt)
  } finally {
    await server.close()
    // After the drain, so that the last statistics are the final ones.
    await endStats()
  }
}

async function untilEnd(run: string | undefined, place: Place, interrupt: AbortSignal): Promise<number> {
  if (run === undefined) {
    await new Promise<void>((resolve) => whenAborted(interrupt, () => resolve()))
    return 0
  }
  const command = new CaptiveCommand(run, place.name)
  whenAborted(interrupt, () => command.kill(interrupt.reason))
  return await command.exitStatus
}
