import test from 'ava'
import { BusyPoll } from '../../src/notify/index.ts'

const MAX_MICROS = 100

/** A queue's publishes, told to a {@link BusyPoll} over a clock that is moved by hand. */
class Story {
  nowMs = 0
  readonly #poll: BusyPoll

  constructor(microsMax = MAX_MICROS) {
    this.#poll = new BusyPoll(microsMax, () => this.nowMs)
  }

  /**
   * Requests are taken, answered after so long, and the queue sleeps. Returns how long the publish may poll before, in µs.
   */
  sleep(micros: number, handlerMicros = 0): number {
    this.#poll.taken()
    this.nowMs += handlerMicros / 1000
    const nanos = this.#poll.nanos()
    this.nowMs += nanos / 1e6
    this.#poll.learn({ count: 1, signalled: true, polled: nanos > 0 }, true)
    this.nowMs += micros / 1000
    return nanos / 1000
  }

  /** A part is answered, for which the queue asks for kicks, and after so long the rest, whose poll finds a request. */
  findAfterPart(partMicros: number, micros: number): number {
    this.#poll.taken()
    this.#poll.learn({ count: 1, signalled: true, polled: false }, true)
    this.nowMs += partMicros / 1000
    const nanos = this.#poll.nanos()
    this.nowMs += micros / 1000
    this.#poll.learn({ count: 1, signalled: true, polled: nanos > 0 }, false)
    return nanos / 1000
  }

  /** A publish whose poll finds a request after so long. Returns how long it may have polled, in µs. */
  find(micros: number): number {
    this.#poll.taken()
    const nanos = this.#poll.nanos()
    this.nowMs += micros / 1000
    this.#poll.learn({ count: 1, signalled: true, polled: nanos > 0 }, nanos === 0)
    return nanos / 1000
  }
}

test('short sleeps make polls longer, up to the longest that may be', (t) => {
  const story = new Story()
  const polls = Array.from({ length: 6 }, () => story.sleep(20))
  t.deepEqual(polls, [0, 10, 20, 40, 80, 100])
})

test('after a long sleep nothing is polled until requests come quickly again', (t) => {
  const story = new Story()
  for (let round = 0; round < 4; round++) story.sleep(20)
  story.sleep(5_000)
  t.is(story.sleep(20), 0)
  t.is(story.sleep(20), 10)
})

test('what a handler takes to answer is no sleep', (t) => {
  const story = new Story()
  for (let round = 0; round < 4; round++) story.sleep(20, 5_000)
  t.is(story.sleep(20), 80)
})

test('a queue that is never quick never polls', (t) => {
  const story = new Story()
  for (let round = 0; round < 1_000; round++) t.is(story.sleep(101), 0)
})

test('as long as polls find something they stay as long as they are', (t) => {
  const story = new Story()
  for (let round = 0; round < 3; round++) story.sleep(20)
  for (let round = 0; round < 20; round++) t.is(story.find(5), 40)
})

test('a request that a look finds ends no sleep, although kicks had been asked for in between', (t) => {
  const story = new Story()
  for (let round = 0; round < 4; round++) story.sleep(20)
  for (let round = 0; round < 3; round++) t.is(story.findAfterPart(5_000, 5), 80)
})

test('a stretch of polling ends after a millisecond: the queue asks for kicks once, and polls again', (t) => {
  const story = new Story()
  for (let round = 0; round < 5; round++) story.sleep(20)
  const polls: number[] = []
  for (let round = 0; round < 60; round++) polls.push(story.find(25))
  t.deepEqual([...new Set(polls)], [100, 0])
  const first = polls.indexOf(0)
  t.true(first * 25 >= 1_000 && first * 25 <= 1_100, `${first}`)
  t.is(polls[first + 1], 100)
})

test('where polls are in vain and requests come just afterwards, they are tried ever more rarely', (t) => {
  const story = new Story()
  const rounds = 100_000
  let pollCount = 0
  for (let round = 0; round < rounds; round++) if (story.sleep(5) > 0) pollCount++
  t.true(pollCount < 50, `${pollCount} of ${rounds} publishes polled`)
  t.true(pollCount > 10, 'it is tried again')
})

test('control: with a processor of its own for the driver, the same requests are found', (t) => {
  const story = new Story()
  for (let round = 0; round < 5; round++) story.sleep(5)
  let pollCount = 0
  for (let round = 0; round < 1_000; round++) if (story.find(5) > 0) pollCount++
  t.true(pollCount > 900)
})

test('0 µs never polls and never looks at the clock', (t) => {
  const poll = new BusyPoll(0, () => t.fail() as never)
  for (let round = 0; round < 10; round++) {
    t.is(poll.nanos(), 0)
    poll.learn({ count: 1, signalled: true }, true)
  }
})
