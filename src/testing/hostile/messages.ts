import { setImmediate as turn } from 'node:timers/promises'
import type { ErrorCode } from '../../errors.ts'
import { RingFeature } from '../../ring/features.ts'
import { encodeMessage, FrontEndRequest, HeaderFlag } from '../../transport/vhost-user/messages.ts'
import {
  decodeU64,
  encodeConfig,
  encodeMemoryTable,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
  type WireRegion,
} from '../../transport/vhost-user/payloads.ts'
import type { SharedMemory } from '../shared-memory.ts'
import type { VhostUserFrontEnd } from '../vhost-user-front-end.ts'
import type { VhostUserGuest, VhostUserGuestOptions } from '../vhost-user-guest.ts'
import type { HostileOutcome, HostileRow } from './row.ts'
import type { Stage } from './stage.ts'

const ALL_ONES = 2n ** 64n - 1n
const NO_PAYLOAD = Buffer.alloc(0)
const INFLIGHT_SHMFD = 1n << 12n
const LOG_SHMFD = 1n << 1n

/** A row with messages that must end the connection. */
function messageRow(
  row: number,
  what: string,
  codes: readonly ErrorCode[],
  attack: (guest: VhostUserGuest, stage: Stage) => void | Promise<void>,
  options: VhostUserGuestOptions = {},
): HostileRow {
  return {
    row,
    title: `row ${row}: ${what}`,
    expectation: 'protocol error',
    codes,
    async play(stage) {
      const guest = await stage.guest(options)
      await attack(guest, stage)
      return stage.afterMessage(guest.frontEnd)
    },
  }
}

/** Connected and negotiated; the memory is still to come. */
const configured = { started: false } as const
/** A queue of its own: the last of 2, stopped. */
async function stoppedQueue({ frontEnd }: VhostUserGuest): Promise<void> {
  await frontEnd.stopQueue(1)
}

const noAddresses = { flags: 0, descriptor: 0n, used: 0n, available: 0n, log: 0n } as const

const queueIndexRows: readonly HostileRow[] = [
  ...(
    [
      ['SET_VRING_NUM', encodeVringState({ index: 255, num: 8 })],
      ['SET_VRING_NUM', encodeVringState({ index: 0xffff_ffff, num: 8 })],
      ['SET_VRING_BASE', encodeVringState({ index: 255, num: 0 })],
      ['GET_VRING_BASE', encodeVringState({ index: 255, num: 0 })],
      ['SET_VRING_ENABLE', encodeVringState({ index: 255, num: 1 })],
      ['SET_VRING_ADDR', encodeVringAddress({ index: 255, ...noAddresses })],
    ] as const
  ).map(([name, payload]) =>
    messageRow(
      36,
      `${name} for queue ${payload.readUInt32LE(0)}`,
      ['ERR_VHOST_QUEUE_INDEX'],
      ({ frontEnd }) => frontEnd.send(name, payload),
    ),
  ),
  ...(['SET_VRING_KICK', 'SET_VRING_CALL', 'SET_VRING_ERR'] as const).map((name) =>
    messageRow(36, `${name} for queue 255`, ['ERR_VHOST_QUEUE_INDEX'], ({ frontEnd }, stage) =>
      frontEnd.send(name, encodeVringFd({ index: 255, attached: true }), [stage.eventfd()]),
    ),
  ),
]

