import { setTimeout as delay } from 'node:timers/promises'
import test from 'ava'
import type { ErrorCode } from '../../src/errors.ts'
import { checkAvailability } from '../../src/transport/tcmu/availability.ts'
import {
  type CoreDevice,
  type CoreDeviceOptions,
  createCoreDevice,
  exportOverLoopback,
  findCoreDevice,
  findLoopbackExport,
  RingReset,
} from '../../src/transport/tcmu/configfs.ts'
import { KERNEL_PATHS } from '../../src/transport/tcmu/kernel-files.ts'
import { MiB } from '../../src/units.ts'
import { FakeKernel, systemError } from '../helpers/fake-configfs.ts'
import { temporaryDirectory } from '../helpers/processes.ts'
import { until } from '../helpers/until.ts'

const DISK: CoreDeviceOptions = {
  name: 'd0',
  sizeBytes: 64 * MiB,
  blockBytes: 512,
  serial: 'd0-0001',
  config: 'd0',
}
const CORE = 'core/user_0/d0'
const CORE_PATH = `/config/target/${CORE}`

/** The core device of {@link DISK} in a fake kernel. */
async function coreDevice(kernel: FakeKernel, options: Partial<CoreDeviceOptions> = {}): Promise<CoreDevice> {
  return await createCoreDevice(kernel.paths, { ...DISK, ...options })
}

// ---- Making ------------------------------------------------------------------------------------------------------

test('a core device is made in the order that the kernel wants, and its UIO device is found', async (t) => {
  const kernel = new FakeKernel()
  kernel.addUio(0, 'some other driver')
  kernel.addUio(1, 'tcm-user/0/d/hushring/d0')
  const device = await coreDevice(kernel)
  t.deepEqual(kernel.changes, [
    'mkdir core/user_0',
    `mkdir ${CORE}`,
    `write ${CORE}/control dev_config=hushring/d0,dev_size=67108864,hw_block_size=512,nl_reply_supported=-1`,
    `write ${CORE}/attrib/tmr_notification 1`,
    `write ${CORE}/wwn/vpd_unit_serial d0-0001`,
    `write ${CORE}/enable 1`,
  ])
  t.is(device.uioPath, '/dev/uio2')
  t.is(device.uioName, 'tcm-user/0/d0/hushring/d0')
  t.like(device, { hba: 0, name: 'd0', subtype: 'hushring', config: 'd0', isOurs: true, isEnabled: true })
})

test('every option reaches the kernel, in its own unit', async (t) => {
  const kernel = new FakeKernel()
  await coreDevice(kernel, {
    hba: 7,
    blockBytes: 4096,
    config: 'srv/disk 0.img',
    maxDataAreaBytes: 64 * MiB,
    ringBytes: MiB,
    dataPagesPerBlock: 16,
    maxSectors: 1024,
    commandTimeoutS: 5,
    queueFullTimeoutS: -1,
    writeCache: true,
    taskManagement: false,
    netlinkReplies: true,
  })
  const path = 'core/user_7/d0'
  t.deepEqual(kernel.changes.slice(2, -2), [
    `write ${path}/control dev_config=hushring/srv/disk 0.img,dev_size=67108864,hw_block_size=4096,` +
      'hw_max_sectors=1024,max_data_area_mb=64,data_pages_per_blk=16,cmd_ring_size_mb=1',
    `write ${path}/attrib/cmd_time_out 5`,
    `write ${path}/attrib/qfull_time_out -1`,
    `write ${path}/attrib/emulate_write_cache 1`,
  ])
})

test('an attribute that an export freezes is refused afterwards, which is why it is written before', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel, { commandTimeoutS: 5 })
  t.is(await device.attribute('cmd_time_out'), '5')
  await exportOverLoopback(kernel.paths, device)
  await t.throwsAsync(device.setAttribute('cmd_time_out', 6), {
    code: 'ERR_TCMU_SYSTEM',
    message: `cannot write "6" to ${CORE_PATH}/attrib/cmd_time_out: EINVAL`,
  })
})

test('a UIO device and its node that appear late are waited for', async (t) => {
  const kernel = new FakeKernel()
  kernel.nodeDelayMs = 30
  t.is((await coreDevice(kernel)).uioPath, '/dev/uio0')
})

