// Runs the rungs of docs/verification.md one after the other and counts what they found: rungs/ has a file for each.
import { readdirSync } from 'node:fs'
import { isOnPath } from '../processes.mjs'
import { noResults, summaryLine } from '../test-results.mjs'
import { mutants as productMutants } from './mutants.mjs'

/**
 * @typedef {import('../test-results.mjs').Results} Results
 *
 * What a rung found.
 * @typedef {Results & {
 *   figure: string,
 *   killed?: Record<string, boolean>,
 *   notRun?: string,
 * }} RungResults `figure`: the numbers that tell how much was tried, in one line; `killed`: by id of each mutant that
 *   was tried, whether it was noticed; `notRun`: why this machine cannot show it, which fails in CI and is skipped
 *   elsewhere
 *
 * @typedef {object} RungContext
 * @property {boolean} inCi
 * @property {boolean} mutantsOnly only what tells whether mutants are killed is wanted
 * @property {(line: string) => void} show what a person must see when something fails
 *
 * A rung: the default export of a file in rungs/.
 * @typedef {object} Rung
 * @property {string} number of its section in docs/verification.md
 * @property {string} title what it shows, in a few words
 * @property {string[]} [tools] programs it needs on PATH
 * @property {string[]} [packages] Debian packages that have them
 * @property {boolean} [killsMutants]
 * @property {(context: RungContext) => Promise<RungResults>} run
 */

/** Names of all rungs, in the order of their numbers. */
export async function loadRungs() {
  const names = readdirSync(new URL('rungs/', import.meta.url)).map((file) => file.replace(/\.mjs$/, ''))
  const rungs = await Promise.all(
    names.map(async (name) => ({ name, ...(await import(`./rungs/${name}.mjs`)).default })),
  )
  return rungs.sort((one, other) => one.number.localeCompare(other.number, 'en', { numeric: true }))
}

/**
 * Runs rungs and prints their table, and the table of the mutants.
 *
 * @param {object} options
 * @param {boolean} options.inCi
 * @param {(line: string) => void} options.show
 * @param {string[]} [options.names] some rungs only, whose mutants are then shown and not judged; all by default
 * @param {boolean} [options.mutantsOnly] only what tells whether mutants are killed
 * @param {(Rung & { name: string })[]} [options.rungs] default: those of rungs/
 * @param {import('./mutants.mjs').Mutant[]} [options.mutants] default: those of mutants.mjs
 * @returns {Promise<Results>}
 */
export async function verify({
  inCi,
  show,
  names,
  mutantsOnly = false,
  rungs: all,
  mutants = productMutants,
}) {
  const rungs = (all ?? (await loadRungs())).filter(({ name, killsMutants }) =>
    names === undefined ? !mutantsOnly || killsMutants : names.includes(name),
  )
  const total = noResults()
  const rows = []
  /** @type {Map<string, Record<string, boolean>>} what each rung did to the mutants */
  const kills = new Map()
  for (const rung of rungs) {
    const start = performance.now()
    const results = await climb(rung, { inCi, mutantsOnly, show })
    total.passed += results.passed
    total.failed.push(...results.failed.map((title) => `${rung.name}: ${title}`))
    total.skipped.push(...results.skipped.map((title) => `${rung.name}: ${title}`))
    kills.set(rung.name, results.killed ?? {})
    const seconds = ((performance.now() - start) / 1000).toFixed(1)
    rows.push([rung.number, rung.name, summaryLine(results), results.figure, seconds])
    show(`verify ${rung.name}: ${summaryLine(results)}, ${results.figure} (${seconds} s)`)
  }
  for (const line of table(['rung', 'name', 'checks', 'figure', 's'], rows)) show(line)
  const isTried = ({ id }) => [...kills.values()].some((killed) => id in killed)
  const score = scoreOf(names === undefined ? mutants : mutants.filter(isTried), kills)
  if (score.rows.length > 0) for (const line of score.lines) show(line)
  if (names === undefined) {
    total.passed += score.killedCount
    total.failed.push(...score.survivors)
  }
  return total
}

/** Runs one rung, if its tools are there. @returns {Promise<RungResults>} */
async function climb(rung, context) {
  const missing = (rung.tools ?? []).filter((tool) => !isOnPath(tool))
  const why =
    missing.length === 0
      ? undefined
      : `no ${missing.join(', no ')}; apt-get install ${(rung.packages ?? []).join(' ')}`
  const results =
    why === undefined
      ? await rung.run(context).catch((error) => {
          context.show(error.stack)
          return { ...noResults(), failed: [`ended with ${error.message}`], figure: 'none' }
        })
      : { ...noResults(), figure: '', notRun: why }
  if (results.notRun === undefined) {
    if (results.passed + results.failed.length > 0) return results
    return { ...results, failed: ['nothing ran'] }
  }
  const title = `not run: ${results.notRun}`
  return { ...noResults(), [context.inCi ? 'failed' : 'skipped']: [title], figure: title }
}

/** The mutation score: each mutant must be killed by each of its killers. */
function scoreOf(mutants, kills) {
  const survivors = []
  const rows = mutants.map(({ id, weakened, killers }) => {
    const verdicts = killers.map((name) => {
      const killed = kills.get(name)?.[id]
      return `${name} ${killed === undefined ? 'not run' : killed ? 'killed' : 'SURVIVED'}`
    })
    const isKilled = verdicts.every((verdict) => verdict.endsWith(' killed'))
    if (!isKilled) survivors.push(`mutant ${id} (${weakened}): ${verdicts.join(', ')}`)
    return [id, weakened, verdicts.join(', ')]
  })
  const killedCount = mutants.length - survivors.length
  const percent = Math.floor((100 * killedCount) / mutants.length)
  return {
    survivors,
    killedCount,
    rows,
    lines: [
      ...table(['mutant', 'weakened', 'rungs'], rows),
      `mutation score: ${killedCount} of ${mutants.length} killed by every rung that must (${percent} %)`,
    ],
  }
}

/** A table for a terminal. */
function table(headings, rows) {
  const widths = headings.map((heading, column) =>
    Math.max(heading.length, ...rows.map((row) => String(row[column]).length)),
  )
  return [headings, ...rows].map((row) =>
    row
      .map((cell, column) => String(cell).padEnd(widths[column]))
      .join('  ')
      .trimEnd(),
  )
}
