import { Worker } from 'node:worker_threads'
import { siblingModule } from '../module-export.ts'
import type { WorkerSetup } from './messages.ts'

const own = import.meta.url
const PROGRAM_URL = siblingModule('./queue-worker', own).href
/** A module of TypeScript that does nothing, in a clone and in the package, under a name that nobody else imports. */
const PROBE_URL = new URL(own.endsWith('.ts') ? '../../units.ts?probe' : '../../../src/units.ts?probe', own)
  .href

/**
 * Starts the program of a worker. It inherits the flags of this process (`execArgv`), and with `--import=tsx` the
 * modules it imports may be TypeScript.
 */
export function workerThread(name: string, setup: WorkerSetup): Worker {
  const tsxUrl = tsxApiUrl(process.execArgv)
  if (tsxUrl === undefined) return new Worker(new URL(PROGRAM_URL), { name, workerData: setup })
  return new Worker(withTsx(tsxUrl), { name, eval: true, workerData: setup })
}

/**
 * tsx installs itself in the worker threads of new versions of Node only. On the others each thread has to ask for it, and
 * before it imports anything: that an import failed is remembered. Whether it is there, a module of no consequence shows.
 */
function withTsx(tsxUrl: string): string {
  return `import(${JSON.stringify(PROBE_URL)})
    .catch(async () => (await import(${JSON.stringify(tsxUrl)})).register())
    .then(() => import(${JSON.stringify(PROGRAM_URL)}))`
}

/** Where tsx has its functions, if the flags of this process name it: by its package, or by its file as the command tsx does. */
function tsxApiUrl(execArgv: readonly string[]): string | undefined {
  const flags = execArgv.flatMap((flag) => flag.split('='))
  if (flags.includes('tsx')) return 'tsx/esm/api'
  const loader = flags.find((flag) => /\/tsx\/dist\/loader\.mjs$/.test(flag))
  return loader === undefined ? undefined : new URL('./esm/api/index.mjs', loader).href
}
