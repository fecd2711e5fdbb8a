// The driver's half of one split virtqueue (virtio 1.3, 2.7): for the loopback, tests and benches.
//
// A template over the ordering policy (ordering.h) like the device's half (core/split.h), so that both sides of each
// fence are built from one text. It holds no file descriptor and makes no system call: kick_needed() tells its
// caller whether the device is owed a kick. Everything it needs is allocated when it is made. One thread uses it.
//
// The device is not believed either. The links between descriptors and what is known of a chain are kept in private
// memory, and every value the device writes is read once and checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "core/layout.h"
#include "core/suppress.h"

namespace hushring {

// How driver and device keep each other from being woken.
enum class Suppression : std::uint8_t {
  kNone,      // not at all: the driver kicks for every publish and never asks for silence
  kFlags,     // used.flags and avail.flags
  kEventIdx,  // avail_event and used_event (VIRTIO_F_EVENT_IDX)
};

// What a device can do wrong. One wrong word and nothing it says is believed any more.
enum class DeviceFault : std::uint8_t {
  kNone = 0,
  kUsedIndex = 1,         // the used index is ahead of what was published, or went back
  kUsedId = 2,            // an id outside the descriptor table
  kUsedNotPublished = 3,  // an id that heads no chain the device was given, or one it gave back before
  kUsedLength = 4,        // more bytes than the chain has room for
};

// Where the three parts of a ring lie. Addresses count from the start of the memory that driver and device share.
struct SplitLayout {
  std::uint64_t descriptor_address;
  std::uint64_t avail_address;
  std::uint64_t used_address;
  std::uint64_t end_address;  // behind the last part
};

// A ring of `size` descriptors from `address` on. Parts that different sides write share no pair of cache lines, so
// that neither a line nor its prefetched neighbour wanders to and fro for nothing.
[[nodiscard]] constexpr SplitLayout split_layout(std::uint64_t address, std::uint32_t size) noexcept {
  constexpr std::uint64_t kPairOfLines = 128;
  const auto align = [](std::uint64_t value) { return (value + kPairOfLines - 1) / kPairOfLines * kPairOfLines; };
  const std::uint64_t descriptors = align(address);
  const std::uint64_t avail = align(descriptors + descriptor_bytes(size));
  const std::uint64_t used = align(avail + avail_bytes(size));
  return {descriptors, avail, used, align(used + used_bytes(size))};
}

template <class Ordering>
class SplitDriver {
 public:
  // A buffer by its guest address.
  struct Buffer {
    std::uint64_t address;
    std::uint32_t length_bytes;
  };
  using Buffers = std::span<const Buffer>;

  // Room for a chain outside the ring: one descriptor for each buffer. Borrowed until the chain is reaped.
  struct IndirectTable {
    Descriptor* host;
    std::uint64_t address;
  };

  // Zeroes the ring at `memory` + `layout`, which is borrowed for the life of the driver; the device must not know
  // of it yet. `size` is a power of two, 1 to 32768. Both indices start at `first_index`.
  SplitDriver(std::byte* memory, const SplitLayout& layout, std::uint32_t size, Suppression suppression,
              std::uint16_t first_index = 0)
      : size_(size),
        suppression_(suppression),
        descriptors_(reinterpret_cast<Descriptor*>(memory + layout.descriptor_address)),
        avail_(reinterpret_cast<Avail*>(memory + layout.avail_address)),
        used_(reinterpret_cast<Used*>(memory + layout.used_address)),
        entries_(std::make_unique<Entry[]>(size)),
        free_count_(size),
        added_(first_index),
        published_(first_index),
        decided_(first_index - kLap),
        reaped_(first_index) {
    std::memset(descriptors_, 0, descriptor_bytes(size));
    std::memset(avail_, 0, avail_bytes(size));
    std::memset(used_, 0, used_bytes(size));
    Ordering::store_relaxed(&avail_->idx, first_index);
    Ordering::store_relaxed(&used_->idx, first_index);
    for (std::uint32_t index = 0; index < size; ++index) {
      entries_[index].next = static_cast<std::uint16_t>((index + 1) % size);
    }
  }

  // ---- Giving chains to the device ----

  // Adds a chain of one or more buffers, those the device reads before those it writes; the next publish() shows it.
  // `token` comes back from reap(). False, and nothing changed, while too few descriptors are free.
  [[nodiscard]] bool add(Buffers readable, Buffers writable, std::uint32_t token) noexcept {
    const std::size_t count = readable.size() + writable.size();
    if (count == 0 || count > free_count_) return false;
    const std::uint16_t head = free_head_;
    const std::uint16_t last = write_chain(descriptors_, head, readable, writable,
                                           [this](std::uint16_t index) { return entries_[index].next; });
    make_available(head, last, static_cast<std::uint16_t>(count), writable, token);
    return true;
  }

