import { lendPieces, SegmentList } from './segments.ts'

/**
 * The bytes of another list, lent to somebody whose work may go on when the other list must not be touched any more. What
 * is done by calls of this list works on the lent bytes. Before anything can outlive such a call, when views are asked for or
 * by {@link move}, the bytes are copied into memory of this process, and from then on the list is over that.
 */
export class LentSegments extends SegmentList {
  #memory: Buffer | undefined

  /**
   * Makes this the list of the bytes of `source` for the time of a call: before the lender answers its own caller, the call is
   * answered or the bytes are moved.
   */
  lend(source: SegmentList): this {
    this.#memory = undefined
    lendPieces(source, this)
    return this
  }

  /** Ends the loan: nothing that is done with this list touches the lent bytes any more. */
  move(): void {
    if (this.#memory !== undefined || this.count === 0) return
    this.#memory = this.toBuffer()
    this.clear()
    this.append(this.#memory, 0, this.#memory.length)
  }

  /** The bytes where they were moved to; undefined while they are the lent ones. */
  get moved(): Buffer | undefined {
    return this.#memory
  }

  protected override beforeExposure(): void {
    this.move()
  }
}
