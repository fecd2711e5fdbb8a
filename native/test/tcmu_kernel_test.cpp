// The kernel's half of a TCMU ring, against a server written by hand here from the layout alone: what lies in memory
// after each step, what the initiator gets, and that every kind of wrong server is noticed.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/ordering.h"
#include "core/peer/tcmu_kernel.h"
#include "test_tcmu_server.h"

namespace hushring::test {
namespace {

// A CDB whose first byte says its length.
Bytes cdb_of(std::uint8_t opcode, std::size_t length = 10) {
  Bytes cdb = bytes_of(length, opcode);
  cdb[0] = std::byte{opcode};
  return cdb;
}

struct Sense {
  int key, asc, ascq;
  friend bool operator==(const Sense&, const Sense&) = default;
};
doctest::String toString(const Sense& sense) {
  return (std::to_string(sense.key) + "/" + std::to_string(sense.asc) + "/" + std::to_string(sense.ascq)).c_str();
}
Sense sense_of(const InitiatorResult& result) {
  const auto at = [&](std::size_t index) { return std::to_integer<int>(result.sense.at(index)); };
  return {at(2), at(12), at(13)};
}
constexpr Sense kCommunicationFailure{0x2, 0x08, 0x00};
constexpr Sense kInvalidField{0x5, 0x24, 0x00};

// ---- A kernel, its memory, and an initiator --------------------------------------------------------------------

constexpr std::uint32_t kPage = 4096;

TcmuKernelOptions small(std::uint32_t block_count = 16) {
  return {.ring_bytes = kPage, .data_area_bytes = std::uint64_t{block_count} * kPage};
}

class KernelUnderTest {
 public:
  explicit KernelUnderTest(const TcmuKernelOptions& options = small())
      : memory(zeroed(map_bytes_of(options))), kernel(memory.get(), options), server(memory.get()) {
    REQUIRE_FALSE(complaint_about(options).has_value());
  }

  // Sends a command and keeps its data. The tag is the number of the command, from 1 on.
  std::uint64_t submit(const Bytes& cdb, const Bytes& data_out = {}, std::size_t data_in_bytes = 0) {
    auto& [out, in] = data[++tag_];
    out = data_out;
    in.assign(data_in_bytes, std::byte{0xee});
    kernel.submit({tag_, cdb, out, in});
    return tag_;
  }
  std::uint64_t submit_write(std::size_t length) { return submit(cdb_of(0x2a), bytes_of(length, 1)); }
  std::uint64_t submit_read(std::size_t length) { return submit(cdb_of(0x28), {}, length); }
  std::uint64_t submit_test_unit_ready() { return submit(cdb_of(0x00, 6)); }

  std::vector<InitiatorResult> reap() {
    std::vector<InitiatorResult> results;
    const std::size_t count = kernel.reap([&](const InitiatorResult& result) { results.push_back(result); });
    CHECK(count == results.size());
    return results;
  }
  InitiatorResult reap_one() {
    std::vector<InitiatorResult> results = reap();
    REQUIRE(results.size() == 1);
    return results.front();
  }
  std::vector<TmrResult> reap_tmrs() {
    std::vector<TmrResult> results;
    kernel.reap_task_management([&](const TmrResult& result) { results.push_back(result); });
    return results;
  }
  const Bytes& data_in(std::uint64_t tag) { return data.at(tag).second; }

  // The server answers its oldest command and rings.
  InitiatorResult answer(std::uint16_t id, const TestServer::Answer& answer) {
    server.complete(id, answer);
    ring();
    return reap_one();
  }
  void ring() {
    server.publish();
    kernel.ring_doorbell();
  }

  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  static std::unique_ptr<std::byte, Free> zeroed(std::size_t length) {
    std::unique_ptr<std::byte, Free> bytes(static_cast<std::byte*>(std::aligned_alloc(kPage, length)));
    std::memset(bytes.get(), 0, length);
    return bytes;
  }

  const std::unique_ptr<std::byte, Free> memory;
  TcmuKernel<HardwareOrdering> kernel;
  TestServer server;
  std::map<std::uint64_t, std::pair<Bytes, Bytes>> data;

 private:
  std::uint64_t tag_ = 0;
};

std::vector<std::uint64_t> tags_of(const std::vector<InitiatorResult>& results) {
  std::vector<std::uint64_t> tags;
  for (const InitiatorResult& result : results) tags.push_back(result.tag);
  return tags;
}
using Tags = std::vector<std::uint64_t>;
using Ids = std::vector<std::uint16_t>;

// ---- Parts -----------------------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: numbers are given out lowest first, whatever the order in which they come back") {
  for (const std::uint32_t count : {1U, 63U, 64U, 65U, 200U}) {
    CAPTURE(count);
    LowestFirst numbers(count);
    std::set<std::uint32_t> free;
    for (std::uint32_t number = 0; number < count; ++number) free.insert(number);
    std::mt19937 random(count);
    std::vector<std::uint32_t> taken;
    for (int step = 0; step < 5000; ++step) {
      if (random() % 2 == 0) {
        const std::uint32_t number = numbers.take();
        CHECK(number == (free.empty() ? count : *free.begin()));
        if (free.erase(number) == 1) taken.push_back(number);
      } else if (!taken.empty()) {
        std::swap(taken[random() % taken.size()], taken.back());
        numbers.give_back(taken.back());
        free.insert(taken.back());
        taken.pop_back();
      }
      CHECK(numbers.free_count() == free.size());
    }
  }
}

TEST_CASE("tcmu kernel: counts the bytes of a CDB as the target core does") {
  struct Row {
    std::uint8_t opcode;
    std::uint32_t bytes;
  };
  for (const Row& row : {Row{0x00, 6}, Row{0x1f, 6}, Row{0x20, 10}, Row{0x5f, 10}, Row{0x60, 12}, Row{0x7e, 12},
                         Row{0x80, 16}, Row{0x9f, 16}, Row{0xa0, 12}, Row{0xbf, 12}, Row{0xc0, 10}, Row{0xff, 10}}) {
    CAPTURE(static_cast<int>(row.opcode));
    CHECK(target_cdb_bytes(cdb_of(row.opcode)) == row.bytes);
  }
  Bytes variable = cdb_of(0x7f, 32);
  variable[7] = std::byte{24};
  CHECK(target_cdb_bytes(variable) == 32);
  CHECK(target_cdb_bytes({}) == 6);
}

TEST_CASE("tcmu kernel: says what is wrong with its options") {
  CHECK_FALSE(complaint_about({}).has_value());
  CHECK_FALSE(complaint_about(small()).has_value());
  const auto complains_of = [](TcmuKernelOptions options, const char* name) {
    const auto complaint = complaint_about(options);
    REQUIRE(complaint.has_value());
    CHECK(std::string(complaint->name) == name);
  };
  complains_of({.ring_bytes = 0}, "ringBytes");
  complains_of({.ring_bytes = 6000}, "ringBytes");
  complains_of({.ring_bytes = 16U << 20}, "ringBytes");
  complains_of({.block_bytes = 0}, "blockBytes");
  complains_of({.block_bytes = 512}, "blockBytes");
  complains_of({.data_area_bytes = 0}, "dataAreaBytes");
  complains_of({.data_area_bytes = 3 * kPage, .block_bytes = 2 * kPage}, "dataAreaBytes");
  complains_of({.queue_full_timeout_ms = -2}, "queueFullTimeoutMs");
}

// ---- What lies in memory ---------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: the mailbox of a new device") {
  KernelUnderTest test;
  const TcmuMailbox& mailbox = *test.server.mailbox;
  CHECK(mailbox.version == 2);
  CHECK(mailbox.flags == 0xf);
  CHECK(mailbox.cmdr_off == 128);
  CHECK(mailbox.cmdr_size == kPage - 128);
  CHECK(mailbox.cmd_head == 0);
  CHECK(mailbox.cmd_tail == 0);
  CHECK(map_bytes_of({}) == 0x40800000);
}