const ringRows: readonly HostileRow[] = [
  ...(
    [
      ['descriptor table', { descriptor: 8n }],
      ['available ring', { available: 1n }],
      ['used ring', { used: 2n }],
    ] as const
  ).map(([part, wrong]) =>
    messageRow(21, `a misaligned ${part}`, ['ERR_RING_ADDRESS'], async (guest) => {
      await stoppedQueue(guest)
      const { addresses } = guest.drivers[1]!
      const [[name, offset]] = Object.entries(wrong) as [[keyof typeof addresses, bigint]]
      const misaligned = { ...addresses, [name]: addresses[name] + offset }
      guest.frontEnd.send('SET_VRING_ADDR', encodeVringAddress({ ...noAddresses, ...misaligned, index: 1 }))
    }),
  ),
  {
    row: 21,
    title: 'row 21: a ring that lies nowhere',
    expectation: 'queue broken',
    codes: ['ERR_RING_ADDRESS'],
    async play(stage) {
      const guest = await stage.guest()
      const { frontEnd, driver } = guest
      await frontEnd.stopQueue(0)
      const sendAll = (): void => {
        frontEnd.send('SET_VRING_ADDR', encodeVringAddress({ index: 0, ...noAddresses }))
        frontEnd.send('SET_VRING_KICK', encodeVringFd({ index: 0, attached: true }), [driver.kickFd])
        frontEnd.send('SET_VRING_ENABLE', encodeVringState({ index: 0, num: 1 }))
        driver.kick()
      }
      return stage.onQueue(guest, sendAll)
    },
  },
  ...[0, 3, 32769, 65535, 0xffff_ffff].map((num) =>
    messageRow(22, `a queue of size ${num}`, ['ERR_RING_SIZE'], async (guest) => {
      await stoppedQueue(guest)
      guest.frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 1, num }))
    }),
  ),
  {
    row: 23,
    title: 'row 23: SET_VRING_NUM 100,000 times',
    expectation: 'served',
    async play(stage) {
      const guest = await stage.guest()
      await stoppedQueue(guest)
      const message = encodeMessage(
        FrontEndRequest.SET_VRING_NUM,
        HeaderFlag.VERSION,
        encodeVringState({ index: 1, num: 64 }),
      )
      const thousand = Buffer.concat(Array.from({ length: 1000 }, () => message))
      for (let count = 0; count < 100; count++) {
        guest.frontEnd.sendBytes(thousand)
        if (!(await guest.frontEnd.isAnswered())) return 'protocol error'
      }
      return 'served'
    },
  },
  ...orderRows(),
]

function orderRows(): HostileRow[] {
  const sendKick = ({ frontEnd, driver }: VhostUserGuest): void =>
    frontEnd.send('SET_VRING_KICK', encodeVringFd({ index: 1, attached: true }), [driver.kickFd])
  const codes = ['ERR_VHOST_ORDER'] as const
  return [
    messageRow(
      46,
      'ring addresses before the memory',
      codes,
      ({ frontEnd }) => frontEnd.send('SET_VRING_ADDR', encodeVringAddress({ index: 1, ...noAddresses })),
      configured,
    ),
    messageRow(46, 'a kick before size and addresses', codes, sendKick, configured),
    messageRow(
      46,
      'a kick before the addresses',
      codes,
      (guest) => {
        guest.frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 1, num: 64 }))
        sendKick(guest)
      },
      configured,
    ),
    messageRow(46, 'features while a queue runs', codes, ({ frontEnd }) =>
      frontEnd.send('SET_FEATURES', encodeU64(frontEnd.features & ~RingFeature.EVENT_IDX)),
    ),
    messageRow(46, 'a new size while the queue runs', codes, ({ frontEnd }) =>
      frontEnd.send('SET_VRING_NUM', encodeVringState({ index: 0, num: 32 })),
    ),
    messageRow(46, 'a new base while the queue runs', codes, ({ frontEnd }) =>
      frontEnd.send('SET_VRING_BASE', encodeVringState({ index: 0, num: 1 })),
    ),
    messageRow(46, 'new addresses while the queue runs', codes, ({ frontEnd, driver }) => {
      const { descriptor, ...others } = driver.addresses
      const moved = { ...noAddresses, ...others, index: 0, descriptor: descriptor + 16n }
      frontEnd.send('SET_VRING_ADDR', encodeVringAddress(moved))
    }),
  ]
}

const WHOLE: WireRegion = { guestAddress: 0n, userAddress: 0n, sizeBytes: 4096n, mmapOffsetBytes: 0n }

const memoryRows: readonly HostileRow[] = (
  [
    [37, 'a region of size 0', [{ ...WHOLE, sizeBytes: 0n }]],
    [37, 'a region whose size and offset wrap', [{ ...WHOLE, mmapOffsetBytes: ALL_ONES - 4095n }]],
    [37, 'a region whose guest addresses wrap', [{ ...WHOLE, guestAddress: ALL_ONES - 4094n }]],
    [37, 'a region whose user addresses wrap', [{ ...WHOLE, userAddress: ALL_ONES - 4094n }]],
    [37, 'a region of 2^64 - 1 bytes', [{ ...WHOLE, sizeBytes: ALL_ONES }]],
    [
      38,
      'regions that overlap for the guest',
      [WHOLE, { ...WHOLE, userAddress: 8192n, guestAddress: 4095n }],
    ],
    [
      38,
      'regions that overlap for the front-end',
      [WHOLE, { ...WHOLE, guestAddress: 8192n, userAddress: 4095n }],
    ],
    [39, 'a region that is longer than its file', [{ ...WHOLE, sizeBytes: 1n << 30n }]],
  ] as const
).map(([row, what, regions]) =>
  messageRow(
    row,
    what,
    ['ERR_MEMORY_REGION'],
    ({ frontEnd, memory }) =>
      frontEnd.send(
        'SET_MEM_TABLE',
        encodeMemoryTable(regions),
        regions.map(() => memory.fd),
      ),
    configured,
  ),
)

