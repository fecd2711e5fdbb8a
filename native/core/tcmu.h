// The server's half of one TCMU command ring (Linux target_core_user, ABI version 2).
//
// A template over the ordering policy (ordering.h): the product is TcmuDevice<HardwareOrdering>. It holds no file
// descriptor and makes no system call: publish() tells its caller whether a doorbell is due. Everything it needs is
// allocated when it is made. One thread at a time uses it.
//
// An entry of the ring is at first the kernel's question and later the place of an answer, but not of its own: the
// k-th answer goes into the k-th command entry, whichever command it answers, and destroys what lay there.
//
//   tail (published)            read                   head (the kernel's)
//    │ answered │ answered │ awaits │ awaits │ pad │ new │ new │
//    └───────── slots, in a queue of our own ──────┘
//
// So a command is copied out wholly when it is taken, and the tail moves by lengths that were copied then: the kernel
// believes the tail with a lock held, and a tail that is off the boundary of an entry makes it loop for ever.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <span>

#include "core/chain.h"
#include "core/fault.h"
#include "core/memory.h"
#include "core/tcmu_layout.h"

namespace hushring {

// ---- Tables shared with JavaScript; every layout is the contract with src/native.ts ----------------------------

// A taken command (TcmuCommandRow). Its `data_count` segments are those of the entry's iov_cnt: Data-Out or Data-In,
// which the ring does not tell. `bidi_count` segments of Data-In follow them when a command has both.
struct TcmuCommandRow {
  std::uint32_t command;     // a number of our own, below command_count_max, until the answer is published
  std::uint32_t command_id;  // the kernel's, which stands for another command once the answer is published
  std::uint32_t cdb_bytes;
  std::uint32_t first_segment;
  std::uint32_t data_count;
  std::uint32_t bidi_count;
};

// An answer (TcmuCompletionRow). Only the low byte of `status` counts. The sense data of CHECK CONDITION lies in the
// row of the senses table that has the same number.
struct TcmuCompletionRow {
  std::uint32_t command;
  std::uint32_t status;       // SAM status
  std::uint32_t read_length;  // bytes of Data-In that are valid; 0: all of them
  std::uint32_t flags;        // kTcmuKeep
  std::uint32_t copy_bytes;   // bytes of Data-In that the kernel will copy in the doorbell; only summed up
};

// TcmuCompletionRow::flags: the buffer stays ours until free_kept(). Without effect unless TcmuDevice::flags() has
// kTcmuKeepBuffer.
inline constexpr std::uint32_t kTcmuKeep = 1;

// What take() and publish() learned beside commands (TcmuTidings).
struct TcmuTidings {
  std::uint32_t tmr_present;        // the last take() ended with a task management request
  std::uint32_t tmr_type;           // its TCMU_TMR_*
  std::uint32_t tmr_command_count;  // rows of the aborted table that are valid
  std::uint32_t nearly_full;        // 1: the kernel may be holding commands back for want of room
};

// TcmuCounter. `doorbells`, `off_thread_doorbells` and `native_calls` belong to the caller, which owns the UIO
// descriptor and the boundary.
struct TcmuCounters {
  std::uint64_t commands;
  std::uint64_t completions;
  std::uint64_t batches;
  std::uint64_t doorbells;
  std::uint64_t off_thread_doorbells;
  std::uint64_t publications;  // stores of the tail
  std::uint64_t task_managements;
  std::uint64_t aborted_commands;  // commands in flight that a task management request named
  std::uint64_t unmatched_aborts;  // ids it named that are not in flight: answered already, or never there
  std::uint64_t pads;
  std::uint64_t unknown_ops;
  std::uint64_t ignored_completions;
  std::uint64_t native_calls;
  std::uint64_t last_fault;
};

// ---- What a device is made of ----------------------------------------------------------------------------------

// Most iovecs that an entry can have: the kernel's largest ring has 8 MiB, and an entry is at most half of it.
inline constexpr std::uint32_t kTcmuIovecCountMax = ((4U << 20) - sizeof(TcmuCommandEntry)) / sizeof(TcmuIovec);

// Fixed for the life of a device.
struct TcmuOptions {
  std::uint32_t command_count_max;  // most commands in flight, kept ones and unpublished answers included; 1 to 65535
  std::uint32_t batch_count_max;    // most entries one take() looks at, so most commands it hands out; 1 or more

