import {
  adaptive,
  coalesce,
  GiB,
  immediate,
  type LoadResult,
  loopback,
  MiB,
  memoryDisk,
  type NotificationMode,
  nullDisk,
  type SuppressionPolicy,
} from '../src/index.ts'
import type { BenchOptions, MeasuredRow, Section } from './section.ts'
import { interleave, iopsCell, markdownTable, spreadOf } from './statistics.ts'

interface Way {
  readonly name: string
  readonly notification: NotificationMode
  readonly suppression: SuppressionPolicy
}

const WAYS: readonly Way[] = [
  { name: 'no suppression', notification: 'none', suppression: immediate() },
  { name: 'flags, immediate', notification: 'flags', suppression: immediate() },
  { name: 'event-idx, immediate', notification: 'event-idx', suppression: immediate() },
  {
    name: 'event-idx, coalesce 32/50 µs',
    notification: 'event-idx',
    suppression: coalesce({ countMax: 32, holdMicrosMax: 50 }),
  },
  { name: 'event-idx, adaptive', notification: 'event-idx', suppression: adaptive() },
]

const STORES = {
  null: () => nullDisk({ capacityBytes: GiB }),
  memory: () => memoryDisk({ capacityBytes: 64 * MiB }),
}

const QUEUE_DEPTHS = [1, 8, 32, 128]

/**
 * Measures the loopback: 4 KiB reads on a null and a memory disk at several depths, each way of notification.
 * One table a store.
 */
export async function benchLoopback({ rounds, ms }: BenchOptions): Promise<Section<LoadResult>> {
  const sections: string[] = []
  const measured: MeasuredRow<LoadResult>[] = []
  for (const [store, makeDisk] of Object.entries(STORES)) {
    const cases = QUEUE_DEPTHS.flatMap((queueDepth) => WAYS.map((way) => ({ queueDepth, way })))
    const samples = await interleave(cases, rounds, ({ queueDepth, way }) =>
      runOnce(makeDisk(), way, queueDepth, ms),
    )
    for (const [index, { queueDepth, way }] of cases.entries()) {
      measured.push({ names: [store, way.name, `QD${queueDepth}`], samples: samples[index]! })
    }
    const rows = cases.map(({ queueDepth, way }, index) => rowOf(queueDepth, way, samples[index]!))
    sections.push(
      `### Loopback, ${store} disk, 4 KiB reads\n\n${markdownTable(
        [
          'way',
          'QD',
          'IOPS (min to max)',
          'p50 µs',
          'p99 µs',
          'p99.9 µs',
          'kicks / 1,000',
          'signals / 1,000',
          'native calls / batch',
          'lost',
        ],
        rows,
      )}`,
    )
  }
  return { name: 'loopback', markdown: sections.join('\n\n'), rows: measured }
}

async function runOnce(
  device: ReturnType<typeof nullDisk>,
  way: Way,
  queueDepth: number,
  durationMs: number,
): Promise<LoadResult> {
  const { notification, suppression } = way
  const connection = await loopback.connect({ device, notification, suppression })
  try {
    return await connection.runLoad({ queueDepth, durationMs, verify: false })
  } finally {
    await connection.close()
    await device.close()
  }
}

function rowOf(queueDepth: number, way: Way, results: readonly LoadResult[]): string[] {
  const of = (pick: (result: LoadResult) => number): number => spreadOf(results.map(pick)).median
  const perThousand = (pick: (result: LoadResult) => number): string =>
    of((result) => (pick(result) * 1000) / result.requests).toFixed(1)
  return [
    way.name,
    String(queueDepth),
    iopsCell(results.map((result) => result.iops)),
    of((result) => result.p50Micros).toFixed(1),
    of((result) => result.p99Micros).toFixed(1),
    of((result) => result.p999Micros).toFixed(1),
    perThousand((result) => result.kicks),
    perThousand((result) => result.signals),
    of((result) => result.nativeCalls / result.batches).toFixed(2),
    String(results.reduce((sum, result) => sum + result.lostNotifications, 0)),
  ]
}
