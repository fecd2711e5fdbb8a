#include "os/eventfd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

namespace hushring::os {

Result eventfd_create() noexcept {
  const int fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  return fd < 0 ? Result::failed("eventfd") : Result::of(fd);
}

bool is_eventfd(int fd) noexcept {
  // No system call tells the kind of an anonymous file, but its name in /proc does. A file that is merely called
  // like this has a path with a slash.
  constexpr std::string_view kFolder = "/proc/self/fd/";
  constexpr std::string_view kName = "anon_inode:[eventfd]";
  char path[kFolder.size() + 16] = {};
  std::memcpy(path, kFolder.data(), kFolder.size());
  std::to_chars(path + kFolder.size(), path + sizeof(path) - 1, fd);
  char name[kName.size() + 1];
  const ssize_t length = ::readlink(path, name, sizeof(name));
  return length >= 0 && std::string_view(name, static_cast<std::size_t>(length)) == kName;
}

Result set_non_blocking(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ((flags & O_NONBLOCK) == 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)) {
    return Result::failed("fcntl");
  }
  return Result::of(0);
}

// A write to a full counter waits unless the open file is non-blocking; no write can be told not to, as a read can.
// The open file is shared with the peer, who could take O_NONBLOCK away and fill the counter, and so stop this
// thread with every device it serves. So the flag is looked at before each signal and put back when it is gone: one
// short system call more, and cheaper than poll(), which would leave the same gap. The gap: a peer that does both
// between these two calls makes the write wait until somebody reads the counter. Linux has nothing that closes it.
Result eventfd_signal(int fd) noexcept {
  const Result ready = set_non_blocking(fd);
  if (ready.error != 0) return ready;
  constexpr std::uint64_t kOnce = 1;
  for (;;) {
    if (::write(fd, &kOnce, sizeof(kOnce)) >= 0 || errno == EAGAIN) return Result::of(0);
    if (errno != EINTR) return Result::failed("write");
  }
}

Drained eventfd_read(int fd) noexcept {
  std::uint64_t count = 0;
  const iovec target{.iov_base = &count, .iov_len = sizeof(count)};
  for (;;) {
    // RWF_NOWAIT never waits, whatever the peer does to the flags of the open file. Offset -1: the file has none.
    ssize_t length = ::preadv2(fd, &target, 1, -1, RWF_NOWAIT);
    // Linux before 5.8, and timerfds for longer, know no RWF_NOWAIT. Then the flag of the open file has to do.
    if (length < 0 && errno == EOPNOTSUPP && set_non_blocking(fd).error == 0) {
      length = ::read(fd, &count, sizeof(count));
    }
    if (length == sizeof(count)) return {.count = count, .error = 0};
    if (length == 0) return {.count = 0, .error = EPIPE};
    if (length > 0) return {.count = 0, .error = EINVAL};
    if (errno == EAGAIN) return {.count = 0, .error = 0};
    if (errno != EINTR) return {.count = 0, .error = errno};
  }
}

}  // namespace hushring::os
