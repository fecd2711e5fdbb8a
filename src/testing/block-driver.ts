import { SECTOR_BYTES } from '../units.ts'
import type { SharedMemory } from './shared-memory.ts'
import type { Piece, SplitDriver } from './split-driver.ts'

/** Request types of virtio-blk (virtio 1.3, 5.2.6). */
export const BlockRequestType = { IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 } as const

/** Status bytes of virtio-blk. */
export const BlockStatus = { OK: 0, IOERR: 1, UNSUPP: 2 } as const

/** A virtio-blk request; any value is accepted. */
export interface RawBlockRequest {
  readonly type: number
  /** In units of 512 bytes. Default 0. */
  readonly sector?: bigint
  /** Data for the device. */
  readonly readable?: Uint8Array
  /** Room for data from the device, in bytes. Default 0. */
  readonly writableBytes?: number
  /** Splits the data into pieces of at most so many bytes. Default: one piece. */
  readonly pieceBytesMax?: number
  /** Puts the pieces into an indirect table. Default false. */
  readonly indirect?: boolean
}

/** What came back. */
export interface BlockAnswer {
  /** {@link BlockStatus}, or 255 when the device wrote none. */
  readonly status: number
  /** A copy of the writable data. */
  readonly data: Buffer
  /** Length of the used element. */
  readonly usedBytes: number
}

const HEADER_BYTES = 16
const NO_STATUS = 255

/** A virtio-blk driver for tests: makes requests on a ring and returns what the device answered. */
export class BlockDriver {
  readonly #driver: SplitDriver
  readonly #memory: SharedMemory
  readonly #dataBytesMax: number
  /** Offsets of buffers that no request uses. */
  readonly #freeBuffers: number[] = []

  /**
   * @param driver its ring; borrowed
   * @param memory where the buffers lie; borrowed
   * @param dataBytesMax largest data of one request; default 64 KiB
   */
  constructor(driver: SplitDriver, memory: SharedMemory, dataBytesMax: number = 64 * 1024) {
    this.#driver = driver
    this.#memory = memory
    this.#dataBytesMax = dataBytesMax
  }

  /** Reads `lengthBytes` at `offsetBytes` of the disk; throws unless the status is OK. */
  async read(offsetBytes: number, lengthBytes: number): Promise<Buffer> {
    const sector = BigInt(offsetBytes / SECTOR_BYTES)
    const answer = await this.request({ type: BlockRequestType.IN, sector, writableBytes: lengthBytes })
    return expectOk('read', answer).data
  }

  /** Writes `data` at `offsetBytes` of the disk; throws unless the status is OK. */
  async write(offsetBytes: number, data: Uint8Array): Promise<void> {
    const sector = BigInt(offsetBytes / SECTOR_BYTES)
    expectOk('write', await this.request({ type: BlockRequestType.OUT, sector, readable: data }))
  }

  /** Throws unless the status is OK. */
  async flush(): Promise<void> {
    expectOk('flush', await this.request({ type: BlockRequestType.FLUSH }))
  }

  /** Makes one request and kicks the device if it wants that. */
  async request(request: RawBlockRequest): Promise<BlockAnswer> {
    const { readable = new Uint8Array(0), writableBytes = 0, pieceBytesMax = this.#dataBytesMax } = request
    const lengthBytes = Math.max(readable.length, writableBytes)
    if (lengthBytes > this.#dataBytesMax)
      throw new RangeError(`more than ${this.#dataBytesMax} bytes of data`)
    const buffer = this.#freeBuffers.pop() ?? this.#memory.allocate(HEADER_BYTES + this.#dataBytesMax + 1)
    const { bytes } = this.#memory
    const dataAt = buffer + HEADER_BYTES
    const statusAt = dataAt + this.#dataBytesMax
    bytes.writeUInt32LE(request.type, buffer)
    bytes.writeUInt32LE(0, buffer + 4)
    bytes.writeBigUInt64LE(request.sector ?? 0n, buffer + 8)
    bytes.set(readable, dataAt)
    bytes[statusAt] = NO_STATUS
    const usedBytes = await this.#driver.submit(
      [
        this.#piece(buffer, HEADER_BYTES, false),
        ...this.#pieces(dataAt, readable.length, pieceBytesMax, false),
        ...this.#pieces(dataAt, writableBytes, pieceBytesMax, true),
        this.#piece(statusAt, 1, true),
      ],
      { indirect: request.indirect ?? false },
    )
    const data = Buffer.from(bytes.subarray(dataAt, dataAt + writableBytes))
    const status = bytes[statusAt]!
    this.#freeBuffers.push(buffer)
    return { status, data, usedBytes }
  }

  #pieces(offsetBytes: number, lengthBytes: number, pieceBytesMax: number, writable: boolean): Piece[] {
    const pieces: Piece[] = []
    for (let at = 0; at < lengthBytes; at += pieceBytesMax) {
      pieces.push(this.#piece(offsetBytes + at, Math.min(pieceBytesMax, lengthBytes - at), writable))
    }
    return pieces
  }

  #piece(offsetBytes: number, lengthBytes: number, writable: boolean): Piece {
    return { address: this.#memory.guestAddressOf(offsetBytes), lengthBytes, writable }
  }
}

function expectOk(what: string, answer: BlockAnswer): BlockAnswer {
  if (answer.status !== BlockStatus.OK) throw new Error(`${what} failed with status ${answer.status}`)
  return answer
}
