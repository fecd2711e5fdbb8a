// A thread that this process makes beside those of Node.
#pragma once

#include <pthread.h>

#include <functional>

namespace hushring::os {

class Thread {
 public:
  Thread() noexcept = default;
  ~Thread() { join(); }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  // Runs `body` on a new thread, once. 0 or an errno.
  [[nodiscard]] int start(std::function<void()> body);
  // Waits for the end of `body`, if it was started. Calling it again does nothing.
  void join() noexcept;

 private:
  std::function<void()> body_;
  pthread_t thread_{};
  bool joinable_ = false;
};

}  // namespace hushring::os
