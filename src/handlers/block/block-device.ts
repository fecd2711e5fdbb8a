import type { Observable } from 'rxjs'
import { HushringError, optionRangeError, optionTypeError } from '../../errors.ts'
import { booleanOf, functionOf, integerIn, refuseUnknownOptions, stringOf } from '../../options.ts'
import { type Completion, isCompletion } from '../../ring/request.ts'
import type { BlockDevice, BlockGeometry } from '../device.ts'
import { answerOf, type Handler } from '../handler.ts'
import type { BlockRequest, BlockVerb } from './block-request.ts'

/**
 * What one verb of a disk comes to: nothing (done), the number of bytes transferred, an object that tells it as
 * `FileHandle.readv` and `writev` do, or a completion. A count other than the length of the request is an error,
 * `ERR_STORE_SHORT`.
 */
export type BlockOutcome =
  // biome-ignore lint/suspicious/noConfusingVoidType: a verb may be a function without a return, also an async one
  void | number | { readonly bytesRead: number } | { readonly bytesWritten: number } | Completion

/** What a verb returns: its outcome at once, a promise of it, or an observable whose first value it is. */
export type BlockAnswer = BlockOutcome | PromiseLike<BlockOutcome> | Observable<BlockOutcome>

/** Does one verb of a disk. What it throws or rejects with fails the request. */
export type BlockVerbFunction = (io: BlockRequest) => BlockAnswer

/** Options about the looks of a disk, which every store takes. */
export interface DiskShapeOptions {
  /** Smallest unit a driver addresses: 512 or 4096. Default 512. */
  readonly blockBytes?: 512 | 4096
  /** Serial number shown to drivers: up to 20 printable ASCII characters. Default none. */
  readonly serial?: string
  /** True: drivers are told that the disk cannot be written, and nothing is. Default false. */
  readonly readOnly?: boolean
}

/** Names of {@link DiskShapeOptions}. */
export const SHAPE_OPTION_NAMES = [
  'blockBytes',
  'serial',
  'readOnly',
] as const satisfies (keyof DiskShapeOptions)[]

/** Options of {@link blockDevice}. */
export interface BlockDeviceOptions extends DiskShapeOptions {
  /** Size in bytes; a positive multiple of `blockBytes`, up to 2^53 - 1. */
  readonly capacityBytes: number
  /** Fills `io.data` with `io.lengthBytes` bytes from `io.offsetBytes`. */
  readonly read: BlockVerbFunction
  /** Stores the bytes of `io.data` at `io.offsetBytes`. A disk without it is read-only. */
  readonly write?: BlockVerbFunction
  /**
   * Makes every write that completed before it permanent. Leave it out only if each write is permanent when it
   * completes, or if nothing is meant to last.
   */
  readonly flush?: BlockVerbFunction
  /** Forgets the range; what it reads as afterwards is up to the disk. */
  readonly discard?: BlockVerbFunction
  /** Makes the range read as zeros; may give the space back when `io.mayUnmap`. */
  readonly writeZeroes?: BlockVerbFunction
  /**
   * Makes room for another capacity. Requests up to a larger one come after it is done; none beyond a smaller one come
   * any more when it is called. What it throws or rejects with leaves the capacity as it was.
   */
  readonly resize?: (capacityBytes: number) => void | PromiseLike<void>
  /** Ends the store. Called once. Requests after that fail with `ERR_CLOSED`. */
  readonly close?: () => void | PromiseLike<void>
}

const OPTION_NAMES = [
  'capacityBytes',
  ...SHAPE_OPTION_NAMES,
  'read',
  'write',
  'flush',
  'discard',
  'writeZeroes',
  'resize',
  'close',
] as const satisfies (keyof BlockDeviceOptions)[]

/**
 * A disk out of a few functions. A verb without a function is answered "unsupported", and drivers are not offered
 * it. Requests reach the functions only if they lie within the capacity and at block borders.
 *
 * @throws TypeError or RangeError naming the option
 */
