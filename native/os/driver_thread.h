// A driver on a thread of its own: a virtio-blk load of fixed depth on one split ring in shared memory, woken and
// waking through eventfds, each answer checked. It never spins: without work it sleeps in poll.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/peer/block_load.h"
#include "core/peer/split_driver.h"
#include "os/latency_histogram.h"
#include "os/mapped_region.h"
#include "os/thread.h"

namespace hushring::os {

struct DriverOptions {
  int memory_fd;               // the memory file shared with the device; guest address = user address = offset
  std::uint64_t memory_bytes;  // its size
  std::uint64_t memory_offset_bytes = 0;  // where this driver's part of it begins, a multiple of 4096
  int kick_fd;                 // eventfds, borrowed until close()
  int call_fd;
  std::uint32_t queue_size;  // a power of two, 4 to 32768
  Suppression suppression;
  bool indirect;                    // one descriptor of the ring a request instead of one a buffer
  std::uint32_t segment_count;      // pieces that the data of a request is cut into, 1 to 126
  std::uint64_t request_count_max;  // ends the load after so many requests; 0: never
  std::uint64_t duration_ms;        // ends the load after so long; 0: never
  std::uint32_t stall_ms;           // how long a wait for a signal may last before the driver looks at the ring
  std::uint64_t first_sector = 0;   // where on the disk the load's part of it begins
  BlockLoadOptions load;            // its queue depth is cut to what the ring holds
};

// An option, by its name in src/native.ts, and what it should be.
struct Complaint {
  const char* name;
  std::string expectation;
};
// What is wrong with options that are each in their range, alone or together. Nothing when they can be used.
[[nodiscard]] std::optional<Complaint> complaint_about(const DriverOptions& options);

// Words of 64 bits in the order of DriverCounter (src/native.ts), written by the thread while it runs.
struct DriverCounters {
  std::uint64_t requests = 0;
  std::uint64_t kicks = 0;
  std::uint64_t kicks_suppressed = 0;
  std::uint64_t signals_received = 0;
  std::uint64_t lost_signals = 0;
  std::uint64_t stalls = 0;
  std::uint64_t mismatched_bytes = 0;
  std::uint64_t failed_requests = 0;
  std::uint64_t elapsed_nanos = 0;
  std::uint64_t verified_bytes = 0;
  std::uint64_t device_fault = 0;
};

class DriverThread {
 public:
  // Maps the memory file and lays rings and buffers out in it; there must be no complaint about the options.
  // Null when the system refuses, and then `failure` says what.
  [[nodiscard]] static std::unique_ptr<DriverThread> make(const DriverOptions& options, MapFailure& failure);

  ~DriverThread();
  DriverThread(const DriverThread&) = delete;
  DriverThread& operator=(const DriverThread&) = delete;

  // Where the device finds the ring.
  [[nodiscard]] const SplitLayout& ring() const noexcept;
  // Valid as long as the driver is.
  [[nodiscard]] DriverCounters& counters() noexcept;
  // The times from submit to reap, in nanoseconds. None until the load has ended.
  [[nodiscard]] std::vector<LatencyCount> latencies() const;

  // Starts the load on its thread, once. `on_done` is the last thing the thread calls. 0 or an errno.
  //
  // With `verify`, the blocks to be checked are written first. That is not part of the load: it counts towards no
  // limit and in no counter, except for what goes wrong.
  [[nodiscard]] int run(std::function<void()> on_done);
  // Ends the load early: nothing more is submitted, and the thread ends when every request is answered. Any thread.
  void finish() noexcept;
  // Ends the load where it stands, forgetting requests in flight, and waits for the thread. Calling it again does
  // nothing.
  void close() noexcept;

 private:
  class Load;
  explicit DriverThread(std::unique_ptr<Load> load) noexcept;

  const std::unique_ptr<Load> load_;
  Thread thread_;
};

}  // namespace hushring::os
