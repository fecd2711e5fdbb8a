// The native core against reference models in TypeScript: random histories on both at once, with every result, table,
// counter and byte compared; and the same with bugs planted in the models, each of which must be noticed.
import { run } from '../../processes.mjs'
import { noResults } from '../../test-results.mjs'

const HISTORY_COUNT = 100_000
const LAP_COUNT = 24

/** The longest first, so that two at a time end together. */
const parts = [
  ...['tcmu', 'split'].flatMap((name) => [
    { name, count: HISTORY_COUNT / 2 },
    { name, count: HISTORY_COUNT / 2 },
  ]),
  { name: 'controls' },
  { name: 'laps', count: LAP_COUNT },
  { name: 'chains', count: HISTORY_COUNT },
]

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '2',
  title: 'a reference model in TypeScript',
  async run({ show }) {
    const results = noResults()
    const seed = Math.trunc(Math.random() * 0x7fff_ffff)
    const counts = new Map()
    const waiting = parts.map((part, index) => ({ ...part, seed: (seed + index) % 0x7fff_ffff }))
    const work = async () => {
      for (let part = waiting.shift(); part !== undefined; part = waiting.shift()) {
        const { name, count, seed: partSeed } = part
        const { status, output } = await run([
          ...['node', '--import=tsx', 'test/models/run.ts', name, '--seed', String(partSeed)],
          ...(count === undefined ? [] : ['--count', String(count)]),
        ])
        const line = output.split('\n').find((text) => text.startsWith('{'))
        const {
          passed = [],
          failed = [`${name} ended with ${status}`],
          caseCount = 0,
        } = JSON.parse(line ?? '{}')
        if (failed.length > 0) show(output.trimEnd())
        results.passed += passed.length
        results.failed.push(...failed)
        counts.set(name, (counts.get(name) ?? 0) + caseCount)
      }
    }
    await Promise.all([work(), work()])
    const histories = `${counts.get('split')} split histories, ${counts.get('tcmu')} TCMU histories`
    const others = `${counts.get('chains')} sets of chains, ${counts.get('laps')} laps`
    return { ...results, figure: `${histories}, ${others}, seeds from ${seed} on` }
  },
}
