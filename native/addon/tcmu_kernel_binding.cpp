// createTcmuKernel: a simulated TCMU device as src/native.ts declares it (NativeTcmuKernel).
#include <fcntl.h>
#include <napi.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "addon/bindings.h"
#include "addon/bound_functions.h"
#include "addon/errors.h"
#include "addon/latency_rows.h"
#include "addon/option_reader.h"
#include "addon/owned_fds.h"
#include "addon/raw_arguments.h"
#include "addon/tcmu_port_binding.h"
#include "os/tcmu_simulator.h"

namespace hushring {
namespace {

using os::TcmuSimulator;

constexpr std::int64_t kUint32Max = std::numeric_limits<std::uint32_t>::max();

// The JavaScript object's share; open ports have theirs.
struct KernelShare {
  std::shared_ptr<TcmuSimulator> simulator;
};

using Arguments = const Napi::CallbackInfo&;

// Nothing of JavaScript is made while the kernel is locked: that may collect garbage, and the end of a port that is
// found then waits for the same lock.

// ---- The initiator's side --------------------------------------------------------------------------------------

Napi::Value submit(KernelShare& share, Arguments info) {
  const Napi::Env env = info.Env();
  std::int64_t tag = 0;
  std::span<std::byte> cdb;
  std::span<std::byte> data_out;
  std::int64_t data_in_bytes = 0;
  if (!integer_argument(info, 0, "tag", 0, kSafeIntegerMax, tag) || !bytes_argument(info, 1, "cdb", cdb) ||
      !bytes_argument(info, 2, "dataOut", data_out) ||
      !integer_argument(info, 3, "dataInBytes", 0, std::int64_t{1} << 30, data_in_bytes)) {
    return env.Undefined();
  }
  const bool submitted = share.simulator->submit(static_cast<std::uint64_t>(tag), cdb,
                                                 std::vector<std::byte>(data_out.begin(), data_out.end()),
                                                 static_cast<std::size_t>(data_in_bytes));
  return Napi::Boolean::New(env, submitted);
}

// Empty, after throwing, in a worker that is being terminated.
Napi::ArrayBuffer copy_of(Napi::Env env, std::span<const std::byte> bytes) {
  Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, bytes.size());
  if (!buffer.IsEmpty() && !bytes.empty()) std::memcpy(buffer.Data(), bytes.data(), bytes.size());
  return buffer;
}

Napi::Value take_results(KernelShare& share, Arguments info) {
  const Napi::Env env = info.Env();
  const Napi::Array commands = Napi::Array::New(env);
  for (const auto& [result, data_in] : share.simulator->take_finished()) {
    const Napi::ArrayBuffer sense = copy_of(env, result.sense);
    const Napi::ArrayBuffer data = copy_of(env, data_in);
    if (sense.IsEmpty() || data.IsEmpty()) return env.Undefined();
    const Napi::Object row = Napi::Object::New(env);
    row.Set("tag", static_cast<double>(result.tag));
    row.Set("status", static_cast<std::uint32_t>(result.status));
    row.Set("sense", sense);
    row.Set("dataIn", data);
    row.Set("residualBytes", result.residual_bytes);
    commands.Set(commands.Length(), row);
  }
  const Napi::Array functions = Napi::Array::New(env);
  for (const TmrResult& result : share.simulator->take_task_management()) {
    const Napi::Object row = Napi::Object::New(env);
    row.Set("number", static_cast<double>(result.number));
    row.Set("response", static_cast<std::uint32_t>(result.response));
    functions.Set(functions.Length(), row);
  }
  const Napi::Object results = Napi::Object::New(env);
  results.Set("commands", commands);
  results.Set("taskManagement", functions);
  return results;
}

Napi::Value abort_task(KernelShare& share, Arguments info) {
  std::int64_t number = 0;
  std::int64_t tag = 0;
  if (integer_argument(info, 0, "number", 0, kSafeIntegerMax, number) &&
      integer_argument(info, 1, "tag", 0, kSafeIntegerMax, tag)) {
    share.simulator->kernel()->abort_task(static_cast<std::uint64_t>(number), static_cast<std::uint64_t>(tag));
  }
  return info.Env().Undefined();
}

Napi::Value lun_reset(KernelShare& share, Arguments info) {
  std::int64_t number = 0;
  if (integer_argument(info, 0, "number", 0, kSafeIntegerMax, number)) {
    share.simulator->kernel()->lun_reset(static_cast<std::uint64_t>(number));
  }
  return info.Env().Undefined();
}

Napi::Value plug(KernelShare& share, Arguments info) {
  share.simulator->kernel()->plug();
  return info.Env().Undefined();
}

Napi::Value unplug(KernelShare& share, Arguments info) {
  share.simulator->kernel()->unplug();
  return info.Env().Undefined();
}

Napi::Value advance(KernelShare& share, Arguments info) {
  std::int64_t ms = 0;
  if (integer_argument(info, 0, "ms", 0, kUint32Max, ms)) {
    share.simulator->kernel()->advance(static_cast<std::uint64_t>(ms));
  }
  return info.Env().Undefined();
}

// ---- The administrator's side ----------------------------------------------------------------------------------

Napi::Value notify_of_task_management(KernelShare& share, Arguments info) {
  share.simulator->kernel()->notify_of_task_management(flag_from(info[0]));
  return info.Env().Undefined();
}

Napi::Value reset_ring(KernelShare& share, Arguments info) {
  std::int64_t level = 0;
  if (!integer_argument(info, 0, "level", 0, 255, level)) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), share.simulator->kernel()->reset_ring(static_cast<std::uint32_t>(level)));
}

