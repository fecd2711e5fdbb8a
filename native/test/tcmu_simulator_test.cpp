// The simulated TCMU device as a port: events, doorbells, an initiator's memory, and whole loads against a server on
// a thread of its own, which can be told to do wrong.
#include <doctest/doctest.h>
#include <poll.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/peer/tcmu_kernel.h"
#include "os/eventfd.h"
#include "os/tcmu_load.h"
#include "os/tcmu_simulator.h"
#include "os/unique_fd.h"
#include "test_tcmu_server.h"

namespace hushring::test {
namespace {

using os::TcmuSimulator;

constexpr std::uint32_t kPage = 4096;

std::shared_ptr<TcmuSimulator> simulator_with(const TcmuKernelOptions& options) {
  os::Result failure;
  std::shared_ptr<TcmuSimulator> simulator = TcmuSimulator::make(options, failure);
  REQUIRE(simulator != nullptr);
  return simulator;
}
std::shared_ptr<os::TcmuPort> port_of(TcmuSimulator& simulator) {
  std::shared_ptr<os::TcmuPort> port = simulator.open();
  REQUIRE(port != nullptr);
  return port;
}
TcmuKernelOptions small() { return {.ring_bytes = kPage, .data_area_bytes = 16 * kPage}; }

bool is_readable(int fd) {
  pollfd polled{fd, POLLIN, 0};
  return poll(&polled, 1, 0) == 1;
}

const Bytes kTestUnitReady(6);

// ---- The port --------------------------------------------------------------------------------------------------

TEST_CASE("tcmu simulator: a command makes the port readable, reading the event ends that") {
  const auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  CHECK(port->map_bytes() == 17 * kPage);
  CHECK_FALSE(is_readable(port->event_fd()));
  CHECK(port->read_event() == 0);  // also when there is none
  REQUIRE(simulator->submit(1, kTestUnitReady, {}, 0));
  REQUIRE(simulator->submit(2, kTestUnitReady, {}, 0));
  CHECK(is_readable(port->event_fd()));
  CHECK(port->read_event() == 0);
  CHECK_FALSE(is_readable(port->event_fd()));
  CHECK_FALSE(is_readable(simulator->initiator_fd()));
}

TEST_CASE("tcmu simulator: the doorbell drains in the caller, and results wait for the initiator") {
  const auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  TestServer server(port->map());
  REQUIRE(simulator->submit(7, Bytes{std::byte{0x28}}, {}, 600));
  const std::vector<ServerEntry> entries = server.fetch();
  server.write_data(entries[0].data, bytes_of(600, 3));
  server.complete(1, {.uflags = kTcmuReadLengthValid, .read_len = 500});
  server.publish();
  CHECK(simulator->take_finished().empty());
  CHECK(port->ring_doorbell() == 0);
  CHECK(is_readable(simulator->initiator_fd()));
  const auto finished = simulator->take_finished();
  REQUIRE(finished.size() == 1);
  CHECK(finished[0].result.tag == 7);
  CHECK(finished[0].result.residual_bytes == 100);
  const Bytes written = bytes_of(600, 3);
  CHECK(finished[0].data_in == Bytes(written.begin(), written.begin() + 500));
  CHECK(simulator->take_finished().empty());
}

TEST_CASE("tcmu simulator: a tag names one command at a time") {
  const auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  TestServer server(port->map());
  CHECK(simulator->submit(1, kTestUnitReady, {}, 0));
  CHECK_FALSE(simulator->submit(1, kTestUnitReady, {}, 0));
  CHECK(server.fetch().size() == 1);
  server.complete(1);
  server.publish();
  CHECK(port->ring_doorbell() == 0);
  CHECK_FALSE(simulator->submit(1, kTestUnitReady, {}, 0));  // its result was not taken
  CHECK(simulator->take_finished().size() == 1);
  CHECK(simulator->submit(1, kTestUnitReady, {}, 0));
}

TEST_CASE("tcmu simulator: what a locked kernel brings about is signalled when it is let go") {
  const auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  {
    const TcmuSimulator::Locked kernel = simulator->kernel();
    kernel->submit({1, kTestUnitReady, {}, {}});
    kernel->lun_reset(9);
    CHECK_FALSE(is_readable(port->event_fd()));
  }
  CHECK(is_readable(port->event_fd()));
  CHECK(simulator->take_task_management().empty());
  CHECK(simulator->kernel()->reset_ring(1) == 0);
  CHECK(is_readable(simulator->initiator_fd()));
  CHECK(simulator->take_finished().size() == 1);
  REQUIRE(simulator->take_task_management().size() == 1);
}

TEST_CASE("tcmu simulator: a device that was removed gives EIO and stays readable") {
  const auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  simulator->remove();
  for (int attempt = 0; attempt < 2; ++attempt) {
    CHECK(is_readable(port->event_fd()));
    CHECK(port->read_event() == EIO);
    CHECK(port->ring_doorbell() == EIO);
  }
}

TEST_CASE("tcmu simulator: one opens the device at a time, and closing it frees what was kept") {
  const auto simulator = simulator_with({.ring_bytes = kPage, .data_area_bytes = kPage});
  auto port = port_of(*simulator);
  CHECK(simulator->open() == nullptr);
  REQUIRE(simulator->submit(1, Bytes{std::byte{0x2a}}, bytes_of(10, 1), 0));
  TestServer server(port->map());
  server.fetch();
  server.complete(1, {.uflags = kTcmuBufferKept});
  server.publish();
  CHECK(port->ring_doorbell() == 0);
  CHECK(simulator->kernel()->free_block_count() == 0);
  REQUIRE(simulator->submit(2, kTestUnitReady, {}, 0));
  port.reset();
  CHECK(simulator->kernel()->free_block_count() == 1);
  port = port_of(*simulator);
  CHECK_FALSE(is_readable(port->event_fd()));  // the event of command 2 came before
  CHECK(TestServer(port->map()).fetch().size() == 1);
}

TEST_CASE("tcmu simulator: the memory stays as long as a port is open") {
  auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  simulator.reset();
  CHECK(TestServer(port->map()).mailbox->version == 2);
  CHECK(port->ring_doorbell() == 0);
}

// ---- Loads -----------------------------------------------------------------------------------------------------

// What a server does wrong, by the number of the command it does it to, counted from 1; 0: never.
struct Faults {
  std::uint32_t flips_byte_of_read = 0;
  std::uint32_t fails_command = 0;
  std::uint32_t shortens_read = 0;
  std::uint32_t completes_twice = 0;
  std::uint32_t forgets_command = 0;
};

// A disk behind a simulated device, on a thread of its own.
class DiskServer {
 public:
  DiskServer(const std::shared_ptr<TcmuSimulator>& simulator, std::size_t capacity_bytes, const Faults& faults)
      : port_(port_of(*simulator)), server_(port_->map()), store_(capacity_bytes), faults_(faults) {
    thread_ = std::thread([this] { serve(); });
  }
  ~DiskServer() {
    os::eventfd_signal(stop_fd_.get());
    thread_.join();
  }
  DiskServer(const DiskServer&) = delete;
  DiskServer& operator=(const DiskServer&) = delete;

