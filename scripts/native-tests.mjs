// Builds and runs the tests of the native core.
import { isOnPath, run } from './processes.mjs'
import { noResults, readCtest } from './test-results.mjs'

/**
 * Builds the tests, or one of their programs, under a CMake preset.
 *
 * @param {string} preset
 * @param {{ tools?: string[], target?: string }} [options] `tools`: what the preset needs on PATH beside cmake and ninja
 * @returns {Promise<{ missing: string[], failure?: string, output: string }>} what is missing to build it, or why it
 *   does not build
 */
export async function buildNative(preset, { tools = [], target } = {}) {
  const missing = [...tools, 'cmake', 'ninja'].filter((tool) => !isOnPath(tool))
  const configured = missing.length === 0 ? await run(['cmake', '--preset', preset]) : undefined
  if (configured?.output.includes('"doctest"')) missing.push('doctest')
  if (missing.length > 0) return { missing, output: '' }
  if (configured.status !== 0) {
    return { missing, failure: 'cmake cannot configure the build', output: configured.output }
  }
  const which = target === undefined ? [] : ['--target', target]
  // Nicely: beside an emulated machine, whose tests have deadlines, it takes what that leaves.
  const { status, output } = await run(['nice', 'cmake', '--build', '--preset', preset, ...which])
  return status === 0 ? { missing, output } : { missing, failure: 'the build fails', output }
}

/**
 * Builds and runs the tests of the native core under a CMake preset.
 *
 * @param {string} preset
 * @param {{ inCi: boolean, tools?: string[], show?: (line: string) => void }} options `tools`: what the preset needs
 *   on PATH beside cmake and ninja
 * @returns {Promise<import('./test-results.mjs').Results & { output?: string }>} `output` is what ctest printed
 */
export async function nativeTests(preset, { inCi, tools = [], show = console.log }) {
  const results = noResults()
  const fail = (output, why) => {
    show(output.trimEnd())
    results.failed.push(`native tests (${preset}): ${why}`)
    return results
  }
  const built = await buildNative(preset, { tools })
  if (built.missing.length > 0) {
    results[inCi ? 'failed' : 'skipped'].push(
      `native tests (${preset}): no ${built.missing.join(', no ')}; ` +
        'apt-get install cmake ninja-build doctest-dev clang-14 libclang-rt-14-dev',
    )
    return results
  }
  if (built.failure !== undefined) return fail(built.output, built.failure)
  const { status, output } = await run(['ctest', '--preset', preset, '--verbose'])
  readCtest(output, results, show)
  if (status !== 0 && results.failed.length === 0) return fail(output, `ctest ended with ${status}`)
  return { ...results, output }
}
