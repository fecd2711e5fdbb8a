/** The command line is wrong: exit status 2. The message says what, why and what to do, in the words of the options. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}
