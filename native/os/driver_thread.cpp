#include "os/driver_thread.h"

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "core/ordering.h"
#include "core/peer/virtio_blk.h"
#include "os/clock.h"
#include "os/eventfd.h"
#include "os/unique_fd.h"

namespace hushring::os {

namespace {

// A device that answers nothing for so many waits in a row, each ended by a kick, is given up.
constexpr std::uint32_t kStallsInARowMax = 10;

// What a request occupies in shared memory besides its data. An indirect table follows it.
struct RequestMemory {
  BlockHeader header;
  std::uint8_t status;
};
constexpr std::uint64_t kTableOffsetBytes = 32;
static_assert(kTableOffsetBytes >= sizeof(RequestMemory) && kTableOffsetBytes % alignof(Descriptor) == 0);
constexpr std::uint8_t kStatusUnwritten = 0xff;

// The header, the pieces of the data, the status.
constexpr std::uint32_t buffers_per_request(const DriverOptions& options) noexcept { return options.segment_count + 2; }

// How the memory file is used.
struct Plan {
  std::uint32_t depth;
  SplitLayout ring;
  std::uint64_t requests_address;
  std::uint64_t request_stride_bytes;
  std::uint64_t data_address;
  std::uint64_t data_stride_bytes;
  std::uint64_t end_address;
};

Plan plan_for(const DriverOptions& options) noexcept {
  constexpr std::uint64_t kPageBytes = 4096;
  constexpr std::uint64_t kPairOfLines = 128;
  const auto round_up = [](std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; };
  const auto align = [&](std::uint64_t value) { return round_up(value, kPageBytes); };
  const std::uint32_t buffers = buffers_per_request(options);
  Plan plan{};
  plan.depth = std::min(options.load.queue_depth, options.queue_size / (options.indirect ? 1 : buffers));
  // The first page stays empty: to some, a ring at address 0 is no ring.
  plan.ring = split_layout(options.memory_offset_bytes + kPageBytes, options.queue_size);
  plan.requests_address = align(plan.ring.end_address);
  plan.request_stride_bytes = round_up(kTableOffsetBytes + buffers * sizeof(Descriptor), kPairOfLines);
  plan.data_address = align(plan.requests_address + plan.depth * plan.request_stride_bytes);
  plan.data_stride_bytes = align(options.load.block_bytes);
  plan.end_address = plan.data_address + plan.depth * plan.data_stride_bytes;
  return plan;
}

BlockLoadOptions load_options_for(const DriverOptions& options) noexcept {
  BlockLoadOptions load = options.load;
  load.queue_depth = plan_for(options).depth;
  return load;
}

// Only this thread writes the counter; others read it at any time.
void add(std::uint64_t& counter, std::uint64_t amount) noexcept {
  HardwareOrdering::store_relaxed(&counter, counter + amount);
}

}  // namespace

std::optional<Complaint> complaint_about(const DriverOptions& options) {
  const BlockLoadOptions& load = options.load;
  if (!std::has_single_bit(options.queue_size)) return Complaint{"queueSize", "a power of two"};
  if (load.block_bytes % kSectorBytes != 0) return Complaint{"blockBytes", "a multiple of 512"};
  if (!options.indirect && buffers_per_request(options) > options.queue_size) {
    return Complaint{"segmentCount", "two less than the ring has entries, without indirect tables"};
  }
  if (load.capacity_bytes < load.block_bytes) return Complaint{"capacityBytes", "at least one block"};
  if (options.memory_offset_bytes % 4096 != 0) return Complaint{"memoryOffsetBytes", "a multiple of 4096"};
  const std::uint64_t needed_bytes = plan_for(options).end_address;
  if (options.memory_bytes >= needed_bytes) return std::nullopt;
  return Complaint{"memoryBytes", "at least " + std::to_string(needed_bytes) + " for this ring, depth and block size"};
}

// ---- The load --------------------------------------------------------------------------------------------------

// Made on the caller's thread; from run() on the driver's thread has it alone, except for what says otherwise.
class DriverThread::Load {
 public:
  Load(const DriverOptions& options, std::shared_ptr<MappedRegion> memory, UniqueFd stop_fd)
      : options_(options),
        plan_(plan_for(options)),
        memory_(std::move(memory)),
        stop_fd_(std::move(stop_fd)),
        driver_(memory_->host, plan_.ring, options.queue_size, options.suppression),
        blocks_(load_options_for(options)),
        in_flight_(plan_.depth),
        buffers_(buffers_per_request(options)) {
    for (std::uint32_t slot = blocks_.in_flight_max(); slot > 0; --slot) free_slots_.push_back(slot - 1);
  }

