import { InvalidArgumentError } from 'commander'
import {
  adaptive,
  anticipate,
  type CoalesceOptions,
  coalesce,
  immediate,
  type SuppressionPolicy,
} from '../notify/suppression.ts'

/**
 * Reads a suppression policy for virtqueues: `immediate`, `adaptive`, `adaptive:MICROS` (longest busy poll) or
 * `coalesce:N,MICROS`.
 *
 * @throws InvalidArgumentError with the reason
 */
export function parseSuppression(text: string): SuppressionPolicy {
  if (text === 'immediate') return immediate()
  if (text === 'adaptive') return adaptive()
  const [, pollMicros] = /^adaptive:(\d+)$/.exec(text) ?? []
  if (pollMicros !== undefined) {
    return withReason(() => adaptive({ pollMicrosMax: Number(pollMicros) }), { pollMicrosMax: 'MICROS' })
  }
  return withLimits(text, { coalesce }, 'Use immediate, adaptive, adaptive:MICROS, or')
}

/**
 * Reads a policy for the doorbell of TCMU: `immediate`, `adaptive`, `adaptive:N,MICROS` or `coalesce:N,MICROS`. To adapt
 * means to anticipate there.
 *
 * @throws InvalidArgumentError with the reason
 */
export function parseDoorbell(text: string): SuppressionPolicy {
  if (text === 'immediate') return immediate()
  if (text === 'adaptive') return anticipate()
  return withLimits(
    text,
    { coalesce, adaptive: anticipate },
    'Use immediate, adaptive, adaptive:N,MICROS, or',
  )
}

/** Reads a policy with its limits, `NAME:N,MICROS`. */
function withLimits(
  text: string,
  policies: Readonly<Record<string, (options: CoalesceOptions) => SuppressionPolicy>>,
  others: string,
): SuppressionPolicy {
  const [, name = '', count, micros] = /^(\w+):(\d+),(\d+)$/.exec(text) ?? []
  const policy = Object.hasOwn(policies, name) ? policies[name] : undefined
  if (policy === undefined) {
    throw new InvalidArgumentError(
      `${others} coalesce:N,MICROS such as coalesce:32,50: up to N answers wait at most MICROS µs.`,
    )
  }
  return withReason(() => policy({ countMax: Number(count), holdMicrosMax: Number(micros) }), {
    countMax: 'N',
    holdMicrosMax: 'MICROS',
  })
}

/** Makes a policy; what it says of an option it says of that part of the text. */
function withReason(
  make: () => SuppressionPolicy,
  partOf: Readonly<Record<string, string>>,
): SuppressionPolicy {
  try {
    return make()
  } catch (error) {
    const message = (error as RangeError).message.replace(/`(\w+)`/, (quoted, name) => partOf[name] ?? quoted)
    throw new InvalidArgumentError(message)
  }
}
