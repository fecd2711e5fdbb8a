// The null disk of null-device.mjs whose handler returns an observable.
import { of } from 'rxjs'
import { blockDevice, GiB } from '../dist/index.js'

const done = of(undefined)
export default blockDevice({ capacityBytes: GiB, read: () => done, write: () => done, flush: () => {} })
