#include "os/file_io.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

namespace hushring::os {
namespace {

// `call` is preadv2 or pwritev2.
template <class Call>
std::int64_t moved(Call call, int fd, const iovec& piece, std::int64_t file_offset_bytes, Wait wait) noexcept {
  // For the kernel -1 is the place where the last read of somebody ended, not a wrong one.
  if (file_offset_bytes < 0) return -EINVAL;
  const int flags = wait == Wait::kNever ? RWF_NOWAIT : 0;
  for (;;) {
    const ssize_t length = call(fd, &piece, 1, file_offset_bytes, flags);
    if (length >= 0) return length;
    if (errno != EINTR) return -errno;
  }
}

// Of struct statx, which headers before Linux 6.1 do not have whole.
constexpr unsigned kStatxDirectAlignment = 0x2000;
constexpr std::size_t kStatxBytes = 256;
constexpr std::size_t kStatxMemoryAlignmentAt = 0x98;
constexpr std::size_t kPageBytes = 4096;

}  // namespace

std::size_t direct_alignment(int fd) noexcept {
  std::array<std::byte, kStatxBytes> status{};
  if (::syscall(SYS_statx, fd, "", AT_EMPTY_PATH, kStatxDirectAlignment, status.data()) != 0) return kPageBytes;
  std::uint32_t mask = 0;
  std::uint32_t alignment = 0;
  std::memcpy(&mask, status.data(), sizeof(mask));
  std::memcpy(&alignment, status.data() + kStatxMemoryAlignmentAt, sizeof(alignment));
  return (mask & kStatxDirectAlignment) != 0 && std::has_single_bit(alignment) ? alignment : kPageBytes;
}

std::int64_t read_at(int fd, std::span<std::byte> target, std::int64_t file_offset_bytes, Wait wait) noexcept {
  return moved(::preadv2, fd, {.iov_base = target.data(), .iov_len = target.size()}, file_offset_bytes, wait);
}

std::int64_t write_at(int fd, std::span<const std::byte> source, std::int64_t file_offset_bytes, Wait wait) noexcept {
  // pwritev2 does not write to its source; iovec knows no const.
  const iovec piece{.iov_base = const_cast<std::byte*>(source.data()), .iov_len = source.size()};
  return moved(::pwritev2, fd, piece, file_offset_bytes, wait);
}

}  // namespace hushring::os
