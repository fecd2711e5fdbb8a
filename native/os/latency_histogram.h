// Latencies in a unit of whoever records them, counted in buckets whose width grows with the value, as HdrHistogram does
// with two significant digits. What is made of the counts, percentiles above all, is the library's (src/transport/latencies.ts).
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hushring::os {

// How often a latency was met. `value` is the largest one that counts as the same.
struct LatencyCount {
  std::uint64_t value;
  std::uint64_t count;
};

// 128 buckets for each power of two: every value of 64 bits has one, at most 1/128 of the value wide, and values below
// 256 have one of their own. Recording is a shift and an add; nothing is allocated.
class LatencyHistogram {
 public:
  void record(std::uint64_t value) noexcept { ++counts_[bucket_of(value)]; }

  // The buckets that have something in them, smallest value first.
  [[nodiscard]] std::vector<LatencyCount> counts() const {
    std::vector<LatencyCount> met;
    for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
      if (counts_[bucket] > 0) met.push_back({last_value_of(bucket), counts_[bucket]});
    }
    return met;
  }

 private:
  static constexpr std::uint32_t kPrecisionBits = 7;
  static constexpr std::size_t kSubBuckets = std::size_t{1} << kPrecisionBits;

  // A value keeps its leading 8 bits; the number of bits dropped tells the power of two.
  static constexpr std::size_t bucket_of(std::uint64_t value) noexcept {
    const auto bits = static_cast<std::uint32_t>(std::bit_width(value));
    const std::uint32_t dropped = bits > kPrecisionBits + 1 ? bits - (kPrecisionBits + 1) : 0;
    return dropped * kSubBuckets + static_cast<std::size_t>(value >> dropped);
  }
  static constexpr std::uint64_t last_value_of(std::size_t bucket) noexcept {
    const std::size_t dropped = bucket < 2 * kSubBuckets ? 0 : bucket / kSubBuckets - 1;
    const std::uint64_t leading = bucket - dropped * kSubBuckets;
    return ((leading + 1) << dropped) - 1;  // the last bucket's end is 2^64 - 1, by wrapping
  }
  static constexpr std::size_t kBuckets = (64 - kPrecisionBits + 1) * kSubBuckets;

  std::array<std::uint64_t, kBuckets> counts_{};
};

}  // namespace hushring::os
