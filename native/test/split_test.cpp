// The queue's life, its indices, and both ways of suppression in both directions.
#include <doctest/doctest.h>

#include "test_queue.h"

namespace hushring::test {
namespace {

// Offers one complete disk request at `head`; all heads share their buffers.
void offer_request(TestQueue<>& queue, std::uint16_t head) {
  queue.driver.offer(head, {{kDataAt, 17 + 512 + 1, kDescWrite}});
}

constexpr TestOptions kPlain{.size = 4, .framing = {.header_bytes = 0, .status_byte = false}};
constexpr TestOptions kEventIdx{.size = 4, .event_idx = true, .framing = {.header_bytes = 0, .status_byte = false}};

std::int32_t minus(Fault fault) { return -static_cast<std::int32_t>(fault); }

// ---- Starting and stopping ----

TEST_CASE("split: refuses sizes that are 0, no power of two, or above the maximum") {
  TestQueue<> queue({.size = 8});
  for (const std::uint32_t size : {0U, 3U, 16U, 32769U, 65535U}) {
    CAPTURE(size);
    SplitRing ring = queue.ring;
    ring.size = size;
    CHECK(queue.device.start(ring, queue.memory.regions()) == Fault::kRingSize);
    CHECK_FALSE(queue.device.running());
    CHECK(queue.device.take(1) == 0);
    CHECK(queue.device.complete(0, true) == 0);
  }
}

TEST_CASE("split: refuses ring parts that are misaligned or not wholly in one region") {
  TestQueue<> queue({.size = 8});
  const auto refused = [&](std::uint64_t SplitRing::*part, std::uint64_t address) {
    SplitRing ring = queue.ring;
    ring.*part = address;
    CAPTURE(address);
    CHECK(queue.device.start(ring, queue.memory.regions()) == Fault::kRingAddress);
  };
  const auto each = {&SplitRing::descriptor_address, &SplitRing::avail_address, &SplitRing::used_address};
  for (const auto part : each) {
    refused(part, 0);
    refused(part, queue.ring.*part + 1);
    refused(part, kRingAt);  // a guest address where a user address is meant
    refused(part, kHoleAt - 16 + TestMemory::kUserOffset);
    refused(part, kSecondDataAt - 16 + TestMemory::kUserOffset);  // two regions: not contiguous in this process
  }
  refused(&SplitRing::descriptor_address, queue.ring.descriptor_address + 8);
  refused(&SplitRing::used_address, queue.ring.used_address + 2);
  CHECK(queue.device.start(queue.ring, queue.memory.regions()) == Fault::kNone);
}

TEST_CASE("split: refuses a ring that is aligned for one side only") {
  TestQueue<> queue({.size = 8});
  std::vector<Region> regions(queue.memory.regions().begin(), queue.memory.regions().end());
  SplitRing ring = queue.ring;
  SUBCASE("this process") {
    for (Region& region : regions) ++region.user_address;
    ++ring.descriptor_address;
    ++ring.avail_address;
    ++ring.used_address;
  }
  SUBCASE("the driver") {
    for (Region& region : regions) ++region.host;
  }
  CHECK(queue.device.start(ring, regions) == Fault::kRingAddress);
}

TEST_CASE("split: ring addresses may be guest addresses") {
  TestQueue<> queue(kPlain);
  SplitRing ring = queue.ring;
  ring.space = AddressSpace::kGuest;
  ring.descriptor_address -= TestMemory::kUserOffset;
  ring.avail_address -= TestMemory::kUserOffset;
  ring.used_address -= TestMemory::kUserOffset;
  REQUIRE(queue.device.start(ring, queue.memory.regions()) == Fault::kNone);
  offer_request(queue, 0);
  CHECK((queue.serve() & kArmed) != 0);
}

TEST_CASE("split: sizes 1 and 32768 run over the wrap of the index at 65535") {
  for (const std::uint32_t size : {1U, 2U, 32768U}) {
    CAPTURE(size);
    TestQueue<> queue({.size = size, .event_idx = true, .base = 65533, .framing = {0, false}});
    REQUIRE(queue.start_fault == Fault::kNone);
    for (std::uint16_t served = 0; served < 6; ++served) {
      const auto index = static_cast<std::uint16_t>(65533 + served);
      const auto head = static_cast<std::uint16_t>(served % size);
      queue.driver.set_used_event(index);
      offer_request(queue, head);
      CHECK(queue.serve() == (kSignalled | kArmed));
      CHECK(queue.driver.used_idx() == static_cast<std::uint16_t>(index + 1));
      CHECK(queue.driver.used(index).id == head);
      CHECK(queue.driver.avail_event() == static_cast<std::uint16_t>(index + 1));
    }
  }
}

TEST_CASE("split: a full ring of 32768 is told from an empty one, over the wrap") {
  TestQueue<> queue({.size = 32768, .base = 40000, .batch_count_max = 32768, .framing = {0, false}});
  for (std::uint32_t head = 0; head < 32768; ++head) offer_request(queue, static_cast<std::uint16_t>(head));
  CHECK(queue.device.visible_count() == 32768);
  CHECK(queue.device.take(32768) == 32768);
  CHECK(queue.device.visible_count() == 0);
}

TEST_CASE("split: resumes at the base it is given and at the used index it finds in the ring") {
  TestQueue<> queue(kPlain);
  queue.driver.set_avail_idx(100);
  queue.driver.set_used_idx(98);
  queue.ring.avail_base = 100;
  REQUIRE(queue.device.start(queue.ring, queue.memory.regions()) == Fault::kNone);
  offer_request(queue, 1);
  queue.serve();
  CHECK(queue.driver.used(98).id == 1);
  CHECK(queue.driver.used_idx() == 99);
  CHECK(queue.device.stop() == 101);
}

TEST_CASE("split: keeps its own used index when the driver scribbles over the word") {
  TestQueue<> queue(kPlain);
  offer_request(queue, 0);
  queue.serve();
  queue.driver.set_used_idx(1234);
  offer_request(queue, 1);
  queue.serve();
  CHECK(queue.driver.used_idx() == 2);
}

TEST_CASE("split: stop forgets what is in flight, and a late answer touches no memory") {
  TestQueue<> queue(kPlain);
  offer_request(queue, 2);
  REQUIRE(queue.device.take(4) == 1);
  const std::uint32_t generation = queue.device.generation();
  CHECK(queue.device.in_flight_under(generation));
  CHECK(queue.device.stop() == 1);
  CHECK(queue.device.in_flight_count() == 0);
  CHECK(queue.answer(2, 8, 0, true) == 0);
  CHECK(queue.counters.ignored_completions == 1);
  CHECK(queue.driver.used_idx() == 0);
  queue.ring.avail_base = 1;
  REQUIRE(queue.device.start(queue.ring, queue.memory.regions()) == Fault::kNone);
  CHECK(queue.device.generation() != generation);
  CHECK_FALSE(queue.device.in_flight_under(generation));
  queue.answer(2, 8);
  CHECK(queue.counters.ignored_completions == 2);
  CHECK(queue.driver.used_idx() == 0);
}

TEST_CASE("split: moves to other memory while requests are in flight") {
  TestQueue<> queue({.size = 4});
  TestMemory moved;
  moved.add(kRingAt, 4096);
  moved.add(kDataAt, kDataRegionBytes);
  queue.driver.offer(0, {{kDataAt, 16}, {kDataAt + 64, 1, kDescWrite}});
  REQUIRE(queue.device.take(1) == 1);
  *queue.memory.at(kDataAt + 64) = std::byte{0xff};
  std::memcpy(moved.at(kRingAt), queue.memory.at(kRingAt), 256);
  TestDriver driver(moved, kRingAt, 4);
  const std::uint32_t before = queue.device.generation();
  REQUIRE(queue.device.set_regions(moved.regions()) == Fault::kNone);
  CHECK(queue.device.in_flight_under(before));
  queue.answer(0, 0);
  CHECK_FALSE(queue.device.in_flight_under(before));
  CHECK(queue.memory.byte_at(kDataAt + 64) == 0);  // where the request was taken
  CHECK(driver.used_idx() == 1);                   // where the ring is now
  CHECK(queue.driver.used_idx() == 0);
}

TEST_CASE("split: stays where it is when its ring is not in the new memory") {
  TestQueue<> queue(kPlain);
  TestMemory other;
  other.add(kDataAt, kDataRegionBytes);
  CHECK(queue.device.set_regions(other.regions()) == Fault::kRingAddress);
  offer_request(queue, 0);
  queue.serve();
  CHECK(queue.driver.used_idx() == 1);
}

// ---- Taking ----

TEST_CASE("split: hands out at most what is asked for and reports what is left") {
  TestQueue<> queue(kPlain);
  for (std::uint16_t head = 0; head < 4; ++head) offer_request(queue, head);
  CHECK(queue.device.take(0) == 0);
  CHECK(queue.device.take(1) == 1);
  CHECK(queue.device.visible_count() == 3);
  CHECK(queue.device.complete(0, true) == kMore);
  CHECK(queue.device.complete(0, false) == 0);
  CHECK(queue.device.take(9) == 3);
  CHECK(queue.requests[0].head == 1);
  CHECK(queue.requests[2].head == 3);
  CHECK(queue.device.complete(0, true) == kArmed);
  CHECK(queue.counters.requests == 4);
  CHECK(queue.counters.batches == 2);
}

TEST_CASE("split: an available index that jumps ahead or goes back breaks the queue for good") {
  for (const int step : {5, 40'000, -1}) {
    CAPTURE(step);
    TestQueue<> queue({.size = 4, .base = 100, .framing = {0, false}});
    offer_request(queue, 0);
    REQUIRE(queue.device.take(1) == 1);
    const std::uint16_t used_flags = queue.driver.used_flags();
    queue.driver.set_avail_idx(static_cast<std::uint16_t>(101 + step));
    CHECK(queue.device.take(1) == minus(Fault::kAvailIndex));
    CHECK(queue.device.fault() == Fault::kAvailIndex);
    queue.driver.set_avail_idx(101);
    CHECK(queue.device.take(1) == minus(Fault::kAvailIndex));
    CHECK(queue.answer(0, 8, 0, true) == minus(Fault::kAvailIndex));
    CHECK(queue.device.visible_count() == 0);
    CHECK(queue.driver.used_idx() == 100);
    CHECK(queue.driver.used_flags() == used_flags);
    queue.device.stop();
    CHECK(queue.device.take(1) == minus(Fault::kAvailIndex));
    queue.ring.avail_base = 101;
    REQUIRE(queue.device.start(queue.ring, queue.memory.regions()) == Fault::kNone);
    offer_request(queue, 0);
    CHECK(queue.device.take(1) == 1);
  }
}

TEST_CASE("split: control: an index ahead by exactly the size is no jump") {
  TestQueue<> queue(kPlain);
  for (std::uint16_t head = 0; head < 4; ++head) offer_request(queue, head);
  CHECK(queue.device.take(4) == 4);
}

TEST_CASE("split: a head outside the table is skipped; more than a ring full in a row break the queue") {
  TestQueue<> queue(kPlain);
  const auto publish_bad = [&](int count) {
    for (int published = 0; published < count; ++published) queue.driver.publish(4);
  };
  publish_bad(3);
  offer_request(queue, 1);
  CHECK(queue.device.take(4) == 1);
  CHECK(queue.requests[0].head == 1);
  CHECK(queue.counters.skipped_heads == 3);
  CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(Fault::kHeadRange));
  publish_bad(4);
  CHECK(queue.device.take(4) == 0);
  publish_bad(1);
  CHECK(queue.device.take(4) == minus(Fault::kHeadRange));
}

TEST_CASE("split: a head that is in flight has one owner: its second copy is skipped and it is completed once") {
  TestQueue<> queue(kPlain);
  offer_request(queue, 1);
  queue.driver.publish(1);
  CHECK(queue.device.take(4) == 1);
  CHECK(queue.counters.skipped_heads == 1);
  queue.driver.publish(1);
  CHECK(queue.device.take(4) == 0);
  CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(Fault::kHeadInFlight));
  queue.answer(1, 0);
  queue.answer(1, 0);
  CHECK(queue.counters.ignored_completions == 1);
  CHECK(queue.driver.used_idx() == 1);
  queue.driver.publish(1);
  CHECK(queue.device.take(4) == 1);
}

TEST_CASE("split: a malformed head stays owned until it is published, and cannot be answered") {
  TestQueue<> queue(kPlain);
  queue.driver.offer(1, {{kHoleAt, 8}});
  queue.driver.publish(1);
  CHECK(queue.device.take(4) == 0);
  CHECK(queue.counters.malformed_chains == 1);
  CHECK(queue.counters.skipped_heads == 1);
  queue.answer(1, 8);
  CHECK(queue.counters.ignored_completions == 1);
  CHECK(queue.driver.used_idx() == 1);
  CHECK(queue.driver.used(0).len == 0);
}

TEST_CASE("split: one take looks at no more than a batch of entries, however malformed they are") {
  TestQueue<> queue({.size = 8, .batch_count_max = 3, .framing = {0, false}});
  for (std::uint16_t head = 0; head < 7; ++head) queue.driver.offer(head, {{kHoleAt, 8}});
  offer_request(queue, 7);
  CHECK(queue.device.take(3) == 0);
  CHECK((queue.device.complete(0, true) & kMore) != 0);
  CHECK(queue.device.take(3) == 0);
  CHECK((queue.device.complete(0, true) & kMore) != 0);
  CHECK(queue.device.take(3) == 1);
  CHECK(queue.requests[0].head == 7);
  CHECK((queue.answer(7, 0, 0, true) & kArmed) != 0);
  CHECK(queue.driver.used_idx() == 8);
}

TEST_CASE("split: a batch is an eighth of what is visible, within its limits") {
  TestQueue<> queue({.size = 64, .batch_count_max = 5, .framing = {0, false}, .batch_count_min = 2});
  for (std::uint16_t head = 0; head < 64; ++head) offer_request(queue, head);
  CHECK(queue.device.take(64) == 5);  // of 64
  for (const std::int32_t expected : {5, 5, 5, 5, 4, 4, 3, 3, 3, 2, 2, 2}) CHECK(queue.device.take(64) == expected);
  CHECK(queue.device.take(1) == 1);
  CHECK(queue.device.take(64) == 2);
}

// ---- Completing ----

TEST_CASE("split: a batch is one store of the index, one decision, in the order of its rows") {
  TestQueue<> queue(kPlain);
  for (std::uint16_t head = 0; head < 4; ++head) offer_request(queue, head);
  REQUIRE(queue.device.take(4) == 4);
  queue.completions[0] = {3, 1, 0};
  queue.completions[1] = {0, 2, 0};
  queue.completions[2] = {9, 0, 0};
  queue.completions[3] = {1, 3, 0};
  CHECK(queue.device.complete(4, false) == kSignalled);
  CHECK(queue.driver.used_idx() == 3);
  CHECK(queue.driver.used(0).id == 3);
  CHECK(queue.driver.used(1).id == 0);
  CHECK(queue.driver.used(2).id == 1);
  CHECK(queue.driver.used(2).len == 3);
  CHECK(queue.counters.ignored_completions == 1);
  CHECK(queue.counters.signal_fences == 1);
  CHECK(queue.device.in_flight_count() == 1);
}

// Takes one request and returns its head.
std::uint32_t take_head(TestQueue<>& queue) {
  REQUIRE(queue.device.take(1) == 1);
  return queue.requests[0].head;
}

TEST_CASE("split: a decision that was put off is about everything published since the last one") {
  TestQueue<> queue(kEventIdx);
  for (std::uint16_t head = 0; head < 4; ++head) offer_request(queue, head);
  REQUIRE(queue.answer(take_head(queue), 1) == kSignalled);
  queue.driver.set_used_event(1);
  for (std::uint16_t published = 2; published <= 3; ++published) {
    queue.completions[0] = {take_head(queue), 1, 0};
    CHECK(queue.device.publish(1) == 0);
    CHECK(queue.driver.used_idx() == published);
    CHECK(queue.device.is_undecided());
  }
  CHECK(queue.counters.signal_fences == 1);
  CHECK(queue.device.decide() == kSignalled);
  CHECK(!queue.device.is_undecided());
  CHECK(queue.device.decide() == 0);
  CHECK(queue.counters.signal_fences == 2);
  // Control: the same wish, and everything since the last decision was published after it.
  queue.completions[0] = {take_head(queue), 1, 0};
  CHECK(queue.device.publish(1) == 0);
  CHECK(queue.device.decide() == kSuppressed);
}

TEST_CASE("split: a decision may wait as long as the driver has less than a third of what is visible") {
  TestQueue<> queue(kPlain);
  for (std::uint16_t head = 0; head < 4; ++head) offer_request(queue, head);
  queue.completions[0] = {take_head(queue), 1, 0};
  CHECK(queue.device.publish(1) == 0);
  CHECK(!queue.device.signal_can_wait());
  CHECK(queue.device.decide() == kSignalled);
  offer_request(queue, 0);
  REQUIRE(queue.device.visible_count() == 4);
  CHECK(queue.device.signal_can_wait());
  queue.completions[0] = {take_head(queue), 1, 0};
  offer_request(queue, 1);
  CHECK(queue.device.publish(1) == 0);
  CHECK(queue.device.signal_can_wait());
}

TEST_CASE("split: a broken queue signals what it published and put off, and looks at nothing for it") {
  TestQueue<> queue(kPlain);
  for (std::uint16_t head = 0; head < 2; ++head) offer_request(queue, head);
  REQUIRE(queue.answer(take_head(queue), 1) == kSignalled);
  queue.completions[0] = {take_head(queue), 1, 0};
  REQUIRE(queue.device.publish(1) == 0);
  static_cast<void>(queue.device.break_queue(Fault::kAvailIndex));
  CHECK(queue.device.decide() == kSignalled);
  CHECK(queue.counters.signal_fences == 1);
  CHECK(queue.device.decide() == 0);
}

TEST_CASE("split: nothing published is no decision") {
  TestQueue<> queue(kPlain);
  CHECK(queue.device.complete(0, false) == 0);
  CHECK(queue.answer(7, 0) == 0);
  CHECK(queue.answer(70'000, 0) == 0);
  CHECK(queue.counters.signal_fences == 0);
}

TEST_CASE("split: more rows than the table has are not read") {
  TestQueue<> queue(kPlain);
  CHECK(queue.device.complete(0xffff'ffff, false) == 0);
  CHECK(queue.counters.ignored_completions == 4);
}

// ---- Signals ----

TEST_CASE("split: flags: signals unless the driver set NO_INTERRUPT, and ignores used_event") {
  TestQueue<> queue(kPlain);
  queue.driver.set_avail_flags(kAvailNoInterrupt);
  queue.driver.set_used_event(0);
  offer_request(queue, 0);
  CHECK((queue.serve(false) & kSignalled) != 0);  // the first decision after a start always signals
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSuppressed);
  CHECK(queue.counters.suppressed == 1);
  queue.driver.set_avail_flags(0);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
  queue.driver.set_avail_flags(kAvailNoInterrupt);
  queue.device.forget_decision();
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
}

TEST_CASE("split: event index: signals when used_event is crossed, and ignores avail.flags") {
  TestQueue<> queue(kEventIdx);
  queue.driver.set_avail_flags(kAvailNoInterrupt);
  queue.driver.set_used_event(0);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSuppressed);  // used_event is behind
  queue.driver.set_used_event(3);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSuppressed);  // published entry 2, asked for 3
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
  queue.driver.set_used_event(5);
  for (std::uint16_t head = 0; head < 3; ++head) offer_request(queue, head);
  CHECK(queue.serve(false) == kSignalled);  // 4, 5 and 6 with one decision
}

TEST_CASE("split: event index: the first decision after a start signals whatever used_event says") {
  TestQueue<> queue(kEventIdx);
  queue.driver.set_used_event(40'000);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSuppressed);
  queue.ring.avail_base = queue.device.stop();
  REQUIRE(queue.device.start(queue.ring, queue.memory.regions()) == Fault::kNone);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
}

TEST_CASE("split: event index: the next owed signal survives 65,533 to 65,535 silent completions") {
  for (const std::uint32_t silent_count : {65'533U, 65'534U, 65'535U}) {
    CAPTURE(silent_count);
    TestQueue<> queue(kEventIdx);
    queue.driver.set_used_event(0);
    offer_request(queue, 0);
    REQUIRE(queue.serve(false) == kSignalled);
    std::uint32_t signalled = 0;
    for (std::uint32_t completion = 0; completion < silent_count; ++completion) {
      offer_request(queue, 0);
      if (queue.serve(false) != kSuppressed) ++signalled;
    }
    CHECK(signalled == 0);
    queue.driver.set_used_event(queue.driver.used_idx());
    offer_request(queue, 0);
    CHECK(queue.serve(false) == kSignalled);
  }
}

// ---- Kicks ----

TEST_CASE("split: flags: kicks are suppressed from the start, asked for when idle, suppressed by the next take") {
  TestQueue<> queue(kPlain);
  CHECK(queue.driver.used_flags() == kUsedNoNotify);
  CHECK_FALSE(queue.device.armed());
  CHECK(queue.device.complete(0, false) == 0);
  CHECK(queue.device.complete(0, true) == kArmed);
  CHECK(queue.driver.used_flags() == 0);
  CHECK(queue.device.complete(0, true) == kArmed);
  CHECK(queue.counters.rearms == 1);
  CHECK(queue.device.take(4) == 0);  // a needless kick: nothing is there, so nothing changes
  CHECK(queue.device.armed());
  offer_request(queue, 0);
  CHECK(queue.device.complete(0, true) == kArmed);  // the driver kicks for it
  CHECK(queue.device.take(4) == 1);
  CHECK(queue.driver.used_flags() == kUsedNoNotify);
  offer_request(queue, 1);
  CHECK(queue.device.complete(0, true) == kMore);
  CHECK(queue.driver.used_flags() == kUsedNoNotify);
}

TEST_CASE("split: event index: avail_event moves with a re-arm only and used.flags stay 0") {
  TestQueue<> queue({.size = 4, .event_idx = true, .base = 7, .framing = {0, false}});
  CHECK(queue.driver.used_flags() == 0);
  queue.driver.set_avail_event(77);
  CHECK(queue.device.complete(0, true) == kArmed);
  CHECK(queue.driver.avail_event() == 7);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
  CHECK(queue.driver.avail_event() == 7);
  CHECK_FALSE(queue.device.armed());
  CHECK(queue.device.complete(0, true) == kArmed);
  CHECK(queue.driver.avail_event() == 8);
  CHECK(queue.driver.used_flags() == 0);
}

TEST_CASE("split: without EVENT_IDX avail_event belongs to the driver and is never written") {
  TestQueue<> queue(kPlain);
  queue.driver.set_avail_event(0x5eab);
  for (int lap = 0; lap < 10; ++lap) {
    offer_request(queue, 0);
    queue.serve();
  }
  CHECK(queue.driver.avail_event() == 0x5eab);
}

TEST_CASE("split: without credits kicks stay suppressed until a later complete re-arms") {
  TestQueue<> queue(kEventIdx);
  offer_request(queue, 0);
  CHECK(queue.serve(false) == kSignalled);
  CHECK_FALSE(queue.device.armed());
  offer_request(queue, 0);  // the driver owes no kick for this one
  CHECK(queue.device.complete(0, true) == kMore);
}

TEST_CASE("split: an answer while armed reports armed and leaves the wish alone") {
  TestQueue<> queue(kEventIdx);
  offer_request(queue, 0);
  REQUIRE(queue.device.take(4) == 1);
  CHECK(queue.device.complete(0, true) == kArmed);
  offer_request(queue, 1);
  CHECK(queue.answer(0, 0, 0, true) == (kSignalled | kArmed));
  CHECK(queue.driver.avail_event() == 1);
  CHECK(queue.counters.rearms == 1);
}

TEST_CASE("split: a wish that is withdrawn gets no kick for the next entry, and can be made again") {
  for (const bool event_idx : {true, false}) {
    CAPTURE(event_idx);
    TestQueue<> queue({.size = 4, .event_idx = event_idx, .base = 65'535});
    const auto wants_kick = [&](std::uint16_t old) {
      const auto next = static_cast<std::uint16_t>(old + 1);
      return event_idx ? need_event(queue.driver.avail_event(), next, old) : queue.driver.used_flags() == 0;
    };
    CHECK(queue.device.complete(0, true) == kArmed);
    CHECK(wants_kick(65'535));
    queue.device.withdraw_wish();
    CHECK_FALSE(queue.device.armed());
    CHECK_FALSE(wants_kick(65'535));
    queue.device.withdraw_wish();
    CHECK_FALSE(wants_kick(65'535));
    offer_request(queue, 0);
    CHECK_FALSE(wants_kick(0));
    CHECK(queue.device.rearm() == kMore);
    CHECK(queue.serve(false) == kSignalled);
    CHECK(queue.device.rearm() == kArmed);
    CHECK(wants_kick(0));
  }
}

TEST_CASE("split: a signal is owed while the driver waits for an entry that is published and was not signalled") {
  TestQueue<> queue({.size = 4, .event_idx = true, .base = 65'534, .framing = {0, false}});
  const auto serve_one = [&queue] {
    offer_request(queue, 0);
    const bool signals = (queue.serve() & kSignalled) != 0;
    if (signals) queue.device.note_signal();
    return signals;
  };
  CHECK_FALSE(queue.device.owes_signal());
  CHECK(serve_one());  // the first decision always signals: 65534
  queue.driver.set_used_event(1);
  CHECK_FALSE(serve_one());  // 65535
  CHECK_FALSE(serve_one());  // 0
  CHECK_FALSE(queue.device.owes_signal());
  for (const std::uint16_t published : std::initializer_list<std::uint16_t>{65'535, 0}) {
    queue.driver.set_used_event(published);
    CHECK(queue.device.owes_signal());
  }
  for (const std::uint16_t other : std::initializer_list<std::uint16_t>{65'533, 65'534, 1, 2, 32'768}) {
    queue.driver.set_used_event(other);
    CHECK_FALSE(queue.device.owes_signal());
  }
  queue.driver.set_used_event(0);
  queue.device.note_signal();
  CHECK_FALSE(queue.device.owes_signal());
}

TEST_CASE("split: what the driver polled for more than a lap is not taken for a signal that is owed") {
  TestQueue<> queue({.size = 4, .event_idx = true, .framing = {0, false}});
  for (std::uint32_t published = 0; published < 3 * 65'536; ++published) {
    // Always far ahead: this driver polls.
    queue.driver.set_used_event(static_cast<std::uint16_t>(published + 4));
    offer_request(queue, 0);
    if ((queue.serve() & kSignalled) != 0) queue.device.note_signal();
    REQUIRE_FALSE(queue.device.owes_signal());
  }
}

TEST_CASE("split: without event indices no signal counts as owed") {
  TestQueue<> queue(kPlain);
  queue.driver.set_avail_flags(kAvailNoInterrupt);
  offer_request(queue, 0);
  queue.serve();
  offer_request(queue, 0);
  queue.serve();
  queue.driver.set_avail_flags(0);
  CHECK_FALSE(queue.device.owes_signal());
}

TEST_CASE("split: a queue broken from outside stays silent") {
  TestQueue<> queue(kPlain);
  CHECK(queue.device.break_queue(Fault::kMemoryTruncated) == minus(Fault::kMemoryTruncated));
  CHECK(queue.device.take(4) == minus(Fault::kMemoryTruncated));
  CHECK(queue.device.complete(0, true) == minus(Fault::kMemoryTruncated));
}

}  // namespace
}  // namespace hushring::test
