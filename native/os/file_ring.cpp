#include "os/file_ring.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace hushring::os {
namespace {

struct Free {
  void operator()(std::byte* memory) const noexcept { std::free(memory); }
};
using Bytes = std::unique_ptr<std::byte, Free>;

// Null when there is no memory. A power of two is what `alignment` must be; aligned_alloc() wants whole ones of it.
Bytes aligned_bytes(std::size_t alignment, std::size_t length_bytes) noexcept {
  const std::size_t whole_bytes = (length_bytes + alignment - 1) & ~(alignment - 1);
  return Bytes(static_cast<std::byte*>(std::aligned_alloc(alignment, whole_bytes)));
}

std::uint64_t length_of(std::span<const iovec> pieces) noexcept {
  std::uint64_t length_bytes = 0;
  for (const iovec& piece : pieces) length_bytes += piece.iov_len;
  return length_bytes;
}

bool is_aligned(std::span<const iovec> pieces, std::size_t alignment) noexcept {
  return std::ranges::all_of(pieces, [&](const iovec& piece) {
    return ((reinterpret_cast<std::uintptr_t>(piece.iov_base) | piece.iov_len) & (alignment - 1)) == 0;
  });
}

enum class Copy { kOut, kIn };

// Copies between the front of `pieces` and `buffer`, as far as `length_bytes` go.
void copy(Copy way, std::span<const iovec> pieces, std::byte* buffer, std::uint64_t length_bytes) noexcept {
  for (const iovec& piece : pieces) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece.iov_len, length_bytes));
    if (way == Copy::kOut) {
      std::memcpy(buffer, piece.iov_base, count);
    } else {
      std::memcpy(piece.iov_base, buffer, count);
    }
    buffer += count;
    length_bytes -= count;
  }
}

}  // namespace

struct FileRing::Operation {
  FileVerb verb = FileVerb::kSync;
  bool is_punted = false;  // to a thread of the kernel
  std::int64_t file_offset_bytes = 0;
  std::uint64_t length_bytes = 0;
  std::uint64_t done_bytes = 0;
  std::vector<iovec> pieces;  // the whole transfer
  std::vector<iovec> rest;    // what is left to be moved
  std::size_t rest_at = 0;    // its first one
  Bytes buffer;               // in the place of pieces that are not aligned

  // Takes `count` bytes, which were moved, off the front of the rest.
  void advance(std::uint64_t count) noexcept {
    done_bytes += count;
    while (count > 0 && rest_at < rest.size()) {
      iovec& piece = rest[rest_at];
      const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(count, piece.iov_len));
      piece.iov_base = static_cast<std::byte*>(piece.iov_base) + step;
      piece.iov_len -= step;
      count -= step;
      if (piece.iov_len == 0) ++rest_at;
    }
  }
};

FileRing::FileRing(std::unique_ptr<IoUring> ring, int file, const FileRingOptions& options)
    : ring_(std::move(ring)), file_(file), options_(options) {}

std::unique_ptr<FileRing> FileRing::open(int file, const FileRingOptions& options, Result& failure) noexcept {
  std::unique_ptr<IoUring> ring = IoUring::open(options.entry_count, failure, options.may_defer);
  if (ring == nullptr) return nullptr;
  // With O_NONBLOCK a transfer that has to wait ends with EAGAIN instead of waiting.
  const int flags = ::fcntl(file, F_GETFL);
  if (flags < 0 || ::fcntl(file, F_SETFL, flags & ~O_NONBLOCK) < 0) {
    failure = Result::failed("fcntl");
    return nullptr;
  }
  return std::unique_ptr<FileRing>(new FileRing(std::move(ring), file, options));
}

FileRing::~FileRing() {
  // What was not taken by the kernel is forgotten; what was moves bytes of memory that is unmapped afterwards.
  while (in_kernel_count_ > 0) {
    while (ring_->front() != nullptr) {
      ring_->pop();
      --in_kernel_count_;
    }
    if (in_kernel_count_ > 0 && ring_->wait().error != 0) return;
  }
}

void FileRing::add_piece(std::span<std::byte> piece) { pieces_.push_back({piece.data(), piece.size()}); }

std::uint32_t FileRing::begin(FileVerb verb, std::int64_t file_offset_bytes) {
  std::uint32_t number = 0;
  if (free_.empty()) {
    number = static_cast<std::uint32_t>(operations_.size());
    operations_.push_back(std::make_unique<Operation>());
  } else {
    number = free_.back();
    free_.pop_back();
  }
  Operation& operation = *operations_[number];
  operation.verb = verb;
  operation.file_offset_bytes = file_offset_bytes;
  operation.length_bytes = length_of(pieces_);
  operation.done_bytes = 0;
  operation.is_punted = verb != FileVerb::kSync && operation.length_bytes > options_.inline_bytes_max;
  operation.pieces.swap(pieces_);
  pieces_.clear();
  operation.rest_at = 0;
  if (is_aligned(operation.pieces, options_.alignment)) {
    operation.rest = operation.pieces;
  } else {
    operation.buffer = aligned_bytes(options_.alignment, operation.length_bytes);
    if (operation.buffer == nullptr) {
      ended_.push_back({number, -ENOMEM});
      return number;
    }
    if (verb == FileVerb::kWrite) {
      copy(Copy::kOut, operation.pieces, operation.buffer.get(), operation.length_bytes);
    }
    operation.rest.assign(1, {operation.buffer.get(), static_cast<std::size_t>(operation.length_bytes)});
  }
  waiting_.push_back(number);
  return number;
}

