// eventfdCreate, eventfdSignal, eventfdDrain, isEventfd, setNonBlocking, closeFd, duplicateFd.
#include "os/eventfd.h"

#include <fcntl.h>
#include <unistd.h>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "addon/owned_fds.h"

namespace hushring {
namespace {

Napi::Value eventfd_create(const Napi::CallbackInfo& info) {
  return owned_fd_or_throw(info.Env(), os::eventfd_create());
}

Napi::Value is_eventfd(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), os::is_eventfd(fd_from(info[0])));
}

void set_non_blocking(const Napi::CallbackInfo& info) {
  value_or_throw(info.Env(), os::set_non_blocking(fd_from(info[0])));
}

void eventfd_signal(const Napi::CallbackInfo& info) {
  value_or_throw(info.Env(), os::eventfd_signal(fd_from(info[0])));
}

Napi::Value eventfd_drain(const Napi::CallbackInfo& info) {
  const os::Drained drained = os::eventfd_read(fd_from(info[0]));
  if (drained.error != 0) throw_system_error(info.Env(), drained.error, "read");
  return Napi::Number::New(info.Env(), static_cast<double>(drained.count));
}

void close_fd(const Napi::CallbackInfo& info) {
  const int fd = fd_from(info[0]);
  disown_fd(info.Env(), fd);
  // After EINTR the descriptor is closed all the same.
  if (::close(fd) < 0 && errno != EINTR) throw_system_error(info.Env(), errno, "close");
}

Napi::Value duplicate_fd(const Napi::CallbackInfo& info) {
  const int duplicate = ::fcntl(fd_from(info[0]), F_DUPFD_CLOEXEC, 0);
  return owned_fd_or_throw(info.Env(), duplicate < 0 ? os::Result::failed("fcntl") : os::Result::of(duplicate));
}

}  // namespace

void register_eventfds(Napi::Env env, Napi::Object exports) {
  exports.Set("eventfdCreate", Napi::Function::New<eventfd_create>(env, "eventfdCreate"));
  exports.Set("isEventfd", Napi::Function::New<is_eventfd>(env, "isEventfd"));
  exports.Set("setNonBlocking", Napi::Function::New<set_non_blocking>(env, "setNonBlocking"));
  exports.Set("eventfdSignal", Napi::Function::New<eventfd_signal>(env, "eventfdSignal"));
  exports.Set("eventfdDrain", Napi::Function::New<eventfd_drain>(env, "eventfdDrain"));
  exports.Set("closeFd", Napi::Function::New<close_fd>(env, "closeFd"));
  exports.Set("duplicateFd", Napi::Function::New<duplicate_fd>(env, "duplicateFd"));
}

}  // namespace hushring
