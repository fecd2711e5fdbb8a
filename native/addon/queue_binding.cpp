// createSplitQueue: the device's half of a split virtqueue as src/native.ts declares it (NativeQueue). What owns
// what is told in bound_functions.h.
#include <napi.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "addon/bindings.h"
#include "addon/bound_functions.h"
#include "addon/errors.h"
#include "addon/option_reader.h"
#include "addon/raw_arguments.h"
#include "addon/region_binding.h"
#include "core/ordering.h"
#include "core/split.h"
#include "os/clock.h"
#include "os/eventfd.h"
#include "os/mapped_region.h"

namespace hushring {

namespace {

// ---- Options ---------------------------------------------------------------------------------------------------

SplitOptions read_queue_options(OptionReader& reader) {
  const std::int64_t batch_count_max = reader.integer("batchCountMax", 1, kSplitQueueSizeMax);
  const SplitOptions options{
      .size_max = static_cast<std::uint32_t>(reader.integer("sizeMax", 1, kSplitQueueSizeMax)),
      .batch_count_max = static_cast<std::uint32_t>(batch_count_max),
      .chain_count_max = static_cast<std::uint32_t>(reader.integer("chainCountMax", 1, 65535)),
      .framing = {.header_bytes = static_cast<std::uint32_t>(reader.integer("headerBytes", 0, 64)),
                  .status_byte = reader.boolean("statusByte")},
      .strict_chains = reader.boolean("strictChains"),
      .batch_count_min = static_cast<std::uint32_t>(
          reader.integer_or("batchCountMin", batch_count_max, 1, kSplitQueueSizeMax)),
  };
  if (!reader.failed() && !std::has_single_bit(options.size_max)) {
    reader.fail_range("sizeMax", "a power of two up to 32768");
  }
  return options;
}

SplitRing read_ring(OptionReader& reader) {
  // The size comes from the peer: whether it is a power of two within the limit is for the queue to judge.
  return {.size = static_cast<std::uint32_t>(reader.integer("size", 0, std::numeric_limits<std::uint32_t>::max())),
          .space = reader.boolean("guestAddresses") ? AddressSpace::kGuest : AddressSpace::kUser,
          .descriptor_address = reader.address("descriptorAddress"),
          .avail_address = reader.address("availableAddress"),
          .used_address = reader.address("usedAddress"),
          .avail_base = static_cast<std::uint16_t>(reader.integer("availableBase", 0, 65535)),
          .event_idx = reader.boolean("eventIdx"),
          .indirect = reader.boolean("indirect")};
}

// ---- Memory ----------------------------------------------------------------------------------------------------

// The regions a ring runs on, kept mapped even if JavaScript closes them.
struct RingMemory {
  std::vector<std::shared_ptr<os::MappedRegion>> mappings;
  std::vector<Region> regions;
  std::uint32_t generation = 0;

  [[nodiscard]] bool truncated() const noexcept {
    for (const auto& mapping : mappings) {
      if (mapping->truncated()) return true;
    }
    return false;
  }
};

// Nothing, after throwing a TypeError, when `value` is no array of open regions.
std::optional<RingMemory> read_memory(Napi::Env env, const Napi::Value& value) {
  RingMemory memory;
  if (!value.IsArray()) {
    throw_type_error(env, "regions", "an array of regions");
    return std::nullopt;
  }
  const auto array = value.As<Napi::Array>();
  std::uint32_t window = 0;
  for (std::uint32_t index = 0; index < array.Length(); ++index) {
    std::shared_ptr<os::MappedRegion> mapping = region_from(array.Get(index));
    if (mapping == nullptr) {
      throw_type_error(env, "regions", "an array of open regions");
      return std::nullopt;
    }
    memory.regions.push_back(
        {mapping->guest_address, mapping->user_address, mapping->size_bytes, mapping->host, window});
    window += window_count(mapping->size_bytes);
    memory.mappings.push_back(std::move(mapping));
  }
  return memory;
}

// ---- The in-flight region --------------------------------------------------------------------------------------

// Where a queue finds what an earlier process was serving, kept mapped even if JavaScript closes it. Empty: nowhere.
struct RingInflight {
  std::shared_ptr<os::MappedRegion> mapping;
  InflightPlace place;

