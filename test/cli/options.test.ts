import { lstat, mkdtemp, readdir, readFile, rm, stat, symlink, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { NEVER } from 'rxjs'
import { parseDevice } from '../../src/cli/device-option.ts'
import { explainFailure, fileError } from '../../src/cli/failure.ts'
import { createLog, type LogLevel } from '../../src/cli/log.ts'
import { type Actions, hushringProgram } from '../../src/cli/program.ts'
import { barProgress, lineProgress } from '../../src/cli/progress.ts'
import { formatSize, parseSize } from '../../src/cli/sizes.ts'
import { takeActivatedSocket } from '../../src/cli/socket-activation.ts'
import { keepStatsFile } from '../../src/cli/stats-file.ts'
import { checkStoreOptions, type StoreOptions } from '../../src/cli/store-options.ts'
import { parseDoorbell, parseSuppression } from '../../src/cli/suppression-option.ts'
import { formatTable } from '../../src/cli/table.ts'
import { UsageError } from '../../src/cli/usage-error.ts'
import { optionRangeError, optionTypeError } from '../../src/errors.ts'
import { NO_STATS } from '../../src/transport/stats.ts'

// ---- Values of options -------------------------------------------------------------------------------------------

const isSize = test.macro({
  exec: (t, text: string, sizeBytes: number) => t.is(parseSize(text), sizeBytes),
  title: (_, text, sizeBytes) => `the size ${text} is ${sizeBytes} bytes`,
})
test(isSize, '512', 512)
test(isSize, '1B', 1)
test(isSize, '64KiB', 65_536)
test(isSize, '64 KiB', 65_536)
test(isSize, '8k', 8192)
test(isSize, '3mib', 3 * 2 ** 20)
test(isSize, '1GiB', 2 ** 30)
test(isSize, '2T', 2 ** 41)
test(isSize, '9007199254740991', Number.MAX_SAFE_INTEGER)

const isNoSize = test.macro({
  exec(t, text: string, reason: RegExp) {
    t.throws(() => parseSize(text), { code: 'commander.invalidArgument', message: reason })
  },
  title: (_, text) => `'${text}' is no size`,
})
test(isNoSize, '', /whole number/)
test(isNoSize, '-1', /whole number/)
test(isNoSize, '1.5GiB', /whole number/)
test(isNoSize, 'GiB', /whole number/)
test(isNoSize, '12q', /no unit 'q'; use B, KiB/)
test(isNoSize, '10KB', /no unit 'KB'; use B, KiB/)
test(isNoSize, '0', /at least 1 byte/)
test(isNoSize, '8192TiB', /end at 8191 TiB/)
test(isNoSize, '9007199254740992', /end at 8191 TiB/)

test('a size that is written is read as the same size', (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 2 ** 50 }), (bytes) => parseSize(formatSize(bytes)) === bytes),
  )
  t.deepEqual([512, 1024, 1536, 65_536, 2 ** 30].map(formatSize), ['512', '1KiB', '1536', '64KiB', '1GiB'])
})

test('a suppression policy is read from its name', (t) => {
  const load = { readyCount: 2, unansweredCount: 1, urgent: false, held: false }
  t.is(parseSuppression('immediate')(load), 'now')
  t.is(parseSuppression('adaptive')(load), 'turn')
  t.is(parseSuppression('adaptive').pollMicrosMax, 100)
  t.is(parseSuppression('adaptive:0').pollMicrosMax, 0)
  t.is(parseSuppression('coalesce:32,50')(load), 50)
  t.is(parseSuppression('coalesce:2,50')(load), 'now')
})

test('a doorbell policy is read from its name, and adapts by anticipating', (t) => {
  const alone = { readyCount: 1, unansweredCount: 5, urgent: false, held: false }
  t.is(parseDoorbell('immediate')(alone), 'now')
  t.is(parseDoorbell('adaptive')(alone), 'now')
  t.is(parseDoorbell('coalesce:32,50')(alone), 50)
  const policy = parseDoorbell('adaptive:8,70')
  const holds = Array.from({ length: 130 }, () => policy(alone))
  t.deepEqual([holds[0], holds[129]], ['now', 70])
  t.throws(() => parseDoorbell('adaptive:8'), { message: /adaptive:N,MICROS/ })
  t.throws(() => parseSuppression('adaptive:8,70'), {
    message: /Use immediate, adaptive, adaptive:MICROS, or coalesce/,
  })
})

