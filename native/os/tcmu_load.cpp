#include "os/tcmu_load.h"

#include <array>
#include <limits>
#include <span>

namespace hushring::os {

namespace {

constexpr std::uint8_t kRead10 = 0x28;
constexpr std::uint8_t kWrite10 = 0x2a;
constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

// READ(10) or WRITE(10) (SBC-4, 5.13 and 5.40): the address in bytes 2 to 5, the number of blocks in bytes 7 and 8.
std::array<std::byte, 10> cdb_for(bool is_write, std::uint64_t address, std::uint32_t block_count) noexcept {
  std::array<std::byte, 10> cdb{};
  cdb[0] = std::byte{is_write ? kWrite10 : kRead10};
  for (std::size_t index = 0; index < 4; ++index) {
    cdb[2 + index] = static_cast<std::byte>(address >> (24 - 8 * index));
  }
  cdb[7] = static_cast<std::byte>(block_count >> 8);
  cdb[8] = static_cast<std::byte>(block_count);
  return cdb;
}

}  // namespace

std::optional<TcmuKernelComplaint> complaint_about(const TcmuLoadOptions& options) noexcept {
  constexpr std::uint64_t kAddressCount = std::uint64_t{1} << 32;
  constexpr std::uint32_t kBlockCountMax = 65535;
  const BlockLoadOptions& load = options.load;
  const std::uint32_t unit = options.logical_block_bytes;
  if (unit != 512 && unit != 4096) return TcmuKernelComplaint{"logicalBlockBytes", "512 or 4096"};
  if (load.block_bytes == 0 || load.block_bytes % unit != 0) {
    return TcmuKernelComplaint{"blockBytes", "a multiple of `logicalBlockBytes`"};
  }
  if (load.block_bytes / unit > kBlockCountMax) {
    return TcmuKernelComplaint{"blockBytes", "at most 65535 logical blocks, which is what READ(10) can tell"};
  }
  if (load.capacity_bytes < load.block_bytes || load.capacity_bytes / unit > kAddressCount) {
    return TcmuKernelComplaint{"capacityBytes", "from one request to the 2^32 logical blocks that READ(10) can tell"};
  }
  return std::nullopt;
}

TcmuLoad::TcmuLoad(const TcmuLoadOptions& options)
    : options_(options),
      blocks_(options.load),
      in_flight_(blocks_.in_flight_max()),
      data_(in_flight_.size() * options.load.block_bytes) {
  for (std::uint32_t slot = blocks_.in_flight_max(); slot > 0; --slot) free_slots_.push_back(slot - 1);
}

void TcmuLoad::start(Kernel& kernel) {
  begin_phase(blocks_.checked_count() > 0 ? Phase::kFilling : Phase::kRunning, kernel);
  send_all(kernel);
}

void TcmuLoad::reap(Kernel& kernel) {
  if (is_done()) return;
  now_ = Clock::now();
  // Of a kernel that refuses everything there would be no end of results.
  if (kernel.is_broken() || kernel.is_blocked()) stop();
  while (kernel.reap([&](const InitiatorResult& result) { take(result); }) > 0) {
    const auto elapsed = static_cast<std::uint64_t>(std::chrono::nanoseconds(now_ - started_).count());
    if (phase_ == Phase::kRunning) {
      result_.elapsed_nanos = elapsed;
      result_.doorbells = kernel.doorbell_count() - doorbells_before_;
      result_.events = kernel.event_count() - events_before_;
      if (options_.duration_ms > 0 && elapsed >= options_.duration_ms * 1'000'000) unsent_count_ = 0;
    }
    const bool is_phase_over = unsent_count_ == 0 && free_slots_.size() == in_flight_.size();
    if (is_phase_over) begin_phase(phase_ == Phase::kFilling ? Phase::kRunning : Phase::kDone, kernel);
    send_all(kernel);
  }
}

void TcmuLoad::begin_phase(Phase phase, const Kernel& kernel) noexcept {
  phase_ = is_stopped_ ? Phase::kDone : phase;
  unsent_count_ = 0;
  if (phase_ == Phase::kFilling) unsent_count_ = blocks_.checked_count();
  if (phase_ == Phase::kRunning) {
    unsent_count_ = options_.request_count_max == 0 ? kNever : options_.request_count_max;
  }
  started_ = now_ = Clock::now();
  doorbells_before_ = kernel.doorbell_count();
  events_before_ = kernel.event_count();
}

// One signal for all of them: an initiator's kernel plugs while it submits a batch.
void TcmuLoad::send_all(Kernel& kernel) {
  if (unsent_count_ == 0 || free_slots_.empty()) return;
  kernel.plug();
  for (; unsent_count_ > 0 && !free_slots_.empty(); --unsent_count_) {
    const std::uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    send(kernel, slot);
  }
  kernel.unplug();
}

void TcmuLoad::send(Kernel& kernel, std::uint32_t slot) {
  const std::uint32_t length_bytes = options_.load.block_bytes;
  const BlockRequest request = blocks_.begin(data_of(slot));
  in_flight_[slot] = {request, Clock::now()};
  const auto cdb = cdb_for(request.is_write, request.sector * kSectorBytes / options_.logical_block_bytes,
                           length_bytes / options_.logical_block_bytes);
  const std::span<std::byte> data(data_of(slot), length_bytes);
  InitiatorCommand command{.tag = slot, .cdb = cdb, .data_out = {}, .data_in = {}};
  if (request.is_write) command.data_out = data;
  else command.data_in = data;
  kernel.submit(command);
}

void TcmuLoad::take(const InitiatorResult& result) {
  const auto slot = static_cast<std::uint32_t>(result.tag);
  const auto& [request, sent] = in_flight_[slot];
  const std::uint32_t wanted_bytes = request.is_write ? 0 : options_.load.block_bytes;
  const bool succeeded = result.status == kStatusGood && result.data_in_bytes == wanted_bytes;
  const BlockCheck check = blocks_.end(request, succeeded, data_of(slot));
  if (!succeeded) ++result_.failed_requests;
  result_.mismatched_bytes += check.mismatched_bytes;
  if (phase_ == Phase::kRunning) {
    ++result_.requests;
    result_.verified_bytes += check.verified_bytes;
    latency_.record(static_cast<std::uint64_t>(std::chrono::nanoseconds(now_ - sent).count()));
  }
  free_slots_.push_back(slot);
}

}  // namespace hushring::os
