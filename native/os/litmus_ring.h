// A whole ring with real eventfds, one request at a time, and nothing behind it that could heal a loss: no timer, and
// no later request. When a wake-up is lost both sides sleep for ever, and that is how it is seen.
//
// A side that always sleeps when it has nothing to do decides long before the other one does, because waking takes a
// thousand times as long as the race. So each side looks for a while first, as drivers and devices that poll do. Mostly
// it is patient and does not sleep at all; now and then it decides to sleep after a moment of random length, which the
// other side's publish may hit. Delays read the clock and nothing else, so that they are no barriers.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "core/ordering.h"
#include "core/peer/split_driver.h"
#include "core/split.h"
#include "os/eventfd.h"
#include "os/litmus_experiment.h"
#include "os/unique_fd.h"

namespace hushring::os {

// The eventfds of a ring, and the one that ends both sides.
struct LitmusFds {
  UniqueFd kick;
  UniqueFd call;
  UniqueFd stop;
};

template <class Ordering>
class SleepingRing final : public LitmusExperiment {
 public:
  SleepingRing(LitmusCounters& counters, bool event_idx, LitmusFds fds)
      : LitmusExperiment(counters),
        fds_(std::move(fds)),
        memory_(std::make_unique<Memory>()),
        driver_(memory_->bytes, kLayout, kSize, event_idx ? Suppression::kEventIdx : Suppression::kFlags),
        requests_(kOptions.request_rows()),
        segments_(kOptions.segment_rows()),
        completions_(kOptions.completion_rows()),
        device_(kOptions, {requests_, {}, segments_, completions_, &queue_counters_}) {
    const SplitRing ring{.size = kSize,
                         .space = AddressSpace::kGuest,
                         .descriptor_address = kLayout.descriptor_address,
                         .avail_address = kLayout.avail_address,
                         .used_address = kLayout.used_address,
                         .avail_base = 0,
                         .event_idx = event_idx,
                         .indirect = false};
    if (device_.start(ring, {&region_, 1}) != Fault::kNone) std::abort();  // the layout is a constant
  }

  void run_device() override {
    Pace pace(0x2545f491);
    while (!stopping()) {
      const std::int32_t taken = device_.take(1);
      if (taken > 0) {
        completions_[0] = {requests_[0].head, kDataBytes, 0};
        pace.delay();
        if ((device_.complete(1, false) & kSignalled) != 0) eventfd_signal(fds_.call.get());
      }
      pace.wait_for([this] { return device_.visible_count() > 0; });
      if ((device_.complete(0, true) & kArmed) != 0) device_sleep_.sleep(fds_.kick.get(), fds_.stop.get());
    }
  }

  void run_driver() override {
    Pace pace(0x9e3779b9);
    const typename Driver::Buffer buffer{kDataAddress, kDataBytes};
    while (!stopping()) {
      driver_.disable_signals();
      count_rounds(driver_.reap([](std::uint32_t, std::uint32_t) {}));
      if (driver_.in_flight_count() == 0) {
        static_cast<void>(driver_.add({}, {&buffer, 1}, 0));  // the ring is empty
        pace.delay();
        driver_.publish();
        if (driver_.kick_needed()) eventfd_signal(fds_.kick.get());
      }
      pace.wait_for([this] { return driver_.sees_used(); });
      if (!driver_.enable_signals()) driver_sleep_.sleep(fds_.call.get(), fds_.stop.get());
    }
  }

  void look() override {
    if (sleep_for_ever()) count_lost(1);
  }

  void stop() noexcept override {
    LitmusExperiment::stop();
    eventfd_signal(fds_.stop.get());
  }

 private:
  using Driver = SplitDriver<HardwareOrdering>;

  // Sleeps and tells a third party so.
  class alignas(128) Sleeper {
   public:
    void sleep(int fd, int stop_fd) noexcept {
      ++transitions_;
      pollfd polled[] = {{fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
      static_cast<void>(::poll(polled, std::size(polled), -1));
      ++transitions_;
      eventfd_drain(fd);
    }
    // Odd from before the sleep until after it.
    [[nodiscard]] std::uint64_t transitions() const noexcept { return transitions_; }

   private:
    std::atomic<std::uint64_t> transitions_ = 0;
  };

  class Pace {
   public:
    explicit Pace(std::uint32_t seed) noexcept : jitter_(seed) {}

    void delay() noexcept { wait(jitter_.below(delay_ticks_), [] { return false; }); }
    template <class Condition>
    void wait_for(Condition condition) noexcept {
      constexpr std::uint64_t kPatientTimes = 4;
      if (jitter_.below(kPatientTimes) == 0) delay();
      else wait(patience_ticks_, condition);
    }

   private:
    template <class Condition>
    static void wait(std::uint64_t ticks, Condition condition) noexcept {
      const std::uint64_t start = clock_ticks();
      while (clock_ticks() - start < ticks && !condition()) {
      }
    }

    const std::uint64_t delay_ticks_ = ticks_in(400);
    const std::uint64_t patience_ticks_ = ticks_in(100'000);  // longer than it takes to wake somebody
    Jitter jitter_;
  };

  // Whether nobody will ever wake either side though there is work.
  //
  // This is no guess by time, so a slow machine is never taken for a loss. A side says that it sleeps after its last
  // decision and after its last write to an eventfd. Both slept from before the first load here until after the last:
  // so nobody wrote an eventfd meanwhile, both were empty, and nobody is left who would write one.
  [[nodiscard]] bool sleep_for_ever() const noexcept {
    const std::uint64_t device = device_sleep_.transitions();
    const std::uint64_t driver = driver_sleep_.transitions();
    if (device % 2 == 0 || driver % 2 == 0) return false;
    if (is_readable(fds_.kick.get()) || is_readable(fds_.call.get())) return false;
    if (device != device_sleep_.transitions() || driver != driver_sleep_.transitions()) return false;
    return device_.visible_count() > 0 || driver_.sees_used();
  }

  [[nodiscard]] static bool is_readable(int fd) noexcept {
    pollfd polled{fd, POLLIN, 0};
    return ::poll(&polled, 1, 0) != 0;
  }

  static constexpr std::uint32_t kSize = 4;
  static constexpr std::uint64_t kMemoryBytes = 4096;
  static constexpr SplitLayout kLayout = split_layout(128, kSize);
  static constexpr std::uint64_t kDataAddress = kLayout.end_address;
  static constexpr std::uint32_t kDataBytes = 8;
  static_assert(kDataAddress + kDataBytes <= kMemoryBytes);
  static constexpr SplitOptions kOptions{.size_max = kSize,
                                         .batch_count_max = 1,
                                         .chain_count_max = 1,
                                         .framing = {.header_bytes = 0, .status_byte = false},
                                         .strict_chains = true};

  struct alignas(4096) Memory {
    std::byte bytes[kMemoryBytes]{};
  };

  const LitmusFds fds_;
  const std::unique_ptr<Memory> memory_;
  const Region region_{0, 0, kMemoryBytes, memory_->bytes, 0};
  Driver driver_;
  std::vector<RequestRow> requests_;
  std::vector<Segment> segments_;
  std::vector<CompletionRow> completions_;
  QueueCounters queue_counters_{};
  SplitDevice<Ordering> device_;
  Sleeper device_sleep_;
  Sleeper driver_sleep_;
};

}  // namespace hushring::os
