/** Ranges of blocks that a CDB may change, read off it once more, by other means than the device has. */
export function changeableRanges(
  command: Uint8Array,
  dataOut: Buffer = Buffer.alloc(0),
): [lba: bigint, count: bigint][] {
  const cdb = Buffer.concat([command, Buffer.alloc(16)])
  const number = (from: number, to: number): bigint => BigInt(`0x${cdb.toString('hex', from, to)}`)
  switch (cdb[0]) {
    case 0x0a:
      return [[number(1, 4) & 0x1fffffn, number(4, 5) || 256n]]
    case 0x2a:
    case 0x2e:
    case 0x41:
      return [[number(2, 6), number(7, 9)]]
    case 0xaa:
    case 0xae:
      return [[number(2, 6), number(6, 10)]]
    case 0x89:
      return [[number(2, 10), number(13, 14)]]
    case 0x8a:
    case 0x8e:
    case 0x93:
      return [[number(2, 10), number(10, 14)]]
    case 0x42: {
      const ranges: [bigint, bigint][] = []
      for (let at = 8; at + 16 <= dataOut.length; at += 16) {
        ranges.push([dataOut.readBigUInt64BE(at), BigInt(dataOut.readUInt32BE(at + 8))])
      }
      return ranges
    }
    default:
      return []
  }
}
