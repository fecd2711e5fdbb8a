// Keeps the process alive when a front-end makes its memory file shorter while we use it.
//
// An access behind the end of a mapped file is answered by the kernel with SIGBUS, which ends the process: one
// hostile or careless front-end would take down every device served here. The guard puts zero pages there instead
// and tells the region. It is the one thing hushring has per process and not per environment, because signal
// dispositions are: a handler for SIGBUS, installed with the first mapping and never removed. A SIGBUS that is not
// about a guarded mapping goes to whoever handled the signal before. Whoever sets a handler after the first mapping,
// as process.on('SIGBUS') does, takes the guard away.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace hushring::os {

// Most mappings guarded at a time in one process.
inline constexpr int kGuardedMappingsMax = 4096;

// A mapping that may lose the file behind it.
struct GuardedMapping {
  std::byte* start;
  std::size_t length_bytes;
  std::size_t page_bytes;        // granularity of the mapping: a huge page is replaced as a whole
  std::atomic<bool>* truncated;  // set when pages were replaced
};

// Guards `mapping` from now on. Returns a number for unguard(), or -1 when there are too many. Any thread.
[[nodiscard]] int guard(const GuardedMapping& mapping) noexcept;

// Stops guarding. Call it when nobody touches the mapping any more, and before unmapping it. Any thread.
void unguard(int number) noexcept;

}  // namespace hushring::os
