#!/usr/bin/env node
import { CommanderError } from 'commander'
import { explainFailure } from './failure.ts'
import { hushringProgram } from './program.ts'

// A reader of our outputs that goes away must not end a disk that somebody has mounted.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})

let exitStatus = 0
// The commands are loaded when they run, so that --help works where the native addon does not load.
const program = hushringProgram(
  {
    demo: async (options) => (await import('./demo.ts')).demo(options),
    litmus: async (options) => (await import('./litmus.ts')).litmus(options),
    bench: async (options) => (await import('./bench.ts')).bench(options),
    serveVhostUser: async (options) => (await import('./serve-vhost-user.ts')).serveVhostUser(options),
    serveTcmu: async (options) => (await import('./serve-tcmu.ts')).serveTcmu(options),
  },
  (status) => {
    exitStatus = status
  },
)
try {
  await program.parseAsync()
} catch (error) {
  exitStatus = report(error)
}
// A device of the user's may have left a timer or a socket behind, which must not keep the process.
process.exit(exitStatus)

function report(error: unknown): number {
  // Commander has printed what it threw. It has no status of its own for wrong usage.
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  const failure = explainFailure(error)
  process.stderr.write(`error: ${failure.message}\n`)
  return failure.exitStatus
}
