// Counts what the test runners report, from the two formats they have in common with nobody: AVA's TAP and ctest's
// verbose output with doctest's summaries inside.

/**
 * What ran so far.
 *
 * @typedef {object} Results
 * @property {number} passed
 * @property {string[]} failed titles
 * @property {string[]} skipped titles, each naming what is missing
 */

/** @returns {Results} */
export function noResults() {
  return { passed: 0, failed: [], skipped: [] }
}

/**
 * Reads TAP line by line.
 *
 * @param {Results} results is added to
 * @param {(line: string) => void} show gets what a person must see: each failure with its log and details
 * @returns {(line: string) => void} to be called with each line
 */
export function tapReader(results, show) {
  let showsDetails = false
  return (line) => {
    const test = /^(not )?ok \d+ - (.*?)( # (?:SKIP|TODO)\b.*)?$/.exec(line)
    if (test === null) {
      // Logs and details are indented and follow the line of their test.
      if (showsDetails && /^(#? {2}|$)/.test(line)) show(line)
      return
    }
    const [, not, title, directive] = test
    showsDetails = false
    if (directive !== undefined) {
      results.skipped.push(title)
    } else if (not === undefined) {
      results.passed++
    } else {
      results.failed.push(title)
      show(`failed: ${title}`)
      showsDetails = true
    }
  }
}

/**
 * Reads the output of `ctest --verbose`. A program counts with its doctest cases, or as one test when it has none. A
 * program that is meant to fail, and does, counts as one that passed.
 *
 * @param {string} output
 * @param {Results} results is added to
 * @param {(line: string) => void} show gets the output of each program that failed
 */
export function readCtest(output, results, show) {
  /** @type {Map<string, string[]>} by the number of the test */
  const outputs = new Map()
  for (const line of output.split('\n')) {
    const printed = /^(\d+): (.*)$/.exec(line)
    if (printed !== null) {
      const [, number, text] = printed
      outputs.set(number, [...(outputs.get(number) ?? []), text])
      continue
    }
    const verdict = /^ *\d+\/\d+ +Test +#(\d+): (\S+) \.* *(.*?) +[\d.]+ sec/.exec(line)
    if (verdict === null) continue
    const [, number, name, outcome] = verdict
    const lines = outputs.get(number) ?? []
    const cases = doctestCases(lines)
    if (outcome === 'Passed') {
      // A test that must fail inside, such as a mutant, counts as one.
      results.passed += cases.failedCount > 0 ? 1 : cases.passed || 1
      continue
    }
    for (const printedLine of lines) show(printedLine)
    results.passed += cases.passed
    results.failed.push(...(cases.failed.length === 0 ? [`${name}: ${outcome}`] : cases.failed))
  }
}

/** What doctest says in the lines of a program: how many cases passed and failed, and the names of those that failed. */
function doctestCases(lines) {
  const counts = lines.map((line) =>
    /^\[doctest\] test cases: .*\| +(\d+) passed \| +(\d+) failed/.exec(line),
  )
  const [, passed = '0', failedCount = '0'] = counts.find((found) => found !== null) ?? []
  const failed = new Set()
  let name = ''
  for (const line of lines) {
    // Cases that only tell something, such as a seed, are named as well.
    name = /^TEST CASE: +(.*)$/.exec(line)?.[1] ?? name
    if (name !== '' && /: (?:FATAL )?ERROR: /.test(line)) failed.add(name)
  }
  return { passed: Number(passed), failedCount: Number(failedCount), failed: [...failed] }
}

/**
 * The last line of a run.
 *
 * @param {Results} results
 */
export function summaryLine({ passed, failed, skipped }) {
  const skips = skipped.length === 0 ? '' : `, ${skipped.length} skipped`
  return `${passed} passed, ${failed.length} failed${skips}`
}
