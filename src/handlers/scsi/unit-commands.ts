import { encodeSense, SENSE_BYTES } from '../../ring/sense.ts'
import type { Execute } from './command.ts'
import { Condition } from './conditions.ts'
import { answeredWith } from './steps.ts'

/** A command that has nothing to do here: GOOD. */
export const nothing: Execute = (unit, request) => unit.good(request)

const DESCRIPTOR_FORMAT = 0x01
const FIXED_BYTES = 18
const DESCRIPTOR_HEADER_BYTES = 8

/** REQUEST SENSE (SPC-4, 6.39). A unit attention that it tells is thereby told. */
export const requestSense: Execute = (unit, request) => {
  const descriptor = (request.cdb[1]! & DESCRIPTOR_FORMAT) !== 0
  const bytes = Buffer.alloc(SENSE_BYTES)
  encodeSense({ ...(unit.identity.attentions.take() ?? Condition.NO_ADDITIONAL_SENSE), descriptor }, bytes)
  const lengthBytes = descriptor ? DESCRIPTOR_HEADER_BYTES + bytes[7]! : FIXED_BYTES
  return unit.parameterData(request, bytes.subarray(0, lengthBytes), request.cdb[4]!)
}

const START = 0x01
const LOAD_EJECT = 0x02
const NO_FLUSH = 0x04

/**
 * START STOP UNIT (SBC-3, 5.24). This disk has no motor and stays ready; stopping it makes what was written
 * permanent, because after that an initiator may turn the power off.
 */
export const startStopUnit: Execute = (unit, request) => {
  if ((request.cdb[4]! & (START | LOAD_EJECT | NO_FLUSH)) !== 0) return unit.good(request)
  return answeredWith(unit.flush(request), () => unit.good(request))
}

/** REPORT LUNS (SPC-4, 6.33). The kernel answers it for all units together; asked alone, a unit knows of itself. */
export const reportLuns: Execute = (unit, request) => {
  const lunBytes = 8
  const data = Buffer.alloc(8 + lunBytes)
  data.writeUInt32BE(lunBytes, 0)
  return unit.parameterData(request, data, request.cdb.readUInt32BE(6))
}
