// Two programs that share memory, run step by step: a step is one access of one side, and whoever explores chooses
// which side takes it and what it sees.
//
// The programs are ordinary C++, the product's own templates among it, on stacks of their own. Everything that they
// remember lies in one arena, so that a state of the world can be kept, compared and returned to: a copy of the arena
// and of the memory is all there is. Nothing of a program's past is in the comparison but what it still remembers,
// so that histories that come to the same thing are one state; and nothing that it remembers is left out, so that two
// states that are equal go on alike.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/ordering.h"
#include "explore/memory.h"

namespace hushring::explore {

// What a side is about to do.
enum class Act : std::uint8_t { kLoad, kStore, kFence, kPost, kWait, kEnd };

struct Step {
  Act act = Act::kEnd;
  Order order = Order::kRelaxed;
  std::uint8_t size_bytes = 0;
  std::uint8_t event = 0;
  const void* where = nullptr;
  std::uint64_t value = 0;
};

// One experiment: the programs of two sides, made in the arena before anything runs.
class Scenario {
 public:
  virtual ~Scenario() = default;
  // Runs a side to its end. Every access to shared memory goes through ExploredOrdering.
  virtual void run(std::size_t side) = 0;
  // True when nothing is left to be done: then both sides may sleep for ever.
  [[nodiscard]] virtual bool is_done() const = 0;
  [[nodiscard]] virtual const CellMap& map() const = 0;
  // Whether an event orders what was done before it is posted before what is done after it is read, as an eventfd does.
  [[nodiscard]] virtual bool is_ordered(std::size_t event) const = 0;
  // Names for stories.
  [[nodiscard]] virtual std::string side_name(std::size_t side) const = 0;
  // What waiting for an event, posting it, and getting it is called, such as "sleeps until it is kicked", "kicks the
  // device" and "is woken".
  [[nodiscard]] virtual std::string wait_name(std::size_t event) const = 0;
  [[nodiscard]] virtual std::string post_name(std::size_t event) const = 0;
  [[nodiscard]] virtual std::string get_name(std::size_t event) const = 0;
};

using MakeScenario = Scenario* (*)();

// A state that can be returned to.
struct Snapshot {
  struct Block {
    std::uint32_t index;
    std::byte bytes[256];
  };
  Memory memory;
  std::vector<Block> changed;  // blocks of the arena that differ from the first state
};

class World {
 public:
  World(MakeScenario make, Model model);
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World();

  // ---- For whoever explores ----

  // Which step of which side: `choice` says what it sees, or, when `is_show`, which buffered store becomes visible.
  struct Action {
    std::uint8_t side;
    bool is_show;
    std::uint16_t choice;
  };
  // All that can happen next. Empty: both sides sleep, or are at their ends.
  [[nodiscard]] std::vector<Action> actions() const;
  void take(const Action& action);
  [[nodiscard]] Snapshot save() const;
  void restore(const Snapshot& snapshot);
  [[nodiscard]] Digest digest(const Snapshot& snapshot) const;
  // What went wrong; null if nothing did.
  [[nodiscard]] const char* violation() const;
  [[nodiscard]] bool is_done() const { return scenario_->is_done(); }

  // Takes an action and tells it, with what the programs noted on the way. `is_covered` becomes true when it is an
  // access to a covered cell that saw what it should.
  [[nodiscard]] std::vector<std::string> tell(const Action& action, bool& is_covered);
  // Who waits for what, when nothing can happen any more.
  [[nodiscard]] std::vector<std::string> tell_end() const;

  // ---- For the programs ----

  static std::uint64_t step(const Step& step);
  // Ends the run: the programs found something that must not be. `what` is a literal.
  static void fail(const char* what);
  // A word for the story, about what a program decided.
  static void note(const char* what);

 private:
  // Returns whether a covered cell was accessed and saw what it should.
  bool perform(const Action& action, std::vector<std::string>* story);
  [[nodiscard]] CellMap::Range range_of(const Step& step) const;
  [[nodiscard]] std::string text_of(const Step& step, std::uint64_t loaded, bool is_old) const;
  static void clean_stack(std::size_t side);

  Scenario* scenario_ = nullptr;
  Memory memory_;
  std::vector<std::byte> first_;  // the arena in the first state
};

// The ordering policy of the programs: the functions of HardwareOrdering (core/ordering.h), each one step. Those of an
// in-flight region are as they were: no queue here has one.
struct ExploredOrdering : HardwareOrdering {
  static void publish_used_index(std::uint16_t* index, std::uint16_t value) noexcept {
    store(index, value, Order::kRelease);
  }
  static std::uint16_t acquire_used_index(const std::uint16_t* index) noexcept { return load(index, Order::kAcquire); }
  static void publish_avail_index(std::uint16_t* index, std::uint16_t value) noexcept {
    store(index, value, Order::kRelease);
  }
  static std::uint16_t acquire_avail_index(const std::uint16_t* index) noexcept { return load(index, Order::kAcquire); }
  static void publish_command_head(std::uint32_t* head, std::uint32_t value) noexcept {
    store(head, value, Order::kRelease);
  }
  static std::uint32_t acquire_command_head(const std::uint32_t* head) noexcept { return load(head, Order::kAcquire); }
  static void publish_command_tail(std::uint32_t* tail, std::uint32_t value) noexcept {
    store(tail, value, Order::kRelease);
  }
  static std::uint32_t acquire_command_tail(const std::uint32_t* tail) noexcept { return load(tail, Order::kAcquire); }

  static void fence_used_index_then_used_event() noexcept { fence(); }
  static void fence_used_event_then_used_index() noexcept { fence(); }
  static void fence_used_index_then_avail_flags() noexcept { fence(); }
  static void fence_avail_flags_then_used_index() noexcept { fence(); }
  static void fence_avail_event_then_avail_index() noexcept { fence(); }
  static void fence_avail_index_then_avail_event() noexcept { fence(); }
  static void fence_used_flags_then_avail_index() noexcept { fence(); }
  static void fence_avail_index_then_used_flags() noexcept { fence(); }
  static void fence_event_then_command_head() noexcept { fence(); }
  static constexpr bool looks_again_after_rearm = true;
  static constexpr bool prefetches = false;

  template <typename Word>
  static Word load_relaxed(const Word* word) noexcept {
    return load(word, Order::kRelaxed);
  }
  template <typename Word>
  static void store_relaxed(Word* word, Word value) noexcept {
    store(word, value, Order::kRelaxed);
  }
  static void copy_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept;
  static void write_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept;

 private:
  template <typename Word>
  static Word load(const Word* word, Order order) noexcept {
    const Step step{.act = Act::kLoad, .order = order, .size_bytes = sizeof(Word), .where = word};
    return static_cast<Word>(World::step(step));
  }
  template <typename Word>
  static void store(Word* word, Word value, Order order) noexcept {
    World::step({.act = Act::kStore,
                 .order = order,
                 .size_bytes = sizeof(Word),
                 .where = word,
                 .value = static_cast<std::uint64_t>(value)});
  }
  static void fence() noexcept { World::step({.act = Act::kFence}); }
};

// An eventfd: counts nothing, because nobody asks how often it was posted.
inline void post(std::uint8_t event) { World::step({.act = Act::kPost, .event = event}); }
inline void wait(std::uint8_t event) { World::step({.act = Act::kWait, .event = event}); }

}  // namespace hushring::explore
