import {
  FrontEndRequest,
  type FrontEndRequestName,
  ProtocolFeature,
} from '../../src/transport/vhost-user/messages.ts'
import {
  encodeConfig,
  encodeInflight,
  encodeMemoryTable,
  encodeSingleRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
} from '../../src/transport/vhost-user/payloads.ts'
import {
  cdb6,
  cdb10,
  cdb12,
  cdb16,
  compareAndWriteCdb,
  hex,
  unmapCdb,
  unmapList,
} from '../helpers/scsi-commands.ts'
import type { ScsiScript } from './scsi.ts'
import type { FdKind, FrontEndStep } from './vhost-user.ts'

// What the fuzzers begin with: scripts that are right, so that what follows from them is nearly right.

const BLOCK = 512
const ALL = { flush: true, discard: true, writeZeroes: true }
/** Header of MODE SELECT (10), and the page Control with D_SENSE, with SWP, and the page Caching without WCE. */
const DESCRIPTOR_SENSE = hex('0000000000000000 0a0a 06 10 00 40 0000 ffff 0000')
const WRITE_PROTECT = hex('0000000000000000 0a0a 02 10 08 40 0000 ffff 0000')
const NO_WRITE_CACHE = hex('0000000000000000 0812 00 0000000000000000000000000000000000')
/** Block descriptors as the disk has them, short in the six bytes' form and long. */
const SHORT_DESCRIPTOR = hex('00000008 00000040 00000200')
const LONG_DESCRIPTOR = hex('0000000001000010 0000000000000040 00000000 00000200')
const modeSelect10 = (list: Buffer) => ({
  cdb: hex(`55 10 0000000000 00${list.length.toString(16)} 00`),
  dataOut: list,
})

