// TCMU ports as JavaScript holds them: an opaque object that keeps the port alive (NativeTcmuPort in src/native.ts).
#pragma once

#include <napi.h>

#include <memory>

#include "os/tcmu_port.h"

namespace hushring {

// A new JavaScript object that shares `port`: fields `mapBytes` and `eventFd`, function `close()`.
Napi::Object wrap_tcmu_port(Napi::Env env, std::shared_ptr<os::TcmuPort> port);

// The port behind such an object; null for any other value and after close().
std::shared_ptr<os::TcmuPort> tcmu_port_from(const Napi::Value& value);

}  // namespace hushring
