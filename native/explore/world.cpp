#include "explore/world.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace hushring::explore {

namespace {

constexpr std::size_t kStackBytes = 8 * 1024;
constexpr std::size_t kHeapBytes = 256 * 1024;
constexpr std::size_t kBlockBytes = sizeof(Snapshot::Block::bytes);

struct Side {
  ucontext_t context;
  Step next;
  std::uint64_t result;
  alignas(16) std::byte stack[kStackBytes];
};

// What the programs remember. The one world there is at a time uses it.
struct alignas(kBlockBytes) Arena {
  Side sides[kSideCount];
  const char* violation;
  std::size_t allocated_bytes;
  alignas(16) std::byte heap[kHeapBytes];
};
Arena arena;
static_assert(sizeof(Arena) % kBlockBytes == 0);

bool allocates_in_arena = false;
ucontext_t explorer_context;
std::size_t running_side = kSideCount;  // kSideCount: none, a scenario is being made or the explorer is at work
Scenario* running_scenario = nullptr;
std::vector<std::string>* running_story = nullptr;

std::byte* arena_bytes() { return reinterpret_cast<std::byte*>(&arena); }
// Blocks up to the last one that the heap has come to.
std::size_t block_count() {
  return (offsetof(Arena, heap) + arena.allocated_bytes + kBlockBytes - 1) / kBlockBytes;
}

void run_side() {
  running_scenario->run(running_side);
  for (;;) World::step({.act = Act::kEnd});
}

std::uintptr_t stack_pointer_of(const ucontext_t& context) {
#if defined(__x86_64__)
  return static_cast<std::uintptr_t>(context.uc_mcontext.gregs[REG_RSP]);
#elif defined(__aarch64__)
  return static_cast<std::uintptr_t>(context.uc_mcontext.sp);
#else
#error "the explorer does not know this machine's stack pointer"
#endif
}

void resume(std::size_t side) {
  running_side = side;
  swapcontext(&explorer_context, &arena.sides[side].context);
  running_side = kSideCount;
}

}  // namespace

// ---- Made and unmade -------------------------------------------------------------------------------------------

World::World(MakeScenario make, Model model)
    : scenario_([make] {
        std::memset(static_cast<void*>(&arena), 0, sizeof(arena));
        allocates_in_arena = true;
        Scenario* const scenario = make();
        allocates_in_arena = false;
        return scenario;
      }()),
      memory_(model, scenario_->map()) {
  running_scenario = scenario_;
  for (std::size_t side = 0; side < kSideCount; ++side) {
    ucontext_t& context = arena.sides[side].context;
    getcontext(&context);
    context.uc_stack.ss_sp = arena.sides[side].stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, run_side, 0);
    resume(side);
    clean_stack(side);
  }
  first_.assign(arena_bytes(), arena_bytes() + sizeof(Arena));
}

World::~World() { scenario_->~Scenario(); }

// ---- Exploring -------------------------------------------------------------------------------------------------

std::vector<World::Action> World::actions() const {
  // A store changes nothing for the other side at the moment it is made: it waits in its buffer, or may be overlooked
  // for as long as the other side does not know of it. So it makes no difference to make it at once, and no other
  // order has to be tried.
  for (std::size_t side = 0; side < kSideCount && !memory_.shows_stores_at_once(); ++side) {
    if (arena.sides[side].next.act == Act::kStore) return {{static_cast<std::uint8_t>(side), false, 0}};
  }
  std::vector<Action> actions;
  for (std::size_t side = 0; side < kSideCount; ++side) {
    const Step& next = arena.sides[side].next;
    std::size_t choices = 1;
    if (next.act == Act::kEnd) choices = 0;
    if (next.act == Act::kWait) choices = memory_.is_posted(next.event) ? 1 : 0;
    if (next.act == Act::kLoad) {
      choices = memory_.load_choices(side, range_of(next));
    }
    for (std::size_t choice = 0; choice < choices; ++choice) {
      actions.push_back({static_cast<std::uint8_t>(side), false, static_cast<std::uint16_t>(choice)});
    }
    if (!memory_.buffers_stores()) continue;
    for (const std::size_t place : memory_.visible_next(side)) {
      actions.push_back({static_cast<std::uint8_t>(side), true, static_cast<std::uint16_t>(place)});
    }
  }
  return actions;
}

