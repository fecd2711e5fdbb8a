// The program of a worker thread: its own device, and of each front-end the queues that are its share, in an ordinary
// session.
import { parentPort, workerData } from 'node:worker_threads'
import { HushringError } from '../../errors.ts'
import { asVirtioDevice } from '../../handlers/as-virtio-device.ts'
import type { Device } from '../../handlers/device.ts'
import { DeviceSession, offerOf, type QueueShare } from '../device-session.ts'
import type { Logger } from '../logger.ts'
import { importDevice, importSuppression } from '../module-export.ts'
import { type ResolvedServeOptions, resolveServeOptions } from '../options.ts'
import { NO_STATS } from '../stats.ts'
import { type FromWorker, packError, type ToWorker, type WorkerDevice, type WorkerSetup } from './messages.ts'
import { SESSION_CALLS } from './session-calls.ts'
import { StatsBoard } from './stats-board.ts'

const port = parentPort!
const setup = workerData as WorkerSetup
const tell = (message: FromWorker): void => port.postMessage(message)

class QueueWorker {
  readonly #device: Device
  readonly #options: ResolvedServeOptions
  readonly #board = new StatsBoard(setup.board)
  #session: DeviceSession | undefined

  constructor(device: Device, options: ResolvedServeOptions) {
    this.#device = device
    this.#options = options
  }

  async receive(message: ToWorker): Promise<void> {
    switch (message.kind) {
      case 'open':
        this.#open(message)
        break
      case 'call':
        await this.#answer(message)
        break
      case 'count':
        this.#count()
        break
      case 'end':
        await this.#device.close()
        // Whatever the module left on the event loop: the device is closed.
        process.exit()
    }
  }

  #open(share: QueueShare): void {
    this.#session = new DeviceSession(
      this.#device,
      this.#options,
      { onDegraded: (error) => tell({ kind: 'degraded', error: packError(error) }) },
      share,
    )
  }

  async #answer({ id, name, parameters }: Extract<ToWorker, { kind: 'call' }>): Promise<void> {
    try {
      if (this.#session === undefined) throw new HushringError('ERR_CLOSED', 'there is no session')
      const call = SESSION_CALLS[name] as (session: DeviceSession, ...parameters: unknown[]) => unknown
      const value = await call(this.#session, ...parameters)
      this.#count()
      tell({ kind: 'answer', id, value })
    } catch (error) {
      tell({ kind: 'refusal', id, error: packError(error) })
    }
  }

  #count(): void {
    this.#board.write(this.#session?.statsSnapshot() ?? NO_STATS)
  }
}

function remoteLogger(): Logger {
  const to =
    (level: keyof Logger): Logger[typeof level] =>
    (message) =>
      tell({ kind: 'log', level, message })
  return { error: to('error'), warn: to('warn'), info: to('info'), debug: to('debug') }
}

function looksOf(device: Device, options: ResolvedServeOptions): WorkerDevice {
  const virtio = asVirtioDevice(device)
  const offer = offerOf(virtio, options)
  return { ...offer, queueSizeMax: options.queueSizeMax, config: virtio.config(offer.queueCount) }
}

async function start(): Promise<void> {
  const { serveOptions, suppression, hasLogger } = setup
  const options = resolveServeOptions({
    ...serveOptions,
    ...(suppression !== undefined && { suppression: await importSuppression(suppression) }),
    ...(hasLogger && { logger: remoteLogger() }),
  })
  const device = await importDevice(setup.device)
  const worker = new QueueWorker(device, options)
  const looks = looksOf(device, options)
  port.on('message', (message: ToWorker) => void worker.receive(message))
  tell({ kind: 'ready', device: looks })
}

await start().catch((error: unknown) => {
  tell({ kind: 'failed', error: packError(error) })
  port.close()
})
