import { run } from './processes.ts'
import { blkioTools } from './tools.ts'

const DRIVER = 'virtio-blk-vhost-user'

/** What blkio-bench does to a disk. */
export interface BlkioWorkload {
  readonly socketPath: string
  readonly readWrite: 'read' | 'write' | 'randread' | 'randwrite'
  /** Requests kept in flight by each thread. */
  readonly ioDepth: number
  /** A whole number of seconds. */
  readonly runtimeSeconds: number
  /** Size of a request; default 4096. */
  readonly blockBytes?: number
  /** Threads, each with a queue of its own; default 1. */
  readonly threadCount?: number
  /** Whether the client polls for completions instead of sleeping; default false. */
  readonly poll?: boolean
}

/** What blkio-bench measured over all threads. */
export interface BlkioResult {
  /** Requests per second. */
  readonly iops: number
  readonly latencyMicrosMin: number
  readonly latencyMicrosMean: number
  readonly latencyMicrosMax: number
}

/**
 * Runs blkio-bench against a back-end.
 *
 * @throws when a request fails, or nothing completes for so long that the client gives up
 */
export async function blkioBench(workload: BlkioWorkload): Promise<BlkioResult> {
  const output = await run(
    [
      blkioTools.bench.path!,
      `--readwrite=${workload.readWrite}`,
      `--iodepth=${workload.ioDepth}`,
      `--runtime=${workload.runtimeSeconds}`,
      `--blocksize=${workload.blockBytes ?? 4096}`,
      `--num-threads=${workload.threadCount ?? 1}`,
      ...(workload.poll ? ['--poll'] : []),
      ...[DRIVER, `path=${workload.socketPath}`],
    ],
    workload.runtimeSeconds + 20,
  )
  const { aggregate } = JSON.parse(output.toString())
  return {
    iops: aggregate.kiops * 1000,
    latencyMicrosMin: aggregate.min_lat_us,
    latencyMicrosMean: aggregate.mean_lat_us,
    latencyMicrosMax: aggregate.max_lat_us,
  }
}

/** Copies a file onto the front of a disk. @param filePath a file of a multiple of 128 KiB */
export async function blkioCopyIn(filePath: string, socketPath: string): Promise<void> {
  await run(
    [blkioTools.copy.path!, `--input-file=${filePath}`, `--output-blkio=${DRIVER}`, `path=${socketPath}`],
    30,
  )
}

/** Copies a whole disk of a multiple of 128 KiB, opened for reading only. @param filePath a file that exists */
export async function blkioCopyOut(socketPath: string, filePath: string): Promise<void> {
  await run(
    [
      blkioTools.copy.path!,
      `--input-blkio=${DRIVER}`,
      `path=${socketPath}`,
      'read-only=true',
      `--output-file=${filePath}`,
    ],
    30,
  )
}

/** Asks a disk for properties of libblkio. @returns one text a name, in the same order */
export async function blkioInfo(socketPath: string, names: readonly string[]): Promise<string[]> {
  const output = await run(
    [blkioTools.info.path!, '--output=text', DRIVER, `path=${socketPath}`, ...names],
    10,
  )
  return output.toString().trimEnd().split('\n')
}
