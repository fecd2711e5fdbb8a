// Every rule for descriptor chains, through the queue: what the tables say, and what a malformed chain costs.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <array>

#include "test_queue.h"

namespace hushring::test {
namespace {

// A disk request as most drivers build it: header, data, status.
constexpr std::uint64_t kHeaderAt = kDataAt;
constexpr std::uint64_t kStatusAt = kDataAt + 0x800;
constexpr std::uint64_t kBufferAt = kDataAt + 0x1000;

// Address space above 1 GiB without the memory behind it.
class LargeMapping {
 public:
  explicit LargeMapping(std::uint64_t size_bytes)
      : size_bytes_(size_bytes), start_(mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0)) {
    REQUIRE(start_ != MAP_FAILED);
  }
  ~LargeMapping() { munmap(start_, size_bytes_); }
  LargeMapping(const LargeMapping&) = delete;
  LargeMapping& operator=(const LargeMapping&) = delete;

  [[nodiscard]] std::byte* host() const { return static_cast<std::byte*>(start_); }

 private:
  static constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

  std::uint64_t size_bytes_;
  void* start_;
};

std::uint64_t total_bytes(const TestQueue<>& queue, std::uint32_t first, std::uint32_t count) {
  std::uint64_t total = 0;
  for (std::uint32_t row = first; row < first + count; ++row) total += queue.segments[row].length_bytes;
  return total;
}

void fill_header(const TestQueue<>& queue, std::uint64_t address, std::uint32_t from, std::uint32_t length_bytes) {
  for (std::uint32_t index = 0; index < length_bytes; ++index) {
    *queue.memory.at(address + index) = static_cast<std::byte>(from + index);
  }
}

bool header_counts_up(const TestQueue<>& queue) {
  for (std::uint32_t index = 0; index < queue.split_options.framing.header_bytes; ++index) {
    if (queue.headers[index] != static_cast<std::byte>(index + 1)) return false;
  }
  return true;
}

TEST_CASE("chain: header, data and status become a header row, segments and a status byte") {
  TestQueue<> queue;
  fill_header(queue, kHeaderAt, 1, 16);
  queue.driver.offer(2, {{kHeaderAt, 16}, {kBufferAt, 512, kDescWrite}, {kStatusAt, 1, kDescWrite}});
  *queue.memory.at(kStatusAt) = std::byte{0xff};
  REQUIRE(queue.device.take(8) == 1);
  CHECK(header_counts_up(queue));
  const RequestRow row = queue.requests[0];
  CHECK(row.head == 2);
  CHECK(row.readable_count == 0);
  CHECK(row.writable_count == 1);
  const Segment segment = queue.segments[row.first_segment];
  CHECK(segment.window == 1);
  CHECK(segment.offset_bytes == 0x1000);
  CHECK(segment.length_bytes == 512);
  CHECK((queue.answer(2, 512, 0) & kSignalled) != 0);
  CHECK(queue.memory.byte_at(kStatusAt) == 0);
  CHECK(queue.driver.used_idx() == 1);
  CHECK(queue.driver.used(0).id == 2);
  CHECK(queue.driver.used(0).len == 513);
}

TEST_CASE("chain: used.len counts a prefix of the writable part and never more than it has") {
  TestQueue<> queue;
  const auto answered_length = [&](std::uint32_t bytes_written, std::uint8_t status) {
    const std::uint16_t index = queue.driver.used_idx();
    queue.driver.offer(0, {{kHeaderAt, 16}, {kBufferAt, 512, kDescWrite}, {kStatusAt, 1, kDescWrite}});
    REQUIRE(queue.device.take(8) == 1);
    queue.answer(0, bytes_written, status);
    CHECK(queue.memory.byte_at(kStatusAt) == status);
    return queue.driver.used(index).len;
  };
  CHECK(answered_length(512, 0) == 513);
  CHECK(answered_length(0xffff'ffff, 0) == 513);
  CHECK(answered_length(100, 0) == 100);
  CHECK(answered_length(0, 1) == 0);
}

TEST_CASE("chain: a write answers with length 1, its status byte") {
  TestQueue<> queue;
  queue.driver.offer(0, {{kHeaderAt, 16}, {kBufferAt, 512}, {kStatusAt, 1, kDescWrite}});
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].readable_count == 1);
  CHECK(queue.requests[0].writable_count == 0);
  queue.answer(0, 0);
  CHECK(queue.driver.used(0).len == 1);
}

TEST_CASE("chain: without header and status all bytes are data and used.len is what was written") {
  TestQueue<> queue({.framing = {.header_bytes = 0, .status_byte = false}});
  queue.driver.offer(0, {{kBufferAt, 64, kDescWrite}});
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].writable_count == 1);
  CHECK(total_bytes(queue, queue.requests[0].first_segment, 1) == 64);
  queue.answer(0, 64);
  CHECK(queue.driver.used(0).len == 64);
}

