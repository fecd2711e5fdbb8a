// The product's orderings, each weakened once: for the proofs that have to fail when one is missing, and for nothing
// else. Each is a template over the ordering policy it weakens, so that the same mutant runs on the hardware, under
// ThreadSanitizer and in the memory models of the explorer. Names and numbers as in ordering.h; the list with what must
// notice each of them is scripts/verify/mutants.mjs.
#pragma once

#include <atomic>
#include <cstdint>

namespace hushring::mutants {

// A weakened fence still orders everything but a store with a later load, which is what kvmtool's wmb() did. Compilers
// for AArch64 make a full barrier of acq_rel too, so what is asked for is spelt out there.
inline void fence_acq_rel() noexcept {
#if defined(__aarch64__)
  asm volatile("dmb ishld\n\tdmb ishst" ::: "memory");
#else
  std::atomic_thread_fence(std::memory_order_acq_rel);
#endif
}

template <class Base>
struct F1 : Base {
  static void publish_used_index(std::uint16_t* index, std::uint16_t value) noexcept {
    Base::store_relaxed(index, value);
  }
};

template <class Base>
struct F2EventIdx : Base {
  static void fence_used_index_then_used_event() noexcept { fence_acq_rel(); }
};

template <class Base>
struct F2Flags : Base {
  static void fence_used_index_then_avail_flags() noexcept { fence_acq_rel(); }
};

template <class Base>
struct F3 : Base {
  static std::uint16_t acquire_avail_index(const std::uint16_t* index) noexcept { return Base::load_relaxed(index); }
};

template <class Base>
struct F4EventIdx : Base {
  static void fence_avail_event_then_avail_index() noexcept { fence_acq_rel(); }
};

template <class Base>
struct F4Flags : Base {
  static void fence_used_flags_then_avail_index() noexcept { fence_acq_rel(); }
};

template <class Base>
struct F5 : Base {
  static constexpr bool looks_again_after_rearm = false;
};

template <class Base>
struct F9 : Base {
  static std::uint32_t acquire_command_head(const std::uint32_t* head) noexcept { return Base::load_relaxed(head); }
};

template <class Base>
struct F10 : Base {
  static void publish_command_tail(std::uint32_t* tail, std::uint32_t value) noexcept {
    Base::store_relaxed(tail, value);
  }
};

template <class Base>
struct F11 : Base {
  static constexpr bool publishes_while_ringing = true;
};

template <class Base>
struct F12 : Base {
  static void fence_event_then_command_head() noexcept {}
};

// The steps of F13 the other way round.
template <class Base>
struct F13Mark : Base {
  template <class Count, class Mark>
  static void count_then_mark(Count count, Mark mark) noexcept {
    mark();
    count();
  }
};

template <class Base>
struct F13Batch : Base {
  template <class Link, class Publish>
  static void link_then_publish(Link link, Publish publish) noexcept {
    publish();
    link();
  }
};

template <class Base>
struct F13Clear : Base {
  template <class Publish, class Clear>
  static void publish_then_clear(Publish publish, Clear clear) noexcept {
    clear();
    publish();
  }
};

template <class Base>
struct F13Used : Base {
  template <class Clear, class Note>
  static void clear_then_note(Clear clear, Note note) noexcept {
    note();
    clear();
  }
};

}  // namespace hushring::mutants