 private:
  void serve() {
    for (;;) {
      static_cast<void>(port_->read_event());
      while (const std::size_t count = answer_all()) static_cast<void>(count);
      pollfd polled[] = {{port_->event_fd(), POLLIN, 0}, {stop_fd_.get(), POLLIN, 0}};
      if (poll(polled, 2, -1) < 0 || polled[1].revents != 0) return;
    }
  }

  // One doorbell for everything that is there, the last command first.
  std::size_t answer_all() {
    std::vector<ServerEntry> entries = server_.fetch_commands();
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) answer(*entry);
    if (entries.empty()) return 0;
    server_.publish();
    CHECK(port_->ring_doorbell() == 0);
    return entries.size();
  }

  void answer(const ServerEntry& entry) {
    ++command_count_;
    const auto byte = [&](std::size_t index) { return std::to_integer<std::size_t>(entry.cdb[index]); };
    const std::size_t address = byte(2) << 24 | byte(3) << 16 | byte(4) << 8 | byte(5);
    const std::size_t length = (byte(7) << 8 | byte(8)) * 512;
    const auto start = store_.begin() + static_cast<std::ptrdiff_t>(address * 512);
    TestServer::Answer answer;
    if (byte(0) == 0x2a) {
      const Bytes data = server_.read_data(entry.data);
      std::copy(data.begin(), data.end(), start);
    } else {
      Bytes data(start, start + static_cast<std::ptrdiff_t>(length));
      if (command_count_ == faults_.flips_byte_of_read) data[5] ^= std::byte{4};
      server_.write_data(entry.data, data);
      if (command_count_ == faults_.shortens_read) answer = {.uflags = kTcmuReadLengthValid, .read_len = 511};
    }
    if (command_count_ == faults_.fails_command) answer.status = kStatusBusy;
    if (command_count_ == faults_.forgets_command) return;
    // Whoever completes one twice has no slot left for another.
    if (!server_.unanswered.empty()) server_.complete(entry.id, answer);
    if (command_count_ == faults_.completes_twice && !server_.unanswered.empty()) server_.complete(entry.id);
  }

