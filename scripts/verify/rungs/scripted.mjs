// The interleavings of native/test that are played by hand, each in one thread or with the other one held: the mutants
// among them must lose a wake-up. The product's own are part of the native tests.
import { buildNative } from '../../native-tests.mjs'
import { run } from '../../processes.mjs'
import { noResults } from '../../test-results.mjs'
import { mutants } from '../mutants.mjs'

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '3',
  title: 'interleavings played by hand',
  tools: ['cmake', 'ninja'],
  packages: ['cmake', 'ninja-build', 'doctest-dev'],
  killsMutants: true,
  async run({ show }) {
    const { missing, failure, output: built } = await buildNative('test', { target: 'hushring_tests' })
    if (missing.length > 0) return { ...noResults(), figure: '', notRun: `no ${missing.join(', no ')}` }
    if (failure !== undefined) show(built)
    if (failure !== undefined) return { ...noResults(), failed: [failure], figure: 'none' }
    const results = { ...noResults(), killed: {} }
    const ids = mutants.filter(({ killers }) => killers.includes('scripted')).map(({ id }) => id)
    for (const id of ids) {
      const { status, output } = await run([
        'out/test/hushring_tests',
        `--test-case=ordering: mutant ${id}:*`,
      ])
      const isKilled = status === 0 && / 1 passed \| 0 failed/.test(output)
      results.killed[id] = isKilled
      if (isKilled) results.passed++
      else results.failed.push(`mutant ${id}`)
      if (!isKilled) show(output)
    }
    return { ...results, figure: `${ids.length} mutants` }
  },
}
