// Kernel and server on two threads, with plain data that is ordered by head and tail alone (ThreadSanitizer sees
// whether it is), and a peer that rewrites what is being read.
#include <doctest/doctest.h>

#include <atomic>
#include <iterator>
#include <random>
#include <thread>

#include "core/mutants.h"
#include "test_ring.h"

namespace hushring::test {
namespace {

// ---- Both sides poll: nothing but head and tail orders the entries and the data ---------------------------------

constexpr std::uint32_t kSlotBytes = 128;
constexpr std::uint32_t kSlotCount = 8;

// Each id has one word of data, which carries the question there and the answer back.
std::uint64_t* word_of(const RingScript& script, std::uint32_t id) {
  return reinterpret_cast<std::uint64_t*>(script.map() + script.data_offset()) + id;
}

// Answers every command with its question plus one, the last one first.
template <class Ordering>
void answer_commands(TestRing<Ordering>& ring) {
  const std::int32_t taken = ring.device.take(kSlotCount);
  if (taken <= 0) {
    std::this_thread::yield();
    return;
  }
  const auto count = static_cast<std::uint32_t>(taken);
  for (std::uint32_t row = 0; row < count; ++row) {
    const TcmuCommandRow& command = ring.commands[count - 1 - row];
    const Segment& segment = ring.segments[command.first_segment];
    ++*reinterpret_cast<std::uint64_t*>(ring.script.map() + segment.offset_bytes);
    ring.completions[row] = {command.command, 0, 0, 0, 0};
  }
  ring.device.record(count);
  static_cast<void>(ring.device.publish());
}

// The kernel's program: two commands at most on the ring, written plainly, and their answers read plainly. Returns
// the number of answers that are not right.
template <class Ordering>
std::uint32_t wrong_answers_while_polling(std::uint32_t count) {
  TestRing<Ordering> ring({.ring_bytes = kSlotCount * kSlotBytes});
  RingScript& script = ring.script;
  std::atomic<bool> done = false;
  std::thread server([&] {
    while (!done.load(std::memory_order_relaxed)) answer_commands(ring);
  });
  std::uint32_t wrong = 0;
  for (std::uint32_t question = 0; question < count && wrong == 0; ++question) {
    const auto id = static_cast<std::uint16_t>(1 + question % 3);
    *word_of(script, id) = question;
    const std::uint64_t word_offset = script.data_offset() + 8 * std::uint64_t{id};
    const std::uint32_t offset = script.command({.id = id, .iovecs = {{word_offset, 8}}});
    script.publish();
    const std::uint32_t wanted = (offset + kSlotBytes) % (kSlotCount * kSlotBytes);
    while (HardwareOrdering::acquire_command_tail(&script.mailbox().cmd_tail) != wanted) std::this_thread::yield();
    const auto answers = script.drain();
    if (answers.size() != 1 || answers[0].id != id || *word_of(script, id) != question + 1) ++wrong;
  }
  done.store(true, std::memory_order_relaxed);
  server.join();
  return wrong + (script.complaint().empty() ? 0 : 1);
}

TEST_CASE("threads: entries, answers and data are ordered by head and tail (tcmu-runner 688)") {
  CHECK(wrong_answers_while_polling<HardwareOrdering>(20'000) == 0);
}

// Controls for ThreadSanitizer: CTest runs each alone in the tsan build and demands a report of a data race.
TEST_CASE("mutant F9: the command head is loaded without acquire (tcmu-runner 688)" * doctest::skip()) {
  CHECK(wrong_answers_while_polling<mutants::F9<HardwareOrdering>>(1'000) == 0);
}
TEST_CASE("mutant F10: the command tail is published without release (tcmu-runner 688)" * doctest::skip()) {
  CHECK(wrong_answers_while_polling<mutants::F10<HardwareOrdering>>(1'000) == 0);
}

// ---- A peer that rewrites what is being read -------------------------------------------------------------------

// Words that are often plausible in their place, so that some entries are good and most are bad in a new way.
std::uint64_t random_word(std::mt19937& random, std::size_t place, std::uint64_t data_offset) {
  const auto one_of = [&random](const auto& values) { return values[random() % std::size(values)]; };
  const std::uint64_t id = random() % 3;
  constexpr std::uint64_t kLengths[] = {0,           128 | 1, 128 | 1,     128 | 1,       128 | 0,
                                        128 | 2,     128 | 5, 112 | 1,     136 | 1,       0xffff'fff9};
  constexpr std::uint64_t kCounts[] = {0, 1, 2, 4, 5, 0xffff'ffff};
  const std::uint64_t places[] = {data_offset, data_offset + 512, data_offset - 8, 0, ~std::uint64_t{0} - 8};
  constexpr std::uint64_t kBytes[] = {0, 1, 512, 4096, 0xffff'ffff, ~std::uint64_t{0}};
  const std::uint64_t cdbs[] = {kRingOffset + 112, kRingOffset + 120, kRingOffset + 128, 0};
  switch (place) {
    case 0:
      return one_of(kLengths) | id << 32;
    case 1:
      return one_of(kCounts) | one_of(kCounts) << 32;
    case 3:
      return one_of(cdbs);
    default:
      return place % 2 == 0 ? one_of(places) : one_of(kBytes);
  }
}

TEST_CASE("threads: an entry that changes while it is read never leads outside the data area or off a boundary") {
  constexpr std::uint32_t kSeed = 43;
  constexpr std::uint32_t kRounds = 20'000;
  CAPTURE(kSeed);
  TestRing<> ring({.ring_bytes = kSlotCount * kSlotBytes});
  const RingScript& script = ring.script;
  auto* const words = reinterpret_cast<std::uint64_t*>(script.entry(0));
  std::atomic<bool> done = false;
  std::thread flipper([&] {
    std::mt19937 random(kSeed);
    while (!done.load()) {
      const std::size_t place = random() % (kSlotBytes / 8);
      HardwareOrdering::store_relaxed(words + place, random_word(random, place, script.data_offset()));
    }
  });
  std::uint32_t good = 0;
  std::uint32_t bad = 0;
  std::uint32_t outside = 0;
  // At least so many rounds, and on until good and bad entries were met: on a busy machine the flipper comes late.
  for (std::uint32_t round = 0; round < kRounds || ((good == 0 || bad == 0) && round < 100 * kRounds); ++round) {
    HardwareOrdering::store_relaxed(&script.mailbox().cmd_tail, std::uint32_t{0});
    REQUIRE(ring.device.start(script.map(), script.map_bytes()) == Fault::kNone);
    script.publish(kSlotBytes);
    const std::int32_t taken = ring.device.take(8);
    if (taken < 0) ++bad;
    if (taken <= 0) continue;
    ++good;
    const TcmuCommandRow& command = ring.commands[0];
    for (std::uint32_t row = 0; row < command.data_count + command.bidi_count; ++row) {
      const Segment& segment = ring.segments[command.first_segment + row];
      if (segment.window != 0 || segment.offset_bytes < script.data_offset() ||
          std::uint64_t{segment.offset_bytes} + segment.length_bytes > script.map_bytes()) {
        ++outside;
      }
    }
    ring.completions[0] = {command.command, 2, 0, 0, 0};
    ring.device.record(1);
    REQUIRE(ring.device.publish());
    const std::uint32_t tail = HardwareOrdering::acquire_command_tail(&script.mailbox().cmd_tail);
    REQUIRE((tail == 112 || tail == 128));
  }
  done.store(true);
  flipper.join();
  CHECK(outside == 0);
  CHECK(good > 0);
  CHECK(bad > 0);
}

}  // namespace
}  // namespace hushring::test
