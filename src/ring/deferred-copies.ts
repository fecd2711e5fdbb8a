import { CopyRow, type NativeCopies } from '../native.ts'
import type { StoreMemory } from './store-memory.ts'

/**
 * Copies between the data of requests and memory of stores, put off until somebody can look, and then done in one native
 * call, in their order: calls and misses of the caches are paid once a batch and not once a request.
 *
 * Whoever could see that a copy is still to be done calls {@link run} first:
 *
 * | who looks                                     | through                                              |
 * | --------------------------------------------- | ---------------------------------------------------- |
 * | the driver, once the answer is published      | `VirtQueue.publish`                                  |
 * | a layer or a store, at the data of a request  | every function of `SegmentList`                      |
 * | the store, at its own memory                  | {@link StoreMemory.bytes}                            |
 * | nobody; but the driver's memory may go        | `VirtQueue.stop`                                     |
 *
 * So one object serves every queue of a thread: two of them may serve the same disk.
 */
export class DeferredCopies {
  readonly #native: NativeCopies
  readonly #rows: Uint32Array
  readonly #rowCountMax: number
  /** Those that the rows name, at the front. What follows is old. */
  readonly #windows: Buffer[] = []
  #windowCount = 0
  #rowCount = 0
  /** A store that nobody closed ends with the garbage collector; what was attached for it would stay for ever. */
  readonly #forgotten: FinalizationRegistry<number>

  /** @param native owned */
  constructor(native: NativeCopies) {
    this.#native = native
    this.#rows = native.rows
    this.#rowCountMax = native.rowCountMax
    this.#forgotten = new FinalizationRegistry((index) => this.#detach(index))
  }

  /** Makes memory known to native code. @returns its index; whoever has it calls {@link detach} */
  attach(memory: StoreMemory, buffer: Buffer): number {
    const index = this.#native.attach(buffer)
    this.#forgotten.register(memory, index, memory)
    return index
  }

  /** The opposite of {@link attach}; first, what was put off is done. */
  detach(memory: StoreMemory, index: number): void {
    this.#forgotten.unregister(memory)
    this.#detach(index)
  }

  #detach(index: number): void {
    this.run()
    this.#native.detach(index)
  }

  /**
   * Puts one copy off.
   *
   * @param window of driver memory; borrowed until the copy is done, and left out if it is unmapped by then
   * @param storeIndex index of the store's memory; see {@link attach}
   * @param toStore false: from the store's memory to the window
   */
  add(
    window: Buffer,
    windowOffsetBytes: number,
    storeIndex: number,
    storeOffsetBytes: number,
    lengthBytes: number,
    toStore: boolean,
  ): void {
    const windowIndex = this.#indexOf(window)
    const rows = this.#rows
    const base = this.#rowCount * CopyRow.words
    rows[base + CopyRow.window] = windowIndex
    rows[base + CopyRow.windowOffsetBytes] = windowOffsetBytes
    rows[base + CopyRow.store] = storeIndex
    rows[base + CopyRow.storeOffsetBytes] = storeOffsetBytes
    rows[base + CopyRow.lengthBytes] = lengthBytes
    rows[base + CopyRow.toStore] = toStore ? 1 : 0
    if (++this.#rowCount === this.#rowCountMax) this.run()
  }

  #indexOf(window: Buffer): number {
    for (let index = 0; index < this.#windowCount; index++) {
      if (this.#windows[index] === window) return index
    }
    if (this.#windowCount === this.#native.windowCountMax) this.run()
    this.#windows[this.#windowCount] = window
    return this.#windowCount++
  }

  /** Does all that was put off. One native call, or none when there is nothing. */
  run(): void {
    if (this.#rowCount === 0) return
    this.#native.run(this.#rowCount, this.#windowCount, this.#windows)
    this.#rowCount = 0
    this.#windowCount = 0
  }
}
