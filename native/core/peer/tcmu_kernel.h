// The kernel's half of a TCMU device, and the initiator's view of it: what target_core_user of Linux 6.12
// (drivers/target/target_core_user.c) and the part of the target core around it (target_core_transport.c,
// target_core_tmr.c) do with the ring that they share with a server. For tests, the test kit and benches.
//
// A template over the ordering policy (ordering.h), like the server's half. One thread at a time uses it, as the
// kernel's cmdr_lock sees to. It holds no file descriptor and no clock: events are counted, time is what advance()
// says, and results wait until reap() takes them, so that the same calls always bring about the same bytes.
//
// What it shares with the real driver is played on both: test/front-ends/tcmu-agreement.test.ts, where Linux 6.1 behaves
// no differently.
//
// The server is not believed. Where the real kernel would loop for ever or read what is no entry, this one stops and
// says what the server did (ServerFault).
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/tcmu_layout.h"

namespace hushring {

// ---- Options ---------------------------------------------------------------------------------------------------

struct TcmuKernelOptions {
  std::uint32_t ring_bytes = 8U << 20;           // mailbox and command ring: a multiple of 4096 (cmd_ring_size_mb)
  std::uint64_t data_area_bytes = 1ULL << 30;    // a multiple of the block (max_data_area_mb)
  std::uint32_t block_bytes = 4096;              // a multiple of 4096 (data_pages_per_blk)
  std::uint16_t flags = kTcmuOutOfOrder | kTcmuReadLength | kTcmuTaskManagement | kTcmuKeepBuffer;
  bool tmr_notification = true;                  // needs kTcmuTaskManagement; the kernel's default is off
  std::uint64_t command_timeout_ms = 30'000;     // cmd_time_out; 0: never
  std::int64_t queue_full_timeout_ms = -1;       // qfull_time_out; -1: as command_timeout_ms, or 30 s if that is 0
};

inline constexpr std::uint32_t kTcmuPageBytes = 4096;
inline constexpr std::uint32_t kTcmuRingBytesMax = 8U << 20;
inline constexpr std::uint64_t kTcmuDataAreaBytesMax = 16ULL << 30;

// An option by its name in TypeScript, and what it should be.
struct TcmuKernelComplaint {
  const char* name;
  const char* expectation;
};
// What is wrong with the options. Nothing when they can be used.
[[nodiscard]] std::optional<TcmuKernelComplaint> complaint_about(const TcmuKernelOptions& options) noexcept;

// Bytes that server and kernel share.
[[nodiscard]] constexpr std::uint64_t map_bytes_of(const TcmuKernelOptions& options) noexcept {
  return options.ring_bytes + options.data_area_bytes;
}

// ---- The initiator ---------------------------------------------------------------------------------------------

// SCSI status codes (SAM-5, 5.3.1) that the kernel itself gives.
inline constexpr std::uint8_t kStatusGood = 0x00;
inline constexpr std::uint8_t kStatusCheckCondition = 0x02;
inline constexpr std::uint8_t kStatusBusy = 0x08;
inline constexpr std::uint8_t kStatusTaskSetFull = 0x28;
inline constexpr std::uint8_t kStatusTaskAborted = 0x40;

// A command as its initiator sends it. Both kinds of data make it bidirectional.
struct InitiatorCommand {
  std::uint64_t tag = 0;  // names it among the commands of its initiator
  std::span<const std::byte> cdb;  // copied: as many bytes as the first one says, zeros for what is missing
  // Borrowed until the result of the command was reaped.
  std::span<const std::byte> data_out;
  std::span<std::byte> data_in;
};

using SenseBytes = std::array<std::byte, kTcmuSenseBytes>;

// How a command ended.
struct InitiatorResult {
  std::uint64_t tag = 0;
  std::uint8_t status = kStatusGood;
  SenseBytes sense{};                // zeros but for CHECK CONDITION
  std::uint32_t data_in_bytes = 0;   // how many of its data_in were written, from the first on
  std::uint32_t residual_bytes = 0;  // how many fewer the server said it has
};

// Sense data in fixed format (SPC-4, 4.5.3).
[[nodiscard]] SenseBytes fixed_sense(std::uint8_t key, std::uint8_t asc, std::uint8_t ascq) noexcept;

// Task management functions by the numbers of an entry (enum tcmu_tmr_type).
inline constexpr std::uint8_t kTmrAbortTask = 1;
inline constexpr std::uint8_t kTmrLunReset = 5;

enum class TmrResponse : std::uint8_t { kFunctionComplete = 0, kTaskDoesNotExist = 1 };

// How a task management function ended.
struct TmrResult {
  std::uint64_t number = 0;  // as its initiator gave it
  TmrResponse response = TmrResponse::kFunctionComplete;
};

// ---- The server ------------------------------------------------------------------------------------------------

// What a server can do wrong so that the ring cannot go on. In the words of the real kernel kCommandId and kKeptTwice
// make the ring "broken"; the others make it loop for ever, or mistake something else for an entry.
enum class ServerFault : std::uint8_t {
  kNone = 0,
  kCommandId = 1,     // completed an id that is not in flight: a wrong one, or one it completed before
  kKeptTwice = 2,     // completed a command again whose buffer it kept
  kTailRange = 3,     // a tail that is no offset in the ring, went back, or is beyond the head
  kTailBoundary = 4,  // a tail inside an entry
  kEntryLength = 5,   // length or opcode of an entry were changed; or a hand-made entry is none
  kOrder = 6,         // completed out of order though the kernel never offered that
  kUnknownOpcode = 7,  // passed an entry of an opcode it cannot know without saying so (UNKNOWN_OP)
};
[[nodiscard]] const char* text_of(ServerFault fault) noexcept;

// ---- Numbers ---------------------------------------------------------------------------------------------------

// Numbers from 0 to count - 1 of which always the lowest free one is given out, as the kernel does with data blocks
// (a bitmap) and ids (an xarray).
class LowestFirst {
 public:
  explicit LowestFirst(std::uint32_t count);

