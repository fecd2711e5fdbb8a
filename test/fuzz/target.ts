/** What is fuzzed. */
export interface FuzzTarget {
  /** Plays one input. What it throws or rejects with is a finding. */
  play(input: Uint8Array): void | Promise<void>
  /** The input as a person reads it. */
  describe(input: Uint8Array): unknown
}

/**
 * Loads a module of the product: the source in tests, an instrumented build under libFuzzer.
 *
 * @param path below src, without extension
 */
export type LoadModule = (path: string) => Promise<unknown>

/** Throws unless something holds that must hold for every input. */
export function demand(holds: boolean, what: () => string): asserts holds {
  if (!holds) throw new Error(`not so: ${what()}`)
}

/** Reads an input from its front. Behind its end there are zeros, so that every input means something. */
export class ByteReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes)
  }

  get leftBytes(): number {
    return this.#bytes.length - this.#at
  }

  u8(): number {
    return this.leftBytes > 0 ? this.#bytes[this.#at++]! : 0
  }

  /** Little-endian. */
  u16(): number {
    return this.u8() | (this.u8() << 8)
  }

  /** The next bytes, filled up with zeros. */
  bytes(lengthBytes: number): Buffer {
    const bytes = Buffer.alloc(lengthBytes)
    const end = Math.min(this.#at + lengthBytes, this.#bytes.length)
    this.#bytes.copy(bytes, 0, this.#at, end)
    this.#at = end
    return bytes
  }
}

/** Writes what a {@link ByteReader} reads. */
export class ByteWriter {
  readonly #bytes: number[] = []

  u8(value: number): this {
    this.#bytes.push(value)
    return this
  }

  u16(value: number): this {
    return this.u8(value & 0xff).u8(value >> 8)
  }

  bytes(bytes: Uint8Array): this {
    for (const byte of bytes) this.u8(byte)
    return this
  }

  done(): Buffer {
    return Buffer.from(this.#bytes)
  }
}
