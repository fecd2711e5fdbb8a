import { HushringError } from '../../errors.ts'
import { native } from '../../native.ts'
import { FD_COUNT_MAX } from './messages.ts'

/**
 * The file descriptors that came with one message. They belong to this list until a handler takes them; whatever
 * is left when the message has been handled is closed, so that no path through a handler leaks one.
 */
export class ReceivedFds {
  #fds: number[] = []

  get count(): number {
    return this.#fds.length
  }

  /** Takes over what one read brought. Throws `ERR_VHOST_FD` when the message has more than any message may. */
  add(fds: readonly number[]): void {
    this.#fds.push(...fds)
    this.expectAtMost(FD_COUNT_MAX)
  }

  /** Throws `ERR_VHOST_FD` when there are more than `countMax`. */
  expectAtMost(countMax: number): void {
    if (this.count > countMax) throw countError(`at most ${countMax}`, this.count)
  }

  /** Hands all of them to the caller, who closes them. Throws `ERR_VHOST_FD` unless there are exactly `count`. */
  take(count: number): number[] {
    if (this.count !== count) throw countError(`${count}`, this.count)
    const fds = this.#fds
    this.#fds = []
    return fds
  }

  /** Takes the only one. Throws `ERR_VHOST_FD` unless there is exactly one. */
  takeOne(): number {
    return this.take(1)[0]!
  }

  /** Closes what nobody took. */
  close(): void {
    for (const fd of this.#fds) native.closeFd(fd)
    this.#fds = []
  }
}

function countError(expected: string, count: number): HushringError {
  return new HushringError(
    'ERR_VHOST_FD',
    `expected ${expected} file descriptors with the message, got ${count}`,
    {
      details: { count },
    },
  )
}
