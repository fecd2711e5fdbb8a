// Builds and runs the tests of the native core.
import { isOnPath, run } from './processes.mjs'
import { noResults, readCtest } from './test-results.mjs'

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
  readCtest(output, results, show)
  if (status !== 0 && results.failed.length === 0) return fail(output, `ctest ended with ${status}`)
  return { ...results, output }
}
