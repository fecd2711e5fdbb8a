import type { RingRequest } from '../ring/request.ts'
import type { ScsiRequest } from '../ring/scsi-request.ts'
import type { BlockRequest } from './block/block-request.ts'
import type { Handler, Layer } from './handler.ts'
import type { UnitAttentions } from './scsi/unit-attentions.ts'

/**
 * A device is a handler with a shape. A disk can be served by every transport; a virtio device by vhost-user and the
 * loopback, a SCSI device by TCMU.
 */
export type Device = BlockDevice | VirtioDevice | ScsiDevice

/** The shape of a disk, as a driver sees it. */
export interface BlockGeometry {
  /** Size in bytes; a multiple of `blockBytes`. A disk that can be resized tells its present size: read it anew. */
  readonly capacityBytes: number
  /** Smallest unit a driver addresses, in bytes: 512 or 4096. */
  readonly blockBytes: number
}

/** Which requests beside read and write a disk answers. A driver is told only of those. */
export interface BlockAbilities {
  readonly flush: boolean
  readonly discard: boolean
  readonly writeZeroes: boolean
}

/** A disk: any transport can serve it (virtio over vhost-user or loopback; SCSI over TCMU). */
export interface BlockDevice {
  readonly kind: 'block'
  readonly geometry: BlockGeometry
  readonly abilities: BlockAbilities
  /** True when every write fails and drivers are told so. */
  readonly readOnly: boolean
  /** Serial number shown to drivers; 0 to 20 printable ASCII characters. */
  readonly serial: string
  readonly handler: Handler<BlockRequest>
  /** The same disk with `layer` around its handler. `compose` calls this. */
  wrap(layer: Layer<BlockRequest>): BlockDevice
  /**
   * Changes the capacity. A disk without it has the size it was made with. Drivers are told by the transport
   * (`resize` of a TCMU device).
   *
   * @param capacityBytes a positive multiple of `blockBytes`
   */
  resize?(capacityBytes: number): Promise<void>
  /** Ends the store. Called by whoever made the device, after every transport that serves it is closed. */
  close(): Promise<void>
}

/** How the bytes of a request are split before the handler sees them. */
export interface RequestFraming {
  /** Bytes at the front of the device-readable part that are copied out once, 0 to 64. */
  readonly headerBytes: number
  /** True when the last device-writable byte is a status: 0 ok, 1 failed, 2 unsupported. */
  readonly statusByte: boolean
}

/** Any virtio device, by its device id. */
export interface VirtioDevice {
  readonly kind: 'virtio'
  /** Virtio device id: 2 block, 4 entropy … (virtio 1.3, 5). */
  readonly deviceId: number
  /** Short name for logs and statistics. */
  readonly name: string
  /** Device-type feature bits offered: 0 to 23 and 50 to 63. Ring features belong to the transport. */
  readonly features: bigint
  /** Largest number of virtqueues that make sense for the device. */
  readonly queueCountMax: number
  readonly framing: RequestFraming
  /**
   * The device configuration space.
   *
   * @param queueCount number of virtqueues this transport serves
   * @returns a fresh copy, at most 256 bytes
   */
  config(queueCount: number): Uint8Array
  /**
   * A driver's write to the configuration space.
   *
   * @returns false when those bytes are read-only
   */
  writeConfig(offsetBytes: number, bytes: Uint8Array): boolean
  /**
   * Called once a queue starts.
   *
   * @param features every feature bit the driver accepted
   * @returns the handler for the requests of that queue
   */
  connect(features: bigint): Handler<RingRequest>
  /** The same device with `layer` around its handlers. `compose` calls this. */
  wrap(layer: Layer<RingRequest>): VirtioDevice
  /** As {@link BlockDevice.close}. */
  close(): Promise<void>
}

/** How a SCSI logical unit presents itself, and what it must tell its initiators. */
export interface LogicalUnit {
  /** T10 vendor identification, up to 8 printable ASCII characters. */
  readonly vendor: string
  /** Product identification, up to 16 printable ASCII characters. */
  readonly product: string
  /** Product revision level, up to 4 printable ASCII characters. */
  readonly revision: string
  /** Unit serial number (VPD page 80h), 1 to 252 printable ASCII characters. */
  readonly serial: string
  /** Conditions that the next command must hear of. */
  readonly attentions: UnitAttentions
}

/** Any SCSI device: one logical unit of a TCMU backstore. */
export interface ScsiDevice {
  readonly kind: 'scsi'
  /** Short name for logs and statistics. */
  readonly name: string
  /**
   * Called once for each logical unit that serves the device.
   *
   * @returns the handler for its commands; it gets every command the kernel does not answer itself
   */
  connect(unit: LogicalUnit): Handler<ScsiRequest>
  /** The same device with `layer` around its handlers. `compose` calls this. */
  wrap(layer: Layer<ScsiRequest>): ScsiDevice
  /** As {@link BlockDevice.close}. */
  close(): Promise<void>
}

/** Recognises a device by its kind and not by its class: a module may have a hushring of its own. */
export function isDevice(value: unknown): value is Device {
  const { kind, wrap } = (value ?? {}) as Partial<Device>
  return (kind === 'block' || kind === 'virtio' || kind === 'scsi') && typeof wrap === 'function'
}
