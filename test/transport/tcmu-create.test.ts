import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { blockDevice, memoryDisk } from '../../src/handlers/index.ts'
import { TcmuKernel } from '../../src/testing/index.ts'
import { attach } from '../../src/transport/tcmu/attach.ts'
import type { TcmuBackstore } from '../../src/transport/tcmu/backstore.ts'
import { type CreateOptions, create } from '../../src/transport/tcmu/create.ts'
import type { KernelFile, KernelPaths } from '../../src/transport/tcmu/kernel-files.ts'
import { MiB } from '../../src/units.ts'
import { FakeKernel, systemError } from '../helpers/fake-configfs.ts'
import { openFdCount } from '../helpers/open-fds.ts'
import { read, statusOf, TEST_UNIT_READY } from '../helpers/tcmu-bench.ts'
import { until } from '../helpers/until.ts'

const CAPACITY_BYTES = 4 * MiB
const HEAD_AT = 12
const TAIL_AT = 64
const RING_AT = 128
const CORE = '/config/target/core/user_0'

/** A machine with target_core_user: configfs, and one TCMU device behind every /dev/uioN. */
class Machine {
  readonly fake = new FakeKernel()
  readonly ring = new TcmuKernel()
  readonly paths: KernelPaths
  /** What initiators have in flight: the kernel waits for it before it takes a disk away. */
  readonly pending: Promise<unknown>[] = []

  constructor(t: ExecutionContext) {
    const { fake, ring } = this
    // The scan, and the flush before the disk goes.
    fake.scan = async () => {
      await Promise.all([...this.pending, ring.submit({ cdb: TEST_UNIT_READY })])
      return 'disk'
    }
    this.paths = {
      ...fake.paths,
      openPort: () => ring.openPort(),
      files: {
        mkdir: (path) => fake.mkdir(path),
        rmdir: (path) => fake.rmdir(path),
        readdir: (path) => fake.readdir(path),
        readFile: (path) => fake.readFile(path),
        writeFile: async (path, text) => {
          await fake.writeFile(path, text)
          if (path.endsWith('/block_dev')) text === '1' ? ring.block() : ring.unblock()
          if (path.endsWith('/reset_ring')) ring.resetRing(Number(text))
        },
        symlink: (target, path) => fake.symlink(target, path),
        readlink: (path) => fake.readlink(path),
        unlink: (path) => fake.unlink(path),
        inode: (path) => fake.inode(path),
        expectWritable: (path) => fake.expectWritable(path),
        open: async (path): Promise<KernelFile> => {
          const file = await fake.open(path)
          const write = async (text: string): Promise<void> => {
            if (ring.freeKeptBuffer(Number(text)) !== 0) throw systemError('EINVAL')
          }
          return { write, close: () => file.close() }
        },
      },
    }
    t.teardown(() => ring.close())
  }

  create(options: Partial<CreateOptions> = {}): Promise<TcmuBackstore> {
    const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
    return create({ name: 'disk0', device, paths: this.paths, stopGraceMs: 50, ...options })
  }

  attach(options: object = {}): Promise<TcmuBackstore> {
    const device = memoryDisk({ capacityBytes: CAPACITY_BYTES })
    return attach({ uioPath: '/dev/uio0', device, paths: this.paths, stopGraceMs: 50, ...options })
  }

  /** True when no server has the device open. */
  get isFree(): boolean {
    try {
      this.ring.openPort().close()
      return true
    } catch {
      return false
    }
  }
}

/** A machine with a device that a server made and left. */
async function machineWithDevice(t: ExecutionContext): Promise<Machine> {
  const machine = new Machine(t)
  const maker = await machine.create({ fabric: 'none' })
  await maker.abandon()
  t.true(machine.isFree)
  return machine
}

function stallingDisk() {
  return blockDevice({
    capacityBytes: CAPACITY_BYTES,
    read: () => new Promise<void>(() => {}),
  })
}

// ---- create ------------------------------------------------------------------------------------------------------

test('create makes a disk and close leaves nothing of it', async (t) => {
  const machine = new Machine(t)
  const backstore = await machine.create()
  t.is(backstore.blockDevicePath, '/dev/sdz')
  t.is(statusOf(await read(machine.ring, 0, 8)), 'GOOD')
  t.is(backstore.statsSnapshot().ringResets, 0)
  await backstore.close()
  t.deepEqual(machine.fake.leftovers(), [])
  t.true(machine.isFree)
  t.is(machine.ring.fault, undefined)
})

