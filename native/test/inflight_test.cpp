// A device that is killed after any store it makes, and the next one that goes on with its in-flight region.
//
// The kill is exact: the ordering policy counts the stores to shared memory and drops all that follow the n-th, which
// is what the killed process leaves behind. The driver lives on, takes back what it sees and reuses those heads, as a
// guest does; then another device starts. Every n is tried, and every second kill in the life after it.
#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/mutants.h"
#include "test_queue.h"

namespace hushring::test {
namespace {

class KilledOrdering : public HardwareOrdering {
 public:
  // ---- The device's stores ----
  template <typename Word>
  static void store_relaxed(Word* word, Word value) noexcept {
    if (lives()) HardwareOrdering::store_relaxed(word, value);
  }
  static void publish_used_index(std::uint16_t* index, std::uint16_t value) noexcept { store_relaxed(index, value); }
  static void store_inflight_counter(std::uint64_t* counter, std::uint64_t value) noexcept {
    store_relaxed(counter, value);
  }
  static void mark_inflight(std::uint8_t* mark) noexcept { store_relaxed(mark, std::uint8_t{1}); }
  static void clear_inflight(std::uint8_t* mark) noexcept { store_relaxed(mark, std::uint8_t{0}); }
  static void note_used_index(std::uint16_t* index, std::uint16_t value) noexcept { store_relaxed(index, value); }
  static void publish_inflight_version(std::uint16_t* version, std::uint16_t value) noexcept {
    store_relaxed(version, value);
  }

  // ---- The kill ----
  static constexpr std::uint32_t kNever = ~0U;
  static void kill_after(std::uint32_t store_count) noexcept {
    stores_left_ = store_count;
    store_count_ = 0;
    killed_ = false;
  }
  // A store was dropped.
  [[nodiscard]] static bool killed() noexcept { return killed_; }
  [[nodiscard]] static std::uint32_t store_count() noexcept { return store_count_; }

 private:
  static bool lives() noexcept {
    if (stores_left_ == 0) killed_ = true;
    else if (stores_left_ != kNever) --stores_left_;
    if (!killed_) ++store_count_;
    return !killed_;
  }

  static inline std::uint32_t stores_left_ = kNever;
  static inline std::uint32_t store_count_ = 0;
  static inline bool killed_ = false;
};

constexpr std::uint32_t kSize = 8;
constexpr std::uint32_t kHeadCount = kSize / 2;  // two descriptors a request
constexpr std::uint64_t kMalformedEvery = 5;
constexpr std::uint16_t kFirstIndex = 65530;  // the indices wrap on the way, and the ring does several times

// A driver with requests that carry numbers, which finds out whatever happens to one but its own single answer.
class NumberedDriver {
 public:
  explicit NumberedDriver(const TestMemory& memory) : memory_(memory), driver_(memory, kRingAt, kSize) {
    driver_.set_avail_idx(kFirstIndex);
    driver_.set_used_idx(kFirstIndex);
    for (std::uint32_t slot = kHeadCount; slot > 0; --slot) free_slots_.push_back(slot - 1);
  }

  [[nodiscard]] SplitRing ring() const { return driver_.ring(false, driver_.used_idx()); }

  void offer_all() {
    while (!free_slots_.empty()) offer();
  }
  void reap() {
    for (; reaped_ != driver_.used_idx(); ++reaped_) take_back(driver_.used(reaped_).id);
  }
  [[nodiscard]] bool nothing_is_outstanding() const { return free_slots_.size() == kHeadCount; }
  [[nodiscard]] std::uint16_t used_idx() const { return driver_.used_idx(); }
  [[nodiscard]] std::uint64_t answered_count() const { return answered_count_; }
  // The first thing that no driver may see.
  [[nodiscard]] const std::string& complaint() const { return complaint_; }
  void complain(const std::string& text) {
    if (complaint_.empty()) complaint_ = text;
  }

  // Where the device finds the number of the request with that head, and where it answers with it.
  [[nodiscard]] std::uint64_t* question(std::uint32_t head) const { return word(kDataAt + 64 * head); }
  [[nodiscard]] std::uint64_t* answer(std::uint32_t head) const { return word(kDataAt + 64 * head + 32); }

 private:
  [[nodiscard]] static bool is_malformed(std::uint64_t number) { return number % kMalformedEvery == 0; }
  [[nodiscard]] std::uint64_t* word(std::uint64_t address) const {
    return reinterpret_cast<std::uint64_t*>(memory_.at(address));
  }

  void offer() {
    const std::uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    const auto head = static_cast<std::uint16_t>(2 * slot);
    const std::uint64_t number = ++offered_count_;
    numbers_[slot] = number;
    *question(head) = number;
    *answer(head) = 0;
    const Buffer readable{kDataAt + 64 * head, 8};
    const Buffer writable{kDataAt + 64 * head + 32, 9, kDescWrite};
    if (is_malformed(number)) driver_.offer(head, {writable, readable});
    else driver_.offer(head, {readable, writable});
  }

