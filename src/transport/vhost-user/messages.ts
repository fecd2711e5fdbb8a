import { HushringError } from '../../errors.ts'
import { type PayloadSize, PayloadSizes, payloadSizeError, TABLE_REGION_COUNT_MAX } from './payloads.ts'

/*
 * The wire format of vhost-user: pure functions between bytes and values. Names in capitals are the
 * specification's, without its VHOST_USER_ prefix. Numbers are little-endian: the protocol uses the host's byte
 * order, and hushring runs on little-endian hosts only.
 */

/** Bytes of a message header: request u32, flags u32, payload size u32. */
export const HEADER_BYTES = 12
/** Longest payload accepted. The largest that a request has a use for is below 300 bytes. */
export const PAYLOAD_BYTES_MAX = 4096
/** Most file descriptors accepted with one message, whatever the message. */
export const FD_COUNT_MAX = 32

/** Bits of the header's flags; all others are reserved and 0. */
export const HeaderFlag = { VERSION: 1, REPLY: 4, NEED_REPLY: 8 } as const

/** Feature bit that says "the GET_PROTOCOL_FEATURES family is understood". Never shown to a driver. */
export const F_PROTOCOL_FEATURES: bigint = 1n << 30n

/** Bits of GET_PROTOCOL_FEATURES that this implementation offers. */
export const ProtocolFeature = {
  MQ: 1n << 0n,
  REPLY_ACK: 1n << 3n,
  BACKEND_REQ: 1n << 5n,
  CONFIG: 1n << 9n,
  INFLIGHT_SHMFD: 1n << 12n,
  RESET_DEVICE: 1n << 13n,
  CONFIGURE_MEM_SLOTS: 1n << 15n,
  STATUS: 1n << 16n,
} as const

/** Every request a front-end can send, as the specification numbers them. */
export const FrontEndRequest = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  CREATE_CRYPTO_SESSION: 26,
  CLOSE_CRYPTO_SESSION: 27,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  GPU_SET_SOCKET: 33,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  GET_SHARED_OBJECT: 41,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
  GET_SHMEM_CONFIG: 44,
} as const

/** Name of a front-end request. */
export type FrontEndRequestName = keyof typeof FrontEndRequest

/** What the back-end asks of the front-end, over the socket of SET_BACKEND_REQ_FD. */
export const BackEndRequest = { CONFIG_CHANGE_MSG: 2 } as const

/** What a request must look like. */
export interface RequestRule {
  readonly payload: PayloadSize
  /** Most file descriptors that may come with it. */
  readonly fdCountMax: number
  /** Protocol feature that must be negotiated before it is sent; 0n: none. */
  readonly protocolFeature: bigint
  /** True for a question: it has an answer of its own and is never acknowledged on top of that. */
  readonly answered: boolean
}

const { EMPTY, U64, VRING_STATE, VRING_ADDRESS, MEMORY_TABLE, SINGLE_REGION, CONFIG, INFLIGHT } = PayloadSizes

function command(payload: PayloadSize, protocolFeature = 0n, fdCountMax = 0): RequestRule {
  return { payload, fdCountMax, protocolFeature, answered: false }
}

function question(payload: PayloadSize, protocolFeature = 0n): RequestRule {
  return { payload, fdCountMax: 0, protocolFeature, answered: true }
}

/** The requests that a back-end for block and similar devices serves. */
export const REQUEST_RULES = {
  GET_FEATURES: question(EMPTY),
  SET_FEATURES: command(U64),
  SET_OWNER: command(EMPTY),
  RESET_OWNER: command(EMPTY),
  SET_MEM_TABLE: command(MEMORY_TABLE, 0n, TABLE_REGION_COUNT_MAX),
  SET_VRING_NUM: command(VRING_STATE),
  SET_VRING_ADDR: command(VRING_ADDRESS),
  SET_VRING_BASE: command(VRING_STATE),
  GET_VRING_BASE: question(VRING_STATE),
  SET_VRING_KICK: command(U64, 0n, 1),
  SET_VRING_CALL: command(U64, 0n, 1),
  SET_VRING_ERR: command(U64, 0n, 1),
  GET_PROTOCOL_FEATURES: question(EMPTY),
  SET_PROTOCOL_FEATURES: command(U64),
  GET_QUEUE_NUM: question(EMPTY, ProtocolFeature.MQ),
  SET_VRING_ENABLE: command(VRING_STATE),
  SET_BACKEND_REQ_FD: command(EMPTY, ProtocolFeature.BACKEND_REQ, 1),
  GET_CONFIG: question(CONFIG, ProtocolFeature.CONFIG),
  SET_CONFIG: command(CONFIG, ProtocolFeature.CONFIG),
  GET_INFLIGHT_FD: question(INFLIGHT, ProtocolFeature.INFLIGHT_SHMFD),
  SET_INFLIGHT_FD: command(INFLIGHT, ProtocolFeature.INFLIGHT_SHMFD, 1),
  RESET_DEVICE: command(EMPTY, ProtocolFeature.RESET_DEVICE),
  GET_MAX_MEM_SLOTS: question(EMPTY, ProtocolFeature.CONFIGURE_MEM_SLOTS),
  ADD_MEM_REG: command(SINGLE_REGION, ProtocolFeature.CONFIGURE_MEM_SLOTS, 1),
  // Some front-ends send the file descriptor of the region along although nothing needs it.
  REM_MEM_REG: command(SINGLE_REGION, ProtocolFeature.CONFIGURE_MEM_SLOTS, 1),
  SET_STATUS: command(U64, ProtocolFeature.STATUS),
  GET_STATUS: question(EMPTY, ProtocolFeature.STATUS),
} as const satisfies Partial<Record<FrontEndRequestName, RequestRule>>

