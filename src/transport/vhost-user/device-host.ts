import type { HushringError } from '../../errors.ts'
import type { Device } from '../../handlers/device.ts'
import { DeviceSession, type DeviceSessionEvents } from '../device-session.ts'
import type { ResolvedServeOptions } from '../options.ts'
import type { BackEndSession } from './back-end.ts'

/** A front-end's session, in whatever thread its queues are served. Methods as {@link DeviceSession} has them. */
export type ServedSession = BackEndSession & Pick<DeviceSession, 'drain' | 'close' | 'statsSnapshot'>

/** Where a device is served. */
export interface DeviceHost {
  /** Resolves when the device cannot be served any more, with the reason. */
  readonly failed: Promise<HushringError>
  /** Begins the session of a front-end. The one before has been closed. */
  open(events: DeviceSessionEvents): ServedSession
  /** Lets the device go, after its last session was closed. */
  close(): Promise<void>
}

/** Serves a device in this thread. */
export class DeviceHere implements DeviceHost {
  readonly failed: Promise<never> = new Promise(() => {})
  readonly #device: Device
  readonly #options: ResolvedServeOptions
  readonly #owned: boolean

  /** @param owned true: the device is closed with the host */
  constructor(device: Device, options: ResolvedServeOptions, owned: boolean) {
    this.#device = device
    this.#options = options
    this.#owned = owned
  }

  open(events: DeviceSessionEvents): ServedSession {
    return new DeviceSession(this.#device, this.#options, events)
  }

  async close(): Promise<void> {
    if (this.#owned) await this.#device.close()
  }
}
