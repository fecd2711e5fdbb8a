import { native } from '../../src/native.ts'
import type { BackEndQueue, BackEndSession } from '../../src/transport/vhost-user/back-end.ts'

/** A session that does nothing but remember what was asked of it, as `[method, ...arguments]`. */
export class RecordingSession implements BackEndSession {
  readonly calls: unknown[][] = []
  readonly offeredFeatures: bigint = (1n << 32n) | (1n << 29n)
  readonly queueCount = 2
  readonly memory: { regions: { length: number } } = { regions: { length: 0 } }
  /** Methods that throw this when called. */
  readonly failures = new Map<string, Error>()
  /** What `stop` waits for. */
  drained: Promise<void> = Promise.resolve()
  writable = true

  /** Calls since the last look. */
  takeCalls(): unknown[][] {
    return this.calls.splice(0)
  }

  setFeatures(features: bigint): void {
    this.#record('setFeatures', features)
  }

  setMemory(regions: readonly unknown[]): void {
    this.#record('setMemory', regions)
  }

  addRegion(region: unknown): void {
    this.#record('addRegion', region)
  }

  removeRegion(region: unknown): void {
    this.#record('removeRegion', region)
  }

  setInflight({ fd, ...description }: Parameters<BackEndSession['setInflight']>[0]): void {
    native.closeFd(fd)
    this.#record('setInflight', description)
  }

  checkInflightLayout(layout: unknown): void {
    this.#record('checkInflightLayout', layout)
  }

  config(): Uint8Array {
    return Uint8Array.from({ length: 60 }, (_, index) => index)
  }

  writeConfig(offsetBytes: number, bytes: Uint8Array): boolean {
    this.#record('writeConfig', offsetBytes, [...bytes])
    return this.writable
  }

  async reset(): Promise<void> {
    this.#record('reset')
  }

  queue(index: number): BackEndQueue {
    const record = (method: string, ...values: unknown[]): void => this.#record(method, index, ...values)
    return {
      setSize: (size) => record('setSize', size),
      setAddresses: (addresses) => record('setAddresses', addresses),
      setBase: (base) => record('setBase', base),
      setKick: (fd) => record('setKick', fd),
      setCall: (fd) => record('setCall', fd),
      setError: (fd) => record('setError', fd),
      setEnabled: async (enabled) => record('setEnabled', enabled),
      stop: async () => {
        record('stop')
        await this.drained
        return 4711
      },
    }
  }

  #record(method: string, ...values: unknown[]): void {
    this.calls.push([method, ...values])
    const failure = this.failures.get(method)
    if (failure !== undefined) throw failure
  }
}