  // Rows of each table. The segments have room for the largest entry there can be, which costs address space and no
  // memory until it comes, and for a full batch of ordinary commands at once.
  [[nodiscard]] constexpr std::size_t command_rows() const noexcept { return batch_count_max; }
  [[nodiscard]] constexpr std::size_t completion_rows() const noexcept { return command_count_max; }
  [[nodiscard]] constexpr std::size_t aborted_rows() const noexcept { return command_count_max; }
  [[nodiscard]] constexpr std::size_t segment_rows() const noexcept {
    return kTcmuIovecCountMax + 8 * std::size_t{batch_count_max};
  }
};

// Where the tables are. Borrowed for the life of the device; zeroed by their owner.
struct TcmuTables {
  std::span<TcmuCommandRow> commands;
  std::span<std::byte> cdbs;  // a row a command, kCdbBytesMax apart; zeros behind the CDB
  std::span<Segment> segments;
  std::span<const TcmuCompletionRow> completions;
  std::span<const std::byte> senses;  // a row a completion, kTcmuSenseBytes apart; all of it is handed on
  TcmuTidings* tidings;
  std::span<std::uint32_t> aborted;  // numbers of the commands that a task management request named
  TcmuCounters* counters;
};

// ---- The device ------------------------------------------------------------------------------------------------

template <class Ordering>
class TcmuDevice {
 public:
  TcmuDevice(const TcmuOptions& options, const TcmuTables& tables) noexcept
      : options_(options),
        tables_(tables),
        commands_(std::make_unique<Command[]>(options.command_count_max)),
        free_commands_(std::make_unique<std::uint16_t[]>(options.command_count_max)),
        slots_(std::make_unique<Slot[]>(options.command_count_max)),
        command_of_id_(std::make_unique<std::uint16_t[]>(kIdCount)) {
    stop();
  }

  // Starts or restarts on the ring at `map`, which is borrowed until the next start or stop. Entries from the tail on
  // count as new: the ring must never have been answered out of order, or have been reset since. A device that cannot
  // run stays stopped; the fault is kTcmuMailbox.
  [[nodiscard]] Fault start(std::byte* map, std::size_t map_bytes) noexcept {
    stop();
    std::uint32_t tail = 0;
    const Ring ring = read_mailbox(map, map_bytes, tail);
    if (ring.mailbox == nullptr) return Fault::kTcmuMailbox;
    ring_ = ring;
    read_ = head_ = tail_ = tail;
    fault_ = Fault::kNone;
    return Fault::kNone;
  }

  // Stops and forgets what is in flight; late answers are ignored. Touches the ring no more.
  void stop() noexcept {
    ring_ = {};
    std::fill_n(commands_.get(), options_.command_count_max, Command{});
    std::fill_n(command_of_id_.get(), kIdCount, kNoCommand);
    free_count_ = options_.command_count_max;
    // The lowest number is given out first.
    for (std::uint32_t index = 0; index < free_count_; ++index) {
      free_commands_[index] = static_cast<std::uint16_t>(free_count_ - 1 - index);
    }
    slot_front_ = slot_count_ = answered_count_ = 0;
    in_flight_count_ = 0;
    passed_bytes_ = 0;
    live_bytes_ = 0;
    copy_bytes_published_ = 0;
    *tables_.tidings = {};
  }

  // Takes up to `count_max` commands into the tables, and whatever lies before and between them. Returns their
  // number, or minus the fault of a broken device, which takes and publishes nothing any more. Writes the tidings.
  //
  // It ends with a task management request, so that its news comes in the order of the ring: after the commands of
  // this batch, before those of the next. It is found with a `count_max` of 0 too, if it is next: it may be what
  // frees the handlers that hold all commands. At most batch_count_max entries are looked at, so that a peer that
  // fills the ring as fast as it is read cannot hold the thread; sees_entry() tells whether any is left.
  [[nodiscard]] std::int32_t take(std::uint32_t count_max) noexcept {
    if (fault_ != Fault::kNone) return -static_cast<std::int32_t>(fault_);
    if (!running()) return 0;
    *tables_.tidings = {};
    if (const Fault fault = look_at_head(); fault != Fault::kNone) return break_ring(fault);
    Batch batch{.count_max = std::min(count_max, options_.batch_count_max)};
    for (std::uint32_t look = 0; look < options_.batch_count_max && !batch.ended && read_ != head_; ++look) {
      if (const Fault fault = take_entry(batch); fault != Fault::kNone) return break_ring(fault);
    }
    tables_.counters->commands += batch.command_count;
    if (batch.command_count > 0) ++tables_.counters->batches;
    tell_room();
    return static_cast<std::int32_t>(batch.command_count);
  }

