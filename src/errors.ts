/**
 * Who is at fault, which decides what happens next.
 *
 * - `caller`: the program that uses hushring passed something wrong. Thrown synchronously.
 * - `peer`: the driver or front-end broke the protocol. The queue or the connection stops, the process lives.
 * - `medium`: the store or the handler failed. Only that request fails.
 */
export type ErrorFamily = 'caller' | 'peer' | 'medium'

/** What one stable error code means. `docs/errors.md` is this table with prose; a test compares the two. */
export interface ErrorDescription {
  readonly family: ErrorFamily
  /** One line: what happened. */
  readonly meaning: string
  /** One line: what the reader can do about it. */
  readonly remedy: string
}

/** Every code hushring can report. Codes are stable: they are never renamed or reused. */
export const ERROR_CODES = {
  // The caller is wrong.
  ERR_OPTION_TYPE: {
    family: 'caller',
    meaning: 'An option has the wrong type or is misspelt.',
    remedy: 'The message names the option, what was expected and what was given.',
  },
  ERR_OPTION_RANGE: {
    family: 'caller',
    meaning: 'An option is outside the range it may have.',
    remedy: 'The message names the option, its range and the value given.',
  },
  ERR_CLOSED: {
    family: 'caller',
    meaning: 'The object was closed before this call.',
    remedy: 'Do not use a transport, a store or a driver after its close().',
  },
  ERR_STORE_OPEN: {
    family: 'caller',
    meaning: 'The store cannot be opened as a disk.',
    remedy:
      'The message names the path, why, and what helps; the error of the operating system is in `cause`.',
  },
  ERR_SOCKET_PATH: {
    family: 'caller',
    meaning: 'The socket cannot be made at this path.',
    remedy:
      'The message names the path and why; the folder must exist and be writable, the path be free or a socket.',
  },
  ERR_SOCKET_IN_USE: {
    family: 'caller',
    meaning: 'Another process listens on this socket path.',
    remedy: 'Stop that process or choose another path; only a socket that nobody listens on is replaced.',
  },
  ERR_BUSY: {
    family: 'caller',
    meaning: 'The object does something else at the moment that excludes this call.',
    remedy: 'Wait for the earlier call to end; a loopback runs one load at a time.',
  },
  ERR_DEVICE_KIND: {
    family: 'caller',
    meaning: 'This transport cannot serve a device of this kind.',
    remedy: 'vhost-user and the loopback serve disks and virtio devices, TCMU serves disks and SCSI devices.',
  },
  ERR_DEVICE_MODULE: {
    family: 'caller',
    meaning:
      'The module of a device cannot be loaded, exports no device, or exports another one in each thread.',
    remedy: 'The message names the module and its export; the default export must be a device or return one.',
  },
  ERR_WORKER_EXITED: {
    family: 'caller',
    meaning:
      'A worker thread that served queues has ended: by an exception that nobody caught, or process.exit().',
    remedy:
      'The server closes and what was in flight stays marked for the next one; the exception is in `cause`.',
  },
  ERR_TCMU_UNAVAILABLE: {
    family: 'caller',
    meaning: 'This machine has no TCMU, or this process may not use it.',
    remedy:
      'Load target_core_user (and tcm_loop), mount configfs, and run as root; the message says what is missing.',
  },
  ERR_TCMU_OPEN: {
    family: 'caller',
    meaning: 'The UIO device does not exist, or is no TCMU device.',
    remedy: 'Give the path of a /dev/uioN whose name in /sys/class/uio/uioN begins with tcm-user.',
  },
  ERR_TCMU_IN_USE: {
    family: 'caller',
    meaning: 'Another process serves this TCMU device, or the name is taken by a device that is not ours.',
    remedy: 'A TCMU device has one server at a time: stop the other one or choose another name.',
  },
  ERR_TCMU_RING_DIRTY: {
    family: 'caller',
    meaning: 'An earlier server left commands unanswered on the ring, and the ring may not be reset.',
    remedy: 'Allow the reset (`recover`), or reset it by hand (docs/tcmu.md, Recovery).',
  },
  ERR_NATIVE_LOAD: {
    family: 'caller',
    meaning: 'The native addon is missing or does not load on this machine.',
    remedy: 'Run `npm rebuild hushring`; on Debian `apt-get install cmake g++ make` first.',
  },

  // The peer is wrong: the ring.
  ERR_RING_AVAIL_INDEX: {
    family: 'peer',
    meaning: 'The available index ran ahead of the device by more than the queue size, or went back.',
    remedy: 'The queue is broken until the driver resets it; look for a driver bug or corrupted memory.',
  },
  ERR_RING_HEAD_RANGE: {
    family: 'peer',
    meaning: 'The available ring named a head descriptor outside the descriptor table.',
    remedy: 'The entry is skipped; more than a queue full of them in a row breaks the queue.',
  },
  ERR_RING_HEAD_IN_FLIGHT: {
    family: 'peer',
    meaning: 'The driver made a head available again while the device still owned it.',
    remedy: 'The second copy is skipped, so that the head keeps one owner; look for a driver bug.',
  },
  ERR_DOORBELL: {
    family: 'peer',
    meaning: 'The eventfd that carries the kicks cannot be read any more.',
    remedy:
      'The queue is broken until it is set up again; the front-end must pass an eventfd and keep it valid.',
  },
  ERR_RING_ADDRESS: {
    family: 'peer',
    meaning: 'A part of the ring is misaligned or not inside the mapped memory.',
    remedy: 'The queue does not start; check the addresses the front-end sent.',
  },
  ERR_RING_SIZE: {
    family: 'peer',
    meaning: 'The queue size is zero, not a power of two, or above the maximum of this queue.',
    remedy: 'The front-end must offer a power of two within the limit.',
  },
  ERR_RING_INFLIGHT: {
    family: 'peer',
    meaning: 'The in-flight region of the queue contradicts itself or the ring.',
    remedy: 'The queue does not start; the front-end must pass the region of this very ring, or a fresh one.',
  },

  // The peer is wrong: one descriptor chain.
  ERR_CHAIN_NEXT_RANGE: {
    family: 'peer',
    meaning: 'A descriptor points to a next descriptor outside its table.',
    remedy: 'The request is returned with length 0; look for a driver bug.',
  },
  ERR_CHAIN_LOOP: {
    family: 'peer',
    meaning: 'A descriptor chain is longer than its limit, which a loop always is.',
    remedy: 'The request is returned with length 0; look for a driver bug.',
  },
  ERR_CHAIN_ADDRESS: {
    family: 'peer',
    meaning: 'A buffer or an indirect table is not wholly inside the mapped memory, or its end wraps 2^64.',
    remedy: 'The request is returned with length 0; look for a driver bug.',
  },
  ERR_CHAIN_TOO_LONG: {
    family: 'peer',
    meaning:
      'The buffers of one chain add up to 2^32 bytes or more, or to more pieces than a request can hold.',
    remedy: 'The request is returned with length 0; the driver must split it.',
  },
  ERR_CHAIN_INDIRECT: {
    family: 'peer',
    meaning:
      'An indirect descriptor is not negotiated, nested, chained, empty or not a multiple of 16 bytes.',
    remedy: 'The request is returned with length 0; look for a driver bug.',
  },
  ERR_CHAIN_ORDER: {
    family: 'peer',
    meaning: 'A device-readable buffer follows a device-writable one.',
    remedy: 'The request is returned with length 0; look for a driver bug.',
  },
  ERR_CHAIN_FRAMING: {
    family: 'peer',
    meaning: 'The chain is too short for the header or has no writable byte for the status.',
    remedy: 'The request is returned with length 0, or with a status byte where one could be found.',
  },

  // The peer is wrong: one block request.
  ERR_BLOCK_ALIGNMENT: {
    family: 'peer',
    meaning: 'A request does not begin or end at a block of the disk.',
    remedy: 'The request fails with an I/O error; the driver must use the block size that it was told.',
  },
  ERR_BLOCK_RANGE: {
    family: 'peer',
    meaning: 'A request reaches past the end of the disk.',
    remedy: 'The request fails with an I/O error; check that the driver knows the capacity of the disk.',
  },
  ERR_BLOCK_DATA: {
    family: 'peer',
    meaning: 'A request has no data, or only data in the wrong direction.',
    remedy: 'The request fails with an I/O error; look for a driver bug.',
  },
  ERR_BLOCK_SEGMENTS: {
    family: 'peer',
    meaning: 'The ranges of a discard or write-zeroes request are malformed, too many or too long.',
    remedy: 'The request fails with an I/O error; the driver must keep to the limits it was told.',
  },
  ERR_BLOCK_READ_ONLY: {
    family: 'peer',
    meaning: 'A driver wrote to a read-only disk.',
    remedy: 'The request fails with an I/O error and nothing is written; mount it read-only.',
  },

  // The peer is wrong: memory.
  ERR_MEMORY_REGION: {
    family: 'peer',
    meaning: 'A memory region is empty, overlaps another, wraps around, or is longer than its file.',
    remedy: 'The message is refused; check the memory table of the front-end.',
  },
  ERR_MEMORY_TRUNCATED: {
    family: 'peer',
    meaning: 'The file behind a memory region was made shorter while in use.',
    remedy: 'The queues that use it are broken; seal the memory file against shrinking (F_SEAL_SHRINK).',
  },

  // The peer is wrong: vhost-user.
  ERR_VHOST_FEATURES: {
    family: 'peer',
    meaning: 'The front-end accepted feature bits that were not offered.',
    remedy: 'The connection is closed; the front-end must accept a subset of what GET_FEATURES told.',
  },
  ERR_VHOST_ORDER: {
    family: 'peer',
    meaning: 'A message came before the one it depends on, or while the queue it changes was running.',
    remedy: 'The connection is closed; the front-end must set memory, size and addresses before the kick.',
  },
  ERR_VHOST_QUEUE_INDEX: {
    family: 'peer',
    meaning: 'A message named a queue that the device does not have.',
    remedy: 'The connection is closed; the front-end must ask GET_QUEUE_NUM.',
  },
  ERR_VHOST_FD: {
    family: 'peer',
    meaning: 'A message came with the wrong number or the wrong kind of file descriptors.',
    remedy: 'The connection is closed and the descriptors are closed; kick, call and error are eventfds.',
  },
  ERR_VHOST_MESSAGE: {
    family: 'peer',
    meaning:
      'What arrived is no vhost-user message: wrong version, reserved flags or a value that is not allowed.',
    remedy: 'The connection is closed; check that the peer speaks vhost-user version 1.',
  },
  ERR_VHOST_SIZE: {
    family: 'peer',
    meaning: 'The payload of a message does not have the size of its request.',
    remedy: 'The connection is closed; look for a bug of the front-end.',
  },
  ERR_VHOST_CONFIG: {
    family: 'peer',
    meaning: 'A write to the configuration space reached past its end.',
    remedy: 'The connection is closed; the space has at most 256 bytes.',
  },
  ERR_VHOST_INFLIGHT: {
    family: 'peer',
    meaning: 'An in-flight region has the wrong size, place or file for the queues.',
    remedy:
      'The connection is closed; the front-end must pass what GET_INFLIGHT_FD answered, for its own queue size.',
  },
  ERR_VHOST_STALLED: {
    family: 'peer',
    meaning: 'The front-end does not read its answers and the socket is full.',
    remedy: 'The connection is closed; the front-end must read each answer before it asks on.',
  },
  ERR_VHOST_BUSY: {
    family: 'peer',
    meaning: 'A second front-end came while one was connected.',
    remedy: 'The second one is refused and the first lives on; give each front-end a socket of its own.',
  },

  // The peer is wrong: a SCSI command.
  ERR_SCSI_REQUEST: {
    family: 'peer',
    meaning: 'A SCSI command was refused: it is malformed, out of range, or its data did not compare.',
    remedy: 'The initiator gets the sense data in `details.sense`; look for what it asked.',
  },

  // The peer is wrong: the TCMU ring.
  ERR_TCMU_MAILBOX: {
    family: 'peer',
    meaning:
      'The mailbox of the TCMU device has another version, or a ring that does not lie in the mapping.',
    remedy: 'The device is not served; hushring needs ABI version 2 and a 64-bit kernel.',
  },
  ERR_TCMU_HEAD: {
    family: 'peer',
    meaning: 'The head of the TCMU command ring is outside the ring, or not at an entry.',
    remedy: 'The device stops and its tail stays; reset the ring (docs/tcmu.md, Recovery).',
  },
  ERR_TCMU_ENTRY: {
    family: 'peer',
    meaning: 'An entry of the TCMU command ring has an impossible length.',
    remedy: 'The device stops and its tail stays; reset the ring (docs/tcmu.md, Recovery).',
  },
  ERR_TCMU_DATA: {
    family: 'peer',
    meaning: 'A TCMU command names data or a CDB outside its place, or more pieces than an entry has.',
    remedy: 'The device stops and its tail stays; reset the ring (docs/tcmu.md, Recovery).',
  },
  ERR_TCMU_COMMAND_ID: {
    family: 'peer',
    meaning: 'A TCMU command has the id 0, or the id of a command that is in flight.',
    remedy: 'The device stops and its tail stays; reset the ring (docs/tcmu.md, Recovery).',
  },
  ERR_TCMU_REMOVED: {
    family: 'peer',
    meaning: 'The TCMU device went away while it was served.',
    remedy: 'What is in flight is aborted; remove a device only after its server was closed.',
  },

  // The medium failed.
  ERR_SCSI_MEDIUM: {
    family: 'medium',
    meaning: 'A SCSI device cannot do what it was asked: not ready, a medium error or a hardware error.',
    remedy: 'The initiator gets the sense data in `details.sense`; the reason is in `cause`.',
  },
  ERR_SCSI_STATUS: {
    family: 'medium',
    meaning: 'A SCSI device answered with a status without sense data, such as BUSY.',
    remedy: 'The initiator gets the status in `details.status`, and usually tries again.',
  },
  ERR_TCMU_SYSTEM: {
    family: 'medium',
    meaning: 'The kernel refused a step in configfs, sysfs or on the UIO device; its error is in `cause`.',
    remedy: 'The message names the file and what was tried; docs/tcmu.md explains the usual reasons.',
  },
  ERR_VHOST_SYSTEM: {
    family: 'medium',
    meaning: 'The operating system refused what a vhost-user message needed; its error is in `cause`.',
    remedy: 'The connection is closed; look at the limits of the process (open files, memory).',
  },
  ERR_STORE_IO: {
    family: 'medium',
    meaning: 'The store reported an error; the operating system error is in `cause`.',
    remedy: 'The request fails with an I/O error; see `cause`.',
  },
  ERR_STORE_SHORT: {
    family: 'medium',
    meaning: 'The store transferred fewer or more bytes than the request has.',
    remedy: 'The request fails with an I/O error; check that the backing file has its full size.',
  },
  ERR_HANDLER_THREW: {
    family: 'medium',
    meaning: 'A handler threw, rejected, or ended its observable with an error.',
    remedy: 'The request fails with an I/O error; the exception is in `cause`.',
  },
  ERR_HANDLER_ANSWER: {
    family: 'medium',
    meaning: 'A handler returned something that is no completion, or an observable that ended without one.',
    remedy: 'The request fails with an I/O error; return io.ok(), io.fail(error) or io.unsupported().',
  },
  ERR_HANDLER_TIMEOUT: {
    family: 'medium',
    meaning: 'A handler did not answer within the deadline of the request.',
    remedy: 'The request fails with an I/O error; a later answer is ignored and counted.',
  },
  ERR_REQUEST_ABORTED: {
    family: 'medium',
    meaning: 'The request was given up because its queue was stopped, reset or closed.',
    remedy: 'Nothing to do: handlers learn it from io.signal.',
  },
} as const satisfies Record<string, ErrorDescription>