test('a UIO device that never appears is an error, and nothing is left', async (t) => {
  const kernel = new FakeKernel({ waitMsMax: 50 })
  kernel.nodeDelayMs = Number.POSITIVE_INFINITY
  await t.throwsAsync(coreDevice(kernel), {
    code: 'ERR_TCMU_SYSTEM',
    message: 'tcm-user/0/d0/hushring/d0 was enabled, but /dev has no UIO device of that name',
  })
  t.deepEqual(kernel.leftovers(), [])
})

test('a kernel without task management gets a device without', async (t) => {
  const kernel = new FakeKernel()
  kernel.unknown.add('tmr_notification')
  t.true((await coreDevice(kernel)).isEnabled)
})

test('a parameter that the kernel ignores is noticed', async (t) => {
  const kernel = new FakeKernel()
  kernel.unknown.add('cmd_ring_size_mb')
  t.true((await coreDevice(kernel, { name: 'other' })).isEnabled)
  await t.throwsAsync(coreDevice(kernel, { ringBytes: MiB }), {
    code: 'ERR_TCMU_SYSTEM',
    message: 'cannot set cmd_ring_size_mb to 1: the kernel does not know it',
  })
  t.deepEqual(await kernel.readdir('/config/target/core/user_0'), ['other'])
})

test('enable does not wait for netlink answers unless they were asked for', async (t) => {
  const kernel = new FakeKernel()
  kernel.waitsForNetlink = true
  await coreDevice(kernel)
  // The control: a device with answers is enabled only when somebody answered.
  let isMade = false
  const making = coreDevice(kernel, { name: 'd1', netlinkReplies: true }).then(() => {
    isMade = true
  })
  await until(() => kernel.answerNetlink !== undefined)
  await delay(30)
  t.false(isMade)
  kernel.answerNetlink!()
  await making
})

test('a netlink listener that refuses the device leaves nothing of it', async (t) => {
  const kernel = new FakeKernel()
  kernel.waitsForNetlink = true
  const making = coreDevice(kernel, { netlinkReplies: true })
  await until(() => kernel.answerNetlink !== undefined)
  kernel.answerNetlink!('ENOENT')
  await t.throwsAsync(making, {
    code: 'ERR_TCMU_SYSTEM',
    message: `cannot write "1" to ${CORE_PATH}/enable: ENOENT`,
  })
  t.deepEqual(kernel.leftovers(), [])
})

const leavesNothing = test.macro({
  async exec(t, change: string) {
    const kernel = new FakeKernel()
    kernel.refusals.set(change, 'ENOMEM')
    const error = await t.throwsAsync(
      coreDevice(kernel, { commandTimeoutS: 5 }).then((device) =>
        exportOverLoopback(kernel.paths, device, { naa: NAA }),
      ),
      { code: 'ERR_TCMU_SYSTEM', message: /: ENOMEM$/ },
    )
    t.is((error!.cause as NodeJS.ErrnoException).code, 'ENOMEM')
    const isExport = change.includes('loopback')
    t.deepEqual(kernel.leftovers(), isExport ? ['core/user_0', CORE, 'uio0'] : [])
  },
  title: (_, change) => `nothing is left when the kernel refuses: ${change}`,
})
const NAA = 'naa.5001405000000000'
const GROUP = `loopback/${NAA}/tpgt_1`
for (const change of [
  'mkdir core/user_0',
  `mkdir ${CORE}`,
  `write ${CORE}/control`,
  `write ${CORE}/attrib/cmd_time_out`,
  `write ${CORE}/attrib/tmr_notification`,
  `write ${CORE}/wwn/vpd_unit_serial`,
  `write ${CORE}/enable`,
  'mkdir loopback',
  `mkdir loopback/${NAA}`,
  `mkdir ${GROUP}`,
  `write ${GROUP}/nexus`,
  `mkdir ${GROUP}/lun/lun_0`,
  `symlink ${GROUP}/lun/lun_0/d0`,
]) {
  test(leavesNothing, change)
}