  void take_back(std::uint32_t id) {
    if (id % 2 != 0 || id >= kSize || !numbers_[id / 2]) {
      return complain("an answer for head " + std::to_string(id) + ", which nobody waits for");
    }
    const std::uint64_t number = *numbers_[id / 2];
    if (!is_malformed(number) && *answer(id) != number) {
      complain("request " + std::to_string(number) + " has the answer to " + std::to_string(*answer(id)));
    }
    numbers_[id / 2].reset();
    free_slots_.push_back(id / 2);
    ++answered_count_;
  }

  const TestMemory& memory_;
  TestDriver driver_;
  std::array<std::optional<std::uint64_t>, kHeadCount> numbers_;
  std::vector<std::uint32_t> free_slots_;
  std::uint64_t offered_count_ = 0;
  std::uint64_t answered_count_ = 0;
  std::uint16_t reaped_ = kFirstIndex;
  std::string complaint_;
};

// The driver, its memory and the region, over the lives of several devices.
template <class Ordering>
class Lives {
 public:
  // Each life ends after so many stores; the last one lives until everything is answered. Returns what went wrong.
  std::string live(std::initializer_list<std::uint32_t> kills, bool with_region = true) {
    with_region_ = with_region;
    for (const std::uint32_t kill : kills) {
      Ordering::kill_after(kill);
      live_once(12);
      store_count_ = Ordering::store_count();
      // The driver does not know yet.
      Ordering::kill_after(Ordering::kNever);
      driver_.reap();
      driver_.offer_all();
    }
    live_once(3);
    if (!driver_.nothing_is_outstanding()) driver_.complain("a request was lost");
    const auto* const header = reinterpret_cast<const InflightHeader*>(region_.data());
    if (with_region && header->used_idx != driver_.used_idx()) driver_.complain("the region is behind the ring");
    for (std::uint32_t head = 0; with_region && head < kSize; ++head) {
      if (entry(head).inflight != 0) driver_.complain("a head is still marked when everything is answered");
    }
    return driver_.complaint();
  }
  // Stores of the life before the last one.
  [[nodiscard]] std::uint32_t store_count() const { return store_count_; }
  [[nodiscard]] std::uint64_t answered_count() const { return driver_.answered_count(); }

 private:
  [[nodiscard]] const InflightEntry& entry(std::uint32_t head) const {
    return reinterpret_cast<const InflightEntry*>(region_.data() + sizeof(InflightHeader))[head];
  }

  static TestMemory make_memory() {
    TestMemory memory;
    memory.add(kRingAt, 4 + descriptor_bytes(kSize) + avail_bytes(kSize) + used_bytes(kSize));
    memory.add(kDataAt, kDataRegionBytes);
    return memory;
  }

  // One device: batches of one, two and three, answers out of order, for so many rounds; then all that is left.
  void live_once(std::uint32_t round_count) {
    const SplitOptions options{kSize, 3, 16, {.header_bytes = 8, .status_byte = true}, false};
    std::vector<RequestRow> requests(options.request_rows());
    std::vector<std::byte> headers(options.request_rows() * options.header_stride_bytes());
    std::vector<Segment> segments(options.segment_rows());
    std::vector<CompletionRow> completions(options.completion_rows());
    QueueCounters counters{};
    SplitDevice<Ordering> device(options, {requests, headers, segments, completions, &counters});
    const InflightPlace place{with_region_ ? region_.data() : nullptr, kSize};
    const Fault fault = device.start(driver_.ring(), memory_.regions(), place);
    if (Ordering::killed()) return;
    if (fault != Fault::kNone) {
      return driver_.complain("the ring cannot be gone on with: fault " + std::to_string(static_cast<int>(fault)));
    }
    std::vector<std::uint32_t> taken;
    std::uint64_t last_number = 0;
    for (std::uint32_t round = 0;; ++round) {
      const bool ends = round >= round_count;
      if (!ends) driver_.offer_all();
      const std::int32_t count = device.take(3);
      if (Ordering::killed()) return;
      if (count < 0) return driver_.complain("the queue broke: fault " + std::to_string(-count));
      for (std::int32_t row = 0; row < count; ++row) {
        const std::uint32_t head = requests[static_cast<std::size_t>(row)].head;
        std::uint64_t number = 0;
        std::memcpy(&number, &headers[static_cast<std::size_t>(row) * options.header_stride_bytes()], sizeof(number));
        if (number <= last_number) driver_.complain("requests are not served in the order of their taking");
        last_number = number;
        taken.push_back(head);
      }
      std::uint32_t answer_count = 0;
      for (std::uint32_t wanted = ends ? 3 : 1 + round % 3; wanted > 0 && !taken.empty(); --wanted) {
        const auto chosen = round % 2 == 0 ? taken.end() - 1 : taken.begin();
        *driver_.answer(*chosen) = *driver_.question(*chosen);
        completions[answer_count++] = {*chosen, 8, 0};
        taken.erase(chosen);
      }
      const std::int32_t bits = device.complete(answer_count, true);
      if (Ordering::killed()) return;
      // A driver that takes its answers back late has several batches behind it.
      if (round % 3 != 1) driver_.reap();
      if (ends && taken.empty() && (bits & kMore) == 0) break;
    }
    driver_.reap();
  }

