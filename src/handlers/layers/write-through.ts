import { isWriting } from '../block/block-request.ts'
import { flatMapAnswer, type Layer } from '../handler.ts'

/**
 * Flushes after each write, discard and write of zeros before it answers, so that what a driver was told is done
 * lasts. The virtio-blk codec puts it around a disk when the driver does not know how to flush.
 */
export function writeThrough(): Layer {
  return (next) => (io) =>
    isWriting(io.verb)
      ? flatMapAnswer(next(io), (completion) =>
          completion?.result === 'ok' ? next(io.derive({ verb: 'flush' })) : completion,
        )
      : next(io)
}
