import { setImmediate as turn } from 'node:timers/promises'

/** Lets the event loop turn until `condition` holds. The test's own timeout is the limit. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn()
}
