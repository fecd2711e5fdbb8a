import { setTimeout as delay } from 'node:timers/promises'
import test from 'ava'
import fc from 'fast-check'
import {
  type DeviceChange,
  discover,
  parseDevConfig,
  parseTcmuName,
  type TcmuName,
  watchDevices,
} from '../../src/transport/tcmu/discovery.ts'
import { FakeKernel, systemError } from '../helpers/fake-configfs.ts'
import { until } from '../helpers/until.ts'

// ---- Names -------------------------------------------------------------------------------------------------------

const parses = test.macro({
  exec(t, text: string, expected: TcmuName | undefined) {
    t.deepEqual(parseTcmuName(text), expected)
  },
  title: (_, text, expected) => `${JSON.stringify(text)} is ${expected === undefined ? 'no' : 'a'} TCMU name`,
})
const named = (hba: number, name: string, subtype: string, config: string): TcmuName => ({
  hba,
  name,
  subtype,
  config,
})
test(parses, 'tcm-user/0/d0/hushring/a', named(0, 'd0', 'hushring', 'a'))
test(parses, 'tcm-user/0/d0/hushring/a\n', named(0, 'd0', 'hushring', 'a'))
test(parses, 'tcm-user/0/d0/hushring/a\n\n', named(0, 'd0', 'hushring', 'a'))
test(parses, 'tcm-user/4294967295/d0/hushring/a', named(4294967295, 'd0', 'hushring', 'a'))
test(parses, 'tcm-user/0/d0/hushring//srv/a.img', named(0, 'd0', 'hushring', '/srv/a.img'))
test(parses, 'tcm-user/0/d0/hushring/', named(0, 'd0', 'hushring', ''))
test(parses, 'tcm-user/0/d0/hushring', named(0, 'd0', 'hushring', ''))
test(parses, 'tcm-user/0/d0/', named(0, 'd0', '', ''))
test(parses, 'tcm-user/0/d0', named(0, 'd0', '', ''))
test(parses, 'tcm-user/0/d0/hushring/a\nb', named(0, 'd0', 'hushring', 'a\nb'))
test(parses, 'tcm-user/4294967296/d0/hushring/a', undefined)
test(parses, 'tcm-user/-1/d0/hushring/a', undefined)
test(parses, 'tcm-user/0x1/d0/hushring/a', undefined)
test(parses, 'tcm-user//d0/hushring/a', undefined)
test(parses, 'tcm-user/0', undefined)
test(parses, 'tcm-user/0//hushring/a', undefined)
test(parses, 'tcm-users/0/d0/hushring/a', undefined)
test(parses, ' tcm-user/0/d0/hushring/a', undefined)
test(parses, 'uio_pci_generic', undefined)
test(parses, '', undefined)

test('the parts of a name make the name again, whatever is in them', (t) => {
  const part = fc.string({ minLength: 1 }).filter((text) => !/[/\n]/.test(text))
  const config = fc.string().filter((text) => !text.endsWith('\n'))
  fc.assert(
    fc.property(fc.nat({ max: 0xffff_ffff }), part, part, config, (hba, name, subtype, text) => {
      const parts = parseTcmuName(`tcm-user/${hba}/${name}/${subtype}/${text}\n`)
      t.deepEqual(parts, { hba, name, subtype, config: text })
      t.deepEqual(parseDevConfig(`${subtype}/${text}\n`), { subtype, config: text })
    }),
  )
})

// ---- The list ----------------------------------------------------------------------------------------------------

test('devices of exactly one subtype are listed, in order of their minors', async (t) => {
  const kernel = new FakeKernel()
  kernel.addUio(10, 'tcm-user/0/late/hushring/x')
  kernel.addUio(2, 'tcm-user/1/early/hushring//srv/a.img')
  kernel.addUio(3, 'tcm-user/0/longer/hushring2/x')
  kernel.addUio(4, 'tcm-user/0/shorter/hush/x')
  kernel.addUio(5, 'tcm-user/0/other/qcow/x')
  kernel.addUio(6, 'tcm-user/0/empty')
  kernel.addUio(7, 'uio_pci_generic')
  const found = await discover(kernel.paths)
  t.deepEqual(
    found.map(({ inode, ...facts }) => facts),
    [
      {
        ...named(1, 'early', 'hushring', '/srv/a.img'),
        uioName: 'tcm-user/1/early/hushring//srv/a.img',
        uioPath: '/dev/uio2',
        minor: 2,
      },
      {
        ...named(0, 'late', 'hushring', 'x'),
        uioName: 'tcm-user/0/late/hushring/x',
        uioPath: '/dev/uio10',
        minor: 10,
      },
    ],
  )
  const others = await discover(kernel.paths, { subtype: 'qcow' })
  t.deepEqual(
    others.map(({ name }) => name),
    ['other'],
  )
})

