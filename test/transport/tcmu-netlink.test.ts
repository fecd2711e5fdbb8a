import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import fc from 'fast-check'
import { HushringError } from '../../src/errors.ts'
import { native } from '../../src/native.ts'
import {
  type Attributes,
  decodeDatagram,
  encodeRequest,
  type NetlinkSocket,
  numberOf,
  openNetlinkSocket,
  resolveFamily,
  textOf,
} from '../../src/transport/tcmu/generic-netlink.ts'
import { KERNEL_PATHS } from '../../src/transport/tcmu/kernel-files.ts'
import { type DeviceEvent, listenNetlink, type NetlinkEvent } from '../../src/transport/tcmu/netlink.ts'
import { until } from '../helpers/until.ts'

/** Bytes as they are written in a dump: pairs of hexadecimal digits; white space and what follows a # do not count. */
function bytes(dump: string): Buffer {
  return Buffer.from(dump.replace(/#.*$/gm, '').replace(/\s/g, ''), 'hex')
}

// ---- Datagrams byte by byte --------------------------------------------------------------------------------------

const RECONFIG = bytes(`
  60 00 00 00  1d 00  00 00  00 00 00 00  00 00 00 00   # 96 bytes, family 29, a multicast of the kernel
  03  02  00 00                                         # RECONFIG_DEVICE, version 2
  1c 00 01 00  74 63 6d 2d 75 73 65 72 2f 30 2f 64 30 2f 68 75 73 68 72 69 6e 67 2f 00  # DEVICE
  08 00 02 00  03 00 00 00                              # MINOR 3
  08 00 08 00  2a 00 00 00                              # DEVICE_ID 42
  0c 00 05 00  00 00 00 00  01 00 00 00                 # DEV_SIZE 4 GiB
  05 00 06 00  01 00 00 00                              # WRITECACHE 1
  0c 00 04 00  61 2f 62 0a  00 00 00 00                 # DEV_CFG "a/b\\n", with two NULs: spoiled below where it matters
`)

/** Attributes of the only message of a datagram. */
function attributesOf(datagram: Buffer): Attributes {
  const [message] = decodeDatagram(datagram)
  if (message?.kind !== 'family') throw new Error('no message of a family')
  return message.attributes
}

test('an event is decoded byte by byte', (t) => {
  const datagram = Buffer.from(RECONFIG)
  t.is(datagram.length, 0x60)
  const [message, ...more] = decodeDatagram(datagram)
  t.deepEqual(more, [])
  t.like(message, { kind: 'family', family: 29, command: 3, version: 2, sequence: 0 })
  const attributes = attributesOf(datagram)
  t.is(textOf(attributes, 1), 'tcm-user/0/d0/hushring/')
  t.is(numberOf(attributes, 2, 4), 3)
  t.is(numberOf(attributes, 8, 4), 42)
  t.is(numberOf(attributes, 5, 8), 4 * 1024 ** 3)
  t.is(numberOf(attributes, 6, 1), 1)
  t.throws(() => textOf(attributes, 4), { code: 'ERR_TCMU_SYSTEM', message: /text of attribute 4/ })
  t.is(textOf(attributes, 7), undefined)
  t.is(numberOf(attributes, 7, 4), undefined)
})

test('a request is encoded byte by byte', (t) => {
  const request = {
    family: 29,
    command: 4,
    version: 2,
    sequence: 0x01020304,
    attributes: [
      [7, bytes('fe ff ff ff')],
      [9, bytes('01')],
    ],
  } as const
  const expected = `
    24 00 00 00  1d 00  05 00  04 03 02 01  00 00 00 00  # REQUEST | ACK
    04  02  00 00
    08 00 07 00  fe ff ff ff
    05 00 09 00  01 00 00 00
  `
  t.deepEqual(encodeRequest({ ...request, acknowledge: true }), bytes(expected))
  t.deepEqual(
    encodeRequest({ ...request, acknowledge: false }),
    bytes(expected.replace('05 00  04', '01 00  04')),
  )
})

test('an acknowledgement tells success, or the error as a positive number', (t) => {
  const acknowledgement = (error: string): Buffer =>
    bytes(
      `24 00 00 00  02 00 00 00  07 00 00 00  00 00 00 00  ${error}  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00`,
    )
  t.deepEqual(
    [...decodeDatagram(acknowledgement('00 00 00 00'))],
    [{ kind: 'acknowledgement', sequence: 7, errno: 0 }],
  )
  t.deepEqual(
    [...decodeDatagram(acknowledgement('fe ff ff ff'))],
    [{ kind: 'acknowledgement', sequence: 7, errno: 2 }],
  )
})

test('several messages in a datagram are decoded one by one, and control messages are left out', (t) => {
  const done = bytes('14 00 00 00  03 00 02 00  01 00 00 00  00 00 00 00  00 00 00 00')
  const messages = [...decodeDatagram(Buffer.concat([RECONFIG, done, RECONFIG]))]
  t.deepEqual(
    messages.map(({ kind }) => kind),
    ['family', 'family'],
  )
})

const isMalformed = test.macro({
  exec(t, dump: string, message: RegExp) {
    t.throws(() => [...decodeDatagram(bytes(dump))], { code: 'ERR_TCMU_SYSTEM', message })
  },
  title: (title = '') => `a datagram is malformed: ${title}`,
})
const HEADER = '1d 00 00 00  00 00 00 00  00 00 00 00'
test('shorter than a header', isMalformed, '10 00 00', /a message/)
test('a length shorter than a header', isMalformed, `0f 00 00 00 ${HEADER}`, /a message/)
test('a length of 0, which would never end', isMalformed, `00 00 00 00 ${HEADER}`, /a message/)
test(
  'a length that is longer than the datagram',
  isMalformed,
  `15 00 00 00 ${HEADER} 03 02 00 00`,
  /a message/,
)
test('a length near 2^32', isMalformed, `ff ff ff ff ${HEADER}`, /a message/)
test('a family without a command', isMalformed, `12 00 00 00 ${HEADER} 03 02`, /a message of a family/)
test(
  'an acknowledgement without a number',
  isMalformed,
  '12 00 00 00  02 00 00 00  00 00 00 00  00 00 00 00  00 00',
  /an acknowledgement/,
)
test(
  'an attribute shorter than its header',
  isMalformed,
  `18 00 00 00 ${HEADER} 03 02 00 00 03 00 01 00`,
  /an attribute/,
)
test('an attribute of length 0', isMalformed, `18 00 00 00 ${HEADER} 03 02 00 00 00 00 01 00`, /an attribute/)
test(
  'an attribute that is longer than its message',
  isMalformed,
  `1c 00 00 00 ${HEADER} 03 02 00 00 09 00 01 00 00 00 00 00  00 00 00 00`,
  /an attribute/,
)
test(
  'an attribute of which a part is there',
  isMalformed,
  `16 00 00 00 ${HEADER} 03 02 00 00 04 00`,
  /an attribute/,
)

test('a number of another length, or above 2^53, is malformed', (t) => {
  const attributes = new Map([
    [1, bytes('01 00 00')],
    [2, bytes('00 00 00 00 00 00 20 00')],
    [3, bytes('ff ff ff ff ff ff 1f 00')],
    [4, bytes('')],
  ])
  t.throws(() => numberOf(attributes, 1, 4), { code: 'ERR_TCMU_SYSTEM' })
  t.throws(() => numberOf(attributes, 2, 8), { code: 'ERR_TCMU_SYSTEM' })
  t.is(numberOf(attributes, 3, 8), Number.MAX_SAFE_INTEGER)
  t.throws(() => numberOf(attributes, 4, 1), { code: 'ERR_TCMU_SYSTEM' })
  t.throws(() => textOf(attributes, 4), { code: 'ERR_TCMU_SYSTEM' })
})

test('random bytes are decoded or refused, and nothing is read outside of them', (t) => {
  const seed = Date.now() >>> 0
  t.log(`seed ${seed}`)
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat({ max: RECONFIG.length - 1 }), (noise, offset) => {
      const spoiled = Buffer.from(RECONFIG)
      spoiled.set(noise.subarray(0, spoiled.length - offset), offset)
      for (const datagram of [Buffer.from(noise), spoiled]) {
        try {
          for (const message of decodeDatagram(datagram)) {
            if (message.kind !== 'family') continue
            for (const value of message.attributes.values()) {
              t.true(value.byteOffset + value.length <= datagram.byteOffset + datagram.length)
            }
          }
        } catch (error) {
          t.true(error instanceof HushringError)
        }
      }
    }),
    { seed, numRuns: 2000 },
  )
})