  // The lowest free number; the count when there is none.
  [[nodiscard]] std::uint32_t take() noexcept;
  void give_back(std::uint32_t number) noexcept;
  [[nodiscard]] std::uint32_t count() const noexcept { return count_; }
  [[nodiscard]] std::uint32_t free_count() const noexcept { return free_count_; }

 private:
  const std::uint32_t count_;
  std::uint32_t free_count_;
  std::vector<std::uint64_t> taken_;    // a bit a number
  std::size_t first_free_word_ = 0;     // no word below it has a free bit
};

// Bytes of a CDB as the target core counts them: like cdb_bytes_of(), and for the groups that have no length of their
// own the ones of its table (scsi_command_size_tbl).
[[nodiscard]] std::uint32_t target_cdb_bytes(std::span<const std::byte> cdb) noexcept;

// ---- The kernel ------------------------------------------------------------------------------------------------

template <class Ordering>
class TcmuKernel {
 public:
  // Writes the mailbox into `memory`, which is borrowed for the life of the kernel: map_bytes_of(options) bytes of
  // zeros, aligned to a page. There must be no complaint about the options.
  TcmuKernel(std::byte* memory, const TcmuKernelOptions& options)
      : options_(options),
        memory_(memory),
        mailbox_(reinterpret_cast<TcmuMailbox*>(memory)),
        ring_(memory + sizeof(TcmuMailbox)),
        ring_bytes_(options.ring_bytes - static_cast<std::uint32_t>(sizeof(TcmuMailbox))),
        data_(memory + options.ring_bytes),
        ids_(kIdCount),
        blocks_(static_cast<std::uint32_t>(options.data_area_bytes / options.block_bytes)),
        tmr_notification_(options.tmr_notification) {
    static_cast<void>(ids_.take());  // 0 is no id
    mailbox_->version = kTcmuVersion;
    mailbox_->flags = options.flags;
    mailbox_->cmdr_off = sizeof(TcmuMailbox);
    mailbox_->cmdr_size = ring_bytes_;
  }
  TcmuKernel(const TcmuKernel&) = delete;
  TcmuKernel& operator=(const TcmuKernel&) = delete;

  // ---- The initiator's side ----

  // Sends a command. It goes onto the ring, or is held back until there is room, or fails; every way it has exactly
  // one result, unless it stays with a server that never answers and there is no timeout.
  void submit(const InitiatorCommand& request) {
    std::unique_ptr<Command> command = make_command(request);
    if (const std::optional<Refusal> refusal = queue(command)) {
      finish(*command, refusal->status, refusal->sense);
      spare_.push_back(std::move(command));
    }
  }

  // Between the two no command signals; unplug() signals once, whether or not there was one (tcmu_unplug_device).
  void plug() noexcept { plugged_ = true; }
  void unplug() noexcept {
    plugged_ = false;
    signal();
  }

  // ABORT TASK. Its result comes when the target is done with the command: at once if it was held back, otherwise
  // when the server completed it, for the status of an aborted command is ignored but its completion is not.
  void abort_task(std::uint64_t number, std::uint64_t tag) {
    std::vector<Command*> aborted;
    for (Command* const command : live_commands()) {
      if (aborted.empty() && command->tag == tag && command->aborted_by == 0) aborted.push_back(command);
    }
    abort(number, kTmrAbortTask, aborted,
          aborted.empty() ? TmrResponse::kTaskDoesNotExist : TmrResponse::kFunctionComplete);
  }

  // LOGICAL UNIT RESET: the same for every command.
  void lun_reset(std::uint64_t number) {
    std::vector<Command*> aborted;
    for (Command* const command : live_commands()) {
      if (command->aborted_by == 0) aborted.push_back(command);
    }
    abort(number, kTmrLunReset, aborted, TmrResponse::kFunctionComplete);
  }

  // Lets time go by, and what has timed out end: a command on the ring with CHECK CONDITION 2/08/00, a held-back one
  // with TASK SET FULL. The former's id, slot and blocks stay taken until the server completes it.
  void advance(std::uint64_t ms) {
    now_ms_ += ms;
    for (Command* const command : live_commands()) {
      if (command->id == 0 || command->deadline_ms > now_ms_) continue;
      finish(*command, kStatusCheckCondition, communication_failure());
      command->is_finished = true;
    }
    std::deque<std::unique_ptr<Command>> waiting = std::exchange(held_back_, {});
    for (std::unique_ptr<Command>& command : waiting) {
      if (command->deadline_ms > now_ms_) {
        held_back_.push_back(std::move(command));
      } else {
        finish(*command, kStatusTaskSetFull, {});
        spare_.push_back(std::move(command));
      }
    }
  }

