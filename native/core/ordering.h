// The only file that names a memory order. Every access to memory that the other side also touches goes through
// an ordering policy, and every ordering that matters has a name of its own (F1, F2, …), so that the product, a
// simulator's memory and each deliberately weakened mutant are built from the same text: the ring code is a
// template over the policy and never says `std::memory_order` itself.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hushring {

// The orderings of the product. A mutant derives from this class and replaces one function.
//
// Words are read and written by std::atomic_ref on naturally aligned memory: one access of the word's own size,
// never torn, never cached in a register across a call.
struct HardwareOrdering {
  // ---- F1: the used index is published after what it covers ----------------------------------------------
  // Device: data and used.ring[slot] are written before used.idx.
  // Prevented: the driver reads idx 1 (new), then used.ring[0] (old): a foreign head is completed.
  // Partner: acquire_used_index, in the driver.
  static void publish_used_index(std::uint16_t* index, std::uint16_t value) noexcept {
    store(index, value, std::memory_order_release);
  }
  static std::uint16_t acquire_used_index(const std::uint16_t* index) noexcept {
    return load(index, std::memory_order_acquire);
  }

  // ---- F2: published used index, then the driver's wish to be signalled -----------------------------------
  // The store-buffer shape. Device: store used.idx, FENCE, load used_event. Driver: store used_event, FENCE,
  // load used.idx. Prevented: the device's store waits in its store buffer while it loads the old used_event
  // ("silent, please"); the driver loads the old used.idx ("nothing yet") and sleeps: nobody ever wakes it.
  // Release and acquire are not enough, they never order a store before a later load.
  // Partner: fence_used_event_then_used_index, in the driver.
  static void fence_used_index_then_used_event() noexcept { full_fence(); }
  static void fence_used_event_then_used_index() noexcept { full_fence(); }
  // The same with avail.flags (NO_INTERRUPT) in the place of used_event, when EVENT_IDX is not negotiated.
  static void fence_used_index_then_avail_flags() noexcept { full_fence(); }
  static void fence_avail_flags_then_used_index() noexcept { full_fence(); }

  // ---- F3: the available index is read before what it covers ----------------------------------------------
  // Prevented: idx read as 1 (new), avail.ring[0] and its descriptor read early (old): a wrong chain is served.
  // Partner: publish_avail_index, in the driver.
  static std::uint16_t acquire_avail_index(const std::uint16_t* index) noexcept {
    return load(index, std::memory_order_acquire);
  }
  static void publish_avail_index(std::uint16_t* index, std::uint16_t value) noexcept {
    store(index, value, std::memory_order_release);
  }

  // ---- F4: the wish to be kicked, then the last look at the available index -------------------------------
  // The store-buffer shape again. Device: store avail_event, FENCE, load avail.idx. Driver: store avail.idx,
  // FENCE, load avail_event. Prevented: both load the old word; the driver does not kick and the device sleeps
  // on a request. Partner: fence_avail_index_then_avail_event, in the driver.
  static void fence_avail_event_then_avail_index() noexcept { full_fence(); }
  static void fence_avail_index_then_avail_event() noexcept { full_fence(); }
  // The same with used.flags (NO_NOTIFY) in the place of avail_event, when EVENT_IDX is not negotiated.
  static void fence_used_flags_then_avail_index() noexcept { full_fence(); }
  static void fence_avail_index_then_used_flags() noexcept { full_fence(); }

  // ---- F5: after asking for kicks, the device looks once more ---------------------------------------------
  // Prevented: the driver publishes between the device's last look and its wish; without the second look nobody
  // serves that request. Partner: the driver's decision to kick.
  static constexpr bool looks_again_after_rearm = true;

  // ---- Words whose order is given by the fences and indices above -----------------------------------------
  template <typename Word>
  static Word load_relaxed(const Word* word) noexcept {
    return load(word, std::memory_order_relaxed);
  }
  template <typename Word>
  static void store_relaxed(Word* word, Word value) noexcept {
    store(word, value, std::memory_order_relaxed);
  }
  // Copies bytes that the other side may be rewriting: every byte is read exactly once, so that whatever is
  // validated in the copy stays valid. The source may have any alignment.
  static void copy_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
    constexpr std::size_t kWordBytes = sizeof(std::uint64_t);
    while (length_bytes >= kWordBytes && reinterpret_cast<std::uintptr_t>(source) % kWordBytes == 0) {
      const std::uint64_t word = load_relaxed(reinterpret_cast<const std::uint64_t*>(source));
      std::memcpy(target, &word, kWordBytes);
      target += kWordBytes;
      source += kWordBytes;
      length_bytes -= kWordBytes;
    }
    for (; length_bytes > 0; --length_bytes) *target++ = load_relaxed(source++);
  }

 protected:
  template <typename Word>
  static Word load(const Word* word, std::memory_order order) noexcept {
    // atomic_ref of a const object comes with C++26; the referenced word is never written here.
    return std::atomic_ref<Word>(*const_cast<Word*>(word)).load(order);
  }
  template <typename Word>
  static void store(Word* word, Word value, std::memory_order order) noexcept {
    std::atomic_ref<Word>(*word).store(value, order);
  }
  static void full_fence() noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }
};

}  // namespace hushring
