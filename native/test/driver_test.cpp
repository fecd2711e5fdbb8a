// The driver's half of a split ring: alone against hand-written used entries, against the device's half in one
// thread, and in the two races in which a wake-up can be lost.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "core/ordering.h"
#include "core/peer/split_driver.h"
#include "core/split.h"

namespace hushring {
namespace {

constexpr Suppression kEveryWay[] = {Suppression::kNone, Suppression::kFlags, Suppression::kEventIdx};

// ---- A ring, its driver, and the device's words as a test writes them ------------------------------------------

template <class Ordering = HardwareOrdering>
class DriverUnderTest {
 public:
  using Driver = SplitDriver<Ordering>;
  static constexpr std::uint64_t kBytes = 0x10000;
  static constexpr std::uint64_t kDataAt = 0x8000;

  explicit DriverUnderTest(std::uint32_t size, Suppression suppression, std::uint16_t first_index = 0)
      : memory(static_cast<std::byte*>(std::aligned_alloc(4096, kBytes))),
        layout(split_layout(0x100, size)),
        driver((std::memset(memory.get(), 0xa5, kBytes), memory.get()), layout, size, suppression, first_index),
        mask_(size - 1),
        size_(size),
        used_idx_(first_index) {
    REQUIRE(layout.end_address <= kDataAt);
  }

  [[nodiscard]] Descriptor* descriptors() {
    return reinterpret_cast<Descriptor*>(memory.get() + layout.descriptor_address);
  }
  [[nodiscard]] Avail* avail() { return reinterpret_cast<Avail*>(memory.get() + layout.avail_address); }
  [[nodiscard]] Used* used() { return reinterpret_cast<Used*>(memory.get() + layout.used_address); }
  [[nodiscard]] std::uint16_t used_event() { return *used_event_of(avail(), size_); }
  void set_avail_event(std::uint16_t event) { *avail_event_of(used(), size_) = event; }
  // The head at a free-running index of the avail ring.
  [[nodiscard]] std::uint16_t head_at(std::uint32_t index) { return (&avail()->ring[0])[index & mask_]; }

  // The device gives a chain back.
  void use(std::uint32_t id, std::uint32_t length_bytes = 0) {
    (&used()->ring[0])[used_idx_++ & mask_] = {id, length_bytes};
    used()->idx = used_idx_;
  }

  // One buffer of each kind; true when there was room.
  [[nodiscard]] bool add(std::uint32_t token) {
    const typename Driver::Buffer readable[] = {{kDataAt, 16}};
    const typename Driver::Buffer writable[] = {{kDataAt + 16, 64}};
    return driver.add(readable, writable, token);
  }
  void add_and_publish(std::uint32_t token) {
    REQUIRE(add(token));
    driver.publish();
  }
  std::vector<std::pair<std::uint32_t, std::uint32_t>> reap() {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> reaped;
    const std::uint32_t count = driver.reap(
        [&](std::uint32_t token, std::uint32_t length_bytes) { reaped.emplace_back(token, length_bytes); });
    CHECK(count == reaped.size());
    return reaped;
  }

  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  const std::unique_ptr<std::byte, Free> memory;
  const SplitLayout layout;
  Driver driver;