TEST_CASE("tcmu kernel: an entry without data, its length by the CDB's") {
  KernelUnderTest test;
  const Bytes cdb = cdb_of(0x35);
  test.submit(cdb);
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries.size() == 1);
  CHECK(entries[0].offset == 0);
  CHECK(entries[0].bytes == 128);  // 112 and ten bytes rounded up
  CHECK(entries[0].opcode == kTcmuCommand);
  CHECK(entries[0].id == 1);
  CHECK(entries[0].data.empty());
  CHECK(entries[0].bidi.empty());
  CHECK(std::equal(cdb.begin(), cdb.end(), entries[0].cdb.begin()));
  CHECK(test.server.mailbox->cmd_head == 128);
  CHECK(test.kernel.event_count() == 1);
  test.submit(cdb_of(0x00, 6));
  test.submit(cdb_of(0x88, 16));
  const std::vector<ServerEntry> others = test.server.fetch();
  CHECK(others[0].bytes == 120);
  CHECK(others[1].bytes == 128);
  CHECK(others[1].offset == 248);
  CHECK(others[1].id == 3);
  CHECK(test.kernel.event_count() == 3);
}

TEST_CASE("tcmu kernel: a CDB that is shorter than its first byte says ends in zeros, a longer one is cut") {
  KernelUnderTest test;
  test.submit({std::byte{0x28}, std::byte{0xab}});
  test.submit(cdb_of(0x28, 40));
  const std::vector<ServerEntry> entries = test.server.fetch();
  CHECK(entries[0].cdb[1] == std::byte{0xab});
  CHECK(std::all_of(entries[0].cdb.begin() + 2, entries[0].cdb.end(), [](std::byte b) { return b == std::byte{0}; }));
  CHECK(entries[1].bytes == 128);
  CHECK(entries[1].cdb[9] == cdb_of(0x28, 40)[9]);
  CHECK(entries[1].cdb[10] == std::byte{0});
}

TEST_CASE("tcmu kernel: Data-Out lies in the data area, neighbouring blocks in one vector") {
  KernelUnderTest test;
  test.submit(cdb_of(0x2a), bytes_of(3 * kPage - 100, 5));
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries[0].data.size() == 1);
  CHECK(entries[0].data[0].iov_base == kPage);  // the data area begins behind the ring
  CHECK(entries[0].data[0].iov_len == 3 * kPage - 100);
  CHECK(test.server.read_data(entries[0].data) == bytes_of(3 * kPage - 100, 5));
  CHECK(test.kernel.free_block_count() == 13);
}

// Takes all blocks one by one, and gives back every second one.
void scatter_free_blocks(KernelUnderTest& test) {
  while (test.kernel.free_block_count() > 0) test.submit_write(1);
  const std::vector<ServerEntry> entries = test.server.fetch_commands();
  for (std::size_t index = 0; index < entries.size(); index += 2) test.server.complete(entries[index].id);
  test.ring();
  test.reap();
}

TEST_CASE("tcmu kernel: more than four vectors make the entry longer, each 16 bytes") {
  for (const std::size_t count : {3U, 4U, 5U, 6U, 8U}) {
    CAPTURE(count);
    KernelUnderTest test;
    scatter_free_blocks(test);
    REQUIRE(test.kernel.free_block_count() == 8);
    test.submit(cdb_of(0x2a), bytes_of(count * kPage, 9));
    const std::vector<ServerEntry> entries = test.server.fetch_commands();
    REQUIRE(entries.size() == 1);
    CHECK(entries[0].data.size() == count);
    CHECK(entries[0].bytes == std::max<std::size_t>(112, 48 + 16 * count) + 16);
    CHECK(test.server.read_data(entries[0].data) == bytes_of(count * kPage, 9));
    for (std::size_t index = 0; index < count; ++index) {
      CHECK(entries[0].data[index].iov_base == kPage + 2 * index * kPage);
    }
  }
}

TEST_CASE("tcmu kernel: blocks of several pages begin on a block's boundary") {
  KernelUnderTest test({.ring_bytes = kPage, .data_area_bytes = 8 * 4 * kPage, .block_bytes = 4 * kPage});
  test.submit_write(100);
  test.submit_write(4 * kPage + 1);
  const std::vector<ServerEntry> entries = test.server.fetch();
  CHECK(entries[0].data[0].iov_base == kPage);
  CHECK(entries[1].data[0].iov_base == 5 * kPage);
  CHECK(entries[1].data.size() == 1);
  CHECK(entries[1].data[0].iov_len == 4 * kPage + 1);
  CHECK(test.kernel.free_block_count() == 5);
}

TEST_CASE("tcmu kernel: a bidirectional command has vectors for each direction") {
  KernelUnderTest test;
  const std::uint64_t tag = test.submit(cdb_of(0x53), bytes_of(kPage + 10, 3), 600);
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries[0].data.size() == 1);
  REQUIRE(entries[0].bidi.size() == 1);  // never merged with the other direction's, though it is the next block
  CHECK(entries[0].bidi[0].iov_base == kPage + 2 * kPage);
  CHECK(entries[0].bidi[0].iov_len == 600);
  CHECK(test.server.read_data(entries[0].data) == bytes_of(kPage + 10, 3));
  test.server.write_data(entries[0].bidi, bytes_of(600, 8));
  const InitiatorResult result =
      test.answer(entries[0].id, {.uflags = kTcmuReadLengthValid, .read_len = 100});  // not for a command that writes
  CHECK(result.data_in_bytes == 600);
  CHECK(result.residual_bytes == 0);
  CHECK(test.data_in(tag) == bytes_of(600, 8));
}

TEST_CASE("tcmu kernel: of a bidirectional command it copies at most as much as its Data-Out is long") {
  KernelUnderTest test;
  const std::uint64_t tag = test.submit(cdb_of(0x53), bytes_of(512, 3), 600);
  const std::vector<ServerEntry> entries = test.server.fetch();
  test.server.write_data(entries[0].bidi, bytes_of(600, 8));
  CHECK(test.answer(entries[0].id, {}).data_in_bytes == 512);
  CHECK(test.data_in(tag)[511] == bytes_of(600, 8)[511]);
  CHECK(test.data_in(tag)[512] == std::byte{0xee});
}

TEST_CASE("tcmu kernel: the slot is zeroed before it is used anew") {
  KernelUnderTest test;
  for (int lap = 0; lap < 100; ++lap) {
    test.submit_test_unit_ready();
    for (const ServerEntry& entry : test.server.fetch_commands()) {
      CHECK(entry.data.empty());
      test.server.complete(entry.id, {.status = 0xff, .uflags = 0, .read_len = ~0U, .sense = bytes_of(96, 7)});
    }
    test.ring();
    test.reap();
  }
  CHECK(test.kernel.fault() == ServerFault::kNone);
}

