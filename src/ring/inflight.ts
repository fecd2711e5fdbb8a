import { HushringError } from '../errors.ts'
import { type NativeInflightPlace, type NativeRegion, native } from '../native.ts'

const HEADER_BYTES = 16
const ENTRY_BYTES = 16
const ALIGN_BYTES = 64
const VERSION_AT = 8
/** Most entries: those of the largest split ring. */
const QUEUE_SIZE_MAX = 32768

/** How the in-flight regions of a device's queues lie in their file, one after the other. */
export interface InflightLayout {
  /** Number of queues, the first ones of the device. */
  readonly queueCount: number
  /** Entries of each: the largest ring that one of them can have. */
  readonly queueSize: number
}

/** What a front-end says about an in-flight file. */
export interface InflightDescription extends InflightLayout {
  /** The file. Whoever makes the {@link InflightFile} of it closes it; the mapping does not need it any more. */
  readonly fd: number
  readonly mmapOffsetBytes: bigint
  readonly mmapSizeBytes: bigint
}

/** Bytes of the regions of all queues (vhost-user, "Inflight I/O tracking", split virtqueues, version 1). */
export function inflightBytes({ queueCount, queueSize }: InflightLayout): number {
  return queueCount * strideBytes(queueSize)
}

/**
 * Makes a file of fresh regions whose size nobody can change.
 *
 * @returns a file descriptor; the caller closes it
 */
export function makeInflightFd(layout: InflightLayout): number {
  return native.memfdCreate('hushring-inflight', inflightBytes(layout), true)
}

function strideBytes(queueSize: number): number {
  return Math.ceil((HEADER_BYTES + ENTRY_BYTES * queueSize) / ALIGN_BYTES) * ALIGN_BYTES
}

/**
 * The mapped file in which the queues of a device keep account of the requests they are serving. The front-end holds
 * the file, so that it outlives this process and the next one goes on with it. What lies in it is native code's.
 */
export class InflightFile implements InflightLayout {
  readonly queueCount: number
  readonly queueSize: number
  readonly #region: NativeRegion

  /**
   * Maps the file. Throws `ERR_VHOST_INFLIGHT` when the layout makes no sense, or the place of the regions is misaligned,
   * too small for them, or not wholly in a file that can be mapped.
   */
  constructor(description: InflightDescription) {
    const { fd, queueCount, queueSize, mmapOffsetBytes, mmapSizeBytes } = description
    checkInflightLayout(description)
    const neededBytes = inflightBytes(description)
    if (mmapOffsetBytes % BigInt(ALIGN_BYTES) !== 0n) {
      throw inflightError(`expected an offset that is a multiple of ${ALIGN_BYTES}, got ${mmapOffsetBytes}`)
    }
    if (mmapSizeBytes < neededBytes) {
      throw inflightError(
        `${queueCount} queues of ${queueSize} need ${neededBytes} bytes, the front-end gave ${mmapSizeBytes}`,
      )
    }
    this.queueCount = queueCount
    this.queueSize = queueSize
    try {
      // All that is claimed must be there, not only what is needed: the rest would be the first to be missed.
      this.#region = native.mapRegion(fd, 0n, 0n, mmapSizeBytes, mmapOffsetBytes)
    } catch (cause) {
      throw inflightError((cause as Error).message, cause)
    }
  }

  /** Where native code finds the region of a queue, which must be one of {@link queueCount}. */
  placeOf(queueIndex: number): NativeInflightPlace {
    const offsetBytes = queueIndex * strideBytes(this.queueSize)
    return { region: this.#region, offsetBytes, entryCount: this.queueSize }
  }

  /**
   * The driver has forgotten its requests: whoever attaches the regions next finds them fresh. No queue may be using them.
   */
  forget(): void {
    const words = new Uint16Array(this.#region.windows[0]!)
    for (let index = 0; index < this.queueCount; index++) {
      words[(index * strideBytes(this.queueSize) + VERSION_AT) / 2] = 0
    }
  }

  /** Lets the mapping go; queues that still use it keep it until they stop. Calling it again does nothing. */
  close(): void {
    this.#region.close()
  }
}

/** Throws `ERR_VHOST_INFLIGHT` unless both numbers are at least 1 and no ring is larger than rings can be. */
export function checkInflightLayout({ queueCount, queueSize }: InflightLayout): void {
  if (queueCount < 1) throw inflightError('it is for no queue')
  if (queueSize < 1 || queueSize > QUEUE_SIZE_MAX) {
    throw inflightError(`expected a queue size from 1 to ${QUEUE_SIZE_MAX}, got ${queueSize}`)
  }
}

/** The error for an in-flight region that cannot be used. */
export function inflightError(why: string, cause?: unknown): HushringError {
  return new HushringError('ERR_VHOST_INFLIGHT', `in-flight region refused: ${why}`, { cause })
}
