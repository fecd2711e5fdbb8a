// So many null disks in one process, each at a socket of its own: node many-devices.mjs FOLDER COUNT
import { join } from 'node:path'
import { vhostUser } from '../dist/index.js'
import device from './null-device.mjs'

const [folder, count] = process.argv.slice(2)
for (let index = 0; index < Number(count); index++) {
  await vhostUser.listen({ socketPath: join(folder, `${index}.sock`), device })
}
console.log('ready')
