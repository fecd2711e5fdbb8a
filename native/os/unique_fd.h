// A file descriptor with one owner.
#pragma once

#include <unistd.h>

#include <utility>

namespace hushring::os {

class UniqueFd {
 public:
  UniqueFd() noexcept = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    reset(other.release());
    return *this;
  }
  ~UniqueFd() { reset(); }

  // -1 when there is none.
  [[nodiscard]] int get() const noexcept { return fd_; }
  // The caller owns it now.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }
  void reset(int fd = -1) noexcept {
    // Not repeated after EINTR: on Linux the descriptor is gone whatever close() returns.
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace hushring::os
