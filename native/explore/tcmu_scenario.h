// A TCMU ring: the product's server half (core/tcmu.h) and a kernel that keeps up to two commands on a ring of three
// entries, answered in any order. The drain of a doorbell is kernel code in the server's thread, under the kernel's
// lock; the kernel also drains for reasons of its own, as it does when an attribute is written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/tcmu.h"
#include "explore/world.h"

namespace hushring::explore {

template <class ServerOrdering>
class TcmuScenario final : public Scenario {
 public:
  explicit TcmuScenario(std::uint32_t command_count)
      : command_count_(command_count),
        shared_(std::make_unique<Line[]>(kMapBytes / sizeof(Line))),
        map_(base(), kMapBytes),
        options_{.command_count_max = kIdCount, .batch_count_max = kIdCount},
        commands_(options_.command_rows()),
        cdbs_(options_.command_rows() * kCdbBytesMax),
        segments_(16),
        completions_(options_.completion_rows()),
        senses_(options_.completion_rows() * kTcmuSenseBytes),
        aborted_(options_.aborted_rows()),
        device_(options_, {commands_, cdbs_, segments_, completions_, senses_, &tidings_, aborted_, &counters_}) {
    TcmuMailbox& words = *mailbox();
    words.version = kTcmuVersion;
    words.flags = kTcmuOutOfOrder;
    words.cmdr_off = kRingAt;
    words.cmdr_size = kRingBytes;
    leave_old_entries();
    name_cells();
    if (device_.start(base(), kMapBytes) != Fault::kNone) std::abort();
  }

  void run(std::size_t side) override { side == kServer ? run_server() : run_kernel(); }
  [[nodiscard]] bool is_done() const override { return answered_ == command_count_; }
  [[nodiscard]] const CellMap& map() const override { return map_; }
  [[nodiscard]] bool is_ordered(std::size_t event) const override { return event != kUioEvent; }
  [[nodiscard]] std::string side_name(std::size_t side) const override { return side == kServer ? "server" : "kernel"; }
  [[nodiscard]] std::string wait_name(std::size_t event) const override {
    switch (event) {
      case kUioEvent:
        return "sleeps until there is an event";
      case kRoom:
        return "sleeps until there is room";
      default:
        return "sleeps until it gets the kernel's lock";
    }
  }
  [[nodiscard]] std::string post_name(std::size_t event) const override {
    switch (event) {
      case kUioEvent:
        return "counts an event";
      case kRoom:
        return "tells that there is room";
      default:
        return "gives the kernel's lock back";
    }
  }
  [[nodiscard]] std::string get_name(std::size_t event) const override {
    switch (event) {
      case kUioEvent:
        return "reads the event";
      case kRoom:
        return "is woken";
      default:
        return "takes the kernel's lock";
    }
  }

 private:
  static constexpr std::size_t kServer = 0;
  static constexpr std::uint8_t kUioEvent = 0;
  static constexpr std::uint8_t kRoom = 1;
  static constexpr std::uint8_t kLock = 2;

  static constexpr std::uint32_t kRingAt = 128;
  static constexpr std::uint32_t kEntryBytes = 128;
  static constexpr std::uint32_t kRingBytes = 3 * kEntryBytes;  // one entry stays free: the kernel leaves a byte
  static constexpr std::uint32_t kDataAt = kRingAt + kRingBytes;
  static constexpr std::uint32_t kMapBytes = kDataAt + 128;
  static constexpr std::uint32_t kIdCount = 2;

  // ---- The server ----

  void run_server() {
    for (;;) {
      wait(kUioEvent);
      do {
        const std::int32_t taken = device_.take(kIdCount);
        if (taken < 0) World::fail("the server finds an entry that no kernel writes");
        // The last one first: an answer goes into the first entry that has none, whoever came in it.
        for (std::int32_t row = taken; row > 0; --row) serve(static_cast<std::uint32_t>(row - 1), taken - row);
        device_.record(static_cast<std::uint32_t>(taken));
        forget_rows();
        if (device_.publish()) ring_doorbell();
      } while (device_.sees_entry());
    }
  }

