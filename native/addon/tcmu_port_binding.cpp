// openUioPort: /dev/uioN as src/native.ts declares it (NativeTcmuPort). Other ports are wrapped the same way.
//
// JavaScript sees the data of commands through windows over the whole mapping, which src/ring/data-area.ts keeps to
// itself, and through single pieces that are exposed for one command and concealed when it is answered. The mapping
// stays as long as the port is open or an ArrayBuffer shows something of it, which ends when that is concealed, closed
// or collected, whichever comes first.
#include "addon/tcmu_port_binding.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "core/memory.h"
#include "os/uio.h"

namespace hushring {
namespace {

constexpr napi_type_tag kPortTag{0x3d0f3b9f7a0e4c61, 0x8a52c1d3b7f04e19};

// The ArrayBuffers that begin at one byte. Several may: a window and a piece at its start, or pieces of commands that a
// kernel gave the same memory.
struct Place {
  std::size_t shown_count = 0;
  std::size_t concealed_count = 0;  // of those that are not collected yet
};

// What is behind the JavaScript object, and behind every ArrayBuffer that it made.
struct PortHandle {
  std::shared_ptr<os::TcmuPort> port;    // null after close()
  std::shared_ptr<os::TcmuPort> mapped;  // null when nothing is shown
  std::size_t shown_count = 0;
  std::unordered_map<const void*, Place> places;

  void show(const void* start) {
    ++places[start].shown_count;
    ++shown_count;
    mapped = port;
  }

  void conceal(Place& place) {
    --place.shown_count;
    ++place.concealed_count;
    forget_shown();
  }

  // An ArrayBuffer that begins at `start` was collected. Which one is not known, and need not be: as long as one of
  // those that are concealed is still to come, it is taken for that. So the mapping may stay a little longer, and never
  // goes while one of them shows it.
  void collect(const void* start) {
    const auto found = places.find(start);
    Place& place = found->second;
    if (place.concealed_count > 0) {
      --place.concealed_count;
    } else {
      --place.shown_count;
      forget_shown();
    }
    if (place.shown_count + place.concealed_count == 0) places.erase(found);
  }

 private:
  void forget_shown() {
    if (--shown_count == 0) mapped.reset();
  }
};

using SharedPortHandle = std::shared_ptr<PortHandle>;

// What the finalizer of an ArrayBuffer gets.
struct Shown {
  SharedPortHandle handle;
  const void* start;
};

PortHandle* handle_from(const Napi::Value& value) {
  if (!value.IsObject()) return nullptr;
  const auto object = value.As<Napi::Object>();
  void* handle = nullptr;
  if (!object.CheckTypeTag(&kPortTag) || napi_unwrap(value.Env(), value, &handle) != napi_ok) return nullptr;
  return static_cast<SharedPortHandle*>(handle)->get();
}

// An ArrayBuffer over part of the mapping. Empty, after throwing, when this Node makes no external ArrayBuffers.
Napi::Value show(Napi::Env env, const SharedPortHandle& handle, std::size_t offset_bytes, std::size_t length_bytes) {
  std::byte* const start = handle->port->map() + offset_bytes;
  auto* const shown = new Shown{handle, start};
  const auto finalize = [](napi_env, void*, void* collected) {
    auto* const shown_once = static_cast<Shown*>(collected);
    shown_once->handle->collect(shown_once->start);
    delete shown_once;
  };
  handle->show(start);
  napi_value buffer = nullptr;
  if (napi_create_external_arraybuffer(env, start, length_bytes, finalize, shown, &buffer) != napi_ok) {
    handle->collect(start);
    delete shown;
    throw_coded(Napi::Error::New(env, "external ArrayBuffers are not available"), "ERR_MEMORY_REGION");
    return env.Undefined();
  }
  return {env, buffer};
}

// Detaches a buffer that is still shown. One that somebody else detached counts as shown until it is collected.
void conceal(PortHandle& handle, const Napi::Value& value) {
  if (!value.IsArrayBuffer()) return;
  auto buffer = value.As<Napi::ArrayBuffer>();
  if (buffer.IsDetached()) return;
  const auto place = handle.places.find(buffer.Data());
  if (place == handle.places.end() || place->second.shown_count == 0) return;
  buffer.Detach();
  if (buffer.IsDetached()) handle.conceal(place->second);
}

Napi::Value throw_closed(Napi::Env env) {
  throw_coded(Napi::Error::New(env, "the port is closed"), "ERR_CLOSED");
  return env.Undefined();
}

Napi::Array windows_of(Napi::Env env, const SharedPortHandle& handle) {
  const Napi::Array windows = Napi::Array::New(env);
  const std::size_t map_bytes = handle->port->map_bytes();
  for (std::size_t offset = 0; offset < map_bytes; offset += kWindowBytes) {
    const Napi::Value window = show(env, handle, offset, std::min<std::size_t>(kWindowBytes, map_bytes - offset));
    if (!window.IsArrayBuffer()) break;
    windows.Set(windows.Length(), window);
  }
  return windows;
}

Napi::Value expose(const SharedPortHandle& handle, const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (handle->port == nullptr) return throw_closed(env);
  const auto map_bytes = static_cast<std::int64_t>(handle->port->map_bytes());
  std::int64_t offset_bytes = 0;
  std::int64_t length_bytes = 0;
  if (!integer_argument(info, 0, "offsetBytes", 0, map_bytes - 1, offset_bytes) ||
      !integer_argument(info, 1, "lengthBytes", 1, map_bytes - offset_bytes, length_bytes)) {
    return env.Undefined();
  }
  return show(env, handle, static_cast<std::size_t>(offset_bytes), static_cast<std::size_t>(length_bytes));
}

Napi::Value read_event(const SharedPortHandle& handle, const Napi::CallbackInfo& info) {
  if (handle->port == nullptr) return throw_closed(info.Env());
  return Napi::Number::New(info.Env(), handle->port->read_event());
}

Napi::Value ring_doorbell(const SharedPortHandle& handle, const Napi::CallbackInfo& info) {
  if (handle->port == nullptr) return throw_closed(info.Env());
  return Napi::Number::New(info.Env(), handle->port->ring_doorbell());
}

Napi::Value open_uio_port(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsString() || !info[1].IsString()) {
    throw_type_error(env, "path", "a string");
    return env.Undefined();
  }
  const std::string path = info[0].As<Napi::String>();
  os::MapFailure failure;
  std::shared_ptr<os::TcmuPort> port = os::UioPort::open(path, info[1].As<Napi::String>(), failure);
  if (port != nullptr) return wrap_tcmu_port(env, std::move(port));
  if (failure.error != 0) {
    throw_system_error(env, failure.error, failure.syscall, path);
  } else {
    throw_coded(Napi::Error::New(env, path + ": " + failure.reason), "ERR_TCMU_OPEN");
  }
  return env.Undefined();
}

}  // namespace

