// Driver and device on two threads: plain data ordered by the indices alone (ThreadSanitizer sees whether it is),
// real eventfds with both sides asleep whenever they may be, and a driver that rewrites what is being read.
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <iterator>
#include <random>
#include <thread>

#include "core/mutants.h"
#include "test_queue.h"

namespace hushring::test {
namespace {

constexpr std::uint64_t kQuestionAt = kDataAt;
constexpr std::uint64_t kAnswerAt = kDataAt + 0x1000;

// Each head has one word for its question and one for its answer, accessed plainly: they race unless the index that
// covers them orders them.
std::uint64_t* word_at(const TestMemory& memory, std::uint64_t base, std::uint32_t head) {
  return reinterpret_cast<std::uint64_t*>(memory.at(base + 8 * head));
}

void offer_question(TestDriver& driver, const TestMemory& memory, std::uint16_t head, std::uint64_t question) {
  *word_at(memory, kQuestionAt, head) = question;
  driver.offer(static_cast<std::uint16_t>(2 * head),
               {{kQuestionAt + 8 * head, 8}, {kAnswerAt + 8 * head, 8, kDescWrite}});
}

// Answers every visible question with the question plus one.
template <class Ordering>
std::int32_t answer_questions(TestQueue<Ordering>& queue, bool rearm) {
  const std::int32_t taken = queue.device.take(4);
  for (std::int32_t row = 0; row < taken; ++row) {
    const std::uint32_t head = queue.requests[static_cast<std::size_t>(row)].head;
    *word_at(queue.memory, kAnswerAt, head / 2) = *word_at(queue.memory, kQuestionAt, head / 2) + 1;
    queue.completions[static_cast<std::size_t>(row)] = {head, 8, 0};
  }
  return taken < 0 ? taken : queue.device.complete(static_cast<std::uint32_t>(taken), rearm);
}

// ---- Both sides poll: nothing but the indices orders the data --------------------------------------------------

template <class Ordering>
std::uint32_t wrong_answers_while_polling(std::uint32_t count) {
  TestQueue<Ordering> queue({.size = 4, .framing = {.header_bytes = 0, .status_byte = false}});
  std::atomic<bool> done = false;
  std::thread device([&] {
    while (!done.load(std::memory_order_relaxed)) {
      if (answer_questions(queue, false) == 0) std::this_thread::yield();
    }
  });
  std::uint32_t wrong = 0;
  for (std::uint32_t question = 0; question < count; ++question) {
    const auto head = static_cast<std::uint16_t>(question % 2);
    offer_question(queue.driver, queue.memory, head, question);
    const auto wanted = static_cast<std::uint16_t>(question + 1);
    while (queue.driver.used_idx() != wanted) std::this_thread::yield();
    if (*word_at(queue.memory, kAnswerAt, head) != question + 1) ++wrong;
  }
  done.store(true, std::memory_order_relaxed);
  device.join();
  return wrong;
}

TEST_CASE("threads: plain data is ordered by the indices") {
  CHECK(wrong_answers_while_polling<HardwareOrdering>(20'000) == 0);
}

// Controls for ThreadSanitizer: CTest runs each alone in the tsan build and demands a report of a data race.
TEST_CASE("mutant F1: the used index is published without release" * doctest::skip()) {
  CHECK(wrong_answers_while_polling<mutants::F1<HardwareOrdering>>(1'000) == 0);
}
TEST_CASE("mutant F3: the available index is loaded without acquire" * doctest::skip()) {
  CHECK(wrong_answers_while_polling<mutants::F3<HardwareOrdering>>(1'000) == 0);
}

// ---- Both sides sleep: a lost wake-up stops the run ------------------------------------------------------------

class Doorbell {
 public:
  Doorbell() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  ~Doorbell() { close(fd_); }
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  void ring() const {
    const std::uint64_t one = 1;
    static_cast<void>(!write(fd_, &one, sizeof(one)));
  }
  // Sleeps until rung. False: not rung for so long that nobody will, on however slow a machine.
  [[nodiscard]] bool wait() const {
    pollfd polled{fd_, POLLIN, 0};
    if (poll(&polled, 1, 10'000) != 1) return false;
    std::uint64_t count = 0;
    return read(fd_, &count, sizeof(count)) == sizeof(count);
  }

 private:
  int fd_;
};

struct Load {
  bool event_idx;
  std::uint32_t depth;  // at most two: more traffic would heal a lost wake-up
};

struct Outcome {
  std::uint32_t answered = 0;
  std::uint32_t wrong = 0;
  std::atomic<std::uint32_t> lost = 0;
};

// The driver's program: keeps `depth` questions open, wants silence while it works, sleeps when nothing is answered.
void drive(TestQueue<>& queue, const Load& load, std::uint32_t count, const Doorbell& kick, const Doorbell& call,
           Outcome& outcome) {
  using Ordering = HardwareOrdering;
  TestDriver& driver = queue.driver;
  std::uint32_t asked = 0;
  std::uint16_t last_used = 0;
  const auto ask = [&] {
    const std::uint16_t before = driver.avail_idx();
    offer_question(driver, queue.memory, static_cast<std::uint16_t>(asked % load.depth), asked);
    ++asked;
    bool kick_is_needed = false;
    if (load.event_idx) {
      Ordering::fence_avail_index_then_avail_event();
      kick_is_needed = need_event(driver.avail_event(), driver.avail_idx(), before);
    } else {
      Ordering::fence_avail_index_then_used_flags();
      kick_is_needed = (driver.used_flags() & kUsedNoNotify) == 0;
    }
    if (kick_is_needed) kick.ring();
  };
  // Asks for a signal and looks once more; true when there is reason to sleep.
  const auto may_sleep = [&] {
    if (load.event_idx) {
      driver.set_used_event(last_used);
      Ordering::fence_used_event_then_used_index();
    } else {
      driver.set_avail_flags(0);
      Ordering::fence_avail_flags_then_used_index();
    }
    return driver.used_idx() == last_used;
  };
  while (asked < load.depth) ask();
  while (outcome.answered < count) {
    if (may_sleep() && !call.wait()) {
      ++outcome.lost;
      return;
    }
    if (!load.event_idx) driver.set_avail_flags(kAvailNoInterrupt);
    for (; last_used != driver.used_idx(); ++last_used, ++outcome.answered) {
      const std::uint32_t head = driver.used(last_used).id / 2;
      if (*word_at(queue.memory, kAnswerAt, head) != outcome.answered + 1) ++outcome.wrong;
      ask();
    }
  }
}

void run_asleep(const Load& load, std::uint32_t count, Outcome& outcome) {
  TestQueue<> queue({.size = 4, .event_idx = load.event_idx, .framing = {.header_bytes = 0, .status_byte = false}});
  const Doorbell kick;
  const Doorbell call;
  std::atomic<bool> done = false;
  std::thread device([&] {
    while (!done.load()) {
      const std::int32_t bits = answer_questions(queue, true);
      if ((bits & kSignalled) != 0) call.ring();
      if ((bits & kArmed) != 0 && !kick.wait()) {
        ++outcome.lost;
        return;
      }
    }
  });
  drive(queue, load, count, kick, call, outcome);
  done.store(true);
  kick.ring();
  device.join();
}

TEST_CASE("threads: no wake-up is lost with real eventfds, in each way of suppression") {
  for (const Load& load : {Load{true, 1}, Load{true, 2}, Load{false, 1}, Load{false, 2}}) {
    CAPTURE(load.event_idx);
    CAPTURE(load.depth);
    Outcome outcome;
    run_asleep(load, 10'000, outcome);
    CHECK(outcome.lost == 0);
    CHECK(outcome.wrong == 0);
    CHECK(outcome.answered >= 10'000);
  }
}

// ---- A driver that rewrites what is being read -----------------------------------------------------------------

constexpr std::uint64_t kTableAt = kSecondDataAt + 0x100;

// A descriptor that is often plausible on its own, so that some chains are good and most are bad in a new way.
Descriptor random_descriptor(std::mt19937& random) {
  const auto one_of = [&random](const auto& values) { return values[random() % std::size(values)]; };
  constexpr std::uint64_t kAddresses[] = {kDataAt,  kDataAt + 64, kSecondDataAt - 8, kHoleAt - 16,
                                          kTableAt, kTableAt + 1, kHoleAt,           ~std::uint64_t{0} - 8};
  constexpr std::uint32_t kLengths[] = {0, 1, 16, 17, 48, 64, 512, 0xffff'ffff};
  constexpr std::uint16_t kFlags[] = {0,          kDescNext,  kDescNext,
                                      kDescWrite, kDescWrite, kDescNext | kDescWrite,
                                      kDescIndirect};
  return {one_of(kAddresses), one_of(kLengths), one_of(kFlags), static_cast<std::uint16_t>(random() % 9)};
}

// Segments of a taken request that are not wholly in memory.
std::uint32_t count_outside(const TestQueue<>& queue, const RequestRow& request) {
  const std::uint32_t end = request.first_segment + request.readable_count + request.writable_count;
  REQUIRE(end <= queue.segments.size());
  std::uint32_t outside = 0;
  for (std::uint32_t row = request.first_segment; row < end; ++row) {
    const Segment& segment = queue.segments[row];
    REQUIRE(segment.window < queue.memory.regions().size());
    const std::uint64_t size_bytes = queue.memory.regions()[segment.window].size_bytes;
    if (std::uint64_t{segment.offset_bytes} + segment.length_bytes > size_bytes) ++outside;
  }
  return outside;
}

TEST_CASE("threads: descriptors that change while they are read never lead outside memory") {
  constexpr std::uint32_t kSeed = 41;
  constexpr std::uint32_t kRounds = 100'000;
  CAPTURE(kSeed);
  TestQueue<> queue({.size = 8, .chain_count_max = 16});
  std::atomic<bool> done = false;
  std::thread flipper([&] {
    std::mt19937 random(kSeed);
    auto* const table = reinterpret_cast<Descriptor*>(queue.memory.at(kTableAt));
    while (!done.load()) {
      TestDriver::put(queue.driver.descriptor(static_cast<std::uint32_t>(random() % 8)), random_descriptor(random));
      TestDriver::put(table + random() % 4, random_descriptor(random));
    }
  });
  std::uint32_t outside = 0;
  // At least so many rounds, and on until good and bad chains were met: on a busy machine the flipper comes late.
  const auto met_both = [&] { return queue.counters.requests > 0 && queue.counters.malformed_chains > 0; };
  for (std::uint32_t round = 0; round < kRounds || (!met_both() && round < 1000 * kRounds); ++round) {
    queue.driver.publish(static_cast<std::uint16_t>(round % 8));
    const std::int32_t taken = queue.device.take(8);
    REQUIRE(taken >= 0);
    for (std::uint32_t row = 0; row < static_cast<std::uint32_t>(taken); ++row) {
      outside += count_outside(queue, queue.requests[row]);
      queue.completions[row] = {queue.requests[row].head, 0xffff'ffff, 0};
    }
    REQUIRE(queue.device.complete(static_cast<std::uint32_t>(taken), true) >= 0);
  }
  done.store(true);
  flipper.join();
  CHECK(outside == 0);
  CHECK(queue.counters.requests > 0);
  CHECK(queue.counters.malformed_chains > 0);
}

}  // namespace
}  // namespace hushring::test
