// The cost of a TCMU device on the real kernel, in instructions. `npx tsx bench/tcmu.ts [--rounds N] [--json]` prints the
// table, or the samples as JSON.
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { TcmuGuest, type TcmuOrder } from '../test/helpers/tcmu-guest.ts'
import { guestTools, tcmuGuestTools, tcmuRunner } from '../test/helpers/tools.ts'
import { notRun, type Section } from './section.ts'
import { interleave, markdownTable, spreadOf } from './statistics.ts'

/** A device server with its options, as the scenario `measure` starts it. */
export interface TcmuServer extends Pick<TcmuOrder, 'server' | 'arguments'> {
  readonly name: string
}

/** The peer comes first: the others are compared with it. */
const SERVERS: readonly TcmuServer[] = [
  { name: 'tcmu-runner (qcow handler)', server: 'tcmu-runner' },
  ...['immediate', 'adaptive', 'adaptive:32,400'].map((policy) => ({
    name: `hushring, ${policy}`,
    server: 'hushring',
    arguments: ['--doorbell', policy],
  })),
  // What is left when the store costs next to nothing.
  {
    name: 'hushring, adaptive, store in memory',
    server: 'hushring',
    arguments: ['--memory=64MiB', '--doorbell', 'adaptive'],
  },
]

/** What one server cost in one round: the figures of `test/front-ends/tcmu/scenarios/measure.sh` by name. */
export type TcmuSample = Readonly<Record<string, number>>

/** The samples of one server. */
export interface TcmuMeasurement {
  readonly server: string
  readonly samples: readonly TcmuSample[]
}

/**
 * Measures each server once a round, alternating in one boot of a guest whose clock counts instructions. A round takes
 * about a minute a server.
 *
 * @param servers the peer first
 * @throws when a scenario fails, with its log
 */
export async function measureTcmu(
  roundCount: number,
  servers: readonly TcmuServer[] = SERVERS,
): Promise<readonly TcmuMeasurement[]> {
  const limitSeconds = 600
  const guest = await TcmuGuest.boot({
    countsInstructions: true,
    limitSeconds: (1 + roundCount * servers.length) * limitSeconds,
  })
  try {
    const samples = await interleave(servers, roundCount, async ({ name, server, arguments: words = [] }) => {
      const order = { scenario: 'measure', server, arguments: words, limitSeconds }
      const { status, log, figures } = await guest.carryOut(order)
      if (status !== 0) throw new Error(`${name}: status ${status}\n${log}`)
      return Object.fromEntries(Array.from(figures, ([figure, { value }]) => [figure, value]))
    })
    return servers.map(({ name }, index) => ({ server: name, samples: samples[index]! }))
  } finally {
    await guest.stop()
  }
}

/** The table of {@link measureTcmu}. */
export async function benchTcmu(roundCount: number): Promise<Section<TcmuSample>> {
  const heading = '### TCMU on the real kernel, in instructions'
  const needed = [...Object.values(guestTools), ...Object.values(tcmuGuestTools), tcmuRunner]
  const missing = needed.filter(({ path }) => path === undefined)
  if (missing.length > 0) {
    return notRun('tcmu', heading, `${missing.map(({ name }) => name).join(', ')} is missing`)
  }
  const measurements = await measureTcmu(roundCount)
  const rows = measurements.map(({ server, samples }) => ({ names: [server], samples }))
  return { name: 'tcmu', markdown: `${heading}\n\n${tableOf(measurements)}`, rows }
}

const WORKLOADS: Readonly<Record<string, string>> = {
  'randread-4k-qd1': '4 KiB random reads, QD 1',
  'randread-4k-qd32': '4 KiB random reads, QD 32',
  'randwrite-4k-qd1': '4 KiB random writes, QD 1',
  'randwrite-4k-qd32': '4 KiB random writes, QD 32',
  'read-64k-qd8': '64 KiB sequential reads, QD 8',
}

function tableOf(measurements: readonly TcmuMeasurement[]): string {
  const median = ({ samples }: TcmuMeasurement, figure: string): number =>
    spreadOf(samples.map((sample) => sample[figure]!)).median
  const rows = Object.entries(WORKLOADS).flatMap(([workload, title]) =>
    measurements.map((measurement) => {
      const ratio = (figure: string): string =>
        (median(measurement, figure) / median(measurements[0]!, figure)).toFixed(2)
      const [server, machine] = [`${workload}.server`, `${workload}.machine`]
      return [
        `${title}: ${measurement.server}`,
        `${Math.round(median(measurement, server))} (× ${ratio(server)})`,
        `${Math.round(median(measurement, machine))} (× ${ratio(machine)})`,
        String(median(measurement, `${workload}.doorbells`)),
        String(median(measurement, `${workload}.uio-reads`)),
      ]
    }),
  )
  const header = ['workload', 'server', 'whole machine', 'doorbells / 1,000', 'uio reads / 1,000']
  return `Instructions per I/O in a guest whose clock counts them, after a warm-up of 48,000 commands, in one boot; and compared
with the peer. The image lies in memory for both. \`adaptive\` holds answers for up to 100 µs, which is little in this guest, as one
instruction takes a nanosecond: \`adaptive:32,400\` shows what a longer hold gathers. The whole machine counts idle waits as
well.

${markdownTable(header, rows)}`
}

if (import.meta.url === pathToFileURL(process.argv[1]!).href) {
  const { values } = parseArgs({
    options: { rounds: { type: 'string', default: '2' }, json: { type: 'boolean', default: false } },
  })
  const measurements = await measureTcmu(Number(values.rounds))
  console.log(values.json ? JSON.stringify(measurements, null, 2) : tableOf(measurements))
}
