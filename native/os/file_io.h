// Reads and writes of files that do not wait: what the page cache has, at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hushring::os {

enum class Wait : bool {
  kNever,    // EAGAIN instead of waiting for a device, EOPNOTSUPP where the file system cannot promise that
  kAllowed,  // for a file in memory, which has nothing to wait for
};

// preadv2 and pwritev2 of one piece at `file_offset_bytes`. The bytes that were moved, fewer than asked for at the end
// of the file or where the rest would have to wait; or minus an errno, EINVAL for an offset below 0. A signal does not
// interrupt it.
[[nodiscard]] std::int64_t read_at(int fd, std::span<std::byte> target, std::int64_t file_offset_bytes,
                                   Wait wait) noexcept;
[[nodiscard]] std::int64_t write_at(int fd, std::span<const std::byte> source, std::int64_t file_offset_bytes,
                                    Wait wait) noexcept;

// What addresses and lengths of memory must be multiples of for transfers of a file opened with O_DIRECT: as the kernel
// says (statx with STATX_DIOALIGN, Linux 6.1), and where it does not say, a page of 4096 bytes, which is enough anywhere.
[[nodiscard]] std::size_t direct_alignment(int fd) noexcept;

}  // namespace hushring::os
