import { statSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { BlockDevice, Device } from '../handlers/device.ts'
import { compose, type Layer } from '../handlers/handler.ts'
import { entropyDevice } from '../handlers/index.ts'
import type { SuppressionPolicy } from '../notify/suppression.ts'
import type { Logger } from '../transport/logger.ts'
import { type VhostUserServer, vhostUser } from '../transport/vhost-user/index.ts'
import { type DeviceChoice, loadDevice } from './device-option.ts'
import { explainFailure, fileError } from './failure.ts'
import { listenForInterrupts } from './interrupt.ts'
import { createLog, type LogOptions } from './log.ts'
import { CaptiveCommand } from './run-command.ts'
import { takeActivatedSocket } from './socket-activation.ts'
import { keepStatsFile } from './stats-file.ts'
import { checkStoreOptions, namesStore, openStore, type StoreOptions } from './store-options.ts'
import { UsageError } from './usage-error.ts'

/** Options of the command `hushring serve vhost-user`. */
export interface ServeVhostUserOptions extends StoreOptions {
  readonly socket?: string
  readonly device: DeviceChoice
  readonly queues: number
  readonly queueSizeMax: number
  readonly eventIdx: boolean
  readonly suppression: SuppressionPolicy
  /** Outermost first. */
  readonly layer?: readonly Layer[]
  readonly strict?: boolean
  readonly stats?: string
  readonly logLevel: LogOptions['level']
  readonly json?: boolean
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
export async function serveVhostUser(options: ServeVhostUserOptions): Promise<number> {
  const log = createLog({ level: options.logLevel, json: options.json ?? false }, (line) =>
    process.stderr.write(line),
  )
  try {
    return await serve(options, log)
  } catch (error) {
    const { message, exitStatus } = explainFailure(error)
    log.error(message)
    log.debug(error instanceof Error && error.stack !== undefined ? error.stack : String(error))
    return exitStatus
  }
}

async function serve(options: ServeVhostUserOptions, log: Logger): Promise<number> {
  const interrupt = new AbortController()
  listenForInterrupts((signal) => interrupt.abort(signal))
  checkStore(options, log)
  const device = await openDevice(options)
  try {
    const place = await choosePlace(options)
    try {
      const server = await listen(options, device, place, log)
      return await whileServing(options, server, place, log, interrupt.signal)
    } finally {
      await place.release()
    }
  } finally {
    await device.close()
  }
}

function checkStore(options: ServeVhostUserOptions, log: Logger): void {
  if (options.stats !== undefined && options.file !== undefined && isSameFile(options.stats, options.file)) {
    throw new UsageError(
      `--stats ${options.stats} is the store itself; give the statistics a file of their own`,
    )
  }
  if (options.device.kind === 'blk') {
    checkStoreOptions(options)
    return
  }
  if (options.readOnly || options.serial !== undefined) {
    throw new UsageError('--read-only and --serial are for --device blk; another device decides for itself')
  }
  if (namesStore(options)) log.warn('the store is not used: only --device blk has one')
}

function isSameFile(one: string, other: string): boolean {
  const [first, second] = [one, other].map((path) => statSync(path, { throwIfNoEntry: false }))
  if (first === undefined || second === undefined) return resolve(one) === resolve(other)
  return first.dev === second.dev && first.ino === second.ino
}

async function openDevice(options: ServeVhostUserOptions): Promise<Device> {
  const device = await openBareDevice(options)
  const { layer: layers = [] } = options
  if (layers.length === 0) return device
  if (device.kind === 'block') return compose<BlockDevice>(device, layers)
  await device.close()
  throw new UsageError(`--layer is for disks: ${device.name} is none`)
}

function openBareDevice(options: ServeVhostUserOptions): Promise<Device> | Device {
  switch (options.device.kind) {
    case 'blk':
      return openStore(options)
    case 'rng':
      return entropyDevice()
    case 'module':
      return loadDevice(options.device.path)
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
  const privatePath = join(folder, 'vhost-user.sock')
  return {
    name: privatePath,
    listen: { socketPath: privatePath },
    release: () => rm(folder, { recursive: true, force: true }),
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
    device,
    queues: { countMax: options.queues, sizeMax: options.queueSizeMax },
    features: { eventIdx: options.eventIdx },
    suppression: options.suppression,
    strictChains: options.strict ?? false,
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
    if (options.stats !== undefined) endStats = await startStats(options.stats, server, log)
    process.stdout.write(`ready vhost-user ${place.name}\n`)
    return await untilEnd(options.run, place, interrupt)
  } finally {
    await server.close()
    // After the drain, so that the last statistics are the final ones.
    await endStats()
  }
}

function startStats(path: string, server: VhostUserServer, log: Logger): Promise<() => Promise<void>> {
  const failed = (cause: unknown): Error => fileError(`cannot write the statistics to ${path}`, cause)
  return keepStatsFile(path, server, (cause) => log.warn(failed(cause).message)).catch((cause: unknown) => {
    throw failed(cause)
  })
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

function whenAborted(signal: AbortSignal, callback: () => void): void {
  if (signal.aborted) callback()
  else signal.addEventListener('abort', callback, { once: true })
}
