// A split virtqueue: the product's device half (core/split.h) and its driver half (core/peer/split_driver.h), both
// asleep whenever they may be, with no timer behind them and at most as many requests in flight as the ring holds, so
// that no later request heals a lost wake-up.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/peer/split_driver.h"
#include "core/split.h"
#include "explore/world.h"

namespace hushring::explore {

// When the device decides whether to signal what it published.
enum class Decides : std::uint8_t {
  kAtOnce,
  kWhenIdle,  // puts it off until it finds nothing more to take
  kNotIdle,   // a mistake: what is put off when nothing more comes is never decided
};

// What the device does between asking for kicks and sleeping.
enum class BeforeSleep : std::uint8_t {
  kNothing,
  kLooks,         // withdraws the wish, as before a poll, and asks again
  kLooksForGood,  // a mistake: withdraws the wish and sleeps
};

// Both indices start so that they wrap from 65535 to 0 on the way.
struct SplitPlan {
  std::uint32_t size = 2;
  std::uint32_t depth = 2;
  std::uint32_t request_count = 4;  // two laps
  std::uint16_t first_index = 65534;
  Decides decides = Decides::kAtOnce;
  BeforeSleep before_sleep = BeforeSleep::kNothing;
};

template <class DeviceOrdering, class DriverOrdering, Suppression kSuppression>
class SplitScenario final : public Scenario {
 public:
  explicit SplitScenario(const SplitPlan& plan)
      : plan_(plan),
        layout_(split_layout(0, plan.size)),
        questions_at_(layout_.end_address),
        shared_(std::make_unique<Line[]>((layout_.end_address + 16 * plan.depth + 127) / 128)),
        region_{0, 0, layout_.end_address + 16 * plan.depth, base(), 0},
        map_(base(), region_.size_bytes),
        driver_(base(), layout_, plan.size, kSuppression, plan.first_index),
        options_{.size_max = plan.size,
                 .batch_count_max = plan.size,
                 .chain_count_max = 1,
                 .framing = {.header_bytes = 0, .status_byte = false},
                 .strict_chains = true},
        requests_(options_.request_rows()),
        headers_(8),
        segments_(options_.segment_rows()),
        completions_(options_.completion_rows()),
        device_(options_, {requests_, headers_, segments_, completions_, &counters_}) {
    name_cells();
    leave_old_entries();
    const SplitRing ring{.size = plan.size,
                         .space = AddressSpace::kGuest,
                         .descriptor_address = layout_.descriptor_address,
                         .avail_address = layout_.avail_address,
                         .used_address = layout_.used_address,
                         .avail_base = plan.first_index,
                         .event_idx = kSuppression == Suppression::kEventIdx,
                         .indirect = false};
    if (device_.start(ring, {&region_, 1}) != Fault::kNone) std::abort();
  }

  void run(std::size_t side) override { side == kDevice ? run_device() : run_driver(); }
  [[nodiscard]] bool is_done() const override { return answered_ == plan_.request_count; }
  [[nodiscard]] const CellMap& map() const override { return map_; }
  [[nodiscard]] bool is_ordered(std::size_t) const override { return true; }
  [[nodiscard]] std::string side_name(std::size_t side) const override {
    return side == kDevice ? "device" : "driver";
  }
  [[nodiscard]] std::string wait_name(std::size_t event) const override {
    return event == kKick ? "sleeps until it is kicked" : "sleeps until it is signalled";
  }
  [[nodiscard]] std::string post_name(std::size_t event) const override {
    return event == kKick ? "kicks the device" : "signals the driver";
  }
  [[nodiscard]] std::string get_name(std::size_t) const override { return "is woken"; }

 private:
  static constexpr std::size_t kDevice = 0;
  static constexpr std::uint8_t kKick = 0;
  static constexpr std::uint8_t kSignal = 1;

  // ---- The two programs ----

  void run_device() {
    for (;;) {
      const std::int32_t taken = device_.take(plan_.size);
      if (taken < 0) World::fail("the device says that the ring is broken");
      for (std::int32_t row = 0; row < taken; ++row) serve(static_cast<std::uint32_t>(row));
      std::int32_t bits = 0;
      if (plan_.decides == Decides::kAtOnce) {
        bits = device_.complete(static_cast<std::uint32_t>(taken), true);
      } else {
        bits = device_.publish(static_cast<std::uint32_t>(taken));
        if (bits == 0 && taken == 0 && plan_.decides == Decides::kWhenIdle) bits = device_.decide();
        if (bits >= 0 && taken == 0) bits |= device_.rearm();
      }
      if (bits < 0) World::fail("the device says that the ring is broken");
      forget_rows();
      if ((bits & kSignalled) != 0) post(kSignal);
      if ((bits & kSuppressed) != 0) World::note("the driver wants no signal");
      if ((bits & kArmed) != 0 && look_before_sleep()) wait(kKick);
    }
  }

  // False when there is something to take after all.
  [[nodiscard]] bool look_before_sleep() {
    if (plan_.before_sleep == BeforeSleep::kNothing) return true;
    device_.withdraw_wish();
    return plan_.before_sleep == BeforeSleep::kLooksForGood || device_.rearm() == kArmed;
  }

  // What lies in the tables from the last batch is read by nobody, but would make equal states look different.
  void forget_rows() {
    std::fill(requests_.begin(), requests_.end(), RequestRow{});
    std::fill(segments_.begin(), segments_.end(), Segment{});
    std::fill(completions_.begin(), completions_.end(), CompletionRow{});
  }

