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
