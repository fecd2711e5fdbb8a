// A one-shot timer as a file descriptor, read like an eventfd.
#pragma once

#include <chrono>

#include "os/result.h"

namespace hushring::os {

// A new timer on the monotonic clock: disarmed, non-blocking, close-on-exec. The caller closes it.
[[nodiscard]] Result timerfd_create() noexcept;

// Arms the timer once, `delay` from now, and forgets an expiration that was not read yet. Zero disarms it.
[[nodiscard]] Result timerfd_arm(int fd, std::chrono::nanoseconds delay) noexcept;

}  // namespace hushring::os
