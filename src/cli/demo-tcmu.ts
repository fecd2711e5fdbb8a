import { settled } from '../handlers/handler.ts'
import { compose, type Layer, memoryDisk } from '../handlers/index.ts'
import { microScheduler } from '../notify/schedulers.ts'
import { TcmuKernel, type TcmuLoadResult } from '../testing/tcmu-kernel.ts'
import { type TcmuBackstore, tcmu } from '../transport/tcmu/index.ts'
import { MiB } from '../units.ts'
import {
  count,
  DEMO_CAPACITY_BYTES,
  DEMO_LOAD,
  type Demonstration,
  type DemoProgress,
  perThousand,
} from './demonstration.ts'
import { parseDoorbell } from './suppression-option.ts'

/** What one way measured. */
export interface TcmuDemoResult extends TcmuLoadResult {
  /** Commands served in all: those of the load, and those before it that wrote what it verifies. */
  readonly commands: number
  /** Events read while those were served. */
  readonly uioReads: number
  readonly lostNotifications: number
}

/** As `hushring serve tcmu --doorbell` takes them. */
const DOORBELLS = ['immediate', 'coalesce:32,50', 'adaptive']

/** When a request is answered: at once (undefined), at the end of the turn of the event loop (0), or so many ms later. */
const ANSWER_DELAYS_MS = [undefined, undefined, 0, 0.05]

/**
 * A disk in memory, served over TCMU to the kernel simulator, in three ways of ringing the doorbell.
 *
 * @param makeKernel default: a kernel with nothing said; a test has its own
 */
export function tcmuDemonstration(
  makeKernel: () => TcmuKernel = () => new TcmuKernel(),
): Demonstration<TcmuDemoResult> {
  return {
    introduction: `\
A disk in TypeScript, served over TCMU to a simulated kernel: 4 KiB commands, 32 in flight, 30 % writes.
As with a real store, half of the answers come at once, a quarter at the end of the turn of the event loop, a quarter
after 50 µs. A doorbell tells the kernel of answers; an event, read from the UIO device, tells the disk of commands.`,
    ways: DOORBELLS.map((doorbell) => ({
      name: doorbell,
      run: (durationMs, onProgress) => runWay(doorbell, durationMs, onProgress, makeKernel()),
    })),
    columns: [
      { heading: 'doorbells/1,000', cell: ({ doorbells, requests }) => perThousand(doorbells, requests) },
      { heading: 'uio reads/1,000', cell: ({ uioReads, commands }) => perThousand(uioReads, commands) },
      { heading: 'verified MiB', cell: ({ verifiedBytes }) => count(verifiedBytes / MiB) },
    ],
  }
}

async function runWay(
  doorbell: string,
  durationMs: number,
  onProgress: DemoProgress,
  kernel: TcmuKernel,
): Promise<TcmuDemoResult> {
  const disk = memoryDisk({ capacityBytes: DEMO_CAPACITY_BYTES })
  const backstore = tcmu.serve({
    port: kernel.openPort(),
    device: compose(disk, [answerUnevenly(ANSWER_DELAYS_MS)]),
    control: kernel.control,
    doorbell: parseDoorbell(doorbell),
  })
  const watch = watchLoad(backstore, onProgress)
  try {
    const load = kernel.runLoad({ ...DEMO_LOAD, capacityBytes: DEMO_CAPACITY_BYTES, durationMs })
    const result = await Promise.race([load, watch.stuck])
    if (kernel.fault !== undefined) throw new Error(`the ring was served wrongly: ${kernel.fault}`)
    const { commands, uioReads, lostNotifications } = backstore.statsSnapshot()
    return { ...result, commands, uioReads, lostNotifications }
  } finally {
    watch.end()
    await backstore.close()
    kernel.close()
    await disk.close()
  }
}

/** The requests take turns with the delays. */
function answerUnevenly(delaysMs: readonly (number | undefined)[]): Layer {
  return (next) => {
    let requestCount = 0
    return (io) => {
      const delayMs = delaysMs[requestCount++ % delaysMs.length]
      if (delayMs === undefined) return next(io)
      return new Promise((resolve) => {
        microScheduler.schedule(() => resolve(settled(next(io))), delayMs)
      })
    }
  }
}

const LOOK_MS = 100
/** Looks, and no time: a process that was suspended has lost nothing. */
const STALL_LOOK_COUNT = 20

/**
 * Tells how far a load is, and when it will not come to its end: the simulator has no clock of its own that would end a
 * command whose answer it was never told of.
 */
function watchLoad(
  backstore: TcmuBackstore,
  onProgress: DemoProgress,
): { readonly stuck: Promise<never>; end(): void } {
  const startMs = performance.now()
  let timer: NodeJS.Timeout | undefined
  const stuck = new Promise<never>((_, reject) => {
    let seenCommands = 0
    let stillCount = 0
    backstore.on('degraded', reject)
    timer = setInterval(() => {
      const { commands } = backstore.statsSnapshot()
      stillCount = commands === seenCommands ? stillCount + 1 : 0
      seenCommands = commands
      if (stillCount === STALL_LOOK_COUNT)
        reject(new Error(`no command came for ${STALL_LOOK_COUNT * LOOK_MS} ms: a wake-up was lost`))
      onProgress({ requests: commands, elapsedMs: performance.now() - startMs })
    }, LOOK_MS)
  })
  return { stuck, end: () => clearInterval(timer) }
}