/** For the target `scsi`, by what each is about. */
export const scsiSeeds: Readonly<Record<string, ScsiScript>> = {
  introduction: {
    disk: { ...ALL, attention: true },
    commands: [
      { cdb: hex('00 00 00 00 00 00') },
      { cdb: hex('12 00 00 00 60 00'), dataInBytes: 96 },
      { cdb: hex('12 01 83 00 ff 00'), dataInBytes: 255, pieces: 4 },
      { cdb: hex('12 01 b0 00 40 00'), dataInBytes: 64 },
      { cdb: hex('03 00 00 00 12 00'), dataInBytes: 18 },
      { cdb: hex('25 00 00000000 0000 00 00'), dataInBytes: 8 },
      { cdb: hex('9e 10 0000000000000000 00000020 00 00'), dataInBytes: 32 },
      { cdb: hex('a0 00 00 000000 00000100 00 00'), dataInBytes: 256 },
      { cdb: hex('a3 0c 80 00 0000 00001000 00 00'), dataInBytes: 4096 },
      { cdb: hex('a3 0c 03 88 0000 00000100 00 00'), dataInBytes: 256 },
      { cdb: hex('a3 0d 80 00 0000 00000010 00 00'), dataInBytes: 16 },
      { cdb: hex('9e 12 0000000000000004 00000018 00 00'), dataInBytes: 24 },
    ],
  },
  'reads and writes': {
    disk: { flush: true },
    commands: [
      { cdb: cdb6(0x08, 1, 2), dataInBytes: 2 * BLOCK },
      { cdb: cdb10(0x28, 2, 3), dataInBytes: 4 * BLOCK, pieces: 3 },
      { cdb: cdb12(0xa8, 3, 1), dataInBytes: BLOCK },
      { cdb: cdb16(0x88, 63, 1), dataInBytes: BLOCK },
      { cdb: cdb6(0x0a, 4, 1), dataOut: hex('01 02 03'), dataOutBytes: BLOCK },
      { cdb: cdb10(0x2a, 5, 2, 0x08), dataOut: hex('04'), dataOutBytes: 2 * BLOCK, pieces: 5 },
      { cdb: cdb16(0x8a, 62, 2), dataOut: hex('05'), dataOutBytes: 2 * BLOCK },
      { cdb: cdb10(0x35, 0, 0) },
      { cdb: cdb10(0x34, 0, 8) },
      { cdb: cdb10(0x28, 63, 2), dataInBytes: 2 * BLOCK },
      { cdb: cdb16(0x88, (1n << 64n) - 1n, 1), dataInBytes: BLOCK },
      { cdb: cdb10(0x28, 0, 2), dataInBytes: BLOCK },
    ],
  },
  verification: {
    disk: { flush: true, later: true },
    commands: [
      { cdb: cdb10(0x2f, 0, 4) },
      { cdb: cdb10(0x2f, 0, 1, 0x02), dataOut: hex(''), dataOutBytes: BLOCK },
      { cdb: cdb10(0x2f, 0, 1, 0x06), dataOut: hex(''), dataOutBytes: BLOCK },
      { cdb: cdb16(0x8f, 1, 1, 0x02), dataOut: hex('01 01'), dataOutBytes: BLOCK },
      { cdb: cdb10(0x2e, 8, 2, 0x02), dataOut: hex('08'), dataOutBytes: 2 * BLOCK },
      { cdb: compareAndWriteCdb(0, 1), dataOut: hex(''), dataOutBytes: 2 * BLOCK },
      { cdb: compareAndWriteCdb(1, 1, 0x08), dataOut: hex('ff'), dataOutBytes: 2 * BLOCK, beside: true },
      { cdb: cdb10(0x28, 0, 2), dataInBytes: 2 * BLOCK, beside: true },
    ],
  },
  provisioning: {
    disk: ALL,
    commands: [
      { cdb: unmapCdb(40), dataOut: unmapList([1, 2], [56, 8]) },
      { cdb: cdb10(0x41, 8, 4), dataOut: hex('aa'), dataOutBytes: BLOCK },
      { cdb: cdb16(0x93, 16, 4, 0x08), dataOut: hex(''), dataOutBytes: BLOCK },
      { cdb: cdb16(0x93, 20, 4, 0x01) },
      { cdb: cdb16(0x88, 0, 8), dataInBytes: 8 * BLOCK },
    ],
  },
  modes: {
    disk: ALL,
    commands: [
      { cdb: hex('1a 00 3f 00 ff 00'), dataInBytes: 255 },
      { cdb: hex('5a 10 08 00 000000 00ff 00'), dataInBytes: 255 },
      { cdb: hex('1a 08 4a 00 ff 00'), dataInBytes: 64 },
      modeSelect10(DESCRIPTOR_SENSE),
      { cdb: cdb10(0x28, 64, 1), dataInBytes: BLOCK },
      { cdb: cdb10(0x2f, 4, 1, 0x02), dataOut: hex('04'), dataOutBytes: BLOCK },
      modeSelect10(WRITE_PROTECT),
      { cdb: cdb10(0x2a, 0, 1), dataOut: hex('01'), dataOutBytes: BLOCK },
      { cdb: hex('03 01 00 00 ff 00'), dataInBytes: 255 },
      { cdb: hex('15 10 00 00 04 00'), dataOut: hex('00000000') },
      { cdb: hex('1b 00 00 00 00 00') },
      { cdb: hex('1d 04 00 0000 00') },
    ],
  },
  'more modes, more pages': {
    disk: ALL,
    commands: [
      modeSelect10(NO_WRITE_CACHE),
      { cdb: cdb10(0x2a, 0, 1), dataOut: hex('01'), dataOutBytes: BLOCK },
      modeSelect10(LONG_DESCRIPTOR),
      { cdb: hex('15 10 00 00 0c 00'), dataOut: SHORT_DESCRIPTOR },
      { cdb: hex('12 01 00 00 ff 00'), dataInBytes: 255 },
      { cdb: hex('12 01 80 00 ff 00'), dataInBytes: 255 },
      { cdb: hex('12 01 b1 00 40 00'), dataInBytes: 64 },
      { cdb: hex('12 01 b2 00 08 00'), dataInBytes: 8 },
      { cdb: hex('a3 0c 01 28 0000 00000100 00 00'), dataInBytes: 256 },
      { cdb: hex('a3 0c 02 9e 0010 00000100 00 00'), dataInBytes: 256 },
    ],
  },
  'a store that fails, and commands that are given up': {
    disk: { ...ALL, later: true, largeBlocks: true },
    commands: [
      { cdb: cdb10(0x28, 3, 1), dataInBytes: 4096, failsAfter: 0 },
      { cdb: cdb10(0x2a, 3, 1, 0x08), dataOut: hex('01'), dataOutBytes: 4096, failsAfter: 1 },
      { cdb: unmapCdb(40), dataOut: unmapList([1, 1], [4, 2]), aborted: true },
      { cdb: compareAndWriteCdb(0, 1), dataOut: hex(''), dataOutBytes: 8192 },
      { cdb: compareAndWriteCdb(0, 1), dataOut: hex(''), dataOutBytes: 8192, beside: true, aborted: true },
      { cdb: cdb16(0x88, 0, 2), dataInBytes: 8192, beside: true },
      { cdb: cdb10(0x35, 0, 0), failsAfter: 0 },
    ],
  },
  'a disk that cannot be written, and data in both directions': {
    disk: { readOnly: true },
    commands: [
      { cdb: cdb10(0x2a, 0, 1), dataOut: hex('01'), dataOutBytes: BLOCK },
      { cdb: cdb10(0x28, 0, 1), dataOut: hex('01'), dataOutBytes: BLOCK, dataInBytes: BLOCK },
      { cdb: hex('42 00 00000000 00 0018 00'), dataOut: unmapList([1, 2]) },
      { cdb: hex('83 00 00000000000000000000000000 00') },
      { cdb: hex('c0 00 00 00 00 00') },
    ],
  },
}

