// fileReadAt and fileWriteAt: what src/handlers/stores/file-disk.ts does without waiting. Raw Node-API functions,
// because they are called once a request.
#include <napi.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "addon/bindings.h"
#include "addon/raw_arguments.h"
#include "os/file_io.h"

namespace hushring {
namespace {

// The arguments (fd, buffer, offsetBytes, lengthBytes, fileOffsetBytes, mayWait), which are not believed.
struct Transfer {
  std::int64_t fd = -1;
  std::span<std::byte> piece;
  std::int64_t file_offset_bytes = 0;
  os::Wait wait = os::Wait::kNever;
  // False unless all of them are of their kind and the piece lies in the buffer.
  bool is_valid = false;

  Transfer(napi_env env, napi_callback_info info) {
    std::size_t argument_count = 6;
    napi_value arguments[6] = {};
    bool may_wait = false;
    if (napi_get_cb_info(env, info, &argument_count, arguments, nullptr, nullptr) != napi_ok ||
        !whole_number(env, arguments[0], std::numeric_limits<int>::max(), fd) ||
        !piece_of(env, arguments + 1, piece) ||
        !whole_number(env, arguments[4], kSafeIntegerMax, file_offset_bytes) ||
        napi_get_value_bool(env, arguments[5], &may_wait) != napi_ok) {
      return;
    }
    if (may_wait) wait = os::Wait::kAllowed;
    is_valid = true;
  }
};

napi_value number(napi_env env, std::int64_t value) {
  napi_value result = nullptr;
  napi_create_int64(env, value, &result);
  return result;
}

// `moved` is os::read_at or os::write_at.
template <class Moved>
napi_value transferred(napi_env env, napi_callback_info info, Moved moved) {
  const Transfer transfer(env, info);
  if (!transfer.is_valid) return number(env, -EINVAL);
  const int fd = static_cast<int>(transfer.fd);
  return number(env, moved(fd, transfer.piece, transfer.file_offset_bytes, transfer.wait));
}

napi_value read_at(napi_env env, napi_callback_info info) { return transferred(env, info, os::read_at); }

napi_value write_at(napi_env env, napi_callback_info info) { return transferred(env, info, os::write_at); }

void define(Napi::Env env, Napi::Object exports, const char* name, napi_callback function) {
  napi_value value = nullptr;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, function, nullptr, &value) == napi_ok) exports.Set(name, value);
}

}  // namespace

void register_files(Napi::Env env, Napi::Object exports) {
  define(env, exports, "fileReadAt", read_at);
  define(env, exports, "fileWriteAt", write_at);
}

}  // namespace hushring
