import { native } from '../../native.ts'
import type { InflightDescription } from '../../ring/inflight.ts'
import type { DeviceSession, RegionDescription } from '../device-session.ts'
import type { RegionIdentity } from '../memory-table.ts'
import type { RingAddresses } from '../queue-controller.ts'

/**
 * What the main thread asks of the session in a worker, by name.
 *
 * File descriptors are numbers of the whole process. The main thread lends its own for the length of the call and the
 * session takes over duplicates, so that each has one owner whichever thread ends first.
 */
export const SESSION_CALLS = {
  setFeatures: (session, features: bigint) => session.setFeatures(features),
  setMemory: (session, regions: readonly RegionDescription[]) => session.setMemory(withOwnFds(regions)),
  addRegion: (session, region: RegionDescription) => session.addRegion(withOwnFd(region)),
  removeRegion: (session, region: RegionIdentity) => session.removeRegion(region),
  setInflight: (session, description: InflightDescription) => session.setInflight(withOwnFd(description)),
  config: (session) => session.config(),
  writeConfig: (session, offsetBytes: number, bytes: Uint8Array) => session.writeConfig(offsetBytes, bytes),
  reset: (session) => session.reset(),
  drain: (session) => session.drain(),
  close: (session) => session.close(),

  setSize: (session, index: number, size: number) => session.queue(index).setSize(size),
  setAddresses: (session, index: number, addresses: RingAddresses) =>
    session.queue(index).setAddresses(addresses),
  setBase: (session, index: number, base: number) => session.queue(index).setBase(base),
  setKick: (session, index: number, fd: number) => session.queue(index).setKick(ownFd(fd)),
  setCall: (session, index: number, fd: number) => session.queue(index).setCall(ownFd(fd)),
  setError: (session, index: number, fd: number) => session.queue(index).setError(ownFd(fd)),
  setEnabled: (session, index: number, enabled: boolean) => session.queue(index).setEnabled(enabled),
  stop: (session, index: number) => session.queue(index).stop(),
} satisfies Record<string, (session: DeviceSession, ...parameters: never[]) => unknown>

export type SessionCallName = keyof typeof SESSION_CALLS

/** What a call takes beside the session. */
export type CallParameters<Name extends SessionCallName> =
  Parameters<(typeof SESSION_CALLS)[Name]> extends [unknown, ...infer Rest] ? Rest : never

/** What a call comes to. */
export type CallResult<Name extends SessionCallName> = Awaited<ReturnType<(typeof SESSION_CALLS)[Name]>>

const NO_FD = -1

function ownFd(fd: number): number {
  return fd === NO_FD ? fd : native.duplicateFd(fd)
}

function withOwnFd<Described extends { readonly fd: number }>(described: Described): Described {
  return { ...described, fd: ownFd(described.fd) }
}

function withOwnFds<Described extends { readonly fd: number }>(all: readonly Described[]): Described[] {
  const owned: Described[] = []
  try {
    for (const described of all) owned.push(withOwnFd(described))
    return owned
  } catch (error) {
    for (const { fd } of owned) native.closeFd(fd)
    throw error
  }
}
