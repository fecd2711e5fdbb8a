import { HushringError } from '../../errors.ts'
import { type Completion, Request } from '../../ring/request.ts'
import { SegmentList } from '../../ring/segments.ts'

/** What a driver asks of a disk. */
export type BlockVerb = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes'

/** Every {@link BlockVerb}. */
export const BLOCK_VERBS: readonly BlockVerb[] = ['read', 'write', 'flush', 'discard', 'writeZeroes']

/** True for the verbs that change what a later read returns. */
export function isWriting(verb: BlockVerb): boolean {
  return verb !== 'read' && verb !== 'flush'
}

/** Where a derived request differs from the one it comes from. */
export interface DerivedRequest {
  readonly verb?: BlockVerb
  readonly offsetBytes?: number
  /** For discard and writeZeroes; a read or a write is as long as its data. */
  readonly lengthBytes?: number
  readonly data?: SegmentList
  readonly mayUnmap?: boolean
}

/** The data of a request that has none. Never appended to. */
export const NO_DATA: SegmentList = new SegmentList()

/** One request to a disk. Borrowed by the handler until it answers. */
export class BlockRequest extends Request {
  verb: BlockVerb = 'read'
  /** First byte on the disk; a multiple of the disk's block size. 0 for a flush. */
  offsetBytes = 0
  /** Bytes to read, write, discard or zero. 0 for a flush. Always within the disk's capacity. */
  lengthBytes = 0
  /** Where read data goes, or where write data is. Empty for the other verbs. */
  data: SegmentList = NO_DATA
  /** True when a writeZeroes may give the space back. */
  mayUnmap = false
  #parent: Request | undefined
  /** A derived request can be aborted alone; a request of a codec is aborted with the one it stands for. */
  #derived = false
  /** Of a derived request: it is told when its parent is aborted. */
  #following = false

  /** One view a piece of {@link data}, for vectored I/O. */
  get segments(): readonly Uint8Array[] {
    return this.data.views()
  }

  override get signal(): AbortSignal {
    const parent = this.#parent
    if (parent === undefined) return super.signal
    if (!this.#derived) return parent.signal
    if (!this.#following) this.#follow(parent.signal)
    return super.signal
  }

  #follow(signal: AbortSignal): void {
    this.#following = true
    const parent = this.#parent
    const abort = (): void => {
      // Not the request that this object stands for by now.
      if (this.#parent === parent) this.abort(signal.reason)
    }
    if (signal.aborted) abort()
    else signal.addEventListener('abort', abort, { once: true })
  }

  override get isAborted(): boolean {
    return super.isAborted || (this.#parent?.isAborted ?? false)
  }

  override hold(): () => void {
    return this.#parent === undefined ? () => {} : this.#parent.hold()
  }

  /**
   * Makes this object stand for a request. Called by a transport's codec and by tests.
   *
   * @param parent the request this one came from; lends its signal and its memory
   */
  assign(
    parent: Request | undefined,
    verb: BlockVerb,
    offsetBytes: number,
    lengthBytes: number,
    data: SegmentList,
    mayUnmap = false,
  ): this {
    this.forgetSignal()
    // One that is used again mostly has the same there, and the store of an object costs its barrier.
    if (this.#parent !== parent) this.#parent = parent
    if (this.verb !== verb) this.verb = verb
    if (this.data !== data) this.data = data
    this.#derived = false
    this.offsetBytes = offsetBytes
    this.lengthBytes = lengthBytes
    this.mayUnmap = mayUnmap
    return this
  }

  /**
   * A request of a layer's own, to ask `next` for something else than the driver asked: another range, or the
   * same range into private memory. It keeps the memory of this one mapped and is aborted with it; aborting it
   * does not abort this one. What the new verb has no use for, such as the data of a discard, is left behind.
   *
   * @param derived becomes that request: one that was answered at once before, so that nobody can still hold it; default: a
   * new one
   */
  derive(changes: DerivedRequest, derived: BlockRequest = new BlockRequest()): BlockRequest {
    const { verb = this.verb, offsetBytes = this.offsetBytes, mayUnmap = this.mayUnmap } = changes
    if (verb === 'flush') {
      derived.assign(this, verb, 0, 0, NO_DATA)
    } else if (verb === 'read' || verb === 'write') {
      const { data = this.data } = changes
      derived.assign(this, verb, offsetBytes, data.byteLength, data)
    } else {
      const { lengthBytes = this.lengthBytes } = changes
      derived.assign(this, verb, offsetBytes, lengthBytes, NO_DATA, mayUnmap)
    }
    derived.#derived = true
    derived.#following = false
    return derived
  }

  /**
   * The answer to a transfer: `ok` when it moved all the bytes of this request, else a failure with
   * `ERR_STORE_SHORT`, because a driver would take bytes that nobody wrote for data of the disk.
   *
   * @param countBytes bytes read or written
   */
  transferred(countBytes: number): Completion {
    if (countBytes === this.lengthBytes) return this.ok()
    return this.fail(
      new HushringError(
        'ERR_STORE_SHORT',
        `${this.verb}: ${countBytes} of ${this.lengthBytes} bytes were transferred`,
        {
          details: {
            verb: this.verb,
            offsetBytes: this.offsetBytes,
            lengthBytes: this.lengthBytes,
            countBytes,
          },
        },
      ),
    )
  }
}
