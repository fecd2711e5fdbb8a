import { InvalidArgumentError } from 'commander'
import { adaptive, coalesce, immediate, type SuppressionPolicy } from '../notify/suppression.ts'

/**
 * Reads a suppression policy: `immediate`, `adaptive` or `coalesce:N,MICROS`.
 *
 * @throws InvalidArgumentError with the reason
 */
export function parseSuppression(text: string): SuppressionPolicy {
  if (text === 'immediate') return immediate()
  if (text === 'adaptive') return adaptive()
  const [, count, micros] = /^coalesce:(\d+),(\d+)$/.exec(text) ?? []
  if (count === undefined) {
    throw new InvalidArgumentError(
      'Use immediate, adaptive, or coalesce:N,MICROS such as coalesce:32,50: up to N answers wait at most MICROS µs.',
    )
  }
  try {
    return coalesce({ countMax: Number(count), holdMicrosMax: Number(micros) })
  } catch (error) {
    const { message } = error as RangeError
    throw new InvalidArgumentError(message.replace('`countMax`', 'N').replace('`holdMicrosMax`', 'MICROS'))
  }
}
