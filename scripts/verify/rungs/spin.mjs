// What the specifications say, as Promela models (test/models), every state of them visited by spin: a second opinion
// that shares no line with the product.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from '../../processes.mjs'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'

const eventIdx = '-DEVENT_IDX'

const somebodyWaitsForEver = 'invalid end state (at depth'
const aRuleIsBroken = 'assertion violated'

/**
 * What is checked of each model: whole, and with something left out or in another order, by the mutant that it stands
 * for. `mistake` is what spin must say of each of those.
 */
const models = {
  split: {
    mistake: somebodyWaitsForEver,
    variants: [
      { way: 'EVENT_IDX', defines: [eventIdx] },
      { way: 'flags', defines: [] },
      { mutant: 'F2-event-idx', way: 'EVENT_IDX', defines: [eventIdx, '-DF2'] },
      { mutant: 'F2-flags', way: 'flags', defines: ['-DF2'] },
      { mutant: 'F4-event-idx', way: 'EVENT_IDX', defines: [eventIdx, '-DF4'] },
      { mutant: 'F4-flags', way: 'flags', defines: ['-DF4'] },
      { mutant: 'F5', way: 'EVENT_IDX', defines: [eventIdx, '-DF5'] },
      { mutant: 'F5', way: 'flags', defines: ['-DF5'] },
    ],
  },
  doorbell: {
    mistake: somebodyWaitsForEver,
    variants: [
      { way: 'one completer', defines: [] },
      { mutant: 'F11', way: 'two completers', defines: ['-DF11'] },
    ],
  },
  inflight: {
    mistake: aRuleIsBroken,
    variants: [
      { way: 'killed twice', defines: [] },
      { mutant: 'F13-mark', way: 'killed twice', defines: ['-DF13_MARK'] },
      { mutant: 'F13-batch', way: 'killed twice', defines: ['-DF13_BATCH'] },
      { mutant: 'F13-clear', way: 'killed twice', defines: ['-DF13_CLEAR'] },
      { mutant: 'F13-used', way: 'killed twice', defines: ['-DF13_USED'] },
    ],
  },
}

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '4',
  title: 'the protocols, by spin',
  tools: ['spin', 'cc'],
  packages: ['spin', 'gcc', 'libc6-dev'],
  killsMutants: true,
  async run({ show }) {
    const results = { ...noResults(), killed: {} }
    let states = 0
    for (const [model, { mistake, variants }] of Object.entries(models)) {
      for (const { mutant, way, defines } of variants) {
        const output = await check(model, defines)
        const errors = Number(/errors: (\d+)/.exec(output)?.[1] ?? Number.NaN)
        if (mutant === undefined) states += Number(/(\d+) states, stored/.exec(output)?.[1] ?? 0)
        const isRight = mutant === undefined ? errors === 0 : errors > 0 && output.includes(mistake)
        if (mutant !== undefined) results.killed[mutant] = isRight && results.killed[mutant] !== false
        if (isRight) results.passed++
        else results.failed.push(`${model}, ${mutant ?? 'the whole model'}, ${way}: ${errors} errors`)
        if (!isRight) show(output)
      }
    }
    return { ...results, figure: `${states} states of the whole models` }
  },
}

/** Runs spin over the model with some of it left out. @returns {Promise<string>} what its verifier says */
async function check(model, defines) {
  const folder = await mkdtemp(join(tmpdir(), 'hushring-spin-'))
  try {
    // spin writes its verifier into the folder it runs in.
    const script = 'cd "$1" && shift && spin "$@" -a "$0" && cc -O2 -DSAFETY -o pan pan.c && ./pan -m1000000'
    return (await run(['sh', '-c', script, join(root, `test/models/${model}.pml`), folder, ...defines]))
      .output
  } finally {
    await rm(folder, { recursive: true })
  }
}
