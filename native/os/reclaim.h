// Safety of a process that serves a disk of its own machine when memory runs out. The kernel then writes dirty pages
// to that disk to get memory back; if serving those writes needs memory itself, both wait for each other.
#pragma once

#include "os/result.h"

namespace hushring::os {

// PR_SET_IO_FLUSHER (Linux 5.6): allocations that the kernel makes for this thread do not wait for I/O, and its
// writes are not throttled for dirty pages that only it can write. The state belongs to a thread: threads and
// processes made later inherit it, and execve keeps it; threads that exist already stay as they are. Needs
// CAP_SYS_RESOURCE (EPERM); EINVAL where the kernel does not know it.
[[nodiscard]] Result set_io_flusher(bool enabled) noexcept;

// PR_GET_IO_FLUSHER: 1 when this thread is one, else 0. Needs the same privilege.
[[nodiscard]] Result io_flusher() noexcept;

// Keeps program and libraries in memory: mlock of every private mapping of a file. Otherwise the kernel may drop
// their pages, and the next instruction waits for the disk that it would serve. Gives the number of mappings. All or
// nothing: EPERM, ENOMEM or EAGAIN when RLIMIT_MEMLOCK is too low and the process lacks CAP_IPC_LOCK. Holds until
// the process ends for what is loaded now; children do not inherit it.
//
// Not mlockall: V8 gives pages of its heap back with madvise(MADV_DONTNEED), which fails for locked pages, and then
// ends the process. Heap, stacks and buffers can only be swapped, which the operator prevents (MemorySwapMax=0).
[[nodiscard]] Result lock_programs() noexcept;

}  // namespace hushring::os
