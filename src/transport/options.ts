import { optionRangeError } from '../errors.ts'
import { adaptive, type SuppressionPolicy } from '../notify/suppression.ts'
import { booleanOf, functionOf, integerIn, refuseUnknownOptions } from '../options.ts'
import { type Logger, silentLogger } from './logger.ts'

/** Options that every transport takes beside its own. */
export interface ServeOptions {
  /** Number and size of the virtqueues. */
  readonly queues?: {
    /** Virtqueues offered, 1 to 256. Default 1; never more than the device can use. */
    readonly countMax?: number
    /** Largest ring accepted: a power of two, 1 to 32768. Default 1024. */
    readonly sizeMax?: number
  }
  /** Ring features offered to the driver; it decides what it uses. */
  readonly features?: {
    /** Event-index suppression (VIRTIO_F_EVENT_IDX). Default true; without it the flags are used. */
    readonly eventIdx?: boolean
    /** Indirect descriptors (VIRTIO_F_INDIRECT_DESC). Default true. */
    readonly indirect?: boolean
  }
  /** How long answers wait for company. Default {@link adaptive}. */
  readonly suppression?: SuppressionPolicy
  /** Most requests in flight a queue, 1 to 32768. Default: the size of its ring. */
  readonly creditCountMax?: number
  /** Most requests a queue takes in one turn of the event loop, 1 to 65536. Default 512. */
  readonly budgetCountMax?: number
  /**
   * A handler that has not answered after so many ms is answered for with an I/O error. Default 0: never, because the
   * driver then uses the buffer again, and a store that reads or writes it later (a file read cannot be recalled)
   * corrupts it. Set it for handlers that stop at `io.signal`; for the others there is the layer `timeout`, which
   * works in private memory.
   */
  readonly requestTimeoutMs?: number
  /**
   * A transport that closes waits so many ms for its handlers, then aborts what is left. Default 5000. A queue that
   * its driver stops (GET_VRING_BASE) waits for as long as it takes: the driver goes on with the same buffers.
   */
  readonly stopGraceMs?: number
  /** True: a malformed descriptor chain breaks its queue. Default false: that request is returned with length 0. */
  readonly strictChains?: boolean
  /**
   * The watchdog looks every so many ms whether somebody sleeps who should have been told: this device of a request, or
   * (with event indices) the driver of an answer. What two looks in a row saw is made up for, logged as an error and
   * counted (`lostNotifications`). Longer than a driver may be held up between a request and its kick. 0: never, and
   * then it costs nothing. Default 0.
   */
  readonly watchdogMs?: number
  /** Default: silent. */
  readonly logger?: Logger
}

/** {@link ServeOptions} with every default filled in. */
export interface ResolvedServeOptions {
  readonly queueCountMax: number
  readonly queueSizeMax: number
  readonly eventIdx: boolean
  readonly indirect: boolean
  readonly suppression: SuppressionPolicy
  readonly creditCountMax: number
  readonly budgetCountMax: number
  readonly requestTimeoutMs: number
  readonly stopGraceMs: number
  readonly strictChains: boolean
  readonly watchdogMs: number
  readonly logger: Logger
}

/** Names of {@link ServeOptions}, for a transport that refuses misspelt options. */
export const SERVE_OPTION_NAMES: readonly (keyof ServeOptions)[] = [
  'queues',
  'features',
  'suppression',
  'creditCountMax',
  'budgetCountMax',
  'requestTimeoutMs',
  'stopGraceMs',
  'strictChains',
  'watchdogMs',
  'logger',
]

/** Longest time that an option in ms may have. */
export const DAY_MS: number = 24 * 60 * 60 * 1000

/**
 * Checks the options and fills in the defaults. Throws `TypeError` or `RangeError` naming the option.
 *
 * @param queueCountMax the default of `queues.countMax`
 */
export function resolveServeOptions(options: ServeOptions, queueCountMax = 1): ResolvedServeOptions {
  const { queues = {}, features = {} } = options
  refuseUnknownOptions(queues, ['countMax', 'sizeMax'], 'queues')
  refuseUnknownOptions(features, ['eventIdx', 'indirect'], 'features')
  const queueSizeMax = integerIn('queues.sizeMax', queues.sizeMax ?? 1024, 1, 32768)
  if ((queueSizeMax & (queueSizeMax - 1)) !== 0) {
    throw optionRangeError('queues.sizeMax', 'a power of two up to 32768', queueSizeMax)
  }
  return {
    queueCountMax: integerIn('queues.countMax', queues.countMax ?? queueCountMax, 1, 256),
    queueSizeMax,
    eventIdx: booleanOf('features.eventIdx', features.eventIdx ?? true),
    indirect: booleanOf('features.indirect', features.indirect ?? true),
    suppression: functionOf('suppression', options.suppression ?? adaptive()),
    creditCountMax: integerIn('creditCountMax', options.creditCountMax ?? 32768, 1, 32768),
    budgetCountMax: integerIn('budgetCountMax', options.budgetCountMax ?? 512, 1, 65536),
    requestTimeoutMs: integerIn('requestTimeoutMs', options.requestTimeoutMs ?? 0, 0, DAY_MS),
    stopGraceMs: integerIn('stopGraceMs', options.stopGraceMs ?? 5_000, 0, DAY_MS),
    strictChains: booleanOf('strictChains', options.strictChains ?? false),
    watchdogMs: integerIn('watchdogMs', options.watchdogMs ?? 0, 0, DAY_MS),
    logger: checkedLogger(options.logger),
  }
}

/**
 * A logger with all its methods; the silent one when none is given. One that throws costs the line and not the request
 * or the device that it was about.
 */
export function checkedLogger(logger: Logger = silentLogger): Logger {
  const guarded = (level: keyof Logger): Logger[typeof level] => {
    functionOf(`logger.${level}`, logger[level])
    return (message) => {
      try {
        logger[level](message)
      } catch {
        // There is nobody left to tell.
      }
    }
  }
  return { error: guarded('error'), warn: guarded('warn'), info: guarded('info'), debug: guarded('debug') }
}
