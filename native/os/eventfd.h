// The doorbell as the kernel makes it. No function here waits, keeps an fd or closes one it was given.
#pragma once

#include <cstdint>

#include "os/result.h"

namespace hushring::os {

// A new eventfd: counter 0, non-blocking, close-on-exec. The caller closes it.
[[nodiscard]] Result eventfd_create() noexcept;

// True iff `fd` is an eventfd: not a file, a pipe, a socket or closed.
[[nodiscard]] bool is_eventfd(int fd) noexcept;

// Sets O_NONBLOCK on the open file behind `fd`, which is shared with everybody who has it.
Result set_non_blocking(int fd) noexcept;

// Adds 1 to the counter. A full counter is already signalled, which is success. The result may be ignored: a
// device has nobody to tell.
Result eventfd_signal(int fd) noexcept;

struct Drained {
  std::uint64_t count;  // what the counter was; it is 0 now
  int error;            // errno when the fd can never be read: EPIPE at the end of a pipe, EINVAL for no eventfd
};
// Reads and resets the counter. Works on a timerfd too, where the count is of expirations.
[[nodiscard]] Drained eventfd_read(int fd) noexcept;

// The same for those who do not care why there is nothing.
inline std::uint64_t eventfd_drain(int fd) noexcept { return eventfd_read(fd).count; }

}  // namespace hushring::os
