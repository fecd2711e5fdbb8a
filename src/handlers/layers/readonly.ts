import { HushringError } from '../../errors.ts'
import { isWriting } from '../block/block-request.ts'
import type { Layer } from '../handler.ts'

/**
 * Fails everything that would change the disk. Drivers are not told that the disk cannot be written; a store made
 * with `readOnly: true` does that as well.
 */
export function readonly(): Layer {
  return (next) => (io) =>
    isWriting(io.verb)
      ? io.fail(new HushringError('ERR_BLOCK_READ_ONLY', `${io.verb}: the layer readonly is in the way`))
      : next(io)
}
