// The device's half of one split virtqueue (virtio 1.3, 2.7).
//
// A template over the ordering policy (ordering.h): the product is SplitDevice<HardwareOrdering>. It holds no file
// descriptor and makes no system call: complete() tells its caller whether the driver is owed a signal. Everything
// it needs is allocated when it is made. One thread uses it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/chain.h"
#include "core/fault.h"
#include "core/inflight.h"
#include "core/layout.h"
#include "core/memory.h"
#include "core/suppress.h"

namespace hushring {

// ---- Tables shared with JavaScript; every layout is the contract with src/native.ts ----------------------------

// A taken request (RequestRow). Its readable segments come before its writable ones.
struct RequestRow {
  std::uint32_t head;
  std::uint32_t first_segment;
  std::uint32_t readable_count;
  std::uint32_t writable_count;
  std::uint32_t readable_bytes;  // without the header
  std::uint32_t writable_bytes;  // without the status byte
};

// An answer (CompletionRow). Only the low byte of `status` counts, and only with a status byte.
struct CompletionRow {
  std::uint32_t head;
  std::uint32_t bytes_written;
  std::uint32_t status;
};

// QueueCounter. `signals` and `native_calls` belong to the caller, which owns the eventfd and the boundary.
struct QueueCounters {
  std::uint64_t requests;
  std::uint64_t completions;
  std::uint64_t batches;
  std::uint64_t signals;
  std::uint64_t suppressed;
  std::uint64_t rearms;
  std::uint64_t malformed_chains;
  std::uint64_t skipped_heads;
  std::uint64_t ignored_completions;
  std::uint64_t native_calls;
  std::uint64_t last_fault;
  std::uint64_t signal_fences;
};

// CompleteBits.
inline constexpr std::int32_t kSignalled = 1;
inline constexpr std::int32_t kSuppressed = 2;
inline constexpr std::int32_t kMore = 4;
inline constexpr std::int32_t kArmed = 8;
// Set by whoever polls, not here.
inline constexpr std::int32_t kPolled = 16;
inline constexpr std::int32_t kWaited = 32;
inline constexpr std::int32_t kUndecided = 64;

// What a failed request's status byte says (VIRTIO_BLK_S_IOERR; hushring's meaning for every device with one).
inline constexpr std::uint8_t kStatusFailed = 1;

// ---- What a queue is made and started with ---------------------------------------------------------------------

// In so many batches what is found is taken, if that makes large ones: the driver works on the answers of one while the
// device serves the next.
inline constexpr std::uint32_t kBatchesOfAll = 8;

// Fixed for the life of a queue.
struct SplitOptions {
  std::uint32_t size_max;         // largest ring; a power of two, 1 to 32768
  std::uint32_t batch_count_max;  // most available entries one take() looks at
  std::uint32_t chain_count_max;  // longest chain through an indirect table; the ring's size if that is more
  Framing framing;
  bool strict_chains;  // a malformed chain breaks the queue instead of being returned with length 0
  // take() looks at an eighth of what it finds, but at so many whatever it finds. From batch_count_max on: at all there is
  // room for.
  std::uint32_t batch_count_min = kSplitQueueSizeMax;

