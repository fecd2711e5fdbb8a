// What worker threads import: the device and the policy that a command line describes.
import type { Device } from '../handlers/device.ts'
import { layerFromText } from '../handlers/index.ts'
import { rememberText } from './from-text.ts'
import { createLog, type LogOptions } from './log.ts'
import { openServedDevice, type ServedDeviceOptions } from './served-device.ts'

export { parseSuppression as suppression } from './suppression-option.ts'

/** The options of the command line that say what is served, in a form that can be sent to a thread. */
export interface WorkerDeviceOptions extends Omit<ServedDeviceOptions, 'layer' | 'stats'> {
  /** Outermost first. */
  readonly layers: readonly string[]
  readonly log: LogOptions
}

/** Makes the device of one worker. */
export default function openWorkerDevice({ layers, log, ...options }: WorkerDeviceOptions): Promise<Device> {
  const toStderr = createLog(log, (line) => process.stderr.write(line))
  return openServedDevice({ ...options, layer: layers.map(rememberText(layerFromText)) }, toStderr)
}
