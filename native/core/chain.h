// One descriptor chain: read out of memory that the driver may be rewriting, validated, and turned into segments.
//
// Each descriptor is copied out once; the copy is validated and the copy is used. Nothing is looked up twice, so a
// driver that flips a descriptor between check and use changes nothing (CVE-2020-14375, XSA-155).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "core/fault.h"
#include "core/layout.h"
#include "core/memory.h"

namespace hushring {

// One row of the segments table: a piece of driver memory that crosses neither a region's nor a window's edge. The
// layout is the contract with src/native.ts (SegmentRow).
struct Segment {
  std::uint32_t window;
  std::uint32_t offset_bytes;
  std::uint32_t length_bytes;
};

// How the bytes of a chain are split. Drivers may place the borders anywhere (ANY_LAYOUT, implied by VERSION_1).
struct Framing {
  std::uint32_t header_bytes;  // copied out of the front of the device-readable part
  bool status_byte;            // the last device-writable byte is a status
};

// A chain as it was found. With a fault, `status` is all that may be used.
struct Chain {
  Fault fault = Fault::kNone;
  // The chain needs more segment rows than it was given; the fault is kChainTooLong.
  bool rows_exhausted = false;
  std::uint32_t first_segment = 0;  // within the rows given; rows before it held the header
  std::uint32_t readable_count = 0;
  std::uint32_t writable_count = 0;
  std::uint32_t readable_bytes = 0;  // without the header
  std::uint32_t writable_bytes = 0;  // without the status byte
  // Where the status goes; null without a status byte, or when the chain is too malformed to tell.
  std::byte* status = nullptr;
};

// Collects the buffers of one chain into segments. It keeps the first fault and goes on, because the end of a chain
// tells where the status byte is even if a buffer before it is bad.
class ChainBuilder {
 public:
  ChainBuilder(std::span<const Region> regions, std::span<Segment> rows) noexcept : regions_(regions), rows_(rows) {}

  // Adds the next buffer. An empty one is skipped, whatever its address.
  void add(std::uint64_t address, std::uint32_t length_bytes, bool writable) noexcept {
    if (length_bytes == 0) return;
    if (writable != is_writable_) turn(writable);
    last_address_ = address;
    last_length_bytes_ = length_bytes;
    // The sum cannot overflow: a chain has fewer than 2^32 descriptors of less than 2^32 bytes each.
    total_bytes_ += length_bytes;
    if (total_bytes_ > std::numeric_limits<std::uint32_t>::max()) [[unlikely]] note(Fault::kChainTooLong);
    if (fault_ == Fault::kNone) [[likely]] add_segments(address, length_bytes);
  }

  // The chain ends here because its next descriptor cannot be known: there is no telling where its status is.
  [[nodiscard]] Chain cut(Fault fault) noexcept {
    note(fault);
    return {.fault = fault_, .rows_exhausted = rows_exhausted_};
  }

  // The chain is complete. The header is still part of its first segments.
  [[nodiscard]] Chain finish(const Framing& framing) noexcept {
    if (!is_writable_) end_readable();
    if (readable_bytes_ < framing.header_bytes || (framing.status_byte && !is_writable_)) [[unlikely]] {
      note(Fault::kChainFraming);
    }
    if (fault_ != Fault::kNone) [[unlikely]] {
      return {.fault = fault_,
              .rows_exhausted = rows_exhausted_,
              .status = framing.status_byte ? status_of_malformed() : nullptr};
    }
    Chain chain{.readable_count = readable_count_,
                .writable_count = row_count_ - readable_count_,
                .readable_bytes = readable_bytes_ - framing.header_bytes,
                .writable_bytes = static_cast<std::uint32_t>(total_bytes_) - readable_bytes_};
    if (!framing.status_byte) return chain;
    chain.status = last_host_;
    --chain.writable_bytes;
    if (--rows_[row_count_ - 1].length_bytes == 0) --chain.writable_count;
    return chain;
  }

 private:
  // The next buffer is of the other kind than the one before it.
  void turn(bool writable) noexcept {
    if (writable) end_readable();
    else note(Fault::kChainOrder);
    is_writable_ = writable;
  }

  void end_readable() noexcept {
    readable_count_ = row_count_;
    readable_bytes_ = static_cast<std::uint32_t>(total_bytes_);
  }

