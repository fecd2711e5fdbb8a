import type { ScsiRequest } from '../../ring/scsi-request.ts'
import type { Answer } from '../handler.ts'
import type { DiskUnit } from './disk-unit.ts'

/** Answers one command. Its operation code, service action and reserved bits are right already. */
export type Execute = (unit: DiskUnit, request: ScsiRequest) => Answer

/** One command of a disk: what makes it known, what is right in it, and what does it. */
export interface Command {
  /** Its name in the standards. */
  readonly name: string
  readonly opcode: number
  /** Undefined for an operation code that has no service actions. */
  readonly serviceAction: number | undefined
  /**
   * CDB usage data (SPC-4, 6.35.3): as long as the CDB, with the operation code and the service action, and a 1 for
   * every other bit that may be 1.
   */
  readonly usage: Buffer
  /** The bits that may be 1 and mean nothing included. */
  readonly permitted: Buffer
  /** All other bits but those of the operation code, in words as a request has its CDB. */
  readonly reservedWords: Uint32Array
  /** True when a unit attention condition neither stops the command nor is told with it (SAM-5, 5.14). */
  readonly passesAttention: boolean
  readonly execute: Execute
}

/** Options of {@link command}. */
export interface CommandOptions {
  /** True when byte 1 has a service action. Default false. */
  readonly hasServiceAction?: boolean
  /**
   * Bits of byte 1 that mean nothing here but that some initiator sets. Default: the three of the LUN, where SCSI-2
   * had it; Linux fills them in until it has seen the INQUIRY data.
   */
  readonly ignoredBits?: number
  /** See {@link Command.passesAttention}. Default false. */
  readonly passesAttention?: boolean
}

const LUN_BITS = 0xe0
const SERVICE_ACTION_BITS = 0x1f
/** CONTROL: vendor specific and obsolete bits. What is left are reserved bits and NACA, which this device has not. */
const IGNORED_CONTROL_BITS = 0xc3

/**
 * Makes a row of the table of commands.
 *
 * @param usage see {@link Command.usage}, in hexadecimal; spaces mean nothing
 */
export function command(
  name: string,
  usage: string,
  execute: Execute,
  { hasServiceAction = false, ignoredBits = LUN_BITS, passesAttention = false }: CommandOptions = {},
): Command {
  const bytes = Buffer.from(usage.replaceAll(' ', ''), 'hex')
  const permitted = Buffer.from(bytes)
  permitted[1]! |= ignoredBits | (hasServiceAction ? SERVICE_ACTION_BITS : 0)
  permitted[permitted.length - 1]! |= IGNORED_CONTROL_BITS
  const reservedWords = new Uint32Array(Math.ceil(bytes.length / 4))
  const reserved = Buffer.from(reservedWords.buffer)
  // The operation code is what found the command.
  for (let byte = 1; byte < bytes.length; byte++) reserved[byte] = ~permitted[byte]!
  const serviceAction = hasServiceAction ? bytes[1]! & SERVICE_ACTION_BITS : undefined
  return {
    name,
    opcode: bytes[0]!,
    serviceAction,
    usage: bytes,
    permitted,
    reservedWords,
    passesAttention,
    execute,
  }
}

/** The commands of one disk, by operation code and service action. */
export class CommandTable {
  /** In the order of their operation codes and service actions. */
  readonly all: readonly Command[]
  readonly #byOpcode: (Command | readonly Command[] | undefined)[] = new Array(256).fill(undefined)

  constructor(commands: readonly Command[]) {
    const order = ({ opcode, serviceAction = 0 }: Command): number => opcode * 256 + serviceAction
    this.all = commands.toSorted((one, other) => order(one) - order(other))
    for (const entry of this.all) {
      this.#byOpcode[entry.opcode] =
        entry.serviceAction === undefined ? entry : this.all.filter(({ opcode }) => opcode === entry.opcode)
    }
  }

  /** The command with an operation code, or all its service actions. */
  at(opcode: number): Command | readonly Command[] | undefined {
    return this.#byOpcode[opcode]
  }

  /** The command that a CDB asks for. */
  find(cdb: Buffer): Command | undefined {
    const found = this.#byOpcode[cdb[0]!]
    if (!isServiceActions(found)) return found
    const serviceAction = cdb[1]! & SERVICE_ACTION_BITS
    return found.find((entry) => entry.serviceAction === serviceAction)
  }
}

/** True for what {@link CommandTable.at} finds for an operation code that has service actions. */
export function isServiceActions(
  found: Command | readonly Command[] | undefined,
): found is readonly Command[] {
  return Array.isArray(found)
}
