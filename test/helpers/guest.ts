import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run, start } from './processes.ts'
import { guestTools, scriptsDirectory } from './tools.ts'

/** How a guest is put together. */
export interface GuestOptions {
  /** The script of `test/front-ends/guest` that the guest runs. */
  readonly scenario: 'disk' | 'entropy' | 'kills'
  /** Number of CPUs; default 1. */
  readonly cpuCount?: number
  /** Arguments for QEMU that add the devices under test. */
  readonly devices: readonly string[]
  /**
   * What happens outside while the guest runs.
   *
   * @param began settles when the scenario printed `result began`; rejects when the machine ended before
   */
  meanwhile?(began: Promise<void>): Promise<void>
}

/** What a guest left behind. */
export interface GuestReport {
  /** All that the guest's console showed. */
  readonly console: string
  /** The guest's `result NAME VALUE` lines. `status` is `0` when every step of the scenario succeeded. */
  readonly results: ReadonlyMap<string, string>
  /** The lines of the console in which the guest's kernel complains: errors of the disk, hung tasks, crashes. */
  readonly complaints: readonly string[]
}

/** A guest needs about 6 seconds; a machine that is busy and slow may take several times as long. */
const LIMIT_SECONDS = 90
const MEMORY = '512M'

/** What a kernel says when something is wrong: errors of the disk, hung tasks, crashes. */
export const COMPLAINT: RegExp =
  /I\/O error|EXT4-fs (error|warning)|hung|blocked for more than|stall|BUG:|WARNING:|Oops|panic|Call Trace/

/** Emulates a machine from power on to power off. The memory is shared, as vhost-user needs it. */
export async function bootGuest(options: GuestOptions): Promise<GuestReport> {
  const machine = start(
    [
      ...(await machineCommand('guest', `scenario=${options.scenario}`)),
      ...`-accel tcg,thread=multi -smp ${options.cpuCount ?? 1}`.split(' '),
      ...`-m ${MEMORY} -object memory-backend-memfd,id=memory,size=${MEMORY},share=on`.split(' '),
      ...'-numa node,memdev=memory'.split(' '),
      ...options.devices,
    ],
    LIMIT_SECONDS,
  )
  const began = machine.until(() => /^result began /m.test(machine.stdout()))
  began.catch(() => {})
  const meanwhile = options.meanwhile?.(began)
  meanwhile?.catch(() => {})
  const exitStatus = await machine.exitStatus
  const console = machine.stdout().replaceAll('\r', '') + machine.stderr()
  if (exitStatus !== 0) {
    throw new Error(`the guest did not power off (QEMU's status ${exitStatus})\n${console}`)
  }
  await meanwhile
  return {
    console,
    results: new Map(
      Array.from(console.matchAll(/^result (\S+) (.*)$/gm), ([, name, value]) => [name!, value!]),
    ),
    complaints: console.split('\n').filter((line) => COMPLAINT.test(line)),
  }
}

/**
 * The command line of a machine that boots from a folder of `test/front-ends`, as scripts/front-ends/guest.sh builds it.
 * CPUs, memory and devices are to be added.
 *
 * @param kernelParameters words for the kernel's command line beside those that all guests share
 */
export async function machineCommand(scripts: string, kernelParameters: string): Promise<readonly string[]> {
  if (!files.has(scripts)) files.set(scripts, buildFiles(scripts))
  const path = await files.get(scripts)!
  return [
    guestTools.qemu.path!,
    ...'-machine q35 -cpu max -nodefaults -no-reboot -display none -serial stdio'.split(' '),
    ...['-kernel', join(path, 'kernel'), '-initrd', join(path, 'initramfs'), '-append'],
    // A panic ends the machine at once; quiet leaves errors; the next two make an emulated boot shorter. RCU takes
    // an emulated CPU for stalled when the host is busy, which says nothing of the disk.
    'console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable rcupdate.rcu_cpu_stall_suppress=1 ' +
      kernelParameters,
  ]
}

/** Kernel and root file system are the same for all guests of a kind in a process, so they are built once. */
const files = new Map<string, Promise<string>>()

async function buildFiles(scripts: string): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'hushring-guest-'))
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  const scriptsPath = join(import.meta.dirname, '../front-ends', scripts)
  await run([join(scriptsDirectory, 'guest.sh'), guestTools.kernel.path!, scriptsPath, directory], 60)
  return directory
}