 private:
  std::uint32_t mask_;
  std::uint32_t size_;
  std::uint16_t used_idx_;
};

using Reaped = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

// ---- Alone -----------------------------------------------------------------------------------------------------

TEST_CASE("driver: the parts of a ring are aligned, do not overlap and share no pair of cache lines") {
  for (const std::uint32_t size : {1U, 2U, 256U, 32768U}) {
    const SplitLayout layout = split_layout(0x1001, size);
    CHECK(layout.descriptor_address % 128 == 0);
    CHECK(layout.descriptor_address >= 0x1001);
    CHECK(layout.avail_address % 128 == 0);
    CHECK(layout.avail_address >= layout.descriptor_address + descriptor_bytes(size));
    CHECK(layout.used_address % 128 == 0);
    CHECK(layout.used_address >= layout.avail_address + avail_bytes(size));
    CHECK(layout.end_address >= layout.used_address + used_bytes(size));
  }
}

TEST_CASE("driver: writes a chain as descriptors, readable before writable") {
  DriverUnderTest test(8, Suppression::kEventIdx);
  const SplitDriver<HardwareOrdering>::Buffer readable[] = {{0x1000, 16}, {0x2000, 512}};
  const SplitDriver<HardwareOrdering>::Buffer writable[] = {{0x3000, 1}};
  REQUIRE(test.driver.add(readable, writable, 7));
  CHECK(test.avail()->idx == 0);
  test.driver.publish();
  CHECK(test.avail()->idx == 1);
  const Descriptor first = test.descriptors()[test.head_at(0)];
  CHECK(first.addr == 0x1000);
  CHECK(first.len == 16);
  CHECK(first.flags == kDescNext);
  const Descriptor second = test.descriptors()[first.next];
  CHECK(second.addr == 0x2000);
  CHECK(second.flags == kDescNext);
  const Descriptor third = test.descriptors()[second.next];
  CHECK(third.addr == 0x3000);
  CHECK(third.len == 1);
  CHECK(third.flags == kDescWrite);
}

TEST_CASE("driver: an indirect chain takes one descriptor of the ring") {
  DriverUnderTest test(1, Suppression::kEventIdx);
  const SplitDriver<HardwareOrdering>::Buffer readable[] = {{0x1000, 16}};
  const SplitDriver<HardwareOrdering>::Buffer writable[] = {{0x2000, 512}, {0x3000, 1}};
  CHECK_FALSE(test.driver.add(readable, writable, 7));
  auto* const table = reinterpret_cast<Descriptor*>(test.memory.get() + test.kDataAt);
  REQUIRE(test.driver.add_indirect(readable, writable, {table, test.kDataAt}, 7));
  test.driver.publish();
  const Descriptor head = test.descriptors()[test.head_at(0)];
  CHECK(head.addr == test.kDataAt);
  CHECK(head.len == 3 * sizeof(Descriptor));
  CHECK(head.flags == kDescIndirect);
  CHECK(table[0].flags == kDescNext);
  CHECK(table[0].next == 1);
  CHECK(table[1].flags == (kDescNext | kDescWrite));
  CHECK(table[1].next == 2);
  CHECK(table[2].flags == kDescWrite);
  CHECK_FALSE(test.driver.add_indirect(readable, writable, {table, test.kDataAt}, 8));
  test.use(0, 513);
  CHECK(test.reap() == Reaped{{7, 513}});
  CHECK(test.driver.free_count() == 1);
}

TEST_CASE("driver: a full ring refuses, and takes chains again in whatever order they come back") {
  DriverUnderTest test(8, Suppression::kEventIdx);
  for (std::uint32_t token = 0; token < 4; ++token) test.add_and_publish(token);
  CHECK_FALSE(test.add(4));
  CHECK(test.driver.in_flight_count() == 4);
  for (const std::uint32_t back : {2U, 0U, 3U, 1U}) test.use(test.head_at(back), back);
  CHECK(test.reap() == Reaped{{2, 2}, {0, 0}, {3, 3}, {1, 1}});
  CHECK(test.driver.free_count() == 8);
  for (std::uint32_t token = 4; token < 8; ++token) test.add_and_publish(token);
  CHECK_FALSE(test.add(8));
  CHECK(test.driver.fault() == DeviceFault::kNone);
}

TEST_CASE("driver: both indices wrap at 65535") {
  DriverUnderTest test(4, Suppression::kEventIdx, 65534);
  for (std::uint32_t token = 0; token < 4; ++token) {
    test.add_and_publish(token);
    CHECK(test.avail()->idx == static_cast<std::uint16_t>(65535 + token));
    test.use(test.head_at(65534 + token), token);
    CHECK(test.driver.sees_used());
    CHECK(test.reap() == Reaped{{token, token}});
    CHECK_FALSE(test.driver.sees_used());
  }
  CHECK_FALSE(test.driver.enable_signals());
  CHECK(test.used_event() == 2);
}

TEST_CASE("driver: a batch is published at once and decided once") {
  DriverUnderTest test(8, Suppression::kEventIdx);
  test.add_and_publish(0);
  CHECK(test.driver.kick_needed());
  CHECK_FALSE(test.driver.kick_needed());  // nothing new
  test.set_avail_event(2);
  for (std::uint32_t token = 1; token < 4; ++token) REQUIRE(test.add(token));
  CHECK_FALSE(test.driver.kick_needed());  // added, but not published
  test.driver.publish();
  CHECK(test.driver.kick_needed());  // 2 is one of 1, 2, 3
}

TEST_CASE("driver: EVENT_IDX kicks exactly when avail_event is among the new entries, also across the wrap") {
  struct Row {
    std::uint16_t decided, fresh, event;
    bool expected;
  };
  const Row rows[] = {
      {100, 102, 99, false},    {100, 102, 100, true},   {100, 102, 101, true},   {100, 102, 102, false},
      {65534, 0, 65533, false}, {65534, 0, 65534, true}, {65534, 0, 65535, true}, {65534, 0, 0, false},
      {65535, 1, 65535, true},  {65535, 1, 0, true},     {65535, 1, 1, false},    {65535, 0, 32767, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.decided);
    CAPTURE(row.fresh);
    CAPTURE(row.event);
    DriverUnderTest test(8, Suppression::kEventIdx, static_cast<std::uint16_t>(row.decided - 1));
    test.add_and_publish(0);
    CHECK(test.driver.kick_needed());  // the first decision, always
    test.set_avail_event(row.event);
    test.used()->flags = kUsedNoNotify;  // means nothing with EVENT_IDX
    for (std::uint16_t index = row.decided; index != row.fresh; ++index) REQUIRE(test.add(1));
    test.driver.publish();
    CHECK(test.driver.kick_needed() == row.expected);
  }
}

// Publishes `count` chains without a decision; the device takes them all and wants no kick for long.
bool kicks_after_undecided(std::uint32_t count) {
  DriverUnderTest test(4, Suppression::kEventIdx);
  test.add_and_publish(0);
  static_cast<void>(test.driver.kick_needed());
  test.set_avail_event(0x8000);
  for (std::uint32_t index = 0;; ++index) {
    test.use(test.head_at(index), 0);
    REQUIRE(test.reap().size() == 1);
    if (index == count) return test.driver.kick_needed();
    test.add_and_publish(index);
  }
}

TEST_CASE("driver: a decision that comes a lap late kicks, because the index cannot tell any more") {
  CHECK_FALSE(kicks_after_undecided(100));
  CHECK(kicks_after_undecided(65535));  // 0x8000 is among them
  CHECK(kicks_after_undecided(65536));
  CHECK(kicks_after_undecided(65537));
  // Control: the arithmetic alone would stay silent.
  CHECK_FALSE(need_event(0x8000, 1, 1));
  CHECK_FALSE(need_event(0x8000, 2, 1));
}

TEST_CASE("driver: flags mode kicks unless the device set NO_NOTIFY; without suppression always") {
  for (const Suppression way : {Suppression::kFlags, Suppression::kNone}) {
    DriverUnderTest test(8, way);
    test.used()->flags = kUsedNoNotify;
    test.add_and_publish(0);
    CHECK(test.driver.kick_needed());  // the first decision, always
    test.add_and_publish(1);
    CHECK(test.driver.kick_needed() == (way == Suppression::kNone));
    test.used()->flags = 0;
    test.set_avail_event(0x8000);  // means nothing without EVENT_IDX
    test.add_and_publish(2);
    CHECK(test.driver.kick_needed());
    CHECK_FALSE(test.driver.kick_needed());
  }
}

TEST_CASE("driver: asks for signals in its way of suppression and tells that work came meanwhile") {
  for (const Suppression way : kEveryWay) {
    CAPTURE(static_cast<int>(way));
    DriverUnderTest test(8, way);
    test.add_and_publish(0);
    test.add_and_publish(1);
    test.driver.disable_signals();
    CHECK(test.avail()->flags == (way == Suppression::kFlags ? kAvailNoInterrupt : 0));
    test.use(test.head_at(0));
    CHECK(test.reap().size() == 1);
    CHECK_FALSE(test.driver.enable_signals());
    CHECK(test.avail()->flags == 0);
    CHECK(test.used_event() == (way == Suppression::kEventIdx ? 1 : 0));
    test.use(test.head_at(1));
    CHECK(test.driver.enable_signals());
    CHECK(test.reap().size() == 1);
    CHECK_FALSE(test.driver.enable_signals());
  }
}

// A device that lies. Chains 0 and 1 are published, 2 is added and not published.
struct Lie {
  const char* title;
  std::function<void(DriverUnderTest<>&)> tell;
  DeviceFault expected;
  std::size_t reaped;  // before it was noticed
};

TEST_CASE("driver: reports what a device must not say, and believes nothing after it") {
  const Lie lies[] = {
      {"control: the truth", [](auto& test) { test.use(test.head_at(1), 64), test.use(test.head_at(0), 0); },
       DeviceFault::kNone, 2},
      {"an id outside the table", [](auto& test) { test.use(8); }, DeviceFault::kUsedId, 0},
      {"an id of 32 bits", [](auto& test) { test.use(0x1'0000u | test.head_at(0)); }, DeviceFault::kUsedId, 0},
      {"a free descriptor", [](auto& test) { test.use(7); }, DeviceFault::kUsedNotPublished, 0},
      {"the middle of a chain", [](auto& test) { test.use(test.descriptors()[test.head_at(0)].next); },
       DeviceFault::kUsedNotPublished, 0},
      {"a chain it was not shown", [](auto& test) { test.use(test.head_at(2)); }, DeviceFault::kUsedNotPublished, 0},
      {"one chain twice", [](auto& test) { test.use(test.head_at(0)), test.use(test.head_at(0)); },
       DeviceFault::kUsedNotPublished, 1},
      {"a byte more than there is room for", [](auto& test) { test.use(test.head_at(0), 65); },
       DeviceFault::kUsedLength, 0},
      {"more entries than were published",
       [](auto& test) { test.use(test.head_at(0)), test.use(test.head_at(1)), test.use(test.head_at(2)); },
       DeviceFault::kUsedIndex, 0},
      {"an index that goes back", [](auto& test) { test.used()->idx = 65535; }, DeviceFault::kUsedIndex, 0},
      {"an index that jumps", [](auto& test) { test.used()->idx = 40000; }, DeviceFault::kUsedIndex, 0},
  };
  for (const Lie& lie : lies) {
    CAPTURE(lie.title);
    DriverUnderTest test(8, Suppression::kEventIdx);
    test.add_and_publish(0);
    test.add_and_publish(1);
    REQUIRE(test.add(2));
    lie.tell(test);
    CHECK(test.reap().size() == lie.reaped);
    CHECK(test.driver.fault() == lie.expected);
    CHECK(test.reap().empty());
    CHECK(test.driver.fault() == lie.expected);
  }
}

TEST_CASE("driver: a device at fault is not believed when it comes to its senses") {
  DriverUnderTest test(8, Suppression::kEventIdx);
  test.add_and_publish(0);
  test.use(8);
  CHECK(test.reap().empty());
  test.used()->ring[0].id = test.head_at(0);
  CHECK(test.reap().empty());
  CHECK(test.driver.fault() == DeviceFault::kUsedId);
}

TEST_CASE("driver: a chain answered twice is noticed even when the first answer gave its head out again") {
  DriverUnderTest test(4, Suppression::kEventIdx);
  test.add_and_publish(0);
  test.add_and_publish(1);
  const std::uint16_t head = test.head_at(0);
  test.use(head);
  test.use(head);
  CHECK(test.driver.reap([&](std::uint32_t, std::uint32_t) { REQUIRE(test.add(2)); }) == 1);
  CHECK(test.head_at(2) == head);
  CHECK(test.driver.fault() == DeviceFault::kUsedNotPublished);
}

// ---- With the device's half, in one thread ---------------------------------------------------------------------

// The two halves on one ring. The header of each request is its token; the answer is token % 65 bytes long.
template <class Ordering>
struct Pair : DriverUnderTest<Ordering> {
  static constexpr std::uint32_t kSize = 16;
  static constexpr std::uint32_t kSlotBytes = 256;

  explicit Pair(Suppression way, std::uint16_t first_index = 0)
      : DriverUnderTest<Ordering>(kSize, way, first_index),
        regions{{0, 0, this->kBytes, this->memory.get(), 0}},
        options{kSize, 8, 8, {.header_bytes = 4, .status_byte = false}, false},
        requests(options.request_rows()),
        headers(options.request_rows() * options.header_stride_bytes()),
        segments(options.segment_rows()),
        completions(options.completion_rows()),
        device(options, {requests, headers, segments, completions, &counters}) {
    const SplitRing ring{kSize,
                         AddressSpace::kGuest,
                         this->layout.descriptor_address,
                         this->layout.avail_address,
                         this->layout.used_address,
                         first_index,
                         way == Suppression::kEventIdx,
                         true};
    REQUIRE(device.start(ring, regions) == Fault::kNone);
  }

  // Slots of memory by token: more than chains can be in flight at once.
  [[nodiscard]] std::uint64_t slot_at(std::uint32_t token) const { return this->kDataAt + token % kSize * kSlotBytes; }

  // Adds the request `token` with `writable_count` writable buffers of 64 bytes together.
  [[nodiscard]] bool add_token(std::uint32_t token, std::uint32_t writable_count, bool indirect) {
    using Buffer = typename SplitDriver<Ordering>::Buffer;
    const std::uint64_t at = slot_at(token);
    std::memcpy(this->memory.get() + at, &token, sizeof(token));
    const Buffer readable[] = {{at, 4}};
    const Buffer writable[] = {{at + 64, writable_count == 1 ? 64U : 24U}, {at + 88, 40}};
    const auto used = std::span(writable).first(writable_count);
    auto* const table = reinterpret_cast<Descriptor*>(this->memory.get() + at + 128);
    return indirect ? this->driver.add_indirect(readable, used, {table, at + 128}, token)
                    : this->driver.add(readable, used, token);
  }

  const Region regions[1];
  const SplitOptions options;
  std::vector<RequestRow> requests;
  std::vector<std::byte> headers;
  std::vector<Segment> segments;
  std::vector<CompletionRow> completions;
  QueueCounters counters{};
  SplitDevice<HardwareOrdering> device;
};

// What a careless side does in a control.
enum class Careless : std::uint8_t { kNobody, kSkipsAKick, kSleepsOnWork, kSkipsASignal };

// Plays driver and device at random, each action at any moment: the driver submits, reaps or goes to sleep, the device
// takes, completes, re-arms. After each action: whoever sleeps has no work waiting, or the wake-up is lost.
class Play {
 public:
  Play(Suppression way, std::uint32_t seed, Careless careless)
      : pair_(way, 65000), random_(seed), careless_(careless), answered_(kTokens) {}

  // Plays until `count` requests were answered or a wake-up was lost. Returns the number of requests answered.
  std::uint32_t run(std::uint32_t count) {
    while (answered_count_ < count && lost_ == 0) {
      switch (below(5)) {
        case 0: submit(count); break;
        case 1: if (!driver_sleeps_) reap(); break;
        case 2: if (!driver_sleeps_) fall_asleep(); break;
        case 3: if (!device_sleeps_) take(); break;
        default: complete(); break;
      }
      if (driver_sleeps_ && pair_.driver.sees_used()) ++lost_;
      if (device_sleeps_ && pair_.device.visible_count() > 0) ++lost_;
    }
    return answered_count_;
  }

  [[nodiscard]] std::uint32_t lost() const { return lost_; }
  [[nodiscard]] std::uint32_t wrong() const { return wrong_; }
  // Kicks and signals.
  [[nodiscard]] std::uint32_t wake_ups() const { return wake_ups_; }

 private:
  static constexpr std::uint32_t kTokens = Pair<HardwareOrdering>::kSize;  // requests in flight, at most

  [[nodiscard]] std::uint32_t below(std::uint32_t end) { return static_cast<std::uint32_t>(random_() % end); }
  [[nodiscard]] bool careless(Careless how) { return careless_ == how && below(64) == 0; }

  // A driver submits whether or not it waits for signals.
  void submit(std::uint32_t count) {
    for (std::uint32_t publishes = below(3); publishes > 0; --publishes) {
      for (std::uint32_t batch = below(8); batch > 0 && submitted_ < count; --batch) {
        // A slot of memory is free again when its former request was answered.
        if (submitted_ >= kTokens && answered_[submitted_ % kTokens] != submitted_ - kTokens + 1) break;
        if (!pair_.add_token(submitted_, 1 + below(2), below(2) == 0)) break;
        ++submitted_;
      }
      pair_.driver.publish();
    }
    if (!pair_.driver.kick_needed() || careless(Careless::kSkipsAKick)) return;
    ++wake_ups_;
    kick_is_pending_ = true;
    device_sleeps_ = false;
  }

  void reap() {
    pair_.driver.disable_signals();
    pair_.driver.reap([&](std::uint32_t token, std::uint32_t length_bytes) {
      if (length_bytes != token % 65) ++wrong_;
      answered_[token % kTokens] = token + 1;
      ++answered_count_;
    });
    if (pair_.driver.fault() != DeviceFault::kNone) ++wrong_;
  }

  void fall_asleep() { driver_sleeps_ = !pair_.driver.enable_signals() || careless(Careless::kSleepsOnWork); }

  void take() {
    kick_is_pending_ = false;
    const std::int32_t taken = pair_.device.take(1 + below(8));
    if (taken < 0) ++wrong_;
    for (std::int32_t row = 0; row < taken; ++row) {
      std::uint32_t token = 0;
      std::memcpy(&token, pair_.headers.data() + 4 * row, sizeof(token));
      in_hand_.push_back({pair_.requests[static_cast<std::size_t>(row)].head, token % 65, 0});
    }
  }

  // Some of what is in hand, in any order. With nothing, the device just re-arms.
  void complete() {
    std::shuffle(in_hand_.begin(), in_hand_.end(), random_);
    const auto count = below(static_cast<std::uint32_t>(in_hand_.size()) + 1);
    for (std::uint32_t row = 0; row < count; ++row) {
      pair_.completions[row] = in_hand_.back();
      in_hand_.pop_back();
    }
    const std::int32_t bits = pair_.device.complete(count, below(4) != 0);
    if (bits < 0) ++wrong_;
    if ((bits & kSignalled) != 0 && !careless(Careless::kSkipsASignal)) {
      ++wake_ups_;
      driver_sleeps_ = false;
    }
    device_sleeps_ = (bits & kArmed) != 0 && !kick_is_pending_;
  }

  Pair<HardwareOrdering> pair_;
  std::mt19937 random_;
  const Careless careless_;
  std::vector<std::uint32_t> answered_;  // by token % kTokens: the last token answered, plus one
  std::vector<CompletionRow> in_hand_;
  std::uint32_t submitted_ = 0;
  std::uint32_t answered_count_ = 0;
  std::uint32_t wrong_ = 0;
  std::uint32_t lost_ = 0;
  std::uint32_t wake_ups_ = 0;
  bool driver_sleeps_ = false;
  bool device_sleeps_ = false;
  bool kick_is_pending_ = false;  // the device takes before it sleeps
};

TEST_CASE("driver and device: nobody sleeps on work, in each way of suppression, over several wraps") {
  constexpr std::uint32_t kRequests = 220'000;
  constexpr std::uint32_t kSeed = 7;
  CAPTURE(kSeed);
  std::uint32_t wake_ups_without_suppression = 0;
  for (const Suppression way : kEveryWay) {
    CAPTURE(static_cast<int>(way));
    Play play(way, kSeed, Careless::kNobody);
    CHECK(play.run(kRequests) == kRequests);
    CHECK(play.lost() == 0);
    CHECK(play.wrong() == 0);
    // Nor does anybody wake the other for nothing: silence that was asked for is kept.
    if (way == Suppression::kNone) wake_ups_without_suppression = play.wake_ups();
    else CHECK(play.wake_ups() < wake_ups_without_suppression / 4 * 3);
  }
}

TEST_CASE("driver and device: control: a skipped kick, a skipped signal or a sleep on work is noticed") {
  for (const Suppression way : kEveryWay) {
    for (const Careless careless : {Careless::kSkipsAKick, Careless::kSleepsOnWork, Careless::kSkipsASignal}) {
      CAPTURE(static_cast<int>(way));
      CAPTURE(static_cast<int>(careless));
      Play play(way, 7, careless);
      CHECK(play.run(100'000) < 100'000);
      CHECK(play.lost() == 1);
    }
  }
}

// ---- The two races, from the driver's side ---------------------------------------------------------------------

// The driver over a memory with a store buffer: its stores stay invisible to the device until a full fence, or until
// drain() at the end. The device's program runs right after the driver's load of one chosen word, which is the worst
// moment: the driver has seen the old word, the device sees none of the driver's stores that are still buffered.
class DriverStoreBuffer : public HardwareOrdering {
 public:
  template <typename Word>
  static void store_relaxed(Word* word, Word value) noexcept {
    buffer_.emplace_back([word, value] { HardwareOrdering::store_relaxed(word, value); });
  }
  static void publish_avail_index(std::uint16_t* index, std::uint16_t value) noexcept {
    buffer_.emplace_back([index, value] { HardwareOrdering::publish_avail_index(index, value); });
  }
  template <typename Word>
  static Word load_relaxed(const Word* word) noexcept {
    const Word value = HardwareOrdering::load_relaxed(word);
    run_device_after_load_of(word);
    return value;
  }
  static std::uint16_t acquire_used_index(const std::uint16_t* index) noexcept {
    const std::uint16_t value = HardwareOrdering::acquire_used_index(index);
    run_device_after_load_of(index);
    return value;
  }
  static void fence_avail_index_then_avail_event() noexcept { drain(); }
  static void fence_avail_index_then_used_flags() noexcept { drain(); }
  static void fence_used_event_then_used_index() noexcept { drain(); }
  static void fence_avail_flags_then_used_index() noexcept { drain(); }

  // Makes every buffered store visible, in order.
  static void drain() noexcept {
    for (const auto& store : std::exchange(buffer_, {})) store();
  }
  static void run_device_after_load_of(const void* word, std::function<void()> device) {
    watched_ = word;
    device_ = std::move(device);
  }
  [[nodiscard]] static bool device_ran() { return device_ == nullptr; }

 private:
  static void run_device_after_load_of(const void* word) noexcept {
    if (word == watched_ && device_ != nullptr) std::exchange(device_, nullptr)();
  }

  static inline std::vector<std::function<void()>> buffer_;
  static inline const void* watched_ = nullptr;
  static inline std::function<void()> device_;
};

// One mutant for each of the driver's fences; names as in ordering.h.
struct WithoutAvailEventFence : DriverStoreBuffer {
  static void fence_avail_index_then_avail_event() noexcept {}
};
struct WithoutUsedFlagsFence : DriverStoreBuffer {
  static void fence_avail_index_then_used_flags() noexcept {}
};
struct WithoutUsedEventFence : DriverStoreBuffer {
  static void fence_used_event_then_used_index() noexcept {}
};
struct WithoutAvailFlagsFence : DriverStoreBuffer {
  static void fence_avail_flags_then_used_index() noexcept {}
};

// One request goes by first, because the first decision of either side wakes the other whatever it asked for.
template <class Ordering>
class RacingPair : public Pair<Ordering> {
 public:
  explicit RacingPair(Suppression way) : Pair<Ordering>(way) {
    this->driver.disable_signals();
    give(0);
    static_cast<void>(this->driver.kick_needed());
    answer();
    Ordering::drain();
    REQUIRE(this->reap().size() == 1);
  }
  ~RacingPair() { Ordering::run_device_after_load_of(nullptr, nullptr); }

  void give(std::uint32_t token) {
    REQUIRE(this->add_token(token, 1, false));
    this->driver.publish();
  }
  // The device answers the one request it has and keeps kicks suppressed. Returns its CompleteBits.
  std::int32_t answer() {
    Ordering::drain();
    REQUIRE(this->device.take(1) == 1);
    return answer_taken();
  }
  std::int32_t answer_taken() {
    this->completions[0] = {this->requests[0].head, 0, 0};
    return this->device.complete(1, false);
  }
};

// The driver publishes and decides while the device re-arms. Returns whether the device sleeps on the request.
template <class Ordering>
bool loses_kick(Suppression way) {
  RacingPair<Ordering> pair(way);
  const std::uint16_t* const wish =
      way == Suppression::kEventIdx ? avail_event_of(pair.used(), pair.kSize) : &pair.used()->flags;
  std::int32_t bits = 0;
  Ordering::run_device_after_load_of(wish, [&] { bits = pair.device.complete(0, true); });
  pair.give(1);
  const bool kicked = pair.driver.kick_needed();
  Ordering::drain();
  REQUIRE(Ordering::device_ran());
  REQUIRE(pair.device.visible_count() == 1);
  return !kicked && (bits & kMore) == 0;
}

// The driver goes to sleep while the device publishes and decides. Returns whether it sleeps on the answer.
template <class Ordering>
bool loses_signal(Suppression way) {
  RacingPair<Ordering> pair(way);
  pair.give(1);
  Ordering::drain();
  REQUIRE(pair.device.take(1) == 1);
  std::int32_t bits = 0;
  Ordering::run_device_after_load_of(&pair.used()->idx, [&] { bits = pair.answer_taken(); });
  const bool sleeps = !pair.driver.enable_signals();
  Ordering::drain();
  REQUIRE(Ordering::device_ran());
  REQUIRE(pair.driver.sees_used());
  return sleeps && (bits & kSignalled) == 0;
}

TEST_CASE("driver's fences: no kick and no signal is lost at the worst moment") {
  for (const Suppression way : {Suppression::kFlags, Suppression::kEventIdx}) {
    CHECK_FALSE(loses_kick<DriverStoreBuffer>(way));
    CHECK_FALSE(loses_signal<DriverStoreBuffer>(way));
  }
}

TEST_CASE("driver's fences: control: without its fence each wake-up is lost, in its own way of suppression only") {
  CHECK(loses_kick<WithoutAvailEventFence>(Suppression::kEventIdx));
  CHECK_FALSE(loses_kick<WithoutAvailEventFence>(Suppression::kFlags));
  CHECK(loses_kick<WithoutUsedFlagsFence>(Suppression::kFlags));
  CHECK_FALSE(loses_kick<WithoutUsedFlagsFence>(Suppression::kEventIdx));
  CHECK(loses_signal<WithoutUsedEventFence>(Suppression::kEventIdx));
  CHECK_FALSE(loses_signal<WithoutUsedEventFence>(Suppression::kFlags));
  CHECK(loses_signal<WithoutAvailFlagsFence>(Suppression::kFlags));
  CHECK_FALSE(loses_signal<WithoutAvailFlagsFence>(Suppression::kEventIdx));
}

}  // namespace
}  // namespace hushring
