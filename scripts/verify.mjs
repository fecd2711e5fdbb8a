// npm run verify: every rung of docs/verification.md; npm run mutants: those that kill mutants.
//
//   npm run verify -- --only explorer,spin    some rungs
//   npm run verify -- --packages              the Debian packages that the rungs need
import { parseArgs } from 'node:util'
import { summaryLine } from './test-results.mjs'
import { loadRungs, verify } from './verify/ladder.mjs'

const { values: flags } = parseArgs({
  options: {
    only: { type: 'string' },
    mutants: { type: 'boolean', default: false },
    packages: { type: 'boolean', default: false },
  },
})
const rungs = await loadRungs()
if (flags.packages) {
  console.log([...new Set(rungs.flatMap(({ packages }) => packages ?? []))].sort().join('\n'))
  process.exit()
}
const names = flags.only?.split(',')
const unknown = names?.find((name) => rungs.every((rung) => rung.name !== name))
if (unknown !== undefined) {
  console.error(`no rung '${unknown}'; there are ${rungs.map(({ name }) => name).join(', ')}`)
  process.exit(2)
}
const results = await verify({
  inCi: Boolean(process.env.CI),
  show: console.log,
  ...(names === undefined ? {} : { names }),
  mutantsOnly: flags.mutants,
})
for (const title of results.skipped) console.log(`skipped: ${title}`)
for (const title of results.failed) console.log(`failed: ${title}`)
console.log(summaryLine(results))
process.exitCode = results.failed.length > 0 || results.passed === 0 ? 1 : 0
