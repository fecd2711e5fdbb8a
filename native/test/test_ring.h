// A TCMU ring under test: the shared region, a script that writes entries into it by hand and reads answers out of
// it, and the device. The script keeps its own list of what it wrote and complains about every answer that the kernel
// could not bear.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/ordering.h"
#include "core/tcmu.h"

namespace hushring::test {

inline constexpr std::uint32_t kRingOffset = 128;

struct TestRingOptions {
  std::uint32_t ring_bytes = 1000;  // no power of two
  std::uint64_t data_bytes = 0x1'0000;
  std::uint32_t start = 0;  // head and tail at first
  std::uint16_t flags = kTcmuOutOfOrder | kTcmuReadLength | kTcmuTaskManagement | kTcmuKeepBuffer;
  std::uint32_t command_count_max = 8;
  std::uint32_t batch_count_max = 8;
  std::uint32_t segment_rows = 64;
};

struct ScriptedCommand {
  std::uint16_t id;
  std::vector<TcmuIovec> iovecs = {};
  std::vector<TcmuIovec> bidi_iovecs = {};
  std::vector<std::uint8_t> cdb = {0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0};
};

// What the kernel would find in the place of an answer.
struct ScriptedAnswer {
  std::uint32_t offset;  // of the slot
  std::uint16_t id;
  std::uint8_t uflags;
  std::uint8_t status;
  std::uint32_t read_len;
  std::vector<std::uint8_t> sense;
};

// The region with the kernel's side of it.
class RingScript {
 public:
  explicit RingScript(const TestRingOptions& options)
      : ring_bytes_(options.ring_bytes),
        in_order_((options.flags & kTcmuOutOfOrder) == 0),
        map_bytes_((data_offset() + options.data_bytes + 63) / 64 * 64),
        memory_(allocate(map_bytes_)),
        head_(options.start),
        drained_(options.start) {
    TcmuMailbox& words = mailbox();
    words.version = kTcmuVersion;
    words.flags = options.flags;
    words.cmdr_off = kRingOffset;
    words.cmdr_size = ring_bytes_;
    words.cmd_head = words.cmd_tail = options.start;
  }

  [[nodiscard]] std::byte* map() const { return memory_.get(); }
  [[nodiscard]] std::size_t map_bytes() const { return map_bytes_; }
  [[nodiscard]] TcmuMailbox& mailbox() const { return *reinterpret_cast<TcmuMailbox*>(map()); }
  [[nodiscard]] std::byte* entry(std::uint32_t offset) const { return map() + kRingOffset + offset; }
  [[nodiscard]] std::uint64_t data_offset() const { return kRingOffset + std::uint64_t{ring_bytes_}; }
  template <typename Word>
  void poke(std::uint32_t offset, std::size_t field, Word value) const {
    std::memcpy(entry(offset) + field, &value, sizeof(value));
  }
  template <typename Word>
  [[nodiscard]] Word peek(std::uint32_t offset, std::size_t field) const {
    Word value;
    std::memcpy(&value, entry(offset) + field, sizeof(value));
    return value;
  }

  // ---- Producing; each function writes one entry and returns its offset. publish() shows what was written ----

  static std::uint32_t command_bytes(std::size_t iovec_count, std::size_t cdb_bytes) {
    return static_cast<std::uint32_t>(answer_bytes(iovec_count) + (cdb_bytes + 7) / 8 * 8);
  }

  std::uint32_t command(const ScriptedCommand& command) {
    const std::size_t iovec_count = command.iovecs.size() + command.bidi_iovecs.size();
    const std::uint32_t offset =
        begin(kTcmuCommand, command.id, command_bytes(iovec_count, command.cdb.size()));
    const std::size_t cdb_at = answer_bytes(iovec_count);
    poke(offset, 8, static_cast<std::uint32_t>(command.iovecs.size()));
    poke(offset, 12, static_cast<std::uint32_t>(command.bidi_iovecs.size()));
    poke(offset, 24, std::uint64_t{kRingOffset} + offset + cdb_at);
    std::size_t at = 48;
    for (const auto* const list : {&command.iovecs, &command.bidi_iovecs}) {
      for (const TcmuIovec& iovec : *list) {
        poke(offset, at, iovec);
        at += sizeof(iovec);
      }
    }
    std::memcpy(entry(offset) + cdb_at, command.cdb.data(), command.cdb.size());
    ids_.insert(command.id);
    return offset;
  }

