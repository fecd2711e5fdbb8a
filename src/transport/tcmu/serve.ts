import { optionTypeError } from '../../errors.ts'
import type { Device } from '../../handlers/device.ts'
import type { NativeTcmuPort } from '../../native.ts'
import { functionOf, refuseUnknownOptions } from '../../options.ts'
import { servableDevice, unitOf } from './attach.ts'
import { TcmuBackstore, type TcmuControl } from './backstore.ts'
import { resolveTcmuOptions, TCMU_SERVE_OPTION_NAMES, type TcmuServeOptions } from './options.ts'

/** Options of `tcmu.serve`. */
export interface ServePortOptions extends TcmuServeOptions {
  /** An open TCMU device, such as `openPort()` of the kernel simulator gives. Taken over, also when this throws. */
  readonly port: NativeTcmuPort
  /** A disk or a SCSI device; borrowed. */
  readonly device: Device
  /** The actions of the device in configfs. Left out: the ring cannot be reset, and no buffer is kept. */
  readonly control?: TcmuControl
}

/**
 * Serves a port that is open: the kernel simulator of `hushring/testing`, without root and without the module.
 *
 * Throws as {@link resolveTcmuOptions} does, `ERR_DEVICE_KIND`, and `ERR_TCMU_MAILBOX`, `ERR_TCMU_HEAD` or another error
 * of the peer for a ring that cannot be served.
 */
export function serve(options: ServePortOptions): TcmuBackstore {
  const { port, control } = options
  if (typeof port?.expose !== 'function') throw optionTypeError('port', 'an open port', port)
  try {
    refuseUnknownOptions(options, ['port', 'device', 'control', ...TCMU_SERVE_OPTION_NAMES])
    if (control !== undefined) checkControl(control)
    const device = servableDevice(options.device)
    const resolved = resolveTcmuOptions(options)
    const unit = unitOf(device, resolved, {}, 'simulated')
    return TcmuBackstore.serve(device, resolved, { port, uioPath: 'port', unit, control, ringResets: 0 })
  } catch (error) {
    port.close()
    throw error
  }
}

const CONTROL_NAMES = [
  'block',
  'unblock',
  'resetRing',
  'freeKeptBuffer',
  'setSize',
] as const satisfies readonly (keyof TcmuControl)[]

function checkControl(control: TcmuControl): void {
  for (const name of CONTROL_NAMES) functionOf(`control.${name}`, control[name])
}
