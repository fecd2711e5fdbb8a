import { refuseUnknownOptions } from '../../options.ts'
import { StoreMemory } from '../../ring/store-memory.ts'
import { MiB } from '../../units.ts'
import { blockDevice, type DiskShapeOptions, SHAPE_OPTION_NAMES } from '../block/block-device.ts'
import type { BlockRequest } from '../block/block-request.ts'
import type { BlockDevice } from '../device.ts'

/** Options of {@link memoryDisk}. */
export interface MemoryDiskOptions extends DiskShapeOptions {
  /** Size in bytes; a positive multiple of the block size. Only what is written takes memory. */
  readonly capacityBytes: number
}

const CHUNK_BYTES = MiB

/**
 * A disk in memory, full of zeros at first. Memory is taken by the MiB when it is first written to, and given back
 * when a whole MiB is discarded or zeroed, so a disk of terabytes costs what was written. Everything is gone with
 * the process; a flush has nothing to do.
 *
 * Requests are answered at once and allocate nothing, except for the first write to a MiB.
 */
export function memoryDisk(options: MemoryDiskOptions): BlockDevice {
  refuseUnknownOptions(options, ['capacityBytes', ...SHAPE_OPTION_NAMES])
  const chunks = new Map<number, StoreMemory>()

  const read: PieceVisitor = (io, chunkIndex, chunkOffsetBytes, doneBytes, countBytes) => {
    const chunk = chunks.get(chunkIndex)
    if (chunk === undefined) io.data.fill(0, doneBytes, countBytes)
    else io.data.copyFromStore(chunk, chunkOffsetBytes, doneBytes)
  }

  const write: PieceVisitor = (io, chunkIndex, chunkOffsetBytes, doneBytes) => {
    let chunk = chunks.get(chunkIndex)
    if (chunk === undefined) {
      chunk = new StoreMemory(CHUNK_BYTES)
      chunks.set(chunkIndex, chunk)
    }
    io.data.copyToStore(chunk, chunkOffsetBytes, doneBytes)
  }

  const zero: PieceVisitor = (_io, chunkIndex, chunkOffsetBytes, _doneBytes, countBytes) => {
    if (countBytes === CHUNK_BYTES) forget(chunks, chunkIndex)
    else chunks.get(chunkIndex)?.bytes.fill(0, chunkOffsetBytes, chunkOffsetBytes + countBytes)
  }

  return blockDevice({
    ...options,
    read: (io) => visitPieces(io, read),
    write: (io) => visitPieces(io, write),
    flush() {},
    discard: (io) => visitPieces(io, zero),
    writeZeroes: (io) => visitPieces(io, zero),
    resize: (capacityBytes) => forgetFrom(chunks, capacityBytes),
    close: () => forgetFrom(chunks, 0),
  })
}

/** A disk that shrinks and grows again reads as zeros there. */
function forgetFrom(chunks: Map<number, StoreMemory>, capacityBytes: number): void {
  const lastChunk = Math.floor(capacityBytes / CHUNK_BYTES)
  for (const index of chunks.keys()) {
    if (index > lastChunk) forget(chunks, index)
  }
  chunks.get(lastChunk)?.bytes.fill(0, capacityBytes - lastChunk * CHUNK_BYTES)
}

function forget(chunks: Map<number, StoreMemory>, index: number): void {
  chunks.get(index)?.release()
  chunks.delete(index)
}

/** Sees the part of a request that lies in one chunk; `doneBytes` of the request come before it. */
type PieceVisitor = (
  io: BlockRequest,
  chunkIndex: number,
  chunkOffsetBytes: number,
  doneBytes: number,
  countBytes: number,
) => void

function visitPieces(io: BlockRequest, visit: PieceVisitor): void {
  for (let doneBytes = 0; doneBytes < io.lengthBytes; ) {
    const position = io.offsetBytes + doneBytes
    const chunkIndex = Math.floor(position / CHUNK_BYTES)
    const chunkOffsetBytes = position - chunkIndex * CHUNK_BYTES
    const countBytes = Math.min(CHUNK_BYTES - chunkOffsetBytes, io.lengthBytes - doneBytes)
    visit(io, chunkIndex, chunkOffsetBytes, doneBytes, countBytes)
    doneBytes += countBytes
  }
}
