import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { native } from '../native.ts'

/**
 * Two connected, non-blocking stream sockets, made by way of a socket file that is gone when this returns. The
 * caller closes both.
 */
export function socketPair(): [number, number] {
  const folder = mkdtempSync(join(tmpdir(), 'hushring-testing-'))
  const path = join(folder, 'pair.sock')
  const listenFd = native.unixListen(path, 0o600, 1)
  try {
    const one = native.unixConnect(path)
    return [one, native.unixAccept(listenFd)]
  } finally {
    native.closeFd(listenFd)
    rmSync(folder, { recursive: true })
  }
}
