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

  // Whether memory is fetched ahead. It orders nothing and changes nothing; a model of memory has better things to do.
  static constexpr bool prefetches = true;

  // ---- F9: the command head is read before what it covers (TCMU) -------------------------------------------
  // Kernel: slot, CDB and Data-Out are written before cmd_head.
  // Prevented: head read as 128 (new), the slot at 0 read early (old): a command that was answered long ago is served
  // again, and its answer makes the kernel say "cmd_id N not found, ring is broken" (tcmu-runner 688, on aarch64).
  // Partner: publish_command_head, in the kernel (its smp_store_release of cmd_head).
  static std::uint32_t acquire_command_head(const std::uint32_t* head) noexcept {
    return load(head, std::memory_order_acquire);
  }
  static void publish_command_head(std::uint32_t* head, std::uint32_t value) noexcept {
    store(head, value, std::memory_order_release);
  }

  // ---- F10: the command tail is published after the answers it covers (TCMU) -------------------------------
  // Device: Data-In and the answers in the slots are written before cmd_tail.
  // Prevented: the kernel, draining for another reason, reads tail 128 (new), then the slot at 0 (old): it takes the
  // id of whatever lay there for an answer.
  // Partner: acquire_command_tail, in the kernel. The real one reads the tail with READ_ONCE, which orders nothing:
  // it relies on draining inside our own doorbell. Release is our half of the pair, F11 makes it enough.
  static void publish_command_tail(std::uint32_t* tail, std::uint32_t value) noexcept {
    store(tail, value, std::memory_order_release);
  }
  static std::uint32_t acquire_command_tail(const std::uint32_t* tail) noexcept {
    return load(tail, std::memory_order_acquire);
  }

  // ---- F11: the doorbell comes after the tail, one at a time (TCMU) -----------------------------------------
  // No fence: the write() that rings the doorbell runs the kernel's drain in its caller, so program order is all
  // it takes in the thread that stored the tail, and a lock that hands the doorbell over is all it takes in another.
  // Prevented: thread A stores the tail while thread B is inside write(); B's drain may see the new tail before the
  // slots (F10), or have looked for the last time just before A's store and leave its answers for ever.
  // Partner: the kernel's drain. Hence no tail is stored while a doorbell is being rung, and every tail gets one.
  static constexpr bool publishes_while_ringing = false;

  // ---- F12: the event is consumed, then the last look at the command head (TCMU) ----------------------------
  // TCMU has no wish to be told or not: the kernel counts an event after every publish. But it does not order the
  // count after the head for a reader. Prevented: the device reads the event, loads the old head from before the
  // fence, and sleeps; the event is gone and no second one follows. Partner: publish_command_head, in the kernel.
  // What a fence on this side alone cannot promise is covered by a slow timer that looks while the device is idle.
  static void fence_event_then_command_head() noexcept { full_fence(); }

  // ---- F13: what a kill between any two stores leaves behind (in-flight region) -----------------------------
  // The partner is no other thread but the next process, which reads what this one has stored until it was killed
  // (InflightRegion::attach). A killed process has done all stores before one place in its program and none after, so
  // program order is all it takes: release keeps the compiler to it, and each function says which step comes first.

  // Prevented: head 3 is marked and has still the counter of its life before, 4; head 5, which was taken earlier, has 9;
  // the next process serves 3 before 5. A write that was sent last is then overwritten by the one before it.
  template <class Count, class Mark>
  static void count_then_mark(Count count, Mark mark) noexcept {
    count();
    mark();
  }
  // Prevented: used.idx says that two heads were given back, and last_batch_head still names the batch before: the next
  // process clears the marks of two others. Those are lost, and the two that the driver has are answered again.
  template <class Link, class Publish>
  static void link_then_publish(Link link, Publish publish) noexcept {
    link();
    publish();
  }
  // Prevented: head 3 is cleared, and used.idx does not cover it yet: nobody will ever answer it.
  template <class Publish, class Clear>
  static void publish_then_clear(Publish publish, Clear clear) noexcept {
    publish();
    clear();
  }
  // Prevented: the region says that the batch up to used.idx 7 is done with, and head 3 of it is still marked: the next
  // process answers head 3 again, which by now may stand for another request of the driver.
  template <class Clear, class Note>
  static void clear_then_note(Clear clear, Note note) noexcept {
    clear();
    note();
  }
  static void store_inflight_counter(std::uint64_t* counter, std::uint64_t value) noexcept {
    store(counter, value, std::memory_order_relaxed);
  }
  static void mark_inflight(std::uint8_t* mark) noexcept { store(mark, std::uint8_t{1}, std::memory_order_release); }
  static void clear_inflight(std::uint8_t* mark) noexcept { store(mark, std::uint8_t{0}, std::memory_order_release); }
  static void note_used_index(std::uint16_t* index, std::uint16_t value) noexcept {
    store(index, value, std::memory_order_release);
  }
  static void publish_inflight_version(std::uint16_t* version, std::uint16_t value) noexcept {
    store(version, value, std::memory_order_release);
  }

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
    std::size_t copied = 0;
    if (reinterpret_cast<std::uintptr_t>(source) % kWordBytes == 0) {
      for (; copied + kWordBytes <= length_bytes; copied += kWordBytes) {
        const std::uint64_t word = load_relaxed(reinterpret_cast<const std::uint64_t*>(source + copied));
        std::memcpy(target + copied, &word, kWordBytes);
      }
    }
    for (; copied < length_bytes; ++copied) target[copied] = load_relaxed(source + copied);
  }
  // The opposite way: writes bytes that the other side may be reading, each byte once. The target may have any
  // alignment.
  static void write_relaxed(std::byte* target, const std::byte* source, std::size_t length_bytes) noexcept {
    constexpr std::size_t kWordBytes = sizeof(std::uint64_t);
    while (length_bytes >= kWordBytes && reinterpret_cast<std::uintptr_t>(target) % kWordBytes == 0) {
      std::uint64_t word;
      std::memcpy(&word, source, kWordBytes);
      store_relaxed(reinterpret_cast<std::uint64_t*>(target), word);
      target += kWordBytes;
      source += kWordBytes;
      length_bytes -= kWordBytes;
    }
    for (; length_bytes > 0; --length_bytes) store_relaxed(target++, *source++);
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