Napi::Value set_blocked(KernelShare& share, Arguments info) {
  const TcmuSimulator::Locked kernel = share.simulator->kernel();
  if (flag_from(info[0])) kernel->block();
  else kernel->unblock();
  return info.Env().Undefined();
}

Napi::Value free_kept_buffer(KernelShare& share, Arguments info) {
  std::int64_t id = 0;
  if (!integer_argument(info, 0, "commandId", 0, 65535, id)) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), share.simulator->kernel()->free_kept_buffer(static_cast<std::uint16_t>(id)));
}

Napi::Value remove(KernelShare& share, Arguments info) {
  share.simulator->remove();
  return info.Env().Undefined();
}

Napi::Value open_port(KernelShare& share, Arguments info) {
  std::shared_ptr<os::TcmuPort> port = share.simulator->open();
  if (port != nullptr) return wrap_tcmu_port(info.Env(), std::move(port));
  throw_system_error(info.Env(), EBUSY, "open");
  return info.Env().Undefined();
}

// ---- Anything at all -------------------------------------------------------------------------------------------

Napi::Value read_memory(KernelShare& share, Arguments info) {
  const std::span<std::byte> memory = share.simulator->memory();
  std::int64_t offset = 0;
  std::int64_t length = 0;
  const auto size = static_cast<std::int64_t>(memory.size());
  if (!integer_argument(info, 0, "offsetBytes", 0, size, offset) ||
      !integer_argument(info, 1, "lengthBytes", 0, size - offset, length)) {
    return info.Env().Undefined();
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(length));
  {
    const TcmuSimulator::Locked kernel = share.simulator->kernel();
    std::copy_n(memory.begin() + offset, length, bytes.begin());
  }
  return copy_of(info.Env(), bytes);
}

Napi::Value write_memory(KernelShare& share, Arguments info) {
  const std::span<std::byte> memory = share.simulator->memory();
  std::int64_t offset = 0;
  std::span<std::byte> bytes;
  if (!bytes_argument(info, 1, "bytes", bytes)) return info.Env().Undefined();
  const auto offset_max = static_cast<std::int64_t>(memory.size()) - static_cast<std::int64_t>(bytes.size());
  if (!integer_argument(info, 0, "offsetBytes", 0, offset_max, offset)) return info.Env().Undefined();
  const TcmuSimulator::Locked kernel = share.simulator->kernel();
  std::copy(bytes.begin(), bytes.end(), memory.begin() + offset);
  return info.Env().Undefined();
}

Napi::Value publish_head(KernelShare& share, Arguments info) {
  std::int64_t head = 0;
  if (integer_argument(info, 0, "head", 0, kUint32Max, head)) {
    share.simulator->kernel()->publish_head(static_cast<std::uint32_t>(head));
  }
  return info.Env().Undefined();
}