// ---- Room ------------------------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: a PAD reaches to the ring's end and has a head update of its own") {
  KernelUnderTest test;  // 3968 bytes: 31 entries of 128
  for (int count = 0; count < 30; ++count) test.submit(cdb_of(0x35));
  for (const ServerEntry& entry : test.server.fetch()) test.server.complete(entry.id);
  test.ring();
  test.submit(cdb_of(0x00, 6));  // 120 bytes, up to 3960
  test.submit(cdb_of(0x35));
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries.size() == 3);
  CHECK(entries[0].offset == 3840);
  CHECK(entries[1].opcode == kTcmuPad);
  CHECK(entries[1].offset == 3960);
  CHECK(entries[1].bytes == 8);
  CHECK(entries[2].offset == 0);
  test.server.complete(entries[0].id);
  test.server.complete(entries[2].id);
  test.ring();
  CHECK(test.kernel.drained() == 128);
  CHECK(test.kernel.fault() == ServerFault::kNone);
}

TEST_CASE("tcmu kernel: an entry may end exactly at the ring's end, without a PAD") {
  KernelUnderTest test;
  for (int count = 0; count < 30; ++count) test.submit(cdb_of(0x35));
  for (const ServerEntry& entry : test.server.fetch()) test.server.complete(entry.id);
  test.ring();
  test.submit(cdb_of(0x35));
  CHECK(test.server.mailbox->cmd_head == 0);
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries.size() == 1);
  CHECK(entries[0].offset == 3840);
  test.server.complete(entries[0].id);
  CHECK(test.server.tail == 0);
  test.ring();
  CHECK(test.kernel.drained() == 0);
  CHECK(test.kernel.id_count() == 0);
}

TEST_CASE("tcmu kernel: counts room from what it drained, not from the tail, and keeps a byte free") {
  KernelUnderTest test;
  for (int count = 0; count < 30; ++count) test.submit(cdb_of(0x35));
  CHECK(test.kernel.held_back_count() == 0);
  test.submit(cdb_of(0x35));  // would fill the ring to the last byte
  CHECK(test.kernel.held_back_count() == 1);
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries.size() == 30);
  test.server.complete(entries[0].id);
  test.server.publish();
  test.submit(cdb_of(0x35));
  CHECK(test.kernel.held_back_count() == 2);  // the store of the tail freed nothing
  const std::uint64_t events = test.kernel.event_count();
  test.kernel.ring_doorbell();
  CHECK(test.kernel.held_back_count() == 1);
  CHECK(test.kernel.event_count() == events + 1);
  CHECK(tags_of(test.reap()) == Tags{1});
}

TEST_CASE("tcmu kernel: held-back commands keep their order, also when a later one would fit") {
  KernelUnderTest test(small(4));
  test.submit_write(3 * kPage);
  test.submit_write(2 * kPage);
  test.submit_write(1);
  test.submit_test_unit_ready();
  CHECK(test.kernel.held_back_count() == 3);
  std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries.size() == 1);
  test.server.complete(entries[0].id);
  test.ring();
  entries = test.server.fetch();
  REQUIRE(entries.size() == 3);
  CHECK(entries[0].data[0].iov_len == 2 * kPage);
  CHECK(entries[1].data[0].iov_len == 1);
  CHECK(entries[2].data.empty());
}

TEST_CASE("tcmu kernel: ids are the lowest free ones, blocks too, and both are used again at once") {
  KernelUnderTest test;
  for (int count = 0; count < 3; ++count) test.submit_write(kPage);
  const std::vector<ServerEntry> entries = test.server.fetch();
  CHECK(entries[2].id == 3);
  test.server.complete(2);
  test.ring();
  test.submit_write(kPage);
  const std::vector<ServerEntry> next = test.server.fetch();
  CHECK(next[0].id == 2);
  CHECK(next[0].data[0].iov_base == entries[1].data[0].iov_base);
}

TEST_CASE("tcmu kernel: refuses what can never fit with INVALID FIELD IN CDB") {
  KernelUnderTest test;
  test.submit_write(17 * kPage);
  const InitiatorResult too_much_data = test.reap_one();
  CHECK(too_much_data.status == kStatusCheckCondition);
  CHECK(sense_of(too_much_data) == kInvalidField);
  // 48 + 16 * 121 + 16 bytes are more than half of the ring.
  KernelUnderTest scattered({.ring_bytes = kPage, .data_area_bytes = 242 * kPage});
  while (scattered.kernel.free_block_count() > 0) {
    while (scattered.kernel.held_back_count() == 0 && scattered.kernel.free_block_count() > 0) {
      scattered.submit(cdb_of(0x2a), bytes_of(1, 1));
    }
    for (const ServerEntry& entry : scattered.server.fetch_commands()) {
      scattered.server.complete(entry.id, {.uflags = kTcmuBufferKept});
    }
    scattered.ring();
  }
  scattered.reap();
  for (std::uint16_t id = 1; id <= 242; id += 2) CHECK(scattered.kernel.free_kept_buffer(id) == 0);
  REQUIRE(scattered.kernel.free_block_count() == 121);
  scattered.submit_write(121 * kPage);
  const InitiatorResult too_long = scattered.reap_one();
  CHECK(sense_of(too_long) == kInvalidField);
  CHECK(scattered.kernel.free_block_count() == 121);
  CHECK(scattered.kernel.fault() == ServerFault::kNone);
}

TEST_CASE("tcmu kernel: when every id is taken a command gets TASK SET FULL") {
  KernelUnderTest test({.ring_bytes = kTcmuRingBytesMax, .data_area_bytes = kPage, .command_timeout_ms = 0});
  for (std::uint32_t count = 0; count < 65535; ++count) test.submit_test_unit_ready();
  CHECK(test.reap().empty());
  CHECK(test.kernel.id_count() == 65535);
  test.submit_test_unit_ready();
  CHECK(test.reap_one().status == kStatusTaskSetFull);
  CHECK(test.server.fetch().back().id == 65535);
  test.server.complete(65535);
  test.ring();
  CHECK(tags_of(test.reap()) == Tags{65535});
}

// ---- Answers ---------------------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: a read's data reaches its initiator in the drain") {
  KernelUnderTest test;
  const std::uint64_t tag = test.submit_read(5000);
  const std::vector<ServerEntry> entries = test.server.fetch();
  test.server.write_data(entries[0].data, bytes_of(5000, 4));
  test.server.complete(entries[0].id);
  test.server.publish();
  CHECK(test.data_in(tag) == Bytes(5000, std::byte{0xee}));
  CHECK(test.reap().empty());
  test.kernel.ring_doorbell();
  const InitiatorResult result = test.reap_one();
  CHECK(result.tag == tag);
  CHECK(result.status == kStatusGood);
  CHECK(result.data_in_bytes == 5000);
  CHECK(result.residual_bytes == 0);
  CHECK(test.data_in(tag) == bytes_of(5000, 4));
  CHECK(test.kernel.free_block_count() == 16);
}

TEST_CASE("tcmu kernel: what a server does not write of a read is what another command left there") {
  KernelUnderTest test;
  test.submit(cdb_of(0x2a), bytes_of(512, 77));
  test.answer(test.server.fetch()[0].id, {});
  const std::uint64_t tag = test.submit_read(512);
  test.answer(test.server.fetch()[0].id, {});
  CHECK(test.data_in(tag) == bytes_of(512, 77));
}

