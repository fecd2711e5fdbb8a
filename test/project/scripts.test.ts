import { mkdir, mkdtemp, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { complaintAbout } from '../../scripts/instructions.mjs'
import { isFresh } from '../../scripts/setup.mjs'
import { noResults, readCtest, summaryLine, tapReader } from '../../scripts/test-results.mjs'

test('a result is fresh until one of its sources changes, comes or goes', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'hushring-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const [result, sources, source] = [
    join(folder, 'result'),
    join(folder, 'sources'),
    join(folder, 'sources/a.ts'),
  ]
  const setTime = (path: string, seconds: number): Promise<void> => utimes(path, seconds, seconds)
  await mkdir(sources)
  await writeFile(source, '')
  await setTime(source, 100)
  await setTime(sources, 100)
  t.false(isFresh(result, [sources]))
  await writeFile(result, '')
  await setTime(result, 200)
  t.true(isFresh(result, [sources]))
  await setTime(source, 300)
  t.false(isFresh(result, [sources]))
  await setTime(source, 100)
  await rm(source)
  await setTime(sources, 300)
  t.false(isFresh(result, [sources]))
})

const TAP = `TAP version 13
not ok 1 - test/a.test.ts exited due to SIGSEGV
ok 2 - a › is fine # really
#   logged by one that passes
ok 3 - a › needs QEMU # SKIP
not ok 4 - a › some day # TODO
not ok 5 - a › is wrong
#   seed 7
  ---
    message: wrong
  ...
ok 6 - a › is fine too

1..5
# tests 5
# fail 2
`

test('the counts of a TAP stream are read, and what failed is shown with its details', (t) => {
  const results = noResults()
  const shown: string[] = []
  const read = tapReader(results, (line) => shown.push(line))
  for (const line of TAP.split('\n')) read(line)
  t.deepEqual(results, {
    passed: 2,
    failed: ['test/a.test.ts exited due to SIGSEGV', 'a › is wrong'],
    skipped: ['a › needs QEMU', 'a › some day'],
  })
  t.deepEqual(shown, [
    'failed: test/a.test.ts exited due to SIGSEGV',
    'failed: a › is wrong',
    '#   seed 7',
    '  ---',
    '    message: wrong',
    '  ...',
  ])
})

const CTEST = `test 1
    Start 1: core

1: [doctest] doctest version is "2.4.9"
1: TEST CASE:  a case that tells its seed
1: [doctest] test cases:  12 |  12 passed | 0 failed | 0 skipped
1/5 Test #1: core .............................   Passed    0.01 sec
2: no doctest here
2/5 Test #2: model ............................   Passed    2.50 sec
3: TEST CASE:  another case that tells its seed
3: test.cpp:1: MESSAGE: seed 7
3: TEST CASE:  the ring wraps
3: test.cpp:5: ERROR: CHECK( wraps ) is NOT correct!
3: [doctest] test cases: 2 | 1 passed | 1 failed | 0 skipped
3/5 Test #3: split ............................***Failed    0.02 sec
4/5 Test #4: threads ..........................***Timeout  60.01 sec
5: TEST CASE:  a mutant that is meant to fail
5: [doctest] test cases: 1 | 0 passed | 1 failed | 0 skipped
5/5 Test #5: mutant ...........................   Passed    0.01 sec

60% tests passed, 2 tests failed out of 5
`

test("ctest's programs count with their doctest cases, and a failed one shows its output", (t) => {
  const results = noResults()
  const shown: string[] = []
  readCtest(CTEST, results, (line) => shown.push(line))
  t.deepEqual(results, { passed: 15, failed: ['the ring wraps', 'threads: ***Timeout'], skipped: [] })
  t.deepEqual(shown, [
    'TEST CASE:  another case that tells its seed',
    'test.cpp:1: MESSAGE: seed 7',
    'TEST CASE:  the ring wraps',
    'test.cpp:5: ERROR: CHECK( wraps ) is NOT correct!',
    '[doctest] test cases: 2 | 1 passed | 1 failed | 0 skipped',
  ])
})

test('the last line has the counts, and skips only when there are some', (t) => {
  t.is(summaryLine({ passed: 3, failed: [], skipped: [] }), '3 passed, 0 failed')
  t.is(summaryLine({ passed: 3, failed: ['a'], skipped: ['b', 'c'] }), '3 passed, 1 failed, 2 skipped')
})

test('a count of instructions may differ by 3 % from what was agreed on, and not by more', (t) => {
  for (const counted of [970, 1000, 1030]) t.is(complaintAbout(counted, 1000), undefined)
  t.is(complaintAbout(1031, 1000), '1031 instructions a request, agreed were 1000: 3.1 % too many')
  t.regex(complaintAbout(969, 1000)!, /agree on the new figure/)
  t.is(complaintAbout(Number.NaN, 1000), 'nothing was counted')
})
