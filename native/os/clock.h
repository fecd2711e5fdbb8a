// Clocks.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdint>

namespace hushring::os {

inline std::uint64_t monotonic_nanos() noexcept {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// A counter that all CPUs share, read by one instruction. None of them orders the memory accesses around it.
inline std::uint64_t clock_ticks() noexcept {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  std::uint64_t ticks;
  asm volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#elif defined(__riscv) && __riscv_xlen == 64
  std::uint64_t ticks;
  asm volatile("rdtime %0" : "=r"(ticks));
  return ticks;
#else
  return monotonic_nanos();
#endif
}

// Tells the CPU that it is in a loop that waits for another one.
inline void spin_pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Both clocks as they were when the program was loaded.
struct ClockStart {
  std::uint64_t ticks = clock_ticks();
  std::uint64_t nanos = monotonic_nanos();
};
inline const ClockStart clock_start;

// How fast that counter runs. Measured since the program was loaded, and for a millisecond at least.
inline double ticks_per_nano() noexcept {
  static const double measured = [] {
    std::uint64_t elapsed_nanos = 0;
    while (elapsed_nanos < 1'000'000) elapsed_nanos = monotonic_nanos() - clock_start.nanos;
    return static_cast<double>(clock_ticks() - clock_start.ticks) / static_cast<double>(elapsed_nanos);
  }();
  return measured;
}

// Ticks of that counter in so many nanoseconds, at least 1.
inline std::uint64_t ticks_in(std::uint64_t nanos) noexcept {
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(nanos) * ticks_per_nano()));
}

inline std::uint64_t nanos_in(std::uint64_t ticks) noexcept {
  return static_cast<std::uint64_t>(static_cast<double>(ticks) / ticks_per_nano());
}

}  // namespace hushring::os
