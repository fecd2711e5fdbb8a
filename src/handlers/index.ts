export {
  type BlockAnswer,
  type BlockDeviceOptions,
  type BlockOutcome,
  type BlockVerbFunction,
  blockDevice,
  type DiskShapeOptions,
} from './block/block-device.ts'
export { BlockRequest, type BlockVerb, type DerivedRequest } from './block/block-request.ts'
export { virtioBlk } from './block/virtio-blk.ts'
export type {
  BlockAbilities,
  BlockDevice,
  BlockGeometry,
  Device,
  LogicalUnit,
  RequestFraming,
  ScsiDevice,
  VirtioDevice,
} from './device.ts'
export { type EntropyDeviceOptions, entropyDevice } from './entropy.ts'
export {
  type Answer,
  attempt,
  compose,
  flatMapAnswer,
  type Handler,
  type Layer,
  mapAnswer,
  type RequestOf,
  stack,
} from './handler.ts'
export {
  LAYERS,
  type LayerOptionType,
  layerFromText,
  type NamedLayer,
  type NamedLayerOption,
} from './layers/by-name.ts'
export { type CacheOptions, cache } from './layers/cache.ts'
export { type FaultLayer, type FaultOptions, fault } from './layers/fault.ts'
export { type MirrorOptions, mirror } from './layers/mirror.ts'
export { type RateLimitOptions, rateLimit } from './layers/rate-limit.ts'
export { readonly } from './layers/readonly.ts'
export { type RetryOptions, retry } from './layers/retry.ts'
export { type TimeoutOptions, timeout } from './layers/timeout.ts'
export { type TraceEntry, type TraceOptions, trace } from './layers/trace.ts'
export { writeThrough } from './layers/write-through.ts'
export { scsiBlock } from './scsi/scsi-block.ts'
export { UnitAttentions } from './scsi/unit-attentions.ts'
export { type ScsiDeviceOptions, scsiDevice } from './scsi-device.ts'
export { type FileDiskOptions, type FileIo, fileDisk } from './stores/file-disk.ts'
export { type MemoryDiskOptions, memoryDisk } from './stores/memory-disk.ts'
export { type NullDiskOptions, nullDisk } from './stores/null-disk.ts'
export { type SharedMemoryDiskOptions, sharedMemoryDisk } from './stores/shared-memory-disk.ts'
export { type VirtioDeviceOptions, virtioDevice } from './virtio-device.ts'
