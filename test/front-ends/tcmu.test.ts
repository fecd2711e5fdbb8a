import test, { type ExecutionContext } from 'ava'
import { testWith } from '../helpers/scenarios.ts'
import { TcmuGuest, type TcmuOrder, type TcmuOutcome } from '../helpers/tcmu-guest.ts'
import { guestTools, type Tool, tcmuGuestTools, tcmuRunner } from '../helpers/tools.ts'

const guestNeeds: readonly Tool[] = [...Object.values(guestTools), ...Object.values(tcmuGuestTools)]

/** Booting a guest on a busy machine, in seconds. */
const BOOT_SECONDS = 60

/**
 * Guests by the servers that run in them. The peers have one of their own, so that nothing they leave in a kernel meets
 * ours. A guest boots for the first test that needs it, and again after a scenario that failed, which may leave anything
 * behind.
 */
const guests = new Map<string, Promise<TcmuGuest>>()
const guestOf = (server: string): string =>
  server === 'hushring' || server === 'stalling' ? 'ours' : 'the peers'

/** Carries out an order and logs the figures that the scenario found. */
async function carryOut(t: ExecutionContext<unknown>, order: TcmuOrder): Promise<TcmuOutcome> {
  t.timeout(((order.limitSeconds ?? 120) + BOOT_SECONDS) * 1000)
  const name = guestOf(order.server)
  if (!guests.has(name)) guests.set(name, TcmuGuest.boot())
  try {
    const guest = await guests.get(name)!
    const outcome = await guest.carryOut(order)
    for (const [figure, { value, unit }] of outcome.figures) t.log(`${figure}: ${value} ${unit}`.trim())
    if (outcome.status !== 0) {
      guests.delete(name)
      await guest.stop()
    }
    return outcome
  } catch (error) {
    guests.delete(name)
    throw error
  }
}

test.after.always('the guests turn off', async () => {
  for (const guest of guests.values()) await (await guest).stop()
})

/** Registers a test that passes when all steps of a scenario succeed and the guest's kernel does not complain. */
function succeeds(
  title: string,
  order: TcmuOrder,
  options: { readonly tools?: readonly Tool[]; readonly complaint?: RegExp } = {},
): void {
  const { tools = [], complaint } = options
  testWith([...guestNeeds, ...tools], `${order.server}: ${title}`, async (t) => {
    const { status, log, complaints } = await carryOut(t, order)
    t.is(status, 0, log)
    // A complaint that belongs to the scenario must come: this shows that complaints are seen.
    if (complaint === undefined) t.deepEqual(complaints, [], log)
    else
      t.true(complaints.length > 0 && complaints.every((line) => complaint.test(line)), complaints.join('\n'))
  })
}

/** Registers a test that passes when a scenario fails, for a reason that its log tells. */
function fails(title: string, order: TcmuOrder, reason: RegExp, tools: readonly Tool[] = []): void {
  testWith([...guestNeeds, ...tools], `control: ${title}`, async (t) => {
    const { status, log } = await carryOut(t, order)
    t.not(status, 0, log)
    t.regex(log, reason)
  })
}

const COMMAND_GROUPS = {
  compare_and_write: 'COMPARE AND WRITE',
  write_same: 'WRITE SAME',
  synchronize_cache: 'SYNCHRONIZE CACHE',
  unmap: 'UNMAP',
  read_range: 'READ past the end',
  read_wrapping: 'READ past 2^64',
  verify: 'VERIFY',
  write_cache: 'the write cache',
  provisioning: 'what is claimed of UNMAP',
  get_lba_status: 'GET LBA STATUS',
  unknown_code: 'an unknown operation code',
} as const
type CommandGroup = keyof typeof COMMAND_GROUPS

/**
 * What tcmu-runner 1.5.4 with its qcow handler cannot do: it has no VERIFY, no GET LBA STATUS and no MODE SELECT of the
 * write cache, claims logical block provisioning and no command for it, and never answers an unknown operation code. Nor
 * has it REPORT SUPPORTED OPERATION CODES, task management, or a qcow image that changes its size.
 */
