import type { NativeTcmuPort } from '../native.ts'
import { SegmentList } from './segments.ts'

/** The mapping of one TCMU device, as JavaScript reaches it. Private to the ring. */
export class DataArea {
  readonly windows: readonly Buffer[]
  readonly #port: NativeTcmuPort
  readonly #windowBytes: number

  /** @param port borrowed */
  constructor(port: NativeTcmuPort) {
    this.#port = port
    this.windows = port.windows.map((window) => Buffer.from(window))
    this.#windowBytes = this.windows[0]?.length ?? 0
  }

  /** A view that can be taken away again, over one piece of a window. */
  expose(window: Buffer, offsetBytes: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
    const base = this.windows.indexOf(window) * this.#windowBytes
    return new Uint8Array(this.#port.expose(base + offsetBytes, lengthBytes))
  }

  conceal(view: Uint8Array<ArrayBuffer>): void {
    this.#port.conceal(view.buffer)
  }
}

/**
 * The data of one TCMU command.
 *
 * Most pages of the data area must not be touched: the kernel gives a page when a command needs it and takes it back
 * some time after, and an access in between faults. So the windows over the whole mapping stay private, and each
 * view that a handler asks for is an ArrayBuffer of one piece alone, detached when the command is answered: what a
 * handler keeps goes empty then.
 */
export class DataAreaSegments extends SegmentList {
  readonly #area: DataArea
  readonly #exposed: Uint8Array<ArrayBuffer>[] = []

  constructor(area: DataArea) {
    super()
    this.#area = area
  }

  protected override viewOf(window: Buffer, offsetBytes: number, lengthBytes: number): Uint8Array {
    const view = this.#area.expose(window, offsetBytes, lengthBytes)
    this.#exposed.push(view)
    return view
  }

  override clear(): void {
    super.clear()
    // Setting the length of an array is slow, and most requests expose nothing.
    if (this.#exposed.length === 0) return
    for (const view of this.#exposed) this.#area.conceal(view)
    this.#exposed.length = 0
  }
}
