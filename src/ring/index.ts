export { RingFeature } from './features.ts'
export { DriverMemory, type RegionDescription, SharedRegion } from './memory.ts'
export {
  Batch,
  type Published,
  type QueueCounts,
  type SizeHistogram,
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
export { CDB_BYTES_MAX, ScsiRequest } from './scsi-request.ts'
export { SegmentList } from './segments.ts'
export { encodeSense, ScsiStatus, SENSE_BYTES, type Sense, SenseKey } from './sense.ts'
export {
  type TaskManagement,
  TaskManagementType,
  TcmuQueue,
  type TcmuQueueCounts,
  type TcmuQueueOptions,
} from './tcmu-queue.ts'
