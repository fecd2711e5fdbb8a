#include "os/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

#include "os/eventfd.h"

namespace hushring::os {
namespace {

// 0, or the errno that says why `path` is no address: a NUL byte would end it early or, as the first byte or with
// nothing else, name a socket that is in no folder at all.
int fill_address(const std::string& path, sockaddr_un& address) noexcept {
  if (path.empty() || path.find('\0') != std::string::npos) return EINVAL;
  if (path.size() >= sizeof(address.sun_path)) return ENAMETOOLONG;
  address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return 0;
}

const sockaddr* generic(const sockaddr_un& address) noexcept { return reinterpret_cast<const sockaddr*>(&address); }

// Gives the socket at `address` the mode and lets it listen.
Result open_for_business(int fd, const sockaddr_un& address, unsigned mode, int backlog) noexcept {
  // The path, never what a symbolic link in its place points to.
  if (::fchmodat(AT_FDCWD, address.sun_path, mode, AT_SYMLINK_NOFOLLOW) < 0) return Result::failed("chmod");
  if (::listen(fd, backlog) < 0) return Result::failed("listen");
  return Result::of(fd);
}

}  // namespace

Result unix_listen(const std::string& path, unsigned mode, int backlog) noexcept {
  sockaddr_un address;
  if (const int error = fill_address(path, address); error != 0) return Result::failed("bind", error);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return Result::failed("socket");
  // bind() makes the path with the mode of the socket, less the umask: never with more than `mode`. Setting the
  // umask instead would change what other threads create meanwhile. What the umask took away is given back before
  // listen(), and before that nobody can connect.
  if (::fchmod(fd.get(), mode) < 0) return Result::failed("fchmod");
  if (::bind(fd.get(), generic(address), sizeof(address)) < 0) return Result::failed("bind");
  const Result listening = open_for_business(fd.get(), address, mode, backlog);
  if (listening.error != 0) {
    ::unlink(address.sun_path);
  } else {
    static_cast<void>(fd.release());
  }
  return listening;
}

Result unix_connect(const std::string& path) noexcept {
  sockaddr_un address;
  if (const int error = fill_address(path, address); error != 0) return Result::failed("connect", error);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return Result::failed("socket");
  while (::connect(fd.get(), generic(address), sizeof(address)) < 0) {
    if (errno != EINTR) return Result::failed("connect");
  }
  if (const Result ready = set_non_blocking(fd.get()); ready.error != 0) return ready;
  return Result::of(fd.release());
}

bool unix_is_listening(int fd) noexcept {
  const auto option_is = [fd](int option, int expected) {
    int value = 0;
    socklen_t length = sizeof(value);
    return ::getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 && value == expected;
  };
  return option_is(SO_DOMAIN, AF_UNIX) && option_is(SO_TYPE, SOCK_STREAM) && option_is(SO_ACCEPTCONN, 1);
}

Result unix_peer_pid(int fd) noexcept {
  ucred credentials{};
  socklen_t length_bytes = sizeof(credentials);
  const int error = ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length_bytes);
  return error == 0 ? Result::of(credentials.pid) : Result::failed("getsockopt");
}

Result unix_accept(int listen_fd) noexcept {
  // A listener that was handed to us (systemd) may still be a blocking one.
  if (const Result ready = set_non_blocking(listen_fd); ready.error != 0) return ready;
  for (;;) {
    const int fd = ::accept4(listen_fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) return Result::of(fd);
    if (errno == EAGAIN) return Result::of(-1);
    // ECONNABORTED: that one is gone, there may be another.
    if (errno != EINTR && errno != ECONNABORTED) return Result::failed("accept");
  }
}

Received unix_receive(int fd, std::span<std::byte> target) {
  iovec part{.iov_base = target.data(), .iov_len = target.size()};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int) * kReceivedFdsMax)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t bytes = 0;
  do {
    bytes = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (bytes < 0 && errno == EINTR);
  if (bytes < 0) return {.bytes = errno == EAGAIN ? Result::of(-1) : Result::failed("recvmsg"), .fds = {}};

  Received received{.bytes = Result::of(static_cast<int>(bytes)), .fds = {}};
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t index = 0; index < count; ++index) {
      int received_fd = -1;
      std::memcpy(&received_fd, CMSG_DATA(header) + index * sizeof(int), sizeof(int));
      received.fds.emplace_back(received_fd);
    }
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0) return {.bytes = Result::failed("recvmsg", EMSGSIZE), .fds = {}};
  return received;
}

Result unix_send(int fd, std::span<const std::byte> bytes, std::span<const int> fds) {
  std::vector<std::byte> control(fds.empty() ? 0 : CMSG_SPACE(fds.size_bytes()));
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    iovec part{.iov_base = const_cast<std::byte*>(bytes.data() + sent), .iov_len = bytes.size() - sent};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (sent == 0 && !fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* const header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
    }
    const ssize_t count = ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) {
      sent += static_cast<std::size_t>(count);
    } else if (errno != EINTR) {
      // What was sent counts; the next call meets the error again.
      if (sent > 0) break;
      return errno == EAGAIN ? Result::of(-1) : Result::failed("sendmsg");
    }
  }
  return Result::of(static_cast<int>(sent));
}

}  // namespace hushring::os
