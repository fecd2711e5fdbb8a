import { Observable } from 'rxjs'
import { HushringError } from '../errors.ts'
import { native } from '../native.ts'

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