  // Calls on_result(const InitiatorResult&) for each command that has ended, in the order in which they did. It may
  // submit others; those that end within the call wait for the next one. Returns how many there were.
  template <class OnResult>
  std::size_t reap(OnResult on_result) {
    reaped_.clear();
    reaped_.swap(results_);
    for (const InitiatorResult& result : reaped_) on_result(result);
    return reaped_.size();
  }
  // The same for task management functions. The results of the commands that they aborted came before.
  template <class OnResult>
  std::size_t reap_task_management(OnResult on_result) {
    const std::vector<TmrResult> ended = std::exchange(tmr_results_, {});
    for (const TmrResult& result : ended) on_result(result);
    return ended.size();
  }
  [[nodiscard]] bool has_results() const noexcept { return !results_.empty() || !tmr_results_.empty(); }

  // ---- The server's side ----

  // What a write to the UIO device does (tcmu_irqcontrol): processes everything that was published, copies the data
  // of the reads, and puts what was held back onto the ring.
  void ring_doorbell() {
    ++doorbell_count_;
    if (handle_completions()) run_held_back();
  }

  // What closing the UIO device does (tcmu_release): frees the buffers that the server kept.
  void release() {
    bool freed = false;
    for (std::uint32_t id = 1; id < by_id_.size(); ++id) {
      if (by_id_[id] == nullptr || !by_id_[id]->is_kept) continue;
      free_command(id);
      freed = true;
    }
    if (freed && waiting_tmrs_.empty()) run_held_back();
  }

  // ---- The administrator's side: configfs ----

  // attrib/tmr_notification: whether task management functions are told to the server. At any time.
  void notify_of_task_management(bool notify) noexcept { tmr_notification_ = notify; }

  // action/reset_ring: ends every command with BUSY (1) or CHECK CONDITION 2/08/00 (2) and begins anew with an empty
  // ring. The server must have stopped before and start again after. EINVAL for another level, otherwise 0.
  [[nodiscard]] int reset_ring(std::uint32_t level) {
    if (level != 1 && level != 2) return EINVAL;
    for (std::uint32_t id = 1; id < by_id_.size(); ++id) {
      if (by_id_[id] == nullptr) continue;
      if (!by_id_[id]->is_finished) {
        finish(*by_id_[id], level == 1 ? kStatusBusy : kStatusCheckCondition,
               level == 1 ? SenseBytes{} : communication_failure());
      }
      free_command(id);
    }
    slots_.clear();
    waiting_tmrs_.clear();
    drained_ = 0;
    head_ = 0;
    Ordering::publish_command_tail(&mailbox_->cmd_tail, 0);
    Ordering::publish_command_head(&mailbox_->cmd_head, 0);
    is_broken_ = false;
    run_held_back();
    return 0;
  }

  // action/block_dev: new commands end with BUSY, and so do those held back; what is on the ring goes on.
  void block() {
    if (std::exchange(is_blocked_, true)) return;
    static_cast<void>(handle_completions());
    for (std::unique_ptr<Command>& command : std::exchange(held_back_, {})) {
      finish(*command, kStatusBusy, {});
      spare_.push_back(std::move(command));
    }
  }
  void unblock() noexcept { is_blocked_ = false; }

  // action/free_kept_buf. 0, or EINVAL when no buffer of that command was kept.
  [[nodiscard]] int free_kept_buffer(std::uint16_t id) {
    const Command* const command = command_of(id);
    if (command == nullptr || !command->is_kept) {
      log("free_kept_buf: cmd_id " + std::to_string(id) +
          (command == nullptr ? " not found" : " was not completed with KEEP_BUF"));
      return EINVAL;
    }
    free_command(id);
    if (waiting_tmrs_.empty()) run_held_back();
    return 0;
  }

  // ---- Anything at all, for servers that must survive it ----

  // Puts an entry of any opcode onto the ring, as a later kernel might: a header and `body`, rounded up to 8 bytes. A
  // server skips what it does not know and says so (UNKNOWN_OP). False when there is no room.
  [[nodiscard]] bool put_entry(std::uint32_t opcode, std::span<const std::byte> body) {
    const std::uint32_t bytes = round_up(sizeof(TcmuEntryHeader) + body.size());
    if (!has_room(bytes)) return false;
    std::byte* const entry = begin_entry(bytes);
    if (!body.empty()) std::memcpy(entry + sizeof(TcmuEntryHeader), body.data(), body.size());
    publish_entry(entry, bytes, opcode, 0);
    signal();
    return true;
  }

  // Stores a head, whatever it is, and signals. What lies between the old one and it is the caller's: hand-made
  // entries, or none.
  void publish_head(std::uint32_t head) {
    const std::uint32_t stretch_bytes = distance(head_, head % ring_bytes_);
    if (stretch_bytes > 0) slots_.push_back({stretch_bytes, 0, 0});
    head_ = head % ring_bytes_;
    Ordering::publish_command_head(&mailbox_->cmd_head, head);
    signal();
  }

