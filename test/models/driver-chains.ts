// Random chains that the test kit's driver puts onto a ring, read back by the native queue and by the reference model.
import fc from 'fast-check'
import { CompletionRow, type NativeQueue, type NativeRegion, native, SegmentRow } from '../../src/native.ts'
import { type Piece, ReferenceSplitQueue, SharedMemory, SplitDriver } from '../../src/testing/index.ts'
import { Disagreement, expectSame } from './expect-same.ts'

/** Chains that are on the ring at the same time. */
export interface DriverChains {
  readonly chains: readonly {
    readonly indirect: boolean
    readonly readable: readonly { readonly at: number; readonly lengthBytes: number }[]
    readonly writable: readonly { readonly at: number; readonly lengthBytes: number }[]
  }[]
}

const buffer = fc.record({ at: fc.nat(1000), lengthBytes: fc.integer({ min: 1, max: 3000 }) })
export const driverChains: fc.Arbitrary<DriverChains> = fc.record({
  chains: fc.array(
    fc
      .record({
        indirect: fc.boolean(),
        readable: fc.array(buffer, { maxLength: 3 }),
        writable: fc.array(buffer, { maxLength: 3 }),
      })
      .filter(({ readable, writable }) => readable.length + writable.length > 0),
    { minLength: 1, maxLength: 4 },
  ),
})

const SIZE = 32
const BUFFER_BYTES = 4096
const options = {
  sizeMax: SIZE,
  headerBytes: 0,
  statusByte: false,
  batchCountMax: SIZE,
  chainCountMax: 128,
  strictChains: false,
}

/** One driver and one device for all cases, so that the indices go round. */
export class ChainsStage {
  readonly #shared = new SharedMemory({ sizeBytes: 131_072 })
  readonly #driver = new SplitDriver({ memory: this.#shared, size: SIZE })
  readonly #buffersAt = this.#shared.allocate(BUFFER_BYTES)
  readonly #native: NativeQueue
  readonly #region: NativeRegion
  readonly #copy = new Uint8Array(this.#shared.sizeBytes)

  constructor() {
    const { fd, guestAddress, userAddress, sizeBytes } = this.#shared
    this.#region = native.mapRegion(fd, guestAddress, userAddress, BigInt(sizeBytes), 0n)
    this.#native = native.createSplitQueue(options)
    const { callFd } = this.#driver
    expectSame('start', this.#native.start({ ...this.#ring(), regions: [this.#region], callFd }), 0)
  }

  #ring() {
    const { descriptor, available, used } = this.#driver.addresses
    return {
      size: SIZE,
      descriptorAddress: descriptor,
      availableAddress: available,
      usedAddress: used,
      guestAddresses: false,
      availableBase: this.#driver.availableIndex,
      eventIdx: true,
      indirect: true,
    }
  }

  /** Puts chains onto the ring and reads them back. Throws unless they are the same, on both sides. */
  play({ chains }: DriverChains): void {
    const pieces = (buffers: readonly { at: number; lengthBytes: number }[], writable: boolean): Piece[] =>
      buffers.map(({ at, lengthBytes }) => ({
        address: this.#shared.guestAddressOf(this.#buffersAt + at),
        lengthBytes,
        writable,
      }))
    const wanted = chains.map(({ readable, writable }) => [
      ...pieces(readable, false),
      ...pieces(writable, true),
    ])
    // The model looks at a copy, from where the driver is about to go on.
    const start = this.#ring()
    for (const [index, { indirect }] of chains.entries()) void this.#driver.add(wanted[index]!, { indirect })
    this.#driver.publish()
    this.#copy.set(this.#shared.bytes)
    const model = new ReferenceSplitQueue(options)
    const { guestAddress, userAddress } = this.#shared
    model.start(start, [{ guestAddress, userAddress, bytes: this.#copy }])
    const theirs = model.take(SIZE)
    if (typeof theirs === 'string') throw new Disagreement(theirs)
    expectSame('requests taken', this.#native.take(SIZE), theirs.length)
    expectSame('chains', theirs.length, wanted.length)
    let segment = 0
    for (const [row, { head, readable, writable }] of theirs.entries()) {
      const chain = wanted[row]!
      const places = [...readable, ...writable]
      expectSame('device-readable buffers', readable.length, chain.filter((piece) => !piece.writable).length)
      expectSame('buffers', places.length, chain.length)
      for (const [index, { address, lengthBytes }] of chain.entries()) {
        const offsetBytes = Number(address - this.#shared.guestAddress)
        expectSame('offset', places[index]!.offsetBytes, offsetBytes)
        expectSame('length', places[index]!.lengthBytes, lengthBytes)
        const at = segment++ * SegmentRow.words
        expectSame('offset', this.#native.segments[at + SegmentRow.offsetBytes], offsetBytes)
        expectSame('length', this.#native.segments[at + SegmentRow.lengthBytes], lengthBytes)
      }
      const answer = row * CompletionRow.words
      this.#native.completions[answer + CompletionRow.head] = head
      this.#native.completions[answer + CompletionRow.bytesWritten] = 0
    }
    this.#native.complete(theirs.length, 0, false)
    this.#driver.collect()
  }

  close(): void {
    this.#native.close()
    this.#region.close()
    this.#driver.close()
    this.#shared.close()
  }
}
