// The native tests under ThreadSanitizer, two threads on one ring with a plain payload; each mutant must be reported as
// a data race (CTest demands the report).
import { nativeTests } from '../../native-tests.mjs'

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '6',
  title: 'ThreadSanitizer on the real core',
  tools: ['clang++-14', 'cmake', 'ninja'],
  packages: ['clang-14', 'libclang-rt-14-dev', 'cmake', 'ninja-build', 'doctest-dev'],
  killsMutants: true,
  async run({ inCi, show }) {
    const { output = '', ...results } = await nativeTests('tsan', { inCi, show })
    const verdicts = [...output.matchAll(/Test +#\d+: mutant_(\S+) \.* *(Passed|\*+.*?) /g)]
    const killed = Object.fromEntries(verdicts.map(([, mutant, verdict]) => [mutant, verdict === 'Passed']))
    return { ...results, killed, figure: `${results.passed} cases, ${results.failed.length} with a report` }
  },
}
