/**
 * Layout of one row of the tables of pieces that native code fills: readable segments of a request come before writable ones.
 * Apart from native.ts, which loads the addon, because lists of bytes are of use without one.
 */
export const SegmentRow = { window: 0, offsetBytes: 1, lengthBytes: 2, words: 3 } as const
