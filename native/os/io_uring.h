// The two rings of io_uring(7), by plain system calls.
//
// Not liburing: the addon is built on the user's machine by `npm ci`, where only the kernel's headers can be counted on
// (docs/decisions/0013). One thread makes it, submits and reaps.
#pragma once

#include <linux/io_uring.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "os/result.h"
#include "os/unique_fd.h"

namespace hushring::os {

class IoUring {
 public:
  // Null when the kernel refuses, and then `failure` says with what: ENOSYS also for a kernel before 5.6, whose rings
  // lack what is needed here; EPERM where it is switched off (kernel.io_uring_disabled) or filtered (seccomp).
  // `entry_count` is how many operations are submitted by one system call; twice as many can be in the kernel. `may_defer`
  // is for tests of what is done where the kernel cannot defer completions (before Linux 6.1).
  [[nodiscard]] static std::unique_ptr<IoUring> open(unsigned entry_count, Result& failure,
                                                     bool may_defer = true) noexcept;
  ~IoUring();
  IoUring(const IoUring&) = delete;
  IoUring& operator=(const IoUring&) = delete;

  // Readable when completions have come after expect_wake(). Lent. An eventfd where the kernel defers completions, which
  // whoever watches it has to read; else the ring itself.
  [[nodiscard]] int wake_fd() const noexcept { return defers() ? wake_.get() : fd_.get(); }
  [[nodiscard]] bool defers() const noexcept { return wake_.get() >= 0; }
  // Completions that find room; more operations than that must not be in the kernel.
  [[nodiscard]] unsigned completion_count_max() const noexcept { return completion_count_; }

  // The next operation to be submitted, all zeros. Null when there is no room before the next submit().
  [[nodiscard]] io_uring_sqe* prepare() noexcept;
  // Prepared, and not yet in the kernel.
  [[nodiscard]] unsigned prepared_count() const noexcept { return sq_tail_ - sq_submitted_; }
  // Gives what is prepared to the kernel, which may take only the first ones: their number. EAGAIN or EBUSY: none now,
  // for want of memory or of room for completions. Gathers as well.
  [[nodiscard]] Result submit() noexcept;
  // Has the kernel put completions that it has deferred where front() sees them; some may be left.
  void gather() noexcept;
  // Asks to be woken, and gathers after that. To be called again until it is true and front() is null: then whatever
  // comes wakes.
  [[nodiscard]] bool expect_wake() noexcept;
  // Asks not to be woken. A wake-up that was under way may still come.
  void suppress_wake() noexcept;
  // Waits for a completion.
  [[nodiscard]] Result wait() noexcept;

  // The oldest completion, or null when there is none; valid until pop().
  [[nodiscard]] const io_uring_cqe* front() const noexcept;
  void pop() noexcept;

 private:
  // Memory shared with the kernel.
  class Mapping {
   public:
    Mapping() noexcept = default;
    ~Mapping();
    [[nodiscard]] bool map(int fd, std::size_t length_bytes, std::uint64_t offset) noexcept;
    [[nodiscard]] std::byte* at(std::size_t offset) const noexcept { return start_ + offset; }
    template <class Value>
    [[nodiscard]] Value* as(std::size_t offset) const noexcept {
      return reinterpret_cast<Value*>(at(offset));
    }

   private:
    std::byte* start_ = nullptr;
    std::size_t length_bytes_ = 0;
  };

  IoUring() noexcept = default;
  [[nodiscard]] bool register_wake() noexcept;
  [[nodiscard]] Result enter(unsigned submit_count, unsigned wait_count, unsigned flags) noexcept;

  UniqueFd fd_;
  UniqueFd wake_;
  Mapping rings_;
  Mapping entries_;
  std::uint32_t* shared_sq_tail_ = nullptr;   // written here, read by the kernel within io_uring_enter
  std::uint32_t* shared_sq_flags_ = nullptr;  // written by the kernel
  std::uint32_t* shared_cq_flags_ = nullptr;  // written here
  std::uint32_t* shared_cq_head_ = nullptr;  // written here
  std::uint32_t* shared_cq_tail_ = nullptr;  // written by the kernel
  io_uring_cqe* completions_ = nullptr;
  std::uint32_t sq_mask_ = 0;
  std::uint32_t cq_mask_ = 0;
  std::uint32_t submission_count_ = 0;
  std::uint32_t completion_count_ = 0;
  std::uint32_t sq_tail_ = 0;       // wraps on purpose
  std::uint32_t sq_submitted_ = 0;  // what the kernel has taken; wraps on purpose
  std::uint32_t cq_head_ = 0;       // wraps on purpose
};

}  // namespace hushring::os