export function blockDevice(options: BlockDeviceOptions): BlockDevice {
  refuseUnknownOptions(options, OPTION_NAMES)
  const { write, flush, discard, writeZeroes } = options
  const { blockBytes, serial, readOnly } = checkedShape({
    ...options,
    readOnly: options.readOnly ?? write === undefined,
  })
  const capacityBytes = wholeBlocks('capacityBytes', options.capacityBytes, blockBytes)
  const geometry = { capacityBytes, blockBytes }
  if (!readOnly && write === undefined) {
    throw optionTypeError('write', 'a function unless readOnly is true', write)
  }
  const verbs: BlockVerbs = {
    read: functionOf('read', options.read),
    write: optionalFunction('write', write),
    flush: optionalFunction('flush', flush),
    discard: optionalFunction('discard', discard),
    writeZeroes: optionalFunction('writeZeroes', writeZeroes),
  }
  const resize = optionalFunction('resize', options.resize)
  const close = optionalFunction('close', options.close)
  const store = new Store(geometry, readOnly ? { read: verbs.read, flush: verbs.flush } : verbs, close)
  return diskOver(
    {
      kind: 'block',
      geometry,
      abilities: {
        flush: flush !== undefined,
        discard: discard !== undefined && !readOnly,
        writeZeroes: writeZeroes !== undefined && !readOnly,
      },
      readOnly,
      serial,
      ...(resize !== undefined && { resize: (next) => resizeTo(geometry, next, resize) }),
      close: () => store.close(),
    },
    (io) => store.answer(io),
  )
}

/** Changes a geometry in place, which every device that wraps this one shares. */
async function resizeTo(
  geometry: { capacityBytes: number; readonly blockBytes: number },
  capacityBytes: number,
  resize: NonNullable<BlockDeviceOptions['resize']>,
): Promise<void> {
  const before = geometry.capacityBytes
  wholeBlocks('capacityBytes', capacityBytes, geometry.blockBytes)
  // What is beyond the smaller of the two is out of reach while the store changes.
  geometry.capacityBytes = Math.min(before, capacityBytes)
  try {
    await resize(capacityBytes)
    geometry.capacityBytes = capacityBytes
  } catch (error) {
    geometry.capacityBytes = before
    throw error
  }
}

/** Checks the options that every store takes, and fills in the defaults. Throws naming the option. */
export function checkedShape(options: DiskShapeOptions): Required<DiskShapeOptions> {
  const { blockBytes = 512, serial = '', readOnly = false } = options
  if (blockBytes !== 512 && blockBytes !== 4096) {
    throw optionRangeError('blockBytes', '512 or 4096', blockBytes)
  }
  if (!/^[\x20-\x7e]{0,20}$/.test(stringOf('serial', serial))) {
    throw optionRangeError('serial', 'up to 20 printable ASCII characters', serial)
  }
  return { blockBytes, serial, readOnly: booleanOf('readOnly', readOnly) }
}

/** Returns a size when it is one block or more and no part of a block; throws naming the option otherwise. */
export function wholeBlocks(name: string, sizeBytes: number, blockBytes: number): number {
  integerIn(name, sizeBytes, blockBytes, Number.MAX_SAFE_INTEGER)
  if (sizeBytes % blockBytes === 0) return sizeBytes
  throw optionRangeError(name, `a multiple of the block size of ${blockBytes} bytes`, sizeBytes)
}

/**
 * Whether a range lies within a disk of this shape, at block borders. The sums cannot overflow: an offset that a driver
 * made of any 64 bits is compared, never added to.
 */
export function isInRange(geometry: BlockGeometry, offsetBytes: number, lengthBytes: number): boolean {
  // Block sizes are powers of two. `%` on numbers beyond 32 bits is a slow call; `|` and `&` use their low bits.
  return (
    isWithin(geometry.capacityBytes, offsetBytes, lengthBytes) &&
    ((offsetBytes | lengthBytes) & (geometry.blockBytes - 1)) === 0 &&
    Number.isInteger(offsetBytes) &&
    Number.isInteger(lengthBytes)
  )
}

