#include "os/sigbus_guard.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>

#include <cerrno>
#include <mutex>

namespace hushring::os {
namespace {

// One entry of the table that the signal handler searches. The handler must neither lock nor wait, and a slot may
// be given to another mapping while it looks, so each slot carries a version that is odd while it changes.
// Prevented: a start read from the old mapping and an end read from the new one make a range that holds the
// faulting address, and zero pages are put over somebody's memory. The slot that does hold the address cannot
// change meanwhile: the thread that faulted is using its mapping. So a slot that changes is one to skip.
struct Slot {
  std::atomic<std::uint32_t> version = 0;
  std::atomic<std::uintptr_t> start = 0;
  std::atomic<std::uintptr_t> end = 0;  // 0: the slot is free
  std::atomic<std::size_t> page_bytes = 0;
  std::atomic<std::atomic<bool>*> truncated = nullptr;
};
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

Slot slots[kGuardedMappingsMax];
std::mutex slots_mutex;  // for those who change slots; the handler never takes it
std::once_flag installed;
struct sigaction previous_action;

void change(Slot& slot, const GuardedMapping& mapping) noexcept {
  const auto start = reinterpret_cast<std::uintptr_t>(mapping.start);
  ++slot.version;
  slot.start = start;
  slot.end = start + mapping.length_bytes;
  slot.page_bytes = mapping.page_bytes;
  slot.truncated = mapping.truncated;
  ++slot.version;
}

// Async-signal-safe. Everything from the faulting page to the end of its mapping lies behind the end of the file.
bool replace_with_zeros(std::uintptr_t address) noexcept {
  for (Slot& slot : slots) {
    const std::uint32_t version = slot.version;
    const std::uintptr_t start = slot.start;
    const std::uintptr_t end = slot.end;
    const std::size_t page_bytes = slot.page_bytes;
    std::atomic<bool>* const truncated = slot.truncated;
    if (version % 2 != 0 || slot.version != version || address < start || address >= end) continue;
    const std::uintptr_t page = address - (address - start) % page_bytes;
    // The flag comes first: whoever reads the zeros and then asks finds it set.
    *truncated = true;
    void* const target = reinterpret_cast<void*>(page);
    return ::mmap(target, end - page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
                  -1, 0) != MAP_FAILED;
  }
  return false;
}

// Does what would have been done without the guard.
void pass_on(int signal, siginfo_t* info, void* context) noexcept {
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) {
    previous_action.sa_sigaction(signal, info, context);
    return;
  }
  const bool sent = info->si_code <= 0;  // by kill() and its kin, rather than by an access
  if (previous_action.sa_handler == SIG_IGN && sent) return;
  if (previous_action.sa_handler != SIG_IGN && previous_action.sa_handler != SIG_DFL) {
    previous_action.sa_handler(signal);
    return;
  }
  // An access that faults ends the process even when SIGBUS is ignored. Back to the default: the access is
  // repeated and faults again; a signal that was sent has to be sent again.
  struct sigaction fatal {};
  fatal.sa_handler = SIG_DFL;
  ::sigaction(SIGBUS, &fatal, nullptr);
  if (sent) ::raise(SIGBUS);
}

void on_sigbus(int signal, siginfo_t* info, void* context) noexcept {
  const int interrupted_errno = errno;
  // BUS_ADRERR is an address without anything behind it. A memory failure (BUS_MCEERR_AR) is not ours to hide.
  const bool answered =
      info->si_code == BUS_ADRERR && replace_with_zeros(reinterpret_cast<std::uintptr_t>(info->si_addr));
  if (!answered) pass_on(signal, info, context);
  errno = interrupted_errno;
}

void install() noexcept {
  // Node unloads an addon with the last worker thread that loaded it, and the handler must never dangle: this
  // library stays for the life of the process.
  Dl_info self;
  if (::dladdr(reinterpret_cast<void*>(&on_sigbus), &self) != 0) {
    ::dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  }
  // First ask, then set: from the moment it is set the handler may run and look at the previous one.
  ::sigaction(SIGBUS, nullptr, &previous_action);
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

int guard(const GuardedMapping& mapping) noexcept {
  std::call_once(installed, install);
  const std::lock_guard lock(slots_mutex);
  for (int number = 0; number < kGuardedMappingsMax; ++number) {
    if (slots[number].end != 0) continue;
    change(slots[number], mapping);
    return number;
  }
  return -1;
}

void unguard(int number) noexcept {
  const std::lock_guard lock(slots_mutex);
  change(slots[number], GuardedMapping{});
}

}  // namespace hushring::os