const isNoSuppression = test.macro({
  exec(t, text: string, reason: RegExp) {
    t.throws(() => parseSuppression(text), { code: 'commander.invalidArgument', message: reason })
  },
  title: (_, text) => `'${text}' is no suppression policy`,
})
test(isNoSuppression, 'lazy', /Use immediate, adaptive, adaptive:MICROS, or coalesce:N,MICROS/)
test(isNoSuppression, 'adaptive:1001', /expected MICROS to be a number from 0 to 1000, got/)
test(isNoSuppression, 'coalesce', /coalesce:32,50/)
test(isNoSuppression, 'coalesce:32', /coalesce:32,50/)
test(isNoSuppression, 'coalesce:0,50', /expected N to be an integer from 1/)
test(isNoSuppression, 'coalesce:1,2000000', /expected MICROS to be a number from 0 to 1000000/)

test('a device is a name or a path', (t) => {
  t.deepEqual(['blk', 'rng', './a.js', 'a.mjs', '/srv/a'].map(parseDevice), [
    { kind: 'blk' },
    { kind: 'rng' },
    { kind: 'module', path: './a.js' },
    { kind: 'module', path: 'a.mjs' },
    { kind: 'module', path: '/srv/a' },
  ])
  t.throws(() => parseDevice('disk'), { code: 'commander.invalidArgument', message: /blk, rng, or the path/ })
})

const storeIs = test.macro({
  exec(t, options: Partial<StoreOptions>, complaint: RegExp | undefined) {
    const check = (): void => checkStoreOptions({ blockSize: 512, ...options })
    if (complaint === undefined) t.notThrows(check)
    else t.throws(check, { instanceOf: UsageError, message: complaint })
  },
  title: (_, options, complaint) =>
    `the store ${JSON.stringify(options)} is ${complaint === undefined ? 'right' : 'refused'}`,
})
test(storeIs, {}, /no store is named: give --null SIZE, --memory SIZE or --file PATH/)
test(storeIs, { memory: 512 }, undefined)
test(storeIs, { null: 4096, blockSize: 4096 }, undefined)
test(storeIs, { file: 'a' }, undefined)
test(storeIs, { file: 'a', size: 1024 }, undefined)
test(storeIs, { null: 512, size: 1024 }, /--size .* needs --file PATH/)
test(storeIs, { memory: 1000 }, /--memory 1000 is not a multiple of the block size of 512 bytes; use 1KiB/)
test(storeIs, { null: 512, blockSize: 4096 }, /--null 512 is not a multiple of .* 4096 bytes; use 4KiB/)
test(storeIs, { null: 512, followSymlinks: true }, /--follow-symlinks is about a file/)
test(storeIs, { null: 512, io: 'uring' }, /--io is about a file/)
test(storeIs, { null: 512, direct: true }, /--direct is about a file/)
test(storeIs, { file: 'a', io: 'uring', direct: true }, undefined)
test(storeIs, { file: 'a', io: 'threads', direct: true }, /--direct goes through io_uring only/)
test(storeIs, { file: 'a', size: 513 }, /--size 513 is not a multiple/)

// ---- The command line --------------------------------------------------------------------------------------------

/** Parses a command line. @returns the name of the command that was called and its options */
async function parse(...words: string[]): Promise<{ name: string; options: Record<string, unknown> }> {
  const calls: { name: string; options: Record<string, unknown> }[] = []
  const note = (name: string) => async (options: object) => calls.push({ name, options: { ...options } })
  const actions: Actions = {
    demo: note('demo'),
    litmus: note('litmus'),
    bench: note('bench'),
    serveVhostUser: note('serveVhostUser'),
    serveTcmu: note('serveTcmu'),
  }
  const program = hushringProgram(actions, () => {}, { writeErr() {} })
  await program.parseAsync(words, { from: 'user' })
  return calls[0]!
}

test('bench takes a list of depths', async (t) => {
  const { options } = await parse('bench', '--socket', 'd.sock')
  t.deepEqual(options, {
    socket: 'd.sock',
    depth: [1, 8, 32, 128],
    seconds: 2,
    blockSize: 4096,
    writes: 0,
    requests: 0,
    segments: 1,
    queueSize: 256,
    queues: 1,
    eventIdx: true,
  })
  t.deepEqual((await parse('bench', '--socket', 'd.sock', '--depth', '4,16')).options.depth, [4, 16])
  for (const wrong of [
    ['--depth', '4,'],
    ['--writes', '101'],
    ['--seconds', '0'],
  ]) {
    await t.throwsAsync(parse('bench', '--socket', 'd.sock', ...wrong), { code: 'commander.invalidArgument' })
  }
})

