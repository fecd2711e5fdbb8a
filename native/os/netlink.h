// Sockets of generic netlink (Linux: include/uapi/linux/netlink.h). What is in the messages is not decided here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "os/result.h"

namespace hushring::os {

// A socket for requests to the kernel and for its multicasts; non-blocking and close-on-exec. The caller closes it.
//
// `receive_buffer_bytes` may be above the system's limit where the process may do that (CAP_NET_ADMIN); elsewhere
// the limit holds. A full socket loses messages. It goes on receiving as soon as there is room (NETLINK_NO_ENOBUFS),
// counts what it lost (netlink_lost_count), and lets the sender of a multicast fail with ENOBUFS
// (NETLINK_BROADCAST_ERROR): one that waits for our answer to a lost message would wait for ever.
[[nodiscard]] Result netlink_open(int receive_buffer_bytes) noexcept;

// Receives the multicasts of a group from now on.
[[nodiscard]] Result netlink_join(int fd, std::uint32_t group) noexcept;

// Sends one datagram to the kernel, which has handled it, and queued its answer, before this returns.
[[nodiscard]] Result netlink_send(int fd, std::span<const std::byte> datagram) noexcept;

// Receives one datagram from the kernel. Gives its length, or -1 when none waits. Those of other processes, which
// anybody with the right privileges may send to any netlink socket, are dropped. Fails with EMSGSIZE when it did not
// fit into `target`; it is gone then, and the socket goes on.
[[nodiscard]] Result netlink_receive(int fd, std::span<std::byte> target) noexcept;

// How many datagrams the socket has lost since it was opened, modulo 2^32.
[[nodiscard]] Result netlink_lost_count(int fd, std::uint32_t& count) noexcept;

}  // namespace hushring::os
