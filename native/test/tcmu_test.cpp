// The server's half of the TCMU ring: what it takes, what it answers and where, and what it refuses.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>

#include "test_ring.h"

namespace hushring::test {
namespace {

std::int32_t minus(Fault fault) { return -static_cast<std::int32_t>(fault); }

std::uint8_t byte(const std::byte* where) { return std::to_integer<std::uint8_t>(*where); }

// The place of `offset` in the data area, counted from the start of the mapping as iovecs count.
std::uint64_t data_at(const RingScript& script, std::uint64_t offset) { return script.data_offset() + offset; }

// ---- Starting and stopping ----

TEST_CASE("tcmu: refuses a mailbox of another version or with a ring that does not fit, and runs over a good one") {
  struct Malformation {
    const char* name;
    void (*apply)(TcmuMailbox& mailbox, std::size_t map_bytes);
  };
  constexpr Malformation kMalformations[] = {
      {"version 0", [](TcmuMailbox& mailbox, std::size_t) { mailbox.version = 0; }},
      {"version 1", [](TcmuMailbox& mailbox, std::size_t) { mailbox.version = 1; }},
      {"version 3", [](TcmuMailbox& mailbox, std::size_t) { mailbox.version = 3; }},
      {"the ring begins in the mailbox", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmdr_off = 120; }},
      {"the ring is not aligned", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmdr_off = 132; }},
      {"the ring begins at the end",
       [](TcmuMailbox& mailbox, std::size_t bytes) { mailbox.cmdr_off = static_cast<std::uint32_t>(bytes); }},
      {"the end of the ring wraps 2^32", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmdr_off = 0xffff'fff8; }},
      {"a ring of 0 bytes", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmdr_size = 0; }},
      {"a ring too small for a command", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmdr_size = 216; }},
      {"a ring of no multiple of 8", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmdr_size = 1004; }},
      {"a ring that ends behind the mapping",
       [](TcmuMailbox& mailbox, std::size_t bytes) {
         mailbox.cmdr_size = static_cast<std::uint32_t>(bytes - kRingOffset + 8);
       }},
      {"a tail at the end of the ring", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmd_tail = 1000; }},
      {"a tail between entries", [](TcmuMailbox& mailbox, std::size_t) { mailbox.cmd_tail = 12; }},
  };
  for (const Malformation& malformation : kMalformations) {
    CAPTURE(malformation.name);
    TestRing<> ring;
    REQUIRE(ring.start_fault == Fault::kNone);
    ring.script.command({.id = 1});
    ring.script.publish();
    const TcmuMailbox good = ring.script.mailbox();
    malformation.apply(ring.script.mailbox(), ring.script.map_bytes());
    CHECK(ring.device.start(ring.script.map(), ring.script.map_bytes()) == Fault::kTcmuMailbox);
    CHECK_FALSE(ring.device.running());
    CHECK(ring.device.take(1) == 0);
    CHECK_FALSE(ring.device.publish());
    CHECK_FALSE(ring.device.sees_entry());
    ring.script.mailbox() = good;
    REQUIRE(ring.device.start(ring.script.map(), ring.script.map_bytes()) == Fault::kNone);
    CHECK(ring.device.take(1) == 1);
  }
}

TEST_CASE("tcmu: refuses a mapping that is none, is misaligned, or ends before the ring does") {
  TestRing<> ring;
  CHECK(ring.device.start(nullptr, ring.script.map_bytes()) == Fault::kTcmuMailbox);
  CHECK(ring.device.start(ring.script.map() + 8, ring.script.map_bytes() - 8) == Fault::kTcmuMailbox);
  CHECK(ring.device.start(ring.script.map(), sizeof(TcmuMailbox) - 1) == Fault::kTcmuMailbox);
  CHECK(ring.device.start(ring.script.map(), ring.script.data_offset() - 1) == Fault::kTcmuMailbox);
  CHECK(ring.device.start(ring.script.map(), ring.script.data_offset()) == Fault::kNone);
}

TEST_CASE("tcmu: starts at the tail it finds and takes what lies there already") {
  TestRing<> ring({.start = 496});
  CHECK(ring.device.read_index() == 496);
  CHECK(ring.device.tail_index() == 496);
  const std::uint32_t offset = ring.script.command({.id = 9});
  REQUIRE(ring.take() == 1);
  ring.record_good({0});
  const auto answers = ring.answers();
  REQUIRE(answers.size() == 1);
  CHECK(answers[0].offset == offset);
  CHECK(ring.script.tail() == 496 + 128);
}

TEST_CASE("tcmu: keeps its own tail when the word in the mailbox is scribbled over") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  REQUIRE(ring.take() == 1);
  ring.script.mailbox().cmd_tail = 777;
  ring.record_good({0});
  CHECK(ring.device.publish());
  CHECK(ring.script.tail() == 128);
}

TEST_CASE("tcmu: stop forgets what is in flight, and a late answer touches no memory") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  ring.script.command({.id = 2});
  REQUIRE(ring.take() == 2);
  ring.record_good({0});
  ring.device.stop();
  CHECK(ring.device.in_flight_count() == 0);
  CHECK(ring.device.unpublished_count() == 0);
  CHECK(ring.device.flags() == 0);
  const std::vector<std::byte> before(ring.script.map(), ring.script.map() + ring.script.data_offset());
  ring.record_good({1});
  CHECK_FALSE(ring.device.publish());
  CHECK(std::equal(before.begin(), before.end(), ring.script.map()));
  CHECK(ring.counters.ignored_completions == 1);
}

// ---- Commands ----

TEST_CASE("tcmu: a command becomes a row, its CDB and its segments, which count from the start of the mapping") {
  TestRing<> ring;
  const std::uint64_t data = ring.script.data_offset();
  ring.script.command({.id = 7,
                       .iovecs = {{data + 512, 1024}, {data + 4096, 512}},
                       .cdb = {0x2a, 1, 2, 3, 4, 5, 6, 7, 8, 9}});
  ring.script.command({.id = 3, .cdb = {0, 1, 2, 3, 4, 5}});
  REQUIRE(ring.take() == 2);
  CHECK(ring.commands[0].command == 0);
  CHECK(ring.commands[0].command_id == 7);
  CHECK(ring.commands[0].cdb_bytes == 10);
  CHECK(ring.commands[0].first_segment == 0);
  CHECK(ring.commands[0].data_count == 2);
  CHECK(ring.commands[0].bidi_count == 0);
  CHECK(byte(ring.cdb(0)) == 0x2a);
  CHECK(byte(ring.cdb(0) + 9) == 9);
  CHECK(ring.segments[0].window == 0);
  CHECK(ring.segments[0].offset_bytes == data + 512);
  CHECK(ring.segments[0].length_bytes == 1024);
  CHECK(ring.segments[1].offset_bytes == data + 4096);
  CHECK(ring.commands[1].command == 1);
  CHECK(ring.commands[1].cdb_bytes == 6);
  CHECK(ring.commands[1].data_count == 0);
  CHECK(byte(ring.cdb(1) + 5) == 5);
  CHECK(ring.device.id_of(0) == 7);
  CHECK(ring.device.id_of(1) == 3);
  CHECK(ring.device.id_of(2) == 0);
  CHECK(ring.device.id_of(99) == 0);
  CHECK(ring.device.in_flight_count() == 2);
  CHECK(ring.counters.commands == 2);
  CHECK(ring.counters.batches == 1);
}

TEST_CASE("tcmu: an entry has any number of iovecs from 0 on, and grows with the fifth") {
  for (const std::uint32_t count : {0U, 1U, 4U, 5U, 6U, 20U}) {
    CAPTURE(count);
    TestRing<> ring;
    ScriptedCommand command{.id = 65535};
    for (std::uint32_t index = 0; index < count; ++index) {
      command.iovecs.push_back({data_at(ring.script, 1024 * index), 512 + index});
    }
    ring.script.command(command);
    REQUIRE(ring.take() == 1);
    CHECK(ring.commands[0].data_count == count);
    for (std::uint32_t index = 0; index < count; ++index) {
      CHECK(ring.segments[index].length_bytes == 512 + index);
      CHECK(ring.segments[index].offset_bytes == data_at(ring.script, 1024 * index));
    }
    CHECK(byte(ring.cdb(0)) == 0x28);
    ring.record_good({0});
    const auto answers = ring.answers();
    REQUIRE(answers.size() == 1);
    CHECK(answers[0].id == 65535);
    CHECK(ring.script.tail() == (count <= 4 ? 128 : 48 + 16 * count + 16));
  }
}

