import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import type { ErrorCode } from '../../errors.ts'
import { RingFeature } from '../../ring/features.ts'
import { BlockRequestType, BlockStatus } from '../block-driver.ts'
import type { SharedMemory } from '../shared-memory.ts'
import { type Descriptor, DescriptorFlag, type SplitDriver } from '../split-driver.ts'
import type { VhostUserGuest } from '../vhost-user-guest.ts'
import type { HostileOutcome, HostileRow } from './row.ts'
import type { Stage } from './stage.ts'

const { NEXT, WRITE, INDIRECT } = DescriptorFlag
const NO_STATUS = 0xff
/** Where the bad chains begin; well-formed requests, one at a time, take the first descriptors. */
const HEAD = 16
const DATA_BYTES = 512
const DESCRIPTOR_BYTES = 16

/** What bad chains are made of: the parts of a good read request. */
class Parts {
  readonly memory: SharedMemory
  readonly header: bigint
  readonly data: bigint
  readonly status: bigint
  readonly #offsetBytes: number

  constructor(memory: SharedMemory) {
    this.memory = memory
    this.#offsetBytes = memory.allocate(16 + DATA_BYTES + 1)
    this.header = memory.guestAddressOf(this.#offsetBytes)
    this.data = this.header + 16n
    this.status = this.data + BigInt(DATA_BYTES)
    memory.bytes.fill(0, this.#offsetBytes, this.#offsetBytes + 16)
    memory.bytes[this.#offsetBytes] = BlockRequestType.IN
    memory.bytes[this.#offsetBytes + 16 + DATA_BYTES] = NO_STATUS
  }

  get statusByte(): number {
    return this.memory.bytes[this.#offsetBytes + 16 + DATA_BYTES]!
  }

  /** Descriptors of a good request, each followed by the next one. */
  chain(): [Descriptor, Descriptor, Descriptor] {
    return [
      { address: this.header, lengthBytes: 16, flags: NEXT, next: HEAD + 1 },
      { address: this.data, lengthBytes: DATA_BYTES, flags: WRITE | NEXT, next: HEAD + 2 },
      { address: this.status, lengthBytes: 1, flags: WRITE, next: 0 },
    ]
  }

  /** An indirect table with these descriptors. @returns its guest address */
  table(descriptors: readonly Descriptor[]): bigint {
    const offsetBytes = this.memory.allocate(DESCRIPTOR_BYTES * descriptors.length)
    for (const [index, { address, lengthBytes, flags, next }] of descriptors.entries()) {
      const at = offsetBytes + DESCRIPTOR_BYTES * index
      this.memory.bytes.writeBigUInt64LE(address, at)
      this.memory.bytes.writeUInt32LE(lengthBytes, at + 8)
      this.memory.bytes.writeUInt16LE(flags, at + 12)
      this.memory.bytes.writeUInt16LE(next, at + 14)
    }
    return this.memory.guestAddressOf(offsetBytes)
  }
}

/** A row with one chain of descriptors, the first of which is its head, and a good request behind it. */
function chainRow(
  row: number,
  what: string,
  codes: readonly ErrorCode[],
  descriptorsOf: (parts: Parts) => readonly Descriptor[],
  features: bigint = -1n,
): HostileRow {
  return {
    row,
    title: `row ${row}: ${what}`,
    expectation: 'request fails',
    strictExpectation: 'queue broken',
    codes,
    play: (stage) => playChain(stage, descriptorsOf, features),
  }
}

async function playChain(
  stage: Stage,
  descriptorsOf: (parts: Parts) => readonly Descriptor[],
  features: bigint = -1n,
): Promise<HostileOutcome> {
  const guest = await stage.guest({ features })
  const parts = new Parts(guest.memory)
  const descriptors = descriptorsOf(parts)
  const attack = (): void => {
    for (const [index, descriptor] of descriptors.entries()) {
      guest.driver.writeDescriptor(HEAD + index, descriptor)
    }
    offer(guest.driver, [HEAD])
  }
  return stage.onQueue(guest, attack, async () => {
    await guest.disk.flush()
    const length = await answeredLength(guest.driver)
    return length > 0 && parts.statusByte === BlockStatus.OK ? 'served' : 'request fails'
  })
}

/** Makes heads available and visible, and kicks. */
function offer(driver: SplitDriver, heads: readonly number[]): void {
  for (const [position, head] of heads.entries())
    driver.writeAvailable(driver.availableIndex + position, head)
  driver.storeAvailableIndex(driver.availableIndex + heads.length)
  driver.kick()
}

/** Lengths with which a head came back so far, an entry for each time. */
function lengthsOf(driver: SplitDriver, head: number): number[] {
  const indices = Array.from({ length: Math.min(driver.loadUsedIndex(), driver.size) }, (_, index) => index)
  return indices
    .filter((index) => driver.loadUsedHead(index) === head)
    .map((index) => driver.loadUsedLength(index))
}

/** The length with which the bad chain comes back. A good request behind it may have been answered before. */
async function answeredLength(driver: SplitDriver): Promise<number> {
  for (;;) {
    const [length] = lengthsOf(driver, HEAD)
    if (length !== undefined) return length
    await sleep(1)
  }
}

/** A row that does something to the first queue which can have no answer. */
function breakingRow(
  row: number,
  what: string,
  codes: readonly ErrorCode[],
  attack: (guest: VhostUserGuest) => void,
): HostileRow {
  return {
    row,
    title: `row ${row}: ${what}`,
    expectation: 'queue broken',
    codes,
    async play(stage) {
      const guest = await stage.guest()
      await guest.disk.flush()
      return stage.onQueue(guest, () => attack(guest))
    },
  }
}

/** Rows about what a driver writes into a ring. */
export const chainRows: readonly HostileRow[] = [
  {
    row: 1,
    title: 'row 1: a ring full of heads outside the table, and one more',
    expectation: 'queue broken',
    // The second one is for a device that has not looked before the last head came.
    codes: ['ERR_RING_HEAD_RANGE', 'ERR_RING_AVAIL_INDEX'],
    async play(stage) {
      const guest = await stage.guest()
      const { driver } = guest
      const heads = Array.from({ length: driver.size }, (_, index) => driver.size + index)
      return stage.onQueue(
        guest,
        () => offer(driver, heads),
        async () => {
          await sleep(20)
          offer(driver, [0xffff])
          return new Promise(() => {})
        },
      )
    },
  },
  {
    row: 1,
    title: 'row 1: one head outside the table',
    expectation: 'request fails',
    async play(stage) {
      const guest = await stage.guest()
      const { driver, disk } = guest
      return stage.onQueue(
        guest,
        () => offer(driver, [driver.size]),
        async () => {
          await disk.flush()
          return 'request fails'
        },
      )
    },
  },
  chainRow(2, 'a next descriptor outside the table', ['ERR_CHAIN_NEXT_RANGE'], (parts) => [
    { ...parts.chain()[0], next: 64 },
  ]),
  chainRow(3, 'an empty descriptor that is its own next', ['ERR_CHAIN_LOOP'], (parts) => [
    parts.chain()[0],
    { address: parts.data, lengthBytes: 0, flags: NEXT, next: HEAD + 1 },
  ]),
  chainRow(4, 'two descriptors with data that are each other’s next', ['ERR_CHAIN_LOOP'], (parts) => [
    parts.chain()[0],
    parts.chain()[1],
    { address: parts.data, lengthBytes: 1, flags: WRITE | NEXT, next: HEAD + 1 },
  ]),
  {
    row: 5,
    title: 'row 5: a chain of exactly as many descriptors as the ring has',
    expectation: 'served',
    async play(stage) {
      const { driver, disk } = await stage.guest()
      const pieces = driver.size - 2
      const request = { type: BlockRequestType.IN, writableBytes: pieces * 512, pieceBytesMax: 512 }
      const answer = await stage.inTime(disk.request(request), undefined)
      if (answer === undefined) return 'no answer'
      return answer.status === BlockStatus.OK ? 'served' : 'request fails'
    },
  },
  chainRow(6, 'a buffer whose end wraps 2^64', ['ERR_CHAIN_ADDRESS'], (parts) =>
    withData(parts, { address: 2n ** 64n - 256n }),
  ),
  chainRow(7, 'a buffer that ends one byte behind the memory', ['ERR_CHAIN_ADDRESS'], (parts) => {
    const { memory } = parts
    return withData(parts, { address: memory.guestAddressOf(memory.sizeBytes - DATA_BYTES + 1) })
  }),
  chainRow(7, 'a buffer that begins in a hole', ['ERR_CHAIN_ADDRESS'], (parts) =>
    withData(parts, { address: parts.memory.guestAddressOf(parts.memory.sizeBytes) + 65536n }),
  ),
  {
    row: 8,
    title: 'row 8: an empty buffer at an address that does not exist',
    expectation: 'served',
    play: (stage) =>
      playChain(stage, (parts) => {
        const [header, data, status] = parts.chain()
        const empty = { address: 0xdead_0000_0000n, lengthBytes: 0, flags: WRITE | NEXT, next: HEAD + 3 }
        return [header, data, empty, status]
      }),
  },
  chainRow(9, 'a buffer of 2^32 - 1 bytes', ['ERR_CHAIN_ADDRESS', 'ERR_CHAIN_TOO_LONG'], (parts) =>
    withData(parts, { lengthBytes: 0xffff_ffff }),
  ),
  ...([0, 24] as const).map((lengthBytes) =>
    chainRow(10, `an indirect table of ${lengthBytes} bytes`, ['ERR_CHAIN_INDIRECT'], (parts) => [
      { address: parts.table(parts.chain()), lengthBytes, flags: INDIRECT, next: 0 },
    ]),
  ),
  chainRow(11, 'an indirect descriptor in an indirect table', ['ERR_CHAIN_INDIRECT'], (parts) => {
    const inner = parts.table(parts.chain())
    const nested = { address: inner, lengthBytes: 3 * DESCRIPTOR_BYTES, flags: INDIRECT, next: 0 }
    return [{ address: parts.table([nested]), lengthBytes: DESCRIPTOR_BYTES, flags: INDIRECT, next: 0 }]
  }),
  chainRow(12, 'an indirect descriptor with a next one', ['ERR_CHAIN_INDIRECT'], (parts) => {
    const status: Descriptor = parts.chain()[2]
    return [{ ...indirectRequest(parts), flags: INDIRECT | NEXT, next: HEAD + 1 }, status]
  }),
  chainRow(
    13,
    'an indirect descriptor that was not negotiated',
    ['ERR_CHAIN_INDIRECT'],
    (parts) => [indirectRequest(parts)],
    ~RingFeature.INDIRECT_DESC,
  ),
  chainRow(14, 'a readable buffer behind a writable one', ['ERR_CHAIN_ORDER'], (parts) => {
    const [header, data, status] = parts.chain()
    return [{ ...data, next: HEAD + 1 }, { ...header, next: HEAD + 2 }, status]
  }),
  breakingRow(15, 'an available index that jumps ahead by 40,000', ['ERR_RING_AVAIL_INDEX'], ({ driver }) => {
    driver.storeAvailableIndex(driver.availableIndex + 40_000)
    driver.kick()
  }),
  breakingRow(16, 'an available index that goes back by 1', ['ERR_RING_AVAIL_INDEX'], ({ driver }) => {
    driver.storeAvailableIndex(driver.availableIndex - 1)
    driver.kick()
  }),
  {
    row: 17,
    title: 'row 17: a head that is made available twice',
    expectation: 'request fails',
    async play(stage) {
      const guest = await stage.guest()
      const { driver, disk } = guest
      const attack = (): void => {
        for (const [index, descriptor] of new Parts(guest.memory).chain().entries()) {
          driver.writeDescriptor(HEAD + index, descriptor)
        }
        offer(driver, [HEAD, HEAD])
      }
      return stage.onQueue(guest, attack, async () => {
        await disk.flush()
        await answeredLength(driver)
        return lengthsOf(driver, HEAD).length === 1 ? 'request fails' : 'served'
      })
    },
  },
  {
    row: 18,
    title: 'row 18: descriptors that change while they are read',
    expectation: 'served',
    play: playFlips,
  },
  {
    row: 20,
    title: 'row 20: events and flags that are anything and change all the time',
    expectation: 'served',
    play: playScribbles,
  },
  chainRow(28, 'a header that is too short', ['ERR_CHAIN_FRAMING'], (parts) => {
    const [header, , status] = parts.chain()
    return [{ ...header, lengthBytes: 8 }, status]
  }),
  chainRow(28, 'a header and nothing else', ['ERR_CHAIN_FRAMING'], (parts) => [
    { ...parts.chain()[0], flags: 0 },
  ]),
  chainRow(28, 'a status and nothing else', ['ERR_CHAIN_FRAMING'], (parts) => [parts.chain()[2]]),
  chainRow(29, 'a status in a readable buffer', ['ERR_CHAIN_FRAMING'], (parts) => {
    const [header, data, status] = parts.chain()
    return [header, { ...data, flags: NEXT }, { ...status, flags: 0 }]
  }),
]

function withData(parts: Parts, change: Partial<Descriptor>): Descriptor[] {
  const [header, data, status] = parts.chain()
  return [header, { ...data, ...change }, status]
}

function indirectRequest(parts: Parts): Descriptor {
  const descriptors = parts.chain().map((descriptor, index) => ({ ...descriptor, next: index + 1 }))
  return {
    address: parts.table(descriptors),
    lengthBytes: DESCRIPTOR_BYTES * descriptors.length,
    flags: INDIRECT,
    next: 0,
  }
}

/** Rounds of row 18. Each offers a chain and changes its descriptors for about a millisecond without a pause. */
const FLIP_ROUND_COUNT = 100
const FLIPS_A_ROUND = 2_000

async function playFlips(stage: Stage): Promise<HostileOutcome> {
  const guest = await stage.guest()
  const { driver, memory, frontEnd } = guest
  const parts = new Parts(memory)
  const good = parts.chain()
  const bad: readonly Partial<Descriptor>[] = [
    { address: 2n ** 64n - 8n },
    { address: 0n },
    { lengthBytes: 0xffff_ffff },
    { next: 0xffff },
    { next: HEAD, flags: NEXT },
    { flags: INDIRECT | NEXT | WRITE },
  ]
  for (let round = 0; round < FLIP_ROUND_COUNT; round++) {
    offer(driver, [HEAD])
    for (let flip = 0; flip < FLIPS_A_ROUND; flip++) {
      const index = Math.floor(stage.random() * good.length)
      const change = flip % 2 === 0 ? {} : bad[Math.floor(stage.random() * bad.length)]
      driver.writeDescriptor(HEAD + index, { ...good[index]!, ...change })
    }
    await turn()
  }
  const revived = frontEnd.stopQueue(0).then(() => stage.startAnew(frontEnd, memory))
  return stage.inTime(
    revived.then(() => 'served' as const),
    'no answer',
  )
}

async function playScribbles(stage: Stage): Promise<HostileOutcome> {
  const guest = await stage.guest()
  const { driver, memory, disk } = guest
  const { available, used } = driver.addresses
  const [availableAt, usedAt] = [available, used].map((address) => Number(address - memory.userAddress))
  const words = [
    availableAt!, // avail.flags
    availableAt! + 4 + 2 * driver.size, // used_event
    usedAt!, // used.flags
    usedAt! + 4 + 8 * driver.size, // avail_event
  ]
  for (let round = 0; round < 50; round++) {
    const answer = disk.flush()
    let answered = false
    void answer.then(() => {
      answered = true
    })
    const deadline = performance.now() + stage.limitMs
    while (!answered) {
      if (performance.now() > deadline) return 'no answer'
      for (const at of words) memory.bytes.writeUInt16LE(Math.floor(stage.random() * 65536), at)
      driver.kick()
      await turn()
      // The driver asked for nonsense, and so has to look by itself.
      driver.collect()
    }
  }
  return 'served'
}
