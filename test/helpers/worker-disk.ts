// Devices for worker threads. What a test wants of one of them it writes to or reads from a place of the disk.
import { threadId } from 'node:worker_threads'
import type { BlockDevice } from '../../src/handlers/device.ts'
import { blockDevice, nullDisk } from '../../src/handlers/index.ts'
import { coalesce, type SuppressionPolicy } from '../../src/notify/suppression.ts'

export const CAPACITY_BYTES: number = 1024 * 1024

/** Places of the disk with a meaning. */
export const At = {
  /** Read: the id of the thread that serves the queue, as u32. */
  threadId: CAPACITY_BYTES - 512,
  /** Read: waits until the first word of the gate is not 0. */
  held: CAPACITY_BYTES - 2 * 512,
  /** Write: an exception that nobody catches, in a later turn, and no answer. */
  throws: CAPACITY_BYTES - 3 * 512,
  /** Write: process.exit(7), and no answer. */
  exits: CAPACITY_BYTES - 4 * 512,
  /** Write: an endless loop. */
  loops: CAPACITY_BYTES - 5 * 512,
  /** Write: fails. */
  fails: CAPACITY_BYTES - 6 * 512,
} as const

export interface WorkerDiskOptions {
  /** CAPACITY_BYTES, shared by all workers. */
  readonly bytes: SharedArrayBuffer
  /** Two words of 32 bits: whether held reads may go on; how many reads were held and loops begun. */
  readonly gate: SharedArrayBuffer
}

/** What a test shares with its workers. */
export function sharedDisk(): WorkerDiskOptions {
  return { bytes: new SharedArrayBuffer(CAPACITY_BYTES), gate: new SharedArrayBuffer(8) }
}

/** Lets held reads go on. */
export function openGate({ gate }: WorkerDiskOptions): void {
  const words = new Int32Array(gate)
  Atomics.store(words, 0, 1)
  Atomics.notify(words, 0)
}

export function closeGate({ gate }: WorkerDiskOptions): void {
  new Int32Array(gate).fill(0)
}

export function heldCount({ gate }: WorkerDiskOptions): number {
  return Atomics.load(new Int32Array(gate), 1)
}

export default function workerDisk({ bytes, gate }: WorkerDiskOptions): BlockDevice {
  const memory = Buffer.from(bytes)
  const words = new Int32Array(gate)
  const never = new Promise<void>(() => {})
  return blockDevice({
    capacityBytes: CAPACITY_BYTES,
    async read(io) {
      if (io.offsetBytes === At.held) {
        Atomics.add(words, 1, 1)
        await Atomics.waitAsync(words, 0, 0).value
      }
      io.data.copyFrom(memory, io.offsetBytes)
      if (io.offsetBytes === At.threadId) io.data.copyFrom(Buffer.from(new Uint32Array([threadId]).buffer))
    },
    write(io) {
      switch (io.offsetBytes) {
        case At.throws:
          setImmediate(() => {
            throw new RangeError('in the worker')
          })
          return never
        case At.exits:
          return process.exit(7)
        case At.loops:
          Atomics.add(words, 1, 1)
          for (;;);
        case At.fails:
          throw new Error('as asked')
        default:
          io.data.copyTo(memory, io.offsetBytes)
      }
    },
    flush() {},
  })
}

/** A device itself, and no function. */
export const readyMade: BlockDevice = nullDisk({ capacityBytes: CAPACITY_BYTES })

/** Another disk in each thread. */
export function unlike(): BlockDevice {
  return nullDisk({ capacityBytes: 512 * (100 + threadId) })
}

export function throwsText(): never {
  throw 'no error at all'
}

export function exits(): never {
  process.exit(3)
}

export const nonsense = { kind: 'block' }

/** Without `countMax` an option is missing. */
export function policy(options: { countMax: number; holdMicrosMax: number }): SuppressionPolicy {
  return coalesce(options)
}
