// netlinkOpen, netlinkJoin, netlinkSend, netlinkReceive, netlinkLostCount.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "addon/owned_fds.h"
#include "os/netlink.h"

namespace hushring {
namespace {

Napi::Value netlink_open(const Napi::CallbackInfo& info) {
  // The kernel doubles the number for its own overhead.
  constexpr std::int64_t kBytesMax = std::numeric_limits<int>::max() / 2;
  std::int64_t bytes = 0;
  if (!integer_argument(info, 0, "receiveBufferBytes", 1, kBytesMax, bytes)) return info.Env().Undefined();
  return owned_fd_or_throw(info.Env(), os::netlink_open(static_cast<int>(bytes)));
}

void netlink_join(const Napi::CallbackInfo& info) {
  std::int64_t group = 0;
  if (!integer_argument(info, 1, "group", 1, std::numeric_limits<std::uint32_t>::max(), group)) return;
  value_or_throw(info.Env(), os::netlink_join(fd_from(info[0]), static_cast<std::uint32_t>(group)));
}

Napi::Value netlink_send(const Napi::CallbackInfo& info) {
  std::span<std::byte> datagram;
  if (!bytes_argument(info, 1, "datagram", datagram)) return info.Env().Undefined();
  return value_or_throw(info.Env(), os::netlink_send(fd_from(info[0]), datagram));
}

Napi::Value netlink_receive(const Napi::CallbackInfo& info) {
  std::span<std::byte> target;
  if (!bytes_argument(info, 1, "target", target)) return info.Env().Undefined();
  return value_or_throw(info.Env(), os::netlink_receive(fd_from(info[0]), target));
}

Napi::Value netlink_lost_count(const Napi::CallbackInfo& info) {
  std::uint32_t count = 0;
  const os::Result asked = os::netlink_lost_count(fd_from(info[0]), count);
  if (asked.error != 0) return value_or_throw(info.Env(), asked);
  return Napi::Number::New(info.Env(), count);
}

}  // namespace

void register_netlink(Napi::Env env, Napi::Object exports) {
  exports.Set("netlinkOpen", Napi::Function::New<netlink_open>(env, "netlinkOpen"));
  exports.Set("netlinkJoin", Napi::Function::New<netlink_join>(env, "netlinkJoin"));
  exports.Set("netlinkSend", Napi::Function::New<netlink_send>(env, "netlinkSend"));
  exports.Set("netlinkReceive", Napi::Function::New<netlink_receive>(env, "netlinkReceive"));
  exports.Set("netlinkLostCount", Napi::Function::New<netlink_lost_count>(env, "netlinkLostCount"));
}

}  // namespace hushring