  // Rows of each table. The longest chain always has a segment row for each descriptor; eight more for each request
  // of a batch let a full batch of ordinary requests through at once.
  [[nodiscard]] constexpr std::size_t request_rows() const noexcept { return batch_count_max; }
  [[nodiscard]] constexpr std::size_t completion_rows() const noexcept { return size_max; }
  [[nodiscard]] constexpr std::size_t segment_rows() const noexcept {
    return std::max(size_max, chain_count_max) + 8 * std::size_t{batch_count_max};
  }
  // Headers start on words, so that JavaScript can read them as such.
  [[nodiscard]] constexpr std::size_t header_stride_bytes() const noexcept {
    return (std::size_t{framing.header_bytes} + 3) / 4 * 4;
  }
};

// Where the tables are. Borrowed for the life of the queue; zeroed by their owner.
struct SplitTables {
  std::span<RequestRow> requests;
  std::span<std::byte> headers;  // a row a request, header_stride_bytes() apart
  std::span<Segment> segments;
  std::span<const CompletionRow> completions;
  QueueCounters* counters;
};

// Where a ring lies and what was negotiated for it.
struct SplitRing {
  std::uint32_t size;
  AddressSpace space;  // of the three addresses below
  std::uint64_t descriptor_address;
  std::uint64_t avail_address;
  std::uint64_t used_address;
  std::uint16_t avail_base;  // next available index to take
  bool event_idx;
  bool indirect;
};

// ---- The queue -------------------------------------------------------------------------------------------------

template <class Ordering>
class SplitDevice {
 public:
  SplitDevice(const SplitOptions& options, const SplitTables& tables) noexcept
      : options_(options),
        tables_(tables),
        in_flight_(std::make_unique<InFlight[]>(options.size_max)),
        inflight_region_(options.size_max),
        rejected_(std::make_unique<std::uint16_t[]>(options.size_max)) {}

  // Starts or restarts the ring over `regions`, which are borrowed until the next start, stop or set_regions.
  // A queue that cannot run stays stopped.
  //
  // With an in-flight region, borrowed until the next start or stop, the queue goes on where an earlier process was
  // killed: take() hands out what that one owed before anything new, and ring.avail_base counts for a fresh region
  // only. (Entries that were skipped are in no region; a driver that made such ones sees some of its entries again.)
  [[nodiscard]] Fault start(const SplitRing& ring, std::span<const Region> regions,
                            const InflightPlace& inflight = {}) noexcept {
    stop();
    if (!std::has_single_bit(ring.size) || ring.size > options_.size_max) return Fault::kRingSize;
    const Parts parts = resolve(ring, regions);
    if (parts.used == nullptr) return Fault::kRingAddress;
    ring_ = ring;
    regions_ = regions;
    parts_ = parts;
    fault_ = Fault::kNone;
    last_avail_ = ring.avail_base;
    // Read back once, here; from now on the device's own copy counts and the driver may scribble over its word.
    used_idx_ = Ordering::load_relaxed(&parts.used->idx);
    silent_count_ = 0;
    undecided_count_ = 0;
    if (const Fault fault = attach(inflight); fault != Fault::kNone) {
      stop();
      return fault;
    }
    decision_is_valid_ = false;
    skips_in_a_row_ = 0;
    // Not armed: the first complete() asks for kicks and looks, so entries that nobody will kick for are found.
    armed_ = false;
    write_used_flags(ring.event_idx ? 0 : kUsedNoNotify);
    return Fault::kNone;
  }

  // Stops the ring and forgets what is in flight; late answers are ignored. Returns the next available index.
  std::uint16_t stop() noexcept {
    std::fill_n(in_flight_.get(), options_.size_max, InFlight{});
    in_flight_count_ = 0;
    rejected_count_ = 0;
    owed_next_ = 0;
    undecided_count_ = 0;
    inflight_region_.detach();
    parts_ = {};
    regions_ = {};
    armed_ = false;
    begin_generation();
    return last_avail_;
  }

  // Moves a running ring to other memory, or leaves it where it is if it is not in there. The status bytes of heads
  // in flight stay where they are: the caller keeps a generation of memory while in_flight_under() says so.
  [[nodiscard]] Fault set_regions(std::span<const Region> regions) noexcept {
    if (!running()) return Fault::kNone;
    const Parts parts = resolve(ring_, regions);
    if (parts.used == nullptr) return Fault::kRingAddress;
    parts_ = parts;
    regions_ = regions;
    begin_generation();
    return Fault::kNone;
  }

