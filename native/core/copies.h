// Copies between a driver's memory and memory of this process, many in one call: what a store in memory does for the
// requests of a batch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace hushring {

// One copy, as JavaScript writes it (CopyRow in src/native.ts).
struct CopyRow {
  std::uint32_t window;  // index of a window of driver memory
  std::uint32_t window_offset_bytes;
  std::uint32_t store;  // index of a piece of a store's memory
  std::uint32_t store_offset_bytes;
  std::uint32_t length_bytes;
  std::uint32_t to_store;  // 1: from the window to the store; 0: the other way
};

// The two places of a row; empty unless both lie in their memory.
struct CopyPlaces {
  std::span<std::byte> window;
  std::span<std::byte> store;

  static CopyPlaces of(const CopyRow& row, std::span<const std::span<std::byte>> windows,
                       std::span<const std::span<std::byte>> stores) noexcept {
    const CopyPlaces places{part(windows, row.window, row.window_offset_bytes, row.length_bytes),
                            part(stores, row.store, row.store_offset_bytes, row.length_bytes)};
    return places.window.empty() || places.store.empty() ? CopyPlaces{} : places;
  }

 private:
  static std::span<std::byte> part(std::span<const std::span<std::byte>> memories, std::uint32_t index,
                                   std::uint64_t offset_bytes, std::uint64_t length_bytes) noexcept {
    if (index >= memories.size() || offset_bytes + length_bytes > memories[index].size()) return {};
    return memories[index].subspan(offset_bytes, length_bytes);
  }
};

// Does the copies of `rows` in their order. A row that does not lie in its memory is left out: its window was unmapped,
// so nobody waits for it.
inline void copy_rows(std::span<const CopyRow> rows, std::span<const std::span<std::byte>> windows,
                      std::span<const std::span<std::byte>> stores) noexcept {
  // Each copy begins with bytes that no cache has and pages that no TLB has. Asking for all of them first lets the
  // waits overlap.
  for (const CopyRow& row : rows) {
    const CopyPlaces places = CopyPlaces::of(row, windows, stores);
    __builtin_prefetch(places.window.data());
    __builtin_prefetch(places.store.data());
  }
  for (const CopyRow& row : rows) {
    const auto [window, store] = CopyPlaces::of(row, windows, stores);
    if (row.to_store != 0) {
      std::ranges::copy(window, store.begin());
    } else {
      std::ranges::copy(store, window.begin());
    }
  }
}

}  // namespace hushring
