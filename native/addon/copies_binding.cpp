// createCopies: copies between driver memory and a store's memory as src/native.ts declares them (NativeCopies). What
// owns what is told in bound_functions.h.
#include <napi.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "addon/bindings.h"
#include "addon/bound_functions.h"
#include "addon/errors.h"
#include "core/copies.h"

namespace hushring {
namespace {

constexpr std::size_t kRowCountMax = 256;
constexpr std::size_t kWindowCountMax = 16;

class Copies {
 public:
  explicit Copies(const Napi::ArrayBuffer& rows) : rows_(Napi::Persistent(rows)) {}

  static Napi::ArrayBuffer make_rows(Napi::Env env) {
    return Napi::ArrayBuffer::New(env, kRowCountMax * sizeof(CopyRow));
  }

  // Keeps the buffer alive, and with it the address of its bytes: nobody but src/ring/store-memory.ts has it, and that
  // never transfers it.
  [[nodiscard]] std::uint32_t attach(Napi::Uint8Array buffer) {
    const std::span<std::byte> bytes{reinterpret_cast<std::byte*>(buffer.Data()), buffer.ByteLength()};
    const auto free = std::ranges::find_if(owners_, [](const auto& owner) { return owner.IsEmpty(); });
    const auto index = static_cast<std::size_t>(free - owners_.begin());
    if (index == owners_.size()) {
      owners_.emplace_back();
      stores_.emplace_back();
    }
    owners_[index] = Napi::Persistent(buffer);
    stores_[index] = bytes;
    return static_cast<std::uint32_t>(index);
  }

  void detach(std::uint32_t index) {
    if (index >= owners_.size()) return;
    owners_[index].Reset();
    stores_[index] = {};
  }

  // The windows are asked anew each time: an unmapped one is detached, and then it is empty.
  void run(napi_env env, std::uint32_t row_count, std::uint32_t window_count, napi_value windows) {
    std::array<std::span<std::byte>, kWindowCountMax> bytes;
    window_count = std::min<std::uint32_t>(window_count, kWindowCountMax);
    for (std::uint32_t index = 0; index < window_count; ++index) bytes[index] = bytes_of(env, windows, index);
    const auto* const rows = static_cast<const CopyRow*>(rows_.Value().Data());
    copy_rows({rows, std::min<std::size_t>(row_count, kRowCountMax)}, std::span(bytes).first(window_count), stores_);
  }

 private:
  static std::span<std::byte> bytes_of(napi_env env, napi_value windows, std::uint32_t index) {
    napi_value window = nullptr;
    napi_typedarray_type type = napi_int8_array;
    std::size_t length_bytes = 0;
    void* data = nullptr;
    if (napi_get_element(env, windows, index, &window) != napi_ok ||
        napi_get_typedarray_info(env, window, &type, &length_bytes, &data, nullptr, nullptr) != napi_ok ||
        type != napi_uint8_array || data == nullptr) {
      return {};
    }
    return {static_cast<std::byte*>(data), length_bytes};
  }

  Napi::Reference<Napi::ArrayBuffer> rows_;
  std::vector<Napi::Reference<Napi::Uint8Array>> owners_;  // empty: the index is free
  std::vector<std::span<std::byte>> stores_;
};

napi_value run(napi_env env, napi_callback_info info) {
  const HotCall<Copies, 3> call(env, info);
  if (call.bound != nullptr) {
    call.bound->run(env, call.uint32_at(env, 0), call.uint32_at(env, 1), call.arguments[2]);
  }
  return nullptr;
}

Napi::Value attach(Copies& copies, const Napi::CallbackInfo& info) {
  if (info[0].IsTypedArray() && info[0].As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array) {
    return Napi::Number::New(info.Env(), copies.attach(info[0].As<Napi::Uint8Array>()));
  }
  throw_type_error(info.Env(), "buffer", "a Uint8Array");
  return info.Env().Undefined();
}

Napi::Value detach(Copies& copies, const Napi::CallbackInfo& info) {
  if (info[0].IsNumber()) copies.detach(info[0].As<Napi::Number>().Uint32Value());
  return info.Env().Undefined();
}

Napi::Value create_copies(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::ArrayBuffer rows = Copies::make_rows(env);
  if (env.IsExceptionPending()) return env.Undefined();
  const auto handle = make_handle(std::make_unique<Copies>(rows), "the copies were closed");
  const Napi::Object object = Napi::Object::New(env);
  object.Set("rows", Napi::Uint32Array::New(env, kRowCountMax * sizeof(CopyRow) / sizeof(std::uint32_t), rows, 0));
  object.Set("rowCountMax", static_cast<double>(kRowCountMax));
  object.Set("windowCountMax", static_cast<double>(kWindowCountMax));
  define_hot(object, "run", run, handle);
  define_cold(object, "attach", handle, attach);
  define_cold(object, "detach", handle, detach);
  object.Freeze();
  return object;
}

}  // namespace

void register_copies(Napi::Env env, Napi::Object exports) {
  exports.Set("createCopies", Napi::Function::New<create_copies>(env, "createCopies"));
}

}  // namespace hushring