  // Takes up to `count_max` requests into the tables, and asks for silence if it finds any entry. Returns their
  // number, or minus the fault of a broken queue.
  //
  // It looks at no more than batch_count_max entries, good or bad, so that a driver that offers garbage cannot hold
  // the thread; complete() reports what is left as kMore.
  [[nodiscard]] std::int32_t take(std::uint32_t count_max) noexcept {
    if (fault_ != Fault::kNone) return -static_cast<std::int32_t>(fault_);
    if (!running() || count_max == 0) return 0;
    const std::uint16_t avail_idx = Ordering::acquire_avail_index(&parts_.avail->idx);
    const std::uint16_t visible = distance(last_avail_, avail_idx);
    // More than the ring holds: the index jumped, or went back.
    if (visible > ring_.size) return break_queue(Fault::kAvailIndex);
    std::uint32_t owed_left = owed_count();
    const std::uint32_t found = owed_left + visible;
    if (found == 0) return 0;
    suppress_kicks();

    std::uint32_t taken = 0;
    std::uint32_t segment = 0;
    const std::uint32_t looks =
        std::min({found, options_.batch_count_max, std::max(options_.batch_count_min, found / kBatchesOfAll)});
    if (Ordering::prefetches) prefetch_chains(std::min({looks, count_max, std::uint32_t{visible}}));
    for (std::uint32_t look = 0; look < looks && taken < count_max; ++look) {
      const bool owed = owed_left > 0;
      const std::uint16_t head = owed ? inflight_region_.owed_head(owed_next_)
                                      : Ordering::load_relaxed(&parts_.avail->ring[last_avail_ & (ring_.size - 1)]);
      if (const Fault fault = owed ? Fault::kNone : head_fault(head); fault != Fault::kNone) {
        skip(fault);
        if (skips_in_a_row_ > ring_.size) return break_queue(fault);
        continue;
      }
      const Chain chain = read(head, segment, taken);
      if (chain.rows_exhausted && segment > 0) break;  // it is read again by the next take, with all rows free
      if (owed) [[unlikely]] {
        ++owed_next_;
        --owed_left;
      } else {
        ++last_avail_;
        if (inflight_region_.attached()) [[unlikely]] inflight_region_.take(head);
      }
      skips_in_a_row_ = 0;
      if (chain.fault != Fault::kNone) {
        if (options_.strict_chains) return break_queue(chain.fault);
        reject(head, chain);
        continue;
      }
      own(head, chain.status, chain.writable_bytes);
      const std::uint32_t first = segment + chain.first_segment;
      tables_.requests[taken++] = {head,           first, chain.readable_count, chain.writable_count, chain.readable_bytes,
                                   chain.writable_bytes};
      segment = first + chain.readable_count + chain.writable_count;
    }
    tables_.counters->requests += taken;
    if (taken > 0) ++tables_.counters->batches;
    return static_cast<std::int32_t>(taken);
  }

  // Gives back the first `count` rows of the completions table and every chain that take() rejected: one store of
  // the index, one fence, one decision. Then, with `rearm`, asks for kicks again unless something is visible.
  //
  // Returns CompleteBits (kSignalled: the caller must signal the driver now), or minus the fault of a broken queue.
  [[nodiscard]] std::int32_t complete(std::uint32_t count, bool rearm) noexcept {
    if (const std::int32_t broken = publish(count); broken < 0) return broken;
    const std::int32_t bits = decide();
    return bits | (rearm ? this->rearm() : armed_ ? kArmed : 0);
  }

  // The first part of complete(): the store of the index. The caller owes a decide() before it stops looking at the
  // ring. Returns 0, or minus the fault of a broken queue.
  [[nodiscard]] std::int32_t publish(std::uint32_t count) noexcept {
    if (fault_ != Fault::kNone) return -static_cast<std::int32_t>(fault_);
    const std::uint16_t before = used_idx_;
    publish_rejected();
    const std::size_t row_count = std::min<std::size_t>(count, tables_.completions.size());
    for (const CompletionRow& row : tables_.completions.first(row_count)) give_back(row);
    // At most `size` heads were in flight, so the index cannot have come round to where it was.
    if (!running() || used_idx_ == before) return 0;
    // No more than the ring holds: what is further back has been seen.
    silent_count_ = std::min<std::uint32_t>(silent_count_ + distance(before, used_idx_), ring_.size);
    undecided_count_ += distance(before, used_idx_);
    const auto publish_used = [this] { Ordering::publish_used_index(&parts_.used->idx, used_idx_); };
    if (inflight_region_.attached()) inflight_region_.publish(used_idx_, publish_used);
    else publish_used();
    // Cannot be while decisions follow within a lap; need_event relies on it, so it is checked here.
    if (index_lapped(decided_used_, used_idx_, before)) decision_is_valid_ = false;
    return 0;
  }

