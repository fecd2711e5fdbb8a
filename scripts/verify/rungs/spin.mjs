// The protocol of notification as a Promela model (test/models/split.pml), every state of it visited by spin: a second
// opinion that shares no line with the product.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from '../../processes.mjs'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'

const model = join(root, 'test/models/split.pml')
const eventIdx = '-DEVENT_IDX'

/** What is left out of the model, by the mutant that it stands for; '' is the whole model. */
const variants = [
  { mutant: '', way: 'EVENT_IDX', defines: [eventIdx] },
  { mutant: '', way: 'flags', defines: [] },
  { mutant: 'F2-event-idx', way: 'EVENT_IDX', defines: [eventIdx, '-DF2'] },
  { mutant: 'F2-flags', way: 'flags', defines: ['-DF2'] },
  { mutant: 'F4-event-idx', way: 'EVENT_IDX', defines: [eventIdx, '-DF4'] },
  { mutant: 'F4-flags', way: 'flags', defines: ['-DF4'] },
  { mutant: 'F5', way: 'EVENT_IDX', defines: [eventIdx, '-DF5'] },
  { mutant: 'F5', way: 'flags', defines: ['-DF5'] },
]

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '4',
  title: 'the protocol, by spin',
  tools: ['spin', 'cc'],
  packages: ['spin', 'gcc', 'libc6-dev'],
  killsMutants: true,
  async run({ show }) {
    const results = { ...noResults(), killed: {} }
    let states = 0
    for (const { mutant, way, defines } of variants) {
      const output = await check(defines)
      const found = /errors: (\d+)/.exec(output)
      const errors = Number(found?.[1] ?? Number.NaN)
      states += mutant === '' ? Number(/(\d+) states, stored/.exec(output)?.[1] ?? 0) : 0
      const isLost = output.includes('invalid end state (at depth')
      const isRight = mutant === '' ? errors === 0 : errors > 0 && isLost
      if (mutant !== '') results.killed[mutant] = isRight && results.killed[mutant] !== false
      if (isRight) results.passed++
      else results.failed.push(`${mutant || 'the model'}, ${way}: ${errors} errors`)
      if (!isRight) show(output)
    }
    return { ...results, figure: `${states} states of the whole model` }
  },
}

/** Runs spin over the model with some of it left out. @returns {Promise<string>} what its verifier says */
async function check(defines) {
  const folder = await mkdtemp(join(tmpdir(), 'hushring-spin-'))
  try {
    // spin writes its verifier into the folder it runs in.
    const script = 'cd "$1" && shift && spin "$@" -a "$0" && cc -O2 -DSAFETY -o pan pan.c && ./pan -m1000000'
    return (await run(['sh', '-c', script, model, folder, ...defines])).output
  } finally {
    await rm(folder, { recursive: true })
  }
}