  // ---- What is known ----

  [[nodiscard]] std::uint32_t head() const noexcept { return head_; }
  // Where the kernel's last drain ended: room on the ring is counted from here, not from the tail.
  [[nodiscard]] std::uint32_t drained() const noexcept { return drained_; }
  // Commands whose id is taken: on the ring, expired there, or completed with their buffer kept.
  [[nodiscard]] std::uint32_t id_count() const noexcept { return kIdCount - 1 - ids_.free_count(); }
  [[nodiscard]] std::uint32_t held_back_count() const noexcept {
    return static_cast<std::uint32_t>(held_back_.size());
  }
  [[nodiscard]] std::uint32_t waiting_tmr_count() const noexcept {
    return static_cast<std::uint32_t>(waiting_tmrs_.size());
  }
  [[nodiscard]] std::uint32_t free_block_count() const noexcept { return blocks_.free_count(); }
  [[nodiscard]] std::uint64_t event_count() const noexcept { return event_count_; }
  [[nodiscard]] std::uint64_t doorbell_count() const noexcept { return doorbell_count_; }
  [[nodiscard]] bool is_broken() const noexcept { return is_broken_; }
  [[nodiscard]] bool is_blocked() const noexcept { return is_blocked_; }
  // The first wrong thing the server did; it stays, also when the ring is reset.
  [[nodiscard]] ServerFault fault() const noexcept { return fault_; }
  // What the kernel would have printed.
  [[nodiscard]] const std::vector<std::string>& log_lines() const noexcept { return log_lines_; }

 private:
  static constexpr std::uint32_t kIdCount = 65536;
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
  static constexpr std::uint64_t kDefaultTimeoutMs = 30'000;

  struct Command {
    std::uint64_t tag = 0;
    std::array<std::byte, kCdbBytesMax> cdb{};
    std::uint32_t cdb_bytes = 0;
    std::span<const std::byte> data_out;
    std::span<std::byte> data_in;

    std::uint64_t order = 0;       // when it came
    std::uint16_t id = 0;          // 0 while it is held back
    std::uint64_t deadline_ms = kNever;
    std::vector<std::uint32_t> blocks;  // of its first data, Data-Out if it has any, and then of its other data
    std::uint64_t aborted_by = 0;  // the key of its task management function; 0: none
    bool is_finished = false;      // its initiator has the result, and its memory must not be touched any more
    bool is_kept = false;

    [[nodiscard]] bool is_bidirectional() const noexcept { return !data_out.empty() && !data_in.empty(); }
    // The length that the target core calls the command's: of Data-Out if there is any.
    [[nodiscard]] std::size_t data_bytes() const noexcept {
      return data_out.empty() ? data_in.size() : data_out.size();
    }
    [[nodiscard]] std::size_t bidi_bytes() const noexcept { return is_bidirectional() ? data_in.size() : 0; }
  };

  // Why a command comes to neither ring nor queue.
  struct Refusal {
    std::uint8_t status;
    SenseBytes sense;
  };

  // What was put onto the ring and is not drained. A stretch that the caller made by hand has a len_op of 0.
  struct Slot {
    std::uint32_t bytes;
    std::uint32_t len_op;
    std::uint16_t id;
  };

  struct Tmr {
    std::uint8_t type;
    std::vector<std::uint16_t> ids;
  };
  struct PendingTmr {
    std::uint64_t number;
    TmrResponse response;
    std::size_t unfinished_count;
  };

  // ---- Commands ----

  [[nodiscard]] std::unique_ptr<Command> make_command(const InitiatorCommand& request) {
    std::unique_ptr<Command> command;
    if (spare_.empty()) {
      command = std::make_unique<Command>();
    } else {
      command = std::move(spare_.back());
      spare_.pop_back();
      std::vector<std::uint32_t> blocks = std::move(command->blocks);  // for its capacity
      blocks.clear();
      *command = {};
      command->blocks = std::move(blocks);
    }
    command->tag = request.tag;
    command->cdb_bytes = target_cdb_bytes(request.cdb);
    const std::size_t given_bytes = std::min<std::size_t>(request.cdb.size(), command->cdb_bytes);
    if (given_bytes > 0) std::memcpy(command->cdb.data(), request.cdb.data(), given_bytes);
    command->data_out = request.data_out;
    command->data_in = request.data_in;
    command->order = ++command_count_;
    return command;
  }

  [[nodiscard]] Command* command_of(std::uint16_t id) const noexcept {
    return id < by_id_.size() ? by_id_[id].get() : nullptr;
  }

  // Every command that has no result yet, in the order in which they came.
  [[nodiscard]] std::vector<Command*> live_commands() const {
    std::vector<Command*> live;
    for (const auto& command : by_id_) {
      if (command != nullptr && !command->is_finished) live.push_back(command.get());
    }
    for (const auto& command : held_back_) live.push_back(command.get());
    std::sort(live.begin(), live.end(),
              [](const Command* one, const Command* other) { return one->order < other->order; });
    return live;
  }

