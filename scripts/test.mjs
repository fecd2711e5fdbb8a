// npm test, after scripts/setup.mjs: runs every suite and ends with one line of counts.
//
//   npm test                      everything this machine can run
//   npm test -- --only unit,native
//
// With CI set, asan, tsan and package run without being asked for, and a missing tool is a failure and not a skip.
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { root } from './setup.mjs'
import { noResults, readCtest, summaryLine, tapReader } from './test-results.mjs'

const inCi = Boolean(process.env.CI)

/** By name, in the order they run: what finds most mistakes in the least time comes first. */
const suites = {
  lint: () => check('Biome has nothing to say', ['biome', 'ci', '--colors=off', '.']),
  types: () => check('the types fit', ['tsc', '-p', 'tsconfig.json']),
  unit: () => ava(testFiles('unit'), ['--concurrency', '2']),
  native: () => native('test'),
  // Emulated machines and clients that use whole cores: one at a time.
  'front-ends': () => ava(testFiles('front-ends'), ['--concurrency', '1', '--serial']),
  asan: () => native('asan'),
  tsan: () => native('tsan', ['clang++-14']),
  package: () => check('the package is in order', ['npm', 'run', '--silent', 'pack:check']),
}
const onlyInCi = ['asan', 'tsan', 'package']

const { values: flags } = parseArgs({ options: { only: { type: 'string' } } })
const usual = Object.keys(suites).filter((name) => inCi || !onlyInCi.includes(name))
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

/** Runs a command that counts as one test. */
async function check(title, command) {
  const { status, output } = await run(command)
  if (status === 0) return { ...noResults(), passed: 1 }
  console.log(output.trimEnd())
  return { ...noResults(), failed: [title] }
}

async function ava(files, flags) {
  const results = noResults()
  // Without files AVA would run all there are.
  if (files.length === 0) return results
  const { status } = await run(['ava', '--tap', ...flags, ...files], tapReader(results, console.log))
  if (status !== 0 && results.failed.length === 0) {
    results.failed.push(`ava ended with ${status} and named no failure`)
  }
  return results
}

/** Builds and runs the tests of the native core under a CMake preset. */
async function native(preset, tools = []) {
  const results = noResults()
  const fail = (output, why) => {
    console.log(output.trimEnd())
    results.failed.push(`native tests (${preset}): ${why}`)
    return results
  }
  const missing = [...tools, 'cmake', 'ninja'].filter((tool) => !isOnPath(tool))
  const configured = missing.length === 0 ? await run(['cmake', '--preset', preset]) : undefined
  if (configured?.output.includes('"doctest"')) missing.push('doctest')
  if (missing.length > 0) {
    results[inCi ? 'failed' : 'skipped'].push(
      `native tests (${preset}): no ${missing.join(', no ')}; ` +
        'apt-get install cmake ninja-build doctest-dev clang-14 libclang-rt-14-dev',
    )
    return results
  }
  if (configured.status !== 0) return fail(configured.output, 'cmake cannot configure the build')
  const built = await run(['cmake', '--build', '--preset', preset])
  if (built.status !== 0) return fail(built.output, 'the build fails')
  const { status, output } = await run(['ctest', '--preset', preset, '--verbose'])
  readCtest(output, results, console.log)
  if (status !== 0 && results.failed.length === 0) return fail(output, `ctest ended with ${status}`)
  return results
}

/**
 * Runs a command in the project's folder, with the project's own programs on PATH.
 *
 * @param {string[]} command
 * @param {(line: string) => void} [onLine] gets the lines of stdout; without it both outputs are collected
 * @returns {Promise<{ status: number | NodeJS.Signals, output: string }>}
 */
function run([program, ...args], onLine) {
  const child = spawn(program, args, {
    cwd: root,
    env: { ...process.env, PATH: `${join(root, 'node_modules/.bin')}${delimiter}${process.env.PATH}` },
    stdio: ['ignore', 'pipe', onLine === undefined ? 'pipe' : 'inherit'],
  })
  let output = ''
  if (onLine === undefined) {
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        output += text
      })
    }
  } else {
    createInterface({ input: child.stdout }).on('line', onLine)
  }
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (status, signal) => resolve({ status: status ?? signal, output }))
  })
}

function isOnPath(program) {
  return process.env.PATH.split(delimiter).some((folder) => {
    try {
      return readdirSync(folder).includes(program)
    } catch {
      return false
    }
  })
}

/** @param {'unit' | 'front-ends'} suite */
function testFiles(suite) {
  return readdirSync(join(root, 'test'), { recursive: true })
    .filter(
      (file) => file.endsWith('.test.ts') && file.startsWith('front-ends/') === (suite === 'front-ends'),
    )
    .map((file) => join('test', file))
    .sort()
}