test('whatever the kernel refuses, create rejects and leaves nothing behind', async (t) => {
  const model = new Machine(t)
  await (await model.create()).close()
  const made = model.fake.changes.slice(
    0,
    model.fake.changes.findIndex((change) => change.startsWith('unlink')),
  )
  const steps = made.map((change) => change.split(' ').slice(0, 2).join(' '))
  t.true(steps.length > 10)
  const before = openFdCount()
  for (const step of new Set(steps)) {
    const machine = new Machine(t)
    machine.fake.refusals.set(step, 'EIO')
    await t.throwsAsync(machine.create(), { code: 'ERR_TCMU_SYSTEM' }, step)
    t.deepEqual(machine.fake.leftovers(), [], step)
    t.true(machine.isFree, step)
    machine.ring.close()
  }
  await until(() => openFdCount() <= before)
})

test('a wrong option is refused before anything is done', async (t) => {
  const machine = new Machine(t)
  await t.throwsAsync(machine.create({ name: 'a/b' }), { code: 'ERR_OPTION_RANGE' })
  await t.throwsAsync(machine.create({ ringBytes: 3 }), { code: 'ERR_OPTION_RANGE' })
  await t.throwsAsync(machine.create({ serial: '' }), { code: 'ERR_OPTION_RANGE' })
  const disc = { misspelt: true } as Partial<CreateOptions>
  await t.throwsAsync(machine.create(disc), { code: 'ERR_OPTION_TYPE' })
  t.deepEqual(machine.fake.changes, [])
})

test('create goes on with the device that a killed server left', async (t) => {
  const machine = new Machine(t)
  const killed = await machine.create()
  await killed.abandon()
  const interrupted = read(machine.ring, 0, 8)
  const backstore = await machine.create()
  t.is(backstore.blockDevicePath, '/dev/sdz')
  t.is(backstore.statsSnapshot().ringResets, 1)
  t.is(statusOf(await interrupted), '08')
  t.is(statusOf(await machine.ring.submit({ cdb: TEST_UNIT_READY })), '6/29/00')
  t.is(statusOf(await read(machine.ring, 0, 8)), 'GOOD')
  await backstore.close()
  t.deepEqual(machine.fake.leftovers(), [])
})

test('create does not remove its new device when another process was quicker to serve it', async (t) => {
  const machine = new Machine(t)
  const other = machine.ring.openPort()
  await t.throwsAsync(machine.create(), { code: 'ERR_TCMU_IN_USE' })
  t.true(machine.fake.leftovers().includes('core/user_0/disk0'))
  other.close()
  const backstore = await machine.create()
  await backstore.close()
  t.deepEqual(machine.fake.leftovers(), [])
})

test('create waits for another process that is making the device', async (t) => {
  const machine = new Machine(t)
  const { fake } = machine
  await fake.mkdir(CORE)
  await fake.mkdir(`${CORE}/disk0`)
  await fake.writeFile(`${CORE}/disk0/control`, `dev_config=hushring/disk0,dev_size=${CAPACITY_BYTES}`)
  const creating = machine.create()
  await sleep(50)
  await fake.writeFile(`${CORE}/disk0/enable`, '1')
  const backstore = await creating
  t.false(fake.changes.includes('rmdir core/user_0/disk0'))
  await backstore.close()
})

test('create makes anew what was never enabled, and touches nothing that is not ours', async (t) => {
  const machine = new Machine(t)
  const { fake } = machine
  await fake.mkdir(CORE)
  await fake.mkdir(`${CORE}/disk0`)
  await fake.writeFile(`${CORE}/disk0/control`, `dev_config=hushring/disk0,dev_size=${CAPACITY_BYTES}`)
  const backstore = await machine.create()
  t.true(fake.changes.includes('rmdir core/user_0/disk0'))
  await backstore.close()

  await fake.mkdir(CORE)
  await fake.mkdir(`${CORE}/theirs`)
  await fake.writeFile(`${CORE}/theirs/control`, 'dev_config=qcow/theirs,dev_size=4096')
  await t.throwsAsync(machine.create({ name: 'theirs' }), { code: 'ERR_TCMU_IN_USE' })
  t.true(fake.leftovers().includes('core/user_0/theirs'))
})

test('create does not change the size of the blocks under a disk', async (t) => {
  const machine = await machineWithDevice(t)
  const device = memoryDisk({ capacityBytes: CAPACITY_BYTES, blockBytes: 4096 })
  await t.throwsAsync(machine.create({ device }), { code: 'ERR_TCMU_IN_USE' })
  t.true(machine.fake.leftovers().includes('core/user_0/disk0'))
  t.true(machine.isFree)
})

