import { InvalidArgumentError } from 'commander'
import { parseSizeBytes } from '../units.ts'

const UNITS = ['TiB', 'GiB', 'MiB', 'KiB']

/**
 * Reads a size as {@link parseSizeBytes} does.
 *
 * @returns bytes, from 1 to 2^53 - 1
 * @throws InvalidArgumentError with the reason
 */
export function parseSize(text: string): number {
  const sizeBytes = parseSizeBytes(text)
  if (sizeBytes !== undefined && sizeBytes > 0) return sizeBytes
  throw new InvalidArgumentError(reasonAgainst(text, sizeBytes))
}

function reasonAgainst(text: string, sizeBytes: number | undefined): string {
  if (sizeBytes === 0) return 'A size is at least 1 byte.'
  const [, unit] = /^\d+ ?([a-z]*)$/i.exec(text) ?? []
  if (unit === undefined) return 'Write a whole number with a unit, such as 512, 64KiB or 1GiB.'
  if (parseSizeBytes(`1${unit}`) !== undefined) return 'Sizes end at 8191 TiB.'
  return `There is no unit '${unit}'; use B, KiB, MiB, GiB or TiB, powers of 1024.`
}

/** Writes a size in the largest unit that keeps it whole, such as `64KiB`; what {@link parseSize} reads back. */
export function formatSize(sizeBytes: number): string {
  for (const unit of UNITS) {
    const unitBytes = parseSizeBytes(`1${unit}`)!
    if (sizeBytes % unitBytes === 0) return `${sizeBytes / unitBytes}${unit}`
  }
  return String(sizeBytes)
}
