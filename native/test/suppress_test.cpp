#include "core/suppress.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>

namespace {

using hushring::index_lapped;
using hushring::need_event;

// The definition: `event` is one of old, old+1, …, fresh-1, modulo 65536.
bool is_among_published(std::uint16_t event, std::uint16_t fresh, std::uint16_t old) {
  for (std::uint16_t index = old; index != fresh; ++index) {
    if (index == event) return true;
  }
  return false;
}

TEST_CASE("need_event: known vectors, with the wrap at 65535") {
  struct Vector {
    std::uint16_t event, fresh, old;
    bool expected;
  };
  const Vector vectors[] = {
      {0, 1, 0, true},         {0, 0, 0, false},        {1, 1, 0, false},        {0, 2, 0, true},
      {1, 2, 0, true},         {2, 2, 0, false},        {65535, 0, 65535, true}, {65535, 0, 65534, true},
      {65534, 0, 65534, true}, {0, 1, 65535, true},     {5, 5, 4, false},        {5, 6, 5, true},
      {5, 6, 6, false},        {32768, 0, 0, false},    {100, 200, 100, true},   {199, 200, 100, true},
      {200, 200, 100, false},  {99, 200, 100, false},
  };
  for (const Vector& vector : vectors) {
    CAPTURE(vector.event);
    CAPTURE(vector.fresh);
    CAPTURE(vector.old);
    CHECK(need_event(vector.event, vector.fresh, vector.old) == vector.expected);
  }
}

TEST_CASE("need_event: agrees with its definition for every pair of differences from one base") {
  // The predicate depends on the differences to `old` only, so one base and both differences cover all triples that
  // differ by a shift. Every 257th progress keeps the run short and meets every residue of the low byte.
  constexpr std::uint16_t kOld = 65000;
  std::uint64_t wrong = 0;
  for (std::uint32_t progress = 0; progress < 65536; progress += 257) {
    const auto fresh = static_cast<std::uint16_t>(kOld + progress);
    for (std::uint32_t ahead = 0; ahead < 65536; ++ahead) {
      const auto event = static_cast<std::uint16_t>(kOld + ahead);
      if (need_event(event, fresh, kOld) != (ahead < progress)) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("need_event: agrees with the set of published entries for random triples") {
  constexpr std::uint32_t kSeed = 20260408;
  CAPTURE(kSeed);
  std::mt19937 random(kSeed);
  std::uniform_int_distribution<std::uint32_t> any(0, 65535);
  std::uniform_int_distribution<std::uint32_t> near(0, 40);
  std::uint64_t wrong = 0;
  for (int round = 0; round < 100'000; ++round) {
    const auto old = static_cast<std::uint16_t>(any(random));
    const auto fresh = static_cast<std::uint16_t>(old + near(random));
    const auto event = static_cast<std::uint16_t>(old + near(random) - 10);
    if (need_event(event, fresh, old) != is_among_published(event, fresh, old)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("index_lapped: true exactly when the last decision was passed a whole lap later") {
  CHECK_FALSE(index_lapped(10, 20, 10));  // published right after the decision
  CHECK_FALSE(index_lapped(10, 20, 15));
  CHECK_FALSE(index_lapped(10, 9, 5));  // 65,535 entries after the decision: still told apart
  CHECK(index_lapped(10, 10, 5));       // 65,536: progress looks like none
  CHECK(index_lapped(10, 12, 5));       // and beyond
  CHECK(index_lapped(65535, 3, 65530));
}

// A device decides after each of `silent_count` completions and stays silent, because used_event is parked behind
// them. Then the driver asks for the very next completion. Returns whether that one signals.
//
// `moves_always`: the decided index moves at every decision, as ours does. Otherwise it moves with signals only,
// which is kvmtool's rule.
bool signals_after_silence(std::uint32_t silent_count, bool moves_always) {
  constexpr std::uint16_t kParked = 0;
  std::uint16_t decided = 1;
  std::uint16_t used = 1;
  for (std::uint32_t completion = 0; completion < silent_count; ++completion) {
    ++used;
    REQUIRE_FALSE(need_event(kParked, used, decided));
    if (moves_always) decided = used;
  }
  const std::uint16_t wanted = used++;
  return need_event(wanted, used, decided);
}

TEST_CASE("need_event: the next owed signal survives 65,535 silent completions") {
  CHECK(signals_after_silence(1, true));
  CHECK(signals_after_silence(65'534, true));
  CHECK(signals_after_silence(65'535, true));
}

TEST_CASE("need_event: control: moving the decided index with signals only loses it after exactly 65,535") {
  CHECK(signals_after_silence(65'534, false));
  CHECK_FALSE(signals_after_silence(65'535, false));
}

// A device publishes `count` completions one by one and decides only once, at the end. The driver waits for the
// first of them. Returns whether the decision signals.
bool signals_after_one_late_decision(std::uint32_t count, bool minds_the_lap) {
  constexpr std::uint16_t kDecided = 7;
  bool valid = true;
  std::uint16_t used = kDecided;
  for (std::uint32_t completion = 0; completion < count; ++completion) {
    const std::uint16_t before = used++;
    if (minds_the_lap && index_lapped(kDecided, used, before)) valid = false;
  }
  return !valid || need_event(kDecided, used, kDecided);
}

TEST_CASE("index_lapped: a decision after 65,535, 65,536 or 65,537 completions signals") {
  CHECK(signals_after_one_late_decision(65'535, true));
  CHECK(signals_after_one_late_decision(65'536, true));
  CHECK(signals_after_one_late_decision(65'537, true));
}

TEST_CASE("index_lapped: control: without it the decision after 65,536 completions stays silent") {
  CHECK(signals_after_one_late_decision(65'535, false));
  CHECK_FALSE(signals_after_one_late_decision(65'536, false));
}

}  // namespace
