// The unit tests that reach native code, in a Node whose addon is built with AddressSanitizer and
// UndefinedBehaviorSanitizer: what the boundary to JavaScript does with memory.
import { mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { avaTests } from '../../ava-tests.mjs'
import { buildNative } from '../../native-tests.mjs'
import { run } from '../../processes.mjs'
import { root } from '../../setup.mjs'
import { noResults } from '../../test-results.mjs'

// Whatever makes native objects. The command line starts processes of its own and is tested without; and memory of
// which AddressSanitizer has reserved terabytes cannot be locked.
const folders = ['models', 'native', 'ring', 'testing', 'transport']
const left = ['test/transport/tcmu-netlink.test.ts']

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '14',
  title: 'the addon under AddressSanitizer',
  tools: ['g++', 'cmake', 'ninja'],
  packages: ['g++', 'cmake', 'ninja-build'],
  async run({ show }) {
    const { missing, failure, output } = await buildNative('asan-addon')
    if (missing.length > 0) return { ...noResults(), figure: '', notRun: `no ${missing.join(', no ')}` }
    if (failure !== undefined) show(output)
    if (failure !== undefined) return { ...noResults(), failed: [failure], figure: 'none' }
    const addon = join(root, 'out/asan-addon/hushring.node')
    const environment = {
      HUSHRING_NATIVE_PATH: addon,
      LD_PRELOAD: (await run(['g++', '-print-file-name=libasan.so'])).output.trim(),
      // Node itself frees little of what it made before it ends. The signals are our own: the SIGBUS guard's tests.
      // What was freed is put aside for a while, and is not to look like a leak to the tests that weigh memory.
      ASAN_OPTIONS:
        'detect_leaks=0:handle_sigbus=0:handle_segv=0:allocator_may_return_null=1:quarantine_size_mb=16',
      UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
    }
    const results = await avaTests('unit', {
      show,
      environment,
      only: (file) => folders.some((folder) => file.startsWith(`test/${folder}/`)) && !left.includes(file),
    })
    const figure = `${results.passed} tests`
    for (const [title, holds] of [
      ['control: the addon under test is the one with sanitizers', await hasSanitizer(environment)],
      [
        'control: a write behind an allocation of an addon is reported',
        await reportsOverflow(environment, show),
      ],
    ]) {
      if (holds) results.passed++
      else results.failed.push(title)
    }
    return { ...results, figure }
  },
}

async function hasSanitizer(environment) {
  const program = `import { native } from ${JSON.stringify(join(root, 'dist/native.js'))}; console.log(native.build.sanitizer)`
  const { output } = await run(['node', '--input-type=module', '-e', program], undefined, environment)
  return output.trim() === 'address,undefined'
}

async function reportsOverflow(environment, show) {
  const addon = join(root, 'out/asan-addon/heap_overflow.node')
  await mkdir(dirname(addon), { recursive: true })
  const headers = (await run(['node', '-p', "require('node-api-headers').include_dir"])).output.trim()
  const built = await run([
    ...['g++', '-shared', '-fPIC', '-fsanitize=address', `-I${headers}`, '-o', addon],
    join(root, 'native/test/asan/heap_overflow.cpp'),
  ])
  if (built.status !== 0) show(built.output)
  const { output } = await run(['node', '-e', `require(${JSON.stringify(addon)})`], undefined, environment)
  return output.includes('AddressSanitizer: heap-buffer-overflow')
}
