import test from 'ava'
import { SegmentList } from '../../src/ring/segments.ts'
import { collectGarbage } from '../helpers/collect-garbage.ts'

test('segments: the front of a list is over the same memory', (t) => {
  const whole = SegmentList.of(Buffer.from('abc'), Buffer.from('defg'), Buffer.from('h'))
  for (let lengthBytes = 0; lengthBytes <= 8; lengthBytes++) {
    const front = whole.first(lengthBytes)
    t.is(front.byteLength, lengthBytes)
    t.is(front.toBuffer().toString(), 'abcdefgh'.slice(0, lengthBytes))
    t.is(Buffer.concat(front.views()).toString(), 'abcdefgh'.slice(0, lengthBytes))
  }
  t.is(whole.first(9).byteLength, 8, 'never more than there is')
  const part = new SegmentList()
  part.append(Buffer.from('abcdSECRET'), 0, 4)
  t.is(part.first(10).toBuffer().toString(), 'abcd')
  whole.first(4).fill('-'.charCodeAt(0))
  t.is(whole.toBuffer().toString(), '----efgh')
})

test('segments: the views of a front are made by the list it comes from', (t) => {
  class Counting extends SegmentList {
    viewCount = 0
    protected override viewOf(buffer: Buffer, offsetBytes: number, lengthBytes: number): Uint8Array {
      this.viewCount++
      return super.viewOf(buffer, offsetBytes, lengthBytes)
    }
  }
  const whole = new Counting()
  whole.append(Buffer.from('abcd'), 1, 3)
  const [view] = whole.first(3).first(2).views()
  t.is(Buffer.from(view!).toString(), 'bc')
  t.is(whole.viewCount, 1)
})

test('a list that is never cleared keeps no part of it', async (t) => {
  const whole = SegmentList.of(Buffer.from('abcdef'))
  const parts = Array.from({ length: 8 }, () => new WeakRef(whole.first(3)))
  await collectGarbage()
  t.deepEqual(
    parts.map((part) => part.deref()),
    parts.map(() => undefined),
  )
  t.is(whole.first(3).toBuffer().toString(), 'abc')
})

test('segments: a list that points at rows is over what they name, until it is cleared', (t) => {
  const windows = [Buffer.from('abcdef'), Buffer.from('ghij')]
  const rows = Uint32Array.of(9, 9, 9, 1, 2, 2, 0, 1, 3)
  const list = new SegmentList()
  list.point(windows, rows, 1, 2, 5)
  t.is(list.toBuffer().toString(), 'ijbcd')
  t.is(list.first(3).toBuffer().toString(), 'ijb')
  list.clear()
  t.is(list.toBuffer().toString(), '')
  list.append(windows[0]!, 0, 2)
  list.append(windows[1]!, 0, 1)
  t.is(list.toBuffer().toString(), 'abg')
  t.deepEqual([...rows], [9, 9, 9, 1, 2, 2, 0, 1, 3], 'they are not written to')
})

test('segments: a list that was kept, and a part of a list, know their pieces when the rows are others', (t) => {
  const windows = [Buffer.from('abcdef')]
  const rows = Uint32Array.of(0, 0, 3, 0, 5, 1)
  const list = new SegmentList()
  list.point(windows, rows, 0, 2, 4)
  const front = list.first(2)
  list.keep()
  list.keep()
  rows.fill(0)
  t.is(list.toBuffer().toString(), 'abcf')
  t.is(front.toBuffer().toString(), 'ab')
  list.clear()
  list.point(windows, Uint32Array.of(0, 4, 1), 0, 1, 1)
  t.is(list.toBuffer().toString(), 'e')
  t.is(front.toBuffer().toString(), '')
})
