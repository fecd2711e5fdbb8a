/** Which values of the mode pages MODE SENSE asks for (PC; SPC-4, 6.11). The fourth, saved ones, do not exist. */
export const PageControl = { current: 0, changeable: 1, default: 2, saved: 3 } as const

/** Page code that stands for all pages, and subpage code for all subpages. */
export const ALL_PAGES = 0x3f
export const ALL_SUBPAGES = 0xff

/** What MODE SELECT finds wrong: the list ends in the middle of a page, or a byte of it may not be as it is. */
export type ModeSelectFault = { readonly truncated: true } | { readonly byte: number; readonly bit?: number }

interface ModePage {
  readonly current: Buffer
  readonly defaults: Buffer
  /** 1 for every bit that MODE SELECT may change; bytes 0 and 1 as in the page. */
  readonly changeable: Buffer
}

const CACHING = 0x08
const CONTROL = 0x0a

/** Bits that do something, by page, byte and mask. */
const WCE = 0x04
const D_SENSE = 0x04
const SWP = 0x08

/**
 * The mode pages of a disk (SPC-4, 7.5; SBC-3, 6.5). Three bits can be changed and do what they say: the write cache
 * (WCE), the format of sense data (D_SENSE), and the software write protection (SWP). Nothing is saved: with the next
 * start of the device they have their defaults again.
 */
export class ModePages {
  readonly #pages: ReadonlyMap<number, ModePage>

  /** @param hasVolatileCache true when the disk can flush, so that there is something to flush */
  constructor({ hasVolatileCache }: { readonly hasVolatileCache: boolean }) {
    const wce = hasVolatileCache ? WCE : 0
    this.#pages = new Map([
      // Read-write error recovery: all up to the store.
      modePage([0x01, 0x0a], {}, {}),
      modePage([CACHING, 0x12], { 2: wce }, { 2: wce }),
      // GLTSD; unrestricted reordering, as the kernel does not tell task attributes; TAS, the kernel's default; a busy
      // timeout without limit.
      modePage([CONTROL, 0x0a], { 2: 0x02, 3: 0x10, 5: 0x40, 8: 0xff, 9: 0xff }, { 2: D_SENSE, 4: SWP }),
      // DEXCPT: no informational exceptions are reported.
      modePage([0x1c, 0x0a], { 2: 0x08 }, {}),
    ])
  }

  /** False: every write is permanent when it is answered. */
  get hasWriteCache(): boolean {
    return this.#hasBit(CACHING, 2, WCE)
  }

  /** True: sense data has the descriptor format. */
  get hasDescriptorSense(): boolean {
    return this.#hasBit(CONTROL, 2, D_SENSE)
  }

  /** True: an initiator asked that nothing can be written. */
  get isWriteProtected(): boolean {
    return this.#hasBit(CONTROL, 4, SWP)
  }

  #hasBit(code: number, byte: number, mask: number): boolean {
    return (this.#pages.get(code)!.current[byte]! & mask) !== 0
  }

  /**
   * The pages that MODE SENSE asks for.
   *
   * @param code a page code or {@link ALL_PAGES}
   * @param control {@link PageControl}, but not saved
   * @returns undefined when there is no such page
   */
  sense(code: number, control: number): Buffer | undefined {
    const pages = code === ALL_PAGES ? [...this.#pages.values()] : [this.#pages.get(code)]
    const values = pages.map((page) => {
      if (control === PageControl.changeable) return page?.changeable
      return control === PageControl.default ? page?.defaults : page?.current
    })
    return values.includes(undefined) ? undefined : Buffer.concat(values as Buffer[])
  }

  /**
   * Takes over the pages of a MODE SELECT, all of them or, if anything is wrong, none.
   *
   * @param list one page after the other
   * @returns what is wrong; its byte counts from the start of `list`
   */
  select(list: Buffer): ModeSelectFault | undefined {
    const changes: [ModePage, Buffer][] = []
    for (let at = 0; at < list.length; ) {
      if (at + 2 > list.length) return { truncated: true }
      // The bit PS, of which only MODE SENSE tells, is what some initiators send back.
      const page = this.#pages.get(list[at]! & 0x7f)
      if (page === undefined) return { byte: at }
      const { length } = page.current
      if (list[at + 1]! !== length - 2) return { byte: at + 1 }
      if (at + length > list.length) return { truncated: true }
      const values = list.subarray(at, at + length)
      for (let byte = 2; byte < length; byte++) {
        const wrongBits = (values[byte]! ^ page.current[byte]!) & ~page.changeable[byte]!
        if (wrongBits !== 0) return { byte: at + byte, bit: 31 - Math.clz32(wrongBits) }
      }
      changes.push([page, values])
      at += length
    }
    for (const [{ current }, values] of changes) values.copy(current, 2, 2)
    return undefined
  }
}

type BytesAt = Readonly<Record<number, number>>

function modePage(
  [code, lengthBytes]: readonly [code: number, lengthBytes: number],
  values: BytesAt,
  changeable: BytesAt,
): [number, ModePage] {
  const page = (bytes: BytesAt): Buffer => {
    const buffer = Buffer.alloc(2 + lengthBytes)
    buffer.set([code, lengthBytes])
    for (const [at, byte] of Object.entries(bytes)) buffer[Number(at)] = byte
    return buffer
  }
  return [code, { current: page(values), defaults: page(values), changeable: page(changeable) }]
}
