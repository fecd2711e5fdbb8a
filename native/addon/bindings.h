// What each binding file adds to the addon's exports; the TypeScript side is src/native.ts.
#pragma once

#include <napi.h>

namespace hushring {

void register_build(Napi::Env env, Napi::Object exports);           // build_binding.cpp
void register_regions(Napi::Env env, Napi::Object exports);         // region_binding.cpp
void register_queues(Napi::Env env, Napi::Object exports);          // queue_binding.cpp
void register_copies(Napi::Env env, Napi::Object exports);          // copies_binding.cpp
void register_eventfds(Napi::Env env, Napi::Object exports);        // eventfd_binding.cpp
void register_watches(Napi::Env env, Napi::Object exports);         // watch_binding.cpp: fds and micro timers
void register_sockets(Napi::Env env, Napi::Object exports);         // socket_binding.cpp
void register_driver_threads(Napi::Env env, Napi::Object exports);  // driver_binding.cpp
void register_litmus(Napi::Env env, Napi::Object exports);         // litmus_binding.cpp
void register_files(Napi::Env env, Napi::Object exports);           // file_binding.cpp
void register_file_rings(Napi::Env env, Napi::Object exports);      // file_ring_binding.cpp
void register_tcmu_ports(Napi::Env env, Napi::Object exports);      // tcmu_port_binding.cpp
void register_tcmu_queues(Napi::Env env, Napi::Object exports);     // tcmu_binding.cpp
void register_tcmu_kernels(Napi::Env env, Napi::Object exports);    // tcmu_kernel_binding.cpp
void register_netlink(Napi::Env env, Napi::Object exports);         // netlink_binding.cpp
void register_reclaim(Napi::Env env, Napi::Object exports);         // reclaim_binding.cpp

}  // namespace hushring
