import type { BlockLoadResult } from '../src/testing/index.ts'
import { DEVICE_COUNTS, LAYER_NAMES } from './disks.ts'
import { cpuMicrosPerRequest, type LoadSample, notificationsPerThousand } from './load.ts'
import type { IdleSample, LifeSample, RssSample } from './processes.ts'
import type { Section } from './section.ts'
import { markdownTable, spreadOf } from './statistics.ts'
import type { TcmuSample } from './tcmu.ts'

/** What was measured, by the names of the sections; what was not run is missing or says why. */
export type Sections = ReadonlyMap<string, Section>

/** One figure of a target, a value for each round. */
export interface Check {
  /** What it is of, such as `QD32`. */
  readonly of: string
  readonly values: readonly number[]
  /** The aim: `values` have a median of at least or at most so much. */
  readonly bound: { readonly atLeast: number } | { readonly atMost: number }
  /** Behind a value; `×` before it. Default `×`. */
  readonly unit?: string
}

/** A target of the project. */
export interface Target {
  readonly work: string
  readonly peer: string
  /** @throws {NotRun} */
  measure(sections: Sections): readonly Check[]
}

/** Why a target has no figures. */
export class NotRun extends Error {}

// ---- Finding figures -------------------------------------------------------------------------------------------

function rowsOf(sections: Sections, name: string): Section['rows'] {
  const section = sections.get(name)
  if (section === undefined) throw new NotRun('not asked for')
  if (section.notRun !== undefined) throw new NotRun(section.notRun)
  return section.rows
}

/** The rounds of a row. */
function samplesOf<Sample extends object>(
  sections: Sections,
  name: string,
  ...names: readonly string[]
): readonly Sample[] {
  const row = rowsOf(sections, name).find((one) => names.every((word, index) => one.names[index] === word))
  if (row === undefined) throw new NotRun(`no row ${names.join(', ')}`)
  return row.samples as readonly Sample[]
}

/** The ratio of each round's pair: the two ran within seconds of each other. */
export function ratios(ours: readonly number[], theirs: readonly number[]): number[] {
  return ours.map((value, round) => value / theirs[round]!)
}

const PEER = 'qemu-storage-daemon'
const iops = ({ iops }: LoadSample): number => iops
const p50 = ({ p50Micros }: LoadSample): number => p50Micros

/** Ratios of a row to another one of the same load. */
function againstPeer(
  sections: Sections,
  table: string,
  load: string,
  backEnd: string,
  pick: (sample: LoadSample) => number,
  peer = PEER,
): number[] {
  return ratios(
    samplesOf<LoadSample>(sections, table, load, backEnd).map(pick),
    samplesOf<LoadSample>(sections, table, load, peer).map(pick),
  )
}

/** The largest of each round's costs of later rows, as a ratio to that of the first row. */
function growth(
  sections: Sections,
  table: string,
  cost: (sample: LoadSample, index: number) => number,
): number[] {
  const [first, ...others] = rowsOf(sections, table)
  return first!.samples.map((sample, round) => {
    const later = others.map(({ samples }, index) => cost(samples[round] as LoadSample, index + 1))
    return Math.max(...later) / cost(sample as LoadSample, 0)
  })
}

// ---- The targets -----------------------------------------------------------------------------------------------

const NULL = 'null disk, handler in TypeScript, 4 KiB reads'
const ADAPTIVE = 'hushring, adaptive'
const IMMEDIATE = 'hushring, immediate'

/** Segments of a request in the rows of the table `growth-segments`, by their names. */
function segmentCountOf(sections: Sections, index: number): number {
  return Number.parseInt(rowsOf(sections, 'growth-segments')[index]!.names[0]!, 10)
}

/** IOPS of the null disk against the peer's. */
function iopsAt(sections: Sections, load: string, backEnd: string, atLeast: number): Check {
  return {
    of: `IOPS at ${load}`,
    values: againstPeer(sections, 'null', load, backEnd, iops),
    bound: { atLeast },
  }
}

