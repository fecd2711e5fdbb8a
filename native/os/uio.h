// A TCMU device of the real kernel, through /dev/uioN (drivers/uio/uio.c, drivers/target/target_core_user.c).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "os/mapped_region.h"
#include "os/tcmu_port.h"
#include "os/unique_fd.h"

namespace hushring::os {

class UioPort final : public TcmuPort {
 public:
  // Opens the device and maps all of it: the kernel accepts no other length than what sysfs tells, so that is asked.
  // Null when refused, and then `failure` says why: errno EBUSY when another process serves the device.
  //
  // `sysfs` is where sysfs is mounted.
  [[nodiscard]] static std::shared_ptr<UioPort> open(const std::string& path, const std::string& sysfs,
                                                     MapFailure& failure);
  ~UioPort() override;

  [[nodiscard]] int event_fd() const noexcept override { return fd_.get(); }
  [[nodiscard]] int read_event() noexcept override;
  [[nodiscard]] int ring_doorbell() noexcept override;
  [[nodiscard]] bool truncated() const noexcept override { return truncated_; }

 private:
  UioPort(UniqueFd fd, std::byte* map, std::size_t map_bytes) noexcept;

  UniqueFd fd_;
  std::atomic<bool> truncated_ = false;
  const int guard_number_;
};

}  // namespace hushring::os