TEST_CASE("chain: any layout: the header may be split over descriptors and share one with data") {
  TestQueue<> queue;
  fill_header(queue, kHeaderAt, 1, 5);
  fill_header(queue, kHeaderAt + 0x101, 6, 11);
  queue.driver.offer(
      0, {{kHeaderAt, 5}, {kHeaderAt + 0x101, 11 + 100}, {kBufferAt, 412}, {kStatusAt, 1, kDescWrite}});
  REQUIRE(queue.device.take(8) == 1);
  CHECK(header_counts_up(queue));
  const RequestRow row = queue.requests[0];
  CHECK(row.readable_count == 2);
  CHECK(queue.segments[row.first_segment].offset_bytes == 0x101 + 11);
  CHECK(total_bytes(queue, row.first_segment, row.readable_count) == 512);
}

TEST_CASE("chain: any layout: the status may be the last byte of a data buffer") {
  TestQueue<> queue;
  queue.driver.offer(0, {{kHeaderAt, 16}, {kBufferAt, 513, kDescWrite}});
  *queue.memory.at(kBufferAt + 512) = std::byte{0xff};
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].writable_count == 1);
  CHECK(total_bytes(queue, queue.requests[0].first_segment, 1) == 512);
  queue.answer(0, 512, 2);
  CHECK(queue.memory.byte_at(kBufferAt + 512) == 2);
  CHECK(queue.driver.used(0).len == 513);
}

TEST_CASE("chain: a header that is no multiple of 4 is padded with zeros to its words") {
  TestQueue<> queue({.framing = {.header_bytes = 5, .status_byte = false}});
  fill_header(queue, kHeaderAt, 1, 16);
  queue.driver.offer(0, {{kHeaderAt, 16}});
  queue.driver.offer(1, {{kHeaderAt, 16}});
  REQUIRE(queue.device.take(8) == 2);
  const std::array<std::uint8_t, 16> expected{1, 2, 3, 4, 5, 0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0};
  CHECK(std::memcmp(queue.headers.data(), expected.data(), expected.size()) == 0);
  CHECK(total_bytes(queue, queue.requests[0].first_segment, 1) == 11);
}

TEST_CASE("chain: a buffer over two regions becomes two segments, and so does its header") {
  TestQueue<> queue;
  fill_header(queue, kSecondDataAt - 7, 1, 16);
  queue.driver.offer(0, {{kSecondDataAt - 7, 16}, {kSecondDataAt - 100, 300}, {kStatusAt, 1, kDescWrite}});
  REQUIRE(queue.device.take(8) == 1);
  const RequestRow row = queue.requests[0];
  REQUIRE(row.readable_count == 2);
  CHECK(queue.segments[row.first_segment].window == 1);
  CHECK(queue.segments[row.first_segment].length_bytes == 100);
  CHECK(queue.segments[row.first_segment + 1].window == 2);
  CHECK(queue.segments[row.first_segment + 1].offset_bytes == 0);
  CHECK(queue.segments[row.first_segment + 1].length_bytes == 200);
  CHECK(header_counts_up(queue));
}

TEST_CASE("chain: a status byte in the second of two regions is found") {
  TestQueue<> queue;
  queue.driver.offer(0, {{kHeaderAt, 16}, {kSecondDataAt - 8, 9, kDescWrite}});
  *queue.memory.at(kSecondDataAt) = std::byte{0xff};
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].writable_count == 1);
  queue.answer(0, 8);
  CHECK(queue.memory.byte_at(kSecondDataAt) == 0);
}