  [[nodiscard]] bool truncated() const noexcept { return mapping != nullptr && mapping->truncated(); }
};

// Nothing, after throwing, when `value` is neither undefined nor a place in an open region.
std::optional<RingInflight> read_inflight(Napi::Env env, const Napi::Value& value) {
  if (value.IsUndefined()) return RingInflight{};
  OptionReader reader(value);
  std::shared_ptr<os::MappedRegion> mapping = region_from(reader.value("region"));
  const std::int64_t offset_bytes = reader.integer("offsetBytes", 0, kSafeIntegerMax);
  const std::int64_t entry_count = reader.integer("entryCount", 1, kSplitQueueSizeMax);
  if (reader.failed()) return std::nullopt;
  if (mapping == nullptr) {
    throw_type_error(env, "inflight.region", "an open region");
    return std::nullopt;
  }
  const InflightPlace place{mapping->host + offset_bytes, static_cast<std::uint32_t>(entry_count)};
  const auto offset = static_cast<std::uint64_t>(offset_bytes);
  const bool inside = offset <= mapping->size_bytes &&
                      inflight_bytes(place.entry_count) <= mapping->size_bytes - offset;
  if (!inside || reinterpret_cast<std::uintptr_t>(place.start) % kInflightAlign != 0) {
    reader.fail_range("offsetBytes", "a multiple of 64 that leaves room in the region");
    return std::nullopt;
  }
  return RingInflight{std::move(mapping), place};
}

// ---- The tables ------------------------------------------------------------------------------------------------

// The tables in one ArrayBuffer of JavaScript's, which stays where it is while it is referenced here. Nobody but
// src/ring/queue.ts sees the buffer, and that never transfers it.
class Tables {
 public:
  // An ArrayBuffer of the size for these options; empty when there is no memory for it.
  static Napi::ArrayBuffer make_buffer(Napi::Env env, const SplitOptions& options) {
    return Napi::ArrayBuffer::New(env, Tables(options).total_bytes());
  }

  Tables(const SplitOptions& options, const Napi::ArrayBuffer& buffer)
      : options_(options), buffer_(Napi::Persistent(buffer)) {}

  [[nodiscard]] SplitTables native() {
    auto* const base = static_cast<std::byte*>(buffer_.Value().Data());
    return {.requests = {reinterpret_cast<RequestRow*>(base + requests_at()), options_.request_rows()},
            .headers = {base + headers_at(), headers_bytes()},
            .segments = {reinterpret_cast<Segment*>(base + segments_at()), options_.segment_rows()},
            .completions = {reinterpret_cast<const CompletionRow*>(base + completions_at()),
                            options_.completion_rows()},
            .counters = reinterpret_cast<QueueCounters*>(base)};
  }

  void define(Napi::Object queue) {
    const Napi::Env env = queue.Env();
    const Napi::ArrayBuffer buffer = buffer_.Value();
    const auto words = [&](std::size_t from, std::size_t to) {
      return Napi::Uint32Array::New(env, (to - from) / sizeof(std::uint32_t), buffer, from);
    };
    constexpr std::size_t kCounterCount = sizeof(QueueCounters) / sizeof(std::uint64_t);
    queue.Set("counters", Napi::BigUint64Array::New(env, kCounterCount, buffer, 0));
    queue.Set("requests", words(requests_at(), headers_at()));
    queue.Set("headers", words(headers_at(), segments_at()));
    queue.Set("segments", words(segments_at(), completions_at()));
    queue.Set("completions", words(completions_at(), total_bytes()));
  }

 private:
  explicit Tables(const SplitOptions& options) : options_(options) {}

  [[nodiscard]] static constexpr std::size_t requests_at() { return sizeof(QueueCounters); }
  [[nodiscard]] std::size_t headers_at() const {
    return requests_at() + options_.request_rows() * sizeof(RequestRow);
  }
  [[nodiscard]] std::size_t headers_bytes() const {
    return options_.request_rows() * options_.header_stride_bytes();
  }
  [[nodiscard]] std::size_t segments_at() const { return headers_at() + headers_bytes(); }
  [[nodiscard]] std::size_t completions_at() const {
    return segments_at() + options_.segment_rows() * sizeof(Segment);
  }
  [[nodiscard]] std::size_t total_bytes() const {
    return completions_at() + options_.completion_rows() * sizeof(CompletionRow);
  }

  const SplitOptions options_;
  Napi::Reference<Napi::ArrayBuffer> buffer_;
};

// ---- The queue -------------------------------------------------------------------------------------------------

class SplitQueue {
 public:
  SplitQueue(const SplitOptions& options, const Napi::ArrayBuffer& buffer)
      : tables_(options, buffer), counters_(*tables_.native().counters), device_(options, tables_.native()) {}

  void define_tables(Napi::Object queue) { tables_.define(queue); }

  [[nodiscard]] Fault start(const SplitRing& ring, RingMemory memory, RingInflight inflight, int call_fd) {
    settle();
    const Fault fault = device_.start(ring, memory.regions, inflight.place);
    inflight_ = std::move(inflight);
    retired_.clear();
    // The device borrows the vector's storage, which moves along.
    memory_ = fault == Fault::kNone ? std::move(memory) : RingMemory{};
    memory_.generation = device_.generation();
    call_fd_ = call_fd;
    return fault;
  }

