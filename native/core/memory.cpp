#include "core/memory.h"

#include <algorithm>

namespace hushring {

Stretch find_stretch(std::span<const Region> regions, AddressSpace space, std::uint64_t address,
                     std::uint64_t length_bytes) noexcept {
  for (const Region& region : regions) {
    const std::uint64_t base = space == AddressSpace::kGuest ? region.guest_address : region.user_address;
    // Subtraction instead of base + size: a region may end exactly at 2^64.
    if (address < base || address - base >= region.size_bytes) continue;
    const std::uint64_t offset = address - base;
    return Stretch{
        .host = region.host + offset,
        .length_bytes = std::min(length_bytes, region.size_bytes - offset),
        .window = region.first_window + static_cast<std::uint32_t>(offset / kWindowBytes),
        .window_offset = static_cast<std::uint32_t>(offset % kWindowBytes),
    };
  }
  return Stretch{};
}

bool wholly_mapped(std::span<const Region> regions, AddressSpace space, std::uint64_t address,
                   std::uint64_t length_bytes) noexcept {
  if (length_bytes > 0 && address + (length_bytes - 1) < address) return false;
  while (length_bytes > 0) {
    const Stretch stretch = find_stretch(regions, space, address, length_bytes);
    if (stretch.host == nullptr) return false;
    address += stretch.length_bytes;
    length_bytes -= stretch.length_bytes;
  }
  return true;
}

std::byte* host_of(std::span<const Region> regions, std::uint32_t window, std::uint32_t offset_bytes) noexcept {
  for (const Region& region : regions) {
    // A window before the region's first wraps to a large number and is no window of it.
    const std::uint32_t within = window - region.first_window;
    if (within < window_count(region.size_bytes)) return region.host + within * kWindowBytes + offset_bytes;
  }
  return nullptr;
}

}  // namespace hushring