  // ---- For any thread ----

  [[nodiscard]] const SplitLayout& ring() const noexcept { return plan_.ring; }
  [[nodiscard]] DriverCounters& counters() noexcept { return counters_; }
  [[nodiscard]] std::vector<LatencyCount> latencies() const {
    if (!done_) return {};
    std::vector<LatencyCount> met = latency_ticks_.counts();
    for (LatencyCount& one : met) one.value = nanos_in(one.value);
    return met;
  }
  // Needs no waking: an answer is due, or the thread is about to submit.
  void finish() noexcept { finish_ = true; }
  // The eventfd wakes the thread from poll, the flag ends it between two waits.
  void stop() noexcept {
    stop_ = true;
    eventfd_signal(stop_fd_.get());
  }

  // ---- For the driver's thread ----

  void work() {
    constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
    constexpr std::uint64_t kNanosPerMs = 1'000'000;
    if (fill()) {
      static_cast<void>(drive(options_.request_count_max == 0 ? kNever : options_.request_count_max,
                              options_.duration_ms == 0 ? kNever : options_.duration_ms * kNanosPerMs));
    }
    add(counters_.device_fault, static_cast<std::uint64_t>(driver_.fault()));
    done_ = true;
  }

 private:
  enum class Wake : std::uint8_t { kSignal, kTimeout, kEnd };

  // Writes the blocks that are to be checked. False when the load cannot begin.
  [[nodiscard]] bool fill() {
    if (blocks_.checked_count() == 0) return true;
    DriverCounters filling;
    counting_ = &filling;
    const bool filled = drive(blocks_.checked_count(), std::numeric_limits<std::uint64_t>::max());
    counting_ = &counters_;
    add(counters_.lost_signals, filling.lost_signals);
    add(counters_.stalls, filling.stalls);
    add(counters_.failed_requests, filling.failed_requests);
    latency_ticks_ = {};
    return filled;
  }

  // Keeps the ring at its depth until `count_max` requests were submitted or `nanos_max` have passed, and then until
  // every request is answered. False when that cannot be: stopped, or the device is dead or not to be believed.
  [[nodiscard]] bool drive(std::uint64_t count_max, std::uint64_t nanos_max) {
    const std::uint64_t started_nanos = monotonic_nanos();
    unsubmitted_count_ = count_max;
    stalls_in_a_row_ = 0;
    while (!stop_) {
      driver_.disable_signals();
      now_ticks_ = clock_ticks();
      const std::uint64_t elapsed_nanos = monotonic_nanos() - started_nanos;
      HardwareOrdering::store_relaxed(&counting_->elapsed_nanos, elapsed_nanos);
      reap();
      if (driver_.fault() != DeviceFault::kNone) break;
      if (elapsed_nanos >= nanos_max || finish_) unsubmitted_count_ = 0;
      submit();
      if (driver_.in_flight_count() == 0) return true;
      // Going to sleep on answers that came meanwhile would be the lost wake-up: enable_signals() looks once more.
      if (!driver_.enable_signals() && !wait()) break;
    }
    if (!stop_) add(counting_->failed_requests, driver_.in_flight_count());
    return false;
  }