  // The initiator gets its result. An aborted command tells of nothing but that.
  void finish(const Command& command, std::uint8_t status, const SenseBytes& sense, std::size_t data_in_bytes = 0,
              std::size_t residual_bytes = 0) {
    if (command.aborted_by == 0) {
      results_.push_back({command.tag, status, sense, static_cast<std::uint32_t>(data_in_bytes),
                          static_cast<std::uint32_t>(residual_bytes)});
      return;
    }
    results_.push_back({.tag = command.tag, .status = kStatusTaskAborted});
    PendingTmr& tmr = pending_tmrs_.at(command.aborted_by);
    if (--tmr.unfinished_count > 0) return;
    tmr_results_.push_back({tmr.number, tmr.response});
    pending_tmrs_.erase(command.aborted_by);
  }

  // Gives back what the command had of ring and data area.
  void free_command(std::uint32_t id) {
    std::unique_ptr<Command> command = std::exchange(by_id_[id], nullptr);
    free_blocks(*command);
    ids_.give_back(id);
    spare_.push_back(std::move(command));
  }

  // ---- Onto the ring (queue_cmd_ring) ----

  // Puts the command onto the ring or holds it back, and takes it in both cases. Otherwise says why not.
  [[nodiscard]] std::optional<Refusal> queue(std::unique_ptr<Command>& command) {
    if (is_blocked_) return Refusal{kStatusBusy, {}};
    if (is_broken_) return Refusal{kStatusCheckCondition, communication_failure()};
    if (!held_back_.empty()) return hold_back(command);
    const std::size_t block_count = blocks_for(command->data_bytes()) + blocks_for(command->bidi_bytes());
    if (block_count > blocks_.count()) {
      log("request of " + std::to_string(block_count * options_.block_bytes) + " bytes is too big for the data area");
      return Refusal{kStatusCheckCondition, invalid_field_in_cdb()};
    }
    if (block_count > blocks_.free_count()) return hold_back(command);
    for (std::size_t index = 0; index < block_count; ++index) command->blocks.push_back(blocks_.take());

    vectors_.clear();
    const std::span<const std::uint32_t> blocks(command->blocks);
    const std::size_t first_block_count = blocks_for(command->data_bytes());
    const std::uint32_t count = add_vectors(blocks.first(first_block_count), command->data_bytes());
    const std::uint32_t bidi_count = add_vectors(blocks.subspan(first_block_count), command->bidi_bytes());
    const std::size_t vectors_end = sizeof(TcmuCommandEntry) + sizeof(TcmuIovec) * vectors_.size();
    const std::uint32_t cdb_at = std::max(kTcmuCommandBytesMin, static_cast<std::uint32_t>(vectors_end));
    const std::uint32_t entry_bytes = cdb_at + round_up(command->cdb_bytes);
    if (entry_bytes > ring_bytes_ / 2) {
      free_blocks(*command);
      log("request of " + std::to_string(entry_bytes) + " bytes is too big for the command ring");
      return Refusal{kStatusCheckCondition, invalid_field_in_cdb()};
    }
    if (!has_room(entry_bytes)) {
      free_blocks(*command);
      return hold_back(command);
    }
    const std::uint32_t id = ids_.take();
    if (id == kIdCount) {
      free_blocks(*command);
      log("could not allocate a cmd_id");
      return Refusal{kStatusTaskSetFull, {}};
    }
    command->id = static_cast<std::uint16_t>(id);
    command->deadline_ms = options_.command_timeout_ms == 0 ? kNever : now_ms_ + options_.command_timeout_ms;

    std::byte* const entry = begin_entry(entry_bytes);
    TcmuCommandEntry fields{};
    fields.iov_cnt = count;
    fields.iov_bidi_cnt = bidi_count;
    fields.cdb_off = static_cast<std::uint64_t>(entry - memory_) + cdb_at;
    std::memcpy(entry, &fields, sizeof(fields));
    if (!vectors_.empty()) {
      std::memcpy(entry + sizeof(fields), vectors_.data(), sizeof(TcmuIovec) * vectors_.size());
    }
    std::memcpy(entry + cdb_at, command->cdb.data(), command->cdb_bytes);
    copy_out(*command);
    publish_entry(entry, entry_bytes, kTcmuCommand, command->id);
    if (by_id_.size() <= id) by_id_.resize(id + 1);
    by_id_[id] = std::move(command);
    if (!plugged_) signal();
    return std::nullopt;
  }

  // Blocks that lie next to each other become one vector. Returns the number of vectors for these blocks.
  [[nodiscard]] std::uint32_t add_vectors(std::span<const std::uint32_t> blocks, std::size_t length_bytes) {
    const std::size_t before = vectors_.size();
    for (std::size_t index = 0; index < blocks.size(); ++index) {
      const std::size_t bytes = std::min<std::size_t>(length_bytes, options_.block_bytes);
      length_bytes -= bytes;
      if (index > 0 && blocks[index] == blocks[index - 1] + 1) vectors_.back().iov_len += bytes;
      else vectors_.push_back({static_cast<std::uint64_t>(block(blocks[index]) - memory_), bytes});
    }
    return static_cast<std::uint32_t>(vectors_.size() - before);
  }

