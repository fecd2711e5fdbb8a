// What the next process is told of the requests that this one was serving when it was killed: the in-flight region of
// one split queue (vhost-user, "Inflight I/O tracking", split virtqueue, version 1).
//
// The region outlives the process because the front-end holds it. It is written beside the ring in an order of stores
// (F13 in ordering.h) that makes sense after every single one of them, since a kill may come after any. The front-end
// can write it too: it is read once, when a queue starts, and every value is checked; from then on this process's own
// copies count. It holds no file descriptor and allocates nothing after its construction. One thread uses it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/fault.h"

namespace hushring {

inline constexpr std::size_t kInflightAlign = 64;
inline constexpr std::uint16_t kInflightVersion = 1;

// Names are the specification's. `features` and `padding` are not used.
struct InflightHeader {
  std::uint64_t features;
  std::uint16_t version;          // 0: nobody has used the region yet
  std::uint16_t desc_num;         // entries behind the header
  std::uint16_t last_batch_head;  // the head that was linked last
  std::uint16_t used_idx;         // used.idx when the last batch had been cleared
};
static_assert(sizeof(InflightHeader) == 16 && offsetof(InflightHeader, version) == 8 &&
              offsetof(InflightHeader, desc_num) == 10 && offsetof(InflightHeader, last_batch_head) == 12 &&
              offsetof(InflightHeader, used_idx) == 14);

struct InflightEntry {
  std::uint8_t inflight;  // 1 while the device owns the head
  std::uint8_t padding[5];
  std::uint16_t next;     // the head that was linked before this one
  std::uint64_t counter;  // ascends in the order of taking
};
static_assert(sizeof(InflightEntry) == 16 && offsetof(InflightEntry, next) == 6 &&
              offsetof(InflightEntry, counter) == 8);

// Bytes of the region of a queue with `entry_count` descriptors; the one of the next queue follows.
[[nodiscard]] constexpr std::size_t inflight_bytes(std::uint32_t entry_count) noexcept {
  const std::size_t bytes = sizeof(InflightHeader) + sizeof(InflightEntry) * std::size_t{entry_count};
  return (bytes + kInflightAlign - 1) / kInflightAlign * kInflightAlign;
}

// Where the region of one queue lies: inflight_bytes(entry_count) at `start`, aligned to 8. Null: there is none.
struct InflightPlace {
  std::byte* start = nullptr;
  std::uint32_t entry_count = 0;
};

template <class Ordering>
class InflightRegion {
 public:
  // For rings of up to `size_max` descriptors.
  explicit InflightRegion(std::uint32_t size_max)
      : owed_(std::make_unique<Owed[]>(size_max)), batch_(std::make_unique<std::uint16_t[]>(size_max)) {}

  [[nodiscard]] bool attached() const noexcept { return header_ != nullptr; }

  // Writes nothing more to the region; what is marked stays marked for whoever attaches it next.
  void detach() noexcept {
    header_ = nullptr;
    continued_ = false;
    owed_count_ = 0;
    batch_count_ = 0;
  }

  // Makes sense of what an earlier process left behind, beside a ring of `size` descriptors whose used index is
  // `used_idx`: finishes the batch that it had published and not yet cleared, and lists the heads it still owed, in
  // the order in which it took them. A fresh region is prepared. Stays detached when the region cannot be.
  //
  // A kill in the middle of this is as good as one before it: the next process finds the same, or what was finished.
  [[nodiscard]] Fault attach(const InflightPlace& place, std::uint32_t size, std::uint16_t used_idx) noexcept {
    detach();
    if (place.start == nullptr) return Fault::kNone;
    if (place.entry_count < size) return Fault::kRingInflight;
    header_ = reinterpret_cast<InflightHeader*>(place.start);
    entries_ = reinterpret_cast<InflightEntry*>(place.start + sizeof(InflightHeader));
    const std::uint16_t version = Ordering::load_relaxed(&header_->version);
    const bool understood = version == kInflightVersion
                                ? Ordering::load_relaxed(&header_->desc_num) == place.entry_count &&
                                      recover(place.entry_count, size, used_idx)
                                : version == 0;
    if (!understood) {
      detach();
      return Fault::kRingInflight;
    }
    continued_ = version != 0;
    if (!continued_) prepare(place.entry_count, used_idx);
    return Fault::kNone;
  }

  // The region was in use before it was attached.
  [[nodiscard]] bool continued() const noexcept { return continued_; }

  // Heads that an earlier process owed, in the order in which they were taken.
  [[nodiscard]] std::uint32_t owed_count() const noexcept { return owed_count_; }
  [[nodiscard]] std::uint16_t owed_head(std::uint32_t index) const noexcept { return owed_[index].head; }

  // The device owns `head` from now on.
  void take(std::uint16_t head) noexcept {
    InflightEntry& entry = entries_[head];
    Ordering::count_then_mark([&] { Ordering::store_inflight_counter(&entry.counter, counter_++); },
                              [&] { Ordering::mark_inflight(&entry.inflight); });
  }

