import test, { type ExecutionContext } from 'ava'
import { type Serve, serveWithHushring, serveWithStorageDaemon } from './back-ends.ts'
import { storageDaemon, type Tool } from './tools.ts'

/**
 * Registers a test that needs tools; such tests run one after the other. Without the tools it is a skip that names
 * them, and in CI (when the environment variable CI is set) a failure.
 */
export function testWith(
  tools: readonly Tool[],
  title: string,
  implementation: (t: ExecutionContext<unknown>) => Promise<void>,
): void {
  const missing = tools.filter((tool) => tool.path === undefined).map((tool) => tool.name)
  if (missing.length === 0) {
    test.serial(title, implementation)
    return
  }
  const reason = `missing: ${missing.join(', ')}; scripts/front-ends/install-tools.sh installs what is missing`
  if (process.env.CI) test.serial(title, (t) => t.fail(reason))
  else test.serial.skip(`${title} (${reason})`, implementation)
}

/** Ours, and one that is known to be right, so that a scenario that only ours fails is no fault of the scenario. */
const backEnds: readonly { name: string; serve: Serve; tools: readonly Tool[] }[] = [
  { name: 'hushring', serve: serveWithHushring, tools: [] },
  { name: 'qemu-storage-daemon', serve: serveWithStorageDaemon, tools: [storageDaemon] },
]

/**
 * Registers one test for each back-end.
 *
 * @param tools what the front-end of the scenario needs
 * @param title a sentence; the name of the back-end is put before it
 */
export function onEachBackEnd(
  tools: readonly Tool[],
  title: string,
  scenario: (t: ExecutionContext<unknown>, serve: Serve) => Promise<void>,
): void {
  for (const { name, serve, tools: ownTools } of backEnds) {
    testWith([...tools, ...ownTools], `${name}: ${title}`, (t) => scenario(t, serve))
  }
}
