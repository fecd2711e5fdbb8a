#include "os/netlink.h"

#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <sys/socket.h>

#include "os/unique_fd.h"

namespace hushring::os {
namespace {

Result set_option(int fd, int level, int name, const auto& value) noexcept {
  if (::setsockopt(fd, level, name, &value, sizeof(value)) < 0) return Result::failed("setsockopt");
  return Result::of(0);
}

}  // namespace

Result netlink_open(int receive_buffer_bytes) noexcept {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_GENERIC));
  if (fd.get() < 0) return Result::failed("socket");
  if (set_option(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes).error != 0) {
    const Result limited = set_option(fd.get(), SOL_SOCKET, SO_RCVBUF, receive_buffer_bytes);
    if (limited.error != 0) return limited;
  }
  constexpr int kOn = 1;
  for (const int option : {NETLINK_NO_ENOBUFS, NETLINK_BROADCAST_ERROR}) {
    if (const Result set = set_option(fd.get(), SOL_NETLINK, option, kOn); set.error != 0) return set;
  }
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0) {
    return Result::failed("bind");
  }
  return Result::of(fd.release());
}

Result netlink_join(int fd, std::uint32_t group) noexcept {
  return set_option(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group);
}

Result netlink_send(int fd, std::span<const std::byte> datagram) noexcept {
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  ssize_t bytes = 0;
  do {
    bytes = ::sendto(fd, datagram.data(), datagram.size(), MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&kernel),
                     sizeof(kernel));
  } while (bytes < 0 && errno == EINTR);
  return bytes < 0 ? Result::failed("sendto") : Result::of(static_cast<int>(bytes));
}

Result netlink_receive(int fd, std::span<std::byte> target) noexcept {
  for (;;) {
    sockaddr_nl sender{};
    socklen_t sender_bytes = sizeof(sender);
    // MSG_TRUNC: the length of the datagram, not of what there was room for.
    const ssize_t bytes = ::recvfrom(fd, target.data(), target.size(), MSG_DONTWAIT | MSG_TRUNC,
                                     reinterpret_cast<sockaddr*>(&sender), &sender_bytes);
    if (bytes < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN ? Result::of(-1) : Result::failed("recvfrom");
    }
    if (sender_bytes != sizeof(sender) || sender.nl_family != AF_NETLINK || sender.nl_pid != 0) continue;
    if (static_cast<std::size_t>(bytes) > target.size()) return Result::failed("recvfrom", EMSGSIZE);
    return Result::of(static_cast<int>(bytes));
  }
}

Result netlink_lost_count(int fd, std::uint32_t& count) noexcept {
  std::uint32_t info[SK_MEMINFO_VARS] = {};
  socklen_t info_bytes = sizeof(info);
  if (::getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &info_bytes) < 0) return Result::failed("getsockopt");
  count = info[SK_MEMINFO_DROPS];
  return Result::of(0);
}

}  // namespace hushring::os
