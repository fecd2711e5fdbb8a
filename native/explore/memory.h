// The memory that the explorer runs the rings on: what each side's accesses may do, by memory model.
//
// Memory is a set of cells, the words that are accessed as a whole. Each is written by one side only, or by both in
// turn and never at once, so that the order of the stores to a cell is the order in which they are made.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace hushring::explore {

enum class Model : std::uint8_t {
  kSc,     // each access takes effect at once
  kTso,    // x86: stores wait in a queue, in order, until they become visible or a full fence
  kPso,    // stores to different cells also pass each other; a release store stays behind all before it
  kViews,  // C++20 without load buffering: a relaxed load may also see any store that the thread does not know to be
           // overtaken; acquire, release and seq_cst fences pass knowledge on
};

enum class Order : std::uint8_t { kRelaxed, kAcquire, kRelease };

inline constexpr std::size_t kSideCount = 2;
inline constexpr std::size_t kEventCount = 3;
inline constexpr std::size_t kCellCountMax = 96;

// ---- Cells -----------------------------------------------------------------------------------------------------

struct Cell {
  std::uint32_t offset;
  std::uint8_t size_bytes;
  std::string name;
  bool is_covered;  // ordered by another word, such as an index; a story about wake-ups leaves it out
};

// The cells of a block of memory, which are added in the order of their addresses.
class CellMap {
 public:
  explicit CellMap(const std::byte* base, std::size_t size_bytes) : base_(base), cell_of_(size_bytes, kNone) {}

  void add(const void* where, std::size_t size_bytes, std::string name, bool is_covered = true) {
    const std::size_t offset = offset_of(where);
    cells_.push_back({static_cast<std::uint32_t>(offset), static_cast<std::uint8_t>(size_bytes), std::move(name),
                      is_covered});
    for (std::size_t byte = 0; byte < size_bytes; ++byte) cell_of_[offset + byte] = cells_.size() - 1;
    if (cells_.size() > kCellCountMax) std::abort();
  }

  [[nodiscard]] const std::vector<Cell>& cells() const { return cells_; }
  // The first cell of an access and how many it covers. An access that does not fit the cells is a mistake of whoever
  // made the map.
  struct Range {
    std::size_t first;
    std::size_t count;
  };
  [[nodiscard]] Range range_of(const void* where, std::size_t size_bytes) const {
    const std::size_t offset = offset_of(where);
    if (offset + size_bytes > cell_of_.size() || cell_of_[offset] == kNone) std::abort();
    const std::size_t first = cell_of_[offset];
    std::size_t count = 0;
    std::size_t covered_bytes = 0;
    for (; covered_bytes < size_bytes; ++count) {
      const std::size_t cell = cell_of_[offset + covered_bytes];
      if (cell == kNone || cell != first + count || cells_[cell].offset != offset + covered_bytes) std::abort();
      covered_bytes += cells_[cell].size_bytes;
    }
    if (covered_bytes != size_bytes) std::abort();
    return {first, count};
  }
  [[nodiscard]] const std::byte* base() const { return base_; }

 private:
  static constexpr std::size_t kNone = ~std::size_t{0};

  [[nodiscard]] std::size_t offset_of(const void* where) const {
    return static_cast<std::size_t>(static_cast<const std::byte*>(where) - base_);
  }

  const std::byte* base_;
  std::vector<std::size_t> cell_of_;
  std::vector<Cell> cells_;
};

// ---- A digest of a state ---------------------------------------------------------------------------------------

struct Digest {
  std::uint64_t low = 0x9e3779b97f4a7c15;
  std::uint64_t high = 0xc2b2ae3d27d4eb4f;

  void add(std::uint64_t value) {
    low = (low ^ value) * 0xff51afd7ed558ccd;
    low ^= low >> 32;
    high = (high + value) * 0x9fb21c651e98df25;
    high ^= high >> 29;
  }
  bool operator==(const Digest&) const = default;
};

// ---- Memory ----------------------------------------------------------------------------------------------------

// A value, copied with every state.
class Memory {
 public:
  Memory(Model model, const CellMap& map) : model_(model), map_(&map), values_(map.cells().size()) {
    for (std::size_t cell = 0; cell < values_.size(); ++cell) {
      const Cell& where = map.cells()[cell];
      for (std::size_t byte = where.size_bytes; byte > 0; --byte) {
        values_[cell] = values_[cell] << 8 | std::to_integer<std::uint64_t>(map.base()[where.offset + byte - 1]);
      }
    }
    if (model != Model::kViews) return;
    for (const std::uint64_t value : values_) messages_.push_back({{value, {}}});
  }

  // ---- Loads ----

