// What a system call came to.
#pragma once

#include <cerrno>

namespace hushring::os {

struct Result {
  int value = 0;                  // a file descriptor or a count, when `error` is 0
  int error = 0;                  // errno
  const char* syscall = nullptr;  // what failed with `error`

  [[nodiscard]] static Result of(int value) noexcept { return {.value = value}; }
  // Call it before anything else can change errno.
  [[nodiscard]] static Result failed(const char* syscall) noexcept { return failed(syscall, errno); }
  [[nodiscard]] static Result failed(const char* syscall, int error) noexcept {
    return {.value = -1, .error = error, .syscall = syscall};
  }
};

}  // namespace hushring::os
