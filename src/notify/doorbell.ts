import { Observable } from 'rxjs'
import { HushringError } from '../errors.ts'
import { type NativeTcmuPort, native } from '../native.ts'

/**
 * The kicks of a driver: emits once for each time the event loop found the eventfd readable, after it was read
 * and reset. Many kicks between two turns are one value, so a value means "look at the ring", never "one request".
 *
 * The eventfd is borrowed: unsubscribe before closing it. Errors with `ERR_DOORBELL` when it cannot be read.
 *
 * @param kickFd an eventfd
 */
export function doorbell(kickFd: number): Observable<void> {
  return new Observable((subscriber) => {
    const watch = native.watchReadable(kickFd, true, (error) => {
      if (error < 0) {
        subscriber.error(new HushringError('ERR_DOORBELL', undefined, { details: { errno: -error } }))
      } else {
        subscriber.next()
      }
    })
    return () => watch.close()
  })
}

/**
 * The events of a TCMU device: emits once for each time the event loop found its descriptor readable, after the event
 * was read. Reading comes before the look that each value asks for: an entry that comes after the look raises another
 * event. Errors with `ERR_TCMU_REMOVED` when the device is gone.
 *
 * @param port borrowed: unsubscribe before closing it
 */
export function tcmuEvents(port: NativeTcmuPort): Observable<void> {
  return new Observable((subscriber) => {
    const watch = native.watchReadable(port.eventFd, false, (pollError) => {
      const errno = pollError < 0 ? -pollError : port.readEvent()
      if (errno === 0) subscriber.next()
      else subscriber.error(new HushringError('ERR_TCMU_REMOVED', undefined, { details: { errno } }))
    })
    return () => watch.close()
  })
}