  // What lies in the tables from the last batch is read by nobody, but would make equal states look different.
  void forget_rows() {
    std::fill(commands_.begin(), commands_.end(), TcmuCommandRow{});
    std::fill(segments_.begin(), segments_.end(), Segment{});
    std::fill(completions_.begin(), completions_.end(), TcmuCompletionRow{});
    tidings_ = {};
  }

  // The answer to a question is its double, in the same place.
  void serve(std::uint32_t row, std::int32_t completion) {
    const TcmuCommandRow& command = commands_[row];
    const Segment& segment = segments_[command.first_segment];
    if (command.data_count != 1 || segment.offset_bytes < kDataAt || segment.length_bytes != 8) {
      World::fail("the server is at work on a command that nobody sent");
    }
    auto* const data = reinterpret_cast<std::uint64_t*>(base() + segment.offset_bytes);
    ServerOrdering::store_relaxed(data, 2 * ServerOrdering::load_relaxed(data));
    completions_[static_cast<std::size_t>(completion)] = {command.command, 0, 0, 0, 0};
  }

  void ring_doorbell() {
    World::note("the server rings the doorbell; the kernel's code runs in its thread");
    wait(kLock);
    const bool made_room = drain();
    post(kLock);
    if (made_room) post(kRoom);
  }

  // ---- The kernel ----

  void run_kernel() {
    post(kLock);
    while (answered_ < command_count_) {
      wait(kLock);
      drain();
      const bool sends = asked_ < command_count_ && asked_ - answered_ < kIdCount;
      if (sends) send();
      post(kLock);
      if (!sends && answered_ < command_count_) wait(kRoom);
    }
  }

  void send() {
    const std::uint32_t slot = asked_of_[0] == 0 ? 0 : 1;
    const auto id = static_cast<std::uint16_t>(slot + 1);
    asked_of_[slot] = ++asked_;
    Kernel::store_relaxed(data(slot), std::uint64_t{asked_});
    std::byte* const entry = base() + kRingAt + head_;
    auto* const header = reinterpret_cast<TcmuEntryHeader*>(entry);
    Kernel::store_relaxed(&header->len_op, kEntryBytes | kTcmuCommand);
    Kernel::store_relaxed(&header->cmd_id, id);
    Kernel::store_relaxed(&header->uflags, std::uint8_t{0});
    store_word(entry + 8, 1);                                                   // iov_cnt 1, iov_bidi_cnt 0
    store_word(entry + offsetof(TcmuCommandEntry, cdb_off), kRingAt + head_ + kTcmuCommandBytesMin);
    store_word(entry + sizeof(TcmuCommandEntry), kDataAt + 8 * slot);           // iov_base
    store_word(entry + sizeof(TcmuCommandEntry) + 8, 8);                        // iov_len
    head_ = (head_ + kEntryBytes) % kRingBytes;
    Kernel::publish_command_head(&mailbox()->cmd_head, head_);
    // The atomic increment of the event count is a full barrier on x86 and orders nothing elsewhere but with one.
    World::step({.act = Act::kFence});
    post(kUioEvent);
  }

  // Takes answers up to the tail. True when there were any.
  bool drain() {
    const std::uint32_t tail = Kernel::acquire_command_tail(&mailbox()->cmd_tail);
    const bool has_answers = drained_ != tail;
    for (; drained_ != tail; drained_ = (drained_ + kEntryBytes) % kRingBytes) {
      if (drained_ == head_) World::fail("the tail is beyond the head");
      const auto* const header = reinterpret_cast<const TcmuEntryHeader*>(base() + kRingAt + drained_);
      const std::uint16_t id = Kernel::load_relaxed(&header->cmd_id);
      if (id == 0 || id > kIdCount || asked_of_[id - 1] == 0) World::fail("cmd_id not found, ring is broken");
      const std::uint64_t answer = Kernel::load_relaxed(data(id - 1U));
      if (answer != 2 * std::uint64_t{asked_of_[id - 1]}) World::fail("the initiator gets the answer to another command");
      asked_of_[id - 1] = 0;
      ++answered_;
    }
    return has_answers;
  }

