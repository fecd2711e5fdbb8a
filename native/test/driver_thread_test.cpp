// A driver on a thread of its own: what it asks and checks, how it measures, and whole runs over real eventfds
// against a disk that can be told to do wrong.
#include <doctest/doctest.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/ordering.h"
#include "core/peer/block_load.h"
#include "core/peer/split_driver.h"
#include "core/peer/virtio_blk.h"
#include "core/split.h"
#include "os/driver_thread.h"
#include "os/eventfd.h"
#include "os/latency_histogram.h"
#include "os/memfd.h"
#include "os/unique_fd.h"

namespace hushring {
namespace {

// ---- The load without a ring -----------------------------------------------------------------------------------

BlockLoadOptions checked_load(std::uint32_t block_bytes, std::uint64_t capacity_bytes, std::uint32_t write_percent) {
  return {.block_bytes = block_bytes,
          .capacity_bytes = capacity_bytes,
          .write_percent = write_percent,
          .verify = true,
          .seed = 3,
          .queue_depth = 8};
}

TEST_CASE("block load: fills its set first, then never has two requests for one block in flight") {
  BlockLoad load(checked_load(512, 3000 * 512, 50));
  REQUIRE(load.checked_count() == 1024);
  std::vector<std::uint64_t> data(64);
  auto* const bytes = reinterpret_cast<std::byte*>(data.data());
  std::vector<std::uint64_t> sectors;
  for (std::uint32_t index = 0; index < load.checked_count(); ++index) {
    const BlockRequest request = load.begin(bytes);
    CHECK(request.is_write);
    sectors.push_back(request.sector);
    load.end(request, true, bytes);
  }
  CHECK(std::is_sorted(sectors.begin(), sectors.end()));
  CHECK(std::adjacent_find(sectors.begin(), sectors.end()) == sectors.end());
  CHECK(sectors.back() == 1023 * 2);  // spread over the disk
  std::vector<BlockRequest> in_flight;
  std::uint32_t shared = 0;
  for (std::uint32_t round = 0; round < 10'000; ++round) {
    if (in_flight.size() == load.in_flight_max()) {
      load.end(in_flight.front(), false, bytes);
      in_flight.erase(in_flight.begin());
    }
    const BlockRequest request = load.begin(bytes);
    for (const BlockRequest& other : in_flight) shared += other.sector == request.sector ? 1 : 0;
    in_flight.push_back(request);
  }
  CHECK(shared == 0);
}

TEST_CASE("block load: counts every wrong byte, and each version and place has data of its own") {
  BlockLoad load(checked_load(1024, 1024, 0));
  REQUIRE(load.checked_count() == 1);
  std::vector<std::uint64_t> disk(128);
  std::vector<std::uint64_t> data(128);
  auto* const disk_bytes = reinterpret_cast<std::byte*>(disk.data());
  auto* const bytes = reinterpret_cast<std::byte*>(data.data());
  const BlockRequest write = load.begin(disk_bytes);
  CHECK(write.is_write);
  load.end(write, true, disk_bytes);
  const auto read = [&](const std::function<void()>& spoil) {
    const BlockRequest request = load.begin(bytes);
    REQUIRE_FALSE(request.is_write);
    CHECK(std::all_of(data.begin(), data.end(), [](std::uint64_t word) { return word == 0; }));
    data = disk;
    spoil();
    const BlockCheck check = load.end(request, true, bytes);
    CHECK(check.verified_bytes == 1024);
    return check.mismatched_bytes;
  };
  CHECK(read([] {}) == 0);
  CHECK(read([&] { bytes[0] ^= std::byte{1}; }) == 1);
  CHECK(read([&] { bytes[7] ^= std::byte{0x80}, bytes[1023] ^= std::byte{1}; }) == 2);
  CHECK(read([&] { std::swap(data[0], data[1]); }) >= 8);
  CHECK(read([&] { data.assign(128, 0); }) >= 1000);  // never written
}

TEST_CASE("block load: after a failed write the next request for the block is a write, with other data") {
  BlockLoad load(checked_load(512, 512, 50));
  CHECK(load.in_flight_max() == 1);
  std::vector<std::uint64_t> data(64);
  auto* const bytes = reinterpret_cast<std::byte*>(data.data());
  bool failed_before = true;  // what was never written is unknown as well
  std::uint32_t reads = 0;
  for (std::uint32_t round = 0; round < 200; ++round) {
    const std::vector<std::uint64_t> before = data;
    const BlockRequest request = load.begin(bytes);
    const bool is_write = request.is_write;
    if (failed_before) CHECK(is_write);
    if (is_write) CHECK(data != before);
    if (!is_write) ++reads;
    failed_before = is_write && round % 3 != 0;
    load.end(request, !failed_before, bytes);
  }
  CHECK(reads > 0);
}

TEST_CASE("block load: without verify it reaches the whole disk and leaves the data alone") {
  BlockLoadOptions options = checked_load(4096, 16 * 4096, 30);
  options.verify = false;
  BlockLoad load(options);
  CHECK(load.checked_count() == 0);
  std::array<std::uint32_t, 16> met{};
  std::uint32_t writes = 0;
  for (std::uint32_t round = 0; round < 10'000; ++round) {
    const BlockRequest request = load.begin(nullptr);
    REQUIRE(request.sector % 8 == 0);
    ++met.at(request.sector / 8);
    if (request.is_write) ++writes;
    load.end(request, true, nullptr);
  }
  CHECK(*std::min_element(met.begin(), met.end()) > 0);
  CHECK(writes > 2500);
  CHECK(writes < 3500);
}

TEST_CASE("load: in sequence every block comes once before any comes again") {
  BlockLoad load({.block_bytes = 4096,
                  .capacity_bytes = 10 * 4096 + 512,
                  .write_percent = 0,
                  .verify = false,
                  .seed = 3,
                  .queue_depth = 4,
                  .sequential = true});
  for (std::uint64_t round = 0; round < 25; ++round) CHECK(load.begin(nullptr).sector == round % 10 * 8);
}

TEST_CASE("latency histogram: every value is counted once, as one at most 1/128 above it") {
  os::LatencyHistogram histogram;
  CHECK(histogram.counts().empty());
  std::mt19937_64 random(5);
  std::vector<std::uint64_t> values;
  for (int index = 0; index < 10'000; ++index) values.push_back(random() >> (random() % 64));
  values.push_back(0);
  values.push_back(~std::uint64_t{0});
  for (const std::uint64_t value : values) histogram.record(value);
  std::sort(values.begin(), values.end());
  auto value = values.begin();
  for (const os::LatencyCount& met : histogram.counts()) {
    CAPTURE(met.value);
    REQUIRE(met.count > 0);
    for (std::uint64_t left = met.count; left > 0; --left, ++value) {
      REQUIRE(value != values.end());
      REQUIRE(met.value >= *value);
      REQUIRE(met.value - *value <= *value / 128);
    }
  }
  CHECK(value == values.end());
}

// ---- The thread, with real eventfds ----------------------------------------------------------------------------

constexpr Suppression kEveryWay[] = {Suppression::kNone, Suppression::kFlags, Suppression::kEventIdx};

// What a disk does wrong, by the number of the request, decision or kick it does it to, counted from 1; 0: never.
struct Faults {
  std::uint32_t flips_byte_of_read = 0;
  std::uint32_t fails_request = 0;
  std::uint32_t shortens_read = 0;
  std::uint32_t loses_signal = 0;
  std::uint32_t loses_kick = 0;
  std::uint32_t jumps_index = 0;
};

// A disk of its own thread behind a driver thread's ring.
class Disk {
 public:
  Disk(const os::DriverOptions& options, const SplitLayout& layout, const Faults& faults)
      : faults_(faults),
        kick_fd_(options.kick_fd),
        call_fd_(options.call_fd),
        memory_(map(options)),
        regions_{{0, 0, memory_->size_bytes, memory_->host, 0}},
        split_options_{options.queue_size, 64, 8, {.header_bytes = sizeof(BlockHeader), .status_byte = true}, false},
        requests_(split_options_.request_rows()),
        headers_(split_options_.request_rows()),
        segments_(split_options_.segment_rows()),
        completions_(split_options_.completion_rows()),
        device_(split_options_,
                {requests_, std::as_writable_bytes(std::span(headers_)), segments_, completions_, &counters_}),
        store_(options.load.capacity_bytes),
        used_address_(layout.used_address) {
    REQUIRE(device_.start({options.queue_size, AddressSpace::kUser, layout.descriptor_address, layout.avail_address,
                           layout.used_address, 0, options.suppression == Suppression::kEventIdx, options.indirect},
                          regions_) == Fault::kNone);
    thread_ = std::thread([this] { serve(); });
  }
  ~Disk() {
    os::eventfd_signal(stop_fd_.get());
    thread_.join();
  }
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

 private:
  static std::shared_ptr<os::MappedRegion> map(const os::DriverOptions& options) {
    os::MapFailure failure;
    auto memory = os::MappedRegion::map({options.memory_fd, 0, 0, options.memory_bytes, 0}, failure);
    REQUIRE(memory != nullptr);
    return memory;
  }

  void serve() {
    for (;;) {
      const std::int32_t taken = device_.take(64);
      for (std::int32_t row = 0; row < taken; ++row) answer(static_cast<std::size_t>(row));
      if (faults_.jumps_index != 0 && request_count_ >= faults_.jumps_index) return jump_index();
      const std::int32_t bits = device_.complete(static_cast<std::uint32_t>(std::max(taken, 0)), true);
      if (bits < 0) return;
      if ((bits & kSignalled) != 0 && ++signal_count_ != faults_.loses_signal) os::eventfd_signal(call_fd_);
      if ((bits & kArmed) != 0 && !sleep()) return;
    }
  }

  // False when it is time to end.
  bool sleep() {
    do {
      pollfd polled[] = {{kick_fd_, POLLIN, 0}, {stop_fd_.get(), POLLIN, 0}};
      if (poll(polled, 2, -1) < 0 || polled[1].revents != 0) return false;
      os::eventfd_drain(kick_fd_);
    } while (++kick_count_ == faults_.loses_kick);
    return true;
  }

  void answer(std::size_t row) {
    ++request_count_;
    const RequestRow& request = requests_[row];
    const BlockHeader& header = headers_[row];
    const bool is_read = header.type == kBlockIn;
    std::byte* block = store_.data() + header.sector * kSectorBytes;
    std::uint32_t data_bytes = 0;
    const std::uint32_t segment_count = is_read ? request.writable_count : request.readable_count;
    for (const Segment& segment : std::span(segments_).subspan(request.first_segment, segment_count)) {
      std::byte* const host = host_of(regions_, segment.window, segment.offset_bytes);
      if (is_read) std::memcpy(host, block, segment.length_bytes);
      else std::memcpy(block, host, segment.length_bytes);
      block += segment.length_bytes;
      data_bytes += segment.length_bytes;
      if (is_read && request_count_ == faults_.flips_byte_of_read) host[3] ^= std::byte{0x10};
    }
    const bool fails = request_count_ == faults_.fails_request;
    const std::uint32_t missing = request_count_ == faults_.shortens_read ? 1 : 0;
    completions_[row] = {request.head, is_read ? data_bytes - missing : 0, fails ? 1U : 0U};
  }

  // The device's half does not lie, so the lie is written into the ring in its place.
  void jump_index() const {
    auto* const used = reinterpret_cast<Used*>(memory_->host + used_address_);
    HardwareOrdering::store_relaxed(&used->idx, static_cast<std::uint16_t>(device_.used_index() + 1000));
    os::eventfd_signal(call_fd_);
  }

  const Faults faults_;
  const int kick_fd_;
  const int call_fd_;
  const std::shared_ptr<os::MappedRegion> memory_;
  const Region regions_[1];
  const SplitOptions split_options_;
  std::vector<RequestRow> requests_;
  std::vector<BlockHeader> headers_;
  std::vector<Segment> segments_;
  std::vector<CompletionRow> completions_;
  QueueCounters counters_{};
  SplitDevice<HardwareOrdering> device_;
  std::vector<std::byte> store_;
  const std::uint64_t used_address_;
  const os::UniqueFd stop_fd_{os::eventfd_create().value};
  std::uint32_t request_count_ = 0;
  std::uint32_t signal_count_ = 0;
  std::uint32_t kick_count_ = 0;
  std::thread thread_;
};

// What a driver needs, its disk, and what came of a run.
class Run {
 public:
  explicit Run(Suppression way) {
    options = {.memory_fd = memory_fd_.get(),
               .memory_bytes = kMemoryBytes,
               .kick_fd = kick_fd_.get(),
               .call_fd = call_fd_.get(),
               .queue_size = 64,
               .suppression = way,
               .indirect = true,
               .segment_count = 1,
               .request_count_max = 2000,
               .duration_ms = 0,
               .stall_ms = 20'000,
               .load = {.block_bytes = 512,
                        .capacity_bytes = 512 * 512,
                        .write_percent = 30,
                        .verify = true,
                        .seed = 11,
                        .queue_depth = 16}};
  }

  // Runs the load to its end against a disk with `faults`.
  const os::DriverCounters& against(const Faults& faults) {
    make_driver();
    const Disk disk(options, driver->ring(), faults);
    std::future<void> done = start();
    // A bound for machines however slow: a driver that hangs is a failure, not a hang.
    CHECK(done.wait_for(std::chrono::minutes(5)) == std::future_status::ready);
    driver->close();
    return driver->counters();
  }

  void make_driver() {
    REQUIRE_FALSE(os::complaint_about(options).has_value());
    os::MapFailure failure;
    driver = os::DriverThread::make(options, failure);
    REQUIRE(driver != nullptr);
  }
  std::future<void> start() {
    const auto promise = std::make_shared<std::promise<void>>();
    std::future<void> done = promise->get_future();
    REQUIRE(driver->run([promise] { promise->set_value(); }) == 0);
    return done;
  }

  os::DriverOptions options{};
  std::unique_ptr<os::DriverThread> driver;

 private:
  static constexpr std::uint64_t kMemoryBytes = 1 << 20;

  const os::UniqueFd memory_fd_{os::memfd_create("driver-test", kMemoryBytes, true).value};
  const os::UniqueFd kick_fd_{os::eventfd_create().value};
  const os::UniqueFd call_fd_{os::eventfd_create().value};
};

TEST_CASE("driver thread: no wake-up is lost and every byte is right, in each way of suppression and at each depth") {
  struct Load {
    std::uint32_t depth, requests;
  };
  for (const Suppression way : kEveryWay) {
    for (const Load& load : {Load{1, 10'000}, Load{2, 10'000}, Load{64, 100'000}}) {
      CAPTURE(static_cast<int>(way));
      CAPTURE(load.depth);
      Run run(way);
      run.options.request_count_max = load.requests;
      run.options.load.queue_depth = load.depth;
      const os::DriverCounters counters = run.against({});
      CHECK(counters.requests == load.requests);
      CHECK(counters.lost_signals == 0);
      CHECK(counters.stalls == 0);
      CHECK(counters.failed_requests == 0);
      CHECK(counters.mismatched_bytes == 0);
      CHECK(counters.device_fault == 0);
      CHECK(counters.verified_bytes > load.requests / 2 * 512);
      CHECK(counters.elapsed_nanos > 0);
      CHECK(counters.signals_received <= load.requests);
      if (way == Suppression::kNone) CHECK(counters.kicks_suppressed == 0);
      std::uint64_t latency_count = 0;
      for (const os::LatencyCount& latency : run.driver->latencies()) latency_count += latency.count;
      CHECK(latency_count == load.requests);
    }
  }
}

TEST_CASE("driver thread: direct descriptors, large blocks and a depth beyond the ring's") {
  Run run(Suppression::kEventIdx);
  run.options.indirect = false;
  run.options.queue_size = 8;
  run.options.load.queue_depth = 32768;
  run.options.load.block_bytes = 8192;
  const os::DriverCounters counters = run.against({});
  CHECK(counters.requests == 2000);
  CHECK(counters.failed_requests == 0);
  CHECK(counters.mismatched_bytes == 0);
  CHECK(counters.verified_bytes > 0);
}

TEST_CASE("driver thread: data in pieces, in the ring and in indirect tables") {
  for (const bool indirect : {false, true}) {
    CAPTURE(indirect);
    Run run(Suppression::kEventIdx);
    run.options.indirect = indirect;
    run.options.segment_count = 5;  // 102 bytes each, and 104
    const os::DriverCounters counters = run.against({});
    CHECK(counters.requests == 2000);
    CHECK(counters.failed_requests == 0);
    CHECK(counters.mismatched_bytes == 0);
    CHECK(counters.verified_bytes > 0);
    run.options.segment_count = 63;
    CHECK(os::complaint_about(run.options).has_value() == !indirect);
  }
}

TEST_CASE("driver thread: a load by time ends with every request answered") {
  Run run(Suppression::kFlags);
  run.options.request_count_max = 0;
  run.options.duration_ms = 30;
  run.options.load.verify = false;
  const os::DriverCounters counters = run.against({});
  CHECK(counters.requests > 0);
  CHECK(counters.elapsed_nanos >= 30'000'000);
  CHECK(counters.failed_requests == 0);
  CHECK(counters.verified_bytes == 0);
}

TEST_CASE("driver thread: sees a wrong byte, a failed and a short answer, each once") {
  Run flipped(Suppression::kEventIdx);
  flipped.options.load.write_percent = 0;
  const os::DriverCounters after_flip = flipped.against({.flips_byte_of_read = 600});
  CHECK(after_flip.mismatched_bytes == 1);
  CHECK(after_flip.failed_requests == 0);
  for (const Faults& faults : {Faults{.fails_request = 700}, Faults{.shortens_read = 700}}) {
    Run run(Suppression::kEventIdx);
    run.options.load.write_percent = 0;
    const os::DriverCounters counters = run.against(faults);
    CHECK(counters.failed_requests == 1);
    CHECK(counters.mismatched_bytes == 0);
    CHECK(counters.requests == 2000);
  }
}

TEST_CASE("driver thread: a failure while the disk is being filled is not forgotten") {
  Run run(Suppression::kEventIdx);
  CHECK(run.against({.fails_request = 5}).failed_requests == 1);
}

TEST_CASE("driver thread: counts a lost signal and a lost kick, and goes on") {
  for (const Suppression way : {Suppression::kFlags, Suppression::kEventIdx}) {
    Run without_signal(way);
    without_signal.options.load.queue_depth = 1;
    without_signal.options.stall_ms = 50;
    const os::DriverCounters after_signal = without_signal.against({.loses_signal = 1000});
    CHECK(after_signal.lost_signals >= 1);
    CHECK(after_signal.requests == 2000);
    Run without_kick(way);
    without_kick.options.load.queue_depth = 1;
    without_kick.options.stall_ms = 50;
    const os::DriverCounters after_kick = without_kick.against({.loses_kick = 1000});
    CHECK(after_kick.stalls >= 1);
    CHECK(after_kick.requests == 2000);
    CHECK(after_kick.failed_requests == 0);
  }
}

TEST_CASE("driver thread: stops at a device that lies") {
  Run run(Suppression::kEventIdx);
  const os::DriverCounters counters = run.against({.jumps_index = 1500});
  CHECK(counters.device_fault == static_cast<std::uint64_t>(DeviceFault::kUsedIndex));
  CHECK(counters.failed_requests > 0);
  CHECK(counters.requests < 2000);
}

TEST_CASE("driver thread: gives a dead device up") {
  Run run(Suppression::kEventIdx);
  run.options.stall_ms = 1;
  run.make_driver();
  run.start().wait();
  run.driver->close();
  CHECK(run.driver->counters().stalls == 10);
  CHECK(run.driver->counters().failed_requests == 16);
  CHECK(run.driver->counters().requests == 0);
  CHECK(run.driver->latencies().empty());
}

TEST_CASE("driver thread: ends when the call eventfd is none, instead of spinning on it") {
  Run run(Suppression::kEventIdx);
  run.options.call_fd = 1'000'000;
  run.make_driver();
  run.start().wait();
  CHECK(run.driver->counters().failed_requests == 16);
}

TEST_CASE("driver thread: close() ends it in the middle of a wait or of the load, and forgets what is in flight") {
  Run waiting(Suppression::kEventIdx);  // for a device that is not there, 20 s a stall
  waiting.make_driver();
  std::future<void> done = waiting.start();
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  waiting.driver->close();
  CHECK(done.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
  CHECK(waiting.driver->counters().stalls == 0);
  CHECK(waiting.driver->counters().failed_requests == 0);
  waiting.driver->close();

  Run working(Suppression::kEventIdx);
  working.options.request_count_max = 0;
  working.make_driver();
  const Disk disk(working.options, working.driver->ring(), {});
  std::future<void> ended = working.start();
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  working.driver->close();
  CHECK(ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
  CHECK(working.driver->counters().failed_requests == 0);
}

TEST_CASE("driver thread: finish() ends an endless load with every request answered") {
  Run run(Suppression::kEventIdx);
  run.options.request_count_max = 0;
  run.make_driver();
  const Disk disk(run.options, run.driver->ring(), {});
  std::future<void> ended = run.start();
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  run.driver->finish();
  ended.wait();
  CHECK(run.driver->counters().failed_requests == 0);
  CHECK(run.driver->counters().stalls == 0);
}

TEST_CASE("driver thread: one that never ran needs no close") {
  Run run(Suppression::kEventIdx);
  run.make_driver();
  CHECK(run.driver->ring().descriptor_address > 0);
}

TEST_CASE("driver thread: complains about options that do not fit, by name") {
  const auto complaint = [](const std::function<void(os::DriverOptions&)>& change) {
    Run run(Suppression::kEventIdx);
    change(run.options);
    const auto found = os::complaint_about(run.options);
    return found.has_value() ? std::string(found->name) : std::string();
  };
  CHECK(complaint([](os::DriverOptions&) {}).empty());
  CHECK(complaint([](os::DriverOptions& options) { options.queue_size = 48; }) == "queueSize");
  CHECK(complaint([](os::DriverOptions& options) { options.load.block_bytes = 1000; }) == "blockBytes");
  CHECK(complaint([](os::DriverOptions& options) { options.load.capacity_bytes = 511; }) == "capacityBytes");
  CHECK(complaint([](os::DriverOptions& options) { options.load.block_bytes = 131072; }) == "memoryBytes");
  Run run(Suppression::kEventIdx);
  run.options.memory_bytes *= 2;  // more than the file has
  os::MapFailure failure;
  CHECK(os::DriverThread::make(run.options, failure) == nullptr);
  CHECK_FALSE(failure.reason.empty());
}

}  // namespace
}  // namespace hushring
