// What suppression saves: the same load with each way of notification.
import { adaptive, coalesce, immediate, loopback, MiB, memoryDisk } from 'hushring'

const ways = [
  { name: 'none', notification: 'none', suppression: immediate() },
  { name: 'flags', notification: 'flags', suppression: immediate() },
  { name: 'event-idx', notification: 'event-idx', suppression: immediate() },
  {
    name: 'event-idx, coalesce',
    notification: 'event-idx',
    suppression: coalesce({ countMax: 32, holdMicrosMax: 50 }),
  },
  { name: 'event-idx, adaptive', notification: 'event-idx', suppression: adaptive() },
] as const

const disk = memoryDisk({ capacityBytes: 8 * MiB })
for (const { name, notification, suppression } of ways) {
  const connection = await loopback.connect({ device: disk, notification, suppression })
  const { requests, kicks, signals, lostNotifications } = await connection.runLoad({ durationMs: 300 })
  const perThousand = (count: number): string => ((count * 1000) / requests).toFixed(1)
  console.log(
    `${name.padEnd(20)} ${perThousand(kicks).padStart(7)} kicks and ${perThousand(signals).padStart(7)} signals ` +
      `per 1,000 requests, ${lostNotifications} lost`,
  )
  await connection.close()
}
await disk.close()
