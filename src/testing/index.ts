/**
 * The other side, for tests of devices and back-ends: a driver of split virtqueues and a vhost-user front-end,
 * both slow and obviously right, and both able to break every rule.
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
export { SharedMemory, type SharedMemoryOptions } from './shared-memory.ts'
export {
  type Descriptor,
  DescriptorFlag,
  type Piece,
  SplitDriver,
  type SplitDriverOptions,
} from './split-driver.ts'
export { type HandshakeOptions, VhostUserFrontEnd } from './vhost-user-front-end.ts'
