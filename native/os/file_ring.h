// Reads, writes and flushes of one file through io_uring, straight from and into the memory they are about.
//
// One thread uses it. Everything begun is submitted by one system call in the next turn(), which also gathers what has
// ended. A transfer ends when all of its bytes were moved, at the end of the file, or with an error: what the kernel
// moves in part, interrupts or puts off is continued here.
//
// Ownership: the memory of a transfer belongs to whoever began it and must stay mapped until turn() tells its end. Memory
// whose file was made shorter meanwhile is no danger: the kernel gives EFAULT.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "os/io_uring.h"
#include "os/result.h"

namespace hushring::os {

enum class FileVerb : std::uint8_t {
  kRead,
  kWrite,
  kSync,  // fdatasync: what was written by transfers that had ended before it began
};

struct FileRingOptions {
  // Operations submitted by one system call; twice as many are in the kernel at a time, the rest waits here.
  unsigned entry_count;
  // Transfers of more bytes are done by threads of the kernel, those of fewer within turn() where nothing has to be
  // waited for.
  std::uint64_t inline_bytes_max;
  // What addresses and lengths must be multiples of, a power of two: with O_DIRECT. Pieces that are not go through a
  // buffer. 1: anything goes.
  std::size_t alignment;
  bool may_defer = true;  // see IoUring::open
};

// How an operation ended.
struct FileRingEnd {
  std::uint32_t number;  // what begin() returned
  std::int64_t value;    // bytes moved, or minus an errno
};

class FileRing {
 public:
  // Null when the kernel refuses; see IoUring::open. `file` is borrowed; its open file loses O_NONBLOCK.
  [[nodiscard]] static std::unique_ptr<FileRing> open(int file, const FileRingOptions& options,
                                                      Result& failure) noexcept;
  // Waits for what is in the kernel, which still moves bytes.
  ~FileRing();
  FileRing(const FileRing&) = delete;
  FileRing& operator=(const FileRing&) = delete;

  // Readable when something has ended since a turn() that told fewer than it had room for. Whoever watches it reads it, if it
  // is an eventfd.
  [[nodiscard]] int fd() const noexcept { return ring_->wake_fd(); }
  [[nodiscard]] bool fd_is_eventfd() const noexcept { return ring_->defers(); }

  // Adds a piece to the operation that begin() begins next.
  void add_piece(std::span<std::byte> piece);
  // Returns the number that tells its end; no other operation that has not ended has it.
  [[nodiscard]] std::uint32_t begin(FileVerb verb, std::int64_t file_offset_bytes);

  // Submits what was begun, as much as the kernel takes, and gathers what has ended. Returns how many it put into `ends`;
  // when that is all there was room for, there may be more, and fd() tells of none of them.
  [[nodiscard]] std::size_t turn(std::span<FileRingEnd> ends);

  [[nodiscard]] unsigned in_kernel_count() const noexcept { return in_kernel_count_; }
  // Begun, and refused by the kernel for the moment. When nothing is in it, somebody has to call turn() again.
  [[nodiscard]] std::size_t waiting_count() const noexcept { return waiting_.size() + prepared_.size(); }

 private:
  struct Operation;

  FileRing(std::unique_ptr<IoUring> ring, int file, const FileRingOptions& options);
  void prepare();
  void submit_waiting();
  void enter_kernel();
  [[nodiscard]] bool collect_until_asleep();
  [[nodiscard]] bool collect();
  void continue_with(Operation& operation, std::int32_t result);

  const std::unique_ptr<IoUring> ring_;
  const int file_;
  const FileRingOptions options_;
  std::vector<std::unique_ptr<Operation>> operations_;  // by number
  std::vector<std::uint32_t> free_;
  std::vector<iovec> pieces_;            // of the next operation
  std::deque<std::uint32_t> waiting_;    // to be prepared
  std::deque<std::uint32_t> prepared_;   // in the ring, not taken by the kernel
  std::deque<FileRingEnd> ended_;        // to be told
  unsigned in_kernel_count_ = 0;
  int broken_ = 0;  // the errno with which the kernel refused for good
};

}  // namespace hushring::os
