import { native } from '../../src/native.ts'
import type { ReferenceRegion } from '../../src/testing/index.ts'

/** A part of one of the files as a region of driver memory. */
export interface RegionPlan {
  readonly file: number
  readonly fromByte: number
  readonly toByte: number
  readonly guestAddress: bigint
  readonly userAddress: bigint
}

/** The same table of regions twice: over the memory of the native queue, and over that of the model. */
export interface RegionTable {
  readonly native: ReturnType<typeof native.mapRegion>[]
  readonly reference: ReferenceRegion[]
}

/**
 * Files of driver memory, each there twice: once for the native queue, once for the model. Whatever the driver writes is
 * written to both; what the two sides write has to come out the same.
 */
export class TwoMemories {
  readonly fileBytes: number
  readonly #fds: number[] = []
  readonly #native: Buffer[] = []
  readonly #reference: Buffer[] = []

  constructor(fileCount: number, fileBytes: number) {
    this.fileBytes = fileBytes
    for (let file = 0; file < fileCount; file++) {
      const fd = native.memfdCreate('hushring-models', fileBytes, true)
      this.#fds.push(fd)
      const region = native.mapRegion(fd, 0n, 0n, BigInt(fileBytes), 0n)
      this.#native.push(Buffer.from(region.windows[0]!))
      // Not from Buffer's pool: where the bytes begin decides about alignment.
      this.#reference.push(Buffer.from(new ArrayBuffer(fileBytes)))
    }
  }

  table(plans: readonly RegionPlan[]): RegionTable {
    return {
      native: plans.map(({ file, fromByte, toByte, guestAddress, userAddress }) =>
        native.mapRegion(
          this.#fds[file]!,
          guestAddress,
          userAddress,
          BigInt(toByte - fromByte),
          BigInt(fromByte),
        ),
      ),
      reference: plans.map(({ file, fromByte, toByte, guestAddress, userAddress }) => ({
        guestAddress,
        userAddress,
        bytes: new Uint8Array(this.#reference[file]!.buffer, fromByte, toByte - fromByte),
      })),
    }
  }

  /** A file as the native side sees it, and as the model does. */
  native(file: number): Buffer {
    return this.#native[file]!
  }
  reference(file: number): Buffer {
    return this.#reference[file]!
  }

  clear(): void {
    for (const bytes of [...this.#native, ...this.#reference]) bytes.fill(0)
  }

  writeU16(file: number, at: number, value: number): void {
    this.#native[file]!.writeUInt16LE(value & 0xffff, at)
    this.#reference[file]!.writeUInt16LE(value & 0xffff, at)
  }

  write(file: number, at: number, bytes: Uint8Array): void {
    this.#native[file]!.set(bytes, at)
    this.#reference[file]!.set(bytes, at)
  }

  copy(fromFile: number, toFile: number): void {
    for (const side of [this.#native, this.#reference]) side[fromFile]!.copy(side[toFile]!)
  }

  /** Where the two differ first, if they do. */
  difference(): string | undefined {
    for (const [file, bytes] of this.#native.entries()) {
      const other = this.#reference[file]!
      if (bytes.equals(other)) continue
      const at = bytes.findIndex((byte, index) => byte !== other[index])
      return `file ${file}, byte ${at}: native ${bytes[at]}, model ${other[at]}`
    }
    return undefined
  }
}
