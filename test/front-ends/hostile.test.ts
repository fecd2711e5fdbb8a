import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { type HostileRow, hostileRows, playHostileRow } from '../../src/testing/index.ts'
import { hushring } from '../helpers/back-ends.ts'
import { examine, type HostileTarget, startTarget } from '../helpers/hostile-target.ts'
import { type Scope, temporaryDirectory } from '../helpers/processes.ts'
import { storageDaemon } from '../helpers/tools.ts'

/** Rows that need a disk of a kind of its own. */
const isReadOnly = ({ row }: HostileRow): boolean => row === 35

/** What was seen, row by row. */
const seen: { row: string; hushring: string; storageDaemon: string }[] = []
let connectionCount = 0
let rssGrowthBytesMax = 0

/** What the tests of this file share: it ends with the last of them. */
const cleanups: (() => Promise<unknown>)[] = []
const whole: Scope = { teardown: (end) => void cleanups.unshift(end) }
test.after.always(async () => {
  for (const end of cleanups) await end()
  const report = process.env.HUSHRING_HOSTILE_REPORT
  if (report !== undefined)
    writeFileSync(report, JSON.stringify({ seen, connectionCount, rssGrowthBytesMax }))
})

// ---- hushring serve -----------------------------------------------------------------------------------------------

async function serve(scope: Scope, words: readonly string[]): Promise<HostileTarget> {
  const socketPath = join(await temporaryDirectory(scope), 'h.sock')
  // A store that takes a millisecond: what comes meanwhile finds requests in flight.
  const slow = ['--memory', '1MiB', '--layer', 'fault:delayMs=1', '--queues', '2']
  const command = [...hushring, 'serve', 'vhost-user', '--socket', socketPath, ...slow, ...words]
  return startTarget(scope, command, socketPath, ({ stdout }) => stdout() !== '')
}

let usual: HostileTarget
let strict: HostileTarget
test.before('start two servers', async () => {
  usual = await serve(whole, [])
  strict = await serve(whole, ['--strict'])
})

const played = test.macro({
  title: (_, { title }: HostileRow, isStrict: boolean) => `${title}${isStrict ? ' (strict)' : ''}`,
  async exec(t, row: HostileRow, isStrict: boolean) {
    const target = isReadOnly(row) ? await serve(t, ['--read-only']) : isStrict ? strict : usual
    const before = target.command.stderr().length
    const { outcome, connectionCount: count } = await playHostileRow(row, target)
    connectionCount += count
    t.is(outcome, (isStrict ? row.strictExpectation : undefined) ?? row.expectation)
    const { findings, rssGrowthBytes } = await examine(target)
    t.deepEqual(findings, [])
    rssGrowthBytesMax = Math.max(rssGrowthBytesMax, rssGrowthBytes)
    const codes = row.strictExpectation === undefined || isStrict ? row.codes : undefined
    const errors =
      target.command
        .stderr()
        .slice(before)
        .match(/^error: .*$/gm) ?? []
    t.is(errors.length > 0, codes !== undefined, errors.join('\n'))
    for (const line of errors)
      t.true(
        codes?.some((code) => line.includes(code)),
        line,
      )
    if (!isStrict) seen.push({ row: row.title, hushring: outcome, storageDaemon: 'not played' })
  },
})
for (const row of hostileRows) {
  test.serial(played, row, false)
  if (row.strictExpectation !== undefined) test.serial(played, row, true)
}

/** How long the others may take over anything, in ms: what hangs there must not hold us up. */
const PEER_LIMIT_MS = 1000

// ---- controls -----------------------------------------------------------------------------------------------------

const isNoticed = test.macro({
  title: (_, weakness: string, finding: RegExp | undefined) =>
    `control: a back-end that ${weakness} after a row is ${finding === undefined ? 'not accused' : 'noticed'}`,
  async exec(t, weakness: string, finding: RegExp | undefined) {
    const socketPath = join(await temporaryDirectory(t), 'w.sock')
    const command = [process.execPath, '--import=tsx', weakBackEnd, socketPath, weakness]
    const target = await startTarget(t, command, socketPath, ({ stdout }) => stdout() === 'ready\n')
    const row = hostileRows.find(({ title }) => title === 'row 36: SET_VRING_NUM for queue 255')!
    t.is((await playHostileRow(row, target)).outcome, 'protocol error')
    const { findings } = await examine(target, PEER_LIMIT_MS)
    t.is(findings.length > 0, finding !== undefined, findings.join('\n'))
    if (finding !== undefined) t.regex(findings.join('\n'), finding)
  },
})
const weakBackEnd = join(import.meta.dirname, '../helpers/weak-back-end.ts')
test.serial(isNoticed, 'does nothing wrong', undefined)
test.serial(isNoticed, 'leaks a descriptor', /descriptors are open and not/)
test.serial(isNoticed, 'keeps memory', /bytes of memory came to stay/)
test.serial(isNoticed, 'spins', /uses the processor with nothing to do/)
test.serial(isNoticed, 'dies', /the process has ended/)
test.serial(isNoticed, 'prints what no log has', /it printed: /)
test.serial(isNoticed, 'listens no more', /hung up|ECONNREFUSED|ENOENT/)

// ---- beside qemu-storage-daemon -------------------------------------------------------------------------------------

async function servePeer(scope: Scope, isWritable: boolean): Promise<HostileTarget> {
  const folder = await temporaryDirectory(scope)
  const [socketPath, pidPath, imagePath] = ['peer.sock', 'pid', 'image'].map((name) => join(folder, name))
  writeFileSync(imagePath!, Buffer.alloc(2 ** 20))
  const command = [
    ...[storageDaemon.path!, '--pidfile', pidPath!],
    ...['--blockdev', `driver=file,filename=${imagePath},node-name=store`],
    '--export',
    `type=vhost-user-blk,id=disk,node-name=store,addr.type=unix,addr.path=${socketPath},num-queues=2,` +
      `writable=${isWritable ? 'on' : 'off'}`,
  ]
  return startTarget(scope, command, socketPath!, () => existsSync(pidPath!), /^/)
}

const testPeer = storageDaemon.path === undefined ? test.skip : test.serial
testPeer('the same rows against qemu-storage-daemon, for comparison', async (t) => {
  t.timeout(300_000)
  let target: HostileTarget | undefined
  for (const line of seen) {
    const row = hostileRows.find(({ title }) => title === line.row)!
    if (isReadOnly(row)) continue
    target ??= await servePeer(t, true)
    // What it does is no matter of ours, whatever it is.
    const outcome = await playHostileRow(row, { ...target, limitMs: PEER_LIMIT_MS }).then(
      (result) => result.outcome,
      (error: Error) => error.message,
    )
    const { findings } = await examine(target, PEER_LIMIT_MS)
    line.storageDaemon = [outcome, ...findings].join('; ')
    if (findings.length === 0) continue
    await target.command.stop()
    target = undefined
  }
  for (const { row, hushring, storageDaemon } of seen) t.log(`${row} | ${hushring} | ${storageDaemon}`)
  t.is(seen.length, hostileRows.length)
})