  // Refills the ring one request at a time, each published and decided on its own, as requests of independent
  // programs are: what a kick costs and what suppression saves shows in their number.
  void submit() {
    for (; unsubmitted_count_ > 0 && !free_slots_.empty(); --unsubmitted_count_) {
      const std::uint32_t slot = free_slots_.back();
      free_slots_.pop_back();
      add_request(slot);
      in_flight_[slot].submitted_ticks = clock_ticks();
      driver_.publish();
      if (driver_.kick_needed()) kick();
      else add(counting_->kicks_suppressed, 1);
    }
  }

  void add_request(std::uint32_t slot) {
    RequestMemory& memory = request_of(slot);
    const BlockRequest request = blocks_.begin(data_of(slot));
    in_flight_[slot].request = request;
    memory.header = {request.is_write ? kBlockOut : kBlockIn, 0, options_.first_sector + request.sector};
    memory.status = kStatusUnwritten;
    buffers_.front() = {address_of(&memory.header), sizeof(BlockHeader)};
    lay_data_out(slot);
    buffers_.back() = {address_of(&memory.status), sizeof(memory.status)};
    const Driver::Buffers readable =
        Driver::Buffers(buffers_).first(request.is_write ? buffers_.size() - 1 : 1);
    const Driver::Buffers writable = Driver::Buffers(buffers_).subspan(readable.size());
    auto* const table = reinterpret_cast<Descriptor*>(reinterpret_cast<std::byte*>(&memory) + kTableOffsetBytes);
    // There is room: the depth was cut to what the ring holds.
    static_cast<void>(options_.indirect ? driver_.add_indirect(readable, writable, {table, address_of(table)}, slot)
                                        : driver_.add(readable, writable, slot));
  }

  // Pieces of equal length, the last one with what is left.
  void lay_data_out(std::uint32_t slot) noexcept {
    const std::uint32_t piece_bytes = options_.load.block_bytes / options_.segment_count;
    std::uint64_t address = address_of(data_of(slot));
    std::uint32_t left_bytes = options_.load.block_bytes;
    for (std::uint32_t segment = 1; segment < options_.segment_count; ++segment) {
      buffers_[segment] = {address, piece_bytes};
      address += piece_bytes;
      left_bytes -= piece_bytes;
    }
    buffers_[options_.segment_count] = {address, left_bytes};
  }

  void reap() {
    std::uint32_t failed = 0;
    BlockCheck checked;
    const std::uint32_t count = driver_.reap([&](std::uint32_t slot, std::uint32_t length_bytes) {
      const auto& [request, submitted_ticks] = in_flight_[slot];
      // The counters of two CPUs may differ by a little.
      latency_ticks_.record(std::max(now_ticks_, submitted_ticks) - submitted_ticks);
      const std::uint32_t wanted_bytes = request.is_write ? 1 : options_.load.block_bytes + 1;
      const bool succeeded = request_of(slot).status == kBlockOk && length_bytes == wanted_bytes;
      if (!succeeded) ++failed;
      const BlockCheck check = blocks_.end(request, succeeded, data_of(slot));
      checked.verified_bytes += check.verified_bytes;
      checked.mismatched_bytes += check.mismatched_bytes;
      free_slots_.push_back(slot);
    });
    if (count == 0) return;
    stalls_in_a_row_ = 0;
    add(counting_->requests, count);
    add(counting_->failed_requests, failed);
    add(counting_->verified_bytes, checked.verified_bytes);
    add(counting_->mismatched_bytes, checked.mismatched_bytes);
  }

  void kick() noexcept {
    eventfd_signal(options_.kick_fd);
    add(counting_->kicks, 1);
  }

  // Sleeps until the device signals. When it does not, tells the two ways to lose a wake-up apart and goes on, so
  // that a loss is counted and does not hang the load. False when there is nothing to wait for any more.
  [[nodiscard]] bool wait() noexcept {
    Wake wake = sleep();
    if (wake == Wake::kTimeout && !driver_.sees_used()) {
      add(counting_->stalls, 1);
      kick();  // in case the device sleeps because a kick was lost
      return ++stalls_in_a_row_ < kStallsInARowMax;
    }
    // The device may stand between its publish and its signal: only a second silence is a lost signal.
    if (wake == Wake::kTimeout) {
      wake = sleep();
      if (wake == Wake::kTimeout) add(counting_->lost_signals, 1);
    }
    if (wake == Wake::kSignal) add(counting_->signals_received, 1);
    return wake != Wake::kEnd;
  }

