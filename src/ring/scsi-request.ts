import { type ErrorCode, HushringError } from '../errors.ts'
import { type FailedCompletion, RingRequest } from './request.ts'
import type { SegmentList } from './segments.ts'
import { type ScsiStatus, type Sense, SenseKey } from './sense.ts'

/** Longest CDB, in bytes: a variable-length one (SPC-4, 4.2.3), rounded up to words. */
export const CDB_BYTES_MAX = 264

/**
 * One SCSI command as it came off a ring. Its CDB was copied out when it was taken: the initiator's kernel can no
 * longer change it.
 *
 * The ring does not say in which direction the data of a command goes; its operation code does. `dataOut` and
 * `dataIn` are therefore the same memory unless the command is bidirectional, and the handler uses the one that its
 * operation code means. Data-In is **not** cleared by the kernel: a handler fills all of it, or says with
 * `ok(bytesWritten)` how much it filled.
 */
export class ScsiRequest extends RingRequest {
  /** The kernel's number of the command. It stands for another command as soon as this one is answered. */
  commandId = 0
  /** Length of {@link cdb}, 6 to {@link CDB_BYTES_MAX}. */
  cdbBytes = 0
  /** True when the command has Data-Out and Data-In. */
  isBidirectional = false
  readonly #cdb: Buffer
  #holdCount = 0
  #onLetGo: (() => void) | undefined

  /** @param newList makes the lists of data; default: plain ones */
  constructor(newList?: () => SegmentList) {
    super(CDB_BYTES_MAX, newList)
    this.#cdb = Buffer.from(this.headerWords.buffer)
  }

  /** The CDB. Borrowed like the segments; bytes from {@link cdbBytes} on mean nothing. */
  get cdb(): Buffer {
    return this.#cdb
  }

  /** Data from the initiator. */
  get dataOut(): SegmentList {
    return this.isBidirectional ? this.readable : this.writable
  }

  /** Room for data to the initiator. */
  get dataIn(): SegmentList {
    return this.writable
  }

  /**
   * The answer CHECK CONDITION. No data goes to the initiator.
   *
   * The error's code is that of `cause` if that is one of ours, else `ERR_SCSI_MEDIUM` for the sense keys that tell
   * of the medium (NOT READY, MEDIUM ERROR, HARDWARE ERROR) and `ERR_SCSI_REQUEST` for all others.
   *
   * @param sense what is wrong
   * @param cause the error behind it, kept as the `cause`
   */
  checkCondition(sense: Sense, cause?: unknown): FailedCompletion {
    const code = cause instanceof HushringError ? cause.code : codeOf(sense)
    const bytes = [sense.key, sense.asc, sense.ascq].map(hex).join('/')
    const message = cause instanceof Error ? `${bytes}: ${cause.message}` : `CHECK CONDITION ${bytes}`
    return this.fail(new HushringError(code, message, { cause, details: { sense } }))
  }

  /**
   * An answer with a status that carries no sense data, such as BUSY or TASK SET FULL.
   *
   * @param status {@link ScsiStatus}
   */
  status(status: (typeof ScsiStatus)[keyof typeof ScsiStatus]): FailedCompletion {
    return this.fail(
      new HushringError('ERR_SCSI_STATUS', `SCSI status ${hex(status)}`, { details: { status } }),
    )
  }

  /** Keeps the data of this command alone: a ring that can keeps its buffer beyond the answer (KEEP_BUF). */
  override hold(): () => void {
    this.#holdCount++
    let held = true
    return () => {
      if (!held) return
      held = false
      if (--this.#holdCount > 0) return
      const onLetGo = this.#onLetGo
      // Once: by the next time the buffer may be another command's.
      this.#onLetGo = undefined
      onLetGo?.()
    }
  }

  /** True while somebody needs the data, whether or not the command is answered. */
  get isHeld(): boolean {
    return this.#holdCount > 0
  }

  /** Calls `onLetGo` once, when nobody needs the data any more. Called by the ring, while the request is held. */
  whenLetGo(onLetGo: () => void): void {
    this.#onLetGo = onLetGo
  }

  override recycle(): void {
    super.recycle()
    this.#onLetGo = undefined
    this.isBidirectional = false
    this.cdbBytes = 0
  }
}

function codeOf({ key }: Sense): ErrorCode {
  const isOfMedium =
    key === SenseKey.NOT_READY || key === SenseKey.MEDIUM_ERROR || key === SenseKey.HARDWARE_ERROR
  return isOfMedium ? 'ERR_SCSI_MEDIUM' : 'ERR_SCSI_REQUEST'
}

function hex(byte: number): string {
  return byte.toString(16).toUpperCase().padStart(2, '0')
}