test('what the kernel does not let go after a failure is told', async (t) => {
  const kernel = new FakeKernel()
  kernel.refusals.set(`write ${CORE}/enable`, 'ENOMEM').set(`rmdir ${CORE}`, 'EBUSY')
  await t.throwsAsync(coreDevice(kernel), {
    code: 'ERR_TCMU_SYSTEM',
    message: `cannot write "1" to ${CORE_PATH}/enable: ENOMEM; then cannot remove ${CORE_PATH}: EBUSY`,
  })
  t.deepEqual(kernel.leftovers(), ['core/user_0', CORE])
})

test('the hba of another device survives the failure of ours', async (t) => {
  const kernel = new FakeKernel()
  await coreDevice(kernel, { name: 'other' })
  kernel.refusals.set(`write ${CORE}/enable`, 'ENOMEM')
  await t.throwsAsync(coreDevice(kernel))
  t.deepEqual(kernel.leftovers(), ['core/user_0', 'core/user_0/other', 'uio0'])
})

test('an hba that another process removes between two steps is made again', async (t) => {
  const kernel = new FakeKernel()
  let thefts = 2
  const mkdir = kernel.mkdir.bind(kernel)
  kernel.mkdir = async (path) => {
    if (path === CORE_PATH && thefts-- > 0) await kernel.rmdir('/config/target/core/user_0')
    await mkdir(path)
  }
  t.true((await coreDevice(kernel)).isEnabled)
  await (await findCoreDevice(kernel.paths, { name: 'd0' }))!.remove()
  // For ever is too often.
  thefts = Number.POSITIVE_INFINITY
  await t.throwsAsync(coreDevice(kernel), {
    code: 'ERR_TCMU_SYSTEM',
    message: `cannot make ${CORE_PATH}: ENOENT`,
  })
  t.deepEqual(kernel.leftovers(), [])
})

// ---- Names that are taken -----------------------------------------------------------------------------------------

test('a name that a foreign subtype has is refused, and its device is left alone', async (t) => {
  const kernel = new FakeKernel()
  await kernel.mkdir('/config/target/core/user_0')
  await kernel.mkdir(CORE_PATH)
  await kernel.writeFile(`${CORE_PATH}/control`, 'dev_config=qcow//srv/a.img,dev_size=512')
  await kernel.writeFile(`${CORE_PATH}/enable`, '1')
  const before = kernel.changes.length
  await t.throwsAsync(coreDevice(kernel), {
    code: 'ERR_TCMU_IN_USE',
    message: 'the TCMU device user_0/d0 belongs to the subtype qcow',
  })
  t.is(kernel.changes.length, before)
  const found = await findCoreDevice(kernel.paths, { name: 'd0' })
  t.like(found, { subtype: 'qcow', config: '/srv/a.img', isOurs: false, uioPath: '/dev/uio0' })
})

test('a name that begins with our subtype is a foreign one all the same', async (t) => {
  const kernel = new FakeKernel()
  await coreDevice(kernel)
  kernel.replaceAttribute(`${CORE_PATH}/attrib/dev_config`, 'hushring2/d0\n')
  t.false((await findCoreDevice(kernel.paths, { name: 'd0' }))!.isOurs)
})

test('a name that we have already is refused', async (t) => {
  const kernel = new FakeKernel()
  await coreDevice(kernel)
  await t.throwsAsync(coreDevice(kernel), { code: 'ERR_TCMU_IN_USE', message: /served by another process/ })
})

test('a device that somebody has not finished making is nobody’s', async (t) => {
  const kernel = new FakeKernel()
  await kernel.mkdir('/config/target/core/user_0')
  await kernel.mkdir(CORE_PATH)
  await t.throwsAsync(coreDevice(kernel), { code: 'ERR_TCMU_IN_USE', message: /belongs to somebody else$/ })
})

// ---- After a crash ------------------------------------------------------------------------------------------------