  // The second part: the fence, and one decision about everything published since the last one. Returns kSignalled,
  // kSuppressed, or 0 when nothing was.
  [[nodiscard]] std::int32_t decide() noexcept {
    if (undecided_count_ == 0) return 0;
    undecided_count_ = 0;
    // Whoever broke the ring may sleep on what was answered before.
    if (fault_ != Fault::kNone || !running() || signal_is_needed()) return kSignalled;
    ++tables_.counters->suppressed;
    return kSuppressed;
  }

  // The third part: asks for kicks unless something is visible. Returns kArmed or kMore.
  [[nodiscard]] std::int32_t rearm() noexcept {
    if (!running()) return 0;
    if (!armed_) arm_kicks();
    return armed_ ? kArmed : kMore;
  }

  // Asks for no more kicks, although nothing was taken since they were asked for: the caller looks by itself, and must
  // rearm() before it sleeps.
  void withdraw_wish() noexcept {
    if (!armed_) return;
    suppress_kicks();
    // Just behind what the driver publishes next, so that it is not crossed. A driver that read the wish before kicks once.
    if (ring_.event_idx) {
      Ordering::store_relaxed(avail_event_of(parts_.used, ring_.size), static_cast<std::uint16_t>(last_avail_ - 1));
    }
  }

  // Whether the decision about what is published may wait for the next batch: there is one, and the driver has less
  // than a third of what is visible to go on with. A driver that is woken for the first few answers has reaped them
  // before the next ones are there, and sleeps again: each signal then serves a few requests. One that is woken for
  // the last ones leaves the device without work.
  [[nodiscard]] bool signal_can_wait() const noexcept { return 3 * undecided_count_ < visible_count(); }
  [[nodiscard]] bool is_undecided() const noexcept { return undecided_count_ > 0; }

  // The next decision signals, whatever the driver asked for: it may have missed what was signalled before.
  void forget_decision() noexcept { decision_is_valid_ = false; }

  // The caller signalled the driver, for a decision or without one.
  void note_signal() noexcept { silent_count_ = 0; }

  // Breaks the queue: it touches no more driver memory until it is started anew. Returns minus the fault.
  std::int32_t break_queue(Fault fault) noexcept {
    fault_ = fault;
    return -static_cast<std::int32_t>(fault);
  }

  // Whether there is something to take. While running and not broken.
  [[nodiscard]] bool sees_entry() const noexcept {
    return owed_count() > 0 || Ordering::acquire_avail_index(&parts_.avail->idx) != last_avail_;
  }

  [[nodiscard]] bool running() const noexcept { return parts_.used != nullptr; }
  [[nodiscard]] Fault fault() const noexcept { return fault_; }
  // Asked for kicks and saw nothing: the driver kicks for the next entry.
  [[nodiscard]] bool armed() const noexcept { return armed_; }
  // Heads the device owns: handed out, or rejected and not yet published.
  [[nodiscard]] std::uint32_t in_flight_count() const noexcept { return in_flight_count_; }
  [[nodiscard]] std::uint16_t avail_index() const noexcept { return last_avail_; }
  [[nodiscard]] std::uint16_t used_index() const noexcept { return used_idx_; }
  // Requests that take() would find. Looks at driver memory.
  [[nodiscard]] std::uint32_t visible_count() const noexcept {
    if (!running() || fault_ != Fault::kNone) return 0;
    return owed_count() + distance(last_avail_, Ordering::acquire_avail_index(&parts_.avail->idx));
  }
  // Heads that an earlier process took and did not answer, and that take() has not yet handed out again.
  [[nodiscard]] std::uint32_t owed_count() const noexcept { return inflight_region_.owed_count() - owed_next_; }

