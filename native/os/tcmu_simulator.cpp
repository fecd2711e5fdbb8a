#include "os/tcmu_simulator.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "os/eventfd.h"

namespace hushring::os {

std::shared_ptr<TcmuSimulator> TcmuSimulator::make(const TcmuKernelOptions& options, Result& failure) {
  UniqueFd fds[2];
  for (UniqueFd& fd : fds) {
    const Result made = eventfd_create();
    if (made.error != 0) {
      failure = made;
      return nullptr;
    }
    fd = UniqueFd(made.value);
  }
  // Pages that nobody touches cost nothing, so a data area may be larger than the machine.
  void* const map = ::mmap(nullptr, map_bytes_of(options), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) {
    failure = Result::failed("mmap");
    return nullptr;
  }
  return std::shared_ptr<TcmuSimulator>(
      new TcmuSimulator(options, static_cast<std::byte*>(map), std::move(fds[0]), std::move(fds[1])));
}

TcmuSimulator::TcmuSimulator(const TcmuKernelOptions& options, std::byte* map, UniqueFd event_fd,
                             UniqueFd initiator_fd) noexcept
    : map_(map),
      map_bytes_(map_bytes_of(options)),
      event_fd_(std::move(event_fd)),
      initiator_fd_(std::move(initiator_fd)),
      kernel_(map, options) {}

TcmuSimulator::~TcmuSimulator() { ::munmap(map_, map_bytes_); }

// ---- The server's side -----------------------------------------------------------------------------------------

class TcmuSimulator::Port final : public TcmuPort {
 public:
  explicit Port(std::shared_ptr<TcmuSimulator> simulator) : simulator_(std::move(simulator)) {
    map_ = simulator_->map_;
    map_bytes_ = simulator_->map_bytes_;
  }
  ~Port() override {
    simulator_->kernel()->release();
    simulator_->open_ = false;
  }

  [[nodiscard]] int event_fd() const noexcept override { return simulator_->event_fd_.get(); }
  [[nodiscard]] int read_event() noexcept override {
    if (simulator_->removed_) return EIO;
    return eventfd_read(event_fd()).error == 0 ? 0 : EIO;
  }
  [[nodiscard]] int ring_doorbell() noexcept override {
    if (simulator_->removed_) return EIO;
    simulator_->kernel()->ring_doorbell();
    return 0;
  }

 private:
  const std::shared_ptr<TcmuSimulator> simulator_;
};

std::shared_ptr<TcmuPort> TcmuSimulator::open() {
  if (open_.exchange(true)) return nullptr;
  if (!removed_) eventfd_drain(event_fd_.get());
  return std::make_shared<Port>(shared_from_this());
}

void TcmuSimulator::remove() {
  removed_ = true;
  eventfd_signal(event_fd_.get());
}

// With the lock held. The head was published before its event is signalled, so whoever reads the event sees the head.
void TcmuSimulator::pass_on() {
  bool is_load_over = false;
  if (load_runs()) {
    load_->reap(kernel_);
    is_load_over = load_->is_done();
  }
  if (std::exchange(events_passed_on_, kernel_.event_count()) != kernel_.event_count()) {
    eventfd_signal(event_fd_.get());
  }
  if (is_load_over || kernel_.has_results()) eventfd_signal(initiator_fd_.get());
}

// ---- The initiator's side --------------------------------------------------------------------------------------

bool TcmuSimulator::submit(std::uint64_t tag, std::span<const std::byte> cdb, std::vector<std::byte> data_out,
                           std::size_t data_in_bytes) {
  const Locked locked = kernel();
  if (load_runs()) return false;
  const auto [entry, is_new] = buffers_.try_emplace(tag);
  if (!is_new) return false;
  auto& [out, in] = entry->second;
  out = std::move(data_out);
  in.resize(data_in_bytes);
  locked->submit({tag, cdb, out, in});
  return true;
}

std::vector<TcmuSimulator::Finished> TcmuSimulator::take_finished() {
  const std::lock_guard lock(mutex_);
  std::vector<Finished> finished;
  if (load_runs()) return finished;
  kernel_.reap([&](const InitiatorResult& result) {
    finished.push_back({result, {}});
    const auto entry = buffers_.find(result.tag);
    if (entry == buffers_.end()) return;  // submitted to the kernel itself
    entry->second.data_in.resize(result.data_in_bytes);
    finished.back().data_in = std::move(entry->second.data_in);
    buffers_.erase(entry);
  });
  return finished;
}

std::vector<TmrResult> TcmuSimulator::take_task_management() {
  const std::lock_guard lock(mutex_);
  std::vector<TmrResult> ended;
  kernel_.reap_task_management([&](const TmrResult& result) { ended.push_back(result); });
  return ended;
}

// ---- Load ------------------------------------------------------------------------------------------------------

bool TcmuSimulator::start_load(const TcmuLoadOptions& options) {
  const Locked locked = kernel();
  if (load_runs() || !buffers_.empty()) return false;
  load_ = std::make_unique<TcmuLoad>(options);
  load_->start(kernel_);
  return true;
}

void TcmuSimulator::stop_load() {
  const Locked locked = kernel();
  if (load_ != nullptr) load_->stop();
}

TcmuSimulator::LoadSnapshot TcmuSimulator::load() {
  const std::lock_guard lock(mutex_);
  if (load_ == nullptr) return {};
  const bool is_done = load_->is_done();
  return {.is_done = is_done,
          .result = load_->result(),
          .latencies = is_done ? load_->latencies() : std::vector<LatencyCount>()};
}

}  // namespace hushring::os