  // Answers the commands in the first `count` rows of the completions table. What is written now becomes visible with
  // the next publish(). A row that names no command in flight is ignored and counted: two answers to one id, or one
  // to an unknown id, break the kernel's ring for good.
  void record(std::uint32_t count) noexcept {
    if (fault_ != Fault::kNone) return;
    const std::size_t row_count = std::min<std::size_t>(count, tables_.completions.size());
    for (std::size_t row = 0; row < row_count; ++row) {
      answer(tables_.completions[row], tables_.senses.data() + row * kTcmuSenseBytes);
    }
  }

  // Publishes every recorded answer that may go out, with one store of the tail, and passes over whatever else lies
  // before the next command. True: the tail moved and a doorbell is due (F11); without one the kernel sees nothing.
  [[nodiscard]] bool publish() noexcept {
    copy_bytes_published_ = 0;
    if (!running() || fault_ != Fault::kNone) return false;
    while (slot_count_ > 0 && slots_[slot_front_].answered) pop_slot();
    if (passed_bytes_ == 0) return false;
    tail_ = (tail_ + passed_bytes_) % ring_.size_bytes;
    passed_bytes_ = 0;
    Ordering::publish_command_tail(&ring_.mailbox->cmd_tail, tail_);
    ++tables_.counters->publications;
    tell_room();
    return true;
  }

  // Gives up a command that was answered with kTcmuKeep and published; any other is ignored and counted. Call it
  // before the kernel is told, which may use the id again at once. The caller no longer touches the buffer.
  void free_kept(std::uint32_t command) noexcept {
    if (command >= options_.command_count_max || commands_[command].state != State::kKept) {
      ++tables_.counters->ignored_completions;
      return;
    }
    free(static_cast<std::uint16_t>(command));
  }

  // Breaks the device: it touches the ring no more until it is started anew. Returns minus the fault.
  std::int32_t break_ring(Fault fault) noexcept {
    fault_ = fault;
    tables_.counters->last_fault = static_cast<std::uint64_t>(fault);
    return -static_cast<std::int32_t>(fault);
  }

  // The last look before sleeping, after the event was read: true when there is something to take, also when that is
  // a head that take() will refuse.
  [[nodiscard]] bool sees_entry() const noexcept {
    if (!running() || fault_ != Fault::kNone) return false;
    Ordering::fence_event_then_command_head();
    return Ordering::acquire_command_head(&ring_.mailbox->cmd_head) != read_;
  }

  [[nodiscard]] bool running() const noexcept { return ring_.mailbox != nullptr; }
  [[nodiscard]] Fault fault() const noexcept { return fault_; }
  // What the kernel can do: kTcmuOutOfOrder and so on. 0 while stopped.
  [[nodiscard]] std::uint16_t flags() const noexcept { return ring_.flags; }
  // Answers may be published in any order; else each waits for those before it.
  [[nodiscard]] bool out_of_order() const noexcept { return (ring_.flags & kTcmuOutOfOrder) != 0; }
  // Commands taken and not recorded.
  [[nodiscard]] std::uint32_t in_flight_count() const noexcept { return in_flight_count_; }
  // Answers recorded and not published.
  [[nodiscard]] std::uint32_t unpublished_count() const noexcept { return answered_count_; }
  // Sum of copy_bytes of the last publish().
  [[nodiscard]] std::uint64_t copy_bytes_published() const noexcept { return copy_bytes_published_; }
  // Offsets within the ring: of the next entry to take, and the tail as it was last stored.
  [[nodiscard]] std::uint32_t read_index() const noexcept { return read_; }
  [[nodiscard]] std::uint32_t tail_index() const noexcept { return tail_; }
  // The kernel's id of a command that is taken or kept, as action/free_kept_buf wants it; 0 for any other.
  [[nodiscard]] std::uint16_t id_of(std::uint32_t command) const noexcept {
    return command < options_.command_count_max ? commands_[command].id : std::uint16_t{0};
  }

