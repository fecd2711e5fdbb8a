// watchReadable, watchHangUp and createMicroTimer: file descriptors on the event loop.
//
// libuv polls the descriptor (uv_poll) and calls JavaScript from the loop: no thread, and a wake-up costs under a
// microsecond.
#include <chrono>
#include <cstdlib>
#include <memory>
#include <utility>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "addon/uv_min.h"
#include "os/eventfd.h"
#include "os/timerfd.h"
#include "os/unique_fd.h"

namespace hushring {
namespace {

// A day: longer holds are no job for microseconds.
constexpr std::int64_t kDelayMicrosMax = 86'400'000'000;

enum class Interest {
  kReadable,  // bytes or connections wait; the callback takes them
  kEventfd,   // the counter is not 0; it is read here, before the callback
  kTimer,     // the same for a timerfd, which keeps the process alive only while it is armed
  kHangUp,    // the other side is gone
};

// Calls `callback` from the event loop the way Node calls one: process.nextTick and promises run after it, and what
// it throws is an uncaughtException.
void call_from_loop(const Napi::Function& callback, int status) {
  const Napi::Env env = callback.Env();
  const napi_value argument = Napi::Number::New(env, status);
  const napi_value receiver = env.Global();
  if (napi_make_callback(env, nullptr, receiver, callback, 1, &argument, nullptr) != napi_pending_exception) return;
  napi_value thrown = nullptr;
  if (napi_get_and_clear_last_exception(env, &thrown) == napi_ok) napi_fatal_exception(env, thrown);
}

// One descriptor on the event loop of one environment.
//
// libuv owns its handle until the close callback, so the watch holds itself until then; the JavaScript functions
// hold it as well. An environment that ends (a worker that is terminated) closes the watch through its cleanup
// hook, and waits until the hook is removed in the close callback.
class Watch {
 public:
  // Null when libuv refuses, and then `error` is a negative errno. The watch keeps `owned`, which may be `fd`
  // itself, open for as long as it is open.
  static std::shared_ptr<Watch> open(const Napi::Function& callback, int fd, Interest interest, os::UniqueFd owned,
                                     int& error) {
    uv_loop_s* loop = nullptr;
    napi_get_uv_event_loop(callback.Env(), &loop);
    const std::shared_ptr<Watch> watch(new Watch(callback, fd, interest, std::move(owned)));
    // A regular file or folder, which epoll does not know, is refused here with EPERM; one that is being watched
    // with EEXIST. Then there is no handle yet to be closed.
    error = uv_poll_init(loop, watch->poll_.get(), fd);
    if (error < 0) return nullptr;
    uv_handle_set_data(watch->handle(), watch.get());
    watch->self_ = watch;
    const auto end = [](napi_async_cleanup_hook_handle, void* ended) { static_cast<Watch*>(ended)->close(); };
    napi_add_async_cleanup_hook(callback.Env(), end, watch.get(), &watch->cleanup_hook_);
    error = uv_poll_start(watch->poll_.get(), interest == Interest::kHangUp ? kUvDisconnect : kUvReadable, on_poll);
    if (error < 0) {
      watch->close();
      return nullptr;
    }
    if (interest == Interest::kTimer) watch->unref();
    return watch;
  }

  // The callback is not called any more, and the descriptor may be closed. Safe inside the callback.
  void close() {
    if (closed_) return;
    closed_ = true;
    callback_.Reset();
    uv_close(handle(), [](uv_handle_s* closed) {
      auto* const watch = static_cast<Watch*>(uv_handle_get_data(closed));
      napi_remove_async_cleanup_hook(watch->cleanup_hook_);
      watch->self_.reset();
    });
    owned_.reset();  // after uv_close, which took it out of epoll
  }

  // Whether the watch keeps the process alive.
  void ref() {
    if (!closed_) uv_ref(handle());
  }
  void unref() {
    if (!closed_) uv_unref(handle());
  }

  // The descriptor it owns, -1 when it owns none or is closed.
  [[nodiscard]] int owned_fd() const { return owned_.get(); }

 private:
  struct Free {
    void operator()(uv_poll_s* poll) const { std::free(poll); }
  };

  Watch(const Napi::Function& callback, int fd, Interest interest, os::UniqueFd owned)
      : fd_(fd),
        interest_(interest),
        owned_(std::move(owned)),
        callback_(Napi::Persistent(callback)),
        poll_(static_cast<uv_poll_s*>(std::calloc(1, uv_handle_size(kUvPoll)))) {}

  [[nodiscard]] uv_handle_s* handle() const { return reinterpret_cast<uv_handle_s*>(poll_.get()); }

