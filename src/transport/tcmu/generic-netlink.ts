import { constants } from 'node:os'
import { HushringError } from '../../errors.ts'
import { native } from '../../native.ts'

/*
 * Messages of generic netlink (Linux: include/uapi/linux/netlink.h and genetlink.h):
 *
 *   0  u32 length   4  u16 type   6  u16 flags   8  u32 sequence   12  u32 port     every message
 *   16 u8 command   17 u8 version   18 u16 reserved                                 if the type is a family
 *   20 attributes: u16 length, u16 type, value, padding to 4 bytes
 *
 * Numbers are in the host's byte order; hushring runs on little-endian hosts only. A datagram holds one message or more.
 */

const HEADER_BYTES = 16
const GENERIC_HEADER_BYTES = HEADER_BYTES + 4
const ATTRIBUTE_HEADER_BYTES = 4
/** The two highest bits of an attribute's type are flags. */
const ATTRIBUTE_TYPE_MASK = 0x3fff
/** Types below this one are control messages; the rest are families. */
const FAMILY_ID_MIN = 0x10
const ERROR_TYPE = 2
const REQUEST_FLAG = 1
const ACK_FLAG = 4

/** Attributes by type. Where one came twice, the last counts, as in the kernel. */
export type Attributes = ReadonlyMap<number, Buffer>

/** A message of a family. */
export interface FamilyMessage {
  readonly kind: 'family'
  readonly family: number
  readonly command: number
  readonly version: number
  /** Of the request that this answers; 0 in a multicast. */
  readonly sequence: number
  readonly attributes: Attributes
}

/** How a request with {@link GenericRequest.sequence} ended. */
export interface Acknowledgement {
  readonly kind: 'acknowledgement'
  readonly sequence: number
  /** 0, or a positive errno. */
  readonly errno: number
}

export type NetlinkMessage = FamilyMessage | Acknowledgement

/**
 * The messages of one datagram, one after the other; control messages other than acknowledgements are left out. Throws
 * `ERR_TCMU_SYSTEM` at the first one that is malformed.
 */
export function* decodeDatagram(datagram: Buffer): Generator<NetlinkMessage, void> {
  for (let rest = datagram; rest.length > 0; ) {
    const lengthBytes = rest.length < HEADER_BYTES ? 0 : rest.readUInt32LE(0)
    if (lengthBytes < HEADER_BYTES || lengthBytes > rest.length) throw malformed('a message')
    const message = decodeMessage(rest.subarray(0, lengthBytes))
    if (message !== undefined) yield message
    rest = rest.subarray(aligned(lengthBytes))
  }
}

/** @param bytes exactly one message */
function decodeMessage(bytes: Buffer): NetlinkMessage | undefined {
  const type = bytes.readUInt16LE(4)
  const sequence = bytes.readUInt32LE(8)
  if (type === ERROR_TYPE) {
    if (bytes.length < HEADER_BYTES + 4) throw malformed('an acknowledgement')
    return { kind: 'acknowledgement', sequence, errno: Math.abs(bytes.readInt32LE(HEADER_BYTES)) }
  }
  if (type < FAMILY_ID_MIN) return undefined
  if (bytes.length < GENERIC_HEADER_BYTES) throw malformed('a message of a family')
  const attributes = decodeAttributes(bytes.subarray(GENERIC_HEADER_BYTES))
  const [command, version] = [bytes.readUInt8(16), bytes.readUInt8(17)]
  return { kind: 'family', family: type, command, version, sequence, attributes }
}

/**
 * Decodes a run of attributes: those of a message, or those nested in one attribute.
 *
 * @returns views of `bytes`. Throws `ERR_TCMU_SYSTEM` when a length does not fit.
 */
function decodeAttributes(bytes: Buffer): Attributes {
  const attributes = new Map<number, Buffer>()
  for (let rest = bytes; rest.length > 0; ) {
    const lengthBytes = rest.length < ATTRIBUTE_HEADER_BYTES ? 0 : rest.readUInt16LE(0)
    if (lengthBytes < ATTRIBUTE_HEADER_BYTES || lengthBytes > rest.length) throw malformed('an attribute')
    const type = rest.readUInt16LE(2) & ATTRIBUTE_TYPE_MASK
    attributes.set(type, rest.subarray(ATTRIBUTE_HEADER_BYTES, lengthBytes))
    rest = rest.subarray(aligned(lengthBytes))
  }
  return attributes
}

/** The text of an attribute, which ends with its only NUL byte; undefined when the attribute is not there. */
export function textOf(attributes: Attributes, type: number): string | undefined {
  const value = attributes.get(type)
  if (value === undefined) return undefined
  if (value.length === 0 || value.indexOf(0) !== value.length - 1) {
    throw malformed(`the text of attribute ${type}`)
  }
  return value.toString('utf8', 0, value.length - 1)
}

/**
 * The number in an attribute of `lengthBytes` bytes, without sign; undefined when the attribute is not there. One above
 * 2^53 - 1 counts as malformed.
 */
export function numberOf(
  attributes: Attributes,
  type: number,
  lengthBytes: 1 | 2 | 4 | 8,
): number | undefined {
  const value = attributes.get(type)
  if (value === undefined) return undefined
  const number = value.reduceRight((higher, byte) => higher * 256 + byte, 0)
  if (value.length === lengthBytes && Number.isSafeInteger(number)) return number
  throw malformed(`the number of attribute ${type}`)
}

/** The attributes nested in an attribute; none when it is not there. */
export function nestedOf(attributes: Attributes, type: number): Attributes {
  return decodeAttributes(attributes.get(type) ?? Buffer.alloc(0))
}

function malformed(what: string): HushringError {
  return new HushringError('ERR_TCMU_SYSTEM', `netlink: ${what} is malformed`)
}

