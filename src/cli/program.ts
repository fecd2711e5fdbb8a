import { readFileSync } from 'node:fs'
import { Command, InvalidArgumentError, Option, type OutputConfiguration } from 'commander'
import { LAYERS, type Layer, layerFromText } from '../handlers/index.ts'
import { FILE_IO_WAYS } from '../handlers/stores/file-disk.ts'
import type { SuppressionPolicy } from '../notify/suppression.ts'
import type { BenchOptions } from './bench.ts'
import type { DemoOptions } from './demo.ts'
import { parseDevice } from './device-option.ts'
import { type FromText, rememberText } from './from-text.ts'
import type { LitmusCommandOptions } from './litmus.ts'
import { LOG_LEVELS } from './log.ts'
import type { ServeTcmuOptions } from './serve-tcmu.ts'
import type { ServeVhostUserOptions } from './serve-vhost-user.ts'
import { parseSize } from './sizes.ts'
import { parseDoorbell, parseSuppression } from './suppression-option.ts'

/** What the commands do; each resolves to the exit status. */
export interface Actions {
  demo(options: DemoOptions): Promise<number>
  litmus(options: LitmusCommandOptions): Promise<number>
  bench(options: BenchOptions): Promise<number>
  serveVhostUser(options: ServeVhostUserOptions): Promise<number>
  serveTcmu(options: ServeTcmuOptions): Promise<number>
}

/**
 * Makes the command line `hushring`. After it has printed help, a version or what is wrong with the usage, it throws a
 * `CommanderError`; it never ends the process.
 *
 * @param actions called with checked options
 * @param onExitStatus called with what the action resolved to
 * @param output where commander prints; default: the outputs of the process
 */
export function hushringProgram(
  actions: Actions,
  onExitStatus: (status: number) => void,
  output: OutputConfiguration = {},
): Command {
  const program = new Command('hushring')
    .description('Linux block devices and other virtio devices in TypeScript')
    .version(packageVersion())
    .exitOverride()
    .configureOutput(output)
  program
    .command('demo')
    .description(
      'drive a disk in this process in three ways of notification, and compare them; needs no root',
    )
    .option('--tcmu', 'serve it over TCMU to a simulated kernel, in three ways of ringing the doorbell')
    .addOption(new Option('--seconds <n>', 'time for each way').default(4).argParser(parseCount))
    .option('--json', 'one JSON object instead of a table')
    .addHelpText('after', DEMO_EXAMPLES)
    .action(async (options: DemoOptions) => onExitStatus(await actions.demo(options)))
  program
    .command('litmus')
    .description(
      'test on this machine whether a wake-up can be lost, with the barriers as shipped and without',
    )
    .addOption(new Option('--seconds <n>', 'time for all tests together').default(10).argParser(parseCount))
    .option('--json', 'one JSON object instead of tables')
    .addHelpText('after', LITMUS_EXAMPLES)
    .action(async (options: LitmusCommandOptions) => onExitStatus(await actions.litmus(options)))
  addBench(program, async (options) => onExitStatus(await actions.bench(options)))
  const serve = program.command('serve').description('serve a device to another process')
  addServeVhostUser(serve, async (options) => onExitStatus(await actions.serveVhostUser(options)))
  addServeTcmu(serve, async (options) => onExitStatus(await actions.serveTcmu(options)))
  return program
}

function addBench(parent: Command, action: (options: BenchOptions) => Promise<void>): void {
  parent
    .command('bench')
    .description("drive a vhost-user disk, hushring's or anybody's, and count what it costs to notify")
    .requiredOption('--socket <path>', 'where the back-end listens')
    .addOption(
      new Option('--depth <n,…>', 'requests in flight in each queue, one run for each')
        .default([1, 8, 32, 128], '1,8,32,128')
        .argParser((text: string) => text.split(',').map(parseCount)),
    )
    .option('--queues <n>', 'queues to use, a thread drives each', parseCount, 1)
    .option('--seconds <n>', 'length of a run', parseCount, 2)
    .addOption(
      new Option('--requests <n>', 'end a run after so many, if that is earlier')
        .default(0, 'no limit')
        .argParser(parseCount),
    )
    .addOption(
      new Option('--block-size <size>', 'size of a request').default(4096, '4KiB').argParser(parseSize),
    )
    .addOption(
      new Option('--writes <percent>', 'share of writes; what is there is overwritten')
        .default(0)
        .argParser(parsePercent),
    )
    .addOption(new Option('--sequential', 'one block after the other and not at random').conflicts('verify'))
    .option('--verify', 'write blocks first, and check every byte that is read; what is there is overwritten')
    .option('--segments <n>', 'pieces that the data of a request lies in, 1 to 126', parseCount, 1)
    .option('--queue-size <n>', 'entries of the ring, a power of two', parseCount, 256)
    .option('--no-event-idx', 'suppress notifications by flags only')
    .option('--json', 'one JSON object a run instead of a table')
    .addHelpText('after', BENCH_EXAMPLES)
    .action(action)
}

