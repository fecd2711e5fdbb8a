// Reads what compilers make of the orderings, in the very functions of the product, for three instruction sets: which
// instruction each index is accessed by, and that no way leads from a store to the load it must come before without a
// barrier. The same text with one ordering weakened must fail the check, wherever that compiles to another instruction.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from '../../processes.mjs'
import { noResults } from '../../test-results.mjs'
import { INSTRUCTION_SETS, readMachineCode } from '../machine-code.mjs'

/** @typedef {import('../machine-code.mjs').Instruction} Instruction */

/** Compilers as they make the product, and the instruction set whose code they make. */
const BUILDS = [
  { name: 'x86-64 g++', instructionSet: 'x86-64', command: ['g++'] },
  { name: 'x86-64 clang', instructionSet: 'x86-64', command: ['clang++-14'] },
  { name: 'AArch64 g++', instructionSet: 'aarch64', command: ['aarch64-linux-gnu-g++'] },
  {
    name: 'AArch64 clang with RCpc',
    instructionSet: 'aarch64',
    // Clang 14 does not make ldapr of an acquire yet.
    command: ['clang++-16', '--target=aarch64-linux-gnu', '-march=armv8.3-a+rcpc'],
  },
  {
    name: 'RISC-V clang',
    instructionSet: 'riscv64',
    command: ['clang++-14', '--target=riscv64-linux-gnu'],
  },
]
/** As CMakeLists.txt has them for a release. */
const FLAGS =
  '-std=c++20 -O2 -g1 -fPIC -fno-plt -fstack-protector-strong -fno-rtti -fno-exceptions -Inative -shared -nostdlib'

const within =
  (...names) =>
  ({ functions }) =>
    names.every((name) => functions.some((text) => text.includes(name)))
const loads = (instruction) => instruction.access?.kind === 'load' && instruction.access.bits < 64
const stores = (instruction) => instruction.access?.kind === 'store' && instruction.access.bits < 64
const both = (one, other) => (instruction) => one(instruction) && other(instruction)

/**
 * What must hold: each way from an instruction that is `from` to one that is `to` passes a barrier. Pointers have 64
 * bits and are loaded by the same functions; what is shared has fewer.
 *
 * @typedef {object} Rule
 * @property {string} ordering
 * @property {string} title
 * @property {'full' | 'acquire' | 'release'} barrier
 * @property {(instruction: Instruction) => boolean} [from] default: the start of the function
 * @property {(instruction: Instruction) => boolean} to
 * @property {{ of: (instruction: Instruction) => boolean, bits: number }} width what is accessed by so many bits only
 */
/** @type {Rule[]} */
const RULES = [
  {
    ordering: 'F1',
    title: 'used elements and status bytes, then used.idx',
    barrier: 'release',
    from: both(
      stores,
      (instruction) => within('write_used_element')(instruction) || within('release')(instruction),
    ),
    to: both(stores, within('publish_used_index')),
    width: { of: both(stores, within('publish_used_index')), bits: 16 },
  },
  {
    ordering: 'F2',
    // From the start, because the store may be in a function that was left: decisions can be put off.
    title: 'whatever was published before, then used_event or avail.flags',
    barrier: 'full',
    to: both(loads, within('load_relaxed', 'signal_is_needed')),
    width: { of: both(loads, within('load_relaxed', 'signal_is_needed')), bits: 16 },
  },
  {
    ordering: 'F3',
    title: 'avail.idx, then avail.ring',
    barrier: 'acquire',
    from: both(loads, within('acquire_avail_index', '::take(')),
    to: both(
      loads,
      (instruction) => within('load_relaxed', '::take(')(instruction) && !within('acquire')(instruction),
    ),
    width: { of: both(loads, within('acquire_avail_index', '::take(')), bits: 16 },
  },
  {
    ordering: 'F4',
    title: 'avail_event or used.flags, then avail.idx',
    barrier: 'full',
    from: both(
      stores,
      (instruction) =>
        within('store_relaxed', 'arm_kicks')(instruction) && !within('suppress_kicks')(instruction),
    ),
    to: both(loads, within('acquire_avail_index', 'arm_kicks')),
    width: { of: both(loads, within('acquire_avail_index', 'arm_kicks')), bits: 16 },
  },
  {
    ordering: 'F9',
    title: 'cmd_head, then the entries',
    barrier: 'acquire',
    from: both(loads, within('acquire_command_head', 'look_at_head')),
    to: (instruction) => instruction.isCall || both(loads, within('take_entry'))(instruction),
    width: { of: both(loads, within('acquire_command_head', 'look_at_head')), bits: 32 },
  },
  {
    ordering: 'F10',
    title: 'whatever was written before, then cmd_tail',
    barrier: 'release',
    to: both(stores, within('publish_command_tail')),
    width: { of: both(stores, within('publish_command_tail')), bits: 32 },
  },
  {
    ordering: 'F12',
    title: 'whatever was done before, then cmd_head',
    barrier: 'full',
    to: both(loads, within('acquire_command_head', 'sees_entry')),
    width: { of: both(loads, within('acquire_command_head', 'sees_entry')), bits: 32 },
  },
]

