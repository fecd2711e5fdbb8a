import { HushringError } from '../../errors.ts'
import { type Completion, isCompletion, isWholeOk, type RingRequest } from '../../ring/request.ts'
import type { SegmentList } from '../../ring/segments.ts'
import { SECTOR_BYTES } from '../../units.ts'
import type { BlockDevice, BlockGeometry, VirtioDevice } from '../device.ts'
import { type Answer, flatMapAnswer, type Handler, mapAnswer } from '../handler.ts'
import { writeThrough } from '../layers/write-through.ts'
import { virtioDevice } from '../virtio-device.ts'
import { isInRange, rangeError } from './block-device.ts'
import { BlockRequest, type BlockVerb, NO_DATA } from './block-request.ts'

/** Feature bits of a block device (virtio 1.3, 5.2.3). */
const Feature = {
  SIZE_MAX: 1n << 1n,
  SEG_MAX: 1n << 2n,
  RO: 1n << 5n,
  BLK_SIZE: 1n << 6n,
  FLUSH: 1n << 9n,
  TOPOLOGY: 1n << 10n,
  MQ: 1n << 12n,
  DISCARD: 1n << 13n,
  WRITE_ZEROES: 1n << 14n,
} as const

/** Request types (virtio 1.3, 5.2.6). All others are answered UNSUPP. */
const RequestType = { IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 } as const

/** The header: type u32, reserved u32, sector u64, as little-endian words. */
const HeaderWord = { type: 0, sector: 2 } as const
const HEADER_BYTES = 16

/** One range of a DISCARD or WRITE_ZEROES: sector u64, num_sectors u32, flags u32, as little-endian words. */
const RangeWord = { sectorLow: 0, sectorHigh: 1, sectorCount: 2, flags: 3, count: 4 } as const
const RANGE_BYTES = 16
const RANGE_FLAG_UNMAP = 1
/** Ranges in one request. They are done one after the other, so this bounds how long it holds its answer. */
const RANGE_COUNT_MAX = 16
/** 4 GiB and 64 MiB: a discard is cheap for a store, zeros may have to be written. */
const RANGE_LIMITS = {
  discard: { sectorCountMax: 2 ** 32 / SECTOR_BYTES, flags: 0 },
  writeZeroes: { sectorCountMax: 2 ** 26 / SECTOR_BYTES, flags: RANGE_FLAG_UNMAP },
} as const

/**
 * Data segments of one request: a ring of 128 descriptors without header and status, the smallest ring that
 * front-ends use by default. A longer chain is served as well.
 */
const SEG_MAX = 126
/** Bytes of one segment: enough not to matter, and SEG_MAX of them stay far below the 2^32 bytes of a chain. */
const SIZE_MAX = 2 ** 20

const CONFIG_BYTES = 96
const SERIAL_BYTES = 20
const PHYSICAL_BLOCK_BYTES = 4096

/**
 * A disk as virtio block device (virtio 1.3, 5.2). It checks what a driver asks before the disk sees it: direction
 * and length of the data, block borders, capacity. What is wrong in a request fails that request alone.
 *
 * If the driver does not accept FLUSH, every write is flushed before it is answered (virtio 1.3, 5.2.6.2).
 */
export function virtioBlk(disk: BlockDevice): VirtioDevice {
  return virtioDevice({
    deviceId: 2,
    name: 'virtio-blk',
    features: featuresOf(disk),
    queueCountMax: 256,
    framing: { headerBytes: HEADER_BYTES, statusByte: true },
    config: (queueCount) => configOf(disk, queueCount),
    connect: (features) => {
      const codec = new Codec(disk, features)
      return (request) => codec.answer(request)
    },
    close: () => disk.close(),
  })
}

function featuresOf({ abilities, readOnly }: BlockDevice): bigint {
  return (
    Feature.SIZE_MAX |
    Feature.SEG_MAX |
    Feature.BLK_SIZE |
    Feature.TOPOLOGY |
    Feature.MQ |
    (readOnly ? Feature.RO : 0n) |
    (abilities.flush ? Feature.FLUSH : 0n) |
    (abilities.discard ? Feature.DISCARD : 0n) |
    (abilities.writeZeroes ? Feature.WRITE_ZEROES : 0n)
  )
}

/** The size of a disk in bytes, as its configuration space tells it: at least the first 8 bytes of one. */
export function capacityOfConfig(config: Uint8Array): number {
  return Number(new DataView(config.buffer, config.byteOffset).getBigUint64(0, true)) * SECTOR_BYTES
}

