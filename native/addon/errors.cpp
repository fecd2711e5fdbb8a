#include "addon/errors.h"

#include <cmath>
#include <limits>

#include "addon/uv_min.h"

namespace hushring {

int fd_from(const Napi::Value& value) {
  if (!value.IsNumber()) return -1;
  const double number = value.As<Napi::Number>().DoubleValue();
  const bool fits = number >= 0 && number <= std::numeric_limits<int>::max() && std::trunc(number) == number;
  return fits ? static_cast<int>(number) : -1;
}

bool flag_from(const Napi::Value& value) { return value.IsBoolean() && value.As<Napi::Boolean>().Value(); }

std::string text_of(const Napi::Value& value) {
  const napi_env env = value.Env();
  napi_value text = nullptr;
  if (!value.IsEmpty() && napi_coerce_to_string(env, value, &text) == napi_ok) {
    return Napi::String(env, text).Utf8Value();
  }
  // A second exception must not be thrown while the first is pending.
  napi_value thrown = nullptr;
  if (env != nullptr) napi_get_and_clear_last_exception(env, &thrown);
  return "a value that has no text";
}

bool integer_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name, std::int64_t min,
                      std::int64_t max, std::int64_t& value) {
  if (!info[index].IsNumber()) {
    throw_type_error(info.Env(), name, "a number");
    return false;
  }
  // NaN fails the comparison, and within the limits the conversion is defined.
  const double number = info[index].As<Napi::Number>().DoubleValue();
  if (number >= static_cast<double>(min) && number <= static_cast<double>(max) && std::trunc(number) == number) {
    value = static_cast<std::int64_t>(number);
    return true;
  }
  const std::string given = text_of(info[index]);
  throw_coded(Napi::RangeError::New(info.Env(), std::string("expected `") + name + "` to be an integer from " +
                                                    std::to_string(min) + " to " + std::to_string(max) + ", got `" +
                                                    given + "`"),
              "ERR_OPTION_RANGE");
  return false;
}

bool bytes_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name, std::span<std::byte>& bytes) {
  const Napi::Value value = info[index];
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw_type_error(info.Env(), name, "a Uint8Array");
    return false;
  }
  auto array = value.As<Napi::Uint8Array>();
  bytes = {reinterpret_cast<std::byte*>(array.Data()), array.ElementLength()};
  return true;
}

void throw_coded(const Napi::Error& error, const char* code) {
  error.Value().Set("code", code);
  error.ThrowAsJavaScriptException();
}

void throw_type_error(Napi::Env env, const char* name, const char* expectation) {
  throw_coded(Napi::TypeError::New(env, std::string("expected `") + name + "` to be " + expectation),
              "ERR_OPTION_TYPE");
}

void throw_system_error(Napi::Env env, int error, const char* syscall, const std::string& path) {
  const char* const code = uv_err_name(-error);  // libuv's errors are negative errnos
  std::string message = std::string(code) + ": " + uv_strerror(-error) + ", " + syscall;
  if (!path.empty()) message += " '" + path + "'";
  const Napi::Error thrown = Napi::Error::New(env, message);
  thrown.Value().Set("errno", -error);
  thrown.Value().Set("syscall", syscall);
  if (!path.empty()) thrown.Value().Set("path", path);
  throw_coded(thrown, code);
}

Napi::Value value_or_throw(Napi::Env env, const os::Result& result, const std::string& path) {
  if (result.error == 0) return Napi::Number::New(env, result.value);
  throw_system_error(env, result.error, result.syscall, path);
  return env.Undefined();
}

}  // namespace hushring
