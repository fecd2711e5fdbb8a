// The two races in which a wake-up can be lost, played to the end in one thread.
//
// The device runs over a memory model with a store buffer: its stores stay invisible to the driver until a full
// fence, or until the call ends, as total store order (x86) allows at the latest. The driver's program runs at one
// chosen load of the device. Each fence, and the second look, has a mutant without it, which must lose.
#include <doctest/doctest.h>

#include <functional>
#include <utility>
#include <vector>

#include "core/mutants.h"
#include "test_queue.h"

namespace hushring::test {
namespace {

class StoreBufferOrdering : public HardwareOrdering {
 public:
  // ---- The device's accesses ----
  template <typename Word>
  static void store_relaxed(Word* word, Word value) noexcept {
    buffer_.emplace_back([word, value] { HardwareOrdering::store_relaxed(word, value); });
  }
  static void publish_used_index(std::uint16_t* index, std::uint16_t value) noexcept {
    buffer_.emplace_back([index, value] { HardwareOrdering::publish_used_index(index, value); });
  }
  template <typename Word>
  static Word load_relaxed(const Word* word) noexcept {
    const Word value = HardwareOrdering::load_relaxed(word);
    run_driver_after_load_of(word);
    return value;
  }
  static std::uint16_t acquire_avail_index(const std::uint16_t* index) noexcept {
    const std::uint16_t value = HardwareOrdering::acquire_avail_index(index);
    run_driver_after_load_of(index);
    return value;
  }
  static void fence_used_index_then_used_event() noexcept { drain(); }
  static void fence_used_index_then_avail_flags() noexcept { drain(); }
  static void fence_avail_event_then_avail_index() noexcept { drain(); }
  static void fence_used_flags_then_avail_index() noexcept { drain(); }

  // ---- The model ----
  // Makes every buffered store visible, in order.
  static void drain() noexcept {
    for (const auto& store : std::exchange(buffer_, {})) store();
  }
  // Runs `driver` right after the device's `countdown`-th load of `word` from now on.
  static void run_driver_after(const void* word, int countdown, std::function<void()> driver) {
    watched_ = word;
    countdown_ = countdown;
    driver_ = std::move(driver);
  }
  // True when the driver's program ran.
  static bool driver_ran() { return driver_ == nullptr; }

 private:
  static void run_driver_after_load_of(const void* word) noexcept {
    if (word == watched_ && driver_ != nullptr && --countdown_ == 0) std::exchange(driver_, nullptr)();
  }

  static inline std::vector<std::function<void()>> buffer_;
  static inline const void* watched_ = nullptr;
  static inline int countdown_ = 0;
  static inline std::function<void()> driver_;
};

template <class Ordering>
class RaceQueue : public TestQueue<Ordering> {
 public:
  explicit RaceQueue(bool event_idx)
      : TestQueue<Ordering>({.size = 4, .event_idx = event_idx, .framing = {0, false}}),
        event_idx_(event_idx) {
    Ordering::drain();
    // One request goes by first, so that the decision under test is not the first one, which always signals.
    offer();
    static_cast<void>(this->serve(false));
    Ordering::drain();
  }
  ~RaceQueue() { Ordering::run_driver_after(nullptr, 0, nullptr); }

  void offer() { this->driver.offer(0, {{kDataAt, 64, kDescWrite}}); }

  // The driver wants silence, sees its one request answered while it re-arms, or sleeps. Returns whether it sleeps
  // for ever.
  bool loses_signal() {
    if (event_idx_) this->driver.set_used_event(0x8000);
    else this->driver.set_avail_flags(kAvailNoInterrupt);
    offer();
    REQUIRE(this->device.take(1) == 1);
    bool saw_answer = false;
    Ordering::run_driver_after(wish_for_signals(), 1, [&] {
      if (event_idx_) this->driver.set_used_event(1);
      else this->driver.set_avail_flags(0);
      saw_answer = this->driver.used_idx() != 1;
    });
    const std::int32_t bits = this->answer(0, 64);
    Ordering::drain();
    REQUIRE(Ordering::driver_ran());
    REQUIRE(this->driver.used_idx() == 2);
    return !saw_answer && (bits & kSignalled) == 0;
  }