// ---- The listener ------------------------------------------------------------------------------------------------

const FAMILY = 29
const Command = { added: 1, removed: 2, reconfig: 3 } as const

const text = (value: string): Buffer => Buffer.from(`${value}\0`)
function number(value: number, lengthBytes: number): Buffer {
  const value64 = Buffer.alloc(8)
  value64.writeBigUInt64LE(BigInt(value))
  return value64.subarray(0, lengthBytes)
}

interface EventFacts {
  readonly command?: keyof typeof Command
  readonly device?: string
  readonly deviceId?: number
  readonly family?: number
  readonly more?: readonly (readonly [number, Buffer])[]
}

/** A datagram of the kernel. */
function eventBytes({
  command = 'added',
  device = 'tcm-user/0/d0/hushring/a',
  deviceId = 1,
  family = FAMILY,
  more = [],
}: EventFacts = {}): Buffer {
  const attributes = [[1, text(device)], [2, number(3, 4)], [8, number(deviceId, 4)], ...more] as const
  return encodeRequest({
    family,
    command: Command[command],
    version: 2,
    sequence: 0,
    acknowledge: false,
    attributes,
  })
}

/** What the kernel answers to a question about the family, with nested groups. */
function familyBytes(groupName = 'config'): Buffer {
  const nested = (entries: readonly (readonly [number, Buffer])[]): Buffer =>
    encodeRequest({
      family: 0,
      command: 0,
      version: 0,
      sequence: 0,
      acknowledge: false,
      attributes: entries,
    }).subarray(20)
  const group = nested([
    [1, text(groupName)],
    [2, number(77, 4)],
  ])
  return encodeRequest({
    family: 0x10,
    command: 1,
    version: 2,
    sequence: 1,
    acknowledge: false,
    attributes: [
      [2, text('TCM-USER')],
      [1, number(FAMILY, 2)],
      // NLA_F_NESTED, and an index as type.
      [7 | 0x8000, nested([[1 | 0x8000, group]])],
    ],
  })
}