  // ---- The memory ----

  using Kernel = ExploredOrdering;
  struct alignas(128) Line {
    std::byte bytes[128];
  };

  [[nodiscard]] std::byte* base() const { return reinterpret_cast<std::byte*>(shared_.get()); }
  [[nodiscard]] TcmuMailbox* mailbox() const { return reinterpret_cast<TcmuMailbox*>(base()); }
  [[nodiscard]] std::uint64_t* data(std::uint32_t slot) const {
    return reinterpret_cast<std::uint64_t*>(base() + kDataAt) + slot;
  }
  static void store_word(std::byte* where, std::uint64_t value) {
    Kernel::store_relaxed(reinterpret_cast<std::uint64_t*>(where), value);
  }

  // The ring as an earlier lap left it: commands of id 2, answered long ago.
  void leave_old_entries() {
    for (std::uint32_t offset = 0; offset < kRingBytes; offset += kEntryBytes) {
      TcmuCommandEntry entry{};
      entry.hdr = {.len_op = kEntryBytes | kTcmuCommand, .cmd_id = kIdCount, .kflags = 0, .uflags = 0};
      entry.iov_cnt = 1;
      entry.cdb_off = kRingAt + offset + kTcmuCommandBytesMin;
      const TcmuIovec iovec{kDataAt + 8 * (kIdCount - 1), 8};
      std::memcpy(base() + kRingAt + offset, &entry, sizeof(entry));
      std::memcpy(base() + kRingAt + offset + sizeof(entry), &iovec, sizeof(iovec));
    }
  }

  void name_cells() {
    map_.add(&mailbox()->version, 2, "version");
    map_.add(&mailbox()->flags, 2, "flags");
    map_.add(&mailbox()->cmdr_off, 4, "cmdr_off");
    map_.add(&mailbox()->cmdr_size, 4, "cmdr_size");
    map_.add(&mailbox()->cmd_head, 4, "cmd_head", false);
    map_.add(&mailbox()->cmd_tail, 4, "cmd_tail", false);
    for (std::uint32_t offset = 0; offset < kRingBytes; offset += kEntryBytes) {
      const std::string entry = "entry[" + std::to_string(offset) + "].";
      std::byte* const where = base() + kRingAt + offset;
      auto* const header = reinterpret_cast<TcmuEntryHeader*>(where);
      map_.add(&header->len_op, 4, entry + "len_op");
      map_.add(&header->cmd_id, 2, entry + "cmd_id");
      map_.add(&header->kflags, 1, entry + "kflags");
      map_.add(&header->uflags, 1, entry + "uflags");
      for (std::uint32_t at = 8; at < kEntryBytes; at += 8) map_.add(where + at, 8, entry + std::to_string(at));
    }
    for (std::uint32_t slot = 0; slot < kIdCount; ++slot) map_.add(data(slot), 8, "data of id " + std::to_string(slot + 1));
  }

  const std::uint32_t command_count_;
  const std::unique_ptr<Line[]> shared_;
  CellMap map_;

  std::uint32_t head_ = 0;
  std::uint32_t drained_ = 0;
  std::uint32_t asked_ = 0;
  std::uint32_t answered_ = 0;
  std::uint32_t asked_of_[kIdCount] = {};  // the question that an id stands for; 0: free

  // Written and never read by the programs: no part of a state.
  static inline TcmuCounters counters_;

  const TcmuOptions options_;
  std::vector<TcmuCommandRow> commands_;
  std::vector<std::byte> cdbs_;
  std::vector<Segment> segments_;
  std::vector<TcmuCompletionRow> completions_;
  std::vector<std::byte> senses_;
  TcmuTidings tidings_{};
  std::vector<std::uint32_t> aborted_;
  TcmuDevice<ServerOrdering> device_;
};

}  // namespace hushring::explore