 private:
  static constexpr std::size_t kIdCount = 65536;
  static constexpr std::uint16_t kNoCommand = 0xffff;  // numbers end at 65534

  enum class State : std::uint8_t {
    kFree,
    kInFlight,  // handed out
    kAnswered,  // its answer is in a slot
    kKept,      // its answer is published, its buffer is still ours
  };

  struct Command {
    std::uint64_t data_bytes = 0;
    std::uint64_t task_management = 0;  // number of the last request that named it
    std::uint32_t slot = 0;             // index of the slot it came in
    std::uint16_t id = 0;
    State state = State::kFree;
    bool keep = false;
  };

  // A command entry between tail and read.
  struct Slot {
    std::uint32_t offset_bytes = 0;
    // From here to the next slot: the entry, and what the kernel skips behind it. Kept here, because the length in
    // the ring may have changed since it was checked, and a length is what the tail is made of.
    std::uint32_t length_bytes = 0;
    std::uint32_t copy_bytes = 0;
    std::uint16_t answered_command = 0;  // not always the one that came here
    bool answered = false;
  };

  // Where the ring and the data area lie; all zero while stopped.
  struct Ring {
    std::byte* map = nullptr;
    TcmuMailbox* mailbox = nullptr;
    std::byte* entries = nullptr;
    std::uint32_t size_bytes = 0;  // no power of two
    std::uint32_t offset_bytes = 0;
    std::uint64_t data_offset_bytes = 0;
    std::uint64_t map_bytes = 0;
    std::uint16_t flags = 0;
  };

  // What one take() has come to.
  struct Batch {
    std::uint32_t count_max;
    std::uint32_t command_count = 0;
    std::uint32_t segment_count = 0;
    bool ended = false;
  };

  // The pieces of one command's buffers.
  struct Pieces {
    std::span<Segment> rows;
    std::uint32_t count = 0;
    std::uint64_t bytes = 0;
    bool rows_exhausted = false;
  };

  // ---- The mailbox ----

  // Every word is read once. The mailbox is null in the result when anything is not as it should be.
  [[nodiscard]] static Ring read_mailbox(std::byte* map, std::size_t map_bytes, std::uint32_t& tail) noexcept {
    const bool aligned = reinterpret_cast<std::uintptr_t>(map) % alignof(TcmuMailbox) == 0;
    if (map == nullptr || !aligned || map_bytes < sizeof(TcmuMailbox)) return {};
    auto* const mailbox = reinterpret_cast<TcmuMailbox*>(map);
    const std::uint16_t version = Ordering::load_relaxed(&mailbox->version);
    const std::uint16_t flags = Ordering::load_relaxed(&mailbox->flags);
    const std::uint32_t offset = Ordering::load_relaxed(&mailbox->cmdr_off);
    const std::uint32_t size = Ordering::load_relaxed(&mailbox->cmdr_size);
    tail = Ordering::load_relaxed(&mailbox->cmd_tail);
    const std::uint64_t end = std::uint64_t{offset} + size;
    // A ring for less than two commands holds none: the kernel keeps an entry to half of it.
    if (version != kTcmuVersion || offset < sizeof(TcmuMailbox) || offset % kTcmuEntryAlign != 0 ||
        size < 2 * kTcmuCommandBytesMin || size % kTcmuEntryAlign != 0 || end > map_bytes || tail >= size ||
        tail % kTcmuEntryAlign != 0) {
      return {};
    }
    return {map, mailbox, map + offset, size, offset, end, map_bytes, flags};
  }

