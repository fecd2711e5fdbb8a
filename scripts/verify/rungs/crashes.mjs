// A device that is killed after every single store it makes, and at every pair of them: native/test/inflight_test.cpp.
// A mutant counts as killed when its test tells the store after which it lost or doubled a request.
import { run } from '../../processes.mjs'
import { noResults, readCtest } from '../../test-results.mjs'

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '10',
  title: 'a kill between any two stores',
  tools: ['cmake', 'ninja'],
  packages: ['cmake', 'ninja-build', 'doctest-dev'],
  killsMutants: true,
  async run({ show }) {
    const results = { ...noResults(), killed: {}, figure: 'none' }
    const preset = 'test'
    const program = 'hushring_tests'
    for (const command of [
      ['cmake', '--preset', preset],
      ['cmake', '--build', '--preset', preset, '--target', program],
    ]) {
      const { status, output } = await run(command)
      if (output.includes('"doctest"'))
        return { ...results, notRun: 'no doctest; apt-get install doctest-dev' }
      if (status === 0) continue
      show(output)
      return { ...results, failed: [`${command.join(' ')} ended with ${status}`] }
    }
    const { status, output } = await run([`out/${preset}/${program}`, '--source-file=*inflight_test.cpp'])
    // The program reports like one that ctest runs.
    const lines = output.split('\n').map((line) => `1: ${line}`)
    const verdict = status === 0 ? 'Passed' : '***Failed'
    readCtest([...lines, `1/1 Test #1: ${program} ... ${verdict} 0.0 sec`].join('\n'), results, show)
    const stories = /^TEST CASE: +control: mutant (F13-\S+) is noticed$|MESSAGE: (killed after store .*)$/gm
    let mutant
    for (const [, id, story] of output.matchAll(stories)) {
      if (id !== undefined) results.killed[id] = false
      else if (mutant !== undefined) results.killed[mutant] = true
      if (story !== undefined && mutant !== undefined) show(`${mutant}: ${story}`)
      mutant = id
    }
    results.figure = /MESSAGE: (killed after each of .*)$/m.exec(output)?.[1] ?? 'none'
    return results
  },
}
