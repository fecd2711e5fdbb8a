import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import type { HushringError } from '../../src/errors.ts'
import { blockDevice, memoryDisk } from '../../src/handlers/index.ts'
import {
  type VhostUserOptions,
  type VhostUserServer,
  vhostUser,
} from '../../src/transport/vhost-user/index.ts'
import { FakeGuest, type FakeGuestOptions } from './fake-guest.ts'
import { until } from './until.ts'

/** Size of the disks served here. */
export const CAPACITY_BYTES: number = 1024 * 1024

/** How long something made here lives: a test, as a rule. */
export type Lifetime = Pick<ExecutionContext, 'teardown'>

/** A server on a socket of its own, and everything it said. */
export interface Bench {
  readonly server: VhostUserServer
  readonly socketPath: string
  readonly log: string[]
  readonly events: string[]
  readonly errors: HushringError[]
}

/** An empty folder that goes with the test. */
export function temporaryFolder(t: Lifetime): string {
  const folder = mkdtempSync(join(tmpdir(), 'hushring-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/**
 * Serves a memory disk, or what the options say, until the test ends. The watchdog must have found nothing then, unless
 * the test has turned it off, because its driver breaks the rules.
 */
export async function listen(t: Lifetime, options: Partial<VhostUserOptions> = {}): Promise<Bench> {
  const socketPath = options.socketPath ?? join(temporaryFolder(t), 'disk.sock')
  const log: string[] = []
  const note = (message: string): void => void log.push(message)
  const server = await vhostUser.listen({
    device: memoryDisk({ capacityBytes: CAPACITY_BYTES }),
    logger: { error: note, warn: note, info: note, debug: note },
    queues: { countMax: 4 },
    watchdogMs: 100,
    ...options,
    ...(options.listenFd === undefined ? { socketPath } : {}),
  })
  t.teardown(async () => {
    await server.close()
    assert.equal(server.statsSnapshot().lostNotifications, 0, 'a wake-up was lost')
  })
  const events: string[] = []
  const errors: HushringError[] = []
  for (const name of ['listening', 'attached', 'detached', 'degraded', 'refused', 'closed'] as const) {
    server.on(name, (error?: HushringError) => {
      events.push(name)
      if (name === 'degraded' || name === 'refused') errors.push(error!)
    })
  }
  return { server, socketPath, log, events, errors }
}

/** Connects a guest that lives until the test ends. */
export async function start(
  t: ExecutionContext,
  bench: Bench,
  options: FakeGuestOptions = {},
): Promise<FakeGuest> {
  const guest = await FakeGuest.start(bench.socketPath, options)
  t.teardown(() => guest.close())
  return guest
}

/** A disk whose reads and writes wait until they are released, and count. */
export function heldDisk(): { device: VhostUserOptions['device']; held: (() => void)[] } {
  const held: (() => void)[] = []
  const hold = (): Promise<void> => new Promise((resolve) => held.push(resolve))
  const device = blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: async (io) => {
      await hold()
      io.data.fill(0xa5)
    },
    write: hold,
    flush: hold,
  })
  return { device, held }
}

/** Asserts that the server takes the next client. */
export async function expectServed(t: ExecutionContext, bench: Bench): Promise<void> {
  const guest = await FakeGuest.start(bench.socketPath)
  t.is((await guest.disk.read(0, 512)).length, 512)
  guest.close()
  await until(() => !bench.server.attached)
}
