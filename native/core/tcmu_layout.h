// The region that target_core_user shares with its device, as it lies in memory (include/uapi/linux/
// target_core_user.h, ABI version 2): mailbox, command ring, data area. Native endianness and 64-bit kernels only:
// an iovec of a 32-bit kernel has another layout. Names are the kernel's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hushring {

// struct tcmu_mailbox. `cmd_tail` is ours and lies on a cache line of its own; everything else is the kernel's.
struct TcmuMailbox {
  std::uint16_t version;
  std::uint16_t flags;
  std::uint32_t cmdr_off;   // where the ring begins, from the start of the mapping
  std::uint32_t cmdr_size;  // bytes; no power of two
  std::uint32_t cmd_head;   // next entry the kernel writes: an offset within the ring, a multiple of 8
  alignas(64) std::uint32_t cmd_tail;
};
static_assert(offsetof(TcmuMailbox, cmdr_off) == 4 && offsetof(TcmuMailbox, cmdr_size) == 8 &&
              offsetof(TcmuMailbox, cmd_head) == 12 && offsetof(TcmuMailbox, cmd_tail) == 64 &&
              sizeof(TcmuMailbox) == 128);

inline constexpr std::uint16_t kTcmuVersion = 2;

// TcmuMailbox::flags: what this kernel can do.
inline constexpr std::uint16_t kTcmuOutOfOrder = 1;      // TCMU_MAILBOX_FLAG_CAP_OOOC
inline constexpr std::uint16_t kTcmuReadLength = 2;      // TCMU_MAILBOX_FLAG_CAP_READ_LEN
inline constexpr std::uint16_t kTcmuTaskManagement = 4;  // TCMU_MAILBOX_FLAG_CAP_TMR
inline constexpr std::uint16_t kTcmuKeepBuffer = 8;      // TCMU_MAILBOX_FLAG_CAP_KEEP_BUF

// struct tcmu_cmd_entry_hdr. The low three bits of `len_op` are the opcode, the others the length of the whole entry
// in bytes, which is a multiple of 8.
struct TcmuEntryHeader {
  std::uint32_t len_op;
  std::uint16_t cmd_id;
  std::uint8_t kflags;
  std::uint8_t uflags;
};
static_assert(sizeof(TcmuEntryHeader) == 8 && offsetof(TcmuEntryHeader, cmd_id) == 4 &&
              offsetof(TcmuEntryHeader, uflags) == 7);

inline constexpr std::uint32_t kTcmuEntryAlign = 8;
inline constexpr std::uint32_t kTcmuOpcodeMask = 7;
inline constexpr std::uint32_t kTcmuPad = 0;      // TCMU_OP_PAD
inline constexpr std::uint32_t kTcmuCommand = 1;  // TCMU_OP_CMD
inline constexpr std::uint32_t kTcmuTmr = 2;      // TCMU_OP_TMR

// TcmuEntryHeader::uflags
inline constexpr std::uint8_t kTcmuUnknownOp = 1;      // TCMU_UFLAG_UNKNOWN_OP
inline constexpr std::uint8_t kTcmuReadLengthValid = 2;  // TCMU_UFLAG_READ_LEN
inline constexpr std::uint8_t kTcmuBufferKept = 4;     // TCMU_UFLAG_KEEP_BUF

// struct iovec, with an offset from the start of the mapping in the place of the address.
struct TcmuIovec {
  std::uint64_t iov_base;
  std::uint64_t iov_len;
};
static_assert(sizeof(TcmuIovec) == 16);

// struct tcmu_cmd_entry as the kernel writes it. iov_cnt vectors follow it, and after them iov_bidi_cnt more.
struct TcmuCommandEntry {
  TcmuEntryHeader hdr;
  std::uint32_t iov_cnt;
  std::uint32_t iov_bidi_cnt;
  std::uint32_t iov_dif_cnt;  // always 0
  std::uint32_t hole;
  std::uint64_t cdb_off;  // from the start of the mapping
  std::uint64_t pad1;
  std::uint64_t pad2;
};
static_assert(sizeof(TcmuCommandEntry) == 48 && offsetof(TcmuCommandEntry, iov_cnt) == 8 &&
              offsetof(TcmuCommandEntry, iov_bidi_cnt) == 12 && offsetof(TcmuCommandEntry, cdb_off) == 24);

inline constexpr std::size_t kTcmuSenseBytes = 96;  // TCMU_SENSE_BUFFERSIZE

// The same bytes as we answer. It covers iov_cnt, cdb_off and the first four iovecs of whichever command had the slot.
struct TcmuResponseEntry {
  TcmuEntryHeader hdr;
  std::uint8_t scsi_status;
  std::uint8_t pad1;
  std::uint16_t pad2;
  std::uint32_t read_len;
  std::byte sense_buffer[kTcmuSenseBytes];
};
static_assert(sizeof(TcmuResponseEntry) == 112 && offsetof(TcmuResponseEntry, scsi_status) == 8 &&
              offsetof(TcmuResponseEntry, read_len) == 12 && offsetof(TcmuResponseEntry, sense_buffer) == 16);

// The shortest command entry: room for the answer.
inline constexpr std::uint32_t kTcmuCommandBytesMin = sizeof(TcmuResponseEntry);

// struct tcmu_tmr_entry. cmd_cnt ids of 16 bits follow it.
struct TcmuTmrEntry {
  TcmuEntryHeader hdr;
  std::uint8_t tmr_type;
  std::uint8_t pad1;
  std::uint16_t pad2;
  std::uint32_t cmd_cnt;
  std::uint64_t pad3;
  std::uint64_t pad4;
};
static_assert(sizeof(TcmuTmrEntry) == 32 && offsetof(TcmuTmrEntry, tmr_type) == 8 &&
              offsetof(TcmuTmrEntry, cmd_cnt) == 12);

// Bytes of a CDB by its first byte: the group, or for a variable-length CDB what its byte 7 says (SPC-4, 4.2.5).
// 0 for a group that has no length of its own (0x60 to 0x7e, vendor specific from 0xc0 on).
[[nodiscard]] constexpr std::uint32_t cdb_bytes_of(std::uint8_t opcode, std::uint8_t additional) noexcept {
  if (opcode < 0x20) return 6;
  if (opcode < 0x60) return 10;
  if (opcode == 0x7f) return std::uint32_t{additional} + 8;
  if (opcode >= 0x80 && opcode < 0xa0) return 16;
  if (opcode >= 0xa0 && opcode < 0xc0) return 12;
  return 0;
}

// The longest CDB (variable length: 8 bytes and up to 255 more, rounded up to words).
inline constexpr std::uint32_t kCdbBytesMax = 264;

}  // namespace hushring
