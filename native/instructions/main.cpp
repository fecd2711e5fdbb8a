// hushring_instructions WORK COUNT: serves COUNT requests, batch after batch, for scripts/instructions.mjs to run under
// callgrind. Only what measured_serve() does is counted: take, an answer for each, publish, and the look for more.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "test/test_queue.h"
#include "test/test_ring.h"

namespace hushring {
namespace {

using Queue = test::TestQueue<HardwareOrdering>;
using Ring = test::TestRing<HardwareOrdering>;

constexpr std::uint32_t kSize = 128;
constexpr std::uint32_t kBatch = 8;
constexpr std::uint64_t kTableAt = test::kSecondDataAt;

// A read of 4 KiB: header, data, status, as three descriptors of the ring or in an indirect table.
void offer(Queue& queue, std::uint32_t slot, bool indirect) {
  const std::uint64_t at = test::kDataAt + std::uint64_t{slot} * 4608;
  const std::initializer_list<test::Buffer> buffers = {
      {at, 16}, {at + 512, 4096, kDescWrite}, {at + 16, 1, kDescWrite}};
  if (!indirect) return queue.driver.offer(static_cast<std::uint16_t>(slot * 3), buffers);
  const std::uint64_t table_at = kTableAt + std::uint64_t{slot} * 64;
  test::TestDriver::link(reinterpret_cast<Descriptor*>(queue.memory.at(table_at)), 0, buffers);
  test::TestDriver::put(queue.driver.descriptor(slot), {table_at, 48, kDescIndirect, 0});
  queue.driver.publish(static_cast<std::uint16_t>(slot));
}

}  // namespace
}  // namespace hushring

// Found by their names.
extern "C" {
__attribute__((noinline)) void measured_serve_split(hushring::Queue& queue) {
  if (queue.serve(true, 4097) < 0) std::abort();
}
__attribute__((noinline)) void measured_serve_tcmu(hushring::Ring& ring) {
  // A PAD counts as a look, so that a batch may come in two.
  do {
    const std::int32_t taken = ring.device.take(hushring::kBatch);
    if (taken < 0) std::abort();
    for (std::int32_t row = 0; row < taken; ++row) {
      const auto index = static_cast<std::size_t>(row);
      ring.completions[index] = {ring.commands[index].command, 0, 0, 0, 4096};
    }
    ring.device.record(static_cast<std::uint32_t>(taken));
    static_cast<void>(ring.device.publish());
  } while (ring.device.sees_entry());
}
}

namespace hushring {
namespace {

void serve_split(std::uint32_t count, std::uint32_t batch, bool indirect, bool event_idx) {
  Queue queue({.size = kSize, .event_idx = event_idx});
  if (queue.start_fault != Fault::kNone) std::abort();
  for (std::uint32_t served = 0; served < count; served += batch) {
    for (std::uint32_t slot = 0; slot < batch; ++slot) offer(queue, slot, indirect);
    // The driver is at work and wants no signal.
    queue.driver.set_used_event(static_cast<std::uint16_t>(queue.driver.used_idx() - 1));
    queue.driver.set_avail_flags(kAvailNoInterrupt);
    measured_serve_split(queue);
  }
  if (queue.counters.completions != count) std::abort();
}

void serve_tcmu(std::uint32_t count, std::uint32_t batch) {
  Ring ring({.ring_bytes = 4000, .data_bytes = 0x2'0000, .command_count_max = 32, .batch_count_max = kBatch});
  for (std::uint32_t served = 0; served < count; served += batch) {
    for (std::uint32_t slot = 0; slot < batch; ++slot) {
      ring.script.command({.id = static_cast<std::uint16_t>(slot + 1),
                           .iovecs = {{ring.script.data_offset() + slot * 4096, 4096}}});
    }
    ring.script.publish();
    measured_serve_tcmu(ring);
    if (ring.script.drain().size() != batch) std::abort();
  }
}

}  // namespace
}  // namespace hushring

int main(int argc, char** argv) {
  using namespace hushring;
  if (argc != 3) return 2;
  const std::string_view work = argv[1];
  const auto count = static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10));
  if (work == "split, indirect, 8 a batch") serve_split(count, kBatch, true, true);
  else if (work == "split, indirect, 1 a batch") serve_split(count, 1, true, true);
  else if (work == "split, 3 descriptors, 8 a batch") serve_split(count, kBatch, false, true);
  else if (work == "split, flags, 8 a batch") serve_split(count, kBatch, true, false);
  else if (work == "tcmu, 8 a batch") serve_tcmu(count, kBatch);
  else if (work == "tcmu, 1 a batch") serve_tcmu(count, 1);
  else return 2;
}
