#include "addon/option_reader.h"

#include "addon/errors.h"

namespace hushring {

OptionReader::OptionReader(const Napi::Value& options) : env_(options.Env()) {
  if (options.IsObject()) {
    options_ = options.As<Napi::Object>();
  } else {
    fail_type("options", "an object");
  }
}

Napi::Value OptionReader::value(const char* name) {
  if (failed_) return env_.Undefined();
  const Napi::Value given = options_.Get(name);
  if (!given.IsEmpty()) return given;
  failed_ = true;  // a getter threw, or the worker is being terminated
  return env_.Undefined();
}

std::int64_t OptionReader::integer(const char* name, std::int64_t smallest, std::int64_t largest) {
  const Napi::Value given = value(name);
  if (failed()) return 0;
  if (!given.IsNumber()) {
    fail_type(name, "a number");
    return 0;
  }
  // NaN fails the comparison, and within the limits the conversion is exact.
  const double number = given.As<Napi::Number>().DoubleValue();
  if (number >= static_cast<double>(smallest) && number <= static_cast<double>(largest)) {
    const auto integer = static_cast<std::int64_t>(number);
    if (static_cast<double>(integer) == number) return integer;
  }
  fail_range(name, "an integer from " + std::to_string(smallest) + " to " + std::to_string(largest));
  return 0;
}

std::int64_t OptionReader::integer_or(const char* name, std::int64_t fallback, std::int64_t smallest,
                                      std::int64_t largest) {
  return value(name).IsUndefined() ? fallback : integer(name, smallest, largest);
}

bool OptionReader::boolean(const char* name) {
  const Napi::Value given = value(name);
  if (failed()) return false;
  if (given.IsBoolean()) return given.As<Napi::Boolean>().Value();
  fail_type(name, "a boolean");
  return false;
}

std::uint64_t OptionReader::address(const char* name) {
  const Napi::Value given = value(name);
  if (failed()) return 0;
  if (!given.IsBigInt()) {
    fail_type(name, "a bigint");
    return 0;
  }
  bool lossless = false;
  const std::uint64_t address = given.As<Napi::BigInt>().Uint64Value(&lossless);
  if (lossless) return address;
  fail_range(name, "a bigint from 0n to 2n ** 64n - 1n");
  return 0;
}

void OptionReader::fail_range(const char* name, const std::string& expectation) {
  const std::string given = text_of(value(name));
  failed_ = true;
  throw_coded(Napi::RangeError::New(env_, std::string("expected `") + name + "` to be " + expectation + ", got `" +
                                              given + "`"),
              "ERR_OPTION_RANGE");
}

void OptionReader::fail_type(const char* name, const char* expectation) {
  failed_ = true;
  throw_type_error(env_, name, expectation);
}

}  // namespace hushring
