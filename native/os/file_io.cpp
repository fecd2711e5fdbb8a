#include "os/file_io.h"

#include <sys/uio.h>

#include <cerrno>

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

}  // namespace

std::int64_t read_at(int fd, std::span<std::byte> target, std::int64_t file_offset_bytes, Wait wait) noexcept {
  return moved(::preadv2, fd, {.iov_base = target.data(), .iov_len = target.size()}, file_offset_bytes, wait);
}

std::int64_t write_at(int fd, std::span<const std::byte> source, std::int64_t file_offset_bytes, Wait wait) noexcept {
  // pwritev2 does not write to its source; iovec knows no const.
  const iovec piece{.iov_base = const_cast<std::byte*>(source.data()), .iov_len = source.size()};
  return moved(::pwritev2, fd, piece, file_offset_bytes, wait);
}

}  // namespace hushring::os
