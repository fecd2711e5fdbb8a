/**
 * Lays rows out in columns two blanks apart, the first flush left and the others, numbers, flush right.
 *
 * @param rows the first one is the heading, and gets a rule below; all have the same length
 * @returns lines without a final newline
 */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const heading = rows[0] ?? []
  const widths = heading.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  const lines = rows.map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  '),
  )
  return [...lines.slice(0, 1), widths.map((width) => '─'.repeat(width)).join('  '), ...lines.slice(1)].join(
    '\n',
  )
}
