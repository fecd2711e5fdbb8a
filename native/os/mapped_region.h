// One region of driver memory, mapped into this process for as long as somebody holds it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace hushring::os {

// What a front-end says about a region. `fd` is neither kept nor closed.
struct RegionRequest {
  int fd = -1;
  std::uint64_t guest_address = 0;
  std::uint64_t user_address = 0;
  std::uint64_t size_bytes = 0;
  std::uint64_t mmap_offset_bytes = 0;  // where the region starts in its file
};

// Why a region was refused: by the kernel, with the errno of `syscall`, or by us, with a `reason` to show.
struct MapFailure {
  int error = 0;
  const char* syscall = nullptr;
  std::string reason;
};

// The mapping of a region, shared and writable, guarded against a file that is made shorter (sigbus_guard.h).
// Held by the JavaScript object, by its windows and by every queue that runs on it; the last to let go unmaps.
class MappedRegion {
 public:
  // Null when refused, and then `failure` says why.
  [[nodiscard]] static std::shared_ptr<MappedRegion> map(const RegionRequest& request, MapFailure& failure);

  ~MappedRegion();
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;

  const std::uint64_t guest_address;
  const std::uint64_t user_address;
  const std::uint64_t size_bytes;
  std::byte* const host;  // where this process sees the region's first byte

  // True once an access fell behind the end of the file and was answered with zeros. Any thread may ask.
  [[nodiscard]] bool truncated() const noexcept { return truncated_; }

 private:
  struct Mapping {
    std::byte* start;
    std::size_t length_bytes;
    std::size_t page_bytes;
  };
  MappedRegion(const RegionRequest& request, const Mapping& mapping) noexcept;

  const Mapping mapping_;
  std::atomic<bool> truncated_ = false;
  const int guard_number_;
};

}  // namespace hushring::os