  // The same through an indirect table, which takes one descriptor of the ring however many buffers there are.
  [[nodiscard]] bool add_indirect(Buffers readable, Buffers writable, const IndirectTable& table,
                                  std::uint32_t token) noexcept {
    const std::size_t count = readable.size() + writable.size();
    if (count == 0 || free_count_ == 0) return false;
    write_chain(table.host, 0, readable, writable,
                [](std::uint16_t index) { return static_cast<std::uint16_t>(index + 1); });
    const std::uint16_t head = free_head_;
    put(descriptors_[head],
        {table.address, static_cast<std::uint32_t>(count * sizeof(Descriptor)), kDescIndirect, 0});
    make_available(head, head, 1, writable, token);
    return true;
  }

  // Shows the device every chain added so far, with one store of the index.
  void publish() noexcept {
    if (published_ == added_) return;
    published_ = added_;
    Ordering::publish_avail_index(&avail_->idx, static_cast<std::uint16_t>(published_));
  }

  // Whether the device asked to be kicked for what was published since the last call. Has a side effect: it is a
  // decision, and the next one counts from here. The first decision kicks, whatever the device asked for, and so
  // does one that comes a whole lap of the index late.
  [[nodiscard]] bool kick_needed() noexcept {
    const std::uint64_t old = std::exchange(decided_, published_);
    const std::uint64_t progress = published_ - old;
    if (progress == 0) return false;
    switch (suppression_) {
      case Suppression::kNone:
        return true;
      case Suppression::kFlags:
        Ordering::fence_avail_index_then_used_flags();
        return progress >= kLap || (Ordering::load_relaxed(&used_->flags) & kUsedNoNotify) == 0;
      case Suppression::kEventIdx:
        break;
    }
    Ordering::fence_avail_index_then_avail_event();
    const std::uint16_t avail_event = Ordering::load_relaxed(avail_event_of(used_, size_));
    return progress >= kLap ||
           need_event(avail_event, static_cast<std::uint16_t>(published_), static_cast<std::uint16_t>(old));
  }

  // ---- Getting them back ----

  // Takes back what the device has used up to now, in its order, and calls on_used(token, length_bytes) for each
  // chain, which may add() the next one. Reads the index once. Returns the number of chains; 0 once the device is
  // at fault.
  template <class OnUsed>
  std::uint32_t reap(OnUsed on_used) noexcept {
    if (fault_ != DeviceFault::kNone) return 0;
    const std::uint16_t used_idx = Ordering::acquire_used_index(&used_->idx);
    const auto ready = static_cast<std::uint16_t>(used_idx - reaped_);  // indices wrap on purpose
    if (ready > published_ - reaped_) {
      fault_ = DeviceFault::kUsedIndex;
      return 0;
    }
    for (std::uint32_t count = 0; count < ready; ++count) {
      const UsedElement& element = used_->ring[reaped_ & (size_ - 1)];
      const std::uint32_t id = Ordering::load_relaxed(&element.id);
      const std::uint32_t length_bytes = Ordering::load_relaxed(&element.len);
      fault_ = element_fault(id, length_bytes);
      if (fault_ != DeviceFault::kNone) return count;
      const std::uint32_t token = entries_[id].token;
      release(static_cast<std::uint16_t>(id));
      ++reaped_;
      on_used(token, length_bytes);
    }
    return ready;
  }

  // True iff the device used something that was not reaped.
  [[nodiscard]] bool sees_used() const noexcept {
    return Ordering::acquire_used_index(&used_->idx) != static_cast<std::uint16_t>(reaped_);
  }

  // ---- Being woken ----

  // Asks for a signal when the next chain is used, and looks once more. True: there is already work, which nobody
  // signals for any more; do not sleep.
  //
  // Without the fence: the wish waits in this core's store buffer while the look finds nothing; the device publishes,
  // reads the old wish, stays silent, and the driver sleeps on a finished request for ever.
  [[nodiscard]] bool enable_signals() noexcept {
    switch (suppression_) {
      case Suppression::kNone:
        break;  // the device was never asked for silence
      case Suppression::kFlags:
        write_avail_flags(0);
        Ordering::fence_avail_flags_then_used_index();
        break;
      case Suppression::kEventIdx:
        Ordering::store_relaxed(used_event_of(avail_, size_), static_cast<std::uint16_t>(reaped_));
        Ordering::fence_used_event_then_used_index();
        break;
    }
    return sees_used();
  }

  // Asks for silence; signals that are on their way still come. With EVENT_IDX there is nothing to write:
  // used_event stays where it is and the device, once past it, does not cross it again for a lap.
  void disable_signals() noexcept {
    if (suppression_ == Suppression::kFlags) write_avail_flags(kAvailNoInterrupt);
  }