/** A stable error code. Match on it, not on `instanceof`: two copies of hushring may be loaded. */
export type ErrorCode = keyof typeof ERROR_CODES

/** An error with a stable code. */
export class HushringError extends Error {
  override readonly name = 'HushringError'
  readonly code: ErrorCode
  readonly family: ErrorFamily
  /** The facts of this occurrence, such as `{ queueIndex, head }`. Plain values, safe to log. */
  readonly details: Readonly<Record<string, unknown>>

  /**
   * @param code the stable code
   * @param message what happened this time; the meaning of the code when left out
   * @param options `cause`: the underlying error; `details`: the facts of this occurrence
   */
  constructor(
    code: ErrorCode,
    message?: string,
    options: { cause?: unknown; details?: Readonly<Record<string, unknown>> } = {},
  ) {
    super(message ?? ERROR_CODES[code].meaning, options.cause === undefined ? {} : { cause: options.cause })
    this.code = code
    this.family = ERROR_CODES[code].family
    this.details = options.details ?? {}
  }
}

/**
 * Makes the error for an option of the wrong type: *expected `name` to be …, got `value`*.
 *
 * @param name the option as the caller wrote it
 * @param expectation what it must be, such as `a function`
 * @param value what was given
 */
export function optionTypeError(
  name: string,
  expectation: string,
  value: unknown,
): TypeError & { code: ErrorCode } {
  return Object.assign(new TypeError(optionMessage(name, expectation, value)), {
    code: 'ERR_OPTION_TYPE' as const,
  })
}

/** Makes the error for an option outside its range. Parameters as {@link optionTypeError}. */
export function optionRangeError(
  name: string,
  expectation: string,
  value: unknown,
): RangeError & { code: ErrorCode } {
  return Object.assign(new RangeError(optionMessage(name, expectation, value)), {
    code: 'ERR_OPTION_RANGE' as const,
  })
}

/** What something that was thrown says. Anything can be thrown, also what has no text or whose text cannot be read. */
export function messageOf(cause: unknown): string {
  try {
    return String(cause instanceof Error ? cause.message : cause)
  } catch {
    return `something that has no text (${typeof cause})`
  }
}

function optionMessage(name: string, expectation: string, value: unknown): string {
  const shown = typeof value === 'string' ? JSON.stringify(value) : String(value)
  return `expected \`${name}\` to be ${expectation}, got \`${shown}\``
}
