// Lets libFuzzer fuzz JavaScript: an addon of its own, for scripts/verify only.
//
// libFuzzer calls its target and takes the return for the end of the input. A target in JavaScript may need turns of the
// event loop until it is through: a socket is readable, a promise settles. So libFuzzer has a thread of its own, which
// hands each input to the loop and waits; only one of the two ever runs.
#include <fcntl.h>
#include <napi.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

extern "C" {
// What libFuzzer has for programs that bring their own main, and what instrumented code calls when it is loaded.
int LLVMFuzzerRunDriver(int* argc, char*** argv, int (*test_one_input)(const std::uint8_t* data, std::size_t size_bytes));
void __sanitizer_cov_8bit_counters_init(std::uint8_t* begin, std::uint8_t* end);
void __sanitizer_cov_pcs_init(const std::uintptr_t* begin, const std::uintptr_t* end);
}

namespace {

struct Input {
  const std::uint8_t* data;
  std::size_t size_bytes;
};

enum class Verdict { kNone, kFine, kFinding };

// libFuzzer's callback has no argument for these, and a process has one libFuzzer.
Napi::ThreadSafeFunction target;
std::chrono::seconds time_limit;
std::mutex mutex;
std::condition_variable settled;
Verdict verdict;

// The options of libFuzzer have no place for it, and its own time limit is a signal that would hit any thread.
[[noreturn]] void report(const char* what) {
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

int test_one_input(const std::uint8_t* data, std::size_t size_bytes) {
  std::unique_lock lock(mutex);
  verdict = Verdict::kNone;
  Input input{data, size_bytes};
  target.BlockingCall(&input, [](Napi::Env env, Napi::Function function, Input* given) {
    function.Call({Napi::Buffer<std::uint8_t>::Copy(env, given->data, given->size_bytes)});
  });
  if (!settled.wait_for(lock, time_limit, [] { return verdict != Verdict::kNone; })) report("an input ends in time");
  if (verdict == Verdict::kFinding) std::abort();
  return 0;
}

// settle(isFinding): the input that the target was called with last is through.
void settle(const Napi::CallbackInfo& info) {
  const std::lock_guard lock(mutex);
  verdict = info[0].As<Napi::Boolean>() ? Verdict::kFinding : Verdict::kFine;
  settled.notify_one();
}

// start(arguments, counters, secondsMax, target): fuzzes until libFuzzer ends the process. `target(input)` leads to one
// call of settle. `counters` are what libFuzzer takes for the edges of a program.
void start(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  static std::vector<std::string> arguments;
  const auto given = info[0].As<Napi::Array>();
  for (std::uint32_t index = 0; index < given.Length(); ++index) arguments.push_back(given.Get(index).As<Napi::String>());

  static Napi::Reference<Napi::Uint8Array> kept;
  auto counters = info[1].As<Napi::Uint8Array>();
  kept = Napi::Persistent(counters);
  kept.SuppressDestruct();
  const std::size_t count = counters.ElementLength();
  // Each counter has a place in the program and flags. There is no machine code; libFuzzer only tells places apart.
  static std::vector<std::uintptr_t> places(2 * count);
  for (std::size_t index = 0; index < count; ++index) places[2 * index] = index + 1;
  __sanitizer_cov_8bit_counters_init(counters.Data(), counters.Data() + count);
  __sanitizer_cov_pcs_init(places.data(), places.data() + places.size());

  time_limit = std::chrono::seconds(info[2].As<Napi::Number>().Uint32Value());
  target = Napi::ThreadSafeFunction::New(env, info[3].As<Napi::Function>(), "fuzz target", 1, 1);
  // Node makes a pipe non-blocking, and libFuzzer loses what a slow reader leaves no room for.
  const int flags = fcntl(STDERR_FILENO, F_GETFL);
  if (flags >= 0) fcntl(STDERR_FILENO, F_SETFL, flags & ~O_NONBLOCK);
  // libFuzzer ends with exit(), here beside a running event loop, which must not be torn down under it.
  on_exit(
      [](int status, void*) {
        std::fflush(nullptr);
        std::_Exit(status);
      },
      nullptr);
  std::thread([] {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    int argc = static_cast<int>(argv.size());
    char** first = argv.data();
    std::exit(LLVMFuzzerRunDriver(&argc, &first, test_one_input));
  }).detach();
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("start", Napi::Function::New(env, start));
  exports.Set("settle", Napi::Function::New(env, settle));
  return exports;
}

}  // namespace

NODE_API_MODULE(node_fuzzer, initialise)