  std::uint32_t task_management(std::uint8_t type, const std::vector<std::uint16_t>& ids) {
    const auto length = static_cast<std::uint32_t>((32 + 2 * ids.size() + 7) / 8 * 8);
    const std::uint32_t offset = begin(kTcmuTmr, 0, length);
    poke(offset, 8, type);
    poke(offset, 12, static_cast<std::uint32_t>(ids.size()));
    for (std::size_t index = 0; index < ids.size(); ++index) poke(offset, 32 + 2 * index, ids[index]);
    return offset;
  }

  // An entry of any opcode with nothing in it. A pad is written by itself where an entry does not fit.
  std::uint32_t bare(std::uint32_t opcode, std::uint32_t length) { return begin(opcode, 0, length); }

  void publish() const { HardwareOrdering::publish_command_head(&mailbox().cmd_head, head_); }
  void publish(std::uint32_t head) const { HardwareOrdering::publish_command_head(&mailbox().cmd_head, head); }
  [[nodiscard]] std::uint32_t head() const { return head_; }
  [[nodiscard]] std::uint32_t tail() const { return mailbox().cmd_tail; }
  // Room left for entries, one byte of it never used.
  [[nodiscard]] std::uint32_t room_bytes() const { return ring_bytes_ - used_bytes_ - 1; }
  // Room that an entry of that length takes, with the pad before it.
  [[nodiscard]] std::uint32_t needed_bytes(std::uint32_t length) const {
    return length > ring_bytes_ - head_ ? ring_bytes_ - head_ + length : length;
  }
  [[nodiscard]] const std::set<std::uint16_t>& ids() const { return ids_; }

  // ---- Draining ----

  // Steps up to the tail, entry by entry, and returns the answers.
  std::vector<ScriptedAnswer> drain() {
    std::vector<ScriptedAnswer> answers;
    const std::uint32_t tail = HardwareOrdering::acquire_command_tail(&mailbox().cmd_tail);
    while (drained_ != tail && complaint_.empty()) {
      if (written_.empty()) {
        complain("the tail is not at an entry");
        break;
      }
      const Written written = written_.front();
      written_.pop_front();
      if (peek<std::uint32_t>(written.offset, 0) != (written.length | written.opcode)) complain("a len_op changed");
      if (written.opcode == kTcmuCommand) read_answer(written, answers);
      const auto uflags = peek<std::uint8_t>(written.offset, 7);
      if (written.opcode > kTcmuTmr && uflags != kTcmuUnknownOp) complain("an unknown opcode is not marked");
      used_bytes_ -= written.length;
      drained_ = (written.offset + written.length) % ring_bytes_;
    }
    return answers;
  }
  // The kernel may use the id of a kept buffer again.
  void free_kept(std::uint16_t id) {
    if (kept_.erase(id) == 0) complain("an id was freed that was not kept");
    ids_.erase(id);
  }

  // The first thing that no kernel could bear; empty if there was none.
  [[nodiscard]] const std::string& complaint() const { return complaint_; }

 private:
  struct Written {
    std::uint32_t offset;
    std::uint32_t length;
    std::uint32_t opcode;
    std::uint16_t id;
  };

  static constexpr std::size_t kLarge = 1U << 24;  // from here on memory is reserved and not touched

  static std::size_t answer_bytes(std::size_t iovec_count) {
    return iovec_count <= 4 ? 112 : 48 + 16 * iovec_count;
  }

  // A small region is an allocation of its own, so that AddressSanitizer sees every byte beyond its end.
  static std::shared_ptr<std::byte> allocate(std::size_t size_bytes) {
    if (size_bytes < kLarge) {
      auto* const memory = static_cast<std::byte*>(std::aligned_alloc(64, size_bytes));
      std::memset(memory, 0, size_bytes);
      return {memory, [](std::byte* owned) { std::free(owned); }};
    }
    void* const memory =
        mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    return {static_cast<std::byte*>(memory), [size_bytes](std::byte* owned) { munmap(owned, size_bytes); }};
  }