// ---- attach ------------------------------------------------------------------------------------------------------

test('attach ends what an earlier server left: a device that is blocked and a ring that is broken', async (t) => {
  const machine = await machineWithDevice(t)
  const { ring } = machine
  // An answer for a command that is not there.
  void ring.submit({ cdb: TEST_UNIT_READY })
  const port = ring.openPort()
  ring.writeMemory(RING_AT + 4, Buffer.of(99, 0))
  ring.writeMemory(TAIL_AT, ring.readMemory(HEAD_AT, 4))
  port.ringDoorbell()
  port.close()
  t.true(ring.isBroken)
  ring.block()
  t.is(statusOf(await ring.submit({ cdb: TEST_UNIT_READY })), '08')
  const backstore = await machine.attach()
  t.false(ring.isBroken)
  t.is(statusOf(await ring.submit({ cdb: TEST_UNIT_READY })), '6/29/00')
  t.is(statusOf(await read(machine.ring, 0, 8)), 'GOOD')
  t.is(backstore.statsSnapshot().ringResets, 1)
  await backstore.close()
  // Nothing of the device goes with its server.
  t.true(machine.fake.leftovers().includes('core/user_0/disk0'))
})

test('attach that resumes has the kernel look at answers that nobody rang for', async (t) => {
  const machine = await machineWithDevice(t)
  const { doorbells } = machine.ring
  const backstore = await machine.attach({ recover: 'resume' })
  t.is(machine.ring.doorbells, doorbells + 1)
  await backstore.close()
})

test('attach serves a clean ring of a kernel that cannot reset it, and refuses a dirty one', async (t) => {
  const machine = await machineWithDevice(t)
  machine.fake.refusals.set('write core/user_0/disk0/action/block_dev', 'ENOENT')
  const backstore = await machine.attach()
  t.is(statusOf(await read(machine.ring, 0, 8)), 'GOOD')
  await backstore.close()
  void machine.ring.submit({ cdb: TEST_UNIT_READY })
  await t.throwsAsync(machine.attach(), { code: 'ERR_TCMU_RING_DIRTY' })
  t.true(machine.isFree)
})

for (const action of ['block_dev', 'reset_ring']) {
  test(`attach lets the device go when the kernel refuses ${action}`, async (t) => {
    const machine = await machineWithDevice(t)
    machine.fake.refusals.set(`write core/user_0/disk0/action/${action}`, 'EIO')
    await t.throwsAsync(machine.attach(), { code: 'ERR_TCMU_SYSTEM' })
    t.true(machine.isFree)
    // It is not left blocked.
    machine.fake.refusals.clear()
    const backstore = await machine.attach({ recover: 'refuse' })
    t.is(statusOf(await read(machine.ring, 0, 8)), 'GOOD')
    await backstore.close()
  })
}

test('attach lets the device go when it cannot be unblocked after it was served', async (t) => {
  const machine = await machineWithDevice(t)
  const { files } = machine.paths
  const paths: KernelPaths = {
    ...machine.paths,
    files: {
      ...files!,
      writeFile: async (path, text) => {
        if (path.endsWith('/block_dev') && text === '0') throw systemError('EIO')
        await files!.writeFile(path, text)
      },
    },
  }
  await t.throwsAsync(machine.attach({ paths }), { code: 'ERR_TCMU_SYSTEM' })
  t.true(machine.isFree)
})

test('the file that kept buffers are freed through is closed with the device', async (t) => {
  const machine = await machineWithDevice(t)
  const disk = blockDevice({ capacityBytes: CAPACITY_BYTES, read: () => sleep(60) })
  const backstore = await machine.attach({ device: disk, requestTimeoutMs: 20 })
  t.is(statusOf(await machine.ring.submit({ cdb: TEST_UNIT_READY })), '6/29/00')
  t.is(statusOf(await read(machine.ring, 0, 8)), 'B/00/00')
  await until(() => machine.ring.commandIdCount === 0)
  const file = 'core/user_0/disk0/action/free_kept_buf'
  t.true(machine.fake.changes.includes(`open ${file}`))
  await backstore.close()
  t.true(machine.fake.changes.includes(`close ${file}`))
})

// ---- close -------------------------------------------------------------------------------------------------------

test('close answers for a handler that hangs while the kernel waits for its commands', async (t) => {
  const machine = new Machine(t)
  const backstore = await machine.create({ device: stallingDisk() })
  const stalled = read(machine.ring, 0, 8)
  machine.pending.push(stalled)
  await until(() => backstore.statsSnapshot().inFlight === 1)
  await backstore.close()
  t.is(statusOf(await stalled), 'B/00/00')
  t.deepEqual(machine.fake.leftovers(), [])
})

