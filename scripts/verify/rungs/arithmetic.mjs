// The arithmetic of event-index suppression, tried exhaustively, with wrong variants that must come out wrong.
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { run } from '../../processes.mjs'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '1',
  title: 'the arithmetic, exhaustively',
  tools: ['g++'],
  packages: ['g++'],
  async run({ show }) {
    const results = noResults()
    const program = join(root, 'out/arithmetic')
    mkdirSync(join(root, 'out'), { recursive: true })
    const built = await run([
      ...['g++', '-std=c++20', '-O3', '-Wall', '-Wextra', '-Werror', '-Inative'],
      ...['native/test/exhaustive/arithmetic.cpp', '-o', program],
    ])
    if (built.status !== 0) {
      show(built.output.trimEnd())
      return { ...results, failed: ['the program does not compile'], figure: 'none' }
    }
    const { status, output } = await run([program])
    let caseCount = 0
    let wrongCount = 0
    for (const line of output.trimEnd().split('\n')) {
      const [name, cases, wrong, expectation] = line.split('\t')
      const isAsItShould = expectation === 'wrong' ? Number(wrong) > 0 : Number(wrong) === 0
      if (Number(cases) > 0 && isAsItShould) results.passed++
      else results.failed.push(`${name}: ${wrong} of ${cases} wrong`)
      if (expectation !== 'right') continue
      caseCount += Number(cases)
      wrongCount += Number(wrong)
    }
    if (status !== 0) results.failed.push(`the program ended with ${status}`)
    return { ...results, figure: `${caseCount} cases, ${wrongCount} wrong` }
  },
}
