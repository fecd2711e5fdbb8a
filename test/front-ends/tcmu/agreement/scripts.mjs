// @ts-check
// What is played on the real driver and on the simulator of it, and must leave the same trace on both. Each script begins
// with a new device: an empty ring of 1 MiB, all ids and blocks free.
//
// A tail that is no boundary of entries is not among them, nor a length that was changed: the real driver follows them for
// ever. Nor is action/free_kept_buf with 0: the real driver of Linux 6.1 takes the mark with which its table of ids
// keeps that place free for a command, and crashes. The simulated one answers EINVAL.
import { Opcode, UserFlag } from './ring-server.mjs'
import { defaultOptions, read, readNothing, testUnitReady, write } from './script.mjs'

/** @import { Entry } from './ring-server.mjs' */
/** @import { Command, MachineOptions, Script } from './script.mjs' */

/**
 * @typedef {object} AgreementScript
 * @property {MachineOptions} options
 * @property {(script: Script) => Promise<void>} play
 */

const KiB = 1024
const BLOCK = 4096
const FRAGMENT_TAG = 100_000
const GOOD = 0x00
const CHECK_CONDITION = 0x02

/** @type {(first: number, count: number) => number[]} */
const numbers = (first, count) => Array.from({ length: count }, (_, index) => first + index)

/** @type {(ids: readonly number[], ...indexes: readonly number[]) => number[]} */
const pick = (ids, ...indexes) => indexes.flatMap((index) => ids.slice(index, index + 1))

const FREE = 'action/free_kept_buf'

/** 96 bytes: ILLEGAL REQUEST, INVALID FIELD IN CDB, and a number in each of the others. */
const longSense = Uint8Array.from({ length: 96 }, (_, index) => index)
longSense.set([0x70, 0, 0x05, 0, 0, 0, 0, 88, 0, 0, 0, 0, 0x24, 0x00])

/**
 * Takes every second block of the data area, so that no two free ones are neighbours.
 *
 * @param {Script} script
 * @param {number} count of blocks, of which half are free again
 * @returns {Promise<number[]>} the ids of the commands that have the others
 */
async function fragment(script, count) {
  const tags = numbers(FRAGMENT_TAG, count)
  script.send(...tags.map((tag) => read(tag, BLOCK)))
  const { ids } = await script.takeMany(count)
  script.answer(ids.filter((_, index) => index % 2 === 0))
  await script.endAlike(tags.filter((_, index) => index % 2 === 0))
  return ids.filter((_, index) => index % 2 === 1)
}

/**
 * A write of 128 blocks. After {@link fragment} of 256 it has as many iovs.
 *
 * @type {(tag: number) => Command}
 */
const writeLong = (tag) => ({ ...write(tag, 0), dataOut: zeros })
const zeros = Buffer.alloc(128 * BLOCK)
/** Bytes of its entry. */
const LONG_BYTES = 48 + 16 * 128 + 16

/**
 * Sends long commands, one after the other, and answers each.
 *
 * @param {Script} script
 * @param {() => boolean} more whether to send another one
 */
async function sendLong(script, more) {
  /** @type {Entry[]} */
  const entries = []
  const firstTag = 1000
  let tag = firstTag
  for (; more(); tag++) {
    script.send(writeLong(tag))
    let taken
    do {
      taken = await script.takeSilently(1)
      entries.push(...taken)
      if (taken[0]?.opcode === Opcode.pad) script.noteMany(taken)
    } while (taken[0]?.opcode === Opcode.pad)
    script.answer(taken.map(({ id }) => id))
  }
  script.noteMany(entries)
  await script.endAlike(numbers(firstTag, tag - firstTag))
}

/**
 * Brings the head to 1,920 bytes before the end of the ring. 128 commands stay in flight.
 *
 * @param {Script} script
 */
async function approachTheEnd(script) {
  await fragment(script, 256)
  await sendLong(script, () => script.server.ringBytes - script.server.head > LONG_BYTES)
  await script.rest()
}

/**
 * Fills the ring, until no long command has room: answers go into the oldest entries, so those of the commands that came
 * last stay, and a few hundred in flight are enough.
 *
 * @param {Script} script
 * @returns {Promise<{ ids: number[], tags: number[] }>} the commands in flight
 */
