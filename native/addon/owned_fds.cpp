#include "addon/owned_fds.h"

#include <unistd.h>

#include <set>

#include "addon/errors.h"

namespace hushring {
namespace {

// The environment's instance data, which goes last: after the cleanup hooks that stop watches and driver threads.
class OwnedFds {
 public:
  OwnedFds() = default;
  OwnedFds(const OwnedFds&) = delete;
  OwnedFds& operator=(const OwnedFds&) = delete;
  ~OwnedFds() {
    for (const int fd : fds_) ::close(fd);
  }
  void add(int fd) { fds_.insert(fd); }
  void remove(int fd) { fds_.erase(fd); }

 private:
  std::set<int> fds_;
};

}  // namespace

void start_owning_fds(Napi::Env env) { env.SetInstanceData(new OwnedFds); }

int own_fd(Napi::Env env, int fd) {
  env.GetInstanceData<OwnedFds>()->add(fd);
  return fd;
}

void disown_fd(Napi::Env env, int fd) { env.GetInstanceData<OwnedFds>()->remove(fd); }

Napi::Value owned_fd_or_throw(Napi::Env env, const os::Result& result, const std::string& path) {
  if (result.error == 0 && result.value >= 0) own_fd(env, result.value);
  return value_or_throw(env, result, path);
}

}  // namespace hushring
