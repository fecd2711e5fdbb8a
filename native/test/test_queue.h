// A split queue under test: guest memory of several regions, the driver's words in it, and the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "core/ordering.h"
#include "core/split.h"

namespace hushring::test {

// Regions on the heap, each an allocation of its own, so that AddressSanitizer sees every byte beyond an edge.
class TestMemory {
 public:
  // User addresses differ from guest addresses, so that mixing the two up finds nothing.
  static constexpr std::uint64_t kUserOffset = 0x7f00'0000'0000;

  void add(std::uint64_t guest_address, std::uint64_t size_bytes) {
    auto* const host = static_cast<std::byte*>(std::aligned_alloc(4096, (size_bytes + 4095) / 4096 * 4096));
    std::memset(host, 0, size_bytes);
    owned_.emplace_back(host);
    add(guest_address, size_bytes, host);
  }
  void add(std::uint64_t guest_address, std::uint64_t size_bytes, std::byte* host) {
    regions_.push_back({guest_address, guest_address + kUserOffset, size_bytes, host, windows_});
    windows_ += window_count(size_bytes);
  }

  [[nodiscard]] std::byte* at(std::uint64_t guest_address) const {
    return find_stretch(regions_, AddressSpace::kGuest, guest_address, 1).host;
  }
  [[nodiscard]] std::uint8_t byte_at(std::uint64_t guest_address) const {
    return static_cast<std::uint8_t>(*at(guest_address));
  }
  [[nodiscard]] std::span<const Region> regions() const { return regions_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::vector<std::unique_ptr<std::byte, Free>> owned_;
  std::vector<Region> regions_;
  std::uint32_t windows_ = 0;
};

struct Buffer {
  std::uint64_t address;
  std::uint32_t length_bytes;
  std::uint16_t flags = 0;  // kDescWrite or nothing; the links are added
};

// The driver's half, as little of it as the tests need. Every access to a shared word is atomic, so that tests with
// threads are free of data races of their own.
class TestDriver {
 public:
  // The three parts lie one after the other from `guest_address` on.
  TestDriver(const TestMemory& memory, std::uint64_t guest_address, std::uint32_t size)
      : size_(size), guest_address_(guest_address) {
    descriptors_ = reinterpret_cast<Descriptor*>(memory.at(guest_address));
    avail_ = reinterpret_cast<Avail*>(memory.at(avail_address()));
    used_ = reinterpret_cast<Used*>(memory.at(used_address()));
  }

  [[nodiscard]] std::uint64_t avail_address() const { return guest_address_ + descriptor_bytes(size_); }
  [[nodiscard]] std::uint64_t used_address() const { return (avail_address() + avail_bytes(size_) + 3) / 4 * 4; }
  [[nodiscard]] SplitRing ring(bool event_idx = false, std::uint16_t avail_base = 0) const {
    return {.size = size_,
            .space = AddressSpace::kUser,
            .descriptor_address = guest_address_ + TestMemory::kUserOffset,
            .avail_address = avail_address() + TestMemory::kUserOffset,
            .used_address = used_address() + TestMemory::kUserOffset,
            .avail_base = avail_base,
            .event_idx = event_idx,
            .indirect = true};
  }

  static void put(Descriptor* where, const Descriptor& descriptor) {
    HardwareOrdering::store_relaxed(&where->addr, descriptor.addr);
    HardwareOrdering::store_relaxed(&where->len, descriptor.len);
    HardwareOrdering::store_relaxed(&where->flags, descriptor.flags);
    HardwareOrdering::store_relaxed(&where->next, descriptor.next);
  }
  [[nodiscard]] Descriptor* descriptor(std::uint32_t index) const { return descriptors_ + index; }

  // Writes buffers into consecutive descriptors from `head` on, linked.
  void link(std::uint16_t head, std::initializer_list<Buffer> buffers) const { link(descriptors_, head, buffers); }
  // The same in any table, such as an indirect one.
  static void link(Descriptor* table, std::uint16_t head, std::initializer_list<Buffer> buffers) {
    std::size_t left = buffers.size();
    for (const Buffer& buffer : buffers) {
      const std::uint16_t next = --left > 0 ? kDescNext : std::uint16_t{0};
      put(table + head, {buffer.address, buffer.length_bytes, static_cast<std::uint16_t>(buffer.flags | next),
                         static_cast<std::uint16_t>(head + 1)});
      ++head;
    }
  }

  void publish(std::uint16_t head) {
    HardwareOrdering::store_relaxed(&avail_->ring[0] + avail_idx_ % size_, head);
    set_avail_idx(static_cast<std::uint16_t>(avail_idx_ + 1));
  }
  void offer(std::uint16_t head, std::initializer_list<Buffer> buffers) {
    link(head, buffers);
    publish(head);
  }
  void set_avail_idx(std::uint16_t idx) {
    avail_idx_ = idx;
    HardwareOrdering::publish_avail_index(&avail_->idx, idx);
  }
  [[nodiscard]] std::uint16_t avail_idx() const { return avail_idx_; }

