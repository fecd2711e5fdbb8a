// Runs one property of properties.ts, or the controls, and prints one line of JSON for the script that asked.
//
//   node --import=tsx test/models/run.ts split --count 100000
//   node --import=tsx test/models/run.ts split --seed 7 --path 117:0:2     one case of a run, again
import { parseArgs } from 'node:util'
import { controls, properties } from './properties.ts'

/** Far more than any planted bug needs: the rarest is found after some thousands. */
const CONTROL_COUNT_MAX = 50_000

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: 'string', default: '10000' },
    seed: { type: 'string' },
    path: { type: 'string' },
  },
})
const [name = ''] = positionals
const seed = values.seed === undefined ? Math.trunc(Math.random() * 0x7fff_ffff) : Number(values.seed)
const from = { seed, ...(values.path === undefined ? {} : { path: values.path }) }
const passed: string[] = []
const failed: string[] = []
let caseCount = 0

if (name === 'controls') {
  for (const { property, title, check } of controls) {
    const outcome = check({ count: CONTROL_COUNT_MAX, seed })
    const told = `${property} notices a planted bug: ${title}`
    ;(outcome.story === undefined ? failed : passed).push(told)
    caseCount += outcome.caseCount
  }
} else {
  const property = properties[name]
  if (property === undefined) {
    console.error(`no property '${name}'; there are ${Object.keys(properties).join(', ')}, and controls`)
    process.exit(2)
  }
  const outcome = property.check({ count: Number(values.count), ...from })
  caseCount = outcome.caseCount
  ;(outcome.story === undefined ? passed : failed).push(property.title)
  if (outcome.story !== undefined) console.error(outcome.story)
}
console.log(JSON.stringify({ passed, failed, caseCount, seed }))
process.exitCode = failed.length > 0 ? 1 : 0