  // The answer to a question is its double. A request carries its question beside the ring, as its data.
  void serve(std::uint32_t row) {
    const Segment& segment = segments_[requests_[row].first_segment];
    const std::uint64_t first_answer_at = questions_at_ + 8;
    if (requests_[row].writable_count != 1 || segment.offset_bytes < first_answer_at || segment.length_bytes != 8) {
      World::fail("the device is at work on a request that nobody made");
    }
    auto* const answer = reinterpret_cast<std::uint64_t*>(base() + segment.offset_bytes);
    const std::uint64_t question = DeviceOrdering::load_relaxed(answer - 1);
    DeviceOrdering::store_relaxed(answer, 2 * question);
    completions_[row] = {requests_[row].head, 8, 0};
  }

  void run_driver() {
    while (answered_ < plan_.request_count) {
      driver_.disable_signals();
      driver_.reap([this](std::uint32_t slot, std::uint32_t) { check(slot); });
      if (driver_.fault() != DeviceFault::kNone) World::fail("the driver finds a used element that is none");
      while (asked_ < plan_.request_count && asked_ - answered_ < plan_.depth) ask();
      if (answered_ == plan_.request_count) return;
      if (!driver_.enable_signals()) wait(kSignal);
    }
  }

  void ask() {
    std::uint32_t slot = 0;
    while (slots_[slot] != 0) ++slot;
    slots_[slot] = ++asked_;
    DriverOrdering::store_relaxed(question(slot), std::uint64_t{asked_});
    const typename SplitDriver<DriverOrdering>::Buffer buffer{address_of_answer(slot), 8};
    if (!driver_.add({}, {&buffer, 1}, slot)) World::fail("the driver has no room in a ring that has");
    driver_.publish();
    if (driver_.kick_needed()) post(kKick);
    else World::note("the device wants no kick");
  }

  void check(std::uint32_t slot) {
    const std::uint64_t answer = DriverOrdering::load_relaxed(question(slot) + 1);
    if (answer != 2 * std::uint64_t{slots_[slot]}) World::fail("the driver gets the answer to another request");
    slots_[slot] = 0;
    ++answered_;
  }

  // ---- The memory ----

  struct alignas(128) Line {
    std::byte bytes[128];
  };

  [[nodiscard]] std::byte* base() const { return reinterpret_cast<std::byte*>(shared_.get()); }
  [[nodiscard]] std::uint64_t* question(std::uint32_t slot) const {
    return reinterpret_cast<std::uint64_t*>(base() + questions_at_ + 16 * slot);
  }

  [[nodiscard]] std::uint64_t address_of_answer(std::uint32_t slot) const { return questions_at_ + 16 * slot + 8; }

  // The ring as an earlier lap left it: every entry is one that could be served, and is not to be.
  void leave_old_entries() {
    auto* const descriptors = reinterpret_cast<Descriptor*>(base() + layout_.descriptor_address);
    auto* const avail = reinterpret_cast<Avail*>(base() + layout_.avail_address);
    for (std::uint32_t index = 0; index < plan_.size; ++index) {
      descriptors[index] = {address_of_answer(index % plan_.depth), 8, kDescWrite, 0};
      *(avail->ring + index) = static_cast<std::uint16_t>(plan_.size - 1 - index);
    }
  }

  void name_cells() {
    auto* const descriptors = reinterpret_cast<Descriptor*>(base() + layout_.descriptor_address);
    auto* const avail = reinterpret_cast<Avail*>(base() + layout_.avail_address);
    auto* const used = reinterpret_cast<Used*>(base() + layout_.used_address);
    const auto at = [](const char* name, std::uint32_t index) { return name + ("[" + std::to_string(index) + "]"); };
    for (std::uint32_t index = 0; index < plan_.size; ++index) {
      map_.add(&descriptors[index].addr, 8, at("descriptor", index) + ".addr");
      map_.add(&descriptors[index].len, 4, at("descriptor", index) + ".len");
      map_.add(&descriptors[index].flags, 2, at("descriptor", index) + ".flags");
      map_.add(&descriptors[index].next, 2, at("descriptor", index) + ".next");
    }
    map_.add(&avail->flags, 2, "avail.flags", false);
    map_.add(&avail->idx, 2, "avail.idx", false);
    for (std::uint32_t index = 0; index < plan_.size; ++index) map_.add(avail->ring + index, 2, at("avail.ring", index));
    map_.add(used_event_of(avail, plan_.size), 2, "used_event", false);
    map_.add(&used->flags, 2, "used.flags", false);
    map_.add(&used->idx, 2, "used.idx", false);
    for (std::uint32_t index = 0; index < plan_.size; ++index) {
      map_.add(&(used->ring + index)->id, 4, at("used.ring", index) + ".id");
      map_.add(&(used->ring + index)->len, 4, at("used.ring", index) + ".len");
    }
    map_.add(avail_event_of(used, plan_.size), 2, "avail_event", false);
    for (std::uint32_t slot = 0; slot < plan_.depth; ++slot) {
      map_.add(question(slot), 8, at("question", slot));
      map_.add(question(slot) + 1, 8, at("answer", slot));
    }
  }

  const SplitPlan plan_;
  const SplitLayout layout_;
  const std::uint64_t questions_at_;
  const std::unique_ptr<Line[]> shared_;
  const Region region_;
  CellMap map_;

  SplitDriver<DriverOrdering> driver_;
  std::uint32_t asked_ = 0;
  std::uint32_t answered_ = 0;
  std::uint32_t slots_[2] = {};  // the question in each slot; 0: free

  // Written and never read by the programs: no part of a state.
  static inline QueueCounters counters_;

  const SplitOptions options_;
  std::vector<RequestRow> requests_;
  std::vector<std::byte> headers_;
  std::vector<Segment> segments_;
  std::vector<CompletionRow> completions_;
  SplitDevice<DeviceOrdering> device_;
};

}  // namespace hushring::explore
