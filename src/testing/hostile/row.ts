import type { ErrorCode } from '../../errors.ts'
import type { Stage } from './stage.ts'

/** What a back-end may make of bad input. */
export type HostileExpectation =
  /** The input is legal, or does no harm: it is served. */
  | 'served'
  /** That request alone fails or is skipped; its queue serves the next one. */
  | 'request fails'
  /** The queue stops and says so (SET_VRING_ERR); the other queues go on, and a new start of this one revives it. */
  | 'queue broken'
  /** The back-end hangs up and takes the next front-end. */
  | 'protocol error'

/** What a back-end made of it, seen from the other end of its socket. */
export type HostileOutcome =
  | HostileExpectation
  /** Nothing happened in time: a request, a queue or the whole back-end hangs. */
  | 'no answer'
  /** The back-end does not offer what the row needs. */
  | 'not offered'

/** One bad input. */
export interface HostileRow {
  /** Number of its row in the table of docs/verification.md. */
  readonly row: number
  /** `row N:` and what is wrong, in a few words; no two rows have the same. */
  readonly title: string
  readonly expectation: HostileExpectation
  /** The same where it differs for a back-end that gives a queue up at its first malformed chain (`--strict`). */
  readonly strictExpectation?: HostileExpectation
  /** What hushring says about it, any of these; by default nothing. With `strictExpectation`: only when strict. */
  readonly codes?: readonly ErrorCode[]
  /** Does it. */
  readonly play: (stage: Stage) => Promise<HostileOutcome>
}