  std::uint16_t stop() {
    settle();
    const std::uint16_t avail_index = device_.stop();
    memory_ = {};
    retired_.clear();
    inflight_ = {};
    call_fd_ = -1;
    return avail_index;
  }

  [[nodiscard]] Fault set_regions(RingMemory memory) {
    if (!device_.running()) return Fault::kNone;
    if (const Fault fault = device_.set_regions(memory.regions); fault != Fault::kNone) return fault;
    retired_.push_back(std::exchange(memory_, std::move(memory)));
    memory_.generation = device_.generation();
    drop_unused_memory();
    return Fault::kNone;
  }

  void set_call_fd(int call_fd) {
    call_fd_ = call_fd;
    device_.forget_decision();
  }

  void signal() noexcept {
    if (call_fd_ < 0) return;
    os::eventfd_signal(call_fd_);
    device_.note_signal();
    ++counters_.signals;
  }

  [[nodiscard]] std::int32_t take(std::uint32_t count_max) noexcept {
    ++counters_.native_calls;
    taken_ticks_ = os::clock_ticks();
    const std::int32_t taken = unless_truncated(device_.take(count_max));
    if (taken < 0) settle();
    return taken;
  }

  [[nodiscard]] std::int32_t complete(std::uint32_t count, std::uint32_t poll_nanos_max, bool may_defer) noexcept {
    ++counters_.native_calls;
    const std::int32_t bits = device_.publish(count);
    if (!retired_.empty()) drop_unused_memory();
    if (bits < 0) return bits;
    if (may_defer && device_.signal_can_wait() && is_quick()) return unless_truncated(kUndecided | kMore);
    const std::int32_t decided = settle();
    if (!device_.running()) return unless_truncated(decided);
    return unless_truncated(decided | (poll_nanos_max > 0 ? look_for(poll_nanos_max) : device_.rearm()));
  }

  // Takes the decision that is owed, if one is, and signals if it says so.
  std::int32_t settle() noexcept {
    const std::int32_t decided = device_.decide();
    if (decided != kSignalled) return decided;
    if (call_fd_ < 0) return 0;
    signal();
    return kSignalled;
  }

  [[nodiscard]] const SplitDevice<HardwareOrdering>& device() const noexcept { return device_; }
  // A driver without a call eventfd polls.
  [[nodiscard]] bool owes_signal() const noexcept { return call_fd_ >= 0 && device_.owes_signal(); }

 private:
  // Whether the last batch was answered so soon that the next one will hardly keep the driver waiting. What is put off
  // all the same waits for one batch.
  [[nodiscard]] bool is_quick() const noexcept {
    constexpr std::uint64_t kQuickNanos = 10'000;
    static const std::uint64_t quick_ticks = os::ticks_in(kQuickNanos);
    return os::clock_ticks() - taken_ticks_ <= quick_ticks;
  }

  // Looks whether anything is visible for up to so long, kicks not asked for, and asks for them when nothing came. The
  // driver was told of its answers before: it may be what the driver waits for.
  [[nodiscard]] std::int32_t look_for(std::uint32_t nanos_max) noexcept {
    device_.withdraw_wish();
    if (device_.sees_entry()) return kMore;
    // A driver that is at work offers the next request sooner than the clock is read twice.
    constexpr int kLooksWithoutClock = 16;
    for (int look = 0; look < kLooksWithoutClock; ++look) {
      os::spin_pause();
      if (device_.sees_entry()) return kMore | kPolled;
    }
    const std::uint64_t until = os::monotonic_nanos() + nanos_max;
    do {
      os::spin_pause();
      if (device_.sees_entry()) return kMore | kPolled | kWaited;
    } while (os::monotonic_nanos() < until);
    return device_.rearm() | kPolled | kWaited;
  }

  // A queue whose memory file was made shorter reads zeros instead of what the driver wrote: it cannot go on.
  [[nodiscard]] std::int32_t unless_truncated(std::int32_t result) noexcept {
    return memory_.truncated() || inflight_.truncated() ? device_.break_queue(Fault::kMemoryTruncated) : result;
  }

  // Status bytes of heads in flight lie in the memory they were taken under, which is kept as long as one does.
  void drop_unused_memory() noexcept {
    std::erase_if(retired_, [this](const RingMemory& memory) { return !device_.in_flight_under(memory.generation); });
  }