/** All of them, in the order in which they are told. */
export const TARGETS: readonly Target[] = [
  {
    work: `${NULL}, default policy (adaptive)`,
    peer: 'qemu-storage-daemon null-co',
    measure: (sections) => [
      iopsAt(sections, 'QD32', ADAPTIVE, 3.5),
      iopsAt(sections, 'QD128', ADAPTIVE, 4.5),
      ...['QD32', 'QD128'].map((load) => ({
        of: `CPU a request at ${load}`,
        values: againstPeer(sections, 'null', load, ADAPTIVE, cpuMicrosPerRequest),
        bound: { atMost: 1 },
      })),
    ],
  },
  {
    work: 'the same, sleeping policy (immediate)',
    peer: 'the same',
    measure: (sections) => [
      iopsAt(sections, 'QD32', IMMEDIATE, 1.5),
      iopsAt(sections, 'QD128', IMMEDIATE, 2.7),
    ],
  },
  {
    work: 'the same, kicks and calls for 1,000 requests, adaptive',
    peer: 'a C back-end that signals once a batch: 66 and 18',
    measure: (sections) =>
      [
        { load: 'QD32', atMost: 66 },
        { load: 'QD128', atMost: 18 },
      ].map(({ load, atMost }) => ({
        of: load,
        values: samplesOf<LoadSample>(sections, 'null', load, ADAPTIVE).map(notificationsPerThousand),
        bound: { atMost },
        unit: '',
      })),
  },
  {
    work: 'the same, QD1, sleeping: p50',
    peer: PEER,
    measure: (sections) => [
      { of: 'p50', values: againstPeer(sections, 'null', 'QD1', IMMEDIATE, p50), bound: { atMost: 1.25 } },
    ],
  },
  {
    work: 'the same, QD1, adaptive, which looks before it sleeps: p50',
    peer: `${PEER}, which sleeps`,
    measure: (sections) => [
      { of: 'p50', values: againstPeer(sections, 'null', 'QD1', ADAPTIVE, p50), bound: { atMost: 0.6 } },
    ],
  },
  {
    work: 'handlers that return an observable and a promise, QD32',
    peer: 'qemu-storage-daemon null-co',
    measure: (sections) =>
      [
        { name: 'observable', atLeast: 1 },
        { name: 'promise', atLeast: 0.7 },
      ].map(({ name, atLeast }) => ({
        of: `IOPS, ${name}`,
        values: againstPeer(sections, 'late', 'QD32', `hushring, ${name}`, iops),
        bound: { atLeast },
      })),
  },
  {
    work: 'memory disk, 4 KiB at random, half writes, QD32',
    peer: 'qemu-storage-daemon, a file in tmpfs',
    measure: (sections) => [
      {
        of: 'IOPS',
        values: againstPeer(sections, 'memory', 'QD32', 'hushring --memory', iops),
        bound: { atLeast: 1.5 },
      },
    ],
  },
  ...[
    { table: 'file-direct', how: 'past the page cache (O_DIRECT)', backEnd: 'hushring --file --direct' },
    { table: 'file', how: 'from the page cache', backEnd: 'hushring --file' },
  ].map(({ table, how, backEnd }) => ({
    work: `file disk, reads ${how}`,
    peer: 'qemu-storage-daemon file, aio=io_uring, alike',
    measure: (sections: Sections): readonly Check[] =>
      [
        { of: '4 KiB at random, QD32', load: 'QD32, 4 KiB at random' },
        { of: '128 KiB in sequence, QD8', load: 'QD8, 128 KiB in sequence' },
      ].map(({ of, load }) => ({
        of: `IOPS, ${of}`,
        values: againstPeer(sections, table, load, backEnd, iops),
        bound: { atLeast: 1 },
      })),
  })),
  {
    work: 'two queues on two workers, 32 in flight in all; client and device share the processors',
    peer: 'one queue',
    measure: (sections) => {
      const [two, one] = ['two queues, two workers', 'one queue'].map((name) =>
        samplesOf<BlockLoadResult>(sections, 'workers', 'QD32', name),
      )
      const of = (pick: (sample: BlockLoadResult) => number): number[] =>
        ratios(two!.map(pick), one!.map(pick))
      return [
        { of: 'IOPS', values: of(({ iops }) => iops), bound: { atLeast: 1 } },
        { of: 'p99', values: of(({ p99Micros }) => p99Micros), bound: { atMost: 1.5 } },
      ]
    },
  },
  {
    work: 'TCMU on the real kernel, 4 KiB random reads, instructions of the server an I/O',
    peer: 'tcmu-runner',
    measure: (sections) =>
      [
        { depth: 32, atMost: 0.333 },
        { depth: 1, atMost: 1 },
      ].map(({ depth, atMost }) => {
        const instructions = (server: string): number[] =>
          samplesOf<TcmuSample>(sections, 'tcmu', server).map(
            (sample) => sample[`randread-4k-qd${depth}.server`]!,
          )
        return {
          of: `QD${depth}`,
          values: ratios(instructions('hushring, adaptive'), instructions('tcmu-runner (qcow handler)')),
          bound: { atMost },
        }
      }),
  },
  ...LAYER_NAMES.map((layer) => ({
    work: `the layer ${layer} around the null disk, QD32`,
    peer: 'no layer',
    measure: (sections: Sections): readonly Check[] => [
      {
        of: 'IOPS',
        values: againstPeer(sections, 'layers', 'QD32', layer, iops, 'no layer'),
        bound: { atLeast: 0.9 },
      },
      {
        of: 'CPU a request',
        values: againstPeer(sections, 'layers', 'QD32', layer, cpuMicrosPerRequest, 'no layer'),
        bound: { atMost: 1.1 },
      },
    ],
  })),
  {
    work: 'growth: CPU a request at the costliest of QD32 to 1,024',
    peer: 'itself at QD8',
    measure: (sections) => [
      { of: 'CPU', values: growth(sections, 'growth-depth', cpuMicrosPerRequest), bound: { atMost: 1.15 } },
    ],
  },
  {
    work: `growth: CPU a request at the costliest of ${DEVICE_COUNTS.slice(1).join(' and ')} devices in one process`,
    peer: 'itself with one',
    measure: (sections) => [
      { of: 'CPU', values: growth(sections, 'growth-devices', cpuMicrosPerRequest), bound: { atMost: 1.15 } },
    ],
  },
  {
    work: 'growth: CPU a segment at the costliest of 8 to 126 segments, the most that is offered to drivers',
    peer: 'itself with one',
    measure: (sections) => [
      {
        of: 'CPU',
        values: growth(
          sections,
          'growth-segments',
          (sample, index) => cpuMicrosPerRequest(sample) / segmentCountOf(sections, index),
        ),
        bound: { atMost: 1.15 },
      },
    ],
  },
  {
    work: 'RSS of `hushring serve --null` before and after requests at QD128',
    peer: `${PEER}, about 40 MiB`,
    measure(sections) {
      const samples = samplesOf<RssSample>(sections, 'rss', 'hushring')
      const millions = Math.round(samples[0]!.requests / 1e6)
      return [
        {
          of: `after ${millions} million`,
          values: samples.map(({ afterMiB }) => afterMiB),
          bound: { atMost: 120 },
          unit: ' MiB',
        },
        {
          of: 'growth',
          values: samples.map(({ freshMiB, afterMiB }) => afterMiB - freshMiB),
          bound: { atMost: 4 },
          unit: ' MiB',
        },
      ]
    },
  },
  {
    work: '1,000 idle devices',
    peer: '–',
    measure(sections) {
      const samples = samplesOf<IdleSample>(sections, 'processes', 'a thousand idle devices')
      const values = (name: keyof IdleSample): number[] => samples.map((sample) => sample[name])
      return [
        { of: 'wake-ups a second', values: values('wakeUpsPerSecond'), bound: { atMost: 0 }, unit: '' },
        { of: 'RSS each', values: values('rssKiB'), bound: { atMost: 100 }, unit: ' KiB' },
        { of: 'to make each', values: values('createMs'), bound: { atMost: 1 }, unit: ' ms' },
      ]
    },
  },
  {
    work: 'start: `hushring serve` to `ready`',
    peer: PEER,
    measure: (sections) => [
      {
        of: 'time',
        values: samplesOf<LifeSample>(sections, 'processes', 'hushring').map(({ startMs }) => startMs),
        bound: { atMost: 300 },
        unit: ' ms',
      },
    ],
  },
]

