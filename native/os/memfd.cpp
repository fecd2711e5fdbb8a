#include "os/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "os/unique_fd.h"

namespace hushring::os {

Result memfd_create(const char* name, std::uint64_t size_bytes, bool sealed) noexcept {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0) return Result::failed("memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) < 0) return Result::failed("ftruncate");
  // F_SEAL_SEAL: nobody adds a seal that would take writing away from those who already have the file.
  if (sealed && ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) return Result::failed("fcntl");
  return Result::of(fd.release());
}

}  // namespace hushring::os