TEST_CASE("chain: segments end at window edges of a region above 1 GiB") {
  constexpr std::uint64_t kBytes = 2 * kWindowBytes + 4096;
  const LargeMapping mapping(kBytes);
  constexpr std::uint64_t kLargeAt = std::uint64_t{5} << 32;
  TestQueue<> queue;
  queue.memory.add(kLargeAt, kBytes, mapping.host());
  REQUIRE(queue.device.set_regions(queue.memory.regions()) == Fault::kNone);
  queue.driver.offer(0, {{kHeaderAt, 16},
                         {kLargeAt + kWindowBytes - 512, static_cast<std::uint32_t>(kWindowBytes + 1024), kDescWrite},
                         {kStatusAt, 1, kDescWrite}});
  REQUIRE(queue.device.take(8) == 1);
  const RequestRow row = queue.requests[0];
  REQUIRE(row.writable_count == 3);
  const Segment* const segment = &queue.segments[row.first_segment];
  CHECK(segment[0].window == 3);
  CHECK(segment[0].offset_bytes == kWindowBytes - 512);
  CHECK(segment[0].length_bytes == 512);
  CHECK(segment[1].window == 4);
  CHECK(segment[1].offset_bytes == 0);
  CHECK(segment[1].length_bytes == kWindowBytes);
  CHECK(segment[2].window == 5);
  CHECK(segment[2].length_bytes == 512);
  queue.answer(0, static_cast<std::uint32_t>(kWindowBytes + 1024));
  CHECK(queue.driver.used(0).len == kWindowBytes + 1025);
}

TEST_CASE("chain: empty buffers are skipped wherever they point, also as the last one") {
  TestQueue<> queue;
  queue.driver.offer(0, {{kHoleAt, 0}, {kHeaderAt, 16}, {~std::uint64_t{0}, 0, kDescWrite}, {kBufferAt, 8},
                         {kStatusAt, 1, kDescWrite}, {kHoleAt, 0}});
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].readable_count == 1);
  CHECK(queue.requests[0].writable_count == 0);
}

TEST_CASE("chain: exactly as many descriptors as the ring has are accepted") {
  TestQueue<> queue({.size = 4});
  queue.driver.offer(0, {{kHeaderAt, 16}, {kBufferAt, 8}, {kBufferAt + 8, 8}, {kStatusAt, 1, kDescWrite}});
  CHECK(queue.device.take(8) == 1);
  CHECK(queue.requests[0].readable_count == 2);
}

TEST_CASE("chain: a ring of size 1 takes a chain of one descriptor") {
  TestQueue<> queue({.size = 1, .framing = {.header_bytes = 0, .status_byte = false}});
  for (int lap = 0; lap < 3; ++lap) {
    queue.driver.offer(0, {{kBufferAt, 8, kDescWrite}});
    CHECK((queue.serve(true, 8) & kArmed) != 0);
  }
  CHECK(queue.driver.used_idx() == 3);
}

// ---- Indirect tables ----

constexpr std::uint64_t kTableAt = kDataAt + 0x4000;

void offer_table(TestQueue<>& queue, std::uint64_t address, std::uint32_t length_bytes, std::uint16_t flags = 0) {
  TestDriver::put(queue.driver.descriptor(0),
                  {address, length_bytes, static_cast<std::uint16_t>(kDescIndirect | flags), 1});
  queue.driver.publish(0);
}

// Writes a table anywhere, byte by byte, so that it may be misaligned or straddle regions.
void write_table(const TestQueue<>& queue, std::uint64_t address, std::initializer_list<Buffer> buffers) {
  std::vector<Descriptor> table(buffers.size());
  TestDriver::link(table.data(), 0, buffers);
  const auto* const bytes = reinterpret_cast<const std::byte*>(table.data());
  for (std::size_t index = 0; index < table.size() * sizeof(Descriptor); ++index) {
    *queue.memory.at(address + index) = bytes[index];
  }
}

const std::initializer_list<Buffer> kReadRequest{
    {kHeaderAt, 16}, {kBufferAt, 512, kDescWrite}, {kStatusAt, 1, kDescWrite}};