test('after a crash the device and its export are found, and removed in the right order', async (t) => {
  const kernel = new FakeKernel()
  const made = await exportOverLoopback(kernel.paths, await coreDevice(kernel))
  // A new process knows nothing but the name.
  const device = await findCoreDevice(kernel.paths, { name: 'd0' })
  t.like(device, { uioPath: '/dev/uio0', uioName: 'tcm-user/0/d0/hushring/d0', config: 'd0', isOurs: true })
  const found = await findLoopbackExport(kernel.paths, device!)
  t.like(found, { naa: made.naa, scsiAddress: '7:0:1:0', blockDevicePath: '/dev/sdz' })
  kernel.changes.length = 0
  await found!.remove()
  await device!.remove()
  const group = `loopback/${made.naa}/tpgt_1`
  t.deepEqual(kernel.changes, [
    `unlink ${group}/lun/lun_0/d0`,
    `rmdir ${group}/lun/lun_0`,
    `rmdir ${group}`,
    `rmdir loopback/${made.naa}`,
    `rmdir ${CORE}`,
    'rmdir core/user_0',
  ])
  t.deepEqual(kernel.leftovers(), [])
})

test('a device that was not enabled is found, has no UIO device and can be removed', async (t) => {
  const kernel = new FakeKernel()
  await kernel.mkdir('/config/target/core/user_0')
  await kernel.mkdir(CORE_PATH)
  await kernel.writeFile(`${CORE_PATH}/control`, 'dev_config=hushring/d0')
  const device = (await findCoreDevice(kernel.paths, { name: 'd0' }))!
  t.true(device.isOurs)
  t.false(device.isEnabled)
  t.throws(() => device.uioPath, { code: 'ERR_TCMU_OPEN' })
  await device.remove()
  t.deepEqual(kernel.leftovers(), [])
})

test('a device is found whatever its maker called it', async (t) => {
  const kernel = new FakeKernel()
  for (const name of ['my disk', 'é', 'a,b', '...', 'a\nb']) {
    await kernel.mkdir('/config/target/core/user_0').catch(() => {})
    await kernel.mkdir(`/config/target/core/user_0/${name}`)
    const found = await findCoreDevice(kernel.paths, { name })
    t.like(found, { name, isOurs: false, isEnabled: false, hasNode: false })
    await found!.remove()
  }
  for (const name of ['', '.', '..', '../other', 'a\0']) {
    await t.throwsAsync(findCoreDevice(kernel.paths, { name }), { code: 'ERR_OPTION_RANGE' })
  }
})

test('what does not exist is not found', async (t) => {
  const { paths } = new FakeKernel()
  t.is(await findCoreDevice(paths, { hba: 3, name: 'd0' }), undefined)
  t.is(await findLoopbackExport(paths, await createCoreDevice(paths, DISK)), undefined)
})

test('a dev_config that was written with echo has no newline in it', async (t) => {
  const kernel = new FakeKernel()
  await coreDevice(kernel)
  kernel.replaceAttribute(`${CORE_PATH}/attrib/dev_config`, 'hushring/new\n\n')
  t.is((await findCoreDevice(kernel.paths, { name: 'd0' }))!.config, 'new')
})

// ---- A device in use ----------------------------------------------------------------------------------------------

test('a device is blocked, reset and unblocked', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  kernel.changes.length = 0
  await device.block()
  await device.resetRing()
  await device.resetRing(RingReset.checkCondition)
  await device.unblock()
  t.deepEqual(kernel.changes, [
    `write ${CORE}/action/block_dev 1`,
    `write ${CORE}/action/reset_ring 1`,
    `write ${CORE}/action/reset_ring 2`,
    `write ${CORE}/action/block_dev 0`,
  ])
})

test('kept buffers are freed through one open file, which is closed before the removal', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  kernel.kept.add('1').add('65535')
  kernel.changes.length = 0
  await Promise.all([device.freeKeptBuffer(1), device.freeKeptBuffer(65535)])
  // 0 would crash the kernel (Linux 6.1), so it never gets there.
  await t.throwsAsync(device.freeKeptBuffer(0), { code: 'ERR_OPTION_RANGE' })
  await t.throwsAsync(device.freeKeptBuffer(1), {
    code: 'ERR_TCMU_SYSTEM',
    message: /free_kept_buf: EINVAL$/,
  })
  await device.remove()
  const file = `${CORE}/action/free_kept_buf`
  t.deepEqual(kernel.changes, [
    `open ${file}`,
    `write ${file} 1`,
    `write ${file} 65535`,
    `close ${file}`,
    `rmdir ${CORE}`,
    'rmdir core/user_0',
  ])
  await device.freeKeptBuffer(2)
})

