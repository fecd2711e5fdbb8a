import test from 'ava'
import { verify } from '../../scripts/verify/ladder.mjs'

const found = { passed: 1, failed: [], skipped: [], figure: '1 thing' }
const mutants = [{ id: 'F1', weakened: 'something', killers: ['one', 'two'] }]
type NamedRung = NonNullable<Parameters<typeof verify>[0]['rungs']>[number]
function rung(name: string, results: object, rest: Partial<NamedRung> = {}): NamedRung {
  return { name, number: '1', title: name, run: () => Promise.resolve({ ...found, ...results }), ...rest }
}

const verdict = test.macro({
  title: (_, what: string) => what,
  async exec(
    t,
    _what: string,
    rungs: readonly NamedRung[],
    expected: { passed: number; failed?: RegExp[]; skipped?: RegExp[] },
    inCi: boolean = true,
  ) {
    const lines: string[] = []
    const results = await verify({
      inCi,
      mutants,
      rungs: [...rungs],
      show: (line: string) => lines.push(line),
    })
    t.is(results.passed, expected.passed)
    const titles = { failed: results.failed, skipped: results.skipped }
    for (const kind of ['failed', 'skipped'] as const) {
      const patterns = expected[kind] ?? []
      t.is(titles[kind].length, patterns.length, titles[kind].join('\n'))
      for (const [index, pattern] of patterns.entries()) t.regex(titles[kind][index]!, pattern)
    }
    t.true(lines.some((line) => line.includes('mutation score')))
  },
})

const killed = { killed: { F1: true } }

test(
  verdict,
  'a mutant that every one of its rungs kills counts as passed',
  [rung('one', killed), rung('two', killed)],
  {
    passed: 3,
  },
)
test(
  verdict,
  'a mutant that survives one of its rungs is a failure',
  [rung('one', killed), rung('two', { killed: { F1: false } })],
  { passed: 2, failed: [/^mutant F1 .*one killed, two SURVIVED/] },
)
test(verdict, 'a mutant that a rung does not try is a failure', [rung('one', killed), rung('two', {})], {
  passed: 2,
  failed: [/^mutant F1 .*two not run/],
})
test(
  verdict,
  'a rung that cannot run is a failure in CI, with its reason',
  [rung('one', killed), rung('two', killed), rung('three', { notRun: '1 CPU' })],
  { passed: 3, failed: [/^three: not run: 1 CPU/] },
)
test(
  verdict,
  'a rung that cannot run elsewhere is a skip, with its reason',
  [rung('one', killed), rung('two', killed), rung('three', { notRun: '1 CPU' })],
  { passed: 3, skipped: [/^three: not run: 1 CPU/] },
  false,
)
test(
  verdict,
  'a rung without its tools does not run',
  [
    rung('one', killed),
    rung('two', killed),
    rung('three', {}, { tools: ['no-such-tool'], packages: ['tools'] }),
  ],
  { passed: 3, failed: [/^three: not run: no no-such-tool; apt-get install tools/] },
)
test(
  verdict,
  'a rung that throws, and one in which nothing ran, are failures',
  [
    rung('one', killed),
    rung('two', killed),
    rung('three', {}, { run: () => Promise.reject(new Error('broken')) }),
    rung('four', { passed: 0 }),
  ],
  { passed: 3, failed: [/^three: ended with broken/, /^four: nothing ran/] },
)
