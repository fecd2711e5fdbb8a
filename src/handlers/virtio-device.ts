import { optionRangeError, optionTypeError } from '../errors.ts'
import { booleanOf, functionOf, integerIn, refuseUnknownOptions, stringOf } from '../options.ts'
import type { RingRequest } from '../ring/request.ts'
import type { RequestFraming, VirtioDevice } from './device.ts'
import type { Handler } from './handler.ts'

/** Options of {@link virtioDevice}. */
export interface VirtioDeviceOptions {
  /** Virtio device id, 1 to 255: 2 block, 4 entropy … (virtio 1.3, 5). */
  readonly deviceId: number
  /** Short name for logs and statistics. Default `virtio-` and the device id. */
  readonly name?: string
  /** Device-type feature bits to offer: 0 to 23 and 50 to 63. Default none. */
  readonly features?: bigint
  /** Largest number of virtqueues that make sense, 1 to 256. Default 1. */
  readonly queueCountMax?: number
  /** What is split off a request before the handler sees it. Default: no header, no status byte. */
  readonly framing?: RequestFraming
  /**
   * The device configuration space, up to 256 bytes: its bytes, or a function of the number of queues served.
   * Default empty.
   */
  readonly config?: Uint8Array | ((queueCount: number) => Uint8Array)
  /** A driver's write to the configuration space; false refuses it. Default: refuses all. */
  readonly writeConfig?: (offsetBytes: number, bytes: Uint8Array) => boolean
  /** Answers the requests of every queue. Give this or `connect`. */
  readonly handler?: Handler<RingRequest>
  /** Makes the handler of a queue when the queue starts, for a device that must know the accepted features. */
  readonly connect?: (features: bigint) => Handler<RingRequest>
  /** Ends the device. Called once. */
  readonly close?: () => void | PromiseLike<void>
}

const OPTION_NAMES = [
  'deviceId',
  'name',
  'features',
  'queueCountMax',
  'framing',
  'config',
  'writeConfig',
  'handler',
  'connect',
  'close',
] as const satisfies (keyof VirtioDeviceOptions)[]

const CONFIG_BYTES_MAX = 256
const HEADER_BYTES_MAX = 64
/** Bits 24 to 49 belong to the ring and the transport (virtio 1.3, 6). */
const DEVICE_FEATURES = (1n << 64n) - (1n << 50n) + (1n << 24n) - 1n

/**
 * Any virtio device out of one handler. The handler finds the bytes of a request in `io.headerBytes`, `io.readable`
 * and `io.writable`, and says with `io.ok(bytesWritten)` how much of `writable` it filled.
 *
 * @throws TypeError or RangeError naming the option
 */
export function virtioDevice(options: VirtioDeviceOptions): VirtioDevice {
  refuseUnknownOptions(options, OPTION_NAMES)
  const { config = new Uint8Array(0), writeConfig = () => false, features = 0n, close } = options
  const deviceId = integerIn('deviceId', options.deviceId, 1, 255)
  const framing = options.framing ?? { headerBytes: 0, statusByte: false }
  refuseUnknownOptions(framing, ['headerBytes', 'statusByte'], 'framing')
  let closing: Promise<void> | undefined
  return deviceOver(
    {
      kind: 'virtio',
      deviceId,
      name: stringOf('name', options.name ?? `virtio-${deviceId}`),
      features: checkedFeatures(features),
      queueCountMax: integerIn('queueCountMax', options.queueCountMax ?? 1, 1, 256),
      framing: {
        headerBytes: integerIn('framing.headerBytes', framing.headerBytes, 0, HEADER_BYTES_MAX),
        statusByte: booleanOf('framing.statusByte', framing.statusByte),
      },
      config: configReader(config),
      writeConfig: functionOf('writeConfig', writeConfig),
      close: () => {
        closing ??= (async () => close?.())()
        return closing
      },
    },
    connector(options),
  )
}

function connector({ handler, connect }: VirtioDeviceOptions): VirtioDevice['connect'] {
  if ((handler === undefined) === (connect === undefined)) {
    throw optionTypeError('handler', 'a function, unless connect is given instead', handler)
  }
  if (connect !== undefined) return functionOf('connect', connect)
  const checked = functionOf('handler', handler as Handler<RingRequest>)
  return () => checked
}

function configReader(config: NonNullable<VirtioDeviceOptions['config']>): VirtioDevice['config'] {
  if (typeof config === 'function') return config
  if (!(config instanceof Uint8Array)) throw optionTypeError('config', 'a Uint8Array or a function', config)
  if (config.length > CONFIG_BYTES_MAX) {
    throw optionRangeError('config', `up to ${CONFIG_BYTES_MAX} bytes`, `${config.length} bytes`)
  }
  return () => config.slice()
}

function checkedFeatures(features: bigint): bigint {
  if (typeof features !== 'bigint') throw optionTypeError('features', 'a bigint', features)
  if (features >= 0n && (features & ~DEVICE_FEATURES) === 0n) return features
  throw optionRangeError('features', 'bits 0 to 23 and 50 to 63', `0x${features.toString(16)}`)
}

function deviceOver(
  shape: Omit<VirtioDevice, 'connect' | 'wrap'>,
  connect: VirtioDevice['connect'],
): VirtioDevice {
  return Object.freeze({
    ...shape,
    connect,
    wrap: (layer) => deviceOver(shape, (features) => layer(connect(features))),
  } satisfies VirtioDevice)
}
