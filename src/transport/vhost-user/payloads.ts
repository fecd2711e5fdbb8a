import { HushringError } from '../../errors.ts'

/*
 * The payloads of vhost-user messages. Every decoder throws `ERR_VHOST_SIZE` for a payload that has not exactly
 * the size it must have. Numbers are little-endian: the protocol uses the host's byte order, and hushring runs on
 * little-endian hosts only.
 */

/** Most regions in a SET_MEM_TABLE: the number every front-end can rely on. More go through ADD_MEM_REG. */
export const TABLE_REGION_COUNT_MAX = 8
/** Most bytes in a GET_CONFIG or SET_CONFIG; the configuration space is never longer. */
export const CONFIG_BYTES_MAX = 256

const U64_BYTES = 8
const VRING_STATE_BYTES = 8
const VRING_ADDRESS_BYTES = 40
const TABLE_HEAD_BYTES = 8
const REGION_BYTES = 32
const SINGLE_REGION_BYTES = 8 + REGION_BYTES
const CONFIG_HEAD_BYTES = 12
/** Two 64-bit and two 16-bit numbers, padded as a C compiler pads them. */
const INFLIGHT_BYTES = 24

/** Sizes a payload may have: `minBytes`, `minBytes + stepBytes`, … up to `maxBytes`. */
export interface PayloadSize {
  readonly minBytes: number
  readonly maxBytes: number
  readonly stepBytes: number
}

function exactly(bytes: number): PayloadSize {
  return { minBytes: bytes, maxBytes: bytes, stepBytes: 1 }
}

/** The sizes of each kind of payload. */
export const PayloadSizes = {
  EMPTY: exactly(0),
  U64: exactly(U64_BYTES),
  VRING_STATE: exactly(VRING_STATE_BYTES),
  VRING_ADDRESS: exactly(VRING_ADDRESS_BYTES),
  MEMORY_TABLE: {
    minBytes: TABLE_HEAD_BYTES,
    maxBytes: TABLE_HEAD_BYTES + TABLE_REGION_COUNT_MAX * REGION_BYTES,
    stepBytes: REGION_BYTES,
  },
  SINGLE_REGION: exactly(SINGLE_REGION_BYTES),
  INFLIGHT: exactly(INFLIGHT_BYTES),
  CONFIG: { minBytes: CONFIG_HEAD_BYTES, maxBytes: CONFIG_HEAD_BYTES + CONFIG_BYTES_MAX, stepBytes: 1 },
} as const satisfies Record<string, PayloadSize>

/** Encodes a 64-bit number. */
export function encodeU64(value: bigint): Buffer {
  const payload = Buffer.allocUnsafe(U64_BYTES)
  payload.writeBigUInt64LE(value, 0)
  return payload
}

/** Decodes a 64-bit number. */
export function decodeU64(payload: Buffer): bigint {
  expectSize('a 64-bit number', payload, U64_BYTES)
  return payload.readBigUInt64LE(0)
}

/** A number for one queue: its size, its base, or whether it is enabled. */
export interface VringState {
  readonly index: number
  readonly num: number
}

/** Encodes a number for one queue. */
export function encodeVringState({ index, num }: VringState): Buffer {
  const payload = Buffer.allocUnsafe(VRING_STATE_BYTES)
  payload.writeUInt32LE(index, 0)
  payload.writeUInt32LE(num, 4)
  return payload
}

/** Decodes a number for one queue. */
export function decodeVringState(payload: Buffer): VringState {
  expectSize('a vring state', payload, VRING_STATE_BYTES)
  return { index: payload.readUInt32LE(0), num: payload.readUInt32LE(4) }
}

/** Where one ring lies, as the front-end sees it. */
export interface VringAddress {
  readonly index: number
  /** Bit 0 asks for dirty-page logging. */
  readonly flags: number
  readonly descriptor: bigint
  readonly used: bigint
  readonly available: bigint
  /** Guest address for logging writes to the used ring. */
  readonly log: bigint
}

