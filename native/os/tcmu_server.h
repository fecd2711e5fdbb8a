// Serves one TCMU port: the ring (core/tcmu.h), the doorbell, and who may touch them when.
//
// The doorbell is a system call in which the kernel copies the data of every read that was completed. A batch with
// much of it is rung from a thread of its own, so that the event loop goes on. There is one completer at a time: while
// that thread is in the kernel nothing is published, answers wait, and the thread publishes and rings for them when
// it comes back. So the rule F11 (core/ordering.h) holds, and no answer waits longer than one doorbell takes.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "core/ordering.h"
#include "core/split.h"
#include "core/tcmu.h"
#include "os/tcmu_port.h"

namespace hushring::os {

template <class Ordering>
class BasicTcmuServer {
 public:
  // A batch with more Data-In than `inline_copy_bytes_max` is rung from the thread, if the system has room for one.
  BasicTcmuServer(std::shared_ptr<TcmuPort> port, const TcmuOptions& options, const TcmuTables& tables,
                  std::uint64_t inline_copy_bytes_max);
  // Waits for a doorbell that is being rung.
  ~BasicTcmuServer();
  BasicTcmuServer(const BasicTcmuServer&) = delete;
  BasicTcmuServer& operator=(const BasicTcmuServer&) = delete;

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

  [[nodiscard]] const TcmuDevice<Ordering>& device() const noexcept { return device_; }

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
  TcmuDevice<Ordering> device_;
  bool ringing_ = false;  // the thread is about to ring, or in the kernel: nobody else publishes
  bool ending_ = false;
  bool removed_ = false;  // the kernel refused a doorbell: the device is gone
  bool has_thread_ = false;  // started with the first doorbell that needs it
  pthread_t thread_{};
};

using TcmuServer = BasicTcmuServer<HardwareOrdering>;

// ---- Implementation ---------------------------------------------------------------------------------------------

template <class Ordering>
BasicTcmuServer<Ordering>::BasicTcmuServer(std::shared_ptr<TcmuPort> port, const TcmuOptions& options,
                                           const TcmuTables& tables, std::uint64_t inline_copy_bytes_max)
    : port_(std::move(port)),
      counters_(*tables.counters),
      inline_copy_bytes_max_(inline_copy_bytes_max),
      device_(options, tables) {}

template <class Ordering>
BasicTcmuServer<Ordering>::~BasicTcmuServer() {
  stop();
  if (!has_thread_) return;
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  pthread_join(thread_, nullptr);
}

template <class Ordering>
Fault BasicTcmuServer<Ordering>::start() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ringing_; });
  // What the device broke with before is over; that it is gone, or a part of its memory, is not.
  device_.stop();
  if (const Fault fault = lasting_fault(); fault != Fault::kNone) return fault;
  return device_.start(port_->map(), port_->map_bytes());
}

template <class Ordering>
void BasicTcmuServer<Ordering>::stop() {
  std::unique_lock lock(mutex_);
  device_.stop();
  changed_.wait(lock, [this] { return !ringing_; });
}

template <class Ordering>
std::int32_t BasicTcmuServer<Ordering>::take(std::uint32_t count_max) {
  const std::lock_guard lock(mutex_);
  ++counters_.native_calls;
  const std::int32_t taken = device_.take(count_max);
  const Fault fault = fault_now();
  return fault == Fault::kNone ? taken : -static_cast<std::int32_t>(fault);
}

template <class Ordering>
std::int32_t BasicTcmuServer<Ordering>::complete(std::uint32_t count) {
  std::int32_t bits = 0;
  std::unique_lock lock(mutex_);
  ++counters_.native_calls;
  device_.record(count);
  if (const Fault fault = fault_now(); fault != Fault::kNone) return -static_cast<std::int32_t>(fault);
  if ((!ringing_ || Ordering::publishes_while_ringing) && device_.publish()) {
    bits = kSignalled;
    if (ringing_) {
      // Only without F11: whoever is ringing will not do so for this answer.
    } else if (device_.copy_bytes_published() > inline_copy_bytes_max_ && has_thread()) {
      ringing_ = true;
      ++counters_.off_thread_doorbells;
      changed_.notify_all();
    } else {
      ++counters_.doorbells;
      // Nobody else publishes meanwhile: only this thread does while `ringing_` is false.
      lock.unlock();
      const int error = port_->ring_doorbell();
      lock.lock();
      removed_ = removed_ || error != 0;
    }
  }
  if (const Fault fault = fault_now(); fault != Fault::kNone) return -static_cast<std::int32_t>(fault);
  if (!device_.running()) return bits;
  return bits | (device_.sees_entry() ? kMore : kArmed);
}

template <class Ordering>
void BasicTcmuServer<Ordering>::free_kept(std::uint32_t command) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ringing_; });
  device_.free_kept(command);
}

template <class Ordering>
bool BasicTcmuServer<Ordering>::sees_entry() {
  const std::lock_guard lock(mutex_);
  return device_.running() && device_.sees_entry();
}

template <class Ordering>
Fault BasicTcmuServer<Ordering>::fault_now() const noexcept {
  return device_.fault() != Fault::kNone ? device_.fault() : lasting_fault();
}

template <class Ordering>
Fault BasicTcmuServer<Ordering>::lasting_fault() const noexcept {
  if (removed_) return Fault::kTcmuRemoved;
  // A page of the data area went away under an access: what was read was zeros, what was written is lost.
  return port_->truncated() ? Fault::kTcmuData : Fault::kNone;
}

// False when the system has no room for another thread: then the event loop waits for the copy.
template <class Ordering>
bool BasicTcmuServer<Ordering>::has_thread() {
  const auto body = [](void* server) -> void* {
    static_cast<BasicTcmuServer*>(server)->ring_on_thread();
    return nullptr;
  };
  if (!has_thread_) has_thread_ = pthread_create(&thread_, nullptr, body, this) == 0;
  return has_thread_;
}

template <class Ordering>
void BasicTcmuServer<Ordering>::ring_on_thread() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ringing_ || ending_; });
    if (!ringing_) return;
    do {
      ++counters_.doorbells;
      lock.unlock();
      const int error = port_->ring_doorbell();
      lock.lock();
      removed_ = removed_ || error != 0;
      // What was answered meanwhile goes out now, from here.
    } while (!removed_ && device_.publish());
    ringing_ = false;
    changed_.notify_all();
  }
}

}  // namespace hushring::os