function addServeVhostUser(parent: Command, action: (options: ServeVhostUserOptions) => Promise<void>): void {
  const command = parent
    .command('vhost-user')
    .description('serve a device over a vhost-user socket, to QEMU, libblkio and the like')
    .optionsGroup('Where front-ends connect:')
    .option('--socket <path>', 'make the socket here; left out with socket activation (LISTEN_FDS)')
    .addOption(
      new Option('--socket-mode <mode>', 'who may connect, in octal: 660 for a group')
        .default(0o600, '600')
        .argParser(parseMode),
    )
    .option('--run <command>', 'run a shell command with $socket set, then stop and exit with its status')
  addStoreOptions(command)
  addDeviceOptions(command, 'blk, rng or a module such as ./my-device.js')
  command
    .optionsGroup('The rings:')
    .option('--queues <n>', 'most virtqueues (default: 1, or one for each worker)', parseCount)
    .option('--workers <n>', 'spread the queues over so many threads', parseCount)
    .option('--queue-size-max <n>', 'largest ring, a power of two', parseCount, 1024)
    .option('--no-event-idx', 'suppress notifications by flags only')
    .addOption(
      policyOption(
        '--suppression <policy>',
        'immediate, coalesce:N,MICROS, adaptive, or adaptive:MICROS with the longest busy poll',
        parseSuppression,
      ),
    )
    .option('--strict', 'a malformed request breaks its queue')
    .option('--watchdog <ms>', 'look so often for wake-ups that were lost, and make up for them', parseCount)
  addTellOptions(command)
  command.addHelpText('after', layerHelp).addHelpText('after', SERVE_VHOST_USER_EXAMPLES).action(action)
}

function addServeTcmu(parent: Command, action: (options: ServeTcmuOptions) => Promise<void>): void {
  const command = parent
    .command('tcmu')
    .description("serve a disk through the kernel's SCSI target (TCMU); needs root and target_core_user")
    .optionsGroup('Where initiators find it:')
    .addOption(
      new Option('--create <name>', 'make a device of this name; it is taken away at the end').conflicts(
        'uio',
      ),
    )
    .option('--uio </dev/uioN>', 'serve a device that exists')
    .addOption(
      new Option('--fabric <fabric>', 'loopback: a disk of this machine; none: link it yourself').choices([
        'loopback',
        'none',
      ]),
    )
  addStoreOptions(command)
  addDeviceOptions(command, 'blk, or a module such as ./my-device.js')
  command
    .optionsGroup('The ring:')
    .option('--max-data-area <size>', 'most memory for data in flight, whole MiB', parseSize)
    .option('--ring-size <size>', 'mailbox and command ring, 1MiB to 8MiB', parseSize)
    .option('--cmd-timeout <s>', 'the kernel fails a command after so long', parseCount)
    .addOption(policyOption('--doorbell <policy>', 'immediate, coalesce:N,MICROS or adaptive', parseDoorbell))
    .option('--lock-memory', 'lock programs and libraries in memory, to serve a disk of its own machine')
  addTellOptions(command)
  command.addHelpText('after', layerHelp).addHelpText('after', SERVE_TCMU_EXAMPLES).action(action)
}

function addStoreOptions(command: Command): void {
  command
    .optionsGroup('The store of a disk (SIZE: 512, 64KiB, 1GiB …):')
    .addOption(storeOption('--null <size>', 'reads zeros, forgets writes').argParser(parseSize))
    .addOption(storeOption('--memory <size>', 'lives as long as the process').argParser(parseSize))
    .addOption(storeOption('--file <path>', 'an image file or a block device'))
    .option('--size <size>', 'the size the file must have; it is made if there is none', parseSize)
    .option('--follow-symlinks', 'the file may be a symbolic link, as those in /dev/disk are')
    .addOption(
      new Option('--io <way>', 'who waits for the file: the kernel, a pool of threads; default auto').choices(
        FILE_IO_WAYS,
      ),
    )
    .option('--direct', 'past the page cache (O_DIRECT)')
}

function addDeviceOptions(command: Command, devices: string): void {
  command
    .optionsGroup('The device:')
    .addOption(
      new Option('--device <device>', devices).default(parseDevice('blk'), 'blk').argParser(parseDevice),
    )
    .option('--read-only', 'refuse writes, and tell the driver so')
    .option('--serial <text>', 'what the driver sees as the serial number, up to 20 characters')
    .option('--block-size <bytes>', '512 or 4096', parseBlockSize, 512)
    .option('--layer <name:key=value,…>', 'wrap the disk; again for more, the first one outermost', addLayer)
}

function addTellOptions(command: Command): void {
  command
    .optionsGroup('What is told:')
    .option('--stats <file>', 'keep statistics here, as JSON: each second and at the end')
    .addOption(
      new Option('--log-level <level>', 'how much goes to stderr').default('info').choices(LOG_LEVELS),
    )
    .option('--json', 'log JSON objects, one a line')
}