TEST_CASE("tcmu kernel: answers may come in any order, in whichever slots come first") {
  KernelUnderTest test;
  const Tags sent{test.submit_test_unit_ready(), test.submit_read(512), test.submit_write(9 * kPage)};
  const std::vector<ServerEntry> entries = test.server.fetch();
  test.server.write_data(entries[1].data, bytes_of(512, 2));
  test.server.complete(entries[2].id);
  test.server.complete(entries[0].id, {.status = kStatusBusy});
  test.server.complete(entries[1].id);
  test.ring();
  const std::vector<InitiatorResult> results = test.reap();
  CHECK(tags_of(results) == Tags{sent[2], sent[0], sent[1]});
  CHECK(results[1].status == kStatusBusy);
  CHECK(test.data_in(sent[1]) == bytes_of(512, 2));
  CHECK(test.kernel.drained() == test.kernel.head());
}

TEST_CASE("tcmu kernel: CHECK CONDITION brings 96 sense bytes and no data") {
  KernelUnderTest test;
  const std::uint64_t tag = test.submit_read(512);
  const Bytes sense = bytes_of(96, 6);
  const InitiatorResult result =
      test.answer(test.server.fetch()[0].id, {.status = kStatusCheckCondition, .sense = sense});
  CHECK(result.status == kStatusCheckCondition);
  CHECK(std::equal(sense.begin(), sense.end(), result.sense.begin(), result.sense.end()));
  CHECK(result.data_in_bytes == 0);
  CHECK(test.data_in(tag)[0] == std::byte{0xee});
  test.submit_test_unit_ready();
  const InitiatorResult good = test.answer(test.server.fetch()[0].id, {.sense = sense});
  CHECK(good.sense == SenseBytes{});
}

TEST_CASE("tcmu kernel: a short read leaves a residual, and 0 means the whole length") {
  struct Row {
    std::uint8_t status;
    std::uint8_t uflags;
    std::uint32_t read_len;
    std::uint32_t data_in_bytes;
    std::uint32_t residual_bytes;
  };
  constexpr std::uint8_t kValid = kTcmuReadLengthValid;
  for (const Row& row : {Row{kStatusGood, kValid, 100, 100, 412}, Row{kStatusGood, kValid, 512, 512, 0},
                         Row{kStatusGood, kValid, 9999, 512, 0}, Row{kStatusGood, kValid, 0, 512, 0},
                         Row{kStatusGood, 0, 100, 512, 0}, Row{kStatusCheckCondition, kValid, 100, 100, 412},
                         Row{kStatusCheckCondition, kValid, 0, 0, 0}, Row{kStatusCheckCondition, 0, 100, 0, 0}}) {
    CAPTURE(static_cast<int>(row.status));
    CAPTURE(static_cast<int>(row.uflags));
    CAPTURE(row.read_len);
    KernelUnderTest test;
    const std::uint64_t tag = test.submit_read(512);
    const std::vector<ServerEntry> entries = test.server.fetch();
    test.server.write_data(entries[0].data, bytes_of(512, 4));
    const TestServer::Answer answer{row.status, row.uflags, row.read_len, bytes_of(96, 6)};
    const InitiatorResult result = test.answer(entries[0].id, answer);
    CHECK(result.status == row.status);
    CHECK(result.data_in_bytes == row.data_in_bytes);
    CHECK(result.residual_bytes == row.residual_bytes);
    Bytes wanted = bytes_of(512, 4);
    std::fill(wanted.begin() + row.data_in_bytes, wanted.end(), std::byte{0xee});
    CHECK(test.data_in(tag) == wanted);
  }
}

TEST_CASE("tcmu kernel: a kernel without READ_LEN ignores the length") {
  TcmuKernelOptions options = small();
  options.flags = kTcmuOutOfOrder;
  KernelUnderTest test(options);
  CHECK(test.server.mailbox->flags == kTcmuOutOfOrder);
  test.submit_read(512);
  const InitiatorResult result =
      test.answer(test.server.fetch()[0].id, {.uflags = kTcmuReadLengthValid, .read_len = 100});
  CHECK(result.data_in_bytes == 512);
  CHECK(result.residual_bytes == 0);
}

TEST_CASE("tcmu kernel: UNKNOWN_OP on a command is 2/08/00, whatever sense comes with it") {
  KernelUnderTest test;
  test.submit_read(512);
  const InitiatorResult result =
      test.answer(test.server.fetch()[0].id, {.uflags = kTcmuUnknownOp, .sense = bytes_of(96, 6)});
  CHECK(result.status == kStatusCheckCondition);
  CHECK(sense_of(result) == kCommunicationFailure);
  CHECK(result.data_in_bytes == 0);
  CHECK(test.kernel.log_lines().size() == 1);
}

// The tail moves as soon as the kernel reads an entry.
struct MovingTail : HardwareOrdering {
  static inline TcmuMailbox* mailbox = nullptr;
  static inline std::uint32_t next_tail = 0;
  static void copy_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
    mailbox->cmd_tail = next_tail;
    HardwareOrdering::copy_relaxed(target, source, length_bytes);
  }
};

TEST_CASE("tcmu kernel: an answer that is published while another is drained rides along") {
  const auto memory = KernelUnderTest::zeroed(map_bytes_of(small()));
  TcmuKernel<MovingTail> kernel(memory.get(), small());
  TestServer server(memory.get());
  const Bytes cdb = cdb_of(0x00, 6);
  kernel.submit({1, cdb, {}, {}});
  kernel.submit({2, cdb, {}, {}});
  for (const ServerEntry& entry : server.fetch()) server.complete(entry.id);
  MovingTail::mailbox = server.mailbox;
  MovingTail::next_tail = server.tail;
  server.mailbox->cmd_tail = 120;
  kernel.ring_doorbell();
  CHECK(kernel.drained() == 240);
}

// ---- Signals ---------------------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: while plugged the head moves and nothing signals; unplugging signals once") {
  KernelUnderTest test;
  test.kernel.plug();
  for (int count = 0; count < 5; ++count) test.submit_test_unit_ready();
  CHECK(test.kernel.event_count() == 0);
  CHECK(test.server.fetch().size() == 5);
  test.kernel.unplug();
  CHECK(test.kernel.event_count() == 1);
  test.submit_test_unit_ready();
  CHECK(test.kernel.event_count() == 2);
}

TEST_CASE("tcmu kernel: a doorbell with nothing published does nothing") {
  KernelUnderTest test;
  test.submit_test_unit_ready();
  test.kernel.ring_doorbell();
  CHECK(test.kernel.doorbell_count() == 1);
  CHECK(test.reap().empty());
  CHECK(test.kernel.id_count() == 1);
}

// ---- Time ------------------------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: a command past its time ends with 2/08/00, and its slot waits for the server") {
  TcmuKernelOptions options = small();
  options.command_timeout_ms = 2000;
  KernelUnderTest test(options);
  const std::uint64_t tag = test.submit_read(512);
  const std::vector<ServerEntry> entries = test.server.fetch();
  test.kernel.advance(1999);
  CHECK(test.reap().empty());
  test.kernel.advance(1);
  const InitiatorResult result = test.reap_one();
  CHECK(result.tag == tag);
  CHECK(sense_of(result) == kCommunicationFailure);
  CHECK(test.kernel.id_count() == 1);
  CHECK(test.kernel.free_block_count() == 15);
  test.kernel.advance(100'000);
  CHECK(test.reap().empty());  // once
  test.server.write_data(entries[0].data, bytes_of(512, 4));
  test.server.complete(entries[0].id);
  test.ring();
  CHECK(test.reap().empty());
  CHECK(test.data_in(tag)[0] == std::byte{0xee});  // the initiator's memory is its own again
  CHECK(test.kernel.id_count() == 0);
  CHECK(test.kernel.free_block_count() == 16);
  CHECK(test.kernel.fault() == ServerFault::kNone);
}

