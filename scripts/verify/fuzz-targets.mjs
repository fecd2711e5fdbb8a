// The fuzz targets of native/fuzz: how they are built, and the bugs that they must find when they are planted.
import { cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../processes.mjs'
import { root } from '../setup.mjs'

const compiler = 'clang++-14'

/** Programs and Debian packages that building needs. */
export const fuzzTools = [compiler]
export const fuzzPackages = ['clang-14', 'libclang-rt-14-dev', 'libstdc++-12-dev']

/**
 * @typedef {object} PlantedBug
 * @property {string} name
 * @property {string} file below native/
 * @property {string} right text of the product
 * @property {string} wrong what a build of its own has in its place
 *
 * @typedef {{ name: string, bugs: PlantedBug[] }} FuzzTarget `name` is that of the file in native/fuzz
 */

/** @type {FuzzTarget[]} */
export const fuzzTargets = [
  {
    name: 'split',
    bugs: [
      {
        name: 'a chain may be endless',
        file: 'core/chain.h',
        right: 'if (count > count_max) return',
        wrong: 'if (false) return',
      },
      {
        name: 'a buffer may run over the end of its region',
        file: 'core/memory.cpp',
        right: 'std::min(length_bytes, region.size_bytes - offset)',
        wrong: 'length_bytes',
      },
      {
        name: 'the head is read twice',
        file: 'core/split.h',
        right: 'owed ? Fault::kNone : head_fault(head);',
        wrong:
          'owed ? Fault::kNone : head_fault(Ordering::load_relaxed(&parts_.avail->ring[last_avail_ & (ring_.size - 1)]));',
      },
    ],
  },
  {
    name: 'tcmu',
    bugs: [
      {
        name: 'a buffer may lie in the ring',
        file: 'core/tcmu.h',
        right: 'iovec.iov_base < ring_.data_offset_bytes ||',
        wrong: '',
      },
      {
        name: 'a length that does not fit the ring is believed',
        file: 'core/tcmu.h',
        right: 'length > distance(read_, head_) || length > ring_.size_bytes - read_',
        wrong: 'false',
      },
    ],
  },
]

/**
 * Builds a target with AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 * @param {FuzzTarget} target
 * @param {PlantedBug} [bug] is planted in a copy of the sources
 * @returns {Promise<string>} path of the program
 */
export async function buildFuzzTarget(target, bug) {
  const number = bug === undefined ? 0 : target.bugs.indexOf(bug) + 1
  const folder = join(root, 'out/fuzz', `${target.name}-${number}`)
  await mkdir(folder, { recursive: true })
  let sources = join(root, 'native')
  if (bug !== undefined) {
    sources = join(folder, 'native')
    await rm(sources, { recursive: true, force: true })
    await cp(join(root, 'native'), sources, { recursive: true })
    const path = join(sources, bug.file)
    const text = await readFile(path, 'utf8')
    if (text.split(bug.right).length !== 2) throw new Error(`${bug.file} does not have '${bug.right}' once`)
    await writeFile(
      path,
      text.replace(bug.right, () => bug.wrong),
    )
  }
  const program = join(folder, 'fuzz')
  const { status, output } = await run([
    compiler,
    ...['-std=c++20', '-O2', '-g', '-w', '-fno-sanitize-recover=all', '-fno-sanitize=vptr'],
    '-fsanitize=fuzzer,address,undefined',
    `-I${sources}`,
    ...[`fuzz/${target.name}.cpp`, 'core/memory.cpp', 'core/chain.cpp'].map((file) => join(sources, file)),
    ...['-o', program],
  ])
  if (status !== 0) throw new Error(`fuzz target ${target.name} does not build: ${output}`)
  return program
}

/**
 * Lets a target look for bugs.
 *
 * @param {string} program
 * @param {{ seconds: number, corpus: string, onLine?: (line: string) => void }} options `corpus`: folder of inputs to
 *   start from, which grows
 * @returns {Promise<{ found: boolean, executions: number, edges: number, inputs: number, output: string }>}
 */
export async function fuzz(program, { seconds, corpus, onLine }) {
  await mkdir(corpus, { recursive: true })
  const command = [
    program,
    `-max_total_time=${seconds}`,
    ...['-max_len=512', '-timeout=2', '-print_final_stats=1', `-artifact_prefix=${corpus}/../`],
    corpus,
  ]
  // libFuzzer writes to stderr only.
  const { status, output } = await run(
    onLine === undefined ? command : ['sh', '-c', '"$0" "$@" 2>&1', ...command],
    onLine,
  )
  const last = (pattern) => Number([...output.matchAll(pattern)].at(-1)?.[1] ?? 0)
  return {
    found: status !== 0,
    executions: last(/number_of_executed_units: (\d+)/g),
    edges: last(/ cov: (\d+)/g),
    inputs: last(/ corp: (\d+)/g),
    output,
  }
}
