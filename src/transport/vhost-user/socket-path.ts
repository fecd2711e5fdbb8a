import { lstatSync, type Stats, unlinkSync } from 'node:fs'
import { connect } from 'node:net'
import { dirname, resolve } from 'node:path'
import { HushringError, optionRangeError, optionTypeError } from '../../errors.ts'
import { native } from '../../native.ts'

/** The kernel's limit for the path of a socket, in bytes. */
const PATH_BYTES_MAX = 107
const BACKLOG_COUNT = 16
/** Another server may take the path between our look and our bind; then look again, but not for ever. */
const ATTEMPT_COUNT_MAX = 3

/** A listening socket at a path. */
export class SocketPath {
  readonly path: string
  /** The listening file descriptor; whoever asked for the socket closes it. */
  readonly listenFd: number
  readonly #file: Stats

  private constructor(path: string, listenFd: number) {
    // A later change of the working folder must not change which file is meant.
    this.path = resolve(path)
    this.listenFd = listenFd
    try {
      this.#file = lstatSync(this.path)
    } catch (error) {
      native.closeFd(listenFd)
      throw error
    }
  }

  /**
   * Makes the socket file, with these permissions from the moment that anybody can connect, and listens on it. A
   * socket that nobody listens on any more is replaced.
   *
   * Throws a `TypeError` or `RangeError` for what can be no socket path, `ERR_SOCKET_IN_USE` when another process
   * listens there, `ERR_SOCKET_PATH` when the file cannot be made or something else is in its place.
   */
  static async listen(path: string, mode: number): Promise<SocketPath> {
    checkPath(path)
    for (let attempt = 1; ; attempt++) {
      try {
        return new SocketPath(path, native.unixListen(path, mode, BACKLOG_COUNT))
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException
        if (code !== 'EADDRINUSE' || attempt === ATTEMPT_COUNT_MAX) throw pathError(path, error)
      }
      await removeStaleSocket(path)
    }
  }

  /**
   * Removes the file if it is still this socket. Call it before closing {@link listenFd}: until then nobody takes
   * the socket for a stale one, and its inode number cannot come back as another file's.
   */
  remove(): void {
    if (isSameFile(this.#file, lstatSync(this.path, { throwIfNoEntry: false }))) unlinkSync(this.path)
  }
}

function checkPath(path: string): void {
  if (typeof path !== 'string') throw optionTypeError('socketPath', 'a path', path)
  const fits = Buffer.byteLength(path) <= PATH_BYTES_MAX
  if (path === '' || path.includes('\0') || !fits) {
    throw optionRangeError(
      'socketPath',
      `a path of 1 to ${PATH_BYTES_MAX} bytes, the kernel's limit for sockets`,
      path,
    )
  }
}

async function removeStaleSocket(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found === undefined) return
  if (!found.isSocket()) {
    throw new HushringError(
      'ERR_SOCKET_PATH',
      `cannot listen on ${path}: it exists and is not a socket, so it is left alone; remove it or choose another path`,
    )
  }
  if (await isListenedOn(path)) {
    throw new HushringError(
      'ERR_SOCKET_IN_USE',
      `cannot listen on ${path}: another process listens there; stop it or choose another path`,
    )
  }
  // What was looked at is what gets removed, not a socket that another server made meanwhile.
  if (isSameFile(found, lstatSync(path, { throwIfNoEntry: false }))) unlinkSync(path)
}

/** The connection is made by node:net because it does not wait when the backlog of a live socket is full. */
function isListenedOn(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const probe = connect({ path })
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EACCES' || error.code === 'EPERM') reject(pathError(path, error))
      else resolve(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT')
    })
  })
}

function isSameFile(one: Stats, other: Stats | undefined): boolean {
  return one.dev === other?.dev && one.ino === other.ino
}

function pathError(path: string, cause: unknown): HushringError {
  const { code, message } = cause as NodeJS.ErrnoException
  const folder = dirname(path)
  const reasons: Readonly<Record<string, string>> = {
    ENOENT: `the folder ${folder} does not exist; create it first`,
    ENOTDIR: `${folder} is not a folder`,
    EACCES: `no permission in ${folder}; it must be writable and searchable for this user`,
    EPERM: `no permission in ${folder}; it must be writable and searchable for this user`,
    EROFS: `${folder} is on a read-only file system`,
    EADDRINUSE: 'another process keeps taking the path',
  }
  return new HushringError('ERR_SOCKET_PATH', `cannot listen on ${path}: ${reasons[code ?? ''] ?? message}`, {
    cause,
  })
}
