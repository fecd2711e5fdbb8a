// Latencies in a unit of whoever records them, counted in buckets whose width grows with the value.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace hushring::os {

// 64 buckets for each power of two: every value of 64 bits has one, at most 1/64 of the value wide, and values below
// 128 have one of their own. Recording is a shift and an add; nothing is allocated.
class LatencyHistogram {
 public:
  void record(std::uint64_t value) noexcept {
    ++counts_[bucket_of(value)];
    ++total_;
  }

  // The smallest bucket's end that a share `quantile` of all values does not exceed; 0 without values. `quantile` is
  // above 0 and at most 1.
  [[nodiscard]] std::uint64_t value_at(double quantile) const noexcept {
    const auto wanted = static_cast<std::uint64_t>(std::ceil(quantile * static_cast<double>(total_)));
    std::uint64_t seen = 0;
    for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
      seen += counts_[bucket];
      if (seen >= wanted && seen > 0) return last_value_of(bucket);
    }
    return 0;
  }

 private:
  static constexpr std::uint32_t kPrecisionBits = 6;
  static constexpr std::size_t kSubBuckets = std::size_t{1} << kPrecisionBits;

  // A value keeps its leading 7 bits; the number of bits dropped tells the power of two.
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
  std::uint64_t total_ = 0;
};

}  // namespace hushring::os
