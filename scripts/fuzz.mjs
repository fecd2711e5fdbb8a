// npm run fuzz -- --target split --seconds 3600: fuzzes for as long as one likes. The corpus stays in .cache/fuzz.
// npm run fuzz -- --target split --input FILE: plays one input again, such as the one that a finding left behind.
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { root } from './setup.mjs'
import { buildFuzzTarget, fuzz, fuzzTargets } from './verify/fuzz-targets.mjs'

const { values: flags } = parseArgs({
  options: {
    target: { type: 'string', default: 'split' },
    seconds: { type: 'string', default: '60' },
    input: { type: 'string' },
  },
})
const target = fuzzTargets.find(({ name }) => name === flags.target)
if (target === undefined) {
  console.error(`no target '${flags.target}'; there are ${fuzzTargets.map(({ name }) => name).join(', ')}`)
  process.exit(2)
}
const command = await buildFuzzTarget(target)
const corpus = join(root, '.cache/fuzz', target.name, 'corpus')
const { found } = await fuzz(target, command, {
  seconds: Number(flags.seconds),
  corpus,
  ...(flags.input !== undefined && { input: flags.input }),
  onLine: console.log,
})
process.exitCode = found ? 1 : 0
