/** Feature bits that belong to the ring and not to a kind of device (virtio 1.3, 6). */
export const RingFeature = {
  INDIRECT_DESC: 1n << 28n,
  EVENT_IDX: 1n << 29n,
  VERSION_1: 1n << 32n,
} as const
