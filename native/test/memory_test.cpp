#include "core/memory.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

using hushring::AddressSpace;
using hushring::find_stretch;
using hushring::host_of;
using hushring::kWindowBytes;
using hushring::Region;
using hushring::Stretch;
using hushring::wholly_mapped;

// Host pointers are never dereferenced by these functions, so regions may lie anywhere.
std::byte* pointer(std::uint64_t value) { return reinterpret_cast<std::byte*>(value); }

const std::vector<Region> kRegions{
    // guest address, user address, size, host, first window
    {0x1000, 0x9000'0000, 0x1000, pointer(0x10'0000), 0},
    {0x2000, 0xa000'0000, 3 * kWindowBytes + 16, pointer(0x100'0000'0000), 1},
    {0xffff'ffff'ffff'f000, 0x1000, 0x1000, pointer(0x20'0000), 5},
};

TEST_CASE("find_stretch: gives as much as the region holds, in either address space") {
  const Stretch guest = find_stretch(kRegions, AddressSpace::kGuest, 0x1ff0, 0x20);
  CHECK(guest.host == pointer(0x10'0ff0));
  CHECK(guest.length_bytes == 0x10);
  CHECK(guest.window == 0);
  CHECK(guest.window_offset == 0xff0);
  const Stretch user = find_stretch(kRegions, AddressSpace::kUser, 0x9000'0010, 0x20);
  CHECK(user.host == pointer(0x10'0010));
  CHECK(user.length_bytes == 0x20);
}

TEST_CASE("find_stretch: knows the window and its offset beyond 1 GiB") {
  const Stretch stretch = find_stretch(kRegions, AddressSpace::kGuest, 0x2000 + 2 * kWindowBytes + 7, 100);
  CHECK(stretch.window == 3);
  CHECK(stretch.window_offset == 7);
  CHECK(host_of(kRegions, stretch.window, stretch.window_offset) == stretch.host);
  CHECK(host_of(kRegions, 6, 0) == nullptr);
}

TEST_CASE("find_stretch: finds nothing outside, and a region may end at 2^64") {
  CHECK(find_stretch(kRegions, AddressSpace::kGuest, 0xfff, 1).host == nullptr);
  CHECK(find_stretch(kRegions, AddressSpace::kGuest, 0, 1).host == nullptr);
  const Stretch last = find_stretch(kRegions, AddressSpace::kGuest, std::numeric_limits<std::uint64_t>::max(), 2);
  CHECK(last.host == pointer(0x20'0fff));
  CHECK(last.length_bytes == 1);
}

TEST_CASE("wholly_mapped: straddles adjacent regions, refuses holes and ends beyond 2^64") {
  CHECK(wholly_mapped(kRegions, AddressSpace::kGuest, 0x1ff0, 0x20));
  CHECK(wholly_mapped(kRegions, AddressSpace::kGuest, 0x1000, 0x1000 + 3 * kWindowBytes + 16));
  CHECK_FALSE(wholly_mapped(kRegions, AddressSpace::kGuest, 0x1000, 0x1000 + 3 * kWindowBytes + 17));
  CHECK_FALSE(wholly_mapped(kRegions, AddressSpace::kGuest, 0xff0, 0x20));
  CHECK(wholly_mapped(kRegions, AddressSpace::kGuest, 0xffff'ffff'ffff'fff0, 0x10));
  CHECK_FALSE(wholly_mapped(kRegions, AddressSpace::kGuest, 0xffff'ffff'ffff'fff0, 0x11));
  CHECK(wholly_mapped(kRegions, AddressSpace::kGuest, 0x5000'0000'0000, 0));
}

}  // namespace
