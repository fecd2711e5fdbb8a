#include "explore/explorer.h"

#include <chrono>
#include <unordered_set>

namespace hushring::explore {

namespace {

constexpr const char* kLostWakeUp = "a wake-up is lost: there is work, and everybody sleeps";

struct HashDigest {
  std::size_t operator()(const Digest& digest) const { return digest.low; }
};

// How a state was reached.
struct Node {
  std::uint32_t parent;
  World::Action action;
};

// A state whose actions are still to be tried.
struct Open {
  std::uint32_t node;
  Snapshot snapshot;
};

std::vector<std::string> tell(World& world, const Snapshot& first, const std::vector<Node>& nodes, std::uint32_t node,
                              const std::string& violation) {
  std::vector<World::Action> path;
  for (; node != 0; node = nodes[node].parent) path.push_back(nodes[node].action);
  world.restore(first);
  std::vector<std::string> story;
  // A wake-up is lost by the words that tell of wishes and indices; what they cover would only make the story long.
  const bool leaves_out = violation == kLostWakeUp;
  for (auto action = path.rbegin(); action != path.rend(); ++action) {
    bool is_covered = false;
    std::vector<std::string> lines = world.tell(*action, is_covered);
    if (leaves_out && is_covered) lines.erase(lines.begin());
    for (std::string& line : lines) story.push_back(std::move(line));
  }
  for (std::string& line : world.tell_end()) story.push_back(std::move(line));
  story.push_back(violation);
  return story;
}

}  // namespace

Exploration explore(MakeScenario make, Model model, std::uint64_t states_max) {
  const auto started = std::chrono::steady_clock::now();
  Exploration result;
  World world(make, model);
  const Snapshot first = world.save();
  std::vector<Node> nodes{{0, {}}};
  std::unordered_set<Digest, HashDigest> seen{world.digest(first)};
  std::vector<Open> open;
  open.push_back({0, first});
  std::vector<Open> opened;
  while (!open.empty() && result.violation.empty() && nodes.size() <= states_max) {
    for (const Open& state : open) {
      world.restore(state.snapshot);
      const std::vector<World::Action> actions = world.actions();
      if (actions.empty() && !world.is_done()) {
        result.violation = kLostWakeUp;
        result.story = tell(world, first, nodes, state.node, kLostWakeUp);
        break;
      }
      for (const World::Action& action : actions) {
        world.restore(state.snapshot);
        world.take(action);
        ++result.edges;
        Snapshot next = world.save();
        if (!seen.insert(world.digest(next)).second) continue;
        nodes.push_back({state.node, action});
        if (const char* const violation = world.violation(); violation != nullptr) {
          result.violation = violation;
          result.story = tell(world, first, nodes, static_cast<std::uint32_t>(nodes.size() - 1), violation);
          break;
        }
        opened.push_back({static_cast<std::uint32_t>(nodes.size() - 1), std::move(next)});
      }
      if (!result.violation.empty()) break;
    }
    open = std::move(opened);
    opened.clear();
  }
  result.states = seen.size();
  result.is_complete = open.empty() && result.violation.empty();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return result;
}

}  // namespace hushring::explore