TEST_CASE("tcmu: the Data-In of a bidirectional command follows its Data-Out, also when only that is there") {
  TestRing<> ring;
  const auto at = [&](std::uint64_t offset) { return data_at(ring.script, offset); };
  ring.script.command({.id = 1,
                       .iovecs = {{at(0), 16}, {at(64), 32}},
                       .bidi_iovecs = {{at(128), 8}, {at(256), 4}, {at(512), 2}}});
  ring.script.command({.id = 2, .bidi_iovecs = {{at(1024), 99}}});
  REQUIRE(ring.take() == 2);
  CHECK(ring.commands[0].data_count == 2);
  CHECK(ring.commands[0].bidi_count == 3);
  CHECK(ring.segments[1].length_bytes == 32);
  CHECK(ring.segments[2].length_bytes == 8);
  CHECK(ring.segments[4].length_bytes == 2);
  CHECK(ring.commands[1].first_segment == 5);
  CHECK(ring.commands[1].data_count == 0);
  CHECK(ring.commands[1].bidi_count == 1);
  CHECK(ring.segments[5].length_bytes == 99);
}

TEST_CASE("tcmu: empty iovecs are skipped wherever they point") {
  TestRing<> ring;
  ring.script.command({.id = 1, .iovecs = {{~std::uint64_t{0}, 0}, {data_at(ring.script, 0), 8}, {0, 0}}});
  REQUIRE(ring.take() == 1);
  CHECK(ring.commands[0].data_count == 1);
  CHECK(ring.segments[0].length_bytes == 8);
}

TEST_CASE("tcmu: an iovec over the edge of a window becomes two segments") {
  TestRing<> ring({.data_bytes = kWindowBytes + 8192});
  ring.script.command({.id = 1,
                       .iovecs = {{kWindowBytes - 512, 512}, {kWindowBytes - 4096, 4096 + 100}},
                       .bidi_iovecs = {{kWindowBytes + 512, 64}}});
  REQUIRE(ring.take() == 1);
  CHECK(ring.commands[0].data_count == 3);
  CHECK(ring.commands[0].bidi_count == 1);
  const auto is = [&](std::size_t row, std::uint32_t window, std::uint64_t offset, std::uint32_t length) {
    return ring.segments[row].window == window && ring.segments[row].offset_bytes == offset &&
           ring.segments[row].length_bytes == length;
  };
  CHECK(is(0, 0, kWindowBytes - 512, 512));
  CHECK(is(1, 0, kWindowBytes - 4096, 4096));
  CHECK(is(2, 1, 0, 100));
  CHECK(is(3, 1, 512, 64));
}

TEST_CASE("tcmu: data may be the whole data area, and end with the mapping") {
  TestRing<> ring({.data_bytes = 4096});
  const std::uint64_t bytes = ring.script.map_bytes() - ring.script.data_offset();
  ring.script.command({.id = 1, .iovecs = {{ring.script.data_offset(), bytes}}});
  REQUIRE(ring.take() == 1);
  CHECK(ring.segments[0].length_bytes == bytes);
}

// ---- CDBs ----

std::vector<std::uint8_t> cdb_of(std::size_t bytes, std::uint8_t opcode, std::uint8_t additional = 0) {
  std::vector<std::uint8_t> cdb(bytes);
  for (std::size_t at = 0; at < bytes; ++at) cdb[at] = static_cast<std::uint8_t>(at + 1);
  cdb[0] = opcode;
  if (bytes > 7) cdb[7] = additional;
  return cdb;
}

TEST_CASE("tcmu: the length of a CDB follows from its group, and ends with its entry") {
  struct Case {
    std::uint8_t opcode;
    std::uint8_t additional;
    std::size_t there;  // bytes in the entry
    std::uint32_t cdb_bytes;
  };
  constexpr Case kCases[] = {
      {0x00, 0, 8, 6},     {0x1f, 0, 8, 6},     {0x20, 0, 16, 10},     {0x5f, 0, 16, 10},      {0x80, 0, 16, 16},
      {0x9f, 0, 16, 16},   {0xa0, 0, 16, 12},   {0xbf, 0, 16, 12},     {0x7f, 0x18, 32, 32},   {0x7f, 0, 16, 8},
      {0x7f, 255, 264, 263},
      // Groups without a length: all that the entry has.
      {0x60, 0, 16, 16},   {0x7e, 9, 16, 16},   {0xc0, 0, 16, 16},     {0xff, 0, 32, 32},      {0xff, 0, 304, 264},
      // An entry with less than the group says.
      {0x88, 0, 8, 8},     {0x28, 0, 8, 8},     {0x7f, 255, 16, 16},
  };
  for (const Case& each : kCases) {
    CAPTURE(+each.opcode);
    CAPTURE(each.there);
    TestRing<> ring;
    // A long CDB goes before, whose bytes must not shine through.
    ring.script.command({.id = 1, .cdb = cdb_of(264, 0xff)});
    REQUIRE(ring.take() == 1);
    ring.script.command({.id = 2, .cdb = cdb_of(each.there, each.opcode, each.additional)});
    REQUIRE(ring.take() == 1);
    CHECK(ring.commands[0].cdb_bytes == each.cdb_bytes);
    CHECK(byte(ring.cdb(0)) == each.opcode);
    const auto last = each.cdb_bytes == 8 ? each.additional : static_cast<std::uint8_t>(each.cdb_bytes);
    CHECK(byte(ring.cdb(0) + each.cdb_bytes - 1) == last);
    CHECK(std::all_of(ring.cdb(0) + each.cdb_bytes, ring.cdb(0) + kCdbBytesMax,
                      [](std::byte value) { return value == std::byte{0}; }));
    ring.record_good({0, 1});
    CHECK(ring.answers().size() == 2);
    CHECK(ring.script.complaint() == "");
  }
}

TEST_CASE("tcmu: a CDB may lie anywhere between the answer and the end of its entry, aligned or not") {
  TestRing<> ring;
  const std::uint32_t offset = ring.script.command({.id = 1, .cdb = cdb_of(32, 0xff)});
  SUBCASE("behind a gap") {
    ring.script.poke(offset, 24, std::uint64_t{kRingOffset + offset + 112 + 3});
    ring.script.poke(offset, 112 + 3, std::uint8_t{0x12});
    REQUIRE(ring.take() == 1);
    CHECK(ring.commands[0].cdb_bytes == 6);
    CHECK(byte(ring.cdb(0)) == 0x12);
    CHECK(byte(ring.cdb(0) + 5) == 9);
  }
  SUBCASE("one byte of it") {
    ring.script.poke(offset, 24, std::uint64_t{kRingOffset + offset + 112 + 31});
    ring.script.poke(offset, 112 + 31, std::uint8_t{0x7f});
    REQUIRE(ring.take() == 1);
    CHECK(ring.commands[0].cdb_bytes == 1);
    CHECK(byte(ring.cdb(0) + 1) == 0);
  }
}

// ---- Pads and the end of the ring ----

TEST_CASE("tcmu: a pad of 8 bytes at the very end is passed over, and nothing behind its header is read") {
  TestRing<> ring({.ring_bytes = 2 * 128 + 8, .data_bytes = 64});
  ring.script.command({.id = 1});
  ring.script.command({.id = 2});
  REQUIRE(ring.take() == 2);
  ring.record_good({0});
  REQUIRE(ring.answers().size() == 1);
  ring.script.bare(kTcmuPad, 8);
  CHECK(ring.script.head() == 0);
  SUBCASE("the head was published with only the pad before it") {
    CHECK(ring.take() == 0);
    CHECK(ring.device.read_index() == 0);
  }
  SUBCASE("a command follows") {}
  const std::uint32_t offset = ring.script.command({.id = 1, .cdb = {0, 0, 0, 0, 0, 0}});
  CHECK(offset == 0);
  REQUIRE(ring.take() == 1);
  CHECK(ring.counters.pads == 1);
  ring.record_good({1, 0});
  CHECK(ring.answers().size() == 2);
  CHECK(ring.script.tail() == 120);
  CHECK(ring.script.complaint() == "");
}

