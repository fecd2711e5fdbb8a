// Tests a vhost-user back-end with the test kit: a driver that asks and waits, and the chains of the kit's vectors, good
// and bad, each on a fresh connection. Give it the socket of yours, with a device whose requests have a header of 16
// bytes and a status byte at the end, as those of a block device; without one it tests the back-end below.
//
//   npx tsx examples/test-your-back-end.ts ./d.sock
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { vhostUser, virtioDevice } from 'hushring'
import {
  type ChainVector,
  chainMemory,
  chainVectors,
  SharedMemory,
  SplitDriver,
  VhostUserFrontEnd,
} from 'hushring/testing'

const LIMIT_MS = 2000
const STATUS_UNTOUCHED = 0xee

/** The back-end under test, if there is no other: it fills what it is asked to write with sevens. */
async function exampleBackEnd(folder: string) {
  const socketPath = join(folder, 'sevens.sock')
  const device = virtioDevice({
    deviceId: 63,
    framing: { headerBytes: 16, statusByte: true },
    handler(io) {
      io.writable.fill(7)
      return io.ok()
    },
  })
  const silent = { error() {}, warn() {}, info() {}, debug() {} }
  return { socketPath, server: await vhostUser.listen({ socketPath, device, logger: silent }) }
}

/** A front-end with the memory of the vectors and one queue, of which nothing was published yet. */
async function connect(socketPath: string, indirect: boolean) {
  const memories = chainMemory.regions.map(
    ({ guestAddress, sizeBytes }) =>
      new SharedMemory({ guestAddress: BigInt(guestAddress), userAddress: BigInt(guestAddress), sizeBytes }),
  )
  const [memory] = memories as [SharedMemory, ...SharedMemory[]]
  const frontEnd = VhostUserFrontEnd.connect(socketPath)
  await frontEnd.handshake({ features: indirect ? -1n : ~(1n << 28n) })
  await frontEnd.setMemory(...memories)
  const driver = new SplitDriver({ memory, size: chainMemory.size, eventIdx: frontEnd.eventIdx })
  await frontEnd.startQueue(0, driver)
  const close = () => {
    frontEnd.close()
    driver.close()
    for (const each of memories) each.close()
  }
  return { memory, driver, close }
}

async function until(what: string, isSo: () => boolean): Promise<void> {
  const start = performance.now()
  while (!isSo()) {
    assert(performance.now() - start < LIMIT_MS, what)
    await sleep(1)
  }
}

/** Every request is answered, and signalled: nobody looks otherwise, and no later request heals a lost signal. */
async function answersRequests(socketPath: string): Promise<number> {
  const { memory, driver, close } = await connect(socketPath, false)
  const at = (offsetBytes: number) => memory.guestAddressOf(offsetBytes)
  const request = () =>
    driver.submit([
      { address: at(0x1000), lengthBytes: 16, writable: false },
      { address: at(0x2000), lengthBytes: 513, writable: true },
    ])
  for (let round = 0; round < 500; round++) {
    const answers = await Promise.race([Promise.all([request(), request()]), sleep(LIMIT_MS)])
    assert.deepEqual(answers, [513, 513], 'a request is not answered, or its signal is lost')
  }
  const { signals } = driver.counts
  close()
  return signals
}

/** One chain has its outcome, and the back-end serves the next front-end. */
async function survives(socketPath: string, vector: ChainVector): Promise<void> {
  const { memory, driver, close } = await connect(socketPath, vector.indirect)
  const view = new DataView(memory.bytes.buffer)
  const offsetOf = (address: string) => Number(BigInt(address) - memory.guestAddress)
  for (const { at, address, lengthBytes, flags, next } of vector.descriptors) {
    const where = offsetOf(at)
    view.setBigUint64(where, BigInt(address), true)
    view.setUint32(where + 8, lengthBytes, true)
    view.setUint16(where + 12, flags, true)
    view.setUint16(where + 14, next, true)
  }
  for (const [index, head] of vector.heads.entries()) driver.writeAvailable(index, head)
  for (const outcome of vector.outcomes) {
    if (outcome.result === 'malformed' && outcome.statusAt !== undefined) {
      memory.bytes[offsetOf(outcome.statusAt)] = STATUS_UNTOUCHED
    }
  }
  driver.storeAvailableIndex(vector.availableIndex)
  driver.kick()

  // What is passed over and what breaks the queue is not returned: wait a moment, lest it comes late.
  const returned = vector.outcomes.flatMap((outcome) =>
    outcome.result === 'served' || outcome.result === 'malformed' ? [outcome] : [],
  )
  await until(`${vector.title}: not returned`, () => driver.loadUsedIndex() === returned.length)
  if (returned.length < vector.outcomes.length) await sleep(5)
  assert.equal(driver.loadUsedIndex(), returned.length, vector.title)
  for (const [index, outcome] of returned.entries()) {
    const usedLength = driver.loadUsedLength(index)
    if (outcome.result === 'served') {
      assert.equal(usedLength, outcome.writableBytes + 1, vector.title)
    } else {
      assert.equal(usedLength, 0, vector.title)
      const { statusAt } = outcome
      if (statusAt !== undefined) {
        assert.notEqual(memory.bytes[offsetOf(statusAt)], STATUS_UNTOUCHED, vector.title)
      }
    }
  }
  close()
}

const folder = await mkdtemp(join(tmpdir(), 'test-your-back-end-'))
const own = process.argv[2] === undefined ? await exampleBackEnd(folder) : undefined
const socketPath = own?.socketPath ?? process.argv[2]!

console.log(`1,000 requests answered, ${await answersRequests(socketPath)} signals`)
for (const vector of chainVectors) await survives(socketPath, vector)
console.log(`${chainVectors.length} chains, good and bad, had their outcome`)

await own?.server.close()
await rm(folder, { recursive: true })
