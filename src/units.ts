/** One kibibyte in bytes. */
export const KiB = 1024
/** One mebibyte in bytes. */
export const MiB: number = 1024 * KiB
/** One gibibyte in bytes. */
export const GiB: number = 1024 * MiB

/**
 * The virtio-blk sector in bytes. It is 512 whatever block size a disk reports (virtio 1.3, 5.2.4).
 */
export const SECTOR_BYTES = 512

const UNIT_BYTES: Readonly<Record<string, number>> = { '': 1, k: KiB, m: MiB, g: GiB, t: 1024 * GiB }

/**
 * Reads a size such as `512`, `64KiB` or `1GiB`. Units are powers of 1024: B, KiB, MiB, GiB, TiB, or their first
 * letter alone, in any case.
 *
 * @returns bytes; undefined when the text is no size, or one above 2^53 - 1
 */
export function parseSizeBytes(text: string): number | undefined {
  const [, digits, unit = ''] = /^(\d+) ?(?:([kmgt])(?:ib)?|b)?$/i.exec(text) ?? []
  if (digits === undefined) return undefined
  const sizeBytes = Number(digits) * UNIT_BYTES[unit.toLowerCase()]!
  return Number.isSafeInteger(sizeBytes) ? sizeBytes : undefined
}
