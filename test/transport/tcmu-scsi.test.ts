import test from 'ava'
import {
  type BlockDevice,
  type BlockRequest,
  cache,
  compose,
  fault,
  type Layer,
  memoryDisk,
  mirror,
  retry,
  scsiDevice,
  timeout,
} from '../../src/handlers/index.ts'
import type { ScsiCommand } from '../../src/testing/index.ts'
import { MiB } from '../../src/units.ts'
import { pattern } from '../helpers/block-requests.ts'
import { cdb10, cdb16, compareAndWriteCdb, hex, unmapCdb, unmapList } from '../helpers/scsi-commands.ts'
import { read, serveOn, statusOf, type TcmuBench, write } from '../helpers/tcmu-bench.ts'

/*
 * SCSI disks through the whole stack: the kernel's ring, the SCSI commands, layers and a store. What each command does
 * in every case is tested without a ring in test/handlers.
 */

const CAPACITY_BYTES = 8 * MiB
const BLOCK = 512
const BLOCK_COUNT = CAPACITY_BYTES / BLOCK
const UNMAP_FLAG = 0x08
const NO_DATA_OUT_FLAG = 0x01

/** A disk that is full of a pattern, and what must be on it. */
class ServedDisk {
  readonly bench: TcmuBench
  readonly expected: Buffer

  private constructor(bench: TcmuBench, expected: Buffer) {
    this.bench = bench
    this.expected = expected
  }

  static async on(t: Parameters<typeof serveOn>[0], disk: BlockDevice): Promise<ServedDisk> {
    const served = new ServedDisk(serveOn(t, disk), pattern(CAPACITY_BYTES))
    for (let at = 0; at < CAPACITY_BYTES; at += MiB) {
      const answer = await write(served.bench.kernel, at / BLOCK, served.expected.subarray(at, at + MiB))
      t.is(statusOf(answer), 'GOOD')
    }
    return served
  }

