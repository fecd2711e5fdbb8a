// The server of a TCMU port: whose turn it is to publish and ring while a doorbell is being rung on the thread. The
// port is that of the simulator, with a doorbell that takes as long as a test wants.
#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "core/mutants.h"
#include "core/tcmu.h"
#include "os/tcmu_server.h"
#include "os/tcmu_simulator.h"
#include "test_tcmu_server.h"

namespace hushring::test {
namespace {

using os::TcmuSimulator;

class SlowPort final : public os::TcmuPort {
 public:
  explicit SlowPort(std::shared_ptr<os::TcmuPort> port) : port_(std::move(port)) {
    map_ = port_->map();
    map_bytes_ = port_->map_bytes();
  }

  [[nodiscard]] int event_fd() const noexcept override { return port_->event_fd(); }
  [[nodiscard]] int read_event() noexcept override { return port_->read_event(); }
  [[nodiscard]] int ring_doorbell() noexcept override {
    ++begun;
    while (shut) std::this_thread::yield();
    const int error = port_->ring_doorbell();
    ++drained;
    while (slow_to_return) std::this_thread::yield();
    ++ended;
    return removed ? EIO : error;
  }
  [[nodiscard]] bool truncated() const noexcept override { return cut; }

  std::atomic<bool> shut = false;  // doorbells wait
  std::atomic<bool> slow_to_return = false;  // doorbells that looked at the tail for the last time wait
  std::atomic<int> begun = 0;
  std::atomic<int> drained = 0;
  std::atomic<int> ended = 0;
  std::atomic<bool> removed = false;
  std::atomic<bool> cut = false;

 private:
  const std::shared_ptr<os::TcmuPort> port_;
};

// A simulated device with READ commands on its ring, and its server. Each answer has bytes to copy, so each batch is
// rung from the thread.
template <class Ordering>
class BasicBench {
 public:
  BasicBench() {
    os::Result failure;
    simulator = TcmuSimulator::make({.ring_bytes = 4096, .data_area_bytes = 16 * 4096}, failure);
    REQUIRE(simulator != nullptr);
    port = std::make_shared<SlowPort>(simulator->open());
    server = std::make_unique<os::BasicTcmuServer<Ordering>>(port, kOptions, tables(), 0);
    REQUIRE(server->start() == Fault::kNone);
  }
  ~BasicBench() { port->shut = port->slow_to_return = false; }

  // Takes one more READ. Returns its number.
  std::uint32_t take() {
    Bytes cdb(10);
    cdb[0] = std::byte{0x28};
    REQUIRE(simulator->submit(++tag_, cdb, {}, 512));
    REQUIRE(server->take(1) == 1);
    return commands_[0].command;
  }
  std::int32_t answer(std::uint32_t command, std::uint32_t flags = 0) {
    completions_[0] = {.command = command, .status = 0, .read_length = 0, .flags = flags, .copy_bytes = 512};
    return server->complete(1);
  }
  void wait_for(const std::atomic<int>& count, int value) const {
    while (count < value) std::this_thread::yield();
  }
  [[nodiscard]] std::size_t finished_count() { return simulator->take_finished().size(); }

  static constexpr TcmuOptions kOptions{.command_count_max = 8, .batch_count_max = 8};
  std::shared_ptr<TcmuSimulator> simulator;
  std::shared_ptr<SlowPort> port;
  std::unique_ptr<os::BasicTcmuServer<Ordering>> server;
  TcmuCounters counters{};

 private:
  TcmuTables tables() {
    return {.commands = commands_,
            .cdbs = cdbs_,
            .segments = segments_,
            .completions = completions_,
            .senses = senses_,
            .tidings = &tidings_,
            .aborted = aborted_,
            .counters = &counters};
  }