Napi::Value put_entry(KernelShare& share, Arguments info) {
  std::int64_t opcode = 0;
  std::span<std::byte> body;
  if (!integer_argument(info, 0, "opcode", 0, kTcmuOpcodeMask, opcode) || !bytes_argument(info, 1, "body", body)) {
    return info.Env().Undefined();
  }
  const bool put = share.simulator->kernel()->put_entry(static_cast<std::uint32_t>(opcode), body);
  return Napi::Boolean::New(info.Env(), put);
}

// ---- What is known ---------------------------------------------------------------------------------------------

// Words of an inspection, named as in src/native.ts.
struct Figure {
  const char* name;
  std::uint64_t value;
};

Napi::Value inspect(KernelShare& share, Arguments info) {
  std::vector<Figure> figures;
  bool is_broken = false;
  bool is_blocked = false;
  {
    const TcmuSimulator::Locked kernel = share.simulator->kernel();
    figures = {{"head", kernel->head()},
               {"drained", kernel->drained()},
               {"idCount", kernel->id_count()},
               {"heldBackCount", kernel->held_back_count()},
               {"waitingTaskManagementCount", kernel->waiting_tmr_count()},
               {"freeBlockCount", kernel->free_block_count()},
               {"eventCount", kernel->event_count()},
               {"doorbellCount", kernel->doorbell_count()},
               {"fault", static_cast<std::uint64_t>(kernel->fault())}};
    is_broken = kernel->is_broken();
    is_blocked = kernel->is_blocked();
  }
  const Napi::Object view = Napi::Object::New(info.Env());
  for (const Figure& figure : figures) view.Set(figure.name, static_cast<double>(figure.value));
  view.Set("isBroken", Napi::Boolean::New(info.Env(), is_broken));
  view.Set("isBlocked", Napi::Boolean::New(info.Env(), is_blocked));
  return view;
}

Napi::Value log_lines(KernelShare& share, Arguments info) {
  const std::vector<std::string> kept = share.simulator->kernel()->log_lines();
  const Napi::Array lines = Napi::Array::New(info.Env());
  for (const std::string& line : kept) lines.Set(lines.Length(), line);
  return lines;
}

// ---- Load ------------------------------------------------------------------------------------------------------

Napi::Value start_load(KernelShare& share, Arguments info) {
  const Napi::Env env = info.Env();
  OptionReader reader(info[0]);
  const auto u32 = [&](const char* name, std::int64_t min, std::int64_t max) {
    return static_cast<std::uint32_t>(reader.integer(name, min, max));
  };
  const auto u64 = [&](const char* name, std::int64_t max = kSafeIntegerMax) {
    return static_cast<std::uint64_t>(reader.integer(name, 0, max));
  };
  const os::TcmuLoadOptions options{.load = {.block_bytes = u32("blockBytes", 1, std::int64_t{1} << 30),
                                             .capacity_bytes = u64("capacityBytes"),
                                             .write_percent = u32("writePercent", 0, 100),
                                             .verify = reader.boolean("verify"),
                                             .seed = u64("seed"),
                                             .queue_depth = u32("queueDepth", 1, 65535)},
                                    .logical_block_bytes = u32("logicalBlockBytes", 1, kUint32Max),
                                    .request_count_max = u64("requestCountMax"),
                                    .duration_ms = u64("durationMs", std::numeric_limits<std::int32_t>::max())};
  if (reader.failed()) return env.Undefined();
  if (const auto complaint = complaint_about(options)) {
    reader.fail_range(complaint->name, complaint->expectation);
    return env.Undefined();
  }
  return Napi::Boolean::New(env, share.simulator->start_load(options));
}

Napi::Value stop_load(KernelShare& share, Arguments info) {
  share.simulator->stop_load();
  return info.Env().Undefined();
}

Napi::Value load(KernelShare& share, Arguments info) {
  const TcmuSimulator::LoadSnapshot snapshot = share.simulator->load();
  const Napi::Object view = Napi::Object::New(info.Env());
  const auto set = [&](const char* name, std::uint64_t value) { view.Set(name, static_cast<double>(value)); };
  view.Set("isDone", Napi::Boolean::New(info.Env(), snapshot.is_done));
  set("requests", snapshot.result.requests);
  set("failedRequests", snapshot.result.failed_requests);
  set("mismatchedBytes", snapshot.result.mismatched_bytes);
  set("verifiedBytes", snapshot.result.verified_bytes);
  set("elapsedNanos", snapshot.result.elapsed_nanos);
  set("doorbells", snapshot.result.doorbells);
  set("events", snapshot.result.events);
  view.Set("latencies", rows_of(info.Env(), snapshot.latencies));
  return view;
}

