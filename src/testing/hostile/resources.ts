import { execFileSync } from 'node:child_process'
import { constants, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import type { ErrorCode } from '../../errors.ts'
import { native } from '../../native.ts'
import { encodeMessage, FrontEndRequest, HeaderFlag } from '../../transport/vhost-user/messages.ts'
import { encodeU64, encodeVringFd, encodeVringState } from '../../transport/vhost-user/payloads.ts'
import { BlockRequestType } from '../block-driver.ts'
import { socketPair } from '../socket-pair.ts'
import type { HostileRow } from './row.ts'
import type { Stage } from './stage.ts'

/** Things that are no eventfd. Each is opened here and closed by whoever asked. */
const OTHER_FILES: Readonly<Record<string, () => number>> = {
  'a folder': () => openSync('/', 'r'),
  'a device that is always readable': () => openSync('/dev/zero', 'r+'),
  'a pipe': openPipe,
  'a socket whose other end is closed': () => {
    const [one, other] = socketPair()
    native.closeFd(other)
    return one
  },
}

function openPipe(): number {
  const folder = mkdtempSync(join(tmpdir(), 'hushring-testing-'))
  try {
    const path = join(folder, 'pipe')
    execFileSync('mkfifo', [path])
    return openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const eventfdRows: readonly HostileRow[] = (
  ['SET_VRING_KICK', 'SET_VRING_CALL', 'SET_VRING_ERR'] as const
).flatMap((name) => [
  fdRow(name, 'a file', (stage) => stage.memory({ sizeBytes: 4096 }).fd),
  ...Object.entries(OTHER_FILES).map(([what, open]) =>
    fdRow(name, what, (stage) => {
      const fd = open()
      stage.atEnd(() => native.closeFd(fd))
      return fd
    }),
  ),
])

function fdRow(
  name: 'SET_VRING_KICK' | 'SET_VRING_CALL' | 'SET_VRING_ERR',
  what: string,
  open: (stage: Stage) => number,
): HostileRow {
  return {
    row: 47,
    title: `row 47: ${name} with ${what}`,
    expectation: 'protocol error',
    codes: ['ERR_VHOST_FD'],
    async play(stage) {
      const { frontEnd } = await stage.guest()
      frontEnd.send(name, encodeVringFd({ index: 0, attached: true }), [open(stage)])
      return stage.afterMessage(frontEnd)
    },
  }
}

/** A memory file that is made shorter while the device uses it. */
function shrinkRow(what: string, leftBytes: number, codes: readonly ErrorCode[]): HostileRow {
  return {
    row: 39,
    title: `row 39: ${what}`,
    expectation: 'queue broken',
    codes,
    async play(stage) {
      const guest = await stage.guest()
      const { driver, disk, memory, frontEnd } = guest
      await disk.flush()
      const attack = (): void => {
        ftruncateSync(memory.fd, leftBytes)
        void disk.request({ type: BlockRequestType.IN, writableBytes: 65536 })
        driver.kick()
      }
      // The memory is gone for the other queue and for a new start, too: new memory has to come first.
      return stage.onQueue(guest, attack, undefined, async () => {
        const fresh = stage.memory({ guestAddress: 1n << 40n, userAddress: 1n << 40n })
        for (const index of guest.drivers.keys()) await frontEnd.stopQueue(index)
        await frontEnd.setMemory(fresh)
        await stage.startAnew(frontEnd, fresh)
      })
    },
  }
}

const memoryRows: readonly HostileRow[] = [
  shrinkRow('memory that shrinks under a request', 4096, ['ERR_MEMORY_TRUNCATED']),
  // Where the ring was, zeros are read: that may look like an index that went back.
  shrinkRow('memory that shrinks under a ring', 0, ['ERR_MEMORY_TRUNCATED', 'ERR_RING_AVAIL_INDEX']),
  {
    row: 40,
    title: 'row 40: memory that is removed while requests write into it',
    expectation: 'served',
    async play(stage) {
      const { frontEnd, driver, memory } = await stage.guest()
      const other = stage.memory({ guestAddress: 1n << 40n, userAddress: 1n << 40n, sizeBytes: 65536 })
      const header = memory.guestAddressOf(memory.allocate(16))
      const status = memory.guestAddressOf(memory.allocate(1))
      const read = (): Promise<number> =>
        driver.submit([
          { address: header, lengthBytes: 16, writable: false },
          { address: other.guestAddress, lengthBytes: 4096, writable: true },
          { address: status, lengthBytes: 1, writable: true },
        ])
      for (let round = 0; round < 50; round++) {
        await frontEnd.addMemory(other)
        const answers = [read(), read(), read(), read()]
        // No acknowledgement: the message overtakes some of the requests and not others.
        const removal = frontEnd.removeMemory(other)
        await Promise.all([...answers, removal])
      }
      return 'served'
    },
  },
]

const notificationRows: readonly HostileRow[] = [
  {
    row: 48,
    title: 'row 48: a call eventfd whose counter is full',
    expectation: 'served',
    async play(stage) {
      const { frontEnd, driver, disk } = await stage.guest()
      const full = stage.eventfd()
      writeSync(full, encodeU64(0xffff_ffff_ffff_fffen))
      await frontEnd.command('SET_VRING_CALL', encodeVringFd({ index: 0, attached: true }), [full])
      const before = driver.loadUsedIndex()
      const answer = disk.flush()
      while (driver.loadUsedIndex() === before) await turn()
      // Nobody can signal any more, so the driver looks by itself.
      driver.collect()
      await answer
      return (await frontEnd.isAnswered()) ? 'served' : 'protocol error'
    },
  },
  {
    row: 49,
    title: 'row 49: a queue that is kicked all the time beside one that works',
    expectation: 'served',
    async play(stage) {
      const { drivers, disk } = await stage.guest()
      let running = true
      const storm = (async () => {
        for (; running; await turn()) drivers[1]!.kick()
      })()
      try {
        for (let count = 0; count < 200; count++) await disk.flush()
      } finally {
        running = false
        await storm
      }
      return 'served'
    },
  },
]

/** Connections of row 51. */
const RECONNECT_COUNT = 1000

const disconnectRows: readonly HostileRow[] = [
  {
    row: 51,
    title: 'row 51: a thousand disconnects at random points',
    expectation: 'served',
    async play(stage) {
      for (let count = 0; count < RECONNECT_COUNT; count++) await disconnectSomewhere(stage)
      return 'served'
    },
  },
]

/** Goes a random way into a session, with requests in flight or not, and hangs up without a word. */
async function disconnectSomewhere(stage: Stage): Promise<void> {
  const depth = Math.floor(stage.random() * 6)
  if (depth < 2) {
    const frontEnd = stage.frontEnd()
    const message = encodeMessage(FrontEndRequest.SET_FEATURES, HeaderFlag.VERSION, encodeU64(0n))
    if (depth === 1) {
      frontEnd.sendBytes(message.subarray(0, 1 + Math.floor(stage.random() * (message.length - 1))))
    }
    return frontEnd.close()
  }
  const guest = await stage.guest({ started: depth > 2 })
  if (depth > 3) {
    for (let count = 0; count < 8; count++) void guest.disk.read(count * 512, 512)
    if (stage.random() < 0.5) await turn()
  }
  if (depth > 4) guest.frontEnd.send('GET_VRING_BASE', encodeVringState({ index: 0, num: 0 }))
  guest.close()
}

/** Rows about descriptors, memory files, notifications and disconnects. */
export const resourceRows: readonly HostileRow[] = [
  ...memoryRows,
  ...eventfdRows,
  ...notificationRows,
  ...disconnectRows,
]