  static void on_poll(uv_poll_s* poll, int status, int) {
    // The callback may close the watch, and JavaScript may forget it: it lives until the end of this function.
    const std::shared_ptr<Watch> watch =
        static_cast<Watch*>(uv_handle_get_data(reinterpret_cast<uv_handle_s*>(poll)))->self_;
    watch->ready(status);
  }

  void ready(int status) {
    if (status == 0 && (interest_ == Interest::kEventfd || interest_ == Interest::kTimer)) {
      const os::Drained drained = os::eventfd_read(fd_);
      if (drained.count == 0 && drained.error == 0) return;  // somebody else read it first
      status = -drained.error;
    }
    if (interest_ == Interest::kTimer) unref();
    const Napi::HandleScope scope(callback_.Env());
    const Napi::Function callback = callback_.Value();
    // What failed stays ready for ever: a watch that went on would spin. A hang-up is told once, too.
    if (status < 0 || interest_ == Interest::kHangUp) close();
    call_from_loop(callback, status);
  }

  const int fd_;
  const Interest interest_;
  os::UniqueFd owned_;
  Napi::FunctionReference callback_;
  const std::unique_ptr<uv_poll_s, Free> poll_;
  napi_async_cleanup_hook_handle cleanup_hook_ = nullptr;
  std::shared_ptr<Watch> self_;
  bool closed_ = false;
};

// Null after throwing.
std::shared_ptr<Watch> open_watch(const Napi::Value& callback, const char* name, int fd, Interest interest,
                                  os::UniqueFd owned = {}) {
  if (!callback.IsFunction()) {
    throw_type_error(callback.Env(), name, "a function");
    return nullptr;
  }
  int error = 0;
  std::shared_ptr<Watch> watch =
      Watch::open(callback.As<Napi::Function>(), fd, interest, std::move(owned), error);
  if (watch == nullptr) throw_system_error(callback.Env(), -error, "uv_poll_init");
  return watch;
}

// Adds a function to `object` that has its share in the watch.
template <typename Body>
void define(Napi::Object object, const char* name, Body body) {
  object.Set(name, Napi::Function::New(object.Env(), std::move(body), name));
}

Napi::Value watch_object(Napi::Env env, const std::shared_ptr<Watch>& watch) {
  if (watch == nullptr) return env.Undefined();
  const Napi::Object object = Napi::Object::New(env);
  define(object, "close", [watch](const Napi::CallbackInfo&) { watch->close(); });
  define(object, "ref", [watch](const Napi::CallbackInfo&) { watch->ref(); });
  define(object, "unref", [watch](const Napi::CallbackInfo&) { watch->unref(); });
  return object;
}

Napi::Value watch_readable(const Napi::CallbackInfo& info) {
  const Interest interest = flag_from(info[1]) ? Interest::kEventfd : Interest::kReadable;
  return watch_object(info.Env(), open_watch(info[2], "onReadable", fd_from(info[0]), interest));
}

Napi::Value watch_hang_up(const Napi::CallbackInfo& info) {
  return watch_object(info.Env(), open_watch(info[1], "onHangUp", fd_from(info[0]), Interest::kHangUp));
}

void arm(const Napi::CallbackInfo& info, const Watch& timer, std::chrono::microseconds delay) {
  value_or_throw(info.Env(), os::timerfd_arm(timer.owned_fd(), delay));
}

Napi::Value create_micro_timer(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const os::Result created = os::timerfd_create();
  if (created.error != 0) return value_or_throw(env, created);
  const auto timer =
      open_watch(info[0], "onExpire", created.value, Interest::kTimer, os::UniqueFd(created.value));
  if (timer == nullptr) return env.Undefined();

  const Napi::Object object = Napi::Object::New(env);
  define(object, "start", [timer](const Napi::CallbackInfo& start) {
    std::int64_t delay_micros = 0;
    if (!integer_argument(start, 0, "delayMicros", 1, kDelayMicrosMax, delay_micros)) return;
    arm(start, *timer, std::chrono::microseconds(delay_micros));
    timer->ref();
  });
  define(object, "stop", [timer](const Napi::CallbackInfo& stop) {
    if (timer->owned_fd() >= 0) arm(stop, *timer, std::chrono::microseconds(0));
    timer->unref();
  });
  define(object, "close", [timer](const Napi::CallbackInfo&) { timer->close(); });
  return object;
}

}  // namespace

void register_watches(Napi::Env env, Napi::Object exports) {
  if (!uv_is_as_declared()) {
    Napi::Error::New(env, "hushring does not know this version of libuv").ThrowAsJavaScriptException();
    return;
  }
  exports.Set("watchReadable", Napi::Function::New<watch_readable>(env, "watchReadable"));
  exports.Set("watchHangUp", Napi::Function::New<watch_hang_up>(env, "watchHangUp"));
  exports.Set("createMicroTimer", Napi::Function::New<create_micro_timer>(env, "createMicroTimer"));
}

}  // namespace hushring