  async send(cdb: Buffer, dataOut?: Buffer, dataInBytes?: number): Promise<string> {
    return statusOf(await this.#submit(cdb, dataOut, dataInBytes))
  }

  async ask(cdb: Buffer, dataInBytes: number): Promise<Buffer> {
    return (await this.#submit(cdb, undefined, dataInBytes)).dataIn
  }

  #submit(cdb: Buffer, dataOut: Buffer | undefined, dataInBytes: number | undefined) {
    const command: ScsiCommand = {
      cdb,
      ...(dataOut !== undefined && { dataOut }),
      ...(dataInBytes !== undefined && { dataInBytes }),
    }
    return this.bench.kernel.submit(command)
  }

  /** The first block that is not as expected. */
  async wrongBlock(): Promise<number | undefined> {
    for (let at = 0; at < CAPACITY_BYTES; at += MiB) {
      const { dataIn } = await read(this.bench.kernel, at / BLOCK, MiB / BLOCK)
      const expected = this.expected.subarray(at, at + MiB)
      for (let byte = 0; byte < MiB; byte += BLOCK) {
        if (!dataIn.subarray(byte, byte + BLOCK).equals(expected.subarray(byte, byte + BLOCK)))
          return (at + byte) / BLOCK
      }
    }
    return undefined
  }

  expectBlocks(lba: number, count: number, block: Buffer): void {
    this.expected.fill(block, lba * BLOCK, (lba + count) * BLOCK)
  }
}

const ZEROS = Buffer.alloc(BLOCK)
const memory = (): BlockDevice => memoryDisk({ capacityBytes: CAPACITY_BYTES })

const STACKS: Readonly<Record<string, () => readonly Layer[]>> = {
  alone: () => [],
  'behind a cache': () => [cache({ sizeBytes: MiB })],
  'behind a timeout and a retry': () => [timeout({ ms: 60_000 }), retry({ count: 2 })],
  'with a mirror': () => [mirror({ to: memory() })],
  'that is slow': () => [fault({ delayMs: 1 })],
  'that fails now and then, with a retry': () => [
    retry({ count: 1000 }),
    fault({ errorPercent: 30, seed: 7 }),
  ],
}

const changesBlocks = test.macro({
  async exec(t, stack: string) {
    const served = await ServedDisk.on(t, compose(memory(), STACKS[stack]!()))
    const block = pattern(BLOCK, 9)

    const provisioning = await served.ask(hex('12 01 b2 00ff 00'), 255)
    t.is(provisioning.toString('hex', 4), '00e40200', 'LBPU, LBPWS, LBPWS10 and LBPRZ, thin')
    const [, , , , ...limits] = await served.ask(hex('12 01 b0 00ff 00'), 255)
    t.true(Buffer.from(limits).readUInt32BE(16) > 0)

    // At borders of the store's MiB and of 4 KiB, beside them, and across them; an empty one, and one twice.
    const ranges = [
      [0, 1],
      [7, 9],
      [2047, 2],
      [4096, 2048],
      [9000, 0],
      [10_001, 33],
      [10_001, 33],
    ] as const
    const list = unmapList(...ranges, [BLOCK_COUNT - 3, 3])
    t.is(await served.send(unmapCdb(list.length), list), 'GOOD')
    for (const [lba, count] of [...ranges, [BLOCK_COUNT - 3, 3] as const])
      served.expectBlocks(lba, count, ZEROS)
    t.is(await served.wrongBlock(), undefined, 'UNMAP')

    t.is(await served.send(cdb10(0x41, 100, 65), block), 'GOOD')
    served.expectBlocks(100, 65, block)
    t.is(await served.send(cdb16(0x93, 3000, 2050), block), 'GOOD')
    served.expectBlocks(3000, 2050, block)
    t.is(await served.send(cdb10(0x41, 3003, 7, UNMAP_FLAG), ZEROS), 'GOOD')
    served.expectBlocks(3003, 7, ZEROS)
    t.is(await served.send(cdb16(0x93, 101, 1, UNMAP_FLAG | NO_DATA_OUT_FLAG)), 'GOOD')
    served.expectBlocks(101, 1, ZEROS)
    // What cannot be unmapped, because it is no zeros, is written.
    t.is(await served.send(cdb16(0x93, 7, 3, UNMAP_FLAG), block), 'GOOD')
    served.expectBlocks(7, 3, block)
    t.is(await served.wrongBlock(), undefined, 'WRITE SAME')

    const swap = Buffer.concat([served.expected.subarray(99 * BLOCK, 102 * BLOCK), pattern(3 * BLOCK, 11)])
    t.is(await served.send(compareAndWriteCdb(99, 3), swap), 'GOOD')
    pattern(3 * BLOCK, 11).copy(served.expected, 99 * BLOCK)
    t.is(await served.send(compareAndWriteCdb(99, 3), swap), 'E/1D/00')
    t.is(await served.send(cdb10(0x2f, 99, 3, 0x02), pattern(3 * BLOCK, 11)), 'GOOD')
    t.is(await served.send(cdb10(0x2f, 99, 3, 0x06), block), 'E/1D/00')

    // What is refused changes nothing, not even its good half.
    const past = unmapList([500, 10], [BLOCK_COUNT - 1, 2])
    t.is(await served.send(unmapCdb(past.length), past), '5/21/00')
    t.is(await served.send(unmapCdb(past.length), past.subarray(0, 24)), '5/24/00')
    t.is(await served.send(cdb16(0x93, 2n ** 64n - 1n, 2), block), '5/21/00')
    t.is(await served.send(cdb10(0x41, 0, 0), block), '5/24/00')
    t.is(await served.send(cdb10(0x41, 0, 1)), '5/24/00')
    t.is(await served.wrongBlock(), undefined, 'in the end')
    t.is(served.bench.kernel.fault, undefined)
    t.deepEqual(served.bench.degraded, [])
  },
  title: (_, stack) =>
    `UNMAP, WRITE SAME and COMPARE AND WRITE change their blocks and no others of a disk ${stack}`,
})
for (const stack of Object.keys(STACKS)) test(changesBlocks, stack)

test('the comparison of the blocks notices one that was not unmapped (control)', async (t) => {
  const served = await ServedDisk.on(
    t,
    memory().wrap((next) => (io: BlockRequest) => (io.verb === 'writeZeroes' ? io.ok() : next(io))),
  )
  const list = unmapList([7, 1])
  t.is(await served.send(unmapCdb(list.length), list), 'GOOD')
  served.expectBlocks(7, 1, ZEROS)
  t.is(await served.wrongBlock(), 7)
})

test('sense data out of its ranges is told as a fault of the device, not as another condition', async (t) => {
  const right = { key: 5, asc: 0x24, ascq: 0 }
  const wrong: readonly object[] = [
    {},
    { ...right, key: 0x15 },
    { ...right, key: '5' },
    { ...right, asc: 0x124 },
    { ...right, ascq: Number.NaN },
    { ...right, information: -1 },
    { ...right, information: 1.5 },
    { ...right, information: 5n },
    { ...right, field: { byte: 65_536 } },
    { ...right, field: { byte: 1, bit: 8 } },
    { ...right, field: {} },
  ]
  const device = scsiDevice({
    handler: (io) => io.checkCondition((wrong[io.cdb[4]!] ?? right) as never),
  })
  const { kernel } = serveOn(t, device)
  for (let index = 0; index < wrong.length; index++) {
    const answer = await kernel.submit({ cdb: Buffer.of(0, 0, 0, 0, index, 0) })
    t.is(
      statusOf(answer),
      '4/44/00',
      JSON.stringify(wrong[index], (_, value) => String(value)),
    )
  }
  t.is(statusOf(await kernel.submit({ cdb: Buffer.of(0, 0, 0, 0, wrong.length, 0) })), '5/24/00')
})
