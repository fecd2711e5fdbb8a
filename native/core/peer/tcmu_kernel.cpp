#include "core/peer/tcmu_kernel.h"

#include <algorithm>
#include <bit>

namespace hushring {

namespace {

constexpr std::uint32_t kBitsPerWord = 64;
constexpr std::uint64_t kAllTaken = ~std::uint64_t{0};

}  // namespace

std::optional<TcmuKernelComplaint> complaint_about(const TcmuKernelOptions& options) noexcept {
  if (options.ring_bytes < kTcmuPageBytes || options.ring_bytes > kTcmuRingBytesMax ||
      options.ring_bytes % kTcmuPageBytes != 0) {
    return TcmuKernelComplaint{"ringBytes", "a multiple of 4096 from 4096 to 8388608"};
  }
  if (options.block_bytes == 0 || options.block_bytes % kTcmuPageBytes != 0) {
    return TcmuKernelComplaint{"blockBytes", "a multiple of 4096"};
  }
  if (options.data_area_bytes == 0 || options.data_area_bytes > kTcmuDataAreaBytesMax ||
      options.data_area_bytes % options.block_bytes != 0) {
    return TcmuKernelComplaint{"dataAreaBytes", "a multiple of `blockBytes`, at most 16 GiB"};
  }
  if (options.queue_full_timeout_ms < -1) return TcmuKernelComplaint{"queueFullTimeoutMs", "-1 or more"};
  return std::nullopt;
}

SenseBytes fixed_sense(std::uint8_t key, std::uint8_t asc, std::uint8_t ascq) noexcept {
  SenseBytes sense{};
  sense[0] = std::byte{0x70};
  sense[2] = std::byte{key};
  sense[7] = std::byte{10};  // bytes that follow
  sense[12] = std::byte{asc};
  sense[13] = std::byte{ascq};
  return sense;
}

const char* text_of(ServerFault fault) noexcept {
  switch (fault) {
    case ServerFault::kNone:
      break;
    case ServerFault::kCommandId:
      return "the server completed a command that is not in flight";
    case ServerFault::kKeptTwice:
      return "the server completed a command twice, after it had kept its buffer";
    case ServerFault::kTailRange:
      return "the server stored a tail outside of what is on the ring";
    case ServerFault::kTailBoundary:
      return "the server stored a tail inside an entry";
    case ServerFault::kEntryLength:
      return "length and opcode are not those of an entry on the ring";
    case ServerFault::kOrder:
      return "the server completed commands out of order";
    case ServerFault::kUnknownOpcode:
      return "the server passed an entry it cannot know, and did not say so";
  }
  return "the server did nothing wrong";
}

LowestFirst::LowestFirst(std::uint32_t count)
    : count_(count), free_count_(count), taken_((count + kBitsPerWord - 1) / kBitsPerWord) {
  if (count % kBitsPerWord != 0) taken_.back() = kAllTaken << (count % kBitsPerWord);
}

std::uint32_t LowestFirst::take() noexcept {
  if (free_count_ == 0) return count_;
  while (taken_[first_free_word_] == kAllTaken) ++first_free_word_;
  std::uint64_t& word = taken_[first_free_word_];
  const auto bit = static_cast<std::uint32_t>(std::countr_one(word));
  word |= std::uint64_t{1} << bit;
  --free_count_;
  return static_cast<std::uint32_t>(first_free_word_) * kBitsPerWord + bit;
}

void LowestFirst::give_back(std::uint32_t number) noexcept {
  taken_[number / kBitsPerWord] &= ~(std::uint64_t{1} << (number % kBitsPerWord));
  first_free_word_ = std::min<std::size_t>(first_free_word_, number / kBitsPerWord);
  ++free_count_;
}

std::uint32_t target_cdb_bytes(std::span<const std::byte> cdb) noexcept {
  constexpr std::uint32_t kReservedGroupBytes = 12;
  constexpr std::uint32_t kVendorGroupBytes = 10;
  const auto byte_at = [&](std::size_t index) {
    return index < cdb.size() ? std::to_integer<std::uint8_t>(cdb[index]) : std::uint8_t{0};
  };
  const std::uint32_t bytes = cdb_bytes_of(byte_at(0), byte_at(7));
  if (bytes != 0) return bytes;
  return byte_at(0) < 0x80 ? kReservedGroupBytes : kVendorGroupBytes;
}

}  // namespace hushring
