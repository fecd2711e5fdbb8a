import { optionRangeError } from '../../errors.ts'
import { anticipate, type SuppressionPolicy } from '../../notify/suppression.ts'
import { booleanOf, functionOf, integerIn, refuseUnknownOptions, stringOf } from '../../options.ts'
import { KiB } from '../../units.ts'
import type { Logger } from '../logger.ts'
import { checkedLogger, DAY_MS } from '../options.ts'

/** Options about how a TCMU device is served, the same for a device that is attached and one that is created. */
export interface TcmuServeOptions {
  /**
   * How long answers wait for company before the doorbell is rung for all of them. Default {@link anticipate}. The bound
   * is that of the policy, and what the kernel or an initiator waits for does not wait at all: ring or data area nearly
   * full, a task management function pending.
   */
  readonly doorbell?: SuppressionPolicy
  /**
   * Most commands in flight, 1 to 65535. Default 4096. With fewer than the initiators send, task management may wait on
   * the ring behind commands that were not taken yet.
   */
  readonly commandCountMax?: number
  /** Most commands taken in one turn of the event loop, 1 to 65536. Default 512. */
  readonly budgetCountMax?: number
  /**
   * A handler that has not answered after so many ms is answered for (ABORTED COMMAND), and its buffer is kept until
   * it has settled. Default 0: never, because a write that was given up may still happen later, after others. Set it
   * for handlers that stop at `io.signal`.
   */
  readonly requestTimeoutMs?: number
  /** `close()` waits so many ms for its handlers, then aborts what is left. Default 5000. */
  readonly stopGraceMs?: number
  /**
   * While idle the ring is looked at every so many ms, because nothing in the kernel orders its event behind its
   * entry for a processor that is awake already. An entry that two looks saw without an event is served. 0: never.
   * Default 100.
   */
  readonly safetyCheckMs?: number
  /**
   * The kernel copies the data of completed reads while the doorbell is rung. A batch with more bytes than this is
   * rung from a thread of its own, so that the event loop goes on. Default 256 KiB.
   */
  readonly inlineCopyBytesMax?: number
  /**
   * Vendor, product and revision for INQUIRY: up to 8, 16 and 4 printable ASCII characters. Default: those of
   * configfs, else `HUSHRING`, `TCMU disk` and `1`.
   */
  readonly identity?: { readonly vendor?: string; readonly product?: string; readonly revision?: string }
  /**
   * True: the programs and libraries of this process are locked in memory, so that serving a disk of its own machine
   * does not wait for that disk when memory is short (docs/tcmu.md tells what else that takes). Needs the right to lock
   * memory. Default false.
   */
  readonly lockMemory?: boolean
  /** Default: silent. */
  readonly logger?: Logger
}

/** Names of {@link TcmuServeOptions}, for an entry point that refuses misspelt options. */
export const TCMU_SERVE_OPTION_NAMES: readonly (keyof TcmuServeOptions)[] = [
  'doorbell',
  'commandCountMax',
  'budgetCountMax',
  'requestTimeoutMs',
  'stopGraceMs',
  'safetyCheckMs',
  'inlineCopyBytesMax',
  'identity',
  'lockMemory',
  'logger',
]

/** {@link TcmuServeOptions} with every default filled in. */
export type ResolvedTcmuOptions = Required<TcmuServeOptions>

/** Checks the options and fills in the defaults. Throws `TypeError` or `RangeError` naming the option. */
export function resolveTcmuOptions(options: TcmuServeOptions): ResolvedTcmuOptions {
  return {
    doorbell: functionOf('doorbell', options.doorbell ?? anticipate()),
    commandCountMax: integerIn('commandCountMax', options.commandCountMax ?? 4096, 1, 65535),
    budgetCountMax: integerIn('budgetCountMax', options.budgetCountMax ?? 512, 1, 65536),
    requestTimeoutMs: integerIn('requestTimeoutMs', options.requestTimeoutMs ?? 0, 0, DAY_MS),
    stopGraceMs: integerIn('stopGraceMs', options.stopGraceMs ?? 5_000, 0, DAY_MS),
    safetyCheckMs: integerIn('safetyCheckMs', options.safetyCheckMs ?? 100, 0, DAY_MS),
    inlineCopyBytesMax: integerIn(
      'inlineCopyBytesMax',
      options.inlineCopyBytesMax ?? 256 * KiB,
      0,
      Number.MAX_SAFE_INTEGER,
    ),
    identity: checkedIdentity(options.identity ?? {}),
    lockMemory: booleanOf('lockMemory', options.lockMemory ?? false),
    logger: checkedLogger(options.logger),
  }
}

const IDENTITY_LENGTHS = { vendor: 8, product: 16, revision: 4 } as const

function checkedIdentity(
  identity: NonNullable<TcmuServeOptions['identity']>,
): NonNullable<TcmuServeOptions['identity']> {
  refuseUnknownOptions(identity, Object.keys(IDENTITY_LENGTHS), 'identity')
  for (const [name, lengthMax] of Object.entries(IDENTITY_LENGTHS)) {
    const text = identity[name as keyof typeof IDENTITY_LENGTHS]
    if (text === undefined || isPrintable(stringOf(`identity.${name}`, text), lengthMax)) continue
    throw optionRangeError(`identity.${name}`, `up to ${lengthMax} printable ASCII characters`, text)
  }
  return identity
}

/** True for text of at most so many printable ASCII characters. */
export function isPrintable(text: string, lengthMax: number): boolean {
  return text.length <= lengthMax && /^[\x20-\x7e]*$/.test(text)
}