  std::uint32_t begin(std::uint32_t opcode, std::uint16_t id, std::uint32_t length) {
    if (length > ring_bytes_ - head_) begin(kTcmuPad, 0, ring_bytes_ - head_);
    const std::uint32_t offset = head_;
    std::memset(entry(offset), 0, length);
    poke(offset, 0, length | opcode);
    poke(offset, 4, id);
    written_.push_back({offset, length, opcode, id});
    used_bytes_ += length;
    head_ = (head_ + length) % ring_bytes_;
    return offset;
  }

  void read_answer(const Written& written, std::vector<ScriptedAnswer>& answers) {
    ScriptedAnswer answer{
        .offset = written.offset,
        .id = peek<std::uint16_t>(written.offset, 4),
        .uflags = peek<std::uint8_t>(written.offset, 7),
        .status = peek<std::uint8_t>(written.offset, 8),
        .read_len = peek<std::uint32_t>(written.offset, 12),
        .sense = std::vector<std::uint8_t>(96),
    };
    std::memcpy(answer.sense.data(), entry(written.offset) + 16, 96);
    if (in_order_ && answer.id != written.id) complain("an answer is out of order");
    if (ids_.count(answer.id) == 0 || kept_.count(answer.id) != 0) complain("cmd_id not found, ring is broken");
    if ((answer.uflags & kTcmuBufferKept) != 0) kept_.insert(answer.id);
    else ids_.erase(answer.id);
    answers.push_back(std::move(answer));
  }

  void complain(const char* text) {
    if (complaint_.empty()) complaint_ = text;
  }

  const std::uint32_t ring_bytes_;
  const bool in_order_;
  const std::size_t map_bytes_;
  const std::shared_ptr<std::byte> memory_;
  std::uint32_t head_;
  std::uint32_t drained_;
  std::uint32_t used_bytes_ = 0;
  std::deque<Written> written_;  // entries that were not drained
  std::set<std::uint16_t> ids_;  // of commands that were not answered, or whose buffer is kept
  std::set<std::uint16_t> kept_;
  std::string complaint_;
};

template <class Ordering = HardwareOrdering>
class TestRing {
 public:
  explicit TestRing(const TestRingOptions& options = {})
      : script(options),
        tcmu_options{options.command_count_max, options.batch_count_max},
        commands(tcmu_options.command_rows()),
        cdbs(tcmu_options.command_rows() * kCdbBytesMax),
        segments(options.segment_rows),
        completions(tcmu_options.completion_rows()),
        senses(tcmu_options.completion_rows() * kTcmuSenseBytes),
        aborted(tcmu_options.aborted_rows()),
        device(tcmu_options,
               {commands, cdbs, segments, completions, senses, &tidings, aborted, &counters}) {
    start_fault = device.start(script.map(), script.map_bytes());
  }

  // Shows what was written and takes it.
  std::int32_t take(std::uint32_t count_max = 65535) {
    script.publish();
    return device.take(count_max);
  }
  // Records one answer.
  void record(const TcmuCompletionRow& row) {
    completions[0] = row;
    device.record(1);
  }
  // Records good answers to these commands, in this order.
  void record_good(std::initializer_list<std::uint32_t> numbers) {
    std::uint32_t count = 0;
    for (const std::uint32_t number : numbers) completions[count++] = {number, 0, 0, 0, 0};
    device.record(count);
  }
  // Publishes and drains.
  std::vector<ScriptedAnswer> answers() {
    static_cast<void>(device.publish());
    return script.drain();
  }
  [[nodiscard]] const std::byte* cdb(std::size_t row) const { return &cdbs[row * kCdbBytesMax]; }

  RingScript script;
  TcmuOptions tcmu_options;
  std::vector<TcmuCommandRow> commands;
  std::vector<std::byte> cdbs;
  std::vector<Segment> segments;
  std::vector<TcmuCompletionRow> completions;
  std::vector<std::byte> senses;
  TcmuTidings tidings{};
  std::vector<std::uint32_t> aborted;
  TcmuCounters counters{};
  TcmuDevice<Ordering> device;
  Fault start_fault = Fault::kNone;
};

}  // namespace hushring::test