/** A message to a family. */
export interface GenericRequest {
  readonly family: number
  readonly command: number
  readonly version: number
  /** Comes back in the answer. */
  readonly sequence: number
  /** Whether the kernel acknowledges it; a refusal is told in any case. */
  readonly acknowledge: boolean
  readonly attributes: readonly (readonly [type: number, value: Buffer])[]
}

/** Encodes a message to a family. */
export function encodeRequest(request: GenericRequest): Buffer {
  const attributes = request.attributes.map(([type, value]) => {
    const attribute = Buffer.alloc(aligned(ATTRIBUTE_HEADER_BYTES + value.length))
    attribute.writeUInt16LE(ATTRIBUTE_HEADER_BYTES + value.length, 0)
    attribute.writeUInt16LE(type, 2)
    attribute.set(value, ATTRIBUTE_HEADER_BYTES)
    return attribute
  })
  const header = Buffer.alloc(GENERIC_HEADER_BYTES)
  const message = Buffer.concat([header, ...attributes])
  message.writeUInt32LE(message.length, 0)
  message.writeUInt16LE(request.family, 4)
  message.writeUInt16LE(REQUEST_FLAG | (request.acknowledge ? ACK_FLAG : 0), 6)
  message.writeUInt32LE(request.sequence, 8)
  message.writeUInt8(request.command, 16)
  message.writeUInt8(request.version, 17)
  return message
}

function aligned(lengthBytes: number): number {
  return (lengthBytes + 3) & ~3
}

// ---- The socket --------------------------------------------------------------------------------------------------

/** A socket to the kernel's families. Its calls throw as node:fs does, with the `code` of the operating system. */
export interface NetlinkSocket {
  join(group: number): void
  /** Sends to the kernel, which has handled the message when this returns. */
  send(message: Uint8Array): void
  /** The next datagram; undefined when none waits. */
  receive(): Buffer | undefined
  /** Datagrams lost for want of room so far. */
  readonly lostCount: number
  /** Calls `onReadable` when there may be a datagram; with a negative errno when there will never be one again. */
  watch(onReadable: (error: number) => void): { close(): void }
  close(): void
}

/** Room for some ten thousand events: a lost one fails the operation that it is about. */
const RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024
/** The kernel makes no longer messages on its own account. */
const DATAGRAM_BYTES_MAX = 32 * 1024

/** Opens a socket; close it when done. */
export function openNetlinkSocket(receiveBufferBytes = RECEIVE_BUFFER_BYTES): NetlinkSocket {
  const fd = native.netlinkOpen(receiveBufferBytes)
  const target = Buffer.alloc(DATAGRAM_BYTES_MAX)
  return {
    join: (group) => native.netlinkJoin(fd, group),
    send: (message) => {
      native.netlinkSend(fd, message)
    },
    receive: () => {
      const lengthBytes = native.netlinkReceive(fd, target)
      // A copy: what is decoded from it outlives the next one.
      return lengthBytes < 0 ? undefined : Buffer.from(target.subarray(0, lengthBytes))
    },
    get lostCount() {
      return native.netlinkLostCount(fd)
    },
    watch: (onReadable) => native.watchReadable(fd, false, onReadable),
    close: () => native.closeFd(fd),
  }
}

// ---- Families ----------------------------------------------------------------------------------------------------

const { ENOENT } = constants.errno

/** The family that knows all others. */
const CONTROLLER = { id: 0x10, version: 1, getFamily: 3 } as const
const ControllerAttribute = { familyId: 1, familyName: 2, multicastGroups: 7 } as const
const GroupAttribute = { name: 1, id: 2 } as const

/** A family as this kernel numbers it. */
export interface Family {
  readonly id: number
  /** Numbers of its multicast groups by name. */
  readonly groups: ReadonlyMap<string, number>
}

/**
 * Asks the kernel for a family. Call it before joining a group: what else arrives meanwhile is dropped.
 *
 * @returns undefined when there is none of that name. Throws `ERR_TCMU_SYSTEM` when the kernel does not answer or refuses
 * to.
 */
export function resolveFamily(socket: NetlinkSocket, name: string): Family | undefined {
  const sequence = 1
  socket.send(
    encodeRequest({
      family: CONTROLLER.id,
      command: CONTROLLER.getFamily,
      version: CONTROLLER.version,
      sequence,
      acknowledge: false,
      attributes: [[ControllerAttribute.familyName, Buffer.from(`${name}\0`)]],
    }),
  )
  for (let datagram = socket.receive(); datagram !== undefined; datagram = socket.receive()) {
    for (const message of decodeDatagram(datagram)) {
      if (message.sequence !== sequence) continue
      if (message.kind === 'family') return decodeFamily(message.attributes)
      // Only refused requests are acknowledged.
      if (message.errno === ENOENT) return undefined
      throw new HushringError(
        'ERR_TCMU_SYSTEM',
        `netlink: the kernel refuses to tell of ${name}: errno ${message.errno}`,
        { details: { errno: message.errno } },
      )
    }
  }
  throw new HushringError('ERR_TCMU_SYSTEM', `netlink: the kernel does not answer about the family ${name}`)
}

function decodeFamily(attributes: Attributes): Family {
  const id = numberOf(attributes, ControllerAttribute.familyId, 2)
  if (id === undefined) throw malformed('the description of a family')
  const groups = new Map<string, number>()
  const list = nestedOf(attributes, ControllerAttribute.multicastGroups)
  for (const index of list.keys()) {
    const group = nestedOf(list, index)
    const name = textOf(group, GroupAttribute.name)
    const number = numberOf(group, GroupAttribute.id, 4)
    if (name !== undefined && number !== undefined) groups.set(name, number)
  }
  return { id, groups }
}
