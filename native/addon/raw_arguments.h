// Arguments of raw Node-API functions, none of which is believed.
#pragma once

#include <node_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace hushring {

inline constexpr std::int64_t kSafeIntegerMax = (std::int64_t{1} << 53) - 1;  // Number.MAX_SAFE_INTEGER

// A whole number from 0 to `max`; false for anything else. What is none must never become 0: that is a descriptor and
// the front of every file.
inline bool whole_number(napi_env env, napi_value value, std::int64_t max, std::int64_t& number) {
  double given = -1;
  if (napi_get_value_double(env, value, &given) != napi_ok) return false;
  if (!(given >= 0 && given <= static_cast<double>(max)) || given != std::floor(given)) return false;
  number = static_cast<std::int64_t>(given);
  return true;
}

// A piece of a Uint8Array, given as (buffer, offsetBytes, lengthBytes); false unless it lies in there.
inline bool piece_of(napi_env env, const napi_value* arguments, std::span<std::byte>& piece) {
  void* data = nullptr;
  std::size_t buffer_bytes = 0;
  std::int64_t offset_bytes = 0;
  std::int64_t length_bytes = 0;
  napi_typedarray_type type = napi_int8_array;
  if (napi_get_typedarray_info(env, arguments[0], &type, &buffer_bytes, &data, nullptr, nullptr) != napi_ok ||
      type != napi_uint8_array ||
      !whole_number(env, arguments[1], static_cast<std::int64_t>(buffer_bytes), offset_bytes) ||
      !whole_number(env, arguments[2], static_cast<std::int64_t>(buffer_bytes) - offset_bytes, length_bytes)) {
    return false;
  }
  piece = {static_cast<std::byte*>(data) + offset_bytes, static_cast<std::size_t>(length_bytes)};
  return true;
}

}  // namespace hushring
