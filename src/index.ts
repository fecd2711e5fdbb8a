export {
  ERROR_CODES,
  type ErrorCode,
  type ErrorDescription,
  type ErrorFamily,
  HushringError,
} from './errors.ts'
export * from './handlers/index.ts'
export * from './notify/suppression.ts'
export type { Logger } from './transport/logger.ts'
export {
  type LoadOptions,
  type LoadResult,
  Loopback,
  type LoopbackEvents,
  type LoopbackOptions,
  loopback,
  type NotificationMode,
} from './transport/loopback.ts'
export type { ServeOptions } from './transport/options.ts'
export type { StatsOptions, TransportStats } from './transport/stats.ts'
export * from './transport/tcmu/index.ts'
export * from './transport/vhost-user/index.ts'
export { GiB, KiB, MiB } from './units.ts'
