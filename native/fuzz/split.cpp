// Fuzzes the chain walker and the split queue: a driver that writes anything anywhere in its memory, at any time, also
// between two reads of the device.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "test/test_queue.h"

namespace hushring {
namespace {

FuzzedDataProvider* input = nullptr;

// A driver that rewrites a word just when the device reads it: what was read before says nothing about it any more.
struct RewritingOrdering : HardwareOrdering {
  template <typename Word>
  static Word load_relaxed(const Word* word) noexcept {
    return rewrites() ? input->ConsumeIntegral<Word>() : HardwareOrdering::load_relaxed(word);
  }
  static void copy_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
    HardwareOrdering::copy_relaxed(target, source, length_bytes);
    if (length_bytes > 0 && rewrites()) {
      target[input->ConsumeIntegralInRange<std::size_t>(0, length_bytes - 1)] ^= std::byte{input->ConsumeIntegral<std::uint8_t>()};
    }
  }

 private:
  static bool rewrites() { return input->remaining_bytes() > 0 && input->ConsumeProbability<float>() > 0.95F; }
};

using Queue = test::TestQueue<RewritingOrdering>;

void demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

// Addresses, lengths and flags at the edges of what is right, and now and then any.
std::uint64_t address() {
  constexpr std::uint64_t kEdges[] = {test::kRingAt,   test::kDataAt,      test::kDataAt + 1, test::kSecondDataAt - 16,
                                      test::kHoleAt - 1, test::kHoleAt, ~std::uint64_t{0},  0xffff'ffff};
  return input->ConsumeBool() ? input->PickValueInArray(kEdges) : input->ConsumeIntegral<std::uint64_t>();
}
std::uint32_t length() {
  constexpr std::uint32_t kEdges[] = {0, 1, 15, 16, 17, 64, 512, 0x1'0000, 0x7fff'ffff, 0xffff'ffff};
  return input->ConsumeBool() ? input->PickValueInArray(kEdges) : input->ConsumeIntegral<std::uint32_t>();
}
// Where the chain goes on is nearly right more often than not, or few chains would come to their ends.
Descriptor descriptor(std::uint32_t size) {
  return {address(), length(), input->PickValueInArray<std::uint16_t>({0, kDescWrite, kDescNext, 3, kDescIndirect, 5, 7}),
          input->ConsumeIntegralInRange<std::uint16_t>(0, static_cast<std::uint16_t>(size))};
}

void take(Queue& queue) {
  const std::uint32_t wanted = input->ConsumeIntegralInRange<std::uint32_t>(0, 2 * queue.split_options.batch_count_max);
  const std::int32_t taken = queue.device.take(wanted);
  if (taken < 0) return;
  demand(static_cast<std::uint32_t>(taken) <= std::min(wanted, queue.split_options.batch_count_max), "no more than asked for");
  for (std::int32_t row = 0; row < taken; ++row) {
    const RequestRow& request = queue.requests[static_cast<std::size_t>(row)];
    demand(request.head < queue.ring.size, "a head lies in the ring");
    const std::size_t end = std::size_t{request.first_segment} + request.readable_count + request.writable_count;
    demand(end <= queue.segments.size(), "segments lie in their table");
    for (std::size_t index = request.first_segment; index < end; ++index) {
      const Segment& segment = queue.segments[index];
      demand(segment.window < queue.memory.regions().size(), "a segment lies in a region");
      const Region& region = queue.memory.regions()[segment.window];
      demand(std::uint64_t{segment.offset_bytes} + segment.length_bytes <= region.size_bytes, "and in all of it");
      // What a handler would do with it. AddressSanitizer knows where the region ends.
      for (std::uint32_t byte = 0; byte < segment.length_bytes; byte += 512) region.host[segment.offset_bytes + byte] ^= std::byte{1};
      if (segment.length_bytes > 0) region.host[segment.offset_bytes + segment.length_bytes - 1] ^= std::byte{1};
    }
  }
  demand(queue.device.in_flight_count() <= queue.ring.size, "no more in flight than the ring holds");
}

void complete(Queue& queue) {
  const auto count = input->ConsumeIntegralInRange<std::uint32_t>(0, 4);
  for (std::uint32_t row = 0; row < std::min<std::size_t>(count, queue.completions.size()); ++row) {
    queue.completions[row] = {input->ConsumeIntegralInRange<std::uint32_t>(0, queue.ring.size), length(), length()};
  }
  static_cast<void>(queue.device.complete(count, input->ConsumeBool()));
}

void play(Queue& queue) {
  switch (input->ConsumeIntegralInRange(0, 7)) {
    case 0:
      test::TestDriver::put(queue.driver.descriptor(input->ConsumeIntegralInRange<std::uint32_t>(0, queue.ring.size - 1)),
                            descriptor(queue.ring.size));
      return;
    case 1: {
      // A table of their own for indirect descriptors, at the start of the data.
      auto* const table = reinterpret_cast<Descriptor*>(queue.memory.at(test::kDataAt));
      test::TestDriver::put(table + input->ConsumeIntegralInRange(0, 15), descriptor(16));
      return;
    }
    case 2:
      queue.driver.publish(input->ConsumeIntegralInRange<std::uint16_t>(0, static_cast<std::uint16_t>(queue.ring.size)));
      return;
    case 3:
      queue.driver.set_avail_idx(input->ConsumeIntegral<std::uint16_t>());
      return;
    case 4:
      queue.driver.set_used_event(input->ConsumeIntegral<std::uint16_t>());
      queue.driver.set_avail_flags(input->ConsumeIntegral<std::uint16_t>());
      return;
    case 5:
      return complete(queue);
    case 6:
      if (input->ConsumeBool()) static_cast<void>(queue.device.set_regions(queue.memory.regions()));
      else static_cast<void>(queue.device.start(queue.ring, queue.memory.regions()));
      return;
    default:
      return take(queue);
  }
}

}  // namespace
}  // namespace hushring

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace hushring;
  FuzzedDataProvider provider(data, size_bytes);
  input = &provider;
  Queue queue({.size = 1U << provider.ConsumeIntegralInRange(0, 4),
               .event_idx = provider.ConsumeBool(),
               .base = provider.ConsumeIntegral<std::uint16_t>(),
               .batch_count_max = provider.ConsumeIntegralInRange<std::uint32_t>(1, 8),
               .chain_count_max = provider.ConsumeIntegralInRange<std::uint32_t>(1, 32),
               .framing = {provider.ConsumeBool() ? 16U : 0U, provider.ConsumeBool()},
               .strict_chains = provider.ConsumeBool(),
               .indirect = provider.ConsumeBool()});
  while (provider.remaining_bytes() > 0) play(queue);
  return 0;
}
