// startDriverThread: a driver with a load of its own, as src/native.ts declares it (NativeDriverThread).
//
// Ownership: the functions of a driver and the ArrayBuffer of its counters hold its handle.
#include <napi.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "addon/latency_rows.h"
#include "addon/option_reader.h"
#include "addon/raw_arguments.h"
#include "addon/thread_handle.h"
#include "os/driver_thread.h"

namespace hushring {

namespace {

Suppression read_suppression(OptionReader& reader) {
  const bool event_idx = reader.boolean("eventIdx");
  if (reader.boolean("suppress")) return event_idx ? Suppression::kEventIdx : Suppression::kFlags;
  // With EVENT_IDX a driver that never moves used_event has asked for silence.
  if (event_idx && !reader.failed()) reader.fail_range("eventIdx", "false when `suppress` is");
  return Suppression::kNone;
}

os::DriverOptions read_options(OptionReader& reader) {
  const auto fd = [&](const char* name) {
    return static_cast<int>(reader.integer(name, 0, std::numeric_limits<int>::max()));
  };
  const auto u32 = [&](const char* name, std::int64_t min, std::int64_t max) {
    return static_cast<std::uint32_t>(reader.integer(name, min, max));
  };
  const auto u64 = [&](const char* name, std::int64_t min, std::int64_t max = kSafeIntegerMax) {
    return static_cast<std::uint64_t>(reader.integer(name, min, max));
  };
  return {.memory_fd = fd("memoryFd"),
          .memory_bytes = u64("memoryBytes", 1),
          .memory_offset_bytes = static_cast<std::uint64_t>(
              reader.integer_or("memoryOffsetBytes", 0, 0, std::int64_t{1} << 40)),
          .kick_fd = fd("kickFd"),
          .call_fd = fd("callFd"),
          .queue_size = u32("queueSize", 4, kSplitQueueSizeMax),
          .suppression = read_suppression(reader),
          .indirect = reader.boolean("indirect"),
          .segment_count = u32("segmentCount", 1, 126),
          .request_count_max = u64("requestCountMax", 0),
          .duration_ms = u64("durationMs", 0, std::numeric_limits<std::int32_t>::max()),
          .stall_ms = u32("stallMs", 1, std::numeric_limits<std::int32_t>::max()),
          .first_sector = static_cast<std::uint64_t>(
              reader.integer_or("firstSector", 0, 0, kSafeIntegerMax / kSectorBytes)),
          .load = {.block_bytes = u32("blockBytes", kSectorBytes, std::int64_t{1} << 30),
                   .capacity_bytes = u64("capacityBytes", 0),
                   .write_percent = u32("writePercent", 0, 100),
                   .verify = reader.boolean("verify"),
                   .seed = u64("seed", 0),
                   .queue_depth = u32("queueDepth", 1, kSplitQueueSizeMax),
                   .sequential = reader.boolean("sequential")}};
}

using DriverHandle = ThreadHandle<os::DriverThread>;

Napi::Value latencies(DriverHandle& handle, const Napi::CallbackInfo& info) {
  return rows_of(info.Env(), handle.thread().latencies());
}

Napi::Value finish(DriverHandle& handle, const Napi::CallbackInfo& info) {
  handle.thread().finish();
  return info.Env().Undefined();
}

Napi::Value start_driver_thread(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  OptionReader reader(info[0]);
  const os::DriverOptions options = read_options(reader);
  if (reader.failed()) return env.Undefined();
  if (const auto complaint = os::complaint_about(options)) {
    reader.fail_range(complaint->name, complaint->expectation);
    return env.Undefined();
  }
  os::MapFailure failure;
  std::unique_ptr<os::DriverThread> thread = os::DriverThread::make(options, failure);
  if (thread == nullptr) {
    if (failure.error != 0) throw_system_error(env, failure.error, failure.syscall);
    else throw_coded(Napi::Error::New(env, "the memory cannot be mapped: " + failure.reason), "ERR_MEMORY_REGION");
    return env.Undefined();
  }

  const auto handle = std::make_shared<DriverHandle>(std::move(thread), "driver");
  const Napi::Object driver = Napi::Object::New(env);
  const SplitLayout& ring = handle->thread().ring();
  driver.Set("descriptorAddress", Napi::BigInt::New(env, ring.descriptor_address));
  driver.Set("availableAddress", Napi::BigInt::New(env, ring.avail_address));
  driver.Set("usedAddress", Napi::BigInt::New(env, ring.used_address));
  driver.Set("counters", counters_of(env, handle));
  const auto define = [&](const char* name, auto body) {
    const auto function = [handle, body](const Napi::CallbackInfo& call) -> Napi::Value { return body(*handle, call); };
    driver.Set(name, Napi::Function::New(env, function, name));
  };
  define("latencies", latencies);
  define("finish", finish);
  define_run_and_close(driver, handle);
  return driver;
}

}  // namespace

void register_driver_threads(Napi::Env env, Napi::Object exports) {
  exports.Set("startDriverThread", Napi::Function::New(env, start_driver_thread, "startDriverThread"));
}

}  // namespace hushring
