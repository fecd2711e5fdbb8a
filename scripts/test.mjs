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

/** By name; each gets where to show what a person must see of failures. */
const suites = {
  lint: (show) => check('Biome has nothing to say', ['biome', 'ci', '--colors=off', '.'], show),
  types: (show) => check('the types fit', ['tsc', '-p', 'tsconfig.json'], show),
  unit: (show) => avaTests('unit', { show }),
  native: (show) => nativeTests('test', { inCi, show }),
  tcmu: (show) => avaTests('front-ends', { show, only: isOfTcmu }),
  'front-ends': (show) => avaTests('front-ends', { show, only: (file) => !isOfTcmu(file) }),
  instructions: (show) => instructions({ inCi, show }),
  asan: (show) => nativeTests('asan', { inCi, show }),
  tsan: (show) => nativeTests('tsan', { inCi, tools: ['clang++-14'], show }),
  verify: (show) => verify({ inCi, show }),
  package: (show) => check('the package is in order', ['npm', 'run', '--silent', 'pack:check'], show),
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
const names = order.flat(2)
const usual = names.filter((name) => name !== 'tsan' && (inCi || !onlyInCi.includes(name)))
const chosen = flags.only?.split(',') ?? usual
const unknown = chosen.find((name) => !names.includes(name))
if (unknown !== undefined) {
  console.error(`no suite '${unknown}'; there are ${names.join(', ')}`)
  process.exit(2)
}

const total = noResults()
for (const group of order) await Promise.all(group.map((list) => carryOut(list, group.length > 1)))
for (const title of total.skipped) console.log(`skipped: ${title}`)
for (const title of total.failed) console.log(`failed: ${title}`)
console.log(summaryLine(total))
process.exitCode = total.failed.length > 0 || total.passed === 0 ? 1 : 0

/** Runs those suites of a list that were chosen, one after the other. Beside others, each is shown when it has ended. */
async function carryOut(list, isBesideOthers) {
  for (const name of list.filter((name) => chosen.includes(name))) {
    const start = performance.now()
    const lines = []
    const results = await suites[name](isBesideOthers ? (line) => lines.push(line) : console.log)
    for (const line of lines) console.log(line)
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
async function check(title, command, show) {
  const { status, output } = await run(command)
  if (status === 0) return { ...noResults(), passed: 1 }
  show(output.trimEnd())
  return { ...noResults(), failed: [title] }
}
