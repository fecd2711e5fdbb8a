import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { native } from '../../src/native.ts'
import { loadBlockDevice, VhostUserFrontEnd, VhostUserGuest } from '../../src/testing/index.ts'
import { socketPair } from '../../src/testing/socket-pair.ts'
import { hushring } from '../helpers/back-ends.ts'
import { temporaryDirectory } from '../helpers/processes.ts'

/** A running `hushring serve vhost-user`. */
interface Server {
  readonly output: { stdout: string; stderr: string }
  readonly process: ChildProcess
  /** The exit status, or the name of the signal that ended it. */
  readonly end: Promise<number | NodeJS.Signals>
}

interface ServeOptions {
  readonly environment?: NodeJS.ProcessEnv
  /** What the server has as file descriptor 3. */
  readonly fd3?: number
  /** Words before the command, such as a shell that execs it. */
  readonly wrapper?: readonly string[]
}

/** Starts a server, which ends with the test at the latest. */
function serve(t: ExecutionContext, words: readonly string[], options: ServeOptions = {}): Server {
  const [file, ...args] = [...(options.wrapper ?? []), ...hushring, 'serve', 'vhost-user', ...words]
  const child = spawn(file!, args, {
    stdio: ['ignore', 'pipe', 'pipe', options.fd3 ?? 'ignore'],
    env: { ...process.env, ...options.environment },
  })
  t.teardown(() => child.kill('SIGKILL'))
  const output = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]!.setEncoding('utf8').on('data', (text: string) => {
      output[name] += text
    })
  }
  const end = once(child, 'close').then(([status, signal]) => status ?? signal)
  return { output, process: child, end }
}

/** Starts a server and waits until it is ready. */
async function serveReady(
  t: ExecutionContext,
  words: readonly string[],
  options?: ServeOptions,
): Promise<Server> {
  const server = serve(t, words, options)
  const ended = server.end.then((status) => {
    throw new Error(`ended with ${status}: ${server.output.stderr}`)
  })
  await Promise.race([ended, until(() => server.output.stdout.endsWith('\n'))])
  ended.catch(() => {})
  return server
}

/** Looks every 10 ms until a condition holds. The test's own timeout is the limit. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await sleep(10)
}

/** Writes a module that can import hushring wherever it is. @returns its path */
async function writeModule(t: ExecutionContext, text: string): Promise<string> {
  const path = join(await temporaryDirectory(t), 'device.mjs')
  const library = join(import.meta.dirname, '../../dist/index.js')
  await writeFile(path, text.replace("'hushring'", `'${library}'`))
  return path
}

async function socketPath(t: ExecutionContext): Promise<string> {
  return join(await temporaryDirectory(t), 'd.sock')
}

// ---- A life ------------------------------------------------------------------------------------------------------

const STATS_NAMES = [
  ...['requests', 'reads', 'writes', 'flushes', 'errors', 'bytesRead', 'bytesWritten', 'kicks', 'signals'],
  ...['suppressed', 'batches', 'lostNotifications', 'brokenQueues', 'inFlight', 'connections'],
]

const endsInGoodOrder = test.macro({
  async exec(t, signal: NodeJS.Signals) {
    const socket = await socketPath(t)
    const stats = join(dirname(socket), 'stats.json')
    const server = await serveReady(t, ['--socket', socket, '--memory', '1MiB', '--stats', stats])
    t.is(statSync(socket).mode & 0o777, 0o600)
    native.closeFd(native.unixConnect(socket))
    await until(() => /the front-end is gone/.test(server.output.stderr))
    server.process.kill(signal)
    t.is(await server.end, 0)
    t.false(existsSync(socket))
    t.is(server.output.stdout, `ready vhost-user ${socket}\n`)
    const counts = JSON.parse(await readFile(stats, 'utf8'))
    for (const name of STATS_NAMES) t.is(counts[name], name === 'connections' ? 1 : 0, name)
    t.is(statSync(stats).mode & 0o777, 0o600)
  },
  title: (_, signal) =>
    `${signal} ends a server with status 0, without its socket, and with statistics on file`,
})
test(endsInGoodOrder, 'SIGTERM')
test(endsInGoodOrder, 'SIGINT')