  [[nodiscard]] std::uint16_t used_idx() const { return HardwareOrdering::acquire_used_index(&used_->idx); }
  void set_used_idx(std::uint16_t idx) const { HardwareOrdering::store_relaxed(&used_->idx, idx); }
  // The element at a free-running index.
  [[nodiscard]] UsedElement used(std::uint16_t index) const {
    const UsedElement* const element = &used_->ring[0] + index % size_;
    return {HardwareOrdering::load_relaxed(&element->id), HardwareOrdering::load_relaxed(&element->len)};
  }

  void set_avail_flags(std::uint16_t flags) const { HardwareOrdering::store_relaxed(&avail_->flags, flags); }
  void set_used_event(std::uint16_t event) const {
    HardwareOrdering::store_relaxed(used_event_of(avail_, size_), event);
  }
  [[nodiscard]] std::uint16_t used_flags() const { return HardwareOrdering::load_relaxed(&used_->flags); }
  [[nodiscard]] std::uint16_t avail_event() const {
    return HardwareOrdering::load_relaxed(avail_event_of(used_, size_));
  }
  void set_avail_event(std::uint16_t event) const {
    HardwareOrdering::store_relaxed(avail_event_of(used_, size_), event);
  }

  // Where the device looks, for tests that act at that moment.
  [[nodiscard]] const std::uint16_t* avail_idx_word() const { return &avail_->idx; }
  [[nodiscard]] const std::uint16_t* avail_flags_word() const { return &avail_->flags; }
  [[nodiscard]] const std::uint16_t* used_event_word() const { return used_event_of(avail_, size_); }

 private:
  std::uint32_t size_;
  std::uint64_t guest_address_;
  Descriptor* descriptors_;
  Avail* avail_;
  Used* used_;
  std::uint16_t avail_idx_ = 0;
};

inline constexpr std::uint64_t kRingAt = 0x1'0000;
inline constexpr std::uint64_t kDataAt = 0x100'0000;  // two regions that are neighbours for the guest only
inline constexpr std::uint64_t kDataRegionBytes = 0x1'0000;
inline constexpr std::uint64_t kSecondDataAt = kDataAt + kDataRegionBytes;
inline constexpr std::uint64_t kHoleAt = kSecondDataAt + kDataRegionBytes;

struct TestOptions {
  std::uint32_t size = 8;
  bool event_idx = false;
  std::uint16_t base = 0;
  std::uint32_t batch_count_max = 128;
  std::uint32_t chain_count_max = 16;
  Framing framing{.header_bytes = 16, .status_byte = true};
  bool strict_chains = false;
  bool indirect = true;
  std::uint32_t batch_count_min = kSplitQueueSizeMax;
};

template <class Ordering = HardwareOrdering>
class TestQueue {
 public:
  explicit TestQueue(const TestOptions& options = {})
      : memory(make_memory(options)),
        driver(memory, kRingAt, options.size),
        split_options{options.size, options.batch_count_max, options.chain_count_max, options.framing,
                      options.strict_chains, options.batch_count_min},
        requests(split_options.request_rows()),
        headers(split_options.request_rows() * split_options.header_stride_bytes()),
        segments(split_options.segment_rows()),
        completions(split_options.completion_rows()),
        device(split_options, {requests, headers, segments, completions, &counters}) {
    ring = driver.ring(options.event_idx, options.base);
    ring.indirect = options.indirect;
    driver.set_avail_idx(options.base);
    driver.set_used_idx(options.base);
    start_fault = device.start(ring, memory.regions());
  }

  // Completes one head and returns what complete() says.
  std::int32_t answer(std::uint32_t head, std::uint32_t bytes_written, std::uint8_t status = 0, bool rearm = false) {
    completions[0] = {head, bytes_written, status};
    return device.complete(1, rearm);
  }
  // Takes, completes and counts everything visible; every request answers with `bytes_written`.
  std::int32_t serve(bool rearm = true, std::uint32_t bytes_written = 0) {
    const std::int32_t taken = device.take(split_options.batch_count_max);
    if (taken < 0) return taken;
    for (std::int32_t row = 0; row < taken; ++row) {
      completions[static_cast<std::size_t>(row)] = {requests[static_cast<std::size_t>(row)].head, bytes_written, 0};
    }
    return device.complete(static_cast<std::uint32_t>(taken), rearm);
  }

  TestMemory memory;
  TestDriver driver;
  SplitOptions split_options;
  SplitRing ring{};
  std::vector<RequestRow> requests;
  std::vector<std::byte> headers;
  std::vector<Segment> segments;
  std::vector<CompletionRow> completions;
  QueueCounters counters{};
  SplitDevice<Ordering> device;
  Fault start_fault = Fault::kNone;

 private:
  static TestMemory make_memory(const TestOptions& options) {
    TestMemory memory;
    memory.add(kRingAt, 4 + descriptor_bytes(options.size) + avail_bytes(options.size) + used_bytes(options.size));
    memory.add(kDataAt, kDataRegionBytes);
    memory.add(kSecondDataAt, kDataRegionBytes);
    return memory;
  }
};

}  // namespace hushring::test
