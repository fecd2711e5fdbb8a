/** How far a 16-bit index has to go from one value to reach another: 0 to 65535. Indices wrap on purpose. */
export function indexDistance(from: number, to: number): number {
  return (to - from) & 0xffff
}

/**
 * Whether somebody who asked to be told of the entry `event` is owed a notification (virtio 1.3, 2.7.7.2 and 2.7.10):
 * that is one of the entries old, old+1, …, fresh-1, which were published since the last decision.
 *
 * @param event `used_event` or `avail_event`
 * @param fresh the publisher's index now
 * @param old the publisher's index at its last decision, whether that one notified or not
 */
export function needEvent(event: number, fresh: number, old: number): boolean {
  return indexDistance(old, event) < indexDistance(old, fresh)
}

/**
 * Whether an index that moved from `before` to `fresh` came round to `decided`, its value at the last decision, a whole
 * lap later. {@link needEvent} can then no longer be asked with it, and the next decision notifies.
 */
export function indexLapped(decided: number, fresh: number, before: number): boolean {
  const moved = indexDistance(before, fresh)
  const toDecided = indexDistance(before, decided)
  return toDecided > 0 && toDecided <= moved
}
