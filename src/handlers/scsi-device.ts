import { optionTypeError } from '../errors.ts'
import { functionOf, refuseUnknownOptions, stringOf } from '../options.ts'
import type { ScsiRequest } from '../ring/scsi-request.ts'
import type { LogicalUnit, ScsiDevice } from './device.ts'
import type { Handler } from './handler.ts'

/** Options of {@link scsiDevice}. */
export interface ScsiDeviceOptions {
  /** Short name for logs and statistics. Default `scsi`. */
  readonly name?: string
  /** Answers the commands of every logical unit. Give this or `connect`. */
  readonly handler?: Handler<ScsiRequest>
  /** Makes the handler of a logical unit when it starts, for a device that has state or must know its identity. */
  readonly connect?: (unit: LogicalUnit) => Handler<ScsiRequest>
  /** Ends the device. Called once. */
  readonly close?: () => void | PromiseLike<void>
}

const OPTION_NAMES = ['name', 'handler', 'connect', 'close'] as const satisfies (keyof ScsiDeviceOptions)[]

/**
 * Any SCSI device out of one handler: a tape, a changer, a disk of your own. The handler finds a command in `io.cdb`,
 * `io.dataOut` and `io.dataIn`; it answers `io.ok(bytesWritten)`, `io.checkCondition(sense)` or `io.status(status)`.
 *
 * It gets every command that the kernel does not answer itself: INQUIRY, and all that is unsupported, as well.
 *
 * @throws TypeError naming the option
 */
export function scsiDevice(options: ScsiDeviceOptions): ScsiDevice {
  refuseUnknownOptions(options, OPTION_NAMES)
  const { name = 'scsi', close } = options
  if (close !== undefined) functionOf('close', close)
  let closing: Promise<void> | undefined
  return deviceOver(
    {
      kind: 'scsi',
      name: stringOf('name', name),
      close: () => {
        closing ??= (async () => close?.())()
        return closing
      },
    },
    connector(options),
  )
}

function connector({ handler, connect }: ScsiDeviceOptions): ScsiDevice['connect'] {
  if ((handler === undefined) === (connect === undefined)) {
    throw optionTypeError('handler', 'a function, unless connect is given instead', handler)
  }
  if (connect !== undefined) return functionOf('connect', connect)
  const checked = functionOf('handler', handler as Handler<ScsiRequest>)
  return () => checked
}

function deviceOver(shape: Omit<ScsiDevice, 'connect' | 'wrap'>, connect: ScsiDevice['connect']): ScsiDevice {
  return Object.freeze({
    ...shape,
    connect,
    wrap: (layer) => deviceOver(shape, (unit) => layer(connect(unit))),
  } satisfies ScsiDevice)
}
