#include "os/tcmu_server.h"

#include <utility>

namespace hushring::os {

TcmuServer::TcmuServer(std::shared_ptr<TcmuPort> port, const TcmuOptions& options, const TcmuTables& tables,
                       std::uint64_t inline_copy_bytes_max)
    : port_(std::move(port)),
      counters_(*tables.counters),
      inline_copy_bytes_max_(inline_copy_bytes_max),
      device_(options, tables) {}

TcmuServer::~TcmuServer() {
  stop();
  if (!has_thread_) return;
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  pthread_join(thread_, nullptr);
}

Fault TcmuServer::start() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ringing_; });
  // What the device broke with before is over; that it is gone, or a part of its memory, is not.
  device_.stop();
  if (const Fault fault = lasting_fault(); fault != Fault::kNone) return fault;
  return device_.start(port_->map(), port_->map_bytes());
}

void TcmuServer::stop() {
  std::unique_lock lock(mutex_);
  device_.stop();
  changed_.wait(lock, [this] { return !ringing_; });
}

std::int32_t TcmuServer::take(std::uint32_t count_max) {
  const std::lock_guard lock(mutex_);
  ++counters_.native_calls;
  const std::int32_t taken = device_.take(count_max);
  const Fault fault = fault_now();
  return fault == Fault::kNone ? taken : -static_cast<std::int32_t>(fault);
}

std::int32_t TcmuServer::complete(std::uint32_t count) {
  std::int32_t bits = 0;
  std::unique_lock lock(mutex_);
  ++counters_.native_calls;
  device_.record(count);
  if (const Fault fault = fault_now(); fault != Fault::kNone) return -static_cast<std::int32_t>(fault);
  if (!ringing_ && device_.publish()) {
    bits = kSignalled;
    if (device_.copy_bytes_published() > inline_copy_bytes_max_ && has_thread()) {
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

void TcmuServer::free_kept(std::uint32_t command) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ringing_; });
  device_.free_kept(command);
}

bool TcmuServer::sees_entry() {
  const std::lock_guard lock(mutex_);
  return device_.running() && device_.sees_entry();
}

Fault TcmuServer::fault_now() const noexcept {
  return device_.fault() != Fault::kNone ? device_.fault() : lasting_fault();
}

Fault TcmuServer::lasting_fault() const noexcept {
  if (removed_) return Fault::kTcmuRemoved;
  // A page of the data area went away under an access: what was read was zeros, what was written is lost.
  return port_->truncated() ? Fault::kTcmuData : Fault::kNone;
}

// False when the system has no room for another thread: then the event loop waits for the copy.
bool TcmuServer::has_thread() {
  const auto body = [](void* server) -> void* {
    static_cast<TcmuServer*>(server)->ring_on_thread();
    return nullptr;
  };
  if (!has_thread_) has_thread_ = pthread_create(&thread_, nullptr, body, this) == 0;
  return has_thread_;
}

void TcmuServer::ring_on_thread() {
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