/** Name of a request with a rule, that is, of one the back-end serves. */
export type ServedRequestName = keyof typeof REQUEST_RULES

const NAME_OF_REQUEST: ReadonlyMap<number, FrontEndRequestName> = new Map(
  Object.entries(FrontEndRequest).map(([name, id]) => [id, name as FrontEndRequestName]),
)

/** The specification's name of a request; `undefined` for a number it does not give. */
export function requestName(request: number): FrontEndRequestName | undefined {
  return NAME_OF_REQUEST.get(request)
}

/** The rule of a request; `undefined` for one that is not served. */
export function requestRule(request: number): RequestRule | undefined {
  const name = requestName(request)
  return name === undefined ? undefined : (REQUEST_RULES as Partial<Record<string, RequestRule>>)[name]
}

/** The fixed front of each message. */
export interface MessageHeader {
  readonly request: number
  readonly flags: number
  readonly payloadBytes: number
}

/** Makes a whole message: header and payload in one buffer. */
export function encodeMessage(request: number, flags: number, payload: Uint8Array): Buffer {
  const message = Buffer.allocUnsafe(HEADER_BYTES + payload.length)
  message.writeUInt32LE(request, 0)
  message.writeUInt32LE(flags, 4)
  message.writeUInt32LE(payload.length, 8)
  message.set(payload, HEADER_BYTES)
  return message
}

/** Reads a header without judging it. */
export function decodeHeader(bytes: Buffer): MessageHeader {
  return {
    request: bytes.readUInt32LE(0),
    flags: bytes.readUInt32LE(4),
    payloadBytes: bytes.readUInt32LE(8),
  }
}

/**
 * Throws unless `header` can start a request of a front-end: `ERR_VHOST_MESSAGE` for a wrong version, a reply or
 * reserved flags, `ERR_VHOST_SIZE` for a payload that its request does not have. It is called before the payload
 * is read, so that a size costs nothing to claim.
 */
export function checkRequestHeader(header: MessageHeader): void {
  const { request, flags, payloadBytes } = header
  if ((flags & ~HeaderFlag.NEED_REPLY) !== HeaderFlag.VERSION) {
    const shown = `0x${flags.toString(16)}`
    throw new HushringError('ERR_VHOST_MESSAGE', `expected a request of version 1, got flags ${shown}`, {
      details: { request, flags },
    })
  }
  const { minBytes, maxBytes, stepBytes } = requestRule(request)?.payload ?? ANY_PAYLOAD
  if (payloadBytes < minBytes || payloadBytes > maxBytes || (payloadBytes - minBytes) % stepBytes !== 0) {
    throw payloadSizeError(requestName(request) ?? `request ${request}`, payloadBytes)
  }
}

const ANY_PAYLOAD: PayloadSize = { minBytes: 0, maxBytes: PAYLOAD_BYTES_MAX, stepBytes: 1 }

/** Throws unless `header` can start the answer to `request`. */
export function checkReplyHeader(header: MessageHeader, request: number): void {
  if (header.request !== request || header.flags !== (HeaderFlag.VERSION | HeaderFlag.REPLY)) {
    throw new HushringError('ERR_VHOST_MESSAGE', `expected the answer to request ${request}`, {
      details: { ...header },
    })
  }
  if (header.payloadBytes > PAYLOAD_BYTES_MAX) throw payloadSizeError('an answer', header.payloadBytes)
}
