// Visits every state of a world, the nearest ones first, so that the first wrong one has the shortest story.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "explore/world.h"

namespace hushring::explore {

struct Exploration {
  std::uint64_t states = 0;
  std::uint64_t edges = 0;
  double seconds = 0;
  std::string violation;           // empty: every state is right
  std::vector<std::string> story;  // how the violation came about, a line a step
  bool is_complete = false;        // no state was left out
};

// Explores until a violation, until everything was seen, or until there are more than `states_max` states.
[[nodiscard]] Exploration explore(MakeScenario make, Model model, std::uint64_t states_max);

}  // namespace hushring::explore
