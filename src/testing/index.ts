/**
 * The other side, for tests of devices and back-ends: a driver of split virtqueues, a vhost-user front-end, and the
 * kernel's half of a TCMU device, all of them slow and obviously right, and able to break every rule; the device's half
 * as reference models; test vectors as data; and litmus tests of the machine at hand. `docs/testing.md` shows how to test
 * with them.
 *
 * @module
 */
export {
  type BlockAnswer,
  BlockDriver,
  BlockRequestType,
  BlockStatus,
  type RawBlockRequest,
} from './block-driver.ts'
export { type BlockLoadOptions, type BlockLoadResult, loadBlockDevice } from './block-load.ts'
export {
  type HostileExpectation,
  type HostileOptions,
  type HostileOutcome,
  type HostileResult,
  type HostileRow,
  hostileRows,
  type ProcessVitals,
  playHealthyFrontEnd,
  playHostileRow,
  processVitals,
} from './hostile/index.ts'
export {
  LITMUS_TESTS,
  type LitmusOptions,
  type LitmusResult,
  type LitmusRun,
  type LitmusTest,
  type LitmusVerdict,
  litmus,
} from './litmus.ts'
export { indexDistance, indexLapped, needEvent } from './reference/event-index.ts'
export {
  type ReferenceAnswer,
  type ReferenceCompleted,
  type ReferencePiece,
  type ReferenceRegion,
  type ReferenceRequest,
  type ReferenceSplitOptions,
  ReferenceSplitQueue,
  type ReferenceSplitRing,
  type RingFault,
} from './reference/split-queue.ts'
export {
  type ReferenceCommand,
  type ReferenceDataPiece,
  type ReferenceTaken,
  type ReferenceTaskManagement,
  type ReferenceTcmuAnswer,
  type ReferenceTcmuOptions,
  ReferenceTcmuRing,
} from './reference/tcmu-ring.ts'
export { SharedMemory, type SharedMemoryOptions } from './shared-memory.ts'
export {
  type Descriptor,
  DescriptorFlag,
  type Piece,
  SplitDriver,
  type SplitDriverOptions,
} from './split-driver.ts'
export {
  type ScsiCommand,
  type ScsiResult,
  type TaskManagementResponse,
  TcmuKernel,
  type TcmuKernelOptions,
  type TcmuLoadOptions,
  type TcmuLoadResult,
  type TcmuServerFaultName,
} from './tcmu-kernel.ts'
export {
  type AvailableIndexVector,
  availableIndexVectors,
  type ChainMemory,
  type ChainOutcome,
  type ChainVector,
  chainMemory,
  chainVectors,
  type LapVector,
  lapVectors,
  type NeedEventVector,
  needEventVectors,
  ringVectors,
  type SilenceVector,
  silenceVectors,
  type VectorDescriptor,
} from './vectors.ts'
export { BackEndError, type HandshakeOptions, VhostUserFrontEnd } from './vhost-user-front-end.ts'
export { VhostUserGuest, type VhostUserGuestOptions } from './vhost-user-guest.ts'
