// A back-end with one weakness, for the controls of hostile.test.ts: weak-back-end.ts SOCKET WEAKNESS
import { openSync } from 'node:fs'
import { memoryDisk, vhostUser } from '../../src/index.ts'

const [socketPath, weakness] = process.argv.slice(2)
const hoard: Buffer[] = []
const device = memoryDisk({ capacityBytes: 2 ** 20 })
const server = await vhostUser.listen({ device, socketPath: socketPath!, queues: { countMax: 2 } })

/** What it does when a front-end broke the protocol. */
const reactions: Readonly<Record<string, () => void>> = {
  'does nothing wrong'() {},
  'leaks a descriptor': () => openSync('/dev/null', 'r'),
  'keeps memory': () => hoard.push(Buffer.alloc(2 ** 27, 1)),
  spins: function spin() {
    setImmediate(spin)
  },
  dies: () => process.exit(1),
  'prints what no log has': () => process.emitWarning('this is no line of a log'),
  'listens no more': () => void server.close(),
}
// Even when it listens no more.
setInterval(() => {}, 1000)
server.on('degraded', reactions[weakness!]!)
process.stdout.write('ready\n')