Napi::Object wrap_tcmu_port(Napi::Env env, std::shared_ptr<os::TcmuPort> port) {
  const auto handle = std::make_shared<PortHandle>();
  const auto map_bytes = static_cast<double>(port->map_bytes());
  const int event_fd = port->event_fd();
  handle->port = std::move(port);
  const Napi::Object object = Napi::Object::New(env);
  const Napi::Array windows = windows_of(env, handle);
  object.Set("windows", windows);
  object.Set("mapBytes", map_bytes);
  object.Set("eventFd", event_fd);
  const auto define = [&](const char* name, auto body) {
    object.Set(name, Napi::Function::New(env, std::move(body), name));
  };
  define("expose", [handle](const Napi::CallbackInfo& call) { return expose(handle, call); });
  define("conceal", [handle](const Napi::CallbackInfo& call) { conceal(*handle, call[0]); });
  define("readEvent", [handle](const Napi::CallbackInfo& call) { return read_event(handle, call); });
  define("ringDoorbell", [handle](const Napi::CallbackInfo& call) { return ring_doorbell(handle, call); });
  define("close", [handle](const Napi::CallbackInfo& call) {
    // Nothing can be read any more in a worker that is being terminated; its finalizers let the windows go.
    const Napi::Value list = call.This().IsObject() ? call.This().As<Napi::Object>().Get("windows") : call.This();
    const std::uint32_t count = list.IsArray() ? list.As<Napi::Array>().Length() : 0;
    for (std::uint32_t index = 0; index < count; ++index) conceal(*handle, list.As<Napi::Array>().Get(index));
    handle->port.reset();
  });
  object.TypeTag(&kPortTag);
  const auto collect = [](napi_env, void* collected, void*) { delete static_cast<SharedPortHandle*>(collected); };
  napi_wrap(env, object, new SharedPortHandle(handle), collect, nullptr, nullptr);
  windows.Freeze();
  object.Freeze();
  return object;
}

std::shared_ptr<os::TcmuPort> tcmu_port_from(const Napi::Value& value) {
  const PortHandle* const handle = handle_from(value);
  return handle == nullptr ? nullptr : handle->port;
}

void register_tcmu_ports(Napi::Env env, Napi::Object exports) {
  exports.Set("openUioPort", Napi::Function::New<open_uio_port>(env, "openUioPort"));
}

}  // namespace hushring