const peerGroups = Object.keys(COMMAND_GROUPS).slice(0, 6) as readonly CommandGroup[]

for (const [server, groups] of [
  ['tcmu-runner', peerGroups],
  ['hushring', Object.keys(COMMAND_GROUPS) as readonly CommandGroup[]],
] as const) {
  const tools = server === 'tcmu-runner' ? [tcmuRunner] : []
  succeeds(
    'a file system is made, filled, mounted again and checked',
    { server, scenario: 'file-system' },
    { tools },
  )
  succeeds(
    'fio verifies random writes of mixed sizes, 32 in flight',
    { server, scenario: 'fio-verify' },
    { tools },
  )
  succeeds(
    'all that a disk claims of itself can be read and agrees',
    { server, scenario: 'inquiry' },
    { tools },
  )
  succeeds(
    `does as the standard says: ${groups.map((group) => COMMAND_GROUPS[group]).join(', ')}`,
    { server, scenario: 'commands', arguments: groups },
    { tools },
  )
  succeeds(
    'a command that takes too long fails alone, and its late answer does no harm',
    { server, scenario: 'expiry' },
    { tools, complaint: /I\/O error, dev sd\w+, sector 7 / },
  )
  succeeds(
    'a server that is killed at work and started anew loses no command',
    { server, scenario: 'crash', limitSeconds: 180 },
    { tools },
  )
  succeeds('a second server is refused', { server, scenario: 'second-open' }, { tools })
  succeeds('a device that is removed leaves nothing behind', { server, scenario: 'removal' }, { tools })
}

succeeds('REPORT SUPPORTED OPERATION CODES tells what works', {
  server: 'hushring',
  scenario: 'operation-codes',
})
succeeds('a disk changes its size', { server: 'hushring', scenario: 'resize' })
succeeds('LUN RESET aborts a handler that stalls', {
  server: 'stalling',
  scenario: 'reset',
  arguments: ['lun'],
})
succeeds('ABORT TASK aborts a handler that stalls', {
  server: 'stalling',
  scenario: 'reset',
  arguments: ['task'],
})

// The kernel's own emulated disk has the commands that tcmu-runner lacks; but it takes a sum past 2^64 for a small one.
succeeds('all that a disk claims of itself can be read and agrees', {
  server: 'scsi-debug',
  scenario: 'inquiry',
})
succeeds('REPORT SUPPORTED OPERATION CODES tells what works', {
  server: 'scsi-debug',
  scenario: 'operation-codes',
})
succeeds('does as the standard says: all commands but one', {
  server: 'scsi-debug',
  scenario: 'commands',
  arguments: Object.keys(COMMAND_GROUPS).filter((group) => group !== 'read_wrapping'),
})

fails(
  'the file system is not whole on a disk that forgets',
  { server: 'scsi-debug', scenario: 'file-system', arguments: ['fake_rw=1'] },
  /wrong fs type|bad superblock|failed: /,
)
fails(
  'fio notices a disk that forgets',
  { server: 'scsi-debug', scenario: 'fio-verify', arguments: ['fake_rw=1'] },
  /failed: fio/,
)
fails(
  'a handler that does not listen keeps the initiator waiting',
  { server: 'stalling', scenario: 'reset', arguments: ['lun', 'deaf'] },
  /failed: the initiator waited/,
)
fails(
  'a device that is not unmapped where it claims to be is found out',
  { server: 'tcmu-runner', scenario: 'commands', arguments: ['provisioning'] },
  /READ CAPACITY claims what page B2h denies/,
  [tcmuRunner],
)
testWith([...guestNeeds, tcmuRunner], 'control: a scenario ends at its time limit', async (t) => {
  const order = { server: 'tcmu-runner', scenario: 'fio-verify', limitSeconds: 3 }
  t.is((await carryOut(t, order)).status, 124)
})
