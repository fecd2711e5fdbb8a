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

/** By name, in the order they run: what finds most mistakes in the least time comes first. */
const suites = {
  lint: () => check('Biome has nothing to say', ['biome', 'ci', '--colors=off', '.']),
  types: () => check('the types fit', ['tsc', '-p', 'tsconfig.json']),
  unit: () => avaTests('unit'),
  native: () => nativeTests('test', { inCi }),
  'front-ends': frontEnds,
  instructions: () => instructions({ inCi, show: console.log }),
  asan: () => nativeTests('asan', { inCi }),
  tsan: () => nativeTests('tsan', { inCi, tools: ['clang++-14'] }),
  verify: () => verify({ inCi, show: console.log }),
  package: () => check('the package is in order', ['npm', 'run', '--silent', 'pack:check']),
}
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
for (const name of chosen) {
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
for (const title of total.skipped) console.log(`skipped: ${title}`)
for (const title of total.failed) console.log(`failed: ${title}`)
console.log(summaryLine(total))
process.exitCode = total.failed.length > 0 || total.passed === 0 ? 1 : 0

/** An emulated machine has one processor: those of TCMU and those of vhost-user run side by side, one of each at a time. */
async function frontEnds() {
  const isTcmu = (file) => file.includes('/tcmu')
  const halves = await Promise.all([
    avaTests('front-ends', { only: isTcmu }),
    avaTests('front-ends', { only: (file) => !isTcmu(file) }),
  ])
  return {
    passed: halves[0].passed + halves[1].passed,
    failed: halves.flatMap(({ failed }) => failed),
    skipped: halves.flatMap(({ skipped }) => skipped),
  }
}

/** Runs a command that counts as one test. */
async function check(title, command) {
  const { status, output } = await run(command)
  if (status === 0) return { ...noResults(), passed: 1 }
  console.log(output.trimEnd())
  return { ...noResults(), failed: [title] }
}
