// The null disk of null-device.mjs whose handler returns a promise.
import { blockDevice, GiB } from '../dist/index.js'

const done = async () => {}
export default blockDevice({ capacityBytes: GiB, read: done, write: done, flush: () => {} })
