import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { hushring } from '../helpers/back-ends.ts'
import { bootGuest } from '../helpers/guest.ts'
import { type Scope, temporaryDirectory } from '../helpers/processes.ts'
import { testWith } from '../helpers/scenarios.ts'
import { guestTools } from '../helpers/tools.ts'

const DISK_BYTES = 64 * 1024 * 1024
const WRITTEN_BYTES = 2 * 8 * 1024 * 1024
const KILL_COUNT = 4
/** From one kill to the next. QEMU tries to connect again once a second. */
const LIFE_MS = 2200

/** A device process that is killed and started again at the same socket. */
class MortalDevice {
  readonly #command: readonly string[]
  #child: ChildProcess | undefined

  constructor(scope: Scope, socketPath: string, imagePath: string) {
    this.#command = [
      ...hushring,
      ...['serve', 'vhost-user', '--socket', socketPath, '--file', imagePath, '--log-level', 'error'],
      // Writes stay in flight for a while, so that a kill finds some.
      ...['--layer', 'fault:delayMs=20,verbs=write'],
    ]
    scope.teardown(() => this.kill())
  }

  async start(): Promise<void> {
    const [file, ...args] = this.#command
    this.#child = spawn(file!, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(this.#child.stdout!, 'data')
  }

  async kill(): Promise<void> {
    if (this.#child === undefined) return
    const ended = once(this.#child, 'exit')
    this.#child.kill('SIGKILL')
    await ended
    this.#child = undefined
  }
}

testWith(
  Object.values(guestTools),
  'rows 51, 61: a Linux guest that writes and verifies does not notice that its disk is killed again and again',
  async (t) => {
    const directory = await temporaryDirectory(t)
    const socketPath = join(directory, 'disk.sock')
    const imagePath = join(directory, 'image')
    await using image = await open(imagePath, 'w+')
    await image.truncate(DISK_BYTES)
    const device = new MortalDevice(t, socketPath, imagePath)
    await device.start()
    let killCount = 0
    const report = await bootGuest({
      scenario: 'kills',
      devices: [
        ...['-chardev', `socket,id=disk,path=${socketPath},reconnect=1`],
        ...['-device', 'vhost-user-blk-pci,chardev=disk'],
      ],
      async meanwhile(began) {
        await began
        for (; killCount < KILL_COUNT; killCount++) {
          await sleep(LIFE_MS)
          await device.kill()
          await device.start()
        }
      },
    })
    await device.kill()
    t.is(report.results.get('status'), '0', report.console)
    t.deepEqual(report.complaints, [], report.console)
    t.is(killCount, KILL_COUNT, 'the guest was through before its disk was killed often enough')
    t.log(`${killCount} kills, ${report.results.get('rounds')} rounds`)
    const { buffer } = await image.read(Buffer.alloc(WRITTEN_BYTES), 0, WRITTEN_BYTES, 0)
    t.is(createHash('md5').update(buffer).digest('hex'), report.results.get('written')!)
  },
)
