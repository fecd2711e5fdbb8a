#include "os/uio.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "os/sigbus_guard.h"

namespace hushring::os {
namespace {

// The first line of a small file of sysfs; empty when it cannot be read.
std::string read_line(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char text[64];
  const ssize_t length = fd.get() < 0 ? -1 : ::read(fd.get(), text, sizeof(text));
  if (length <= 0) return {};
  const std::string line(text, static_cast<std::size_t>(length));
  return line.substr(0, line.find('\n'));
}

// What `maps/map0/size` says of the UIO device behind `fd`; 0 when it says nothing.
std::size_t map_bytes_of(int fd, const std::string& sysfs) {
  struct stat device;
  if (::fstat(fd, &device) < 0 || !S_ISCHR(device.st_mode)) return 0;
  const std::string number =
      std::to_string(::major(device.st_rdev)) + ':' + std::to_string(::minor(device.st_rdev));
  const std::string text = read_line(sysfs + "/dev/char/" + number + "/maps/map0/size");
  return std::strtoull(text.c_str(), nullptr, 16);
}

// Repeats a transfer that a signal interrupted. 0, or an errno.
template <class Transfer>
int transferred(Transfer transfer) noexcept {
  for (;;) {
    const ssize_t length = transfer();
    if (length >= 0) return 0;
    if (errno != EINTR) return errno;
  }
}

}  // namespace

std::shared_ptr<UioPort> UioPort::open(const std::string& path, const std::string& sysfs, MapFailure& failure) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) {
    failure = {.error = errno, .syscall = "open", .reason = {}};
    return nullptr;
  }
  const std::size_t map_bytes = map_bytes_of(fd.get(), sysfs);
  if (map_bytes == 0) {
    failure = {.error = 0, .syscall = nullptr, .reason = "it is no UIO device with a map"};
    return nullptr;
  }
  void* const map = ::mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (map == MAP_FAILED) {
    failure = {.error = errno, .syscall = "mmap", .reason = {}};
    return nullptr;
  }
  std::shared_ptr<UioPort> port(new UioPort(std::move(fd), static_cast<std::byte*>(map), map_bytes));
  if (port->guard_number_ < 0) {
    failure = {.error = 0, .syscall = nullptr, .reason = "this process has too many mappings"};
    return nullptr;
  }
  return port;
}

// The guard: a page of the data area that the kernel has taken back is answered with SIGBUS, which would end the
// process for a mistake of one device.
UioPort::UioPort(UniqueFd fd, std::byte* map, std::size_t map_bytes) noexcept
    : fd_(std::move(fd)),
      guard_number_(guard({map, map_bytes, static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)), &truncated_})) {
  map_ = map;
  map_bytes_ = map_bytes;
}

UioPort::~UioPort() {
  if (guard_number_ >= 0) unguard(guard_number_);
  ::munmap(map_, map_bytes_);
}

int UioPort::read_event() noexcept {
  std::int32_t event_count = 0;
  const int error = transferred([&] { return ::read(fd_.get(), &event_count, sizeof(event_count)); });
  return error == EAGAIN ? 0 : error;
}

// F11. The kernel looks at the tail within this call, on this CPU: the stores that precede it in program order are
// what it sees. Prevented: another thread stores a tail while this one is in the kernel, which reads the new tail and,
// without a barrier of its own, the slots as they were before. Partner: the caller, who is the only one to store it.
int UioPort::ring_doorbell() noexcept {
  const std::int32_t ignored_value = 1;
  return transferred([&] { return ::write(fd_.get(), &ignored_value, sizeof(ignored_value)); });
}

}  // namespace hushring::os