test('a buffer of a device that somebody else removed is free', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  kernel.kept.add('1').add('2')
  await device.freeKeptBuffer(1)
  await kernel.rmdir(CORE_PATH)
  await t.notThrowsAsync(device.freeKeptBuffer(2))
  await t.notThrowsAsync(device.remove())
})

test('a device that is closed while the file for kept buffers is being opened writes nothing to it', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  kernel.kept.add('7')
  const freeing = device.freeKeptBuffer(7)
  await device.close()
  await freeing
  t.deepEqual(
    kernel.changes.filter((change) => change.includes('free_kept_buf')),
    [`open ${CORE}/action/free_kept_buf`, `close ${CORE}/action/free_kept_buf`],
  )
})

test('the capacity is changed without a netlink listener', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  await device.setSize(128 * MiB)
  t.is(await device.attribute('dev_size'), String(128 * MiB))
  t.is(kernel.changes.at(-1), `write ${CORE}/control dev_size=134217728`)
  await t.throwsAsync(device.setSize(513), { code: 'ERR_OPTION_RANGE' })
  // The control: the attribute wants one.
  await t.throwsAsync(device.setAttribute('dev_size', 64 * MiB), { message: /ESRCH/ })
})

test('the identity of a device is read without the kernel’s trimmings', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  t.is(await device.serial(), 'd0-0001')
  t.is(await device.vendor(), 'LIO-ORG')
  t.is(await device.product(), 'TCMU device')
  t.is(await device.revision(), '0002')
})

test('removing twice, or what is gone, is no error', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  const disk = await exportOverLoopback(kernel.paths, device)
  for (let time = 0; time < 2; time++) {
    await disk.remove()
    await device.remove()
  }
  t.deepEqual(kernel.leftovers(), [])
})

test('an exported device is not removed', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  await exportOverLoopback(kernel.paths, device)
  await t.throwsAsync(device.remove(), {
    code: 'ERR_TCMU_SYSTEM',
    message: `cannot remove ${CORE_PATH}: EBUSY`,
  })
})

test('the hba goes with its last device', async (t) => {
  const kernel = new FakeKernel()
  const [one, other] = [await coreDevice(kernel), await coreDevice(kernel, { name: 'd1' })]
  await one.remove()
  t.deepEqual(kernel.leftovers(), ['core/user_0', 'core/user_0/d1', 'uio1'])
  await other.remove()
  t.deepEqual(kernel.leftovers(), [])
})

// ---- The export ---------------------------------------------------------------------------------------------------

test('an export is made in the order that the kernel wants', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  kernel.changes.length = 0
  const disk = await exportOverLoopback(kernel.paths, device, { naa: NAA })
  const initiator = /naa\.5001405[0-9a-f]{9}$/.exec(kernel.changes[3]!)![0]
  t.deepEqual(kernel.changes, [
    'mkdir loopback',
    `mkdir loopback/${NAA}`,
    `mkdir ${GROUP}`,
    `write ${GROUP}/nexus ${initiator}`,
    `mkdir ${GROUP}/lun/lun_0`,
    `symlink ${GROUP}/lun/lun_0/d0`,
  ])
  t.like(disk, { naa: NAA, scsiAddress: '7:0:1:0', blockDevicePath: '/dev/sdz' })
})

test('the names of the ports are the same for the same device and different for others', async (t) => {
  const naaOf = async (options: Partial<CoreDeviceOptions>): Promise<string> => {
    const kernel = new FakeKernel()
    const { naa } = await exportOverLoopback(kernel.paths, await coreDevice(kernel, options))
    const initiator = kernel.changes
      .find((change) => change.includes('/nexus '))!
      .split(' ')
      .at(-1)
    t.not(naa, initiator)
    t.regex(naa, /^naa\.5001405[0-9a-f]{9}$/)
    return naa
  }
  const names = await Promise.all([
    naaOf({}),
    naaOf({ sizeBytes: 512 }),
    naaOf({ name: 'd1' }),
    naaOf({ hba: 1 }),
  ])
  t.is(names[0], names[1])
  t.is(new Set(names).size, 3)
})

