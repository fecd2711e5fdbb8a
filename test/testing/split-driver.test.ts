import test, { type ExecutionContext } from 'ava'
import { SharedMemory, SplitDriver } from '../../src/testing/index.ts'

/** Runs `action` and returns what it did to the words of `driver` through Atomics, in order. */
function atomicAccesses(memory: SharedMemory, driver: SplitDriver, action: () => void): string[] {
  const at = (address: bigint): number => Number(address - memory.userAddress) / 2
  const { available, used } = driver.addresses
  const names = new Map([
    [at(available), 'avail.flags'],
    [at(available) + 1, 'avail.idx'],
    [at(available) + 2 + driver.size, 'used_event'],
    [at(used), 'used.flags'],
    [at(used) + 1, 'used.idx'],
    [at(used) + 2 + 4 * driver.size, 'avail_event'],
  ])
  const accesses: string[] = []
  const { load, store } = Atomics
  Atomics.load = ((words: Uint16Array, index: number) => {
    accesses.push(`load ${names.get(index)}`)
    return load(words, index)
  }) as typeof load
  Atomics.store = ((words: Uint16Array, index: number, value: number) => {
    // Entries of the available ring have no name: the index covers them.
    if (names.has(index)) accesses.push(`store ${names.get(index)}`)
    return store(words, index, value)
  }) as typeof store
  try {
    action()
  } finally {
    Object.assign(Atomics, { load, store })
  }
  return accesses
}

function ring(t: ExecutionContext, eventIdx: boolean): { memory: SharedMemory; driver: SplitDriver } {
  const memory = new SharedMemory()
  const driver = new SplitDriver({ memory, size: 8, eventIdx })
  t.teardown(() => {
    driver.close()
    memory.close()
  })
  return { memory, driver }
}

const touches = test.macro({
  exec(t, eventIdx: boolean, publish: readonly string[], collect: readonly string[]) {
    const { memory, driver } = ring(t, eventIdx)
    const piece = { address: memory.guestAddress, lengthBytes: 1, writable: true }
    t.deepEqual(
      atomicAccesses(memory, driver, () => void driver.submit([piece])),
      publish,
    )
    t.deepEqual(
      atomicAccesses(memory, driver, () => driver.collect()),
      collect,
    )
  },
  title: (_, eventIdx) =>
    `the driver in TypeScript stores, then loads, through Atomics alone ${eventIdx ? 'with EVENT_IDX' : 'with flags'}`,
})
test.serial(
  touches,
  true,
  ['store avail.idx', 'load avail_event'],
  ['load used.idx', 'store used_event', 'load used.idx'],
)
test.serial(
  touches,
  false,
  ['store avail.idx', 'load used.flags'],
  ['store avail.flags', 'load used.idx', 'store avail.flags', 'load used.idx'],
)
