// memfdCreate and mapRegion: driver memory as src/native.ts declares it (NativeRegion).
//
// Ownership: a region's mapping is shared by its JavaScript object, by each of its windows (external ArrayBuffers)
// and by the queues that run on it. Each lets go exactly once, in whatever order close(), the garbage collector and
// the end of the environment come; the last one unmaps. So memory that a live ArrayBuffer shows is always mapped.
#include "addon/raw_arguments.h"
#include "addon/region_binding.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "addon/owned_fds.h"
#include "core/memory.h"
#include "os/memfd.h"

namespace hushring {
namespace {

constexpr napi_type_tag kRegionTag{0x6f0c5a0a2cb14d5e, 0x9f6f7b8f1f6f9c33};

// A window's share in the mapping, freed by the finalizer of its ArrayBuffer.
using WindowShare = std::shared_ptr<os::MappedRegion>;

// What is behind the JavaScript object.
struct RegionHandle {
  std::shared_ptr<os::MappedRegion> region;  // null after close()
  std::vector<WindowShare*> window_shares;   // each valid as long as its ArrayBuffer is not detached
  bool truncated_at_close = false;
};

RegionHandle* handle_from(const Napi::Value& value) {
  if (!value.IsObject()) return nullptr;
  const auto object = value.As<Napi::Object>();
  void* handle = nullptr;
  if (!object.CheckTypeTag(&kRegionTag) || napi_unwrap(value.Env(), value, &handle) != napi_ok) return nullptr;
  return static_cast<RegionHandle*>(handle);
}

// ---- Functions of a region -------------------------------------------------------------------------------------

RegionHandle* handle_of_this(const Napi::CallbackInfo& info) {
  RegionHandle* const handle = handle_from(info.This());
  if (handle == nullptr) throw_type_error(info.Env(), "this", "a region");
  return handle;
}

Napi::Value truncated(const Napi::CallbackInfo& info) {
  const RegionHandle* const handle = handle_of_this(info);
  if (handle == nullptr) return info.Env().Undefined();
  return Napi::Boolean::New(info.Env(), handle->region ? handle->region->truncated() : handle->truncated_at_close);
}

void close(const Napi::CallbackInfo& info) {
  RegionHandle* const handle = handle_of_this(info);
  if (handle == nullptr || handle->region == nullptr) return;
  // The object and its list are frozen, so these are the windows that were made for it.
  const Napi::Value list = info.This().As<Napi::Object>().Get("windows");
  // Nothing can be read any more in a worker that is being terminated; its finalizers let the windows go.
  const std::uint32_t count = list.IsArray() ? list.As<Napi::Array>().Length() : 0;
  for (std::uint32_t index = 0; index < count; ++index) {
    const Napi::Value value = list.As<Napi::Array>().Get(index);
    if (!value.IsArrayBuffer()) continue;
    auto window = value.As<Napi::ArrayBuffer>();
    // Detached by somebody else: ArrayBuffer.prototype.transfer (Node 22) moved the memory to another ArrayBuffer.
    // Then that one has the share, and the memory stays mapped until the collector finds it.
    if (window.IsDetached()) continue;
    window.Detach();
    // Now nobody can reach the memory through this window. The finalizer comes some turns later, with nothing to do.
    handle->window_shares[index]->reset();
  }
  handle->window_shares.clear();
  handle->truncated_at_close = handle->region->truncated();
  handle->region.reset();
}

// ---- Functions of the addon ------------------------------------------------------------------------------------

// False after throwing: this Node allows no external ArrayBuffers, or there is no memory for one.
bool add_windows(Napi::Env env, RegionHandle& handle, const Napi::Array& windows) {
  const auto let_go = [](napi_env, void*, void* share) { delete static_cast<WindowShare*>(share); };
  const os::MappedRegion& region = *handle.region;
  for (std::uint64_t offset = 0; offset < region.size_bytes; offset += kWindowBytes) {
    const std::uint64_t length_bytes = std::min(kWindowBytes, region.size_bytes - offset);
    auto* const share = new WindowShare(handle.region);
    napi_value window = nullptr;
    if (napi_create_external_arraybuffer(env, region.host + offset, length_bytes, let_go, share, &window) != napi_ok) {
      delete share;
      throw_coded(Napi::Error::New(env, "external ArrayBuffers are not available"), "ERR_MEMORY_REGION");
      return false;
    }
    windows.Set(windows.Length(), window);
    handle.window_shares.push_back(share);
  }
  return true;
}

// The next argument as an unsigned 64-bit number; throws and gives false when it is none.
bool address_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name, std::uint64_t& value) {
  bool lossless = false;
  if (info[index].IsBigInt()) value = info[index].As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throw_type_error(info.Env(), name, "a bigint from 0n to 2n ** 64n - 1n");
  return lossless;
}

Napi::Value map_region(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  os::RegionRequest request;
  request.fd = fd_from(info[0]);
  if (!address_argument(info, 1, "guestAddress", request.guest_address) ||
      !address_argument(info, 2, "userAddress", request.user_address) ||
      !address_argument(info, 3, "sizeBytes", request.size_bytes) ||
      !address_argument(info, 4, "mmapOffsetBytes", request.mmap_offset_bytes)) {
    return env.Undefined();
  }
  os::MapFailure failure;
  auto handle = std::make_unique<RegionHandle>();
  handle->region = os::MappedRegion::map(request, failure);
  if (handle->region == nullptr) {
    throw_map_failure(env, failure);
    return env.Undefined();
  }
  const Napi::Array windows = Napi::Array::New(env);
  if (!add_windows(env, *handle, windows)) return env.Undefined();
  windows.Freeze();

  const Napi::Object object = Napi::Object::New(env);
  object.Set("windows", windows);
  object.Set("windowBytes", static_cast<double>(kWindowBytes));
  object.DefineProperty(Napi::PropertyDescriptor::Accessor<truncated>("truncated", napi_enumerable));
  object.Set("close", Napi::Function::New<close>(env, "close"));
  object.TypeTag(&kRegionTag);
  const auto collect = [](napi_env, void* collected, void*) { delete static_cast<RegionHandle*>(collected); };
  napi_wrap(env, object, handle.release(), collect, nullptr, nullptr);
  object.Freeze();
  return object;
}

Napi::Value memfd_create(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsString()) {
    throw_type_error(env, "name", "a string");
    return env.Undefined();
  }
  std::int64_t size_bytes = 0;
  if (!integer_argument(info, 1, "sizeBytes", 0, kSafeIntegerMax, size_bytes)) return env.Undefined();
  const std::string name = info[0].As<Napi::String>();
  return owned_fd_or_throw(
      env, os::memfd_create(name.c_str(), static_cast<std::uint64_t>(size_bytes), flag_from(info[2])));
}

}  // namespace

std::shared_ptr<os::MappedRegion> region_from(const Napi::Value& value) {
  const RegionHandle* const handle = handle_from(value);
  return handle == nullptr ? nullptr : handle->region;
}

void throw_map_failure(Napi::Env env, const os::MapFailure& failure) {
  if (failure.error != 0) {
    throw_system_error(env, failure.error, failure.syscall);
  } else {
    throw_coded(Napi::Error::New(env, failure.reason), "ERR_MEMORY_REGION");
  }
}

void register_regions(Napi::Env env, Napi::Object exports) {
  exports.Set("memfdCreate", Napi::Function::New<memfd_create>(env, "memfdCreate"));
  exports.Set("mapRegion", Napi::Function::New<map_region>(env, "mapRegion"));
}

}  // namespace hushring