  // One wait on the call eventfd. kEnd: stop() was called, or the eventfd is none.
  [[nodiscard]] Wake sleep() noexcept {
    pollfd polled[] = {{options_.call_fd, POLLIN, 0}, {stop_fd_.get(), POLLIN, 0}};
    const int ready = ::poll(polled, std::size(polled), static_cast<int>(options_.stall_ms));
    if (ready == 0) return Wake::kTimeout;
    if (ready < 0 || polled[1].revents != 0) return Wake::kEnd;
    return eventfd_read(options_.call_fd).error == 0 ? Wake::kSignal : Wake::kEnd;
  }

  [[nodiscard]] RequestMemory& request_of(std::uint32_t slot) const noexcept {
    return *reinterpret_cast<RequestMemory*>(memory_->host + plan_.requests_address + slot * plan_.request_stride_bytes);
  }
  [[nodiscard]] std::byte* data_of(std::uint32_t slot) const noexcept {
    return memory_->host + plan_.data_address + slot * plan_.data_stride_bytes;
  }
  [[nodiscard]] std::uint64_t address_of(const void* host) const noexcept {
    return static_cast<std::uint64_t>(static_cast<const std::byte*>(host) - memory_->host);
  }

  using Driver = SplitDriver<HardwareOrdering>;
  struct InFlight {
    BlockRequest request{};
    std::uint64_t submitted_ticks = 0;
  };

  const DriverOptions options_;
  const Plan plan_;
  const std::shared_ptr<MappedRegion> memory_;
  const UniqueFd stop_fd_;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> finish_ = false;
  std::atomic<bool> done_ = false;
  DriverCounters counters_;

  DriverCounters* counting_ = &counters_;
  Driver driver_;
  BlockLoad blocks_;
  // A slot is the memory of one request, and its number the token of its chain.
  std::vector<InFlight> in_flight_;
  std::vector<Driver::Buffer> buffers_;  // of the request that is added
  std::vector<std::uint32_t> free_slots_;
  std::uint64_t unsubmitted_count_ = 0;
  std::uint64_t now_ticks_ = 0;
  std::uint32_t stalls_in_a_row_ = 0;
  LatencyHistogram latency_ticks_;
};

// ---- The thread ------------------------------------------------------------------------------------------------

std::unique_ptr<DriverThread> DriverThread::make(const DriverOptions& options, MapFailure& failure) {
  std::shared_ptr<MappedRegion> memory = MappedRegion::map({options.memory_fd, 0, 0, options.memory_bytes, 0}, failure);
  if (memory == nullptr) return nullptr;
  const Result stop_fd = eventfd_create();
  if (stop_fd.error != 0) {
    failure = {.error = stop_fd.error, .syscall = stop_fd.syscall, .reason = {}};
    return nullptr;
  }
  auto load = std::make_unique<Load>(options, std::move(memory), UniqueFd(stop_fd.value));
  return std::unique_ptr<DriverThread>(new DriverThread(std::move(load)));
}

DriverThread::DriverThread(std::unique_ptr<Load> load) noexcept : load_(std::move(load)) {}

DriverThread::~DriverThread() { close(); }

const SplitLayout& DriverThread::ring() const noexcept { return load_->ring(); }

DriverCounters& DriverThread::counters() noexcept { return load_->counters(); }

std::vector<LatencyCount> DriverThread::latencies() const { return load_->latencies(); }

int DriverThread::run(std::function<void()> on_done) {
  return thread_.start([this, done = std::move(on_done)] {
    load_->work();
    done();
  });
}

void DriverThread::finish() noexcept { load_->finish(); }

void DriverThread::close() noexcept {
  load_->stop();
  thread_.join();
}

}  // namespace hushring::os
