// The core's own tests, built for AArch64 and run by qemu-user: sizes, alignment and the compiler's other choices. The
// emulator runs on this machine's memory model, so it says nothing about orderings; disassembly does.
import { nativeTests } from '../../native-tests.mjs'

// All fail in the emulator alone. QEMU 7.2 answers EOPNOTSUPP to preadv2 with flags whatever the descriptor is, shows
// O_NONBLOCK on an eventfd that was made without, and is too slow for two stores to meet.
const notRun = [
  'what is refused tells its errno',
  'eventfd_drain does not wait on a blocking eventfd and leaves it blocking',
  'litmus: control: the weakened device loses, paced and in a whole ring',
]

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '14',
  title: 'the core on AArch64',
  tools: ['aarch64-linux-gnu-g++', 'qemu-aarch64-static', 'cmake', 'ninja'],
  packages: ['g++-aarch64-linux-gnu', 'qemu-user-static', 'cmake', 'ninja-build', 'doctest-dev'],
  async run({ inCi, show }) {
    const results = await nativeTests('arm64', { inCi, show })
    results.skipped.push(...notRun.map((title) => `${title} (not in qemu-user)`))
    return { ...results, figure: `${results.passed} cases on AArch64 under qemu-user` }
  },
}
