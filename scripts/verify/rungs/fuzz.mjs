// libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer on what reads memory of a hostile peer. Each target must
// find nothing in the product, and the bugs that are planted in builds of their own.
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'
import { buildFuzzTarget, fuzz, fuzzPackages, fuzzTargets, fuzzTools } from '../fuzz-targets.mjs'

const seconds = 10
/** A planted bug is found within 10 s on a quiet machine; the search ends with it. */
const plantedSecondsMax = 60

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '8',
  title: 'fuzzing',
  tools: fuzzTools,
  packages: fuzzPackages,
  async run({ show }) {
    const results = noResults()
    const corpusOf = (name) => join(root, 'out/fuzz', name, 'corpus')
    const figures = await Promise.all(
      fuzzTargets.map(async (target) => {
        const program = await buildFuzzTarget(target)
        const corpus = corpusOf(target.name)
        const found = await fuzz(program, { seconds, corpus })
        if (found.found || found.executions === 0) {
          results.failed.push(`${target.name} finds something`)
          show(found.output)
        } else {
          results.passed++
        }
        const rate = Math.round(found.executions / seconds)
        return `${target.name} ${found.executions} inputs (${rate}/s), ${found.edges} edges, corpus ${found.inputs}`
      }),
    )
    const planted = fuzzTargets.map(async (target) => {
      for (const bug of target.bugs) {
        const program = await buildFuzzTarget(target, bug)
        const corpus = join(root, 'out/fuzz', `${target.name}-planted`, 'corpus')
        await rm(corpus, { recursive: true, force: true })
        const found = await fuzz(program, { seconds: plantedSecondsMax, corpus })
        if (found.found) results.passed++
        else results.failed.push(`${target.name} does not find: ${bug.name}`)
      }
    })
    await Promise.all(planted)
    return { ...results, figure: figures.join('; ') }
  },
}