// ---- vhost-user ----------------------------------------------------------------------------------------------------

const VERSION_1 = 1
const NEED_REPLY = 8

function message(
  name: FrontEndRequestName,
  payload: Uint8Array = Buffer.alloc(0),
  more: { fds?: { kind: FdKind; count: number }; flags?: number; cutBytes?: number } = {},
): FrontEndStep {
  return { step: 'message', request: FrontEndRequest[name], payload, ...more }
}

const turnStep: FrontEndStep = { step: 'turn' }
const one = (kind: FdKind) => ({ fds: { kind, count: 1 } })

const protocolFeatures = Object.values(ProtocolFeature).reduce((all, feature) => all | feature, 0n)
const F_PROTOCOL_FEATURES = 1n << 30n
const F_EVENT_IDX = 1n << 29n
const F_VERSION_1 = 1n << 32n

const GUEST_ADDRESS = 0x10_0000n
const USER_ADDRESS = 0x20_0000n
const region = {
  guestAddress: GUEST_ADDRESS,
  sizeBytes: 0x1_0000n,
  userAddress: USER_ADDRESS,
  mmapOffsetBytes: 0n,
}
const [DESCRIPTORS_AT, AVAILABLE_AT, USED_AT, DATA_AT] = [0, 0x1000, 0x2000, 0x3000]

const greeting: readonly FrontEndStep[] = [
  message('GET_FEATURES'),
  message('GET_PROTOCOL_FEATURES'),
  message('SET_PROTOCOL_FEATURES', encodeU64(protocolFeatures)),
  message('SET_OWNER'),
  message('SET_FEATURES', encodeU64(F_PROTOCOL_FEATURES | F_EVENT_IDX | F_VERSION_1), {
    flags: VERSION_1 | NEED_REPLY,
  }),
]

const ringSetUp: readonly FrontEndStep[] = [
  message('SET_MEM_TABLE', encodeMemoryTable([region]), one('memory')),
  message('SET_VRING_NUM', encodeVringState({ index: 0, num: 8 })),
  message('SET_VRING_BASE', encodeVringState({ index: 0, num: 0 })),
  message(
    'SET_VRING_ADDR',
    encodeVringAddress({
      index: 0,
      flags: 0,
      descriptor: USER_ADDRESS + BigInt(DESCRIPTORS_AT),
      available: USER_ADDRESS + BigInt(AVAILABLE_AT),
      used: USER_ADDRESS + BigInt(USED_AT),
      log: 0n,
    }),
  ),
  message('SET_VRING_CALL', encodeVringFd({ index: 0, attached: true }), one('call')),
  message('SET_VRING_ERR', encodeVringFd({ index: 0, attached: true }), one('call')),
  message('SET_VRING_KICK', encodeVringFd({ index: 0, attached: true }), one('kick')),
  message('SET_VRING_ENABLE', encodeVringState({ index: 0, num: 1 })),
]

/** A read of one block: header, data, status. */
const readRequest: readonly FrontEndStep[] = [
  {
    step: 'write',
    offsetBytes: DESCRIPTORS_AT,
    bytes: Buffer.concat([
      descriptor(GUEST_ADDRESS + BigInt(DATA_AT), 16, 1, 1),
      descriptor(GUEST_ADDRESS + BigInt(DATA_AT + 0x1000), 512, 3, 2),
      descriptor(GUEST_ADDRESS + BigInt(DATA_AT + 16), 1, 2, 0),
    ]),
  },
  { step: 'write', offsetBytes: AVAILABLE_AT, bytes: hex('0000 0100 0000') },
  { step: 'kick' },
  turnStep,
]

function descriptor(address: bigint, lengthBytes: number, flags: number, next: number): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeBigUInt64LE(address, 0)
  bytes.writeUInt32LE(lengthBytes, 8)
  bytes.writeUInt16LE(flags, 12)
  bytes.writeUInt16LE(next, 14)
  return bytes
}