  // True while the driver asks to be told of an entry that is published, and has not been signalled since. A driver that
  // is awake leaves that behind at once, so one look proves nothing. Without event indices it is never true: a driver
  // that sleeps looks like one that has seen everything by itself. For a watchdog; looks at driver memory.
  [[nodiscard]] bool owes_signal() const noexcept {
    if (!running() || fault_ != Fault::kNone || !ring_.event_idx) return false;
    const auto signalled = static_cast<std::uint16_t>(used_idx_ - silent_count_);
    return need_event(Ordering::load_relaxed(used_event_of(parts_.avail, ring_.size)), used_idx_, signalled);
  }

  // Number of the current memory; every start, stop and set_regions begins another. Never 0.
  [[nodiscard]] std::uint32_t generation() const noexcept { return generation_; }
  // True while a head that was taken under that generation is in flight. Looks at every head.
  [[nodiscard]] bool in_flight_under(std::uint32_t generation) const noexcept {
    return std::any_of(in_flight_.get(), in_flight_.get() + options_.size_max,
                       [generation](const InFlight& owned) { return owned.generation == generation; });
  }

 private:
  // What is remembered of a head while the device owns it.
  struct InFlight {
    std::byte* status = nullptr;
    std::uint32_t writable_bytes = 0;
    std::uint32_t generation = 0;  // 0: the driver owns the head
  };

  // The three parts of the ring as this process sees them; all null while stopped.
  struct Parts {
    const std::byte* descriptors = nullptr;
    Avail* avail = nullptr;
    Used* used = nullptr;
  };

  [[nodiscard]] static std::uint16_t distance(std::uint16_t from, std::uint16_t to) noexcept {
    return static_cast<std::uint16_t>(to - from);  // indices run free and wrap on purpose
  }

  void begin_generation() noexcept { generation_ = std::max(1U, generation_ + 1); }  // skips 0 when it wraps

  // ---- Where the ring lies ----

  [[nodiscard]] static Parts resolve(const SplitRing& ring, std::span<const Region> regions) noexcept {
    std::byte* const descriptors =
        resolve_part(regions, ring.space, ring.descriptor_address, descriptor_bytes(ring.size), kDescriptorAlign);
    std::byte* const avail =
        resolve_part(regions, ring.space, ring.avail_address, avail_bytes(ring.size), kAvailAlign);
    std::byte* const used =
        resolve_part(regions, ring.space, ring.used_address, used_bytes(ring.size), kUsedAlign);
    if (descriptors == nullptr || avail == nullptr || used == nullptr) return {};
    return {descriptors, reinterpret_cast<Avail*>(avail), reinterpret_cast<Used*>(used)};
  }

  // A part must lie in one region, because it is accessed in place. The address is checked because the driver must
  // align it, the host pointer because this process accesses whole words there.
  [[nodiscard]] static std::byte* resolve_part(std::span<const Region> regions, AddressSpace space,
                                               std::uint64_t address, std::size_t length_bytes,
                                               std::size_t align) noexcept {
    const Stretch stretch = find_stretch(regions, space, address, length_bytes);
    const bool aligned = address % align == 0 && reinterpret_cast<std::uintptr_t>(stretch.host) % align == 0;
    return stretch.length_bytes == length_bytes && aligned ? stretch.host : nullptr;
  }

  // What an earlier process took and did not answer is the device's before it is handed out again, so that the driver
  // cannot offer such a head a second time.
  [[nodiscard]] Fault attach(const InflightPlace& inflight) noexcept {
    if (const Fault fault = inflight_region_.attach(inflight, ring_.size, used_idx_); fault != Fault::kNone) return fault;
    for (std::uint32_t index = 0; index < owed_count(); ++index) own(inflight_region_.owed_head(index), nullptr, 0);
    // What was taken is what was given back and what is still owed. The front-end cannot know it: it saw no more of
    // the earlier process than the used index.
    if (inflight_region_.continued()) last_avail_ = static_cast<std::uint16_t>(used_idx_ + owed_count());
    return Fault::kNone;
  }

  // ---- Taking ----

