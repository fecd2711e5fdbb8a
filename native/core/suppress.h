// The arithmetic of event-index suppression: pure functions, no state, small enough to check exhaustively.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

namespace hushring {

// True iff the entry `event` is among those published since the last decision: event is one of old, old+1, …,
// fresh-1, modulo 65536 (virtio 1.3, 2.7.7.2 and 2.7.10; vring_need_event in Linux).
//
// `old` is the publisher's index at its previous *decision*, whether that one signalled or not, and `fresh` its
// index now. Indices wrap on purpose. Progress of exactly 65536 since the last decision looks like none: callers
// keep a valid flag for that, see index_lapped(). Rings have 16-bit indices; with 8 bits every triple can be tried.
template <std::unsigned_integral Index = std::uint16_t>
[[nodiscard]] constexpr bool need_event(std::type_identity_t<Index> event, std::type_identity_t<Index> fresh,
                                        std::type_identity_t<Index> old) noexcept {
  return static_cast<Index>(fresh - event - 1) < static_cast<Index>(fresh - old);
}

// True iff moving the index from `before` to `fresh` passed `decided`, the index of the last decision, a whole
// lap later: need_event can no longer be trusted with `decided` and the next decision must signal (Linux vhost,
// vhost_add_used_n).
template <std::unsigned_integral Index = std::uint16_t>
[[nodiscard]] constexpr bool index_lapped(std::type_identity_t<Index> decided, std::type_identity_t<Index> fresh,
                                          std::type_identity_t<Index> before) noexcept {
  return static_cast<Index>(fresh - decided) < static_cast<Index>(fresh - before);
}

}  // namespace hushring
