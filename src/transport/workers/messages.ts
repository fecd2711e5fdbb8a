import { ERROR_CODES, type ErrorCode, HushringError } from '../../errors.ts'
import type { DeviceOffer } from '../device-session.ts'
import type { Logger } from '../logger.ts'
import type { ModuleAddress } from '../module-export.ts'
import type { ServeOptions } from '../options.ts'
import type { SessionCallName } from './session-calls.ts'

/** What a worker is started with. */
export interface WorkerSetup {
  readonly device: ModuleAddress
  /** Left out: the default policy. */
  readonly suppression: ModuleAddress | undefined
  readonly serveOptions: Omit<ServeOptions, 'logger' | 'suppression'>
  /** False: nobody reads the log, so nothing is sent. */
  readonly hasLogger: boolean
  /** The memory of a {@link StatsBoard}. */
  readonly board: SharedArrayBuffer
}

/** What the main thread sends. */
export type ToWorker =
  /** A front-end has come. */
  | { readonly kind: 'open'; readonly worker: number; readonly workerCount: number }
  | {
      readonly kind: 'call'
      readonly id: number
      readonly name: SessionCallName
      readonly parameters: unknown[]
    }
  /** Counts are asked for. */
  | { readonly kind: 'count' }
  /** Closes the device. */
  | { readonly kind: 'end' }

/** What a device looks like from outside. Each worker makes its own, and they must look alike. */
export interface WorkerDevice extends DeviceOffer {
  readonly queueSizeMax: number
  readonly config: Uint8Array
}

/** What a worker sends. */
export type FromWorker =
  | { readonly kind: 'ready'; readonly device: WorkerDevice }
  /** The device could not be made; the worker ends. */
  | { readonly kind: 'failed'; readonly error: PackedError }
  | { readonly kind: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'refusal'; readonly id: number; readonly error: PackedError }
  | { readonly kind: 'degraded'; readonly error: PackedError }
  | { readonly kind: 'log'; readonly level: keyof Logger; readonly message: string }

/** An error on its way to another thread; what structuredClone makes of an Error has no code. */
export interface PackedError {
  readonly name: string
  readonly message: string
  readonly stack: string | undefined
  readonly code: string | undefined
  readonly details: Readonly<Record<string, unknown>> | undefined
  readonly cause: PackedError | undefined
}

/** Packs what was thrown; whatever it is, the result can be sent. */
export function packError(thrown: unknown): PackedError {
  if (!(thrown instanceof Error)) return packError(new Error(String(thrown)))
  const { name, message, stack, cause } = thrown
  const { code } = thrown as NodeJS.ErrnoException
  return {
    name,
    message,
    stack,
    code: code === undefined ? undefined : String(code),
    details: thrown instanceof HushringError ? thrown.details : undefined,
    cause: cause === undefined ? undefined : packError(cause),
  }
}

/** Makes the error again, as far as it matters to who handles it. */
export function unpackError(packed: PackedError): Error & { code?: string } {
  const cause = packed.cause === undefined ? undefined : unpackError(packed.cause)
  const error = bareErrorOf(packed, cause)
  if (packed.stack !== undefined) error.stack = packed.stack
  return packed.code === undefined ? error : Object.assign(error, { code: packed.code })
}

function bareErrorOf({ name, message, code = '', details = {} }: PackedError, cause: unknown): Error {
  const options = cause === undefined ? {} : { cause }
  if (name === 'HushringError' && code in ERROR_CODES) {
    return new HushringError(code as ErrorCode, message, { ...options, details })
  }
  if (name === 'TypeError') return new TypeError(message, options)
  if (name === 'RangeError') return new RangeError(message, options)
  return Object.assign(new Error(message, options), { name })
}
