// One descriptor chain: read out of memory that the driver may be rewriting, validated, and turned into segments.
//
// Each descriptor is copied out once; the copy is validated and the copy is used. Nothing is looked up twice, so a
// driver that flips a descriptor between check and use changes nothing (CVE-2020-14375, XSA-155).
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
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
  void add(std::uint64_t address, std::uint32_t length_bytes, bool writable) noexcept;
  // The chain ends here because its next descriptor cannot be known: there is no telling where its status is.
  [[nodiscard]] Chain cut(Fault fault) noexcept;
  // The chain is complete. The header is still part of its first segments.
  [[nodiscard]] Chain finish(const Framing& framing) noexcept;

 private:
  void add_segments(std::uint64_t address, std::uint32_t length_bytes, std::uint32_t& segment_count) noexcept;
  void note(Fault fault) noexcept;

  std::span<const Region> regions_;
  std::span<Segment> rows_;
  Chain chain_;
  std::uint64_t readable_bytes_ = 0;
  std::uint64_t writable_bytes_ = 0;
  // The last byte of the last buffer, where the status is if that buffer is writable: its address, and where it is here
  // as long as there is no fault.
  std::uint64_t last_byte_ = 0;
  std::byte* last_host_ = nullptr;
  bool last_is_writable_ = false;
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
// regions, so only its first entries may be contiguous here.
struct DescriptorTable {
  const std::byte* host;
  std::uint64_t contiguous_bytes;
  std::uint64_t guest_address;  // unused while everything is contiguous
  std::uint32_t count;
};

template <class Ordering>
[[nodiscard]] Descriptor read_descriptor(std::span<const Region> regions, const DescriptorTable& table,
                                         std::uint32_t index) noexcept {
  alignas(Descriptor) std::byte copy[sizeof(Descriptor)] = {};
  const std::uint64_t offset = std::uint64_t{index} * sizeof(Descriptor);
  if (offset + sizeof(Descriptor) <= table.contiguous_bytes) {
    Ordering::copy_relaxed(copy, table.host + offset, sizeof(Descriptor));
  } else {
    for (std::size_t copied = 0; copied < sizeof(Descriptor);) {
      const Stretch stretch = find_stretch(regions, AddressSpace::kGuest, table.guest_address + offset + copied,
                                           sizeof(Descriptor) - copied);
      if (stretch.host == nullptr) break;  // cannot be: the table was wholly mapped when the walk entered it
      Ordering::copy_relaxed(copy + copied, stretch.host, stretch.length_bytes);
      copied += stretch.length_bytes;
    }
  }
  return std::bit_cast<Descriptor>(copy);
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
  DescriptorTable table{source.descriptors, descriptor_bytes(source.size), 0, source.size};
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
      table = {start.host, start.length_bytes, descriptor.addr,
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
