// createLitmus and usableCpuCount, as src/native.ts declares them (NativeLitmus).
#include <napi.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "addon/bindings.h"
#include "addon/errors.h"
#include "addon/option_reader.h"
#include "addon/raw_arguments.h"
#include "addon/thread_handle.h"
#include "os/litmus.h"

namespace hushring {

namespace {

os::LitmusOptions read_options(OptionReader& reader) {
  const auto u64 = [&](const char* name, std::int64_t max) {
    return static_cast<std::uint64_t>(reader.integer(name, 0, max));
  };
  const os::LitmusOptions options{
      .whole_ring = reader.boolean("wholeRing"),
      .step = static_cast<os::LitmusStep>(reader.integer("step", 0, os::kLitmusStepMax)),
      .event_idx = reader.boolean("eventIdx"),
      .weakened = reader.boolean("weakened"),
      .round_count_max = u64("roundCountMax", kSafeIntegerMax),
      .lost_count_max = u64("lostCountMax", kSafeIntegerMax),
      .duration_ms = u64("durationMs", std::numeric_limits<std::int32_t>::max()),
  };
  if (!reader.failed() && !options.whole_ring && options.step == os::LitmusStep::kSecondLook) {
    reader.fail_range("step", "a fence, unless `wholeRing` is true");
  }
  return options;
}

Napi::Value create_litmus(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  OptionReader reader(info[0]);
  const os::LitmusOptions options = read_options(reader);
  if (reader.failed()) return env.Undefined();
  os::Result failure;
  std::unique_ptr<os::Litmus> made = os::Litmus::make(options, failure);
  if (made == nullptr) {
    throw_system_error(env, failure.error, failure.syscall);
    return env.Undefined();
  }
  const auto handle = std::make_shared<ThreadHandle<os::Litmus>>(std::move(made), "litmus test");
  const Napi::Object litmus = Napi::Object::New(env);
  litmus.Set("counters", counters_of(env, handle));
  define_run_and_close(litmus, handle);
  return litmus;
}

Napi::Value usable_cpu_count(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(os::usable_cpu_count()));
}

}  // namespace

void register_litmus(Napi::Env env, Napi::Object exports) {
  exports.Set("createLitmus", Napi::Function::New(env, create_litmus, "createLitmus"));
  exports.Set("usableCpuCount", Napi::Function::New(env, usable_cpu_count, "usableCpuCount"));
}

}  // namespace hushring
