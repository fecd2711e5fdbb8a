#include "os/io_uring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <tuple>
#include <utility>

#include "os/eventfd.h"

// Headers before Linux 6.1 lack some of these; an older kernel refuses them with EINVAL.
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#define IORING_SQ_TASKRUN (1U << 2)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

// The numbers are the same on every architecture (asm-generic/unistd.h).
#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

namespace hushring::os {
namespace {

// One mapping for both rings; no completion is ever dropped; what an entry points to is read during the submission;
// IORING_OP_READ. The last of them came with Linux 5.6.
constexpr std::uint32_t kNeededFeatures =
    IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_RW_CUR_POS;

// Nobody interrupts this thread to tell it of completions. They are put into the ring when it asks for them (Linux 6.1),
// or whenever it enters the kernel, if only for epoll, which is left and entered again for it (Linux 6.0).
constexpr std::uint32_t kDeferringFlags =
    IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER;
constexpr std::uint32_t kCooperatingFlags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER;

int setup(unsigned entry_count, std::uint32_t flags, io_uring_params& params) noexcept {
  params = {};
  params.flags = IORING_SETUP_CLAMP | flags;
  return static_cast<int>(::syscall(__NR_io_uring_setup, entry_count, &params));
}

}  // namespace

IoUring::Mapping::~Mapping() {
  if (start_ != nullptr) ::munmap(start_, length_bytes_);
}

bool IoUring::Mapping::map(int fd, std::size_t length_bytes, std::uint64_t offset) noexcept {
  void* const start = ::mmap(nullptr, length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                             static_cast<off_t>(offset));
  if (start == MAP_FAILED) return false;
  start_ = static_cast<std::byte*>(start);
  length_bytes_ = length_bytes;
  return true;
}

std::unique_ptr<IoUring> IoUring::open(unsigned entry_count, Result& failure, bool may_defer) noexcept {
  io_uring_params params;
  std::unique_ptr<IoUring> ring(new IoUring);
  int fd = -1;
  for (const std::uint32_t flags : {kDeferringFlags, kCooperatingFlags, 0U}) {
    if (flags == kDeferringFlags && !may_defer) continue;
    fd = setup(entry_count, flags, params);
    if (fd < 0 && errno == EINVAL) continue;
    ring->fd_.reset(fd);  // close-on-exec, as the kernel makes it
    // Without an eventfd, or where a filter refuses to have it known to the kernel, nothing is deferred.
    if (fd >= 0 && flags == kDeferringFlags && !ring->register_wake()) continue;
    break;
  }
  if (fd < 0) {
    failure = Result::failed("io_uring_setup");
    return nullptr;
  }
  if ((params.features & kNeededFeatures) != kNeededFeatures) {
    failure = Result::failed("io_uring_setup", ENOSYS);
    return nullptr;
  }
  const std::size_t rings_bytes = std::max<std::size_t>(params.sq_off.array + params.sq_entries * sizeof(std::uint32_t),
                                                        params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
  if (!ring->rings_.map(fd, rings_bytes, IORING_OFF_SQ_RING) ||
      !ring->entries_.map(fd, params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES)) {
    failure = Result::failed("mmap");
    return nullptr;
  }
  const Mapping& rings = ring->rings_;
  ring->shared_sq_flags_ = rings.as<std::uint32_t>(params.sq_off.flags);
  ring->shared_cq_flags_ = rings.as<std::uint32_t>(params.cq_off.flags);
  ring->shared_sq_tail_ = rings.as<std::uint32_t>(params.sq_off.tail);
  ring->shared_cq_head_ = rings.as<std::uint32_t>(params.cq_off.head);
  ring->shared_cq_tail_ = rings.as<std::uint32_t>(params.cq_off.tail);
  ring->completions_ = rings.as<io_uring_cqe>(params.cq_off.cqes);
  ring->submission_count_ = params.sq_entries;
  ring->completion_count_ = params.cq_entries;
  ring->sq_mask_ = params.sq_entries - 1;
  ring->cq_mask_ = params.cq_entries - 1;
  ring->suppress_wake();
  // Entries are submitted in the order in which they lie, always.
  auto* const order = rings.as<std::uint32_t>(params.sq_off.array);
  for (std::uint32_t index = 0; index < params.sq_entries; ++index) order[index] = index;
  return ring;
}

IoUring::~IoUring() = default;

io_uring_sqe* IoUring::prepare() noexcept {
  if (prepared_count() == submission_count_) return nullptr;
  io_uring_sqe* const entry = entries_.as<io_uring_sqe>(0) + (sq_tail_++ & sq_mask_);
  std::memset(entry, 0, sizeof(*entry));
  return entry;
}

Result IoUring::enter(unsigned submit_count, unsigned wait_count, unsigned flags) noexcept {
  for (;;) {
    const long count = ::syscall(__NR_io_uring_enter, fd_.get(), submit_count, wait_count, flags, nullptr, 0);
    if (count >= 0) return Result::of(static_cast<int>(count));
    if (errno != EINTR) return Result::failed("io_uring_enter");
  }
}

Result IoUring::submit() noexcept {
  // Without SQPOLL the kernel reads the entries in this thread, within the call below; release is for its own acquire.
  std::atomic_ref(*shared_sq_tail_).store(sq_tail_, std::memory_order_release);
  const Result taken = enter(prepared_count(), 0, IORING_ENTER_GETEVENTS);
  if (taken.error == 0) sq_submitted_ += static_cast<std::uint32_t>(taken.value);
  return taken;
}

bool IoUring::register_wake() noexcept {
  UniqueFd wake(eventfd_create().value);
  const int fd = wake.get();
  if (fd < 0 || ::syscall(__NR_io_uring_register, fd_.get(), IORING_REGISTER_EVENTFD, &fd, 1) < 0) return false;
  wake_ = std::move(wake);
  return true;
}

void IoUring::gather() noexcept {
  if (defers()) std::ignore = enter(0, 0, IORING_ENTER_GETEVENTS);
}

// The kernel puts a completion on a list, reads the wish, and writes the eventfd if the list was empty. So the wish comes
// first here, then a full barrier, then the look at the list, which only the kernel can take: the other way round a
// completion could come after the look, find no wish, and nobody would be told of it. TASKRUN does not answer the same
// question. It is set after the list, so it may be missing for what is there, and may be there for what was taken already:
// it is cleared before each look, or a ring that trusts it would look for ever. What it is good for is to tell of what the
// kernel left on the list because it was more than it takes at a time.
bool IoUring::expect_wake() noexcept {
  if (!defers()) return true;
  std::atomic_ref(*shared_cq_flags_).store(0, std::memory_order_relaxed);
  std::atomic_ref sq_flags(*shared_sq_flags_);
  sq_flags.fetch_and(~std::uint32_t{IORING_SQ_TASKRUN}, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (enter(0, 0, IORING_ENTER_GETEVENTS).error != 0) return true;
  return (sq_flags.load(std::memory_order_relaxed) & IORING_SQ_TASKRUN) == 0;
}

void IoUring::suppress_wake() noexcept {
  if (defers()) std::atomic_ref(*shared_cq_flags_).store(IORING_CQ_EVENTFD_DISABLED, std::memory_order_relaxed);
}

Result IoUring::wait() noexcept { return enter(0, 1, IORING_ENTER_GETEVENTS); }

const io_uring_cqe* IoUring::front() const noexcept {
  // Pairs with the kernel's release of the tail: a completion is whole before the tail tells of it.
  const std::uint32_t tail = std::atomic_ref(*shared_cq_tail_).load(std::memory_order_acquire);
  return cq_head_ == tail ? nullptr : completions_ + (cq_head_ & cq_mask_);
}

void IoUring::pop() noexcept {
  // Pairs with the kernel's acquire of the head: it must not put the next one there before this one has been read.
  std::atomic_ref(*shared_cq_head_).store(++cq_head_, std::memory_order_release);
}

}  // namespace hushring::os
