// What the kernel-facing part does where JavaScript cannot look: blocking eventfds, unguarded mappings, handlers
// that were there first, and threads against each other. The rest is tested through the addon (test/native).
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "os/eventfd.h"
#include "os/mapped_region.h"
#include "os/memfd.h"
#include "os/sigbus_guard.h"
#include "os/unique_fd.h"

namespace {

using namespace hushring::os;

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kFullCounter = ~std::uint64_t{0} - 1;

// Runs `body` in a child process, which is ended by SIGALRM when it takes 10 s. Gives what waitpid() does.
template <typename Body>
int status_of_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(10);
    body();
    ::_exit(0);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

// A process installs the guard once and for good, so what is about its installation needs a process without one.
// Runs the test case `name` (no comma in it: doctest would take it for two) in a new process, unless this is that
// process: then gives false.
bool ran_in_new_process(const char* name) {
  if (::getenv("HUSHRING_TEST_NEW_PROCESS") != nullptr) return false;
  const std::string filter = std::string("--test-case=") + name;
  const int status = status_of_child([&] {
    ::setenv("HUSHRING_TEST_NEW_PROCESS", "1", 1);
    ::execl("/proc/self/exe", "hushring_tests", filter.c_str(), "--minimal", nullptr);
  });
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  return true;
}

bool exited_with(int status, int code) { return WIFEXITED(status) && WEXITSTATUS(status) == code; }

std::shared_ptr<MappedRegion> map_pages(int fd, std::uint64_t count) {
  MapFailure failure;
  RegionRequest request;
  request.fd = fd;
  request.size_bytes = count * kPageBytes;
  return MappedRegion::map(request, failure);
}

// Read in a way that the compiler cannot leave out.
std::byte read_at(const std::byte* address) { return *static_cast<const volatile std::byte*>(address); }

// ---- eventfd ---------------------------------------------------------------------------------------------------

TEST_CASE("eventfd_signal does not wait on a full counter whose O_NONBLOCK was taken away") {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  REQUIRE(::write(event.get(), &kFullCounter, sizeof(kFullCounter)) == sizeof(kFullCounter));
  const auto write_plainly = [&] { static_cast<void>(::write(event.get(), "\1\0\0\0\0\0\0", 8)); };
  CHECK(exited_with(status_of_child([&] { eventfd_signal(event.get()); }), 0));
  REQUIRE(::fcntl(event.get(), F_SETFL, 0) == 0);
  // The control: a plain write waits until the alarm.
  CHECK(WIFSIGNALED(status_of_child([&] {
    ::alarm(1);
    write_plainly();
  })));
  CHECK(exited_with(status_of_child([&] { eventfd_signal(event.get()); }), 0));
  CHECK(eventfd_drain(event.get()) == kFullCounter);
}

TEST_CASE("eventfd_drain does not wait on a blocking eventfd and leaves it blocking") {
  const UniqueFd event(::eventfd(5, EFD_CLOEXEC));
  CHECK(eventfd_drain(event.get()) == 5);
  CHECK(exited_with(status_of_child([&] { static_cast<void>(eventfd_drain(event.get())); }), 0));
  CHECK((::fcntl(event.get(), F_GETFL) & O_NONBLOCK) == 0);
}

// ---- The SIGBUS guard ------------------------------------------------------------------------------------------

constexpr const char* kUnguarded = "a truncated mapping ends only a process that does not guard it";
TEST_CASE(kUnguarded) {
  if (ran_in_new_process(kUnguarded)) return;
  const UniqueFd file(memfd_create("guard", 2 * kPageBytes, false).value);
  const auto status_of = [&](bool guarded) {
    return status_of_child([&] {
      ::signal(SIGBUS, SIG_DFL);  // a sanitizer has a handler of its own
      const auto region = map_pages(file.get(), 2);
      auto* const unguarded =
          static_cast<std::byte*>(::mmap(nullptr, 2 * kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
      static_cast<void>(::ftruncate(file.get(), 0));
      std::byte* const bytes = guarded ? region->host : unguarded;
      if (read_at(bytes + kPageBytes) != std::byte{0}) ::_exit(1);
      bytes[0] = std::byte{1};
      ::_exit(read_at(bytes) == std::byte{1} && region->truncated() ? 0 : 2);
    });
  };
  CHECK(exited_with(status_of(true), 0));
  REQUIRE(::ftruncate(file.get(), 2 * kPageBytes) == 0);
  const int unguarded = status_of(false);
  CHECK((WIFSIGNALED(unguarded) && WTERMSIG(unguarded) == SIGBUS));
}

constexpr const char* kPassedOn = "a SIGBUS that is not ours goes to the handler that was there first";
TEST_CASE(kPassedOn) {
  if (ran_in_new_process(kPassedOn)) return;
  const UniqueFd file(memfd_create("guard", kPageBytes, false).value);
  const auto status_with = [&](auto set) {
    REQUIRE(::ftruncate(file.get(), kPageBytes) == 0);
    return status_of_child([&] {
      struct sigaction action {};
      set(action);
      ::sigaction(SIGBUS, &action, nullptr);
      const auto region = map_pages(file.get(), 1);
      static_cast<void>(::ftruncate(file.get(), 0));
      if (read_at(region->host) != std::byte{0}) ::_exit(1);
      ::raise(SIGBUS);
      ::_exit(4);
    });
  };
  CHECK(exited_with(status_with([](auto& action) { action.sa_handler = [](int) { ::_exit(2); }; }), 2));
  CHECK(exited_with(status_with([](auto& action) {
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = [](int, siginfo_t* info, void*) { ::_exit(info->si_pid == ::getpid() ? 3 : 1); };
  }), 3));
  CHECK(exited_with(status_with([](auto& action) { action.sa_handler = SIG_IGN; }), 4));
  const int unhandled = status_with([](auto& action) { action.sa_handler = SIG_DFL; });
  CHECK((WIFSIGNALED(unhandled) && WTERMSIG(unhandled) == SIGBUS));
}

TEST_CASE("a place in the guard's table that changes while it is searched is not taken for the one that faulted") {
  // Three pages. The middle one faults again and again, while the same place in the table stands for the first page
  // and for the last in turn: a start and an end of different times would hold the middle one.
  void* const reserved = ::mmap(nullptr, 3 * kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* const first = static_cast<std::byte*>(reserved);
  std::byte* const middle = first + kPageBytes;
  std::byte* const last = middle + kPageBytes;
  const UniqueFd empty_file(memfd_create("guard", 0, false).value);
  std::atomic<bool> neighbour_told = false;
  std::atomic<bool> told = false;
  std::atomic<bool> stop = false;
  const int neighbour_number = guard({first, kPageBytes, kPageBytes, &neighbour_told});
  const int number = guard({middle, kPageBytes, kPageBytes, &told});
  REQUIRE(neighbour_number < number);  // it is looked at before the right one
  unguard(neighbour_number);
  std::thread neighbour([&] {
    while (!stop) {
      for (std::byte* const page : {first, last}) unguard(guard({page, kPageBytes, kPageBytes, &neighbour_told}));
    }
  });
  int told_count = 0;
  constexpr int kRounds = 20'000;
  for (int round = 0; round < kRounds; ++round) {
    ::mmap(middle, kPageBytes, PROT_READ, MAP_SHARED | MAP_FIXED, empty_file.get(), 0);
    told = false;
    static_cast<void>(read_at(middle));
    told_count += told;
  }
  stop = true;
  neighbour.join();
  CHECK(told_count == kRounds);
  CHECK_FALSE(neighbour_told);
  unguard(number);
  ::munmap(reserved, 3 * kPageBytes);
}

TEST_CASE("threads map, lose and unmap memory at the same time, each its own") {
  // Mappings come and go in the table while others are searched for in it.
  std::atomic<int> wrong_count = 0;
  const auto work = [&](std::byte mark) {
    for (int round = 0; round < 500; ++round) {
      const UniqueFd file(memfd_create("guard", 4 * kPageBytes, false).value);
      const UniqueFd whole_file(memfd_create("guard", 4 * kPageBytes, true).value);
      const auto region = map_pages(file.get(), 4);
      const auto whole = map_pages(whole_file.get(), 4);
      for (std::uint64_t page = 0; page < 4; ++page) {
        region->host[page * kPageBytes] = whole->host[page * kPageBytes] = mark;
      }
      static_cast<void>(::ftruncate(file.get(), 2 * kPageBytes));
      for (std::uint64_t page = 4; page-- > 0;) {
        wrong_count += read_at(region->host + page * kPageBytes) != (page < 2 ? mark : std::byte{0});
        wrong_count += read_at(whole->host + page * kPageBytes) != mark;
      }
      wrong_count += !region->truncated() || whole->truncated();
    }
  };
  std::vector<std::thread> threads;
  for (int number = 1; number <= 3; ++number) threads.emplace_back(work, static_cast<std::byte>(number));
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong_count == 0);
}

}  // namespace