TEST_CASE("chain: an indirect table is walked, and its head is what is returned") {
  TestQueue<> queue;
  write_table(queue, kTableAt, kReadRequest);
  SUBCASE("plain") { offer_table(queue, kTableAt, 48); }
  SUBCASE("WRITE on the indirect descriptor is ignored") { offer_table(queue, kTableAt, 48, kDescWrite); }
  SUBCASE("a longer table than the chain") { offer_table(queue, kTableAt, 4096); }
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].head == 0);
  CHECK(queue.requests[0].writable_count == 1);
  queue.answer(0, 512);
  CHECK(queue.driver.used(0).id == 0);
  CHECK(queue.driver.used(0).len == 513);
}

TEST_CASE("chain: an indirect table needs no alignment and may straddle regions") {
  TestQueue<> queue;
  std::uint64_t address = 0;
  SUBCASE("odd address") { address = kTableAt + 1; }
  SUBCASE("a descriptor lies in both regions") { address = kSecondDataAt - 23; }
  SUBCASE("the edge falls between descriptors") { address = kSecondDataAt - 16; }
  fill_header(queue, kHeaderAt, 1, 16);
  write_table(queue, address, kReadRequest);
  offer_table(queue, address, 48);
  REQUIRE(queue.device.take(8) == 1);
  CHECK(header_counts_up(queue));
  CHECK(total_bytes(queue, queue.requests[0].first_segment, queue.requests[0].writable_count) == 512);
}

TEST_CASE("chain: direct descriptors may come before the indirect one") {
  TestQueue<> queue;
  write_table(queue, kTableAt, {{kBufferAt, 512, kDescWrite}, {kStatusAt, 1, kDescWrite}});
  TestDriver::put(queue.driver.descriptor(0), {kHeaderAt, 16, kDescNext, 3});
  TestDriver::put(queue.driver.descriptor(3), {kTableAt, 32, kDescIndirect, 0});
  queue.driver.publish(0);
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].writable_count == 1);
}

TEST_CASE("chain: an indirect chain may be longer than the ring, up to its own limit") {
  TestQueue<> queue({.size = 4, .chain_count_max = 16});
  const auto offer_chain_of = [&](std::uint16_t count) {
    std::vector<Descriptor> table(count);
    for (std::uint16_t index = 0; index < count; ++index) {
      const bool last = index + 1 == count;
      table[index] = {last ? kStatusAt : kHeaderAt, last ? 1U : 16U, last ? kDescWrite : kDescNext,
                      static_cast<std::uint16_t>(index + 1)};
    }
    std::memcpy(queue.memory.at(kTableAt), table.data(), count * sizeof(Descriptor));
    offer_table(queue, kTableAt, static_cast<std::uint32_t>(count * sizeof(Descriptor)));
  };
  offer_chain_of(16);
  REQUIRE(queue.device.take(8) == 1);
  CHECK(queue.requests[0].readable_count == 14);
  queue.answer(0, 0);
  offer_chain_of(17);
  CHECK(queue.device.take(8) == 0);
  CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(Fault::kChainLoop));
}

// ---- Malformed chains ----

// A way to offer a malformed chain at head 0. `status_is_known`: the chain still tells where its status byte is, at
// kStatusAt, so the driver finds an I/O error there.
struct Malformation {
  const char* name;
  Fault fault;
  bool status_is_known;
  void (*offer)(TestQueue<>& queue);
};

void offer_direct(TestQueue<>& queue, std::initializer_list<Buffer> buffers) { queue.driver.offer(0, buffers); }

