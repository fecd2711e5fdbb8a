// The few functions of libuv that the bindings use, declared here because node-api-headers brings no uv.h. Node
// exports them, and libuv 1.x keeps them stable; what cannot be known without uv.h (sizes) is asked at run time,
// and uv_is_as_declared() is asked before the first use.
#pragma once

#include <cstddef>
#include <string_view>

extern "C" {
struct uv_loop_s;
struct uv_handle_s;
struct uv_poll_s;
unsigned int uv_version(void);
std::size_t uv_handle_size(int type);
const char* uv_handle_type_name(int type);
const char* uv_err_name(int error);
const char* uv_strerror(int error);
int uv_poll_init(uv_loop_s* loop, uv_poll_s* poll, int fd);
int uv_poll_start(uv_poll_s* poll, int events, void (*callback)(uv_poll_s* poll, int status, int events));
void uv_close(uv_handle_s* handle, void (*callback)(uv_handle_s* handle));
void uv_ref(uv_handle_s* handle);
void uv_unref(uv_handle_s* handle);
void* uv_handle_get_data(const uv_handle_s* handle);
void uv_handle_set_data(uv_handle_s* handle, void* data);
}

namespace hushring {

inline constexpr int kUvPoll = 8;        // uv_handle_type UV_POLL
inline constexpr int kUvReadable = 1;    // uv_poll_event UV_READABLE
inline constexpr int kUvDisconnect = 4;  // uv_poll_event UV_DISCONNECT

// True iff this process runs a libuv with the declarations above.
inline bool uv_is_as_declared() noexcept {
  const char* const name = uv_handle_type_name(kUvPoll);
  return uv_version() >> 16 == 1 && name != nullptr && std::string_view(name) == "poll";
}

}  // namespace hushring