function policyOption(
  flags: string,
  description: string,
  parse: (text: string) => SuppressionPolicy,
): Option {
  const read = rememberText(parse)
  return new Option(flags, description).default(read('adaptive'), 'adaptive').argParser(read)
}

const STORE_NAMES = ['null', 'memory', 'file']

function storeOption(flags: string, description: string): Option {
  const option = new Option(flags, description)
  return option.conflicts(STORE_NAMES.filter((name) => name !== option.attributeName()))
}

function parseCount(text: string): number {
  if (/^\d{1,9}$/.test(text) && Number(text) > 0) return Number(text)
  throw new InvalidArgumentError('Write a whole number from 1.')
}

function parsePercent(text: string): number {
  if (/^\d{1,3}$/.test(text) && Number(text) <= 100) return Number(text)
  throw new InvalidArgumentError('Write a whole number from 0 to 100.')
}

function parseMode(text: string): number {
  if (/^0?[0-7]{3}$/.test(text)) return Number.parseInt(text, 8)
  throw new InvalidArgumentError('Use three octal digits, such as 600 or 660.')
}

function parseBlockSize(text: string): 512 | 4096 {
  if (text === '512') return 512
  if (text === '4096') return 4096
  throw new InvalidArgumentError('Use 512 or 4096.')
}

const readLayer = rememberText(layerFromText)

function addLayer(text: string, layers: readonly FromText<Layer>[] = []): readonly FromText<Layer>[] {
  try {
    return [...layers, readLayer(text)]
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}

function packageVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  return (JSON.parse(text) as { version: string }).version
}

function layerHelp(): string {
  const lines = LAYERS.flatMap(({ name, help, options }) => [
    `  ${name.padEnd(12)}${help}`,
    ...Object.entries(options).map(([key, { type, help }]) => `    ${`${key}=${type}`.padEnd(26)}${help}`),
  ])
  return ['', 'Layers, outermost first (--layer NAME:KEY=VALUE,…):', ...lines].join('\n')
}

const DEMO_EXAMPLES = `
Examples:
  hushring demo
  hushring demo --tcmu
  hushring demo --seconds 1 --json
`

const LITMUS_EXAMPLES = `
Uses two CPUs wholly while it runs. Exit status: 0 nothing was lost as shipped, and each weakened build did lose;
1 a wake-up was lost as shipped, or the tests failed; 2 wrong usage; 3 this machine could not show it: some weakened
build lost nothing either; 4 not run: this process may use one CPU only.

Examples:
  hushring litmus
  hushring litmus --seconds 60 --json
`

const BENCH_EXAMPLES = `
Exit status: 0 done, 1 the back-end failed requests, mixed up bytes, lost a signal or cannot be reached, 2 wrong usage.

Examples:
  hushring bench --socket ./d.sock
  hushring bench --socket ./d.sock --depth 32 --writes 50 --verify
  Two back-ends, each on a processor of its own:
    taskset -c 1 hushring bench --socket ./ours.sock --json
    taskset -c 1 hushring bench --socket ./theirs.sock --json
`

const SERVE_VHOST_USER_EXAMPLES = `
Prints "ready vhost-user PATH" when it can accept a front-end. SIGTERM or SIGINT drains, removes the socket and exits
with 0; a second one exits at once. Exit status: 0 done, 1 failed, 2 wrong usage.

Examples:
  A disk in a file, for QEMU (-chardev socket,id=c,path=./d.sock -device vhost-user-blk-pci,chardev=c, shared memory):
    hushring serve vhost-user --socket ./d.sock --file disk.img --size 1GiB
  A slow and unreliable disk, to see how a guest takes it:
    hushring serve vhost-user --socket ./d.sock --memory 256MiB --layer fault:errorPercent=1 --layer trace
  A disk for the length of one command:
    hushring serve vhost-user --memory 64MiB --run 'blkio-bench virtio-blk-vhost-user path=$socket'
  Two queues, each served by a thread of its own:
    hushring serve vhost-user --socket ./d.sock --file disk.img --workers 2
  A device of your own, with statistics to look at:
    hushring serve vhost-user --socket ./d.sock --device ./my-device.js --stats stats.json
`

const SERVE_TCMU_EXAMPLES = `
Prints "ready tcmu /dev/uioN" when initiators can use it, with --create also the disk: "ready tcmu /dev/uioN /dev/sdX".
SIGTERM or SIGINT takes the device away, answers what is in flight and exits with 0; a second one exits at once.
SIGHUP gives the disk the size that its file has now. After a crash the same command goes on where it was.
Exit status: 0 done, 1 failed, 2 wrong usage.

Examples:
  A disk of this machine, /dev/sdX, in a file:
    hushring serve tcmu --create disk0 --file disk.img --size 1GiB
  A device that something else made:
    hushring serve tcmu --uio /dev/uio0 --memory 256MiB
  Fewer doorbells: up to 32 answers wait for each other, for at most 100 µs:
    hushring serve tcmu --create disk0 --file disk.img --doorbell coalesce:32,100
`
