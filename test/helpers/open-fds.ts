import { readdirSync } from 'node:fs'

/** File descriptors this process has open, without the one that counting needs. */
export function openFdCount(): number {
  return readdirSync('/proc/self/fd').length - 1
}