test('a second signal ends a server at once that cannot come to its end', async (t) => {
  const device = await writeModule(
    t,
    `import { nullDisk } from 'hushring'
     setInterval(() => {}, 1000)
     export default { ...nullDisk({ capacityBytes: 512 }), close: () => new Promise(() => {}) }`,
  )
  const socket = await socketPath(t)
  const server = await serveReady(t, ['--socket', socket, '--device', device])
  server.process.kill('SIGTERM')
  await until(() => !existsSync(socket))
  t.is(server.process.exitCode, null)
  server.process.kill('SIGTERM')
  t.is(await server.end, 1)
})

test('logs are lines on stderr, and JSON on request', async (t) => {
  const socket = await socketPath(t)
  const server = await serveReady(t, ['--socket', socket, '--null', '1GiB', '--json', '--log-level', 'debug'])
  native.closeFd(native.unixConnect(socket))
  await until(() => server.output.stderr.includes('gone'))
  server.process.kill()
  t.is(await server.end, 0)
  const lines = server.output.stderr
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
  t.true(lines.length > 0)
  for (const line of lines) t.deepEqual(Object.keys(line), ['time', 'level', 'message'])
})

// ---- Worker threads ---------------------------------------------------------------------------------------------------

const onWorkers = test.macro({
  async exec(t, words: (folder: string) => readonly string[]) {
    const socket = await socketPath(t)
    const stats = join(dirname(socket), 'stats.json')
    const store = words(dirname(socket))
    const server = await serveReady(t, ['--socket', socket, ...store, '--workers', '2', '--stats', stats])
    const load = { socketPath: socket, queueCount: 2, queueDepth: 4, durationMs: 100 }
    const result = await loadBlockDevice({ ...load, writePercent: 50, verify: true })
    t.true(result.requests > 0)
    t.is(result.failedRequests + result.mismatchedBytes + result.lostSignals + result.stalls, 0)
    server.process.kill('SIGTERM')
    t.is(await server.end, 0, server.output.stderr)
    const counts = JSON.parse(await readFile(stats, 'utf8'))
    t.true(counts.reads > 0 && counts.writes > 0)
    t.like(counts, { errors: 0, inFlight: 0, lostNotifications: 0, brokenQueues: 0, connections: 1 })
  },
  title: (title) => `two queues on two workers serve ${title}, and every byte is right`,
})
test('a disk in memory', onWorkers, () => ['--memory', '8MiB', '--layer', 'retry:count=1'])
test('a file that the first one makes', onWorkers, (folder) => [
  ...['--file', join(folder, 'disk.img'), '--size', '8MiB', '--suppression', 'immediate'],
])

test('a worker that ends ends the server with status 1, and the command too', async (t) => {
  const device = await writeModule(
    t,
    `import { blockDevice } from 'hushring'
    export default () => blockDevice({ capacityBytes: 1 << 20, read: () => process.exit(5) })`,
  )
  const server = await serveReady(t, ['--device', device, '--workers', '2', '--run', 'echo; sleep 1000'])
  const socket = /^ready vhost-user (.*)$/m.exec(server.output.stdout)![1]!
  await t.throwsAsync(loadBlockDevice({ socketPath: socket, durationMs: 60_000 }).then(() => t.fail()))
  t.is(await server.end, 1)
  t.regex(server.output.stderr, /error: worker 0 has ended: it exited with 5/)
  t.false(existsSync(dirname(socket)))
})

// ---- A command of the user's ---------------------------------------------------------------------------------------

test('--run runs a command with $socket set and ends with its status', async (t) => {
  const socket = await socketPath(t)
  const server = serve(t, [
    '--memory',
    '1MiB',
    '--socket',
    socket,
    '--run',
    'test -S "$socket" && echo "at $socket"; exit 7',
  ])
  t.is(await server.end, 7)
  t.is(server.output.stdout, `ready vhost-user ${socket}\nat ${socket}\n`)
  t.false(existsSync(socket))
})

test('--run without --socket makes a private one, which is gone at the end', async (t) => {
  const server = serve(t, ['--memory', '1MiB', '--run', 'stat -c %a "$(dirname $socket)"; echo "$socket"'])
  t.is(await server.end, 0)
  const [, mode, path] = server.output.stdout.split('\n')
  t.is(mode, '700')
  t.false(existsSync(dirname(path!)))
})

test('a signal ends the command too, and what it started', async (t) => {
  const command = 'sleep 1000 & echo "$!"; wait'
  const server = serve(t, ['--memory', '1MiB', '--run', command])
  await until(() => server.output.stdout.split('\n').length === 3)
  const sleepPid = Number(server.output.stdout.split('\n')[1])
  t.true(isAlive(sleepPid))
  server.process.kill('SIGTERM')
  t.is(await server.end, 128 + 15)
  await until(() => !isAlive(sleepPid))
})

