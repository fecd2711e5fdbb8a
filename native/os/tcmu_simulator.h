// A TCMU device without a kernel: the kernel's half of the ring (core/peer/tcmu_kernel.h) behind the same port as
// the real one (uio.h). Its memory is a mapping of this process, its events come through an eventfd, and its doorbell
// runs the drain in the caller, as a write to the UIO device does.
//
//   initiator ── submit ──▶ TcmuSimulator ◀── open() ── TcmuPort ◀── server
//             ◀─ results ──   (kernel_)     ── event ─▶          ── doorbell ─▶
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/ordering.h"
#include "core/peer/tcmu_kernel.h"
#include "os/result.h"
#include "os/tcmu_load.h"
#include "os/tcmu_port.h"
#include "os/unique_fd.h"

namespace hushring::os {

class TcmuSimulator : public std::enable_shared_from_this<TcmuSimulator> {
 public:
  using Kernel = TcmuKernel<HardwareOrdering>;

  // There must be no complaint about the options. Null when the system refuses, and then `failure` says what.
  [[nodiscard]] static std::shared_ptr<TcmuSimulator> make(const TcmuKernelOptions& options, Result& failure);
  ~TcmuSimulator();
  TcmuSimulator(const TcmuSimulator&) = delete;
  TcmuSimulator& operator=(const TcmuSimulator&) = delete;

  // ---- The server's side ----

  // Opens the device, as open(2) does with /dev/uioN: null (EBUSY) while somebody has it open. Events from before are
  // not told. The device is closed with the last owner of the port, and the buffers that a server kept are freed.
  [[nodiscard]] std::shared_ptr<TcmuPort> open();

  // The memory that both sides share, for those who break its rules.
  [[nodiscard]] std::span<std::byte> memory() const noexcept { return {map_, map_bytes_}; }

  // ---- The initiator's side. Any thread ----

  // An eventfd that becomes readable when results wait, and when a load has ended. Borrowed; the initiator reads it.
  [[nodiscard]] int initiator_fd() const noexcept { return initiator_fd_.get(); }

  // The kernel, while nobody else uses it: a submission waits for a drain and a drain for a submission, as the real
  // ones do (cmdr_lock). What was signalled meanwhile is passed on when this goes.
  class Locked {
   public:
    explicit Locked(TcmuSimulator& simulator) : simulator_(simulator), lock_(simulator.mutex_) {}
    ~Locked() { simulator_.pass_on(); }
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;

    [[nodiscard]] Kernel* operator->() const noexcept { return &simulator_.kernel_; }

   private:
    TcmuSimulator& simulator_;
    const std::lock_guard<std::mutex> lock_;
  };
  [[nodiscard]] Locked kernel() { return Locked(*this); }

  // A command whose data is kept here until its result is taken. False, and nothing done, while another one has the
  // tag or a load is running.
  [[nodiscard]] bool submit(std::uint64_t tag, std::span<const std::byte> cdb, std::vector<std::byte> data_out,
                            std::size_t data_in_bytes);

  struct Finished {
    InitiatorResult result;
    std::vector<std::byte> data_in;  // as much of it as was written
  };
  [[nodiscard]] std::vector<Finished> take_finished();
  [[nodiscard]] std::vector<TmrResult> take_task_management();

  // ---- Load ----

  // Begins a load. False, and nothing done, while another one runs or commands are not taken back.
  [[nodiscard]] bool start_load(const TcmuLoadOptions& options);
  void stop_load();

  struct LoadSnapshot {
    bool is_done = true;
    TcmuLoadResult result;
    std::vector<LatencyCount> latencies;  // in nanoseconds; none until it is done
  };
  // Of the last load.
  [[nodiscard]] LoadSnapshot load();

  // ---- The device goes away ----

  // From now on ports give EIO, and their descriptor stays readable. Commands in flight never end.
  void remove();

 private:
  class Port;

  TcmuSimulator(const TcmuKernelOptions& options, std::byte* map, UniqueFd event_fd, UniqueFd initiator_fd) noexcept;

  [[nodiscard]] bool load_runs() const noexcept { return load_ != nullptr && !load_->is_done(); }
  void pass_on();

  std::byte* const map_;
  const std::size_t map_bytes_;
  const UniqueFd event_fd_;
  const UniqueFd initiator_fd_;
  std::atomic<bool> open_ = false;
  std::atomic<bool> removed_ = false;

  std::mutex mutex_;  // guards everything below
  Kernel kernel_;
  struct Buffers {
    std::vector<std::byte> data_out;
    std::vector<std::byte> data_in;
  };
  std::unordered_map<std::uint64_t, Buffers> buffers_;  // by tag
  std::unique_ptr<TcmuLoad> load_;
  std::uint64_t events_passed_on_ = 0;
};

}  // namespace hushring::os