  // In how many ways the load can be answered.
  [[nodiscard]] std::size_t load_choices(std::size_t side, CellMap::Range range) const {
    std::size_t choices = 1;
    if (model_ != Model::kViews) return choices;
    for (std::size_t cell = range.first; cell < range.first + range.count; ++cell) {
      choices *= messages_[cell].size() - threads_[side].known[cell];
    }
    return choices;
  }

  // Choice 0 sees the newest value of every cell. `is_old` tells whether this one does not.
  [[nodiscard]] std::uint64_t load(std::size_t side, CellMap::Range range, Order order, std::size_t choice,
                                   bool& is_old) {
    std::uint64_t value = 0;
    std::uint32_t shift = 0;
    is_old = false;
    for (std::size_t cell = range.first; cell < range.first + range.count; ++cell) {
      const std::uint64_t part =
          model_ == Model::kViews ? load_message(side, cell, order, choice, is_old) : newest_for(side, cell, is_old);
      value |= part << shift;
      shift += 8U * map_->cells()[cell].size_bytes;
    }
    return value;
  }

  // ---- Stores ----

  void store(std::size_t side, CellMap::Range range, std::uint64_t value, Order order) {
    for (std::size_t cell = range.first; cell < range.first + range.count; ++cell) {
      const std::uint32_t bits = 8U * map_->cells()[cell].size_bytes;
      const std::uint64_t part = bits == 64 ? value : value & ((std::uint64_t{1} << bits) - 1);
      value = bits == 64 ? 0 : value >> bits;
      store_cell(side, cell, part, order == Order::kRelease);
    }
  }

  [[nodiscard]] bool shows_stores_at_once() const { return model_ == Model::kSc; }
  // Whether stores wait before they are visible.
  [[nodiscard]] bool buffers_stores() const { return model_ == Model::kTso || model_ == Model::kPso; }

  // Stores of a side that may become visible next, as places in its buffer.
  [[nodiscard]] std::vector<std::size_t> visible_next(std::size_t side) const {
    std::vector<std::size_t> places;
    const std::vector<Buffered>& buffer = threads_[side].buffer;
    for (std::size_t place = 0; place < buffer.size(); ++place) {
      if (place > 0 && (model_ == Model::kTso || buffer[place].is_release)) break;
      const auto is_same = [&](const Buffered& earlier) { return earlier.cell == buffer[place].cell; };
      if (std::none_of(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(place), is_same)) {
        places.push_back(place);
      }
    }
    return places;
  }
  // Makes a buffered store visible; returns its cell.
  std::size_t show(std::size_t side, std::size_t place) {
    std::vector<Buffered>& buffer = threads_[side].buffer;
    const Buffered shown = buffer[place];
    values_[shown.cell] = shown.value;
    buffer.erase(buffer.begin() + static_cast<std::ptrdiff_t>(place));
    return shown.cell;
  }

  // ---- Fences and system calls ----

  void full_fence(std::size_t side) {
    drain(side);
    if (model_ != Model::kViews) return;
    Thread& thread = threads_[side];
    join(thread.known, thread.pending);
    join(thread.known, fenced_);
    fenced_ = thread.known;
    thread.released = thread.known;
  }

  // Posts an event that a side may sleep on. An eventfd takes a lock on the way, in both directions, so whoever is
  // woken knows what the other one did before. A counter that orders nothing (UIO's) tells the same only to a side that
  // executes a fence after it.
  void post(std::size_t side, std::size_t event, bool is_ordered) {
    if (is_ordered) drain(side);
    events_[event].is_posted = true;
    if (model_ == Model::kViews) join(events_[event].view, is_ordered ? threads_[side].known : threads_[side].released);
  }
  [[nodiscard]] bool is_posted(std::size_t event) const { return events_[event].is_posted; }
  void consume(std::size_t side, std::size_t event, bool is_ordered) {
    events_[event].is_posted = false;
    if (model_ == Model::kViews) join(is_ordered ? threads_[side].known : threads_[side].pending, events_[event].view);
  }

  // ---- States ----

  // Forgets stores that nobody can see any more. Counts begin anew behind them, so that states that differ in nothing
  // else are the same.
  void forget() {
    if (model_ != Model::kViews) return;
    for (std::size_t cell = 0; cell < messages_.size(); ++cell) {
      std::uint8_t gone = 255;
      for (const Thread& thread : threads_) gone = std::min(gone, thread.known[cell]);
      if (gone == 0) continue;
      messages_[cell].erase(messages_[cell].begin(), messages_[cell].begin() + gone);
      const auto shift = [&](View& view) {
        view[cell] = static_cast<std::uint8_t>(view[cell] > gone ? view[cell] - gone : 0);
      };
      for (Thread& thread : threads_) {
        shift(thread.known);
        shift(thread.pending);
        shift(thread.released);
      }
      shift(fenced_);
      for (Event& event : events_) shift(event.view);
      for (auto& list : messages_) {
        for (Message& message : list) shift(message.view);
      }
    }
  }

