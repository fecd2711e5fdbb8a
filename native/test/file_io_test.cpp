// Reads and writes of files at once: what is moved, what is refused, and that nobody waits who must not.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "os/file_io.h"
#include "os/memfd.h"
#include "os/unique_fd.h"

namespace {

using namespace hushring::os;

constexpr std::size_t kPageBytes = 4096;

std::vector<std::byte> pages(std::size_t count, int mark) {
  return std::vector<std::byte>(count * kPageBytes, static_cast<std::byte>(mark));
}

// A memory file of two pages, the second of them full of twos.
UniqueFd two_pages() {
  UniqueFd file(memfd_create("file_io", 2 * kPageBytes, false).value);
  REQUIRE(write_at(file.get(), pages(1, 2), kPageBytes, Wait::kAllowed) == std::int64_t{kPageBytes});
  return file;
}

TEST_CASE("a transfer moves the bytes at its place and no others") {
  const UniqueFd file = two_pages();
  std::vector<std::byte> target = pages(1, 9);
  CHECK(read_at(file.get(), std::span(target).first(100), kPageBytes - 50, Wait::kAllowed) == 100);
  CHECK(target[49] == std::byte{0});
  CHECK(target[50] == std::byte{2});
  CHECK(target[100] == std::byte{9});
  CHECK(::lseek(file.get(), 0, SEEK_CUR) == 0);
}

TEST_CASE("a read stops at the end of the file, and a write makes it longer") {
  const UniqueFd file = two_pages();
  std::vector<std::byte> target = pages(2, 9);
  CHECK(read_at(file.get(), target, kPageBytes, Wait::kAllowed) == std::int64_t{kPageBytes});
  CHECK(target[kPageBytes] == std::byte{9});
  CHECK(read_at(file.get(), target, 2 * kPageBytes, Wait::kAllowed) == 0);
  CHECK(write_at(file.get(), pages(1, 3), 4 * kPageBytes, Wait::kAllowed) == std::int64_t{kPageBytes});
  CHECK(::lseek(file.get(), 0, SEEK_END) == off_t{5 * kPageBytes});
}

TEST_CASE("nothing to move is moved") {
  const UniqueFd file = two_pages();
  CHECK(read_at(file.get(), {}, 0, Wait::kAllowed) == 0);
  CHECK(write_at(file.get(), {}, 0, Wait::kAllowed) == 0);
}

TEST_CASE("what is refused tells its errno") {
  const UniqueFd file = two_pages();
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  const UniqueFd read_only(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd pipe_end(ends[0]);
  const UniqueFd other_end(ends[1]);
  std::vector<std::byte> bytes = pages(1, 0);
  constexpr std::int64_t kOffsetMax = std::numeric_limits<std::int64_t>::max();
  CHECK(read_at(-1, bytes, 0, Wait::kAllowed) == -EBADF);
  CHECK(read_at(file.get(), bytes, -1, Wait::kAllowed) == -EINVAL);
  CHECK(read_at(file.get(), bytes, kOffsetMax, Wait::kAllowed) < 0);
  CHECK(read_at(pipe_end.get(), bytes, 0, Wait::kNever) == -ESPIPE);
  CHECK(write_at(read_only.get(), bytes, 0, Wait::kAllowed) == -EBADF);
  CHECK(write_at(file.get(), bytes, -1, Wait::kAllowed) == -EINVAL);
  CHECK(write_at(file.get(), bytes, kOffsetMax, Wait::kAllowed) < 0);
  // Memory that is not there.
  void* const nowhere = nullptr;
  CHECK(read_at(file.get(), {static_cast<std::byte*>(nowhere) + kPageBytes, 1}, 0, Wait::kAllowed) == -EFAULT);
}

TEST_CASE("who must not wait gets EAGAIN for what is not in memory, and the bytes once they are") {
  char path[] = "/var/tmp/hushring-file-io-XXXXXX";
  const UniqueFd file(::mkostemp(path, O_CLOEXEC));
  REQUIRE(file.get() >= 0);
  ::unlink(path);
  const std::vector<std::byte> bytes = pages(256, 5);
  REQUIRE(write_at(file.get(), bytes, 0, Wait::kAllowed) == static_cast<std::int64_t>(bytes.size()));
  REQUIRE(::fdatasync(file.get()) == 0);
  REQUIRE(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED) == 0);
  std::vector<std::byte> target = pages(1, 9);
  const std::int64_t cold = read_at(file.get(), target, 128 * kPageBytes, Wait::kNever);
  if (cold == -EOPNOTSUPP) {
    MESSAGE("not run: this file system cannot promise not to wait");
    return;
  }
  // A file system in memory has it all the same.
  CHECK((cold == -EAGAIN || cold == std::int64_t{kPageBytes}));
  CHECK(read_at(file.get(), target, 128 * kPageBytes, Wait::kAllowed) == std::int64_t{kPageBytes});
  target = pages(1, 9);
  CHECK(read_at(file.get(), target, 128 * kPageBytes, Wait::kNever) == std::int64_t{kPageBytes});
  CHECK(target == pages(1, 5));
}

}  // namespace