// ---- Functions of the addon ------------------------------------------------------------------------------------

TcmuKernelOptions read_options(OptionReader& reader) {
  return {.ring_bytes = static_cast<std::uint32_t>(reader.integer("ringBytes", 0, kUint32Max)),
          .data_area_bytes = static_cast<std::uint64_t>(reader.integer("dataAreaBytes", 0, kSafeIntegerMax)),
          .block_bytes = static_cast<std::uint32_t>(reader.integer("blockBytes", 0, kUint32Max)),
          .flags = static_cast<std::uint16_t>(reader.integer("flags", 0, 65535)),
          .tmr_notification = reader.boolean("taskManagement"),
          .command_timeout_ms = static_cast<std::uint64_t>(reader.integer("commandTimeoutMs", 0, kUint32Max)),
          .queue_full_timeout_ms = reader.integer("queueFullTimeoutMs", -1, kUint32Max)};
}

Napi::Value create_tcmu_kernel(Arguments info) {
  const Napi::Env env = info.Env();
  OptionReader reader(info[0]);
  const TcmuKernelOptions options = read_options(reader);
  if (reader.failed()) return env.Undefined();
  if (const auto complaint = complaint_about(options)) {
    reader.fail_range(complaint->name, complaint->expectation);
    return env.Undefined();
  }
  os::Result failure;
  std::shared_ptr<TcmuSimulator> simulator = TcmuSimulator::make(options, failure);
  if (simulator == nullptr) return value_or_throw(env, failure);
  // The simulator lives as long as a port of it, and may outlast the watch on this descriptor: so this is another.
  const int duplicate = ::fcntl(simulator->initiator_fd(), F_DUPFD_CLOEXEC, 0);
  const Napi::Value initiator_fd =
      owned_fd_or_throw(env, duplicate < 0 ? os::Result::failed("fcntl") : os::Result::of(duplicate));
  if (!initiator_fd.IsNumber()) return env.Undefined();

  const auto map_bytes = static_cast<double>(simulator->memory().size());
  const auto handle =
      make_handle(std::make_unique<KernelShare>(KernelShare{std::move(simulator)}), "the kernel is closed");
  const Napi::Object object = Napi::Object::New(env);
  object.Set("mapBytes", map_bytes);
  object.Set("initiatorFd", initiator_fd);
  define_cold(object, "submit", handle, submit);
  define_cold(object, "takeResults", handle, take_results);
  define_cold(object, "abortTask", handle, abort_task);
  define_cold(object, "lunReset", handle, lun_reset);
  define_cold(object, "plug", handle, plug);
  define_cold(object, "unplug", handle, unplug);
  define_cold(object, "advance", handle, advance);
  define_cold(object, "notifyOfTaskManagement", handle, notify_of_task_management);
  define_cold(object, "resetRing", handle, reset_ring);
  define_cold(object, "setBlocked", handle, set_blocked);
  define_cold(object, "freeKeptBuffer", handle, free_kept_buffer);
  define_cold(object, "remove", handle, remove);
  define_cold(object, "openPort", handle, open_port);
  define_cold(object, "readMemory", handle, read_memory);
  define_cold(object, "writeMemory", handle, write_memory);
  define_cold(object, "publishHead", handle, publish_head);
  define_cold(object, "putEntry", handle, put_entry);
  define_cold(object, "inspect", handle, inspect);
  define_cold(object, "logLines", handle, log_lines);
  define_cold(object, "startLoad", handle, start_load);
  define_cold(object, "stopLoad", handle, stop_load);
  define_cold(object, "load", handle, load);
  define_close(object, handle);
  return object;
}

}  // namespace

void register_tcmu_kernels(Napi::Env env, Napi::Object exports) {
  exports.Set("createTcmuKernel", Napi::Function::New(env, create_tcmu_kernel, "createTcmuKernel"));
}

}  // namespace hushring