test('the options of serve vhost-user have their defaults', async (t) => {
  const { name, options } = await parse('serve', 'vhost-user', '--socket', 'd.sock', '--memory', '1MiB')
  const { suppression, ...others } = options
  t.is(name, 'serveVhostUser')
  t.is(typeof suppression, 'function')
  t.deepEqual(others, {
    socket: 'd.sock',
    memory: 2 ** 20,
    device: { kind: 'blk' },
    blockSize: 512,
    socketMode: 0o600,
    queueSizeMax: 1024,
    eventIdx: true,
    logLevel: 'info',
  })
})

test('every option of serve vhost-user is passed on', async (t) => {
  const { options } = await parse(
    ...[
      'serve',
      'vhost-user',
      '--file',
      'disk.img',
      '--size',
      '1GiB',
      '--device',
      './my-device.js',
      '--queues',
      '4',
    ],
    ...['--queue-size-max', '256', '--read-only', '--serial', 'A1', '--block-size', '4096', '--no-event-idx'],
    ...['--suppression', 'immediate', '--layer', 'trace', '--layer', 'retry:count=3', '--strict'],
    ...['--watchdog', '500', '--workers', '3'],
    ...['--stats', 'stats.json', '--log-level', 'debug', '--json', '--run', 'ls $socket'],
    ...['--follow-symlinks', '--io', 'uring', '--direct', '--socket-mode', '660'],
  )
  const { suppression, layer, ...others } = options
  t.is((suppression as (load: unknown) => unknown)({}), 'now')
  t.deepEqual(
    (layer as { text: string }[]).map(({ text }) => text),
    ['trace', 'retry:count=3'],
  )
  t.deepEqual(others, {
    file: 'disk.img',
    size: 2 ** 30,
    device: { kind: 'module', path: './my-device.js' },
    followSymlinks: true,
    io: 'uring',
    direct: true,
    socketMode: 0o660,
    queues: 4,
    workers: 3,
    queueSizeMax: 256,
    readOnly: true,
    serial: 'A1',
    blockSize: 4096,
    eventIdx: false,
    strict: true,
    watchdog: 500,
    stats: 'stats.json',
    logLevel: 'debug',
    json: true,
    run: 'ls $socket',
  })
})

test('the options of demo have their defaults', async (t) => {
  t.deepEqual(await parse('demo'), { name: 'demo', options: { seconds: 4 } })
  t.deepEqual(await parse('demo', '--tcmu', '--seconds', '1', '--json'), {
    name: 'demo',
    options: { tcmu: true, seconds: 1, json: true },
  })
})

