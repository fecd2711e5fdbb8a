// A kvmtool-style experiment: a virtio device that does not exist, tried out with a driver in this process. Each
// request carries text; the device answers with the text in capitals.
import { loopback, virtioDevice } from 'hushring'

const shouter = virtioDevice({
  deviceId: 63,
  name: 'shouter',
  handler(io) {
    const text = Buffer.alloc(io.readable.byteLength)
    io.readable.copyTo(text)
    return io.ok(io.writable.copyFrom(Buffer.from(text.toString().toUpperCase())))
  },
})

const connection = await loopback.connect({ device: shouter })
const words = ['wake', 'me', 'only', 'when', 'I', 'asked']
const answers = await Promise.all(words.map((word) => connection.request(Buffer.from(word), 16)))
console.log(answers.map(String).join(' '))
const { requests, kicks, signals } = connection.statsSnapshot()
console.log(`${requests} requests, ${kicks} kicks, ${signals} signals`)
await connection.close()