void World::take(const Action& action) { static_cast<void>(perform(action, nullptr)); }

std::vector<std::string> World::tell(const Action& action, bool& is_covered) {
  std::vector<std::string> story;
  is_covered = perform(action, &story);
  return story;
}

bool World::perform(const Action& action, std::vector<std::string>* story) {
  if (action.is_show) {
    const std::size_t cell = memory_.show(action.side, action.choice);
    const Cell& shown = scenario_->map().cells()[cell];
    if (story != nullptr) {
      story->push_back(scenario_->side_name(action.side) + "'s store of " + shown.name + " becomes visible");
    }
    return shown.is_covered;
  }
  Side& side = arena.sides[action.side];
  const Step next = side.next;
  bool is_old = false;
  side.result = 0;
  switch (next.act) {
    case Act::kLoad:
      side.result = memory_.load(action.side, range_of(next), next.order, action.choice, is_old);
      break;
    case Act::kStore:
      memory_.store(action.side, range_of(next), next.value, next.order);
      break;
    case Act::kFence:
      memory_.full_fence(action.side);
      break;
    case Act::kPost:
      memory_.post(action.side, next.event, scenario_->is_ordered(next.event));
      break;
    case Act::kWait:
      memory_.consume(action.side, next.event, scenario_->is_ordered(next.event));
      break;
    case Act::kEnd:
      break;
  }
  if (story != nullptr) story->push_back(scenario_->side_name(action.side) + " " + text_of(next, side.result, is_old));
  running_story = story;
  resume(action.side);
  running_story = nullptr;
  clean_stack(action.side);
  memory_.forget();
  const bool is_access = next.act == Act::kLoad || next.act == Act::kStore;
  return is_access && !is_old && scenario_->map().cells()[range_of(next).first].is_covered;
}

std::vector<std::string> World::tell_end() const {
  std::vector<std::string> story;
  for (std::size_t side = 0; side < kSideCount; ++side) {
    const Step& next = arena.sides[side].next;
    if (next.act == Act::kWait) {
      story.push_back(scenario_->side_name(side) + " " + scenario_->wait_name(next.event) + ", for ever");
    }
  }
  return story;
}

// What lies below the stack pointer is remembered by nobody, but would make equal states look different.
void World::clean_stack(std::size_t side) {
  constexpr std::uintptr_t kRedZoneBytes = 128;
  std::byte* const stack = arena.sides[side].stack;
  const auto live = stack_pointer_of(arena.sides[side].context) - kRedZoneBytes;
  std::memset(stack, 0, live - reinterpret_cast<std::uintptr_t>(stack));
}

Snapshot World::save() const {
  Snapshot snapshot{memory_, {}};
  for (std::size_t block = 0; block < block_count(); ++block) {
    const std::byte* const bytes = arena_bytes() + block * kBlockBytes;
    if (std::memcmp(bytes, first_.data() + block * kBlockBytes, kBlockBytes) == 0) continue;
    Snapshot::Block& changed = snapshot.changed.emplace_back();
    changed.index = static_cast<std::uint32_t>(block);
    std::memcpy(changed.bytes, bytes, kBlockBytes);
  }
  return snapshot;
}

void World::restore(const Snapshot& snapshot) {
  memory_ = snapshot.memory;
  auto changed = snapshot.changed.begin();
  for (std::size_t block = 0; block < block_count(); ++block) {
    const bool differs = changed != snapshot.changed.end() && changed->index == block;
    std::memcpy(arena_bytes() + block * kBlockBytes, differs ? changed->bytes : first_.data() + block * kBlockBytes,
                kBlockBytes);
    if (differs) ++changed;
  }
}

