// A load of READ(10) and WRITE(10) commands of fixed depth for a simulated TCMU device, each answer checked. It has
// no thread: an initiator that is always ready sends its next command as soon as it has an answer, so the answers
// that a doorbell brings become commands before the doorbell returns, and signal once.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/ordering.h"
#include "core/peer/block_load.h"
#include "core/peer/tcmu_kernel.h"
#include "os/latency_histogram.h"

namespace hushring::os {

struct TcmuLoadOptions {
  BlockLoadOptions load;
  std::uint32_t logical_block_bytes;  // the unit of addresses in a CDB: 512 or 4096
  std::uint64_t request_count_max;    // ends the load after so many requests; 0: never
  std::uint64_t duration_ms;          // ends the load after so long; 0: never
};

// What is wrong with options that are each in their range. Nothing when they can be used.
[[nodiscard]] std::optional<TcmuKernelComplaint> complaint_about(const TcmuLoadOptions& options) noexcept;

struct TcmuLoadResult {
  std::uint64_t requests = 0;
  std::uint64_t failed_requests = 0;
  std::uint64_t mismatched_bytes = 0;
  std::uint64_t verified_bytes = 0;
  std::uint64_t elapsed_nanos = 0;
  std::uint64_t doorbells = 0;  // that the server rang
  std::uint64_t events = 0;     // that the kernel signalled
};

// With `verify`, the blocks to be checked are written first. That is not part of the load: it counts towards no limit
// and in no figure, except for what goes wrong.
class TcmuLoad {
 public:
  using Kernel = TcmuKernel<HardwareOrdering>;

  // There must be no complaint about the options.
  explicit TcmuLoad(const TcmuLoadOptions& options);

  // Sends the first commands, once. From here on every result of the kernel is the load's, until is_done().
  void start(Kernel& kernel);
  // Takes the results that there are and sends as many commands. Call it after whatever may have brought results.
  void reap(Kernel& kernel);
  // Sends nothing more; the load is done when what is in flight has ended.
  void stop() noexcept { unsent_count_ = 0, is_stopped_ = true; }

  [[nodiscard]] bool is_done() const noexcept { return phase_ == Phase::kDone; }
  [[nodiscard]] const TcmuLoadResult& result() const noexcept { return result_; }
  // The times from submit to reap, in nanoseconds.
  [[nodiscard]] std::vector<LatencyCount> latencies() const { return latency_.counts(); }

 private:
  using Clock = std::chrono::steady_clock;
  enum class Phase : std::uint8_t { kFilling, kRunning, kDone };
  struct InFlight {
    BlockRequest request{};
    Clock::time_point sent;
  };

  void begin_phase(Phase phase, const Kernel& kernel) noexcept;
  void send_all(Kernel& kernel);
  void send(Kernel& kernel, std::uint32_t slot);
  void take(const InitiatorResult& result);
  [[nodiscard]] std::byte* data_of(std::size_t slot) noexcept {
    return data_.data() + slot * options_.load.block_bytes;
  }

  const TcmuLoadOptions options_;
  BlockLoad blocks_;
  // A slot is the memory of one request, and its number the tag of its command.
  std::vector<InFlight> in_flight_;
  std::vector<std::uint32_t> free_slots_;
  std::vector<std::byte> data_;
  Phase phase_ = Phase::kFilling;
  bool is_stopped_ = false;
  std::uint64_t unsent_count_ = 0;
  Clock::time_point started_;
  Clock::time_point now_;
  std::uint64_t doorbells_before_ = 0;
  std::uint64_t events_before_ = 0;
  TcmuLoadResult result_;
  LatencyHistogram latency_;
};

}  // namespace hushring::os
