import { tcmuDemonstration } from './demo-tcmu.ts'
import { virtioDemonstration } from './demo-virtio.ts'
import { runDemonstration } from './demonstration.ts'
import { barProgress, lineProgress, noProgress } from './progress.ts'

/** Options of the command `hushring demo`. */
export interface DemoOptions {
  /** How long each of the three ways runs, in seconds. */
  readonly seconds: number
  /** True: over TCMU, to a simulated kernel. Default: over a virtqueue. */
  readonly tcmu?: boolean
  /** True: one JSON object on stdout instead of the table, and no progress. */
  readonly json?: boolean
}

/** Runs a demonstration in the surroundings of this process. Result as {@link runDemonstration}. */
export function demo(options: DemoOptions): Promise<number> {
  const { seconds, tcmu = false, json = false } = options
  const writeProgress = (text: string): void => void process.stderr.write(text)
  const makeProgress = process.stderr.isTTY ? barProgress : lineProgress
  const run = {
    durationMs: seconds * 1000,
    json,
    progress: json ? noProgress : makeProgress(writeProgress),
    writeOutput: (text: string): void => void process.stdout.write(text),
  }
  return tcmu ? runDemonstration(tcmuDemonstration(), run) : runDemonstration(virtioDemonstration(), run)
}
