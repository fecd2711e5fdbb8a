// Memory files: memory that can be shared by passing a file descriptor.
#pragma once

#include <cstdint>

#include "os/result.h"

namespace hushring::os {

// A memory file of zeros, close-on-exec. With `sealed` nobody can change its size any more, so that whoever
// maps it needs no SIGBUS guard. The caller closes it.
[[nodiscard]] Result memfd_create(const char* name, std::uint64_t size_bytes, bool sealed) noexcept;

}  // namespace hushring::os
