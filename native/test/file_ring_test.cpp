// Transfers through io_uring: what is moved in part goes on, what is too much waits, what is refused is told.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <system_error>
#include <thread>
#include <tuple>
#include <vector>

#include "os/eventfd.h"
#include "os/file_ring.h"
#include "os/memfd.h"
#include "os/unique_fd.h"

namespace {

using namespace hushring::os;

constexpr FileRingOptions kOptions{.entry_count = 8, .inline_bytes_max = 1 << 16, .alignment = 1};
// As on a kernel that cannot defer completions.
constexpr FileRingOptions kUndeferred{
    .entry_count = 8, .inline_bytes_max = 1 << 16, .alignment = 1, .may_defer = false};

bool is_readable(const FileRing& ring, int timeout_ms) {
  pollfd ready{.fd = ring.fd(), .events = POLLIN, .revents = 0};
  if (::poll(&ready, 1, timeout_ms) != 1) return false;
  if (ring.fd_is_eventfd()) eventfd_drain(ring.fd());
  return true;
}

// What a read waits for until something is written.
struct Pipe {
  UniqueFd reader;
  UniqueFd writer;

  Pipe() {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    reader.reset(ends[0]);
    writer.reset(ends[1]);
  }
};

// Null, with a message, where this machine does not allow io_uring: then there is nothing to be tested.
std::unique_ptr<FileRing> open_ring(int file, const FileRingOptions& options = kOptions) {
  Result failure;
  std::unique_ptr<FileRing> ring = FileRing::open(file, options, failure);
  if (ring == nullptr) MESSAGE("not run: io_uring is refused with errno " << failure.error);
  return ring;
}

// Goes on until `count` operations have ended.
std::vector<FileRingEnd> ends_of(FileRing& ring, std::size_t count) {
  std::vector<FileRingEnd> all;
  std::array<FileRingEnd, 4> some{};
  for (;;) {
    for (std::size_t got = some.size(); got == some.size();) {
      got = ring.turn(some);
      all.insert(all.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(got));
    }
    if (all.size() >= count) return all;
    REQUIRE(is_readable(ring, 10'000));
  }
}

TEST_CASE("a ring moves the pieces of transfers to their places") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto below = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  constexpr std::size_t kFileBytes = std::size_t{1} << 18;
  const UniqueFd file(memfd_create("file_ring", kFileBytes, false).value);
  // With an alignment the pieces, which have none, go through a buffer.
  FileRingOptions aligned = kOptions;
  aligned.alignment = 512;
  for (const FileRingOptions& options : {kOptions, aligned, kUndeferred}) {
    const auto ring = open_ring(file.get(), options);
    if (ring == nullptr) return;
    for (int round = 0; round < 30; ++round) {
      const std::size_t offset = below(kFileBytes - 1);
      std::vector<std::byte> source(1 + below(kFileBytes - offset));
      for (std::byte& byte : source) byte = static_cast<std::byte>(random());
      std::vector<std::byte> target(source.size());
      const auto transfer = [&](FileVerb verb, std::span<std::byte> bytes) {
        const std::size_t piece_bytes = 1 + below(bytes.size());
        for (std::size_t at = 0; at < bytes.size(); at += piece_bytes) {
          ring->add_piece(bytes.subspan(at, std::min(piece_bytes, bytes.size() - at)));
        }
        const std::uint32_t number = ring->begin(verb, static_cast<std::int64_t>(offset));
        const auto ends = ends_of(*ring, 1);
        REQUIRE(ends.size() == 1);
        CHECK(ends[0].number == number);
        CHECK(ends[0].value == static_cast<std::int64_t>(bytes.size()));
      };
      transfer(FileVerb::kWrite, source);
      transfer(FileVerb::kRead, target);
      CHECK(target == source);
    }
  }
}

TEST_CASE("more pieces than the kernel takes at once are moved all the same") {
  const UniqueFd file(memfd_create("file_ring", 8192, false).value);
  const auto ring = open_ring(file.get());
  if (ring == nullptr) return;
  std::vector<std::byte> bytes(3000, std::byte{7});
  for (std::byte& byte : bytes) ring->add_piece({&byte, 1});
  std::ignore = ring->begin(FileVerb::kWrite, 100);
  CHECK(ends_of(*ring, 1).at(0).value == 3000);
}

TEST_CASE("a transfer that the kernel does in part goes on until all of it is moved") {
  Pipe pipe;
  const auto ring = open_ring(pipe.reader.get());
  if (ring == nullptr) return;
  std::vector<std::byte> target(200);
  ring->add_piece(std::span(target).first(150));
  ring->add_piece(std::span(target).subspan(150));
  std::ignore = ring->begin(FileVerb::kRead, 0);
  std::array<FileRingEnd, 4> none{};
  const std::vector<std::byte> part(120, std::byte{5});
  CHECK(::write(pipe.writer.get(), part.data(), 120) == 120);
  CHECK(ring->turn(none) == 0);
  CHECK(::write(pipe.writer.get(), part.data(), 80) == 80);
  CHECK(ends_of(*ring, 1).at(0).value == 200);
  CHECK(target == std::vector<std::byte>(200, std::byte{5}));

  // At the end there is nothing to go on with.
  ring->add_piece(target);
  std::ignore = ring->begin(FileVerb::kRead, 0);
  CHECK(::write(pipe.writer.get(), part.data(), 50) == 50);
  CHECK(ring->turn(none) == 0);
  pipe.writer.reset();
  CHECK(ends_of(*ring, 1).at(0).value == 50);
}

TEST_CASE("more operations than the ring has room for all end") {
  const UniqueFd file(memfd_create("file_ring", 1000, false).value);
  const auto ring = open_ring(file.get());
  if (ring == nullptr) return;
  std::vector<std::byte> bytes(1000);
  std::vector<bool> begun(1000);
  for (std::size_t index = 0; index < bytes.size(); ++index) {
    bytes[index] = static_cast<std::byte>(index);
    ring->add_piece({&bytes[index], 1});
    const std::uint32_t number = ring->begin(FileVerb::kWrite, static_cast<std::int64_t>(index));
    REQUIRE(number < begun.size());
    CHECK_FALSE(begun[number]);
    begun[number] = true;
  }
  CHECK(ends_of(*ring, 1000).size() == 1000);
  CHECK(ring->in_kernel_count() == 0);
  CHECK(ring->waiting_count() == 0);
  std::vector<std::byte> stored(1000);
  CHECK(::pread(file.get(), stored.data(), 1000, 0) == 1000);
  CHECK(stored == bytes);
}

TEST_CASE("a ring is readable when something has ended, until it is told") {
  for (const FileRingOptions& options : {kOptions, kUndeferred}) {
    CAPTURE(options.may_defer);
    const Pipe pipe;
    const auto ring = open_ring(pipe.reader.get(), options);
    if (ring == nullptr) return;
    std::array<FileRingEnd, 8> some{};
    std::array<std::byte, 3> target{};
    for (int round = 0; round < 3; ++round) {
      for (std::byte& byte : target) {
        ring->add_piece({&byte, 1});
        std::ignore = ring->begin(FileVerb::kRead, 0);
      }
      CHECK(ring->turn(some) == 0);
      CHECK_FALSE(is_readable(*ring, 0));
      // The second and third one end after the first one was told: a wake-up each that is asked for anew.
      for (std::size_t ended = 0; ended < target.size(); ++ended) {
        const std::byte one{7};
        CHECK(::write(pipe.writer.get(), &one, 1) == 1);
        REQUIRE(is_readable(*ring, 10'000));
        CHECK(ring->turn(some) == 1);
        CHECK_FALSE(is_readable(*ring, 0));
      }
    }
    CHECK(ring->in_kernel_count() == 0);
  }
}

TEST_CASE("no end is lost that comes while a ring looks") {
  for (const FileRingOptions& options : {kOptions, kUndeferred}) {
    CAPTURE(options.may_defer);
    const Pipe pipe;
    const auto ring = open_ring(pipe.reader.get(), options);
    if (ring == nullptr) return;
    constexpr unsigned kRounds = 20'000;
    std::array<FileRingEnd, 4> some{};
    std::atomic<unsigned> begun = 0;
    // Ends each read soon after it began: before, while or after the ring asks to be woken.
    std::thread peer([&] {
      const std::byte one{7};
      for (unsigned round = 0; round < kRounds; ++round) {
        while (begun <= round) std::this_thread::yield();
        for (unsigned spin = round * 37 % 4096; spin > 0; --spin) std::atomic_signal_fence(std::memory_order_seq_cst);
        CHECK(::write(pipe.writer.get(), &one, 1) == 1);
      }
    });
    std::byte target{};
    for (unsigned round = 0; round < kRounds; ++round) {
      ring->add_piece({&target, 1});
      std::ignore = ring->begin(FileVerb::kRead, 0);
      // In every other round the ring has looked before, and sleeps.
      if (round % 2 == 0) REQUIRE(ring->turn(some) == 0);
      ++begun;
      REQUIRE(ends_of(*ring, 1).at(0).value == 1);
    }
    peer.join();
  }
}

// The flags by which the kernel tells of completions that it has deferred, seen from outside of the ring.
struct SubmissionFlags {
  std::byte* rings = nullptr;
  std::uint32_t offset_bytes = 0;

  SubmissionFlags() {
    // The layout is the same in each ring.
    io_uring_params params{};
    const UniqueFd other(static_cast<int>(::syscall(425, 8, &params)));
    offset_bytes = params.sq_off.flags;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      const int fd = std::atoi(entry.path().filename().c_str());
      if (fd == other.get() || std::filesystem::read_symlink(entry.path(), error) != "anon_inode:[io_uring]") continue;
      void* const mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
      if (mapped != MAP_FAILED) rings = static_cast<std::byte*>(mapped);
    }
  }
  ~SubmissionFlags() {
    if (rings != nullptr) ::munmap(rings, 4096);
  }
  SubmissionFlags(const SubmissionFlags&) = delete;
  SubmissionFlags& operator=(const SubmissionFlags&) = delete;

  [[nodiscard]] std::atomic_ref<std::uint32_t> word() const {
    return std::atomic_ref(*reinterpret_cast<std::uint32_t*>(rings + offset_bytes));
  }
};

TEST_CASE("a ring does not stay in the kernel for a flag that the kernel set too late to mean anything") {
  Pipe pipe;
  const auto ring = open_ring(pipe.reader.get());
  if (ring == nullptr || !ring->fd_is_eventfd()) return;
  const SubmissionFlags flags;
  REQUIRE(flags.rings != nullptr);
  std::array<std::byte, 1> target{};
  ring->add_piece(target);
  std::ignore = ring->begin(FileVerb::kRead, 0);
  std::array<FileRingEnd, 4> some{};
  CHECK(ring->turn(some) == 0);
  constexpr std::uint32_t kTaskRun = 4;  // IORING_SQ_TASKRUN
  CHECK((flags.word().load() & kTaskRun) == 0);
  flags.word().fetch_or(kTaskRun);
  // Ends the read, and with it a ring that waits for that, after a while.
  std::thread peer([&] {
    std::this_thread::sleep_for(std::chrono::seconds(2));
    pipe.writer.reset();
  });
  CHECK(ring->turn(some) == 0);
  CHECK(ring->in_kernel_count() == 1);
  peer.join();
  CHECK(is_readable(*ring, 10'000));
  CHECK(ring->turn(some) == 1);
}

TEST_CASE("a ring that ends waits for what the kernel still moves") {
  const Pipe pipe;
  auto ring = open_ring(pipe.reader.get());
  if (ring == nullptr) return;
  std::array<std::byte, 1> target{};
  ring->add_piece(target);
  std::ignore = ring->begin(FileVerb::kRead, 0);
  std::array<FileRingEnd, 4> none{};
  CHECK(ring->turn(none) == 0);
  CHECK(ring->in_kernel_count() == 1);
  std::thread peer([&] {
    const std::byte one{1};
    CHECK(::write(pipe.writer.get(), &one, 1) == 1);
  });
  ring.reset();
  CHECK(target[0] == std::byte{1});
  peer.join();
}

TEST_CASE("what the kernel refuses is told by its errno") {
  const UniqueFd file(::open("/dev/full", O_RDWR | O_CLOEXEC));
  const auto ring = open_ring(file.get());
  if (ring == nullptr) return;
  std::array<std::byte, 16> bytes{};
  ring->add_piece(bytes);
  std::ignore = ring->begin(FileVerb::kWrite, 0);
  CHECK(ends_of(*ring, 1).at(0).value == -ENOSPC);
  std::ignore = ring->begin(FileVerb::kSync, 0);
  CHECK(ends_of(*ring, 1).at(0).value == -EINVAL);
}

// Has a system call give EPERM to this thread alone, as in containers. False where it cannot be: an emulated kernel has no
// filters.
bool refuse(std::uint32_t system_call) {
  std::array<sock_filter, 4> program{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, system_call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog filter{.len = program.size(), .filter = program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST_CASE("where io_uring is filtered the refusal is told") {
  std::thread filtered([] {
    if (!refuse(425)) return;  // io_uring_setup
    Result failure;
    CHECK(FileRing::open(0, kOptions, failure) == nullptr);
    CHECK(failure.error == EPERM);
  });
  filtered.join();
}

TEST_CASE("where the kernel must not know of an eventfd nothing is deferred") {
  const UniqueFd file(memfd_create("file_ring", 1000, false).value);
  if (open_ring(file.get()) == nullptr) return;
  std::thread filtered([&] {
    if (!refuse(427)) return;  // io_uring_register
    const auto ring = open_ring(file.get());
    REQUIRE(ring != nullptr);
    CHECK_FALSE(ring->fd_is_eventfd());
    std::array<std::byte, 100> bytes{};
    ring->add_piece(bytes);
    std::ignore = ring->begin(FileVerb::kRead, 0);
    CHECK(ends_of(*ring, 1).at(0).value == 100);
  });
  filtered.join();
}

}  // namespace
