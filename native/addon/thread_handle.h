// A native thread that JavaScript starts and ends: the driver thread, a litmus test.
//
// Ownership: the functions of its JavaScript object and the ArrayBuffer of its counters hold the handle. While it runs,
// the environment holds it too: a worker that is terminated stops the thread and waits for it, so that the thread never
// outlives what it uses.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "addon/errors.h"

namespace hushring {

// `Thread` has int run(std::function<void()> on_done), void close(), and counters().
template <class Thread>
class ThreadHandle : public std::enable_shared_from_this<ThreadHandle<Thread>> {
 public:
  // `what` it is, for messages.
  ThreadHandle(std::unique_ptr<Thread> thread, const char* what) : thread_(std::move(thread)), what_(what) {}

  [[nodiscard]] Thread& thread() noexcept { return *thread_; }

  void run(Napi::Env env, const Napi::Value& on_done) {
    if (!on_done.IsFunction()) return throw_type_error(env, "onDone", "a function");
    if (std::exchange(spent_, true)) {
      const std::string message = std::string("the ") + what_ + " was closed, or ran before";
      return throw_coded(Napi::Error::New(env, message), "ERR_CLOSED");
    }
    auto done =
        Napi::ThreadSafeFunction::New(env, on_done.As<Napi::Function>(), std::string("hushring ") + what_, 1, 1);
    // Hooks run in reverse order: this one, which waits for the thread, before the one that ends `done`.
    napi_add_env_cleanup_hook(env, end_with_environment, this);
    held_by_environment_ = this->shared_from_this();
    const int error = thread_->run([done] {
      done.NonBlockingCall();
      done.Release();
    });
    if (error == 0) return;
    done.Release();
    close(env);
    throw_system_error(env, error, "pthread_create");
  }

  void close(napi_env env) {
    spent_ = true;
    thread_->close();
    if (held_by_environment_ == nullptr) return;
    napi_remove_env_cleanup_hook(env, end_with_environment, this);
    held_by_environment_.reset();
  }

 private:
  static void end_with_environment(void* data) {
    const std::shared_ptr<ThreadHandle> handle =
        std::move(static_cast<ThreadHandle*>(data)->held_by_environment_);
    handle->thread_->close();
  }

  const std::unique_ptr<Thread> thread_;
  const char* const what_;
  std::shared_ptr<ThreadHandle> held_by_environment_;
  bool spent_ = false;  // run or closed
};

// The counters of a thread, words of 64 bits. The memory is the handle's, not JavaScript's: whatever becomes of the
// buffer, the thread can count.
template <class Thread>
Napi::BigUint64Array counters_of(Napi::Env env, const std::shared_ptr<ThreadHandle<Thread>>& handle) {
  auto& counters = handle->thread().counters();
  const auto buffer = Napi::ArrayBuffer::New(env, &counters, sizeof(counters), [handle](Napi::Env, void*) {});
  return Napi::BigUint64Array::New(env, sizeof(counters) / sizeof(std::uint64_t), buffer, 0);
}

// Adds run(onDone) and close().
template <class Thread>
void define_run_and_close(Napi::Object object, const std::shared_ptr<ThreadHandle<Thread>>& handle) {
  const auto run = [handle](const Napi::CallbackInfo& call) { handle->run(call.Env(), call[0]); };
  const auto close = [handle](const Napi::CallbackInfo& call) { handle->close(call.Env()); };
  object.Set("run", Napi::Function::New(object.Env(), run, "run"));
  object.Set("close", Napi::Function::New(object.Env(), close, "close"));
}

}  // namespace hushring
