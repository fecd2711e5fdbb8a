import { closeSync, openSync } from 'node:fs'
import { native } from '../../src/native.ts'

/** Whether this kernel has io_uring and allows it to this process. */
export function ringIsAllowed(): boolean {
  const fd = openSync(process.execPath, 'r')
  try {
    native.openFileRing(fd, { entryCount: 1, inlineBytesMax: 0, direct: false }).close()
    return true
  } catch {
    return false
  } finally {
    closeSync(fd)
  }
}
