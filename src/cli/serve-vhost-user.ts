import { rmSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { HushringError } from '../errors.ts'
import type { SuppressionPolicy } from '../notify/suppression.ts'
import type { Logger } from '../transport/logger.ts'
import { siblingModule } from '../transport/module-export.ts'
import {
  type ModuleExport,
  type VhostUserOptions,
  type VhostUserServer,
  vhostUser,
} from '../transport/vhost-user/index.ts'
import type { FromText } from './from-text.ts'
import { CaptiveCommand } from './run-command.ts'
import { checkServedDevice, openServedDevice, type ServedDeviceOptions } from './served-device.ts'
import { runServing, startStats, type TellOptions, whenAborted } from './serving.ts'
import { formatSize } from './sizes.ts'
import { takeActivatedSocket } from './socket-activation.ts'
import { STORE_OPTION_NAMES } from './store-options.ts'
import { UsageError } from './usage-error.ts'
import type { WorkerDeviceOptions } from './worker-device.ts'

/** Options of the command `hushring serve vhost-user`. */
export interface ServeVhostUserOptions extends ServedDeviceOptions, TellOptions {
  readonly socket?: string
  /** Permissions of the socket file. */
  readonly socketMode: number
  /** Left out: one, or one for each worker. */
  readonly queues?: number
  /** Left out: this thread serves. */
  readonly workers?: number
  readonly queueSizeMax: number
  readonly eventIdx: boolean
  readonly suppression: FromText<SuppressionPolicy>
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
  if (options.workers !== undefined) {
    checkWorkerOptions(options)
    const { workers, suppression } = options
    return await serveHosted(
      options,
      { device: workerDevice(options), suppression: workerSuppression(suppression), workers },
      log,
      interrupt,
    )
  }
  const device = await openServedDevice(options, log)
  try {
    return await serveHosted(options, { device, suppression: options.suppression }, log, interrupt)
  } finally {
    await device.close()
  }
}

/** What is served by whom. */
type Hosted = Pick<VhostUserOptions, 'device' | 'suppression' | 'workers'>

async function serveHosted(
  options: ServeVhostUserOptions,
  hosted: Hosted,
  log: Logger,
  interrupt: AbortSignal,
): Promise<number> {
  const place = await choosePlace(options)
  try {
    const server = await listen(options, hosted, place, log)
    return await whileServing(options, server, place, log, interrupt)
  } finally {
    await place.release()
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
  hosted: Hosted,
  place: Place,
  logger: Logger,
): Promise<VhostUserServer> {
  const { queues: countMax, queueSizeMax: sizeMax } = options
  return vhostUser
    .listen({
      ...place.listen,
      ...('socketPath' in place.listen && { socketMode: options.socketMode }),
      ...hosted,
      queues: { sizeMax, ...(countMax !== undefined && { countMax }) },
      features: { eventIdx: options.eventIdx },
      strictChains: options.strict ?? false,
      watchdogMs: options.watchdog ?? 0,
      logger,
    })
    .catch((error: HushringError) => {
      // The module is ours; what it says of the device is what was asked for.
      throw error.code === 'ERR_DEVICE_MODULE' ? (error.cause ?? error) : error
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
    const failed = failureOf(server)
    endStats = await startStats(options, server, log)
    process.stdout.write(`ready vhost-user ${place.name}\n`)
    return await untilEnd(options.run, place, AbortSignal.any([interrupt, failed]), failed)
  } finally {
    await server.close()
    // After the drain, so that the last statistics are the final ones.
    await endStats()
  }
}

/** Aborts, with the error, when the server closes because a worker has ended. */
function failureOf(server: VhostUserServer): AbortSignal {
  const failed = new AbortController()
  server.on('degraded', (error) => {
    if (error.code === 'ERR_WORKER_EXITED') failed.abort(error)
  })
  return failed.signal
}

async function untilEnd(
  run: string | undefined,
  place: Place,
  end: AbortSignal,
  failed: AbortSignal,
): Promise<number> {
  if (run === undefined) {
    await new Promise<void>((resolve) => whenAborted(end, () => resolve()))
    failed.throwIfAborted()
    return 0
  }
  const command = new CaptiveCommand(run, place.name)
  whenAborted(end, () => command.kill(failed.aborted ? 'SIGTERM' : end.reason))
  const exitStatus = await command.exitStatus
  failed.throwIfAborted()
  return exitStatus
}

/** Layers whose state would have to be shared by all workers: one that kept what another one wrote would be wrong. */
const UNSHARED_LAYERS = ['cache', 'rateLimit']

/** @throws UsageError */
function checkWorkerOptions({ layer: layers = [], workers, queues = workers }: ServeVhostUserOptions): void {
  if (workers! > queues!) {
    throw new UsageError(`--workers ${workers} is more than --queues ${queues}; a queue has one worker`)
  }
  const unshared = layers
    .map(({ text }) => text.split(':')[0]!)
    .find((name) => UNSHARED_LAYERS.includes(name))
  if (unshared !== undefined && workers! > 1) {
    throw new UsageError(`--layer ${unshared} is for one thread: leave it out, or --workers`)
  }
}

function workerDevice(options: ServeVhostUserOptions): ModuleExport {
  const { device, layer = [], memory, blockSize } = options
  const given = Object.fromEntries(STORE_OPTION_NAMES.map((name) => [name, options[name]]))
  const sharedMemory = memory === undefined ? {} : { sharedMemory: sharedMemoryOf(memory) }
  const workerOptions: WorkerDeviceOptions = {
    ...given,
    ...sharedMemory,
    blockSize,
    device,
    layers: layer.map(({ text }) => text),
    log: { level: options.logLevel, json: options.json ?? false },
  }
  return { module: siblingModule('./worker-device', import.meta.url), options: workerOptions }
}

function sharedMemoryOf(sizeBytes: number): SharedArrayBuffer {
  try {
    return new SharedArrayBuffer(sizeBytes)
  } catch (error) {
    // What an engine allows and what the machine has both end here, and neither limit can be asked for in all versions.
    if (!(error instanceof RangeError)) throw error
    const told = `--memory ${formatSize(sizeBytes)} is more than workers can share; use --file in /dev/shm`
    throw new UsageError(told, { cause: error })
  }
}

function workerSuppression({ text }: FromText<SuppressionPolicy>): ModuleExport {
  return { module: siblingModule('./worker-device', import.meta.url), name: 'suppression', options: text }
}
