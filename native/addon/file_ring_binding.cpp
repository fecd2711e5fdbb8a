// openFileRing: reads, writes and flushes of one file through io_uring as src/native.ts declares it (NativeFileRing).
// What owns what is told in bound_functions.h. An environment that ends (a worker that is terminated) waits for what is
// in the kernel before its memory goes.
#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "addon/bindings.h"
#include "addon/bound_functions.h"
#include "addon/errors.h"
#include "addon/option_reader.h"
#include "addon/raw_arguments.h"
#include "os/file_io.h"
#include "os/file_ring.h"

namespace hushring {
namespace {

// Operations told by one call; more are told by the next one. So few, because the driver can go on with their answers while
// the next ones are told.
constexpr std::size_t kEndRows = 8;
constexpr std::size_t kEndWords = 2;

class FileRing {
 public:
  FileRing(Napi::Env env, std::unique_ptr<os::FileRing> ring)
      : env_(env), ring_(std::move(ring)), ends_(kEndRows) {
    const auto table = Napi::Float64Array::New(env, kEndRows * kEndWords);
    table_ = Napi::Persistent(table);
    napi_add_env_cleanup_hook(env, end_with_environment, this);
  }
  ~FileRing() { napi_remove_env_cleanup_hook(env_, end_with_environment, this); }
  FileRing(const FileRing&) = delete;
  FileRing& operator=(const FileRing&) = delete;

  [[nodiscard]] os::FileRing& ring() noexcept { return *ring_; }
  [[nodiscard]] Napi::Float64Array table() { return table_.Value(); }

  std::size_t turn() {
    const std::size_t count = ring_->turn(ends_);
    if (count == 0) return 0;
    // The table is private to src/ring/file-ring.ts, which never transfers its buffer.
    const Napi::HandleScope scope(env_);
    double* row = table_.Value().Data();
    for (const os::FileRingEnd& end : std::span(ends_).first(count)) {
      *row++ = end.number;
      *row++ = static_cast<double>(end.value);
    }
    return count;
  }

 private:
  static void end_with_environment(void* data) { static_cast<FileRing*>(data)->ring_.reset(); }

  const Napi::Env env_;
  std::unique_ptr<os::FileRing> ring_;  // null only while the environment ends
  std::vector<os::FileRingEnd> ends_;
  Napi::Reference<Napi::Float64Array> table_;
};

// Raw functions: called once a request, or once a piece.

napi_value number(napi_env env, double value) {
  napi_value result = nullptr;
  napi_create_double(env, value, &result);
  return result;
}

// (buffer, offsetBytes, lengthBytes): whether the piece lies in the buffer. What does not is not added.
napi_value add_piece(napi_env env, napi_callback_info info) {
  const HotCall<FileRing, 3> call(env, info);
  if (call.bound == nullptr) return nullptr;
  std::span<std::byte> piece;
  const bool is_inside = piece_of(env, call.arguments, piece);
  if (is_inside) call.bound->ring().add_piece(piece);
  napi_value result = nullptr;
  napi_get_boolean(env, is_inside, &result);
  return result;
}

// (verb, fileOffsetBytes): the number of the operation, or -1 for an argument that is none.
napi_value begin(napi_env env, napi_callback_info info) {
  const HotCall<FileRing, 2> call(env, info);
  if (call.bound == nullptr) return nullptr;
  const std::uint32_t verb = call.uint32_at(env, 0);
  std::int64_t file_offset_bytes = 0;
  // For the kernel an offset of -1 is the place where the last transfer ended, not a wrong one.
  if (verb > static_cast<std::uint32_t>(os::FileVerb::kSync) ||
      !whole_number(env, call.arguments[1], kSafeIntegerMax, file_offset_bytes)) {
    return number(env, -1);
  }
  return number(env, call.bound->ring().begin(static_cast<os::FileVerb>(verb), file_offset_bytes));
}

napi_value turn(napi_env env, napi_callback_info info) {
  const HotCall<FileRing, 1> call(env, info);
  if (call.bound == nullptr) return nullptr;
  return number(env, static_cast<double>(call.bound->turn()));
}

Napi::Value waiting_count(FileRing& bound, const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(bound.ring().waiting_count()));
}

Napi::Value in_kernel_count(FileRing& bound, const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), bound.ring().in_kernel_count());
}

Napi::Value open_file_ring(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  OptionReader reader(info[1]);
  const int file = fd_from(info[0]);
  const os::FileRingOptions options{
      .entry_count = static_cast<unsigned>(reader.integer("entryCount", 1, 4096)),
      .inline_bytes_max = static_cast<std::uint64_t>(reader.integer("inlineBytesMax", 0, kSafeIntegerMax)),
      .alignment = reader.boolean("direct") ? os::direct_alignment(file) : 1,
  };
  if (reader.failed()) return env.Undefined();
  os::Result failure;
  std::unique_ptr<os::FileRing> ring = os::FileRing::open(file, options, failure);
  if (ring == nullptr) return value_or_throw(env, failure);

  const int fd = ring->fd();
  const bool fd_is_eventfd = ring->fd_is_eventfd();
  const auto handle = make_handle(std::make_unique<FileRing>(env, std::move(ring)), "the ring of the file is closed");
  const Napi::Object object = Napi::Object::New(env);
  object.Set("fd", fd);
  object.Set("fdIsEventfd", fd_is_eventfd);
  object.Set("ends", handle->bound->table());
  define_hot(object, "addPiece", add_piece, handle);
  define_hot(object, "begin", begin, handle);
  define_hot(object, "turn", turn, handle);
  define_cold(object, "waitingCount", handle, waiting_count);
  define_cold(object, "inKernelCount", handle, in_kernel_count);
  define_close(object, handle);
  return object;
}

}  // namespace

void register_file_rings(Napi::Env env, Napi::Object exports) {
  exports.Set("openFileRing", Napi::Function::New(env, open_file_ring, "openFileRing"));
}

}  // namespace hushring
