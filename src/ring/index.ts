export { RingFeature } from './features.ts'
export { DriverMemory, type RegionDescription, SharedRegion } from './memory.ts'
export {
  Batch,
  type Published,
  type QueueCounts,
  VirtQueue,
  type VirtQueueOptions,
  type VirtQueueStart,
} from './queue.ts'
export {
  type Completion,
  type FailedCompletion,
  isCompletion,
  type OkCompletion,
  type Pinnable,
  Request,
  RingRequest,
  type UnsupportedCompletion,
} from './request.ts'
export { SegmentList } from './segments.ts'