/** The configuration space (virtio 1.3, 5.2.4). Fields of features that are not offered stay 0. */
function configOf({ geometry, abilities }: BlockDevice, queueCount: number): Uint8Array {
  const { capacityBytes, blockBytes } = geometry
  const blocksPerPhysical = PHYSICAL_BLOCK_BYTES / blockBytes
  const config = Buffer.alloc(CONFIG_BYTES)
  config.writeBigUInt64LE(BigInt(capacityBytes / SECTOR_BYTES), 0) // capacity
  config.writeUInt32LE(SIZE_MAX, 8) // size_max
  config.writeUInt32LE(SEG_MAX, 12) // seg_max
  config.writeUInt32LE(blockBytes, 20) // blk_size
  config.writeUInt8(Math.log2(blocksPerPhysical), 24) // physical_block_exp
  config.writeUInt16LE(blocksPerPhysical, 26) // min_io_size
  config.writeUInt16LE(queueCount, 34) // num_queues
  if (abilities.discard) {
    config.writeUInt32LE(RANGE_LIMITS.discard.sectorCountMax, 36) // max_discard_sectors
    config.writeUInt32LE(RANGE_COUNT_MAX, 40) // max_discard_seg
    config.writeUInt32LE(blockBytes / SECTOR_BYTES, 44) // discard_sector_alignment
  }
  if (abilities.writeZeroes) {
    config.writeUInt32LE(RANGE_LIMITS.writeZeroes.sectorCountMax, 48) // max_write_zeroes_sectors
    config.writeUInt32LE(RANGE_COUNT_MAX, 52) // max_write_zeroes_seg
    config.writeUInt8(1, 56) // write_zeroes_may_unmap
  }
  return config
}

/**
 * The handler of one connection: a ring request in, a block request to the disk, its answer back as bytes written.
 *
 * Its functions are methods and no closures: V8 compiles a method into its callers, but not a closure of which there is a
 * second one, which is there from the second connection on.
 */
class Codec {
  readonly #disk: BlockDevice
  readonly #features: bigint
  readonly #next: Handler
  readonly #serial = Buffer.alloc(SERIAL_BYTES)

  constructor(disk: BlockDevice, features: bigint) {
    this.#disk = disk
    this.#features = features
    const writesThrough = disk.abilities.flush && !this.#accepted(Feature.FLUSH)
    this.#next = writesThrough ? writeThrough()(disk.handler) : disk.handler
    this.#serial.write(disk.serial, 'latin1')
  }

  answer(request: RingRequest): Answer {
    switch (request.headerWord(HeaderWord.type)) {
      case RequestType.IN:
        return this.#transfer(request, 'read', request.writable)
      case RequestType.OUT:
        if (this.#disk.readOnly) return request.fail(new HushringError('ERR_BLOCK_READ_ONLY'))
        return this.#transfer(request, 'write', request.readable)
      default:
        return this.#control(request)
    }
  }

  #control(request: RingRequest): Answer {
    switch (request.headerWord(HeaderWord.type)) {
      case RequestType.FLUSH:
        return this.#disk.abilities.flush ? this.#ask(request, 'flush', 0, 0, NO_DATA) : request.unsupported()
      case RequestType.GET_ID: {
        const countBytes = request.writable.copyFrom(this.#serial)
        return countBytes === 0 ? withoutData(request, 'read') : request.ok(countBytes)
      }
      case RequestType.DISCARD:
        return this.#ranges(request, 'discard', Feature.DISCARD)
      case RequestType.WRITE_ZEROES:
        return this.#ranges(request, 'writeZeroes', Feature.WRITE_ZEROES)
      default:
        return request.unsupported()
    }
  }

  #transfer(request: RingRequest, verb: 'read' | 'write', data: SegmentList): Answer {
    const lengthBytes = data.byteLength
    if (lengthBytes === 0) return withoutData(request, verb)
    // Inexact from 2^53 on, where a sector is past the end of any disk.
    const offsetBytes = request.headerDoubleWord(HeaderWord.sector) * SECTOR_BYTES
    const { geometry } = this.#disk
    return isInRange(geometry, offsetBytes, lengthBytes)
      ? this.#ask(request, verb, offsetBytes, lengthBytes, data)
      : outOfRange(request, geometry, offsetBytes, lengthBytes)
  }

  #ranges(request: RingRequest, verb: keyof typeof RANGE_LIMITS, feature: bigint): Answer {
    const { readOnly, abilities, geometry } = this.#disk
    if (readOnly) return request.fail(new HushringError('ERR_BLOCK_READ_ONLY'))
    if (!abilities[verb] || !this.#accepted(feature)) return request.unsupported()
    const parsed = parseRanges(request, verb, geometry)
    return Array.isArray(parsed) ? inTurn(this.#next, request, parsed) : parsed
  }

  #ask(
    request: RingRequest,
    verb: BlockVerb,
    offsetBytes: number,
    lengthBytes: number,
    data: SegmentList,
  ): Answer {
    const io = companionOf(request).assign(request, verb, offsetBytes, lengthBytes, data)
    const answer = this.#next(io)
    // What is true of all writable data of a read is true of the whole request.
    return isWholeOk(answer) && verb === 'read' ? answer : reported(request, io, answer)
  }

  #accepted(feature: bigint): boolean {
    return (this.#features & feature) !== 0n
  }
}