TEST_CASE("tcmu: an entry may end exactly at the end of the ring, and the next one is at 0") {
  TestRing<> ring({.ring_bytes = 3 * 128});
  for (std::uint16_t round = 0; round < 20; ++round) {
    CAPTURE(round);
    CHECK(ring.script.command({.id = static_cast<std::uint16_t>(round + 1)}) == round % 3 * 128);
    REQUIRE(ring.take() == 1);
    CHECK(ring.device.read_index() == (round + 1) % 3 * 128);
    ring.record_good({0});
    REQUIRE(ring.answers().size() == 1);
    CHECK(ring.script.tail() == ring.script.head());
  }
  CHECK(ring.counters.pads == 0);
  CHECK(ring.script.complaint() == "");
}

TEST_CASE("tcmu: pads and other entries without an answer go with the tail as soon as nothing lies before them") {
  TestRing<> ring;
  ring.script.bare(kTcmuPad, 16);
  ring.script.bare(5, 24);
  const std::uint32_t command = ring.script.command({.id = 1});
  ring.script.bare(kTcmuPad, 8);
  ring.script.bare(kTcmuPad, 8);
  REQUIRE(ring.take() == 1);
  CHECK(ring.counters.pads == 3);
  CHECK(ring.device.publish());
  CHECK(ring.script.tail() == command);
  CHECK_FALSE(ring.device.publish());
  CHECK(ring.counters.publications == 1);
  ring.record_good({0});
  CHECK(ring.device.publish());
  CHECK(ring.script.tail() == ring.script.head());
  CHECK(ring.script.drain().size() == 1);
  CHECK(ring.script.complaint() == "");
}

// ---- Entries that are no commands ----

TEST_CASE("tcmu: opcodes 3 to 7 are marked as unknown, passed over by their length, and counted") {
  for (std::uint32_t opcode = 3; opcode <= 7; ++opcode) {
    CAPTURE(opcode);
    TestRing<> ring;
    const std::uint32_t first = ring.script.bare(opcode, 8);
    ring.script.command({.id = 1});
    const std::uint32_t second = ring.script.bare(opcode, 96);
    ring.script.command({.id = 2});
    REQUIRE(ring.take() == 2);
    CHECK(ring.counters.unknown_ops == 2);
    CHECK(ring.script.peek<std::uint8_t>(first, 7) == kTcmuUnknownOp);
    CHECK(ring.script.peek<std::uint8_t>(second, 7) == kTcmuUnknownOp);
    ring.record_good({1, 0});
    CHECK(ring.answers().size() == 2);
    CHECK(ring.script.tail() == ring.script.head());
    CHECK(ring.script.complaint() == "");
  }
}

TEST_CASE("tcmu: a task management request names the commands in flight and ends the batch") {
  TestRing<> ring;
  for (std::uint16_t id = 1; id <= 3; ++id) ring.script.command({.id = id});
  const std::uint32_t request = ring.script.task_management(5, {3, 1});
  ring.script.command({.id = 4});
  REQUIRE(ring.take() == 3);
  CHECK(ring.tidings.tmr_present == 1);
  CHECK(ring.tidings.tmr_type == 5);
  CHECK(ring.tidings.tmr_command_count == 2);
  CHECK(ring.aborted[0] == 2);
  CHECK(ring.aborted[1] == 0);
  CHECK(ring.device.sees_entry());
  REQUIRE(ring.device.take(9) == 1);
  CHECK(ring.tidings.tmr_present == 0);
  CHECK(ring.commands[0].command == 3);
  // No answer to it, and each command it named gets one.
  ring.record_good({3, 2, 1, 0});
  CHECK(ring.answers().size() == 4);
  CHECK(ring.script.tail() == ring.script.head());
  CHECK(ring.script.peek<std::uint8_t>(request, 7) == 0);
  CHECK(ring.script.peek<std::uint8_t>(request, 8) == 5);
  CHECK(ring.script.complaint() == "");
  CHECK(ring.counters.task_managements == 1);
  CHECK(ring.counters.aborted_commands == 2);
  CHECK(ring.counters.unmatched_aborts == 0);
}

TEST_CASE("tcmu: a task management request at the tail between two commands waits for the first and then goes") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  const std::uint32_t request = ring.script.task_management(1, {1});
  const std::uint32_t last = ring.script.command({.id = 2});
  REQUIRE(ring.take() == 1);
  REQUIRE(ring.take() == 1);
  ring.record_good({1});  // the second command: its answer goes into the first slot
  const auto answers = ring.answers();
  REQUIRE(answers.size() == 1);
  CHECK(answers[0].id == 2);
  CHECK(answers[0].offset == 0);
  CHECK(request == 128);
  CHECK(ring.script.tail() == last);
  ring.record_good({0});
  CHECK(ring.answers().size() == 1);
  CHECK(ring.script.complaint() == "");
}

TEST_CASE("tcmu: a task management request without commands is delivered, and found while no command may be taken") {
  TestRing<> ring({.command_count_max = 1});
  ring.script.command({.id = 1});
  ring.script.task_management(5, {});
  ring.script.task_management(6, {1});
  ring.script.command({.id = 2});
  REQUIRE(ring.take(1) == 1);
  CHECK(ring.tidings.tmr_present == 1);
  CHECK(ring.tidings.tmr_type == 5);
  CHECK(ring.tidings.tmr_command_count == 0);
  CHECK(ring.device.take(0) == 0);
  CHECK(ring.tidings.tmr_present == 1);
  CHECK(ring.tidings.tmr_type == 6);
  CHECK(ring.tidings.tmr_command_count == 1);
  // All command numbers are in use: the next one has to wait.
  CHECK(ring.device.take(1) == 0);
  CHECK(ring.tidings.tmr_present == 0);
  CHECK(ring.device.sees_entry());
  CHECK(ring.counters.batches == 1);
}

TEST_CASE("tcmu: a task management request may have many ids: each command once, unknown and answered ones not") {
  TestRing<> ring({.ring_bytes = 300 * 128, .command_count_max = 200, .batch_count_max = 256});
  for (std::uint16_t id = 1; id <= 200; ++id) ring.script.command({.id = id});
  REQUIRE(ring.take() == 200);
  ring.record_good({0});  // id 1: the kernel does not know yet
  std::vector<std::uint16_t> ids;
  for (std::uint16_t id = 0; id <= 300; ++id) ids.insert(ids.end(), {id, id});
  for (int request = 0; request < 2; ++request) {
    ring.script.task_management(2, ids);
    REQUIRE(ring.take() == 0);
    REQUIRE(ring.tidings.tmr_command_count == 199);
    for (std::uint32_t row = 0; row < 199; ++row) CHECK(ring.aborted[row] == row + 1);
  }
  CHECK(ring.counters.aborted_commands == 2 * 199);
  CHECK(ring.counters.unmatched_aborts == 2 * (2 * 301 - 199));
}

TEST_CASE("tcmu: a request for a finished command is ignored and nothing is answered twice") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  REQUIRE(ring.take() == 1);
  ring.record_good({0});
  REQUIRE(ring.device.publish());
  ring.script.task_management(1, {1});
  REQUIRE(ring.take() == 0);
  CHECK(ring.tidings.tmr_command_count == 0);
  CHECK(ring.counters.unmatched_aborts == 1);
  ring.record_good({0});
  CHECK(ring.counters.ignored_completions == 1);
  CHECK(ring.answers().size() == 1);
  CHECK(ring.script.complaint() == "");
}

// ---- Answers ----