  // The driver publishes right after the device's `look`-th look at the index while the device re-arms. Returns
  // whether the device sleeps on the entry for ever.
  bool loses_kick_at(int look) {
    bool kicked = false;
    Ordering::run_driver_after(this->driver.avail_idx_word(), look, [&] {
      const std::uint16_t before = this->driver.avail_idx();
      offer();
      kicked = event_idx_ ? need_event(this->driver.avail_event(), this->driver.avail_idx(), before)
                          : (this->driver.used_flags() & kUsedNoNotify) == 0;
    });
    const std::int32_t bits = this->device.complete(0, true);
    Ordering::drain();
    return Ordering::driver_ran() && !kicked && (bits & kMore) == 0;
  }

 private:
  const void* wish_for_signals() {
    return event_idx_ ? this->driver.used_event_word() : this->driver.avail_flags_word();
  }

  bool event_idx_;
};

template <class Ordering>
bool loses_signal(bool event_idx) {
  return RaceQueue<Ordering>(event_idx).loses_signal();
}

template <class Ordering>
bool loses_kick(bool event_idx) {
  // At most two looks are made; each is a chance for the driver.
  return RaceQueue<Ordering>(event_idx).loses_kick_at(1) || RaceQueue<Ordering>(event_idx).loses_kick_at(2);
}

TEST_CASE("ordering: no signal is lost when the driver re-arms while the device publishes") {
  CHECK_FALSE(loses_signal<StoreBufferOrdering>(true));
  CHECK_FALSE(loses_signal<StoreBufferOrdering>(false));
}

TEST_CASE("ordering: mutant F2-event-idx: without its fence the signal is lost") {
  CHECK(loses_signal<mutants::F2EventIdx<StoreBufferOrdering>>(true));
  CHECK_FALSE(loses_signal<mutants::F2EventIdx<StoreBufferOrdering>>(false));
}

TEST_CASE("ordering: mutant F2-flags: without its fence the signal is lost") {
  CHECK(loses_signal<mutants::F2Flags<StoreBufferOrdering>>(false));
  CHECK_FALSE(loses_signal<mutants::F2Flags<StoreBufferOrdering>>(true));
}

TEST_CASE("ordering: no kick is lost when the driver publishes while the device re-arms") {
  CHECK_FALSE(loses_kick<StoreBufferOrdering>(true));
  CHECK_FALSE(loses_kick<StoreBufferOrdering>(false));
}

TEST_CASE("ordering: mutant F4-event-idx: without its fence the kick is lost") {
  CHECK(loses_kick<mutants::F4EventIdx<StoreBufferOrdering>>(true));
  CHECK_FALSE(loses_kick<mutants::F4EventIdx<StoreBufferOrdering>>(false));
}

TEST_CASE("ordering: mutant F4-flags: without its fence the kick is lost") {
  CHECK(loses_kick<mutants::F4Flags<StoreBufferOrdering>>(false));
  CHECK_FALSE(loses_kick<mutants::F4Flags<StoreBufferOrdering>>(true));
}

TEST_CASE("ordering: the second look finds what was published before the wish; suppression is back afterwards") {
  RaceQueue<StoreBufferOrdering> queue(false);
  CHECK_FALSE(queue.loses_kick_at(1));
  CHECK_FALSE(queue.device.armed());
  CHECK(queue.driver.used_flags() == kUsedNoNotify);
  CHECK(queue.device.take(1) == 1);
}

TEST_CASE("ordering: mutant F5: without the second look the kick is lost") {
  CHECK(loses_kick<mutants::F5<StoreBufferOrdering>>(true));
  CHECK(loses_kick<mutants::F5<StoreBufferOrdering>>(false));
}

}  // namespace
}  // namespace hushring::test