test('close starts a broken ring once more, because the kernel waits for the last flush', async (t) => {
  const machine = new Machine(t)
  const backstore = await machine.create()
  machine.ring.publishHead(4)
  await until(() => backstore.broken !== undefined)
  await backstore.close()
  t.deepEqual(machine.fake.leftovers(), [])
  t.is(backstore.statsSnapshot().ringResets, 1)
})

test('close answers the flush that a slow kernel sends after the grace for handlers is over', async (t) => {
  const machine = new Machine(t)
  const backstore = await machine.create({ stopGraceMs: 1 })
  const { scan } = machine.fake
  machine.fake.scan = async () => {
    await sleep(30)
    return await scan()
  }
  await backstore.close()
  t.deepEqual(machine.fake.leftovers(), [])
})

test('close removes everything also when the kernel refuses a step, and tells it', async (t) => {
  const machine = new Machine(t)
  const backstore = await machine.create()
  machine.fake.refusals.set('rmdir core/user_0/disk0', 'EBUSY')
  await t.throwsAsync(backstore.close(), { code: 'ERR_TCMU_SYSTEM' })
  t.true(machine.isFree)
  t.is(backstore.statsSnapshot().inFlight, 0)
})

test('a resize that configfs refuses is told to initiators all the same, because it happened', async (t) => {
  const machine = new Machine(t)
  const backstore = await machine.create()
  machine.fake.refusals.set('write core/user_0/disk0/control', 'EIO')
  await t.throwsAsync(backstore.resize(2 * CAPACITY_BYTES), { code: 'ERR_TCMU_SYSTEM' })
  t.is(statusOf(await machine.ring.submit({ cdb: TEST_UNIT_READY })), '6/2A/09')
  t.is(statusOf(await read(machine.ring, CAPACITY_BYTES / 512, 1)), 'GOOD')
  await backstore.close()
})

// ---- Whose device it is ------------------------------------------------------------------------------------------

/** The files of a machine for a process that is killed after so many changes: all that it does later is not done. */
function killedAfter(machine: Machine, changeCount: number): KernelPaths {
  const { fake } = machine
  const files = machine.paths.files!
  const alive = <Arguments extends unknown[], T>(call: (...given: Arguments) => Promise<T>) => {
    return async (...given: Arguments): Promise<T> => {
      if (fake.changes.length >= changeCount) throw systemError('EIO')
      return await call(...given)
    }
  }
  return {
    ...machine.paths,
    files: {
      mkdir: alive(files.mkdir),
      rmdir: alive(files.rmdir),
      readdir: alive(files.readdir),
      readFile: alive(files.readFile),
      writeFile: alive(files.writeFile),
      symlink: alive(files.symlink),
      readlink: alive(files.readlink),
      unlink: alive(files.unlink),
      inode: alive(files.inode),
      expectWritable: alive(files.expectWritable),
      open: alive(files.open),
    },
  }
}

test('wherever create was killed, the same call goes on, and its close leaves nothing', async (t) => {
  const model = new Machine(t)
  const backstore = await model.create()
  const made = model.fake.changes.slice()
  await backstore.close()
  const all = model.fake.changes.slice()
  t.true(made.length > 10)
  for (let changeCount = 1; changeCount < all.length; changeCount++) {
    const last = `after ${all[changeCount - 1]}`
    const machine = new Machine(t)
    const paths = killedAfter(machine, changeCount)
    // Killed while it makes the disk, or while it takes it away.
    const killed = machine.create({ paths }).then((made) => made.close())
    await t.throwsAsync(killed, { code: 'ERR_TCMU_SYSTEM' }, last)
    t.is(machine.fake.changes.length, changeCount, last)
    const again = await machine.create({ paths: { ...machine.paths, waitMsMax: 30 } })
    t.is(again.blockDevicePath, '/dev/sdz', last)
    if (again.statsSnapshot().ringResets > 0) await machine.ring.submit({ cdb: TEST_UNIT_READY })
    t.is(statusOf(await read(machine.ring, 0, 8)), 'GOOD', last)
    await again.close()
    t.deepEqual(machine.fake.leftovers(), [], last)
    machine.ring.close()
  }
})