  const TestMemory memory_ = make_memory();
  NumberedDriver driver_{memory_};
  alignas(kInflightAlign) std::array<std::byte, inflight_bytes(kSize)> region_{};
  bool with_region_ = true;
  std::uint32_t store_count_ = 0;
};

struct Kills {
  std::uint32_t points = 0;  // stores after which a device was killed
  std::uint32_t pairs = 0;   // pairs of kills
  std::string complaint;     // the first
};

template <class Ordering>
Kills kill_everywhere(bool with_region = true) {
  Kills kills;
  const auto note = [&kills](const std::string& complaint, std::uint32_t first, std::uint32_t second) {
    if (complaint.empty() || !kills.complaint.empty()) return;
    kills.complaint = "killed after store " + std::to_string(first);
    if (second != KilledOrdering::kNever) kills.complaint += " and again after store " + std::to_string(second);
    kills.complaint += ": " + complaint;
  };
  for (;; ++kills.points) {
    Lives<Ordering> once;
    note(once.live({kills.points}, with_region), kills.points, KilledOrdering::kNever);
    if (once.store_count() < kills.points) break;  // it lived to its end
  }
  for (std::uint32_t first = 0; first < kills.points; ++first) {
    for (std::uint32_t second = 0;; ++second) {
      Lives<Ordering> twice;
      note(twice.live({first, second}, with_region), first, second);
      if (twice.store_count() < second) break;
      ++kills.pairs;
    }
  }
  return kills;
}

template <template <class> class Mutant>
void check_that_it_is_noticed() {
  const Kills kills = kill_everywhere<Mutant<KilledOrdering>>();
  INFO(kills.points, " places to be killed in");
  CHECK(kills.complaint != "");
  MESSAGE(kills.complaint);
}

// A queue that was killed with heads 4 and 0 taken, in this order, and 2 answered.
struct KilledQueue : TestQueue<> {
  explicit KilledQueue(const TestOptions& options = {.framing = {0, false}}) : TestQueue<>(options) {
    REQUIRE(device.start(ring, memory.regions(), place()) == Fault::kNone);
    for (const std::uint16_t head : std::initializer_list<std::uint16_t>{4, 2, 0}) driver.offer(head, {{kDataAt, 8, kDescWrite}});
    REQUIRE(device.take(8) == 3);
    answer(2, 8);
    REQUIRE(driver.used_idx() == 1);
  }
  [[nodiscard]] InflightPlace place() { return {region.data(), kSize}; }
  [[nodiscard]] InflightHeader& header() { return *reinterpret_cast<InflightHeader*>(region.data()); }
  [[nodiscard]] InflightEntry& entry(std::uint32_t head) {
    return reinterpret_cast<InflightEntry*>(region.data() + sizeof(InflightHeader))[head];
  }
  [[nodiscard]] Fault restart() { return device.start(ring, memory.regions(), place()); }