TEST_CASE("tcmu: the k-th answer goes into the k-th command entry, whose length stays") {
  TestRing<> ring;
  const std::uint64_t data = ring.script.data_offset();
  const std::uint32_t first = ring.script.command({.id = 11});
  const std::uint32_t second = ring.script.command({.id = 12, .iovecs = std::vector<TcmuIovec>(9, {data, 8})});
  const std::uint32_t third = ring.script.command({.id = 13});
  REQUIRE(ring.take() == 3);
  ring.record_good({2, 0});
  CHECK(ring.device.unpublished_count() == 2);
  CHECK(ring.device.in_flight_count() == 1);
  CHECK(ring.script.tail() == 0);
  const auto answers = ring.answers();
  REQUIRE(answers.size() == 2);
  CHECK(answers[0].offset == first);
  CHECK(answers[0].id == 13);
  CHECK(answers[1].offset == second);
  CHECK(answers[1].id == 11);
  CHECK(ring.script.tail() == third);
  CHECK(ring.counters.publications == 1);
  CHECK(ring.device.unpublished_count() == 0);
  ring.record_good({1});
  CHECK(ring.answers().at(0).offset == third);
  CHECK(ring.script.complaint() == "");
}

TEST_CASE("tcmu: all 8 bytes of the result are written, over the iovec counts that lay there") {
  TestRing<> ring;
  const std::uint64_t data = ring.script.data_offset();
  ring.script.command({.id = 1, .iovecs = {{data, 512}}, .bidi_iovecs = {{data + 512, 512}}});
  REQUIRE(ring.take() == 1);
  ring.record({.command = 0, .status = 0x18, .read_length = 0, .flags = 0, .copy_bytes = 0});
  const auto answers = ring.answers();
  REQUIRE(answers.size() == 1);
  CHECK(answers[0].status == 0x18);
  CHECK(answers[0].uflags == 0);
  CHECK(answers[0].read_len == 0);
  CHECK(ring.script.peek<std::uint64_t>(0, 8) == 0x18);
  // No sense data without CHECK CONDITION: the rest of the entry is as it was.
  CHECK(ring.script.peek<std::uint64_t>(0, 48) == data);
}

TEST_CASE("tcmu: CHECK CONDITION brings all 96 sense bytes, zeros included, over the iovecs that lay there") {
  TestRing<> ring;
  const std::uint64_t data = ring.script.data_offset();
  const std::vector<TcmuIovec> iovecs(5, {data, 512});
  ring.script.command({.id = 1, .iovecs = iovecs});
  ring.script.command({.id = 2, .iovecs = iovecs});
  REQUIRE(ring.take() == 2);
  const auto cdb_before = ring.script.peek<std::uint64_t>(0, 112);
  ring.completions[0] = {0, 2, 0, 0, 0};
  ring.completions[1] = {1, 2, 0, 0, 0};
  ring.senses[0] = std::byte{0x70};
  ring.senses[95] = std::byte{0xee};
  ring.senses[96] = std::byte{0x72};
  ring.device.record(2);
  const auto answers = ring.answers();
  REQUIRE(answers.size() == 2);
  std::vector<std::uint8_t> sense(96);
  sense[0] = 0x70;
  sense[95] = 0xee;
  CHECK(answers[0].sense == sense);
  sense[0] = 0x72;
  sense[95] = 0;
  CHECK(answers[1].sense == sense);
  CHECK(ring.script.peek<std::uint64_t>(0, 112) == cdb_before);
}

