import { HushringError } from '../errors.ts'
import { virtioBlk } from './block/virtio-blk.ts'
import type { Device, VirtioDevice } from './device.ts'

/**
 * Any device as a virtio transport serves it: a disk becomes a virtio block device. Throws `ERR_DEVICE_KIND` for a
 * SCSI device.
 */
export function asVirtioDevice(device: Device): VirtioDevice {
  if (device.kind === 'block') return virtioBlk(device)
  if (device.kind === 'virtio') return device
  throw new HushringError('ERR_DEVICE_KIND', `a virtio transport cannot serve the SCSI device ${device.name}`)
}