Digest World::digest(const Snapshot& snapshot) const {
  Digest digest;
  snapshot.memory.add_to(digest);
  for (const Snapshot::Block& block : snapshot.changed) {
    digest.add(block.index);
    for (std::size_t at = 0; at < kBlockBytes; at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, block.bytes + at, 8);
      digest.add(word);
    }
  }
  return digest;
}

const char* World::violation() const { return arena.violation; }

CellMap::Range World::range_of(const Step& step) const { return scenario_->map().range_of(step.where, step.size_bytes); }

std::string World::text_of(const Step& step, std::uint64_t loaded, bool is_old) const {
  const auto name = [&] { return scenario_->map().cells()[range_of(step).first].name; };
  switch (step.act) {
    case Act::kLoad:
      return "loads " + name() + ": " + std::to_string(loaded) + (is_old ? "  (old)" : "");
    case Act::kStore:
      return "stores " + name() + " = " + std::to_string(step.value) +
             (memory_.buffers_stores() ? "  (in its store buffer)" : "");
    case Act::kFence:
      return "executes a full barrier";
    case Act::kPost:
      return scenario_->post_name(step.event);
    case Act::kWait:
      return scenario_->get_name(step.event);
    case Act::kEnd:
      break;
  }
  return "ends";
}

// ---- The programs ----------------------------------------------------------------------------------------------

std::uint64_t World::step(const Step& step) {
  // While a scenario is being made there is nobody else yet.
  if (running_side == kSideCount) {
    if (step.act == Act::kStore) std::memcpy(const_cast<void*>(step.where), &step.value, step.size_bytes);
    std::uint64_t value = 0;
    if (step.act == Act::kLoad) std::memcpy(&value, step.where, step.size_bytes);
    return value;
  }
  Side& side = arena.sides[running_side];
  side.next = step;
  swapcontext(&side.context, &explorer_context);
  return side.result;
}

void World::fail(const char* what) {
  if (arena.violation == nullptr) arena.violation = what;
  for (;;) step({.act = Act::kEnd});
}

void World::note(const char* what) {
  if (running_story != nullptr) running_story->push_back(std::string("    ") + what);
}

void ExploredOrdering::copy_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
  for (; length_bytes >= 8; target += 8, source += 8, length_bytes -= 8) {
    const std::uint64_t word = load_relaxed(reinterpret_cast<const std::uint64_t*>(source));
    std::memcpy(target, &word, 8);
  }
  for (; length_bytes > 0; --length_bytes) *target++ = load_relaxed(source++);
}

void ExploredOrdering::write_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
  for (; length_bytes >= 8; target += 8, source += 8, length_bytes -= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, source, 8);
    store_relaxed(reinterpret_cast<std::uint64_t*>(target), word);
  }
  for (; length_bytes > 0; --length_bytes) store_relaxed(target++, *source++);
}

}  // namespace hushring::explore

// Whatever a scenario allocates while it is made is part of its state. The programs allocate nothing.
void* operator new(std::size_t size_bytes) {
  using namespace hushring::explore;
  if (running_side != kSideCount && running_story == nullptr) std::abort();
  if (!allocates_in_arena) {
    if (void* const memory = std::malloc(size_bytes == 0 ? 1 : size_bytes)) return memory;
    std::abort();
  }
  const std::size_t at = (arena.allocated_bytes + 15) / 16 * 16;
  if (at + size_bytes > sizeof(arena.heap)) std::abort();
  arena.allocated_bytes = at + size_bytes;
  return arena.heap + at;
}

void operator delete(void* memory) noexcept {
  using namespace hushring::explore;
  auto* const bytes = static_cast<std::byte*>(memory);
  if (bytes < arena.heap || bytes >= arena.heap + sizeof(arena.heap)) std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
