#include "os/mapped_region.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "os/sigbus_guard.h"

namespace hushring::os {
namespace {

constexpr std::uint64_t kU64Max = std::numeric_limits<std::uint64_t>::max();

// A range may end at 2^64 exactly, as guest memory does below the top of the address space.
bool wraps(std::uint64_t start, std::uint64_t size_bytes) noexcept { return start + (size_bytes - 1) < start; }

MapFailure refused_by_kernel(const char* syscall) { return {.error = errno, .syscall = syscall, .reason = {}}; }
MapFailure refused(std::string reason) { return {.error = 0, .syscall = nullptr, .reason = std::move(reason)}; }

std::string why_senseless(const RegionRequest& request) {
  if (request.size_bytes == 0) return "its size is 0";
  if (wraps(request.guest_address, request.size_bytes)) return "guest address + size is more than 2^64";
  if (wraps(request.user_address, request.size_bytes)) return "user address + size is more than 2^64";
  if (request.size_bytes > kU64Max - request.mmap_offset_bytes) return "mmap offset + size is 2^64 or more";
  return {};
}

// What the mapping of a file consists of. Huge pages can be unmapped and replaced as a whole only.
std::size_t page_bytes_of(int fd) noexcept {
  struct statfs file_system;
  const bool huge = ::fstatfs(fd, &file_system) == 0 && file_system.f_type == HUGETLBFS_MAGIC;
  return static_cast<std::size_t>(huge ? file_system.f_bsize : ::sysconf(_SC_PAGESIZE));
}

}  // namespace

std::shared_ptr<MappedRegion> MappedRegion::map(const RegionRequest& request, MapFailure& failure) {
  if (std::string why = why_senseless(request); !why.empty()) {
    failure = refused(std::move(why));
    return nullptr;
  }
  struct stat file;
  if (::fstat(request.fd, &file) < 0) {
    failure = refused_by_kernel("fstat");
    return nullptr;
  }
  const std::uint64_t end = request.mmap_offset_bytes + request.size_bytes;
  if (const auto file_bytes = static_cast<std::uint64_t>(file.st_size); end > file_bytes) {
    failure = refused("it ends at byte " + std::to_string(end) + " of a file of " + std::to_string(file_bytes) +
                      " bytes");
    return nullptr;
  }
  // Whole pages, and from offset 0: neither the size nor `mmap_offset_bytes` need be a multiple of a huge page.
  const std::size_t page_bytes = page_bytes_of(request.fd);
  const std::size_t length_bytes = (end + page_bytes - 1) / page_bytes * page_bytes;
  void* const start =
      ::mmap(nullptr, length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, request.fd, 0);
  if (start == MAP_FAILED) {
    failure = refused_by_kernel("mmap");
    return nullptr;
  }
  const Mapping mapping{static_cast<std::byte*>(start), length_bytes, page_bytes};
  std::shared_ptr<MappedRegion> region(new MappedRegion(request, mapping));
  if (region->guard_number_ < 0) {
    failure = refused("this process has " + std::to_string(kGuardedMappingsMax) + " regions mapped, the most it can");
    return nullptr;
  }
  return region;
}

MappedRegion::MappedRegion(const RegionRequest& request, const Mapping& mapping) noexcept
    : guest_address(request.guest_address),
      user_address(request.user_address),
      size_bytes(request.size_bytes),
      host(mapping.start + request.mmap_offset_bytes),
      mapping_(mapping),
      guard_number_(guard({mapping.start, mapping.length_bytes, mapping.page_bytes, &truncated_})) {}

MappedRegion::~MappedRegion() {
  if (guard_number_ >= 0) unguard(guard_number_);
  ::munmap(mapping_.start, mapping_.length_bytes);
}

}  // namespace hushring::os
