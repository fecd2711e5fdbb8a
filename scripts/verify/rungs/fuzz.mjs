// libFuzzer on what hostile peers send: the core, with AddressSanitizer and UndefinedBehaviorSanitizer, on memory that
// they write; what TypeScript parses, on messages and commands. Each target must find nothing in the product, and the
// bugs that are planted in builds of their own.
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'
import { buildFuzzTarget, fuzz, fuzzPackages, fuzzTargets, fuzzTools } from '../fuzz-targets.mjs'

const seconds = 10
/** A planted bug is found within 10 s on a quiet machine; the search ends with it. */
const plantedSecondsMax = 60
/** Programs at a time: one a processor of a small machine. */
const atATime = 2

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '8',
  title: 'fuzzing',
  tools: fuzzTools,
  packages: fuzzPackages,
  async run({ show }) {
    const results = noResults()
    const figures = []
    const product = fuzzTargets.map((target, index) => async () => {
      const command = await buildFuzzTarget(target)
      const found = await fuzz(target, command, { seconds, corpus: corpusOf(target.name) })
      if (found.found || found.executions === 0) {
        results.failed.push(`${target.name} finds something`)
        show(found.output)
      } else {
        results.passed++
      }
      const rate = Math.round(found.executions / seconds)
      figures[index] =
        `${target.name} ${found.executions} inputs (${rate}/s), ${found.edges} edges, corpus ${found.inputs}`
    })
    const slowest = { name: 'none', ms: 0 }
    const planted = fuzzTargets.flatMap((target) =>
      target.bugs.map((bug, index) => async () => {
        const command = await buildFuzzTarget(target, bug)
        const corpus = corpusOf(`${target.name}-planted-${index + 1}`)
        await rm(corpus, { recursive: true, force: true })
        const start = performance.now()
        const found = await fuzz(target, command, { seconds: plantedSecondsMax, corpus })
        const ms = performance.now() - start
        if (ms > slowest.ms) Object.assign(slowest, { name: bug.name, ms })
        if (found.found) results.passed++
        else results.failed.push(`${target.name} does not find: ${bug.name}`)
      }),
    )
    const jobs = [...product, ...planted]
    const work = async () => {
      for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) await job()
    }
    await Promise.all(Array.from({ length: atATime }, work))
    figures.push(`slowest planted bug ${(slowest.ms / 1000).toFixed(1)} s (${slowest.name})`)
    return { ...results, figure: figures.join('; ') }
  },
}

function corpusOf(name) {
  return join(root, 'out/fuzz/corpora', name, 'corpus')
}
