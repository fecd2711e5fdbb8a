// Every order of the rings' accesses under four memory models (native/explore): the product must be right in each state,
// and each mutant must come to a mistake.
import { join } from 'node:path'
import { buildNative } from '../../native-tests.mjs'
import { run } from '../../processes.mjs'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'

const parts = 2

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '3',
  title: 'every order of accesses',
  tools: ['cmake', 'ninja'],
  packages: ['cmake', 'ninja-build', 'doctest-dev'],
  killsMutants: true,
  async run({ show }) {
    const { missing, failure, output } = await buildNative('test', { target: 'hushring_explore' })
    if (missing.length > 0) return { ...noResults(), figure: '', notRun: `no ${missing.join(', no ')}` }
    if (failure !== undefined) show(output)
    if (failure !== undefined) return { ...noResults(), failed: [failure], figure: 'none' }
    const program = join(root, 'out/test/hushring_explore')
    const runs = await Promise.all(
      Array.from({ length: parts }, (_, part) => run([program, '--part', `${part}/${parts}`])),
    )
    return readExplorations(runs.map(({ output }) => output).join(''), show)
  },
}

/**
 * Reads what hushring_explore prints: a line for each exploration, and below a wrong one its story.
 *
 * @param {string} output
 * @param {(line: string) => void} show
 */
function readExplorations(output, show) {
  const results = { ...noResults(), killed: {} }
  let [states, edges] = [0, 0]
  for (const line of output.trimEnd().split('\n')) {
    const found =
      /^(ok|WRONG) (product|mutant): (?<name>.*), (?<model>\w+): (?<outcome>.*): (?<states>\d+) states, (?<edges>\d+) edges/.exec(
        line,
      )
    if (found === null) {
      show(line)
      continue
    }
    const [, verdict, kind] = found
    const { name, model, outcome } = found.groups
    if (verdict === 'ok') results.passed++
    else results.failed.push(`${kind} ${name} under ${model}: ${outcome}`)
    if (kind === 'mutant' && outcome !== 'every state is right') results.killed[name] = verdict === 'ok'
    states += Number(found.groups.states)
    edges += Number(found.groups.edges)
  }
  return { ...results, figure: `${states} states, ${edges} edges` }
}