/** Encodes the place of one ring. The order on the wire is descriptor, used, available. */
export function encodeVringAddress(address: VringAddress): Buffer {
  const payload = Buffer.allocUnsafe(VRING_ADDRESS_BYTES)
  payload.writeUInt32LE(address.index, 0)
  payload.writeUInt32LE(address.flags, 4)
  payload.writeBigUInt64LE(address.descriptor, 8)
  payload.writeBigUInt64LE(address.used, 16)
  payload.writeBigUInt64LE(address.available, 24)
  payload.writeBigUInt64LE(address.log, 32)
  return payload
}

/** Decodes the place of one ring. */
export function decodeVringAddress(payload: Buffer): VringAddress {
  expectSize('a vring address', payload, VRING_ADDRESS_BYTES)
  return {
    index: payload.readUInt32LE(0),
    flags: payload.readUInt32LE(4),
    descriptor: payload.readBigUInt64LE(8),
    used: payload.readBigUInt64LE(16),
    available: payload.readBigUInt64LE(24),
    log: payload.readBigUInt64LE(32),
  }
}

/** The queue a kick, call or error eventfd belongs to. */
export interface VringFd {
  /** 0 to 255. */
  readonly index: number
  /** False when no eventfd comes with the message. */
  readonly attached: boolean
}

const VRING_INDEX_MASK = 0xffn
const VRING_NO_FD = 1n << 8n

/** Encodes the queue of an eventfd. */
export function encodeVringFd({ index, attached }: VringFd): Buffer {
  return encodeU64(BigInt(index) | (attached ? 0n : VRING_NO_FD))
}

/** Decodes the queue of an eventfd. Throws `ERR_VHOST_MESSAGE` as well, when a reserved bit is set. */
export function decodeVringFd(payload: Buffer): VringFd {
  const value = decodeU64(payload)
  if ((value & ~(VRING_INDEX_MASK | VRING_NO_FD)) !== 0n) {
    throw new HushringError(
      'ERR_VHOST_MESSAGE',
      `a vring descriptor has reserved bits: 0x${value.toString(16)}`,
    )
  }
  return { index: Number(value & VRING_INDEX_MASK), attached: (value & VRING_NO_FD) === 0n }
}

/** One memory region on the wire; its file descriptor travels beside it. */
export interface WireRegion {
  readonly guestAddress: bigint
  readonly sizeBytes: bigint
  readonly userAddress: bigint
  readonly mmapOffsetBytes: bigint
}

function writeRegion(payload: Buffer, offsetBytes: number, region: WireRegion): void {
  payload.writeBigUInt64LE(region.guestAddress, offsetBytes)
  payload.writeBigUInt64LE(region.sizeBytes, offsetBytes + 8)
  payload.writeBigUInt64LE(region.userAddress, offsetBytes + 16)
  payload.writeBigUInt64LE(region.mmapOffsetBytes, offsetBytes + 24)
}

function readRegion(payload: Buffer, offsetBytes: number): WireRegion {
  return {
    guestAddress: payload.readBigUInt64LE(offsetBytes),
    sizeBytes: payload.readBigUInt64LE(offsetBytes + 8),
    userAddress: payload.readBigUInt64LE(offsetBytes + 16),
    mmapOffsetBytes: payload.readBigUInt64LE(offsetBytes + 24),
  }
}

/** Encodes the payload of SET_MEM_TABLE. */
export function encodeMemoryTable(regions: readonly WireRegion[]): Buffer {
  const payload = Buffer.alloc(TABLE_HEAD_BYTES + regions.length * REGION_BYTES)
  payload.writeUInt32LE(regions.length, 0)
  for (const [index, region] of regions.entries()) {
    writeRegion(payload, TABLE_HEAD_BYTES + index * REGION_BYTES, region)
  }
  return payload
}