test('the event loop turns while the kernel scans the device, so that its server can answer', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  let answer: ((result: 'disk') => void) | undefined
  kernel.scan = () =>
    new Promise((resolve) => {
      answer = resolve
    })
  let isExported = false
  const exporting = exportOverLoopback(kernel.paths, device).then((disk) => {
    isExported = true
    return disk
  })
  await until(() => answer !== undefined)
  await delay(30)
  t.false(isExported)
  answer!('disk')
  t.is((await exporting).blockDevicePath, '/dev/sdz')
})

test('a disk that appears after the scan is waited for', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  kernel.nodeDelayMs = 30
  t.is((await exportOverLoopback(kernel.paths, device)).blockDevicePath, '/dev/sdz')
})

test('a device that is no disk is exported without waiting for one', async (t) => {
  const kernel = new FakeKernel({ waitMsMax: 60_000 })
  kernel.scan = async () => 'tape'
  const made = await exportOverLoopback(kernel.paths, await coreDevice(kernel))
  t.is(made.blockDevicePath, undefined)
  t.is(made.scsiAddress, '7:0:1:0')
})

test('a device whose server did not answer the scan is not exported', async (t) => {
  const kernel = new FakeKernel({ waitMsMax: 50 })
  kernel.scan = async () => 'nothing'
  const device = await coreDevice(kernel)
  await t.throwsAsync(exportOverLoopback(kernel.paths, device), {
    code: 'ERR_TCMU_SYSTEM',
    message: /no disk appeared: its server did not answer the SCSI scan, or sd_mod is not loaded$/,
  })
  t.deepEqual(kernel.leftovers(), ['core/user_0', CORE, 'uio0'])
})

test('an export that an earlier process left half made is completed', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  for (const change of [`symlink ${GROUP}/lun/lun_0/d0`, `rmdir ${GROUP}/lun/lun_0`])
    kernel.refusals.set(change, 'EIO')
  await t.throwsAsync(exportOverLoopback(kernel.paths, device, { naa: NAA }))
  t.true(kernel.leftovers().includes(`${GROUP}/lun/lun_0`))
  t.is(await findLoopbackExport(kernel.paths, device), undefined)
  kernel.refusals.clear()
  t.is((await exportOverLoopback(kernel.paths, device, { naa: NAA })).blockDevicePath, '/dev/sdz')
})

test('an export that is there is taken over, and stays when that fails', async (t) => {
  const kernel = new FakeKernel({ waitMsMax: 50 })
  const device = await coreDevice(kernel)
  const first = await exportOverLoopback(kernel.paths, device)
  const linkCount = (): number => kernel.changes.filter((change) => change.startsWith('symlink')).length
  t.deepEqual(await exportOverLoopback(kernel.paths, device), first)
  t.is(linkCount(), 1)
  kernel.replaceAttribute(`/config/target/loopback/${first.naa}/tpgt_1/address`, '9:0:9\n')
  await t.throwsAsync(exportOverLoopback(kernel.paths, device), { code: 'ERR_TCMU_SYSTEM' })
  t.is(kernel.leftovers().filter((path) => path.endsWith('/lun_0/d0')).length, 1)
})

test('a target that exports another device is refused and left alone', async (t) => {
  const kernel = new FakeKernel()
  const [one, other] = [await coreDevice(kernel), await coreDevice(kernel, { name: 'd1' })]
  await exportOverLoopback(kernel.paths, one, { naa: NAA })
  const before = kernel.leftovers()
  await t.throwsAsync(exportOverLoopback(kernel.paths, other, { naa: NAA }), {
    code: 'ERR_TCMU_IN_USE',
    message: `/config/target/${GROUP}/lun/lun_0 exports ${CORE_PATH} already`,
  })
  t.deepEqual(kernel.leftovers(), before)
  t.is(await findLoopbackExport(kernel.paths, other), undefined)
  t.is((await findLoopbackExport(kernel.paths, one))!.naa, NAA)
})

