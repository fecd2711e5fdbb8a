import { setImmediate as turn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/** Collects all garbage, and lets the event loop turn for finalizers and whatever closes with it. */
export async function collectGarbage(): Promise<void> {
  for (let round = 0; round < 2; round++) {
    collect()
    await turn()
  }
}
