import { settled } from '../src/handlers/handler.ts'
import {
  anticipate,
  coalesce,
  compose,
  GiB,
  immediate,
  type Layer,
  nullDisk,
  type SuppressionPolicy,
  tcmu,
} from '../src/index.ts'
import { TcmuKernel, type TcmuLoadResult } from '../src/testing/index.ts'
import type { BenchOptions, MeasuredRow, Section } from './section.ts'
import { interleave, iopsCell, markdownTable, spreadOf } from './statistics.ts'

interface Doorbell {
  readonly name: string
  /** A new one for each device. */
  makePolicy(): SuppressionPolicy
}

const DOORBELLS: readonly Doorbell[] = [
  { name: 'immediate', makePolicy: immediate },
  { name: 'coalesce 32/50 µs', makePolicy: () => coalesce({ countMax: 32, holdMicrosMax: 50 }) },
  { name: 'adaptive', makePolicy: anticipate },
]

/** Answers each request with a promise that settles at the end of the turn of the event loop. */
const late: Layer = (next) => (io) => new Promise((resolve) => setImmediate(() => resolve(settled(next(io)))))

/** What is served. A disk that answers at once shares doorbells whatever the policy; a late one leaves it to that. */
const STORES: Readonly<Record<string, readonly Layer[]>> = {
  'null disk': [],
  'null disk with promises': [late],
}

const QUEUE_DEPTHS = [1, 8, 32, 128]
const CAPACITY_BYTES = GiB

export interface Sample extends TcmuLoadResult {
  readonly uioReads: number
  readonly nativeCalls: number
  readonly batches: number
}

/**
 * Measures TCMU with the simulator in the place of the kernel: 4 KiB reads at several depths, each doorbell policy. The
 * simulator's doorbell costs no system call, and it sends the next commands before a doorbell returns, so compare rows
 * with each other and not with the virtqueue's, whose driver has a thread of its own.
 * One table a store.
 */
export async function benchTcmuSimulator({ rounds, ms }: BenchOptions): Promise<Section<Sample>> {
  const sections: string[] = []
  const measured: MeasuredRow<Sample>[] = []
  for (const [store, layers] of Object.entries(STORES)) {
    const cases = QUEUE_DEPTHS.flatMap((queueDepth) =>
      DOORBELLS.map((doorbell) => ({ queueDepth, doorbell })),
    )
    const samples = await interleave(cases, rounds, ({ queueDepth, doorbell }) =>
      runOnce(layers, doorbell.makePolicy(), queueDepth, ms),
    )
    for (const [index, { queueDepth, doorbell }] of cases.entries()) {
      measured.push({ names: [store, doorbell.name, `QD${queueDepth}`], samples: samples[index]! })
    }
    const rows = cases.map(({ queueDepth, doorbell }, index) => rowOf(queueDepth, doorbell, samples[index]!))
    sections.push(`### TCMU, simulated kernel, ${store}, 4 KiB reads\n\n${markdownTable(HEADING, rows)}`)
  }
  const markdown = `${sections.join('\n\n')}

In these two tables the initiator lives in the doorbell: there is no other thread, no wake-up to pay for and no system
call. The rows compare doorbell policies with each other, not TCMU with the virtqueues above.`
  return { name: 'tcmu-simulator', markdown, rows: measured }
}

async function runOnce(
  layers: readonly Layer[],
  doorbell: SuppressionPolicy,
  queueDepth: number,
  durationMs: number,
): Promise<Sample> {
  const kernel = new TcmuKernel()
  const disk = nullDisk({ capacityBytes: CAPACITY_BYTES })
  const device = compose(disk, layers)
  const backstore = tcmu.serve({ port: kernel.openPort(), device, control: kernel.control, doorbell })
  try {
    const load = await kernel.runLoad({
      capacityBytes: CAPACITY_BYTES,
      queueDepth,
      durationMs,
      verify: false,
    })
    const { uioReads, nativeCalls, batches } = backstore.statsSnapshot()
    return { ...load, uioReads, nativeCalls, batches }
  } finally {
    await backstore.close()
    kernel.close()
    await disk.close()
  }
}

const HEADING = [
  'doorbell',
  'QD',
  'IOPS (min to max)',
  'p50 µs',
  'p99 µs',
  'p99.9 µs',
  'doorbells / 1,000',
  'uio reads / 1,000',
  'native calls / batch',
]

function rowOf(queueDepth: number, doorbell: Doorbell, samples: readonly Sample[]): string[] {
  const of = (pick: (sample: Sample) => number): number => spreadOf(samples.map(pick)).median
  const perThousand = (pick: (sample: Sample) => number): string =>
    of((sample) => (pick(sample) * 1000) / sample.requests).toFixed(1)
  return [
    doorbell.name,
    String(queueDepth),
    iopsCell(samples.map(({ iops }) => iops)),
    of(({ p50Micros }) => p50Micros).toFixed(1),
    of(({ p99Micros }) => p99Micros).toFixed(1),
    of(({ p999Micros }) => p999Micros).toFixed(1),
    perThousand(({ doorbells }) => doorbells),
    perThousand(({ uioReads }) => uioReads),
    of(({ nativeCalls, batches }) => nativeCalls / batches).toFixed(2),
  ]
}