const EVERYWHERE = ['x86-64', 'aarch64', 'riscv64']
/** An x86 keeps the order of loads among themselves and of stores among themselves anyway. */
const NOT_ON_X86 = ['aarch64', 'riscv64']
/**
 * Each mutant with the rule that it breaks, in which way, and on which instruction sets it is another instruction.
 * `torn` is none of native/core/mutants.h.
 */
const MUTANTS = [
  { id: 'F1', policy: 'F1', breaks: 'F1', on: NOT_ON_X86 },
  { id: 'F2-event-idx', policy: 'F2EventIdx', breaks: 'F2', on: EVERYWHERE },
  { id: 'F2-flags', policy: 'F2Flags', breaks: 'F2', on: EVERYWHERE },
  { id: 'F3', policy: 'F3', breaks: 'F3', on: NOT_ON_X86 },
  { id: 'F4-event-idx', policy: 'F4EventIdx', breaks: 'F4', on: EVERYWHERE },
  { id: 'F4-flags', policy: 'F4Flags', breaks: 'F4', on: EVERYWHERE },
  { id: 'F9', policy: 'F9', breaks: 'F9', on: NOT_ON_X86 },
  { id: 'F10', policy: 'F10', breaks: 'F10', on: NOT_ON_X86 },
  { id: 'F12', policy: 'F12', breaks: 'F12', on: EVERYWHERE },
  { id: 'F5', policy: 'F5', breaks: 'F4', as: /^no way leads/, on: EVERYWHERE },
  { id: 'torn', policy: 'Torn', breaks: 'F3', as: /is not of 16 bits/, on: EVERYWHERE },
]

const ADDON = 'build/Release/hushring.node'
/** The litmus tests have them. F5 as well, but inlined into a loop, in which another look follows in the next round. */
const IN_THE_ADDON = ['F2EventIdx', 'F2Flags', 'F4EventIdx', 'F4Flags']

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '5',
  title: 'disassembly',
  tools: [
    ...BUILDS.map(({ command: [compiler] }) => compiler),
    'llvm-objdump-14',
    'llvm-symbolizer-14',
    'riscv64-linux-gnu-ld',
  ],
  packages: [
    'g++',
    'clang-14',
    'clang-16',
    'llvm-14',
    'g++-aarch64-linux-gnu',
    'libstdc++-12-dev-riscv64-cross',
    'binutils-riscv64-linux-gnu',
  ],
  killsMutants: true,
  async run() {
    const results = { ...noResults(), killed: {}, figure: '' }
    const check = (title, holds) => {
      if (holds) results.passed++
      else results.failed.push(title)
      return holds
    }
    let instructionCount = 0
    let codeCount = 0
    const read = (name, instructionSet, code, mutants) => {
      codeCount++
      instructionCount += [...code.values()].reduce((total, body) => total + body.length, 0)
      const complaintOf = (rule, policy) =>
        complaint(rule, functionsWith(code, policy), INSTRUCTION_SETS[instructionSet])
      for (const rule of RULES) {
        const found = complaintOf(rule)
        check(
          `${name}: ${rule.ordering}, ${rule.title}${found === undefined ? '' : `: ${found}`}`,
          found === undefined,
        )
      }
      for (const { id, policy, breaks, as = /^no barrier/, on } of mutants) {
        const found = complaintOf(
          RULES.find(({ ordering }) => ordering === breaks),
          policy,
        )
        if (on.includes(instructionSet)) {
          const noticed = check(
            `${name}: the mutant ${id}: ${found ?? 'not noticed'}`,
            found?.match(as) != null,
          )
          results.killed[id] = (results.killed[id] ?? true) && noticed
        } else {
          check(`${name}: the mutant ${id} should be the same instructions: ${found}`, found === undefined)
        }
      }
    }

    const directory = await mkdtemp(join(tmpdir(), 'hushring-disassembly-'))
    try {
      for (const { name, instructionSet, command } of BUILDS) {
        const path = join(directory, 'orderings.so')
        await compile(command, path)
        read(name, instructionSet, await readMachineCode(path, instructionSet, isOurs), MUTANTS)
      }
    } finally {
      await rm(directory, { recursive: true })
    }
    const here = { x64: 'x86-64', arm64: 'aarch64', riscv64: 'riscv64' }[process.arch]
    read(
      'the addon of this machine',
      here,
      await readMachineCode(ADDON, here, isOurs),
      MUTANTS.filter(({ policy }) => IN_THE_ADDON.includes(policy)),
    )
    results.figure = `${results.passed} assertions on ${instructionCount} instructions of ${codeCount} builds`
    return results
  },
}

