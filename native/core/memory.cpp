#include "core/memory.h"

namespace hushring {

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

}  // namespace hushring
