// Runs on `npm install` and `npm ci`: uses a shipped prebuild if it loads, else compiles the addon with cmake-js.
// Whatever is missing is told in one message, with the command that cures it. Kept to syntax that an old Node
// parses, because an old Node is one of the things it reports.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const require = createRequire(import.meta.url)
const PACKAGES_HINT = [
  '  Debian, Ubuntu: apt-get install cmake g++ make',
  '  Fedora:         dnf install cmake gcc-c++ make',
  '  Alpine:         apk add cmake g++ make',
  'Then: npm rebuild hushring (in a checkout: npm install)',
].join('\n')

function fail(reason, remedy) {
  console.error(`\nhushring: ${reason}\n${remedy}\n`)
  process.exit(1)
}

/** True when `version` satisfies a range of the two forms in package.json: `^1.2.3 || >=4.0.0`. */
function satisfies(version, range) {
  const parse = (text) => text.split('.').map(Number)
  const have = parse(version)
  return range.split('||').some((part) => {
    const [, operator, minimum] = /(\^|>=)(\S+)/.exec(part)
    const want = parse(minimum)
    const differing = have.findIndex((number, index) => number !== want[index])
    const atLeast = differing === -1 || have[differing] > want[differing]
    return atLeast && (operator === '>=' || have[0] === want[0])
  })
}

function requireSupportedNode() {
  const { engines } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  if (satisfies(process.versions.node, engines.node)) return
  fail(
    `Node ${process.version} is not supported; hushring needs Node ${engines.node}`,
    [
      '  Debian 13 and later: apt-get install nodejs npm',
      '  Elsewhere:           apt-get install npm && npm install --global n && n 22',
    ].join('\n'),
  )
}

function requireLinux() {
  if (process.platform === 'linux') return
  fail(`${process.platform} is not supported`, '  hushring needs Linux (eventfd, memfd, vhost-user).')
}

/** True when a prebuild for this machine is there and loads. */
function prebuildLoads() {
  const libc = process.report.getReport().header.glibcVersionRuntime === undefined ? '-musl' : ''
  const prebuild = join(root, 'prebuilds', `linux-${process.arch}${libc}`, 'hushring.node')
  if (!existsSync(prebuild)) return false
  try {
    require(prebuild)
    return true
  } catch (error) {
    console.warn(`hushring: the prebuilt addon does not load, compiling it instead: ${error.message}`)
    return false
  }
}

function requireBuildTools() {
  const runs = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0
  const missing = []
  if (!runs('cmake')) missing.push('cmake (3.22 or later)')
  const compilers = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++']
  if (!compilers.some(runs)) missing.push('a C++20 compiler')
  if (!['ninja', 'make'].some(runs)) missing.push('make or ninja')
  if (missing.length === 0) return
  fail(`cannot compile the native addon, missing: ${missing.join(', ')}`, PACKAGES_HINT)
}

function compile() {
  const cmakeJs = join(dirname(require.resolve('cmake-js/package.json')), 'bin', 'cmake-js')
  const { status } = spawnSync(process.execPath, [cmakeJs, 'compile', '--log-level', 'warn'], {
    cwd: root,
    stdio: 'inherit',
  })
  if (status !== 0) fail('the native addon did not compile; see the output above', PACKAGES_HINT)
}

requireLinux()
requireSupportedNode()
if (!prebuildLoads()) {
  requireBuildTools()
  // With --check nothing is built: scripts/setup.mjs asks before it downloads anything.
  if (!process.argv.includes('--check')) compile()
}
