import { execFile, execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { decodeFromCompressedBase64, encodeIntoCompressedBase64 } from 'hdr-histogram-js'
import { type BlockLoadOptions, type BlockLoadResult, VhostUserFrontEnd } from '../src/testing/index.ts'
import { histogramOf, latenciesOf } from '../src/transport/latencies.ts'

/** The processors that the back-end and the front-end are pinned to. */
const BACK_END_CPU = 0
const FRONT_END_CPU = 1

/**
 * How long a back-end is driven before it is measured, with each load: one that has just started compiles while it serves,
 * which on a slow disk takes as many requests, and so longer.
 */
const WARM_UP = { ms: 1000, requests: 30_000, msMax: 5000 } as const

/** Drives a back-end until it is warm. */
export async function warmUp(drive: (ms: number) => Promise<LoadSample>): Promise<void> {
  const { requests } = await drive(WARM_UP.ms)
  const missingMs = (WARM_UP.ms * (WARM_UP.requests - requests)) / requests
  if (missingMs > 0) await drive(Math.ceil(Math.min(missingMs, WARM_UP.msMax)))
}

/** What the generator does to each socket: the options of `loadBlockDevice`. */
export type LoadOrder = Omit<BlockLoadOptions, 'socketPath'>

/** What one run has measured, over all sockets. */
export type LoadSample = Pick<
  BlockLoadResult,
  | 'requests'
  | 'elapsedMs'
  | 'iops'
  | 'p50Micros'
  | 'p99Micros'
  | 'p999Micros'
  | 'latencyHistogram'
  | 'kicks'
  | 'signals'
  | 'frontEndCpuMs'
> & { readonly backEndCpuMs: number }

/** Pins the process that serves at a socket to the processor of back-ends. @returns its pid */
export function pinBackEnd(socketPath: string): number {
  const pid = backEndPidOf(socketPath)
  execFileSync('taskset', ['-a', '-c', '-p', String(BACK_END_CPU), String(pid)], { stdio: 'ignore' })
  return pid
}

/** The process that serves at a socket. */
export function backEndPidOf(socketPath: string): number {
  const frontEnd = VhostUserFrontEnd.connect(socketPath)
  const { backEndPid } = frontEnd
  frontEnd.close()
  return backEndPid
}

/**
 * Drives the disks of one process from another one, which is pinned to the processor of front-ends. The generator is
 * that of this checkout, whoever serves.
 *
 * @throws when the back-end does something wrong
 */
export async function runLoad(
  socketPaths: readonly string[],
  backEndPid: number,
  order: LoadOrder,
): Promise<LoadSample> {
  const program = fileURLToPath(new URL('load.mjs', import.meta.url))
  const { stdout } = await promisify(execFile)(
    'taskset',
    [
      ...['-c', String(FRONT_END_CPU), process.execPath, program],
      JSON.stringify({ socketPaths, backEndPid, ...order }),
    ],
    { maxBuffer: 64 * 1024 * 1024 },
  )
  const { loads, ...cpu } = JSON.parse(stdout) as Pick<LoadSample, 'frontEndCpuMs' | 'backEndCpuMs'> & {
    readonly loads: readonly BlockLoadResult[]
  }
  const wrong = loads.find(({ requests, failedRequests }) => requests === 0 || failedRequests > 0)
  if (wrong !== undefined) throw new Error(`${wrong.failedRequests} of ${wrong.requests} requests failed`)
  return { ...(await sumOf(loads)), ...cpu }
}

/** What some loads that ran at the same time have done together. */
export async function sumOf(
  loads: readonly BlockLoadResult[],
): Promise<Omit<LoadSample, 'frontEndCpuMs' | 'backEndCpuMs'>> {
  const total = (pick: (load: BlockLoadResult) => number): number =>
    loads.reduce((sum, load) => sum + pick(load), 0)
  // An empty one grows with what is added; one that was read keeps its range.
  const latencies = await histogramOf(new Float64Array())
  for (const { latencyHistogram } of loads) latencies.add(decodeFromCompressedBase64(latencyHistogram))
  return {
    requests: total(({ requests }) => requests),
    elapsedMs: Math.max(...loads.map(({ elapsedMs }) => elapsedMs)),
    iops: total(({ iops }) => iops),
    ...latenciesOf(latencies),
    latencyHistogram: encodeIntoCompressedBase64(latencies),
    kicks: total(({ kicks }) => kicks),
    signals: total(({ signals }) => signals),
  }
}

/** CPU time of the back-end for a request, in µs. */
export function cpuMicrosPerRequest({ backEndCpuMs, requests }: LoadSample): number {
  return (1000 * backEndCpuMs) / requests
}

/** Kicks and calls for a thousand requests. */
export function notificationsPerThousand({ kicks, signals, requests }: LoadSample): number {
  return (1000 * (kicks + signals)) / requests
}
