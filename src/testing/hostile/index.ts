import { randomUUID } from 'node:crypto'
import { HushringError } from '../../errors.ts'
import { BackEndError } from '../vhost-user-front-end.ts'
import { BlockFeature, blockRequestRows } from './block-requests.ts'
import { chainRows } from './chains.ts'
import { messageRows } from './messages.ts'
import { resourceRows } from './resources.ts'
import type { HostileOutcome, HostileRow } from './row.ts'
import { Stage } from './stage.ts'

export { type ProcessVitals, processVitals } from './process-vitals.ts'
export type { HostileExpectation, HostileOutcome, HostileRow } from './row.ts'

/** Every bad input that a vhost-user front-end and its driver can give to a disk, by the numbers of their rows. */
export const hostileRows: readonly HostileRow[] = [
  ...chainRows,
  ...blockRequestRows,
  ...messageRows,
  ...resourceRows,
].sort((one, other) => one.row - other.row)

/** Options of {@link playHostileRow}. */
export interface HostileOptions {
  /** Where the back-end listens. */
  readonly socketPath: string
  /** How long to wait for anything before it counts as no answer, in ms. Default 5000. */
  readonly limitMs?: number
  /** For the rows that choose at random: the same number, the same choices. Default: 1. */
  readonly seed?: number
}

/** What came of a row. */
export interface HostileResult {
  readonly outcome: HostileOutcome
  /** Connections that were made. */
  readonly connectionCount: number
}

/**
 * Plays one row against a back-end: any virtio-blk device over vhost-user with two queues or more, at least 1 MiB and
 * SET_VRING_ERR. Everything that the row made is gone when this resolves. It says what was seen from this side of the
 * socket; whether the back-end still lives, leaks or spins, {@link playHealthyFrontEnd} and {@link processVitals} tell.
 *
 * Rejects when nobody listens any more.
 */
export async function playHostileRow(row: HostileRow, options: HostileOptions): Promise<HostileResult> {
  const { socketPath, limitMs = 5000, seed = 1 } = options
  const stage = new Stage(socketPath, limitMs, seed)
  try {
    // A row that does a lot takes many steps, each of which may take so long.
    const outcome = await stage.inTime(row.play(stage), 'no answer', 10 * limitMs)
    return { outcome, connectionCount: stage.connectionCount }
  } catch (error) {
    return { outcome: outcomeOf(error), connectionCount: stage.connectionCount }
  } finally {
    stage.close()
  }
}

function outcomeOf(error: unknown): HostileOutcome {
  if (error instanceof BackEndError) return error.reason === 'hung up' ? 'protocol error' : 'request fails'
  // What arrived was no answer, or nobody takes what is sent.
  if (error instanceof HushringError && error.family === 'peer') return 'no answer'
  throw error
}

/**
 * What a well-behaved front-end does, to show that a back-end is none the worse for what came before: it negotiates,
 * writes 16 KiB to the disk, flushes, reads it back, and hangs up. A read-only disk is only read. Rejects when anything is not as it must be.
 */
export async function playHealthyFrontEnd({ socketPath, limitMs = 5000 }: HostileOptions): Promise<void> {
  const stage = new Stage(socketPath, limitMs, 1)
  try {
    const isHealthy = await stage.inTime(writeAndRead(stage), undefined)
    if (isHealthy === undefined) throw new Error('the back-end does not answer a well-behaved front-end')
    if (!isHealthy) throw new Error('the disk does not give back what was written to it')
  } finally {
    stage.close()
  }
}

async function writeAndRead(stage: Stage): Promise<boolean> {
  const { disk, frontEnd } = await stage.guest()
  const data = Buffer.alloc(16384, randomUUID())
  if ((frontEnd.features & BlockFeature.RO) !== 0n) return (await disk.read(0, data.length)).length > 0
  await disk.write(0, data)
  await disk.flush()
  return data.equals(await disk.read(0, data.length))
}
