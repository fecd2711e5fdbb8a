import { type Command, type Execute, isServiceActions } from './command.ts'

/** REPORTING OPTIONS: all commands, or one of them (SPC-4, 6.35). */
const ReportingOption = { all: 0, opcode: 1, serviceAction: 2, either: 3 } as const

const RETURN_TIMEOUTS = 0x80
/**
 * The descriptor of how long a command takes: nothing indicated, because that is up to the store. Its length comes
 * first.
 */
const TIMEOUTS = Buffer.from([0x00, 0x0a, ...new Array(10).fill(0)])

/** REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35). */
export const reportOperationCodes: Execute = (unit, request) => {
  const { cdb } = request
  const { commands } = unit
  const timeouts = (cdb[2]! & RETURN_TIMEOUTS) === 0 ? Buffer.alloc(0) : TIMEOUTS
  const option = cdb[2]! & 7
  const allocationBytes = cdb.readUInt32BE(6)
  if (option === ReportingOption.all) {
    const descriptors = Buffer.concat(commands.all.map((command) => commandDescriptor(command, timeouts)))
    const length = Buffer.alloc(4)
    length.writeUInt32BE(descriptors.length)
    return unit.parameterData(request, Buffer.concat([length, descriptors]), allocationBytes)
  }
  if (option > ReportingOption.either) return unit.invalidField(request, 2, 2)
  const found = commands.at(cdb[3]!)
  const hasActions = isServiceActions(found)
  if (option === ReportingOption.opcode && hasActions) return unit.invalidField(request, 2, 2)
  if (option === ReportingOption.serviceAction && found !== undefined && !hasActions) {
    return unit.invalidField(request, 2, 2)
  }
  const serviceAction = cdb.readUInt16BE(4)
  // An operation code without service actions has the one with the number 0, for those who may not know.
  const isNone = option === ReportingOption.either && serviceAction !== 0
  const command = hasActions
    ? found.find((action) => action.serviceAction === serviceAction)
    : isNone
      ? undefined
      : found
  return unit.parameterData(request, oneCommand(command, timeouts), allocationBytes)
}

const SERVICE_ACTION_VALID = 0x01
const DESCRIPTOR_TIMEOUTS_PRESENT = 0x02

/** One row of the list of all commands. */
function commandDescriptor({ opcode, serviceAction, usage }: Command, timeouts: Buffer): Buffer {
  const descriptor = Buffer.alloc(8)
  descriptor[0] = opcode
  descriptor.writeUInt16BE(serviceAction ?? 0, 2)
  descriptor[5] =
    (serviceAction === undefined ? 0 : SERVICE_ACTION_VALID) |
    (timeouts.length === 0 ? 0 : DESCRIPTOR_TIMEOUTS_PRESENT)
  descriptor.writeUInt16BE(usage.length, 6)
  return Buffer.concat([descriptor, timeouts])
}

const NOT_SUPPORTED = 0x01
const SUPPORTED = 0x03
const TIMEOUTS_PRESENT = 0x80

function oneCommand(command: Command | undefined, timeouts: Buffer): Buffer {
  if (command === undefined) return Buffer.from([0, NOT_SUPPORTED, 0, 0])
  const header = Buffer.from([0, SUPPORTED | (timeouts.length === 0 ? 0 : TIMEOUTS_PRESENT), 0, 0])
  header.writeUInt16BE(command.usage.length, 2)
  return Buffer.concat([header, command.usage, timeouts])
}

const RETURN_EXTENDED_DATA = 0x80
const ABORT_TASK = 0x80
const LOGICAL_UNIT_RESET = 0x08

/** REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4, 6.36): those that the kernel does for its back ends. */
export const reportTaskManagementFunctions: Execute = (unit, request) => {
  const isExtended = (request.cdb[2]! & RETURN_EXTENDED_DATA) !== 0
  const data = Buffer.alloc(isExtended ? 16 : 4)
  data[0] = ABORT_TASK | LOGICAL_UNIT_RESET
  data[3] = data.length - 4
  return unit.parameterData(request, data, request.cdb.readUInt32BE(6))
}
