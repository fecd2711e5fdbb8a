import type { ExecutionContext } from 'ava'
import type { TcmuKernelOptions } from '../../src/testing/index.ts'
import { KiB } from '../../src/units.ts'
import { testWith } from '../helpers/scenarios.ts'
import { SimulatedMachine } from '../helpers/simulated-tcmu.ts'
import { TcmuGuest, type TcmuOutcome } from '../helpers/tcmu-guest.ts'
import { guestTools, type Tool, tcmuGuestTools } from '../helpers/tools.ts'
import { traceOf } from './tcmu/agreement/script.mjs'
import { scripts } from './tcmu/agreement/scripts.mjs'

// The simulated kernel (native/core/peer/tcmu_kernel.h) does what the real target_core_user does: the same scripts leave the
// same trace on both. A trace has every entry as it lay in the ring, with offsets, ids, flags, iovs and CDB; every result as
// the target core gave it, with sense data, data and residual; head and tail; what configfs answered; and what the kernel
// logged of the ring.
//
// It leaves out what no initiator of one Linux machine can bring about or see: bidirectional commands (tcm_loop has none),
// the sense data beyond 18 bytes (as much as the target core traces), the number of events (the real kernel plugs as its
// work queues happen to run), when an aborted command ended (Linux waits for one after the other), and a tail or a length
// that the real kernel would follow for ever.

type ScriptName = keyof typeof scripts
const names = Object.keys(scripts) as ScriptName[]
const needs: readonly Tool[] = [...Object.values(guestTools), ...Object.values(tcmuGuestTools)]

const PLAY_LIMIT_SECONDS = 300
const SLACK_SECONDS = 60
/** The driver's own words for what some scripts do to the ring. */
const BROKEN_RING = /ring (is )?broken/

/** All scripts are played in one guest, when the first test asks. */
let played: Promise<TcmuOutcome> | undefined

async function play(): Promise<TcmuOutcome> {
  const guest = await TcmuGuest.boot()
  const order = { scenario: 'agreement', server: 'none', limitSeconds: PLAY_LIMIT_SECONDS }
  try {
    return await guest.carryOut(order)
  } finally {
    await guest.stop()
  }
}

function onRealKernel(t: ExecutionContext): Promise<TcmuOutcome> {
  t.timeout((PLAY_LIMIT_SECONDS + SLACK_SECONDS) * 1000)
  played ??= play()
  return played
}

async function realTrace(t: ExecutionContext, name: ScriptName): Promise<readonly string[]> {
  const { log } = await onRealKernel(t)
  const lines = Array.from(log.matchAll(/^trace (.*)$/gm), ([, json]) => JSON.parse(json!))
  const found = lines.find((line: { readonly name: string }) => line.name === name)
  return found?.trace ?? [`not played\n${log.slice(-2000)}`]
}

/** @param differences options of the simulated kernel that the real one does not have so */
async function simulatedTrace(
  name: ScriptName,
  differences: TcmuKernelOptions = {},
): Promise<readonly string[]> {
  const machine = new SimulatedMachine(scripts[name].options, differences)
  try {
    return await traceOf(scripts[name].play, machine)
  } finally {
    machine.close()
  }
}

testWith([], 'every script comes to its end on the simulated kernel', async (t) => {
  for (const name of names) {
    const trace = await simulatedTrace(name)
    t.true(trace.length > 0 && !trace.some((line) => line.startsWith('failed')), `${name}\n${trace.at(-1)}`)
  }
})

for (const name of names) {
  testWith(needs, `both kernels agree: ${name}`, async (t) => {
    const real = await realTrace(t, name)
    t.deepEqual(await simulatedTrace(name), real)
    t.deepEqual(
      real.filter((line) => line.startsWith('failed')),
      [],
    )
  })
}

testWith(needs, 'the real kernel complains of nothing but rings that a script broke', async (t) => {
  const { status, log, complaints } = await onRealKernel(t)
  t.is(status, 0, log)
  t.true(complaints.length > 0)
  t.deepEqual(
    complaints.filter((line) => !BROKEN_RING.test(line)),
    [],
  )
})

for (const [what, name, differences] of [
  ['of another ring size', 'the mailbox says the same', { ringBytes: 512 * KiB }],
  ['without out-of-order completion', 'the mailbox says the same', { outOfOrder: false }],
  [
    'that takes answers in order only',
    'commands that are answered in another order end rightly',
    { outOfOrder: false },
  ],
  ['without READ_LEN', 'READ_LEN shortens a read, and nothing else', { readLength: false }],
  ['that tells of no reset', 'LUN RESET is told with nothing in flight', { taskManagement: false }],
  ['without KEEP_BUF', 'a kept buffer keeps id and blocks until it is freed', { keepBuffer: false }],
  ['with larger blocks', 'a data area in pieces gives more than four iovs', { blockBytes: 8 * KiB }],
  ['with a larger data area', 'commands that find no block wait in order', { dataAreaBytes: 2048 * KiB }],
  ['that lets no command wait', 'commands that find no block wait in order', { queueFullTimeoutMs: 0 }],
  [
    'in which no command expires',
    'a command that expires keeps its place until its late answer',
    { commandTimeoutMs: 0 },
  ],
] as const satisfies readonly (readonly [string, ScriptName, TcmuKernelOptions])[]) {
  testWith(needs, `control: a simulated kernel ${what} does not agree with the real one`, async (t) => {
    t.notDeepEqual(await simulatedTrace(name, differences), await realTrace(t, name))
  })
}
