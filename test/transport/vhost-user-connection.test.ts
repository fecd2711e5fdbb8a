import { setImmediate as turn } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import type { HushringError } from '../../src/errors.ts'
import { native } from '../../src/native.ts'
import { socketPair } from '../../src/testing/socket-pair.ts'
import {
  type Message,
  MessageConnection,
  type MessageHandler,
} from '../../src/transport/vhost-user/connection.ts'
import {
  checkRequestHeader,
  encodeMessage,
  FD_COUNT_MAX,
  FrontEndRequest,
} from '../../src/transport/vhost-user/messages.ts'
import { encodeMemoryTable, encodeU64 } from '../../src/transport/vhost-user/payloads.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { until } from '../helpers/until.ts'

interface Received {
  readonly request: number
  readonly payload: string
  readonly fdCount: number
}

/** A connection being served, the other end of its socket, and what was received so far. */
interface Bench {
  readonly peerFd: number
  readonly connection: MessageConnection
  readonly received: Received[]
  readonly ended: Promise<HushringError | undefined>
}

function serve(t: ExecutionContext, handle: MessageHandler['handle'] = async () => {}): Bench {
  const [peerFd, fd] = socketPair()
  const connection = new MessageConnection(fd)
  const received: Received[] = []
  const ended = connection.serve({
    checkHeader: checkRequestHeader,
    handle(message) {
      const { request, payload, fds } = message
      received.push({ request, payload: payload.toString('hex'), fdCount: fds.count })
      return handle(message)
    },
  })
  t.teardown(() => connection.close())
  return { peerFd, connection, received, ended }
}

function send(fd: number, bytes: Uint8Array, fds: readonly number[] = []): void {
  if (native.unixSend(fd, bytes, fds) !== bytes.length) throw new Error('the socket is full')
}

/** Sends however much it is: a socket that is full of small pieces waits for its receiver. */
async function sendAll(fd: number, bytes: Uint8Array): Promise<void> {
  for (let at = 0; ; await turn()) {
    at += Math.max(0, native.unixSend(fd, bytes.subarray(at), []))
    if (at === bytes.length) return
  }
}

const getFeatures = encodeMessage(FrontEndRequest.GET_FEATURES, 1, Buffer.alloc(0))

const anyMessage = fc.oneof(
  fc.constant(getFeatures),
  fc.bigInt({ min: 0n, max: 1n << 60n }).map((value) => encodeMessage(2, 9, encodeU64(value))),
  fc.nat({ max: 8 }).map((count) => {
    const region = { guestAddress: 1n, sizeBytes: 2n, userAddress: 3n, mmapOffsetBytes: BigInt(count) }
    return encodeMessage(5, 1, encodeMemoryTable(new Array(count).fill(region)))
  }),
  fc.uint8Array({ maxLength: 4096 }).map((payload) => encodeMessage(1000, 1, payload)),
)

test.serial('row 43: any cut of a valid stream gives the same messages', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(anyMessage, { minLength: 1, maxLength: 8 }),
      fc.array(fc.record({ bytes: fc.integer({ min: 1, max: 3000 }), merged: fc.boolean() }), {
        minLength: 1,
      }),
      async (messages, cuts) => {
        const { peerFd, received, ended } = serve(t)
        const stream = Buffer.concat(messages)
        for (let at = 0, piece = 0; at < stream.length; piece++) {
          const { bytes, merged } = cuts[piece % cuts.length]!
          await sendAll(peerFd, stream.subarray(at, at + bytes))
          at += bytes
          if (!merged) await turn()
        }
        native.closeFd(peerFd)
        t.is(await ended, undefined)
        t.deepEqual(
          received,
          messages.map((message) => ({
            request: message.readUInt32LE(0),
            payload: message.toString('hex', 12),
            fdCount: 0,
          })),
        )
      },
    ),
    { numRuns: 100 },
  )
})

test.serial(
  'row 43: a message with a descriptor may be cut at every byte, and come one byte at a time',
  async (t) => {
    const region = { guestAddress: 1n, sizeBytes: 2n, userAddress: 3n, mmapOffsetBytes: 4n }
    const message = encodeMessage(FrontEndRequest.SET_MEM_TABLE, 1, encodeMemoryTable([region]))
    const eventfd = native.eventfdCreate()
    t.teardown(() => native.closeFd(eventfd))
    const { peerFd, received, ended } = serve(t)
    for (let cut = 1; cut < message.length; cut++) {
      send(peerFd, message.subarray(0, cut), [eventfd])
      await turn()
      send(peerFd, message.subarray(cut))
      await turn()
    }
    send(peerFd, message.subarray(0, 1), [eventfd])
    for (const byte of message.subarray(1)) {
      send(peerFd, Buffer.of(byte))
      await turn()
    }
    native.closeFd(peerFd)
    await ended
    t.is(received.length, message.length)
    t.true(received.every(({ fdCount, payload }) => fdCount === 1 && payload === message.toString('hex', 12)))
  },
)

test.serial('descriptors stay with the message they came with when messages are merged', async (t) => {
  const before = openFdCount()
  const eventfds = [native.eventfdCreate(), native.eventfdCreate(), native.eventfdCreate()]
  const { peerFd, received, ended } = serve(t)
  send(peerFd, encodeMessage(1000, 1, Buffer.alloc(3)), eventfds)
  send(peerFd, getFeatures)
  send(peerFd, encodeMessage(1000, 1, Buffer.alloc(5)), eventfds.slice(1))
  native.closeFd(peerFd)
  await ended
  t.deepEqual(
    received.map(({ fdCount }) => fdCount),
    [3, 0, 2],
  )
  for (const fd of eventfds) native.closeFd(fd)
  t.is(openFdCount(), before, 'what the handler did not take was closed')
})