const Malformation kMalformations[] = {
    {"next is outside the table", Fault::kChainNextRange, false,
     [](TestQueue<>& queue) {
       TestDriver::put(queue.driver.descriptor(0), {kHeaderAt, 16, kDescNext, 1});
       TestDriver::put(queue.driver.descriptor(1), {kStatusAt, 1, kDescNext | kDescWrite, 8});
       queue.driver.publish(0);
     }},
    {"next is outside the indirect table", Fault::kChainNextRange, false,
     [](TestQueue<>& queue) {
       write_table(queue, kTableAt, {{kHeaderAt, 16}, {kBufferAt, 1}, {kStatusAt, 1, kDescWrite}});
       offer_table(queue, kTableAt, 32);
     }},
    {"next is the descriptor itself, empty", Fault::kChainLoop, false,
     [](TestQueue<>& queue) {
       TestDriver::put(queue.driver.descriptor(0), {kHeaderAt, 0, kDescNext, 0});
       queue.driver.publish(0);
     }},
    {"two descriptors with data go round", Fault::kChainLoop, false,
     [](TestQueue<>& queue) {
       TestDriver::put(queue.driver.descriptor(0), {kHeaderAt, 16, kDescNext, 1});
       TestDriver::put(queue.driver.descriptor(1), {kBufferAt, 16, kDescNext, 0});
       queue.driver.publish(0);
     }},
    {"an indirect table goes round", Fault::kChainLoop, false,
     [](TestQueue<>& queue) {
       write_table(queue, kTableAt, {{kHeaderAt, 16}, {kStatusAt, 1, kDescWrite}});
       const std::uint16_t next = kDescNext | kDescWrite;
       TestDriver::put(reinterpret_cast<Descriptor*>(queue.memory.at(kTableAt)) + 1, {kStatusAt, 0, next, 0});
       offer_table(queue, kTableAt, 32);
     }},
    {"address and length wrap 2^64", Fault::kChainAddress, true,
     [](TestQueue<>& queue) {
       offer_direct(queue, {{kHeaderAt, 16}, {~std::uint64_t{0} - 8, 64, kDescWrite}, {kStatusAt, 1, kDescWrite}});
     }},
    {"the status buffer wraps 2^64 into memory", Fault::kChainAddress, false,
     [](TestQueue<>& queue) {
       const auto length = static_cast<std::uint32_t>(kStatusAt + 1 + 16);
       offer_direct(queue, {{kHeaderAt, 16}, {std::uint64_t{0} - 16, length, kDescWrite}});
     }},
    {"a buffer ends one byte past its region", Fault::kChainAddress, true,
     [](TestQueue<>& queue) {
       offer_direct(queue, {{kHeaderAt, 16}, {kHoleAt - 8, 9, kDescWrite}, {kStatusAt, 1, kDescWrite}});
     }},
    {"a buffer starts in a hole", Fault::kChainAddress, true,
     [](TestQueue<>& queue) { offer_direct(queue, {{kHoleAt, 16}, {kStatusAt, 1, kDescWrite}}); }},
    {"a buffer of 2^32 - 1 bytes", Fault::kChainAddress, true,
     [](TestQueue<>& queue) {
       offer_direct(queue, {{kHeaderAt, 0xffff'ffff, 0}, {kStatusAt, 1, kDescWrite}});
     }},
    {"the status is outside memory", Fault::kChainAddress, false,
     [](TestQueue<>& queue) { offer_direct(queue, {{kHeaderAt, 16}, {kHoleAt, 1, kDescWrite}}); }},
    {"the indirect table is outside memory", Fault::kChainAddress, false,
     [](TestQueue<>& queue) { offer_table(queue, kHoleAt - 16, 32); }},
    {"INDIRECT of length 0", Fault::kChainIndirect, false,
     [](TestQueue<>& queue) { offer_table(queue, kTableAt, 0); }},
    {"INDIRECT of no multiple of 16", Fault::kChainIndirect, false,
     [](TestQueue<>& queue) { offer_table(queue, kTableAt, 47); }},
    {"INDIRECT with NEXT", Fault::kChainIndirect, false,
     [](TestQueue<>& queue) {
       write_table(queue, kTableAt, kReadRequest);
       offer_table(queue, kTableAt, 48, kDescNext);
     }},
    {"INDIRECT inside an indirect table", Fault::kChainIndirect, false,
     [](TestQueue<>& queue) {
       write_table(queue, kTableAt, {{kHeaderAt, 16}, {kTableAt, 32, kDescIndirect}});
       offer_table(queue, kTableAt, 32);
     }},
    {"readable after writable", Fault::kChainOrder, true,
     [](TestQueue<>& queue) {
       offer_direct(queue,
                    {{kHeaderAt, 16}, {kBufferAt, 8, kDescWrite}, {kBufferAt, 8}, {kStatusAt, 1, kDescWrite}});
     }},
    {"the status is in a readable descriptor", Fault::kChainOrder, false,
     [](TestQueue<>& queue) { offer_direct(queue, {{kHeaderAt, 16}, {kBufferAt, 8, kDescWrite}, {kStatusAt, 1}}); }},
    {"nothing is writable", Fault::kChainFraming, false,
     [](TestQueue<>& queue) { offer_direct(queue, {{kHeaderAt, 16}, {kStatusAt, 1}}); }},
    {"the header is one byte short", Fault::kChainFraming, true,
     [](TestQueue<>& queue) { offer_direct(queue, {{kHeaderAt, 15}, {kStatusAt, 1, kDescWrite}}); }},
    {"all is writable", Fault::kChainFraming, true,
     [](TestQueue<>& queue) { offer_direct(queue, {{kBufferAt, 64, kDescWrite}, {kStatusAt, 1, kDescWrite}}); }},
    {"one empty descriptor", Fault::kChainFraming, false,
     [](TestQueue<>& queue) { offer_direct(queue, {{kHeaderAt, 0}}); }},
};

constexpr std::uint8_t kUntouched = 0xaa;

TEST_CASE("chain: a malformed chain is returned with length 0 and the queue lives on") {
  for (const Malformation& malformation : kMalformations) {
    CAPTURE(malformation.name);
    TestQueue<> queue;
    *queue.memory.at(kStatusAt) = std::byte{kUntouched};
    malformation.offer(queue);
    CHECK(queue.device.take(8) == 0);
    CHECK(queue.counters.malformed_chains == 1);
    CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(malformation.fault));
    CHECK(queue.device.in_flight_count() == 1);
    CHECK(queue.device.complete(0, true) == (kSignalled | kArmed));
    CHECK(queue.memory.byte_at(kStatusAt) == (malformation.status_is_known ? kStatusFailed : kUntouched));
    REQUIRE(queue.driver.used_idx() == 1);
    CHECK(queue.driver.used(0).id == 0);
    CHECK(queue.driver.used(0).len == 0);
    CHECK(queue.device.in_flight_count() == 0);
    // The next, good one is served with the same head.
    queue.driver.offer(0, {{kHeaderAt, 16}, {kStatusAt, 1, kDescWrite}});
    queue.serve();
    CHECK(queue.driver.used_idx() == 2);
    CHECK(queue.memory.byte_at(kStatusAt) == 0);
  }
}

TEST_CASE("chain: strict: a malformed chain breaks the queue, which touches nothing any more") {
  for (const Malformation& malformation : kMalformations) {
    CAPTURE(malformation.name);
    TestQueue<> queue({.strict_chains = true});
    *queue.memory.at(kStatusAt) = std::byte{kUntouched};
    malformation.offer(queue);
    const std::int32_t broken = -static_cast<std::int32_t>(malformation.fault);
    CHECK(queue.device.take(8) == broken);
    CHECK(queue.device.complete(0, true) == broken);
    CHECK(queue.memory.byte_at(kStatusAt) == kUntouched);
    CHECK(queue.driver.used_idx() == 0);
  }
}

TEST_CASE("chain: INDIRECT that was not negotiated is malformed") {
  TestQueue<> queue({.indirect = false});
  write_table(queue, kTableAt, kReadRequest);
  offer_table(queue, kTableAt, 48);
  CHECK(queue.device.take(8) == 0);
  CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(Fault::kChainIndirect));
}

TEST_CASE("chain: a buffer does not continue at address 0 though memory lies at both ends") {
  TestQueue<> queue({.framing = {.header_bytes = 0, .status_byte = false}});
  constexpr std::uint64_t kLastPageAt = ~std::uint64_t{0} - 4095;
  queue.memory.add(kLastPageAt, 4096);
  queue.memory.add(0, 4096);
  REQUIRE(queue.device.set_regions(queue.memory.regions()) == Fault::kNone);
  queue.driver.offer(0, {{kLastPageAt, 4096}});
  queue.driver.offer(1, {{kLastPageAt, 4097}});
  CHECK(queue.device.take(2) == 1);
  CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(Fault::kChainAddress));
}

