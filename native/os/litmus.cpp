#include "os/litmus.h"

#include <sched.h>
#include <time.h>

#include <optional>
#include <utility>

#include "core/mutants.h"
#include "core/ordering.h"
#include "os/litmus_experiment.h"
#include "os/litmus_paced.h"
#include "os/litmus_ring.h"

namespace hushring::os {

namespace {

cpu_set_t usable_cpus() noexcept {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  static_cast<void>(::sched_getaffinity(0, sizeof(cpus), &cpus));
  return cpus;
}

// Pins this thread. Where it cannot be, it runs where it runs.
void pin_to(int cpu) noexcept {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  static_cast<void>(::sched_setaffinity(0, sizeof(one), &one));
}

// Calls `make(Ordering)` with the product's orderings or with the mutant that the options want.
template <class Make>
auto with_ordering(const LitmusOptions& options, Make make) {
  using Product = HardwareOrdering;
  if (!options.weakened) return make(Product());
  switch (options.step) {
    case LitmusStep::kSignal:
      return options.event_idx ? make(mutants::F2EventIdx<Product>()) : make(mutants::F2Flags<Product>());
    case LitmusStep::kKick:
      return options.event_idx ? make(mutants::F4EventIdx<Product>()) : make(mutants::F4Flags<Product>());
    case LitmusStep::kSecondLook:
      break;
  }
  return make(mutants::F5<Product>());
}

std::optional<LitmusFds> make_fds(Result& failure) {
  LitmusFds fds;
  for (UniqueFd* const fd : {&fds.kick, &fds.call, &fds.stop}) {
    const Result made = eventfd_create();
    if (made.error != 0) {
      failure = made;
      return std::nullopt;
    }
    fd->reset(made.value);
  }
  return fds;
}

}  // namespace

std::size_t usable_cpu_count() noexcept {
  const cpu_set_t cpus = usable_cpus();
  return static_cast<std::size_t>(CPU_COUNT(&cpus));
}

std::unique_ptr<Litmus> Litmus::make(const LitmusOptions& options, Result& failure) {
  std::optional<LitmusFds> fds = make_fds(failure);
  if (!fds.has_value()) return nullptr;
  std::unique_ptr<Litmus> litmus(new Litmus(options));
  litmus->experiment_ = with_ordering(options, [&](auto ordering) -> std::unique_ptr<LitmusExperiment> {
    using Ordering = decltype(ordering);
    LitmusCounters& counters = litmus->counters_;
    if (!options.whole_ring) return std::make_unique<PacedRace<Ordering>>(counters, options.step, options.event_idx);
    return std::make_unique<SleepingRing<Ordering>>(counters, options.event_idx, std::move(*fds));
  });
  return litmus;
}

Litmus::Litmus(const LitmusOptions& options) noexcept : options_(options) {
  if (options.whole_ring) options_.lost_count_max = 1;  // after it nothing moves any more
}
Litmus::~Litmus() { close(); }

int Litmus::run(std::function<void()> on_done) {
  const cpu_set_t cpus = usable_cpus();
  int first = 0;
  int last = CPU_SETSIZE - 1;
  while (first < last && !CPU_ISSET(first, &cpus)) ++first;
  while (last > first && !CPU_ISSET(last, &cpus)) --last;

  experiment_->start_clock();
  int error = device_.start([this, first] {
    pin_to(first);
    experiment_->run_device();
  });
  if (error == 0) {
    error = driver_.start([this, last] {
      pin_to(last);
      experiment_->run_driver();
    });
  }
  if (error == 0) {
    error = supervisor_.start([this, done = std::move(on_done)] {
      supervise();
      device_.join();
      driver_.join();
      done();
    });
  }
  if (error != 0) close();
  return error;
}

void Litmus::supervise() {
  const auto reached = [](const std::uint64_t& counter, std::uint64_t limit) {
    return limit != 0 && HardwareOrdering::load_relaxed(&counter) >= limit;
  };
  while (!experiment_->stopping()) {
    constexpr timespec kMillisecond{.tv_sec = 0, .tv_nsec = 1'000'000};
    ::nanosleep(&kMillisecond, nullptr);
    experiment_->look();
    const std::uint64_t elapsed_nanos = experiment_->elapsed_nanos();
    HardwareOrdering::store_relaxed(&counters_.elapsed_nanos, elapsed_nanos);
    if (reached(counters_.rounds, options_.round_count_max) || reached(counters_.lost, options_.lost_count_max) ||
        elapsed_nanos / 1'000'000 >= options_.duration_ms) {
      experiment_->stop();
    }
  }
}

void Litmus::close() noexcept {
  if (experiment_ == nullptr) return;
  experiment_->stop();
  supervisor_.join();
  device_.join();
  driver_.join();
  experiment_.reset();
}

}  // namespace hushring::os
