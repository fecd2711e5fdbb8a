#include "core/peer/block_load.h"

#include <algorithm>
#include <cstring>

namespace hushring {

namespace {

constexpr std::uint64_t kCheckedBlocks = 1024;
constexpr std::uint64_t kCheckedBytes = std::uint64_t{64} << 20;

// The odd number nearest to 2^64 divided by the golden ratio: its multiples spread evenly over 64 bits.
constexpr std::uint64_t kGoldenStep = 0x9e37'79b9'7f4a'7c15;

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection in which every input bit changes half the
// output bits.
constexpr std::uint64_t mix(std::uint64_t value) noexcept {
  value = (value ^ (value >> 30)) * 0xbf58'476d'1ce4'e5b9;
  value = (value ^ (value >> 27)) * 0x94d0'49bb'1331'11eb;
  return value ^ (value >> 31);
}

std::size_t checked_blocks(const BlockLoadOptions& options) noexcept {
  if (!options.verify) return 0;
  const std::uint64_t wanted = std::min(kCheckedBlocks, kCheckedBytes / options.block_bytes);
  return std::min(options.capacity_bytes / options.block_bytes,
                  std::max(wanted, 2 * std::uint64_t{options.queue_depth}));
}

// The data of a block: an arithmetic progression of words, so that each word tells its place and the loop is one
// addition a word.
void write_pattern(std::byte* data, std::size_t length_bytes, std::uint64_t pattern) noexcept {
  for (std::size_t offset = 0; offset < length_bytes; offset += sizeof(pattern), pattern += kGoldenStep) {
    std::memcpy(data + offset, &pattern, sizeof(pattern));
  }
}

std::uint64_t count_mismatched_bytes(const std::byte* data, std::size_t length_bytes, std::uint64_t pattern) noexcept {
  std::uint64_t mismatched = 0;
  for (std::size_t offset = 0; offset < length_bytes; offset += sizeof(pattern), pattern += kGoldenStep) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + offset, sizeof(word));
    for (std::uint64_t difference = word ^ pattern; difference != 0; difference >>= 8) {
      if ((difference & 0xff) != 0) ++mismatched;
    }
  }
  return mismatched;
}

}  // namespace

BlockLoad::BlockLoad(const BlockLoadOptions& options)
    : options_(options),
      block_count_(options.capacity_bytes / options.block_bytes),
      rows_(checked_blocks(options)),
      random_state_(mix(options.seed)) {}

std::uint32_t BlockLoad::in_flight_max() const noexcept {
  return options_.verify ? std::min(options_.queue_depth, checked_count()) : options_.queue_depth;
}

BlockRequest BlockLoad::begin(std::byte* data) noexcept {
  if (!options_.verify) {
    const std::uint64_t block = (options_.sequential ? next_block_++ : random()) % block_count_;
    return request_for(block, random() % 100 < options_.write_percent, 0);
  }
  const std::uint32_t index = filled_count_ < checked_count() ? filled_count_++ : pick_row();
  Row& row = rows_[index];
  row.in_flight = true;
  const bool is_write = !row.known || random() % 100 < options_.write_percent;
  if (is_write) {
    ++row.version;
    row.known = false;
    write_pattern(data, options_.block_bytes, pattern_of(index));
  } else {
    std::memset(data, 0, options_.block_bytes);
  }
  return request_for(index * (block_count_ / checked_count()), is_write, index);
}

BlockCheck BlockLoad::end(const BlockRequest& request, bool succeeded, const std::byte* data) noexcept {
  if (!options_.verify) return {};
  Row& row = rows_[request.row];
  row.in_flight = false;
  if (!succeeded) return {};
  if (request.is_write) {
    row.known = true;
    return {};
  }
  return {options_.block_bytes, count_mismatched_bytes(data, options_.block_bytes, pattern_of(request.row))};
}

std::uint64_t BlockLoad::random() noexcept {
  random_state_ += kGoldenStep;
  return mix(random_state_);
}

// A row at random that has no request in flight; there is one while fewer than in_flight_max() are.
std::uint32_t BlockLoad::pick_row() noexcept {
  auto index = static_cast<std::uint32_t>(random() % checked_count());
  while (rows_[index].in_flight) index = (index + 1) % checked_count();
  return index;
}

BlockRequest BlockLoad::request_for(std::uint64_t block, bool is_write, std::uint32_t row) const noexcept {
  return {is_write, block * (options_.block_bytes / kSectorBytes), row};
}

std::uint64_t BlockLoad::pattern_of(std::uint32_t row) const noexcept {
  return mix(mix(options_.seed) ^ (std::uint64_t{row} << 32 | rows_[row].version));
}

}  // namespace hushring
