#include "core/chain.h"

#include <limits>

namespace hushring {

void ChainBuilder::add(std::uint64_t address, std::uint32_t length_bytes, bool writable) noexcept {
  if (length_bytes == 0) return;
  if (last_is_writable_ && !writable) note(Fault::kChainOrder);
  last_byte_ = address + (length_bytes - 1);
  const bool wraps = last_byte_ < address;
  last_is_writable_ = writable && !wraps;  // the end of a buffer that wraps is no place for a status
  // The sums cannot overflow: a chain has fewer than 2^32 descriptors of less than 2^32 bytes each.
  (writable ? writable_bytes_ : readable_bytes_) += length_bytes;
  if (readable_bytes_ + writable_bytes_ > std::numeric_limits<std::uint32_t>::max()) note(Fault::kChainTooLong);
  if (wraps) note(Fault::kChainAddress);
  if (chain_.fault == Fault::kNone) {
    add_segments(address, length_bytes, writable ? chain_.writable_count : chain_.readable_count);
  }
}

void ChainBuilder::add_segments(std::uint64_t address, std::uint32_t length_bytes,
                                std::uint32_t& segment_count) noexcept {
  while (length_bytes > 0) {
    const Stretch stretch = find_stretch(regions_, AddressSpace::kGuest, address, length_bytes);
    if (stretch.host == nullptr) return note(Fault::kChainAddress);
    const std::size_t row = std::size_t{chain_.readable_count} + chain_.writable_count;
    if (row == rows_.size()) {
      chain_.rows_exhausted = true;
      return note(Fault::kChainTooLong);
    }
    const auto piece =
        static_cast<std::uint32_t>(std::min(stretch.length_bytes, kWindowBytes - stretch.window_offset));
    rows_[row] = {stretch.window, stretch.window_offset, piece};
    ++segment_count;
    last_host_ = stretch.host + (piece - 1);
    address += piece;
    length_bytes -= piece;
  }
}

Chain ChainBuilder::cut(Fault fault) noexcept {
  note(fault);
  return chain_;
}

Chain ChainBuilder::finish(const Framing& framing) noexcept {
  if (readable_bytes_ < framing.header_bytes) note(Fault::kChainFraming);
  if (!framing.status_byte) {
    chain_.writable_bytes = static_cast<std::uint32_t>(writable_bytes_);
    return chain_;
  }
  if (!last_is_writable_) {
    note(Fault::kChainFraming);
    return chain_;
  }
  if (chain_.fault != Fault::kNone) {
    chain_.status = find_stretch(regions_, AddressSpace::kGuest, last_byte_, 1).host;
    return chain_;
  }
  chain_.status = last_host_;
  chain_.writable_bytes = static_cast<std::uint32_t>(writable_bytes_ - 1);
  Segment& last = rows_[std::size_t{chain_.readable_count} + chain_.writable_count - 1];
  if (--last.length_bytes == 0) --chain_.writable_count;
  return chain_;
}

void ChainBuilder::note(Fault fault) noexcept {
  if (chain_.fault == Fault::kNone) chain_.fault = fault;
}

}  // namespace hushring