  void add_to(Digest& digest) const {
    for (const Event& event : events_) digest.add(event.is_posted ? 1 : 0);
    for (const Thread& thread : threads_) {
      for (const Buffered& store : thread.buffer) {
        digest.add(store.cell << 1 | (store.is_release ? 1 : 0));
        digest.add(store.value);
      }
      digest.add(~std::uint64_t{0});
    }
    if (model_ != Model::kViews) {
      for (const std::uint64_t value : values_) digest.add(value);
      return;
    }
    for (const auto& list : messages_) {
      digest.add(list.size());
      for (const Message& message : list) {
        digest.add(message.value);
        add_view(digest, message.view);
      }
    }
    for (const Event& event : events_) add_view(digest, event.view);
    for (const Thread& thread : threads_) {
      add_view(digest, thread.known);
      add_view(digest, thread.pending);
      add_view(digest, thread.released);
    }
    add_view(digest, fenced_);
  }

 private:
  // By cell: the oldest store that may still be seen.
  using View = std::array<std::uint8_t, kCellCountMax>;

  struct Message {
    std::uint64_t value;
    View view;  // what an acquire load of it learns
  };
  struct Buffered {
    std::size_t cell;
    std::uint64_t value;
    bool is_release;
  };
  struct Thread {
    std::vector<Buffered> buffer;
    View known{};
    View pending{};   // what relaxed loads saw: a fence turns it into knowledge
    View released{};  // knowledge at the last fence: what a relaxed store passes on
  };
  struct Event {
    bool is_posted = false;
    View view{};
  };

  void drain(std::size_t side) {
    while (!threads_[side].buffer.empty()) show(side, 0);
  }

  // What a side sees of a cell: its own latest store, or what is visible.
  [[nodiscard]] std::uint64_t newest_for(std::size_t side, std::size_t cell, bool& is_old) const {
    const std::size_t other = 1 - side;
    for (const Buffered& store : threads_[other].buffer) is_old = is_old || store.cell == cell;
    const std::vector<Buffered>& buffer = threads_[side].buffer;
    for (auto store = buffer.rbegin(); store != buffer.rend(); ++store) {
      if (store->cell == cell) return store->value;
    }
    return values_[cell];
  }

  [[nodiscard]] std::uint64_t load_message(std::size_t side, std::size_t cell, Order order, std::size_t& choice,
                                           bool& is_old) {
    Thread& thread = threads_[side];
    const std::size_t visible = messages_[cell].size() - thread.known[cell];
    const std::size_t index = messages_[cell].size() - 1 - choice % visible;
    is_old = is_old || choice % visible != 0;
    choice /= visible;
    const Message& message = messages_[cell][index];
    thread.known[cell] = static_cast<std::uint8_t>(index);
    join(order == Order::kAcquire ? thread.known : thread.pending, message.view);
    return message.value;
  }

  void store_cell(std::size_t side, std::size_t cell, std::uint64_t value, bool is_release) {
    if (buffers_stores()) {
      threads_[side].buffer.push_back({cell, value, is_release});
      return;
    }
    values_[cell] = value;
    if (model_ != Model::kViews) return;
    Thread& thread = threads_[side];
    thread.known[cell] = static_cast<std::uint8_t>(messages_[cell].size());
    Message message{value, is_release ? thread.known : thread.released};
    message.view[cell] = thread.known[cell];
    messages_[cell].push_back(message);
  }

  void join(View& view, const View& other) const {
    for (std::size_t cell = 0; cell < values_.size(); ++cell) view[cell] = std::max(view[cell], other[cell]);
  }
  void add_view(Digest& digest, const View& view) const {
    for (std::size_t cell = 0; cell < values_.size(); cell += 8) {
      std::uint64_t word = 0;
      for (std::size_t at = 0; at < 8 && cell + at < view.size(); ++at) word = word << 8 | view[cell + at];
      digest.add(word);
    }
  }

  Model model_;
  const CellMap* map_;
  std::vector<std::uint64_t> values_;
  std::vector<std::vector<Message>> messages_;  // by cell; kViews only
  std::array<Thread, kSideCount> threads_;
  std::array<Event, kEventCount> events_;
  View fenced_{};  // what the last seq_cst fence of any side knew
};

}  // namespace hushring::explore