/** For the target `vhost-user`, by what each is about. */
export const vhostUserSeeds: Readonly<Record<string, readonly FrontEndStep[]>> = {
  'a request': [
    ...greeting,
    message('GET_QUEUE_NUM'),
    ...ringSetUp,
    ...readRequest,
    message('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 })),
  ],
  'no protocol features': [
    message('SET_FEATURES', encodeU64(F_VERSION_1)),
    ...ringSetUp.slice(0, -1),
    ...readRequest,
  ],
  'the configuration space and the status': [
    ...greeting,
    message('GET_CONFIG', encodeConfig({ offsetBytes: 0, flags: 0, bytes: Buffer.alloc(60) })),
    message('SET_CONFIG', encodeConfig({ offsetBytes: 32, flags: 0, bytes: Buffer.of(0) })),
    message('SET_STATUS', encodeU64(15n)),
    message('GET_STATUS'),
    message('SET_STATUS', encodeU64(0n), { flags: VERSION_1 | NEED_REPLY }),
    message('RESET_DEVICE'),
    message('RESET_OWNER'),
  ],
  'memory that comes and goes': [
    ...greeting,
    message('GET_MAX_MEM_SLOTS'),
    message('ADD_MEM_REG', encodeSingleRegion(region), one('memory')),
    message(
      'ADD_MEM_REG',
      encodeSingleRegion({ ...region, guestAddress: 0n, userAddress: 0n, sizeBytes: 0x1000n }),
      one('otherMemory'),
    ),
    message('REM_MEM_REG', encodeSingleRegion(region)),
    message(
      'SET_MEM_TABLE',
      encodeMemoryTable([
        { ...region, sizeBytes: 0x8000n },
        { guestAddress: 0n, userAddress: 0n, sizeBytes: 0x1000n, mmapOffsetBytes: 0x8000n },
      ]),
      { fds: { kind: 'memory', count: 2 } },
    ),
  ],
  'requests in flight': [
    ...greeting,
    message(
      'GET_INFLIGHT_FD',
      encodeInflight({ mmapSizeBytes: 0n, mmapOffsetBytes: 0n, queueCount: 1, queueSize: 8 }),
    ),
    turnStep,
    message(
      'SET_INFLIGHT_FD',
      encodeInflight({ mmapSizeBytes: 192n, mmapOffsetBytes: 0n, queueCount: 1, queueSize: 8 }),
      one('answered'),
    ),
    ...ringSetUp,
    ...readRequest,
    message('RESET_DEVICE'),
  ],
  'memory that shrinks under a running queue': [
    ...greeting,
    ...ringSetUp,
    turnStep,
    turnStep,
    { step: 'resize', pages: 1 },
    { step: 'kick' },
    turnStep,
  ],
  'a ring that is polled, and disabled': [
    ...greeting,
    ...ringSetUp.slice(0, 4),
    message('SET_VRING_KICK', encodeVringFd({ index: 0, attached: false })),
    message('SET_VRING_ENABLE', encodeVringState({ index: 0, num: 1 })),
    ...readRequest,
    message('SET_VRING_ENABLE', encodeVringState({ index: 0, num: 0 })),
    message('SET_VRING_CALL', encodeVringFd({ index: 0, attached: false })),
  ],
  'messages that are cut, unknown or not served': [
    message('GET_FEATURES', Buffer.alloc(0), { cutBytes: 5 }),
    message('SET_LOG_BASE', Buffer.alloc(16)),
    { step: 'message', request: 200, payload: Buffer.alloc(300) },
  ],
  'a channel for our own requests': [
    ...greeting,
    message('SET_BACKEND_REQ_FD', Buffer.alloc(0), one('socket')),
    turnStep,
    { step: 'notify' },
    message('SET_BACKEND_REQ_FD', Buffer.alloc(0), one('folder')),
    turnStep,
    { step: 'notify' },
    { step: 'hangUp' },
  ],
  'a queue that is stopped with a request in flight': [
    ...greeting,
    ...ringSetUp,
    { step: 'hold' },
    ...readRequest,
    turnStep,
    message('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 })),
    turnStep,
    { step: 'release' },
  ],
  'a front-end that goes with a request in flight': [
    ...greeting,
    ...ringSetUp,
    { step: 'hold' },
    ...readRequest,
    turnStep,
    message('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 })),
    turnStep,
    { step: 'hangUp' },
  ],
}
