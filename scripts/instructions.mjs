// npm run instructions: how many instructions a request takes, in native code and in JavaScript, counted by callgrind, which
// counts the same each time. CI fails when it is more than was agreed on, or less: then the agreement is to be made anew.
import { pathToFileURL } from 'node:url'
import { buildNative } from './native-tests.mjs'
import { run } from './processes.mjs'
import { noResults } from './test-results.mjs'

/** Instructions a request, by what is served; as g++ 12 compiles it for x86-64. */
const agreed = {
  'split, indirect, 8 a batch': 768,
  'split, indirect, 1 a batch': 903,
  'split, 3 descriptors, 8 a batch': 685,
  'split, flags, 8 a batch': 767,
  'tcmu, 8 a batch': 545,
  'tcmu, 1 a batch': 703,
}
/** Instructions of JavaScript a request, of a read of a null disk, 8 a batch; as Node 20 compiles it for x86-64. */
const agreedOfJavaScript = 1027
const tolerancePercent = 3
const requestCount = 8000
/** So many that starting callgrind_control, which switches the counting on and off, is less than the tolerance. */
const requestCountOfJavaScript = 400_000

/**
 * Counts and compares.
 *
 * @param {object} options
 * @param {boolean} options.inCi a missing tool is a failure and not a skip
 * @param {(line: string) => void} options.show
 * @returns {Promise<import('./test-results.mjs').Results>}
 */
export async function instructions({ inCi, show }) {
  const results = noResults()
  const { missing, failure, output } = await buildNative('test', {
    tools: ['valgrind'],
    target: 'hushring_instructions',
  })
  const because = missing.length > 0 ? `no ${missing.join(', no ')}` : await reasonNotToCompare()
  if (because !== undefined) {
    results[inCi ? 'failed' : 'skipped'].push(`instructions: ${because}`)
    return results
  }
  if (failure !== undefined) {
    show(output)
    results.failed.push(`instructions: ${failure}`)
    return results
  }
  const compare = (work, counted, expected) => {
    const complaint = complaintAbout(counted, expected)
    show(`instructions a request: ${work}: ${counted.toFixed(0)}, agreed ${expected}`)
    if (complaint === undefined) results.passed++
    else results.failed.push(`instructions: ${work}: ${complaint}`)
  }
  for (const [work, expected] of Object.entries(agreed)) compare(work, await count(work), expected)
  if (process.versions.node.startsWith('20.')) {
    compare('JavaScript, 8 a batch', await countJavaScript(), agreedOfJavaScript)
  } else {
    results.skipped.push(`instructions: JavaScript: agreed on for Node 20, this is ${process.version}`)
  }
  return results
}

async function reasonNotToCompare() {
  const { output } = await run(['g++', '-dumpfullversion'])
  if (process.arch !== 'x64' || !output.startsWith('12.')) {
    return `agreed on for g++ 12 on x86-64, this is ${output.trim()} on ${process.arch}`
  }
  return undefined
}

/** @returns {Promise<number>} instructions a request */
async function count(work) {
  const command = ['out/test/hushring_instructions', work, String(requestCount)]
  return (await countAll('--toggle-collect=measured_serve*', command)) / requestCount
}

/**
 * Of what was built. In one thread, so that V8 compiles and collects at the same places each time.
 *
 * @returns {Promise<number>} instructions a request
 */
async function countJavaScript() {
  const count = requestCountOfJavaScript
  const command = ['node', '--single-threaded', 'bench/served-requests.mjs', String(count)]
  return (await countAll('--instr-atstart=no', command)) / count
}

/** @returns {Promise<number>} all instructions that a command executes while they are counted; NaN if none were */
async function countAll(whenToCount, command) {
  const callgrind = [
    'valgrind',
    '--tool=callgrind',
    '--callgrind-out-file=/dev/null',
    '--smc-check=all-non-file',
  ]
  const { output } = await run([...callgrind, whenToCount, ...command])
  return Number(/Collected : (\d+)/.exec(output)?.[1] ?? Number.NaN)
}

/**
 * What is wrong with a count; nothing within the tolerance.
 *
 * @param {number} counted
 * @param {number} expected
 */
export function complaintAbout(counted, expected) {
  if (!Number.isFinite(counted)) return 'nothing was counted'
  const percent = (100 * (counted - expected)) / expected
  if (Math.abs(percent) <= tolerancePercent) return undefined
  const text = `${counted.toFixed(0)} instructions a request, agreed were ${expected}`
  return percent > 0
    ? `${text}: ${percent.toFixed(1)} % too many`
    : `${text}: agree on the new figure in scripts/instructions.mjs`
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { failed, skipped } = await instructions({ inCi: false, show: console.log })
  for (const title of [...failed, ...skipped]) console.log(title)
  process.exitCode = failed.length > 0 ? 1 : 0
}
