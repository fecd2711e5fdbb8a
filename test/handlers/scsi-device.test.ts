import test from 'ava'
import { compose, type ScsiDeviceOptions, scsiDevice } from '../../src/handlers/index.ts'
import type { ScsiRequest } from '../../src/ring/scsi-request.ts'
import { ScsiStatus } from '../../src/ring/sense.ts'
import { logicalUnit, outcomeOf, scsiRequest } from '../helpers/scsi-commands.ts'

test('scsiDevice: a device in a few lines', async (t) => {
  const device = scsiDevice({
    name: 'echo',
    handler: (io) => {
      if (io.cdb[0] === 0xc0) return io.ok(io.dataIn.copyFrom(Buffer.from('hello')))
      if (io.cdb[0] === 0xc1) return io.status(ScsiStatus.BUSY)
      return io.checkCondition({ key: 5, asc: 0x20, ascq: 0 })
    },
  })
  t.like(device, { kind: 'scsi', name: 'echo' })
  const handler = device.connect(logicalUnit())
  const send = async (cdb: string): Promise<ReturnType<typeof outcomeOf>> => {
    const request = scsiRequest(cdb, { dataInBytes: 8 })
    return outcomeOf(request, (await handler(request)) as never)
  }
  t.is((await send('c0 00 0000 00 00')).dataIn.toString(), 'hello')
  t.is((await send('c1 00 0000 00 00')).status, '8')
  t.is((await send('00 00 0000 00 00')).status, '5/20/00')
})

test('scsiDevice: connect makes a handler for each logical unit, and layers go around each', (t) => {
  const seen: string[] = []
  const device = compose(
    scsiDevice({
      connect: (unit) => (io) => {
        seen.push(unit.serial)
        return io.ok()
      },
    }),
    [
      (next) => (io: ScsiRequest) => {
        seen.push('layer')
        return next(io)
      },
    ],
  )
  t.is(device.name, 'scsi')
  for (const serial of ['a', 'b']) device.connect(logicalUnit({ serial }))(scsiRequest('00'))
  t.deepEqual(seen, ['layer', 'a', 'layer', 'b'])
})

test('scsiDevice: close ends the device once', async (t) => {
  let closes = 0
  const device = scsiDevice({
    handler: (io) => io.ok(),
    close: () => {
      closes++
    },
  })
  await Promise.all([device.close(), device.wrap((next) => next).close()])
  t.is(closes, 1)
  await scsiDevice({ handler: (io) => io.ok() }).close()
})

const refuses = test.macro({
  exec(t, options: unknown, message: RegExp) {
    const error = t.throws(() => scsiDevice(options as ScsiDeviceOptions), { instanceOf: TypeError, message })
    t.is((error as { code?: string } | undefined)?.code, 'ERR_OPTION_TYPE')
  },
  title: (_, _options, message) => `scsiDevice: refuses ${message}`,
})
const handler = (io: ScsiRequest): ReturnType<ScsiRequest['ok']> => io.ok()
test(refuses, undefined, /expected `options` to be an object/)
test(refuses, {}, /`handler` to be a function, unless connect is given/)
test(refuses, { handler, connect: () => handler }, /`handler` to be a function, unless connect/)
test(refuses, { handler: 1 }, /`handler` to be a function, got `1`/)
test(refuses, { connect: 1 }, /`connect` to be a function, got `1`/)
test(refuses, { handler, name: 1 }, /`name` to be a string, got `1`/)
test(refuses, { handler, close: true }, /`close` to be a function, got `true`/)
test(refuses, { handler, nmae: 'x' }, /unknown option `nmae`: did you mean `name`\?/)