TEST_CASE("chain: buffers of 2^32 bytes together are too long, of one byte less are not") {
  constexpr std::uint64_t kBytes = std::uint64_t{1} << 32;
  const LargeMapping mapping(kBytes);
  constexpr std::uint64_t kLargeAt = std::uint64_t{5} << 32;
  TestQueue<> queue({.framing = {.header_bytes = 0, .status_byte = false}});
  queue.memory.add(kLargeAt, kBytes, mapping.host());
  REQUIRE(queue.device.set_regions(queue.memory.regions()) == Fault::kNone);
  queue.driver.offer(0, {{kLargeAt, 0xffff'fffe, kDescWrite}, {kLargeAt, 1, kDescWrite}});
  queue.driver.offer(2, {{kLargeAt, 0xffff'ffff, kDescWrite}, {kLargeAt, 1, kDescWrite}});
  CHECK(queue.device.take(8) == 1);
  CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(Fault::kChainTooLong));
  queue.answer(0, 0xffff'ffff);
  CHECK(queue.driver.used(0).id == 2);
  CHECK(queue.driver.used(1).id == 0);
  CHECK(queue.driver.used(1).len == 0xffff'ffff);
}

TEST_CASE("chain: a take that runs out of segment rows stops early and says that there is more") {
  TestQueue<> queue({.size = 4, .batch_count_max = 4, .chain_count_max = 16,
                     .framing = {.header_bytes = 0, .status_byte = false}});
  // 16 + 8 * 4 = 48 rows hold three chains of 16.
  REQUIRE(queue.split_options.segment_rows() == 48);
  std::vector<Descriptor> table(16);
  for (std::uint16_t index = 0; index < 16; ++index) {
    const bool last = index == 15;
    table[index] = {kBufferAt, 8, last ? std::uint16_t{0} : kDescNext, static_cast<std::uint16_t>(index + 1)};
  }
  std::memcpy(queue.memory.at(kTableAt), table.data(), 16 * sizeof(Descriptor));
  for (std::uint16_t head = 0; head < 4; ++head) {
    TestDriver::put(queue.driver.descriptor(head), {kTableAt, 256, kDescIndirect, 0});
    queue.driver.publish(head);
  }
  CHECK(queue.device.take(4) == 3);
  CHECK((queue.device.complete(0, true) & (kMore | kArmed)) == kMore);
  CHECK(queue.device.take(4) == 1);
  CHECK(queue.requests[0].head == 3);
  CHECK(queue.requests[0].readable_count == 16);
  CHECK((queue.device.complete(0, true) & (kMore | kArmed)) == kArmed);
}

TEST_CASE("chain: a chain with more pieces than the whole table is too long, and does not stop the queue") {
  TestQueue<> queue({.size = 4, .batch_count_max = 1, .chain_count_max = 4,
                     .framing = {.header_bytes = 0, .status_byte = false}});
  REQUIRE(queue.split_options.segment_rows() == 12);
  // Regions of 16 bytes: a buffer of 13 * 16 bytes has 13 pieces.
  std::vector<std::byte> bytes(13 * 16);
  constexpr std::uint64_t kSplinteredAt = std::uint64_t{9} << 32;
  for (std::uint64_t piece = 0; piece < 13; ++piece) {
    queue.memory.add(kSplinteredAt + 16 * piece, 16, bytes.data() + 16 * piece);
  }
  REQUIRE(queue.device.set_regions(queue.memory.regions()) == Fault::kNone);
  queue.driver.offer(0, {{kSplinteredAt, 13 * 16}});
  queue.driver.offer(1, {{kSplinteredAt, 12 * 16}});
  CHECK(queue.device.take(1) == 0);
  CHECK(queue.counters.last_fault == static_cast<std::uint64_t>(Fault::kChainTooLong));
  CHECK((queue.device.complete(0, true) & (kMore | kArmed)) == kMore);
  CHECK(queue.device.take(1) == 1);
  CHECK(queue.requests[0].head == 1);
  CHECK(queue.requests[0].readable_count == 12);
}

}  // namespace
}  // namespace hushring::test
