import { integerIn, numberIn, refuseUnknownOptions } from '../options.ts'

/** What a policy knows when answers are ready to be published. */
export interface Load {
  /** Answers recorded and not yet published. */
  readonly readyCount: number
  /** Requests taken and not yet answered; 0 means that nothing more will be ready unless the driver sends it. */
  readonly unansweredCount: number
  /**
   * True while the other side cannot go on without these answers. TCMU: the ring or the data area is nearly full, or
   * a task management function waits for its commands. A virtio driver says such things with its event index, so
   * there it is always false.
   */
  readonly urgent: boolean
}

/**
 * How long ready answers may wait for company: `now`, until the end of the `turn` of the event loop, or so many
 * microseconds, at most 1,000,000. A number out of range means `now`.
 */
export type Hold = 'now' | 'turn' | number

/**
 * Decides how long answers are held so that they share one index store, one barrier and at most one signal.
 * It is asked each time answers become ready. The first hold of a group is its deadline: later answers can end
 * it earlier, never later.
 *
 * A policy only delays a decision. Whether the driver is signalled is always decided by what it asked for
 * (used_event or its flags) at the moment of publishing.
 */
export type SuppressionPolicy = (load: Load) => Hold

/** The protocol's own suppression and nothing more: every answer is published at once. */
export function immediate(): SuppressionPolicy {
  return () => 'now'
}

/** Options of {@link coalesce}. */
export interface CoalesceOptions {
  /** Publish as soon as so many answers are ready. 1 to 32768. */
  readonly countMax: number
  /**
   * Publish at the latest so many µs after the first of them was ready, 0 to 1,000,000. 0 is the end of the turn of
   * the event loop.
   */
  readonly holdMicrosMax: number
}

/**
 * Gathers up to `countMax` answers for at most `holdMicrosMax`. When the last request in flight is answered
 * nothing is gained by waiting, so that group goes out at once; and so does a group that the other side waits for.
 */
export function coalesce(options: CoalesceOptions): SuppressionPolicy {
  refuseUnknownOptions(options, ['countMax', 'holdMicrosMax'])
  const countMax = integerIn('countMax', options.countMax, 1, 32768)
  const holdMicrosMax = numberIn('holdMicrosMax', options.holdMicrosMax, 0, 1_000_000)
  const hold = holdMicrosMax === 0 ? 'turn' : holdMicrosMax
  return ({ readyCount, unansweredCount, urgent }) =>
    urgent || unansweredCount === 0 || readyCount >= countMax ? 'now' : hold
}

/**
 * The default: answers that come alone go out alone, answers that come in a crowd go out together. As long as
 * requests are unanswered, ready ones wait for the end of the turn of the event loop, in which everything that
 * finished meanwhile is gathered; 64 ready answers are crowd enough.
 */
export function adaptive(): SuppressionPolicy {
  return coalesce({ countMax: 64, holdMicrosMax: 0 })
}

/** The most impatient of several policies: answers go out as soon as one of them says so. At least one is needed. */
export function soonest(
  first: SuppressionPolicy,
  ...others: readonly SuppressionPolicy[]
): SuppressionPolicy {
  return (load) => others.reduce((hold, policy) => sooner(hold, policy(load)), first(load))
}

function sooner(one: Hold, other: Hold): Hold {
  if (one === 'now' || other === 'now') return 'now'
  if (one === 'turn' || other === 'turn') return 'turn'
  return Math.min(one, other)
}
