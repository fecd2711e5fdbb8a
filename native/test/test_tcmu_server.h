// A server of a TCMU ring, written by hand from the layout alone, for tests of the kernel's half: it copies out what
// it fetches and answers as a test tells it, right or wrong.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "core/ordering.h"
#include "core/peer/tcmu_kernel.h"
#include "core/tcmu_layout.h"

namespace hushring::test {

using Bytes = std::vector<std::byte>;

// Bytes that tell their place, and by `seed` whose they are.
inline Bytes bytes_of(std::size_t length, std::uint32_t seed) {
  Bytes bytes(length);
  for (std::size_t index = 0; index < length; ++index) {
    bytes[index] = static_cast<std::byte>((index * 7 + index / 256 + seed * 31 + 1) & 0xff);
  }
  return bytes;
}

// What a server knows of an entry after it copied it out.
struct ServerEntry {
  std::uint32_t offset;  // in the ring
  std::uint32_t bytes;
  std::uint32_t opcode;
  std::uint16_t id;
  std::vector<TcmuIovec> data;
  std::vector<TcmuIovec> bidi;
  Bytes cdb;
  std::uint8_t tmr_type;
  std::vector<std::uint16_t> tmr_ids;
};

// Server and kernel may run on two threads: head and tail are accessed with the orderings of the product.
class TestServer {
 public:
  explicit TestServer(std::byte* memory) : memory_(memory) {
    mailbox = reinterpret_cast<TcmuMailbox*>(memory);
    read_index_ = tail = mailbox->cmd_tail;
  }

  // Reads everything that is new, and copies out all there is to know of it.
  std::vector<ServerEntry> fetch() {
    std::vector<ServerEntry> entries;
    while (read_index_ != HardwareOrdering::acquire_command_head(&mailbox->cmd_head)) {
      ServerEntry entry = read(read_index_);
      unanswered.push_back(entry);
      read_index_ = (read_index_ + entry.bytes) % mailbox->cmdr_size;
      entries.push_back(std::move(entry));
    }
    return entries;
  }
  // The same without PAD and TMR entries.
  std::vector<ServerEntry> fetch_commands() {
    std::vector<ServerEntry> entries = fetch();
    std::erase_if(entries, [](const ServerEntry& entry) { return entry.opcode != kTcmuCommand; });
    return entries;
  }

  struct Answer {
    std::uint8_t status = kStatusGood;
    std::uint8_t uflags = 0;
    std::uint32_t read_len = 0;
    Bytes sense = Bytes(kTcmuSenseBytes);
  };
  // Writes an answer into the first command's slot that is not used, and moves the tail over it, unpublished.
  void complete(std::uint16_t id, const Answer& answer) {
    skip();
    REQUIRE_FALSE(unanswered.empty());
    std::byte* const slot = memory_ + mailbox->cmdr_off + tail;
    std::memcpy(slot + 4, &id, 2);
    slot[7] = std::byte{answer.uflags};
    std::memset(slot + 8, 0, 8);
    slot[8] = std::byte{answer.status};
    std::memcpy(slot + 12, &answer.read_len, 4);
    std::memcpy(slot + 16, answer.sense.data(), kTcmuSenseBytes);
    tail = (tail + unanswered.front().bytes) % mailbox->cmdr_size;
    unanswered.pop_front();
    skip();
  }
  void complete(std::uint16_t id) { complete(id, Answer{}); }
  void publish() { HardwareOrdering::publish_command_tail(&mailbox->cmd_tail, tail); }

  Bytes read_data(const std::vector<TcmuIovec>& vectors) const {
    Bytes data;
    for (const TcmuIovec& vector : vectors) {
      data.insert(data.end(), memory_ + vector.iov_base, memory_ + vector.iov_base + vector.iov_len);
    }
    return data;
  }
  void write_data(const std::vector<TcmuIovec>& vectors, const Bytes& data) const {
    std::size_t done = 0;
    for (const TcmuIovec& vector : vectors) {
      std::memcpy(memory_ + vector.iov_base, data.data() + done, vector.iov_len);
      done += vector.iov_len;
    }
    CHECK(done == data.size());
  }

  TcmuMailbox* mailbox;
  std::uint32_t tail;
  std::deque<ServerEntry> unanswered;

 private:
  template <class Word>
  Word woread_index_at(std::uint64_t offset) const {
    Word word{};
    std::memcpy(&word, memory_ + offset, sizeof(word));
    return word;
  }

  ServerEntry read(std::uint32_t offset) const {
    const std::uint64_t at = mailbox->cmdr_off + offset;
    const auto len_op = woread_index_at<std::uint32_t>(at);
    ServerEntry entry{};
    entry.offset = offset;
    entry.bytes = len_op & ~7U;
    entry.opcode = len_op & 7U;
    REQUIRE(entry.bytes >= 8);
    REQUIRE(offset + entry.bytes <= mailbox->cmdr_size);
    if (entry.opcode == kTcmuCommand) {
      entry.id = woread_index_at<std::uint16_t>(at + 4);
      const auto count = woread_index_at<std::uint32_t>(at + 8);
      const auto bidi_count = woread_index_at<std::uint32_t>(at + 12);
      REQUIRE(woread_index_at<std::uint32_t>(at + 16) == 0);
      for (std::uint32_t index = 0; index < count + bidi_count; ++index) {
        const auto vector = woread_index_at<TcmuIovec>(at + 48 + 16 * index);
        (index < count ? entry.data : entry.bidi).push_back(vector);
      }
      const auto cdb_off = woread_index_at<std::uint64_t>(at + 24);
      REQUIRE(cdb_off >= at + 112);
      REQUIRE(cdb_off < at + entry.bytes);
      entry.cdb.assign(memory_ + cdb_off, memory_ + at + entry.bytes);
    } else if (entry.opcode == kTcmuTmr) {
      entry.tmr_type = woread_index_at<std::uint8_t>(at + 8);
      const auto count = woread_index_at<std::uint32_t>(at + 12);
      for (std::uint32_t index = 0; index < count; ++index) {
        entry.tmr_ids.push_back(woread_index_at<std::uint16_t>(at + 32 + 2 * index));
      }
    }
    return entry;
  }

  // Moves the tail over what needs no answer.
  void skip() {
    while (!unanswered.empty() && unanswered.front().opcode != kTcmuCommand) {
      if (unanswered.front().opcode > kTcmuTmr) memory_[mailbox->cmdr_off + tail + 7] |= std::byte{kTcmuUnknownOp};
      tail = (tail + unanswered.front().bytes) % mailbox->cmdr_size;
      unanswered.pop_front();
    }
  }

  std::byte* memory_;
  std::uint32_t read_index_;
};

}  // namespace hushring::test