function isWithin(capacityBytes: number, offsetBytes: number, lengthBytes: number): boolean {
  return offsetBytes >= 0 && lengthBytes >= 0 && offsetBytes <= capacityBytes - lengthBytes
}

/** Why a range cannot be used, of one for which {@link isInRange} is false. */
export function rangeError(
  { capacityBytes, blockBytes }: BlockGeometry,
  offsetBytes: number,
  lengthBytes: number,
): HushringError {
  if (!isWithin(capacityBytes, offsetBytes, lengthBytes)) {
    const message = `${lengthBytes} bytes at ${offsetBytes} reach past the end of the disk at ${capacityBytes}`
    return new HushringError('ERR_BLOCK_RANGE', message, {
      details: { offsetBytes, lengthBytes, capacityBytes },
    })
  }
  const message = `${lengthBytes} bytes at ${offsetBytes} are not whole blocks of ${blockBytes} bytes`
  return new HushringError('ERR_BLOCK_ALIGNMENT', message, {
    details: { offsetBytes, lengthBytes, blockBytes },
  })
}

type BlockVerbs = { readonly [Verb in BlockVerb]?: BlockVerbFunction | undefined }

/** The handler at the bottom of every stack of layers. */
class Store {
  readonly #geometry: BlockGeometry
  readonly #verbs: BlockVerbs
  readonly #close: BlockDeviceOptions['close']
  #closing: Promise<void> | undefined

  constructor(geometry: BlockGeometry, verbs: BlockVerbs, close: BlockDeviceOptions['close']) {
    this.#geometry = geometry
    this.#verbs = verbs
    this.#close = close
  }

  answer(io: BlockRequest): ReturnType<Handler> {
    const verb = this.#verbOf(io)
    if (verb === undefined) return io.unsupported()
    if (this.#closing !== undefined) return failClosed(io)
    // A codec has checked what a driver asked for; this is for what layers derive.
    const { offsetBytes, lengthBytes } = io
    if (!isInRange(this.#geometry, offsetBytes, lengthBytes)) {
      return io.fail(rangeError(this.#geometry, offsetBytes, lengthBytes))
    }
    return answerOf(io, verb, completionOf)
  }

  #verbOf({ verb }: BlockRequest): BlockVerbFunction | undefined {
    // Looking a function up by any name is a search; nearly all requests are these two.
    if (verb === 'read') return this.#verbs.read
    return verb === 'write' ? this.#verbs.write : this.#verbs[verb]
  }

  close(): Promise<void> {
    this.#closing ??= (async () => this.#close?.())()
    return this.#closing
  }
}

function failClosed(io: BlockRequest): Completion {
  return io.fail(new HushringError('ERR_CLOSED', 'the disk was closed'))
}

function completionOf(io: BlockRequest, outcome: BlockOutcome): Completion {
  if (outcome === undefined) return io.ok()
  if (isCompletion(outcome)) return outcome
  const countBytes = typeof outcome === 'number' ? outcome : countOf(outcome)
  if (countBytes !== undefined) return io.transferred(countBytes)
  throw new HushringError(
    'ERR_HANDLER_ANSWER',
    `${io.verb} came to something that is no outcome: ${typeof outcome}`,
  )
}

function countOf(outcome: unknown): number | undefined {
  const { bytesRead, bytesWritten, result } = (outcome ?? {}) as Record<string, unknown>
  // What looks like a completion but was made by no request is refused, not taken for a count.
  if (result !== undefined) return undefined
  const countBytes = bytesRead ?? bytesWritten
  return typeof countBytes === 'number' ? countBytes : undefined
}

function diskOver(shape: Omit<BlockDevice, 'handler' | 'wrap'>, handler: Handler): BlockDevice {
  return Object.freeze({
    ...shape,
    handler,
    wrap: (layer) => diskOver(shape, layer(handler)),
  } satisfies BlockDevice)
}

function optionalFunction<F extends (...parameters: never[]) => unknown>(
  name: string,
  value: F | undefined,
): F | undefined {
  return value === undefined ? undefined : functionOf(name, value)
}