  // ---- What is known ----

  // Chains added and not reaped.
  [[nodiscard]] std::uint32_t in_flight_count() const noexcept { return static_cast<std::uint32_t>(added_ - reaped_); }
  [[nodiscard]] std::uint32_t free_count() const noexcept { return free_count_; }
  // The first wrong thing the device did; it stays.
  [[nodiscard]] DeviceFault fault() const noexcept { return fault_; }

 private:
  // Values of a 16-bit index. The counts of chains below have 64 bits, so a lap can be seen; the ring gets their low
  // halves.
  static constexpr std::uint64_t kLap = 65536;

  // What is known of each descriptor, and of a chain by its head.
  struct Entry {
    std::uint16_t next = 0;  // the next one of its chain, or of the free list
    std::uint16_t last = 0;  // the rest belongs to a head: its chain's last descriptor
    std::uint16_t count = 0;  // descriptors of the chain; 0 when this is no head
    std::uint32_t token = 0;
    std::uint64_t writable_bytes = 0;
    std::uint64_t added_at = 0;  // `added_` before it was added
  };

  static void put(Descriptor& where, const Descriptor& descriptor) noexcept {
    Ordering::store_relaxed(&where.addr, descriptor.addr);
    Ordering::store_relaxed(&where.len, descriptor.len);
    Ordering::store_relaxed(&where.flags, descriptor.flags);
    Ordering::store_relaxed(&where.next, descriptor.next);
  }

  // Writes the buffers into `table` from `index` on, linked as next_of(index) says. Returns the last one's index.
  template <class NextOf>
  static std::uint16_t write_chain(Descriptor* table, std::uint16_t index, Buffers readable, Buffers writable,
                                   NextOf next_of) noexcept {
    std::size_t left = readable.size() + writable.size();
    std::uint16_t last = index;
    const auto write = [&](const Buffer& buffer, std::uint16_t flags) {
      last = std::exchange(index, next_of(index));
      const std::uint16_t linked = --left > 0 ? kDescNext : std::uint16_t{0};
      put(table[last], {buffer.address, buffer.length_bytes, static_cast<std::uint16_t>(flags | linked), index});
    };
    for (const Buffer& buffer : readable) write(buffer, 0);
    for (const Buffer& buffer : writable) write(buffer, kDescWrite);
    return last;
  }

  // Takes the first `count` free descriptors, from `head` to `last`, and enters the chain into the avail ring.
  void make_available(std::uint16_t head, std::uint16_t last, std::uint16_t count, Buffers writable,
                      std::uint32_t token) noexcept {
    Entry& entry = entries_[head];
    entry.last = last;
    entry.count = count;
    entry.token = token;
    entry.writable_bytes = 0;
    for (const Buffer& buffer : writable) entry.writable_bytes += buffer.length_bytes;
    entry.added_at = added_;
    free_head_ = entries_[last].next;
    free_count_ -= count;
    Ordering::store_relaxed(&avail_->ring[added_ & (size_ - 1)], head);
    ++added_;
  }

  void release(std::uint16_t head) noexcept {
    Entry& entry = entries_[head];
    entries_[entry.last].next = std::exchange(free_head_, head);
    free_count_ += std::exchange(entry.count, std::uint16_t{0});
  }

  [[nodiscard]] DeviceFault element_fault(std::uint32_t id, std::uint32_t length_bytes) const noexcept {
    if (id >= size_) return DeviceFault::kUsedId;
    const Entry& entry = entries_[id];
    // A head that was reaped and given out again within this reap() is not published yet: answered twice.
    if (entry.count == 0 || entry.added_at >= published_) return DeviceFault::kUsedNotPublished;
    return length_bytes > entry.writable_bytes ? DeviceFault::kUsedLength : DeviceFault::kNone;
  }

  void write_avail_flags(std::uint16_t flags) noexcept {
    if (std::exchange(avail_flags_, flags) != flags) Ordering::store_relaxed(&avail_->flags, flags);
  }

  const std::uint32_t size_;
  const Suppression suppression_;
  Descriptor* const descriptors_;
  Avail* const avail_;
  Used* const used_;
  const std::unique_ptr<Entry[]> entries_;  // by descriptor
  std::uint16_t free_head_ = 0;
  std::uint32_t free_count_;
  std::uint16_t avail_flags_ = 0;
  DeviceFault fault_ = DeviceFault::kNone;

  // Chains since the start, beginning with first_index: reaped_ <= published_ <= added_.
  std::uint64_t added_;
  std::uint64_t published_;
  std::uint64_t decided_;  // published_ at the last decision to kick; a lap behind before the first one
  std::uint64_t reaped_;
};

}  // namespace hushring
