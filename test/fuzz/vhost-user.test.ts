import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { type BlockDevice, type BlockDeviceOptions, blockDevice } from '../../src/handlers/index.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { vhostUserSeeds } from './seeds.ts'
import type { LoadModule } from './target.ts'
import {
  decodeVhostUser,
  encodeVhostUser,
  type VhostUserTargetOptions,
  vhostUserTarget,
} from './vhost-user.ts'

test('the seeds mean what they were made from, and what follows them means something', (t) => {
  for (const [name, steps] of Object.entries(vhostUserSeeds)) {
    const input = encodeVhostUser(steps)
    t.deepEqual(
      decodeVhostUser(input),
      steps.map((step) => ('payload' in step ? { ...step, payload: Buffer.from(step.payload) } : step)),
      name,
    )
    for (let cut = 0; cut < input.length; cut++) t.notThrows(() => decodeVhostUser(input.subarray(cut)), name)
  }
})

const load: LoadModule = (path) => import(`../../src/${path}.ts`)

/** A target that ends with the test. */
async function targetFor(
  t: ExecutionContext,
  options: Partial<VhostUserTargetOptions> = {},
  loadModule = load,
): ReturnType<typeof vhostUserTarget> {
  const folder = mkdtempSync(join(tmpdir(), 'hushring-'))
  const target = await vhostUserTarget(loadModule, { folder, openFdCount, ...options })
  t.teardown(async () => {
    await target.close()
    rmSync(folder, { recursive: true })
  })
  return target
}

test.serial('the seeds come to requests, and to all kinds of ends, without a finding', async (t) => {
  const ends = new Map<string, number>()
  const target = await targetFor(t, { ends })
  for (const steps of Object.values(vhostUserSeeds)) await target.play(encodeVhostUser(steps))
  t.log([...ends].map(([end, count]) => `${end} ${count}`).join(', '))
  for (const end of ['closed', 'ERR_VHOST_FEATURES']) t.true(ends.has(end), end)
  t.true(target.requestCount() >= 4, 'requests of the disk are answered')
})

test.serial('the fuzzer notices a descriptor that is left open', async (t) => {
  let count = 10
  const target = await targetFor(t, { openFdCount: () => count++ })
  await t.throwsAsync(async () => target.play(Buffer.alloc(0)), { message: /10 before, 11 after/ })
})

test.serial('the fuzzer notices an error that is not the peer’s', async (t) => {
  const target = await targetFor(t, {}, async (path) => {
    if (path !== 'handlers/index') return load(path)
    const broken = (options: BlockDeviceOptions): BlockDevice =>
      blockDevice({ ...options, read: () => (undefined as never as Buffer).length })
    return { blockDevice: broken }
  })
  const input = encodeVhostUser(vhostUserSeeds['a request']!)
  await t.throwsAsync(async () => target.play(input), {
    message: /peer's mistakes alone: .*ERR_HANDLER_THREW/,
  })
})