  [[nodiscard]] Fault head_fault(std::uint16_t head) const noexcept {
    if (head >= ring_.size) return Fault::kHeadRange;
    // With a second owner the head would be completed twice, and requests could pile up without bound.
    return in_flight_[head].generation != 0 ? Fault::kHeadInFlight : Fault::kNone;
  }

  // Passes over an available entry that names no chain. There is nothing to return: the head is nobody's, or
  // already the device's.
  void skip(Fault fault) noexcept {
    ++last_avail_;
    ++skips_in_a_row_;
    ++tables_.counters->skipped_heads;
    tables_.counters->last_fault = static_cast<std::uint64_t>(fault);
  }

  // Has the processor fetch the beginnings of the next chains side by side. All of them were written by the driver's
  // processor just now: read one after the other, each descriptor and then each indirect table is waited for. Whatever is
  // read here is a hint and is read again by whoever uses it.
  void prefetch_chains(std::uint32_t count) const noexcept {
    if (count < 2) return;
    const auto* const descriptors = reinterpret_cast<const Descriptor*>(parts_.descriptors);
    const auto descriptor_of = [this, descriptors](std::uint32_t entry) {
      const std::uint16_t head = Ordering::load_relaxed(&parts_.avail->ring[(last_avail_ + entry) & (ring_.size - 1)]);
      return &descriptors[head & (ring_.size - 1)];
    };
    for (std::uint32_t entry = 0; entry < count; ++entry) __builtin_prefetch(descriptor_of(entry));
    for (std::uint32_t entry = 0; entry < count; ++entry) {
      const std::uint64_t address = Ordering::load_relaxed(&descriptor_of(entry)->addr);
      const Stretch first = find_stretch(regions_, AddressSpace::kGuest, address, 1);
      if (first.host != nullptr) __builtin_prefetch(first.host);
    }
  }

  [[nodiscard]] Chain read(std::uint16_t head, std::uint32_t segment, std::uint32_t request) noexcept {
    const ChainSource source{regions_,      parts_.descriptors, ring_.size, options_.chain_count_max,
                             ring_.indirect, options_.framing};
    return read_chain<Ordering>(source, head, tables_.segments.subspan(segment),
                                tables_.headers.data() + request * options_.header_stride_bytes());
  }

  void own(std::uint16_t head, std::byte* status, std::uint32_t writable_bytes) noexcept {
    if (in_flight_[head].generation == 0) ++in_flight_count_;
    in_flight_[head] = {status, writable_bytes, generation_};
  }

  // Keeps a malformed chain for the next complete(), which returns it with length 0. A driver that made a mistake it
  // can recover from should not lose the whole device for it.
  void reject(std::uint16_t head, const Chain& chain) noexcept {
    own(head, chain.status, 0);
    rejected_[rejected_count_++] = head;
    ++tables_.counters->malformed_chains;
    tables_.counters->last_fault = static_cast<std::uint64_t>(chain.fault);
  }

  // ---- Completing ----

  void publish_rejected() noexcept {
    for (std::uint32_t index = 0; index < rejected_count_; ++index) {
      release(rejected_[index], kStatusFailed);
      write_used_element(rejected_[index], 0);
    }
    rejected_count_ = 0;
  }

  void give_back(const CompletionRow& row) noexcept {
    if (row.head >= options_.size_max || in_flight_[row.head].generation == 0) {
      ++tables_.counters->ignored_completions;
      return;
    }
    const auto head = static_cast<std::uint16_t>(row.head);
    const std::uint32_t data_bytes = in_flight_[head].writable_bytes;
    const std::uint32_t written = std::min(row.bytes_written, data_bytes);
    release(head, static_cast<std::uint8_t>(row.status));
    // `len` counts a prefix of the writable part: the status byte is in it only if all data before it is.
    write_used_element(head, options_.framing.status_byte && written == data_bytes ? written + 1 : written);
    ++tables_.counters->completions;
  }

  // Writes the status of a head, if it has one, and gives the head up.
  void release(std::uint16_t head, std::uint8_t status) noexcept {
    std::byte* const where = in_flight_[head].status;
    if (where != nullptr) Ordering::store_relaxed(where, std::byte{status});
    in_flight_[head] = {};
    --in_flight_count_;
  }

