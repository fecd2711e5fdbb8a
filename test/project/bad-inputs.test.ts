import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import test from 'ava'
import { hostileRows } from '../../src/testing/index.ts'

const root = join(import.meta.dirname, '../..')

/** Files that may have a test that a table names, by their names. */
const files = new Map(
  ['test', 'native/test', 'scripts/verify/rungs']
    .flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).map((file) =>
        join(folder, file),
      ),
    )
    .filter((path) => /\.(test\.ts|cpp|mjs)$/.test(path))
    .map((path) => [basename(path), path]),
)

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

/** Whether a source has a test of this title: in one literal, or in a template filled with what the source has, too. */
function hasTitle(source: string, title: string): boolean {
  const code = source.replaceAll("\\'", "'").replaceAll('\\"', '"')
  const isLiteral = (text: string): boolean =>
    ["'", '"', '`'].some((quote) => code.includes(quote + text + quote))
  if (isLiteral(title)) return true
  for (const [, template = ''] of code.matchAll(/`([^`\n]*\$\{[^`\n]*)`/g)) {
    const parts = template.split(/\$\{[^}]*\}/)
    if (parts.join('').trim().length < 8) continue
    const filled = new RegExp(`^${parts.map(escaped).join('(.*)')}$`).exec(title)
    if (filled?.slice(1).every((filling) => isLiteral(filling) || /^\d+$/.test(filling))) return true
  }
  return false
}

/** Tests that a document names, as `file` “title”, and that do not exist. */
function missingTests(markdown: string): string[] {
  return [...markdown.matchAll(/`([\w.-]+)` “([^”]+)”/g)]
    .filter(([, file = '', title = '']) => {
      const path = files.get(file)
      return path === undefined || !hasTitle(readFileSync(join(root, path), 'utf8'), title)
    })
    .map(([whole]) => whole)
}

/** What is wrong with the table of bad inputs. */
function mistakes(markdown: string): string[] {
  const rows = [...markdown.matchAll(/^\| (\d+) \| (.*) \| (.*) \| (\d+) \| ?(.*) \|$/gm)]
  const numbers = rows.map(([, number]) => Number(number))
  const wanted = Array.from({ length: 61 }, (_, index) => index + 1)
  const found = missingTests(rows.map(([line]) => line).join('\n'))
  if (numbers.join() !== wanted.join()) found.push(`rows ${numbers.join(', ')}`)
  for (const [, number, , outcome = '', count, tests = ''] of rows) {
    const played = hostileRows.filter(({ row }) => row === Number(number)).length
    if (Number(count) !== played) found.push(`row ${number}: ${played} rows are played and not ${count}`)
    if (played === 0 && tests === '' && !outcome.startsWith('not offered'))
      found.push(`row ${number}: no test`)
  }
  return found
}

const verification = readFileSync(join(root, 'docs/verification.md'), 'utf8')
const table = verification.slice(verification.indexOf('## Bad inputs and their tests'))

test('every row of the bad inputs has the tests that the table names', (t) => {
  t.deepEqual(mistakes(table), [])
})

test('every test that SECURITY.md names exists', (t) => {
  const security = readFileSync(join(root, 'SECURITY.md'), 'utf8')
  t.true(security.includes('` “'))
  t.deepEqual(missingTests(security), [])
})

const isNoticed = test.macro({
  title: (_, what: string) => `the look at the table notices ${what}`,
  exec(t, _what: string, change: (table: string) => string, mistake: RegExp) {
    const changed = change(table)
    t.not(changed, table)
    const found = mistakes(changed)
    t.is(found.length, 1, found.join('\n'))
    t.regex(found[0]!, mistake)
  },
})
test(
  isNoticed,
  'a wrong title',
  (text) => text.replace('“chain: exactly as many', '“chain: exactly as few'),
  /exactly as few/,
)
test(
  isNoticed,
  'a title that only a template could have',
  (text) => text.replace('a handler that throws yields', 'a handler that sleeps yields'),
  /sleeps/,
)
test(
  isNoticed,
  'a file that does not exist',
  (text) => text.replace('`os_test.cpp`', '`so_test.cpp`'),
  /so_test/,
)
test(isNoticed, 'a row that is missing', (text) => text.replace(/^\| 16 .*\n/m, ''), /^rows 1, .*15, 17/)
test(
  isNoticed,
  'a row without a test',
  (text) => text.replace(/^(\| 57 \|.*\|) `.*\|$/m, '$1  |'),
  /^row 57: no test/,
)
test(
  isNoticed,
  'a wrong number of rows that are played',
  (text) => text.replace(/^(\| 5 \|.*\|) 1 \|/m, '$1 2 |'),
  /^row 5: 1 rows are played and not 2/,
)