/** Decodes the payload of SET_MEM_TABLE. */
export function decodeMemoryTable(payload: Buffer): WireRegion[] {
  if (payload.length < TABLE_HEAD_BYTES) throw payloadSizeError('a memory table', payload.length)
  const count = payload.readUInt32LE(0)
  expectSize(`a memory table of ${count} regions`, payload, TABLE_HEAD_BYTES + count * REGION_BYTES)
  return Array.from({ length: count }, (_, index) =>
    readRegion(payload, TABLE_HEAD_BYTES + index * REGION_BYTES),
  )
}

/** Encodes the payload of ADD_MEM_REG and REM_MEM_REG. */
export function encodeSingleRegion(region: WireRegion): Buffer {
  const payload = Buffer.alloc(SINGLE_REGION_BYTES)
  writeRegion(payload, 8, region)
  return payload
}

/** Decodes the payload of ADD_MEM_REG and REM_MEM_REG. */
export function decodeSingleRegion(payload: Buffer): WireRegion {
  expectSize('a single region', payload, SINGLE_REGION_BYTES)
  return readRegion(payload, 8)
}

/** A part of the configuration space. */
export interface ConfigRange {
  readonly offsetBytes: number
  /** SET_CONFIG: 0, written by the driver; 1, restored by a migration. */
  readonly flags: number
  readonly bytes: Buffer
}

/** Encodes a part of the configuration space. */
export function encodeConfig({ offsetBytes, flags, bytes }: ConfigRange): Buffer {
  const payload = Buffer.allocUnsafe(CONFIG_HEAD_BYTES + bytes.length)
  payload.writeUInt32LE(offsetBytes, 0)
  payload.writeUInt32LE(bytes.length, 4)
  payload.writeUInt32LE(flags, 8)
  payload.set(bytes, CONFIG_HEAD_BYTES)
  return payload
}

/** Decodes a part of the configuration space; its bytes are a view of `payload`. */
export function decodeConfig(payload: Buffer): ConfigRange {
  if (payload.length < CONFIG_HEAD_BYTES) throw payloadSizeError('a configuration range', payload.length)
  const count = payload.readUInt32LE(4)
  expectSize(`a configuration range of ${count} bytes`, payload, CONFIG_HEAD_BYTES + count)
  return {
    offsetBytes: payload.readUInt32LE(0),
    flags: payload.readUInt32LE(8),
    bytes: payload.subarray(CONFIG_HEAD_BYTES),
  }
}

/** Where in-flight regions lie in their file, which travels beside it, and for which queues they are. */
export interface WireInflight {
  readonly mmapSizeBytes: bigint
  readonly mmapOffsetBytes: bigint
  readonly queueCount: number
  readonly queueSize: number
}

/** Encodes the payload of GET_INFLIGHT_FD, of its answer, and of SET_INFLIGHT_FD. */
export function encodeInflight(inflight: WireInflight): Buffer {
  const payload = Buffer.alloc(INFLIGHT_BYTES)
  payload.writeBigUInt64LE(inflight.mmapSizeBytes, 0)
  payload.writeBigUInt64LE(inflight.mmapOffsetBytes, 8)
  payload.writeUInt16LE(inflight.queueCount, 16)
  payload.writeUInt16LE(inflight.queueSize, 18)
  return payload
}

/** Decodes what {@link encodeInflight} encodes. */
export function decodeInflight(payload: Buffer): WireInflight {
  expectSize('an in-flight description', payload, INFLIGHT_BYTES)
  return {
    mmapSizeBytes: payload.readBigUInt64LE(0),
    mmapOffsetBytes: payload.readBigUInt64LE(8),
    queueCount: payload.readUInt16LE(16),
    queueSize: payload.readUInt16LE(18),
  }
}

function expectSize(what: string, payload: Buffer, bytes: number): void {
  if (payload.length !== bytes) throw payloadSizeError(what, payload.length)
}

/** The error for a message whose payload has the wrong size. */
export function payloadSizeError(what: string, payloadBytes: number): HushringError {
  return new HushringError('ERR_VHOST_SIZE', `${what} does not come with ${payloadBytes} bytes of payload`, {
    details: { payloadBytes },
  })
}