  std::vector<TcmuCommandRow> commands_ = std::vector<TcmuCommandRow>(kOptions.command_rows());
  Bytes cdbs_ = Bytes(kOptions.command_rows() * kCdbBytesMax);
  std::vector<Segment> segments_ = std::vector<Segment>(kOptions.segment_rows());
  std::vector<TcmuCompletionRow> completions_ = std::vector<TcmuCompletionRow>(kOptions.completion_rows());
  Bytes senses_ = Bytes(kOptions.completion_rows() * kTcmuSenseBytes);
  TcmuTidings tidings_{};
  std::vector<std::uint32_t> aborted_ = std::vector<std::uint32_t>(kOptions.aborted_rows());
  std::uint64_t tag_ = 0;
};

using Bench = BasicBench<HardwareOrdering>;

TEST_CASE("tcmu server: what is answered while the thread rings is published by the thread, with one more doorbell") {
  Bench bench;
  const std::uint32_t first = bench.take();
  const std::uint32_t second = bench.take();
  const std::uint32_t third = bench.take();
  bench.port->shut = true;
  CHECK((bench.answer(first) & kSignalled) != 0);
  bench.wait_for(bench.port->begun, 1);
  CHECK((bench.answer(second) & kSignalled) == 0);
  CHECK((bench.answer(third) & kSignalled) == 0);
  CHECK(bench.finished_count() == 0);
  bench.port->shut = false;
  bench.wait_for(bench.port->ended, 2);
  bench.server->stop();
  CHECK(bench.finished_count() == 3);
  CHECK(bench.port->ended == 2);
  CHECK(bench.counters.off_thread_doorbells == 1);
  CHECK(bench.counters.doorbells == 2);
  CHECK(bench.simulator->kernel()->fault() == ServerFault::kNone);
}

TEST_CASE("tcmu server: a buffer is given up only when its answer is published, also one that waits for the thread") {
  Bench bench;
  const std::uint32_t first = bench.take();
  const std::uint32_t kept = bench.take();
  bench.port->shut = true;
  bench.answer(first);
  bench.wait_for(bench.port->begun, 1);
  bench.answer(kept, kTcmuKeep);
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    bench.port->shut = false;
  });
  bench.server->free_kept(kept);
  CHECK(bench.port->ended == 2);
  CHECK(bench.counters.ignored_completions == 0);
  opener.join();
  CHECK(bench.simulator->kernel()->id_count() == 1);  // action/free_kept_buf is the caller's
}

TEST_CASE("tcmu server: stop waits for the doorbell and nothing is published after it") {
  Bench bench;
  const std::uint32_t first = bench.take();
  const std::uint32_t second = bench.take();
  bench.port->shut = true;
  bench.answer(first);
  bench.wait_for(bench.port->begun, 1);
  bench.answer(second);
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    bench.port->shut = false;
  });
  bench.server->stop();
  CHECK(bench.port->ended == 1);
  CHECK(bench.finished_count() == 1);
  opener.join();
}

// Answers a second command while the thread that rang for the first is on its way out of the kernel, which has looked
// at the tail for the last time.
template <class Ordering>
bool loses_answer() {
  BasicBench<Ordering> bench;
  const std::uint32_t first = bench.take();
  const std::uint32_t second = bench.take();
  bench.port->slow_to_return = true;
  bench.answer(first);
  bench.wait_for(bench.port->drained, 1);
  bench.answer(second);
  bench.port->slow_to_return = false;
  bench.server->free_kept(first);  // gives nothing up, but waits until nobody rings
  return bench.finished_count() != 2;
}

TEST_CASE("ordering: no answer is lost that is given while a doorbell is being rung") {
  CHECK_FALSE(loses_answer<HardwareOrdering>());
}

TEST_CASE("ordering: mutant F11: without one completer at a time the answer is lost") {
  CHECK(loses_answer<mutants::F11<HardwareOrdering>>());
}

TEST_CASE("tcmu server: a device that is gone, or lost a part of its memory, is not started again") {
  Bench bench;
  SUBCASE("gone") {
    const std::uint32_t command = bench.take();
    bench.port->removed = true;
    bench.answer(command);
    bench.wait_for(bench.port->ended, 1);
    bench.server->stop();
    CHECK(bench.server->start() == Fault::kTcmuRemoved);
    CHECK_FALSE(bench.server->device().running());
  }
  SUBCASE("without a part of its memory") {
    bench.port->cut = true;
    CHECK(bench.server->take(1) == -static_cast<std::int32_t>(Fault::kTcmuData));
    CHECK(bench.server->start() == Fault::kTcmuData);
    CHECK_FALSE(bench.server->device().running());
  }
  SUBCASE("control: neither") {
    CHECK(bench.server->start() == Fault::kNone);
    CHECK(bench.server->device().running());
  }
}

}  // namespace
}  // namespace hushring::test
