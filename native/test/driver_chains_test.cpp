// Random chains through a whole ring: what the driver's half adds is what the device's half takes, and what the device
// answers is what the driver reaps.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "core/ordering.h"
#include "core/peer/split_driver.h"
#include "core/split.h"

namespace hushring {
namespace {

constexpr std::uint32_t kSize = 16;
constexpr std::uint32_t kBuffersMax = 5;  // of each kind in one chain
constexpr std::uint64_t kTablesAt = 0x1000;
constexpr std::uint64_t kTableBytes = 2 * kBuffersMax * sizeof(Descriptor);
constexpr std::uint64_t kDataAt = 0x4000;
constexpr std::uint64_t kBytes = 0x8000;

// What was added and must come out.
struct Added {
  std::vector<Segment> readable;
  std::vector<Segment> writable;
  std::uint32_t writable_bytes = 0;
  std::uint32_t answered_bytes = 0;
};

// Plays `count` chains. Returns how many came out otherwise, as a request or as an answer.
template <class DriverOrdering>
std::uint32_t wrong_chains(std::uint32_t count, std::uint32_t seed) {
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  const std::unique_ptr<std::byte, Free> memory(static_cast<std::byte*>(std::aligned_alloc(4096, kBytes)));
  std::memset(memory.get(), 0, kBytes);
  const SplitLayout layout = split_layout(0, kSize);
  REQUIRE(layout.end_address <= kTablesAt);
  constexpr std::uint16_t kFirstIndex = 65000;
  using Driver = SplitDriver<DriverOrdering>;
  Driver driver(memory.get(), layout, kSize, Suppression::kEventIdx, kFirstIndex);

  constexpr SplitOptions kOptions{
      .size_max = kSize, .batch_count_max = 8, .chain_count_max = 32, .framing = {0, false}, .strict_chains = true};
  std::array<RequestRow, kOptions.request_rows()> requests{};
  std::array<Segment, kOptions.segment_rows()> segments{};
  std::array<CompletionRow, kOptions.completion_rows()> completions{};
  QueueCounters counters{};
  SplitDevice<HardwareOrdering> device(
      kOptions,
      {.requests = requests, .headers = {}, .segments = segments, .completions = completions, .counters = &counters});
  const std::array<Region, 1> regions{{{0, 0, kBytes, memory.get(), 0}}};
  const SplitRing ring{.size = kSize,
                       .space = AddressSpace::kGuest,
                       .descriptor_address = layout.descriptor_address,
                       .avail_address = layout.avail_address,
                       .used_address = layout.used_address,
                       .avail_base = kFirstIndex,
                       .event_idx = true,
                       .indirect = true};
  REQUIRE(device.start(ring, regions) == Fault::kNone);

  std::mt19937 random(seed);
  const auto below = [&](std::uint32_t bound) { return static_cast<std::uint32_t>(random() % bound); };
  std::vector<Added> added(count);
  std::vector<std::uint32_t> free_tables;
  for (std::uint32_t table = 0; table < kSize; ++table) free_tables.push_back(table);
  std::vector<std::uint32_t> table_of(count, kSize);
  std::vector<std::uint32_t> token_of_head(kSize);
  std::vector<std::uint16_t> in_flight;
  std::uint32_t wrong = 0;
  std::uint32_t next_added = 0;
  std::uint32_t next_taken = 0;
  std::uint32_t reaped = 0;

  const auto buffers = [&](std::uint32_t buffer_count, std::vector<Segment>& wanted) {
    std::vector<typename Driver::Buffer> made;
    for (std::uint32_t index = 0; index < buffer_count; ++index) {
      const std::uint32_t offset = static_cast<std::uint32_t>(kDataAt) + below(0x2000);
      const std::uint32_t length = 1 + below(0x1000);
      made.push_back({offset, length});
      wanted.push_back({0, offset, length});
    }
    return made;
  };
  const auto same = [](std::span<const Segment> taken, const std::vector<Segment>& wanted) {
    return std::ranges::equal(taken, wanted, [](const Segment& one, const Segment& other) {
      return one.window == other.window && one.offset_bytes == other.offset_bytes &&
             one.length_bytes == other.length_bytes;
    });
  };

  while (reaped < count && device.fault() == Fault::kNone && driver.fault() == DeviceFault::kNone) {
    for (std::uint32_t tries = below(6); tries > 0 && next_added < count; --tries) {
      Added chain;
      const std::uint32_t readable_count = below(kBuffersMax + 1);
      const auto readable = buffers(readable_count, chain.readable);
      const auto writable = buffers(below(kBuffersMax + 1) + (readable_count == 0 ? 1 : 0), chain.writable);
      for (const auto& buffer : writable) chain.writable_bytes += buffer.length_bytes;
      bool is_added = false;
      // Without a free table there is no free descriptor either, and nothing can be added.
      if (below(2) == 0 || readable.size() + writable.size() > 2 * kBuffersMax || free_tables.empty()) {
        is_added = driver.add(readable, writable, next_added);
      } else {
        const std::uint64_t at = kTablesAt + free_tables.back() * kTableBytes;
        is_added = driver.add_indirect(readable, writable,
                                       {reinterpret_cast<Descriptor*>(memory.get() + at), at}, next_added);
        if (is_added) {
          table_of[next_added] = free_tables.back();
          free_tables.pop_back();
        }
      }
      if (is_added) added[next_added++] = std::move(chain);
    }
    driver.publish();

    const std::int32_t taken = device.take(1 + below(8));
    for (std::int32_t row = 0; row < taken; ++row) {
      const RequestRow& request = requests[static_cast<std::size_t>(row)];
      const Added& chain = added[next_taken];
      const auto all = std::span<const Segment>(segments).subspan(request.first_segment);
      if (!same(all.first(request.readable_count), chain.readable) ||
          !same(all.subspan(request.readable_count, request.writable_count), chain.writable)) {
        ++wrong;
      }
      token_of_head[request.head] = next_taken++;
      in_flight.push_back(static_cast<std::uint16_t>(request.head));
    }

    std::uint32_t answer_count = 0;
    for (std::uint32_t tries = below(8); tries > 0 && !in_flight.empty(); --tries) {
      const std::uint32_t pick = below(static_cast<std::uint32_t>(in_flight.size()));
      const std::uint16_t head = in_flight[pick];
      in_flight.erase(in_flight.begin() + pick);
      Added& chain = added[token_of_head[head]];
      chain.answered_bytes = below(chain.writable_bytes + 1);
      completions[answer_count++] = {head, chain.answered_bytes, 0};
    }
    static_cast<void>(device.complete(answer_count, true));
    driver.reap([&](std::uint32_t token, std::uint32_t length_bytes) {
      if (length_bytes != added[token].answered_bytes) ++wrong;
      if (table_of[token] < kSize) free_tables.push_back(table_of[token]);
      ++reaped;
    });
  }
  return wrong + (count - reaped);
}

// A driver that gives each buffer as one byte shorter than it is. Lengths are the only words of 32 bits that it writes.
struct ShortBuffers : HardwareOrdering {
  template <typename Word>
  static void store_relaxed(Word* word, Word value) noexcept {
    HardwareOrdering::store_relaxed(word, sizeof(Word) == sizeof(std::uint32_t) ? static_cast<Word>(value - 1) : value);
  }
};

TEST_CASE("driver and device: 100,000 random chains come out as they went in, and so do their answers") {
  const std::uint32_t seed = std::random_device{}();
  CAPTURE(seed);
  CHECK(wrong_chains<HardwareOrdering>(100'000, seed) == 0);
}

TEST_CASE("driver and device: control: a driver that shortens its buffers is noticed") {
  CHECK(wrong_chains<ShortBuffers>(1'000, 1) > 0);
}

}  // namespace
}  // namespace hushring
