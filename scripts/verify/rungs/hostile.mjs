// A hostile front-end against a running `hushring serve`, every row of the bad inputs, and the same against
// qemu-storage-daemon: test/front-ends/hostile.test.ts. Its controls, back-ends with one weakness each, are tests too.
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { avaTests } from '../../ava-tests.mjs'

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '13',
  title: 'hostile peers',
  tools: ['qemu-storage-daemon'],
  packages: ['qemu-system-common'],
  async run({ show }) {
    const folder = await mkdtemp(join(tmpdir(), 'hushring-hostile-'))
    try {
      const report = join(folder, 'report.json')
      const environment = { HUSHRING_HOSTILE_REPORT: report }
      const results = await avaTests('hostile', { show, environment })
      const { seen, connectionCount, rssGrowthBytesMax } = JSON.parse(await readFile(report, 'utf8'))
      const width = Math.max(...seen.map(({ row }) => row.length))
      show(`${'row'.padEnd(width)}  hushring        qemu-storage-daemon`)
      for (const { row, hushring, storageDaemon } of seen) {
        show(`${row.padEnd(width)}  ${hushring.padEnd(14)}  ${storageDaemon}`)
      }
      const growth = `worst growth of memory ${(rssGrowthBytesMax / 2 ** 20).toFixed(0)} MiB`
      return { ...results, figure: `${seen.length} rows, ${connectionCount} connections, ${growth}` }
    } finally {
      await rm(folder, { recursive: true })
    }
  },
}
