// The race of two stores and two loads, with nothing around it. Each side owns one word of a slot, stores it, executes
// the fence under test, and loads the other's. That both load the old word is what must not be.
//
// Two threads that tell each other when to start a round never store at the same moment: the message is slower than
// the race. Here they agree on a time for each round beforehand and then share nothing but the clock: round i of a
// batch is at start + i * period + jitter, and results are compared after the batch.
#pragma once

#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/ordering.h"
#include "os/litmus_experiment.h"

namespace hushring::os {

template <class Ordering>
class PacedRace final : public LitmusExperiment {
 public:
  PacedRace(LitmusCounters& counters, LitmusStep step, bool event_idx) noexcept
      : LitmusExperiment(counters), step_(step), event_idx_(event_idx) {}

  void run_device() override {
    Jitter jitter(0x2545f491);
    for (;;) {
      start_ticks_ = clock_ticks() + 8 * period_ticks_;
      if (!meet(device_)) return;
      run_batch(device_, jitter, [this](Slot& slot) { return device_misses(slot); });
      if (!meet(device_)) return;
      compare();
    }
  }

  void run_driver() override {
    Jitter jitter(0x9e3779b9);
    while (meet(driver_)) {
      run_batch(driver_, jitter, [this](Slot& slot) { return driver_misses(slot); });
      if (!meet(driver_)) return;
    }
  }

 private:
  static constexpr std::size_t kSlotCount = 1024;
  static constexpr std::uint16_t kOld = 0;
  static constexpr std::uint16_t kNew = 1;

  // The two words are never on one line, as in a ring.
  struct Slot {
    alignas(64) std::uint16_t index = 0;  // used.idx or avail.idx
    alignas(64) std::uint16_t wish = 0;   // used_event or avail_event, or the flags
  };

  struct Outcome {
    bool missed;   // read the other's old word
    bool in_time;  // else this thread was not running when the round was due, and read what it read too late
  };

  struct alignas(128) Side {
    std::array<Outcome, kSlotCount> outcomes{};
    std::atomic<std::uint64_t> meetings = 0;
  };

  // ---- The race, in the words of core/split.h and core/peer/split_driver.h ----

  [[nodiscard]] bool device_misses(Slot& slot) const noexcept {
    if (step_ == LitmusStep::kSignal) {
      Ordering::publish_used_index(&slot.index, kNew);
      if (event_idx_) Ordering::fence_used_index_then_used_event();
      else Ordering::fence_used_index_then_avail_flags();
      return Ordering::load_relaxed(&slot.wish) != kNew;
    }
    Ordering::store_relaxed(&slot.wish, kNew);
    if (event_idx_) Ordering::fence_avail_event_then_avail_index();
    else Ordering::fence_used_flags_then_avail_index();
    return Ordering::acquire_avail_index(&slot.index) != kNew;
  }

  [[nodiscard]] bool driver_misses(Slot& slot) const noexcept {
    if (step_ == LitmusStep::kSignal) {
      Ordering::store_relaxed(&slot.wish, kNew);
      if (event_idx_) Ordering::fence_used_event_then_used_index();
      else Ordering::fence_avail_flags_then_used_index();
      return Ordering::acquire_used_index(&slot.index) != kNew;
    }
    Ordering::publish_avail_index(&slot.index, kNew);
    if (event_idx_) Ordering::fence_avail_index_then_avail_event();
    else Ordering::fence_avail_index_then_used_flags();
    return Ordering::load_relaxed(&slot.wish) != kNew;
  }

  // ---- The pace ----

  template <class Misses>
  void run_batch(Side& side, Jitter& jitter, Misses misses) noexcept {
    std::uint64_t due_ticks = start_ticks_;
    for (std::size_t round = 0; round < kSlotCount; ++round, due_ticks += period_ticks_) {
      const std::uint64_t start = due_ticks + jitter.below(jitter_ticks_);
      std::uint64_t now = clock_ticks();
      while (now < start) now = clock_ticks();
      side.outcomes[round] = {.missed = misses(slots_[round]), .in_time = now - start < period_ticks_};
    }
  }

  // Waits for the other side; each sees what the other did before. False when the run ends.
  [[nodiscard]] bool meet(Side& side) noexcept {
    const Side& other = &side == &device_ ? driver_ : device_;
    const std::uint64_t meeting = side.meetings + 1;
    side.meetings = meeting;
    // One that waits without sleeping has used up its time when the other one is let run again at last.
    const std::uint64_t spun_until = clock_ticks() + patience_ticks_;
    while (other.meetings < meeting) {
      if (stopping()) return false;
      if (clock_ticks() > spun_until) nap();
    }
    return !stopping();
  }

  static void nap() noexcept {
    constexpr timespec kNap{.tv_sec = 0, .tv_nsec = 50'000};
    ::nanosleep(&kNap, nullptr);
  }

  // By the device's thread, while the driver's waits for the next batch.
  void compare() noexcept {
    std::uint64_t rounds = 0;
    std::uint64_t lost = 0;
    for (std::size_t round = 0; round < kSlotCount; ++round) {
      const Outcome& device = device_.outcomes[round];
      const Outcome& driver = driver_.outcomes[round];
      const bool is_lost = device.missed && driver.missed;
      if (is_lost) ++lost;
      if (is_lost || (device.in_time && driver.in_time)) ++rounds;
      Ordering::store_relaxed(&slots_[round].index, kOld);
      Ordering::store_relaxed(&slots_[round].wish, kOld);
    }
    count_rounds(rounds);
    count_lost(lost);
    adapt(rounds);
  }

  // Where a round takes longer than the period, both sides fall behind the clock and apart.
  void adapt(std::uint64_t rounds_in_time) noexcept {
    if (rounds_in_time < kSlotCount / 2) {
      period_ticks_ = std::min(period_ticks_ + period_ticks_ / 4 + 1, period_ticks_max_);
    } else if (rounds_in_time == kSlotCount) {
      period_ticks_ = std::max(period_ticks_ - period_ticks_ / 8, period_ticks_min_);
    }
  }

  const LitmusStep step_;
  const bool event_idx_;
  const std::uint64_t period_ticks_min_ = ticks_in(160);
  const std::uint64_t period_ticks_max_ = ticks_in(1000);
  const std::uint64_t jitter_ticks_ = ticks_in(100);
  const std::uint64_t patience_ticks_ = ticks_in(20'000);
  // Of the batch; written by the device's thread between two meetings.
  std::uint64_t period_ticks_ = period_ticks_min_;
  std::uint64_t start_ticks_ = 0;
  std::array<Slot, kSlotCount> slots_{};
  Side device_;
  Side driver_;
};

}  // namespace hushring::os