  void add_segments(std::uint64_t address, std::uint32_t length_bytes) noexcept {
    const Stretch stretch = find_stretch(regions_, AddressSpace::kGuest, address, length_bytes);
    const bool is_one_piece =
        stretch.length_bytes == length_bytes && stretch.window_offset + stretch.length_bytes <= kWindowBytes;
    if (is_one_piece && row_count_ < rows_.size()) [[likely]] {
      rows_[row_count_++] = {stretch.window, stretch.window_offset, length_bytes};
      last_host_ = stretch.host + (length_bytes - 1);
      return;
    }
    const Pieces pieces = divide(regions_, rows_.subspan(row_count_), address, length_bytes);
    row_count_ += pieces.count;
    last_host_ = pieces.last_host;
    if (pieces.fault == Fault::kNone) return;
    rows_exhausted_ = pieces.fault == Fault::kChainTooLong;
    note(pieces.fault);
  }

  struct Pieces {
    Fault fault = Fault::kNone;
    std::uint32_t count = 0;
    std::byte* last_host = nullptr;
  };

  // A buffer that runs over the end of a region or a window, that lies nowhere, or that there is no row for. It knows
  // nothing of the builder, so that the compiler can keep that in registers.
  [[nodiscard, gnu::noinline, gnu::cold]] static Pieces divide(std::span<const Region> regions, std::span<Segment> rows,
                                                               std::uint64_t address,
                                                               std::uint32_t length_bytes) noexcept {
    Pieces pieces;
    // One that wraps lies nowhere, even if there is memory at both ends.
    if (address + (length_bytes - 1) < address) pieces.fault = Fault::kChainAddress;
    while (length_bytes > 0 && pieces.fault == Fault::kNone) {
      const Stretch stretch = find_stretch(regions, AddressSpace::kGuest, address, length_bytes);
      if (stretch.host == nullptr) pieces.fault = Fault::kChainAddress;
      else if (pieces.count == rows.size()) pieces.fault = Fault::kChainTooLong;
      if (pieces.fault != Fault::kNone) break;
      const auto piece_bytes =
          static_cast<std::uint32_t>(std::min(stretch.length_bytes, kWindowBytes - stretch.window_offset));
      rows[pieces.count++] = {stretch.window, stretch.window_offset, piece_bytes};
      pieces.last_host = stretch.host + (piece_bytes - 1);
      address += piece_bytes;
      length_bytes -= piece_bytes;
    }
    return pieces;
  }

  // The last byte of a chain that ends in a writable buffer. The end of one that wraps is no place for a status.
  [[nodiscard]] std::byte* status_of_malformed() const noexcept {
    const std::uint64_t last_byte = last_address_ + (last_length_bytes_ - 1);
    if (!is_writable_ || last_byte < last_address_) return nullptr;
    return find_stretch(regions_, AddressSpace::kGuest, last_byte, 1).host;
  }

  void note(Fault fault) noexcept {
    if (fault_ == Fault::kNone) fault_ = fault;
  }

