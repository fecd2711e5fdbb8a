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
 * Reads a suppression policy for virtqueues: `immediate`, `adaptive` or `coalesce:N,MICROS`.
 *
 * @throws InvalidArgumentError with the reason
 */
export function parseSuppression(text: string): SuppressionPolicy {
  if (text === 'immediate') return immediate()
  if (text === 'adaptive') return adaptive()
  return withLimits(text, { coalesce }, 'Use immediate, adaptive, or')
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
  try {
    return policy({ countMax: Number(count), holdMicrosMax: Number(micros) })
  } catch (error) {
    const { message } = error as RangeError
    throw new InvalidArgumentError(message.replace('`countMax`', 'N').replace('`holdMicrosMax`', 'MICROS'))
  }
}
