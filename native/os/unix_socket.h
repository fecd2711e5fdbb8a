// Unix stream sockets that carry file descriptors. Everything is non-blocking and close-on-exec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "os/result.h"
#include "os/unique_fd.h"

namespace hushring::os {

// Most descriptors one message may bring along. vhost-user needs 8, the kernel allows 253.
inline constexpr std::size_t kReceivedFdsMax = 64;

// A socket that listens at exactly `path`. Nobody the mode does not allow can connect at any moment. The caller
// closes it and removes the path.
[[nodiscard]] Result unix_listen(const std::string& path, unsigned mode, int backlog) noexcept;

// A socket connected to `path`. Waits while the listener's backlog is full. The caller closes it.
[[nodiscard]] Result unix_connect(const std::string& path) noexcept;

// Whether `fd` is a Unix stream socket that listens: one from which connections can be accepted.
[[nodiscard]] bool unix_is_listening(int fd) noexcept;

// The next connection, or -1 when none waits. The caller closes it.
[[nodiscard]] Result unix_accept(int listen_fd) noexcept;

// The process on the other side of a connected socket: for one that connected, whoever listened (SO_PEERCRED).
[[nodiscard]] Result unix_peer_pid(int fd) noexcept;

struct Received {
  Result bytes;               // how many; -1 without an error: nothing there yet; 0: end of stream
  std::vector<UniqueFd> fds;  // those that came with the bytes
};
// Receives into `target`. Fails with EMSGSIZE, all descriptors closed, when some were lost on the way: more than
// kReceivedFdsMax, or more than this process may have open.
[[nodiscard]] Received unix_receive(int fd, std::span<std::byte> target);

// Sends `bytes` with `fds` attached to the first. Gives how many bytes were sent: fewer than asked when the socket
// is full or failed on the way, -1 without an error when it was full from the start.
[[nodiscard]] Result unix_send(int fd, std::span<const std::byte> bytes, std::span<const int> fds);

}  // namespace hushring::os
