// What the paced race and the whole ring have in common: two sides, an end, and counters.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/ordering.h"
#include "os/clock.h"
#include "os/litmus.h"

namespace hushring::os {

class LitmusExperiment {
 public:
  explicit LitmusExperiment(LitmusCounters& counters) noexcept : counters_(counters) {}
  virtual ~LitmusExperiment() = default;
  LitmusExperiment(const LitmusExperiment&) = delete;
  LitmusExperiment& operator=(const LitmusExperiment&) = delete;

  // The programs of the two sides, each on a thread of its own, until stop().
  virtual void run_device() = 0;
  virtual void run_driver() = 0;
  // Looks for what the sides cannot see themselves. Called by the supervising thread about once a millisecond.
  virtual void look() {}
  // Ends both sides, from any thread.
  virtual void stop() noexcept { stopping_ = true; }
  [[nodiscard]] bool stopping() const noexcept { return stopping_; }

  [[nodiscard]] std::uint64_t elapsed_nanos() const noexcept { return monotonic_nanos() - started_nanos_; }
  void start_clock() noexcept { started_nanos_ = monotonic_nanos(); }

 protected:
  // Each of the two counters is written by one thread.
  void count_rounds(std::uint64_t rounds) noexcept {
    HardwareOrdering::store_relaxed(&counters_.rounds, counters_.rounds + rounds);
  }
  void count_lost(std::uint64_t lost) noexcept {
    if (lost == 0) return;
    if (counters_.lost == 0) HardwareOrdering::store_relaxed(&counters_.first_loss_nanos, elapsed_nanos());
    HardwareOrdering::store_relaxed(&counters_.lost, counters_.lost + lost);
  }

 private:
  LitmusCounters& counters_;
  std::uint64_t started_nanos_ = 0;
  std::atomic<bool> stopping_ = false;
};

// Small random numbers, made in registers (xorshift).
class Jitter {
 public:
  explicit Jitter(std::uint32_t seed) noexcept : state_(seed) {}
  // 0 to `count` - 1.
  [[nodiscard]] std::uint64_t below(std::uint64_t count) noexcept {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 17;
    state_ ^= state_ << 5;
    return state_ % count;
  }

 private:
  std::uint32_t state_;
};

}  // namespace hushring::os