  alignas(kInflightAlign) std::array<std::byte, inflight_bytes(kSize)> region{};
};

}  // namespace

TEST_CASE("a queue goes on with what an earlier process took, in its order, before what is new") {
  KilledQueue queue;
  queue.driver.offer(6, {{kDataAt, 8, kDescWrite}});
  REQUIRE(queue.restart() == Fault::kNone);
  CHECK(queue.device.owed_count() == 2);
  CHECK(queue.device.in_flight_count() == 2);
  CHECK(queue.device.visible_count() == 3);
  // Armed or not, what is owed is there to be taken without a kick.
  CHECK((queue.device.complete(0, true) & kMore) != 0);
  REQUIRE(queue.device.take(1) == 1);
  CHECK(queue.requests[0].head == 4);
  REQUIRE(queue.device.take(8) == 2);
  CHECK(queue.requests[0].head == 0);
  CHECK(queue.requests[1].head == 6);
  CHECK(queue.device.in_flight_count() == 3);
  CHECK(queue.device.avail_index() == 4);
  // The driver may have missed the last signal, whatever it asked for.
  queue.driver.set_avail_flags(kAvailNoInterrupt);
  CHECK((queue.answer(0, 8) & kSignalled) != 0);
  queue.answer(4, 8);
  queue.answer(6, 8);
  CHECK(queue.driver.used_idx() == 4);
  for (std::uint32_t head = 0; head < kSize; ++head) CHECK(queue.entry(head).inflight == 0);
  CHECK(queue.header().used_idx == 4);
}

TEST_CASE("a head that is owed and offered again has one owner") {
  KilledQueue queue;
  queue.driver.publish(4);
  REQUIRE(queue.restart() == Fault::kNone);
  CHECK(queue.device.take(8) == 2);
  CHECK(queue.counters.skipped_heads == 1);
}

TEST_CASE("a chain that was taken and is malformed by now is returned with length 0") {
  KilledQueue queue;
  queue.driver.link(4, {{kHoleAt, 8, kDescWrite}});
  REQUIRE(queue.restart() == Fault::kNone);
  REQUIRE(queue.device.take(8) == 1);
  queue.answer(0, 8);
  CHECK(queue.driver.used_idx() == 3);
  CHECK(queue.entry(4).inflight == 0);
}

TEST_CASE("a region that was never used takes the base that the front-end gives") {
  TestQueue<> queue({.framing = {0, false}});
  alignas(kInflightAlign) std::array<std::byte, inflight_bytes(kSize)> region{};
  region[sizeof(InflightHeader)] = std::byte{7};  // fresh, whatever lies in it
  queue.ring.avail_base = 5;
  REQUIRE(queue.device.start(queue.ring, queue.memory.regions(), {region.data(), kSize}) == Fault::kNone);
  CHECK(queue.device.avail_index() == 5);
  CHECK(queue.device.owed_count() == 0);
  CHECK(reinterpret_cast<const InflightHeader*>(region.data())->version == kInflightVersion);
}

TEST_CASE("a ring that began anew with nothing in flight begins with its old region") {
  KilledQueue queue;
  queue.answer(4, 8);
  queue.answer(0, 8);
  queue.driver.set_used_idx(60000);
  REQUIRE(queue.restart() == Fault::kNone);
  CHECK(queue.device.avail_index() == 60000);
  CHECK(queue.header().used_idx == 60000);
}

TEST_CASE("row 42: what contradicts itself or the ring is no region") {
  KilledQueue queue;
  SUBCASE("another version") { queue.header().version = 2; }
  SUBCASE("another number of entries") { queue.header().desc_num = 4; }
  SUBCASE("a mark that is neither 0 nor 1") { queue.entry(4).inflight = 2; }
  SUBCASE("more answered since than the ring holds") { queue.driver.set_used_idx(kSize + 2); }
  SUBCASE("a used index that went back") { queue.driver.set_used_idx(0); }
  SUBCASE("a batch that begins outside the ring") {
    queue.driver.set_used_idx(2);
    queue.header().last_batch_head = kSize;
  }
  SUBCASE("a batch that leaves the ring") {
    queue.driver.set_used_idx(3);
    queue.entry(2).next = 0xffff;
  }
  SUBCASE("a batch that comes back to its start") {
    queue.driver.set_used_idx(3);
    queue.entry(2).next = 2;
  }
  CHECK(queue.restart() == Fault::kRingInflight);
  CHECK_FALSE(queue.device.running());
  CHECK(queue.device.take(8) == 0);
  CHECK(queue.device.complete(0, true) == 0);
}

TEST_CASE("row 42: a region with fewer entries than the ring, or with a mark behind its end, is refused") {
  KilledQueue queue;
  CHECK(queue.device.start(queue.ring, queue.memory.regions(), {queue.region.data(), kSize / 2}) ==
        Fault::kRingInflight);
  queue.ring.size = 4;
  queue.entry(6).inflight = 1;
  CHECK(queue.restart() == Fault::kRingInflight);
}

TEST_CASE("rows 61a, 61b: a device killed between any two stores loses no request and answers none twice") {
  const Kills kills = kill_everywhere<KilledOrdering>();
  CHECK(kills.complaint == "");
  CHECK(kills.points > 150);
  MESSAGE("killed after each of ", kills.points, " stores, and at ", kills.pairs, " pairs of them");
}

TEST_CASE("control: without an in-flight region a kill loses requests or answers them twice") {
  CHECK(kill_everywhere<KilledOrdering>(false).complaint != "");
}

TEST_CASE("control: mutant F13-mark is noticed") { check_that_it_is_noticed<mutants::F13Mark>(); }
TEST_CASE("control: mutant F13-batch is noticed") { check_that_it_is_noticed<mutants::F13Batch>(); }
TEST_CASE("control: mutant F13-clear is noticed") { check_that_it_is_noticed<mutants::F13Clear>(); }
TEST_CASE("control: mutant F13-used is noticed") { check_that_it_is_noticed<mutants::F13Used>(); }

}  // namespace hushring::test
