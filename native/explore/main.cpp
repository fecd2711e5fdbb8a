// hushring_explore: the product's rings in every order that a memory model allows, and each mutant up to its first
// mistake.
//
//   hushring_explore                     everything; a line for each exploration, and 1 if any is not as it must be
//   hushring_explore --part N/M          every M-th exploration, from the N-th on
//   hushring_explore --requests 5        more requests: about 3 times the states for each
//   hushring_explore --story F2-event-idx
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/mutants.h"
#include "explore/explorer.h"
#include "explore/split_scenario.h"
#include "explore/tcmu_scenario.h"

namespace hushring::explore {
namespace {

using Product = ExploredOrdering;

// The driver's half of each pair of fences, weakened. It belongs to no product; it shows that the explorer looks at both
// directions.
struct DriverWithoutF2 : Product {
  static void fence_used_event_then_used_index() noexcept {}
  static void fence_avail_flags_then_used_index() noexcept {}
};
struct DriverWithoutF4 : Product {
  static void fence_avail_index_then_avail_event() noexcept {}
  static void fence_avail_index_then_used_flags() noexcept {}
};

constexpr std::uint64_t kStatesMax = 40'000'000;
std::uint32_t request_count = 4;  // two laps of a ring of 2, and from 65534 past 65535

template <Suppression kSuppression, class Device = Product, class Driver = Product>
Scenario* split_by(SplitPlan plan) {
  plan.request_count = request_count;
  return new SplitScenario<Device, Driver, kSuppression>(plan);
}
template <Suppression kSuppression, class Device, class Driver = Product>
Scenario* split() {
  return split_by<kSuppression, Device, Driver>({});
}
// One descriptor: each request is a lap of the ring.
template <Suppression kSuppression>
Scenario* split_of_one() {
  return new SplitScenario<Product, Product, kSuppression>({.size = 1, .depth = 1, .request_count = request_count + 1});
}
// A device that puts its decisions off.
template <Suppression kSuppression, Decides kDecides>
Scenario* deferring_split() {
  return split_by<kSuppression>({.decides = kDecides});
}
// A device that looks once more before it sleeps.
template <Suppression kSuppression, BeforeSleep kBeforeSleep>
Scenario* looking_split() {
  return split_by<kSuppression>({.before_sleep = kBeforeSleep});
}
// Three entries: the fourth command is written over the first one.
template <class Server>
Scenario* tcmu() {
  return new TcmuScenario<Server>(request_count);
}
template <class Server>
Scenario* short_tcmu() {
  return new TcmuScenario<Server>(request_count - 1);
}

struct Experiment {
  const char* name;  // of the mutant, or of the product's part
  bool is_mutant;
  Model model;
  MakeScenario make;
  bool must_fail;
};

constexpr const char* model_name(Model model) {
  switch (model) {
    case Model::kSc:
      return "SC";
    case Model::kTso:
      return "TSO";
    case Model::kPso:
      return "PSO";
    case Model::kViews:
      break;
  }
  return "views";
}

constexpr Suppression kEventIdx = Suppression::kEventIdx;
constexpr Suppression kFlags = Suppression::kFlags;

// The longest ones first, so that parts of them end at about the same time. Each mutant in the strongest model that
// shows it, and some also in one that does not, which is what makes that model no proof.
const Experiment experiments[] = {
    {"tcmu", false, Model::kPso, short_tcmu<Product>, false},
    {"split flags", false, Model::kPso, split<kFlags, Product>, false},
    {"split flags", false, Model::kViews, split<kFlags, Product>, false},
    {"split flags", false, Model::kTso, split<kFlags, Product>, false},
    {"split event_idx", false, Model::kPso, split<kEventIdx, Product>, false},
    {"split event_idx", false, Model::kViews, split<kEventIdx, Product>, false},
    {"split event_idx", false, Model::kTso, split<kEventIdx, Product>, false},
    {"tcmu", false, Model::kViews, tcmu<Product>, false},
    {"tcmu", false, Model::kTso, tcmu<Product>, false},
    {"tcmu", false, Model::kSc, tcmu<Product>, false},
    {"split flags", false, Model::kSc, split<kFlags, Product>, false},
    {"split event_idx", false, Model::kSc, split<kEventIdx, Product>, false},
    {"split event_idx, ring of 1", false, Model::kPso, split_of_one<kEventIdx>, false},
    {"split event_idx, ring of 1", false, Model::kViews, split_of_one<kEventIdx>, false},
    {"split flags, ring of 1", false, Model::kPso, split_of_one<kFlags>, false},
    {"split flags, ring of 1", false, Model::kViews, split_of_one<kFlags>, false},
    {"split event_idx, decided when idle", false, Model::kTso, deferring_split<kEventIdx, Decides::kWhenIdle>, false},
    {"split event_idx, decided when idle", false, Model::kViews, deferring_split<kEventIdx, Decides::kWhenIdle>, false},
    {"split flags, decided when idle", false, Model::kTso, deferring_split<kFlags, Decides::kWhenIdle>, false},

    {"split event_idx, looks before sleep", false, Model::kTso, looking_split<kEventIdx, BeforeSleep::kLooks>, false},
    {"split event_idx, looks before sleep", false, Model::kViews, looking_split<kEventIdx, BeforeSleep::kLooks>, false},
    {"split flags, looks before sleep", false, Model::kTso, looking_split<kFlags, BeforeSleep::kLooks>, false},

    {"F1", true, Model::kPso, split<kEventIdx, mutants::F1<Product>>, true},
    {"F1", true, Model::kTso, split<kEventIdx, mutants::F1<Product>>, false},
    {"F2-event-idx", true, Model::kTso, split<kEventIdx, mutants::F2EventIdx<Product>>, true},
    {"F2-event-idx", true, Model::kSc, split<kEventIdx, mutants::F2EventIdx<Product>>, false},
    {"F2-flags", true, Model::kTso, split<kFlags, mutants::F2Flags<Product>>, true},
    {"F3", true, Model::kViews, split<kEventIdx, mutants::F3<Product>>, true},
    {"F4-event-idx", true, Model::kTso, split<kEventIdx, mutants::F4EventIdx<Product>>, true},
    {"F4-flags", true, Model::kTso, split<kFlags, mutants::F4Flags<Product>>, true},
    {"F5", true, Model::kSc, split<kEventIdx, mutants::F5<Product>>, true},
    {"F9", true, Model::kViews, tcmu<mutants::F9<Product>>, true},
    {"F9", true, Model::kTso, tcmu<mutants::F9<Product>>, false},
    {"F10", true, Model::kPso, tcmu<mutants::F10<Product>>, true},
    {"F12", true, Model::kViews, tcmu<mutants::F12<Product>>, true},
    {"decisions put off for ever", true, Model::kSc, deferring_split<kEventIdx, Decides::kNotIdle>, true},
    {"a wish withdrawn for ever", true, Model::kSc, looking_split<kEventIdx, BeforeSleep::kLooksForGood>, true},
    {"driver without F2, event_idx", true, Model::kTso, split<kEventIdx, Product, DriverWithoutF2>, true},
    {"driver without F2, flags", true, Model::kTso, split<kFlags, Product, DriverWithoutF2>, true},
    {"driver without F4, event_idx", true, Model::kTso, split<kEventIdx, Product, DriverWithoutF4>, true},
    {"driver without F4, flags", true, Model::kTso, split<kFlags, Product, DriverWithoutF4>, true},
};

// True when the exploration came out as it must.
bool run(const Experiment& experiment) {
  const Exploration found = explore(experiment.make, experiment.model, kStatesMax);
  const bool failed = !found.violation.empty();
  const bool is_right = failed == experiment.must_fail && (failed || found.is_complete);
  std::printf("%s %s: %s, %s: %s: %llu states, %llu edges, %.1f s\n", is_right ? "ok" : "WRONG",
              experiment.is_mutant ? "mutant" : "product", experiment.name, model_name(experiment.model),
              failed                ? found.violation.c_str()
              : found.is_complete ? "every state is right"
                                    : "not all states were seen",
              static_cast<unsigned long long>(found.states), static_cast<unsigned long long>(found.edges),
              found.seconds);
  if (!is_right) {
    for (const std::string& line : found.story) std::printf("  %s\n", line.c_str());
  }
  std::fflush(stdout);
  return is_right;
}

int tell(const char* name) {
  for (const Experiment& experiment : experiments) {
    if (!experiment.must_fail || std::strcmp(experiment.name, name) != 0) continue;
    const Exploration found = explore(experiment.make, experiment.model, kStatesMax);
    std::printf("%s, in the memory model %s:\n", name, model_name(experiment.model));
    for (std::size_t step = 0; step < found.story.size(); ++step) {
      std::printf("%4zu  %s\n", step + 1, found.story[step].c_str());
    }
    return found.violation.empty() ? 1 : 0;
  }
  std::fprintf(stderr, "no story of '%s'; there are those of", name);
  for (const Experiment& experiment : experiments) {
    if (experiment.must_fail) std::fprintf(stderr, " '%s'", experiment.name);
  }
  std::fputc('\n', stderr);
  return 2;
}

}  // namespace
}  // namespace hushring::explore

int main(int argc, char** argv) {
  using namespace hushring::explore;
  std::size_t part = 0;
  std::size_t parts = 1;
  for (int index = 1; index + 1 < argc; index += 2) {
    if (std::strcmp(argv[index], "--story") == 0) return tell(argv[index + 1]);
    if (std::strcmp(argv[index], "--requests") == 0) {
      request_count = static_cast<std::uint32_t>(std::strtoul(argv[index + 1], nullptr, 10));
    } else if (std::strcmp(argv[index], "--part") != 0 || std::sscanf(argv[index + 1], "%zu/%zu", &part, &parts) != 2) {
      std::fprintf(stderr, "unknown option %s\n", argv[index]);
      return 2;
    }
  }
  bool all_right = true;
  for (std::size_t index = part; index < std::size(experiments); index += parts) {
    all_right = run(experiments[index]) && all_right;
  }
  return all_right ? 0 : 1;
}
