import { native } from '../../src/native.ts'
import { DeviceSession } from '../../src/transport/device-session.ts'
import { MessageConnection } from '../../src/transport/vhost-user/connection.ts'
import { ReceivedFds } from '../../src/transport/vhost-user/received-fds.ts'

/** Mistakes that the simulation must notice; see those of the split ring. */
export const vhostUserSabotages = [
  'descriptors that nobody took stay open',
  'the end of a stream is not noticed',
  'what the end cut off counts as zeros',
  'an answer is sent twice',
  'a session outlives its front-end',
  'what is in flight is not kept account of',
] as const
export type VhostUserSabotage = (typeof vhostUserSabotages)[number]

/**
 * Makes the mistake, for all connections of this process.
 *
 * @param ownFd true for the sockets of the front-end, which makes no mistake
 * @returns mends it
 */
export function plant(sabotage: VhostUserSabotage | undefined, ownFd: (fd: number) => boolean): () => void {
  switch (sabotage) {
    case undefined:
      return () => {}
    case 'descriptors that nobody took stay open':
      return replace(ReceivedFds.prototype, 'close', () => () => {})
    case 'the end of a stream is not noticed':
      return endOfStream(ownFd, () => -1)
    case 'what the end cut off counts as zeros':
      return endOfStream(ownFd, (lengthBytes) => lengthBytes)
    case 'an answer is sent twice':
      return replace(
        MessageConnection.prototype,
        'send',
        (send) =>
          function (this: MessageConnection, ...message) {
            send.apply(this, message)
            send.apply(this, message)
          },
      )
    case 'a session outlives its front-end':
      return outlive()
    case 'what is in flight is not kept account of':
      return replace(
        DeviceSession.prototype,
        'setInflight',
        () =>
          ({ fd }) =>
            native.closeFd(fd),
      )
  }
}

/** Ends sessions only when the mistake is mended. */
function outlive(): () => void {
  const sessions: DeviceSession[] = []
  const mend = replace(
    DeviceSession.prototype,
    'close',
    () =>
      async function (this: DeviceSession) {
        sessions.push(this)
      },
  )
  return () => {
    mend()
    for (const session of sessions) void session.close()
  }
}

/** Says something else than 0 bytes at the end of a stream. */
function endOfStream(ownFd: (fd: number) => boolean, said: (lengthBytes: number) => number): () => void {
  return replace(native, 'unixReceive', (receive) => (fd, target, offsetBytes, lengthBytes) => {
    const received = receive(fd, target, offsetBytes, lengthBytes)
    return received.bytes === 0 && !ownFd(fd) ? { ...received, bytes: said(lengthBytes) } : received
  })
}

function replace<Target extends object, Name extends keyof Target>(
  target: Target,
  name: Name,
  wrap: (right: Target[Name]) => Target[Name],
): () => void {
  const right = target[name]
  target[name] = wrap(right)
  return () => {
    target[name] = right
  }
}
