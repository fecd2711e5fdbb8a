// File descriptors that JavaScript owns as plain numbers. JavaScript closes them with closeFd; a worker that is
// terminated no longer can, so its environment closes what is left.
#pragma once

#include <napi.h>

#include <string>

#include "os/result.h"

namespace hushring {

// Call it once, when the addon is loaded into an environment.
void start_owning_fds(Napi::Env env);

// From now on the environment closes `fd` when it ends. Gives `fd` back.
int own_fd(Napi::Env env, int fd);
// JavaScript closes `fd` itself. One that the environment does not own is let alone.
void disown_fd(Napi::Env env, int fd);

// As value_or_throw, for a result that is a descriptor. -1 means "none".
Napi::Value owned_fd_or_throw(Napi::Env env, const os::Result& result, const std::string& path = {});

}  // namespace hushring