test('a target with other LUNs outlives the removal of ours', async (t) => {
  const kernel = new FakeKernel()
  const disk = await exportOverLoopback(kernel.paths, await coreDevice(kernel), { naa: NAA })
  await kernel.mkdir(`/config/target/${GROUP}/lun/lun_1`)
  await disk.remove()
  t.true(kernel.leftovers().includes(`${GROUP}/lun/lun_1`))
  t.false(kernel.leftovers().includes(`${GROUP}/lun/lun_0`))
})

// ---- Options ------------------------------------------------------------------------------------------------------

const isRefused = test.macro({
  async exec(t, options: Readonly<Record<string, unknown>>, code: ErrorCode, message: RegExp) {
    const kernel = new FakeKernel()
    await t.throwsAsync(coreDevice(kernel, options), { code, message })
    t.deepEqual(kernel.changes, [])
  },
  title: (_, options) => `a core device with ${JSON.stringify(options)} is refused before anything is made`,
})
const RANGE = 'ERR_OPTION_RANGE'
const TYPE = 'ERR_OPTION_TYPE'
for (const name of [
  '',
  '.',
  '..',
  'a/b',
  'a:b',
  'a b',
  'a,b',
  'a\n',
  'a'.repeat(129),
  'é',
  '\ud800',
  '\x7f',
  '\x01',
]) {
  test(isRefused, { name }, RANGE, /`name`/)
}
test(isRefused, { name: 3 }, TYPE, /`name` to be a string/)
test(isRefused, { hba: 2 ** 32 }, RANGE, /`hba`/)
test(isRefused, { sizeBytes: 0 }, RANGE, /`sizeBytes`/)
test(isRefused, { sizeBytes: 1000 }, RANGE, /`sizeBytes` to be a multiple of 512/)
test(isRefused, { blockBytes: 4096, sizeBytes: 4608 }, RANGE, /`sizeBytes` to be a multiple of 4096/)
test(isRefused, { blockBytes: 1024 }, RANGE, /`blockBytes` to be 512 or 4096/)
for (const serial of ['', ' a', 'a ', 'a\n', 'é', 'a'.repeat(254)]) {
  test(isRefused, { serial }, RANGE, /`serial`/)
}
for (const config of ['a,dev_size=1', 'a\n', 'a\0', 'é'.repeat(124)]) {
  test(isRefused, { config }, RANGE, /`config` to be at most 246 bytes/)
}
test(isRefused, { maxDataAreaBytes: MiB + 1 }, RANGE, /`maxDataAreaBytes` to be a multiple of 1048576/)
test(isRefused, { maxDataAreaBytes: 0 }, RANGE, /`maxDataAreaBytes`/)
test(isRefused, { ringBytes: 9 * MiB }, RANGE, /`ringBytes`/)
test(isRefused, { dataPagesPerBlock: 0 }, RANGE, /`dataPagesPerBlock`/)
test(isRefused, { maxSectors: 7 }, RANGE, /`maxSectors`/)
test(isRefused, { commandTimeoutS: -1 }, RANGE, /`commandTimeoutS`/)
test(isRefused, { commandTimeoutS: 4_294_968 }, RANGE, /`commandTimeoutS`/)
test(isRefused, { queueFullTimeoutS: -2 }, RANGE, /`queueFullTimeoutS`/)
test(isRefused, { writeCache: 1 }, TYPE, /`writeCache` to be true or false/)
test(isRefused, { taskManagment: true }, TYPE, /did you mean `taskManagement`/)

test('the longest texts are accepted', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel, {
    name: 'n'.repeat(128),
    config: 'c'.repeat(246),
    serial: 's'.repeat(253),
  })
  t.is(await device.serial(), 's'.repeat(253))
})

test('the control: the fake kernel divides by zero where nobody checks', async (t) => {
  const kernel = new FakeKernel()
  await kernel.mkdir('/config/target/core/user_0')
  await kernel.mkdir(CORE_PATH)
  await t.throwsAsync(kernel.writeFile(`${CORE_PATH}/control`, 'data_pages_per_blk=0'), {
    message: /divides by zero/,
  })
})

