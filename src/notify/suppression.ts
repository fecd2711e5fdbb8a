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
  /** True while a hold runs for answers that were ready before; the policy may end it or let it run on. */
  readonly held: boolean
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
export interface SuppressionPolicy {
  (load: Load): Hold
  /**
   * Longest time in µs, 0 to 1,000, that a virtqueue which has answered everything looks for the next request before it
   * asks for a kick. Its thread does nothing else meanwhile. How long it really looks is learned; see {@link BusyPoll}.
   * Left out: 0. Has no meaning for TCMU, whose kernel cannot be told to keep silent.
   */
  readonly pollMicrosMax?: number
}

/** The protocol's own suppression and nothing more: every answer is published at once. */
export function immediate(): SuppressionPolicy {
  return () => 'now'
}

/** Longest busy poll that can be asked for, in µs. */
const POLL_MICROS_MAX = 1000

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
  return (load) => (isWorthPublishing(load, countMax) ? 'now' : hold)
}

/** Whether a group is large enough, nothing more comes to it unless it goes out, or the other side waits for it. */
function isWorthPublishing({ readyCount, unansweredCount, urgent }: Load, countMax: number): boolean {
  return urgent || unansweredCount === 0 || readyCount >= countMax
}

/** Options of {@link adaptive}. */
export interface AdaptiveOptions {
  /** Longest busy poll in µs, 0 to 1,000; see {@link SuppressionPolicy}. Default 100. */
  readonly pollMicrosMax?: number
}

/** How many ready answers are a crowd: a quarter of what is in flight, within these limits. */
const CROWD_COUNT = { min: 8, max: 64 } as const

/**
 * The default: answers that come alone go out alone, answers that come in a crowd go out together. As long as
 * requests are unanswered, ready ones wait for the end of the turn of the event loop, in which everything that
 * finished meanwhile is gathered, or until they are a quarter of what is in flight, 8 at least and 64 at most: with those
 * the other side has something to do while the rest is answered. While requests keep coming, a virtqueue that has
 * answered everything looks for the next one for a while before it asks for a kick.
 */
export function adaptive(options: AdaptiveOptions = {}): SuppressionPolicy {
  refuseUnknownOptions(options, ['pollMicrosMax'])
  const pollMicrosMax = numberIn('pollMicrosMax', options.pollMicrosMax ?? 100, 0, POLL_MICROS_MAX)
  const hold = (load: Load): Hold => {
    const quarter = (load.readyCount + load.unansweredCount) / 4
    const crowdCount = Math.min(CROWD_COUNT.max, Math.max(CROWD_COUNT.min, quarter))
    return isWorthPublishing(load, crowdCount) ? 'now' : 'turn'
  }
  return Object.assign(hold, { pollMicrosMax })
}

/** Options of {@link anticipate}. */
export interface AnticipateOptions {
  /** Publish as soon as so many answers are ready, whatever was learned. 1 to 32768. Default 32. */
  readonly countMax?: number
  /** Publish at the latest so many µs after the first of them was ready, 1 to 1,000,000. Default 100. */
  readonly holdMicrosMax?: number
}

/**
 * Groups between two tries whether more would come: rare enough for the 99th percentile, and twice as rare after each try
 * in which nobody came, so that one request at a time pays next to nothing.
 */
const GROUPS_PER_TRY = { min: 128, max: 8192 } as const

/**
 * Waits for company only where company was seen to come, also when nothing is unanswered: a store that answers at once
 * would otherwise publish each answer alone, because the other side sends the next request only when it got the last
 * answer or the processor.
 *
 * Once in a while it holds a group, for at most `holdMicrosMax`, and learns how many answers come meanwhile. From then
 * on it publishes when two thirds as many are ready, so that the other side has something to do while the rest is
 * answered. One request at a time is learned as well, and then nothing is held.
 *
 * It has state: make one for each queue or device.
 */
export function anticipate(options: AnticipateOptions = {}): SuppressionPolicy {
  refuseUnknownOptions(options, ['countMax', 'holdMicrosMax'])
  const countMax = integerIn('countMax', options.countMax ?? 32, 1, 32768)
  const holdMicrosMax = numberIn('holdMicrosMax', options.holdMicrosMax ?? 100, 1, 1_000_000)
  let expectedCount = 1
  let heldCount = 0
  let groupsPerTry: number = GROUPS_PER_TRY.min
  let groupsUntilTry = groupsPerTry

  const learnFromExpiry = (): void => {
    groupsPerTry = heldCount > 1 ? GROUPS_PER_TRY.min : Math.min(2 * groupsPerTry, GROUPS_PER_TRY.max)
    groupsUntilTry = groupsPerTry
    expectedCount = Math.ceil((heldCount * 2) / 3)
    heldCount = 0
  }

  /** A group was as large as expected, so more may come; twice as many are waited for as long as that goes well. */
  const learnFromSuccess = (readyCount: number): void => {
    if (groupsUntilTry > 0) groupsUntilTry--
    else expectedCount = Math.min(countMax, 2 * Math.max(expectedCount, readyCount))
  }

  return ({ readyCount, urgent, held }) => {
    if (!held && heldCount > 0) learnFromExpiry()
    // Several at once: there is company again.
    if (readyCount > 1) {
      groupsPerTry = GROUPS_PER_TRY.min
      groupsUntilTry = Math.min(groupsUntilTry, groupsPerTry)
    }
    if (!urgent && readyCount < expectedCount) {
      heldCount = readyCount
      return holdMicrosMax
    }
    heldCount = 0
    if (readyCount >= expectedCount) learnFromSuccess(readyCount)
    return 'now'
  }
}

/** The most impatient of several policies: answers go out as soon as one of them says so. At least one is needed. */
export function soonest(
  first: SuppressionPolicy,
  ...others: readonly SuppressionPolicy[]
): SuppressionPolicy {
  const pollMicrosMax = Math.max(...[first, ...others].map((policy) => policy.pollMicrosMax ?? 0))
  return Object.assign(
    (load: Load) => others.reduce((hold, policy) => sooner(hold, policy(load)), first(load)),
    { pollMicrosMax },
  )
}

function sooner(one: Hold, other: Hold): Hold {
  if (one === 'now' || other === 'now') return 'now'
  if (one === 'turn' || other === 'turn') return 'turn'
  return Math.min(one, other)
}
