// The driver's memory as the device sees it: a table of regions, each mapped somewhere in this process.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace hushring {

// JavaScript sees a region through windows of this many bytes, because an ArrayBuffer cannot hold a large region
// (Node 20: 4 GiB - 1). Segments never cross a window's edge.
inline constexpr std::uint64_t kWindowBytes = std::uint64_t{1} << 30;

struct Region {
  std::uint64_t guest_address;  // where descriptors see it
  std::uint64_t user_address;   // where the front-end sees it; ring addresses are given in these
  std::uint64_t size_bytes;
  std::byte* host;              // where this process sees its first byte
  std::uint32_t first_window;   // number of its first window in the queue's list of windows
};

enum class AddressSpace : std::uint8_t { kGuest, kUser };

// A contiguous stretch of host memory; `host` is null when there is none.
struct Stretch {
  std::byte* host = nullptr;
  std::uint64_t length_bytes = 0;  // up to the end of the region, at most what was asked for
  std::uint32_t window = 0;        // window that `host` lies in
  std::uint32_t window_offset = 0; // offset of `host` within it
};

// The stretch that starts at `address`: as many of `length_bytes` as its region holds. Never wraps. The regions
// are checked at mapping time (non-empty, no overlap, no wrap), so a linear search over them is exact.
//
// Here and not in memory.cpp: it is asked three or four times a request, and in its caller it is half as long.
[[nodiscard]] inline Stretch find_stretch(std::span<const Region> regions, AddressSpace space, std::uint64_t address,
                                          std::uint64_t length_bytes) noexcept {
  for (const Region& region : regions) {
    // Below the region this wraps, to no less than its size: a region does not reach beyond 2^64.
    const std::uint64_t offset =
        address - (space == AddressSpace::kGuest ? region.guest_address : region.user_address);
    if (offset >= region.size_bytes) continue;
    return Stretch{
        .host = region.host + offset,
        .length_bytes = std::min(length_bytes, region.size_bytes - offset),
        .window = region.first_window + static_cast<std::uint32_t>(offset / kWindowBytes),
        .window_offset = static_cast<std::uint32_t>(offset % kWindowBytes),
    };
  }
  return Stretch{};
}

// True iff all of [address, address + length_bytes) lies in regions, however many it straddles. An end beyond 2^64
// does not; a length of 0 does.
[[nodiscard]] bool wholly_mapped(std::span<const Region> regions, AddressSpace space, std::uint64_t address,
                                 std::uint64_t length_bytes) noexcept;

// Number of windows a region of `size_bytes` has.
[[nodiscard]] constexpr std::uint32_t window_count(std::uint64_t size_bytes) noexcept {
  return static_cast<std::uint32_t>((size_bytes + kWindowBytes - 1) / kWindowBytes);
}

// Where this process sees `offset_bytes` of `window`: the inverse of Stretch. Null when there is no such window.
[[nodiscard]] inline std::byte* host_of(std::span<const Region> regions, std::uint32_t window,
                                        std::uint32_t offset_bytes) noexcept {
  for (const Region& region : regions) {
    // A window before the region's first wraps to a large number and is no window of it.
    const std::uint32_t within = window - region.first_window;
    if (within < window_count(region.size_bytes)) return region.host + within * kWindowBytes + offset_bytes;
  }
  return nullptr;
}

}  // namespace hushring
