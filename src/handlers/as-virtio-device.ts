import { virtioBlk } from './block/virtio-blk.ts'
import type { Device, VirtioDevice } from './device.ts'

/** Any device as a virtio transport serves it: a disk becomes a virtio block device. */
export function asVirtioDevice(device: Device): VirtioDevice {
  return device.kind === 'block' ? virtioBlk(device) : device
}
