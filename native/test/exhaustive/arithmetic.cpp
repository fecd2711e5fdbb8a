// The arithmetic of event-index suppression (core/suppress.h), tried exhaustively against its definition, which is
// written here as a set: the entries old, old+1, …, fresh-1 are put into a table one by one, and `event` is looked up.
//
// With 16 bits every pair of differences is tried, from several bases: the functions see nothing but differences, which
// is what the 8-bit ones show, tried with every triple. Then the same with functions that are wrong in ways that real
// back-ends were; each of them must be found wrong.
//
// Prints a line for each check: its name, how many cases were tried, how many came out wrong, and whether some should.
// The fields are separated by tabs.
#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>

#include "core/suppress.h"

namespace {

using hushring::index_lapped;
using hushring::need_event;

struct Count {
  std::uint64_t cases = 0;
  std::uint64_t wrong = 0;
};

template <class Index>
inline constexpr std::uint32_t kValues = std::uint32_t{1} << (8 * sizeof(Index));

// Tries `function(value, fresh, start)` for every progress from `start` and every value, 0 progress included. `is_in`
// grows with the progress: it has the values that the definition names, as bytes, so that the compiler can compare many
// at once. `first` is where they begin, seen from `start`: 0 for start, start+1, …, fresh-1; 1 for start+1, …, fresh.
template <class Index, class Function>
Count try_from(Index start, Index first, Function function) {
  const auto is_in = std::make_unique<std::array<std::uint8_t, kValues<Index>>>();
  is_in->fill(0);
  Count count;
  for (std::uint32_t progress = 0; progress < kValues<Index>; ++progress) {
    const auto fresh = static_cast<Index>(start + progress);
    std::uint32_t wrong = 0;
    for (std::uint32_t value = 0; value < kValues<Index>; ++value) {
      wrong += static_cast<std::uint32_t>(function(static_cast<Index>(value), fresh, start)) ^ (*is_in)[value];
    }
    count.cases += kValues<Index>;
    count.wrong += wrong;
    (*is_in)[static_cast<Index>(fresh + first)] = 1;
  }
  return count;
}

void report(const char* name, bool should_fail, const Count& count) {
  std::printf("%s\t%llu\t%llu\t%s\n", name, static_cast<unsigned long long>(count.cases),
              static_cast<unsigned long long>(count.wrong), should_fail ? "wrong" : "right");
}

// Every triple of 8-bit values.
template <class Function>
void try_triples(const char* name, std::uint8_t first, Function function) {
  Count total;
  for (std::uint32_t start = 0; start < 256; ++start) {
    const Count count = try_from<std::uint8_t>(static_cast<std::uint8_t>(start), first, function);
    total.cases += count.cases;
    total.wrong += count.wrong;
  }
  report(name, false, total);
}

template <class Function>
void try_pairs(const char* name, bool should_fail, std::uint16_t start, std::uint16_t first, Function function) {
  report(name, should_fail, try_from<std::uint16_t>(start, first, function));
}

// A device that decides after each completion. The driver parked used_event right behind the first decision, which
// signalled, and asks for the last of `count` completions. Returns whether that one signals.
template <class Decided>
bool last_one_signals(std::uint32_t count, std::uint16_t start, Decided decided_after) {
  std::uint16_t decided = start;
  std::uint16_t used = start;
  bool signals = false;
  for (std::uint32_t completion = 1; completion <= count; ++completion) {
    const std::uint16_t event = completion == count ? used : static_cast<std::uint16_t>(start - 1);
    ++used;
    signals = need_event(event, used, decided);
    decided = decided_after(decided, used, signals);
  }
  return signals;
}

// The same from indices all around the ring.
template <class Decided>
void try_silence(const char* name, bool should_fail, std::uint32_t count, Decided decided_after) {
  Count total;
  for (std::uint32_t start = 0; start < 65536; start += 1021) {
    ++total.cases;
    if (!last_one_signals(count, static_cast<std::uint16_t>(start), decided_after)) ++total.wrong;
  }
  report(name, should_fail, total);
}

}  // namespace

int main() {
  const auto product = [](auto event, auto fresh, auto old) { return need_event<decltype(event)>(event, fresh, old); };
  const auto lapped = [](auto decided, auto fresh, auto before) {
    return index_lapped<decltype(decided)>(decided, fresh, before);
  };
  try_triples("need_event: every triple of 8 bits", 0, product);
  try_triples("index_lapped: every triple of 8 bits", 1, lapped);
  for (const std::uint16_t start : {std::uint16_t{0}, std::uint16_t{65000}}) {
    try_pairs("need_event: every pair of differences of 16 bits", false, start, 0, product);
    try_pairs("index_lapped: every pair of differences of 16 bits", false, start, 1, lapped);
  }

  // The bugs.
  try_pairs("control: need_event with <=", true, 65000, 0,
            [](std::uint16_t event, std::uint16_t fresh, std::uint16_t old) {
              return static_cast<std::uint16_t>(fresh - event - 1) <= static_cast<std::uint16_t>(fresh - old);
            });
  try_pairs("control: need_event without the 1", true, 65000, 0,
            [](std::uint16_t event, std::uint16_t fresh, std::uint16_t old) {
              return static_cast<std::uint16_t>(fresh - event) < static_cast<std::uint16_t>(fresh - old);
            });
  try_pairs("control: need_event with signed numbers", true, 65000, 0,
            [](std::uint16_t event, std::uint16_t fresh, std::uint16_t old) {
              return static_cast<std::int16_t>(fresh - event - 1) < static_cast<std::int16_t>(fresh - old);
            });
  // What integer promotion makes of it when the casts are left out.
  try_pairs("control: need_event in 32 bits", true, 65000, 0,
            [](std::int32_t event, std::int32_t fresh, std::int32_t old) { return fresh - event - 1 < fresh - old; });
  try_pairs("control: need_event by order instead of distance", true, 65000, 0,
            [](std::uint16_t event, std::uint16_t fresh, std::uint16_t old) { return event >= old && event < fresh; });
  try_pairs("control: index_lapped with <=", true, 65000, 1,
            [](std::uint16_t decided, std::uint16_t fresh, std::uint16_t before) {
              return static_cast<std::uint16_t>(fresh - decided) <= static_cast<std::uint16_t>(fresh - before);
            });

  const auto always = [](std::uint16_t, std::uint16_t used, bool) { return used; };
  const auto with_signals = [](std::uint16_t decided, std::uint16_t used, bool signals) {
    return signals ? used : decided;
  };
  try_silence("the signal owed after 65,535 completions", false, 65535, always);
  try_silence("the signal owed after 65,536 completions", false, 65536, always);
  try_silence("the signal owed after 65,535 completions, decided index moves with signals only", false, 65535,
              with_signals);
  try_silence("control: after 65,536 completions, decided index moves with signals only", true, 65536, with_signals);
}
