// A null disk that leaves the driver's buffer as it is, as qemu-storage-daemon's null-co does with read-zeroes=off. Only
// for measurements: the handler is TypeScript's own work and nothing else.
import { blockDevice, GiB } from '../dist/index.js'

export default blockDevice({ capacityBytes: GiB, read: () => {}, write: () => {}, flush: () => {} })
