// Reads the machine code of compiled C++: each instruction with what it does to memory, where it goes on, and the names
// of the functions it comes from, innermost first, inlined ones too.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { run } from '../processes.mjs'

/**
 * What an instruction set calls things. `access` says what an instruction does to shared memory; a load or a store of
 * another kind is of no interest. Barriers: `full` orders everything, `acquire` earlier loads before everything later,
 * `release` everything earlier before later stores.
 *
 * @typedef {object} InstructionSet
 * @property {boolean} ordersAllButStoreLoad the machine itself keeps every order but that of a store and a later load
 * @property {(mnemonic: string, operands: string) => Access | undefined} access
 * @property {(mnemonic: string, operands: string) => 'full' | 'acquire' | 'release' | undefined} barrier
 * @property {RegExp} jump mnemonics that never go on with the next instruction
 * @property {RegExp} call
 *
 * @typedef {object} Access
 * @property {'load' | 'store'} kind
 * @property {number} bits
 * @property {boolean} [ordered] a load with acquire or a store with release
 *
 * @typedef {object} Instruction
 * @property {number} address
 * @property {string} text
 * @property {Access} [access]
 * @property {'full' | 'acquire' | 'release'} [barrier]
 * @property {boolean} isCall
 * @property {number[]} next addresses
 * @property {string[]} functions
 */

const SUFFIX_BITS = { b: 8, w: 16, l: 32, q: 64 }

/** @type {Record<'x86-64' | 'aarch64' | 'riscv64', InstructionSet>} */
export const INSTRUCTION_SETS = {
  'x86-64': {
    ordersAllButStoreLoad: true,
    access(mnemonic, operands) {
      // Constants and registers before the place: it is a store. What is compared in place is loaded.
      const [, width] = /^(?:mov|cmp|test|add|sub)(?:z|s)?([bwlq])/.exec(mnemonic) ?? []
      if (width === undefined || !operands.includes('(')) return undefined
      const isStore = mnemonic.startsWith('mov') && operands.endsWith(')')
      return { kind: isStore ? 'store' : 'load', bits: SUFFIX_BITS[width] }
    },
    barrier: (mnemonic) => (/^(mfence|lock)$/.test(mnemonic) ? 'full' : undefined),
    jump: /^(jmpq?|retq?|ud2|hlt)$/,
    call: /^callq?$/,
  },
  aarch64: {
    ordersAllButStoreLoad: false,
    access(mnemonic, operands) {
      const [, kind, order, width] = /^(ld|st)(a|ap|l|u)?r(b|h)?$/.exec(mnemonic) ?? []
      if (kind === undefined) return undefined
      return {
        kind: kind === 'ld' ? 'load' : 'store',
        bits: width === 'b' ? 8 : width === 'h' ? 16 : operands.startsWith('w') ? 32 : 64,
        ordered: order !== undefined && order !== 'u',
      }
    },
    barrier: (mnemonic, operands) =>
      mnemonic !== 'dmb' ? undefined : { ish: 'full', ishld: 'acquire' }[operands],
    jump: /^(b|br|ret|brk)$/,
    call: /^blr?$/,
  },
  riscv64: {
    ordersAllButStoreLoad: false,
    access(mnemonic) {
      const [, kind, width] = /^(l|s)(b|h|w|d)u?$/.exec(mnemonic) ?? []
      if (kind === undefined) return undefined
      return { kind: kind === 'l' ? 'load' : 'store', bits: { b: 8, h: 16, w: 32, d: 64 }[width] }
    },
    barrier: (mnemonic, operands) =>
      mnemonic !== 'fence'
        ? undefined
        : { 'rw, rw': 'full', 'r, rw': 'acquire', 'rw, w': 'release' }[operands],
    jump: /^(j|jr|ret|unimp)$/,
    call: /^(jal|jalr|auipc)$/,
  },
}

/**
 * Reads the functions of a shared object, with llvm-objdump and llvm-symbolizer of LLVM 14.
 *
 * @param {string} path compiled with -g1 at least
 * @param {keyof typeof INSTRUCTION_SETS} instructionSet
 * @param {(symbol: string) => boolean} isWanted called with the C++ name of each function
 * @returns {Promise<Map<string, Instruction[]>>} by the C++ name
 */
export async function readMachineCode(path, instructionSet, isWanted) {
  const set = INSTRUCTION_SETS[instructionSet]
  const features = instructionSet === 'aarch64' ? ['--mattr=+v8.3a'] : []
  const { status, output } = await run([
    'llvm-objdump-14',
    '-d',
    '-C',
    '--no-show-raw-insn',
    ...features,
    path,
  ])
  if (status !== 0) throw new Error(`llvm-objdump-14 ended with ${status}:\n${output}`)
  /** @type {Map<string, Instruction[]>} */
  const functions = new Map()
  let instructions
  for (const line of output.split('\n')) {
    const symbol = /^[0-9a-f]+ <(.*)>:$/.exec(line)?.[1]
    if (symbol !== undefined) {
      instructions = isWanted(symbol) ? [] : undefined
      if (instructions !== undefined) functions.set(symbol, instructions)
      continue
    }
    const [, address, mnemonic, operands = ''] = /^ *([0-9a-f]+): *\t(\S+)(?:\t(.*))?$/.exec(line) ?? []
    if (address === undefined || instructions === undefined) continue
    instructions.push({
      address: Number.parseInt(address, 16),
      text: `${mnemonic} ${operands}`.trim(),
      access: set.access(mnemonic, operands.trim()),
      barrier: set.barrier(mnemonic, operands.trim()),
      isCall: set.call.test(mnemonic),
      next: [],
      functions: [],
    })
  }
  for (const body of functions.values()) link(body, set)
  await name(path, [...functions.values()].flat())
  return functions
}

/**
 * Fills in where each instruction goes on. A target outside of the function is its end, as a return is; so is a jump
 * through a register, which might lead anywhere: a way that is missing then shows as one that does not exist.
 */
function link(body, { jump, call }) {
  const addresses = new Set(body.map(({ address }) => address))
  for (const [index, instruction] of body.entries()) {
    const [mnemonic] = instruction.text.split(' ')
    const target = Number.parseInt(/0x([0-9a-f]+) <[^>]/.exec(instruction.text)?.[1] ?? '', 16)
    if (addresses.has(target) && !call.test(mnemonic)) instruction.next.push(target)
    if (!jump.test(mnemonic) && index + 1 < body.length) instruction.next.push(body[index + 1].address)
  }
}

/** Fills in the names of the functions. */
async function name(path, instructions) {
  const symbolizer = spawn('llvm-symbolizer-14', ['--inlines', '-C', '-e', path], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  let output = ''
  symbolizer.stdout.setEncoding('utf8').on('data', (text) => {
    output += text
  })
  symbolizer.stdin.end(instructions.map(({ address }) => `0x${address.toString(16)}\n`).join(''))
  await once(symbolizer, 'close')
  // A record is pairs of lines, a name and a place in the source, and ends with an empty one.
  const records = output.trimEnd().split('\n\n')
  if (records.length !== instructions.length) throw new Error('llvm-symbolizer-14 left some addresses out')
  for (const [index, instruction] of instructions.entries()) {
    instruction.functions = records[index].split('\n').filter((_, line) => line % 2 === 0)
  }
}