  // Holds the command back (add_to_qfull_queue). Each time it is held back anew its time begins anew, as in the
  // kernel.
  [[nodiscard]] std::optional<Refusal> hold_back(std::unique_ptr<Command>& command) {
    std::uint64_t timeout_ms = kDefaultTimeoutMs;
    if (options_.queue_full_timeout_ms == 0) return Refusal{kStatusTaskSetFull, {}};
    if (options_.queue_full_timeout_ms > 0) timeout_ms = static_cast<std::uint64_t>(options_.queue_full_timeout_ms);
    else if (options_.command_timeout_ms > 0) timeout_ms = options_.command_timeout_ms;
    command->deadline_ms = now_ms_ + timeout_ms;
    held_back_.push_back(std::move(command));
    return std::nullopt;
  }

  // Tries every held-back command again, until one has to wait on. One that is refused now fails with 2/08/00,
  // whatever the reason (run_qfull_queue).
  void run_held_back() {
    std::deque<std::unique_ptr<Command>> waiting = std::exchange(held_back_, {});
    while (!waiting.empty() && held_back_.empty()) {
      std::unique_ptr<Command> command = std::move(waiting.front());
      waiting.pop_front();
      if (!queue(command).has_value()) continue;
      finish(*command, kStatusCheckCondition, communication_failure());
      spare_.push_back(std::move(command));
    }
    for (std::unique_ptr<Command>& command : waiting) held_back_.push_back(std::move(command));
  }

  // ---- Task management (tcmu_tmr_notify) ----

  void abort(std::uint64_t number, std::uint8_t type, const std::vector<Command*>& aborted, TmrResponse response) {
    const std::uint64_t key = ++tmr_count_;
    Tmr tmr{type, {}};
    if (aborted.empty()) tmr_results_.push_back({number, response});
    else pending_tmrs_[key] = {number, response, aborted.size()};
    for (Command* const command : aborted) {
      command->aborted_by = key;
      if (command->id != 0) tmr.ids.push_back(command->id);
    }
    // A held-back command is nobody's but ours.
    for (std::unique_ptr<Command>& command : std::exchange(held_back_, {})) {
      if (command->aborted_by == 0) {
        held_back_.push_back(std::move(command));
      } else {
        finish(*command, kStatusTaskAborted, {});
        spare_.push_back(std::move(command));
      }
    }
    if (tmr_notification_ && (options_.flags & kTcmuTaskManagement) != 0) put_tmr(std::move(tmr));
  }

  // Onto the ring, or behind those that wait for room already.
  void put_tmr(Tmr tmr) {
    if (is_broken_) return;
    const std::uint32_t bytes = round_up(sizeof(TcmuTmrEntry) + sizeof(std::uint16_t) * tmr.ids.size());
    if (!waiting_tmrs_.empty() || !has_room(bytes)) {
      waiting_tmrs_.push_back(std::move(tmr));
      return;
    }
    std::byte* const entry = begin_entry(bytes);
    TcmuTmrEntry fields{};
    fields.tmr_type = tmr.type;
    fields.cmd_cnt = static_cast<std::uint32_t>(tmr.ids.size());
    std::memcpy(entry, &fields, sizeof(fields));
    if (!tmr.ids.empty()) {
      std::memcpy(entry + sizeof(fields), tmr.ids.data(), sizeof(std::uint16_t) * tmr.ids.size());
    }
    publish_entry(entry, bytes, kTcmuTmr, 0);
    signal();  // whether or not plugged
  }

  // True when none waits any more.
  [[nodiscard]] bool run_waiting_tmrs() {
    std::deque<Tmr> waiting = std::exchange(waiting_tmrs_, {});
    for (Tmr& tmr : waiting) put_tmr(std::move(tmr));
    return waiting_tmrs_.empty();
  }

  // ---- The ring ----

  static constexpr std::uint32_t round_up(std::size_t bytes) noexcept {
    return static_cast<std::uint32_t>((bytes + kTcmuEntryAlign - 1) / kTcmuEntryAlign * kTcmuEntryAlign);
  }

  // From one offset in the ring forward to another.
  [[nodiscard]] std::uint32_t distance(std::uint32_t from, std::uint32_t to) const noexcept {
    return to >= from ? to - from : ring_bytes_ - from + to;
  }

  // Room is counted from what was drained: a tail that moved frees nothing until its doorbell. One byte stays free,
  // lest a full ring look like an empty one.
  [[nodiscard]] bool has_room(std::uint32_t bytes) const noexcept {
    const std::uint32_t to_end = ring_bytes_ - head_;
    const std::uint32_t needed = to_end >= bytes ? bytes : bytes + to_end;
    return ring_bytes_ - distance(drained_, head_) - 1 >= needed;
  }

  // Where an entry of so many bytes comes, zeroed; behind a PAD if it does not fit before the ring's end. The PAD has
  // a head update of its own.
  [[nodiscard]] std::byte* begin_entry(std::uint32_t bytes) {
    const std::uint32_t to_end = ring_bytes_ - head_;
    if (to_end < bytes) {
      std::memset(ring_ + head_, 0, sizeof(TcmuEntryHeader));
      publish_entry(ring_ + head_, to_end, kTcmuPad, 0);
    }
    std::memset(ring_ + head_, 0, bytes);
    return ring_ + head_;
  }