/** The block request that stands for a request as long as that does, and is used again with it. */
function companionOf(request: RingRequest): BlockRequest {
  const { companion } = request
  return companion?.constructor === BlockRequest ? (companion as BlockRequest) : newCompanion(request)
}

function newCompanion(request: RingRequest): BlockRequest {
  const companion = new BlockRequest()
  request.companion = companion
  return companion
}

/** A u64 as a number: inexact from 2^53 on, where as a sector it is past the end of any disk. */
function u64(low: number, high: number): number {
  return high * 2 ** 32 + low
}

function withoutData(request: RingRequest, verb: 'read' | 'write'): Completion {
  const needed = verb === 'read' ? 'device-writable' : 'device-readable'
  const message = `the request has no ${needed} data`
  return request.fail(new HushringError('ERR_BLOCK_DATA', message, { details: { verb } }))
}

function outOfRange(
  request: RingRequest,
  geometry: BlockGeometry,
  offsetBytes: number,
  lengthBytes: number,
): Completion {
  return request.fail(rangeError(geometry, offsetBytes, lengthBytes))
}

/**
 * A disk's answer as the answer to the ring, where `ok()` means that all writable data was filled: a read must have
 * done just that, and everything else has written nothing. What is no completion passes, for the pipeline to judge.
 */
function reported(request: RingRequest, io: BlockRequest, answer: Answer): Answer {
  return isCompletion(answer) ? reportedNow(request, io, answer) : reportedLater(request, io, answer)
}

function reportedNow(request: RingRequest, io: BlockRequest, completion: Completion): Completion {
  if (completion?.result !== 'ok') return completion
  if (io.verb !== 'read') return doneWithoutData(request)
  return completion.bytesWritten === undefined ? completion : io.transferred(completion.bytesWritten)
}

/** A function of its own, because one that makes a closure keeps its variables on the heap, at each call. */
function reportedLater(request: RingRequest, io: BlockRequest, answer: Answer): Answer {
  return mapAnswer(answer, (completion) => reportedNow(request, io, completion))
}

function doneWithoutData(request: RingRequest): Completion {
  return request.writable.byteLength === 0 ? request.ok() : request.ok(0)
}

/** Checks all ranges before the first one is done. Returns the requests to make of them, or the answer. */
function parseRanges(
  request: RingRequest,
  verb: keyof typeof RANGE_LIMITS,
  geometry: BlockGeometry,
): BlockRequest[] | Completion {
  const { byteLength } = request.readable
  const rangeCount = byteLength / RANGE_BYTES
  if (!Number.isInteger(rangeCount) || rangeCount < 1 || rangeCount > RANGE_COUNT_MAX) {
    const message = `${byteLength} bytes are not 1 to ${RANGE_COUNT_MAX} ranges of ${RANGE_BYTES}`
    return request.fail(new HushringError('ERR_BLOCK_SEGMENTS', message))
  }
  // One copy: the driver can change its memory between a check and a use.
  const words = new Uint32Array(rangeCount * RangeWord.count)
  request.readable.copyTo(Buffer.from(words.buffer))
  const parsed: BlockRequest[] = []
  for (let at = 0; at < words.length; at += RangeWord.count) {
    const range = parseRange(request, verb, geometry, words.subarray(at, at + RangeWord.count))
    if (isCompletion(range)) return range
    if (range.lengthBytes > 0) parsed.push(range)
  }
  return parsed
}

function parseRange(
  request: RingRequest,
  verb: keyof typeof RANGE_LIMITS,
  geometry: BlockGeometry,
  words: Uint32Array,
): BlockRequest | Completion {
  const limits = RANGE_LIMITS[verb]
  const flags = words[RangeWord.flags]!
  if ((flags & ~limits.flags) !== 0) return request.unsupported()
  const sectorCount = words[RangeWord.sectorCount]!
  if (sectorCount > limits.sectorCountMax) {
    const message = `a range has ${sectorCount} sectors, the limit is ${limits.sectorCountMax}`
    return request.fail(new HushringError('ERR_BLOCK_SEGMENTS', message))
  }
  const offsetBytes = u64(words[RangeWord.sectorLow]!, words[RangeWord.sectorHigh]!) * SECTOR_BYTES
  const lengthBytes = sectorCount * SECTOR_BYTES
  if (!isInRange(geometry, offsetBytes, lengthBytes)) {
    return outOfRange(request, geometry, offsetBytes, lengthBytes)
  }
  const mayUnmap = (flags & RANGE_FLAG_UNMAP) !== 0
  return new BlockRequest().assign(request, verb, offsetBytes, lengthBytes, NO_DATA, mayUnmap)
}

/** Does one range after the other; the first that fails answers for all, and those after it are not done. */
function inTurn(next: Handler, request: RingRequest, ranges: readonly BlockRequest[], index = 0): Answer {
  const io = ranges[index]
  if (io === undefined) return doneWithoutData(request)
  return flatMapAnswer(next(io), (completion) =>
    completion?.result === 'ok' ? inTurn(next, request, ranges, index + 1) : completion,
  )
}
