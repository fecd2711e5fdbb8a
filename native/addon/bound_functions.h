// Functions of a JavaScript object that share one native object, the bound one: a queue, a port.
//
// Ownership: each function holds the handle, the handle holds the bound object until close(). Whatever ends first,
// close(), the garbage collector or the environment (a worker that is terminated), ends it exactly once.
#pragma once

#include <napi.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

namespace hushring {

// What the functions of one object share; empty after close().
template <class Bound>
struct Handle {
  std::unique_ptr<Bound> bound;
  const char* closed_message;  // of ERR_CLOSED
};

template <class Bound>
using SharedHandle = std::shared_ptr<Handle<Bound>>;

template <class Bound>
SharedHandle<Bound> make_handle(std::unique_ptr<Bound> bound, const char* closed_message) {
  return std::make_shared<Handle<Bound>>(Handle<Bound>{std::move(bound), closed_message});
}

// The arguments of a call through the hot path, and the object it is bound to.
//
// Hot functions are raw Node-API functions that find their object through the `data` pointer, which costs a third of
// unwrapping `this`; they allocate nothing. Everything else is called once a connection and is written for clarity.
template <class Bound, std::size_t count>
struct HotCall {
  napi_value arguments[count];
  Bound* bound;  // null after throwing ERR_CLOSED

  HotCall(napi_env env, napi_callback_info info) : arguments{} {
    std::size_t argument_count = count;
    void* data = nullptr;
    napi_get_cb_info(env, info, &argument_count, arguments, nullptr, &data);
    const auto* const handle = static_cast<Handle<Bound>*>(data);
    bound = handle->bound.get();
    if (bound == nullptr) napi_throw_error(env, "ERR_CLOSED", handle->closed_message);
  }

  [[nodiscard]] std::uint32_t uint32_at(napi_env env, std::size_t index) const {
    std::uint32_t value = 0;
    napi_get_value_uint32(env, arguments[index], &value);
    return value;
  }
};

// Adds a raw function that keeps the handle alive as long as it lives itself.
template <class Bound>
void define_hot(Napi::Object object, const char* name, napi_callback function, const SharedHandle<Bound>& handle) {
  napi_env env = object.Env();
  napi_value value = nullptr;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, function, handle.get(), &value) != napi_ok) return;
  const auto release = [](napi_env, void* owner, void*) { delete static_cast<SharedHandle<Bound>*>(owner); };
  auto* const owner = new SharedHandle<Bound>(handle);
  napi_add_finalizer(env, value, owner, release, nullptr, nullptr);
  object.Set(name, value);
}

// Adds a function with a body of (Bound&, const Napi::CallbackInfo&), which returns the result.
template <class Bound, class Body>
void define_cold(Napi::Object object, const char* name, const SharedHandle<Bound>& handle, Body body) {
  const auto function = [handle, body](const Napi::CallbackInfo& info) -> Napi::Value {
    if (handle->bound != nullptr) return body(*handle->bound, info);
    napi_throw_error(info.Env(), "ERR_CLOSED", handle->closed_message);
    return info.Env().Undefined();
  };
  object.Set(name, Napi::Function::New(object.Env(), function, name));
}

// Adds close(), which ends the bound object; calling it again does nothing.
template <class Bound>
void define_close(Napi::Object object, const SharedHandle<Bound>& handle) {
  const auto close = [handle](const Napi::CallbackInfo&) { handle->bound.reset(); };
  object.Set("close", Napi::Function::New(object.Env(), close, "close"));
}

}  // namespace hushring
