// The arithmetic of event-index suppression: pure functions, no state, small enough to check exhaustively.
#pragma once

#include <cstdint>

namespace hushring {

// True iff the entry `event` is among those published since the last decision: event is one of old, old+1, …,
// fresh-1, modulo 65536 (virtio 1.3, 2.7.7.2 and 2.7.10; vring_need_event in Linux).
//
// `old` is the publisher's index at its previous *decision*, whether that one signalled or not, and `fresh` its
// index now. Indices wrap on purpose. Progress of exactly 65536 since the last decision looks like none: callers
// keep a valid flag for that, see index_lapped().
[[nodiscard]] constexpr bool need_event(std::uint16_t event, std::uint16_t fresh, std::uint16_t old) noexcept {
  return static_cast<std::uint16_t>(fresh - event - 1) < static_cast<std::uint16_t>(fresh - old);
}

// True iff moving the index from `before` to `fresh` passed `decided`, the index of the last decision, a whole
// lap later: need_event can no longer be trusted with `decided` and the next decision must signal (Linux vhost,
// vhost_add_used_n).
[[nodiscard]] constexpr bool index_lapped(std::uint16_t decided, std::uint16_t fresh, std::uint16_t before) noexcept {
  return static_cast<std::uint16_t>(fresh - decided) < static_cast<std::uint16_t>(fresh - before);
}

}  // namespace hushring
