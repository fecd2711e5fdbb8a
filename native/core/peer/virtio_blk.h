// The part of virtio-blk that a driver's load speaks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hushring {

// What a request begins with (virtio 1.3, 5.2.6). The unit of `sector` is 512 bytes, whatever the block size.
struct BlockHeader {
  std::uint32_t type;
  std::uint32_t reserved;
  std::uint64_t sector;
};
static_assert(sizeof(BlockHeader) == 16 && offsetof(BlockHeader, sector) == 8);

inline constexpr std::uint32_t kBlockIn = 0;   // VIRTIO_BLK_T_IN
inline constexpr std::uint32_t kBlockOut = 1;  // VIRTIO_BLK_T_OUT
inline constexpr std::uint8_t kBlockOk = 0;    // VIRTIO_BLK_S_OK

}  // namespace hushring