  Tables tables_;
  QueueCounters& counters_;
  SplitDevice<HardwareOrdering> device_;
  RingMemory memory_;
  std::vector<RingMemory> retired_;
  RingInflight inflight_;
  std::uint64_t taken_ticks_ = 0;
  int call_fd_ = -1;  // borrowed
};

// ---- The functions of a queue ----------------------------------------------------------------------------------

napi_value take(napi_env env, napi_callback_info info) {
  const HotCall<SplitQueue, 1> call(env, info);
  if (call.bound == nullptr) return nullptr;
  napi_value result = nullptr;
  napi_create_int32(env, call.bound->take(call.uint32_at(env, 0)), &result);
  return result;
}

napi_value complete(napi_env env, napi_callback_info info) {
  const HotCall<SplitQueue, 3> call(env, info);
  if (call.bound == nullptr) return nullptr;
  bool may_defer = false;
  napi_get_value_bool(env, call.arguments[2], &may_defer);
  napi_value result = nullptr;
  napi_create_int32(env, call.bound->complete(call.uint32_at(env, 0), call.uint32_at(env, 1), may_defer), &result);
  return result;
}

Napi::Value number(const Napi::CallbackInfo& info, Fault fault) {
  return Napi::Number::New(info.Env(), static_cast<double>(fault));
}

Napi::Value start(SplitQueue& queue, const Napi::CallbackInfo& info) {
  OptionReader reader(info[0]);
  const SplitRing ring = read_ring(reader);
  const auto call_fd = static_cast<int>(reader.integer("callFd", -1, std::numeric_limits<int>::max()));
  const Napi::Value regions = reader.value("regions");
  const Napi::Value inflight_place = reader.value("inflight");
  if (reader.failed()) return info.Env().Undefined();
  std::optional<RingMemory> memory = read_memory(info.Env(), regions);
  if (!memory) return info.Env().Undefined();
  std::optional<RingInflight> inflight = read_inflight(info.Env(), inflight_place);
  if (!inflight) return info.Env().Undefined();
  return number(info, queue.start(ring, *std::move(memory), *std::move(inflight), call_fd));
}

Napi::Value stop(SplitQueue& queue, const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), queue.stop());
}

Napi::Value set_regions(SplitQueue& queue, const Napi::CallbackInfo& info) {
  std::optional<RingMemory> memory = read_memory(info.Env(), info[0]);
  if (!memory) return info.Env().Undefined();
  return number(info, queue.set_regions(*std::move(memory)));
}

Napi::Value set_call_fd(SplitQueue& queue, const Napi::CallbackInfo& info) {
  std::int64_t call_fd = -1;
  if (integer_argument(info, 0, "callFd", -1, std::numeric_limits<int>::max(), call_fd)) {
    queue.set_call_fd(static_cast<int>(call_fd));
  }
  return info.Env().Undefined();
}

Napi::Value signal(SplitQueue& queue, const Napi::CallbackInfo& info) {
  queue.signal();
  return info.Env().Undefined();
}

Napi::Value settle(SplitQueue& queue, const Napi::CallbackInfo& info) {
  queue.settle();
  return info.Env().Undefined();
}

Napi::Value inspect(SplitQueue& queue, const Napi::CallbackInfo& info) {
  const SplitDevice<HardwareOrdering>& device = queue.device();
  const Napi::Object view = Napi::Object::New(info.Env());
  view.Set("visible", device.visible_count());
  view.Set("armed", device.armed());
  view.Set("inFlight", device.in_flight_count());
  view.Set("owed", device.owed_count());
  view.Set("broken", static_cast<std::uint32_t>(device.fault()));
  view.Set("availableIndex", device.avail_index());
  view.Set("usedIndex", device.used_index());
  view.Set("owesSignal", queue.owes_signal());
  return view;
}

Napi::Value create_split_queue(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  OptionReader reader(info[0]);
  const SplitOptions options = read_queue_options(reader);
  if (reader.failed()) return env.Undefined();

  const Napi::ArrayBuffer buffer = Tables::make_buffer(env, options);
  if (buffer.IsEmpty()) return env.Undefined();
  const auto handle = make_handle(std::make_unique<SplitQueue>(options, buffer), "the queue is closed");
  const Napi::Object object = Napi::Object::New(env);
  handle->bound->define_tables(object);
  define_hot(object, "take", take, handle);
  define_hot(object, "complete", complete, handle);
  define_cold(object, "start", handle, start);
  define_cold(object, "stop", handle, stop);
  define_cold(object, "setRegions", handle, set_regions);
  define_cold(object, "setCallFd", handle, set_call_fd);
  define_cold(object, "signal", handle, signal);
  define_cold(object, "settle", handle, settle);
  define_cold(object, "inspect", handle, inspect);
  define_close(object, handle);
  return object;
}

}  // namespace

void register_queues(Napi::Env env, Napi::Object exports) {
  exports.Set("createSplitQueue", Napi::Function::New(env, create_split_queue, "createSplitQueue"));
}

}  // namespace hushring
