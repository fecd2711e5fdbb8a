import { stat } from 'node:fs/promises'
import { concatMap, type Observable, ReplaySubject } from 'rxjs'
import type { HushringError } from '../errors.ts'
import type { Device } from '../handlers/device.ts'
import type { SuppressionPolicy } from '../notify/suppression.ts'
import type { Logger } from '../transport/logger.ts'
import { type TcmuBackstore, tcmu } from '../transport/tcmu/index.ts'
import { checkServedDevice, openServedDevice, type ServedDeviceOptions } from './served-device.ts'
import { runServing, startStats, type TellOptions, whenAborted } from './serving.ts'
import { UsageError } from './usage-error.ts'

/** Options of the command `hushring serve tcmu`. Sizes are in bytes, times in seconds. */
export interface ServeTcmuOptions extends ServedDeviceOptions, TellOptions {
  readonly uio?: string
  readonly create?: string
  readonly fabric?: 'loopback' | 'none'
  readonly maxDataArea?: number
  readonly ringSize?: number
  readonly cmdTimeout?: number
  readonly doorbell: SuppressionPolicy
  readonly lockMemory?: boolean
  readonly stats?: string
}

/** Options that shape a device which is made, and say nothing to one that exists. */
const CREATE_ONLY = {
  fabric: '--fabric',
  maxDataArea: '--max-data-area',
  ringSize: '--ring-size',
  cmdTimeout: '--cmd-timeout',
} as const satisfies Partial<Record<keyof ServeTcmuOptions, string>>

/**
 * Serves a device over TCMU until SIGTERM or SIGINT, then takes away what it made.
 *
 * @returns the exit status; errors are logged
 */
export function serveTcmu(options: ServeTcmuOptions): Promise<number> {
  return runServing(options, (log, interrupt) => serve(options, log, interrupt))
}

async function serve(options: ServeTcmuOptions, log: Logger, interrupt: AbortSignal): Promise<number> {
  checkPlace(options)
  checkServedDevice(options, log)
  // From here to the end: without a listener SIGHUP ends the process, and leaves a disk without its server.
  const hangUps = new ReplaySubject<void>(1)
  const hangUp = (): void => hangUps.next()
  process.on('SIGHUP', hangUp)
  try {
    const device = await openServedDevice(options, log)
    try {
      const backstore = await open(options, device, log)
      return await whileServing(options, backstore, hangUps, log, interrupt)
    } finally {
      await device.close()
    }
  } finally {
    process.off('SIGHUP', hangUp)
  }
}

function checkPlace(options: ServeTcmuOptions): void {
  if (options.device.kind === 'rng')
    throw new UsageError('--device rng is a virtio device: TCMU serves disks')
  if ((options.uio === undefined) === (options.create === undefined)) {
    throw new UsageError(
      'no device is named: give --create NAME to make one, or --uio /dev/uioN for one that exists',
    )
  }
  if (options.uio === undefined) return
  for (const [name, flag] of Object.entries(CREATE_ONLY)) {
    if (options[name as keyof typeof CREATE_ONLY] === undefined) continue
    throw new UsageError(`${flag} shapes a device that is made: it needs --create NAME`)
  }
}

function open(options: ServeTcmuOptions, device: Device, logger: Logger): Promise<TcmuBackstore> {
  const { doorbell, lockMemory = false } = options
  const served = { device, doorbell, lockMemory, logger }
  if (options.uio !== undefined) return tcmu.attach({ ...served, uioPath: options.uio })
  const { fabric = 'loopback', maxDataArea, ringSize, cmdTimeout, serial } = options
  return tcmu.create({
    ...served,
    name: options.create!,
    fabric,
    loadModules: true,
    ...(maxDataArea !== undefined && { maxDataAreaBytes: maxDataArea }),
    ...(ringSize !== undefined && { ringBytes: ringSize }),
    ...(cmdTimeout !== undefined && { commandTimeoutS: cmdTimeout }),
    ...(serial !== undefined && { serial }),
  })
}

/** From the moment initiators can use the device until it is taken away. */
async function whileServing(
  options: ServeTcmuOptions,
  backstore: TcmuBackstore,
  hangUps: Observable<void>,
  log: Logger,
  interrupt: AbortSignal,
): Promise<number> {
  let endStats = async (): Promise<void> => {}
  const following = hangUps.pipe(concatMap(() => follow(options, backstore, log))).subscribe()
  try {
    endStats = await startStats(options, backstore, log)
    const { uioPath, blockDevicePath } = backstore
    process.stdout.write(`ready tcmu ${[uioPath, blockDevicePath].filter(Boolean).join(' ')}\n`)
    return await untilEnd(backstore, log, interrupt)
  } finally {
    following.unsubscribe()
    try {
      await backstore.close()
    } finally {
      // After the drain, so that the last statistics are the final ones.
      await endStats()
    }
  }
}

/** SIGHUP: the file was made longer, say, and the disk takes its size. */
async function follow(options: ServeTcmuOptions, backstore: TcmuBackstore, log: Logger): Promise<void> {
  if (options.file === undefined) return log.warn('SIGHUP: only a disk in a file has a size to follow')
  try {
    const { size } = await stat(options.file)
    const capacityBytes = size - (size % options.blockSize)
    await backstore.resize(capacityBytes)
    log.info(`the disk has ${capacityBytes} bytes now`)
  } catch (error) {
    log.error(`SIGHUP: the size stays: ${(error as Error).message}`)
  }
}

/** Least time between two recoveries: a ring that breaks again at once is given up. */
const RECOVERY_INTERVAL_MS = 60_000

function untilEnd(backstore: TcmuBackstore, log: Logger, interrupt: AbortSignal): Promise<number> {
  return new Promise((resolve) => {
    whenAborted(interrupt, () => resolve(0))
    let recoveredAtMs = Number.NEGATIVE_INFINITY
    const recover = async (error: HushringError): Promise<void> => {
      const nowMs = performance.now()
      if (error.code === 'ERR_TCMU_REMOVED' || nowMs - recoveredAtMs < RECOVERY_INTERVAL_MS) return resolve(1)
      recoveredAtMs = nowMs
      try {
        await backstore.recover()
        log.warn('the ring was reset; initiators try again what was in flight')
      } catch (failure) {
        log.error(`the ring cannot be reset: ${(failure as Error).message}`)
        resolve(1)
      }
    }
    backstore.on('degraded', (error) => void recover(error))
    if (backstore.broken !== undefined) void recover(backstore.broken)
  })
}
