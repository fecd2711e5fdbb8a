// The addon's entry: each binding file registers its functions. Nothing here or in the bindings is process-global
// except the SIGBUS guard, so the addon can be loaded in any number of worker threads.
#include <napi.h>

#include "addon/bindings.h"
#include "addon/owned_fds.h"

namespace {

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  hushring::start_owning_fds(env);
  hushring::register_build(env, exports);
  hushring::register_regions(env, exports);
  hushring::register_queues(env, exports);
  hushring::register_copies(env, exports);
  hushring::register_eventfds(env, exports);
  hushring::register_watches(env, exports);
  hushring::register_sockets(env, exports);
  hushring::register_driver_threads(env, exports);
  hushring::register_litmus(env, exports);
  hushring::register_files(env, exports);
  hushring::register_file_rings(env, exports);
  hushring::register_tcmu_ports(env, exports);
  hushring::register_tcmu_queues(env, exports);
  hushring::register_tcmu_kernels(env, exports);
  hushring::register_netlink(env, exports);
  hushring::register_reclaim(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(hushring, initialise)