  void publish_entry(std::byte* entry, std::uint32_t bytes, std::uint32_t opcode, std::uint16_t id) {
    const TcmuEntryHeader header{.len_op = bytes | opcode, .cmd_id = id, .kflags = 0, .uflags = 0};
    std::memcpy(entry, &header, sizeof(header));
    slots_.push_back({bytes, header.len_op, id});
    head_ = (head_ + bytes) % ring_bytes_;
    Ordering::publish_command_head(&mailbox_->cmd_head, head_);
  }

  void signal() noexcept { ++event_count_; }

  // ---- The data area ----

  [[nodiscard]] std::size_t blocks_for(std::size_t bytes) const noexcept {
    return (bytes + options_.block_bytes - 1) / options_.block_bytes;
  }
  [[nodiscard]] std::byte* block(std::uint32_t number) const noexcept {
    return data_ + std::size_t{number} * options_.block_bytes;
  }
  void free_blocks(Command& command) noexcept {
    for (const std::uint32_t number : command.blocks) blocks_.give_back(number);
    command.blocks.clear();
  }

  void copy_out(const Command& command) {
    std::span<const std::byte> rest = command.data_out;
    for (std::size_t index = 0; !rest.empty(); ++index) {
      const std::size_t bytes = std::min<std::size_t>(rest.size(), options_.block_bytes);
      std::memcpy(block(command.blocks[index]), rest.data(), bytes);
      rest = rest.subspan(bytes);
    }
  }

  // Blocks are not cleared between two commands: what the server did not write is what the one before left.
  void copy_in(const Command& command, std::size_t length_bytes) {
    std::size_t index = command.is_bidirectional() ? blocks_for(command.data_out.size()) : 0;
    std::span<std::byte> rest = command.data_in.first(length_bytes);
    for (; !rest.empty(); ++index) {
      const std::size_t bytes = std::min<std::size_t>(rest.size(), options_.block_bytes);
      std::memcpy(rest.data(), block(command.blocks[index]), bytes);
      rest = rest.subspan(bytes);
    }
  }

  // ---- Off the ring (tcmu_handle_completions) ----

  // True when ring room came free and no task management function waits for it: held-back commands have their turn.
  [[nodiscard]] bool handle_completions() {
    if (is_broken_) {
      log("ring broken, not handling completions");
      return false;
    }
    bool freed = false;
    for (;;) {
      // F10: everything below reads what the server wrote before it stored this tail. The tail is read anew for each
      // entry, so that what is published meanwhile rides along.
      const std::uint32_t tail = Ordering::acquire_command_tail(&mailbox_->cmd_tail);
      if (tail == drained_) break;
      freed = true;
      switch (drain_entry(tail)) {
        case Drained::kEntry:
          continue;
        case Drained::kLast:
          break;
        case Drained::kBroken:
          return false;
      }
      break;
    }
    return freed && run_waiting_tmrs();
  }

  enum class Drained : std::uint8_t {
    kEntry,   // go on
    kLast,    // the ring broke at this entry, but the drain ends as usual
    kBroken,  // the drain ends here and now
  };

  // Takes the entry at `drained_` off the ring.
  [[nodiscard]] Drained drain_entry(std::uint32_t tail) {
    if (tail >= ring_bytes_ || tail % kTcmuEntryAlign != 0 || distance(drained_, tail) > distance(drained_, head_)) {
      return break_ring(ServerFault::kTailRange, "tail " + std::to_string(tail));
    }
    const std::byte* const entry = ring_ + drained_;
    TcmuEntryHeader header;
    Ordering::copy_relaxed(reinterpret_cast<std::byte*>(&header), entry, sizeof(header));
    const std::uint32_t bytes = header.len_op & ~kTcmuOpcodeMask;
    const std::uint32_t opcode = header.len_op & kTcmuOpcodeMask;
    // There is a slot: the tail is not beyond the head.
    Slot& slot = slots_.front();
    const bool is_hand_made = slot.len_op == 0;
    const bool is_entry = is_hand_made ? bytes > 0 && bytes <= slot.bytes && bytes <= ring_bytes_ - drained_
                                       : header.len_op == slot.len_op;
    if (!is_entry) {
      return break_ring(ServerFault::kEntryLength, "len_op " + std::to_string(header.len_op));
    }
    if (bytes > distance(drained_, tail)) {
      return break_ring(ServerFault::kTailBoundary, "tail " + std::to_string(tail));
    }
    if (opcode > kTcmuTmr && (header.uflags & kTcmuUnknownOp) == 0) {
      return break_ring(ServerFault::kUnknownOpcode, "opcode " + std::to_string(opcode));
    }
    if (opcode == kTcmuCommand) {
      const Drained drained = drain_command(header, bytes, is_hand_made ? header.cmd_id : slot.id);
      if (drained != Drained::kEntry) return drained;
    }
    drained_ = (drained_ + bytes) % ring_bytes_;
    slot.bytes -= bytes;
    if (slot.bytes == 0) slots_.pop_front();
    return Drained::kEntry;
  }