async function fillRing(script) {
  const kept = await fragment(script, 256)
  const tags = numbers(1, 450)
  script.send(...tags.map(readNothing))
  const { ids } = await script.takeMany(tags.length)
  await sendLong(script, () => script.server.hasRoom(LONG_BYTES))
  return {
    ids: [...ids, ...kept],
    tags: [...tags, ...numbers(FRAGMENT_TAG, 256).filter((tag) => tag % 2 === 1)],
  }
}

/** @type {(play: (script: Script) => Promise<void>, options?: Partial<MachineOptions>) => AgreementScript} */
const from = (play, options = {}) => ({ options: { ...defaultOptions, ...options }, play })

/** By what they show. */
export const scripts = {
  'the mailbox says the same': from(async (script) => {
    const { version, flags, ringOffset, ringBytes } = script.server
    script.note(`version ${version}, flags ${flags}, ring at ${ringOffset} of ${ringBytes} bytes`)
    await script.rest()
  }),

  'commands of 6, 10 and 16 bytes without data are laid out alike': from(async (script) => {
    script.send(testUnitReady(1), readNothing(2), read(3, 0))
    const { ids } = await script.take(3)
    script.answer(ids)
    await script.end(1, 2, 3)
    await script.rest()
  }),

  'a read brings what the server wrote': from(async (script) => {
    script.send(read(1, 20 * 512))
    const { first, ids } = await script.take(1)
    script.fill(first, 5)
    script.answer(ids)
    await script.end(1)
    await script.rest()
  }),

  'a write shows the server its data': from(async (script) => {
    script.send(write(1, 9 * 512), write(2, 512))
    const { entries, ids } = await script.take(2)
    for (const entry of entries) script.look(entry)
    script.answer(ids)
    await script.end(1, 2)
    await script.rest()
  }),

  'commands that are answered in another order end rightly': from(async (script) => {
    script.send(read(1, BLOCK), write(2, BLOCK), read(3, 2 * BLOCK), testUnitReady(4), read(5, BLOCK))
    const { entries, ids } = await script.take(5)
    for (const entry of entries) if (entry.cdb.startsWith('28')) script.fill(entry, entry.id)
    script.answer(pick(ids, 3, 0))
    await script.end(4, 1)
    script.answer(pick(ids, 4))
    await script.end(5)
    script.answer(pick(ids, 2, 1))
    await script.end(3, 2)
    await script.rest()
  }),

  'the lowest free id and the lowest free block are given out next': from(async (script) => {
    script.send(...numbers(1, 6).map((tag) => read(tag, BLOCK)))
    const { ids } = await script.take(6)
    script.answer(pick(ids, 4, 1))
    await script.end(5, 2)
    script.send(...numbers(7, 3).map((tag) => read(tag, BLOCK)))
    const more = await script.take(3)
    script.answer([...pick(ids, 0, 2, 3, 5), ...more.ids])
    await script.end(1, 3, 4, 6, 7, 8, 9)
    await script.rest()
  }),

  'a data area in pieces gives more than four iovs': from(async (script) => {
    const kept = await fragment(script, 24)
    script.send(read(1, 7 * BLOCK), write(2, 5 * BLOCK), write(3, 2 * BLOCK))
    const { entries, ids } = await script.take(3)
    for (const entry of entries) entry.cdb.startsWith('28') ? script.fill(entry, 3) : script.look(entry)
    script.answer([...ids, ...kept])
    await script.end(1, 2, 3)
    await script.rest()
  }),

  'blocks that lie next to each other are one iov': from(async (script) => {
    script.send(...numbers(1, 6).map((tag) => read(tag, BLOCK)))
    const { ids } = await script.take(6)
    script.answer(ids.slice(1, 4))
    await script.end(2, 3, 4)
    script.send(write(7, 4 * BLOCK + 512), write(8, 3 * BLOCK))
    const { entries, ids: more } = await script.take(2)
    for (const entry of entries) script.look(entry)
    script.answer([...ids.slice(0, 1), ...ids.slice(4), ...more])
    await script.end(1, 5, 6, 7, 8)
    await script.rest()
  }),

  'a block of several pages is given out whole': from(
    async (script) => {
      script.send(write(1, 512), write(2, 3 * BLOCK), read(3, BLOCK), write(4, 5 * BLOCK))
      const { entries, ids } = await script.take(4)
      for (const entry of entries) if (entry.cdb.startsWith('2a')) script.look(entry)
      script.answer(ids.slice(0, 1))
      await script.end(1)
      script.send(write(5, 6 * BLOCK))
      const more = await script.take(1)
      script.look(more.first)
      script.answer([...ids.slice(1), ...more.ids])
      await script.end(2, 3, 4, 5)
      await script.rest()
    },
    { pagesPerBlock: 2 },
  ),

  'a PAD may have 8 bytes': from(
    async (script) => {
      await approachTheEnd(script)
      script.send(testUnitReady(1), ...numbers(2, 14).map(readNothing))
      await script.takeMany(15)
      script.send(testUnitReady(16))
      await script.take(2)
      await script.rest()
    },
    { dataAreaMegabytes: 2 },
  ),

  'an entry that ends at the end of the ring needs no PAD': from(
    async (script) => {
      await approachTheEnd(script)
      script.send(...numbers(1, 15).map(readNothing))
      await script.takeMany(15)
      await script.rest()
      script.send(testUnitReady(16))
      await script.take(1)
      await script.rest()
    },
    { dataAreaMegabytes: 2 },
  ),

  'commands that find no room on the ring wait in order': from(
    async (script) => {
      const { ids } = await fillRing(script)
      script.send(writeLong(900), testUnitReady(901), readNothing(902))
      await script.rest()
      for (let index = 0; index < 30; index += 10) {
        script.answer(ids.slice(index, index + 10))
        await script.takeAll()
      }
      await script.rest()
    },
    { dataAreaMegabytes: 2 },
  ),

  'a task management function that finds no room on the ring waits': from(
    async (script) => {
      const { ids, tags } = await fillRing(script)
      for (let tag = 900; script.server.hasRoom(120); tag++) {
        script.send(testUnitReady(tag))
        const { first } = await script.take(1)
        ids.push(first.id)
        tags.push(tag)
      }
      script.send(testUnitReady(950))
      await script.rest()
      const reset = script.lunReset()
      await script.machine.elapse(0)
      await script.rest()
      for (let index = 0; index < 30; index += 5) {
        script.answer(ids.slice(index, index + 5))
        await script.takeAll()
      }
      script.answer(ids.slice(30))
      await reset
      await script.endAlike([...tags, 950])
      await script.rest()
    },
    { dataAreaMegabytes: 2 },
  ),

  'commands that find no block wait in order': from(async (script) => {
    script.send(...numbers(1, 15).map((tag) => read(tag, 64 * KiB)), read(16, 32 * KiB))
    const { ids } = await script.takeMany(16)
    // The first one is too long for what is left; the others are not, and wait behind it.
    script.send(read(17, 64 * KiB), read(18, BLOCK), testUnitReady(19))
    await script.rest()
    script.answer(ids.slice(0, 1))
    await script.end(1)
    const more = await script.take(3)
    script.answer([...ids.slice(1), ...more.ids])
    await script.endAlike(numbers(2, 15))
    await script.end(17, 18, 19)
    await script.rest()
  }),

  'a command that waits goes on waiting when too little was freed': from(async (script) => {
    script.send(...numbers(1, 16).map((tag) => read(tag, 64 * KiB)))
    const { ids } = await script.takeMany(16)
    script.send(read(17, 128 * KiB), read(18, 64 * KiB))
    script.answer(ids.slice(3, 4))
    await script.end(4)
    await script.rest()
    script.answer(ids.slice(7, 8))
    await script.end(8)
    const first = await script.take(1)
    await script.rest()
    script.answer([...ids.slice(0, 3), ...first.ids])
    const second = await script.take(1)
    script.answer([...ids.slice(4, 7), ...ids.slice(8), ...second.ids])
    await script.endAlike([1, 2, 3, 5, 6, 7, ...numbers(9, 8)])
    await script.end(17, 18)
    await script.rest()
  }),

  'a command that is longer than the data area is refused': from(
    async (script) => {
      // The area has one block of 800 KiB.
      script.send(read(1, 800 * KiB + 512), read(2, 800 * KiB))
      const { ids } = await script.take(1)
      await script.end(1)
      script.answer(ids)
      await script.end(2)
      await script.rest()
    },
    { pagesPerBlock: 200 },
  ),

  'without time to wait, a command that finds no block gets TASK SET FULL': from(
    async (script) => {
      script.send(...numbers(1, 16).map((tag) => read(tag, 64 * KiB)))
      const { ids } = await script.takeMany(16)
      script.send(read(17, BLOCK))
      await script.rest()
      script.answer(ids)
      await script.endAlike(numbers(1, 16))
      const { ids: again } = await script.take(1)
      script.answer(again)
      await script.end(17)
      await script.rest()
    },
    { queueFullTimeoutSeconds: 0 },
  ),

  'a command that waited too long gets TASK SET FULL': from(
    async (script) => {
      script.send(...numbers(1, 16).map((tag) => read(tag, 64 * KiB)))
      const { ids } = await script.takeMany(16)
      script.send(read(17, BLOCK))
      await script.rest()
      await script.machine.elapse(2000)
      script.answer(ids)
      await script.endAlike(numbers(1, 16))
      const { ids: again } = await script.take(1)
      script.answer(again)
      await script.end(17)
      await script.rest()
    },
    { queueFullTimeoutSeconds: 1 },
  ),

  'LUN RESET is told with nothing in flight': from(async (script) => {
    const reset = script.lunReset()
    await script.take(1)
    await reset
    await script.rest()
    script.answer([])
    script.send(read(1, BLOCK))
    const { ids } = await script.take(1)
    script.answer(ids)
    await script.end(1)
    await script.rest()
  }),

  'LUN RESET names the one command in flight and waits for it': from(async (script) => {
    script.send(write(1, BLOCK))
    const { ids } = await script.take(1)
    const reset = script.lunReset()
    await script.take(1)
    await script.rest()
    script.answer(ids)
    await reset
    await script.end(1)
    await script.rest()
  }),

  'LUN RESET names all commands on the ring, and those that wait do not come any more': from(
    async (script) => {
      script.send(...numbers(1, 16).map((tag) => write(tag, 64 * KiB)), testUnitReady(17), write(18, BLOCK))
      const { ids } = await script.take(17)
      const reset = script.lunReset()
      await script.take(1)
      script.answer(ids.toReversed())
      await reset
      await script.end(...numbers(1, 18))
      await script.rest()
    },
  ),

  'LUN RESET does not name what was answered before': from(async (script) => {
    script.send(...numbers(1, 4).map((tag) => write(tag, BLOCK)))
    const { ids } = await script.take(4)
    script.answer(pick(ids, 2, 0))
    await script.end(3, 1)
    const reset = script.lunReset()
    await script.take(1)
    script.answer(pick(ids, 1, 3))
    await reset
    await script.end(2, 4)
    await script.rest()
  }),

  'LUN RESET is not told to a server that does not want it': from(
    async (script) => {
      script.send(write(1, BLOCK))
      const { ids } = await script.take(1)
      const reset = script.lunReset()
      await script.machine.elapse(0)
      await script.rest()
      script.answer(ids)
      await reset
      await script.end(1)
      await script.rest()
    },
    { taskManagement: false },
  ),

  'ABORT TASK names the one command it is for': from(async (script) => {
    script.send(write(1, BLOCK))
    const { ids: earlier } = await script.take(1)
    const aborted = script.sendAndAbort(read(2, BLOCK))
    const { ids } = await script.take(1)
    script.send(write(3, BLOCK))
    const { ids: later } = await script.take(1)
    await script.take(1)
    script.answer(ids)
    await aborted
    script.answer([...earlier, ...later])
    await script.end(1, 3)
    await script.rest()
  }),

  'ABORT TASK ends a command that waits without the server': from(async (script) => {
    script.send(...numbers(1, 16).map((tag) => write(tag, 64 * KiB)))
    const { ids } = await script.takeMany(16)
    await script.sendAndAbort(read(17, BLOCK))
    await script.takeAll()
    script.answer(ids)
    await script.endAlike(numbers(1, 16))
    await script.rest()
  }),

  'task management is told from when the administrator wants it, until he does not': from(
    async (script) => {
      const told = 'attrib/tmr_notification'
      for (const value of [0, 1, 2]) {
        script.configure(told, value)
        await script.lunReset()
        await script.takeAll()
      }
      script.configure(told, 0)
      await script.lunReset()
      await script.rest()
    },
    { taskManagement: false },
  ),

  'LUN RESET names neither what expired nor what was kept': from(
    async (script) => {
      script.send(write(1, BLOCK), write(2, BLOCK))
      const { ids } = await script.take(2)
      script.answer(ids.slice(0, 1), { userFlags: UserFlag.keepBuffer })
      await script.end(1)
      await script.machine.elapse(1000)
      await script.end(2)
      await script.lunReset()
      await script.takeAll()
      script.answer(ids.slice(1))
      script.configure(FREE, ids[0])
      script.send(write(3, 2 * BLOCK))
      await script.takeAll()
      await script.rest()
    },
    { commandTimeoutSeconds: 1 },
  ),

  'a command that expires keeps its place until its late answer': from(
    async (script) => {
      script.send(read(1, BLOCK))
      const { ids } = await script.take(1)
      await script.machine.elapse(1000)
      await script.end(1)
      await script.rest()
      script.send(read(2, BLOCK))
      const { ids: next } = await script.take(1)
      script.answer(ids)
      script.answer(next)
      await script.end(2)
      script.send(read(3, BLOCK))
      const { ids: last } = await script.take(1)
      script.answer(last)
      await script.end(3)
      await script.rest()
    },
    { commandTimeoutSeconds: 1 },
  ),

  'a late answer may keep the buffer': from(
    async (script) => {
      script.send(write(1, BLOCK))
      const { ids } = await script.take(1)
      await script.machine.elapse(1000)
      await script.end(1)
      script.answer(ids, { userFlags: UserFlag.keepBuffer })
      script.send(read(2, BLOCK))
      const { ids: next } = await script.take(1)
      script.configure(FREE, ids[0])
      script.answer(next)
      await script.end(2)
      script.send(read(3, BLOCK))
      const { ids: last } = await script.take(1)
      script.answer(last)
      await script.end(3)
      await script.rest()
    },
    { commandTimeoutSeconds: 1 },
  ),

  'READ_LEN shortens a read, and nothing else': from(async (script) => {
    const { readLength } = UserFlag
    script.send(...numbers(1, 5).map((tag) => read(tag, 2 * BLOCK)), write(6, BLOCK), testUnitReady(7))
    const { entries, ids } = await script.take(7)
    for (const entry of entries) if (entry.cdb.startsWith('28')) script.fill(entry, entry.id)
    script.answer(pick(ids, 0), { userFlags: readLength, readLength: 100 })
    script.answer(pick(ids, 1), { userFlags: readLength, readLength: BLOCK + 1 })
    script.answer(pick(ids, 2), { userFlags: readLength, readLength: 3 * BLOCK })
    script.answer(pick(ids, 3), { userFlags: readLength, readLength: 0 })
    script.answer(pick(ids, 4), { readLength: 100 })
    script.answer(pick(ids, 5), { userFlags: readLength, readLength: 100 })
    script.answer(pick(ids, 6), { userFlags: readLength, readLength: 100 })
    await script.end(1, 2, 3, 4, 5, 6, 7)
    await script.rest()
  }),

  'CHECK CONDITION brings data only with READ_LEN': from(async (script) => {
    script.send(...numbers(1, 3).map((tag) => read(tag, 2 * BLOCK)), write(4, BLOCK))
    const { entries, ids } = await script.take(4)
    for (const entry of entries) if (entry.cdb.startsWith('28')) script.fill(entry, entry.id)
    const status = CHECK_CONDITION
    const sense = longSense
    script.answer(pick(ids, 0), { status, sense })
    script.answer(pick(ids, 1), { status, sense, userFlags: UserFlag.readLength, readLength: 700 })
    script.answer(pick(ids, 2), { status, sense, readLength: 700 })
    script.answer(pick(ids, 3), { status, sense })
    await script.end(1, 2, 3, 4)
    await script.rest()
  }),

  'other statuses come as they were given, without the sense data': from(async (script) => {
    const given = [GOOD, 0x04, 0x18, 0x08, 0x28]
    script.send(...given.map((_, index) => testUnitReady(index + 1)))
    const { ids } = await script.take(given.length)
    for (const [index, status] of given.entries()) {
      script.answer(ids.slice(index, index + 1), { status, sense: longSense })
    }
    await script.end(1, 2, 3)
    // Two were sent again, in an order of the initiator's own.
    const again = await script.takeSilently(2)
    script.answer(again.map(({ id }) => id))
    await script.end(4, 5)
    await script.rest()
  }),

  'UNKNOWN_OP makes a command fail': from(async (script) => {
    script.send(read(1, BLOCK), write(2, BLOCK), testUnitReady(3))
    const { ids } = await script.take(3)
    const answer = { status: CHECK_CONDITION, sense: longSense, userFlags: UserFlag.unknownOp }
    script.answer(ids.slice(0, 1), answer)
    script.answer(ids.slice(1), { userFlags: UserFlag.unknownOp })
    await script.end(1, 2, 3)
    await script.rest()
  }),

  'a kept buffer keeps id and blocks until it is freed': from(async (script) => {
    script.send(write(1, BLOCK), write(2, BLOCK), read(3, BLOCK))
    const { entries, ids } = await script.take(3)
    script.answer(ids.slice(0, 1), { userFlags: UserFlag.keepBuffer })
    script.answer(ids.slice(1, 2))
    await script.end(1, 2)
    script.send(read(4, BLOCK))
    const second = await script.take(1)
    for (const entry of entries.slice(0, 1)) script.look(entry)
    // Not there, in flight, no numbers.
    for (const id of [77, ids[2], 'x', -1]) script.configure(FREE, id)
    script.configure(FREE, ids[0])
    script.configure(FREE, ids[0])
    script.send(read(5, BLOCK))
    const third = await script.take(1)
    script.answer([...ids.slice(2), ...second.ids, ...third.ids])
    await script.end(3, 4, 5)
    await script.rest()
    await script.tellLog()
  }),

  'a buffer that is freed lets a waiting command go on': from(async (script) => {
    script.send(...numbers(1, 16).map((tag) => write(tag, 64 * KiB)))
    const { ids } = await script.takeMany(16)
    script.answer(ids, { userFlags: UserFlag.keepBuffer })
    await script.endAlike(numbers(1, 16))
    script.send(read(17, BLOCK), read(18, 64 * KiB))
    await script.rest()
    script.configure(FREE, ids[5])
    const first = await script.take(1)
    await script.rest()
    script.configure(FREE, ids[7])
    const second = await script.take(1)
    script.answer([...first.ids, ...second.ids])
    await script.end(17, 18)
    await script.rest()
  }),

  'closing the device frees what was kept, and nothing else': from(async (script) => {
    script.send(write(1, BLOCK), read(2, BLOCK), write(3, BLOCK))
    const { entries, ids } = await script.take(3)
    for (const entry of entries.slice(1, 2)) script.fill(entry, 9)
    script.answer(ids.slice(2), { userFlags: UserFlag.keepBuffer })
    script.answer(ids.slice(0, 1), { userFlags: UserFlag.keepBuffer })
    await script.end(1, 3)
    script.reopen()
    await script.rest()
    script.send(write(4, 2 * BLOCK), write(5, BLOCK))
    const more = await script.take(2)
    for (const entry of more.entries) script.look(entry)
    script.answer([...ids.slice(1, 2), ...more.ids])
    await script.end(2, 4, 5)
    await script.rest()
  }),

  'an answer to a kept command breaks the ring': from(async (script) => {
    script.send(...numbers(1, 4).map((tag) => write(tag, BLOCK)))
    const { ids } = await script.take(4)
    script.answer(ids.slice(0, 1), { userFlags: UserFlag.keepBuffer })
    await script.end(1)
    script.answer(pick(ids, 0, 1))
    script.send(read(5, BLOCK))
    await script.end(5)
    await script.rest()
    // Not heard.
    script.answer(pick(ids, 2))
    await script.tellLog()
  }),

  'an answer to an id that is not in flight breaks the ring until it is reset': from(async (script) => {
    script.send(write(1, BLOCK), read(2, BLOCK))
    const { ids } = await script.take(2)
    script.answer([77])
    // Not heard.
    script.answer(ids.slice(0, 1))
    script.send(testUnitReady(3))
    await script.end(3)
    await script.rest()
    script.reset(2)
    await script.end(1, 2)
    await script.rest()
    script.send(read(4, BLOCK))
    const { ids: next } = await script.take(1)
    script.answer(next)
    await script.end(4)
    await script.rest()
    await script.tellLog()
  }),

  'an answer to the id 0 breaks the ring': from(async (script) => {
    script.send(write(1, BLOCK))
    await script.take(1)
    script.answer([0])
    script.reset(2)
    await script.end(1)
    script.send(write(2, BLOCK), write(3, BLOCK))
    const { ids } = await script.take(2)
    script.answer(ids)
    await script.end(2, 3)
    await script.rest()
    await script.tellLog()
  }),

  'a second answer to a command breaks the ring': from(async (script) => {
    script.send(write(1, BLOCK), read(2, BLOCK))
    const { ids } = await script.take(2)
    script.answer(pick(ids, 1, 1))
    await script.end(2)
    script.send(read(3, BLOCK))
    await script.end(3)
    await script.rest()
    await script.tellLog()
  }),

  'reset_ring 1 ends what is in flight with BUSY, and it comes again': from(async (script) => {
    script.send(write(1, BLOCK), write(2, BLOCK))
    await script.take(2)
    script.reset(1)
    // In an order of the initiator's own.
    const again = await script.takeSilently(2)
    script.answer(again.map(({ id }) => id))
    await script.end(1, 2)
    await script.rest()
  }),

  'reset_ring 2 ends what is in flight, and frees what was kept': from(async (script) => {
    script.send(...numbers(1, 16).map((tag) => write(tag, 64 * KiB)), read(17, BLOCK))
    const { ids } = await script.takeMany(16)
    script.answer(ids.slice(0, 3), { userFlags: UserFlag.keepBuffer })
    await script.endAlike([1, 2, 3])
    for (const level of [0, 3, 'x']) script.configure('action/reset_ring', level)
    await script.rest()
    script.reset(2)
    await script.endAlike(numbers(4, 13))
    // It had waited.
    const { ids: next } = await script.take(1)
    script.answer(next)
    await script.end(17)
    await script.rest()
  }),

  'reset_ring forgets what was expired': from(
    async (script) => {
      script.send(read(1, BLOCK))
      await script.take(1)
      await script.machine.elapse(1000)
      await script.end(1)
      script.reset(1)
      script.send(read(2, BLOCK))
      const { ids } = await script.take(1)
      script.answer(ids)
      await script.end(2)
      await script.rest()
    },
    { commandTimeoutSeconds: 1 },
  ),

  'block_dev makes new commands BUSY and lets those in flight end': from(async (script) => {
    script.send(write(1, BLOCK))
    const { ids } = await script.take(1)
    script.configure('action/block_dev', 1)
    script.send(read(2, BLOCK))
    await script.rest()
    script.answer(ids)
    await script.end(1)
    await script.rest()
    script.configure('action/block_dev', 2)
    script.configure('action/block_dev', 0)
    const { ids: again } = await script.take(1)
    script.answer(again)
    await script.end(2)
    await script.rest()
  }),

  'block_dev ends commands that wait with BUSY, and takes what was answered': from(async (script) => {
    script.send(...numbers(1, 16).map((tag) => write(tag, 64 * KiB)), read(17, BLOCK))
    const { ids } = await script.takeMany(16)
    for (const id of ids.slice(0, 2)) script.server.answer(id)
    script.server.storeTail()
    script.configure('action/block_dev', 1)
    await script.end(1, 2)
    script.configure('action/block_dev', 0)
    script.answer(ids.slice(2))
    await script.endAlike(numbers(3, 14))
    const { ids: again } = await script.take(1)
    script.answer(again)
    await script.end(17)
    await script.rest()
  }),
}
