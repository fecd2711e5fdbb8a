// The fuzz targets: the bugs that they must find when they are planted, how they are built, and how they are run. Those
// of the core are programs (native/fuzz). What TypeScript parses is fuzzed in Node (test/fuzz), with libFuzzer in an addon.
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { run } from '../processes.mjs'
import { root } from '../setup.mjs'

const compiler = 'clang++-14'

/** Programs and Debian packages that building needs. */
export const fuzzTools = [compiler]
export const fuzzPackages = ['clang-14', 'libclang-rt-14-dev', 'libstdc++-12-dev']

/**
 * @typedef {object} PlantedBug
 * @property {string} name
 * @property {string} file below native/, or below dist/
 * @property {string} right text of the product
 * @property {string} wrong what a build of its own has in its place
 *
 * @typedef {object} FuzzTarget
 * @property {string} name
 * @property {string[]} [covered] how the paths of the modules below dist/ begin that guide the search; without it the
 *   target is the program of that name in native/fuzz
 * @property {number} inputBytesMax
 * @property {PlantedBug[]} bugs
 */

/** @type {FuzzTarget[]} */
export const fuzzTargets = [
  {
    name: 'split',
    inputBytesMax: 512,
    bugs: [
      {
        name: 'a chain may be endless',
        file: 'core/chain.h',
        right: 'if (count > count_max) return',
        wrong: 'if (false) return',
      },
      {
        name: 'a buffer may run over the end of its region',
        file: 'core/memory.h',
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
    inputBytesMax: 512,
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
  {
    name: 'scsi',
    covered: ['handlers/block/block', 'handlers/scsi', 'ring/scsi-request', 'ring/segments', 'ring/sense'],
    inputBytesMax: 1024,
    bugs: [
      {
        name: 'parameter data may be longer than the room for it',
        file: 'handlers/scsi/disk-unit.js',
        right: 'Math.min(bytes.length, allocationBytes, dataIn.byteLength)',
        wrong: 'Math.min(bytes.length, allocationBytes)',
      },
      {
        name: 'a WRITE believes its CDB about the length of its data',
        file: 'handlers/scsi/read-write.js',
        right: 'data.byteLength < neededBytes ?',
        wrong: 'false ?',
      },
      {
        name: 'a command without Data-In tells what is in the room for it',
        file: 'handlers/scsi/unit-commands.js',
        right: 'nothing = (unit, request) => unit.good(request)',
        wrong: 'nothing = (unit, request) => request.ok()',
      },
    ],
  },
  {
    name: 'vhost-user',
    covered: ['handlers/block/virtio-blk', 'ring/inflight', 'ring/memory', 'transport/'],
    inputBytesMax: 2048,
    bugs: [
      {
        name: 'descriptors that nobody took stay open',
        file: 'transport/vhost-user/connection.js',
        right: '.finally(() => message.fds.close())',
        wrong: '',
      },
      {
        name: 'a memory table is as long as it says',
        file: 'transport/vhost-user/payloads.js',
        right: 'expectSize(`a memory table of',
        wrong: 'String(`a memory table of',
      },
      {
        name: 'a kick that comes too early stays open',
        file: 'transport/queue-controller.js',
        right: 'closeIfOpen(fd);',
        wrong: '',
      },
    ],
  },
]

/**
 * Builds a target.
 *
 * @param {FuzzTarget} target
 * @param {PlantedBug} [bug] is planted in a copy of what is built
 * @returns {Promise<string[]>} the command, to which libFuzzer's arguments are added
 */
export async function buildFuzzTarget(target, bug) {
  const number = bug === undefined ? 0 : target.bugs.indexOf(bug) + 1
  const folder = join(root, 'out/fuzz', `${target.name}-${number}`)
  await mkdir(folder, { recursive: true })
  return target.covered === undefined
    ? buildProgram(target.name, folder, bug)
    : buildModules(target.name, target.covered, folder, bug)
}

/** A program of its own, with AddressSanitizer and UndefinedBehaviorSanitizer. */
async function buildProgram(name, folder, bug) {
  const sources = await copyWithBug('native', folder, bug)
  const program = join(folder, 'fuzz')
  await compile(`fuzz target ${name}`, [
    ...['-std=c++20', '-O2', '-g', '-w', '-fno-sanitize-recover=all', '-fno-sanitize=vptr'],
    '-fsanitize=fuzzer,address,undefined',
    `-I${sources}`,
    ...[`fuzz/${name}.cpp`, 'core/memory.cpp'].map((file) => join(sources, file)),
    ...['-o', program],
  ])
  return [program]
}

/** A copy of dist/ that counts where it goes, for test/fuzz/run.ts. */
async function buildModules(name, covered, folder, bug) {
  const product = await copyWithBug('dist', folder, bug)
  const modules = []
  for (const path of await readdir(product, { recursive: true })) {
    if (!path.endsWith('.js') || !covered.some((start) => path.startsWith(start))) continue
    modules.push(await instrument(product, path))
  }
  fuzzer ??= buildFuzzer()
  const build = { fuzzer: await fuzzer, native: join(root, 'build/Release/hushring.node'), modules }
  await writeFile(join(folder, 'build.json'), JSON.stringify(build))
  return ['node', '--import=tsx', join(root, 'test/fuzz/run.ts'), name, folder]
}

/**
 * Lets istanbul write its counters into a module: one for each statement, function and way of a branch.
 *
 * @returns what test/fuzz/run.ts must know to find them
 */
async function instrument(product, relativePath) {
  // Not before it is needed: the names of the rungs' packages are asked for before anything is installed.
  const { createInstrumenter, readInitialCoverage } = (await import('istanbul-lib-instrument')).default
  const instrumenter = createInstrumenter({
    esModules: true,
    preserveComments: false,
    produceSourceMap: true,
  })
  const path = join(product, relativePath)
  const map = JSON.parse(await readFile(`${path}.map`, 'utf8'))
  // They are relative to where the module was.
  const sources = map.sources.map((source) => join(root, 'dist', dirname(relativePath), source))
  const text = instrumenter.instrumentSync(await readFile(path, 'utf8'), path, { ...map, sources })
  await writeFile(`${path}.map`, JSON.stringify(instrumenter.lastSourceMap()))
  await writeFile(path, `${text}\n//# sourceMappingURL=${basename(path)}.map\n`)
  const { hash, coverageData } = readInitialCoverage(text)
  return {
    path,
    hash,
    statementCount: Object.keys(coverageData.s).length,
    functionCount: Object.keys(coverageData.f).length,
    wayCounts: Object.values(coverageData.b).map((ways) => ways.length),
  }
}

/** @type {Promise<string> | undefined} the addon with libFuzzer, which all targets share */
let fuzzer

async function buildFuzzer() {
  const addon = join(root, 'out/fuzz/node_fuzzer.node')
  const { output: libraries } = await run([compiler, '-print-runtime-dir'])
  const machine = process.arch === 'arm64' ? 'aarch64' : 'x86_64'
  await compile('the addon with libFuzzer', [
    ...['-std=c++20', '-O2', '-g', '-Wall', '-Wextra', '-shared', '-fPIC', '-fno-rtti', '-fno-exceptions'],
    ...['-DNAPI_VERSION=9', '-DNODE_ADDON_API_DISABLE_DEPRECATED', '-DNODE_ADDON_API_DISABLE_CPP_EXCEPTIONS'],
    ...['node-api-headers/include', 'node-addon-api'].flatMap((folder) => [
      '-isystem',
      join(root, 'node_modules', folder),
    ]),
    join(root, 'native/fuzz/node_fuzzer.cpp'),
    // With a main of its own, libFuzzer would be no part of an addon.
    join(libraries.trim(), `libclang_rt.fuzzer_no_main-${machine}.a`),
    ...['-o', addon],
  ])
  return addon
}

async function compile(what, options) {
  const { status, output } = await run([compiler, ...options])
  if (status !== 0) throw new Error(`${what} does not build: ${output}`)
}

/** A copy of a folder of the project in which a bug is planted. */
async function copyWithBug(name, folder, bug) {
  const copy = join(folder, name)
  await rm(copy, { recursive: true, force: true })
  await cp(join(root, name), copy, { recursive: true })
  if (bug === undefined) return copy
  const path = join(copy, bug.file)
  const text = await readFile(path, 'utf8')
  if (text.split(bug.right).length !== 2) throw new Error(`${bug.file} does not have '${bug.right}' once`)
  await writeFile(
    path,
    text.replace(bug.right, () => bug.wrong),
  )
  return copy
}

/**
 * Lets a target look for bugs.
 *
 * @param {FuzzTarget} target
 * @param {string[]} command of {@link buildFuzzTarget}
 * @param {object} options
 * @param {number} options.seconds
 * @param {string} options.corpus folder of inputs to start from, which grows; what is found is left beside it
 * @param {string} [options.input] file with an input, which alone is played
 * @param {(line: string) => void} [options.onLine]
 * @returns {Promise<{ found: boolean, executions: number, edges: number, inputs: number, output: string }>}
 */
export async function fuzz(target, command, { seconds, corpus, input = corpus, onLine }) {
  await mkdir(corpus, { recursive: true })
  const whole = [
    ...command,
    ...[`-max_total_time=${seconds}`, `-max_len=${target.inputBytesMax}`, '-print_final_stats=1'],
    `-artifact_prefix=${corpus}/../`,
    // The addon has a time limit of its own; and SIGBUS is the product's, whose guard it stops at.
    ...(target.covered === undefined ? ['-timeout=2'] : ['-timeout=0', '-handle_bus=0']),
    input,
  ]
  const lines = []
  // libFuzzer writes to stderr only.
  const { status } = await run(['sh', '-c', '"$0" "$@" 2>&1', ...whole], (line) => {
    lines.push(line)
    onLine?.(line)
  })
  const output = lines.join('\n')
  // A finding leaves its input behind. A target that does not even start must not look like one.
  const found = output.includes('Test unit written to')
  if (status !== 0 && !found) throw new Error(`fuzz target ${target.name} ended with ${status}: ${output}`)
  const last = (pattern) => Number([...output.matchAll(pattern)].at(-1)?.[1] ?? 0)
  return {
    found,
    executions: last(/number_of_executed_units: (\d+)/g),
    edges: last(/ cov: (\d+)/g),
    inputs: last(/ corp: (\d+)/g),
    output,
  }
}
