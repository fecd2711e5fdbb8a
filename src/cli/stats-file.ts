import { randomUUID } from 'node:crypto'
import { lstat, rename, rm, writeFile } from 'node:fs/promises'
import { concat, defer, exhaustMap, lastValueFrom, type Observable, Subject, takeUntil } from 'rxjs'
import type { TransportStats } from '../transport/stats.ts'

/** What {@link keepStatsFile} needs of a server. */
export interface StatsSource {
  statsSnapshot(): TransportStats
  stats(options: { readonly everyMs: number }): Observable<TransportStats>
}

/**
 * Keeps a file with the statistics of a server: JSON, rewritten each second and once more at the end, always whole
 * for whoever reads it, mode 0600.
 *
 * @param path the file; its folder must be writable
 * @param onFailure called when a later rewrite fails; the next one is tried all the same
 * @returns ends it: writes the last statistics and resolves. Rejects at once when the file cannot be written.
 */
export async function keepStatsFile(
  path: string,
  server: StatsSource,
  onFailure: (error: Error) => void,
): Promise<() => Promise<void>> {
  // Each rewrite takes the place of what is there: that must not be a device or a folder.
  const found = await lstat(path).catch(() => undefined)
  if (found !== undefined && !found.isFile()) throw new Error(`${path} is there and is no regular file`)
  await replaceFile(path, server.statsSnapshot())
  const rewrite = (): Promise<void> => replaceFile(path, server.statsSnapshot()).catch(onFailure)
  const stopped = new Subject<void>()
  // A rewrite that takes longer than a second, on a slow disk, is not joined by another; the last one comes alone.
  const ended = lastValueFrom(
    concat(server.stats({ everyMs: 1000 }).pipe(takeUntil(stopped), exhaustMap(rewrite)), defer(rewrite)),
  )
  return () => {
    stopped.next()
    return ended
  }
}

/** A reader sees the old file or the new one, because a rename is atomic and the new one is complete before it. */
async function replaceFile(path: string, stats: TransportStats): Promise<void> {
  const next = `${path}.${randomUUID()}`
  try {
    await writeFile(next, `${JSON.stringify(stats)}\n`, { mode: 0o600, flag: 'wx' })
    await rename(next, path)
  } catch (error) {
    await rm(next, { force: true })
    throw error
  }
}
