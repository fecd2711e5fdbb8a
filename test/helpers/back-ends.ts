import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Scope, start, temporaryDirectory } from './processes.ts'
import { storageDaemon } from './tools.ts'

/** What a back-end is asked to serve. */
export interface ServeOptions {
  /**
   * An image file, a disk of so many bytes that forgets what is written and reads as zeros, or (hushring only) one in
   * memory.
   */
  readonly store:
    | { readonly imagePath: string }
    | { readonly nullBytes: number }
    | { readonly memoryBytes: number }
  /** Which device; default `blk`. qemu-storage-daemon knows only that one. */
  readonly device?: 'blk' | 'rng'
  /** Number of request queues; default 1. */
  readonly queueCount?: number
  /** Default false. */
  readonly readOnly?: boolean
  /** The longest the back-end lives. Default 120: longer than any one test takes. */
  readonly limitSeconds?: number
}

/** A back-end that accepts a front-end. */
export interface BackEnd {
  readonly socketPath: string
  /**
   * Stops the back-end. Of hushring it demands good order: exit status 0, no socket file left, and by its own
   * statistics at least one request, none failed, none in flight, no notification lost and no queue broken.
   */
  stop(): Promise<void>
}

/** Starts one kind of back-end, for the length of a scope at most. */
export type Serve = (scope: Scope, options: ServeOptions) => Promise<BackEnd>

const LIMIT_SECONDS = 120

/** The program that is tested: `$HUSHRING_COMMAND`, words separated by blanks, or the built command line tool. */
export const hushring: readonly string[] = process.env.HUSHRING_COMMAND?.split(' ') ?? [
  process.execPath,
  join(import.meta.dirname, '../../dist/cli/main.js'),
]

/**
 * Serves with hushring's command line tool.
 *
 * @param extraArguments more arguments for `hushring serve vhost-user`
 */
export async function serveWithHushring(
  scope: Scope,
  options: ServeOptions,
  extraArguments: readonly string[] = [],
): Promise<BackEnd & { readonly statsPath: string }> {
  const directory = await temporaryDirectory(scope)
  const socketPath = join(directory, 'hushring.sock')
  const statsPath = join(directory, 'stats.json')
  const { store } = options
  const storeWords =
    'imagePath' in store
      ? ['--file', store.imagePath]
      : 'nullBytes' in store
        ? ['--null', String(store.nullBytes)]
        : ['--memory', String(store.memoryBytes)]
  const command = start(
    [
      ...hushring,
      ...['serve', 'vhost-user', '--socket', socketPath, ...storeWords, '--stats', statsPath],
      ...['--device', options.device ?? 'blk', '--queues', String(options.queueCount ?? 1)],
      // Longer than a virtual processor is kept from the kick that follows its request.
      ...['--watchdog', '1000'],
      ...(options.readOnly ? ['--read-only'] : []),
      ...extraArguments,
    ],
    options.limitSeconds ?? LIMIT_SECONDS,
  )
  scope.teardown(() => command.stop())
  await command.until(() => /^ready vhost-user /m.test(command.stdout()))
  return {
    socketPath,
    statsPath,
    async stop() {
      const status = await command.stop()
      assert.equal(status, 0, `hushring exited with status ${status}\n${command.stderr()}`)
      assert(!existsSync(socketPath), 'the socket file is left behind')
      const { requests, errors, inFlight, lostNotifications, brokenQueues } = JSON.parse(
        await readFile(statsPath, 'utf8'),
      )
      assert(requests > 0, 'the statistics count no request')
      assert.deepEqual(
        { errors, inFlight, lostNotifications, brokenQueues },
        { errors: 0, inFlight: 0, lostNotifications: 0, brokenQueues: 0 },
      )
    },
  }
}

function blockdevOf(store: ServeOptions['store']): string {
  if ('imagePath' in store) return `driver=file,filename=${store.imagePath}`
  assert('nullBytes' in store, 'it has no disk in memory')
  return `driver=null-co,size=${store.nullBytes},read-zeroes=on`
}

/**
 * Serves with QEMU's own back-end.
 *
 * @param blockdev the store in QEMU's words, when it is to be another one than the options name
 */
export async function serveWithStorageDaemon(
  scope: Scope,
  options: ServeOptions,
  blockdev: string = blockdevOf(options.store),
): Promise<BackEnd> {
  const directory = await temporaryDirectory(scope)
  const socketPath = join(directory, 'peer.sock')
  const pidPath = join(directory, 'pid')
  const writable = options.readOnly ? 'off' : 'on'
  const command = start(
    [
      ...[storageDaemon.path!, '--pidfile', pidPath, '--blockdev', `${blockdev},node-name=store`],
      '--export',
      `type=vhost-user-blk,id=disk,node-name=store,addr.type=unix,addr.path=${socketPath},` +
        `writable=${writable},num-queues=${options.queueCount ?? 1}`,
    ],
    options.limitSeconds ?? LIMIT_SECONDS,
  )
  scope.teardown(() => command.stop())
  // It writes its pid when the socket listens, and prints nothing.
  await command.until(() => existsSync(pidPath))
  // How it exits is no matter of ours: version 7.2 may abort when it is stopped while a client leaves.
  return { socketPath, stop: async () => void (await command.stop()) }
}