test('a machine without UIO has no devices', async (t) => {
  const { paths } = new FakeKernel()
  t.deepEqual(await discover({ ...paths, sysfs: '/nowhere' }), [])
})

test('a device that goes away while the list is made is left out', async (t) => {
  for (const code of ['ENOENT', 'ENODEV']) {
    const kernel = new FakeKernel()
    kernel.addUio(0, 'tcm-user/0/gone/hushring/x')
    kernel.addUio(1, 'tcm-user/0/here/hushring/x')
    const readFile = kernel.readFile.bind(kernel)
    kernel.readFile = async (path) => {
      if (path.includes('uio0')) throw systemError(code)
      return await readFile(path)
    }
    const found = await discover(kernel.paths)
    t.deepEqual(
      found.map(({ name }) => name),
      ['here'],
    )
  }
})

test('a device that is replaced while it is looked at is not taken for its successor', async (t) => {
  const kernel = new FakeKernel()
  kernel.addUio(0, 'tcm-user/0/old/hushring/x')
  const readFile = kernel.readFile.bind(kernel)
  kernel.readFile = async (path) => {
    kernel.removeUio(0)
    kernel.addUio(0, 'tcm-user/0/new/hushring/x')
    return await readFile(path)
  }
  t.deepEqual(await discover(kernel.paths), [])
})

test('what cannot be read is an error that names the file', async (t) => {
  const kernel = new FakeKernel()
  kernel.readdir = async () => {
    throw systemError('EIO')
  }
  await t.throwsAsync(discover(kernel.paths), {
    code: 'ERR_TCMU_SYSTEM',
    message: 'cannot list /sys/class/uio: EIO',
  })
})

// ---- The watch ---------------------------------------------------------------------------------------------------

/** What a watch of a fake kernel told, as `added d0`. */
function watched(kernel: FakeKernel): { told: string[]; stop: () => void } {
  const told: string[] = []
  const subscription = watchDevices(kernel.paths, { everyMs: 1 }).subscribe(
    ({ type, device }: DeviceChange) => void told.push(`${type} ${device.name}`),
  )
  return { told, stop: () => subscription.unsubscribe() }
}

test('a watch tells what is there, what comes and what goes', async (t) => {
  const kernel = new FakeKernel()
  kernel.addUio(0, 'tcm-user/0/d0/hushring/x')
  kernel.addUio(1, 'tcm-user/0/foreign/qcow/x')
  const { told, stop } = watched(kernel)
  await until(() => told.length === 1)
  kernel.addUio(2, 'tcm-user/0/d2/hushring/x')
  await until(() => told.length === 2)
  kernel.removeUio(0)
  await until(() => told.length === 3)
  t.deepEqual(told, ['added d0', 'added d2', 'removed d0'])
  stop()
  kernel.removeUio(2)
  await delay(20)
  t.is(told.length, 3)
})

test('a device that was replaced by one of the same name and minor was removed and added', async (t) => {
  const kernel = new FakeKernel()
  kernel.addUio(0, 'tcm-user/0/d0/hushring/x')
  const { told, stop } = watched(kernel)
  await until(() => told.length === 1)
  kernel.removeUio(0)
  kernel.addUio(0, 'tcm-user/0/d0/hushring/x')
  await until(() => told.length === 3)
  stop()
  t.deepEqual(told, ['added d0', 'removed d0', 'added d0'])
})

test('a watch that is unsubscribed in its first value tells no second one', async (t) => {
  const kernel = new FakeKernel()
  kernel.addUio(0, 'tcm-user/0/d0/hushring/x')
  kernel.addUio(1, 'tcm-user/0/d1/hushring/x')
  const told: string[] = []
  const subscription = watchDevices(kernel.paths, { everyMs: 1 }).subscribe(({ device }) => {
    told.push(device.name)
    subscription.unsubscribe()
  })
  await until(() => told.length > 0)
  await delay(20)
  t.deepEqual(told, ['d0'])
})

test('a watch that cannot read sysfs ends with the error', async (t) => {
  const kernel = new FakeKernel()
  let failure: unknown
  watchDevices(kernel.paths, { everyMs: 1 }).subscribe({
    error: (error: unknown) => {
      failure = error
    },
  })
  kernel.readdir = async () => {
    throw systemError('EIO')
  }
  await until(() => failure !== undefined)
  t.like(failure, { code: 'ERR_TCMU_SYSTEM' })
})

test('a pause of no time is refused', (t) => {
  t.throws(() => watchDevices(new FakeKernel().paths, { everyMs: 0 }), { code: 'ERR_OPTION_RANGE' })
})
