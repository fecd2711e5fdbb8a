// Serves one TCMU port: the ring (core/tcmu.h), the doorbell, and who may touch them when.
//
// The doorbell is a system call in which the kernel copies the data of every read that was completed. A batch with
// much of it is rung from a thread of its own, so that the event loop goes on. There is one completer at a time: while
// that thread is in the kernel nothing is published, answers wait, and the thread publishes and rings for them when
// it comes back. So the rule F11 (uio.cpp) holds, and no answer waits longer than one doorbell takes.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/ordering.h"
#include "core/split.h"
#include "core/tcmu.h"
#include "os/tcmu_port.h"

namespace hushring::os {

class TcmuServer {
 public:
  // A batch with more Data-In than `inline_copy_bytes_max` is rung from the thread, if the system has room for one.
  TcmuServer(std::shared_ptr<TcmuPort> port, const TcmuOptions& options, const TcmuTables& tables,
             std::uint64_t inline_copy_bytes_max);
  // Waits for a doorbell that is being rung.
  ~TcmuServer();
  TcmuServer(const TcmuServer&) = delete;
  TcmuServer& operator=(const TcmuServer&) = delete;

  // Starts on the ring as it is now. Also after a reset of the ring, or after a fault; not once the device is gone, or
  // its memory (kTcmuRemoved, kTcmuData).
  [[nodiscard]] Fault start();
  // Touches the ring no more; late answers are ignored. Waits for a doorbell that is being rung.
  void stop();

  // Takes up to `count_max` commands into the tables. Their number, or minus a fault.
  [[nodiscard]] std::int32_t take(std::uint32_t count_max);
  // Gives back the first `count` rows of the completions, publishes them with one store of the tail, and rings once;
  // then looks at the ring again. CompleteBits, or minus a fault.
  [[nodiscard]] std::int32_t complete(std::uint32_t count);
  // The kernel may use the id of a command whose buffer was kept again. Waits for a doorbell that is being rung: the
  // answer may be waiting for its end, and until it is published the buffer cannot be given up.
  void free_kept(std::uint32_t command);
  // True when the ring shows an entry that was not taken. For a check while idle.
  [[nodiscard]] bool sees_entry();

  [[nodiscard]] const TcmuDevice<HardwareOrdering>& device() const noexcept { return device_; }

 private:
  // With the lock held.
  [[nodiscard]] Fault fault_now() const noexcept;
  [[nodiscard]] Fault lasting_fault() const noexcept;
  [[nodiscard]] bool has_thread();
  void ring_on_thread();

  const std::shared_ptr<TcmuPort> port_;
  TcmuCounters& counters_;
  const std::uint64_t inline_copy_bytes_max_;

  std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  TcmuDevice<HardwareOrdering> device_;
  bool ringing_ = false;  // the thread is about to ring, or in the kernel: nobody else publishes
  bool ending_ = false;
  bool removed_ = false;  // the kernel refused a doorbell: the device is gone
  bool has_thread_ = false;  // started with the first doorbell that needs it
  pthread_t thread_{};
};

}  // namespace hushring::os