test('create waits for somebody who has made a directory and not said what for', async (t) => {
  const machine = new Machine(t)
  const { fake } = machine
  await fake.mkdir(CORE)
  await fake.mkdir(`${CORE}/disk0`)
  const creating = machine.create()
  await sleep(50)
  await fake.writeFile(`${CORE}/disk0/control`, 'dev_config=qcow/theirs,dev_size=4096')
  await t.throwsAsync(creating, { code: 'ERR_TCMU_IN_USE', message: /belongs to another program \(qcow\)/ })
  t.false(fake.changes.includes('rmdir core/user_0/disk0'))
})

test('a device without dev_config that somebody has begun to use is not ours', async (t) => {
  for (const begin of [
    (machine: Machine) => machine.fake.writeFile(`${CORE}/disk0/wwn/vpd_unit_serial`, 'theirs'),
    async (machine: Machine) => {
      await machine.fake.writeFile(`${CORE}/disk0/control`, 'dev_size=4096')
      await machine.fake.writeFile(`${CORE}/disk0/enable`, '1')
    },
  ]) {
    const machine = new Machine(t)
    await machine.fake.mkdir(CORE)
    await machine.fake.mkdir(`${CORE}/disk0`)
    await begin(machine)
    const paths = { ...machine.paths, waitMsMax: 30 }
    await t.throwsAsync(machine.create({ paths }), { code: 'ERR_TCMU_IN_USE', message: /no dev_config/ })
    t.false(machine.fake.changes.includes('rmdir core/user_0/disk0'))
  }
})

test('a device that is enabled is not made anew where its node is not to be seen', async (t) => {
  // As in a container with a /dev of its own: the server of the device may be outside.
  const machine = await machineWithDevice(t)
  const paths: KernelPaths = {
    ...machine.paths,
    waitMsMax: 30,
    files: {
      ...machine.paths.files!,
      inode: (path) =>
        path.startsWith('/dev/') ? Promise.reject(systemError('ENOENT')) : machine.fake.inode(path),
    },
  }
  await t.throwsAsync(machine.create({ paths }), { code: 'ERR_TCMU_OPEN', message: /\/dev has no node/ })
  t.true(machine.fake.leftovers().includes('core/user_0/disk0'))
  t.false(machine.fake.changes.includes('rmdir core/user_0/disk0'))
})

test('attach serves a device whatever its maker called it', async (t) => {
  const machine = new Machine(t)
  const { fake } = machine
  const path = `${CORE}/Jürgen’s disk`
  await fake.mkdir(CORE)
  await fake.mkdir(path)
  await fake.writeFile(`${path}/control`, `dev_config=hushring/a b,dev_size=${CAPACITY_BYTES}`)
  await fake.writeFile(`${path}/enable`, '1')
  const backstore = await machine.attach()
  // The ring was reset, so initiators hear of a reset of the unit.
  t.is(statusOf(await machine.ring.submit({ cdb: TEST_UNIT_READY })), '6/29/00')
  t.is(statusOf(await read(machine.ring, 0, 8)), 'GOOD')
  t.is(backstore.statsSnapshot().ringResets, 1)
  await backstore.close()
})

test('a device that got the node of the one that was meant is left alone', async (t) => {
  for (const entry of ['create', 'attach'] as const) {
    const machine = await machineWithDevice(t)
    const actions = (): string[] => machine.fake.changes.filter((change) => change.includes('/action/'))
    const before = actions().length
    const paths: KernelPaths = {
      ...machine.paths,
      openPort: () => {
        // Between the look-up and this call the device went away, and another one came.
        machine.fake.removeUio(0)
        machine.fake.addUio(0, 'tcm-user/0/theirs/qcow/theirs')
        return machine.ring.openPort()
      },
    }
    await t.throwsAsync(machine[entry]({ paths }), { code: 'ERR_TCMU_OPEN', message: /theirs/ }, entry)
    t.true(machine.isFree, entry)
    t.is(actions().length, before, entry)
  }
})

test('what create could not take away again is told', async (t) => {
  const machine = new Machine(t)
  const files = machine.paths.files!
  const paths: KernelPaths = {
    ...machine.paths,
    files: {
      ...files,
      symlink: async () => {
        throw systemError('EINVAL')
      },
      rmdir: async (path) => {
        if (path.endsWith('/disk0')) throw systemError('EBUSY')
        await files.rmdir(path)
      },
    },
  }
  const warnings: string[] = []
  const silent = (): void => {}
  const logger = {
    error: silent,
    warn: (text: string) => void warnings.push(text),
    info: silent,
    debug: silent,
  }
  await t.throwsAsync(machine.create({ paths, logger }), { code: 'ERR_TCMU_SYSTEM', message: /EINVAL/ })
  t.regex(warnings.join('\n'), /cannot remove .*user_0\/disk0: EBUSY/)
})