  void write_used_element(std::uint16_t head, std::uint32_t length_bytes) noexcept {
    UsedElement& element = parts_.used->ring[used_idx_ & (ring_.size - 1)];
    Ordering::store_relaxed(&element.id, std::uint32_t{head});
    Ordering::store_relaxed(&element.len, length_bytes);
    ++used_idx_;
    if (inflight_region_.attached()) [[unlikely]] inflight_region_.add_to_batch(head);
  }

  // Whether the driver asked to be told of what was published since the last decision. Has a side effect: it is a
  // decision, and `decided_used_` moves with every one. If it moved with signals only, 65,535 silent completions
  // would bring the index back to just behind it, and the next signal that is owed would be lost.
  [[nodiscard]] bool signal_is_needed() noexcept {
    const bool was_valid = decision_is_valid_;
    const std::uint16_t old = decided_used_;
    decided_used_ = used_idx_;
    decision_is_valid_ = true;
    ++tables_.counters->signal_fences;
    if (ring_.event_idx) {
      Ordering::fence_used_index_then_used_event();
      const std::uint16_t used_event = Ordering::load_relaxed(used_event_of(parts_.avail, ring_.size));
      return !was_valid || need_event(used_event, used_idx_, old);
    }
    Ordering::fence_used_index_then_avail_flags();
    const std::uint16_t avail_flags = Ordering::load_relaxed(&parts_.avail->flags);
    return !was_valid || (avail_flags & kAvailNoInterrupt) == 0;
  }

  // ---- Kicks ----

  // With EVENT_IDX there is nothing to write: avail_event stays behind, so the driver crosses it no more.
  void suppress_kicks() noexcept {
    if (armed_ && !ring_.event_idx) write_used_flags(kUsedNoNotify);
    armed_ = false;
  }

  // Asks for kicks unless an entry is visible, which nobody kicks for any more. Sets armed_.
  void arm_kicks() noexcept {
    if (sees_entry()) return;
    ++tables_.counters->rearms;
    if (ring_.event_idx) {
      Ordering::store_relaxed(avail_event_of(parts_.used, ring_.size), last_avail_);
      Ordering::fence_avail_event_then_avail_index();
    } else {
      write_used_flags(0);
      Ordering::fence_used_flags_then_avail_index();
    }
    armed_ = true;
    // The driver may have published between the first look and the wish, when it still saw the wish for silence.
    if (Ordering::looks_again_after_rearm && sees_entry()) suppress_kicks();
  }

  // With EVENT_IDX the flags stay 0; without it avail_event is never written (SeaBIOS keeps data there).
  void write_used_flags(std::uint16_t flags) noexcept { Ordering::store_relaxed(&parts_.used->flags, flags); }

  const SplitOptions options_;
  const SplitTables tables_;
  const std::unique_ptr<InFlight[]> in_flight_;         // by head
  InflightRegion<Ordering> inflight_region_;
  std::uint32_t owed_next_ = 0;                         // of the heads that an earlier process owed
  const std::unique_ptr<std::uint16_t[]> rejected_;     // heads of malformed chains, not yet published
  std::uint32_t rejected_count_ = 0;
  std::uint32_t in_flight_count_ = 0;
  std::uint32_t generation_ = 1;

  SplitRing ring_{};
  std::span<const Region> regions_;
  Parts parts_;
  Fault fault_ = Fault::kNone;
  std::uint16_t last_avail_ = 0;    // next available index to take
  std::uint16_t used_idx_ = 0;      // next used index to publish; the word in the ring is never read back
  std::uint16_t decided_used_ = 0;  // used_idx_ at the last decision (signalled_used in Linux vhost)
  bool decision_is_valid_ = false;  // decided_used_ can be trusted (signalled_used_valid)
  bool armed_ = false;
  std::uint32_t undecided_count_ = 0;  // entries published since the last decision
  std::uint32_t silent_count_ = 0;  // entries published since the last signal, at most the ring's size
  std::uint32_t skips_in_a_row_ = 0;
};

}  // namespace hushring
