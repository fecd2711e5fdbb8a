// Facts about the build, for `hushring --version` and bug reports.
#include "addon/bindings.h"

namespace hushring {

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

}  // namespace

void register_build(Napi::Env env, Napi::Object exports) {
  const Napi::Object build = Napi::Object::New(env);
  build.Set("napiVersion", NAPI_VERSION);
  build.Set("compiler", kCompiler);
  build.Set("sanitizer", HUSHRING_SANITIZER);
  build.Freeze();
  exports.Set("build", build);
}

}  // namespace hushring
