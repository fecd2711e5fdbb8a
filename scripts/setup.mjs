// Makes a fresh clone ready to run: checks Node and the build tools, installs the packages, builds the addon and the
// TypeScript. A step whose result is newer than what it is made from is left out, so that a second run takes
// milliseconds. Plain Node without packages, in the syntax of old versions: it runs before anything is installed and
// must live long enough on an old Node to say so.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync, utimesSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder of the project. */
export const root = dirname(dirname(fileURLToPath(import.meta.url)))

const install = [process.execPath, 'scripts/install.mjs']

const steps = [
  {
    task: 'installing the packages',
    result: 'node_modules/.package-lock.json',
    sources: ['package-lock.json'],
    // What is missing on this machine is told before anything is downloaded, in one message of install.mjs.
    // The addon is a step of its own, so that this message is not buried in what npm says about a failed script.
    commands: [
      [...install, '--check'],
      ['npm', 'ci', '--ignore-scripts', '--include=dev'],
    ],
  },
  {
    task: 'building the native addon',
    result: 'build/Release/hushring.node',
    sources: ['package-lock.json', 'CMakeLists.txt', 'native/core', 'native/os', 'native/addon'],
    commands: [install],
  },
  {
    task: 'building the TypeScript',
    result: 'dist/cli/main.js',
    sources: ['package-lock.json', 'tsconfig.json', 'tsconfig.build.json', 'src'],
    commands: [['npm', 'run', '--silent', 'build:ts']],
  },
]

/** Brings everything up to date. Ends the process with status 1 when it cannot; the reason is on stderr then. */
function setUp() {
  for (const { task, result, sources, commands } of steps) {
    const resultPath = join(root, result)
    const sourcePaths = sources.map((source) => join(root, source))
    if (isFresh(resultPath, sourcePaths)) continue
    console.error(`hushring: ${task}`)
    for (const [command, ...args] of commands) {
      const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] })
      if (error !== undefined) console.error(`hushring: cannot run ${command}: ${error.message}`)
      if (status !== 0) process.exit(1)
    }
    // A build that found nothing to do leaves the old time, and would be asked again each time.
    if (existsSync(resultPath)) utimesSync(resultPath, new Date(), new Date())
  }
}

/**
 * True when a file exists and is not older than any of its sources, files or folders.
 *
 * @param {string} result
 * @param {string[]} sources
 */
export function isFresh(result, sources) {
  return existsSync(result) && sources.every((source) => newestMs(source) <= statSync(result).mtimeMs)
}

/** The newest change in a file or in a folder, where the folder's own time tells of removed files. */
function newestMs(path) {
  const stats = statSync(path)
  if (!stats.isDirectory()) return stats.mtimeMs
  return Math.max(stats.mtimeMs, ...readdirSync(path).map((name) => newestMs(join(path, name))))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) setUp()
