/** A part of a disk: from its first byte to the byte after its last. */
export interface ByteRange {
  readonly offsetBytes: number
  readonly endBytes: number
}

/** Those of `ranges` that have a byte in common with `range`, in their order. */
export function overlapping<Range extends ByteRange>(ranges: Iterable<Range>, range: ByteRange): Range[] {
  const found: Range[] = []
  for (const other of ranges) {
    if (other.offsetBytes < range.endBytes && range.offsetBytes < other.endBytes) found.push(other)
  }
  return found
}
