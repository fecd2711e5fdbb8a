// Runs the tests of the TypeScript.
import { readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { run } from './processes.mjs'
import { root } from './setup.mjs'
import { noResults, tapReader } from './test-results.mjs'

const flagsOf = {
  unit: ['--concurrency', '2'],
  // Emulated machines and clients that use whole cores: one at a time.
  'front-ends': ['--concurrency', '1', '--serial'],
  hostile: ['--concurrency', '1', '--serial'],
}

/**
 * Runs all tests of a suite.
 *
 * @param {'unit' | 'front-ends' | 'hostile'} suite
 * @param {object} [options]
 * @param {(line: string) => void} [options.show] gets what a person must see of failures
 * @param {string} [options.nodeFolder] folder with the `node` to run them on; default: the one on PATH
 * @param {NodeJS.ProcessEnv} [options.environment] added to this process's own
 * @param {(file: string) => boolean} [options.only] some files only
 * @returns {Promise<import('./test-results.mjs').Results>}
 */
export async function avaTests(
  suite,
  { show = console.log, nodeFolder, environment = {}, only = () => true } = {},
) {
  const results = noResults()
  const files = testFiles(suite).filter(only)
  // Without files AVA would run all there are.
  if (files.length === 0) return results
  const path = nodeFolder === undefined ? {} : { PATH: [nodeFolder, process.env.PATH].join(delimiter) }
  const ava = [join(root, 'node_modules/.bin/ava'), '--tap', ...flagsOf[suite], ...files]
  const { status } = await run(ava, tapReader(results, show), { ...path, ...environment })
  if (status !== 0 && results.failed.length === 0) {
    results.failed.push(`ava ended with ${status} and named no failure`)
  }
  return results
}

/** @param {'unit' | 'front-ends' | 'hostile'} suite */
function testFiles(suite) {
  return readdirSync(join(root, 'test'), { recursive: true })
    .filter((file) => file.endsWith('.test.ts') && suiteOf(file) === suite)
    .map((file) => join('test', file))
    .sort()
}

function suiteOf(file) {
  // A rung of its own.
  if (file === 'front-ends/hostile.test.ts') return 'hostile'
  return file.startsWith('front-ends/') ? 'front-ends' : 'unit'
}
