// createTcmuQueue: the device's half of a TCMU ring as src/native.ts declares it (NativeTcmuQueue). What owns what is
// told in bound_functions.h.
#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "addon/bindings.h"
#include "addon/bound_functions.h"
#include "addon/errors.h"
#include "addon/option_reader.h"
#include "addon/raw_arguments.h"
#include "addon/tcmu_port_binding.h"
#include "os/tcmu_server.h"

namespace hushring {
namespace {

// The tables in one ArrayBuffer of JavaScript's, which stays where it is while it is referenced here. Nobody but
// src/ring/tcmu-queue.ts sees the buffer, and that never transfers it.
class Tables {
 public:
  static Napi::ArrayBuffer make_buffer(Napi::Env env, const TcmuOptions& options) {
    return Napi::ArrayBuffer::New(env, Tables(options).total_bytes());
  }

  Tables(const TcmuOptions& options, const Napi::ArrayBuffer& buffer)
      : options_(options), buffer_(Napi::Persistent(buffer)) {}

  [[nodiscard]] TcmuTables native() {
    auto* const base = static_cast<std::byte*>(buffer_.Value().Data());
    return {.commands = {reinterpret_cast<TcmuCommandRow*>(base + commands_at()), options_.batch_count_max},
            .cdbs = {base + cdbs_at(), std::size_t{options_.batch_count_max} * kCdbBytesMax},
            .segments = {reinterpret_cast<Segment*>(base + segments_at()), options_.segment_rows()},
            .completions = {reinterpret_cast<const TcmuCompletionRow*>(base + completions_at()),
                            options_.command_count_max},
            .senses = {base + senses_at(), std::size_t{options_.command_count_max} * kTcmuSenseBytes},
            .tidings = reinterpret_cast<TcmuTidings*>(base + tidings_at()),
            .aborted = {reinterpret_cast<std::uint32_t*>(base + aborted_at()), options_.command_count_max},
            .counters = reinterpret_cast<TcmuCounters*>(base)};
  }

  void define(Napi::Object queue) {
    const Napi::Env env = queue.Env();
    const Napi::ArrayBuffer buffer = buffer_.Value();
    const auto words = [&](std::size_t from, std::size_t to) {
      return Napi::Uint32Array::New(env, (to - from) / sizeof(std::uint32_t), buffer, from);
    };
    queue.Set("counters",
              Napi::BigUint64Array::New(env, sizeof(TcmuCounters) / sizeof(std::uint64_t), buffer, 0));
    queue.Set("commands", words(commands_at(), cdbs_at()));
    queue.Set("cdbs", words(cdbs_at(), segments_at()));
    queue.Set("segments", words(segments_at(), completions_at()));
    queue.Set("completions", words(completions_at(), senses_at()));
    queue.Set("senses", Napi::Uint8Array::New(env, tidings_at() - senses_at(), buffer, senses_at()));
    queue.Set("tidings", words(tidings_at(), aborted_at()));
    queue.Set("aborted", words(aborted_at(), total_bytes()));
  }

 private:
  explicit Tables(const TcmuOptions& options) : options_(options) {}

  [[nodiscard]] static constexpr std::size_t commands_at() { return sizeof(TcmuCounters); }
  [[nodiscard]] std::size_t cdbs_at() const {
    return commands_at() + options_.batch_count_max * sizeof(TcmuCommandRow);
  }
  [[nodiscard]] std::size_t segments_at() const {
    return cdbs_at() + std::size_t{options_.batch_count_max} * kCdbBytesMax;
  }
  [[nodiscard]] std::size_t completions_at() const {
    return segments_at() + options_.segment_rows() * sizeof(Segment);
  }
  [[nodiscard]] std::size_t senses_at() const {
    return completions_at() + options_.command_count_max * sizeof(TcmuCompletionRow);
  }
  [[nodiscard]] std::size_t tidings_at() const {
    return senses_at() + std::size_t{options_.command_count_max} * kTcmuSenseBytes;
  }
  [[nodiscard]] std::size_t aborted_at() const { return tidings_at() + sizeof(TcmuTidings); }
  [[nodiscard]] std::size_t total_bytes() const {
    return aborted_at() + options_.command_count_max * sizeof(std::uint32_t);
  }

