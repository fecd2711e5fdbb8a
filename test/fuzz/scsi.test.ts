import test from 'ava'
import type { Handler } from '../../src/handlers/index.ts'
import type { Completion } from '../../src/ring/request.ts'
import type { ScsiRequest } from '../../src/ring/scsi-request.ts'
import { decodeScsi, encodeScsi, scsiTarget } from './scsi.ts'
import { scsiSeeds } from './seeds.ts'
import type { LoadModule } from './target.ts'

const load: LoadModule = (path) => import(`../../src/${path}.ts`)

test('the seeds mean what they were made from, and what follows them means something', (t) => {
  for (const [name, script] of Object.entries(scsiSeeds)) {
    const input = encodeScsi(script)
    const decoded = decodeScsi(input)
    t.is(decoded.commands.length, script.commands.length, name)
    t.deepEqual(encodeScsi(decoded), input, name)
    for (let cut = 0; cut < input.length; cut++) t.notThrows(() => decodeScsi(input.subarray(cut)), name)
  }
})

test('the seeds come to all kinds of ends, without a finding', async (t) => {
  const statuses = new Map<string, number>()
  const target = await scsiTarget(load, statuses)
  for (const script of Object.values(scsiSeeds)) await target.play(encodeScsi(script))
  t.log([...statuses].map(([status, count]) => `${status} ${count}`).join(', '))
  const expected = [
    'GOOD',
    '3/0C/00',
    '3/11/00',
    '5/20/00',
    '5/21/00',
    '5/24/00',
    '6/29/00',
    '7/27/00',
    'B/00/00',
    'E/1D/00',
  ]
  for (const status of expected) t.true(statuses.has(status), status)
})

/** A device that answers each command wrongly. */
const isNoticed = test.macro({
  async exec(t, _what: string, answer: (io: ScsiRequest) => unknown, finding: RegExp) {
    const target = await scsiTarget(async (path) =>
      path === 'handlers/scsi/scsi-block'
        ? { scsiBlock: () => ({ connect: (): Handler<ScsiRequest> => (io) => answer(io) as Completion }) }
        : load(path),
    )
    const input = encodeScsi({ commands: [{ cdb: Buffer.alloc(6), dataInBytes: 64, pieces: 4 }] })
    await t.throwsAsync(async () => target.play(input), { message: finding })
  },
  title: (_, what) => `the fuzzer notices ${what}`,
})
test(isNoticed, 'a handler that throws', () => (undefined as never as Buffer).length, /undefined/)
test(isNoticed, 'an answer that is none', () => ({ result: 'ok' }), /is a completion/)
test(isNoticed, 'an answer without a status', (io) => io.unsupported(), /has a status/)
test(isNoticed, 'a byte too many', (io) => io.ok(65), /65 bytes of Data-In in room for 64/)
test(isNoticed, 'bytes that nobody filled', (io) => io.ok(), /of what was in memory before/)
test(
  isNoticed,
  'a byte behind the Data-In',
  (io) => {
    io.dataIn.fill(0)
    return io.ok(63)
  },
  /nothing is written behind/,
)
test(isNoticed, 'a failure without sense data', (io) => io.fail(new Error('why')), /has sense data/)
test(
  isNoticed,
  'an error of a medium that has none',
  (io) => io.checkCondition({ key: 3, asc: 0x11, ascq: 0 }),
  /3\/11\/00 has no reason/,
)
test(
  isNoticed,
  'a pointer behind the CDB',
  (io) => io.checkCondition({ key: 5, asc: 0x24, ascq: 0, field: { byte: 6 } }),
  /the field at 6/,
)
test(
  isNoticed,
  'the same in descriptor format',
  (io) => io.checkCondition({ key: 5, asc: 0x24, ascq: 0, field: { byte: 6 }, descriptor: true }),
  /the field at 6/,
)
