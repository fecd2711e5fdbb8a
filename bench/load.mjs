// One run of the front-end generator, in a process of its own so that it can be pinned. Its argument is an order as
// bench/load.ts writes it; it prints a result for each socket as JSON, and what both sides needed for all of them.
import { loadBlockDevice, processVitals } from '../dist/testing/index.js'

const { socketPaths, backEndPid, ...options } = JSON.parse(process.argv[2])
const before = { front: process.cpuUsage(), backMs: processVitals(backEndPid).cpuMs }
const loads = await Promise.all(socketPaths.map((socketPath) => loadBlockDevice({ socketPath, ...options })))
const { user, system } = process.cpuUsage(before.front)
const backEndCpuMs = processVitals(backEndPid).cpuMs - before.backMs
console.log(JSON.stringify({ loads, frontEndCpuMs: (user + system) / 1000, backEndCpuMs }))