  // Reads the head. Everything up to it may be read then.
  [[nodiscard]] Fault look_at_head() noexcept {
    const std::uint32_t head = Ordering::acquire_command_head(&ring_.mailbox->cmd_head);
    if (head >= ring_.size_bytes || head % kTcmuEntryAlign != 0) return Fault::kTcmuHead;
    // The kernel leaves a byte free, so a head that comes round never reaches the tail: one that went back, or ran
    // into entries that are not answered, looks like that.
    const std::uint64_t taken = distance(tail_, read_);
    if (taken + distance(read_, head) >= ring_.size_bytes) return Fault::kTcmuHead;
    head_ = head;
    return Fault::kNone;
  }

  // Bytes from one offset of the ring forward to another.
  [[nodiscard]] std::uint32_t distance(std::uint32_t from, std::uint32_t to) const noexcept {
    return to >= from ? to - from : ring_.size_bytes - from + to;
  }

  // ---- Taking ----

  // Copies a part of an entry out. Whatever is taken was read once: what was checked is what is used.
  template <typename Part>
  static void read_part(Part* target, const std::byte* source, std::size_t length_bytes = sizeof(Part)) noexcept {
    Ordering::copy_relaxed(reinterpret_cast<std::byte*>(target), source, length_bytes);
  }

  // Takes the entry at `read_`, which the head says is there, or ends the batch before it.
  [[nodiscard]] Fault take_entry(Batch& batch) noexcept {
    TcmuEntryHeader header;
    read_part(&header, ring_.entries + read_);
    // Every length is a multiple of 8, because the low bits are the opcode.
    const std::uint32_t length = header.len_op & ~kTcmuOpcodeMask;
    if (length == 0 || length > distance(read_, head_) || length > ring_.size_bytes - read_) return Fault::kTcmuEntry;
    switch (header.len_op & kTcmuOpcodeMask) {
      case kTcmuCommand:
        return take_command(header, length, batch);
      case kTcmuTmr:
        return take_task_management(length, batch);
      case kTcmuPad:  // nothing but the header can be relied on to be there
        ++tables_.counters->pads;
        break;
      default:
        // The kernel knows by this that the entry was skipped and not served.
        Ordering::store_relaxed(&header_at(read_)->uflags,
                                static_cast<std::uint8_t>(header.uflags | kTcmuUnknownOp));
        ++tables_.counters->unknown_ops;
    }
    skip(length);
    return Fault::kNone;
  }

  [[nodiscard]] Fault take_command(const TcmuEntryHeader& header, std::uint32_t length, Batch& batch) noexcept {
    if (batch.command_count == batch.count_max || free_count_ == 0) {
      batch.ended = true;
      return Fault::kNone;
    }
    if (length < kTcmuCommandBytesMin) return Fault::kTcmuEntry;
    // The kernel would be told twice of one id, and break its ring.
    if (header.cmd_id == 0 || command_of_id_[header.cmd_id] != kNoCommand) return Fault::kTcmuCommandId;

    const std::byte* const slot = ring_.entries + read_;
    TcmuCommandEntry entry;
    entry.hdr = header;
    read_part(&entry.iov_cnt, slot + sizeof(header), sizeof(entry) - sizeof(header));
    const std::uint64_t iovec_count = std::uint64_t{entry.iov_cnt} + entry.iov_bidi_cnt;
    if (iovec_count > (length - sizeof(entry)) / sizeof(TcmuIovec)) return Fault::kTcmuData;

    Pieces data{.rows = tables_.segments.subspan(batch.segment_count)};
    const std::byte* const iovecs = slot + sizeof(entry);
    if (const Fault fault = add_iovecs(iovecs, entry.iov_cnt, data); fault != Fault::kNone) return fault;
    Pieces bidi{.rows = data.rows.subspan(data.count), .rows_exhausted = data.rows_exhausted};
    if (const Fault fault = add_iovecs(iovecs + sizeof(TcmuIovec) * entry.iov_cnt, entry.iov_bidi_cnt, bidi);
        fault != Fault::kNone) {
      return fault;
    }
    if (bidi.rows_exhausted) {
      if (batch.segment_count == 0) return Fault::kTcmuData;
      batch.ended = true;  // it is read again by the next take, with all rows free
      return Fault::kNone;
    }
    // Blocks of the data area belong to one iovec each.
    if (data.bytes + bidi.bytes > ring_.map_bytes - ring_.data_offset_bytes) return Fault::kTcmuData;

    const std::uint64_t answer_bytes =
        std::max<std::uint64_t>(kTcmuCommandBytesMin, sizeof(entry) + iovec_count * sizeof(TcmuIovec));
    const std::uint64_t slot_at = std::uint64_t{ring_.offset_bytes} + read_;
    if (entry.cdb_off < slot_at + answer_bytes || entry.cdb_off >= slot_at + length) return Fault::kTcmuData;
    const std::uint32_t cdb_bytes =
        copy_cdb(ring_.map + entry.cdb_off, slot_at + length - entry.cdb_off, batch.command_count);

    const std::uint16_t command = own(header.cmd_id, length, data.bytes + bidi.bytes);
    tables_.commands[batch.command_count++] = {command,    header.cmd_id, cdb_bytes, batch.segment_count,
                                               data.count, bidi.count};
    batch.segment_count += data.count + bidi.count;
    return Fault::kNone;
  }

