import { randomFillSync } from 'node:crypto'
import { functionOf, refuseUnknownOptions } from '../options.ts'
import type { VirtioDevice } from './device.ts'
import { virtioDevice } from './virtio-device.ts'

/** Options of {@link entropyDevice}. */
export interface EntropyDeviceOptions {
  /** Fills the view with random bytes. Default: those of the operating system's generator. */
  readonly source?: (view: Uint8Array) => void
}

/** A driver may ask for gigabytes in one request and is content with less; the event loop is not content with more. */
const REQUEST_BYTES_MAX = 64 * 1024

/**
 * An entropy device (virtio-rng; virtio 1.3, 5.4): fills what the driver makes writable with random bytes, up to
 * 64 KiB a request, and says how many those are.
 */
export function entropyDevice(options: EntropyDeviceOptions = {}): VirtioDevice {
  refuseUnknownOptions(options, ['source'])
  const source = functionOf('source', options.source ?? fillFromSystem)
  return virtioDevice({
    deviceId: 4,
    name: 'virtio-rng',
    handler(io) {
      let filledBytes = 0
      for (const view of io.writable.views()) {
        const part = view.subarray(0, REQUEST_BYTES_MAX - filledBytes)
        if (part.length === 0) break
        source(part)
        filledBytes += part.length
      }
      return io.ok(filledBytes)
    },
  })
}

function fillFromSystem(view: Uint8Array): void {
  randomFillSync(view)
}
