#include "os/timerfd.h"

#include <sys/timerfd.h>

namespace hushring::os {

Result timerfd_create() noexcept {
  const int fd = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  return fd < 0 ? Result::failed("timerfd_create") : Result::of(fd);
}

Result timerfd_arm(int fd, std::chrono::nanoseconds delay) noexcept {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(delay);
  const itimerspec setting{
      .it_interval = {},
      .it_value = {.tv_sec = seconds.count(), .tv_nsec = (delay - seconds).count()},
  };
  return ::timerfd_settime(fd, 0, &setting, nullptr) < 0 ? Result::failed("timerfd_settime") : Result::of(0);
}

}  // namespace hushring::os