  // Copies a CDB that has up to `length_max` bytes into row `row`. Returns how many its first byte says, or as many
  // as there are when its group has no length of its own: that is for whoever answers the command to refuse.
  [[nodiscard]] std::uint32_t copy_cdb(const std::byte* source, std::uint64_t length_max,
                                       std::uint32_t row) noexcept {
    std::byte* const cdb = tables_.cdbs.data() + std::size_t{row} * kCdbBytesMax;
    const auto there = static_cast<std::uint32_t>(std::min<std::uint64_t>(length_max, kCdbBytesMax));
    std::memset(cdb, 0, kCdbBytesMax);
    Ordering::copy_relaxed(cdb, source, there);
    const std::uint32_t said =
        cdb_bytes_of(std::to_integer<std::uint8_t>(cdb[0]), std::to_integer<std::uint8_t>(cdb[7]));
    if (said == 0 || said >= there) return there;
    std::memset(cdb + said, 0, there - said);
    return said;
  }

  // Turns `count` iovecs into pieces that do not cross the edge of a window. Empty ones are skipped.
  [[nodiscard]] Fault add_iovecs(const std::byte* source, std::uint32_t count, Pieces& pieces) const noexcept {
    for (std::uint32_t index = 0; index < count && !pieces.rows_exhausted; ++index) {
      TcmuIovec iovec;
      read_part(&iovec, source + std::size_t{index} * sizeof(iovec));
      if (iovec.iov_len == 0) continue;
      // Compared so that no sum can wrap. With a buffer in the ring, Data-In would overwrite the lengths that the
      // kernel steps by.
      if (iovec.iov_base < ring_.data_offset_bytes || iovec.iov_base >= ring_.map_bytes ||
          iovec.iov_len > ring_.map_bytes - iovec.iov_base) {
        return Fault::kTcmuData;
      }
      pieces.bytes += iovec.iov_len;
      // No command has more: the kernel keeps its length in 32 bits. The sum cannot wrap before it is noticed.
      if (pieces.bytes > UINT32_MAX) return Fault::kTcmuData;
      add_segments(iovec, pieces);
    }
    return Fault::kNone;
  }

  static void add_segments(TcmuIovec iovec, Pieces& pieces) noexcept {
    while (iovec.iov_len > 0) {
      if (pieces.count == pieces.rows.size()) {
        pieces.rows_exhausted = true;
        return;
      }
      const std::uint64_t offset = iovec.iov_base % kWindowBytes;
      const std::uint64_t length = std::min(iovec.iov_len, kWindowBytes - offset);
      pieces.rows[pieces.count++] = {static_cast<std::uint32_t>(iovec.iov_base / kWindowBytes),
                                     static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(length)};
      iovec.iov_base += length;
      iovec.iov_len -= length;
    }
  }

