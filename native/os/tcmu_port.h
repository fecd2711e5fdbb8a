// A TCMU device as its server sees it: shared memory, a counter of events, and a doorbell. The real one is a UIO
// device (uio.h); the simulator of the kernel's half is another (tcmu_simulator.h).
#pragma once

#include <cstddef>

namespace hushring::os {

class TcmuPort {
 public:
  virtual ~TcmuPort() = default;
  TcmuPort(const TcmuPort&) = delete;
  TcmuPort& operator=(const TcmuPort&) = delete;

  // Mailbox, command ring and data area. Mapped as long as the port lives, also when the device is gone.
  [[nodiscard]] std::byte* map() const noexcept { return map_; }
  [[nodiscard]] std::size_t map_bytes() const noexcept { return map_bytes_; }

  // Becomes readable when the kernel has put something on the ring. Borrowed. Never read it in another way than by
  // read_event().
  [[nodiscard]] virtual int event_fd() const noexcept = 0;
  // Reads the counter of events, which clears readability. Call it before looking at the ring: an entry that comes
  // after the look makes the descriptor readable anew, while the other order forgets the event of an entry that was
  // not seen. 0, also when there was no event; EIO when the device is gone. Any thread.
  [[nodiscard]] virtual int read_event() noexcept = 0;
  // Makes the kernel process what was published, in this thread: it copies the data of every completed read before
  // this returns. 0, or an errno when the device is gone. One thread at a time, the one that stored the tail.
  [[nodiscard]] virtual int ring_doorbell() noexcept = 0;
  // True once an access met a page of the data area that the kernel has taken back.
  [[nodiscard]] virtual bool truncated() const noexcept { return false; }

 protected:
  TcmuPort() = default;
  std::byte* map_ = nullptr;
  std::size_t map_bytes_ = 0;
};

}  // namespace hushring::os
