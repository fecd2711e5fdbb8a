// The unit tests on the other versions of Node that package.json allows, all with the one binary that the version at
// hand built: Node-API promises that.
import { join } from 'node:path'
import { avaTests } from '../../ava-tests.mjs'
import { run } from '../../processes.mjs'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'

const folder = join(root, 'scripts/verify/node-versions')
const majors = [22, 24, 26]
// CI, whose time is limited, runs the oldest one, which is at hand, and the newest; `npm run verify` runs all.
const leftInCi = [22, 24]

// What looks at documents and at the machine, and what is a rung of its own, says the same on every version.
const left =
  /^test\/(project|models|simulation|fuzz|handlers\/scsi-random|transport\/vhost-user-hostile|cli\/(litmus|demo))/
const only = (file) => !left.test(file)

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '14',
  title: 'the suite on other versions of Node',
  async run({ inCi, show }) {
    const results = { ...noResults(), figure: '' }
    // They are programs and no part of the project's own packages, so that nobody has to download them to use it.
    const install = ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund', '--prefix', folder]
    const installed = await run(install)
    if (installed.status !== 0) return { ...results, notRun: `npm cannot install Node: ${installed.output}` }
    const figures = []
    for (const major of majors) {
      if (inCi && leftInCi.includes(major)) {
        results.skipped.push(`the suite on Node ${major}: CI runs the oldest and the newest`)
        continue
      }
      const bin = join(folder, 'node_modules', `node-${major}`, 'bin')
      const version = (await run([join(bin, 'node'), '--version'])).output.trim()
      const { passed, failed, skipped } = await avaTests('unit', { show, nodeFolder: bin, only })
      if (!version.startsWith(`v${major}.`)) failed.push(`a program that says ${version}`)
      results.passed += passed
      results.failed.push(...failed.map((title) => `${version}: ${title}`))
      results.skipped.push(...skipped.map((title) => `${version}: ${title}`))
      figures.push(`${version} ${passed} passed`)
    }
    return { ...results, figure: figures.join(', ') }
  },
}