/** False also for what has ended and waits for its parent to notice. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

test('a second signal takes the private socket of --run away, too', async (t) => {
  const device = await writeModule(
    t,
    `import { nullDisk } from 'hushring'
     setInterval(() => {}, 1000)
     export default { ...nullDisk({ capacityBytes: 512 }), close: () => new Promise(() => {}) }`,
  )
  const server = serve(t, ['--device', device, '--run', 'echo "$socket"; trap "" TERM; sleep 1000'])
  await until(() => server.output.stdout.split('\n').length === 3)
  const path = server.output.stdout.split('\n')[1]!
  t.true(existsSync(dirname(path)))
  server.process.kill('SIGTERM')
  await sleep(50)
  server.process.kill('SIGTERM')
  t.is(await server.end, 1)
  t.false(existsSync(dirname(path)))
})

test('the command of --run inherits no descriptor and no variable of a service manager', async (t) => {
  const image = join(await temporaryDirectory(t), 'disk.img')
  const server = serve(
    t,
    // The shell that $PPID names only waits meanwhile: it has no pipe of its own open.
    ['--file', image, '--size', '1MiB', '--run', "sh -c 'ls /proc/$PPID/fd'; env | grep -c ^LISTEN_"],
    { environment: { LISTEN_PID: '1', LISTEN_FDS: '1', LISTEN_FDNAMES: 'disk' } },
  )
  await server.end
  const [, ...lines] = server.output.stdout.trimEnd().split('\n')
  const told = lines.filter((fd) => !handedDown.includes(fd))
  t.deepEqual(told, ['0', '1', '2', '0'])
})

// ---- Edges -----------------------------------------------------------------------------------------------------------

test('every descriptor of a serving process is closed by exec, at any moment', async (t) => {
  const folder = await temporaryDirectory(t)
  const [socket, image] = [join(folder, 'd.sock'), join(folder, 'disk.img')]
  const words = ['--socket', socket, '--file', image, '--size', '1MiB', '--stats', join(folder, 'stats')]
  const server = await serveReady(t, words)
  const inherited = (): string[] => leakedFds(server.process.pid!)
  t.deepEqual(inherited(), [])
  const guest = await VhostUserGuest.start(socket, { started: false })
  t.teardown(() => guest.close())
  t.deepEqual(inherited(), [], 'connected')
  await guest.frontEnd.setMemory(guest.memory)
  await guest.frontEnd.startQueue(0, guest.driver)
  await guest.frontEnd.openRequestChannel()
  // Received: kick, call and error eventfd, a socket; the memory file is closed once it is mapped.
  t.deepEqual(inherited(), [], 'with the descriptors of a front-end')
  const writes = Array.from({ length: 16 }, (_, index) => guest.disk.write(index * 512, Buffer.alloc(512)))
  t.deepEqual(inherited(), [], 'with requests in flight')
  await Promise.all(writes)
})

/** What this process was started with and passes on, which is no matter of the server. */
const handedDown = inheritedFds(process.pid)

function leakedFds(pid: number): string[] {
  return inheritedFds(pid).filter((fd) => !handedDown.includes(fd))
}

/** Descriptors from 3 on that a program started by a process would have. */
function inheritedFds(pid: number): string[] {
  const O_CLOEXEC = 0o2000000
  return readdirSync(`/proc/${pid}/fdinfo`).filter((fd) => {
    try {
      const flags = /^flags:\s+([0-7]+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))?.[1]
      return Number(fd) > 2 && (Number.parseInt(flags ?? '0', 8) & O_CLOEXEC) === 0
    } catch {
      return false // closed since
    }
  })
}

test('the search for inherited descriptors finds one', (t) => {
  const child = spawn('sleep', ['10'], { stdio: ['ignore', 'ignore', 'ignore', 'pipe'] })
  t.teardown(() => child.kill())
  // The program may have others open while it starts.
  t.true(inheritedFds(child.pid!).includes('3'))
})

