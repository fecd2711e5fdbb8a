// npm run bench: measures everything that this machine can run, rewrites docs/benchmarks.md and the summary in README.md,
// and writes every round's figures to a JSON file. With --only NAME,… it measures some tables, and the documents stay as they
// are.
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { benchAllocations } from './allocations.ts'
import { benchBlkio } from './blkio.ts'
import { benchDisks, DISK_TABLES } from './disks.ts'
import type { LoadSample } from './load.ts'
import { benchLoopback } from './loopback.ts'
import { pageOf, summaryOf } from './page.ts'
import { benchProcesses, benchRss } from './processes.ts'
import type { BenchOptions, Section } from './section.ts'
import { verdictsOf } from './targets.ts'
import { benchTcmu } from './tcmu.ts'
import { benchTcmuSimulator } from './tcmu-simulator.ts'
import { benchWorkers } from './workers.ts'

/** By name, in the order in which they are measured and told. */
const SECTIONS: Readonly<Record<string, (options: BenchOptions) => Promise<Section>>> = {
  ...Object.fromEntries(
    DISK_TABLES.map((name) => [name, (options: BenchOptions) => benchDisks(name, options)]),
  ),
  workers: benchWorkers,
  processes: benchProcesses,
  rss: benchRss,
  loopback: benchLoopback,
  'tcmu-simulator': benchTcmuSimulator,
  allocations: benchAllocations,
  blkio: benchBlkio,
  // Instructions vary by next to nothing; a round takes minutes.
  tcmu: () => benchTcmu(1),
}

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '7' },
    ms: { type: 'string', default: '500' },
    only: { type: 'string' },
    long: { type: 'boolean', default: false },
    json: { type: 'string' },
  },
})
const options = { rounds: Number(values.rounds), ms: Number(values.ms), long: values.long }
const names = values.only?.split(',') ?? Object.keys(SECTIONS)
const unknown = names.filter((name) => !(name in SECTIONS))
if (unknown.length > 0 || !(options.rounds >= 1) || !(options.ms >= 1)) {
  console.error(
    'npm run bench -- [--rounds 7] [--ms 500] [--long] [--json FILE] [--only NAME,…]; the names are',
  )
  console.error(Object.keys(SECTIONS).join(', '))
  process.exit(2)
}

const sections: Section[] = []
for (const name of names) {
  console.error(`${name} …`)
  sections.push(await SECTIONS[name]!(options))
}

const root = new URL('../', import.meta.url)
const git = (...words: readonly string[]): string =>
  execFileSync('git', words, { cwd: root, encoding: 'utf8' }).trim()
const isChanged = git('status', '--porcelain', '--untracked-files=no') !== ''
const circumstances = {
  machine: `${cpus().length} × ${cpus()[0]!.model.trim()}, Linux ${release()}, Node ${process.version}`,
  commit: `${git('rev-parse', '--short', 'HEAD')}${isChanged ? ' with changes' : ''}`,
  date: new Date().toISOString().slice(0, 10),
  rounds: options.rounds,
  ms: options.ms,
}
const page = pageOf(circumstances, sections)
console.log(page)

const jsonPath =
  values.json ??
  fileURLToPath(new URL(`bench/results/${new Date().toISOString().replaceAll(':', '')}.json`, root))
mkdirSync(dirname(jsonPath), { recursive: true })
const targets = verdictsOf(new Map(sections.map((section) => [section.name, section])))
const tables = sections.map(({ markdown, ...data }) => data)
writeFileSync(jsonPath, `${JSON.stringify({ ...circumstances, options, targets, tables }, null, 1)}\n`)
console.error(`every round's figures: ${jsonPath}`)

if (values.only === undefined) {
  writeFileSync(new URL('docs/benchmarks.md', root), page)
  const readme = new URL('README.md', root)
  const nullDisk = sections.find(({ name }) => name === 'null') as Section<LoadSample>
  writeFileSync(
    readme,
    readFileSync(readme, 'utf8').replace(
      /<!-- bench:summary -->[\s\S]*<!-- \/bench:summary -->/,
      () => `<!-- bench:summary -->\n${summaryOf(nullDisk)}\n<!-- /bench:summary -->`,
    ),
  )
}