async function compile(command, path) {
  const source = 'native/test/disassembly/orderings.cpp'
  const { status, output } = await run([...command, ...FLAGS.split(' '), '-o', path, source])
  if (status !== 0) throw new Error(`${command.join(' ')} ended with ${status}:\n${output}`)
}

/** Without what only jumps elsewhere. */
function isOurs(symbol) {
  return symbol.includes('hushring::') && !symbol.endsWith('@plt')
}

/** The functions that are built with a mutant; without one, those of the product. */
function functionsWith(code, mutant) {
  const isWanted = (symbol) =>
    mutant === undefined ? !symbol.includes('mutants::') : symbol.includes(`mutants::${mutant}<`)
  return [...code].flatMap(([symbol, body]) => (isWanted(symbol) ? [body] : []))
}

/** What is against a rule, as a sentence; undefined when it holds. */
function complaint(rule, functions, set) {
  const accesses = functions.flatMap((body) => body.filter(rule.width.of))
  if (accesses.length === 0) return 'the access was not found'
  const odd = accesses.find(({ access }) => access.bits !== rule.width.bits)
  if (odd !== undefined) return `${odd.text} is not of ${rule.width.bits} bits`
  const barriers = ['full', rule.barrier]
  let wayCount = 0
  for (const body of functions.filter((instructions) => instructions.some(rule.to))) {
    for (const start of rule.from === undefined ? [undefined] : body.filter(rule.from)) {
      wayCount += reached(body, start, () => false).filter(rule.to).length
      const bare = reached(body, start, ({ barrier }) => barriers.includes(barrier))
        .filter(rule.to)
        .find((end) => !isOrdered(start, end, rule, set))
      if (bare !== undefined) return `no barrier between ${start?.text ?? 'the start'} and ${bare.text}`
    }
  }
  return wayCount === 0 ? 'no way leads from the one to the other' : undefined
}

/** Every instruction that a way from `start` (undefined: the first one) leads to before anything that `ends` it. */
function reached(body, start, ends) {
  const byAddress = new Map(body.map((instruction) => [instruction.address, instruction]))
  const seen = new Set()
  const open = start === undefined ? [body[0].address] : [...start.next]
  for (let address = open.pop(); address !== undefined; address = open.pop()) {
    const instruction = byAddress.get(address)
    if (seen.has(instruction)) continue
    seen.add(instruction)
    if (!ends(instruction)) open.push(...instruction.next)
  }
  return [...seen]
}

/** Whether the machine, or the kind of one of the two instructions, makes a barrier between them unnecessary. */
function isOrdered(start, end, { barrier }, { ordersAllButStoreLoad }) {
  if (barrier === 'full') return false
  return ordersAllButStoreLoad || Boolean(barrier === 'acquire' ? start.access.ordered : end.access?.ordered)
}
