/** What was read from the command line, with the text that makes it again in another thread. */
export type FromText<Made> = Made & { readonly text: string }

/** A reader whose result remembers its text. @param read makes a fresh object or function each time */
export function rememberText<Made extends object>(
  read: (text: string) => Made,
): (text: string) => FromText<Made> {
  return (text) => Object.assign(read(text), { text })
}