test('a file that is a symbolic link is refused, and followed with --follow-symlinks', async (t) => {
  const folder = await temporaryDirectory(t)
  const [image, link] = [join(folder, 'disk.img'), join(folder, 'link')]
  await writeFile(image, Buffer.alloc(4096))
  await symlink(image, link)
  const words = ['--socket', join(folder, 's'), '--file', link]
  const [status, told] = await refusal(t, words)
  t.regex(told, /it is a symbolic link; .* allow it with --follow-symlinks/)
  t.is(status, 1)
  const server = await serveReady(t, [...words, '--follow-symlinks'])
  server.process.kill()
  t.is(await server.end, 0)
})

/**
 * Words before a command that is to run where io_uring_setup, number 425 everywhere, gives EPERM as in containers. Perl,
 * because a filter of system calls has to be there before the command, and Debian always has it.
 */
const withoutRing = [
  'perl',
  '-e',
  `my $prctl = ${process.arch === 'x64' ? 157 : 167};
  my $program = pack('SCCL' x 4, 0x20,0,0,0, 0x15,0,1,425, 6,0,0,0x50001, 6,0,0,0x7fff0000);
  my $filter = pack('Sx![P]P', 4, $program);
  syscall($prctl, 38, 1, 0, 0, 0) == 0 && syscall($prctl, 22, 2, $filter) == 0 or die "no filter: $!";
  exec @ARGV`,
]
const canFilter = spawnSync(withoutRing[0]!, [...withoutRing.slice(1), 'true']).status === 0
const testFiltered = canFilter ? test : test.skip

testFiltered('where io_uring is not allowed a file is served by threads, and that is said', async (t) => {
  const folder = await temporaryDirectory(t)
  const [image, socket] = [join(folder, 'disk.img'), join(folder, 's')]
  await writeFile(image, Buffer.alloc(64 * 1024, 7))
  const words = ['--socket', socket, '--file', image]
  const server = await serveReady(t, words, { wrapper: withoutRing })
  t.regex(server.output.stderr, /^warn: .*disk\.img: threads .*: io_uring is not allowed here \(EPERM\)/m)
  const guest = await VhostUserGuest.start(socket)
  t.deepEqual(await guest.disk.read(4096, 4096), Buffer.alloc(4096, 7))
  guest.close()
  server.process.kill()
  t.is(await server.end, 0)

  for (const demand of [['--io', 'uring'], ['--direct']]) {
    const refused = serve(t, [...words, ...demand], { wrapper: withoutRing })
    t.is(await refused.end, 1)
    t.regex(refused.output.stderr, /cannot use .*disk\.img as a disk: io_uring is not allowed here/)
  }
  const asked = await serveReady(t, [...words, '--io', 'threads'], { wrapper: withoutRing })
  t.is(asked.output.stderr, '')
  asked.process.kill()
  t.is(await asked.end, 0)
})

test('an image that is made has mode 0600 whatever the umask', async (t) => {
  const folder = await temporaryDirectory(t)
  const image = join(folder, 'disk.img')
  const wrapper = ['sh', '-c', 'umask 000; exec "$@"', 'sh']
  const server = await serveReady(t, ['--socket', join(folder, 's'), '--file', image, '--size', '1MiB'], {
    wrapper,
  })
  t.is(statSync(image).mode & 0o777, 0o600)
  server.process.kill()
  t.is(await server.end, 0)
})

test('--socket-mode lets a group in', async (t) => {
  const socket = await socketPath(t)
  const server = await serveReady(t, ['--socket', socket, '--null', '1MiB', '--socket-mode', '660'])
  t.is(statSync(socket).mode & 0o777, 0o660)
  server.process.kill()
  t.is(await server.end, 0)
})

test('a front-end that floods the log gets a line for each of few, and the rest are counted', async (t) => {
  const socket = await socketPath(t)
  const server = await serveReady(t, ['--socket', socket, '--null', '1MiB'])
  for (let count = 0; count < 1000; count++) {
    const frontEnd = VhostUserFrontEnd.connect(socket)
    frontEnd.sendBytes(Buffer.alloc(12, 0xff))
    await frontEnd.hungUp()
    frontEnd.close()
  }
  await sleep(1000)
  const last = VhostUserFrontEnd.connect(socket)
  last.sendBytes(Buffer.alloc(12, 0xff))
  await last.hungUp()
  last.close()
  await until(() => /error: \d+ lines like this were left out/.test(server.output.stderr))
  t.true(server.output.stderr.length < 100_000)
})

// ---- Socket activation ---------------------------------------------------------------------------------------------

