// Litmus tests on this machine: short ones. How much the product can bear is what `npm run verify` tries at length.
#include <doctest/doctest.h>

#include <chrono>
#include <future>
#include <memory>
#include <string_view>

#include "os/litmus.h"

namespace hushring {
namespace {

using os::LitmusStep;

os::LitmusCounters run(const os::LitmusOptions& options) {
  os::Result failure;
  const std::unique_ptr<os::Litmus> litmus = os::Litmus::make(options, failure);
  REQUIRE(litmus != nullptr);
  std::promise<void> done;
  REQUIRE(litmus->run([&done] { done.set_value(); }) == 0);
  done.get_future().wait();
  litmus->close();
  return litmus->counters();
}

// A sanitizer makes the time between a store and a load so long that the store has always left by then.
bool can_lose() { return os::usable_cpu_count() > 1 && std::string_view(HUSHRING_SANITIZER).empty(); }

TEST_CASE("litmus: nothing is lost as shipped, in each way of suppression") {
  for (const bool whole_ring : {false, true}) {
    for (const LitmusStep step : {LitmusStep::kSignal, LitmusStep::kKick}) {
      for (const bool event_idx : {false, true}) {
        const os::LitmusCounters counters = run({.whole_ring = whole_ring,
                                                 .step = step,
                                                 .event_idx = event_idx,
                                                 .round_count_max = 20'000});
        CHECK(counters.lost == 0);
        CHECK(counters.first_loss_nanos == 0);
        if (os::usable_cpu_count() > 1) CHECK(counters.rounds > 0);
      }
    }
  }
}

TEST_CASE("litmus: control: the weakened device loses, paced and in a whole ring") {
  if (!can_lose()) {
    MESSAGE("not run: one CPU, or a sanitizer");
    return;
  }
  for (const bool event_idx : {false, true}) {
    for (const LitmusStep step : {LitmusStep::kSignal, LitmusStep::kKick, LitmusStep::kSecondLook}) {
      for (const bool whole_ring : {false, true}) {
        if (step == LitmusStep::kSecondLook && !whole_ring) continue;
        CAPTURE(static_cast<int>(step));
        CAPTURE(event_idx);
        CAPTURE(whole_ring);
        const os::LitmusCounters counters = run({.whole_ring = whole_ring,
                                                 .step = step,
                                                 .event_idx = event_idx,
                                                 .weakened = true,
                                                 .lost_count_max = 1,
                                                 .duration_ms = 20'000});
        CHECK(counters.lost > 0);
        CHECK(counters.first_loss_nanos > 0);
        CHECK(counters.first_loss_nanos <= counters.elapsed_nanos);
      }
    }
  }
}

TEST_CASE("litmus: a run ends at its limit, and when it is closed") {
  for (const bool whole_ring : {false, true}) {
    os::LitmusOptions options{.whole_ring = whole_ring,
                              .step = LitmusStep::kSignal,
                              .event_idx = true,
                              .duration_ms = 20};
    CHECK(run(options).elapsed_nanos >= 20'000'000);
    options.duration_ms = 3'600'000;
    os::Result failure;
    const std::unique_ptr<os::Litmus> litmus = os::Litmus::make(options, failure);
    REQUIRE(litmus != nullptr);
    std::promise<void> done;
    auto ended = done.get_future();
    REQUIRE(litmus->run([&done] { done.set_value(); }) == 0);
    CHECK(ended.wait_for(std::chrono::milliseconds(20)) == std::future_status::timeout);
    litmus->close();
    CHECK(ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
    litmus->close();
  }
}

TEST_CASE("litmus: one that never ran needs no close") {
  os::Result failure;
  CHECK(os::Litmus::make({.whole_ring = true, .step = LitmusStep::kKick}, failure) != nullptr);
}

}  // namespace
}  // namespace hushring
