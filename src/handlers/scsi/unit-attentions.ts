import type { Sense } from '../../ring/sense.ts'

/**
 * Conditions that a logical unit owes its initiators: each is told once, with the next command that may hear of it
 * (SAM-5, 5.14). TCMU does not say which initiator a command comes from, so "once" is once a logical unit.
 */
export class UnitAttentions {
  readonly #pending: Sense[] = []

  /** True while a condition has not been told. */
  get pending(): boolean {
    return this.#pending.length > 0
  }

  /** Adds a condition. One that waits already is not added again. */
  raise(sense: Sense): void {
    const waits = this.#pending.some(({ asc, ascq }) => asc === sense.asc && ascq === sense.ascq)
    if (!waits) this.#pending.push(sense)
  }

  /** The oldest condition, which is thereby told; undefined when there is none. */
  take(): Sense | undefined {
    return this.#pending.shift()
  }
}