TEST_CASE("tcmu: a short read is marked, with GOOD and with CHECK CONDITION, if the kernel knows it") {
  for (const bool capable : {true, false}) {
    CAPTURE(capable);
    TestRing<> ring({.flags = capable ? kTcmuReadLength : kTcmuTaskManagement});
    ring.script.command({.id = 1});
    ring.script.command({.id = 2});
    ring.script.command({.id = 3});
    REQUIRE(ring.take() == 3);
    ring.completions[0] = {0, 0, 512, 0, 0};
    ring.completions[1] = {1, 2, 0xffff'ffff, 0, 0};
    ring.completions[2] = {2, 0, 0, 0, 0};
    ring.device.record(3);
    const auto answers = ring.answers();
    REQUIRE(answers.size() == 3);
    CHECK(answers[0].uflags == (capable ? kTcmuReadLengthValid : 0));
    CHECK(answers[0].read_len == (capable ? 512 : 0));
    CHECK(answers[1].uflags == (capable ? kTcmuReadLengthValid : 0));
    CHECK(answers[1].read_len == (capable ? 0xffff'ffff : 0));
    CHECK(answers[2].uflags == 0);
    CHECK(answers[2].read_len == 0);
  }
}

TEST_CASE("tcmu: without OOOC each answer goes out in its own place, after those before it") {
  TestRing<> ring({.flags = kTcmuReadLength});
  CHECK_FALSE(ring.device.out_of_order());
  for (std::uint16_t id = 1; id <= 4; ++id) ring.script.command({.id = id});
  ring.script.task_management(5, {});
  REQUIRE(ring.take() == 4);
  ring.record_good({3, 1});
  CHECK_FALSE(ring.device.publish());
  CHECK(ring.device.unpublished_count() == 2);
  ring.record_good({0});
  CHECK(ring.device.publish());
  CHECK(ring.script.tail() == 2 * 128);
  CHECK(ring.device.unpublished_count() == 1);
  ring.record_good({2});
  const auto answers = ring.answers();
  REQUIRE(answers.size() == 4);
  for (std::uint16_t index = 0; index < 4; ++index) CHECK(answers[index].id == index + 1);
  CHECK(ring.script.tail() == ring.script.head());
  CHECK(ring.script.complaint() == "");
}

// Counts what the kernel can see of a publish.
struct CountingOrdering : HardwareOrdering {
  static void publish_command_tail(std::uint32_t* tail, std::uint32_t value) noexcept {
    ++tail_stores;
    HardwareOrdering::publish_command_tail(tail, value);
  }
  static inline std::uint32_t tail_stores = 0;
};

TEST_CASE("tcmu: a batch is one store of the tail, and tells how much the kernel will copy") {
  CountingOrdering::tail_stores = 0;
  TestRing<CountingOrdering> ring;
  for (std::uint16_t id = 1; id <= 3; ++id) ring.script.command({.id = id});
  REQUIRE(ring.take() == 3);
  for (std::uint32_t row = 0; row < 3; ++row) ring.completions[row] = {row, 0, 0, 0, 0xffff'ffff};
  ring.device.record(2);
  CHECK(ring.device.publish());
  CHECK(ring.device.copy_bytes_published() == 2 * std::uint64_t{0xffff'ffff});
  CHECK_FALSE(ring.device.publish());
  CHECK(ring.device.copy_bytes_published() == 0);
  CHECK(CountingOrdering::tail_stores == 1);
  CHECK(ring.counters.publications == 1);
  CHECK(ring.counters.completions == 2);
}

TEST_CASE("tcmu: an answer to nothing in flight is ignored and counted, and its entry stays as it is") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  ring.script.command({.id = 2});
  REQUIRE(ring.take() == 2);
  ring.record_good({7});
  ring.record_good({8});
  ring.record_good({0xffff'ffff});
  CHECK(ring.counters.ignored_completions == 3);
  ring.record_good({0, 0});
  CHECK(ring.counters.ignored_completions == 4);
  CHECK(ring.answers().size() == 1);
  ring.record_good({0});
  CHECK(ring.counters.ignored_completions == 5);
  CHECK(ring.answers().empty());
  CHECK(ring.device.in_flight_count() == 1);
  CHECK(ring.script.complaint() == "");
}

TEST_CASE("tcmu: more rows than the table has are not read") {
  TestRing<> ring({.command_count_max = 2});
  ring.script.command({.id = 1});
  REQUIRE(ring.take() == 1);
  ring.device.record(0xffff'ffff);  // both rows name the command
  CHECK(ring.counters.completions == 1);
  CHECK(ring.counters.ignored_completions == 1);
}

// ---- Kept buffers ----

TEST_CASE("tcmu: a kept buffer keeps its command number and id until it is given up") {
  TestRing<> ring({.command_count_max = 2});
  ring.script.command({.id = 5});
  REQUIRE(ring.take() == 1);
  ring.record({0, 0, 0, kTcmuKeep, 0});
  ring.device.free_kept(0);  // not published yet
  CHECK(ring.counters.ignored_completions == 1);
  const auto answers = ring.answers();
  REQUIRE(answers.size() == 1);
  CHECK(answers[0].uflags == kTcmuBufferKept);
  CHECK(ring.device.id_of(0) == 5);
  ring.record_good({0});  // a second answer would break the kernel's ring
  CHECK(ring.counters.ignored_completions == 2);
  ring.script.command({.id = 6});
  ring.script.command({.id = 7});
  CHECK(ring.take() == 1);  // the kept one counts
  CHECK(ring.commands[0].command == 1);
  ring.device.free_kept(0);
  ring.script.free_kept(5);
  CHECK(ring.device.id_of(0) == 0);
  CHECK(ring.take() == 1);
  ring.record_good({0, 1});
  CHECK(ring.answers().size() == 2);
  ring.device.free_kept(0);
  ring.device.free_kept(99);
  CHECK(ring.counters.ignored_completions == 4);
  ring.script.command({.id = 5});
  CHECK(ring.take() == 1);
  CHECK(ring.script.complaint() == "");
}

TEST_CASE("tcmu: the id of a kept buffer that comes again breaks the device") {
  TestRing<> ring;
  ring.script.command({.id = 5});
  REQUIRE(ring.take() == 1);
  ring.record({0, 0, 0, kTcmuKeep, 0});
  REQUIRE(ring.answers().size() == 1);
  ring.script.command({.id = 5});
  CHECK(ring.take() == minus(Fault::kTcmuCommandId));
}

TEST_CASE("tcmu: a wish to keep is without effect when the kernel cannot") {
  TestRing<> ring({.flags = kTcmuOutOfOrder});
  ring.script.command({.id = 5});
  REQUIRE(ring.take() == 1);
  ring.record({0, 0, 0, kTcmuKeep, 0});
  CHECK(ring.answers().at(0).uflags == 0);
  ring.script.command({.id = 5});
  CHECK(ring.take() == 1);
}

// ---- Limits ----

std::vector<TcmuIovec> six_of(const RingScript& script) { return {6, {script.data_offset(), 8}}; }

TEST_CASE("tcmu: hands out at most what is asked for, a batch, and as many commands as there are numbers") {
  TestRing<> ring({.ring_bytes = 5000, .command_count_max = 5, .batch_count_max = 3});
  for (std::uint16_t id = 1; id <= 10; ++id) ring.script.command({.id = id});
  CHECK(ring.take(0) == 0);
  CHECK(ring.take(2) == 2);
  CHECK(ring.take(9) == 3);
  CHECK(ring.take(9) == 0);
  CHECK(ring.device.sees_entry());
  CHECK(ring.device.in_flight_count() == 5);
  ring.record_good({4, 2});
  CHECK(ring.take(9) == 0);  // recorded is not published
  REQUIRE(ring.answers().size() == 2);
  CHECK(ring.take(9) == 2);
  CHECK(ring.commands[0].command == 2);
  CHECK(ring.commands[1].command == 4);
  ring.record_good({0, 1, 2, 3, 4});
  CHECK(ring.answers().size() == 5);
  CHECK(ring.take(9) == 3);
  CHECK_FALSE(ring.device.sees_entry());
  CHECK(ring.script.complaint() == "");
}

TEST_CASE("tcmu: one take looks at no more than a batch of entries, whatever they are") {
  TestRing<> ring({.batch_count_max = 4});
  for (int pad = 0; pad < 7; ++pad) ring.script.bare(kTcmuPad, 8);
  ring.script.command({.id = 1});
  CHECK(ring.take() == 0);
  CHECK(ring.counters.pads == 4);
  CHECK(ring.device.sees_entry());
  CHECK(ring.take() == 1);
  CHECK(ring.counters.pads == 7);
}

TEST_CASE("tcmu: a take that runs out of segment rows stops early, a command for more than all rows is at fault") {
  TestRing<> ring({.segment_rows = 6});
  const std::vector<TcmuIovec> four(4, {ring.script.data_offset(), 8});
  ring.script.command({.id = 1, .iovecs = four});
  ring.script.command({.id = 2, .iovecs = {four[0]}, .bidi_iovecs = {four[0], four[1]}});
  ring.script.command({.id = 3, .iovecs = six_of(ring.script)});
  CHECK(ring.take() == 1);
  CHECK(ring.take() == 1);
  CHECK(ring.commands[0].command == 1);
  CHECK(ring.commands[0].bidi_count == 2);
  CHECK(ring.take() == 1);
  CHECK(ring.commands[0].data_count == 6);
  ring.record_good({0, 1, 2});
  CHECK(ring.answers().size() == 3);
  CHECK(ring.script.complaint() == "");
  SUBCASE("of Data-Out") {
    ring.script.command({.id = 4, .iovecs = std::vector<TcmuIovec>(7, {ring.script.data_offset(), 8})});
  }
  SUBCASE("of Data-In besides") {
    ring.script.command({.id = 4, .iovecs = six_of(ring.script), .bidi_iovecs = {{ring.script.data_offset(), 8}}});
  }
  CHECK(ring.take() == minus(Fault::kTcmuData));
}

TEST_CASE("tcmu: the tables that are proposed have room for the largest entry of the kernel's largest ring") {
  constexpr std::uint32_t kRingBytesMax = (8U << 20) - kRingOffset;
  constexpr TcmuOptions kOptions{.command_count_max = 4, .batch_count_max = 1};
  TestRing<> ring({.ring_bytes = kRingBytesMax,
                   .data_bytes = std::uint64_t{2} << 30,
                   .command_count_max = 4,
                   .batch_count_max = 1,
                   .segment_rows = kOptions.segment_rows()});
  ScriptedCommand command{.id = 1};
  // 48 bytes of entry and 16 of CDB besides, and at most half of the ring.
  constexpr std::uint32_t kCount = (kRingBytesMax / 2 - 48 - 16) / 16;
  // 2 KiB at the beginning of every 4 KiB, shifted so that one of them lies across the edge of a window.
  const std::uint64_t first = (ring.script.data_offset() / 4096 + 1) * 4096 - 1024;
  for (std::uint64_t index = 0; index < kCount; ++index) command.iovecs.push_back({first + index * 4096, 2048});
  ring.script.command(command);
  REQUIRE(ring.take() == 1);
  CHECK(ring.commands[0].data_count == kCount + 1);  // one of them crosses the edge of a window
}

TEST_CASE("tcmu: tells when the ring or the data area is nearly full, and when it is not any more") {
  SUBCASE("the ring") {
    TestRing<> ring({.ring_bytes = 8 * 128 + 8});
    for (std::uint16_t id = 1; id <= 4; ++id) ring.script.command({.id = id});
    REQUIRE(ring.take() == 4);
    CHECK(ring.tidings.nearly_full == 0);
    ring.script.command({.id = 5});
    REQUIRE(ring.take(0) == 0);  // counts although it was not taken
    CHECK(ring.tidings.nearly_full == 1);
    ring.record_good({0});
    CHECK(ring.device.publish());
    CHECK(ring.tidings.nearly_full == 0);
  }
  SUBCASE("the data area") {
    TestRing<> ring({.ring_bytes = 1000 * 128, .data_bytes = 4096});
    const std::uint64_t half = (ring.script.map_bytes() - ring.script.data_offset()) / 2;
    ring.script.command({.id = 1, .iovecs = {{ring.script.data_offset(), half}}});
    REQUIRE(ring.take() == 1);
    CHECK(ring.tidings.nearly_full == 0);
    ring.script.command({.id = 2, .iovecs = {{ring.script.data_offset() + half, 1}}});
    REQUIRE(ring.take() == 1);
    CHECK(ring.tidings.nearly_full == 1);
    ring.record({0, 0, 0, kTcmuKeep, 0});
    REQUIRE(ring.device.publish());
    CHECK(ring.tidings.nearly_full == 1);  // a kept buffer takes its room
    ring.record_good({1});
    REQUIRE(ring.device.publish());
    CHECK(ring.tidings.nearly_full == 0);
  }
}

// ---- Corruption ----

// A way to break a ring that has a good command at 0. The corrupted entry is at 128.
struct Corruption {
  const char* name;
  Fault fault;
  void (*apply)(RingScript& script);
};

// A command at 128 with two iovecs, of which one word is overwritten.
template <std::size_t field, typename Word>
void overwrite(RingScript& script, Word value) {
  const std::uint64_t data = script.data_offset();
  const std::uint32_t offset = script.command({.id = 2, .iovecs = {{data, 512}}, .bidi_iovecs = {{data + 512, 512}}});
  script.poke(offset, field, value);
  script.publish();
}

const Corruption kCorruptions[] = {
    {"the head is at the end of the ring", Fault::kTcmuHead, [](RingScript& script) { script.publish(1000); }},
    {"the head is outside the ring", Fault::kTcmuHead, [](RingScript& script) { script.publish(0xffff'fff8); }},
    {"the head is between entries", Fault::kTcmuHead, [](RingScript& script) { script.publish(132); }},
    {"the head went back to the tail", Fault::kTcmuHead, [](RingScript& script) { script.publish(0); }},
    {"the head went back into what was taken", Fault::kTcmuHead, [](RingScript& script) { script.publish(64); }},
    {"an entry of length 0", Fault::kTcmuEntry, [](RingScript& script) { overwrite<0>(script, kTcmuCommand); }},
    {"a pad of length 0", Fault::kTcmuEntry, [](RingScript& script) { overwrite<0>(script, kTcmuPad); }},
    {"a command too short for its answer", Fault::kTcmuEntry,
     [](RingScript& script) { overwrite<0>(script, 104U | kTcmuCommand); }},
    {"an entry that ends behind the head", Fault::kTcmuEntry,
     [](RingScript& script) { overwrite<0>(script, 136U | kTcmuCommand); }},
    {"an entry of nearly 2^32 bytes", Fault::kTcmuEntry,
     [](RingScript& script) { overwrite<0>(script, 0xffff'fff8U | kTcmuCommand); }},
    {"a task management request too short for itself", Fault::kTcmuEntry,
     [](RingScript& script) { overwrite<0>(script, 24U | kTcmuTmr); }},
    {"a task management request with more ids than it has room for", Fault::kTcmuEntry,
     [](RingScript& script) {
       script.poke(script.task_management(5, {1, 2, 3, 4}), 12, 5U);
       script.publish();
     }},
    {"a task management request whose ids wrap 2^32", Fault::kTcmuEntry,
     [](RingScript& script) {
       script.poke(script.task_management(5, {1}), 12, 0x8000'0000U);
       script.publish();
     }},
    {"more iovecs than the entry has", Fault::kTcmuData, [](RingScript& script) { overwrite<8>(script, 6U); }},
    {"more iovecs than the mapping has", Fault::kTcmuData,
     [](RingScript& script) {
       // Zeros all the way, which would be skipped as empty iovecs.
       script.poke(script.command({.id = 2, .cdb = {0, 0, 0, 0, 0, 0}}), 8, 100'000U);
       script.publish();
     }},
    {"more bidirectional iovecs than the entry has", Fault::kTcmuData,
     [](RingScript& script) { overwrite<12>(script, 0xffff'ffffU); }},
    {"a CDB in the place of the answer", Fault::kTcmuData,
     [](RingScript& script) { overwrite<24>(script, std::uint64_t{kRingOffset + 128 + 111}); }},
    {"a CDB in the entry before", Fault::kTcmuData,
     [](RingScript& script) { overwrite<24>(script, std::uint64_t{kRingOffset + 112}); }},
    {"a CDB at the end of the entry", Fault::kTcmuData,
     [](RingScript& script) { overwrite<24>(script, std::uint64_t{kRingOffset + 128 + 128}); }},
    {"a CDB at the end of the address space", Fault::kTcmuData,
     [](RingScript& script) { overwrite<24>(script, ~std::uint64_t{0}); }},
    {"data in the mailbox", Fault::kTcmuData, [](RingScript& script) { overwrite<48>(script, std::uint64_t{64}); }},
    {"data that begins in the ring", Fault::kTcmuData,
     [](RingScript& script) { overwrite<48>(script, script.data_offset() - 1); }},
    {"data that begins at the end of the mapping", Fault::kTcmuData,
     [](RingScript& script) { overwrite<48>(script, std::uint64_t{script.map_bytes()}); }},
    {"data that begins behind the mapping", Fault::kTcmuData,
     [](RingScript& script) { overwrite<48>(script, std::uint64_t{script.map_bytes() + 512}); }},
    {"data that ends behind the mapping", Fault::kTcmuData,
     [](RingScript& script) { overwrite<48>(script, std::uint64_t{script.map_bytes() - 511}); }},
    {"data that wraps 2^64", Fault::kTcmuData,
     [](RingScript& script) { overwrite<56>(script, ~script.data_offset() + 256); }},
    {"bidirectional data behind the mapping", Fault::kTcmuData,
     [](RingScript& script) { overwrite<64>(script, std::uint64_t{script.map_bytes()}); }},
    {"more data than there is, by naming it twice", Fault::kTcmuData,
     [](RingScript& script) {
       const std::uint64_t bytes = script.map_bytes() - script.data_offset();
       const std::uint64_t data = script.data_offset();
       script.command({.id = 2, .iovecs = {{data, bytes}}, .bidi_iovecs = {{data, 1}}});
       script.publish();
     }},
    {"id 0", Fault::kTcmuCommandId, [](RingScript& script) { overwrite<4>(script, std::uint16_t{0}); }},
    {"an id that is in flight", Fault::kTcmuCommandId,
     [](RingScript& script) { overwrite<4>(script, std::uint16_t{1}); }},
};

TEST_CASE("tcmu: corruption says which fault, leaves the tail where it is, and ends all access until a new start") {
  for (const Corruption& corruption : kCorruptions) {
    CAPTURE(corruption.name);
    TestRing<> ring;
    ring.script.command({.id = 1});
    REQUIRE(ring.take() == 1);
    corruption.apply(ring.script);
    const std::vector<std::byte> before(ring.script.map(), ring.script.map() + ring.script.map_bytes());
    CHECK(ring.device.take(8) == minus(corruption.fault));
    CHECK(ring.device.fault() == corruption.fault);
    CHECK(ring.device.in_flight_count() == 1);
    CHECK(ring.device.read_index() == 128);
    CHECK(ring.counters.last_fault == static_cast<std::uint64_t>(corruption.fault));
    // Answers come late, and everything is asked again.
    ring.record({0, 2, 0, 0, 0});
    CHECK_FALSE(ring.device.publish());
    CHECK_FALSE(ring.device.sees_entry());
    CHECK(ring.device.take(8) == minus(corruption.fault));
    CHECK(ring.script.tail() == 0);
    CHECK(std::equal(before.begin(), before.end(), ring.script.map()));
    // What a reset of the ring leaves behind.
    std::memset(ring.script.map() + kRingOffset, 0, 1000);
    ring.script.mailbox().cmd_head = ring.script.mailbox().cmd_tail = 0;
    REQUIRE(ring.device.start(ring.script.map(), ring.script.map_bytes()) == Fault::kNone);
    CHECK(ring.device.take(8) == 0);
    CHECK(ring.device.in_flight_count() == 0);
  }
}

TEST_CASE("tcmu: neither an entry nor the head goes beyond the end of the ring") {
  TestRing<> ring({.start = 1000 - 128});
  ring.script.command({.id = 1});
  SUBCASE("the entry is longer than what is left") {
    ring.script.poke(1000 - 128, 0, 136U | kTcmuCommand);
    ring.script.publish(64);
    CHECK(ring.device.take(1) == minus(Fault::kTcmuEntry));
  }
  SUBCASE("the head is at the end instead of at 0") {
    ring.script.publish(1000);
    CHECK(ring.device.sees_entry());  // so that somebody takes and finds the fault
    CHECK(ring.device.take(1) == minus(Fault::kTcmuHead));
  }
  CHECK(ring.device.read_index() == 1000 - 128);
}

TEST_CASE("tcmu: control: the entry that corruption is made from is a good one") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  REQUIRE(ring.take() == 1);
  overwrite<4>(ring.script, std::uint16_t{2});
  CHECK(ring.device.take(8) == 1);
  TestRing<> other;
  other.script.command({.id = 1});
  REQUIRE(other.take() == 1);
  other.script.poke(other.script.task_management(5, {1, 2, 3, 4}), 12, 4U);
  CHECK(other.take() == 0);
  CHECK(other.device.fault() == Fault::kNone);
}

TEST_CASE("tcmu: data of 2^32 bytes is too long for one command, one byte less is not") {
  TestRing<> ring({.data_bytes = std::uint64_t{5} << 30});
  const std::uint64_t data = ring.script.data_offset();
  ring.script.command({.id = 1, .iovecs = {{data, 0xffff'fffe}, {data + 0xffff'fffe, 1}}});
  CHECK(ring.take() == 1);
  ring.script.command({.id = 2, .iovecs = {{data, 0xffff'ffff}, {data + 0xffff'ffff, 1}}});
  CHECK(ring.take() == minus(Fault::kTcmuData));
}

TEST_CASE("tcmu: an id may come again as soon as its answer is published, and not before") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  REQUIRE(ring.take() == 1);
  ring.record_good({0});
  SUBCASE("published") {
    REQUIRE(ring.answers().size() == 1);
    ring.script.command({.id = 1});
    CHECK(ring.take() == 1);
  }
  SUBCASE("recorded only") {
    ring.script.command({.id = 1});
    CHECK(ring.take() == minus(Fault::kTcmuCommandId));
  }
}

TEST_CASE("tcmu: a device broken from outside stays silent") {
  TestRing<> ring;
  ring.script.command({.id = 1});
  REQUIRE(ring.take() == 1);
  ring.record_good({0});
  CHECK(ring.device.break_ring(Fault::kTcmuRemoved) == minus(Fault::kTcmuRemoved));
  CHECK_FALSE(ring.device.publish());
  CHECK(ring.device.take(1) == minus(Fault::kTcmuRemoved));
  CHECK(ring.script.tail() == 0);
}

// ---- A peer that rewrites what was read ----

// Every word that is read is garbage a moment later, so a second look at it would show.
class DestructiveOrdering : public HardwareOrdering {
 public:
  template <typename Word>
  static Word load_relaxed(const Word* word) noexcept {
    const Word value = HardwareOrdering::load_relaxed(word);
    destroy(word, sizeof(Word));
    return value;
  }
  static std::uint32_t acquire_command_head(const std::uint32_t* head) noexcept {
    const std::uint32_t value = HardwareOrdering::acquire_command_head(head);
    destroy(head, sizeof(*head));
    return value;
  }
  static void copy_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
    HardwareOrdering::copy_relaxed(target, source, length_bytes);
    destroy(source, length_bytes);
  }

 private:
  static void destroy(const void* where, std::size_t length_bytes) {
    std::memset(const_cast<void*>(where), 0xff, length_bytes);
  }
};

TEST_CASE("tcmu: each byte of the mailbox and of an entry is read once, so changing it later changes nothing") {
  TestRing<DestructiveOrdering> ring;
  REQUIRE(ring.start_fault == Fault::kNone);
  const std::uint64_t data = ring.script.data_offset();
  const std::vector<TcmuIovec> five(5, {data + 8, 24});
  const std::uint32_t first =
      ring.script.command({.id = 1, .iovecs = five, .bidi_iovecs = {{data, 4}}, .cdb = cdb_of(32, 0x7f, 24)});
  ring.script.bare(4, 16);
  const std::uint32_t second = ring.script.command({.id = 2, .cdb = cdb_of(16, 0xc1)});
  ring.script.task_management(5, {2, 1});
  const std::uint32_t end = ring.script.head();
  REQUIRE(ring.take() == 2);
  CHECK(ring.commands[0].cdb_bytes == 32);
  CHECK(ring.commands[0].data_count == 5);
  CHECK(ring.commands[0].bidi_count == 1);
  CHECK(ring.segments[4].offset_bytes == data + 8);
  CHECK(ring.segments[5].length_bytes == 4);
  CHECK(byte(ring.cdb(0)) == 0x7f);
  CHECK(ring.commands[1].cdb_bytes == 16);
  CHECK(byte(ring.cdb(1)) == 0xc1);
  CHECK(ring.tidings.tmr_type == 5);
  REQUIRE(ring.tidings.tmr_command_count == 2);
  CHECK(ring.aborted[0] == 1);
  CHECK(ring.aborted[1] == 0);
  // The answers go where the entries were, and the tail moves by what their lengths were.
  ring.record_good({1});
  CHECK(ring.device.publish());
  CHECK(ring.script.tail() == second);
  CHECK(ring.script.peek<std::uint16_t>(first, 4) == 2);
  ring.record_good({0});
  CHECK(ring.device.publish());
  CHECK(ring.script.tail() == end);
  CHECK(ring.script.peek<std::uint16_t>(second, 4) == 1);
}

TEST_CASE("tcmu: control: whoever looks twice sees garbage") {
  TestRing<DestructiveOrdering> ring;
  CHECK(ring.device.start(ring.script.map(), ring.script.map_bytes()) == Fault::kTcmuMailbox);
  TestRing<DestructiveOrdering> other;
  other.script.command({.id = 1});
  REQUIRE(other.take() == 1);
  CHECK(other.device.take(1) == minus(Fault::kTcmuHead));
}

// ---- The last look before sleeping (F12) ----

// The head as a reader sees it who may read early: what was there at its last fence.
class EarlyHeadOrdering : public HardwareOrdering {
 public:
  static std::uint32_t acquire_command_head(const std::uint32_t* head) noexcept {
    if (may_see_now_) value_ = HardwareOrdering::acquire_command_head(head);
    may_see_now_ = false;
    return value_;
  }
  static void fence_event_then_command_head() noexcept { may_see_now_ = true; }
  static void begin() { may_see_now_ = true; }

 private:
  static inline std::uint32_t value_ = 0;
  static inline bool may_see_now_ = false;
};
struct WithoutHeadFence : EarlyHeadOrdering {
  static void fence_event_then_command_head() noexcept {}
};

// Whether the device sleeps though a command came with the event that it just read.
template <class Ordering>
bool sleeps_on_a_command() {
  Ordering::begin();
  TestRing<Ordering> ring;
  REQUIRE(ring.device.take(1) == 0);
  ring.script.command({.id = 1});
  ring.script.publish();
  REQUIRE(ring.device.take(1) == 0);  // the event was read, the head not yet
  return !ring.device.sees_entry();
}

TEST_CASE("ordering: the last look before sleeping comes after a fence and finds the command") {
  CHECK_FALSE(sleeps_on_a_command<EarlyHeadOrdering>());
}

TEST_CASE("ordering: control: without the fence F12 the device sleeps on a command") {
  CHECK(sleeps_on_a_command<WithoutHeadFence>());
}

// ---- Histories against a model ----

struct Wanted {
  std::uint8_t status;
  std::uint8_t sense;
  std::uint32_t read_len;
};

// Runs a random history of about `entry_count` entries over a small ring: every command has exactly one answer, its
// own. Returns how many commands were answered.
std::uint32_t run_history(const TestRingOptions& options, std::uint32_t seed, std::uint32_t entry_count) {
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto below = [&random](std::uint32_t limit) { return static_cast<std::uint32_t>(random() % limit); };
  TestRing<> ring(options);
  REQUIRE(ring.start_fault == Fault::kNone);
  std::deque<std::pair<std::uint16_t, std::uint8_t>> ring_order;  // id and tag of commands on the ring, not taken
  std::vector<std::pair<std::uint32_t, std::uint16_t>> taken;     // our number and id: not answered
  std::map<std::uint16_t, Wanted> wanted;                         // what the kernel must find, by id
  std::map<std::uint16_t, std::uint32_t> kept;                    // our number by id
  std::uint32_t entries = 0;
  std::uint32_t answered = 0;
  std::uint8_t tag = 0;

  const auto offer = [&] {
    if (below(2) == 0) ring.script.publish();
    const std::uint32_t kind = below(20);
    if (kind == 0 && ring.script.needed_bytes(64) <= ring.script.room_bytes()) {
      std::vector<std::uint16_t> ids;
      for (std::uint32_t count = below(16); count > 0; --count) ids.push_back(static_cast<std::uint16_t>(below(40)));
      ring.script.task_management(1, ids);
      ++entries;
    } else if (kind == 1 && ring.script.needed_bytes(48) <= ring.script.room_bytes()) {
      ring.script.bare(3 + below(5), 8 + 8 * below(6));
      ++entries;
    } else {
      ScriptedCommand command{.id = 1};
      while (ring.script.ids().count(command.id) != 0) ++command.id;  // the lowest that is free
      for (std::uint32_t count = below(8); count > 0; --count) {
        command.iovecs.push_back({data_at(ring.script, 512 * below(64)), 1 + below(512)});
      }
      command.cdb[1] = ++tag;
      if (ring.script.needed_bytes(RingScript::command_bytes(command.iovecs.size(), 10)) > ring.script.room_bytes()) {
        return;
      }
      ring.script.command(command);
      ring_order.emplace_back(command.id, tag);
      ++entries;
    }
  };
  const auto take = [&] {
    const std::int32_t count = ring.device.take(below(10));
    REQUIRE(count >= 0);
    for (std::int32_t row = 0; row < count; ++row) {
      REQUIRE_FALSE(ring_order.empty());
      const auto [id, cdb_tag] = ring_order.front();
      ring_order.pop_front();
      const std::uint32_t number = ring.commands[static_cast<std::size_t>(row)].command;
      REQUIRE(byte(ring.cdb(static_cast<std::size_t>(row)) + 1) == cdb_tag);
      REQUIRE(ring.device.id_of(number) == id);
      taken.emplace_back(number, id);
    }
    for (std::uint32_t row = 0; row < ring.tidings.tmr_command_count; ++row) {
      REQUIRE(std::any_of(taken.begin(), taken.end(),
                          [&](const auto& each) { return each.first == ring.aborted[row]; }));
    }
  };
  const auto record = [&] {
    std::uint32_t count = 0;
    for (std::uint32_t answers = below(4); answers > 0 && !taken.empty(); --answers) {
      const std::size_t which = below(static_cast<std::uint32_t>(taken.size()));
      const auto [number, id] = taken[which];
      taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(which));
      const bool keep = below(16) == 0;
      const Wanted want{static_cast<std::uint8_t>(below(3)), static_cast<std::uint8_t>(1 + below(255)),
                        below(3) * 100};
      ring.completions[count] = {number, want.status, want.read_len, keep ? kTcmuKeep : 0, 0};
      std::fill_n(&ring.senses[count * kTcmuSenseBytes], kTcmuSenseBytes, std::byte{want.sense});
      ++count;
      wanted[id] = want;
      if (keep && (options.flags & kTcmuKeepBuffer) != 0) kept[id] = number;
      if (below(8) == 0) ring.completions[count++] = {number, 0, 0, 0, 0};  // once more: to be ignored
    }
    ring.device.record(count);
  };
  const auto drain = [&] {
    if (!ring.device.publish()) return;
    for (const ScriptedAnswer& answer : ring.script.drain()) {
      REQUIRE(wanted.count(answer.id) == 1);
      const Wanted want = wanted[answer.id];
      wanted.erase(answer.id);
      REQUIRE(answer.status == want.status);
      REQUIRE(answer.read_len == ((options.flags & kTcmuReadLength) != 0 ? want.read_len : 0));
      if (want.status == 2) REQUIRE(answer.sense == std::vector<std::uint8_t>(96, want.sense));
      ++answered;
    }
    REQUIRE(ring.script.complaint() == "");
    REQUIRE(ring.script.tail() == ring.device.tail_index());
  };
  const auto free_one = [&] {
    if (kept.empty() || wanted.count(kept.begin()->first) != 0) return;
    const auto [id, number] = *kept.begin();
    ring.device.free_kept(number);
    ring.script.free_kept(id);
    kept.erase(kept.begin());
  };

  while (entries < entry_count) {
    switch (below(8)) {
      case 0: case 1: case 2: offer(); break;
      case 3: take(); break;
      case 4: case 5: record(); break;
      case 6: drain(); break;
      default: free_one();
    }
  }
  // All is answered in the end.
  ring.script.publish();
  while (!ring_order.empty() || !taken.empty() || !wanted.empty() || ring.device.sees_entry()) {
    take();
    record();
    drain();
    free_one();
  }
  drain();
  REQUIRE(ring.device.in_flight_count() == 0);
  REQUIRE(ring.script.tail() == ring.script.head());
  REQUIRE(ring.counters.completions == answered);
  REQUIRE(ring.counters.commands == answered);
  return answered;
}

TEST_CASE("tcmu: random histories of 100,000 entries: every command is answered once, with its own answer") {
  const std::uint32_t seed = std::random_device{}();
  MESSAGE("seed " << seed);
  // Rings whose ends fall anywhere, with and without each thing a kernel may not know.
  CHECK(run_history({.ring_bytes = 1000, .command_count_max = 6}, seed, 25'000) > 20'000);
  CHECK(run_history({.ring_bytes = 4096 - 128, .command_count_max = 40}, seed + 1, 25'000) > 20'000);
  CHECK(run_history({.ring_bytes = 2008, .flags = kTcmuReadLength}, seed + 2, 25'000) > 20'000);
  CHECK(run_history({.ring_bytes = 1432, .flags = kTcmuOutOfOrder, .batch_count_max = 3}, seed + 3, 25'000) > 20'000);
}

// ---- Controls for the script: each thing that no kernel could bear is noticed ----

TEST_CASE("tcmu: control: the script complains about every answer that would break the kernel") {
  struct Misdeed {
    const char* complaint;
    void (*commit)(RingScript& script);
  };
  constexpr Misdeed kMisdeeds[] = {
      {"cmd_id not found, ring is broken", [](RingScript& script) { script.poke(0, 4, std::uint16_t{77}); }},
      {"cmd_id not found, ring is broken", [](RingScript& script) { script.poke(128, 4, std::uint16_t{2}); }},
      {"the tail is not at an entry", [](RingScript& script) { script.mailbox().cmd_tail = 120; }},
      {"the tail is not at an entry", [](RingScript& script) { script.mailbox().cmd_tail = 2 * 128 + 8; }},
      {"a len_op changed", [](RingScript& script) { script.poke(128, 0, 120U | kTcmuCommand); }},
  };
  for (const Misdeed& misdeed : kMisdeeds) {
    CAPTURE(misdeed.complaint);
    TestRing<> ring;
    ring.script.command({.id = 1});
    ring.script.command({.id = 2});
    REQUIRE(ring.take() == 2);
    ring.record_good({1, 0});
    REQUIRE(ring.device.publish());
    misdeed.commit(ring.script);
    ring.script.drain();
    CHECK(ring.script.complaint() == misdeed.complaint);
  }
  RingScript unmarked({});
  unmarked.bare(3, 8);
  unmarked.mailbox().cmd_tail = 8;
  unmarked.drain();
  CHECK(unmarked.complaint() == "an unknown opcode is not marked");
  RingScript in_order({.flags = 0});
  in_order.command({.id = 1});
  in_order.command({.id = 2});
  in_order.poke(0, 4, std::uint16_t{2});
  in_order.mailbox().cmd_tail = 128;
  in_order.drain();
  CHECK(in_order.complaint() == "an answer is out of order");
}

}  // namespace
}  // namespace hushring::test