// Moves what waits into the ring, as long as there is room for it and for its completion.
void FileRing::prepare() {
  while (!waiting_.empty() && in_kernel_count_ + prepared_.size() < ring_->completion_count_max()) {
    io_uring_sqe* const entry = ring_->prepare();
    if (entry == nullptr) return;
    const std::uint32_t number = waiting_.front();
    waiting_.pop_front();
    prepared_.push_back(number);
    const Operation& operation = *operations_[number];
    entry->user_data = number;
    entry->fd = file_;
    if (operation.is_punted) entry->flags = IOSQE_ASYNC;
    if (operation.verb == FileVerb::kSync) {
      entry->opcode = IORING_OP_FSYNC;
      entry->fsync_flags = IORING_FSYNC_DATASYNC;
      continue;
    }
    const bool reads = operation.verb == FileVerb::kRead;
    const std::size_t count = std::min<std::size_t>(operation.rest.size() - operation.rest_at, IOV_MAX);
    const iovec* const rest = operation.rest.data() + operation.rest_at;
    entry->off = static_cast<std::uint64_t>(operation.file_offset_bytes) + operation.done_bytes;
    if (count == 1) {
      entry->opcode = reads ? IORING_OP_READ : IORING_OP_WRITE;
      entry->addr = reinterpret_cast<std::uintptr_t>(rest->iov_base);
      // The kernel moves at most INT_MAX rounded down to a page; the rest comes afterwards.
      entry->len = static_cast<std::uint32_t>(std::min<std::size_t>(rest->iov_len, std::size_t{1} << 30));
    } else {
      entry->opcode = reads ? IORING_OP_READV : IORING_OP_WRITEV;
      entry->addr = reinterpret_cast<std::uintptr_t>(rest);
      entry->len = static_cast<std::uint32_t>(count);
    }
  }
}

// Submits what waits, as long as the kernel takes any.
void FileRing::submit_waiting() {
  int error = broken_;
  if (error == 0) prepare();
  while (error == 0 && !prepared_.empty()) {
    const Result taken = ring_->submit();
    error = taken.error;
    if (error != 0 || taken.value == 0) break;
    for (int count = taken.value; count > 0; --count) prepared_.pop_front();
    in_kernel_count_ += static_cast<unsigned>(taken.value);
  }
  if (error == 0 || error == EAGAIN || error == EBUSY) return;
  broken_ = error;
  // What lies in the ring is never submitted any more, so nobody will work with its memory.
  for (const std::uint32_t number : prepared_) ended_.push_back({number, -broken_});
  for (const std::uint32_t number : waiting_) ended_.push_back({number, -broken_});
  prepared_.clear();
  waiting_.clear();
}

// Has an operation end, or go on, after the kernel did a part of it with `result`.
void FileRing::continue_with(Operation& operation, std::int32_t result) {
  const auto number = static_cast<std::uint32_t>(ring_->front()->user_data);
  if (result == -EAGAIN || result == -EINTR) {
    // A thread of the kernel can wait for what this one could not.
    operation.is_punted = true;
    waiting_.push_back(number);
    return;
  }
  if (result > 0) operation.advance(static_cast<std::uint64_t>(result));
  if (result > 0 && operation.done_bytes < operation.length_bytes) {
    waiting_.push_back(number);
    return;
  }
  if (result >= 0 && operation.verb == FileVerb::kRead && operation.buffer != nullptr) {
    copy(Copy::kIn, operation.pieces, operation.buffer.get(), operation.done_bytes);
  }
  ended_.push_back({number, result < 0 ? result : static_cast<std::int64_t>(operation.done_bytes)});
}

std::size_t FileRing::turn(std::span<FileRingEnd> ends) {
  if (ended_.size() < ends.size() || !waiting_.empty()) enter_kernel();
  std::size_t count = 0;
  while (count < ends.size() && !ended_.empty()) {
    const FileRingEnd end = ended_.front();
    ended_.pop_front();
    Operation& operation = *operations_[end.number];
    operation.buffer.reset();
    operation.pieces.clear();
    operation.rest.clear();
    free_.push_back(end.number);
    ends[count++] = end;
  }
  return count;
}

// Submits what waits and gathers what has ended. Afterwards whatever ends wakes.
void FileRing::enter_kernel() {
  for (;;) {
    ring_->suppress_wake();
    const unsigned before_count = in_kernel_count_;
    submit_waiting();
    // A submission has gathered as well.
    if (in_kernel_count_ == before_count) ring_->gather();
    // What was gathered left room for what waits: for the rest of a transfer, or for the next one.
    if (collect() && !waiting_.empty()) continue;
    if (!collect_until_asleep() || waiting_.empty()) return;
  }
}

// Asks to be woken. True when something was gathered meanwhile.
bool FileRing::collect_until_asleep() {
  bool any = false;
  // Each round but the last one takes something out of the kernel, and nothing is put in.
  while (in_kernel_count_ > 0) {
    const bool wakes = ring_->expect_wake();
    const bool more = collect();
    if (wakes && !more) break;
    any = any || more;
  }
  return any;
}

// Has what the kernel is through with end, or go on. False when there was nothing.
bool FileRing::collect() {
  bool any = false;
  for (; const io_uring_cqe* const completion = ring_->front(); any = true) {
    continue_with(*operations_[static_cast<std::uint32_t>(completion->user_data)], completion->res);
    ring_->pop();
    --in_kernel_count_;
  }
  return any;
}

}  // namespace hushring::os