  [[nodiscard]] Drained drain_command(const TcmuEntryHeader& header, std::uint32_t bytes, std::uint16_t slot_id) {
    const std::uint16_t id = header.cmd_id;
    if (bytes < kTcmuCommandBytesMin) return break_ring(ServerFault::kEntryLength, "cmd_id " + std::to_string(id));
    if (id != slot_id && (options_.flags & kTcmuOutOfOrder) == 0) {
      return break_ring(ServerFault::kOrder, "cmd_id " + std::to_string(id));
    }
    Command* const command = command_of(id);
    if (command == nullptr) {
      log("cmd_id " + std::to_string(id) + " not found, ring is broken");
      return break_ring(ServerFault::kCommandId, {});
    }
    const bool keeps = (header.uflags & kTcmuBufferKept) != 0 && (options_.flags & kTcmuKeepBuffer) != 0;
    const bool kept_before = command->is_kept;
    if (kept_before) {
      log("cmd_id " + std::to_string(id) + " already completed with KEEP_BUF, ring is broken");
      static_cast<void>(break_ring(ServerFault::kKeptTwice, {}));
    } else if (!command->is_finished) {
      TcmuResponseEntry response;
      Ordering::copy_relaxed(reinterpret_cast<std::byte*>(&response), ring_ + drained_, sizeof(response));
      complete(*command, header.uflags, response);
    }
    if (keeps) command->is_kept = command->is_finished = true;
    else free_command(id);
    return kept_before ? Drained::kLast : Drained::kEntry;
  }

  // The server's answer, as the initiator gets it (tcmu_handle_completion).
  void complete(const Command& command, std::uint8_t uflags, const TcmuResponseEntry& response) {
    if ((uflags & kTcmuUnknownOp) != 0) {
      log("server set UNKNOWN_OP for cmd_id " + std::to_string(command.id));
      return finish(command, kStatusCheckCondition, communication_failure());
    }
    // A length that is 0 says nothing, and one of a command that writes neither.
    const bool reads = command.data_out.empty() && !command.data_in.empty();
    const bool has_length = reads && (options_.flags & kTcmuReadLength) != 0 &&
                            (uflags & kTcmuReadLengthValid) != 0 && response.read_len != 0;
    const bool is_check = response.scsi_status == kStatusCheckCondition;
    SenseBytes sense{};
    if (is_check) std::memcpy(sense.data(), response.sense_buffer, sense.size());
    // With CHECK CONDITION data goes to the initiator only if the server says how much.
    if (command.data_in.empty() || (is_check && !has_length)) return finish(command, response.scsi_status, sense);
    // Of a bidirectional command the kernel copies at most as much as its Data-Out is long.
    std::size_t length_bytes = std::min(command.data_in.size(), command.data_bytes());
    if (has_length) length_bytes = std::min<std::size_t>(length_bytes, response.read_len);
    copy_in(command, length_bytes);
    const bool tells_residual = has_length && (is_check || response.scsi_status == kStatusGood);
    finish(command, response.scsi_status, sense, length_bytes,
           tells_residual ? command.data_in.size() - length_bytes : 0);
  }

  // The first fault stays. `where` is empty when the kernel has words of its own for it.
  Drained break_ring(ServerFault fault, const std::string& where) {
    if (!where.empty()) log(where + ": " + text_of(fault));
    if (fault_ == ServerFault::kNone) fault_ = fault;
    is_broken_ = true;
    return Drained::kBroken;
  }

  // ---- Words ----

  void log(std::string line) { log_lines_.push_back(std::move(line)); }
  [[nodiscard]] static SenseBytes communication_failure() noexcept { return fixed_sense(0x2, 0x08, 0x00); }
  [[nodiscard]] static SenseBytes invalid_field_in_cdb() noexcept { return fixed_sense(0x5, 0x24, 0x00); }

  const TcmuKernelOptions options_;
  std::byte* const memory_;
  TcmuMailbox* const mailbox_;
  std::byte* const ring_;
  const std::uint32_t ring_bytes_;
  std::byte* const data_;

  // The ring: drained_ <= tail <= head_, as offsets that wrap. The kernel's own copies: the server can write the
  // mailbox.
  std::uint32_t drained_ = 0;
  std::uint32_t head_ = 0;
  std::deque<Slot> slots_;
  LowestFirst ids_;
  LowestFirst blocks_;
  std::vector<std::unique_ptr<Command>> by_id_;
  std::deque<std::unique_ptr<Command>> held_back_;  // qfull_queue
  std::deque<Tmr> waiting_tmrs_;                    // tmr_queue
  std::map<std::uint64_t, PendingTmr> pending_tmrs_;
  std::vector<std::unique_ptr<Command>> spare_;
  std::vector<TcmuIovec> vectors_;

  bool tmr_notification_;
  bool plugged_ = false;
  bool is_blocked_ = false;
  bool is_broken_ = false;
  ServerFault fault_ = ServerFault::kNone;
  std::uint64_t now_ms_ = 0;
  std::uint64_t command_count_ = 0;
  std::uint64_t tmr_count_ = 0;
  std::uint64_t event_count_ = 0;
  std::uint64_t doorbell_count_ = 0;
  std::vector<InitiatorResult> results_;
  std::vector<InitiatorResult> reaped_;
  std::vector<TmrResult> tmr_results_;
  std::vector<std::string> log_lines_;
};

}  // namespace hushring