/** Bytes that a message carries and that nothing here has a type for: u64 and u16 values, little-endian. */
function numbers(wide: readonly bigint[], narrow: readonly number[] = []): Buffer {
  const payload = Buffer.alloc(8 * wide.length + 2 * narrow.length)
  for (const [index, value] of wide.entries()) payload.writeBigUInt64LE(value, 8 * index)
  for (const [index, value] of narrow.entries()) payload.writeUInt16LE(value, 8 * wide.length + 2 * index)
  return payload
}

/** Accepts a protocol feature as well if it is offered, whether or not this kit knows it. */
async function acceptIfOffered(frontEnd: VhostUserFrontEnd, feature: bigint): Promise<void> {
  const offered = decodeU64(await frontEnd.ask('GET_PROTOCOL_FEATURES')) & feature
  frontEnd.send('SET_PROTOCOL_FEATURES', encodeU64(frontEnd.protocolFeatures | offered))
}

const featureRows: readonly HostileRow[] = [
  messageRow(41, 'a dirty log whose size and offset wrap', ['ERR_VHOST_FEATURES'], async (guest) => {
    await acceptIfOffered(guest.frontEnd, LOG_SHMFD)
    guest.frontEnd.send('SET_LOG_BASE', numbers([ALL_ONES, 4096n]), [guest.memory.fd])
  }),
  ...(
    [
      ['more queues than there are', [4096n, 0n], [0xffff, 64], 1],
      ['a queue size of 65,535', [4096n, 0n], [1, 0xffff], 1],
      ['a size and an offset that wrap', [ALL_ONES, 4096n], [1, 64], 1],
      ['two descriptors', [4096n, 0n], [1, 64], 2],
      ['no descriptor', [4096n, 0n], [1, 64], 0],
    ] as const
  ).map(([what, wide, narrow, fdCount]) =>
    messageRow(
      42,
      `SET_INFLIGHT_FD with ${what}`,
      ['ERR_VHOST_INFLIGHT', 'ERR_VHOST_FEATURES', 'ERR_VHOST_FD', 'ERR_VHOST_SIZE', 'ERR_VHOST_MESSAGE'],
      async ({ frontEnd, memory }) => {
        await acceptIfOffered(frontEnd, INFLIGHT_SHMFD)
        // The specification's structure ends with 4 bytes of padding.
        const payload = Buffer.concat([numbers(wide, narrow), Buffer.alloc(4)])
        const fds = Array.from({ length: fdCount }, () => memory.fd)
        frontEnd.send('SET_INFLIGHT_FD', payload, fds)
      },
      configured,
    ),
  ),
]

