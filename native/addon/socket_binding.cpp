// unixListen, unixIsListening, unixConnect, unixAccept, unixReceive, unixSend.
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "addon/owned_fds.h"
#include "os/unix_socket.h"

namespace hushring {
namespace {

constexpr std::int64_t kIntMax = std::numeric_limits<int>::max();

bool path_argument(const Napi::CallbackInfo& info, std::string& path) {
  if (!info[0].IsString()) {
    throw_type_error(info.Env(), "path", "a string");
    return false;
  }
  path = info[0].As<Napi::String>();
  return true;
}

Napi::Value unix_listen(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string path;
  std::int64_t mode = 0;
  std::int64_t backlog = 0;
  if (!path_argument(info, path) || !integer_argument(info, 1, "mode", 0, 0777, mode) ||
      !integer_argument(info, 2, "backlog", 0, kIntMax, backlog)) {
    return env.Undefined();
  }
  return owned_fd_or_throw(env, os::unix_listen(path, static_cast<unsigned>(mode), static_cast<int>(backlog)), path);
}

Napi::Value unix_connect(const Napi::CallbackInfo& info) {
  std::string path;
  if (!path_argument(info, path)) return info.Env().Undefined();
  return owned_fd_or_throw(info.Env(), os::unix_connect(path), path);
}

Napi::Value unix_is_listening(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), os::unix_is_listening(fd_from(info[0])));
}

Napi::Value unix_accept(const Napi::CallbackInfo& info) {
  return owned_fd_or_throw(info.Env(), os::unix_accept(fd_from(info[0])));
}

Napi::Value unix_receive(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::span<std::byte> target;
  std::int64_t offset = 0;
  std::int64_t length = 0;
  // At least one byte: no bytes would look like the end of the stream.
  if (!bytes_argument(info, 1, "target", target) ||
      !integer_argument(info, 2, "offsetBytes", 0, std::ssize(target), offset) ||
      !integer_argument(info, 3, "lengthBytes", 1, std::ssize(target) - offset, length)) {
    return env.Undefined();
  }
  target = target.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(length));
  os::Received received = os::unix_receive(fd_from(info[0]), target);
  if (received.bytes.error != 0) return value_or_throw(env, received.bytes);
  const Napi::Array fds = Napi::Array::New(env, received.fds.size());
  for (std::uint32_t index = 0; index < received.fds.size(); ++index) {
    fds.Set(index, own_fd(env, received.fds[index].release()));
  }
  const Napi::Object result = Napi::Object::New(env);
  result.Set("bytes", received.bytes.value);
  result.Set("fds", fds);
  return result;
}

Napi::Value unix_send(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::span<std::byte> bytes;
  if (!bytes_argument(info, 1, "bytes", bytes)) return env.Undefined();
  // Descriptors travel with a byte, never alone.
  if (!info[2].IsArray() || (bytes.empty() && info[2].As<Napi::Array>().Length() > 0)) {
    throw_type_error(env, "fds", "an array of file descriptors, empty when there are no bytes");
    return env.Undefined();
  }
  const auto array = info[2].As<Napi::Array>();
  std::vector<int> fds;
  for (std::uint32_t index = 0; index < array.Length(); ++index) fds.push_back(fd_from(array.Get(index)));
  return value_or_throw(env, os::unix_send(fd_from(info[0]), bytes, fds));
}

Napi::Value unix_peer_pid(const Napi::CallbackInfo& info) {
  return value_or_throw(info.Env(), os::unix_peer_pid(fd_from(info[0])));
}

}  // namespace

void register_sockets(Napi::Env env, Napi::Object exports) {
  exports.Set("unixListen", Napi::Function::New<unix_listen>(env, "unixListen"));
  exports.Set("unixConnect", Napi::Function::New<unix_connect>(env, "unixConnect"));
  exports.Set("unixIsListening", Napi::Function::New<unix_is_listening>(env, "unixIsListening"));
  exports.Set("unixAccept", Napi::Function::New<unix_accept>(env, "unixAccept"));
  exports.Set("unixPeerPid", Napi::Function::New<unix_peer_pid>(env, "unixPeerPid"));
  exports.Set("unixReceive", Napi::Function::New<unix_receive>(env, "unixReceive"));
  exports.Set("unixSend", Napi::Function::New<unix_send>(env, "unixSend"));
}

}  // namespace hushring