TEST_CASE("tcmu kernel: without a timeout a command waits for ever") {
  TcmuKernelOptions options = small();
  options.command_timeout_ms = 0;
  KernelUnderTest test(options);
  test.submit_test_unit_ready();
  test.kernel.advance(1'000'000'000);
  CHECK(test.reap().empty());
}

TEST_CASE("tcmu kernel: a held-back command past its time gets TASK SET FULL") {
  struct Row {
    std::uint64_t command_timeout_ms;
    std::int64_t queue_full_timeout_ms;
    std::uint64_t wait_ms;
  };
  for (const Row& row : {Row{2000, -1, 2000}, Row{0, -1, 30'000}, Row{2000, 500, 500}, Row{0, 500, 500}}) {
    CAPTURE(row.wait_ms);
    TcmuKernelOptions options = small(1);
    options.command_timeout_ms = row.command_timeout_ms;
    options.queue_full_timeout_ms = row.queue_full_timeout_ms;
    KernelUnderTest test(options);
    test.submit_write(1);
    const std::uint64_t tag = test.submit_write(1);
    test.kernel.advance(row.wait_ms - 1);
    CHECK(test.kernel.held_back_count() == 1);
    test.kernel.advance(1);
    CHECK(test.kernel.held_back_count() == 0);
    const std::vector<InitiatorResult> results = test.reap();
    CHECK(results.back().tag == tag);
    CHECK(results.back().status == kStatusTaskSetFull);
  }
}

TEST_CASE("tcmu kernel: with a queue timeout of 0 nothing is held back") {
  TcmuKernelOptions options = small(1);
  options.queue_full_timeout_ms = 0;
  KernelUnderTest test(options);
  test.submit_write(1);
  test.submit_write(1);
  CHECK(test.reap_one().status == kStatusTaskSetFull);
  CHECK(test.kernel.held_back_count() == 0);
}

// ---- Task management -------------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: a LUN reset names every command, and ends when the server completed each of them") {
  KernelUnderTest test;
  const Tags sent{test.submit_test_unit_ready(), test.submit_read(512), test.submit_test_unit_ready()};
  test.kernel.lun_reset(70);
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries.size() == 4);
  CHECK(entries[3].opcode == kTcmuTmr);
  CHECK(entries[3].id == 0);
  CHECK(entries[3].bytes == 40);  // 32 and three ids, rounded up
  CHECK(entries[3].tmr_type == 5);
  CHECK(entries[3].tmr_ids == Ids{1, 2, 3});
  test.server.complete(2);
  test.server.complete(1, {.status = kStatusBusy});
  test.ring();
  CHECK(test.reap_tmrs().empty());
  const std::vector<InitiatorResult> results = test.reap();
  CHECK(tags_of(results) == Tags{sent[1], sent[0]});
  // Whatever the server said.
  for (const InitiatorResult& result : results) CHECK(result.status == kStatusTaskAborted);
  test.server.complete(3);
  test.ring();
  CHECK(tags_of(test.reap()) == Tags{sent[2]});
  const std::vector<TmrResult> tmrs = test.reap_tmrs();
  REQUIRE(tmrs.size() == 1);
  CHECK(tmrs[0].number == 70);
  CHECK(tmrs[0].response == TmrResponse::kFunctionComplete);
  CHECK(test.kernel.drained() == test.kernel.head());  // the TMR's slot needed no answer
}

TEST_CASE("tcmu kernel: a LUN reset with nothing in flight is an entry without ids, and ends at once") {
  KernelUnderTest test;
  test.kernel.lun_reset(1);
  const std::vector<ServerEntry> entries = test.server.fetch();
  REQUIRE(entries.size() == 1);
  CHECK(entries[0].bytes == 32);
  CHECK(entries[0].tmr_ids.empty());
  CHECK(test.reap_tmrs().size() == 1);
}

TEST_CASE("tcmu kernel: aborting a task names that one; an unknown task does not exist") {
  KernelUnderTest test;
  test.submit_test_unit_ready();
  const std::uint64_t tag = test.submit_test_unit_ready();
  test.kernel.plug();
  const std::uint64_t events = test.kernel.event_count();
  test.kernel.abort_task(8, tag);
  CHECK(test.kernel.event_count() == events + 1);  // also while plugged
  test.kernel.unplug();
  std::vector<ServerEntry> entries = test.server.fetch();
  CHECK(entries[2].tmr_type == 1);
  CHECK(entries[2].tmr_ids == Ids{2});
  CHECK(test.reap_tmrs().empty());
  test.server.complete(2);
  test.ring();
  CHECK(test.reap_tmrs().size() == 1);
  test.kernel.abort_task(9, tag);
  entries = test.server.fetch();
  CHECK(entries[0].tmr_ids.empty());
  const std::vector<TmrResult> tmrs = test.reap_tmrs();
  REQUIRE(tmrs.size() == 1);
  CHECK(tmrs[0].response == TmrResponse::kTaskDoesNotExist);
}

TEST_CASE("tcmu kernel: an aborted command that was held back ends at once") {
  for (const bool notifies : {true, false}) {
    TcmuKernelOptions options = small(1);
    options.tmr_notification = notifies;
    KernelUnderTest test(options);
    test.submit_write(1);
    const std::uint64_t held_back = test.submit_write(1);
    test.kernel.abort_task(3, held_back);
    const InitiatorResult result = test.reap_one();
    CHECK(result.tag == held_back);
    CHECK(result.status == kStatusTaskAborted);
    CHECK(test.reap_tmrs().size() == 1);
    CHECK(test.server.fetch().size() == (notifies ? 2 : 1));
  }
}

TEST_CASE("tcmu kernel: without notification an abort still waits for the server") {
  KernelUnderTest test;
  test.kernel.notify_of_task_management(false);
  test.submit_test_unit_ready();
  test.kernel.lun_reset(1);
  CHECK(test.server.fetch().size() == 1);
  CHECK(test.reap_tmrs().empty());
  test.server.complete(1);
  test.ring();
  CHECK(test.reap_tmrs().size() == 1);
}

TEST_CASE("tcmu kernel: a kernel without TMR entries makes none") {
  TcmuKernelOptions options = small();
  options.flags = kTcmuOutOfOrder | kTcmuReadLength | kTcmuKeepBuffer;
  KernelUnderTest test(options);
  test.kernel.lun_reset(1);
  CHECK(test.server.fetch().empty());
}

TEST_CASE("tcmu kernel: a command that was aborted and then times out ends its task management too") {
  KernelUnderTest test;
  test.submit_test_unit_ready();
  test.kernel.lun_reset(1);
  test.kernel.advance(30'000);
  CHECK(test.reap_one().status == kStatusTaskAborted);
  CHECK(test.reap_tmrs().size() == 1);
  test.server.fetch();
  test.server.complete(1);  // late, and harmless
  test.ring();
  CHECK(test.kernel.fault() == ServerFault::kNone);
}

TEST_CASE("tcmu kernel: task management without room waits, and comes before commands that were held back") {
  KernelUnderTest test;
  for (int count = 0; count < 33; ++count) test.submit(cdb_of(0x35));
  CHECK(test.kernel.held_back_count() == 3);
  for (std::uint64_t tag = 1; tag <= 3; ++tag) test.kernel.abort_task(tag, tag);
  CHECK(test.kernel.waiting_tmr_count() == 0);  // three of 40 bytes found room
  test.kernel.abort_task(4, 4);
  test.kernel.abort_task(5, 5);
  CHECK(test.kernel.waiting_tmr_count() == 2);
  CHECK(test.server.fetch_commands().size() == 30);
  test.server.complete(1);
  test.ring();
  CHECK(test.kernel.waiting_tmr_count() == 0);
  CHECK(test.kernel.held_back_count() == 3);  // the room went to them
  std::vector<ServerEntry> entries = test.server.fetch();
  entries.erase(entries.begin());  // a PAD at the end of the ring
  REQUIRE(entries.size() == 2);
  CHECK(entries[0].tmr_ids == Ids{4});
  CHECK(entries[1].tmr_ids == Ids{5});
  test.server.complete(2);
  test.ring();
  CHECK(test.kernel.held_back_count() == 2);
}

TEST_CASE("tcmu kernel: while task management waits for room, a freed buffer brings no command in front of it") {
  KernelUnderTest test;
  test.submit_write(1);
  test.server.fetch();
  test.answer(1, {.uflags = kTcmuBufferKept});
  for (int count = 0; count < 31; ++count) test.submit(cdb_of(0x35));
  for (std::uint64_t number = 0; number < 4; ++number) test.kernel.lun_reset(number);
  REQUIRE(test.kernel.waiting_tmr_count() > 0);
  const std::uint32_t head = test.kernel.head();
  CHECK(test.kernel.free_kept_buffer(1) == 0);
  CHECK(test.kernel.head() == head);
}

// ---- Keeping buffers -------------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: a kept buffer ends the command, and holds its id and blocks until it is freed") {
  KernelUnderTest test(small(1));
  const std::uint64_t tag = test.submit(cdb_of(0x2a), bytes_of(100, 5));
  const std::vector<ServerEntry> entries = test.server.fetch();
  CHECK(test.answer(1, {.uflags = kTcmuBufferKept}).tag == tag);
  CHECK(test.kernel.id_count() == 1);
  test.submit_test_unit_ready();
  CHECK(test.server.fetch()[0].id == 2);
  test.submit_write(1);
  CHECK(test.kernel.held_back_count() == 1);
  CHECK(test.server.read_data(entries[0].data) == bytes_of(100, 5));
  CHECK(test.kernel.free_kept_buffer(2) == EINVAL);  // in flight
  CHECK(test.kernel.free_kept_buffer(3) == EINVAL);  // unknown
  CHECK(test.kernel.free_kept_buffer(0) == EINVAL);
  CHECK(test.kernel.free_kept_buffer(1) == 0);
  CHECK(test.kernel.held_back_count() == 0);  // freeing it made room
  CHECK(test.server.fetch()[0].id == 1);
  CHECK(test.kernel.free_kept_buffer(1) == EINVAL);
}

TEST_CASE("tcmu kernel: a late answer may keep the buffer of a command that timed out") {
  KernelUnderTest test;
  test.submit_write(1);
  test.server.fetch();
  test.kernel.advance(30'000);
  CHECK(test.reap().size() == 1);
  test.server.complete(1, {.uflags = kTcmuBufferKept});
  test.ring();
  CHECK(test.reap().empty());
  CHECK(test.kernel.free_kept_buffer(1) == 0);
}

TEST_CASE("tcmu kernel: closing the device frees what was kept") {
  KernelUnderTest test(small(1));
  test.submit_write(1);
  test.server.fetch();
  test.answer(1, {.uflags = kTcmuBufferKept});
  test.submit_write(1);
  CHECK(test.kernel.held_back_count() == 1);
  test.kernel.release();
  CHECK(test.kernel.held_back_count() == 0);
}

TEST_CASE("tcmu kernel: a kernel without KEEP_BUF frees at once") {
  TcmuKernelOptions options = small();
  options.flags = kTcmuOutOfOrder;
  KernelUnderTest test(options);
  test.submit_write(1);
  test.server.fetch();
  test.answer(1, {.uflags = kTcmuBufferKept});
  CHECK(test.kernel.id_count() == 0);
  CHECK(test.kernel.free_block_count() == 16);
}

// ---- Blocking and resetting ------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: a blocked device answers BUSY, and goes on with what is on the ring") {
  KernelUnderTest test(small(1));
  const Tags sent{test.submit_write(1), test.submit_write(1)};
  test.server.fetch();
  test.server.complete(1);
  test.server.publish();
  test.kernel.block();
  CHECK(test.kernel.is_blocked());
  std::vector<InitiatorResult> results = test.reap();
  REQUIRE(tags_of(results) == sent);  // what was published was drained, what was held back failed
  CHECK(results[0].status == kStatusGood);
  CHECK(results[1].status == kStatusBusy);
  test.submit_test_unit_ready();
  CHECK(test.reap_one().status == kStatusBusy);
  test.kernel.unblock();
  test.submit_test_unit_ready();
  CHECK(test.server.fetch().size() == 1);
}

TEST_CASE("tcmu kernel: resetting the ring ends everything and begins anew") {
  for (const std::uint32_t level : {1U, 2U}) {
    CAPTURE(level);
    KernelUnderTest test(small(2));
    test.submit_write(1);
    test.server.fetch();
    test.answer(1, {.uflags = kTcmuBufferKept});
    test.submit_test_unit_ready();
    test.kernel.advance(30'000);
    test.reap();
    test.submit_test_unit_ready();
    test.submit_write(2 * kPage);
    test.kernel.lun_reset(5);
    test.submit_write(2 * kPage);
    test.reap();
    CHECK(test.kernel.id_count() == 3);
    CHECK(test.kernel.reset_ring(level) == 0);
    CHECK(test.server.mailbox->cmd_tail == 0);
    const InitiatorResult aborted = test.reap_one();
    CHECK(aborted.status == kStatusTaskAborted);
    CHECK(test.reap_tmrs().size() == 1);
    // What was held back came onto the new ring.
    TestServer server(test.memory.get());
    const std::vector<ServerEntry> entries = server.fetch();
    REQUIRE(entries.size() == 1);
    CHECK(entries[0].id == 1);
    CHECK(entries[0].offset == 0);
    CHECK(test.kernel.reset_ring(level) == 0);
    const InitiatorResult reset = test.reap_one();
    CHECK(reset.status == (level == 1 ? kStatusBusy : kStatusCheckCondition));
    CHECK(sense_of(reset) == (level == 1 ? Sense{0, 0, 0} : kCommunicationFailure));
    CHECK(test.kernel.id_count() == 0);
    CHECK(test.kernel.free_block_count() == 2);
  }
  KernelUnderTest test;
  CHECK(test.kernel.reset_ring(0) == EINVAL);
  CHECK(test.kernel.reset_ring(3) == EINVAL);
}

// ---- Servers that are wrong ------------------------------------------------------------------------------------

TEST_CASE("tcmu kernel: an id that is not in flight breaks the ring, with the kernel's words") {
  const auto breaks = [](auto misbehave, const char* first_line) {
    KernelUnderTest test;
    test.submit_read(512);
    test.submit_read(512);
    test.server.fetch();
    misbehave(test);
    CHECK(test.kernel.is_broken());
    CHECK(test.kernel.fault() == ServerFault::kCommandId);
    REQUIRE(test.kernel.log_lines().size() == 1);
    CHECK(test.kernel.log_lines()[0] == first_line);
    test.reap();
    test.kernel.ring_doorbell();
    CHECK(test.kernel.log_lines().back() == "ring broken, not handling completions");
    test.submit_test_unit_ready();
    const InitiatorResult refused = test.reap_one();
    CHECK(refused.status == kStatusCheckCondition);
    CHECK(sense_of(refused) == kCommunicationFailure);
    // Nothing more is known of the others until they time out.
    test.kernel.advance(30'000);
    CHECK(test.reap().size() == test.kernel.id_count());
    CHECK(test.kernel.reset_ring(1) == 0);
    CHECK_FALSE(test.kernel.is_broken());
    CHECK(test.kernel.fault() == ServerFault::kCommandId);
    test.server = TestServer(test.memory.get());
    test.submit_test_unit_ready();
    test.server.fetch();
    CHECK(test.answer(1, {}).status == kStatusGood);
  };
  breaks([](KernelUnderTest& test) { test.server.complete(7), test.ring(); }, "cmd_id 7 not found, ring is broken");
  breaks([](KernelUnderTest& test) { test.server.complete(0), test.ring(); }, "cmd_id 0 not found, ring is broken");
  breaks([](KernelUnderTest& test) { test.server.complete(1), test.server.complete(1), test.ring(); },
         "cmd_id 1 not found, ring is broken");
  breaks(
      [](KernelUnderTest& test) {
        test.server.complete(2);
        test.ring();
        test.server.complete(2);
        test.ring();
      },
      "cmd_id 2 not found, ring is broken");
}

TEST_CASE("tcmu kernel: completing a command again whose buffer is kept breaks the ring") {
  KernelUnderTest test;
  test.submit_write(1);
  test.submit_test_unit_ready();
  test.server.fetch();
  test.answer(1, {.uflags = kTcmuBufferKept});
  test.server.complete(1);
  test.ring();
  CHECK(test.kernel.is_broken());
  CHECK(test.kernel.fault() == ServerFault::kKeptTwice);
  CHECK(test.kernel.log_lines()[0] == "cmd_id 1 already completed with KEEP_BUF, ring is broken");
}

TEST_CASE("tcmu kernel: a forgotten command keeps its id, and the tail can only come as far as there are answers") {
  KernelUnderTest test;
  for (int count = 0; count < 3; ++count) test.submit_test_unit_ready();
  test.server.fetch();
  test.server.complete(3);
  test.server.complete(1);
  test.ring();
  CHECK(test.kernel.id_count() == 1);
  CHECK(test.kernel.drained() != test.kernel.head());
  CHECK(test.kernel.fault() == ServerFault::kNone);
  // Moving the tail over the last slot without an answer shows the command that was there: one that is over.
  test.server.mailbox->cmd_tail = test.kernel.head();
  test.kernel.ring_doorbell();
  CHECK(test.kernel.fault() == ServerFault::kCommandId);
}

TEST_CASE("tcmu kernel: a tail where none can be is told, and not followed for ever") {
  struct Row {
    std::uint32_t tail;
    ServerFault fault;
  };
  for (const Row& row : {Row{8, ServerFault::kTailBoundary}, Row{112, ServerFault::kTailBoundary},
                         Row{120 + 8, ServerFault::kTailBoundary}, Row{4, ServerFault::kTailRange},
                         Row{3 * 120, ServerFault::kTailRange}, Row{kPage - 128, ServerFault::kTailRange},
                         Row{0xffff'fff8, ServerFault::kTailRange}}) {
    CAPTURE(row.tail);
    KernelUnderTest test;
    test.submit_test_unit_ready();
    test.submit_test_unit_ready();
    for (const ServerEntry& entry : test.server.fetch()) test.server.complete(entry.id);
    test.server.mailbox->cmd_tail = row.tail;
    test.kernel.ring_doorbell();
    CHECK(test.kernel.fault() == row.fault);
    CHECK(test.kernel.is_broken());
    CHECK(test.kernel.log_lines().size() == 1);
  }
  // Going back: what was drained is not on the ring any more.
  KernelUnderTest test;
  test.submit_test_unit_ready();
  test.server.fetch();
  test.answer(1, {});
  test.server.mailbox->cmd_tail = 0;
  test.kernel.ring_doorbell();
  CHECK(test.kernel.fault() == ServerFault::kTailRange);
}

TEST_CASE("tcmu kernel: a changed len_op is told, and not followed for ever") {
  for (const std::uint32_t len_op :
       {0U, 120U | kTcmuPad, 120U | kTcmuTmr, 128U | kTcmuCommand, 112U | kTcmuCommand}) {
    CAPTURE(len_op);
    KernelUnderTest test;
    test.submit_test_unit_ready();
    test.server.fetch();
    test.server.complete(1);
    std::memcpy(test.memory.get() + 128, &len_op, sizeof(len_op));
    test.ring();
    CHECK(test.kernel.fault() == ServerFault::kEntryLength);
    CHECK(test.reap().empty());
  }
}

TEST_CASE("tcmu kernel: without OOOC the order is checked") {
  TcmuKernelOptions options = small();
  options.flags = 0;
  KernelUnderTest in_order(options);
  in_order.submit_test_unit_ready();
  in_order.submit_test_unit_ready();
  in_order.server.fetch();
  in_order.server.complete(1);
  in_order.server.complete(2);
  in_order.ring();
  CHECK(in_order.reap().size() == 2);
  CHECK(in_order.kernel.fault() == ServerFault::kNone);
  KernelUnderTest out_of_order(options);
  out_of_order.submit_test_unit_ready();
  out_of_order.submit_test_unit_ready();
  out_of_order.server.fetch();
  out_of_order.server.complete(2);
  out_of_order.ring();
  CHECK(out_of_order.kernel.fault() == ServerFault::kOrder);
}

// ---- Entries that no kernel of today makes ---------------------------------------------------------------------

TEST_CASE("tcmu kernel: an entry of an unknown opcode may be passed by those who say so") {
  for (const std::uint32_t opcode : {3U, 5U, 7U}) {
    CAPTURE(opcode);
    KernelUnderTest test;
    test.submit_test_unit_ready();
    CHECK(test.kernel.put_entry(opcode, bytes_of(20, 1)));
    test.submit_test_unit_ready();
    const std::vector<ServerEntry> entries = test.server.fetch();
    CHECK(entries[1].opcode == opcode);
    CHECK(entries[1].bytes == 32);
    test.server.complete(2);
    test.server.complete(1);
    test.ring();
    CHECK(test.reap().size() == 2);
    CHECK(test.kernel.fault() == ServerFault::kNone);

    KernelUnderTest silent;
    CHECK(silent.kernel.put_entry(opcode, {}));
    silent.server.mailbox->cmd_tail = 8;
    silent.kernel.ring_doorbell();
    CHECK(silent.kernel.fault() == ServerFault::kUnknownOpcode);
  }
  KernelUnderTest full;
  CHECK_FALSE(full.kernel.put_entry(3, Bytes(kPage)));
}

TEST_CASE("tcmu kernel: hand-made entries are drained by their own lengths") {
  KernelUnderTest test;
  const auto put = [&](std::uint32_t offset, std::uint32_t len_op) {
    std::memcpy(test.memory.get() + 128 + offset, &len_op, sizeof(len_op));
  };
  put(0, 16U | kTcmuPad);
  put(16, 40U | kTcmuTmr);
  test.kernel.publish_head(56);
  CHECK(test.kernel.event_count() == 1);
  test.submit_test_unit_ready();
  CHECK(test.server.fetch().size() == 3);
  test.server.complete(1);
  test.ring();
  CHECK(test.reap().size() == 1);
  CHECK(test.kernel.drained() == 176);
  put(176, 0);
  test.kernel.publish_head(192);
  test.server.mailbox->cmd_tail = 192;
  test.kernel.ring_doorbell();
  CHECK(test.kernel.fault() == ServerFault::kEntryLength);
}

TEST_CASE("tcmu kernel: a head of any value is survived") {
  for (const std::uint32_t head : {4U, 12U, kPage - 128, 0xffff'ffffU, kPage - 128 - 4}) {
    CAPTURE(head);
    KernelUnderTest test;
    test.submit_test_unit_ready();
    test.kernel.publish_head(head);
    CHECK(test.server.mailbox->cmd_head == head);
    for (int count = 0; count < 40; ++count) test.submit_read(512);
    for (const std::uint32_t tail : {8U, 120U, 240U, 4U}) {
      test.server.mailbox->cmd_tail = tail;
      test.kernel.ring_doorbell();
    }
    CHECK(test.kernel.reset_ring(1) == 0);
    test.reap();
    test.server = TestServer(test.memory.get());
    test.server.fetch();
    CHECK(test.kernel.id_count() + test.kernel.held_back_count() > 0);
  }
}

// ---- Histories -------------------------------------------------------------------------------------------------

// Commands of every size and direction, aborts, resets, kept buffers and time, against a server that answers in any
// order. Every command must have exactly one result, with the data that was meant for it, and nothing may leak.
void run_history(std::uint32_t seed, std::uint32_t step_count) {
  std::mt19937 random(seed);
  const auto below = [&](std::uint32_t limit) { return static_cast<std::uint32_t>(random() % limit); };
  KernelUnderTest test({.ring_bytes = kPage * (1 + below(3)),
                        .data_area_bytes = std::uint64_t{8 + below(40)} * kPage,
                        .block_bytes = kPage,
                        .command_timeout_ms = 1000});
  std::map<std::uint64_t, bool> expected;  // by tag: has a result
  std::map<std::uint16_t, ServerEntry> served;
  std::map<std::uint64_t, Bytes> read_data;
  std::set<std::uint16_t> kept;
  std::uint64_t tmr_count = 0;
  std::uint64_t tmrs_ended = 0;
  const auto reap = [&] {
    for (const InitiatorResult& result : test.reap()) {
      REQUIRE(expected.count(result.tag) == 1);
      CHECK_FALSE(expected[result.tag]);
      expected[result.tag] = true;
      if (result.status != kStatusGood || result.data_in_bytes == 0) continue;
      const Bytes& data = test.data_in(result.tag);
      CHECK(std::equal(data.begin(), data.begin() + result.data_in_bytes, bytes_of(data.size(), 200).begin()));
      CHECK(result.data_in_bytes + result.residual_bytes == data.size());
    }
    tmrs_ended += test.reap_tmrs().size();
  };
  const auto fetch = [&] {
    for (const ServerEntry& entry : test.server.fetch()) {
      if (entry.opcode != kTcmuCommand) continue;
      CHECK(served.count(entry.id) == 0);
      CHECK(kept.count(entry.id) == 0);
      // Data-Out is the pattern that was sent; a read's buffer gets its own.
      if (entry.cdb[0] == std::byte{0x2a}) {
        const Bytes data = test.server.read_data(entry.data);
        CHECK(data == bytes_of(data.size(), 1));
      } else if (entry.cdb[0] == std::byte{0x28}) {
        std::size_t length = 0;
        for (const TcmuIovec& vector : entry.data) length += vector.iov_len;
        test.server.write_data(entry.data, bytes_of(length, 200));
      }
      served[entry.id] = entry;
    }
  };
  const auto complete_one = [&] {
    if (served.empty()) return;
    auto chosen = served.begin();
    std::advance(chosen, below(static_cast<std::uint32_t>(served.size())));
    const std::uint16_t id = chosen->first;
    served.erase(chosen);
    TestServer::Answer answer;
    if (below(8) == 0) answer = {.status = kStatusCheckCondition, .sense = bytes_of(96, 3)};
    if (below(8) == 0) {
      answer.uflags |= kTcmuReadLengthValid;
      answer.read_len = below(3 * kPage);
    }
    if (below(16) == 0) {
      answer.uflags |= kTcmuBufferKept;
      kept.insert(id);
    }
    test.server.complete(id, answer);
  };
  for (std::uint32_t step = 0; step < step_count; ++step) {
    switch (below(12)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        const std::uint32_t kind = below(3);
        const std::size_t length = 1 + below(5 * kPage);
        expected[kind == 0   ? test.submit_test_unit_ready()
                 : kind == 1 ? test.submit_read(length)
                             : test.submit_write(length)] = false;
        break;
      }
      case 4:
      case 5:
        fetch();
        break;
      case 6:
      case 7:
      case 8:
        fetch();
        complete_one();
        if (below(3) != 0) test.ring();
        break;
      case 9:
        reap();
        if (!kept.empty() && below(2) == 0) {
          test.ring();
          CHECK(test.kernel.free_kept_buffer(*kept.begin()) == 0);
          kept.erase(kept.begin());
        }
        break;
      case 10:
        test.kernel.advance(below(200));
        break;
      case 11:
        if (below(20) == 0) test.kernel.lun_reset(++tmr_count);
        else test.kernel.abort_task(++tmr_count, 1 + below(static_cast<std::uint32_t>(expected.size()) + 1));
        break;
    }
    REQUIRE(test.kernel.fault() == ServerFault::kNone);
  }
  // To the end: everything is answered and freed.
  for (std::uint32_t round = 0; round < 100'000; ++round) {
    test.ring();
    for (const std::uint16_t id : std::exchange(kept, {})) CHECK(test.kernel.free_kept_buffer(id) == 0);
    fetch();
    if (served.empty() && test.kernel.held_back_count() == 0) break;
    while (!served.empty()) complete_one();
  }
  reap();
  CHECK(std::all_of(expected.begin(), expected.end(), [](const auto& entry) { return entry.second; }));
  CHECK(tmrs_ended == tmr_count);
  CHECK(test.kernel.id_count() == 0);
  CHECK(test.kernel.held_back_count() == 0);
  CHECK(test.kernel.waiting_tmr_count() == 0);
  CHECK(test.kernel.fault() == ServerFault::kNone);
}

TEST_CASE("tcmu kernel: in random histories every command has exactly one result and nothing leaks") {
  const std::uint32_t seed = std::random_device{}();
  MESSAGE("seed " << seed);
  CAPTURE(seed);
  for (std::uint32_t history = 0; history < 40; ++history) run_history(seed + history, 2500);
}

}  // namespace
}  // namespace hushring::test
