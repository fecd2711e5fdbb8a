#include "os/thread.h"

#include <signal.h>

#include <utility>

namespace hushring::os {

int Thread::start(std::function<void()> body) {
  body_ = std::move(body);
  const auto run = [](void* self) -> void* {
    static_cast<Thread*>(self)->body_();
    return nullptr;
  };
  // The thread inherits the mask. Signals to the process are for its other threads; those that an access of its own
  // raises must reach it, SIGBUS above all, which the guard answers (sigbus_guard.h).
  sigset_t others;
  sigset_t before;
  sigfillset(&others);
  for (const int own : {SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP}) sigdelset(&others, own);
  pthread_sigmask(SIG_SETMASK, &others, &before);
  const int error = pthread_create(&thread_, nullptr, run, this);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  joinable_ = error == 0;
  return error;
}

void Thread::join() noexcept {
  if (std::exchange(joinable_, false)) pthread_join(thread_, nullptr);
}

}  // namespace hushring::os