test('a target name that is none is refused', async (t) => {
  const kernel = new FakeKernel()
  const device = await coreDevice(kernel)
  for (const naa of ['naa.1', 'iqn.2003-01.org.linux-iscsi.a', `${NAA}/..`]) {
    await t.throwsAsync(exportOverLoopback(kernel.paths, device, { naa }), { code: RANGE })
  }
})

// ---- Availability -------------------------------------------------------------------------------------------------

const SENTENCES = {
  module: 'target_core_user is not loaded: run `modprobe target_core_user` as root',
  loopback: 'tcm_loop is not loaded: run `modprobe tcm_loop` as root',
} as const

test('a machine with everything is available', async (t) => {
  const kernel = new FakeKernel()
  await t.notThrowsAsync(checkAvailability(kernel.paths))
})

test('each missing part is named with what helps', async (t) => {
  const bare = new FakeKernel({ modules: [] })
  await t.throwsAsync(checkAvailability(bare.paths), {
    code: 'ERR_TCMU_UNAVAILABLE',
    message: `no TCMU: ${SENTENCES.module}; ${SENTENCES.loopback}`,
  })
  const withoutLoopback = new FakeKernel({ modules: ['target_core_user'] })
  await t.throwsAsync(checkAvailability(withoutLoopback.paths), { message: `no TCMU: ${SENTENCES.loopback}` })
  await t.notThrowsAsync(checkAvailability(withoutLoopback.paths, { loopback: false }))
  const { paths } = new FakeKernel()
  await t.throwsAsync(checkAvailability({ ...paths, configfs: '/nowhere' }), {
    message: /^no TCMU: configfs is not mounted: run `mount -t configfs none \/nowhere` as root/,
  })
  const foreign = new FakeKernel()
  foreign.isRoot = false
  await t.throwsAsync(checkAvailability(foreign.paths), {
    message: 'no TCMU: /config/target/core cannot be written (EACCES): run this as root',
  })
})

test('what this process may not even look at needs another user', async (t) => {
  const kernel = new FakeKernel()
  const hidden = {
    ...kernel.paths,
    files: Object.assign(Object.create(kernel) as FakeKernel, {
      inode: async (path: string) => {
        if (path.startsWith('/config/target')) throw systemError('EACCES')
        return 1n
      },
      expectWritable: async () => {
        throw systemError('EACCES')
      },
    }),
  }
  await t.throwsAsync(checkAvailability(hidden), {
    code: 'ERR_TCMU_UNAVAILABLE',
    message: /cannot be written \(EACCES\): run this as root/,
  })
})

test('modules are loaded only when asked for, and a failure says why', async (t) => {
  const kernel = new FakeKernel()
  const loaded: string[][] = []
  const modprobe = async (modules: readonly string[]): Promise<void> => {
    loaded.push([...modules])
  }
  await checkAvailability(kernel.paths, { modprobe })
  t.deepEqual(loaded, [])
  await checkAvailability(kernel.paths, { modprobe, loadModules: true })
  await checkAvailability(kernel.paths, { modprobe, loadModules: true, loopback: false })
  t.deepEqual(loaded, [['target_core_user', 'tcm_loop', 'sd_mod'], ['target_core_user']])
  const failing = async (): Promise<void> => {
    throw Object.assign(systemError('ENOENT'), { stderr: 'modprobe: FATAL: Module x not found\n' })
  }
  await t.throwsAsync(checkAvailability(kernel.paths, { modprobe: failing, loadModules: true }), {
    code: 'ERR_TCMU_UNAVAILABLE',
    message: /cannot load the modules .*: modprobe: FATAL: Module x not found$/,
  })
})

test('a folder without a kernel behind it is no TCMU', async (t) => {
  const folder = await temporaryDirectory(t)
  const paths = { configfs: `${folder}/config`, sysfs: `${folder}/sys`, dev: `${folder}/dev` }
  await t.throwsAsync(checkAvailability(paths), { code: 'ERR_TCMU_UNAVAILABLE' })
  await t.throwsAsync(createCoreDevice(paths, DISK), { code: 'ERR_TCMU_SYSTEM', message: /ENOENT$/ })
  t.is(await findCoreDevice(paths, { name: 'd0' }), undefined)
  t.is(KERNEL_PATHS.configfs, '/sys/kernel/config')
})