// ---- The table -------------------------------------------------------------------------------------------------

/** A target with what came of it. */
export interface Verdict {
  readonly work: string
  readonly peer: string
  readonly checks: readonly (Check & { readonly met: boolean })[]
  /** Why there are no checks. */
  readonly notRun?: string
}

/** Whether the median is as was aimed for. */
export function isMet({ values, bound }: Check): boolean {
  const { median } = spreadOf(values)
  return 'atLeast' in bound ? median >= bound.atLeast : median <= bound.atMost
}

/** Judges targets by what was measured. */
export function verdictsOf(sections: Sections, targets: readonly Target[] = TARGETS): Verdict[] {
  return targets.map(({ work, peer, measure }) => {
    try {
      const checks = measure(sections).map((check) => ({ ...check, met: isMet(check) }))
      return { work, peer, checks }
    } catch (error) {
      if (!(error instanceof NotRun)) throw error
      return { work, peer, checks: [], notRun: error.message }
    }
  })
}

/** A row for each check: work, peer, aim, measured (median, smallest and largest of the rounds), met or not. */
export function targetTable(verdicts: readonly Verdict[]): string {
  const rows = verdicts.flatMap(({ work, peer, checks, notRun }) =>
    notRun === undefined
      ? checks.map((check, index) => [index === 0 ? work : '', index === 0 ? peer : '', ...cellsOf(check)])
      : [[work, peer, '', `not run: ${notRun}`, '']],
  )
  return markdownTable(['work', 'compared with', 'aim', 'measured (min to max)', 'met'], rows)
}

function cellsOf({ of, values, bound, unit = '×', met }: Check & { readonly met: boolean }): string[] {
  const { median, min, max } = spreadOf(values)
  const show = (value: number): string => (Math.abs(value) >= 10 ? value.toFixed(0) : value.toFixed(2))
  const withUnit = (text: string): string => `${text}${unit}`
  const aim = 'atLeast' in bound ? `≥ ${bound.atLeast}` : `≤ ${bound.atMost}`
  return [
    `${of} ${withUnit(aim)}`,
    `${withUnit(show(median))} (${show(min)} to ${show(max)})`,
    met ? 'yes' : '**no**',
  ]
}
