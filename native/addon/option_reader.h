// Reads the properties of an options object, one expectation a property.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

namespace hushring {

// The first property that is wrong throws a TypeError ERR_OPTION_TYPE or a RangeError ERR_OPTION_RANGE that names it,
// what was expected and what was given; from then on everything reads as 0. Check failed() before using any value. It
// is remembered here, because in a worker that is being terminated a throw leaves no exception behind.
class OptionReader {
 public:
  explicit OptionReader(const Napi::Value& options);

  [[nodiscard]] bool failed() const { return failed_; }

  [[nodiscard]] std::int64_t integer(const char* name, std::int64_t smallest, std::int64_t largest);
  // As integer(), and `fallback` when the property is left out.
  [[nodiscard]] std::int64_t integer_or(const char* name, std::int64_t fallback, std::int64_t smallest,
                                        std::int64_t largest);
  [[nodiscard]] bool boolean(const char* name);
  // A bigint of 64 bits without sign.
  [[nodiscard]] std::uint64_t address(const char* name);
  // As it is; undefined after a failure.
  [[nodiscard]] Napi::Value value(const char* name);

  void fail_range(const char* name, const std::string& expectation);

 private:
  void fail_type(const char* name, const char* expectation);

  Napi::Env env_;
  Napi::Object options_;
  bool failed_ = false;
};

}  // namespace hushring
