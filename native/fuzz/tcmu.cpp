// Fuzzes the server's half of a TCMU ring: entries that are nearly right, words that change when they are read, and a
// server that answers what it likes.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "test/test_ring.h"

namespace hushring {
namespace {

FuzzedDataProvider* input = nullptr;

struct RewritingOrdering : HardwareOrdering {
  static void copy_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
    HardwareOrdering::copy_relaxed(target, source, length_bytes);
    if (length_bytes > 0 && input->remaining_bytes() > 0 && input->ConsumeProbability<float>() > 0.95F) {
      target[input->ConsumeIntegralInRange<std::size_t>(0, length_bytes - 1)] ^= std::byte{input->ConsumeIntegral<std::uint8_t>()};
    }
  }
};

// The device and its tables, made once: they have room for every id there can be. The region is new for each input.
struct Ring {
  static constexpr TcmuOptions kOptions{.command_count_max = 8, .batch_count_max = 8};

  explicit Ring(const test::TestRingOptions& options) : script(options) { start(); }
  // A device outlives the region of its ring only when it is stopped.
  ~Ring() { device.stop(); }

  // The device goes by the words of the mailbox as they are now, whatever is written there later.
  void start() {
    bytes = script.mailbox().cmdr_size;
    data_offset = std::uint64_t{script.mailbox().cmdr_off} + bytes;
    static_cast<void>(device.start(script.map(), script.map_bytes()));
  }

  test::RingScript script;
  std::uint32_t bytes = 0;
  std::uint64_t data_offset = 0;
  static inline TcmuCommandRow commands[8];
  static inline std::byte cdbs[8 * kCdbBytesMax];
  static inline Segment segments[64];
  static inline TcmuCompletionRow completions[8];
  static inline std::byte senses[8 * kTcmuSenseBytes];
  static inline TcmuTidings tidings;
  static inline std::uint32_t aborted[8];
  static inline TcmuCounters counters;
  static inline TcmuDevice<RewritingOrdering> device{
      kOptions, {commands, cdbs, segments, completions, senses, &tidings, aborted, &counters}};
};

void demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

std::uint64_t offset(const Ring& ring) {
  const std::uint64_t edges[] = {0, test::kRingOffset, ring.script.data_offset() - 8, ring.script.data_offset(),
                                 ring.script.map_bytes() - 1, ring.script.map_bytes(), ~std::uint64_t{0} - 7, 0xffff'ffff};
  return input->ConsumeBool() ? input->PickValueInArray(edges) : input->ConsumeIntegral<std::uint64_t>();
}

// A command as a kernel writes it, if it has room.
void send(Ring& ring) {
  test::ScriptedCommand command{.id = input->ConsumeIntegralInRange<std::uint16_t>(0, 9)};
  for (int count = input->ConsumeIntegralInRange(0, 3); count > 0; --count) {
    const std::uint64_t length = input->ConsumeIntegralInRange<std::uint64_t>(0, 600);
    const bool is_right = input->ConsumeProbability<float>() < 0.8F;
    command.iovecs.push_back({is_right ? ring.script.data_offset() + length : offset(ring), is_right ? length : offset(ring)});
  }
  const std::uint32_t bytes = test::RingScript::command_bytes(command.iovecs.size(), command.cdb.size());
  if (ring.script.needed_bytes(bytes) > ring.script.room_bytes()) return;
  ring.script.command(command);
  ring.script.publish();
}

void take(Ring& ring) {
  const std::int32_t taken = ring.device.take(input->ConsumeIntegralInRange<std::uint32_t>(0, 10));
  if (taken < 0) return;
  demand(taken <= 8, "no more than a batch");
  for (std::int32_t row = 0; row < taken; ++row) {
    const TcmuCommandRow& command = ring.commands[static_cast<std::size_t>(row)];
    const std::size_t end = std::size_t{command.first_segment} + command.data_count + command.bidi_count;
    demand(end <= std::size(ring.segments), "segments lie in their table");
    for (std::size_t index = command.first_segment; index < end; ++index) {
      const Segment& segment = ring.segments[index];
      demand(segment.window == 0 && segment.offset_bytes >= ring.data_offset, "a segment lies in the data area");
      demand(std::uint64_t{segment.offset_bytes} + segment.length_bytes <= ring.script.map_bytes(), "and in all of it");
      ring.script.map()[segment.offset_bytes] ^= std::byte{1};
      ring.script.map()[segment.offset_bytes + segment.length_bytes - 1] ^= std::byte{1};
    }
  }
}

void answer(Ring& ring) {
  const auto count = input->ConsumeIntegralInRange<std::uint32_t>(0, 4);
  for (std::uint32_t row = 0; row < count; ++row) {
    ring.completions[row] = {input->ConsumeIntegralInRange<std::uint32_t>(0, 9), input->ConsumeIntegral<std::uint8_t>(),
                             input->ConsumeIntegral<std::uint32_t>(), input->ConsumeIntegralInRange<std::uint32_t>(0, 1), 0};
  }
  ring.device.record(count);
  if (!ring.device.publish()) return;
  const std::uint32_t tail = ring.script.tail();
  // The kernel loops for ever behind a tail that is not at an entry.
  demand(tail % 8 == 0 && tail < ring.bytes, "the tail lies in the ring");
}

void play(Ring& ring) {
  switch (input->ConsumeIntegralInRange(0, 7)) {
    case 0:
      return send(ring);
    case 1: {
      // Anything anywhere in the mailbox or the ring.
      const auto at = input->ConsumeIntegralInRange<std::uint64_t>(0, ring.script.data_offset() - 8);
      const auto word = input->ConsumeIntegral<std::uint64_t>();
      std::memcpy(ring.script.map() + at, &word, input->ConsumeIntegralInRange<std::size_t>(1, 8));
      return;
    }
    case 2:
      ring.script.publish(input->ConsumeIntegralInRange<std::uint32_t>(0, 2000));
      return;
    case 3:
      return answer(ring);
    case 4:
      ring.device.free_kept(input->ConsumeIntegralInRange<std::uint32_t>(0, 9));
      return;
    case 5:
      return ring.start();
    default:
      return take(ring);
  }
}

}  // namespace
}  // namespace hushring

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace hushring;
  FuzzedDataProvider provider(data, size_bytes);
  input = &provider;
  Ring ring({.ring_bytes = 8 * provider.ConsumeIntegralInRange<std::uint32_t>(30, 200),
             .data_bytes = 2048,
             .flags = provider.ConsumeIntegralInRange<std::uint16_t>(0, 15)});
  while (provider.remaining_bytes() > 0) play(ring);
  return 0;
}