const isRefused = test.macro({
  async exec(t, words: string, reason: RegExp) {
    await t.throwsAsync(parse(...words.split(' ')), { message: reason })
  },
  title: (_, words) => `hushring ${words} is wrong usage`,
})
test(isRefused, 'dmeo', /unknown command 'dmeo'\n\(Did you mean demo\?\)/)
test(isRefused, 'serve vhost-user --sockt a', /unknown option '--sockt'\n\(Did you mean --socket\?\)/)
test(
  isRefused,
  'serve vhost-user --null 1MiB --memory 1MiB',
  /'--null <size>' cannot be used with .*'--memory <size>'/,
)
test(isRefused, 'serve vhost-user --file a --memory 1MiB', /cannot be used with/)
test(isRefused, 'serve vhost-user --memory 1X', /argument '1X' is invalid. There is no unit 'X'/)
test(isRefused, 'serve vhost-user --block-size 1024', /Use 512 or 4096/)
test(isRefused, 'serve vhost-user --queues 0', /Write a whole number from 1/)
test(isRefused, 'serve vhost-user --queues four', /Write a whole number from 1/)
test(isRefused, 'serve vhost-user --workers 0', /Write a whole number from 1/)
test(isRefused, 'serve vhost-user --log-level loud', /Allowed choices are error, warn, info, debug/)
test(isRefused, 'serve vhost-user --layer cahce:sizeBytes=1MiB', /'--layer .*unknown layer `cahce`.*cache/)
test(isRefused, 'serve vhost-user --layer retry:count=many', /'--layer .*`retry:count` to be a whole number/)
test(isRefused, 'serve vhost-user --layer retry:cuont=3', /'--layer .*expected one of count, delayMs/)
test(isRefused, 'serve vhost-user --layer retry:count=1,count=2', /`retry:count` to be given once/)
test(isRefused, 'serve vhost-user --socket-mode rw-------', /Use three octal digits/)
test(isRefused, 'serve vhost-user d.sock', /too many arguments/)
test(isRefused, 'demo --seconds 0', /Write a whole number from 1/)

// ---- Errors in the words of the command line -----------------------------------------------------------------------

test('an error is explained with the status it deserves', (t) => {
  t.deepEqual(explainFailure(new UsageError('no store is named')), {
    message: 'no store is named',
    exitStatus: 2,
  })
  t.deepEqual(explainFailure(optionRangeError('queues.countMax', 'an integer from 1 to 256', 300)), {
    message: 'expected --queues to be an integer from 1 to 256, got `300`',
    exitStatus: 2,
  })
  t.deepEqual(explainFailure(optionTypeError('other', 'a number', 'x')), {
    message: 'expected `other` to be a number, got `"x"`',
    exitStatus: 2,
  })
  t.deepEqual(explainFailure(new Error('it broke')), { message: 'it broke', exitStatus: 1 })
  t.deepEqual(explainFailure('it broke'), { message: 'it broke', exitStatus: 1 })
})

test('what the operating system says about a file is put in words', (t) => {
  const cause = Object.assign(new Error('EACCES: permission denied'), { code: 'EACCES' })
  const error = fileError('cannot write the statistics to ./s.json', cause)
  t.is(
    error.message,
    'cannot write the statistics to ./s.json: no permission; check the owner and the mode of the file and its folders',
  )
  t.is(error.cause, cause)
  t.is(fileError('cannot read a', new Error('EWHAT: what')).message, 'cannot read a: EWHAT: what')
})

// ---- What is told --------------------------------------------------------------------------------------------------

test('a log writes the lines of its level and of those before', (t) => {
  const linesAt = (level: LogLevel): string[] => {
    const lines: string[] = []
    const log = createLog({ level, json: false }, (line) => lines.push(line))
    for (const each of ['error', 'warn', 'info', 'debug'] as const) log[each]('text')
    return lines
  }
  t.deepEqual(linesAt('error'), ['error: text\n'])
  t.deepEqual(linesAt('info'), ['error: text\n', 'warn: text\n', 'info: text\n'])
  t.is(linesAt('debug').length, 4)
})

test('a flood of log lines is cut to some a second, and what was left out is told', (t) => {
  const lines: string[] = []
  let nowMs = 0
  const log = createLog(
    { level: 'info', json: false },
    (line) => lines.push(line),
    () => nowMs,
  )
  const flood = (): void => {
    for (let count = 0; count < 10_000; count++) log.error('hostile')
  }
  flood()
  t.is(lines.length, 200)
  log.info('another level has lines of its own')
  t.is(lines.length, 201)
  nowMs += 1000
  flood()
  t.is(lines.length, 201 + 1 + 10)
  t.is(lines[201], 'error: 9800 lines like this were left out: there were too many\n')
  nowMs += 3_600_000
  flood()
  t.is(lines.length, 212 + 1 + 200)
})

test('a debug log is whole', (t) => {
  const lines: string[] = []
  const log = createLog({ level: 'debug', json: false }, (line) => lines.push(line))
  for (let count = 0; count < 1000; count++) log.debug('each request')
  t.is(lines.length, 1000)
})

test('a JSON log writes one object a line', (t) => {
  const lines: string[] = []
  createLog({ level: 'info', json: true }, (line) => lines.push(line)).warn('two\nlines')
  t.is(lines.length, 1)
  t.is(lines[0]!.indexOf('\n'), lines[0]!.length - 1)
  const { time, ...others } = JSON.parse(lines[0]!)
  t.deepEqual(others, { level: 'warn', message: 'two\nlines' })
  t.false(Number.isNaN(Date.parse(time)))
})

test('a table has its numbers flush right', (t) => {
  t.is(
    formatTable([
      ['', 'IOPS', 'lost'],
      ['flags', '12', '0'],
      ['event-idx', '12,345', '0'],
    ]),
    [
      '             IOPS  lost',
      '─────────  ──────  ────',
      'flags          12     0',
      'event-idx  12,345     0',
    ].join('\n'),
  )
})

test('progress is a bar at a terminal and lines elsewhere', (t) => {
  const written = { bar: '', lines: '' }
  const views = {
    bar: barProgress((text) => {
      written.bar += text
    }),
    lines: lineProgress((text) => {
      written.lines += text
    }),
  }
  for (const view of Object.values(views)) {
    view.begin('flags')
    view.update(0.5, '10 requests')
    view.update(1.1, '20 requests')
    view.end()
  }
  t.is(written.lines, 'flags …\n')
  const drawn = written.bar.split('\r\u001b[2K')
  t.is(drawn[2], `flags ${'█'.repeat(12)}${'░'.repeat(12)} 10 requests`)
  t.is(drawn[3], `flags ${'█'.repeat(24)} 20 requests`)
  t.is(drawn.at(-1), '')
})

// ---- Socket activation ---------------------------------------------------------------------------------------------

test('a socket of the service manager is taken once, by the process it is meant for', (t) => {
  const environment = { LISTEN_PID: '100', LISTEN_FDS: '1', LISTEN_FDNAMES: 'disk', HOME: '/' }
  t.is(takeActivatedSocket(environment, 100), 3)
  t.deepEqual(environment, { HOME: '/' } as object)
  t.is(takeActivatedSocket(environment, 100), undefined)
  t.is(takeActivatedSocket({ LISTEN_PID: '99', LISTEN_FDS: '1' }, 100), undefined)
  t.is(takeActivatedSocket({ LISTEN_PID: '100', LISTEN_FDS: '0' }, 100), undefined)
  t.throws(() => takeActivatedSocket({ LISTEN_PID: '100', LISTEN_FDS: '2' }, 100), { message: /one socket/ })
})

// ---- The file of statistics ------------------------------------------------------------------------------------------

async function temporaryFolder(t: ExecutionContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'hushring-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}

test('the file of statistics is there at once, follows the server and ends with its last numbers', async (t) => {
  const folder = await temporaryFolder(t)
  const path = join(folder, 'stats.json')
  const read = async (): Promise<number> => JSON.parse(await readFile(path, 'utf8')).requests
  let requests = 1
  let asked = 0
  const statsSnapshot = () => ({ ...NO_STATS, requests })
  const stats = ({ everyMs }: { everyMs: number }) => {
    asked = everyMs
    return NEVER
  }
  await writeFile(path, 'old', { mode: 0o644 })
  const end = await keepStatsFile(path, { statsSnapshot, stats }, (error) => t.fail(error.message))
  t.is(await read(), 1)
  t.is(asked, 1000)
  t.is((await stat(path)).mode & 0o777, 0o600)
  requests = 7
  await end()
  t.is(await read(), 7)
  t.deepEqual(await readdir(folder), ['stats.json'])
})

test('statistics are not written through a symbolic link, and one that comes later is replaced', async (t) => {
  const folder = await temporaryFolder(t)
  const [path, victim] = [join(folder, 'stats.json'), join(folder, 'victim')]
  await writeFile(victim, 'precious')
  await symlink(victim, path)
  const server = { statsSnapshot: () => NO_STATS, stats: () => NEVER }
  await t.throwsAsync(
    keepStatsFile(path, server, () => {}),
    { message: /no regular file/ },
  )
  await unlink(path)
  const end = await keepStatsFile(path, server, (error) => t.fail(error.message))
  await unlink(path)
  await symlink(victim, path)
  await end()
  t.true((await lstat(path)).isFile())
  t.is(await readFile(victim, 'utf8'), 'precious')
})

test('a file of statistics that cannot be written is known at once, and later is only told', async (t) => {
  const folder = await temporaryFolder(t)
  const server = { statsSnapshot: () => NO_STATS, stats: () => NEVER }
  await t.throwsAsync(
    keepStatsFile(join(folder, 'missing/stats.json'), server, () => {}),
    { code: 'ENOENT' },
  )
  const failures: string[] = []
  const end = await keepStatsFile(join(folder, 'stats.json'), server, (error) => failures.push(error.message))
  await rm(folder, { recursive: true })
  await end()
  t.is(failures.length, 1)
  t.regex(failures[0]!, /ENOENT/)
})
