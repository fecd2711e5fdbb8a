import { type SchedulerAction, VirtualTimeScheduler } from 'rxjs'
import { BlockRequest, type BlockVerb } from '../../src/handlers/block/block-request.ts'
import type { BlockDevice } from '../../src/handlers/device.ts'
import { type Answer, attempt, type Handler, type Layer, settled } from '../../src/handlers/handler.ts'
import type { Completion } from '../../src/ring/request.ts'
import { SegmentList } from '../../src/ring/segments.ts'

/** A request on its own, as a codec would make it. For reads and writes `data` is the memory of the driver. */
export function blockRequest(verb: BlockVerb, offsetBytes = 0, data: Uint8Array | number = 0): BlockRequest {
  const list = typeof data === 'number' ? new SegmentList() : SegmentList.of(data)
  const lengthBytes = typeof data === 'number' ? data : data.length
  return new BlockRequest().assign(undefined, verb, offsetBytes, lengthBytes, list)
}

/** Asks as the pipeline does: what a handler throws becomes a failed completion. */
export async function ask(target: BlockDevice | Handler, io: BlockRequest): Promise<Completion> {
  const handler = typeof target === 'function' ? target : target.handler
  return await settled(attempt(handler, io))
}

export async function readFrom(
  target: BlockDevice | Handler,
  offsetBytes: number,
  lengthBytes: number,
): Promise<Buffer> {
  const bytes = Buffer.alloc(lengthBytes, 0xee)
  const completion = await ask(target, blockRequest('read', offsetBytes, bytes))
  if (completion.result !== 'ok') throw new Error(describe(completion))
  return bytes
}

/** `ok`, `unsupported`, or the code of the error. */
export function describe(completion: Completion): string {
  return completion.result === 'failed' ? completion.error.code : completion.result
}

/** Puts one layer around a function that answers. */
export function layered(layer: Layer, next: (io: BlockRequest) => unknown): Handler {
  return layer(next as Handler)
}

/** Bytes that differ from place to place and from `salt` to `salt`. They repeat after 251, which divides no block. */
export function pattern(lengthBytes: number, salt = 1): Buffer {
  return Buffer.alloc(
    lengthBytes,
    Uint8Array.from({ length: 251 }, (_, index) => index * 7 + salt * 31),
  )
}

/** Lets everything run that is ready: promises, and callbacks of the event loop. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** A clock that stands still until a test moves it. */
export class ManualClock extends VirtualTimeScheduler {
  /** Moves on by `ms`, one at a time, so that promises settle in the ms in which they should. */
  async advance(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed++) {
      this.maxFrames = this.frame + 1
      this.schedule(function (this: SchedulerAction<unknown>) {}, 1)
      this.flush()
      await turn()
    }
  }
}

/** A handler whose answers a test gives one by one. */
export class ManualHandler {
  readonly pending: { readonly io: BlockRequest; resolve(completion: Completion): void }[] = []

  readonly handler: Handler = (io): Answer =>
    new Promise((resolve) => {
      this.pending.push({ io, resolve })
    })
}
