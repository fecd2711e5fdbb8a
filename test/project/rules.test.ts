import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import test from 'ava'
import { errorDocs } from '../../scripts/error-docs.ts'
import { ERROR_CODES } from '../../src/errors.ts'
import {
  CompleteBits,
  CompletionRow,
  CopyRow,
  DriverCounter,
  LitmusCounter,
  QueueCounter,
  RequestRow,
  RingBreak,
  SegmentRow,
} from '../../src/native.ts'

const root = join(import.meta.dirname, '../..')
const read = (path: string): string => readFileSync(join(root, path), 'utf8')

// ---- Imports point one way -------------------------------------------------------------------------------------

const EVERYWHERE = ['errors.ts', 'options.ts', 'units.ts']
const BELOW_TRANSPORT = [...EVERYWHERE, 'native.ts', 'ring', 'handlers', 'notify']

/** What each part of src may import beside itself: files, or folders with all that is in them. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  'errors.ts': [],
  'units.ts': [],
  'options.ts': ['errors.ts'],
  'segment-row.ts': [],
  'native.ts': ['errors.ts', 'segment-row.ts'],
  ring: [...EVERYWHERE, 'native.ts', 'segment-row.ts'],
  handlers: [
    ...EVERYWHERE,
    'ring/file-ring.ts',
    'ring/file-transfers.ts',
    'ring/later.ts',
    'ring/lent-segments.ts',
    'ring/request.ts',
    'ring/scsi-request.ts',
    'ring/segments.ts',
    'ring/store-memory.ts',
    'ring/sense.ts',
  ],
  notify: [
    ...EVERYWHERE,
    'native.ts',
    'ring',
    'handlers/handler.ts',
    'handlers/first-value.ts',
    'handlers/completion-promise.ts',
  ],
  // The loopback has a driver in it, the one of the test kit.
  transport: [...BELOW_TRANSPORT, 'testing/shared-memory.ts', 'testing/split-driver.ts'],
  testing: [...BELOW_TRANSPORT, 'transport'],
  'index.ts': [...BELOW_TRANSPORT, 'transport'],
  // The demo drives a simulated kernel; the litmus tests are those of the test kit.
  cli: [
    ...BELOW_TRANSPORT,
    'transport',
    'testing/block-load.ts',
    'testing/litmus.ts',
    'testing/tcmu-kernel.ts',
    'index.ts',
  ],
}

/** Every way a source file has against the rules, as sentences. @param sources text by path below src */
function importViolations(sources: ReadonlyMap<string, string>): string[] {
  const violations: string[] = []
  for (const [path, text] of sources) {
    const part = path.split('/')[0]!
    const allowed = [part, ...(MAY_IMPORT[part] ?? [])]
    for (const [, specifier] of text.matchAll(/(?:\bfrom|\bimport|\bimport\()\s*'([^']+)'/g)) {
      if (/^rxjs\//.test(specifier!))
        violations.push(`${path} imports ${specifier}, which is not RxJS's public API`)
      if (!specifier!.startsWith('.')) continue
      const imported = normalize(join(dirname(path), specifier!))
      if (!allowed.some((name) => imported === name || imported.startsWith(`${name}/`))) {
        violations.push(`${path} imports ${imported}`)
      }
    }
    if (path !== 'native.ts' && /\bcreateRequire\b|\bdlopen\b|\.node\b['"`]/.test(text)) {
      violations.push(`${path} loads native code`)
    }
  }
  return violations
}

function sourceFiles(): Map<string, string> {
  const paths = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
  return new Map(paths.filter((path) => path.endsWith('.ts')).map((path) => [path, read(join('src', path))]))
}

test('every import of src points the way the architecture says', (t) => {
  const sources = sourceFiles()
  t.true(sources.size > 20)
  t.deepEqual(importViolations(sources), [])
})

const isFound = test.macro({
  exec(t, path: string, text: string, violation: string) {
    t.deepEqual(importViolations(new Map([[path, text]])), [violation])
  },
  title: (_, path, text) => `the import rules notice \`${text}\` in ${path}`,
})
test(
  isFound,
  'ring/queue.ts',
  "import { a } from '../transport/stats.ts'",
  'ring/queue.ts imports transport/stats.ts',
)
test(
  isFound,
  'ring/queue.ts',
  "import type { A } from '../notify/gather.ts'",
  'ring/queue.ts imports notify/gather.ts',
)
test(
  isFound,
  'handlers/trace.ts',
  "export * from '../ring/queue.ts'",
  'handlers/trace.ts imports ring/queue.ts',
)
test(
  isFound,
  'handlers/stores/file.ts',
  "import '../../native.ts'",
  'handlers/stores/file.ts imports native.ts',
)
test(
  isFound,
  'notify/drain.ts',
  "await import('../handlers/block/codec.ts')",
  'notify/drain.ts imports handlers/block/codec.ts',
)
test(
  isFound,
  'transport/stats.ts',
  "import { a } from '../cli/log.ts'",
  'transport/stats.ts imports cli/log.ts',
)
test(isFound, 'index.ts', "export { a } from './cli/log.ts'", 'index.ts imports cli/log.ts')
test(isFound, 'odd.ts', "import { a } from './units.ts'", 'odd.ts imports units.ts')
test(isFound, 'cli/log.ts', "import { createRequire } from 'node:module'", 'cli/log.ts loads native code')
test(
  isFound,
  'notify/gather.ts',
  "import { a } from 'rxjs/internal/operators/map'",
  "notify/gather.ts imports rxjs/internal/operators/map, which is not RxJS's public API",
)

// ---- Every error is documented and in use ------------------------------------------------------------------------

test('docs/errors.md lists every code with family, meaning and remedy', (t) => {
  t.is(read('docs/errors.md'), errorDocs(ERROR_CODES), 'npm run docs:errors writes it anew')
})

test('the comparison notices a code that is missing in docs/errors.md and a meaning that changed', (t) => {
  const { ERR_CLOSED, ...others } = ERROR_CODES
  t.not(errorDocs(others), errorDocs(ERROR_CODES))
  t.not(errorDocs({ ...others, ERR_CLOSED: { ...ERR_CLOSED, meaning: 'Another.' } }), errorDocs(ERROR_CODES))
})

test('every error code is in use', (t) => {
  // In the table itself a code is a key; where an error is made it is a string, or the key of RingBreak.
  const { 'errors.ts': table, ...others } = Object.fromEntries(sourceFiles())
  const isUsed = (code: string): boolean =>
    table!.includes(`'${code}'`) || Object.values(others).some((text) => text.includes(code))
  t.false(isUsed('ERR_NOT_A_CODE'))
  t.deepEqual(
    Object.keys(ERROR_CODES).filter((code) => !isUsed(code)),
    [],
  )
})

// ---- TypeScript and C++ agree ------------------------------------------------------------------------------------

const toCamelCase = (name: string): string =>
  name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase())

/** The names of the words of a C++ struct, in order, as TypeScript writes them. */
function structFields(header: string, name: string): string[] {
  const body = new RegExp(`struct ${name} \\{([^}]*)\\}`).exec(read(header))?.[1] ?? ''
  return [...body.matchAll(/std::uint\d+_t (\w+)/g)].map(([, field]) => toCamelCase(field!))
}

const isLaidOutAs = test.macro({
  exec(t, indices: Readonly<Record<string, number>>, lengthName: string, header: string, struct: string) {
    const fields = structFields(header, struct)
    t.true(fields.length > 0)
    t.deepEqual(indices, {
      ...Object.fromEntries(fields.map((field, index) => [field, index])),
      [lengthName]: fields.length,
    })
  },
  title: (_, _indices, _lengthName, header, struct) => `TypeScript and C++ agree on ${struct} (${header})`,
})
test(isLaidOutAs, RequestRow, 'words', 'native/core/split.h', 'RequestRow')
test(isLaidOutAs, CompletionRow, 'words', 'native/core/split.h', 'CompletionRow')
test(isLaidOutAs, SegmentRow, 'words', 'native/core/chain.h', 'Segment')
test(isLaidOutAs, CopyRow, 'words', 'native/core/copies.h', 'CopyRow')
test(isLaidOutAs, QueueCounter, 'count', 'native/core/split.h', 'QueueCounters')
test(isLaidOutAs, LitmusCounter, 'count', 'native/os/litmus.h', 'LitmusCounters')
test(isLaidOutAs, DriverCounter, 'count', 'native/os/driver_thread.h', 'DriverCounters')

test('the comparison of layouts notices a word too many', (t) => {
  t.notDeepEqual(structFields('native/core/split.h', 'CompletionRow'), ['head', 'bytesWritten'])
})

test('TypeScript and C++ agree on what complete() did', (t) => {
  const header = read('native/core/split.h')
  for (const [name, bit] of Object.entries(CompleteBits)) {
    const constant = `k${name[0]!.toUpperCase()}${name.slice(1)}`
    t.regex(header, new RegExp(`${constant} = ${bit};`))
  }
})

test('TypeScript and C++ agree on the numbers of faults', (t) => {
  const faults = [...read('native/core/fault.h').matchAll(/^ {2}k(\w+) = (\d+),/gm)]
  const numbers = new Map(faults.map(([, name, number]) => [name!.toUpperCase(), Number(number)]))
  numbers.delete('NONE')
  const codes = Object.entries(RingBreak).map(([code, number]): [string, number] => {
    const name = code.replace('ERR_', '').replaceAll('_', '')
    // A fault of the ring is named without it where that is clear: kAvailIndex is ERR_RING_AVAIL_INDEX.
    return [numbers.has(name) ? name : name.replace(/^RING/, ''), number]
  })
  t.true(numbers.size > 0)
  t.deepEqual(new Map(codes), numbers)
})

// ---- The project speaks of itself only -----------------------------------------------------------------------------

/** Names of one machine or one network that have no business in the project. */
function strayNames(text: string): string[] {
  const patterns = [
    /(?<![\w.~}$-])\/(?:home|root|Users)\/[\w.-]+/g,
    /https?:\/\/(?:[\w-]+\.)*(?:registry|mirror|deb|security)[\w-]*\.[\w.-]+/g,
  ]
  // The folder of this clone, unless it is so near the root that it may be anything.
  const clone = root.split('/').length > 2 && text.includes(root) ? [root] : []
  return [...patterns.flatMap((pattern) => text.match(pattern) ?? []), ...clone]
}

test('no file names a folder of somebody or a package registry', (t) => {
  const list = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: root,
    encoding: 'utf8',
  })
  const stray = list
    .split('\0')
    .filter((path) => path !== '')
    .flatMap((path) => strayNames(read(path)).map((name) => `${path}: ${name}`))
  t.deepEqual(stray, [])
})

test('the search for such names finds them', (t) => {
  const [home, registry] = [`${'/'}home/jo/disk.img`, `https:${'/'}/registry.example.org/a`]
  t.deepEqual(strayNames(`--file ${home} from ${registry} into ${root}/out`), [
    `${'/'}home/jo`,
    `https:${'/'}/registry.example.org`,
    root,
  ])
  t.deepEqual(strayNames('"$root/bin" https://example.org/registry /srv/disk0.img'), [])
})
