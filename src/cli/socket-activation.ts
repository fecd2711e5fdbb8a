/** The first file descriptor that a service manager passes (sd_listen_fds(3)). */
const FIRST_FD = 3

/**
 * Finds the listening socket that a service manager such as systemd passed to this process (LISTEN_FDS and
 * LISTEN_PID), and removes these variables, so that no child takes them for its own.
 *
 * @param environment changed
 * @param pid of this process: variables meant for another process are ignored
 * @returns the file descriptor, or undefined without socket activation
 * @throws Error when more than one socket was passed
 */
export function takeActivatedSocket(environment: NodeJS.ProcessEnv, pid: number): number | undefined {
  const { LISTEN_PID, LISTEN_FDS } = environment
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete environment[name]
  if (Number(LISTEN_PID) !== pid || LISTEN_FDS === undefined || LISTEN_FDS === '0') return undefined
  if (LISTEN_FDS === '1') return FIRST_FD
  throw new Error(
    `LISTEN_FDS is ${LISTEN_FDS}: a device takes one socket; give its socket unit one ListenStream= line`,
  )
}
