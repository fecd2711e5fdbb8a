// Litmus tests on this machine: whether a notification is lost when both sides decide at the same moment, with the
// fence under test in its place and without it. Two pinned threads, one a side, built from the text of the product:
// the orderings of core/ordering.h, and for the whole ring core/split.h and core/peer/split_driver.h as they are.
//
// The control, an ordering of core/mutants.h, is what makes the rest worth anything: a machine on which the weakened
// build loses nothing has shown nothing about the product.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "os/result.h"
#include "os/thread.h"

namespace hushring::os {

// The step of the device that is under test, as core/ordering.h numbers it.
enum class LitmusStep : std::uint8_t {
  kSignal = 0,      // F2: used index, then the driver's wish to be signalled
  kKick = 1,        // F4: the wish to be kicked, then the available index
  kSecondLook = 2,  // F5: the look after that wish; in a whole ring only
};
inline constexpr std::int64_t kLitmusStepMax = 2;

struct LitmusOptions {
  bool whole_ring = false;  // false: the two accesses of each side and the fence between them, paced, nothing else
  LitmusStep step = LitmusStep::kSignal;
  bool event_idx = true;              // false: flags
  bool weakened = false;              // the device executes the mutant of this step; the driver is always right
  std::uint64_t round_count_max = 0;  // ends after about so many rounds, or requests of a whole ring; 0: never
  std::uint64_t lost_count_max = 0;   // ends after about so many losses; 0: never. A whole ring ends with its first.
  std::uint64_t duration_ms = 1000;   // ends after so long
};

// Words of 64 bits in the order of LitmusCounter (src/native.ts), written by the threads while they run.
struct LitmusCounters {
  // Rounds for which both sides were in time, or requests that were answered.
  std::uint64_t rounds = 0;
  // Rounds in which both sides read the other's old word, or 1: both sides sleep and work is there.
  std::uint64_t lost = 0;
  // Of the first loss, since the start. A paced race sees it at the end of a batch.
  std::uint64_t first_loss_nanos = 0;
  std::uint64_t elapsed_nanos = 0;
};

// CPUs that this process may use. With one, both sides never run at the same moment and nothing can be shown.
[[nodiscard]] std::size_t usable_cpu_count() noexcept;

// One side each; see litmus_paced.h and litmus_ring.h.
class LitmusExperiment;

class Litmus {
 public:
  // Null when the system refuses, and then `failure` says what. kSecondLook needs a whole ring.
  [[nodiscard]] static std::unique_ptr<Litmus> make(const LitmusOptions& options, Result& failure);

  ~Litmus();
  Litmus(const Litmus&) = delete;
  Litmus& operator=(const Litmus&) = delete;

  // Valid as long as this object is.
  [[nodiscard]] LitmusCounters& counters() noexcept { return counters_; }

  // Starts the threads, once; the two sides are pinned to the first and the last CPU that may be used, which are
  // rarely two threads of one core. `on_done` is the last thing that happens on them. 0 or an errno.
  [[nodiscard]] int run(std::function<void()> on_done);
  // Ends the run where it stands, waits for the threads and lets go of everything but the counters. It cannot run any
  // more. Calling it again does nothing.
  void close() noexcept;

 private:
  explicit Litmus(const LitmusOptions& options) noexcept;

  void supervise();

  LitmusOptions options_;
  LitmusCounters counters_;
  std::unique_ptr<LitmusExperiment> experiment_;
  Thread device_;
  Thread driver_;
  Thread supervisor_;
};

}  // namespace hushring::os