  // Delivers a task management request. There is no answer to it, but each command it names is still to be answered.
  [[nodiscard]] Fault take_task_management(std::uint32_t length, Batch& batch) noexcept {
    TcmuTmrEntry entry;
    if (length < sizeof(entry)) return Fault::kTcmuEntry;
    const std::byte* const slot = ring_.entries + read_;
    read_part(&entry.tmr_type, slot + sizeof(entry.hdr), sizeof(entry) - sizeof(entry.hdr));
    if (entry.cmd_cnt > (length - sizeof(entry)) / sizeof(std::uint16_t)) return Fault::kTcmuEntry;

    const std::uint64_t number = ++tables_.counters->task_managements;
    std::uint32_t named = 0;
    const std::byte* source = slot + sizeof(entry);
    for (std::uint32_t left = entry.cmd_cnt; left > 0;) {
      std::uint16_t ids[64];
      const std::uint32_t count = std::min<std::uint32_t>(left, std::size(ids));
      read_part(ids, source, count * sizeof(std::uint16_t));
      for (const std::uint16_t id : std::span(ids, count)) {
        if (names_in_flight(id, number)) tables_.aborted[named++] = command_of_id_[id];
      }
      source += count * sizeof(std::uint16_t);
      left -= count;
    }
    tables_.counters->aborted_commands += named;
    tables_.counters->unmatched_aborts += entry.cmd_cnt - named;
    *tables_.tidings = {1, entry.tmr_type, named, 0};
    batch.ended = true;
    skip(length);
    return Fault::kNone;
  }

  // Whether request `number` names a command in flight by `id`, for the first time. A list with one id many times
  // would run over the table, which has a row a command.
  [[nodiscard]] bool names_in_flight(std::uint16_t id, std::uint64_t number) noexcept {
    if (command_of_id_[id] == kNoCommand) return false;
    Command& command = commands_[command_of_id_[id]];
    // Its answer may be recorded already and the kernel not know yet.
    if (command.state != State::kInFlight || command.task_management == number) return false;
    command.task_management = number;
    return true;
  }

  // Passes over an entry that nobody answers. It goes with the slot before it, or, if there is none, at once.
  void skip(std::uint32_t length) noexcept {
    (slot_count_ > 0 ? slot(slot_count_ - 1).length_bytes : passed_bytes_) += length;
    advance(length);
  }

  // Makes the entry at `read_` a command of ours. Returns its number.
  [[nodiscard]] std::uint16_t own(std::uint16_t id, std::uint32_t length, std::uint64_t data_bytes) noexcept {
    const std::uint16_t command = free_commands_[--free_count_];
    command_of_id_[id] = command;
    // There is a slot free because there was a command free: a command has a slot until it is published.
    const std::uint32_t index = slot_index(slot_count_++);
    slots_[index] = {.offset_bytes = read_, .length_bytes = length};
    commands_[command] = {.data_bytes = data_bytes, .slot = index, .id = id, .state = State::kInFlight};
    ++in_flight_count_;
    live_bytes_ += data_bytes;
    advance(length);
    return command;
  }

  void advance(std::uint32_t length) noexcept {
    read_ += length;
    if (read_ == ring_.size_bytes) read_ = 0;
  }

  // ---- Answering ----

  void answer(const TcmuCompletionRow& row, const std::byte* sense) noexcept {
    if (row.command >= options_.command_count_max || commands_[row.command].state != State::kInFlight) {
      ++tables_.counters->ignored_completions;
      return;
    }
    Command& command = commands_[row.command];
    command.state = State::kAnswered;
    command.keep = (row.flags & kTcmuKeep) != 0 && (ring_.flags & kTcmuKeepBuffer) != 0;
    // The first slot without an answer, whoever came in it. A kernel that cannot tell answers apart by id wants each
    // in its own place instead.
    Slot& place = slots_[out_of_order() ? slot_index(answered_count_) : command.slot];
    place.answered = true;
    place.answered_command = static_cast<std::uint16_t>(row.command);
    place.copy_bytes = row.copy_bytes;
    const bool short_read = row.read_length != 0 && (ring_.flags & kTcmuReadLength) != 0;
    const std::uint8_t uflags = static_cast<std::uint8_t>((short_read ? kTcmuReadLengthValid : 0) |
                                                          (command.keep ? kTcmuBufferKept : 0));
    write_answer(place.offset_bytes, command.id, uflags, static_cast<std::uint8_t>(row.status),
                 short_read ? row.read_length : 0, sense);
    ++answered_count_;
    --in_flight_count_;
    ++tables_.counters->completions;
  }