/** A shell that becomes the command with the variables of a service manager. */
const activate = (count: number): readonly string[] => [
  'sh',
  '-c',
  `LISTEN_PID=$$ LISTEN_FDS=${count} exec "$@"`,
  'sh',
]

test('a socket of the service manager is served, and stays when the server ends', async (t) => {
  const socket = await socketPath(t)
  const listenFd = native.unixListen(socket, 0o600, 4)
  t.teardown(() => native.closeFd(listenFd))
  const server = await serveReady(t, ['--memory', '1MiB'], { wrapper: activate(1), fd3: listenFd })
  t.is(server.output.stdout, 'ready vhost-user fd:3\n')
  native.closeFd(native.unixConnect(socket))
  await until(() => /the front-end is gone/.test(server.output.stderr))
  server.process.kill()
  t.is(await server.end, 0)
  t.true(existsSync(socket))
})

// ---- Other devices ---------------------------------------------------------------------------------------------------

test('an entropy device needs no store, and a store it is given is not used', async (t) => {
  const without = await serveReady(t, ['--socket', await socketPath(t), '--device', 'rng'])
  t.is(without.output.stderr, '')
  const withStore = await serveReady(t, [
    '--socket',
    await socketPath(t),
    '--device',
    'rng',
    '--null',
    '1MiB',
  ])
  t.is(withStore.output.stderr, 'warn: the store is not used: only --device blk has one\n')
})

const modules = {
  'a device': "import { nullDisk } from 'hushring'\nexport default nullDisk({ capacityBytes: 4096 })\n",
  'a function that returns a device':
    "import { nullDisk } from 'hushring'\nexport default () => nullDisk({ capacityBytes: 4096 })\n",
  'a function that promises a device':
    "import { entropyDevice } from 'hushring'\nexport default async () => entropyDevice()\n",
}
for (const [name, text] of Object.entries(modules)) {
  test(`a module that exports ${name} is served`, async (t) => {
    const server = await serveReady(t, [
      '--socket',
      await socketPath(t),
      '--device',
      await writeModule(t, text),
    ])
    server.process.kill()
    t.is(await server.end, 0)
  })
}

// ---- What goes wrong -------------------------------------------------------------------------------------------------

/** Runs a server that cannot start. @returns its status and the one line it says */
async function refusal(
  t: ExecutionContext,
  words: readonly string[],
  options?: ServeOptions,
): Promise<[unknown, string]> {
  const server = serve(t, words, options)
  const status = await server.end
  t.is(server.output.stdout, '')
  t.regex(server.output.stderr, /^error: [^\n]*\n$/)
  return [status, server.output.stderr]
}

const isWrongUsage = test.macro({
  async exec(t, words: string, line: RegExp) {
    const socket = await socketPath(t)
    const [status, told] = await refusal(t, words.replace('SOCKET', socket).split(' '))
    t.regex(told, line)
    t.is(status, 2)
    t.false(existsSync(socket))
  },
  title: (_, words: string) => `${words.length > 100 ? `${words.slice(0, 40)}…` : words}: status 2`,
})
test(isWrongUsage, '--socket SOCKET', /no store is named: give --null SIZE, --memory SIZE or --file PATH/)
test(isWrongUsage, '--memory 1MiB', /no socket is named: give --socket PATH, or --run COMMAND/)
test(isWrongUsage, '--socket SOCKET --memory 1000', /--memory 1000 is not a multiple of the block size/)
test(
  isWrongUsage,
  '--socket SOCKET --memory 1MiB --queues 1000',
  /expected --queues to be an integer from 1 to 256/,
)
test(
  isWrongUsage,
  '--socket SOCKET --memory 1MiB --queue-size-max 100',
  /--queue-size-max to be a power of two/,
)
test(
  isWrongUsage,
  '--socket SOCKET --memory 1MiB --serial abcdefghijklmnopqrstuvwxyz',
  /expected --serial to be/,
)
test(isWrongUsage, `--socket /tmp/${'d'.repeat(110)} --memory 1MiB`, /expected --socket to be .* 107 bytes/)
test(isWrongUsage, '--socket SOCKET --device rng --block-size 4096', /--block-size are for --device blk/)
test(isWrongUsage, '--socket SOCKET --device rng --layer trace', /--layer is for disks/)
test(
  isWrongUsage,
  '--socket SOCKET --null 1MiB --workers 2 --queues 1',
  /--workers 2 is more than --queues 1/,
)
test(
  isWrongUsage,
  '--socket SOCKET --null 1MiB --workers 65',
  /expected --workers to be an integer from 0 to 64/,
)
test(
  isWrongUsage,
  '--socket SOCKET --null 1MiB --workers 2 --layer cache:sizeBytes=64KiB',
  /--layer cache is for one thread/,
)
test(
  isWrongUsage,
  '--socket SOCKET --memory 7TiB --workers 2',
  /--memory 7TiB is more than workers can share/,
)
test(isWrongUsage, '--socket SOCKET --memory 1MiB --nope', /unknown option '--nope'/)

