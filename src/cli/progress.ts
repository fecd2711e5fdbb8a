/** Shows a person how far each part of a longer task is. */
export interface ProgressView {
  begin(part: string): void
  /** @param fraction 0 to 1 @param note what to show beside the bar */
  update(fraction: number, note: string): void
  end(): void
}

/** For machine output: says nothing. */
export const noProgress: ProgressView = { begin() {}, update() {}, end() {} }

/** For files and pipes: one line when a part begins. */
export function lineProgress(write: (text: string) => void): ProgressView {
  return { ...noProgress, begin: (part) => write(`${part.trimEnd()} …\n`) }
}

const ERASE_LINE = '\r\u001b[2K'
const BAR_CELL_COUNT = 24

/** For a terminal: one line that is written over, and gone at the end. */
export function barProgress(write: (text: string) => void): ProgressView {
  let part = ''
  const draw = (fraction: number, note: string): void => {
    const cells = Math.round(Math.min(1, fraction) * BAR_CELL_COUNT)
    write(`${ERASE_LINE}${part} ${'█'.repeat(cells)}${'░'.repeat(BAR_CELL_COUNT - cells)} ${note}`)
  }
  return {
    begin(name) {
      part = name
      draw(0, '')
    },
    update: draw,
    end: () => write(ERASE_LINE),
  }
}