  // Fills the entry at `offset`. Its len_op stays: the kernel finds the next entry by it.
  void write_answer(std::uint32_t offset, std::uint16_t id, std::uint8_t uflags, std::uint8_t status,
                    std::uint32_t read_length, const std::byte* sense) noexcept {
    TcmuEntryHeader* const header = header_at(offset);
    Ordering::store_relaxed(&header->cmd_id, id);
    Ordering::store_relaxed(&header->uflags, uflags);
    // The lengths of whoever had the slot lie here; all of it is written, because a rest of them would be read_len.
    struct {
      std::uint8_t scsi_status;
      std::uint8_t pad1 = 0;
      std::uint16_t pad2 = 0;
      std::uint32_t read_len;
    } const result{.scsi_status = status, .read_len = read_length};
    constexpr std::size_t kResultAt = offsetof(TcmuResponseEntry, scsi_status);
    std::byte* const entry = ring_.entries + offset;
    Ordering::write_relaxed(entry + kResultAt, reinterpret_cast<const std::byte*>(&result), sizeof(result));
    if (status != kCheckCondition) return;
    Ordering::write_relaxed(entry + offsetof(TcmuResponseEntry, sense_buffer), sense, kTcmuSenseBytes);
  }

  // Gives up the first slot, which has an answer.
  void pop_slot() noexcept {
    const Slot& front = slots_[slot_front_];
    passed_bytes_ += front.length_bytes;
    copy_bytes_published_ += front.copy_bytes;
    Command& command = commands_[front.answered_command];
    if (command.keep) command.state = State::kKept;
    else free(front.answered_command);
    slot_front_ = slot_index(1);
    --slot_count_;
    --answered_count_;
  }

  void free(std::uint16_t command) noexcept {
    command_of_id_[commands_[command].id] = kNoCommand;
    live_bytes_ -= commands_[command].data_bytes;
    commands_[command] = {};
    free_commands_[free_count_++] = command;
  }

  // ---- Slots and room ----

  // Where in `slots_` the `position`-th slot from the front is.
  [[nodiscard]] std::uint32_t slot_index(std::uint32_t position) const noexcept {
    const std::uint32_t index = slot_front_ + position;
    return index < options_.command_count_max ? index : index - options_.command_count_max;
  }
  [[nodiscard]] Slot& slot(std::uint32_t position) noexcept { return slots_[slot_index(position)]; }

  [[nodiscard]] TcmuEntryHeader* header_at(std::uint32_t offset) const noexcept {
    return reinterpret_cast<TcmuEntryHeader*>(ring_.entries + offset);
  }

  // From half of the ring or of the data area on, the largest command may not fit any more, and one that is held back
  // waits for the next doorbell, whatever else would delay that.
  void tell_room() noexcept {
    const std::uint64_t ring_bytes = distance(tail_, head_);
    const std::uint64_t data_area_bytes = ring_.map_bytes - ring_.data_offset_bytes;
    tables_.tidings->nearly_full =
        2 * ring_bytes > ring_.size_bytes || 2 * live_bytes_ > data_area_bytes ? 1 : 0;
  }

  static constexpr std::uint8_t kCheckCondition = 2;

  const TcmuOptions options_;
  const TcmuTables tables_;
  const std::unique_ptr<Command[]> commands_;             // by our number
  const std::unique_ptr<std::uint16_t[]> free_commands_;  // a stack of free numbers
  const std::unique_ptr<Slot[]> slots_;                   // a ring of the command entries between tail and read
  const std::unique_ptr<std::uint16_t[]> command_of_id_;  // our number by the kernel's id, or kNoCommand
  std::uint32_t free_count_ = 0;
  std::uint32_t slot_front_ = 0;
  std::uint32_t slot_count_ = 0;
  std::uint32_t answered_count_ = 0;  // slots with an answer; the first ones unless answers are bound to their places
  std::uint32_t in_flight_count_ = 0;

  Ring ring_;
  Fault fault_ = Fault::kNone;
  std::uint32_t read_ = 0;  // next entry to take
  std::uint32_t head_ = 0;  // as it was last read
  std::uint32_t tail_ = 0;  // as it was last stored; the word in the mailbox is never read back
  std::uint32_t passed_bytes_ = 0;  // entries between tail and the first slot, not yet published
  std::uint64_t live_bytes_ = 0;    // buffers of the commands we own
  std::uint64_t copy_bytes_published_ = 0;
};

}  // namespace hushring
