// The split virtqueue as it lies in memory (virtio 1.3, 2.7). Little-endian; hushring builds on little-endian
// hosts only. Names are the specification's.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace hushring {

static_assert(std::endian::native == std::endian::little, "rings are little-endian and are accessed in place");

inline constexpr std::uint32_t kSplitQueueSizeMax = 32768;

// virtio 1.3, 2.7.5
struct Descriptor {
  std::uint64_t addr;
  std::uint32_t len;
  std::uint16_t flags;
  std::uint16_t next;
};
static_assert(sizeof(Descriptor) == 16 && offsetof(Descriptor, len) == 8 && offsetof(Descriptor, flags) == 12 &&
              offsetof(Descriptor, next) == 14);

inline constexpr std::uint16_t kDescNext = 1;      // VIRTQ_DESC_F_NEXT
inline constexpr std::uint16_t kDescWrite = 2;     // VIRTQ_DESC_F_WRITE
inline constexpr std::uint16_t kDescIndirect = 4;  // VIRTQ_DESC_F_INDIRECT

// virtio 1.3, 2.7.6. ring[size] and then used_event follow; used_event is there always and means something only
// with EVENT_IDX.
struct Avail {
  std::uint16_t flags;
  std::uint16_t idx;
  std::uint16_t ring[1];
};
static_assert(offsetof(Avail, idx) == 2 && offsetof(Avail, ring) == 4);
inline constexpr std::uint16_t kAvailNoInterrupt = 1;  // VIRTQ_AVAIL_F_NO_INTERRUPT

// virtio 1.3, 2.7.8. `id` is the head of the chain, `len` the bytes written to its writable part, from the start.
struct UsedElement {
  std::uint32_t id;
  std::uint32_t len;
};
static_assert(sizeof(UsedElement) == 8 && offsetof(UsedElement, len) == 4);

// ring[size] and then avail_event follow. avail_event must not be written unless EVENT_IDX was negotiated:
// SeaBIOS keeps data of its own there.
struct Used {
  std::uint16_t flags;
  std::uint16_t idx;
  UsedElement ring[1];
};
static_assert(offsetof(Used, idx) == 2 && offsetof(Used, ring) == 4);
inline constexpr std::uint16_t kUsedNoNotify = 1;  // VIRTQ_USED_F_NO_NOTIFY

inline constexpr std::size_t kDescriptorAlign = 16;
inline constexpr std::size_t kAvailAlign = 2;
inline constexpr std::size_t kUsedAlign = 4;

[[nodiscard]] constexpr std::size_t descriptor_bytes(std::uint32_t size) noexcept { return 16U * std::size_t{size}; }
[[nodiscard]] constexpr std::size_t avail_bytes(std::uint32_t size) noexcept { return 6U + 2U * std::size_t{size}; }
[[nodiscard]] constexpr std::size_t used_bytes(std::uint32_t size) noexcept { return 6U + 8U * std::size_t{size}; }

// used_event lives at the end of the avail ring: the driver writes it, the device reads it.
[[nodiscard]] inline std::uint16_t* used_event_of(Avail* avail, std::uint32_t size) noexcept {
  return &avail->ring[0] + size;
}
// avail_event lives at the end of the used ring: the device writes it, the driver reads it.
[[nodiscard]] inline std::uint16_t* avail_event_of(Used* used, std::uint32_t size) noexcept {
  return reinterpret_cast<std::uint16_t*>(&used->ring[0] + size);
}

}  // namespace hushring
