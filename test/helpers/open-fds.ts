import { readdirSync, readlinkSync } from 'node:fs'

/** Number of descriptors this process has open, without those that modules are read from: they close when they like. */
export function openFdCount(): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return !/\.[mc]?[jt]s(on)?$|\/tsx-\d+(\/|$)/.test(readlinkSync(`/proc/self/fd/${fd}`))
    } catch {
      return false // the folder that is read here, closed since
    }
  }).length
}
