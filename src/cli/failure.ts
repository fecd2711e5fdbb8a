import { UsageError } from './usage-error.ts'

/** How a command ended that could not do what it was asked. */
export interface Failure {
  /** One line: what, why and what to do. */
  readonly message: string
  /** 2 when the command line is wrong, 1 for everything else. */
  readonly exitStatus: 1 | 2
}

/** What the library's options are called on the command line. */
const OPTION_NAMES: Readonly<Record<string, string>> = {
  socketPath: '--socket',
  listenFd: 'the socket of the service manager (LISTEN_FDS)',
  'queues.countMax': '--queues',
  queueCount: '--queues',
  workers: '--workers',
  'queues.sizeMax': '--queue-size-max',
  serial: '--serial',
  name: '--create',
  uioPath: '--uio',
  maxDataAreaBytes: '--max-data-area',
  ringBytes: '--ring-size',
  commandTimeoutS: '--cmd-timeout',
}

/** As {@link OPTION_NAMES}, for what stores say about themselves, which is no error of an option. */
const STORE_WORDS: Readonly<Record<string, string>> = {
  'create and sizeBytes': '--size SIZE',
  sizeBytes: '--size',
  followSymlinks: '--follow-symlinks',
  readOnly: '--read-only',
}

/** What the usual errors of the operating system mean for a file, and what helps. */
const FILE_REASONS: Readonly<Record<string, string>> = {
  EACCES: 'no permission; check the owner and the mode of the file and its folders',
  EISDIR: 'it is a folder; name a file',
  EMFILE: 'too many files are open; raise the limit with ulimit -n',
  ENOENT: 'it does not exist; check the path',
  ENOSPC: 'no space is left on its file system',
  ENOTDIR: 'a part of the path is not a folder',
  EPERM: 'no permission; check the owner and the mode of the file and its folders',
  EROFS: 'its file system is read-only',
}

/** Tells people about an error, in the words of the command line. */
export function explainFailure(error: unknown): Failure {
  if (!(error instanceof Error)) return { message: String(error), exitStatus: 1 }
  if (error instanceof UsageError) return { message: error.message, exitStatus: 2 }
  const { code = '' } = error as NodeJS.ErrnoException
  if (code.startsWith('ERR_OPTION_')) return { message: inOptionNames(error.message), exitStatus: 2 }
  const message = code === 'ERR_STORE_OPEN' ? inStoreWords(error.message) : error.message
  return { message, exitStatus: 1 }
}

/**
 * Makes the error for a file that cannot be used.
 *
 * @param what what was tried, such as `cannot write the statistics to ./stats.json`
 * @param cause the error of the operating system; its reason is put in words
 */
export function fileError(what: string, cause: unknown): Error {
  const { code = '', message } = cause as NodeJS.ErrnoException
  return new Error(`${what}: ${FILE_REASONS[code] ?? message}`, { cause })
}

function inOptionNames(message: string): string {
  return message.replace(/^expected `([\w.]+)`/, (whole, name: string) =>
    name in OPTION_NAMES ? `expected ${OPTION_NAMES[name]}` : whole,
  )
}

function inStoreWords(message: string): string {
  return Object.entries(STORE_WORDS).reduce((text, [name, word]) => text.replaceAll(name, word), message)
}