  const std::shared_ptr<os::TcmuPort> port_;
  TestServer server_;
  Bytes store_;
  const Faults faults_;
  const os::UniqueFd stop_fd_{os::eventfd_create().value};
  std::uint32_t command_count_ = 0;
  std::thread thread_;
};

os::TcmuLoadOptions load_of(std::uint32_t depth, std::uint64_t requests) {
  return {.load = {.block_bytes = 512,
                   .capacity_bytes = 512 * 512,
                   .write_percent = 30,
                   .verify = true,
                   .seed = 11,
                   .queue_depth = depth},
          .logical_block_bytes = 512,
          .request_count_max = requests,
          .duration_ms = 0};
}

// Runs a load to its end against a server with `faults`.
TcmuSimulator::LoadSnapshot run(const std::shared_ptr<TcmuSimulator>& simulator, const os::TcmuLoadOptions& options,
                                const Faults& faults = {}) {
  REQUIRE_FALSE(complaint_about(options).has_value());
  const DiskServer server(simulator, options.load.capacity_bytes, faults);
  REQUIRE(simulator->start_load(options));
  // A bound for machines however slow: a load that hangs is a failure, not a hang.
  pollfd polled{simulator->initiator_fd(), POLLIN, 0};
  CHECK(poll(&polled, 1, 5 * 60 * 1000) == 1);
  return simulator->load();
}

TEST_CASE("tcmu load: every command is answered and every byte right, at each depth") {
  struct Row {
    std::uint32_t depth, requests;
  };
  for (const Row& row : {Row{1, 5000}, Row{8, 20'000}, Row{200, 50'000}}) {  // 200 is more than the ring holds
    CAPTURE(row.depth);
    const auto simulator = simulator_with({.ring_bytes = 2 * kPage, .data_area_bytes = 128 * kPage});
    const TcmuSimulator::LoadSnapshot load = run(simulator, load_of(row.depth, row.requests));
    CHECK(load.is_done);
    CHECK(load.result.requests == row.requests);
    CHECK(load.result.failed_requests == 0);
    CHECK(load.result.mismatched_bytes == 0);
    CHECK(load.result.verified_bytes > row.requests / 2 * 512);
    CHECK(load.result.elapsed_nanos > 0);
    std::uint64_t latency_count = 0;
    for (const os::LatencyCount& latency : load.latencies) latency_count += latency.count;
    CHECK(latency_count == row.requests);
    CHECK(load.result.doorbells > 0);
    CHECK(load.result.doorbells <= row.requests);
    CHECK(simulator->kernel()->fault() == ServerFault::kNone);
    CHECK(simulator->kernel()->id_count() == 0);
  }
}

TEST_CASE("tcmu load: the answers of one drain become commands that signal once") {
  const auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  TestServer server(port->map());
  REQUIRE(simulator->start_load(load_of(8, 100)));
  CHECK(simulator->kernel()->event_count() == 1);
  for (const ServerEntry& entry : server.fetch_commands()) server.complete(entry.id);
  server.publish();
  CHECK(port->ring_doorbell() == 0);
  CHECK(simulator->kernel()->event_count() == 2);
  CHECK(server.fetch_commands().size() == 8);
}

TEST_CASE("tcmu load: sees a wrong byte, a failed and a short answer, each once") {
  os::TcmuLoadOptions options = load_of(16, 2000);
  options.load.write_percent = 0;
  const auto flipped = run(simulator_with(small()), options, {.flips_byte_of_read = 600});
  CHECK(flipped.result.mismatched_bytes == 1);
  CHECK(flipped.result.failed_requests == 0);
  for (const Faults& faults : {Faults{.fails_command = 700}, Faults{.shortens_read = 700}}) {
    const auto load = run(simulator_with(small()), options, faults);
    CHECK(load.result.failed_requests == 1);
    CHECK(load.result.mismatched_bytes == 0);
    CHECK(load.result.requests == 2000);
  }
}

TEST_CASE("tcmu load: a failure while the disk is being filled is not forgotten") {
  CHECK(run(simulator_with(small()), load_of(4, 100), {.fails_command = 5}).result.failed_requests == 1);
}

TEST_CASE("tcmu load: a load by time ends") {
  os::TcmuLoadOptions options = load_of(4, 0);
  options.duration_ms = 30;
  options.load.verify = false;
  const auto load = run(simulator_with(small()), options);
  CHECK(load.result.requests > 0);
  CHECK(load.result.elapsed_nanos >= 30'000'000);
  CHECK(load.result.failed_requests == 0);
  CHECK(load.result.verified_bytes == 0);
}

TEST_CASE("tcmu load: a server that completes twice breaks the ring; the load ends when its commands time out") {
  const auto simulator = simulator_with(small());
  const DiskServer server(simulator, 512 * 512, {.completes_twice = 300});
  REQUIRE(simulator->start_load(load_of(16, 2000)));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(5);
  while (!simulator->kernel()->is_broken() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  CHECK(simulator->kernel()->fault() == ServerFault::kCommandId);
  CHECK_FALSE(simulator->load().is_done);
  simulator->kernel()->advance(30'000);
  const auto load = simulator->load();
  CHECK(load.is_done);
  CHECK(load.result.failed_requests > 0);
  CHECK(is_readable(simulator->initiator_fd()));
}

TEST_CASE("tcmu load: a server that forgets a command leaves the load unfinished until it times out") {
  const auto simulator = simulator_with(small());
  const DiskServer server(simulator, 512 * 512, {.forgets_command = 100});
  REQUIRE(simulator->start_load(load_of(4, 500)));
  pollfd polled{simulator->initiator_fd(), POLLIN, 0};
  CHECK(poll(&polled, 1, 200) == 0);
  CHECK_FALSE(simulator->load().is_done);
  simulator->kernel()->advance(30'000);
  CHECK(poll(&polled, 1, 60'000) == 1);
  CHECK(simulator->load().result.failed_requests == 1);
}

TEST_CASE("tcmu load: one at a time, not beside other commands, and stopped on demand") {
  const auto simulator = simulator_with(small());
  const auto port = port_of(*simulator);
  TestServer server(port->map());
  REQUIRE(simulator->submit(1, kTestUnitReady, {}, 0));
  CHECK_FALSE(simulator->start_load(load_of(4, 100)));
  CHECK(simulator->kernel()->reset_ring(1) == 0);
  CHECK(simulator->take_finished().size() == 1);
  REQUIRE(simulator->start_load(load_of(4, 0)));
  CHECK_FALSE(simulator->start_load(load_of(4, 100)));
  CHECK_FALSE(simulator->submit(1, kTestUnitReady, {}, 0));
  simulator->stop_load();
  CHECK_FALSE(simulator->load().is_done);
  CHECK(simulator->kernel()->reset_ring(1) == 0);
  CHECK(simulator->load().is_done);
  CHECK(simulator->submit(1, kTestUnitReady, {}, 0));
}

TEST_CASE("tcmu load: a kernel that refuses everything ends the load") {
  const auto simulator = simulator_with(small());
  simulator->kernel()->block();
  REQUIRE(simulator->start_load(load_of(4, 0)));
  CHECK(simulator->load().is_done);
  CHECK(simulator->load().result.failed_requests == 4);
}

TEST_CASE("tcmu load: says what is wrong with its options") {
  const auto complains_of = [](const std::function<void(os::TcmuLoadOptions&)>& spoil, const char* name) {
    os::TcmuLoadOptions options = load_of(4, 100);
    spoil(options);
    const auto complaint = complaint_about(options);
    REQUIRE(complaint.has_value());
    CHECK(std::string(complaint->name) == name);
  };
  complains_of([](auto& options) { options.logical_block_bytes = 1024; }, "logicalBlockBytes");
  complains_of([](auto& options) { options.load.block_bytes = 0; }, "blockBytes");
  complains_of([](auto& options) { options.logical_block_bytes = 4096; }, "blockBytes");
  complains_of([](auto& options) { options.load.block_bytes = 65536 * 512; }, "blockBytes");
  complains_of([](auto& options) { options.load.capacity_bytes = 511; }, "capacityBytes");
  complains_of([](auto& options) { options.load.capacity_bytes = std::uint64_t{3} << 40; }, "capacityBytes");
}

}  // namespace
}  // namespace hushring::test