const framingRows: readonly HostileRow[] = [
  {
    row: 43,
    title: 'row 43: a message with a descriptor that is cut at every byte',
    expectation: 'served',
    play: (stage) =>
      playFraming(stage, async (frontEnd, message, fd) => {
        for (let cut = 1; cut < message.length; cut++) {
          frontEnd.sendBytes(message.subarray(0, cut), [fd])
          await turn()
          frontEnd.sendBytes(message.subarray(cut))
          if (!(await frontEnd.isAnswered())) return 'protocol error'
        }
        return 'served'
      }),
  },
  {
    row: 43,
    title: 'row 43: one byte a packet',
    expectation: 'served',
    play: (stage) =>
      playFraming(stage, async (frontEnd, message, fd) => {
        frontEnd.sendBytes(message.subarray(0, 1), [fd])
        for (const byte of message.subarray(1)) {
          await turn()
          frontEnd.sendBytes(Buffer.of(byte))
        }
        return (await frontEnd.isAnswered()) ? 'served' : 'protocol error'
      }),
  },
  {
    row: 43,
    title: 'row 43: two messages in one packet',
    expectation: 'served',
    play: (stage) =>
      playFraming(stage, async (frontEnd, message, fd) => {
        const owner = encodeMessage(FrontEndRequest.SET_OWNER, HeaderFlag.VERSION, NO_PAYLOAD)
        frontEnd.sendBytes(Buffer.concat([message, owner]), [fd])
        return (await frontEnd.isAnswered()) ? 'served' : 'protocol error'
      }),
  },
  messageRow(44, 'a message of 2^32 - 1 bytes', ['ERR_VHOST_SIZE'], ({ frontEnd }) => {
    const message = encodeMessage(FrontEndRequest.SET_MEM_TABLE, HeaderFlag.VERSION, NO_PAYLOAD)
    message.writeUInt32LE(0xffff_ffff, 8)
    frontEnd.sendBytes(message)
  }),
  messageRow(44, 'a message of a size that its request does not have', ['ERR_VHOST_SIZE'], ({ frontEnd }) =>
    frontEnd.send('SET_VRING_NUM', Buffer.alloc(7)),
  ),
  ...[0, 2].map((version) =>
    messageRow(44, `a message of version ${version}`, ['ERR_VHOST_MESSAGE'], ({ frontEnd }) =>
      frontEnd.sendBytes(encodeMessage(FrontEndRequest.GET_FEATURES, version, NO_PAYLOAD)),
    ),
  ),
  ...[false, true].map(
    (needsReply): HostileRow => ({
      row: 45,
      title: `row 45: an unknown request that ${needsReply ? 'wants an acknowledgement' : 'wants nothing'}`,
      expectation: 'served',
      async play(stage) {
        const { frontEnd, disk } = await stage.guest()
        const flags = HeaderFlag.VERSION | (needsReply ? HeaderFlag.NEED_REPLY : 0)
        frontEnd.sendBytes(encodeMessage(1000, flags, Buffer.alloc(100)))
        if (needsReply && decodeU64(await frontEnd.answerTo(1000)) === 0n) return 'no answer'
        if (!(await frontEnd.isAnswered())) return 'protocol error'
        await disk.flush()
        return 'served'
      },
    }),
  ),
]

/** Sends a memory table in some strange way, and then uses the memory. */
async function playFraming(
  stage: Stage,
  send: (frontEnd: VhostUserFrontEnd, message: Buffer, fd: number) => Promise<HostileOutcome>,
): Promise<HostileOutcome> {
  const { frontEnd, memory } = await stage.guest(configured)
  const message = encodeMessage(FrontEndRequest.SET_MEM_TABLE, HeaderFlag.VERSION, tableOf(memory))
  const outcome = await send(frontEnd, message, memory.fd)
  if (outcome === 'served') await stage.startAnew(frontEnd, memory)
  return outcome
}

function tableOf({ guestAddress, userAddress, sizeBytes, mmapOffsetBytes }: SharedMemory): Buffer {
  return encodeMemoryTable([{ guestAddress, userAddress, sizeBytes: BigInt(sizeBytes), mmapOffsetBytes }])
}

const configRows: readonly HostileRow[] = [
  ...(
    [
      [250, 16],
      [0xffff_ffff, 8],
    ] as const
  ).map(
    ([offsetBytes, lengthBytes]): HostileRow => ({
      row: 50,
      title: `row 50: a read of ${lengthBytes} bytes at ${offsetBytes} of the configuration space`,
      expectation: 'request fails',
      async play(stage) {
        const { frontEnd, disk } = await stage.guest()
        const bytes = await frontEnd.readConfig(offsetBytes, lengthBytes)
        await disk.flush()
        return bytes === undefined ? 'request fails' : 'served'
      },
    }),
  ),
  ...[250, 0xffff_ffff].map((offsetBytes) =>
    messageRow(
      50,
      `a write of 16 bytes at ${offsetBytes} of the configuration space`,
      ['ERR_VHOST_CONFIG'],
      ({ frontEnd }) =>
        frontEnd.send('SET_CONFIG', encodeConfig({ offsetBytes, flags: 0, bytes: Buffer.alloc(16) })),
    ),
  ),
]

/** Rows about what a front-end says. */
export const messageRows: readonly HostileRow[] = [
  ...ringRows,
  ...queueIndexRows,
  ...memoryRows,
  ...featureRows,
  ...framingRows,
  ...configRows,
]