const fails = test.macro({
  async exec(t, prepare: (t: ExecutionContext, folder: string) => Promise<string[]>, line: RegExp) {
    const folder = await temporaryDirectory(t)
    const [status, told] = await refusal(t, await prepare(t, folder))
    t.regex(told, line)
    t.is(status, 1)
  },
  title: (title) => `${title}: status 1`,
})
test(
  'a file that does not exist',
  fails,
  async (_, folder) => ['--socket', join(folder, 's'), '--file', join(folder, 'no')],
  /no.*does not exist/,
)
test(
  'a file that does not exist, with workers',
  fails,
  async (_, folder) => ['--socket', join(folder, 's'), '--file', join(folder, 'no'), '--workers', '2'],
  /no.*does not exist/,
)
test(
  'a file that is a folder',
  fails,
  async (_, folder) => ['--socket', join(folder, 's'), '--file', folder],
  /folder/,
)
test(
  'a socket in a folder that does not exist',
  fails,
  async (_, folder) => ['--socket', join(folder, 'no/s'), '--null', '1MiB'],
  /the folder .*no does not exist; create it first/,
)
test(
  'a socket that somebody listens on',
  fails,
  async (t, folder) => {
    const listenFd = native.unixListen(join(folder, 's'), 0o600, 4)
    t.teardown(() => native.closeFd(listenFd))
    return ['--socket', join(folder, 's'), '--null', '1MiB']
  },
  /another process listens there; stop it or choose another path/,
)
test(
  'a socket path at which there is a folder',
  fails,
  async (_, folder) => {
    await mkdir(join(folder, 's'))
    return ['--socket', join(folder, 's'), '--null', '1MiB']
  },
  /not a socket/,
)
test(
  'statistics in a folder that does not exist',
  fails,
  async (_, folder) => [
    '--socket',
    join(folder, 's'),
    '--null',
    '1MiB',
    '--stats',
    join(folder, 'no/stats.json'),
  ],
  /cannot write the statistics to .*stats.json: it does not exist; check the path/,
)
test(
  'a module that does not exist',
  fails,
  async (_, folder) => ['--socket', join(folder, 's'), '--device', './no.mjs'],
  /cannot load the device .\/no.mjs: it does not exist/,
)
test(
  'a module that throws',
  fails,
  async (t, folder) => [
    '--socket',
    join(folder, 's'),
    '--device',
    await writeModule(t, "throw new Error('on purpose')"),
  ],
  /cannot load the device .*: on purpose/,
)
test(
  'a module that exports no device',
  fails,
  async (t, folder) => [
    '--socket',
    join(folder, 's'),
    '--device',
    await writeModule(t, 'export default { kind: 1 }'),
  ],
  /exports no device: its default export must be a device/,
)

test('a socket of the service manager that does not listen: one sentence, status 2', async (t) => {
  const [connected, other] = socketPair()
  t.teardown(() => native.closeFd(other))
  t.teardown(() => native.closeFd(connected))
  const [status, told] = await refusal(t, ['--null', '1MiB'], { wrapper: activate(1), fd3: connected })
  t.regex(told, /expected the socket of the service manager \(LISTEN_FDS\) to be a listening Unix socket/)
  t.is(status, 2)
})

test('more than one socket of the service manager: status 1', async (t) => {
  const [status, told] = await refusal(t, ['--null', '1MiB'], { wrapper: activate(2) })
  t.regex(told, /LISTEN_FDS is 2: a device takes one socket/)
  t.is(status, 1)
})

test('a failure shows where it comes from only with --log-level debug', async (t) => {
  const server = serve(t, ['--socket', '/nowhere/s', '--null', '1MiB', '--log-level', 'debug'])
  t.is(await server.end, 1)
  t.regex(server.output.stderr, /^debug: .*\n {4}at /m)
})