  // `head` belongs to the batch that the next publish() shows. At most as many as the ring has descriptors.
  void add_to_batch(std::uint16_t head) noexcept { batch_[batch_count_++] = head; }

  // Gives the batch back: publish_used() stores used.idx, which becomes `used_idx`.
  template <class PublishUsed>
  void publish(std::uint16_t used_idx, PublishUsed publish_used) noexcept {
    const std::span<const std::uint16_t> batch(batch_.get(), batch_count_);
    Ordering::link_then_publish([&] { link(batch); },
                                [&] {
                                  Ordering::publish_then_clear(publish_used, [&] {
                                    Ordering::clear_then_note([&] { clear(batch); }, [&] { note(used_idx); });
                                  });
                                });
    batch_count_ = 0;
  }

 private:
  struct Owed {
    std::uint64_t counter;
    std::uint16_t head;
    bool seen;  // while a batch is being finished; by head, unlike the rest
  };

  void link(std::span<const std::uint16_t> batch) noexcept {
    for (const std::uint16_t head : batch) {
      Ordering::store_relaxed(&entries_[head].next, last_batch_head_);
      Ordering::store_relaxed(&header_->last_batch_head, head);
      last_batch_head_ = head;
    }
  }
  void clear(std::span<const std::uint16_t> batch) noexcept {
    for (const std::uint16_t head : batch) Ordering::clear_inflight(&entries_[head].inflight);
  }
  void note(std::uint16_t used_idx) noexcept { Ordering::note_used_index(&header_->used_idx, used_idx); }

  // The version comes last: before it the region is as fresh as it was.
  void prepare(std::uint32_t entry_count, std::uint16_t used_idx) noexcept {
    for (std::uint32_t head = 0; head < entry_count; ++head) Ordering::clear_inflight(&entries_[head].inflight);
    last_batch_head_ = 0;
    counter_ = 0;
    Ordering::store_relaxed(&header_->desc_num, static_cast<std::uint16_t>(entry_count));
    Ordering::store_relaxed(&header_->last_batch_head, last_batch_head_);
    note(used_idx);
    Ordering::publish_inflight_version(&header_->version, kInflightVersion);
  }

  // False when the region contradicts itself or the ring.
  [[nodiscard]] bool recover(std::uint32_t entry_count, std::uint32_t size, std::uint16_t used_idx) noexcept {
    last_batch_head_ = Ordering::load_relaxed(&header_->last_batch_head);
    if (!collect(entry_count, size)) return false;
    const auto unfinished =
        static_cast<std::uint16_t>(used_idx - Ordering::load_relaxed(&header_->used_idx));  // wraps on purpose
    // Without a mark there is nothing to finish, whatever the indices say: the ring may have begun anew meanwhile.
    if (unfinished > 0 && owed_count_ > 0 && !(finish_batch(unfinished, size) && collect(entry_count, size))) {
      return false;
    }
    if (unfinished > 0) note(used_idx);
    std::sort(owed_.get(), owed_.get() + owed_count_, [](const Owed& one, const Owed& other) {
      return one.counter != other.counter ? one.counter < other.counter : one.head < other.head;
    });
    // Only sorted, never counted with: a front-end that wrote the largest there makes the order wrong and no more.
    counter_ = owed_count_ == 0 ? 0 : owed_[owed_count_ - 1].counter + 1;
    return true;
  }

  // Lists the marked heads. False when one is outside the ring or marked with anything but 1.
  [[nodiscard]] bool collect(std::uint32_t entry_count, std::uint32_t size) noexcept {
    owed_count_ = 0;
    for (std::uint32_t head = 0; head < entry_count; ++head) {
      const std::uint8_t mark = Ordering::load_relaxed(&entries_[head].inflight);
      if (mark == 0) continue;
      if (mark != 1 || head >= size) return false;
      owed_[owed_count_++] = {Ordering::load_relaxed(&entries_[head].counter), static_cast<std::uint16_t>(head), false};
    }
    return true;
  }

  // Clears the marks of the `count` heads linked last, which the driver sees in the used ring. False when they are
  // not so many different heads of the ring.
  [[nodiscard]] bool finish_batch(std::uint32_t count, std::uint32_t size) noexcept {
    if (count > size) return false;
    for (std::uint32_t head = 0; head < size; ++head) owed_[head].seen = false;
    std::uint16_t head = last_batch_head_;
    for (std::uint32_t step = 0; step < count; ++step) {
      if (head >= size || owed_[head].seen) return false;
      owed_[head].seen = true;
      Ordering::clear_inflight(&entries_[head].inflight);
      head = Ordering::load_relaxed(&entries_[head].next);
    }
    return true;
  }

  InflightHeader* header_ = nullptr;
  InflightEntry* entries_ = nullptr;
  bool continued_ = false;
  std::uint16_t last_batch_head_ = 0;
  std::uint64_t counter_ = 0;  // of the next head taken
  const std::unique_ptr<Owed[]> owed_;
  std::uint32_t owed_count_ = 0;
  const std::unique_ptr<std::uint16_t[]> batch_;
  std::uint32_t batch_count_ = 0;
};

}  // namespace hushring
