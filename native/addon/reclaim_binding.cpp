// setIoFlusher, isIoFlusher, lockMemory.
#include "addon/bindings.h"
#include "addon/errors.h"
#include "os/reclaim.h"

namespace hushring {
namespace {

void set_io_flusher(const Napi::CallbackInfo& info) {
  if (!info[0].IsBoolean()) return throw_type_error(info.Env(), "enabled", "true or false");
  value_or_throw(info.Env(), os::set_io_flusher(flag_from(info[0])));
}

Napi::Value is_io_flusher(const Napi::CallbackInfo& info) {
  const os::Result state = os::io_flusher();
  if (state.error != 0) return value_or_throw(info.Env(), state);
  return Napi::Boolean::New(info.Env(), state.value != 0);
}

void lock_memory(const Napi::CallbackInfo& info) { value_or_throw(info.Env(), os::lock_programs()); }

}  // namespace

void register_reclaim(Napi::Env env, Napi::Object exports) {
  exports.Set("setIoFlusher", Napi::Function::New<set_io_flusher>(env, "setIoFlusher"));
  exports.Set("isIoFlusher", Napi::Function::New<is_io_flusher>(env, "isIoFlusher"));
  exports.Set("lockMemory", Napi::Function::New<lock_memory>(env, "lockMemory"));
}

}  // namespace hushring
