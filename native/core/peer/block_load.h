// A load for a block device, without ring, protocol and clock: which request comes next, which data it writes, and
// whether the data of an answer is right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hushring {

inline constexpr std::uint32_t kSectorBytes = 512;

struct BlockLoadOptions {
  std::uint32_t block_bytes;     // bytes a request, a multiple of 512
  std::uint64_t capacity_bytes;  // of the disk, at least a block
  std::uint32_t write_percent;   // share of writes, 0 to 100; the rest are reads
  bool verify;                   // check every byte read
  std::uint64_t seed;            // of the places and the data
  std::uint32_t queue_depth;     // requests in flight, at most
  bool sequential = false;       // one block after the other, round and round; without `verify` only
};

struct BlockRequest {
  bool is_write;         // otherwise it reads
  std::uint64_t sector;  // where it begins, in units of 512 bytes
  std::uint32_t row;     // for the load itself
};

struct BlockCheck {
  std::uint64_t verified_bytes = 0;
  std::uint64_t mismatched_bytes = 0;
};

// With `verify` the load keeps to a set of blocks spread evenly over the disk: as many as the disk has, and at most
// the larger of twice the queue depth and 1,024 (fewer if they exceed 64 MiB). Its first requests write each of them
// once. Never are two requests for one block in flight, because then no answer would be wrong.
class BlockLoad {
 public:
  explicit BlockLoad(const BlockLoadOptions& options);

  // Blocks of the set, which are as many as the first requests that fill it. 0 without `verify`.
  [[nodiscard]] std::uint32_t checked_count() const noexcept { return static_cast<std::uint32_t>(rows_.size()); }
  // Requests that can be in flight at once: the queue depth, or fewer on a disk of fewer blocks.
  [[nodiscard]] std::uint32_t in_flight_max() const noexcept;

  // The next request. With `verify`, `data` (block_bytes, aligned to 8) becomes what it writes; if it reads, zeros,
  // lest an answer that was never written passes for the one before it.
  [[nodiscard]] BlockRequest begin(std::byte* data) noexcept;
  // Every request ends once. `data` is what was read. A write that failed makes the block's content unknown, and the
  // next request for it a write.
  BlockCheck end(const BlockRequest& request, bool succeeded, const std::byte* data) noexcept;

 private:
  struct Row {
    std::uint32_t version = 0;  // of the last write begun
    bool known = false;         // that write succeeded
    bool in_flight = false;
  };

  std::uint64_t random() noexcept;
  [[nodiscard]] std::uint32_t pick_row() noexcept;
  [[nodiscard]] BlockRequest request_for(std::uint64_t block, bool is_write, std::uint32_t row) const noexcept;
  [[nodiscard]] std::uint64_t pattern_of(std::uint32_t row) const noexcept;

  const BlockLoadOptions options_;
  const std::uint64_t block_count_;
  std::vector<Row> rows_;
  std::uint32_t filled_count_ = 0;
  std::uint64_t next_block_ = 0;
  std::uint64_t random_state_;
};

}  // namespace hushring
