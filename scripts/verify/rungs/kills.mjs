// kill -9 of the device process at random moments, ../kill-soak.mjs; and the same with a front-end that forgets the
// in-flight file, and with one that falsifies it, which must be noticed.
import { run } from '../../processes.mjs'
import { noResults } from '../../test-results.mjs'

const KILLS = process.env.HUSHRING_KILLS ?? '500'
const CONTROL_KILLS = '12'

/** @returns {Promise<Record<string, number>>} the outcome; throws when there is none */
async function soak(options, show) {
  const { status, output } = await run(['node', 'scripts/verify/kill-soak.mjs', ...options])
  const lines = output.trimEnd().split('\n')
  if (status === 0) return JSON.parse(lines.at(-1))
  show(output)
  throw new Error(`the soak ended with ${status}`)
}

/** @type {import('../ladder.mjs').Rung} */
export default {
  number: '10',
  title: 'kill -9 at random, reconnect',
  async run({ show }) {
    const results = noResults()
    const expect = (holds, title) => (holds ? results.passed++ : results.failed.push(title))
    const outcome = await soak(['--kills', KILLS], show)
    const told = JSON.stringify(outcome)
    expect(outcome.kills >= Number(KILLS), `fewer kills than wanted: ${told}`)
    expect(outcome.requests > 10 * outcome.kills, `hardly any request: ${told}`)
    expect(outcome.lost === 0, `requests were never answered, or failed: ${told}`)
    expect(outcome.double === 0, `an answer came twice, or for nobody: ${told}`)
    expect(outcome.mismatchedBytes === 0 && outcome.verifiedBytes > 0, `wrong bytes: ${told}`)
    expect(outcome.lostSignals === 0 && outcome.stalls === 0, `a wake-up was lost: ${told}`)
    // An answer that stays away is waited for ten times; the controls need not wait as long as a busy machine may.
    const control = ['--kills', CONTROL_KILLS, '--pairs', '1', '--stall-ms', '300', '--fault']
    const [forgotten, moved] = await Promise.all(
      ['forget', 'move'].map((fault) => soak([...control, fault], show)),
    )
    expect(
      forgotten.lost + forgotten.double > 0,
      `control: nobody missed the in-flight file: ${JSON.stringify(forgotten)}`,
    )
    expect(moved.double > 0, `control: an answer for nobody was not noticed: ${JSON.stringify(moved)}`)
    const { kills, requests, lost, double, mismatchedBytes, medianRecoveryMs, worstRecoveryMs, seed } =
      outcome
    const figure =
      `${kills} kills, ${requests} requests, lost ${lost}, double ${double}, mismatched bytes ${mismatchedBytes}, ` +
      `recovery median ${medianRecoveryMs} ms, worst ${worstRecoveryMs} ms (seed ${seed})`
    return { ...results, figure }
  },
}