  std::span<const Region> regions_;
  std::span<Segment> rows_;
  Fault fault_ = Fault::kNone;
  bool rows_exhausted_ = false;
  bool is_writable_ = false;  // the last buffer
  std::uint32_t row_count_ = 0;
  std::uint32_t readable_count_ = 0;
  std::uint32_t readable_bytes_ = 0;
  std::uint64_t total_bytes_ = 0;
  // The last buffer, where the status is if it is writable, and its last byte as long as there is no fault.
  std::uint64_t last_address_ = 0;
  std::uint32_t last_length_bytes_ = 0;
  std::byte* last_host_ = nullptr;
};

// What a chain is read from: the ring's descriptor table and what bounds it.
struct ChainSource {
  std::span<const Region> regions;
  const std::byte* descriptors;      // the ring's table
  std::uint32_t size;                // the ring's size: entries of the table and longest direct chain
  std::uint32_t indirect_count_max;  // longest chain through an indirect table
  bool indirect;                     // INDIRECT_DESC was negotiated
  Framing framing;
};

// A descriptor table, the ring's own or an indirect one. An indirect table needs no alignment and may straddle
// regions, so only its first entries may lie here as words, or none.
struct DescriptorTable {
  const std::byte* host;
  std::uint64_t guest_address;     // unused while all entries lie here as words
  std::uint32_t word_entry_count;  // entries that lie at `host`, aligned to words
  std::uint32_t count;
};

// An entry that does not lie in one place, or is not aligned.
template <class Ordering>
[[nodiscard, gnu::noinline, gnu::cold]] Descriptor collect_descriptor(std::span<const Region> regions,
                                                                      std::uint64_t address) noexcept {
  std::array<std::byte, sizeof(Descriptor)> copy{};
  for (std::size_t copied = 0; copied < copy.size();) {
    const Stretch stretch = find_stretch(regions, AddressSpace::kGuest, address + copied, copy.size() - copied);
    if (stretch.host == nullptr) break;  // cannot be: the table was wholly mapped when the walk entered it
    Ordering::copy_relaxed(copy.data() + copied, stretch.host, stretch.length_bytes);
    copied += stretch.length_bytes;
  }
  return std::bit_cast<Descriptor>(copy);
}

template <class Ordering>
[[nodiscard]] Descriptor read_descriptor(std::span<const Region> regions, const DescriptorTable& table,
                                         std::uint32_t index) noexcept {
  using Words = std::array<std::uint64_t, sizeof(Descriptor) / sizeof(std::uint64_t)>;
  if (index >= table.word_entry_count) [[unlikely]] {
    return collect_descriptor<Ordering>(regions, table.guest_address + index * sizeof(Descriptor));
  }
  const auto* const words = reinterpret_cast<const std::uint64_t*>(table.host) + index * Words{}.size();
  return std::bit_cast<Descriptor>(Words{Ordering::load_relaxed(words), Ordering::load_relaxed(words + 1)});
}

// Moves the header out of the chain's first segments into `header`.
template <class Ordering>
void take_header(std::span<const Region> regions, std::span<Segment> rows, Chain& chain, std::byte* header,
                 std::uint32_t header_bytes) noexcept {
  while (header_bytes > 0) {
    Segment& segment = rows[chain.first_segment];
    const std::uint32_t piece = std::min(header_bytes, segment.length_bytes);
    Ordering::copy_relaxed(header, host_of(regions, segment.window, segment.offset_bytes), piece);
    header += piece;
    header_bytes -= piece;
    segment.offset_bytes += piece;
    segment.length_bytes -= piece;
    if (segment.length_bytes > 0) continue;
    ++chain.first_segment;
    --chain.readable_count;
  }
}

// Reads the chain that starts at `head`, which must be below source.size, into `rows` and copies its header to
// `header`. Reads at most max(size, indirect_count_max) descriptors, whatever they say.
template <class Ordering>
[[nodiscard]] Chain read_chain(const ChainSource& source, std::uint16_t head, std::span<Segment> rows,
                               std::byte* header) noexcept {
  ChainBuilder builder(source.regions, rows);
  DescriptorTable table{source.descriptors, 0, source.size, source.size};
  bool in_indirect_table = false;
  std::uint32_t count_max = source.size;
  std::uint32_t index = head;
  for (std::uint32_t count = 1;; ++count) {
    if (count > count_max) return builder.cut(Fault::kChainLoop);
    const Descriptor descriptor = read_descriptor<Ordering>(source.regions, table, index);
    const bool has_next = (descriptor.flags & kDescNext) != 0;
    if ((descriptor.flags & kDescIndirect) != 0) {
      // WRITE on this descriptor means nothing and is ignored (virtio 1.3, 2.7.5.3.2).
      if (!source.indirect || in_indirect_table || has_next || descriptor.len == 0 ||
          descriptor.len % sizeof(Descriptor) != 0) {
        return builder.cut(Fault::kChainIndirect);
      }
      const Stretch start = find_stretch(source.regions, AddressSpace::kGuest, descriptor.addr, descriptor.len);
      if (start.length_bytes < descriptor.len &&
          !wholly_mapped(source.regions, AddressSpace::kGuest, descriptor.addr, descriptor.len)) {
        return builder.cut(Fault::kChainAddress);
      }
      const bool are_words = reinterpret_cast<std::uintptr_t>(start.host) % sizeof(std::uint64_t) == 0;
      table = {start.host, descriptor.addr,
               are_words ? static_cast<std::uint32_t>(start.length_bytes / sizeof(Descriptor)) : 0,
               static_cast<std::uint32_t>(descriptor.len / sizeof(Descriptor))};
      in_indirect_table = true;
      // The descriptor of the table stands for its entries and is not one of the chain's buffers.
      count_max = std::max(source.size, source.indirect_count_max) + 1;
      index = 0;
      continue;
    }
    builder.add(descriptor.addr, descriptor.len, (descriptor.flags & kDescWrite) != 0);
    if (!has_next) break;
    if (descriptor.next >= table.count) return builder.cut(Fault::kChainNextRange);
    index = descriptor.next;
  }
  Chain chain = builder.finish(source.framing);
  if (chain.fault == Fault::kNone) {
    take_header<Ordering>(source.regions, rows, chain, header, source.framing.header_bytes);
  }
  return chain;
}

}  // namespace hushring
