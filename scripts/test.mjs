// npm test, after scripts/setup.mjs: runs every suite and ends with one line of counts.
//
//   npm test                      everything this machine can run
//   npm test -- --only unit,native
//
// With CI set, instructions, asan, verify and package run without being asked for, and a missing tool is a failure and not a skip.
// tsan is a rung of verify.
import { parseArgs } from 'node:util'
import { avaTests } from './ava-tests.mjs'
import { instructions } from './instructions.mjs'
import { nativeTests } from './native-tests.mjs'
import { run } from './processes.mjs'
import { noResults, summaryLine } from './test-results.mjs'
import { verify } from './verify/ladder.mjs'

const inCi = Boolean(process.env.CI)

const isOfTcmu = (file) => file.includes('/tcmu')

const suites = {
  lint: () => check('Biome has nothing to say', ['biome', 'ci', '--colors=off', '.']),
  types: () => check('the types fit', ['tsc', '-p', 'tsconfig.json']),
  unit: () => avaTests('unit'),
  native: () => nativeTests('test', { inCi }),
  tcmu: () => avaTests('front-ends', { only: isOfTcmu }),
  'front-ends': () => avaTests('front-ends', { only: (file) => !isOfTcmu(file) }),
  instructions: () => instructions({ inCi, show: console.log }),
  asan: () => nativeTests('asan', { inCi }),
  tsan: () => nativeTests('tsan', { inCi, tools: ['clang++-14'] }),
  verify: () => verify({ inCi, show: console.log }),
  package: () => check('the package is in order', ['npm', 'run', '--silent', 'pack:check']),
}
/**
 * What finds most mistakes in the least time comes first. In a group, one list of suites runs beside the other: an emulated
 * machine has one processor, and there is never more than one of TCMU and one of vhost-user.
 */
const order = [
  [['lint', 'types', 'unit', 'native']],
  [['tcmu'], ['front-ends', 'instructions', 'asan']],
  [['tsan', 'verify', 'package']],
]
const onlyInCi = ['instructions', 'asan', 'verify', 'package']

const { values: flags } = parseArgs({ options: { only: { type: 'string' } } })
const usual = Object.keys(suites).filter((name) => name !== 'tsan' && (inCi || !onlyInCi.includes(name)))
const chosen = flags.only?.split(',') ?? usual
const unknown = chosen.find((name) => !(name in suites))
if (unknown !== undefined) {
  console.error(`no suite '${unknown}'; there are ${Object.keys(suites).join(', ')}`)
  process.exit(2)
}

const total = noResults()
for (const group of order) await Promise.all(group.map(carryOut))
for (const title of total.skipped) console.log(`skipped: ${title}`)
for (const title of total.failed) console.log(`failed: ${title}`)
console.log(summaryLine(total))
process.exitCode = total.failed.length > 0 || total.passed === 0 ? 1 : 0

/** Runs those suites of a list that were chosen, one after the other. */
async function carryOut(names) {
  for (const name of names.filter((name) => chosen.includes(name))) {
    const start = performance.now()
    const results = await suites[name]()
    const seconds = ((performance.now() - start) / 1000).toFixed(1)
    const { passed, failed, skipped } = results
    if (passed + failed.length + skipped.length === 0) failed.push(`${name}: nothing ran`)
    console.log(`${name}: ${summaryLine(results)} (${seconds} s)`)
    total.passed += passed
    total.failed.push(...failed)
    total.skipped.push(...skipped)
  }
}

/** Runs a command that counts as one test. */
async function check(title, command) {
  const { status, output } = await run(command)
  if (status === 0) return { ...noResults(), passed: 1 }
  console.log(output.trimEnd())
  return { ...noResults(), failed: [title] }
}