  const TcmuOptions options_;
  Napi::Reference<Napi::ArrayBuffer> buffer_;
};

// A server with the tables it works on, which end after it.
struct TcmuQueue {
  TcmuQueue(const TcmuOptions& options, const Napi::ArrayBuffer& buffer, std::shared_ptr<os::TcmuPort> port,
            std::uint64_t inline_copy_bytes_max)
      : tables(options, buffer), server(std::move(port), options, tables.native(), inline_copy_bytes_max) {}

  Tables tables;
  os::TcmuServer server;
};

napi_value take(napi_env env, napi_callback_info info) {
  const HotCall<TcmuQueue, 1> call(env, info);
  if (call.bound == nullptr) return nullptr;
  napi_value result = nullptr;
  napi_create_int32(env, call.bound->server.take(call.uint32_at(env, 0)), &result);
  return result;
}

napi_value complete(napi_env env, napi_callback_info info) {
  const HotCall<TcmuQueue, 1> call(env, info);
  if (call.bound == nullptr) return nullptr;
  napi_value result = nullptr;
  napi_create_int32(env, call.bound->server.complete(call.uint32_at(env, 0)), &result);
  return result;
}

Napi::Value start(TcmuQueue& queue, const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(queue.server.start()));
}

Napi::Value stop(TcmuQueue& queue, const Napi::CallbackInfo& info) {
  queue.server.stop();
  return info.Env().Undefined();
}

Napi::Value sees_entry(TcmuQueue& queue, const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), queue.server.sees_entry());
}

Napi::Value free_kept(TcmuQueue& queue, const Napi::CallbackInfo& info) {
  std::int64_t command = 0;
  if (integer_argument(info, 0, "command", 0, std::numeric_limits<std::uint32_t>::max(), command)) {
    queue.server.free_kept(static_cast<std::uint32_t>(command));
  }
  return info.Env().Undefined();
}

Napi::Value inspect(TcmuQueue& queue, const Napi::CallbackInfo& info) {
  const TcmuDevice<HardwareOrdering>& device = queue.server.device();
  const Napi::Object view = Napi::Object::New(info.Env());
  view.Set("flags", static_cast<std::uint32_t>(device.flags()));
  view.Set("readIndex", device.read_index());
  view.Set("tailIndex", device.tail_index());
  view.Set("broken", static_cast<std::uint32_t>(device.fault()));
  return view;
}

Napi::Value create_tcmu_queue(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  OptionReader reader(info[0]);
  const TcmuOptions options{
      .command_count_max = static_cast<std::uint32_t>(reader.integer("commandCountMax", 1, 65535)),
      .batch_count_max = static_cast<std::uint32_t>(reader.integer("batchCountMax", 1, 65535)),
  };
  const auto inline_copy_bytes_max =
      static_cast<std::uint64_t>(reader.integer("inlineCopyBytesMax", 0, kSafeIntegerMax));
  const Napi::Value port_value = reader.value("port");
  if (reader.failed()) return env.Undefined();
  std::shared_ptr<os::TcmuPort> port = tcmu_port_from(port_value);
  if (port == nullptr) {
    throw_type_error(env, "port", "an open port");
    return env.Undefined();
  }
  const Napi::ArrayBuffer buffer = Tables::make_buffer(env, options);
  if (buffer.IsEmpty()) return env.Undefined();
  const auto handle =
      make_handle(std::make_unique<TcmuQueue>(options, buffer, std::move(port), inline_copy_bytes_max),
                  "the queue is closed");
  const Napi::Object object = Napi::Object::New(env);
  handle->bound->tables.define(object);
  define_hot(object, "take", take, handle);
  define_hot(object, "complete", complete, handle);
  define_cold(object, "start", handle, start);
  define_cold(object, "stop", handle, stop);
  define_cold(object, "seesEntry", handle, sees_entry);
  define_cold(object, "freeKept", handle, free_kept);
  define_cold(object, "inspect", handle, inspect);
  define_close(object, handle);
  return object;
}

}  // namespace

void register_tcmu_queues(Napi::Env env, Napi::Object exports) {
  exports.Set("createTcmuQueue", Napi::Function::New(env, create_tcmu_queue, "createTcmuQueue"));
}

}  // namespace hushring
