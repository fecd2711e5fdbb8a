// How the bindings read arguments and report failure: as node:fs does, by throwing errors with a stable `code`.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "os/result.h"

namespace hushring {

// A value as a file descriptor. Anything that cannot be one gives -1, which every system call refuses with EBADF:
// a missing argument must never become descriptor 0.
[[nodiscard]] int fd_from(const Napi::Value& value);

// Argument `index` as an integer from `min` to `max`, limits that a double holds exactly. Otherwise throws an error
// ERR_OPTION_TYPE or ERR_OPTION_RANGE that calls the argument `name`, and gives false.
[[nodiscard]] bool integer_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name,
                                    std::int64_t min, std::int64_t max, std::int64_t& value);

// Argument `index` as the bytes of a Uint8Array (or Buffer), borrowed for the call. Otherwise throws and gives false.
[[nodiscard]] bool bytes_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name,
                                  std::span<std::byte>& bytes);

// A value as a flag: true for `true` and false for everything else. Nothing is coerced, see text_of().
[[nodiscard]] bool flag_from(const Napi::Value& value);

// A value as text for a message. A coercion runs JavaScript and can throw, and a worker that is being terminated runs
// no JavaScript any more: from one call to the next, everything that might run some fails. Then node-addon-api hands
// out empty values, and using one of those ends the whole process.
[[nodiscard]] std::string text_of(const Napi::Value& value);

// Throws `error` with `code`.
void throw_coded(const Napi::Error& error, const char* code);

// Throws a TypeError ERR_OPTION_TYPE: *expected `name` to be …*.
void throw_type_error(Napi::Env env, const char* name, const char* expectation);

// Throws what a system call came to, as Node does: `EADDRINUSE: address already in use, bind '/run/a.sock'`, with
// `code`, `errno`, `syscall` and, when there is one, `path`.
void throw_system_error(Napi::Env env, int error, const char* syscall, const std::string& path = {});

// The value of `result` for JavaScript, or undefined after throwing its error.
Napi::Value value_or_throw(Napi::Env env, const os::Result& result, const std::string& path = {});

}  // namespace hushring
