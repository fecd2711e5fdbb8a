import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { cp, readFile, realpath, rename, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { COMPLAINT, machineCommand } from './guest.ts'
import { type RunningCommand, run, start } from './processes.ts'

/** One scenario of `test/front-ends/tcmu/scenarios` on one of its `servers`. */
export interface TcmuOrder {
  readonly scenario: string
  readonly server: string
  /** Arguments for the scenario; words without blanks. Default none. */
  readonly arguments?: readonly string[]
  /** Time the scenario may take, in seconds. Default 120. */
  readonly limitSeconds?: number
}

/** How a scenario went. */
export interface TcmuOutcome {
  /** 0 when every step succeeded; 124 or 137 at the time limit. */
  readonly status: number
  /** All that the scenario printed. */
  readonly log: string
  /** The scenario's lines `figure NAME VALUE [UNIT]`, in order. */
  readonly figures: ReadonlyMap<string, TcmuFigure>
  /** Lines in which the guest's kernel complains: errors of the disk, hung tasks, crashes, broken rings. */
  readonly complaints: readonly string[]
}

/** A number that a scenario found. */
export interface TcmuFigure {
  readonly value: number
  /** Empty for a count. */
  readonly unit: string
}

/** How a guest is put together. */
export interface TcmuGuestOptions {
  /**
   * True: one CPU whose clock counts its instructions, one a nanosecond, so that times in the guest do not depend on the
   * host. False: two CPUs. Default false.
   */
  readonly countsInstructions?: boolean
  /** Time the machine may live, in seconds. Default 1200. */
  readonly limitSeconds?: number
}

const MEMORY = '1024M'
const BROKEN_RING = /ring (is )?broken|Unexpected/
/** What the built package imports, and what that imports. */
const RUNTIME_MODULES = ['commander', 'eventemitter3', 'lru-cache', 'rxjs', 'tslib']
const root = join(import.meta.dirname, '../..')

/**
 * A machine with the real target_core_user driver. It boots to the host's root file system, read-only with all changes
 * in memory, and carries out one order after the other. It runs a copy of the built package, as files of the host must not
 * change under it.
 */
export class TcmuGuest {
  readonly #share: string
  readonly #machine: RunningCommand
  #orderCount = 0

  private constructor(share: string, machine: RunningCommand) {
    this.#share = share
    this.#machine = machine
  }

  /** Boots a machine and waits, about five seconds, until it takes orders. End it with {@link stop}. */
  static async boot(options: TcmuGuestOptions = {}): Promise<TcmuGuest> {
    const { countsInstructions = false, limitSeconds = 1200 } = options
    const share = await shareFolder()
    // Without ERMS a copy is counted by the word: a byte of `rep movsb` would count as an instruction, and what is counted
    // would be copies.
    const accelerator = countsInstructions
      ? '-cpu max,erms=off,fsrm=off -smp 1 -accel tcg,thread=single,tb-size=256 -icount shift=0,sleep=on'
      : '-smp 2 -accel tcg,thread=multi,tb-size=256'
    const machine = start(
      [
        ...(await machineCommand('tcmu/boot', 'nokaslr random.trust_cpu=on')),
        ...`${accelerator} -m ${MEMORY} -device virtio-rng-pci`.split(' '),
        ...folder('host', '/', ',readonly=on'),
        ...folder('share', share, ''),
      ],
      limitSeconds,
    )
    await machine.until(() => existsSync(join(share, 'ready')))
    return new TcmuGuest(share, machine)
  }

  /**
   * Carries out one order; not before the last one is done. After a scenario that failed, end the machine: its devices
   * may be in any state.
   *
   * @throws with the console when the machine ends first, as it does when its kernel panics
   */
  async carryOut(order: TcmuOrder): Promise<TcmuOutcome> {
    const { scenario, server, limitSeconds = 120 } = order
    await this.#give([limitSeconds, scenario, server, ...(order.arguments ?? [])].join(' '))
    const answer = (name: string): string => join(this.#share, `${this.#orderCount}.${name}`)
    const read = (name: string): Promise<string> => readFile(answer(name), 'utf8')
    await this.#machine.until(() => existsSync(answer('status')))
    const [status, log, kernel] = await Promise.all([read('status'), read('log'), read('kernel')])
    return {
      status: Number(status),
      log,
      figures: new Map(
        Array.from(log.matchAll(/^figure (\S+) (\S+) ?(.*)$/gm), ([, name, value, unit]) => [
          name!,
          { value: Number(value), unit: unit! },
        ]),
      ),
      complaints: kernel.split('\n').filter((line) => COMPLAINT.test(line) || BROKEN_RING.test(line)),
    }
  }

  /** Turns the machine off. @returns what its console showed */
  async stop(): Promise<string> {
    await this.#give('end')
    await this.#machine.exitStatus
    return this.#machine.stdout() + this.#machine.stderr()
  }

  async #give(words: string): Promise<void> {
    const path = join(this.#share, `${++this.#orderCount}.order`)
    await writeFile(`${path}.new`, words)
    await rename(`${path}.new`, path)
  }
}

/** QEMU's arguments for a folder of the host that the guest mounts by its tag. */
function folder(tag: string, path: string, options: string): string[] {
  const source = `local,id=${tag},path=${path},security_model=none,multidevs=remap${options}`
  return ['-fsdev', source, '-device', `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`]
}

/** Makes the folder that host and guest share: the guest's scripts, the package, and the path of Node. */
async function shareFolder(): Promise<string> {
  const share = mkdtempSync(join(tmpdir(), 'hushring-tcmu-'))
  process.once('exit', () => rmSync(share, { recursive: true, force: true }))
  await cp(join(root, 'test/front-ends/tcmu'), join(share, 'guest'), { recursive: true })
  const modules = RUNTIME_MODULES.map((name) => `node_modules/${name}`)
  const parts = ['package.json', 'dist', 'build/Release/hushring.node', ...modules]
  // One file: the guest needs seconds for hundreds of them, each time that it starts Node.
  await run(['tar', '--create', '-C', root, '--file', join(share, 'package.tar'), ...parts], 60)
  // By this path the guest finds it in the host's file system.
  await writeFile(join(share, 'node'), await realpath(process.execPath))
  return share
}
