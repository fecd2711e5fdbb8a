// What scripts/verify/rungs/disassembly.mjs compiles and reads: the functions of the product that take, publish and look,
// as shipped and for each mutant. Nothing here is run.
#include <cstddef>
#include <cstdint>

#include "core/mutants.h"
#include "core/ordering.h"
#include "core/split.h"
#include "core/tcmu.h"

namespace hushring {

namespace mutants {

// An index that is read byte by byte may come from two stores (CVE-2020-13759).
template <class Base>
struct Torn : Base {
  static std::uint16_t acquire_avail_index(const std::uint16_t* index) noexcept {
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(index);
    const std::uint8_t low = Base::load_relaxed(bytes);
    const std::uint8_t high = Base::load_relaxed(bytes + 1);
    return static_cast<std::uint16_t>(high << 8 | low);
  }
};

}  // namespace mutants

// Callers, because a function that is called is compiled as it is in the product.
template <class Ordering>
std::int32_t split_take(SplitDevice<Ordering>& device, std::uint32_t count) {
  return device.take(count);
}
template <class Ordering>
std::int32_t split_complete(SplitDevice<Ordering>& device, std::uint32_t count) {
  return device.complete(count, true);
}
template <class Ordering>
std::int32_t tcmu_take(TcmuDevice<Ordering>& device, std::uint32_t count) {
  return device.take(count);
}
template <class Ordering>
bool tcmu_publish(TcmuDevice<Ordering>& device) {
  return device.publish();
}
template <class Ordering>
bool tcmu_sees_entry(const TcmuDevice<Ordering>& device) {
  return device.sees_entry();
}

#define CALL_SPLIT(...)                                                       \
  template std::int32_t split_take(SplitDevice<__VA_ARGS__>&, std::uint32_t); \
  template std::int32_t split_complete(SplitDevice<__VA_ARGS__>&, std::uint32_t)
#define CALL_TCMU(...)                                                      \
  template std::int32_t tcmu_take(TcmuDevice<__VA_ARGS__>&, std::uint32_t); \
  template bool tcmu_publish(TcmuDevice<__VA_ARGS__>&);                     \
  template bool tcmu_sees_entry(const TcmuDevice<__VA_ARGS__>&)

CALL_SPLIT(HardwareOrdering);
CALL_TCMU(HardwareOrdering);
CALL_SPLIT(mutants::F1<HardwareOrdering>);
CALL_SPLIT(mutants::F2EventIdx<HardwareOrdering>);
CALL_SPLIT(mutants::F2Flags<HardwareOrdering>);
CALL_SPLIT(mutants::F3<HardwareOrdering>);
CALL_SPLIT(mutants::F4EventIdx<HardwareOrdering>);
CALL_SPLIT(mutants::F4Flags<HardwareOrdering>);
CALL_SPLIT(mutants::F5<HardwareOrdering>);
CALL_SPLIT(mutants::Torn<HardwareOrdering>);
CALL_TCMU(mutants::F9<HardwareOrdering>);
CALL_TCMU(mutants::F10<HardwareOrdering>);
CALL_TCMU(mutants::F12<HardwareOrdering>);

}  // namespace hushring
