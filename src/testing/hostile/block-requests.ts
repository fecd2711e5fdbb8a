import { SECTOR_BYTES } from '../../units.ts'
import { BlockRequestType, BlockStatus, type RawBlockRequest } from '../block-driver.ts'
import type { HostileRow } from './row.ts'

const { IN, OUT, DISCARD, WRITE_ZEROES } = BlockRequestType
const SCSI_CMD = 2
/** Feature bits of a block device (virtio 1.3, 5.2.3). */
export const BlockFeature = { RO: 1n << 5n, DISCARD: 1n << 13n, WRITE_ZEROES: 1n << 14n } as const
const BEHIND_ANY_DISK = 2n ** 55n

/** A row with one request that must fail, and a good one behind it. @param feature needed for the row to mean anything */
function requestRow(row: number, what: string, request: RawBlockRequest, feature = 0n): HostileRow {
  return {
    row,
    title: `row ${row}: ${what}`,
    expectation: 'request fails',
    async play(stage) {
      const guest = await stage.guest()
      if ((guest.frontEnd.features & feature) !== feature) return 'not offered'
      const { disk } = guest
      // The attack is the request itself: it is made, and kicks, where its answer is waited for.
      return stage.onQueue(
        guest,
        () => {},
        async () => {
          const { status } = await disk.request(request)
          await disk.flush()
          return status === BlockStatus.OK ? 'served' : 'request fails'
        },
      )
    },
  }
}

/** Ranges of a DISCARD or WRITE_ZEROES request, as they lie in its data. */
function ranges(count: number, flags = 0): Buffer {
  const range = Buffer.alloc(16)
  range.writeUInt32LE(8, 8)
  range.writeUInt32LE(flags, 12)
  return Buffer.concat(Array.from({ length: count }, () => range))
}

const sector = Buffer.alloc(SECTOR_BYTES)

/** Rows about what a block request asks for. */
export const blockRequestRows: readonly HostileRow[] = [
  requestRow(30, 'a read of half a sector', { type: IN, writableBytes: 256 }),
  requestRow(30, 'a write of a sector and a half', { type: OUT, readable: Buffer.alloc(768) }),
  requestRow(30, 'a read behind the end of the disk', {
    type: IN,
    sector: BEHIND_ANY_DISK,
    writableBytes: 512,
  }),
  requestRow(30, 'a write at sector 2^64 - 1', { type: OUT, sector: 2n ** 64n - 1n, readable: sector }),
  requestRow(31, 'a type that does not exist', { type: 0x7fff, writableBytes: 512 }),
  requestRow(31, 'a SCSI command', { type: SCSI_CMD, readable: sector, writableBytes: 512 }),
  requestRow(31, 'a read with a high bit in its type', { type: 0x8000_0000 + IN, writableBytes: 512 }),
  requestRow(32, 'a read without room for data', { type: IN }),
  requestRow(32, 'a write with room for data only', { type: OUT, writableBytes: 512 }),
  ...(['DISCARD', 'WRITE_ZEROES'] as const).flatMap((name) => {
    const type = { DISCARD, WRITE_ZEROES }[name]
    const feature = BlockFeature[name]
    return [
      requestRow(33, `${name} without a range`, { type }, feature),
      requestRow(33, `${name} with 257 ranges`, { type, readable: ranges(257) }, feature),
      requestRow(33, `${name} with reserved flags`, { type, readable: ranges(1, 0x8000_0000) }, feature),
      requestRow(33, `${name} with a range of 15 bytes`, { type, readable: ranges(1).subarray(1) }, feature),
    ]
  }),
  requestRow(35, 'a write to a read-only disk', { type: OUT, readable: sector }, BlockFeature.RO),
]