test.serial(
  'descriptors are closed when the handler throws, and the error ends the connection',
  async (t) => {
    const before = openFdCount()
    const eventfd = native.eventfdCreate()
    const { peerFd, ended } = serve(t, async ({ fds }) => {
      fds.take(2)
    })
    send(peerFd, getFeatures, [eventfd])
    t.is((await ended)?.code, 'ERR_VHOST_FD')
    native.closeFd(peerFd)
    native.closeFd(eventfd)
    t.is(openFdCount(), before)
  },
)

test.serial('descriptors are closed when the message they came with never ends', async (t) => {
  const before = openFdCount()
  const eventfd = native.eventfdCreate()
  const { peerFd, received, ended } = serve(t)
  send(peerFd, getFeatures.subarray(0, 5), [eventfd])
  await turn()
  native.closeFd(peerFd)
  t.is(await ended, undefined, 'a front-end may go away at any byte')
  native.closeFd(eventfd)
  t.deepEqual(received, [])
  t.is(openFdCount(), before)
})

test.serial('more descriptors than any message has end the connection', async (t) => {
  const before = openFdCount()
  const eventfd = native.eventfdCreate()
  const { peerFd, ended } = serve(t)
  // One byte at a time, so that no single packet is suspicious.
  for (let count = 0; count < 5; count++)
    send(peerFd, Buffer.of(1), new Array(FD_COUNT_MAX / 4).fill(eventfd))
  t.is((await ended)?.code, 'ERR_VHOST_FD')
  native.closeFd(peerFd)
  native.closeFd(eventfd)
  t.is(openFdCount(), before)
})

test.serial('a bad header ends the connection without waiting for its payload', async (t) => {
  const { peerFd, ended } = serve(t)
  const header = Buffer.from(encodeMessage(2, 1, Buffer.alloc(8)).subarray(0, 12))
  header.writeUInt32LE(0xffff_ffff, 8)
  send(peerFd, header)
  t.is((await ended)?.code, 'ERR_VHOST_SIZE')
  native.closeFd(peerFd)
})

test.serial('messages are handled one after the other, and a flood waits in the socket', async (t) => {
  const release: (() => void)[] = []
  const { peerFd, received, ended } = serve(t, () => new Promise((resolve) => release.push(resolve)))
  let sentCount = 0
  while (native.unixSend(peerFd, getFeatures, []) === getFeatures.length) {
    // The socket takes only so many while the first message is being handled: nothing is read ahead.
    if (++sentCount % 16 === 0) await turn()
    if (sentCount > 100_000) break
  }
  t.true(sentCount < 100_000, 'the flood came to a stand')
  t.is(received.length, 1)
  for (let handled = 0; handled < sentCount; handled++) {
    await until(() => release.length > handled)
    t.is(received.length, handled + 1)
    release[handled]!()
  }
  native.closeFd(peerFd)
  t.is(await ended, undefined)
})

test.serial('a hang-up is noticed while a message is handled, although bytes are left to read', async (t) => {
  const { peerFd, received, ended } = serve(t, () => new Promise<void>(() => {}))
  send(peerFd, getFeatures)
  send(peerFd, getFeatures)
  await until(() => received.length === 1)
  await turn()
  native.closeFd(peerFd)
  t.is(await ended, undefined)
  t.is(received.length, 1)
})

test.serial('a flood leaves the event loop its turns', async (t) => {
  let turns = 0
  let running = true
  const turnOfMessage: number[] = []
  const { peerFd, ended } = serve(t, async () => {
    turnOfMessage.push(turns)
  })
  for (let count = 0; count < 100; count++) send(peerFd, getFeatures)
  native.closeFd(peerFd)
  const counting = (async () => {
    for (; running; turns++) await turn()
  })()
  await ended
  running = false
  await counting
  t.is(turnOfMessage.length, 100)
  const perTurn = new Map<number, number>()
  for (const index of turnOfMessage) perTurn.set(index, (perTurn.get(index) ?? 0) + 1)
  t.true(Math.max(...perTurn.values()) <= 16)
})

test.serial('a peer that never reads its answers is given up when the socket is full', async (t) => {
  let connection: MessageConnection | undefined
  const answer = async (): Promise<void> => connection!.send(Buffer.alloc(4096))
  const bench = serve(t, answer)
  connection = bench.connection
  for (let count = 0; count < 200; count++) send(bench.peerFd, getFeatures)
  t.is((await bench.ended)?.code, 'ERR_VHOST_STALLED')
  native.closeFd(bench.peerFd)
})

test.serial('a peer that hangs up with answers unread is gone, not wrong', async (t) => {
  const [peerFd, fd] = socketPair()
  const connection = new MessageConnection(fd)
  connection.send(getFeatures)
  native.closeFd(peerFd)
  const handle = async (_: Message): Promise<void> => {}
  t.is(await connection.serve({ checkHeader: checkRequestHeader, handle }), undefined)
  t.notThrows(() => connection.send(getFeatures), 'sending to a closed connection does nothing')
})

test.serial('a closed connection ends its service, also from inside a handler', async (t) => {
  const before = openFdCount()
  const idle = serve(t)
  await turn()
  idle.connection.close()
  idle.connection.close()
  t.is(await idle.ended, undefined)
  const busy: Bench = serve(t, async () => busy.connection.close())
  send(busy.peerFd, getFeatures)
  t.is(await busy.ended, undefined)
  native.closeFd(idle.peerFd)
  native.closeFd(busy.peerFd)
  t.is(openFdCount(), before)
})
