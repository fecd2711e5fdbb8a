import { memoryDisk } from '../handlers/index.ts'
import { adaptive, immediate, type SuppressionPolicy } from '../notify/suppression.ts'
import { type LoadResult, loopback, type NotificationMode } from '../transport/loopback.ts'
import {
  count,
  DEMO_CAPACITY_BYTES,
  DEMO_LOAD,
  type Demonstration,
  type DemoProgress,
  perThousand,
} from './demonstration.ts'

interface Way {
  readonly name: string
  readonly notification: NotificationMode
  readonly suppression: SuppressionPolicy
}

const WAYS: readonly Way[] = [
  { name: 'no suppression', notification: 'none', suppression: immediate() },
  { name: 'flags', notification: 'flags', suppression: immediate() },
  { name: 'EVENT_IDX, batching', notification: 'event-idx', suppression: adaptive() },
]

/**
 * A disk in memory, served to a driver thread over a real ring and real eventfds, in three ways of notification.
 *
 * @param connect default: the loopback's; a test has its own
 */
export function virtioDemonstration(
  connect: typeof loopback.connect = loopback.connect,
): Demonstration<LoadResult> {
  return {
    introduction: `\
A disk in TypeScript, driven by a thread of this process over a split virtqueue in shared memory:
4 KiB requests, 32 in flight, 30 % writes. Kicks wake the device, signals wake the driver.`,
    ways: WAYS.map((way) => ({
      name: way.name,
      run: (durationMs, onProgress) => runWay(way, durationMs, onProgress, connect),
    })),
    columns: [
      { heading: 'kicks/1,000', cell: ({ kicks, requests }) => perThousand(kicks, requests) },
      { heading: 'signals/1,000', cell: ({ signals, requests }) => perThousand(signals, requests) },
      {
        heading: 'suppressed',
        cell: ({ kicksSuppressed, signalsSuppressed }) => count(kicksSuppressed + signalsSuppressed),
      },
      { heading: 'lost', cell: ({ lostNotifications }) => count(lostNotifications) },
    ],
  }
}

async function runWay(
  { notification, suppression }: Way,
  durationMs: number,
  onProgress: DemoProgress,
  connect: typeof loopback.connect,
): Promise<LoadResult> {
  const disk = memoryDisk({ capacityBytes: DEMO_CAPACITY_BYTES })
  const connection = await connect({ device: disk, queueSize: 256, notification, suppression })
  try {
    return await connection.runLoad({ ...DEMO_LOAD, durationMs, onProgress })
  } finally {
    await connection.close()
    await disk.close()
  }
}
