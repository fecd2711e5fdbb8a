import type { DeferredCopies } from './deferred-copies.ts'

/** A piece of a store's own memory, zeros at first, which the data of requests can be copied from and to later. */
export class StoreMemory {
  readonly #buffer: Buffer
  #copies: DeferredCopies | undefined
  #index = 0

  /** @param sizeBytes at most 2^32 - 1 */
  constructor(sizeBytes: number) {
    this.#buffer = Buffer.alloc(sizeBytes)
  }

  /** The bytes, after every copy that was put off. Borrowed: to be asked for anew after each transfer. */
  get bytes(): Buffer {
    this.#copies?.run()
    return this.#buffer
  }

  get byteLength(): number {
    return this.#buffer.length
  }

  /** The index of this memory there. For `SegmentList`. */
  indexIn(copies: DeferredCopies): number {
    if (this.#copies !== copies) {
      this.release()
      this.#index = copies.attach(this, this.#buffer)
      this.#copies = copies
    }
    return this.#index
  }

  /** Gives the memory back; it can be used on. Otherwise the garbage collector does it, some time after the last use. */
  release(): void {
    this.#copies?.detach(this, this.#index)
    this.#copies = undefined
  }
}
