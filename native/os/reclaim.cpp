#include "os/reclaim.h"

#include <sys/mman.h>
#include <sys/prctl.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace hushring::os {
namespace {

// Since Linux 5.6; older headers lack the names.
constexpr int kSetIoFlusher = 57;
constexpr int kGetIoFlusher = 58;

struct Mapping {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;

  [[nodiscard]] void* address() const noexcept { return reinterpret_cast<void*>(begin); }
  [[nodiscard]] std::size_t bytes() const noexcept { return end - begin; }
};

// The readable private mappings of files: text and data of the program and its libraries. Shared ones are memory of
// drivers and devices.
std::vector<Mapping> program_mappings(std::FILE* maps) {
  std::vector<Mapping> found;
  char* line = nullptr;
  std::size_t line_bytes = 0;
  while (::getline(&line, &line_bytes, maps) > 0) {
    // begin-end permissions offset device inode path
    Mapping mapping;
    char permissions[5] = {};
    std::uint64_t inode = 0;
    const int fields = std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*x %*s %" SCNu64, &mapping.begin,
                                   &mapping.end, permissions, &inode);
    if (fields == 4 && inode != 0 && permissions[0] == 'r' && permissions[3] == 'p') found.push_back(mapping);
  }
  std::free(line);
  return found;
}

}  // namespace

Result set_io_flusher(bool enabled) noexcept {
  if (::prctl(kSetIoFlusher, enabled ? 1UL : 0UL, 0UL, 0UL, 0UL) < 0) return Result::failed("prctl");
  return Result::of(0);
}

Result io_flusher() noexcept {
  const int state = ::prctl(kGetIoFlusher, 0UL, 0UL, 0UL, 0UL);
  return state < 0 ? Result::failed("prctl") : Result::of(state);
}

Result lock_programs() noexcept {
  std::FILE* const maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) return Result::failed("open");
  const std::vector<Mapping> mappings = program_mappings(maps);
  std::fclose(maps);
  for (std::size_t index = 0; index < mappings.size(); ++index) {
    if (::mlock(mappings[index].address(), mappings[index].bytes()) == 0) continue;
    const Result failed = Result::failed("mlock");
    // A failed mlock may have locked a part.
    for (std::size_t locked = 0; locked <= index; ++locked) {
      ::munlock(mappings[locked].address(), mappings[locked].bytes());
    }
    return failed;
  }
  return Result::of(static_cast<int>(mappings.size()));
}

}  // namespace hushring::os