const refusal = (sequence: number, errno: number): Buffer => {
  const message = bytes('14 00 00 00  02 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00')
  message.writeUInt32LE(sequence, 8)
  message.writeInt32LE(-errno, 16)
  return message
}

/** A socket with a script in the place of the kernel. */
class FakeSocket implements NetlinkSocket {
  /** Everything in order: `join 77`, `features 1`, `done added 1 0` … */
  readonly calls: string[] = []
  lostCount = 0
  /** What is refused, by call. */
  readonly refusals = new Map<string, number>()
  readonly waiting: Buffer[] = []
  readonly #familyAnswer: Buffer
  #onReadable: ((error: number) => void) | undefined

  constructor(familyAnswer = familyBytes()) {
    this.#familyAnswer = familyAnswer
  }

  join(group: number): void {
    this.calls.push(`join ${group}`)
  }

  send(message: Uint8Array): void {
    const [request] = decodeDatagram(Buffer.from(message))
    if (request?.kind !== 'family') throw new Error('no request')
    if (request.family === 0x10) {
      this.waiting.push(this.#familyAnswer)
      return
    }
    const call = this.#callOf(request.command, request.attributes)
    this.calls.push(call)
    const errno = this.refusals.get(call)
    this.waiting.push(refusal(request.sequence, errno ?? 0))
  }

  receive(): Buffer | undefined {
    if (this.calls.includes('close')) throw new Error('the socket is closed')
    return this.waiting.shift()
  }

  watch(onReadable: (error: number) => void): { close(): void } {
    this.#onReadable = onReadable
    this.calls.push('watch')
    return {
      close: () => {
        this.#onReadable = undefined
        this.calls.push('unwatch')
      },
    }
  }

  close(): void {
    this.calls.push('close')
  }

  /** Events of the kernel arrive. */
  deliver(...datagrams: readonly Buffer[]): void {
    this.waiting.push(...datagrams)
    while (this.waiting.length > 0 && this.#onReadable !== undefined) this.#onReadable(0)
  }

  fail(error: number): void {
    this.#onReadable?.(error)
  }

  #callOf(command: number, attributes: Attributes): string {
    if (command === 7) return `features ${numberOf(attributes, 9, 1)}`
    const [name] = Object.entries(Command).find(([, event]) => event + 3 === command)!
    return `done ${name} ${numberOf(attributes, 8, 4)} ${attributes.get(7)!.readInt32LE(0)}`
  }
}

/** A listener on a fake socket. */
function listen(
  options: { replies?: boolean; subtype?: string } = {},
  socket = new FakeSocket(),
): { socket: FakeSocket; events: NetlinkEvent[]; errors: unknown[]; warnings: string[]; stop: () => void } {
  const events: NetlinkEvent[] = []
  const errors: unknown[] = []
  const warnings: string[] = []
  const warn = (message: string): void => void warnings.push(message)
  const logger = { error: warn, warn, info: warn, debug: warn }
  const subscription = listenNetlink(KERNEL_PATHS, {
    ...options,
    logger,
    openSocket: () => socket,
  }).subscribe({
    next: (event) => void events.push(event),
    error: (error: unknown) => void errors.push(error),
  })
  return { socket, events, errors, warnings, stop: () => subscription.unsubscribe() }
}

/** The latest event, which must be about a device. */
function latest(events: readonly NetlinkEvent[]): DeviceEvent {
  const event = events.at(-1)
  if (event === undefined || event.command === 'overrun') throw new Error('no event about a device')
  return event
}

test('events of our subtype are told with all that the kernel says', (t) => {
  const { socket, events, stop } = listen()
  socket.deliver(
    eventBytes(),
    eventBytes({
      command: 'reconfig',
      more: [
        [5, number(4096, 8)],
        [6, number(0, 1)],
        [4, text('hushring/b\n')],
      ],
    }),
    eventBytes({ command: 'removed', device: 'tcm-user/0/d0/hushring//srv/b' }),
  )
  const facts = { hba: 0, name: 'd0', subtype: 'hushring', minor: 3, uioPath: '/dev/uio3', deviceId: 1 }
  t.deepEqual(
    events.map(({ reply, ...event }: NetlinkEvent & { reply?: unknown }) => event as object),
    [
      { ...facts, command: 'added', config: 'a' },
      {
        ...facts,
        command: 'reconfig',
        config: 'a',
        sizeBytes: 4096,
        writeCache: false,
        newConfig: 'hushring/b',
      },
      { ...facts, command: 'removed', config: '/srv/b' },
    ],
  )
  stop()
  t.deepEqual(socket.calls, ['join 77', 'watch', 'unwatch', 'close'])
})

test('each event is answered with its own command, once', (t) => {
  const { socket, events, stop } = listen({ replies: true })
  for (const [command, status] of [
    ['added', 0],
    ['reconfig', -22],
    ['removed', 0],
  ] as const) {
    socket.deliver(eventBytes({ command, deviceId: 42 }))
    t.true(latest(events).reply(status))
    t.false(latest(events).reply(0))
  }
  stop()
  t.deepEqual(socket.calls, [
    'join 77',
    'watch',
    'features 1',
    'done added 42 0',
    'done reconfig 42 -22',
    'done removed 42 0',
    'unwatch',
    'features 0',
    'close',
  ])
})

const refusesMalformed = test.macro({
  exec(t, _title: string, more: readonly (readonly [number, Buffer])[]) {
    // Whoever writes the attribute waits for the answer, and cannot be interrupted.
    const { socket, events, errors, warnings, stop } = listen({ replies: true })
    socket.deliver(eventBytes({ command: 'reconfig', deviceId: 42, more }))
    t.deepEqual(events, [])
    t.is(warnings.length, 1)
    t.is(socket.calls.at(-1), 'done reconfig 42 -22')
    // A foreign one is not ours to refuse.
    const callCount = socket.calls.length
    socket.deliver(eventBytes({ command: 'reconfig', device: 'tcm-user/0/d1/qcow/b', deviceId: 43, more }))
    t.is(socket.calls.length, callCount)
    // And the next one is told as ever.
    socket.deliver(eventBytes({ command: 'reconfig', deviceId: 42, more: [[5, number(4096, 8)]] }))
    t.is(latest(events).sizeBytes, 4096)
    t.true(latest(events).reply(0))
    stop()
    t.deepEqual(errors, [])
  },
  title: (_, title) => `an event with ${title} is refused, because the kernel waits for an answer`,
})
test(refusesMalformed, 'a capacity above 2^53', [[5, bytes('00 f0 ff ff ff ff ff ff')]])
test(refusesMalformed, 'a capacity of 4 bytes', [[5, number(4096, 4)]])
test(refusesMalformed, 'a write cache of 4 bytes', [[6, number(1, 4)]])
test(refusesMalformed, 'a text that does not end', [[4, Buffer.from('hushring/b')]])

test('a listener that only listens answers nothing that is malformed either', (t) => {
  const { socket, warnings, stop } = listen()
  socket.deliver(eventBytes({ command: 'reconfig', more: [[5, number(4096, 4)]] }))
  t.is(warnings.length, 1)
  stop()
  t.deepEqual(socket.calls, ['join 77', 'watch', 'unwatch', 'close'])
})

test('a socket that cannot be watched leaves the kernel as it was: it waits for nobody', (t) => {
  const socket = new FakeSocket()
  socket.watch = () => {
    throw Object.assign(new Error('EPERM'), { code: 'EPERM' })
  }
  const { errors } = listen({ replies: true }, socket)
  t.is(errors.length, 1)
  t.is(socket.calls.at(-1), 'close')
  const features = socket.calls.filter((call) => call.startsWith('features'))
  t.true(features.length === 0 || features.at(-1) === 'features 0', features.join())
})

test('one answer that cannot be sent keeps neither the others from the kernel nor the end of the waiting', (t) => {
  const { socket, warnings, stop } = listen({ replies: true })
  socket.deliver(eventBytes({ deviceId: 1 }), eventBytes({ deviceId: 2 }), eventBytes({ deviceId: 3 }))
  const send = socket.send.bind(socket)
  socket.send = (message) => {
    send(message)
    if (socket.calls.at(-1) === 'done added 1 -125') throw new Error('ENOBUFS')
  }
  stop()
  t.deepEqual(socket.calls.slice(3), [
    'unwatch',
    'done added 1 -125',
    'done added 2 -125',
    'done added 3 -125',
    'features 0',
    'close',
  ])
  t.is(warnings.length, 1)
})

test('a kernel that refuses to tell of its families is not taken for one without TCMU', (t) => {
  const { errors } = listen({}, new FakeSocket(refusal(1, 13)))
  t.like(errors[0], { code: 'ERR_TCMU_SYSTEM' })
})

test('foreign subtypes are neither told nor answered', (t) => {
  const { socket, events, stop } = listen({ replies: true })
  const before = socket.calls.length
  for (const device of [
    'tcm-user/0/d0/qcow/a',
    'tcm-user/0/d0/hushring2/a',
    'tcm-user/0/d0/hush/a',
    'tcm-user/0/d0',
    'uio_pci_generic',
  ]) {
    socket.deliver(eventBytes({ device }))
  }
  // Another family on the same socket, and a command that we do not know.
  const unknown = eventBytes()
  unknown.writeUInt8(9, 16)
  socket.deliver(eventBytes({ family: FAMILY + 1 }), unknown)
  stop()
  t.deepEqual(events, [])
  t.deepEqual(socket.calls.slice(before), ['unwatch', 'features 0', 'close'])
})

test('a listener that does not answer sends nothing at all', (t) => {
  const { socket, events, stop } = listen()
  socket.deliver(eventBytes())
  t.false(latest(events).reply(0))
  stop()
  t.deepEqual(socket.calls, ['join 77', 'watch', 'unwatch', 'close'])
})

test('a late answer to an earlier event of a device is not sent for the answer to a later one', (t) => {
  const { socket, events, stop } = listen({ replies: true })
  socket.deliver(eventBytes({ command: 'added' }), eventBytes({ command: 'reconfig' }))
  const [added, reconfig] = events as readonly DeviceEvent[]
  t.false(added!.reply(0))
  t.true(reconfig!.reply(0))
  t.deepEqual(
    socket.calls.filter((call) => call.startsWith('done')),
    ['done reconfig 1 0'],
  )
  stop()
})

test('what is not answered is refused at the end', (t) => {
  const { socket, events, stop } = listen({ replies: true })
  socket.deliver(eventBytes({ deviceId: 1 }), eventBytes({ deviceId: 2 }))
  t.true(latest(events).reply(0))
  stop()
  t.deepEqual(socket.calls.slice(-4), [
    'unwatch',
    `done added 1 -${constants.errno.ECANCELED}`,
    'features 0',
    'close',
  ])
  t.false((events[0] as DeviceEvent).reply(0))
})

test('a status that is none is refused and costs no answer', (t) => {
  const { socket, events, stop } = listen({ replies: true })
  socket.deliver(eventBytes())
  for (const status of [1, -4096, 0.5]) {
    t.throws(() => latest(events).reply(status), { code: 'ERR_OPTION_RANGE' })
  }
  t.true(latest(events).reply(-2))
  stop()
})

test('an old kernel without device numbers waits for no answer', (t) => {
  const { socket, events, stop } = listen({ replies: true })
  const attributes = [
    [1, text('tcm-user/0/d0/hushring/a')],
    [2, number(3, 4)],
  ] as const
  socket.deliver(
    encodeRequest({ family: FAMILY, command: 1, version: 1, sequence: 0, acknowledge: false, attributes }),
  )
  t.is(latest(events).deviceId, undefined)
  t.false(latest(events).reply(0))
  stop()
})

test('malformed events are ignored, and the listener goes on', (t) => {
  const { socket, events, warnings, stop } = listen()
  socket.deliver(
    bytes('01 02 03'),
    eventBytes({ more: [[5, number(1, 4)]] }),
    eventBytes({ more: [[4, Buffer.from('no end')]] }),
    eventBytes({ device: 'tcm-user/0/d0/hushring/a\0b' }),
    eventBytes(),
  )
  t.is(events.length, 1)
  t.is(warnings.length, 4)
  t.regex(warnings[0]!, /an event was ignored: netlink: a message is malformed/)
  stop()
})

test('lost events are told once, so that the devices are looked at anew', (t) => {
  const { socket, events, stop } = listen()
  socket.deliver(eventBytes())
  socket.lostCount = 3
  socket.deliver(eventBytes(), eventBytes())
  t.deepEqual(
    events.map(({ command }) => command),
    ['added', 'added', 'added', 'overrun'],
  )
  socket.deliver(eventBytes())
  t.is(events.length, 5)
  stop()
})

test('a flood of events lets the event loop turn', (t) => {
  const { socket, events, stop } = listen()
  socket.waiting.push(...Array.from({ length: 1000 }, () => eventBytes()))
  const before = socket.waiting.length
  socket.fail(0)
  t.true(events.length > 0 && events.length < before)
  socket.deliver()
  t.is(events.length, 1000)
  stop()
})

test('an answer that the kernel does not want is no failure', (t) => {
  const socket = new FakeSocket()
  socket.refusals.set('done added 1 0', constants.errno.ENODEV)
  const { events, errors, warnings, stop } = listen({ replies: true }, socket)
  socket.deliver(eventBytes())
  latest(events).reply(0)
  socket.deliver()
  t.deepEqual(errors, [])
  t.regex(warnings[0]!, /refuses to take the answer about d0: errno 19/)
  stop()
})

test('a kernel that refuses to wait for answers ends the listener', (t) => {
  const socket = new FakeSocket()
  socket.refusals.set('features 1', constants.errno.EPERM)
  const { errors } = listen({ replies: true }, socket)
  socket.deliver(eventBytes())
  t.is(errors.length, 1)
  t.like(errors[0], {
    code: 'ERR_TCMU_SYSTEM',
    message: 'netlink: the kernel refuses to wait for answers: errno 1',
  })
  t.is(socket.calls.at(-1), 'close')
})

test('a socket that fails ends the listener with an error and is closed', (t) => {
  const { socket, errors } = listen()
  socket.fail(-9)
  t.like(errors[0], { code: 'ERR_TCMU_SYSTEM' })
  t.deepEqual(socket.calls, ['join 77', 'watch', 'unwatch', 'close'])
})

test('a subscriber that leaves in its first event gets no second one', (t) => {
  const socket = new FakeSocket()
  let count = 0
  const subscription = listenNetlink(KERNEL_PATHS, { openSocket: () => socket }).subscribe(() => {
    count++
    subscription.unsubscribe()
  })
  socket.deliver(eventBytes(), eventBytes())
  t.is(count, 1)
  t.is(socket.calls.at(-1), 'close')
})

test('a kernel without the family, or without its group, has no TCMU', (t) => {
  for (const answer of [refusal(1, constants.errno.ENOENT), familyBytes('other')]) {
    const { socket, errors } = listen({}, new FakeSocket(answer))
    t.is((errors[0] as HushringError).code, 'ERR_TCMU_UNAVAILABLE')
    t.regex((errors[0] as HushringError).message, /run `modprobe target_core_user` as root$/)
    t.deepEqual(socket.calls, ['close'])
  }
})

test('a misspelt option is refused', (t) => {
  t.throws(() => listenNetlink(KERNEL_PATHS, { reply: true } as object), { code: 'ERR_OPTION_TYPE' })
})

// ---- The kernel of this machine ------------------------------------------------------------------------------------

test('the socket resolves a family that every kernel has', (t) => {
  const socket = openNetlinkSocket()
  const family = resolveFamily(socket, 'nlctrl')
  t.is(family?.id, 0x10)
  t.true(family!.groups.has('notify'))
  socket.join(family!.groups.get('notify')!)
  t.is(socket.receive(), undefined)
  t.is(socket.lostCount, 0)
  socket.close()
})

test('the socket does not resolve a family that no kernel has', (t) => {
  const socket = openNetlinkSocket()
  t.is(resolveFamily(socket, 'HUSHRING-NONE'), undefined)
  socket.close()
})

test('a listener on this machine listens, or says that there is no TCMU', (t) => {
  const socket = openNetlinkSocket()
  const hasTcmu = resolveFamily(socket, 'TCM-USER') !== undefined
  socket.close()
  let failure: unknown
  listenNetlink(KERNEL_PATHS)
    .subscribe({
      error: (error: unknown) => {
        failure = error
      },
    })
    .unsubscribe()
  t.is((failure as HushringError | undefined)?.code, hasTcmu ? undefined : 'ERR_TCMU_UNAVAILABLE')
})

/** A request that the kernel refuses and therefore answers. */
const UNWELCOME = encodeRequest({
  family: 0x10,
  command: 3,
  version: 1,
  sequence: 9,
  acknowledge: true,
  attributes: [[2, text('HUSHRING-NONE')]],
})

test('a socket is readable when an answer waits', async (t) => {
  const socket = openNetlinkSocket()
  let isReadable = false
  const watch = socket.watch(() => {
    isReadable = true
  })
  socket.send(UNWELCOME)
  await until(() => isReadable)
  t.deepEqual([...decodeDatagram(socket.receive()!)], [{ kind: 'acknowledgement', sequence: 9, errno: 2 }])
  watch.close()
  socket.close()
})

test('a socket that is full counts what it loses and goes on when there is room', (t) => {
  const socket = openNetlinkSocket(1)
  const drain = (): number => {
    let count = 0
    while (socket.receive() !== undefined) count++
    return count
  }
  for (let sent = 0; sent < 50; sent++) socket.send(UNWELCOME)
  const received = drain()
  t.true(received > 0 && received < 50)
  t.is(received + socket.lostCount, 50)
  socket.send(UNWELCOME)
  t.is(drain(), 1)
  socket.close()
})

test('a datagram that does not fit is gone, and the socket goes on', (t) => {
  const fd = native.netlinkOpen(1 << 20)
  native.netlinkSend(fd, UNWELCOME)
  native.netlinkSend(fd, UNWELCOME)
  t.throws(() => native.netlinkReceive(fd, Buffer.alloc(8)), { code: 'EMSGSIZE' })
  const target = Buffer.alloc(4096)
  t.true(native.netlinkReceive(fd, target) > 0)
  t.is(native.netlinkReceive(fd, target), -1)
  native.closeFd(fd)
})

test('what is no netlink socket, and what is no argument, is refused', (t) => {
  const event = native.eventfdCreate()
  t.throws(() => native.netlinkSend(event, UNWELCOME), { code: 'ENOTSOCK' })
  t.throws(() => native.netlinkReceive(-1, Buffer.alloc(8)), { code: 'EBADF' })
  t.throws(() => native.netlinkJoin(event, 1), { code: 'ENOTSOCK' })
  t.throws(() => native.netlinkLostCount(event), { code: 'ENOTSOCK' })
  t.throws(() => native.netlinkOpen(0), { code: 'ERR_OPTION_RANGE' })
  t.throws(() => native.netlinkJoin(event, 0), { code: 'ERR_OPTION_RANGE' })
  t.throws(() => native.netlinkSend(event, 'text' as unknown as Uint8Array), { code: 'ERR_OPTION_TYPE' })
  native.closeFd(event)
})

// ---- Memory reclaim ----------------------------------------------------------------------------------------------

/** Runs `program` in a Node of its own, where `native` is the addon: what it changes is the whole process. */
function runAlone(program: string): string {
  const addon =
    process.env.HUSHRING_NATIVE_PATH ??
    fileURLToPath(new URL('../../build/Release/hushring.node', import.meta.url))
  const script = `const addon = ${JSON.stringify(addon)}; const native = require(addon); ${program}`
  const { stdout, stderr, status } = spawnSync(process.execPath, ['-e', script], {
    encoding: 'utf8',
    timeout: 30_000,
  })
  if (status !== 0) throw new Error(stderr)
  return stdout.trim()
}

const CAP_SYS_RESOURCE = 24n
const [, capabilities] = /^CapEff:\s+(\w+)/m.exec(readFileSync('/proc/self/status', 'utf8'))!
const mayFlush = ((BigInt(`0x${capabilities}`) >> CAP_SYS_RESOURCE) & 1n) === 1n

const testAsFlusher = mayFlush ? test : test.skip
testAsFlusher(
  'an I/O flusher is its thread and every thread made later, no thread that was there (CAP_SYS_RESOURCE)',
  (t) => {
    const told = runAlone(`
      const { Worker } = require('node:worker_threads')
      const report = \`require('node:worker_threads').parentPort.on('message', () => {
        console.log(require(\${JSON.stringify(addon)}).isIoFlusher())
        process.exit()
      })\`
      const before = native.isIoFlusher()
      const early = new Worker(report, { eval: true })
      early.once('online', () => {
        native.setIoFlusher(true)
        console.log(before, native.isIoFlusher())
        early.postMessage(0)
        early.once('exit', () => new Worker(report, { eval: true }).postMessage(0))
      })
    `)
    t.is(told, 'false true\nfalse\ntrue')
  },
)

test('who may not be an I/O flusher is told so', (t) => {
  const program = 'try { native.setIoFlusher(true) } catch (error) { console.log(error.message) }'
  t.is(runAlone(program), mayFlush ? '' : 'EPERM: operation not permitted, prctl')
})

test('a program that is locked in memory lives on while V8 gives pages back', (t) => {
  const told = runAlone(`
    const { readFileSync } = require('node:fs')
    const lockedKib = () => Number(/VmLck:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1])
    const before = lockedKib()
    try {
      native.lockMemory()
      native.lockMemory()
      // More than the addon and libc: the text of Node itself.
      console.log(before === 0 && lockedKib() > 10 * 1024 ? 'locked' : 'not locked')
    } catch (error) {
      console.log(error.code, lockedKib())
    }
    // Makes pages for data and for code, and lets go of them: with mlockall this ends the process.
    for (let round = 0; round < 10; round++) {
      const kept = []
      for (let index = 0; index < 1000; index++) {
        kept.push(new Array(1000).fill(index), new Function('a', 'return a + ' + (index + round / 16))(1))
      }
    }
  `)
  // Without CAP_IPC_LOCK the limit of this machine decides; then nothing may stay locked.
  t.regex(told, /^(locked|(EPERM|ENOMEM|EAGAIN) 0)$/)
})

test('a flusher state that is none is refused', (t) => {
  t.throws(() => native.setIoFlusher(1 as unknown as boolean), { code: 'ERR_OPTION_TYPE' })
})
